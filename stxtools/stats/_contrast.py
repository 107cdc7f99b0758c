"""What is compared with what, and where: group against reference, within libraries or between them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ._combine import Combined, combine_sections, compare_libraries, two_sided
from ._section import MIN_OBS, Description, Section

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """One group against its reference: where, and with the library as a block or as a replicate.

    ``kind`` is ``"within"`` (each library holds both sides), ``"between"`` (libraries hold one side each),
    ``"unreplicated"`` (sides in different libraries, fewer than two of them on one side) or ``"small"``
    (a side with fewer than ``MIN_OBS`` observations in every library).
    """

    name: str
    code: int
    reference: int | None  # None: the rest
    kind: str
    libraries: list[int]

    def sides(self, codes: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which observations are in the group and which in the reference."""
        return _sides(codes, self.code, self.reference)


@dataclass(frozen=True)
class Part:
    """A design within one library."""

    section: Section
    inside: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    index: int

    def contrast(self) -> tuple[Section, NDArray[np.bool_]]:
        """Return the section of the two sides' observations, and the group's among them."""
        used = self.inside | self.outside
        return self.section.subset(used), self.inside[used]


def _sides(codes: NDArray[np.int64], code: int, reference: int | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    inside = codes == code
    outside = (codes >= 0) & ~inside if reference is None else codes == reference
    return inside, outside


def plan(
    name: str, code: int, reference: int | None, codes: NDArray[np.int64], library: NDArray[np.int64], n_libraries: int
) -> Design:
    """Choose the design of a comparison by where its two sides occur."""
    n_in, n_out = (np.bincount(library[side], minlength=n_libraries) for side in _sides(codes, code, reference))
    has_in, has_out = n_in >= MIN_OBS, n_out >= MIN_OBS
    both = np.flatnonzero(has_in & has_out)
    only_in, only_out = np.flatnonzero(has_in & ~has_out), np.flatnonzero(has_out & ~has_in)
    between = min(len(only_in), len(only_out)) >= 2
    if len(both) >= 2 or (len(both) == 1 and not between):
        return Design(name, code, reference, "within", both.tolist())
    if between:
        return Design(name, code, reference, "between", sorted([*only_in.tolist(), *only_out.tolist()]))
    kind = "unreplicated" if has_in.any() and has_out.any() else "small"
    return Design(name, code, reference, kind, [])


def compare_within(parts: list[Part], n_null: int, seed: int) -> tuple[Combined, Floats, float]:
    """Test a group in every library by random regions, and combine.

    Returns
    -------
    The test, the standard error over libraries of its effect (NaN with one library), and the group's median
    correlation length.
    """
    found = []
    for part in parts:
        section, label = part.contrast()
        found.append(section.region_effect(label, n_null, (seed, part.index)))
    length = float(np.median([f.model.length for f in found]))
    effects = np.stack([f.effect for f in found])
    if len(found) > 1:
        combined = combine_sections(effects, np.stack([f.variance for f in found]), np.stack([f.df for f in found]))
        return combined, over_libraries(effects), length
    one = found[0]
    known = one.variance > 0
    pvals = np.where(known, two_sided(one.statistic, one.df), 1.0)
    agreement = (known & (one.effect != 0)).astype(np.float64)
    combined = Combined(one.effect, one.statistic, one.df, pvals, known.astype(np.int64), agreement)
    return combined, over_libraries(effects), length


def over_libraries(effects: Floats) -> Floats:
    """Return the standard error of the mean over libraries (rows); NaN where there is one only."""
    if len(effects) < 2:
        return np.full(effects.shape[1], np.nan)
    return effects.std(axis=0, ddof=1) / np.sqrt(len(effects))


def shrink(effect: Floats, error: Floats) -> Floats:
    """Draw effects towards zero by what libraries disagree: by the share of signal in ``effect ** 2 + error ** 2``.

    An error that is not known (NaN) takes nothing off.
    """
    square = effect**2
    total = square + np.nan_to_num(error) ** 2
    return np.divide(effect * square, total, out=np.zeros_like(effect), where=total > 0)


def compare_between(parts: list[Part]) -> Combined:
    """Test library means of a group's libraries against those of the reference's libraries."""
    group = [p.section.mean_log(p.inside) for p in parts if p.inside.sum() >= MIN_OBS]
    reference = [p.section.mean_log(p.outside) for p in parts if p.outside.sum() >= MIN_OBS]
    return compare_libraries(np.stack(group), np.stack(reference))


def describe(parts: list[Part], kind: str) -> tuple[Description, Floats]:
    """Describe the two sides, and the standard error over libraries of the effect to rank by.

    The description is an average over libraries, or that of one pool where no library has both sides. The error is NaN
    where there is one library only: how far an effect replicates is then not known.
    """
    if kind == "between":
        return _describe_pool(parts)
    found = []
    for part in parts:
        section, label = part.contrast()
        found.append(section.describe(label))
    means = [np.mean([getattr(f, field.name) for f in found], axis=0) for field in fields(Description)]
    effects = np.stack([f.effect for f in found])
    return Description(*means), over_libraries(effects)


def _describe_pool(parts: list[Part]) -> tuple[Description, Floats]:
    matrix = sparse.vstack([p.section.matrix for p in parts], format="csr")
    xy = np.concatenate([p.section.xy for p in parts])
    inside, outside = (np.concatenate([getattr(p, side) for p in parts]) for side in ("inside", "outside"))
    section, label = Part(Section(matrix, xy), inside, outside, -1).contrast()
    sides = [
        np.stack([p.section.root_mean(getattr(p, side)) for p in parts if getattr(p, side).sum() >= MIN_OBS])
        for side in ("inside", "outside")
    ]
    effect = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    error = np.sqrt(sum(side.var(axis=0, ddof=1) / len(side) for side in sides))
    return replace(section.describe(label), effect=effect), error
