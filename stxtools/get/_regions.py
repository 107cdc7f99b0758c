"""The regions as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._docs import documented
from stxtools._validate import check_adata

if TYPE_CHECKING:
    from anndata import AnnData


@documented
def regions(adata: AnnData, *, key: str = _keys.REGIONS) -> pd.DataFrame:
    """Return the regions as a tidy table, one row each.

    Parameters
    ----------
    adata
        Annotated data after :func:`stxtools.tl.region_graph`.
    key
        Key of the region AnnData in ``uns``.

    Returns
    -------
    A new table, indexed by region, with the columns ``segment``, ``library``, ``n_obs``, ``area`` (square units of
    the coordinates), ``x`` and ``y`` of the centroid, ``degree`` (number of neighbouring regions), ``contact_length``
    (length of all borders with other regions) where it is known, and ``attention`` after :func:`stxtools.tl.embed`.

    Raises
    ------
    KeyError
        There are no regions in ``uns[key]``.
    TypeError
        ``uns[key]`` is no region AnnData.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.region_graph(adata, "compartment")
    >>> table = st.get.regions(adata)
    """
    check_adata(adata, unique_vars=False)
    graph = regions_of(adata, key)
    columns: dict[str, Any] = {
        name: graph.obs[name] for name in ("segment", "library", "n_obs", "area") if name in graph.obs
    }
    centroid = np.asarray(graph.obsm[_keys.SPATIAL], dtype=float)
    edges = _off_diagonal(graph.obsp[_keys.CONNECTIVITIES])
    columns |= {"x": centroid[:, 0], "y": centroid[:, 1], "degree": np.diff(edges.indptr).astype(np.int64)}
    if _keys.CONTACT in graph.obsp:
        columns["contact_length"] = np.asarray(_off_diagonal(graph.obsp[_keys.CONTACT]).sum(axis=1)).ravel()
    if _keys.ATTENTION in graph.obs:
        columns["attention"] = graph.obs[_keys.ATTENTION]
    return pd.DataFrame(columns, index=pd.Index(graph.obs_names, name="region"), copy=True)


def regions_of(adata: AnnData, key: str) -> AnnData:
    """Return the region AnnData in ``uns[key]``, or say which call makes it."""
    from anndata import AnnData as AnnData_

    graph = adata.uns.get(check_key("key", key))
    if graph is None:
        raise KeyError(f"`adata.uns[{key!r}]` is missing; run `st.tl.region_graph(adata)` first.")
    if not isinstance(graph, AnnData_):
        raise TypeError(f"`adata.uns[{key!r}]` is a {type(graph).__name__}, not the AnnData of `st.tl.region_graph`; "
                        "run it again or name another `key`.")  # fmt: skip
    return graph


def _off_diagonal(matrix: Any) -> sparse.csr_matrix:
    entries = sparse.coo_matrix(matrix)
    keep = (entries.row != entries.col) & (entries.data != 0)
    return sparse.csr_matrix((entries.data[keep], (entries.row[keep], entries.col[keep])), shape=entries.shape)
