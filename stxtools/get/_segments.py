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
    column = adata.obs[key].astype("category")
    codes = column.cat.codes.to_numpy()
    classes = column.cat.categories
    confidence = adata.obs.get(_keys.confidence(key))
    if library_key is None:
        sections: list[tuple[str | None, np.ndarray]] = [(None, np.arange(adata.n_obs))]
    else:
        libs = libraries(adata, library_key)
        sections = [(name, libs.rows(i)) for i, name in enumerate(libs.names)]
    parts = []
    for name, rows in sections:
        here = rows[codes[rows] >= 0]
        count = np.bincount(codes[here], minlength=len(classes))
        part = pd.DataFrame({"segment": pd.Categorical(classes, categories=classes), "n_obs": count})
        part["share"] = count / max(len(here), 1)
        if confidence is not None:
            total = np.bincount(codes[here], weights=confidence.to_numpy(dtype=float)[here], minlength=len(classes))
            part["confidence"] = np.divide(total, count, out=np.full(len(classes), np.nan), where=count > 0)
        if name is not None:
            part.insert(0, "library", name)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
