"""Expression of synthetic tissue: effect sizes, responses of the genes, counts, and the AnnData that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_choice, check_number
from stxtools._progress import progress
from stxtools._slots import categorical
from stxtools._types import Array, Floats, Floats32, Ints

from ._anatomy import field_at, gaussian_field

_N_PROGRAMS = 16  # autocorrelated programs without a label
_PROGRAM_LENGTHS = (0.08, 0.45)  # their length scales, in half widths of the tissue
_LOADING_SHARE = 0.5  # of the genes that a program drives
_MARKER_SHARE = 0.6  # of the genes that are not biomarkers
_MAX_LOGFC = 30.0  # counts beyond it overflow
_DEPTH_SAMPLE = 2_000  # observations on which the mean depth is set
# A fixed size, since the random stream (and so the counts) depends on the order of the draws.
_CHUNK_ENTRIES = 4_000_000


class Platform(NamedTuple):
    """Properties of a technology's data."""

    kind: str
    n_obs: int
    n_vars: int
    spacing: float  # micrometres between neighbours
    counts_per_gene: float
    max_depth: float
    border: float  # width of a border, in layer thicknesses, at difficulty 0.5
    marker: float  # strength of a marker (natural logarithm) at difficulty 0
    n_states: int  # programs that vary from one observation to the next, as cell types do


PLATFORMS = {
    # 55 um spots on a hexagonal lattice with a pitch of 100 um; a spot averages over several cells
    "visium": Platform("hex", 10_000, 50, 100.0, 2.0, 5_000.0, 0.06, 2.9, 0),
    "merfish": Platform("scattered", 5_000, 30, 12.0, 2.0, 120.0, 0.03, 3.2, 2),
}


class Effects(NamedTuple):
    """Strength of the signal and of each disturbance (natural logarithms)."""

    marker: float
    nuisance: float
    state: float
    batch: float
    dropout: float
    depth_sd: float
    inverse_dispersion: float
    border: float


class Genes(NamedTuple):
    """Effects on each gene (natural logarithms), and the truth about it."""

    baseline: Floats  # (n_vars,), proportions before any effect
    markers: Floats  # (n_compartments, n_vars)
    programs: Floats  # (n_programs, n_vars)
    log2fc: Floats  # (n_vars,)
    marker_of: Ints  # (n_vars,), -1 for none
    inverse_dispersion: Floats  # (n_vars,)


def check_platform(platform: str, difficulty: float) -> tuple[Platform, Effects]:
    """Return the platform's properties, and the effects at a difficulty: at 1 there are no markers."""
    check_choice("platform", platform, tuple(PLATFORMS))
    preset, d = PLATFORMS[platform], check_number("difficulty", difficulty, minimum=0, maximum=1)
    return preset, Effects(
        marker=preset.marker * (1 - d),
        nuisance=0.1 + 1.2 * d,
        state=0.6 * d if preset.n_states else 0.0,
        batch=0.5 * d,
        dropout=0.5 * d,
        depth_sd=0.2 + 0.4 * d,
        inverse_dispersion=float(10.0 ** (1 - d)),
        border=preset.border * (0.2 + 1.6 * d),
    )


def check_depth(mean_depth: float | None, preset: Platform, n_vars: int) -> float:
    """Return the mean counts per observation, by default those of the platform."""
    depth = min(preset.counts_per_gene * n_vars, preset.max_depth) if mean_depth is None else mean_depth
    return check_number("mean_depth", depth, minimum=1e-3)


def fold_changes(logfc: float | Sequence[float], n_biomarkers: int) -> Floats:
    """Return one fold change per biomarker; a single number is negated for every third one."""
    given = np.array(logfc, dtype=object)
    values = [check_number("logfc", x, minimum=-_MAX_LOGFC, maximum=_MAX_LOGFC) for x in np.atleast_1d(given)]
    if given.ndim == 0:
        return values[0] * np.where(np.arange(n_biomarkers) % 3 == 2, -1.0, 1.0)
    if len(values) != n_biomarkers:
        raise ValueError(
            f"`logfc` has {len(values)} values for {n_biomarkers} biomarkers; give one number, or one for each."
        )
    return np.array(values, dtype=np.float64)


def draw_genes(
    rng: np.random.Generator, n_vars: int, n_compartments: int, n_states: int, log2fc: Floats, effects: Effects
) -> Genes:
    """Draw the role of each gene: biomarker, marker of a compartment, or neither; programs may drive any."""
    responding, rest = np.split(rng.permutation(n_vars), [len(log2fc)])
    genes = rest[: int(np.ceil(_MARKER_SHARE * len(rest)))]
    marker_of = np.full(n_vars, -1, dtype=np.int64)
    marker_of[genes] = np.arange(len(genes)) % n_compartments
    markers, planted = np.zeros((n_compartments, n_vars)), np.zeros(n_vars)
    markers[marker_of[genes], genes] = effects.marker * rng.uniform(0.6, 1.4, size=len(genes))
    planted[responding] = log2fc
    driven = rng.random((_N_PROGRAMS + n_states, n_vars)) < _LOADING_SHARE
    # all programs of a kind together then have a standard deviation of 1 on the average gene
    size = 1 / np.sqrt(np.repeat([_N_PROGRAMS, n_states], [_N_PROGRAMS, n_states]) * _LOADING_SHARE)
    proportion = rng.lognormal(0, 0.6, size=n_vars)
    return Genes(
        baseline=np.log(proportion / proportion.sum()),
        markers=markers,
        programs=driven * size[:, None] * rng.standard_normal(driven.shape),
        log2fc=planted,
        marker_of=marker_of,
        inverse_dispersion=effects.inverse_dispersion * rng.uniform(0.7, 1.3, size=n_vars),
    )


