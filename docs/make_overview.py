"""Draw the README's figure: ``python docs/make_overview.py`` (needs the section dlpfc_151673)."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

import stxtools as st


def main() -> None:
    adata = st.datasets.dlpfc("151673")
    st.tl.segment(adata)
    st.tl.region_graph(adata)
    st.tl.embed(adata)
    st.tl.biomarkers(adata, "layer")
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), width_ratios=[1.1, 1.1, 1], layout="constrained")
    st.pl.segment(adata, ax=axes[0], title="st.pl.segment")
    st.pl.attention(adata, ax=axes[1], title="st.pl.attention")
    st.pl.biomarkers(adata, group="WM", ax=axes[2], n_genes=10, title="st.pl.biomarkers")
    path = Path(__file__).parent / "_static" / "overview.png"
    figure.savefig(path, dpi=150)
    flat = Image.open(path).convert("RGB")
    flat.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
