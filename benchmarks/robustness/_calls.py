"""All public functions with valid arguments, and hostile values to replace them with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from _data import HOW, QUICK, QUICK_NET, UNET, drugs, pairs

import stxtools as st

MODELS = {
    "segmenter": "Segmenter", "pretrained": "Segmenter", "net": "TissueNet",
    "net_student": "TissueStudent",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A public function and valid arguments.

    ``results`` says whether it needs what earlier calls made. ``weight`` is how often it is drawn. ``variants`` are
    other arguments that work, one of which may be laid over the first.
    """

    name: str
    arguments: Callable[[Path], dict[str, Any]]
    results: bool = False
    weight: float = 1.0
    variants: list[dict[str, Any]] = field(default_factory=list)

    @property
    def function(self) -> Callable[..., Any]:
        """Return the function."""
        return reduce(getattr, self.name.split("."), st)  # type: ignore[arg-type]

    @property
    def parameters(self) -> list[str]:
        """Return the names of its parameters, without the first."""
        return [p for p in inspect.signature(self.function).parameters if p != "adata"]


def _call(name: str, results: bool = False, weight: float = 1.0, variants: Any = (), **arguments: Any) -> Call:
    def fill(folder: Path) -> dict[str, Any]:
        return {k: folder / v.name if isinstance(v, Path) else v for k, v in arguments.items()}

    return Call(name, fill, results, weight, list(variants))


_LIBRARY = {"library_key": "library"}
SETS = pd.DataFrame({"source": np.repeat(["x", "y"], 6), "target": [f"GENE{i}" for i in range(12)]})

