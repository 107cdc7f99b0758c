"""Comparisons of a group with its reference, within libraries or between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import sparse

from stxtools._types import Bools, Floats, Ints

from ._meta_analysis import Alternative, Combined, combine_sections, compare_libraries, t_pvals
from ._region_test import Contrast, SectionView, concatenated
from ._section import MIN_OBS, Description, RegionEffect, SectionExpression
from ._smooth import gene_sums


@dataclass(frozen=True)
class Design:
    """A group, its reference, and the libraries; the library is a block or a replicate.

    ``kind``: ``"within"`` each library, ``"between"`` libraries that hold one side each, ``"unreplicated"`` (the same,
    with fewer than two on a side) or ``"small"`` (a side below ``MIN_OBS`` observations in every library).
    ``subjects``: the subject of every library of the data, where subjects are the replicates.
    """

    name: str
    code: int
    reference: int | None  # None: the rest
    kind: str
    libraries: list[int]
    excluded: int = -1  # code of a group that is not part of the rest
    subjects: tuple[int, ...] | None = None

    @property
    def replicates(self) -> list[int]:
        """Subject of each library, or the library itself."""
        return self.libraries if self.subjects is None else [self.subjects[i] for i in self.libraries]

    def sides(self, codes: Ints) -> tuple[Bools, Bools]:
        """Return masks of the group and of the reference."""
        inside = codes == self.code
        outside = (codes >= 0) & ~inside if self.reference is None else codes == self.reference
        return inside, outside & (codes != self.excluded)


def plan(
    name: str, code: int, reference: int | None, codes: Ints, library: Ints, n_libraries: int,
    subjects: tuple[int, ...] | None = None,
) -> Design:  # fmt: skip
    """Choose the design of a comparison by where its two sides occur."""
    design = Design(name, code, reference, "small", [], subjects=subjects)
    n_in, n_out = (np.bincount(library[side], minlength=n_libraries) for side in design.sides(codes))
    has_in, has_out = n_in >= MIN_OBS, n_out >= MIN_OBS
    both = np.flatnonzero(has_in & has_out)
    only_in, only_out = np.flatnonzero(has_in & ~has_out), np.flatnonzero(has_out & ~has_in)
    between = min(len(only_in), len(only_out)) >= 2
    if len(both) >= 2 or (len(both) == 1 and not between):
        return replace(design, kind="within", libraries=both.tolist())
    if between:
        return replace(design, kind="between", libraries=sorted([*only_in.tolist(), *only_out.tolist()]))
    return replace(design, kind="unreplicated") if has_in.any() and has_out.any() else design


@dataclass(frozen=True)
class Outcome:
    """Description and test, each with the standard error of its effect over libraries (NaN with one).

    ``length``: the group's median correlation length. ``other``: the test of the other question, if requested.
    """

    described: Description
    error: Floats
    tested: Combined
    tested_error: Floats
    length: float
    other: Combined | None = None


def outcome_within(contrasts: Sequence[Contrast], design: Design) -> Outcome:
    """Combine the tests of a group over libraries, or over the subjects that they come from."""
    subjects = None if design.subjects is None else np.array(design.replicates)
    parts = [c.description for c in contrasts]
    described = Description(*(np.mean([getattr(d, each.name) for d in parts], axis=0) for each in fields(Description)))
    known = np.stack([c.effects[0].variance > 0 for c in contrasts])
    error = standard_error(_subject_means(np.stack([d.effect for d in parts]), known, subjects))
    length = float(np.median([c.effects[0].model.length for c in contrasts]))
    by_question = list(zip(*(c.effects for c in contrasts), strict=True))
    tested = [_combine(effects, contrasts[0].alternative, subjects) for effects in by_question]
    adjusted_error = standard_error(_subject_means(np.stack([e.effect for e in by_question[0]]), known, subjects))
    return Outcome(described, error, tested[0], adjusted_error, length, tested[1] if len(tested) > 1 else None)


def _combine(effects: Sequence[RegionEffect], alternative: Alternative, subjects: Ints | None) -> Combined:
    """Combine one test over libraries or subjects."""
    if len(effects) == 1:
        [one] = effects
        known = one.variance > 0
        pvals = np.where(known, t_pvals(one.statistic, one.df, alternative), 1.0)
        agreement = (known & (one.effect != 0)).astype(np.float64)
        return Combined(one.effect, one.statistic, one.df, pvals, known.astype(np.int64), agreement)
    names = ("effect", "variance", "df", "skewness", "kurtosis", "shrinkage")
    effect, *moments, shrinkage = (np.stack([getattr(e, name) for e in effects]) for name in names)

    def combined(effect: Floats) -> Combined:
        values = [effect, *moments] if subjects is None else _of_subjects(subjects, effect, *moments)
        return combine_sections(*values, alternative=alternative)

    # calibration shrinks the evidence, not the effect: that is the plain mean, unless the signs disagree
    calibrated, plain = combined(effect * shrinkage), combined(effect)
    agrees = plain.effect * calibrated.effect > 0
    return replace(calibrated, effect=np.where(agrees, plain.effect, calibrated.effect))


def _by_subject(values: Floats | Bools, subjects: Ints) -> Floats:
    """Sum over the libraries (rows) of each subject."""
    return np.stack([values[subjects == s].sum(axis=0) for s in np.unique(subjects)])


def _subject_means(values: Floats, known: Bools, subjects: Ints | None) -> Floats:
    """Average the known values of the libraries (rows) of each subject; 0 where none is known."""
    if subjects is None:
        return values
    return _by_subject(values * known, subjects) / np.maximum(_by_subject(known, subjects), 1)


def _of_subjects(
    subjects: Ints, effect: Floats, variance: Floats, df: Floats, skewness: Floats, kurtosis: Floats
) -> list[Floats]:
    """Return effects averaged by subject, and the moments of these means, with Satterthwaite's degrees of freedom."""
    known = variance > 0  # 0 where unknown, and so are the terms of these sums
    terms = variance, variance**2 / df, variance**1.5 * skewness, variance**2 * (kurtosis - 3), known
    total, squares, third, fourth, count = (_by_subject(each, subjects) for each in terms)
    scale = np.where(total > 0, total, 1.0)
    df = np.divide(scale**2, squares, out=np.ones_like(squares), where=squares > 0)
    mean, variance = _subject_means(effect, known, subjects), total / np.maximum(count, 1) ** 2
    return [mean, variance, df, third / scale**1.5, 3 + fourth / scale**2]


