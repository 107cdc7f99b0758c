"""Planted truth: difficulty of the tissue, and the response of every gene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stxtools._types import Floats, Ints

N_PROGRAMS = 16  # autocorrelated programs without a label
_MARKER_SHARE = 0.6  # of the genes that are not biomarkers
_LARGEST_LOGFC = 30.0  # counts beyond it are no numbers
_LOADING_SHARE = 0.5  # of the genes that a program drives


@dataclass(frozen=True)
class Platform:
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


@dataclass(frozen=True)
class Hardness:
    """How strong the signal and each disturbance is; effects are natural logarithms."""

    marker: float
    nuisance: float
    state: float
    batch: float
    dropout: float
    depth_sd: float
    inverse_dispersion: float
    border: float

    @classmethod
    def at(cls, difficulty: float, platform: Platform) -> Hardness:
        """Scale everything by one number: 0 is trivial to separate, 1 holds no marker at all."""
        d = difficulty
        return cls(
            marker=platform.marker * (1 - d),
            nuisance=0.1 + 1.2 * d,
            state=0.6 * d if platform.n_states else 0.0,
            batch=0.5 * d,
            dropout=0.5 * d,
            depth_sd=0.2 + 0.4 * d,
            inverse_dispersion=float(10.0 ** (1 - d)),
            border=platform.border * (0.2 + 1.6 * d),
        )


@dataclass(frozen=True)
class Genes:
    """The effect of everything on every gene (natural logarithms), and what a user may know of it."""

    baseline: Floats  # (n_vars,), proportions before any effect
    markers: Floats  # (n_compartments, n_vars)
    programs: Floats  # (n_programs, n_vars)
    log2fc: Floats  # (n_vars,)
    marker_of: Ints  # (n_vars,), -1 for none
    inverse_dispersion: Floats  # (n_vars,)


def fold_changes(logfc: float | Sequence[float], n_biomarkers: int) -> Floats:
    """One fold change per biomarker; of a single number every third one is turned into its inverse."""
    try:
        values = np.atleast_1d(np.asarray(logfc, dtype=np.float64))
        if np.asarray(logfc).dtype.kind not in "iuf":
            raise TypeError
    except (TypeError, ValueError) as err:
        raise TypeError(f"`logfc={logfc!r}` must be a finite number, or one per biomarker.") from err
    if values.ndim != 1 or not (np.abs(values) <= _LARGEST_LOGFC).all():
        raise ValueError(f"`logfc={logfc!r}` must be a number of at most {_LARGEST_LOGFC:g}, or one per biomarker.")
    if np.ndim(logfc) == 0:
        return values[0] * np.where(np.arange(n_biomarkers) % 3 == 2, -1.0, 1.0)
    if len(values) != n_biomarkers:
        raise ValueError(f"`logfc` has {len(values)} values for {n_biomarkers} biomarkers; give one number or as many.")
    return values


def draw_genes(
    rng: np.random.Generator, n_vars: int, n_compartments: int, n_states: int, log2fc: Floats, hardness: Hardness
) -> Genes:
    """Give every gene its part: biomarker, marker of a compartment, or neither; programs may drive any."""
    responding, rest = np.split(rng.permutation(n_vars), [len(log2fc)])
    genes = rest[: int(np.ceil(_MARKER_SHARE * len(rest)))]
    marker_of = np.full(n_vars, -1, dtype=np.int64)
    marker_of[genes] = np.arange(len(genes)) % n_compartments
    markers, planted = np.zeros((n_compartments, n_vars)), np.zeros(n_vars)
    markers[marker_of[genes], genes] = hardness.marker * rng.uniform(0.6, 1.4, size=len(genes))
    planted[responding] = log2fc
    driven = rng.random((N_PROGRAMS + n_states, n_vars)) < _LOADING_SHARE
    # all programs of a kind together then have a standard deviation of 1 on the average gene
    size = 1 / np.sqrt(np.repeat([N_PROGRAMS, n_states], [N_PROGRAMS, n_states]) * _LOADING_SHARE)
    proportion = rng.lognormal(0, 0.6, size=n_vars)
    return Genes(
        baseline=np.log(proportion / proportion.sum()),
        markers=markers,
        programs=driven * size[:, None] * rng.standard_normal(driven.shape),
        log2fc=planted,
        marker_of=marker_of,
        inverse_dispersion=hardness.inverse_dispersion * rng.uniform(0.7, 1.3, size=n_vars),
    )
