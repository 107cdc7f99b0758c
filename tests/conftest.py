"""Fixtures: real sections where they are at hand, small generated ones everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pytest
from scipy import sparse

mpl.use("Agg")

_DATA = Path(os.environ.get("STXTOOLS_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture
def real_section() -> Callable[[str], ad.AnnData]:
    """Return a reader of real sections that skips the test where the file is absent."""

    def read(name: str) -> ad.AnnData:
        path = _DATA / f"{name}.h5ad"
        if not path.exists():
            pytest.skip(f"real section {name!r} is not in {_DATA} (set STXTOOLS_TEST_DATA)")
        return ad.read_h5ad(path)

    return read


def _lattice(kind: str, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    r, c = (a.ravel() for a in np.mgrid[:rows, :cols])
    if kind == "hex":
        return np.c_[(2 * c + r % 2) * 50.0, r * 50.0 * np.sqrt(3)], np.c_[r, 2 * c + r % 2]
    return np.c_[c * 100.0, r * 100.0], np.c_[r, c]


@pytest.fixture
def make_section() -> Callable[..., ad.AnnData]:
    """Return a maker of small sections: counts of three bands of tissue, on a lattice or scattered."""

    def make(
        kind: str = "hex", rows: int = 16, cols: int = 14, n_vars: int = 30, seed: int = 0, libraries: int = 1
    ) -> ad.AnnData:
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

    return make
