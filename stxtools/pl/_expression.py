"""Expression of genes over the tissue, a panel per gene and section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools._validate import check_in, listing

from ._base import titles_of
from ._legend import add_legend, color_map, mappable, plain
from ._sections import Panel
from ._tissue import draw_sections, draw_spots

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


def draw(
    adata: AnnData,
    panels: Sequence[Panel],
    genes: list[str],
    *,
    layer: str | None,
    title: str | None,
    legend: bool,
    ax: Axes | None,
    spatial_key: str,
    scale_bar: float | bool | None,
) -> list[Axes]:
    """Draw genes in columns and, where there are several, sections in rows; a gene has one scale in all sections."""
    n = len(genes)
    if layer is not None:
        check_in(adata, "layers", layer, "layer")
    if ax is not None and n * len(panels) > 1:
        raise ValueError(f"`ax` takes one gene of one section, but there are {n} and {len(panels)}; give "
                         f"`n_genes=1` and `library={panels[0].library!r}`, or leave `ax` out.")  # fmt: skip
    absent = [g for g in genes if g not in adata.var_names]
    if absent:
        raise KeyError(f"The table names genes that are not in `adata.var_names`: {listing(absent)}; "
                       "run `st.tl.biomarkers(adata, groupby=...)` again.")  # fmt: skip
    if not adata.var_names.is_unique:
        raise ValueError("`adata.var_names` are not unique; call `adata.var_names_make_unique()` first.")
    values = _values(adata, genes, layer)
    drawn = np.concatenate([panel.rows for panel in panels])
    colors = [mappable(*_range(values[drawn, j]), color_map("viridis")) for j in range(n)]
    cells = [panel for panel in panels for _ in genes]
    names = [f"{gene}, {plain(p.library)}" if len(panels) > 1 else gene for p in panels for gene in map(plain, genes)]

    def draw_gene(axis: Axes, i: int, over: bool) -> None:
        rows, bar = cells[i].rows, colors[i % n]
        draw_spots(axis, cells[i].xy, values[rows, i % n], cmap=bar.cmap, norm=bar.norm, label=genes[i % n])

    axes = draw_sections(
        adata, cells, draw_gene, ax=ax, spatial_key=spatial_key, title=titles_of(names, title), scale_bar=scale_bar,
        ncols=5 if len(panels) == 1 else n, shrink=0.8, bottom=0.4 * legend,
    )  # fmt: skip
    label = "expression" if layer is None else f"expression ({plain(layer)})"
    for j, bar in enumerate(colors if legend else []):
        add_legend(axes[j::n] if len(panels) > 1 else [axes[j]], [], own=ax is None, bars=[(bar, label)])
    for axis in axes:
        axis.title.set_fontstyle("italic")
    return axes


def _values(adata: AnnData, genes: list[str], layer: str | None) -> NDArray[np.float64]:
    """Dense expression of a few genes."""
    part: Any = adata[:, genes]
    part = part.layers[layer] if layer is not None else part.X
    name = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if part is None:
        raise ValueError(f"`{name}` is empty; name a layer that holds expression with `layer=`.")
    if hasattr(part, "compute"):  # out of core: the genes alone are read
        part = part.compute()
    values = np.asarray(part.toarray() if hasattr(part, "toarray") else part)
    if values.dtype.kind not in "buif":
        raise TypeError(f"`{name}` holds {values.dtype}, not real numbers; name a layer that does with `layer=`.")
    return np.where(np.isfinite(values), values, np.nan).astype(np.float64)


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the colour scale; a few extreme counts would leave the rest of the tissue in one colour."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low = min(0.0, float(finite.min()))
    high = float(np.quantile(finite, 0.995))
    if high <= low:
        high = float(finite.max())
    return low, high if high > low else low + 1.0
