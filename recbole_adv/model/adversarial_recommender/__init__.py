"""Recommenders with an adversary of their own."""
