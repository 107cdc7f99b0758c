"""Expression of genes over the tissue, a panel per gene and section."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools._validate import check_in, listing

from . import _base, _legend, _scale_bar

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray


def draw(
    adata: AnnData,
    panels: list[_base.Panel],
    genes: list[str],
    rulers: dict[str, _scale_bar.Bar | None],
    *,
    layer: str | None,
    title: str | None,
    legend: bool,
    ax: Axes | None,
) -> list[Axes]:
    """Draw genes in columns and, where there are several, sections in rows; a gene has one scale in all sections."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if layer is not None:
        check_in(adata, "layers", layer, "layer")
    if ax is not None and len(genes) * len(panels) > 1:
        raise ValueError(f"`ax` takes one gene of one section, but there are {len(genes)} and {len(panels)}; give "
                         f"`n_genes=1` and `library={panels[0].library!r}`, or leave `ax` out.")  # fmt: skip
    absent = [g for g in genes if g not in adata.var_names]
    if absent:
        raise KeyError(f"The table names genes that are not in `adata.var_names`: {listing(absent)}; "
                       "run `st.tl.biomarkers(adata, groupby=...)` again.")  # fmt: skip
    if not adata.var_names.is_unique:
        raise ValueError("`adata.var_names` are not unique; call `adata.var_names_make_unique()` first.")
    values = _values(adata, genes, layer)
    cells = [(panel, j) for panel in panels for j in range(len(genes))]
    ncols = 5 if len(panels) == 1 else len(genes)
    axes = _base.axes_for([panel for panel, _ in cells], ax, ncols=ncols, shrink=0.8, bottom=0.4 * legend)
    label = "expression" if layer is None else f"expression ({_legend.plain(layer)})"
    cmap = _legend.color_map("viridis")
    drawn = np.concatenate([panel.rows for panel in panels])
    norms = [Normalize(*_range(values[drawn, j])) for j in range(len(genes))]
    for axis, (panel, j) in zip(axes, cells, strict=True):
        _base.draw_spots(axis, panel.xy, values[panel.rows, j], cmap=cmap, norm=norms[j], label=genes[j])
        _base.frame(axis, panel, None)
        _scale_bar.draw(axis, panel, rulers[panel.library])
        name = _legend.plain(genes[j])
        text = name if title is None else title if len(cells) == 1 else f"{title}: {name}"
        if len(panels) > 1:
            text += f", {_legend.plain(panel.library)}"
        axis.set_title(text, fontsize="medium", style="italic")
    for j, norm in enumerate(norms if legend else []):
        column = axes[j :: len(genes)] if len(panels) > 1 else [axes[j]]
        bar = ScalarMappable(norm, cmap)
        _legend.add_legend(column, [], own=ax is None, bars=[(bar, label)])
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
