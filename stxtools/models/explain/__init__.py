"""Integrated gradients and edge attribution."""
