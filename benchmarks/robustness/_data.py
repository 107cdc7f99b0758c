"""Two small sections, fresh and after the whole pipeline, and faults of a user's data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

import stxtools as st

QUICK: dict[str, Any] = {"width": 4, "epochs": 1, "pretrain_epochs": 1, "steps_per_epoch": 1, "sigmas": (0.0, 1.0)}
QUICK_NET: dict[str, Any] = {
    "hidden": 4, "out_channels": 4, "heads": 2, "epochs": 1, "pretrain_epochs": 1, "unet_width": 2, "unet_depth": 1,
    "neighbours": (1, 7), "spot_width": 4,
}  # fmt: skip
UNET = {k: v for k, v in QUICK.items() if k not in {"width", "sigmas"}}  # the rest is tuned
HOW: dict[str, Any] = {"accelerator": "cpu", "show_progress": False}
N_GENES, ROWS, COLUMNS = 30, 8, 7


def fresh() -> ad.AnnData:
    """Generate counts of two sections of 56 spots each: three bands of tissue, two disease states."""
    rng = np.random.default_rng(0)
    r, c = (a.ravel() for a in np.mgrid[:ROWS, :COLUMNS])
    parts = []
    for name, shift in (("one", 0.0), ("two", 3000.0)):
        xy = np.c_[(2 * c + r % 2) * 50.0 + shift, r * 50.0 * np.sqrt(3)]
        band = np.minimum(3 * r // ROWS, 2)
        rate = np.full((3, N_GENES), 1.0)
        for k in range(3):
            rate[k, k * 10 : (k + 1) * 10] = 6.0
        part = ad.AnnData(sparse.csr_matrix(rng.poisson(rate[band]).astype(np.float32)))
        part.obs_names = [f"{name}_{i}" for i in range(part.n_obs)]
        part.obs["band"] = pd.Categorical.from_codes(band, ["a", "b", "c"])
        part.obs["disease"] = pd.Categorical.from_codes((c > 3).astype(int), ["healthy", "diseased"])
        part.obs["library"] = pd.Categorical([name] * part.n_obs, categories=["one", "two"])
        part.obs["patient"], part.obs["day"] = "both", float(name == "two")
        part.obs["score"] = rng.normal(size=part.n_obs)
        part.obs["array_row"], part.obs["array_col"] = r, 2 * c + r % 2
        part.obsm["spatial"] = xy
        parts.append(part)
    out = ad.concat(parts)
    out.var_names = [f"GENE{i}" for i in range(N_GENES)]
    out.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(N_GENES)]
    out.obsm["X_pca"] = rng.normal(size=(out.n_obs, 5)).astype(np.float32) + 3 * np.eye(5)[out.obs["band"].cat.codes]
    out.uns["note"] = {"by": "the user", "values": np.arange(3)}
    return out


def finished(folder: Path) -> ad.AnnData:
    """Run all calls on them; write a model file of each kind into ``folder``."""
    out = fresh()
    st.pp.normalize(out, n_comps=5)
    st.pp.rasterize(out, library_key="library")
    st.tl.segment(out, 3, library_key="library", params=QUICK, save_model=folder / "segmenter.stx", **HOW)
    st.tl.pretrain(out, library_key="library", params=QUICK, save_model=folder / "pretrained.stx", **HOW)
    st.tl.region_graph(out, max_size=12, library_key="library")
    st.tl.multitask(out, "disease", "band", params=QUICK_NET, save_model=folder / "net.stx", **HOW)
    st.tl.distill(out, folder / "net.stx", params={"epochs": 1}, save_model=folder / "net_student.stx", **HOW)
    st.tl.embed(out, params=QUICK_NET, key_added="embed", **HOW)
    st.tl.attention_fidelity(out, folder / "net.stx", of="network", max_regions=2, shares=(0.5,), show_progress=False)
    st.tl.suggest_labels(out, 3, library_key="library")
    st.tl.biomarkers(out, "band", n_null=50, library_key="library", protect=None, show_progress=False)
    st.tl.describe(out, "band", resource=pairs(), n_null=50, library_key="library", show_progress=False)
    st.tl.compare(out, "library", "library", groupby="band", library_key="library")
    st.tl.trends(out, "day", subject_key="library", groupby="band", library_key="library")
    st.tl.track(out, "day", show_progress=False)
    st.tl.targets(out, drugs())
    st.tl.evaluate(out, ["lda", "nearest_label"], region_key="band", n_folds=2, n_seeds=1, library_key="library", **HOW)
    st.tl.tune(out, "unet", region_key="band", library_key="library", n_folds=2, max_folds=1, n_trials=2,
               search="random", space={"width": [2, 4], "lr": [1e-3, 1e-2]}, params=UNET, **HOW)  # fmt: skip
    return out


def drugs() -> pd.DataFrame:
    """Return a table of drug-gene interactions."""
    return pd.DataFrame({"gene_name": ["GENE1", "GENE12"], "drug_name": ["A", "B"]})


def pairs() -> pd.DataFrame:
    """Return pairs of ligand and receptor, one of them a complex."""
    return pd.DataFrame({"ligand": ["GENE1", "GENE12", "GENE3_GENE4"], "receptor": ["GENE11", "GENE22", "GENE13"]})


@dataclass(frozen=True)
class Change:
    """One fault of data: its kind, its name, and the function that makes it."""

    kind: str
    name: str
    apply: Callable[[ad.AnnData, np.random.Generator, Path], Any]
    needs_results: bool = False


CHANGES: list[Change] = []


def change(kind: str, name: str = "", *, needs_results: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Register a change under its function's name."""

    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        CHANGES.append(Change(kind, name or function.__name__.replace("_", " "), function, needs_results))
        return function

    return keep


