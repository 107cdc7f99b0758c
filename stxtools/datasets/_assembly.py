"""Sections as they are drawn, their counts, and the AnnData that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._progress import progress
from stxtools._slots import categorical
from stxtools._types import Array, Floats, Floats32, Ints
from stxtools._validate import check_choice, check_number

from ._shapes import field_at, gaussian_field
from ._truth import N_PROGRAMS, PLATFORMS, Genes, Hardness, Platform

# A fixed size, since the random stream (and so the counts) depends on the order of the draws.
_CHUNK_ENTRIES = 4_000_000
_DEPTH_SAMPLE = 2_000  # observations on which the mean depth is set
_PROGRAM_LENGTHS = (0.08, 0.45)  # length scales of the nuisance, in half widths of the tissue


@dataclass(frozen=True)
class Section:
    """One section of a subject: what and where its observations are, and its time."""

    subject: str
    name: str
    arrays: dict[str, Array]
    time: float = 0.0


def checked_hardness(platform: str, difficulty: float) -> tuple[Platform, Hardness]:
    """Check what all synthetic sections take, and return what it stands for."""
    check_choice("platform", platform, tuple(PLATFORMS))
    preset = PLATFORMS[platform]
    return preset, Hardness.at(check_number("difficulty", difficulty, minimum=0, maximum=1), preset)


def checked_depth(mean_depth: float | None, preset: Platform, n_vars: int) -> float:
    """Return the mean counts per observation, by default those of the platform."""
    depth = min(preset.counts_per_gene * n_vars, preset.max_depth) if mean_depth is None else mean_depth
    return check_number("mean_depth", depth, minimum=1e-3)


def programs(rng: np.random.Generator, unit: Floats, preset: Platform) -> Floats:
    """Draw what varies without a label: smooth programs, and those that differ between neighbours."""
    smooth = [field_at(gaussian_field(rng, float(rng.uniform(*_PROGRAM_LENGTHS))), unit) for _ in range(N_PROGRAMS)]
    return np.column_stack([*smooth, *(rng.standard_normal(len(unit)) for _ in range(preset.n_states))])


def joined(sections: Sequence[Section], what: str) -> Array:
    """Return what the observations of all sections are."""
    return np.concatenate([section.arrays[what] for section in sections])


def section_of(sections: Sequence[Section]) -> Ints:
    """Return the section of each observation."""
    return np.repeat(np.arange(len(sections)), [len(section.arrays["compartment"]) for section in sections])


def negative_binomial(rng: np.random.Generator, mean: Floats32, inverse_dispersion: Floats32, dropout: float) -> Ints:
    """Draw gamma-Poisson counts of variance ``mean + mean**2 / inverse_dispersion``; ``dropout`` sets some to 0."""
    rate = rng.standard_gamma(inverse_dispersion, size=mean.shape, dtype=np.float32)
    rate *= mean
    rate /= inverse_dispersion
    if dropout > 0:
        rate *= rng.random(mean.shape, dtype=np.float32) >= dropout
    return rng.poisson(rate)


def counts_of(
    rng: np.random.Generator, sections: Sequence[Section], genes: Genes, hardness: Hardness, blocks: Sequence[Array],
    effects: Floats, batch: Floats, mean_depth: float, show_progress: bool | None = None,
) -> sparse.csr_matrix:  # fmt: skip
    """Draw counts (CSR, float32) whose depth varies around ``mean_depth``: memory is that of those above 0."""
    own = np.eye(len(sections), dtype=np.float32)[section_of(sections)]
    state = joined(sections, "mixture"), joined(sections, "programs"), *blocks, own
    design = np.hstack(state, dtype=np.float32, casting="same_kind")
    strength = np.where(np.arange(len(genes.programs)) < N_PROGRAMS, hardness.nuisance, hardness.state)
    on_genes = np.vstack([genes.markers, strength[:, None] * genes.programs, effects, batch]).astype(np.float32)
    n_obs, baseline = len(design), genes.baseline.astype(np.float32)
    log_depth = (hardness.depth_sd * rng.standard_normal(n_obs)).astype(np.float32)
    sample = np.linspace(0, n_obs - 1, min(n_obs, _DEPTH_SAMPLE)).astype(np.int64)
    rates = np.exp(design[sample] @ on_genes + baseline + log_depth[sample, None])
    log_depth += np.float32(np.log(mean_depth / ((1 - hardness.dropout) * rates.sum(axis=1, dtype=np.float64).mean())))
    dispersion = genes.inverse_dispersion.astype(np.float32)
    step = max(1, _CHUNK_ENTRIES // on_genes.shape[1])
    parts = []
    with progress(n_obs, "counts", show_progress) as bar:
        for start in range(0, n_obs, step):
            rows = slice(start, min(start + step, n_obs))
            mean = design[rows] @ on_genes  # natural logarithms
            mean += baseline
            mean += log_depth[rows, None]
            np.exp(mean, out=mean)
            counts = negative_binomial(rng, mean, dispersion, hardness.dropout)
            parts.append(sparse.csr_matrix(counts, dtype=np.float32))
            bar.update(rows.stop - start)
    return sparse.vstack(parts, format="csr", dtype=np.float32)


def assemble(
    counts: Any, sections: Sequence[Section], obs: dict[str, Any], var: dict[str, Any], genes: Genes,
    compartments: Sequence[str], truth: dict[str, Any],
) -> AnnData:  # fmt: skip
    """Return the AnnData, with names of observations and genes, and positions on the lattice where there is one."""
    index = [f"{section.name}_{i}" for section in sections for i in range(len(section.arrays["compartment"]))]
    table = pd.DataFrame(obs, index=pd.Index(index))
    if "array" in sections[0].arrays:
        table[_keys.ARRAY_ROW], table[_keys.ARRAY_COL] = joined(sections, "array").T
    n_vars = len(genes.baseline)
    names = pd.Index([f"gene{j + 1:0{len(str(n_vars))}d}" for j in range(n_vars)])
    marker_of = categorical(genes.marker_of + 1, ["none", *compartments])
    features = pd.DataFrame(var | {"true_logfc": genes.log2fc, "marker_of": marker_of}, index=names)
    positions = {_keys.SPATIAL: joined(sections, "spatial")}
    return AnnData(counts, obs=table, var=features, obsm=positions, uns={"synthetic": truth})
