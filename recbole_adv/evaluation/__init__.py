"""Evaluation beyond RecBole's: pools, masks, groups, further sets, bounded memory.

What is ranked and how it is cut into groups is decided here; RecBole's metrics do the scoring.
"""
