"""Segments, their probabilities, and regions, as tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_key, listing
from stxtools._slots import column_names
from stxtools._validate import check_adata, check_in, class_column, libraries


@public
def segments(adata: AnnData, key: str = _keys.SEGMENT, *, library_key: str | bool | None = None) -> pd.DataFrame:
    """Get the size and mean confidence of each segment as a DataFrame, one row per segment (and section).

    Parameters
    ----------
    key
        Categorical ``obs`` column, by default the one that :func:`stxtools.tl.segment` writes.
    library_key
        Column of ``obs`` with the section of each observation, for one row per section and segment; by default, or if
        ``False``, one row per segment.

    Returns
    -------
    A DataFrame with the columns ``library`` (only with ``library_key``), ``segment``, ``n_obs``, ``share`` (of the
    observations of the section that have a segment) and ``confidence`` (mean, if ``obs["{key}_confidence"]`` exists).
    Segments that are absent from a section have ``n_obs`` 0.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> table = st.get.segments(adata)
    """
    check_adata(adata, unique_vars=False)
    check_in(adata, "obs", key, "key", "Run `st.tl.segment(adata)` first.")
    by_section = library_key is not None and library_key is not False
    libs = libraries(adata, library_key if by_section else False)
    frame = pd.DataFrame({"library": pd.Categorical.from_codes(libs.codes, libs.names)})
    frame["segment"] = class_column(adata, key, "key").array
    confidence = adata.obs.get(_keys.confidence(key))
    if confidence is not None:
        frame["confidence"] = confidence.to_numpy(dtype=float)
    groups = frame.groupby(["library", "segment"], observed=False)  # absent segments, too
    out = groups.size().rename("n_obs").reset_index()
    out["share"] = out["n_obs"] / out.groupby("library", observed=False)["n_obs"].transform("sum").clip(lower=1)
    if confidence is not None:
        out["confidence"] = groups["confidence"].mean().to_numpy()
    return out.astype({"library": str}) if by_section else out.drop(columns="library")


@public
def probabilities(adata: AnnData, key: str = _keys.SEGMENT) -> pd.DataFrame:
    """Get the class probabilities of the observations as a DataFrame, with the original class names.

    ``obsm["{key}_proba"]`` has the same values, but replaces class names that cannot be stored in files, such as
    ``"L2/3"``.

    Parameters
    ----------
    adata
        Annotated data matrix after :func:`stxtools.tl.segment` or :func:`stxtools.tl.multitask`, or its
        ``uns["regions"]``.
    key
        The predicted column of ``obs``: the ``key_added`` of :func:`stxtools.tl.segment`, or the ``biomarker_key`` or
        ``region_key`` of :func:`stxtools.tl.multitask`.

    Returns
    -------
    A DataFrame, n_obs x n_classes; NaN for observations outside regions.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata, n_segments=3)
    >>> st.get.probabilities(adata).columns.tolist()
    ['0', '1', '2']
    """
    check_adata(adata, unique_vars=False)
    name = _keys.proba(check_key("key", key))
    if name not in adata.obsm:
        known = [k.removesuffix(_keys.proba("")) for k in adata.obsm if k.endswith(_keys.proba(""))]
        raise KeyError(
            f"`adata.obsm[{name!r}]` is missing; keys with probabilities: {listing(known)}. Run `st.tl.segment(adata)` "
            "or `st.tl.multitask(adata, ...)` first, or name another `key`."
        )
    names = column_names(adata, name)
    if names is None:
        raise TypeError(f"`adata.obsm[{name!r}]` is a {type(adata.obsm[name]).__name__}, not a table.")
    table = adata.obsm[name].copy()
    table.columns = names
    return table


@public
def regions(adata: AnnData, key: str = _keys.REGIONS) -> pd.DataFrame:
    """Get size, position, degree and attention of each region as a DataFrame.

    Returns
    -------
    A DataFrame indexed by region, with the columns ``segment``, ``library``, ``n_obs``, ``area`` (in squared units of
    the coordinates), ``x`` and ``y`` of the centroid, ``degree`` (number of neighbouring regions), ``contact_length``
    (total length of the borders with other regions), and ``attention`` after :func:`stxtools.tl.embed`.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.region_graph(adata, "compartment")
    >>> table = st.get.regions(adata)
    """
    check_adata(adata, unique_vars=False)
    graph = regions_of(adata, key)
    names = ("segment", "library", "n_obs", "area")
    columns: dict[str, Any] = {name: graph.obs[name] for name in names if name in graph.obs}
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
    graph = adata.uns.get(check_key("key", key))
    if graph is None:
        others = [name for name, slot in adata.uns.items() if isinstance(slot, AnnData)]
        other = f", or name another `key`: {listing(others)}" if others else ""
        raise KeyError(f"`adata.uns[{key!r}]` is missing; run `st.tl.region_graph(adata)` first{other}.")
    if not isinstance(graph, AnnData):
        raise TypeError(f"`adata.uns[{key!r}]` is a {type(graph).__name__}, not the AnnData of `st.tl.region_graph`; "
                        "run it again or name another `key`.")  # fmt: skip
    return graph


def _off_diagonal(matrix: Any) -> sparse.csr_matrix:
    return (sparse.tril(matrix, k=-1) + sparse.triu(matrix, k=1)).tocsr()
