"""Times of subjects and sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stxtools._validate import check_in, listing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray


def time_of(
    adata: AnnData, time_key: str, unit: NDArray[np.int64], names: Sequence[str], unit_key: str
) -> NDArray[np.float64]:
    """Return the one time that each unit (subject, section) has; NaN where it has none.

    Raises
    ------
    TypeError
        If times are no numbers.
    ValueError
        If a unit has several times, or all have the same.
    """
    check_in(adata, "obs", time_key, "time_key")
    column = adata.obs[time_key]
    # as objects: pandas would take dates for their nanoseconds, or microseconds, and a missing one for -2**63
    time = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = (np.isnan(time) & column.notna().to_numpy()) | np.isinf(time) | pd.api.types.is_bool_dtype(column.dtype)
    if wrong.any():
        there = f"adata.obs[{time_key!r}]"
        raise TypeError(
            f"`{there}` holds {listing(column[wrong].drop_duplicates())}; times are finite numbers. "
            f"Map them, e.g. `{there} = {there}.map({{'E9.5': 9.5}}).astype(float)`; of dates take the days, "
            f"`({there} - {there}.min()).dt.days`."
        )
    known = (unit >= 0) & np.isfinite(time)
    of = pd.Series(time[known]).groupby(unit[known])
    several = of.nunique()
    if (several > 1).any():
        first = int(several.index[several > 1][0])
        raise ValueError(
            f"{names[first]!r} (`{unit_key}`) has several values in `adata.obs[{time_key!r}]`: "
            f"{listing(pd.unique(time[known & (unit == first)]).tolist())}. A section has one time, and a subject too; "
            "trends within subjects are not tested."
        )
    out = of.first().reindex(range(len(names))).to_numpy()
    if len(np.unique(out[np.isfinite(out)])) < 2:
        raise ValueError(
            f"`adata.obs[{time_key!r}]` has {len(np.unique(out[np.isfinite(out)]))} time(s) for the values of "
            f"`{unit_key}`; at least two are needed."
        )
    return out
