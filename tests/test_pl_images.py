"""Image comparison of the main plots with small stored images, with a tolerance for fonts and versions.

After an intended change, look at the new images and store them:
``STXTOOLS_WRITE_IMAGES=1 python -m pytest tests/test_pl_images.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_pl_spatial import _write_results

import stxtools as st

STORED = Path(__file__).parent / "images"
WRITE = bool(os.environ.get("STXTOOLS_WRITE_IMAGES"))
DPI = 40
TOLERANCE = 12.0  # root mean square of the difference, of 255: fonts and line widths of other versions stay below


@pytest.fixture(autouse=True)
def _plain_figures() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rcdefaults()
        yield
    plt.close("all")


def write_tables(adata: ad.AnnData) -> ad.AnnData:
    """Write the tables of tl.biomarkers, tl.targets, tl.evaluate and tl.attention_fidelity by hand."""
    rng = np.random.default_rng(0)
    n = adata.n_vars
    change = np.linspace(2.5, -2.5, n)
    p = 10.0 ** -(3 * np.abs(change) * rng.uniform(0.5, 1, n))
    adata.uns["biomarkers"] = pd.DataFrame({
        "group": "tumour", "names": adata.var_names.to_numpy(), "scores": change, "logfoldchanges": change,
        "auroc": 1 / (1 + np.exp(-change)), "pvals": p, "pvals_adj": np.minimum(5 * p, 1),
        "pct_nz_group": rng.uniform(0.2, 1, n), "n_libraries": 1, "n_drugs": rng.integers(0, 3, n),
        "isInMembrane": rng.integers(0, 2, n).astype(float), "hasSafetyEvent": np.where(np.arange(n) % 3, np.nan, -1.0),
    })  # fmt: skip
    adata.uns["evaluation"] = pd.DataFrame([
        {"model": m, "target": "region", "scheme": s, "leaky": s == "random", "noise": noise, "seed": seed, "fold": 0,
         "accuracy": best - 2 * noise * (m == "lda") + 0.05 * rng.random(), "precision": 0.5, "recall": 0.5,
         "auroc": 0.9, "mse": np.nan}
        for m, best in (("lda", 0.8), ("nearest_label", 0.7), ("tissuenet", 0.9)) for s in ("blocks", "random")
        for noise in (0.0, 0.1) for seed in range(3)
    ])  # fmt: skip
    adata.uns["attention_fidelity"] = {"table": pd.DataFrame([
        {"unit": u, "method": m, "mode": mode, "share": s, "change": s * (1 + i), "flipped": s / 2}
        for u in ("edges", "regions") for i, m in enumerate(("attention", "random"))
        for mode in ("remove", "keep") for s in (0.2, 0.4)
    ])}  # fmt: skip
    return adata


@pytest.fixture
def adata(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return write_tables(_write_results(make_section(libraries=2), "library"))


PLOTS: dict[str, Callable[[ad.AnnData], object]] = {
    "segment": lambda a: st.pl.segment(a, scale_bar=1.0),
    "region_graph": lambda a: st.pl.region_graph(a, library="lib0"),
    "attention": lambda a: st.pl.attention(a, library="lib0", color="attention"),
    "inside_axes": lambda a: st.pl.attention(a, library="lib0", ax=plt.subplots(figsize=(5, 4))[1]),
    "ranked": lambda a: st.pl.biomarkers(a, n_genes=8),
    "volcano": lambda a: st.pl.biomarkers(a, kind="volcano", n_genes=8),
    "evaluation": lambda a: st.pl.evaluation(a, "accuracy"),
    "robustness": lambda a: st.pl.robustness(a),
    "targets": lambda a: st.pl.targets(a, n_genes=8),
}


def _image(axes: object, path: Path) -> Image.Image:
    first = axes[0] if isinstance(axes, list) else axes
    first.figure.savefig(path, dpi=DPI)  # the whole figure: what is cut off shows
    return Image.open(path).convert("RGB")


def _difference(a: Image.Image, b: Image.Image) -> float:
    """Root mean square of the difference; pictures of nearly the same size are brought to one."""
    assert np.allclose(a.size, b.size, atol=4), f"the figure has another size: {a.size}, stored {b.size}"
    values = [np.asarray(im.resize(b.size), dtype=float) for im in (a, b)]
    return float(np.sqrt(np.mean((values[0] - values[1]) ** 2)))


@pytest.mark.parametrize("name", PLOTS)
def test_plot_equals_the_stored_image(name: str, adata: ad.AnnData, tmp_path: Path) -> None:
    drawn = _image(PLOTS[name](adata), tmp_path / f"{name}.png")
    stored = STORED / f"{name}.png"
    if WRITE:
        STORED.mkdir(exist_ok=True)
        drawn.save(stored, optimize=True)
        pytest.skip(f"{stored} was written; look at it")
    found = _difference(drawn, Image.open(stored).convert("RGB"))
    assert found < TOLERANCE, f"{name} differs by {found:.1f} from {stored}; it is drawn in {tmp_path}"


def test_swapped_colors_exceed_the_tolerance(adata: ad.AnnData, tmp_path: Path) -> None:
    stored = Image.open(STORED / "segment.png").convert("RGB")
    adata.uns["segment_colors"] = ["#ff7f0e", "#1f77b4", "#279e68"]  # two classes swapped
    assert _difference(_image(PLOTS["segment"](adata), tmp_path / "a.png"), stored) > 2 * TOLERANCE
    assert sum(path.stat().st_size for path in STORED.iterdir()) < 300_000


def test_stored_images_belong_to_plots() -> None:
    assert {path.stem for path in STORED.iterdir()} == set(PLOTS)
