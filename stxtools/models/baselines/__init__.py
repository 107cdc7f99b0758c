"""Baselines of the evaluation: simple ones and single networks."""
