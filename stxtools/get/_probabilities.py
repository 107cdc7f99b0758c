"""The class probabilities of the observations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stxtools import _keys
from stxtools._docs import documented
from stxtools._slots import column_names
from stxtools._validate import check_adata, check_in

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@documented
def probabilities(adata: AnnData, *, key: str = _keys.SEGMENT) -> pd.DataFrame:
    """Return the class probabilities of the observations, under the true names of the classes.

    ``obsm["{key}_proba"]`` holds the same numbers. A class whose name no file can hold as a column (``"L2/3"``) has
    another name there.

    Parameters
    ----------
    adata
        Annotated data after :func:`stxtools.tl.segment` or :func:`stxtools.tl.multitask`, or its ``uns["regions"]``.
    key
        The ``obs`` column that was predicted: the output of :func:`stxtools.tl.segment`, or the ``biomarker_key`` or
        ``region_key`` of :func:`stxtools.tl.multitask`.

    Returns
    -------
    A new table, observations x classes; NaN outside any region.

    Raises
    ------
    KeyError
        There are no probabilities of ``key``.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata, n_segments=3)
    >>> st.get.probabilities(adata).columns.tolist()
    ['0', '1', '2']
    """
    check_adata(adata, unique_vars=False)
    name = _keys.proba(key)
    check_in(adata, "obsm", name, "key", "Run `st.tl.segment(adata)` or `st.tl.multitask(adata, ...)` first.")
    names = column_names(adata, name)
    if names is None:
        raise TypeError(f"`adata.obsm[{name!r}]` is a {type(adata.obsm[name]).__name__}, not a table.")
    table = adata.obsm[name].copy()
    table.columns = names
    return table
