"""Synthetic sections of a developing tissue with known truth."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools._api import public
from stxtools._checks import check_int, check_number, check_seed
from stxtools._progress import progress_bar
from stxtools._slots import categorical, provenance
from stxtools._types import Array, Floats, Ints

from . import _anatomy as shapes
from . import _expression as expression
from ._expression import Effects, Genes, Platform

_LAYERS, _ISLANDS = ("c1", "c2", "c3", "c4", "c5"), ("c6", "c7")
_NAMES = ("c1", "c2", "c3", "c4", "c4a", "c4b", "c5", "c5a", "c5b", "c6", "c7")
_WITH_TREND = ("c1", "c2", "c3")  # present at all times
_ISLAND_SHARE = 0.1  # of the tissue
_GROWTH = 2.5  # factor by which c2 grows and c3 shrinks
_SUBJECT_SD = 0.15  # of the log share and of the log expression


@public
@progress_bar()
def synthetic_series(
    n_times: int = 3, n_subjects: int = 3, *, sections_per_subject: int = 1, obs_per_section: int = 600,
    n_vars: int = 80, platform: Literal["visium", "merfish"] = "visium", n_trends: int | None = None,
    logfc: float = 1.0, difficulty: float = 0.5, mean_depth: float | None = None, random_state: int = 0,
    show_progress: bool | None = None,
) -> AnnData:  # fmt: skip
    """Simulate sections of a developing tissue, with known compartments, lineages and trends.

    There are five layers and two islands: ``c1`` is constant, ``c2`` grows, ``c3`` shrinks, ``c4`` splits into ``c4a``
    and ``c4b``, ``c5a`` and ``c5b`` merge into ``c5``, ``c6`` appears and ``c7`` disappears; the last four at random
    time points. Each section has its own rotation, scale and batch effect. Counts follow :func:`synthetic_tissue`.

    Parameters
    ----------
    n_times
        Number of time points: 0, 1, 2, ...
    n_subjects
        Number of subjects (animals) per time point, who differ in borders, shares and expression. A subject has one
        time point.
    sections_per_subject
        Number of sections per subject.
    obs_per_section
        Number of observations per section.
    n_vars
        Number of genes.
    n_trends
        Number of genes with a trend in ``c1``, ``c2`` or ``c3``, alternately linear and transient (extreme in the
        middle); by default a fifth of all.
    logfc
        Log2 fold change of these genes, from the first to the last or middle time point; negative for every third.

    Returns
    -------
    AnnData of counts (CSR, float32) with

    - ``obs["time"]`` (float64), ``obs["subject"]``, ``obs["section"]``, ``obs["compartment"]`` (category)
    - ``obs["array_row"]``, ``obs["array_col"]`` (int64): position on the Visium lattice (Visium-like only)
    - ``obsm["spatial"]`` (float64): x and y in µm; each section has its own origin
    - ``var["trend"]`` (``none``, ``linear``, ``transient``), ``var["trend_in"]`` (category), ``var["true_logfc"]``
    - ``var["marker_of"]`` (category): compartment that the gene marks, or ``"none"``
    - ``uns["synthetic"]`` (dict): ``params``, ``effects``, and ``lineage``, a table of which compartment becomes which
      at the next time point (``time_from``, ``time_to``, ``source``, ``target``; an empty string for none)

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 2, obs_per_section=200)
    >>> adata.obs["subject"].nunique()
    6
    """
    preset, effects = expression.check_platform(platform, difficulty)
    n_times = check_int("n_times", n_times, minimum=2, maximum=100)
    n_subjects = check_int("n_subjects", n_subjects, minimum=1)
    per_subject = check_int("sections_per_subject", sections_per_subject, minimum=1)
    n_obs = check_int("obs_per_section", obs_per_section, minimum=100)
    n_vars = check_int("n_vars", n_vars, minimum=2 * len(_NAMES))
    n_trends = check_int("n_trends", n_vars // 5 if n_trends is None else n_trends, minimum=0, maximum=n_vars // 2)
    logfc, depth = check_number("logfc", logfc), expression.check_depth(mean_depth, preset, n_vars)
    seed = check_seed(random_state)

    gene_rng, tissue_rng, count_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    log2fc = expression.fold_changes(logfc, n_trends)
    genes = expression.draw_genes(gene_rng, n_vars, len(_NAMES), preset.n_states, log2fc, effects)
    change_at = {name: int(tissue_rng.integers(1, n_times)) for name in ("c4", "c5", "c6", "c7")}
    tissue = _draw_tissue(tissue_rng, preset, effects, n_times, n_subjects, per_subject, n_obs, change_at)
    subjects = [f"T{step}_{k + 1}" for step in range(n_times) for k in range(n_subjects)]
    subject = tissue["section"] // per_subject
    time = (subject // n_subjects).astype(np.float64)
    of_subject = _SUBJECT_SD * gene_rng.standard_normal((len(subjects), n_vars))
    of_section = effects.batch * gene_rng.standard_normal((len(subjects) * per_subject, n_vars))
    batch = np.repeat(of_subject, per_subject, axis=0) + of_section
    kind, trend_in, coefficients = _plant_trends(genes, n_trends)
    progress, present = (time / time.max())[:, None], tissue["mixture"][:, [_NAMES.index(n) for n in _WITH_TREND]]
    courses = np.hstack([progress * present, 4 * progress * (1 - progress) * present])
    counts = expression.draw_counts(
        count_rng, tissue, genes, effects, courses, coefficients, batch, depth, show_progress
    )
    params = provenance(
        n_times=n_times, n_subjects=n_subjects, sections_per_subject=per_subject, obs_per_section=n_obs, n_vars=n_vars,
        platform=platform, n_trends=n_trends, logfc=logfc, difficulty=float(difficulty), mean_depth=depth,
        random_state=seed,
    )  # fmt: skip
    obs = {
        "time": time,
        "subject": categorical(subject, subjects),
        "section": categorical(tissue["section"], [f"{n}_S{s + 1}" for n in subjects for s in range(per_subject)]),
        "compartment": pd.Categorical(categorical(tissue["compartment"], _NAMES)).remove_unused_categories(),
    }
    var = {
        "trend": categorical(kind, ["none", "linear", "transient"]),
        "trend_in": categorical(trend_in + 1, ["none", *_WITH_TREND]),
    }
    truth = {"params": params, "effects": effects._asdict(), "lineage": _lineage(change_at, n_times)}
    return expression.assemble(counts, tissue, obs, var, genes, _NAMES, truth)


def _plant_trends(genes: Genes, n_trends: int) -> tuple[Ints, Ints, Floats]:
    """Return the kind of each gene's trend (0: none), its compartment (-1: none), and its response to each course."""
    n_vars, n_places = len(genes.baseline), len(_WITH_TREND)
    kind, trend_in = np.zeros(n_vars, dtype=np.int64), np.full(n_vars, -1)
    chosen = np.flatnonzero(genes.marker_of < 0)
    chosen = chosen[np.argsort(genes.log2fc[chosen] == 0, kind="stable")][:n_trends]
    kind[chosen] = 1 + np.arange(n_trends) % 2
    trend_in[chosen] = np.arange(n_trends) // 2 % n_places
    coefficients = np.zeros((2 * n_places, n_vars))
    coefficients[(kind[chosen] - 1) * n_places + trend_in[chosen], chosen] = genes.log2fc[chosen] * np.log(2)
    return kind, trend_in, coefficients


