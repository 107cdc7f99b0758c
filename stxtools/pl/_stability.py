"""How the number of segments was chosen."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from stxtools import _keys

from . import _base, _output

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@_output.plot
def stability(
    adata: AnnData,
    key: str = _keys.SEGMENT,
    *,
    title: str | None = None,
    ax: Axes | None = None, show: bool | None = None, save: bool | str | PathLike[str] | None = None,
) -> Axes | None:  # fmt: skip
    """Draw the Bayesian information criterion (BIC) of each number of segments tried.

    The number that was taken is marked.

    Parameters
    ----------
    adata
        Annotated data with ``uns[key]["stability"]``.
    key
        ``"segment"``, or the ``key_added`` of the call.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> ax = st.pl.stability(adata)
    """
    (text,) = _base.titles_of([""], title)
    call, hint = "st.tl.segment(adata)", ", without `n_segments` and `labels_key`"
    curve = _base.table_of(adata, key, "stability", ["n_segments", "stability", "bic"], call, hint)
    taken = _base.params_of(adata.uns[key]).get("n_segments")
    if taken not in set(curve["n_segments"]):
        raise ValueError(f"`adata.uns[{key!r}]['stability']` does not hold the number that was taken, {taken!r}; run "
                         "`st.tl.segment(adata)` again.")  # fmt: skip
    axis = _base.grid(1, 4.2, 3.2)[0] if ax is None else ax
    x, y = curve["n_segments"].to_numpy(), curve["bic"].to_numpy()
    axis.plot(x, y, color="0.5", marker="o", markersize=4)
    axis.plot(x[x == taken], y[x == taken], "o", markersize=9, color="#d55e00", label=f"taken: {taken}")
    axis.set_xticks(x)
    axis.legend(frameon=False, fontsize="small")
    _base.finish(axis, text, "number of segments", "BIC")
    return _output.done("stability", [axis], ax=ax, show=show, save=save)
