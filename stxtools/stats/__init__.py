"""Statistical tests on sparse matrices of expression: numpy and scipy only.

Tests of genes against random regions (``tl.biomarkers``, ``tl.describe``), in the order of a call:

- ``_design``: where a group is compared with its reference, and the outcome of all sections together
- ``_region_test``: runs the tests of all regions, block by block of genes
- ``_null_model``: draws the random regions
- ``_smooth``, ``_composition``: smooth variation and covariates, which a test takes out of expression
- ``_section``: tests and describes all genes of one section
- ``_tails``, ``_calibration``: p-values from random regions
- ``_meta_analysis``: combines sections; multiple testing (``adjust_bh``)

Tests of subjects (``tl.compare``, ``tl.trends``): ``_subjects``.
"""
