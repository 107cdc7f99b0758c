"""Calibrated tests on sparse matrices: numpy and scipy only."""
