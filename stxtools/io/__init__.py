"""Reading vendors' folders and annotations; from and to SpatialData.

Every call of :mod:`stxtools.pp`, :mod:`stxtools.tl`, :mod:`stxtools.pl` and :mod:`stxtools.get` takes SpatialData in
place of AnnData. It works on ``sdata.tables[table_key]`` (``"table"``), where its results land. Positions are
``obsm["spatial"]`` of the table. Where there are none, or where you name ``coordinate_system=``, they are the centroids
of the annotated shapes, labels or points in that system, ``"global"`` by default. Colour images that lie over these
elements serve as images of the tissue. With ``copy=True`` the call returns SpatialData that shares all else.

:func:`~stxtools.io.read` needs spatialdata-io for vendors' folders: ``pip install "stxtools[io]"``.
"""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
