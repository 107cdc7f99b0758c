"""How the number of segments was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING

import pandas as pd

from stxtools import _keys
from stxtools._docs import documented
from stxtools._validate import check_adata

from . import _base, _output

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


@documented
@_output.plot
def stability(
    adata: AnnData,
    key: str = _keys.SEGMENT,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | PathLike[str] | None = None,
) -> Axes | None:
    """Draw how well partitions of random halves agree, for each number of segments tried.

    Parameters
    ----------
    adata
        Annotated data with ``uns[key]["stability"]``.
    key
        ``"segment"``, or the ``key_added`` of the call.
    %(parameters)s

    Returns
    -------
    None where the figure was shown, else the Axes; the number that was taken is marked.

    Raises
    ------
    KeyError
        The number was not chosen by :func:`stxtools.tl.segment`: it was given, or there were labels.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> ax = st.pl.stability(adata)
    """
    check_adata(adata, unique_vars=False)
    slot = _base.slot_of(adata, key)
    _base.check_title(title)
    curve = slot.get("stability") if isinstance(slot, Mapping) else None
    params = _base.params_of(slot)
    if not isinstance(curve, pd.DataFrame) or not {"n_segments", "stability"} <= set(curve) or curve.empty or (
        "n_segments" not in params
    ):  # fmt: skip
        raise KeyError(
            f"`adata.uns[{key!r}]['stability']` is missing; it is written by `st.tl.segment(adata)` without "
            "`n_segments` and `labels_key`."
        )
    _base.check_columns(curve, ["n_segments", "stability"], f"adata.uns[{key!r}]['stability']", "st.tl.segment(adata)")
    if params["n_segments"] not in set(curve["n_segments"]):
        raise ValueError(f"`adata.uns[{key!r}]['stability']` does not hold the number that was taken, "
                         f"{params['n_segments']!r}; run `st.tl.segment(adata)` again.")  # fmt: skip
    axes = _base.grid(1, 4.2, 3.2)[0] if ax is None else ax
    x, y = curve["n_segments"].to_numpy(), curve["stability"].to_numpy()
    axes.plot(x, y, color="0.5", marker="o", markersize=4)
    taken = int(params["n_segments"])
    axes.plot(taken, y[x == taken], "o", markersize=9, color="#d55e00", label=f"taken: {taken}")
    axes.set_xticks(x)
    axes.set_xlabel("number of segments")
    axes.set_ylabel("adjusted Rand index between halves")
    axes.set_ylim(top=1.02)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    if title is not None:
        axes.set_title(title)
    return _output.done("stability", [axes], ax=ax, show=show, save=save)
