"""Fixtures: real sections where they are available, small generated ones everywhere."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small networks train twice as fast on one thread

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

mpl.use("Agg")

DATA = Path(os.environ.get("STXTOOLS_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def _no_figures_left() -> Iterator[None]:
    """Close what a test drew."""
    yield
    plt.close("all")


@pytest.fixture
def real_section() -> Callable[[str], ad.AnnData]:
    """Return a reader of real sections that skips the test where the file is absent."""

    def read(name: str) -> ad.AnnData:
        path = DATA / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"real section {name!r} is not in {DATA} (set STXTOOLS_TEST_DATA)")
        return ad.read_h5ad(path)

    return read


def _lattice(kind: str, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    r, c = (a.ravel() for a in np.mgrid[:rows, :cols])
    if kind == "hex":
        return np.c_[(2 * c + r % 2) * 50.0, r * 50.0 * np.sqrt(3)], np.c_[r, 2 * c + r % 2]
    return np.c_[c * 100.0, r * 100.0], np.c_[r, c]


def _make(
    kind: str = "hex", rows: int = 16, cols: int = 14, n_vars: int = 30, seed: int = 0, libraries: int = 1
) -> ad.AnnData:
    """Make counts of three bands of tissue, on a lattice or scattered."""
    rng = np.random.default_rng(seed)
    parts = []
    for library in range(libraries):
        if kind == "scattered":
            xy = rng.uniform(0, [cols * 100.0, rows * 100.0], size=(rows * cols, 2))
            array = None
        else:
            xy, array = _lattice(kind, rows, cols)
        band = np.minimum((3 * xy[:, 1] / (xy[:, 1].max() + 1)).astype(int), 2)
        rate = np.full((3, n_vars), 1.0)
        for k in range(3):
            rate[k, k * n_vars // 3 : (k + 1) * n_vars // 3] = 5.0
        counts = rng.poisson(rate[band] * rng.gamma(8, 1 / 8, size=(len(xy), 1)))
        part = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
        part.obs_names = [f"l{library}_o{i}" for i in range(part.n_obs)]
        part.var_names = [f"gene{i}" for i in range(n_vars)]
        part.obs["band"] = np.array(["a", "b", "c"], dtype=object)[band]
        part.obs["library"] = f"lib{library}"
        part.obsm["spatial"] = xy
        if array is not None:
            part.obs["array_row"], part.obs["array_col"] = array[:, 0], array[:, 1]
        parts.append(part)
    out = ad.concat(parts)
    for key in ("band", "library"):
        out.obs[key] = out.obs[key].astype("category")
    return out


@pytest.fixture
def make_section() -> Callable[..., ad.AnnData]:
    """Return the maker of small sections."""
    return _make


@pytest.fixture(scope="session")
def generated() -> Callable[..., ad.AnnData]:
    """Return a maker of synthetic tissue: each is generated once and copied."""
    import stxtools as st

    make = functools.cache(functools.partial(st.datasets.synthetic_tissue, show_progress=False))
    return lambda *args, **kwargs: make(*args, **kwargs).copy()


def grid_positions(cols: int, rows: int | None = None) -> np.ndarray:
    """Positions (x, y) of a square lattice, row by row."""
    return np.stack(np.meshgrid(np.arange(cols), np.arange(rows or cols)), axis=-1).reshape(-1, 2).astype(float)


def poisson_section(rate: np.ndarray, xy: np.ndarray, rng: np.random.Generator, **obs: Any) -> ad.AnnData:
    """Make a section of Poisson counts: observations o0, o1, ..., genes g0, g1, ..., and columns of ``obs``."""
    out = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    out.obs_names, out.var_names = [f"o{i}" for i in range(out.n_obs)], [f"g{i}" for i in range(out.n_vars)]
    out.obsm["spatial"] = xy
    for key, values in obs.items():
        out.obs[key] = (
            values if np.ndim(values) == 0 or np.asarray(values).dtype.kind == "f" else pd.Categorical(values)
        )
    return out


def null_regions(adata: ad.AnnData, n: int) -> Iterator[None]:
    """Write smooth random regions of 30 % into ``obs["null"]``, one after the other: fields of random frequencies."""
    rng = np.random.default_rng(0)
    xy = np.asarray(adata.obsm["spatial"], dtype=float)
    for _ in range(n):
        frequency = rng.standard_normal((200, 2)) / (0.3 * xy.std(axis=0).mean())
        value = np.cos(xy @ frequency.T + rng.uniform(0, 2 * np.pi, 200)).sum(axis=1)
        adata.obs["null"] = pd.Categorical(np.where(value > np.quantile(value, 0.7), "in", "out"))
        yield


ON_CPU: dict[str, Any] = {"show_progress": False, "accelerator": "cpu"}
QUICK_UNET = {"width": 8, "epochs": 6, "pretrain_epochs": 1, "steps_per_epoch": 4, "sigmas": (0.0, 1.0)}
QUICK_NET = {"hidden": 8, "out_channels": 8, "heads": 2, "epochs": 3, "unet_width": 4}


@pytest.fixture
def quick_unet() -> dict[str, object]:
    """Parameters of a U-Net that trains in a second."""
    return dict(QUICK_UNET)


@pytest.fixture
def quick_net() -> dict[str, object]:
    """Parameters of a TissueNet that trains in half a second: it grows no trees."""
    return QUICK_NET | {"ensemble": ("network", "linear")}


@pytest.fixture(scope="session")
def _line() -> ad.AnnData:
    """Two small sections after segment, region_graph and embed; made once."""
    import stxtools as st

    adata = _make(libraries=2)
    how = {"show_progress": False, "accelerator": "cpu"}
    st.tl.segment(adata, n_segments=3, library_key="library", params=QUICK_UNET, **how)
    st.tl.region_graph(adata, max_size=20)
    st.tl.embed(adata, params=QUICK_NET, **how)
    return adata


@pytest.fixture
def line(_line: ad.AnnData) -> ad.AnnData:
    """Return two small sections after segment, region_graph and embed."""
    return _line.copy()


def assert_same(a: object, b: object, where: str = "") -> None:
    """Check that two slots are equal, whatever their type."""
    if isinstance(a, ad.AnnData):
        assert isinstance(b, ad.AnnData), where
        assert_same(a.X, b.X, f"{where}.X")
        for slot in ("obs", "var"):
            assert_same(getattr(a, slot), getattr(b, slot), f"{where}.{slot}")
        for slot in ("obsm", "varm", "obsp", "layers", "uns"):
            assert_same(dict(getattr(a, slot)), dict(getattr(b, slot)), f"{where}.{slot}")
    elif hasattr(a, "keys") and not isinstance(a, pd.DataFrame):
        assert set(a) == set(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b, obj=where)
    elif sparse.issparse(a):
        assert a.shape == b.shape, where
        assert a.dtype == b.dtype, where
        assert (a != b).nnz == 0, where
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, np.asarray(b), err_msg=where)
    else:
        assert a == b, where


def read_back(adata: ad.AnnData, folder: Path) -> tuple[ad.AnnData, ad.AnnData]:
    """Write ``.h5ad`` and ``.zarr`` files, and read them."""
    adata.write_h5ad(folder / "a.h5ad")
    adata.write_zarr(folder / "a.zarr")
    return ad.read_h5ad(folder / "a.h5ad"), ad.read_zarr(folder / "a.zarr")


class InMemory:
    """Expression of one section in ``n_blocks`` blocks of genes."""

    def __init__(self, matrix: sparse.csr_matrix, n_blocks: int = 1) -> None:
        self.matrix, self.shape = matrix, matrix.shape
        ends = np.linspace(0, matrix.shape[1], n_blocks + 1).astype(int)
        self.slices = [slice(start, stop) for start, stop in pairwise(ends)]
        self.signed = bool(matrix.data.min() < 0)

    def block(self, genes: slice) -> sparse.csr_matrix:
        return self.matrix[:, genes]

    def rows(
        self, genes: np.ndarray | None = None, within: np.ndarray | None = None
    ) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        matrix = self.matrix if within is None else self.matrix[within]
        yield slice(0, self.shape[0]), matrix if genes is None else matrix[:, genes]


class _Stop(Exception):
    """Ends a call at its model; carries the sections that the model was given."""


def sections_read(model: type, method: str, call: Callable[[], object]) -> list[Any]:
    """Return the sections that ``call`` gives to ``model.method``, and end the call there."""

    def stop(self: Any, sections: list[Any], **kwargs: Any) -> None:
        raise _Stop(sections)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, method, stop)
        with pytest.raises(_Stop) as stopped:
            call()
    return stopped.value.args[0]


def region_effects(
    values: np.ndarray,
    xy: np.ndarray,
    regions: Sequence[np.ndarray],
    n_null: int,
    seeds: Sequence[int] | None = None,
    covariates: Any = None,
    n_genes: np.ndarray | None = None,
    n_blocks: int = 1,
) -> list[Any]:
    """Test regions of one section (observations x genes) against the rest of it."""
    from stxtools.stats._composition import Covariates
    from stxtools.stats._region_test import Contrast, SectionView, compare_regions

    covariates = Covariates() if covariates is None else covariates
    matrix = sparse.csr_matrix(values.astype(np.float32))
    view = SectionView(InMemory(matrix, n_blocks), np.arange(len(xy)), xy, 0, None, covariates, n_genes)
    seeds = [0] * len(regions) if seeds is None else seeds
    given = (covariates.composition,)
    contrasts = [Contrast(view, label, n_null, (i,), given) for label, i in zip(regions, seeds, strict=True)]
    compare_regions(contrasts)
    return [contrast.effects[0] for contrast in contrasts]
