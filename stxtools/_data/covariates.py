"""Covariates of the gene tests, read from AnnData."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools._checks import check_names, listing
from stxtools._types import Floats

COMPOSITION = "composition"


def covariate_names(covariates: Any) -> list[str]:
    """Return ``covariates`` as a list of distinct names, checked to be strings."""
    what = f"{COMPOSITION!r}, a key of `adata.obs` or `adata.obsm`"
    return [] if covariates is None else list(dict.fromkeys(check_names("covariates", covariates, what)))


def covariate_columns(adata: AnnData, names: list[str], groupby: str) -> Floats | None:
    """Return the columns named by ``covariates``, except the composition, which is computed per section."""
    if groupby in names:
        raise ValueError(f"`covariates` names the grouping {groupby!r} itself; nothing would be left to test.")
    columns = [_columns(adata, name) for name in names if name != COMPOSITION]
    return np.concatenate(columns, axis=1) if columns else None


def _columns(adata: AnnData, name: str) -> Floats:
    if name in adata.obs:
        column = adata.obs[name]
        if column.isna().any():
            raise ValueError(f"The covariate `adata.obs[{name!r}]` has {int(column.isna().sum())} missing values; "
                             "fill them, or leave those observations out.")  # fmt: skip
        if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
            values = column.to_numpy(dtype=np.float64)
        else:
            values = pd.get_dummies(column.astype(str), drop_first=True, dtype=float).to_numpy()
    elif name in adata.obsm:
        stored = adata.obsm[name]
        values = np.asarray(stored.toarray() if sparse.issparse(stored) else stored, dtype=np.float64)
    else:
        raise KeyError(
            f"`covariates` names {name!r}, which is neither {COMPOSITION!r} nor in `adata.obs` "
            f"({listing(adata.obs.columns)}) or `adata.obsm` ({listing(adata.obsm.keys())})."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"The covariate {name!r} holds NaN or infinite values; fill them first.")
    return values[:, None] if values.ndim == 1 else values
