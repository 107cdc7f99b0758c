"""The parts of :func:`stxtools.tl.biomarkers`.

- ``_biomarkers``: the call
- ``_protect``: expression that is independent of groups found in it
- ``_design``: which groups are compared, and their tests by :mod:`stxtools.stats`
- ``_attribution``, ``_probe``: what a model, or a linear probe, reads of each gene
- ``_table``: the columns and the order of the table
"""
