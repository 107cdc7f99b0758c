"""Baselines of the evaluation."""
