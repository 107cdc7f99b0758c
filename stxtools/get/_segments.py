"""The segments as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._docs import documented
from stxtools._validate import check_adata, check_in, libraries

if TYPE_CHECKING:
    from anndata import AnnData


@documented
def segments(adata: AnnData, *, key: str = _keys.SEGMENT, library_key: str | bool | None = None) -> pd.DataFrame:
    """Return the segments as a tidy table, one row per segment (and section).

    Parameters
    ----------
    key
        Categorical ``obs`` column, by default the one that :func:`stxtools.tl.segment` writes.
    library_key
        Column of ``obs`` with the section of each observation: then one row per section and segment. ``False``: all are
        one.
    %(parameters)s

    Returns
    -------
    A new table with the columns ``library`` (with ``library_key`` only), ``segment``, ``n_obs``, ``share`` (of the
    section's observations that have a segment) and ``confidence`` (mean, where ``obs["{key}_confidence"]`` is).
    Segments that a section does not have are listed with ``n_obs`` 0.

    Raises
    ------
    KeyError
        ``obs[key]`` or ``obs[library_key]`` is missing.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.segment(adata)
    >>> table = st.get.segments(adata)
    """
    check_adata(adata, unique_vars=False)
    check_in(adata, "obs", key, "key", "Run `st.tl.segment(adata)` first.")
    libs = None if library_key is None else libraries(adata, library_key)
    names, codes = ([""], np.zeros(adata.n_obs, dtype=int)) if libs is None else (libs.names, libs.codes)
    frame = pd.DataFrame({"library": pd.Categorical.from_codes(codes, names)})
    frame["segment"] = adata.obs[key].astype("category").array
    confidence = adata.obs.get(_keys.confidence(key))
    if confidence is not None:
        frame["confidence"] = confidence.to_numpy(dtype=float)
    groups = frame.groupby(["library", "segment"], observed=False)  # absent segments, too
    out = groups.size().rename("n_obs").reset_index()
    out["share"] = out["n_obs"] / out.groupby("library", observed=False)["n_obs"].transform("sum").clip(lower=1)
    if confidence is not None:
        out["confidence"] = groups["confidence"].mean().to_numpy()
    return out.astype({"library": str}) if libs is not None else out.drop(columns="library")
