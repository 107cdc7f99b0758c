"""Plots of the results of :mod:`stxtools.tl`; nothing is computed.

**Showing.** As in scanpy, ``show=None`` (the default) shows the figure and returns None if the backend is interactive
(a notebook or a window) and ``scanpy.settings.autoshow`` is on. Otherwise, and with ``show=False``, the Axes are
returned, or a list of them for several panels. With ``ax=`` the plot becomes part of your figure: its legend (on the
right) and colour bars (below) take space from that Axes, and it is shown only with ``show=True``.

**Saving.** ``save=True`` writes a file named after the function, such as ``segment.pdf``, to
``scanpy.settings.figdir`` in the format ``scanpy.settings.file_format_figs``. ``save="_layers.png"`` writes
``segment_layers.png`` there. ``save=pathlib.Path("figure1.png")`` writes to this path. The resolution is
``rcParams["savefig.dpi"]``. A saved figure is closed, unless ``ax`` is given.

**Colours.** Categories have the colours in ``uns["{key}_colors"]``, which scanpy and squidpy use as well. Missing
colours are taken from scanpy's palette and stored after plotting. Nothing else in the AnnData is modified.

**Scale bars.** The unit of ``obsm["spatial"]`` is known from ``uns["spatial"][library]`` if there is
``["scalefactors"]["microns_per_pixel"]`` (Visium HD) or if ``["metadata"]["unit"]`` is ``"micron"``, and for Visium
from ``obs["array_row"]`` and ``obs["array_col"]``, as spots are 100 microns apart. Other coordinates in microns, such
as those of Xenium, need ``scale_bar=1.0``.
"""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
