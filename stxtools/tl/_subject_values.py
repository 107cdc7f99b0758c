"""Values of subjects and sections: times, and shares, contacts and pseudobulk of compartments, as log2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools._data.chunks import map_row_chunks
from stxtools._data.expression import Expression
from stxtools._data.sections import Geometry
from stxtools._types import Array, Bools, Floats, Ints
from stxtools._validate import Libraries, categories, check_in, inherited_library_key, listing
from stxtools.stats._meta_analysis import adjust_bh

_HALF = 0.5  # added to counts before logarithms
MIN_OBS = 10  # of a subject in a compartment, for it to count there, and that express a gene

# subjects x values, the level that their variance depends on, and compartment and feature of each
Values = tuple[Floats, Floats | None, list[tuple[str, str]]]


def one_each(
    libs: Libraries, of: Ints, names: Sequence[Any], of_key: str, libs_key: str = "library_key",
    why: str = "A section belongs to one subject and to one condition.",
) -> Ints:  # fmt: skip
    """Return the one value of ``of`` that each section (or subject) has; -1 where it has none."""
    pairs = np.unique(np.stack([libs.codes, of], axis=1)[(libs.codes >= 0) & (of >= 0)], axis=0)
    found, times = np.unique(pairs[:, 0], return_counts=True)
    if (times > 1).any():
        first = int(found[np.argmax(times > 1)])
        several = [names[i] for i in pairs[pairs[:, 0] == first, 1]]
        raise ValueError(
            f"{libs.names[first]!r} (`{libs_key}`) has several values in `adata.obs[{of_key!r}]`: {listing(several)}. "
            + why
        )
    out = np.full(len(libs.names), -1)
    out[pairs[:, 0]] = pairs[:, 1]
    return out


def time_of(adata: AnnData, time_key: str, units: Libraries, unit_key: str) -> Floats:
    """Return the one time that each unit (subject, section) has; NaN where it has none."""
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
    codes, times = pd.factorize(time, sort=True)
    why = "A section has one time, and a subject too; trends within subjects are not tested."
    at = one_each(units, codes, times, time_key, unit_key, why)
    n_times = len(np.unique(at[at >= 0]))
    if n_times < 2:
        raise ValueError(
            f"`adata.obs[{time_key!r}]` has {n_times} time(s) for the values of `{unit_key}`; at least two are needed."
        )
    return np.where(at >= 0, times[at], np.nan)


class Observed:
    """Subjects, compartments (-1: none) and places; :meth:`count` adds what each unit (subject) has in compartments.

    - ``cell``: Unit times number of compartments plus compartment, of each observation; -1 outside any.
    - ``sizes``, ``sums``, ``seen``: Observations, summed expression, observations that express, by unit, compartment,
      gene.
    """

    def __init__(
        self, adata: AnnData, subject_key: str, groupby: str, spatial_key: str, library_key: str | bool | None
    ) -> None:
        self.subjects, self.subject_names = categories(adata, subject_key, "subject_key", min_classes=2)
        self.compartments, self.names = categories(adata, groupby, "groupby")
        self.library_key = library_key if library_key is not None else inherited_library_key(adata, groupby)
        self.where = Geometry(adata, spatial_key, self.library_key)
        self.genes = np.asarray(adata.var_names, dtype=str)
        one_each(self.where.libs, self.subjects, self.subject_names, subject_key)

    def count(self, adata: AnnData, layer: str | None, unit: Ints) -> None:
        """Count and sum what each unit has in each compartment; observations with -1 are left out."""
        used = (self.compartments >= 0) & (unit >= 0)
        shape = (int(unit.max()) + 1, len(self.names))
        self.cell = np.where(used, unit * shape[1] + self.compartments, -1)
        self.sizes = np.bincount(self.cell[used], minlength=shape[0] * shape[1]).reshape(shape)
        read = Expression(adata, layer, in_memory=False)
        work = partial(_chunk_sums, self.cell, read.scale == "log", shape[0] * shape[1])
        parts = map_row_chunks(read.matrix, work)
        self.sums, self.seen = (np.sum(part, axis=0).reshape(*shape, -1) for part in zip(*parts, strict=True))
        self.record = read.record

    def shares(self, chosen: Ints) -> Values:
        """Part of each unit's observations that lies in a compartment."""
        sizes = self.sizes[chosen]
        total = sizes.sum(axis=1, keepdims=True)
        values = np.where(total > 0, np.log2((sizes + _HALF) / (total + 1.0)), np.nan)
        return values, None, [(name, "") for name in self.names]

    def contacts(self, chosen: Ints) -> Values:
        """Neighbours between two compartments over those expected of their sizes."""
        edges, k, present = self.where.graph.tocoo(), len(self.names), self.sizes[chosen] >= MIN_OBS
        inside = (self.cell[edges.row] >= 0) & (self.cell[edges.col] >= 0)
        row, col = edges.row[inside], edges.col[inside]
        pairs = np.bincount(self.cell[row] * k + self.compartments[col], minlength=len(self.sizes) * k * k)
        pairs = pairs.reshape(-1, k, k)[chosen].astype(float)
        degree = pairs.sum(axis=2)
        expected = degree[:, :, None] * degree[:, None, :] / np.maximum(degree.sum(axis=1), 1)[:, None, None]
        ratio = np.log2((pairs + _HALF) / (expected + _HALF))
        two = [(i, j) for i, j in combinations(range(k), 2) if (present[:, i] & present[:, j]).any()]
        i, j = np.array(two, dtype=np.int64).reshape(-1, 2).T
        values = np.where(present[:, i] & present[:, j], ratio[:, i, j], np.nan)
        return values, None, [(self.names[a], self.names[b]) for a, b in two]

    def expression(self, chosen: Ints, sides: Sequence[Bools]) -> Values:
        """Pseudobulk of the genes that are expressed enough in the smaller of two ``sides``, by compartment."""
        sums, seen, sizes = self.sums[chosen], self.seen[chosen], self.sizes[chosen]
        values, level, labels = [], [], []
        for c, name in enumerate(self.names):
            present = sizes[:, c] >= MIN_OBS
            smaller = min(int((present & side).sum()) for side in sides)
            kept = np.flatnonzero((seen[present, c] >= MIN_OBS).sum(axis=0) >= max(smaller, 1))
            if smaller == 0 or len(kept) == 0:
                continue
            bulk = sums[:, c]
            total = bulk.sum(axis=1, keepdims=True)
            million = np.log2((bulk[:, kept] + _HALF) / (total + 1.0) * 1e6)
            values.append(np.where(present[:, None], million, np.nan))
            level.append(np.log2(bulk[present][:, kept] + _HALF).mean(axis=0))
            labels += [(name, gene) for gene in self.genes[kept]]
        if not labels:
            return np.empty((len(sizes), 0)), None, []
        return np.concatenate(values, axis=1), np.concatenate(level), labels