def _draw_tissue(
    rng: np.random.Generator, preset: Platform, effects: Effects, n_times: int, n_subjects: int, per_subject: int,
    n_obs: int, change_at: dict[str, int],
) -> dict[str, Array]:  # fmt: skip
    base, order = shapes.draw_anatomy(rng, 3 * len(_ISLANDS)), rng.permutation(len(_LAYERS))
    sections = []
    for step in range(n_times):
        present, growth = _present(change_at, step), _GROWTH ** (step / (n_times - 1))
        for _ in range(n_subjects):
            subject_anatomy = shapes.adjacent_section(base, rng)
            sizes = np.exp(_SUBJECT_SD * rng.standard_normal(len(_LAYERS) + len(_ISLANDS)))
            sizes[1] *= growth
            sizes[2] /= growth
            for s in range(per_subject):
                anatomy = subject_anatomy if s == 0 else shapes.adjacent_section(subject_anatomy, rng)
                unit, array, half = shapes.lattice(n_obs, preset.kind, rng)
                code, mixture = _compartments(unit, anatomy, sizes, order, present, effects.border)
                programs = expression.draw_programs(rng, unit, preset)
                angle, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.25) * half * preset.spacing
                xy = unit @ (scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]))
                sections.append({
                    "compartment": code, "mixture": mixture, "programs": programs, "array": array,
                    "spatial": xy - xy.min(axis=0) + preset.spacing,
                })  # fmt: skip
    return expression.concatenate(sections)


