"""Scale bars, and images that cannot be drawn."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib_scalebar.scalebar import ScaleBar

import stxtools as st


@pytest.mark.parametrize(
    ("foreign", "error"),
    [
        ({"images": {"hires": "photo.png"}, "scalefactors": {"tissue_hires_scalef": 1.0}}, ValueError),
        ({"images": {"hires": np.ones((4, 4, 7))}, "scalefactors": {"tissue_hires_scalef": 1.0}}, ValueError),
        ({"images": {"hires": np.ones((4, 4, 3))}, "scalefactors": {"tissue_hires_scalef": 0.0}}, ValueError),
        ({"images": {"hires": np.ones((4, 4, 3))}, "scalefactors": {"tissue_hires_scalef": "big"}}, ValueError),
        ({"images": 5, "scalefactors": [1]}, None),
        ("mine", None),
    ],
)
def test_unusable_images_raise_unless_img_is_false(
    foreign: object, error: type[Exception] | None, make_section: Callable[..., ad.AnnData]
) -> None:
    adata = make_section()
    adata.uns["spatial"] = {"s": foreign}
    if error is None:
        st.pl.segment(adata, "band")
        return
    with pytest.raises(error, match="img=False"):
        st.pl.segment(adata, "band")
    st.pl.segment(adata, "band", img=False)


def _microns_per_unit(ax: plt.Axes) -> float | None:
    """Microns of a unit of the coordinates, of the scale bar."""
    found = [artist.dx for artist in ax.artists if isinstance(artist, ScaleBar)]
    return found[0] if found else None


def test_scale_bar_is_drawn_where_the_unit_is_known(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section(rows=30, cols=30)
    assert _microns_per_unit(st.pl.segment(adata, "band")) is None, "nothing says what a unit is"
    assert _microns_per_unit(st.pl.segment(adata, "band", scale_bar=2.0)) == 2.0
    adata.uns["spatial"] = {"s": {"scalefactors": {"microns_per_pixel": 0.5}}}
    assert _microns_per_unit(st.pl.segment(adata, "band")) == 0.5
    assert _microns_per_unit(st.pl.segment(adata, "band", scale_bar=False)) is None
    adata.uns["spatial"] = {"s": {"metadata": {"unit": "micron"}}}
    assert _microns_per_unit(st.pl.segment(adata, "band")) == 1.0
    # Visium: the pitch of the hexagonal lattice, here 200 units, is 100 microns, whatever the diameter says
    adata.uns["spatial"] = {"s": {"scalefactors": {"spot_diameter_fullres": 110.0}}}
    adata.obsm["spatial"] = adata.obsm["spatial"] * 2
    assert _microns_per_unit(st.pl.segment(adata, "band")) == pytest.approx(0.5)
    adata.uns["spatial"]["s"]["scalefactors"]["spot_diameter_fullres"] = 20.0
    assert _microns_per_unit(st.pl.segment(adata, "band")) is None
    adata.uns["spatial"]["s"]["scalefactors"]["spot_diameter_fullres"] = 110.0
    adata.obs["array_col"] = adata.obs["array_col"] // 2  # a square lattice is none of Visium's
    assert _microns_per_unit(st.pl.segment(adata, "band")) is None
    with pytest.raises(ValueError, match=r"scale_bar=1\.0"):
        st.pl.segment(adata, "band", scale_bar=True)


@pytest.mark.parametrize("figsize", [(2, 2), (9, 3), None])
def test_scale_bar_lies_below_the_tissue(
    make_section: Callable[..., ad.AnnData], figsize: tuple[int, int] | None
) -> None:
    ax = st.pl.segment(make_section(rows=60, cols=60), "band", scale_bar=10.0, figsize=figsize)
    ax.figure.canvas.draw()
    spots = ax.collections[0]
    lowest = spots.get_offsets()[:, 1].max() + spots.get_widths()[0] / 2
    room = ax.transData.transform((0, lowest))[1] - ax.get_window_extent().y0  # pixels
    assert room > 0.14 * ax.figure.dpi, "room for a line of small text"


def test_scale_bar_of_real_sections_follows_the_lattice(real_section: Callable[[str], ad.AnnData]) -> None:
    adata = real_section("dlpfc_151673")
    assert 1000 / _microns_per_unit(st.pl.segment(adata, "layer")) == pytest.approx(1375, rel=0.02)  # ten spots
    slides = real_section("her2st_A1")
    assert _microns_per_unit(st.pl.segment(slides, "annotation")) is None, "200 microns apart, on a square lattice"
