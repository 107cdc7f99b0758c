"""Comparing and tuning models: :func:`stxtools.tl.evaluate` and :func:`stxtools.tl.tune`."""
