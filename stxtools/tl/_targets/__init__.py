"""Joining target databases: :func:`stxtools.tl.targets`."""