def _chunk_sums(cell: Ints, logged: bool, n_cells: int, chunk: sparse.csr_matrix, rows: slice) -> tuple[Floats, Floats]:
    here = np.flatnonzero(cell[rows] >= 0)
    one = sparse.csr_matrix((np.ones(len(here)), (cell[rows][here], here)), shape=(n_cells, chunk.shape[0]))
    linear = sparse.csr_matrix(chunk, dtype=np.float64, copy=True)
    if logged:
        linear.data = np.expm1(linear.data)
    return (one @ linear).toarray(), (one @ (linear > 0).astype(np.float64)).toarray()


def effect_table(
    found: dict[str, Array], kind: str, names: list[tuple[str, str]], feature: str, effect: str
) -> pd.DataFrame:
    """Return the table of effects of one kind; p-values are corrected over those that are known."""
    first, second = ([name[i] for name in names] for i in (0, 1))
    table = pd.DataFrame({"kind": kind, "compartment": first, feature: second, **found})
    tested = np.isfinite(found["pvals"])
    for column in [c for c in ("pvals", "pvals_order") if c in table]:
        table.insert(table.columns.get_loc(column) + 1, f"{column}_adj", np.nan)
        table.loc[tested, f"{column}_adj"] = adjust_bh(table.loc[tested, column].to_numpy())
    return table.rename(columns={"effect": effect})
