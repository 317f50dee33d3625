"""Recommenders that learn what holds in every environment."""