# ---------------------------------------------------------------- matrix and dtype

MATRIX, VALUES, SIZE = "matrix and type", "values", "size"
POSITIONS, NAMES, ANNOTATIONS = "coordinates", "names", "annotations"
RESULTS = "earlier results, foreign content"


def _as(make: Callable[[sparse.csr_matrix], Any]) -> Callable[..., Any]:
    def apply(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
        a.X = make(sparse.csr_matrix(a.X))
        return a

    return apply


def _dask(x: sparse.csr_matrix) -> Any:
    import dask.array as da

    return da.from_array(x.toarray(), chunks=(20, x.shape[1]))


for _name, _make in {
    "csc": lambda x: x.tocsc(),
    "csr array": sparse.csr_array,
    "csc array": sparse.csc_array,
    "dense": lambda x: x.toarray(),
    "dense float64": lambda x: x.toarray().astype(np.float64),
    "column order": lambda x: np.asfortranarray(x.toarray()),
    "float16": lambda x: x.toarray().astype(np.float16),
    "float64 sparse": lambda x: x.astype(np.float64),
    "int8": lambda x: x.toarray().astype(np.int8),
    "int32 sparse": lambda x: x.astype(np.int32),
    "int64": lambda x: x.toarray().astype(np.int64),
    "uint16 sparse": lambda x: x.astype(np.uint16),
    "uint64": lambda x: x.toarray().astype(np.uint64),
    "boolean": lambda x: x.toarray() > 1,
    "boolean sparse": lambda x: (x > 1).tocsr(),
    "big-endian": lambda x: x.toarray().astype(">f4"),
    "object": lambda x: x.toarray().astype(object),
    "complex": lambda x: x.toarray().astype(np.complex64),
    "long double": lambda x: x.toarray().astype(np.longdouble),
    "masked": lambda x: np.ma.masked_equal(x.toarray(), 3),
    "dask": _dask,
    "matrix": lambda x: np.asarray(np.asmatrix(x.toarray())),
    "no X": lambda x: None,
}.items():
    change(MATRIX, _name)(_as(_make))


@change(MATRIX)
def unsorted_indices(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    x = sparse.csr_matrix(a.X)
    for i in range(x.shape[0]):
        at = slice(x.indptr[i], x.indptr[i + 1])
        x.indices[at], x.data[at] = x.indices[at][::-1].copy(), x.data[at][::-1].copy()
    x.has_sorted_indices = False
    a.X = x
    return a


@change(MATRIX)
def stored_zeros(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    x = sparse.csr_matrix(a.X)
    x.data[::3] = 0
    a.X = x
    return a


@change(MATRIX)
def backed(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    path = folder / "backed.h5ad"
    a.write_h5ad(path)
    return ad.read_h5ad(path, backed="r")


@change(MATRIX)
def view(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    return a[: a.n_obs - 3]


@change(MATRIX)
def read_only(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    a.X = sparse.csr_matrix(a.X)
    a.X.data.flags.writeable = False
    a.obsm["spatial"].flags.writeable = False
    return a


# ---------------------------------------------------------------- values


def _dense(a: ad.AnnData) -> np.ndarray:
    return np.asarray(sparse.csr_matrix(a.X).toarray(), dtype=np.float64)


def _set(make: Callable[[np.ndarray, np.random.Generator], Any]) -> Callable[..., Any]:
    def apply(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
        found = make(_dense(a), rng)
        a.X = sparse.csr_matrix(found.astype(np.float32)) if rng.random() < 0.5 else found.astype(np.float32)
        if "counts" in a.layers and rng.random() < 0.7:
            del a.layers["counts"]
        return a

    return apply


def _put(value: float, share: float = 0.0) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def make(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        at = rng.random(x.shape) < share
        at.flat[rng.integers(x.size)] = True
        x[at] = value
        return x

    return make


def _rows(value: float, axis: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def make(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        at = rng.choice(x.shape[axis], max(1, x.shape[axis] // 4), replace=False)
        np.moveaxis(x, axis, 0)[at] = value
        return x

    return make


for _name, _values in {
    "one NaN": _put(np.nan),
    "many NaN": _put(np.nan, 0.3),
    "a gene all NaN": _rows(np.nan, 1),
    "one infinite": _put(np.inf),
    "one -infinite": _put(-np.inf),
    "one negative": _put(-1.0),
    "scaled": lambda x, rng: (x - x.mean(0)) / (x.std(0) + 1e-9),
    "all zero": lambda x, rng: x * 0,
    "all one": lambda x, rng: x * 0 + 1,
    "empty observations": _rows(0.0, 0),
    "empty genes": _rows(0.0, 1),
    "one entry": lambda x, rng: _put(5.0)(x * 0, rng),
    "one huge": _put(1e30),
    "beyond float32": _put(1e39),
    "huge": lambda x, rng: x * 1e30,
    "tiny": lambda x, rng: x * 1e-30,
    "halves": lambda x, rng: x + 0.5,
    "logarithms": lambda x, rng: np.log1p(x),
    "log2": lambda x, rng: np.log2(x + 1),
    "logarithms twice": lambda x, rng: np.log1p(np.log1p(x)),
    "one large count": _put(2.0**31),
    "equal rows": lambda x, rng: np.tile(x[:1], (len(x), 1)) if len(x) else x,
    "noise": lambda x, rng: rng.poisson(2, x.shape),
}.items():
    change(VALUES, _name)(_set(_values))


# ---------------------------------------------------------------- size

for _n in (0, 1, 2, 3, 8):
    change(SIZE, f"{_n} observations")(lambda a, rng, folder, n=_n: a[:n].copy())
    change(SIZE, f"{_n} genes")(lambda a, rng, folder, n=_n: a[:, :n].copy())


@change(SIZE)
def one_observation_of_a_section(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    return a[: a.n_obs // 2 + 1].copy()


# ---------------------------------------------------------------- coordinates


def _at(make: Callable[[np.ndarray, np.random.Generator], Any]) -> Callable[..., Any]:
    def apply(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
        a.obsm["spatial"] = make(np.array(a.obsm["spatial"], dtype=np.float64), rng)
        return a

    return apply


for _name, _place in {
    "one NaN": lambda p, rng: np.where(np.arange(p.size).reshape(p.shape) == 3, np.nan, p),
    "one infinite": lambda p, rng: np.where(np.arange(p.size).reshape(p.shape) == 3, np.inf, p),
    "all NaN": lambda p, rng: p * np.nan,
    "all equal": lambda p, rng: p * 0 + 7,
    "on a line": lambda p, rng: np.c_[p[:, 0], p[:, 0]],
    "on a vertical line": lambda p, rng: np.c_[p[:, 0] * 0, np.arange(len(p))],
    "some twice": lambda p, rng: np.where(np.arange(len(p))[:, None] % 5 == 0, p[:1], p),
    "two sections in one place": lambda p, rng: np.c_[p[:, 0] % 3000, p[:, 1]],
    "huge": lambda p, rng: p * 1e30,
    "beyond float32": lambda p, rng: p * 1e300,
    "far away": lambda p, rng: p + 1e9,
    "too far away": lambda p, rng: p + 1e18,
    "negative": lambda p, rng: -p,
    "tiny": lambda p, rng: p * 1e-12,
    "below float32": lambda p, rng: p * 1e-300,
    "one far out": lambda p, rng: np.vstack([p[:-1], [[1e9, 1e9]]]) if len(p) else p,
    "stretched": lambda p, rng: p * [1e6, 1e-3],
    "3-D, z constant": lambda p, rng: np.c_[p, np.full(len(p), 4.0)],
    "3-D": lambda p, rng: np.c_[p, np.arange(len(p)) % 3 * 10.0],
    "one column": lambda p, rng: p[:, :1],
    "no column": lambda p, rng: p[:, :0],
    "integers": lambda p, rng: p.astype(int),
    "8-bit": lambda p, rng: p.astype(np.uint8),
    "float16": lambda p, rng: p.astype(np.float16),
    "text": lambda p, rng: p.astype(str),
    "objects": lambda p, rng: p.astype(object),
    "complex": lambda p, rng: p.astype(complex),
    "masked": lambda p, rng: np.ma.masked_less(p, 100),
    "boolean": lambda p, rng: p > 300,
    "sparse": lambda p, rng: sparse.csr_matrix(p),
    "scattered": lambda p, rng: rng.uniform(0, 800, p.shape),
    "rotated": lambda p, rng: p @ np.array([[0.8, -0.6], [0.6, 0.8]]),
    "shuffled": lambda p, rng: rng.permutation(p),
}.items():
    change(POSITIONS, _name)(_at(_place))


@change(POSITIONS)
def none_at_all(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    del a.obsm["spatial"]
    return a


@change(POSITIONS)
def data_frame(a: ad.AnnData, rng: np.random.Generator, folder: Path) -> Any:
    a.obsm["spatial"] = pd.DataFrame(a.obsm["spatial"], index=a.obs_names, columns=["x", "y"])
    return a