CALLS: tuple[Call, ...] = (
    _call("pp.normalize", n_comps=5, variants=[{"scale": True}, {"target_sum": 1e4}, _LIBRARY]),
    _call("pp.rasterize", library_key="library", variants=[{"pixel_size": 40.0}, {"lattice": "scattered"}]),
    _call("pp.align", library_key="library", variants=[{"reference": "two"}, {"method": "affine"}]),
    _call("pp.add_noise", level=0.1, variants=[{"use_rep": "X_pca"}, {"kind": "counts"}]),
    _call("pp.split_counts", variants=[{"fraction": 0.3}]),
    _call(
        "tl.segment", n_segments=3, library_key="library", params=QUICK, weight=2.0, **HOW,
        variants=[
            {"n_segments": None, "labels_key": "band"}, {"use_rep": "X_pca"}, {"library_key": None},
            {"n_segments": None, "labels_key": "band", "keep_labels": True, "abstain_below": 0.5},
        ],
    ),
    _call("tl.segment", library_key="library", **HOW, model=Path("segmenter.stx")),
    _call("tl.pretrain", library_key="library", params=QUICK, save_model=Path("new.stx"), weight=0.5, **HOW),
    _call("tl.distill", True, library_key="library", model=Path("net.stx"), save_model=Path("new.stx"),
          params={"epochs": 1}, **HOW),
    _call("tl.suggest_labels", True, n=3, library_key="library", variants=[ {"labels_key": "band"}]),
    _call("tl.region_graph", True, library_key="library", max_size=12, variants=[{"segment_key": "band"}]),
    _call("tl.embed", True, params=QUICK_NET, weight=0.6, **HOW, variants=[{"use_rep": "X_pca"}]),
    _call(
        "tl.multitask", True, biomarker_key="disease", region_key="band", params=QUICK_NET, weight=0.6, **HOW,
        variants=[{"region_key": None}, {"biomarker_key": None}, {"expression": ["GENE1", "GENE2"]}],
    ),
    _call("tl.attention_fidelity", True, model=Path("net.stx"), of="network", max_regions=1, shares=(0.5,), weight=0.4,
          methods=("attention", "random"), show_progress=False),
    _call(
        "tl.biomarkers", groupby="disease", n_null=50, show_progress=False, weight=1.5, library_key="library",
        variants=[{"groupby": "band"}, {"library_key": None}, {"reference": "healthy"}, {"covariates": "band"}],
    ),
    _call("tl.biomarkers", True, groupby="segment", library_key="library", n_null=50, show_progress=False, protect=None,
          variants=[{"groupby": "band"}, {"covariates": "composition"}]),
    _call("tl.describe", True, groupby="band", resource=pairs(), n_null=50, library_key="library", show_progress=False,
          variants=[{"net": SETS}, {"net": {"sets": SETS}, "resource": None}]),
    _call("tl.compare", condition_key="library", subject_key="library", groupby="band", library_key="library",
          variants=[{"groupby": "disease"}, {"reference": "two"}, {"subject_key": "patient"}]),
    _call("tl.trends", time_key="day", subject_key="library", groupby="band", library_key="library",
          variants=[{"groupby": "disease"}]),
    _call("tl.track", True, time_key="day", show_progress=False, variants=[{"subject_key": "patient"}]),
    _call("tl.targets", True, table=drugs()),
    _call(
        "tl.evaluate", models=["lda", "nearest_label"], region_key="band", library_key="library", n_folds=2,
        n_seeds=1, max_folds=1, **HOW,
        variants=[{"scheme": "library", "library_key": "library"}, {"genes": 2}, {"noise": 0.1}, {"use_rep": "X_pca"},
                  {"checkpoint": "rows"}, {"biomarker_key": "disease"}],
    ),
    _call("tl.tune", part="unet", region_key="band", library_key="library", n_folds=2, max_folds=1, n_trials=1,
          search="random",
          space={"width": [2, 4]}, params=UNET, weight=0.4, **HOW),
    _call("pl.attention", True),
    _call("pl.attention_fidelity", True),
    _call("pl.biomarkers", True, weight=2.0, variants=[{"kind": "volcano"}]),
    _call("pl.evaluation", True),
    _call("pl.history", True, variants=[{"key": "multitask"}, {"key": "embed"}]),
    _call("pl.region_graph", True, weight=1.5),
    _call("pl.robustness", True),
    _call("pl.segment", True, weight=2.0, variants=[{"library": "one"}]),
    _call("pl.sensitivity", True, x="width", y="lr"),
    _call("pl.stability", True),
    _call("pl.targets", True),
    _call("pl.compare", True, variants=[{"kind": "share"}, {"n_top": 3}]),
    _call("pl.describe", True, kind="contact", variants=[{"group": "a"}]),
    _call("pl.trends", True, variants=[{"kind": "expression"}, {"kind": "contact", "heatmap": True}]),
    _call("pl.track", True),
    _call("pl.annotate", classes=["a", "b"], weight=0.5, variants=[{"key": "band"}, {"key": "disease"}]),
    _call("report", True, path=Path("report.html"), weight=1.5, variants=[{"genes": ["GENE1"]}, {"color": ["band"]}]),
    _call("get.trends", True, variants=[{"kind": "area", "values": True}]),
    _call("get.track", True, variants=[{"table": "regions"}]),
    _call("get.compare", True, variants=[{"kind": "contact"}]),
    _call("get.describe", True, variants=[{"kind": "contact", "fdr": 0.5}]),
    _call("get.biomarkers", True, weight=1.5, variants=[{"group": "a"}, {"n_top": 3}]),
    _call("get.evaluation", True, variants=[{"metric": "auroc"}, {"per_seed": True}]),
    _call("get.regions", True),
    _call("get.segments", True, library_key="library"),
)  # fmt: skip

# without data: those that make or read it, and the parameter sets of the models
FREE: tuple[Call, ...] = (
    _call("datasets.synthetic_tissue", n_obs=60, n_vars=20, show_progress=False, weight=2.0),
    _call("datasets.dlpfc", sample="151673"),
    _call("datasets.her2st", sample="A1"),
    _call("datasets.osmfish_sscortex"),
    _call("datasets.visium_mouse_brain", show_progress=False),
    _call("datasets.merfish_breast_cancer", show_progress=False),
    _call("models.SegmenterParams", **QUICK),
    _call("models.TissueNetParams", **QUICK_NET),
)

# ---------------------------------------------------------------- arguments that do not work, or may not

