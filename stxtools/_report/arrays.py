"""The arrays of the page, as text: the genes that can colour the map, and the biomarkers."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stxtools import _keys, get
from stxtools._data.expression import Expression, log_chunks, log_matrix

from .words import FDR

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

MISSING = 255
_LEVELS = 254  # a colour scale has no more; 255 is a missing value
_N = 100
_NUMBERS = ("logfoldchanges", "pvals_adj", "auroc")


def packed(values: NDArray[Any] | Sequence[str]) -> str:
    """Return an array (little-endian), or lines of text, as base64 of gzip."""
    if isinstance(values, np.ndarray):
        data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()
    else:
        data = "\n".join(values).encode()
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def levels(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Round numbers to the levels of a colour scale; what is not finite is missing."""
    known = np.isfinite(values)
    share = np.clip((np.where(known, values, low) - low) / (high - low or 1.0), 0, 1)
    return np.where(known, np.rint(share * _LEVELS), MISSING).astype(np.uint8)


def leading_genes(adata: AnnData, table: BiomarkerTable | None, layer: str | None) -> list[str]:
    """Return the first biomarkers of every group in turn; without any, the genes of the largest variance."""
    read = _expression(adata, layer)
    if read is None:
        return []
    if table is None:
        n, sums, squares = adata.n_obs, np.zeros(adata.n_vars), np.zeros(adata.n_vars)
        for part in log_chunks(read, lambda part, _: part):
            sums, squares = sums + np.ravel(part.sum(axis=0)), squares + np.ravel(part.multiply(part).sum(axis=0))
        names = adata.var_names[np.argsort(-(squares / n - (sums / n) ** 2), kind="stable")]
    else:
        higher = table.rows["scores"] > 0
        parts = [table.rows[higher], table.rows[~higher][::-1]]  # the lowest come last
        turns = [part.groupby("group", sort=False, observed=True).cumcount() for part in parts]
        rows, turn = pd.concat(parts), pd.concat([turns[0], 2 * turns[1]])
        names = rows["names"].to_numpy()[np.lexsort((turn, rows["pvals_adj"] > FDR))]
    known = set(adata.var_names)
    return [str(name) for name in dict.fromkeys(names) if name in known][:_N]


def expression_of(adata: AnnData, genes: Sequence[str], layer: str | None) -> sparse.csc_matrix:
    """Return log-normalised expression, observations x genes."""
    if not genes:
        return sparse.csc_matrix((adata.n_obs, 0))
    read = _expression(adata, layer)
    if read is None:
        raise ValueError("`genes` are given, but `adata` holds no expression; put it into `X` or name a `layer`.")
    return log_matrix(read, adata.var_names.get_indexer(list(genes))).tocsc()


def _expression(adata: AnnData, layer: str | None) -> Expression | None:
    """Return the expression, None where ``X`` is empty or holds something else, such as components."""
    if layer is None and adata.X is None and _keys.COUNTS not in adata.layers:
        return None
    read = Expression(adata, layer, scaled=True, in_memory=False)
    return None if read.scale == "scaled" else read


@dataclass(frozen=True)
class BiomarkerTable:
    """The table, what the page says of it, and its columns as text."""

    rows: pd.DataFrame
    groupby: str | None
    meta: dict[str, Any]
    blocks: dict[str, str]


def biomarker_table(adata: AnnData, key: str) -> BiomarkerTable | None:
    """Return the biomarkers, None where there are none."""
    if key not in adata.uns or not len(rows := get.biomarkers(adata, key=key)):
        return None
    params = adata.uns.get(f"{key}_params", {})
    groups, genes = (pd.factorize(rows[name].astype(str)) for name in ("group", "names"))
    numbers = [c for c in _NUMBERS if c in rows]
    blocks = {f"t-{c}": packed(rows[c].to_numpy(dtype=np.float32, na_value=np.nan)) for c in numbers}
    blocks["t-group"] = packed(groups[0].astype(np.uint16))
    blocks["t-gene"] = packed(genes[0].astype(np.uint32))
    blocks["t-names"] = packed([str(name) for name in genes[1]])
    composition = "beyond_composition" in rows
    if composition:
        blocks["t-beyond"] = packed(rows["beyond_composition"].fillna(False).to_numpy(dtype=np.uint8))
    groupby = params.get("groupby")
    return BiomarkerTable(
        rows, None if groupby is None else str(groupby),
        {"n": len(rows), "groups": [str(g) for g in groups[1]], "numbers": numbers, "composition": composition,
         "groupby": groupby, "reference": str(params.get("reference", "rest"))},
        blocks,
    )  # fmt: skip
