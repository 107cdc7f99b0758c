"""Synthetic sections of a tissue that develops, of which everything is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._docs import documented
from stxtools._progress import whole_call
from stxtools._slots import categorical, provenance
from stxtools._validate import check_choice, check_int, check_number, check_seed

from ._counts import deep_counts
from ._fields import gaussian_field
from ._shapes import Anatomy, draw_anatomy, inward, lattice, layer_height, neighbouring, share, sigmoid
from ._truth import N_PROGRAMS, PLATFORMS, Genes, Hardness, Platform, draw_genes, fold_changes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

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
_PROGRAM_LENGTHS = (0.08, 0.45)  # as in synthetic_tissue


@documented
@whole_call()
def synthetic_series(
    n_times: int = 3,
    n_subjects: int = 3,
    *,
    sections_per_subject: int = 1,
    obs_per_section: int = 600,
    n_vars: int = 80,
    platform: Literal["visium", "merfish"] = "visium",
    n_trends: int | None = None,
    logfc: float = 1.0,
    difficulty: float = 0.5,
    mean_depth: float | None = None,
    random_state: int = 0,
    show_progress: bool | None = None,
) -> AnnData:
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
    platform
        As in :func:`synthetic_tissue`.
    n_trends
        Genes with a trend inside one of ``c1``, ``c2``, ``c3``: by turns linear and transient (highest in the middle).
        By default a fifth of all.
    logfc
        Their log2 fold change, from the first time to the last or to the middle; every third falls instead of rising.
    difficulty
        As in :func:`synthetic_tissue`.
    mean_depth
        Mean counts per observation. By default as in :func:`synthetic_tissue`.
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

    Raises
    ------
    ValueError, TypeError
        If a number is out of range or of the wrong type.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_series(3, 2, obs_per_section=200)
    >>> adata.obs["subject"].nunique()
    6
    """
    check_choice("platform", platform, tuple(PLATFORMS))
    preset = PLATFORMS[platform]
    n_times = check_int("n_times", n_times, minimum=2, maximum=100)
    n_subjects = check_int("n_subjects", n_subjects, minimum=1)
    per_subject = check_int("sections_per_subject", sections_per_subject, minimum=1)
    n_obs = check_int("obs_per_section", obs_per_section, minimum=100)
    n_vars = check_int("n_vars", n_vars, minimum=2 * len(_NAMES))
    n_trends = check_int("n_trends", n_vars // 5 if n_trends is None else n_trends, minimum=0, maximum=n_vars // 2)
    logfc, difficulty = check_number("logfc", logfc), check_number("difficulty", difficulty, minimum=0, maximum=1)
    depth = min(preset.counts_per_gene * n_vars, preset.max_depth) if mean_depth is None else mean_depth
    depth = check_number("mean_depth", depth, minimum=1e-3)
    seed = check_seed(random_state)

    gene_rng, tissue_rng, count_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    hardness = Hardness.at(difficulty, preset)
    log2fc = fold_changes(logfc, n_trends)
    genes = draw_genes(gene_rng, n_vars, len(_NAMES), N_PROGRAMS + preset.n_states, log2fc, hardness)
    trends = _Trends.of(genes, n_trends)
    plan = {name: int(tissue_rng.integers(1, n_times)) for name in ("c4", "c5", "c6", "c7")}
    sections = _draw_sections(tissue_rng, preset, hardness, n_times, n_subjects, per_subject, n_obs, plan)
    design, effects = _model(sections, genes, trends, hardness, gene_rng, n_times)
    counts = deep_counts(count_rng, design, effects, genes, hardness, depth, show_progress)
    params = provenance(
        n_times=n_times, n_subjects=n_subjects, sections_per_subject=per_subject, obs_per_section=n_obs, n_vars=n_vars,
        platform=platform, n_trends=n_trends, logfc=logfc, difficulty=difficulty, mean_depth=depth, random_state=seed,
    )  # fmt: skip
    lineage = _lineage(plan, n_times)
    return _assemble(
        counts, sections, genes, trends, {"params": params, "effects": hardness.as_dict(), "lineage": lineage}
    )


@dataclass(frozen=True)
class _Section:
    """Where and when a section is, and of its observations where they lie and what they are."""

    time: int
    subject: str
    name: str
    of: dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Trends:
    """Per gene, the kind of its trend (0: none) and the compartment that it has it in."""

    kind: NDArray[np.int64]
    place: NDArray[np.int64]

    @classmethod
    def of(cls, genes: Genes, n_trends: int) -> _Trends:
        kind, place = np.zeros((2, len(genes.baseline)), dtype=np.int64)
        chosen = np.flatnonzero(genes.marker_of < 0)
        chosen = chosen[np.argsort(genes.log2fc[chosen] == 0, kind="stable")][:n_trends]
        kind[chosen] = 1 + np.arange(n_trends) % 2
        place[chosen] = np.arange(n_trends) // 2 % len(_TREND_IN)
        return cls(kind, place)


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
) -> list[_Section]:  # fmt: skip
    base, order = draw_anatomy(rng, 3 * len(_ISLANDS)), rng.permutation(len(_LAYERS))
    out: list[_Section] = []
    for step in range(n_times):
        for k in range(n_subjects):
            subject = f"T{step}_{k + 1}"
            anatomy = neighbouring(base, rng)
            sizes = np.exp(_SUBJECT * rng.standard_normal(len(FATES)))
            sizes[1] *= _FACTOR ** (step / (n_times - 1))
            sizes[2] /= _FACTOR ** (step / (n_times - 1))
            for s in range(per_subject):
                here = anatomy if s == 0 else neighbouring(anatomy, rng)
                of = _draw(rng, preset, hardness.border, n_obs, here, sizes, order, _present(plan, step))
                out.append(_Section(step, subject, f"{subject}_S{s + 1}", of))
    return out


