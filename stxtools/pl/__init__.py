"""Plots of what the other calls wrote; they compute no result.

**Showing.** ``show=None``, the default, shows the figure where the backend can (a notebook, a window) and
``scanpy.settings.autoshow`` is on; the call then returns None, as scanpy's do. ``show=False`` returns the Axes, one
or a list of one per panel. So does a backend without a window, such as "agg". With ``ax=`` the plot is a part of your
figure, its legend to the right and its colour bars below within that Axes; only ``show=True`` shows it.

**Saving.** ``save=True`` writes a file named after the function, such as ``segment.pdf``, into
``scanpy.settings.figdir``, in ``scanpy.settings.file_format_figs``. ``save="_layers.png"`` writes
``segment_layers.png`` there. ``save=pathlib.Path("figure1.png")`` writes that very file. The resolution is that of
``rcParams["savefig.dpi"]``. A figure that was saved is closed, except for the caller's own (``ax=``).

**Colours.** Categories have the colours in ``uns["{key}_colors"]``, where scanpy and squidpy look as well. Where
there are none, they are chosen from scanpy's palette and stored, once the plot is done. Nothing else in the AnnData
changes, and nothing at all after an error.

**Scale bars.** The unit of ``obsm["spatial"]`` is known where ``uns["spatial"][library]`` says so:
``["scalefactors"]["microns_per_pixel"]`` (Visium HD), or ``["metadata"]["unit"]`` is "micron". It is also known for
Visium, whose spots lie 100 microns apart, by ``obs["array_row"]`` and ``obs["array_col"]``. Coordinates in microns of
other platforms, such as Xenium, need ``scale_bar=1.0``.
"""

from stxtools._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