def _present(change_at: dict[str, int], step: int) -> list[str]:
    """Return the compartments at a time."""
    split, separate = step >= change_at["c4"], step < change_at["c5"]
    names = [*_WITH_TREND, *(("c4a", "c4b") if split else ("c4",)), *(("c5a", "c5b") if separate else ("c5",))]
    return names + ["c6"] * (step >= change_at["c6"]) + ["c7"] * (step < change_at["c7"])


def _compartments(
    unit: Floats, anatomy: shapes.Anatomy, sizes: Floats, order: Ints, present: list[str], border: float
) -> tuple[Ints, Floats]:
    """Return the compartment of each observation, and its mixture of expression programs (n_obs, n_names)."""
    ends = np.cumsum(sizes[order]) / sizes[order].sum()
    rank = shapes.rank(shapes.layer_height(unit, anatomy))
    layers = np.array([_NAMES.index(_LAYERS[layer]) for layer in order])
    code = layers[np.minimum(np.searchsorted(ends, rank), len(order) - 1)]
    mixture = np.zeros((len(unit), len(_NAMES)))
    mixture[:, layers] = shapes.layer_shares((rank - end) * len(order) / border for end in ends[:-1])
    # c4a and c4b are the left and the right part of c4, which blend into each other; so are those of c5
    side = unit[:, 0] + 0.12 * shapes.field_at(anatomy.lesion, unit)
    for name in ("c4", "c5"):
        if name + "a" in present:
            index, right = _NAMES.index(name), shapes.sigmoid(side * len(order) / border)
            mixture[:, index + 1 : index + 3] = mixture[:, [index]] * np.c_[1 - right, right]
            code[code == index] += 1 + (side[code == index] > 0)
    for name, size, field in zip(_ISLANDS, sizes[len(_LAYERS) :], anatomy.islands, strict=True):
        if name in present:
            area = min(_ISLAND_SHARE * size, 0.5)
            field = shapes.interior_field(field, unit)
            shapes.add_island(code, mixture, _NAMES.index(name), field, area, border)
    return code, mixture


def _lineage(change_at: dict[str, int], n_times: int) -> pd.DataFrame:
    """Return which compartments continue as which: equal ones, and the whole and the parts of a split or a merge."""
    rows = []
    for step in range(n_times - 1):
        before, after = _present(change_at, step), _present(change_at, step + 1)
        pairs = [(s, t) for s in before for t in after if s.startswith(t) or t.startswith(s)]  # c4 and c4a
        pairs += [(s, "") for s in before if s not in {p[0] for p in pairs}]
        pairs += [("", t) for t in after if t not in {p[1] for p in pairs}]
        rows += [(float(step), float(step + 1), s, t) for s, t in pairs]
    return pd.DataFrame(rows, columns=["time_from", "time_to", "source", "target"])
