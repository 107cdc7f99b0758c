"""The test of :func:`stxtools.tl.biomarkers`."""
