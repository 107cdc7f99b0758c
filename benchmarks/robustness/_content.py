"""Faults of names, annotations and results of earlier calls; importing this module registers them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from _data import ANNOTATIONS, NAMES, RESULTS, change
from scipy import sparse

# ---------------------------------------------------------------- names

ODD = ["", " ", ".", "..", "a/b", "_index", "é\u200b", "x" * 300, "1", "nan", "a\nb", "a\0b", "__categories", "#", ","]


def _renamed(axis: str, make: Callable[[list[str], np.random.Generator], Any]) -> Callable[..., Any]:
    def apply(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
        setattr(a, f"{axis}_names", make(list(getattr(a, f"{axis}_names")), rng))
        return a

    return apply


def _odd(names: list[str], rng: np.random.Generator) -> list[str]:
    for i in range(min(3, len(names))):
        names[i] = ODD[rng.integers(len(ODD))] + ("" if i == 0 else str(i))
    return names


for _axis in ("obs", "var"):
    for _name, _make in {
        "twice the same": lambda n, rng: [n[0] if n else ""] * min(2, len(n)) + n[2:],
        "all the same": lambda n, rng: ["x"] * len(n),
        "numbers": lambda n, rng: [str(i) for i in range(len(n))],
        "odd": _odd,
        "lower case": lambda n, rng: [s.lower() for s in n],
        "others": lambda n, rng: [f"other{i}" for i in range(len(n))],
        "reversed": lambda n, rng: n[::-1],
    }.items():
        change(NAMES, f"{_axis}_names: {_name}")(_renamed(_axis, _make))


@change(NAMES, "odd keys in obs and uns")
def _odd_keys(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    a.obs[ODD[rng.integers(len(ODD))]] = 1.0
    a.obs[5] = 2.0
    a.uns[ODD[rng.integers(len(ODD))]] = 3
    a.uns[7] = {"x": 1}
    return a


# ---------------------------------------------------------------- annotations


def _column(key: str, make: Callable[[pd.Series, np.random.Generator], Any]) -> Callable[..., Any]:
    def apply(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
        a.obs[key] = make(a.obs[key], rng)
        return a

    return apply


def _alternating(*names: Any) -> Callable[[pd.Series, np.random.Generator], Any]:
    return lambda s, rng: pd.Series([names[i % len(names)] for i in range(len(s))], index=s.index, dtype=object)


def _one_name(name: str) -> Callable[[pd.Series, np.random.Generator], Any]:
    return lambda s, rng: s.cat.rename_categories({s.cat.categories[0]: name})


_COLUMNS: dict[str, Callable[[pd.Series, np.random.Generator], Any]] = {
    "all missing": lambda s, rng: pd.Categorical([None] * len(s), categories=list(s.cat.categories)),
    "all missing, no category": lambda s, rng: np.full(len(s), np.nan),
    "some missing": lambda s, rng: s.where(rng.random(len(s)) < 0.5),
    "few known": lambda s, rng: s.where(rng.random(len(s)) < 0.06),
    "one class": lambda s, rng: pd.Categorical(["a"] * len(s)),
    "one of a class": lambda s, rng: pd.Categorical(["a", *["b"] * (len(s) - 1)][: len(s)]),
    "a class each": lambda s, rng: pd.Categorical([f"c{i}" for i in range(len(s))]),
    "numbers": lambda s, rng: rng.normal(size=len(s)),
    "integers": lambda s, rng: rng.integers(0, 3, len(s)),
    "large integers": lambda s, rng: rng.integers(0, 3, len(s)) * 2**40,
    "boolean": lambda s, rng: rng.random(len(s)) < 0.5,
    "nullable boolean": lambda s, rng: pd.array([True, False, None] * len(s), dtype="boolean")[: len(s)],
    "nullable integer": lambda s, rng: pd.array([1, 2, None] * len(s), dtype="Int64")[: len(s)],
    "nullable string": lambda s, rng: pd.array(["u", "v", None] * len(s), dtype="string")[: len(s)],
    "text": lambda s, rng: s.astype(str).astype(object),
    "1 and '1'": _alternating(1, "1"),
    "True and 'True'": _alternating(True, "True"),
    "numbers and text": _alternating(1.5, "x", None),
    "tuples": _alternating((1, 2), (3, 4)),
    "dates": lambda s, rng: pd.date_range("2026-01-01", periods=len(s)),
    "infinite": lambda s, rng: np.where(np.arange(len(s)) % 2, np.inf, 1.0),
    "unused categories": lambda s, rng: s.cat.add_categories(["z1", "z2"]),
    "ordered": lambda s, rng: s.cat.as_ordered(),
    "categories reversed": lambda s, rng: s.cat.reorder_categories(list(s.cat.categories)[::-1]),
    "categories of numbers": lambda s, rng: pd.Categorical(np.arange(len(s)) % 3),
    "shuffled": lambda s, rng: pd.Categorical(rng.permutation(s.to_numpy(dtype=object)), list(s.cat.categories)),
    "half a class": lambda s, rng: pd.Categorical(np.where(np.arange(len(s)) % 2, "h1", "h2")),
}
for _key in ("band", "disease", "library"):
    for _name, _make in _COLUMNS.items():
        change(ANNOTATIONS, f"{_key}: {_name}")(_column(_key, _make))
    for _odd_name in ODD:
        change(ANNOTATIONS, f"{_key}: a class named {_odd_name[:20]!r}")(_column(_key, _one_name(_odd_name)))

    @change(ANNOTATIONS, f"{_key}: gone")
    def _gone(a: ad.AnnData, rng: np.random.Generator, folder: Path, key: str = _key) -> Any:
        del a.obs[key]
        return a


# ---------------------------------------------------------------- earlier results, foreign content

FOREIGN: list[Any] = [
    None, 5, -1.5, "text", b"bytes", [], [1, "a"], {}, {"params": 5}, {"params": {}}, {"one": 5}, {"one": {}},
    {"one": {"images": 5, "scalefactors": {}}}, {"one": {"images": {"hires": np.zeros((4, 4, 3))}, "scalefactors": {}}},
    {"one": {"images": {"hires": np.zeros((4, 4))}, "scalefactors": {"tissue_hires_scalef": np.nan}}},
    {5: {"x": 1}}, np.arange(3), np.full((2, 2), np.nan), np.array(["a", "b"], dtype=object),
    pd.DataFrame(), pd.DataFrame({"a": [1.0, np.nan]}), np.zeros((0, 2)), True, ad.AnnData(np.zeros((2, 2))), object(),
]  # fmt: skip


@change(RESULTS, "foreign content in uns", needs_results=True)
def _foreign(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    keys = sorted({*map(str, a.uns), "spatial", "raster", "regions", "segment", "log1p", "pca", "biomarkers"})
    for _ in range(1 + rng.integers(2)):
        a.uns[keys[rng.integers(len(keys))]] = FOREIGN[rng.integers(len(FOREIGN))]
    return a


@change(RESULTS, "foreign content inside uns", needs_results=True)
def _foreign_inside(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    keys = [k for k, v in a.uns.items() if isinstance(v, dict) and v]
    chosen = a.uns[keys[rng.integers(len(keys))]]
    inner = list(chosen)[rng.integers(len(chosen))]
    if isinstance(chosen[inner], dict) and chosen[inner] and rng.random() < 0.5:
        chosen = chosen[inner]
        inner = list(chosen)[rng.integers(len(chosen))]
    if rng.random() < 0.4:
        del chosen[inner]
    else:
        chosen[inner] = FOREIGN[rng.integers(len(FOREIGN))]
    return a


@change(RESULTS, "a result is gone", needs_results=True)
def _result_gone(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    places = [(name, key) for name in ("obs", "obsm", "uns", "var", "layers") for key in list(getattr(a, name))]
    name, key = places[rng.integers(len(places))]
    del getattr(a, name)[key]
    return a


@change(RESULTS, "a table with other columns", needs_results=True)
def _table(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    keys = [k for k, v in a.uns.items() if isinstance(v, pd.DataFrame)]
    key = keys[rng.integers(len(keys))]
    table = a.uns[key].copy()
    column = table.columns[rng.integers(table.shape[1])]
    how = rng.integers(5)
    if how == 0:
        table = table.drop(columns=column)
    elif how == 1:
        table = table.iloc[:0]
    elif how == 2:
        table[column] = np.nan
    elif how == 3:
        table[column] = "text"
    else:
        table = table.sample(frac=0.5, random_state=0)
    a.uns[key] = table
    return a


@change(RESULTS, "regions changed", needs_results=True)
def _regions(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    key = next(k for k, v in a.uns.items() if isinstance(v, ad.AnnData))
    regions, how = a.uns[key].copy(), rng.integers(7)
    if how == 0:
        del regions.obs[regions.obs.columns[rng.integers(regions.obs.shape[1])]]
    elif how == 1 and len(regions.obsp.keys()):
        del regions.obsp[list(regions.obsp.keys())[rng.integers(len(regions.obsp))]]
    elif how == 2:
        regions = regions[: regions.n_obs // 2].copy()
    elif how == 3:
        regions = regions[::-1].copy()
    elif how == 4:
        regions.obs_names = [f"q{i}" for i in range(regions.n_obs)]
    elif how == 5:
        regions.obsm["spatial"] = np.asarray(regions.obsm["spatial"]) * np.nan
    else:
        regions.uns.clear()
    a.uns[key] = regions
    return a


@change(RESULTS, "observations left out", needs_results=True)
def _subset(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    return a[np.sort(rng.choice(a.n_obs, a.n_obs * 2 // 3, replace=False))].copy()


@change(RESULTS, "a section left out", needs_results=True)
def _section(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    return a[(a.obs["library"] == "two").to_numpy()].copy()


@change(RESULTS, "observations in another order", needs_results=True)
def _reordered(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    return a[rng.permutation(a.n_obs)].copy()


@change(RESULTS, "genes left out", needs_results=True)
def _genes(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    return a[:, rng.permutation(a.n_vars)[: a.n_vars * 2 // 3]].copy()


@change(RESULTS, "categories renamed", needs_results=True)
def _renamed_categories(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    keys = [
        k for k in a.obs.columns if isinstance(a.obs[k].dtype, pd.CategoricalDtype) and len(a.obs[k].cat.categories)
    ]
    key = "library" if rng.random() < 0.4 else keys[rng.integers(len(keys))]
    a.obs[key] = a.obs[key].cat.rename_categories(lambda n: f"{n}_new" if rng.random() < 0.7 else n)
    return a


@change(RESULTS, "a column of a result overwritten", needs_results=True)
def _overwritten(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    keys = [k for k in a.obs.columns if k not in {"band", "disease", "library", "score"}]
    key = keys[rng.integers(len(keys))]
    a.obs[key] = [
        np.arange(a.n_obs), np.full(a.n_obs, np.nan), ["x"] * a.n_obs, rng.random(a.n_obs) < 0.5,
        pd.Categorical(["u", "v"] * a.n_obs)[: a.n_obs],
    ][rng.integers(5)]  # fmt: skip
    return a


@change(RESULTS, "an embedding of another form")
def _embedding(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    keys = [k for k in a.obsm if k != "spatial"]
    key = keys[rng.integers(len(keys))]
    n = a.n_obs
    a.obsm[key] = [
        np.full((n, 5), np.nan), np.zeros((n, 0)), np.zeros((n, 1)), np.zeros((n, 5)), rng.normal(size=(n, 5)) * 1e30,
        rng.normal(size=(n, 5)).astype(np.float16), rng.integers(0, 9, (n, 5)), sparse.csr_matrix(np.eye(n, 5)),
        pd.DataFrame(rng.normal(size=(n, 3)), index=a.obs_names, columns=["a", "b", "c"]),
        pd.DataFrame({"a": ["t"] * n}, index=a.obs_names), np.where(np.eye(n, 5) > 0, np.inf, 1.0),
    ][rng.integers(11)]  # fmt: skip
    return a


@change(RESULTS, "layers of another form")
def _layer(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    x = sparse.csr_matrix(a.X).toarray()
    a.layers["counts"] = [x - 1, x + 0.5, x * np.nan, x * 0, x.astype(bool), x > 1e9, x.astype(object)][rng.integers(7)]
    return a


@change(RESULTS, "raw of other genes")
def _raw(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    x = sparse.csr_matrix(a.X).toarray()
    other = ad.AnnData(np.concatenate([x, x], axis=1) - (1 if rng.random() < 0.3 else 0), obs=a.obs[[]])
    a.raw = other
    if rng.random() < 0.5:
        a.X = (x - x.mean(0)) / (x.std(0) + 1e-6)
    return a
