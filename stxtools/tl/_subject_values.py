"""Values of subjects and sections: times, and shares, contacts and pseudobulk of compartments, as log2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools._checks import listing
from stxtools._data.chunks import map_row_chunks
from stxtools._data.expression import Expression
from stxtools._data.sections import Geometry
from stxtools._types import Array, Bools, Csr, Floats, Ints
from stxtools._validate import Libraries, categories, check_in, inherited_library_key, value_per_unit
from stxtools.stats._meta_analysis import adjust_bh

_HALF = 0.5  # added to counts before logarithms
MIN_OBS = 10  # of a subject in a compartment, for it to count there, and that express a gene


@dataclass(frozen=True)
class Values:
    """Values of one kind (units x features) as log2; NaN where a unit lacks a feature.

    ``names``: compartment and feature of each column. ``level``: mean log2 count, on which the variance depends.
    """

    kind: str
    log2: Floats
    names: list[tuple[str, str]]
    level: Floats | None = None

    def effects(self, columns: dict[str, Array], feature: str, effect: str) -> pd.DataFrame:
        """Return the table of the effects in ``columns``; p-values are adjusted over those that are known."""
        compartments, features = ([name[i] for name in self.names] for i in (0, 1))
        table = pd.DataFrame({"kind": self.kind, "compartment": compartments, feature: features, **columns})
        tested = np.isfinite(columns["pvals"])
        for column in [c for c in ("pvals", "pvals_order") if c in table]:
            table.insert(table.columns.get_loc(column) + 1, f"{column}_adj", np.nan)
            table.loc[tested, f"{column}_adj"] = adjust_bh(table.loc[tested, column].to_numpy())
        return table.rename(columns={"effect": effect})


def time_of(adata: AnnData, time_key: str, units: Libraries, unit_key: str) -> Floats:
    """Return the one time that each unit (subject, section) has; NaN where it has none."""
    check_in(adata, "obs", time_key, "time_key")
    column = adata.obs[time_key]
    # as objects: pandas would take dates for their nanoseconds, or microseconds, and a missing one for -2**63
    time = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    wrong = (np.isnan(time) & column.notna().to_numpy()) | np.isinf(time) | pd.api.types.is_bool_dtype(column.dtype)
    if wrong.any():
        code = f"adata.obs[{time_key!r}]"
        raise TypeError(
            f"`{code}` holds {listing(column[wrong].drop_duplicates())}; times must be finite numbers. "
            f"Convert them, e.g. `{code} = {code}.map({{'E9.5': 9.5}}).astype(float)`; for dates use days, "
            f"`({code} - {code}.min()).dt.days`."
        )
    codes, times = pd.factorize(time, sort=True)
    reason = "A section has one time, and a subject too; trends within subjects are not tested."
    at = value_per_unit(units, codes, times, time_key, unit_key, reason)
    n_times = len(np.unique(at[at >= 0]))
    if n_times < 2:
        raise ValueError(
            f"`adata.obs[{time_key!r}]` has {n_times} time(s) for the values of `{unit_key}`; at least two are needed."
        )
    return np.where(at >= 0, times[at], np.nan)


class Subjects:
    """The subject, the compartment (-1: none) and the position of each observation."""

    def __init__(
        self, adata: AnnData, subject_key: str, groupby: str, spatial_key: str, library_key: str | bool | None
    ) -> None:
        self.codes, self.names = categories(adata, subject_key, "subject_key", min_classes=2)
        self.compartments, self.compartment_names = categories(adata, groupby, "groupby")
        self.library_key = inherited_library_key(adata, groupby, library_key)
        self.where = Geometry(adata, spatial_key, self.library_key)
        value_per_unit(self.where.libs, self.codes, self.names, subject_key)


class UnitValues:
    """Values of units (subjects, or subjects in a condition) by compartment.

    - ``cell``: Unit times number of compartments plus compartment, of each observation; -1 outside any.
    - ``sizes``, ``sums``, ``expressing``: Observations by unit and compartment; summed expression and observations that
      express, by gene, too.
    """

    def __init__(self, adata: AnnData, layer: str | None, subjects: Subjects, unit: Ints) -> None:
        """Count without observations of unit -1."""
        self.where, self.compartments, self.names = subjects.where, subjects.compartments, subjects.compartment_names
        self.genes = np.asarray(adata.var_names, dtype=str)
        used = (self.compartments >= 0) & (unit >= 0)
        shape = (int(unit.max()) + 1, len(self.names))
        self.cell = np.where(used, unit * shape[1] + self.compartments, -1)
        self.sizes = np.bincount(self.cell[used], minlength=shape[0] * shape[1]).reshape(shape)
        read = Expression(adata, layer, in_memory=False)
        work = partial(_chunk_sums, self.cell, read.scale == "log", shape[0] * shape[1])
        parts = map_row_chunks(read.matrix, work)
        self.sums, self.expressing = (np.sum(part, axis=0).reshape(*shape, -1) for part in zip(*parts, strict=True))
        self.record = read.record

    def shares(self, chosen: Ints) -> Values:
        """Share of each unit's observations in each compartment."""
        sizes = self.sizes[chosen]
        total = sizes.sum(axis=1, keepdims=True)
        values = np.where(total > 0, np.log2((sizes + _HALF) / (total + 1.0)), np.nan)
        return Values("share", values, [(name, "") for name in self.names], np.log2(sizes.mean(axis=0) + _HALF))

    def contacts(self, chosen: Ints) -> Values:
        """Neighbours between two compartments over the number expected from their sizes."""
        edges, k, present = self.where.graph.tocoo(), len(self.names), self.sizes[chosen] >= MIN_OBS
        inside = (self.cell[edges.row] >= 0) & (self.cell[edges.col] >= 0)
        row, col = edges.row[inside], edges.col[inside]
        pairs = np.bincount(self.cell[row] * k + self.compartments[col], minlength=len(self.sizes) * k * k)
        pairs = pairs.reshape(-1, k, k)[chosen].astype(float)
        degree = pairs.sum(axis=2)
        expected = degree[:, :, None] * degree[:, None, :] / np.maximum(degree.sum(axis=1), 1)[:, None, None]
        ratio = np.log2((pairs + _HALF) / (expected + _HALF))
        i, j = np.triu_indices(k, 1)
        both = present[:, i] & present[:, j]
        i, j, both = i[both.any(axis=0)], j[both.any(axis=0)], both[:, both.any(axis=0)]
        names = [(self.names[a], self.names[b]) for a, b in zip(i, j, strict=True)]
        return Values("contact", np.where(both, ratio[:, i, j], np.nan), names)

    def expression(self, chosen: Ints, sides: Sequence[Bools]) -> Values:
        """Pseudobulk of the genes that are expressed enough in the smaller of two ``sides``, by compartment."""
        sums, expressing, sizes = self.sums[chosen], self.expressing[chosen], self.sizes[chosen]
        values, level, names = [], [], []
        for c, name in enumerate(self.names):
            present = sizes[:, c] >= MIN_OBS
            smaller = min(int((present & side).sum()) for side in sides)
            kept = np.flatnonzero((expressing[present, c] >= MIN_OBS).sum(axis=0) >= max(smaller, 1))
            if smaller == 0 or len(kept) == 0:
                continue
            bulk = sums[:, c]
            total = bulk.sum(axis=1, keepdims=True)
            log_cpm = np.log2((bulk[:, kept] + _HALF) / (total + 1.0) * 1e6)
            values.append(np.where(present[:, None], log_cpm, np.nan))
            level.append(np.log2(bulk[present][:, kept] + _HALF).mean(axis=0))
            names += [(name, gene) for gene in self.genes[kept]]
        if not names:
            return Values("expression", np.empty((len(sizes), 0)), [])
        return Values("expression", np.concatenate(values, axis=1), names, np.concatenate(level))


def _chunk_sums(cell: Ints, logged: bool, n_cells: int, chunk: Csr, rows: slice) -> tuple[Floats, Floats]:
    used = np.flatnonzero(cell[rows] >= 0)
    member = sparse.csr_matrix((np.ones(len(used)), (cell[rows][used], used)), shape=(n_cells, chunk.shape[0]))
    linear = sparse.csr_matrix(chunk, dtype=np.float64, copy=True)
    if logged:
        linear.data = np.expm1(linear.data)
    return (member @ linear).toarray(), (member @ (linear > 0).astype(np.float64)).toarray()
