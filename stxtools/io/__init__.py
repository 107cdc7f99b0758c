"""Read sections and annotations, and convert to and from SpatialData.

All functions of :mod:`stxtools.pp`, :mod:`stxtools.tl`, :mod:`stxtools.pl` and :mod:`stxtools.get` accept SpatialData
in place of AnnData, with two more keyword arguments, ``table_key="table"`` and ``coordinate_system=None``. They read
and write ``sdata.tables[table_key]``. Coordinates are ``obsm["spatial"]`` of the table. If there are none, or if
``coordinate_system`` is given, they are the centroids of the annotated shapes, labels or points in that coordinate
system (``"global"`` by default). RGB images that overlap these elements, also rotated or
shifted, serve as tissue images. With ``copy=True`` a new SpatialData is returned that shares all other elements.
"""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