def _draw(
    rng: np.random.Generator, preset: Platform, border: float, n_obs: int, anatomy: Anatomy, sizes: NDArray[np.float64],
    order: NDArray[np.int64], present: tuple[str, ...],
) -> dict[str, NDArray[Any]]:  # fmt: skip
    """Observations of one section: positions, compartments and what their expression is made of."""
    unit, array, half = lattice(n_obs, preset.kind, rng)
    code, mixture = _compartments(unit, anatomy, sizes, order, present, border)
    smooth = [gaussian_field(rng, float(rng.uniform(*_PROGRAM_LENGTHS)))(unit) for _ in range(N_PROGRAMS)]
    states = [rng.standard_normal(n_obs) for _ in range(preset.n_states)]
    angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.25)
    linear = scale * half * preset.spacing * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    xy = unit @ linear.T
    of = {"spatial": xy - xy.min(axis=0) + preset.spacing, "compartment": code, "mixture": mixture}
    return of | {"programs": np.column_stack([*smooth, *states])} | ({} if array is None else {"array": array})


def _compartments(
    unit: NDArray[np.float64], anatomy: Anatomy, sizes: NDArray[np.float64], order: NDArray[np.int64],
    present: tuple[str, ...], border: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # fmt: skip
    """Return the compartment of each observation, and its mixture of expression programs (n_obs, n_names)."""
    ends = np.cumsum(sizes[order]) / sizes[order].sum()
    rank = share(layer_height(unit, anatomy))
    layer = order[np.minimum(np.searchsorted(ends, rank), len(order) - 1)]
    above, mixture = np.ones(len(unit)), np.zeros((len(unit), len(_NAMES)))
    for which, end in zip(order, ends, strict=True):
        below = (
            np.minimum(sigmoid((rank - end) * len(order) / border), above) if end < 1 - 1e-9 else np.zeros(len(unit))
        )
        mixture[:, _NAMES.index(_LAYERS[which])] = above - below
        above = below
    code = np.array([_NAMES.index(name) for name in _LAYERS])[layer]
    side = unit[:, 0] + 0.12 * anatomy.lesion(unit)
    for name in ("c4", "c5"):
        if name + "a" in present:
            at, right = _NAMES.index(name), sigmoid(side * len(order) / border)
            mixture[:, at + 1 : at + 3] = mixture[:, [at]] * np.c_[1 - right, right]
            code[code == at] += 1 + (side[code == at] > 0)
    for k, name in enumerate(_ISLANDS):
        if name in present:
            top = 1 - min(_ISLAND_SHARE * sizes[len(_LAYERS) + k], 0.5)
            place = share(inward(anatomy.islands[k], unit))
            inside = sigmoid((place - top) / (0.2 * border))
            mixture *= (1 - inside)[:, None]
            mixture[:, _NAMES.index(name)] = inside
            code[place > top] = _NAMES.index(name)
    return code, mixture


def _model(
    sections: list[_Section], genes: Genes, trends: _Trends, hardness: Hardness, rng: np.random.Generator, n_times: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """State of each observation, and its effect on each gene (natural logarithms)."""
    strength = np.full(len(genes.programs), hardness.nuisance)
    strength[N_PROGRAMS:] = hardness.state
    n_vars = len(genes.baseline)
    subjects = {name: _SUBJECT * rng.standard_normal(n_vars) for name in dict.fromkeys(s.subject for s in sections)}
    own = np.array([subjects[s.subject] + hardness.batch * rng.standard_normal(n_vars) for s in sections])
    cell = (trends.kind[None] == np.repeat([1, 2], len(_TREND_IN))[:, None]) & (
        trends.place[None] == np.tile(np.arange(len(_TREND_IN)), 2)[:, None]
    )
    effects = np.vstack([genes.markers, strength[:, None] * genes.programs, cell * genes.log2fc * np.log(2), own])
    columns = [_NAMES.index(name) for name in _TREND_IN]
    blocks = []
    for i, section in enumerate(sections):
        s, mixture = section.time / (n_times - 1), section.of["mixture"]
        where = np.zeros((len(mixture), len(sections)))
        where[:, i] = 1
        blocks.append(np.hstack([
            mixture, section.of["programs"], s * mixture[:, columns], 4 * s * (1 - s) * mixture[:, columns], where,
        ]))  # fmt: skip
    return np.concatenate(blocks).astype(np.float32), effects.astype(np.float32)


def _assemble(counts: Any, sections: list[_Section], genes: Genes, trends: _Trends, truth: dict[str, Any]) -> AnnData:
    from anndata import AnnData

    sizes = [len(s.of["compartment"]) for s in sections]
    which = np.repeat(np.arange(len(sections)), sizes)
    subjects = list(dict.fromkeys(s.subject for s in sections))
    joined = {what: np.concatenate([s.of[what] for s in sections]) for what in sections[0].of}
    obs = pd.DataFrame(
        {
            "time": np.array([float(s.time) for s in sections])[which],
            "subject": categorical(np.array([subjects.index(s.subject) for s in sections])[which], subjects),
            "section": categorical(which, [s.name for s in sections]),
            "compartment": pd.Categorical(categorical(joined["compartment"], _NAMES)).remove_unused_categories(),
        },
        index=pd.Index([f"{s.name}_{i}" for s, n in zip(sections, sizes, strict=True) for i in range(n)]),
    )
    if "array" in joined:
        obs[_keys.ARRAY_ROW], obs[_keys.ARRAY_COL] = joined["array"].T
    digits = len(str(len(genes.baseline)))
    var = pd.DataFrame(
        {
            "trend": categorical(trends.kind, _TREND),
            "trend_in": categorical(np.where(trends.kind > 0, trends.place + 1, 0), ["none", *_TREND_IN]),
            "true_logfc": genes.log2fc,
            "marker_of": categorical(genes.marker_of + 1, ["none", *_NAMES]),
        },
        index=pd.Index([f"gene{j + 1:0{digits}d}" for j in range(len(genes.baseline))]),
    )
    return AnnData(counts, obs=obs, var=var, obsm={_keys.SPATIAL: joined["spatial"]}, uns={"synthetic": truth})