GENERAL: list[Any] = [
    None, "", "nope", "a/b", ".", "..", "a\0b", "_index", 5, -1, 0, 1, 2, 1.5, -0.5, float("nan"), float("inf"), 1e300,
    True, False, [], ["band"], ["nope", "band"], [None], {}, {"nope": 1}, {1: 2}, b"x", object(), np.array([1, 2]),
    (1, 2), np.float32(0.5), np.int64(3), "spatial", "band", "disease", "library", "score", "counts", "X_pca",
    "segment", "GENE1", pd.Series([1.0]), pd.DataFrame({"a": [1]}), lambda: 1, 2**64, "raster", "regions", "log1p",
]  # fmt: skip
_FILES: list[Any] = [
    None, "", 5, "nowhere.stx", "no/folder/m.stx", ".", "a\0b", "x" * 4000, "text.stx", "segmenter.stx",
    "net.stx", "net_student.stx", "pretrained.stx", [], object(), ["net.stx", "segmenter.stx"],
]  # fmt: skip
_PARAMS: list[Any] = [
    None, "x", 5, [], {"nope": 1}, {1: 2}, {"epochs": 0}, {"epochs": "3"}, {"epochs": 1.5}, {"lr": -1.0}, {"lr": 1e30},
    {"lr": float("nan")}, {"lr": 0.0}, {"lr": "fast"}, {"width": 10**9}, {"width": True}, {"sigmas": []},
    {"sigmas": [-1.0]}, {"sigmas": 1.0}, {"sigmas": "ab"}, {"sigmas": [1e9]}, {"kernel_size": 2},
    {"kernel_size": 10**9}, {"depth": 9}, {"dropout": 1.5}, {"pretrain": "nope"}, {"pretrain": None}, {"hidden": 3},
    {"hidden": 10**9},
    {"layers": 10**9}, {"heads": 0}, {"conv": "nope"}, {"neighbours": []}, {"neighbours": [10**9]}, {"alpha": 0.0},
    {"alpha": -1.0}, {"alpha": 1e30}, {"alpha": 0.0, "beta": 0.0}, {"unet": "yes"}, {"unet": False},
    {"ensemble": ("network", "linear")},
    {"weighting": "famo"}, {"weight_decay": 1e30}, {"max_nodes": 1}, {"steps_per_epoch": 0},
    {"batch_size": 0}, {"batch_size": 64}, {"view_size": 1}, {"rotation": 1e9}, {"scaling": 0.9}, {"drop": 0.95},
]  # fmt: skip
SPECIAL: dict[str, list[Any]] = {
    **dict.fromkeys(("model", "save_model", "pretrained", "attribution_model", "path"), _FILES),
    "params": _PARAMS,
    "devices": [0, -2, "x", 1.5, None, [], "auto", True, 10**6],
    "accelerator": ["tpu", "gpu", "nope", 5, None, "", True, ["cpu"]],
    "models": [
        "lda",
        "nope",
        [],
        ["lda", "lda"],
        {"a": "lda"},
        {"a,b": "lda"},
        {"a#b": "lda"},
        {5: "lda"},
        5,
        [None],
        [lambda *a: a[0]],
        [lambda s, y, n, r: [np.full((x.n_obs, n), np.nan) for x in s]],
        [lambda s, y, n, r: None],
        ["random_forest"],
        {"": "lda"},
    ],
    "table": [
        "nowhere.tsv",
        "text.stx",
        "",
        5,
        None,
        pd.DataFrame(),
        pd.DataFrame({"gene_name": [None, 3]}),
        {},
        [],
        pd.DataFrame({"gene_name": ["GENE1"] * 3, "drug_name": [1, None, "x"]}),
        pd.DataFrame({"a": ["x"]}),
    ],
    "net": [
        SETS,
        SETS.assign(weight=[1.0, np.nan, np.inf, "x", None, 0] * 2),
        SETS.assign(weight=0.0),
        SETS[["source"]],
        SETS.assign(target="nope"),
        {"a": SETS, 5: SETS},
        {"a/b": SETS},
        {"": SETS},
        {"contact": SETS},
        "nowhere.gmt",
        "text.stx",
        SETS.assign(source=None),
        SETS.iloc[:3],
        pd.concat([SETS, SETS]),
        {"a": 5},
    ],
    "resource": [
        "consensus",
        "nope",
        pairs().assign(ligand=None),
        pairs()[["ligand"]],
        pairs().iloc[:0],
        "nowhere.csv",
        pairs().assign(ligand="GENE1__GENE2"),
        pairs().assign(receptor=5),
        pd.concat([pairs(), pairs()]),
        pairs().assign(ligand="", receptor=""),
        pairs().assign(receptor=lambda t: t["ligand"]),
    ],
    "checkpoint": ["rows", "text.stx", "no/rows", "", 5, "a\0b"],
    "storage": ["nope", 5, "", [], "sqlite:////no/where/x.db", True, {}],
    "space": [
        {},
        {"nope": [1]},
        {"width": []},
        {"width": 5},
        {"width": ["a"]},
        {"lr": [-1.0]},
        5,
        "x",
        [],
        {5: [1]},
        {"width": [None]},
        {"lr": [float("nan")]},
    ],
    "stages": [5, "x", {}, {"nope": {}}, {"segment": 5}, {"segment": {"nope": 1}}],
    "landmarks": [
        5,
        {},
        {"one": [[0, 0]]},
        {"one": "x", "two": "y"},
        {"nope": [[0, 0], [1, 1], [2, 0]]},
        {"one": np.zeros((3, 2)), "two": np.zeros((3, 2))},
        {"one": np.eye(3), "two": np.eye(3)},
    ],
    "ax": ["ax", 5, [], {}, object(), None],
    "palette": ["nope", ["red"], [], {}, {"a": "red"}, ["notacolour"], 5, {"0": "x"}, "viridis", [5]],
    "cmap": ["nope", 5, None, "", [], "viridis"],
    "title": [5, [], ["a"], ["a"] * 9, None, "", {}, "x" * 500, "$\\frac$"],
    "save": ["no/folder/f.png", "f.nope", ".", 5, "", "a\0b", "f.png"],
    "show": [True, False, None, 5, "yes"],
    "size": [0, -1, 1e9, float("nan"), float("inf"), "x", None, [1], 1e-9, True],
    "vmax": [0, -1, float("nan"), float("inf"), "x", 1e30, [1]],
    "groups": ["nope", [], ["nope"], ["healthy"], ["healthy", "healthy"], 5, None, {}, [5], "all"],
    "genes": [0, -1, 30, 10**6, [], ["nope"], ["GENE1", "GENE1"], 1.5, "GENE1", True, [5]],
    "expression": [[], ["nope"], ["GENE1", "GENE1"], "GENE1", 5, [5], [f"GENE{i}" for i in range(30)]],
    "shares": [[], [0.0], [1.5], [-1], ["x"], 5, 0.5, [float("nan")], [0.2, 0.2]],
    "methods": [[], ["nope"], "attention", 5, ["random", "random"], None],
    "noise": [-0.1, 1.1, [], "x", [0.1, 0.1], float("nan"), [None], True, [0.0, 2]],
    "sample": ["nope", "", "../x", 5, None, "a\\b", "a\0b", b"x", "x" * 4000],
    "n_obs": [0, -1, 1, 2, 5, 1.5, "x", float("nan"), True],
    "n_vars": [0, -1, 1, 2, 5, 1.5, "x", float("nan"), True],
    "show_progress": [None, "yes", 5, 0, float("nan")],
    "random_state": [-1, 2**32, 2**64, 1.5, "x", None, True, np.random.default_rng(0), [1]],
}
# more work is no fault: these get no number that only asks for much
_WORK = {
    "n_null",
    "n_seeds",
    "n_trials",
    "max_regions",
    "n_patients",
    "sections_per_patient",
    "n_compartments",
    "patience",
}


def hostile_values(call: Call, parameter: str) -> list[Any]:
    """Return hostile values of a parameter: general ones, and ones made for it."""
    special = SPECIAL.get(parameter, [])
    general = [v for v in GENERAL if not (parameter in _WORK and isinstance(v, (int, float)) and v > 10)]
    if parameter in {"devices", "save_model", "n_obs", "n_vars", "save"}:
        return special
    return [*special, *special, *general, *_choices(call, parameter)]


def _choices(call: Call, parameter: str) -> list[Any]:
    """Return the words that a parameter's type names, and one that it does not."""
    found = inspect.signature(call.function).parameters[parameter].annotation
    text = found if isinstance(found, str) else str(found)
    if "Literal[" not in text:
        return []
    words = text.split("Literal[")[1].split("]")[0]
    chosen = [w.strip().strip("'\"") for w in words.split(",")]
    return [*chosen, chosen[0].upper(), f" {chosen[0]}"]


NO_ADATA: list[Any] = [
    None, 5, "x", [], {}, np.zeros((4, 4)), pd.DataFrame({"a": [1]}), ad.AnnData, object(),
    [ad.AnnData(np.ones((3, 2)))],
]  # fmt: skip
