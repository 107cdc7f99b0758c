"""Synthetic sections of a tissue that develops, of which everything is known."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools._docs import documented
from stxtools._progress import whole_call
from stxtools._slots import categorical, provenance
from stxtools._types import Floats, Ints
from stxtools._validate import check_int, check_number, check_seed

from . import _shapes as shapes
from ._assembly import Section, assemble, checked_depth, checked_hardness, counts_of, joined, programs, section_of
from ._truth import Genes, Hardness, Platform, draw_genes, fold_changes

# fate of each territory; the last two are islands, the others layers
FATES = {
    "c1": "stays", "c2": "grows", "c3": "shrinks", "c4": "splits", "c5": "merges", "c6": "appears", "c7": "vanishes",
}  # fmt: skip
_LAYERS, _ISLANDS = tuple(FATES)[:5], tuple(FATES)[5:]
_PARTS = ("a", "b")
_NAMES = tuple(n for t in FATES for n in (t, *(t + p for p in _PARTS if t in ("c4", "c5"))))
_TREND_IN = ("c1", "c2", "c3")  # there at all times
_TREND = ("none", "linear", "transient")
_ISLAND_SHARE = 0.1  # of the tissue, where the island is there
_FACTOR = 2.5  # by which the growing layer grows, and the shrinking one shrinks
_SUBJECT = 0.15  # sd of the subjects, in log share and log expression


@documented
@whole_call()
def synthetic_series(
    n_times: int = 3, n_subjects: int = 3, *, sections_per_subject: int = 1, obs_per_section: int = 600,
    n_vars: int = 80, platform: Literal["visium", "merfish"] = "visium", n_trends: int | None = None,
    logfc: float = 1.0, difficulty: float = 0.5, mean_depth: float | None = None, random_state: int = 0,
    show_progress: bool | None = None,
) -> AnnData:  # fmt: skip
    """Generate sections of a developing tissue, with known compartments, lineages and trends.

    Five layers and two islands: ``c1`` stays, ``c2`` grows, ``c3`` shrinks, ``c4`` splits into ``c4a`` and ``c4b``,
    ``c5a`` and ``c5b`` merge into ``c5``, ``c6`` appears, ``c7`` vanishes; the last four at random times. Every section
    has its own rotation, scale and batch effect. Counts are those of :func:`synthetic_tissue`.

    Parameters
    ----------
    n_times
        Times, 0, 1, 2, ...
    n_subjects
        Subjects (animals) per time; a subject has one time. They differ in borders, shares and expression.
    sections_per_subject
        Sections of each subject.
    obs_per_section
        Observations of each section.
    n_vars
        Genes.
    n_trends
        Genes with a trend inside one of ``c1``, ``c2``, ``c3``: by turns linear and transient (highest in the middle).
        By default a fifth of all.
    logfc
        Their log2 fold change, from the first time to the last or to the middle; every third falls instead of rising.
    %(parameters)s

    Returns
    -------
    AnnData of counts (CSR, float32) with

    - ``obs["time"]`` (float64), ``obs["subject"]``, ``obs["section"]``, ``obs["compartment"]`` (category)
    - ``obs["array_row"]``, ``obs["array_col"]`` (int64): position on the Visium lattice (Visium-like only)
    - ``obsm["spatial"]`` (float64): x and y in µm; every section has its own origin
    - ``var["trend"]`` (``none``, ``linear``, ``transient``), ``var["trend_in"]`` (category), ``var["true_logfc"]``
    - ``var["marker_of"]`` (category): compartment in which the gene is raised, or ``none``
    - ``uns["synthetic"]`` (dict): ``params``, ``effects``, and ``lineage``: a table of which compartment at a time goes
      on as which at the next (``time_from``, ``time_to``, ``source``, ``target``; an empty text for none)

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 2, obs_per_section=200)
    >>> adata.obs["subject"].nunique()
    6
    """
    preset, hardness = checked_hardness(platform, difficulty)
    n_times = check_int("n_times", n_times, minimum=2, maximum=100)
    n_subjects = check_int("n_subjects", n_subjects, minimum=1)
    per_subject = check_int("sections_per_subject", sections_per_subject, minimum=1)
    n_obs = check_int("obs_per_section", obs_per_section, minimum=100)
    n_vars = check_int("n_vars", n_vars, minimum=2 * len(_NAMES))
    n_trends = check_int("n_trends", n_vars // 5 if n_trends is None else n_trends, minimum=0, maximum=n_vars // 2)
    logfc, depth = check_number("logfc", logfc), checked_depth(mean_depth, preset, n_vars)
    seed = check_seed(random_state)

    gene_rng, tissue_rng, count_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    log2fc = fold_changes(logfc, n_trends)
    genes = draw_genes(gene_rng, n_vars, len(_NAMES), preset.n_states, log2fc, hardness)
    kind, place = _planted_trends(genes, n_trends)
    plan = {name: int(tissue_rng.integers(1, n_times)) for name in ("c4", "c5", "c6", "c7")}
    sections = _draw_sections(tissue_rng, preset, hardness, n_times, n_subjects, per_subject, n_obs, plan)
    subjects = list(dict.fromkeys(s.subject for s in sections))
    own = {name: _SUBJECT * gene_rng.standard_normal(n_vars) for name in subjects}
    batch = np.array([own[s.subject] + hardness.batch * gene_rng.standard_normal(n_vars) for s in sections])
    which = section_of(sections)
    time = np.array([s.time for s in sections])[which]
    effects = _trend_effects(kind, place, joined(sections, "mixture"), time, genes)
    counts = counts_of(count_rng, sections, genes, hardness, *effects, batch, depth, show_progress)
    params = provenance(
        n_times=n_times, n_subjects=n_subjects, sections_per_subject=per_subject, obs_per_section=n_obs, n_vars=n_vars,
        platform=platform, n_trends=n_trends, logfc=logfc, difficulty=float(difficulty), mean_depth=depth,
        random_state=seed,
    )  # fmt: skip
    obs = {
        "time": time,
        "subject": categorical(np.array([subjects.index(s.subject) for s in sections])[which], subjects),
        "section": categorical(which, [s.name for s in sections]),
        "compartment": pd.Categorical(categorical(joined(sections, "compartment"), _NAMES)).remove_unused_categories(),
    }
    var = {
        "trend": categorical(kind, _TREND),
        "trend_in": categorical(np.where(kind > 0, place + 1, 0), ["none", *_TREND_IN]),
    }
    truth = {"params": params, "effects": asdict(hardness), "lineage": _lineage(plan, n_times)}
    return assemble(counts, sections, obs, var, genes, _NAMES, truth)


def _planted_trends(genes: Genes, n_trends: int) -> tuple[Ints, Ints]:
    """Return per gene the kind of its trend (0: none) and the compartment that it has it in."""
    kind, place = np.zeros((2, len(genes.baseline)), dtype=np.int64)
    chosen = np.flatnonzero(genes.marker_of < 0)
    chosen = chosen[np.argsort(genes.log2fc[chosen] == 0, kind="stable")][:n_trends]
    kind[chosen] = 1 + np.arange(n_trends) % 2
    place[chosen] = np.arange(n_trends) // 2 % len(_TREND_IN)
    return kind, place


def _trend_effects(kind: Ints, place: Ints, mixture: Floats, time: Floats, genes: Genes) -> tuple[list[Floats], Floats]:
    """Return how far each observation is in a linear and a transient course, and what that does to each gene."""
    s, here = (time / time.max())[:, None], mixture[:, [_NAMES.index(name) for name in _TREND_IN]]
    courses = np.repeat([1, 2], len(_TREND_IN))[:, None], np.tile(np.arange(len(_TREND_IN)), 2)[:, None]
    cell = (kind == courses[0]) & (place == courses[1])
    return [s * here, 4 * s * (1 - s) * here], cell * genes.log2fc * np.log(2)


def _present(plan: dict[str, int], step: int) -> tuple[str, ...]:
    """Compartments at a time: what splits, merges, appears or vanishes does so from ``plan`` on."""
    names: list[str] = []
    for territory, fate in FATES.items():
        after = step >= plan.get(territory, 0)
        if fate in ("splits", "merges"):
            names += [territory + p for p in _PARTS] if after == (fate == "splits") else [territory]
        elif fate in ("stays", "grows", "shrinks") or after == (fate == "appears"):
            names.append(territory)
    return tuple(names)


def _lineage(plan: dict[str, int], n_times: int) -> pd.DataFrame:
    """Which compartment goes on as which: those of one territory, all where it splits or merges."""
    rows = []
    for step in range(n_times - 1):
        before, after = _present(plan, step), _present(plan, step + 1)
        pairs = [(s, t) for s in before for t in after if s == t or t in (s + "a", s + "b") or s in (t + "a", t + "b")]
        pairs += [(s, "") for s in before if s not in {p[0] for p in pairs}]
        pairs += [("", t) for t in after if t not in {p[1] for p in pairs}]
        rows += [(float(step), float(step + 1), s, t) for s, t in pairs]
    return pd.DataFrame(rows, columns=["time_from", "time_to", "source", "target"])


def _draw_sections(
    rng: np.random.Generator, preset: Platform, hardness: Hardness, n_times: int, n_subjects: int, per_subject: int,
    n_obs: int, plan: dict[str, int],
) -> list[Section]:  # fmt: skip
    base, order = shapes.draw_anatomy(rng, 3 * len(_ISLANDS)), rng.permutation(len(_LAYERS))
    out: list[Section] = []
    for step in range(n_times):
        for k in range(n_subjects):
            subject = f"T{step}_{k + 1}"
            anatomy = shapes.neighbouring(base, rng)
            sizes = np.exp(_SUBJECT * rng.standard_normal(len(FATES)))
            sizes[1] *= _FACTOR ** (step / (n_times - 1))
            sizes[2] /= _FACTOR ** (step / (n_times - 1))
            for s in range(per_subject):
                here = anatomy if s == 0 else shapes.neighbouring(anatomy, rng)
                unit, array, half = shapes.lattice(n_obs, preset.kind, rng)
                code, mixture = _compartments(unit, here, sizes, order, _present(plan, step), hardness.border)
                arrays = {"compartment": code, "mixture": mixture, "programs": programs(rng, unit, preset)}
                angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.25) * half * preset.spacing
                xy = unit @ (scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]))
                arrays["spatial"] = xy - xy.min(axis=0) + preset.spacing
                arrays |= {} if array is None else {"array": array}
                out.append(Section(subject, f"{subject}_S{s + 1}", arrays, time=float(step)))
    return out


def _compartments(
    unit: Floats, anatomy: shapes.Anatomy, sizes: Floats, order: Ints, present: tuple[str, ...], border: float
) -> tuple[Ints, Floats]:
    """Return the compartment of each observation, and its mixture of expression programs (n_obs, n_names)."""
    ends = np.cumsum(sizes[order]) / sizes[order].sum()
    rank = shapes.share(shapes.layer_height(unit, anatomy))
    layers = np.array([_NAMES.index(_LAYERS[which]) for which in order])
    code = layers[np.minimum(np.searchsorted(ends, rank), len(order) - 1)]
    mixture = np.zeros((len(unit), len(_NAMES)))
    mixture[:, layers] = shapes.stacked((rank - end) * len(order) / border for end in ends[:-1])
    side = unit[:, 0] + 0.12 * shapes.field_at(anatomy.lesion, unit)
    for name in ("c4", "c5"):
        if name + "a" in present:
            at, right = _NAMES.index(name), shapes.sigmoid(side * len(order) / border)
            mixture[:, at + 1 : at + 3] = mixture[:, [at]] * np.c_[1 - right, right]
            code[code == at] += 1 + (side[code == at] > 0)
    for k, name in enumerate(_ISLANDS):
        if name in present:
            top = 1 - min(_ISLAND_SHARE * sizes[len(_LAYERS) + k], 0.5)
            rank = shapes.share(shapes.inward(anatomy.islands[k], unit))
            shapes.add_island(code, mixture, _NAMES.index(name), rank, top, border)
    return code, mixture