def standard_error(effects: Floats) -> Floats:
    """Return the standard error of the mean over libraries (rows); NaN for one library."""
    if len(effects) < 2:
        return np.full(effects.shape[1], np.nan)
    return effects.std(axis=0, ddof=1) / np.sqrt(len(effects))


def shrink(effect: Floats, error: Floats) -> Floats:
    """Shrink effects by ``effect ** 2 / (effect ** 2 + error ** 2)``; an unknown error (NaN) counts as 0."""
    square = effect**2
    total = square + np.nan_to_num(error) ** 2
    return np.divide(effect * square, total, out=np.zeros_like(effect), where=total > 0)


def compare_between(
    views: Sequence[SectionView], sides: Sequence[tuple[Bools, Bools]], alternative: Alternative = "two-sided"
) -> Outcome:
    """Test library means of the group against those of the reference; the description pools all libraries."""
    used = [inside | outside for inside, outside in sides]
    label = np.concatenate([inside[u] for (inside, _), u in zip(sides, used, strict=True)])
    # of the group and of the reference: the libraries with enough observations, and these observations
    replicates = [
        [(i, mask) for i, mask in enumerate(masks) if mask.sum() >= MIN_OBS] for masks in zip(*sides, strict=True)
    ]
    described, errors, means = [], [], []
    for genes in views[0].expression.slices:
        block = views[0].expression.block(genes)
        sections = [view.section(block) for view in views]
        pooled = sparse.vstack([s.matrix[u] for s, u in zip(sections, used, strict=True)], format="csr")
        roots, log_means = zip(*(_library_means(sections, side) for side in replicates), strict=True)
        effect = roots[0].mean(axis=0) - roots[1].mean(axis=0)
        described.append(replace(SectionExpression(pooled).describe([label])[0], effect=effect))
        errors.append(np.sqrt(sum(root.var(axis=0, ddof=1) / len(root) for root in roots)))
        means.append(log_means)
    group, reference = (np.concatenate(side, axis=1) for side in zip(*means, strict=True))
    error = np.concatenate(errors)
    tested = compare_libraries(group, reference, alternative)
    return Outcome(concatenated(described), error, tested, error, float("nan"))


def _library_means(sections: Sequence[SectionExpression], side: list[tuple[int, Bools]]) -> tuple[Floats, Floats]:
    """Root means and means of log expression (libraries x genes) over the observations of a side."""
    roots = [sections[i].root_means(mask[:, None])[:, 0] for i, mask in side]
    logs = [gene_sums(sections[i].matrix, mask[:, None].astype(np.float64))[:, 0] / mask.sum() for i, mask in side]
    return np.stack(roots), np.stack(logs)