def draw_programs(rng: np.random.Generator, unit: Floats, preset: Platform) -> Floats:
    """Draw the nuisance programs of a section: smooth ones, and those that differ between neighbours."""
    smooth = [field_at(gaussian_field(rng, float(rng.uniform(*_PROGRAM_LENGTHS))), unit) for _ in range(_N_PROGRAMS)]
    return np.column_stack([*smooth, *(rng.standard_normal(len(unit)) for _ in range(preset.n_states))])


def concatenate(sections: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Concatenate the arrays of all sections, and add the index of each observation's section."""
    tissue = {name: np.concatenate([section[name] for section in sections]) for name in sections[0]}
    tissue["section"] = np.repeat(np.arange(len(sections)), [len(section["compartment"]) for section in sections])
    return tissue


def draw_counts(
    rng: np.random.Generator, tissue: Mapping[str, Array], genes: Genes, effects: Effects, covariates: Array,
    coefficients: Floats, batch: Floats, mean_depth: float, show_progress: bool | None = None,
) -> sparse.csr_matrix:  # fmt: skip
    """Draw counts (CSR, float32) whose depth varies around ``mean_depth``, in chunks of rows."""
    section = np.eye(len(batch), dtype=np.float32)[tissue["section"]]
    parts = tissue["mixture"], tissue["programs"], covariates, section
    design = np.hstack(parts, dtype=np.float32, casting="same_kind")
    strength = np.where(np.arange(len(genes.programs)) < _N_PROGRAMS, effects.nuisance, effects.state)
    on_genes = np.vstack([genes.markers, strength[:, None] * genes.programs, coefficients, batch]).astype(np.float32)
    n_obs, baseline = len(design), genes.baseline.astype(np.float32)
    log_depth = (effects.depth_sd * rng.standard_normal(n_obs)).astype(np.float32)
    sample = np.linspace(0, n_obs - 1, min(n_obs, _DEPTH_SAMPLE)).astype(np.int64)
    rates = np.exp(design[sample] @ on_genes + baseline + log_depth[sample, None])
    log_depth += np.float32(np.log(mean_depth / ((1 - effects.dropout) * rates.sum(axis=1, dtype=np.float64).mean())))
    dispersion = genes.inverse_dispersion.astype(np.float32)
    step = max(1, _CHUNK_ENTRIES // on_genes.shape[1])
    chunks = []
    with progress(n_obs, "counts", show_progress) as bar:
        for start in range(0, n_obs, step):
            rows = slice(start, min(start + step, n_obs))
            mean = design[rows] @ on_genes  # natural logarithms
            mean += baseline
            mean += log_depth[rows, None]
            np.exp(mean, out=mean)
            counts = negative_binomial(rng, mean, dispersion, effects.dropout)
            chunks.append(sparse.csr_matrix(counts, dtype=np.float32))
            bar.update(rows.stop - start)
    return sparse.vstack(chunks, format="csr", dtype=np.float32)


def negative_binomial(rng: np.random.Generator, mean: Floats32, inverse_dispersion: Floats32, dropout: float) -> Ints:
    """Draw gamma-Poisson counts of variance ``mean + mean**2 / inverse_dispersion``; ``dropout`` sets some to 0."""
    rate = rng.standard_gamma(inverse_dispersion, size=mean.shape, dtype=np.float32)
    rate *= mean
    rate /= inverse_dispersion
    if dropout > 0:
        rate *= rng.random(mean.shape, dtype=np.float32) >= dropout
    return rng.poisson(rate)


def assemble(
    counts: Any, tissue: Mapping[str, Array], obs: dict[str, Any], var: dict[str, Any], genes: Genes,
    compartments: Sequence[str], truth: dict[str, Any],
) -> AnnData:  # fmt: skip
    """Return the AnnData, with names of observations and genes, positions, and what is common to all simulations."""
    sizes = zip(obs["section"].categories, np.bincount(tissue["section"]), strict=True)
    table = pd.DataFrame(obs, index=pd.Index([f"{name}_{i}" for name, size in sizes for i in range(size)]))
    if tissue["array"].size:
        table[_keys.ARRAY_ROW], table[_keys.ARRAY_COL] = tissue["array"].T
    n_vars = len(genes.baseline)
    names = pd.Index([f"gene{j + 1:0{len(str(n_vars))}d}" for j in range(n_vars)])
    marker_of = categorical(genes.marker_of + 1, ["none", *compartments])
    features = pd.DataFrame(var | {"true_logfc": genes.log2fc, "marker_of": marker_of}, index=names)
    positions = {_keys.SPATIAL: tissue["spatial"]}
    return AnnData(counts, obs=table, var=features, obsm=positions, uns={"synthetic": truth})
