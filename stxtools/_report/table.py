"""The biomarkers: columns as typed arrays, names once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import get

from .blocks import packed

if TYPE_CHECKING:
    from anndata import AnnData

_NUMBERS = ("logfoldchanges", "pvals_adj", "auroc")


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
