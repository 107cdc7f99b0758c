"""Sections with regions as the framework's input, and the labels from which it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from stxtools._spatial.blocks import spatial_blocks
from stxtools._types import Bools, Floats32, Ints, Reals
from stxtools.models._section import Section, group_means
from stxtools.models.ensemble.gene_means import GeneSection

_BLOCKS = 36  # of a section
_ONE_IN = 7  # blocks with labels for early stopping
_FEW = 6  # blocks with labels below which training needs all
_STRAY = 0.06  # share of blocks without any label up to which a section counts as labelled throughout


@dataclass
class RegionSection:
    """A section with its regions."""

    section: Section
    region: Ints  # of each observation, 0 .. R - 1 within the section; -1 for none
    nodes: Floats32  # features of the regions, (R, F)
    adjacency: sparse.csr_matrix  # of regions that touch, (R, R), symmetric
    labels: dict[str, Ints] = field(default_factory=dict)  # task -> class codes, -1 where unlabelled
    genes: sparse.csr_matrix | None = None  # log expression that is read beside the features, (n, G)
    expression: Floats32 | None = None  # log expression to predict, (n, T); NaN where unknown
    by_name: GeneSection | None = None  # log expression of all genes, for the gene classifier
    subject: int | None = None  # if known, sections of one subject are held out together


def region_means(region: Ints, values: Reals, known: Bools, n_regions: int) -> tuple[Floats32, Floats32]:
    """Mean of ``values`` (n, T) over the known observations of each region, and the share that is known."""
    rows = np.flatnonzero((region >= 0) & known)
    mean = group_means(np.nan_to_num(values)[rows], np.ones(len(rows)), region[rows], n_regions)
    size, n_known = (np.bincount(of, minlength=n_regions) for of in (region[region >= 0], region[rows]))
    return mean.astype(np.float32), (n_known / np.maximum(size, 1)).astype(np.float32)


def groups_of(sections: Sequence[RegionSection], *, whole: bool, most: int = _BLOCKS) -> list[Ints]:
    """Block of each observation, of at most ``most`` in a section, or its ``whole`` section; numbered over sections."""
    groups, start = [], 0
    for s in sections:
        n_blocks = int(np.clip(s.section.n_obs // 16, 2, most))
        group = np.zeros(s.section.n_obs, dtype=np.int64) if whole else spatial_blocks(s.section.xy, n_blocks)
        groups.append(group + start)
        start += int(group.max(initial=0)) + 1
    return groups


def made_for_others(sections: Sequence[RegionSection]) -> bool:
    """Whether at least three sections have labels, and others are predicted: some without labels, or later ones."""
    labelled = [s for s in sections if _labelled(s).any()]
    if len(labelled) < 3 or len(labelled) < len(sections):
        return len(labelled) >= 3
    blocks = groups_of(labelled, whole=False)
    unlabelled = [
        1 - len(np.unique(b[_labelled(s)])) / len(np.unique(b)) for s, b in zip(labelled, blocks, strict=True)
    ]
    return max(unlabelled) <= _STRAY


def held_out(sections: Sequence[RegionSection], groups: Sequence[Ints], rng: np.random.Generator) -> list[Bools]:
    """Observations for early stopping: one in seven of the groups with labels, the same for all tasks."""
    known = [_labelled(s) for s in sections]
    names = np.unique(np.concatenate([g[k] for g, k in zip(groups, known, strict=True)]))
    if len(names) < _FEW:
        return [np.zeros(s.section.n_obs, dtype=bool) for s in sections]
    chosen = rng.permutation(names)[: max(1, len(names) // _ONE_IN)]
    held = [np.isin(g, chosen) for g in groups]
    for task in sections[0].labels:
        codes = np.concatenate([s.labels[task] for s in sections])
        total = np.bincount(codes[codes >= 0])
        lost = np.bincount(codes[(codes >= 0) & np.concatenate(held)], minlength=len(total))
        scarce = np.flatnonzero(lost > total / 2)
        held = [h & ~np.isin(s.labels[task], scarce) for h, s in zip(held, sections, strict=True)]
    return held


def _labelled(s: RegionSection) -> Bools:
    known = np.zeros(s.section.n_obs, dtype=bool)
    for codes in s.labels.values():
        known |= codes >= 0
    if s.expression is not None:
        known |= np.isfinite(s.expression).all(axis=1)
    return known
