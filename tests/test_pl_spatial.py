"""Plots of segments, region graph and attention over the tissue."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import to_hex, to_rgba
from scipy import sparse

import stxtools as st

OVERLAP = [(0, 1, 10.0), (1, 2, 40.0)]  # the bands a, b, c of a section, one below the other


def _write_results(adata: ad.AnnData, library_key: str | None = None) -> ad.AnnData:
    """Write the slots of tl.segment, tl.region_graph and tl.embed by hand: a region per band and section."""
    adata.obs["segment"] = adata.obs["band"].copy()
    codes = adata.obs["segment"].cat.codes.to_numpy().astype(np.int32)
    adata.obs["segment_id"] = codes + 1
    adata.obs["segment_confidence"] = np.linspace(0.2, 1.0, adata.n_obs, dtype=np.float32)
    adata.obsm["segment_proba"] = pd.DataFrame(
        np.eye(3, dtype=np.float32)[codes], index=adata.obs_names, columns=["a", "b", "c"]
    )
    params = {} if library_key is None else {"library_key": library_key}
    mask = np.repeat(np.arange(4, dtype=np.uint32), 5)[:, None].repeat(20, axis=1)
    names = ["section"] if library_key is None else sorted(adata.obs[library_key].unique())
    section = np.zeros(adata.n_obs, int) if library_key is None else adata.obs[library_key].cat.codes.to_numpy()
    adata.uns["spatial"] = {name: {"images": {}, "scalefactors": {}} for name in names}
    masks = {name: {"image": mask, "scale": 0.01, "origin": np.zeros(2)} for name in names}
    adata.uns["segment"] = {"params": params, "masks": masks}
    region = section * 3 + codes
    n = 3 * len(names)
    contact = np.zeros((n, n))
    attention = np.eye(n) * 0.5
    for s in range(len(names)):
        for i, j, length in OVERLAP:
            contact[3 * s + i, 3 * s + j] = contact[3 * s + j, 3 * s + i] = length
            attention[3 * s + i, 3 * s + j] = 0.1 * (i + 1)
            attention[3 * s + j, 3 * s + i] = 0.2 * (i + 1)
    regions = ad.AnnData(np.zeros((n, 2), dtype=np.float32))
    regions.obs_names = [f"r{i}" for i in range(n)]
    regions.obs["segment"] = pd.Categorical([["a", "b", "c"][i % 3] for i in range(n)])
    regions.obs["library"] = pd.Categorical([names[i // 3] for i in range(n)])
    regions.obs["n_obs"] = np.bincount(region, minlength=n)
    regions.obsm["spatial"] = np.array([adata.obsm["spatial"][region == i].mean(axis=0) for i in range(n)])
    regions.obsp["contact_length"] = sparse.csr_matrix(contact)
    regions.obsp["spatial_connectivities"] = sparse.csr_matrix((contact > 0).astype(float))
    regions.obsp["attention"] = sparse.csr_matrix(attention)
    regions.uns["params"] = params
    adata.uns["regions"] = regions
    adata.obs["attention"] = np.linspace(0, 0.3, adata.n_obs)
    return adata


@pytest.fixture
def adata(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return _write_results(make_section())


@pytest.fixture
def several(make_section: Callable[..., ad.AnnData]) -> ad.AnnData:
    return _write_results(make_section(libraries=3), "library")


def _one(ax: plt.Axes, kind: type, label: str) -> EllipseCollection | LineCollection:
    found = [c for c in ax.collections if isinstance(c, kind) and c.get_label() == label]
    assert len(found) == 1
    return found[0]


def _legend_texts(ax: plt.Axes) -> list[str]:
    legend = ax.get_legend() or ax.figure.legends[0]
    return [t.get_text() for t in legend.get_texts()]


PLOTS = [st.pl.segment, st.pl.region_graph, st.pl.attention]


@pytest.mark.parametrize("plot", PLOTS)
def test_axes_contain_the_section_without_ticks_and_y_down(adata: ad.AnnData, plot: Callable) -> None:
    ax = plot(adata)
    assert isinstance(ax, plt.Axes)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()  # y points down
    assert ax.get_aspect() == 1.0
    assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
    assert (adata.obsm["spatial"] > [left, top]).all()
    assert (adata.obsm["spatial"] < [right, bottom]).all()
    ax.figure.canvas.draw()


@pytest.mark.parametrize("plot", PLOTS)
def test_one_panel_per_section(several: ad.AnnData, plot: Callable) -> None:
    axes = plot(several)
    assert [ax.get_title() for ax in axes] == ["lib0", "lib1", "lib2"]
    assert len(axes[0].figure.legends) == 1, "one legend for all"
    single = plot(several, library="lib1")
    assert isinstance(single, plt.Axes)
    assert [ax.get_title() for ax in plot(several, library=["lib2", "lib0"])] == ["lib2", "lib0"]
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="library='lib0'"):
        plot(several, ax=ax)
    assert plot(several, library="lib1", ax=ax) is ax
    with pytest.raises(ValueError, match="lib0"):
        plot(several, library="lib9")


@pytest.mark.parametrize("plot", PLOTS)
def test_plot_writes_only_colors(adata: ad.AnnData, plot: Callable) -> None:
    before = adata.copy()
    plot(adata)
    del adata.uns["segment_colors"]
    adata.uns["regions"].uns.pop("segment_colors", None)
    assert_same(before, adata)


def test_segment_colors_equal_those_of_scanpy(adata: ad.AnnData) -> None:
    import scanpy as sc

    ax = st.pl.segment(adata)
    face = _one(ax, EllipseCollection, "segment").get_facecolors()
    colors = list(adata.uns["segment_colors"])
    np.testing.assert_allclose(face, [to_rgba(colors[c]) for c in adata.obs["segment"].cat.codes])
    assert colors == [to_hex(c) for c in sc.pl.palettes.default_20[:3]]
    drawn = sc.pl.embedding(adata, "spatial", color="segment", show=False, return_fig=True).axes[0].collections[0]
    assert list(adata.uns["segment_colors"]) == colors
    assert {to_hex(c) for c in drawn.get_facecolors()} == set(colors)
    assert _legend_texts(ax) == ["a", "b", "c"]


def test_stored_colors_are_kept_and_a_palette_replaces_them(adata: ad.AnnData) -> None:
    adata.uns["segment_colors"] = ["#112233", "#445566", "#778899"]
    st.pl.segment(adata)
    assert list(adata.uns["segment_colors"]) == ["#112233", "#445566", "#778899"]
    st.pl.region_graph(adata)
    assert list(adata.uns["regions"].uns["segment_colors"]) == ["#112233", "#445566", "#778899"]
    st.pl.segment(adata, palette={"a": "red", "b": "lime", "c": "blue"})
    assert list(adata.uns["segment_colors"]) == ["#ff0000", "#00ff00", "#0000ff"]
    for bad in (["red"], {"a": "red"}, "no_such_map", ["red", "lime", "no_such_color"]):
        with pytest.raises(ValueError, match="palette"):
            st.pl.segment(adata, palette=bad)
    assert list(adata.uns["segment_colors"]) == ["#ff0000", "#00ff00", "#0000ff"]


@pytest.mark.parametrize("stored", [True, False])
def test_absent_category_changes_no_color(adata: ad.AnnData, stored: bool) -> None:
    whole = adata.copy()
    st.pl.segment(whole)
    color_of_c = whole.uns["segment_colors"][2]
    source = whole if stored else adata
    view = source[(source.obs["segment"] != "a").to_numpy()]
    face = _one(st.pl.segment(view), EllipseCollection, "segment").get_facecolors()
    assert view.is_view, "drawing does not turn the user's view into a copy"
    c = (view.obs["segment"] == "c").to_numpy()
    np.testing.assert_allclose(face[c], np.tile(to_rgba(color_of_c), (c.sum(), 1)))


def test_missing_labels_are_grey_and_in_the_legend(adata: ad.AnnData) -> None:
    adata.obs.loc[adata.obs_names[:5], "segment"] = np.nan
    ax = st.pl.segment(adata)
    face = _one(ax, EllipseCollection, "segment").get_facecolors()
    np.testing.assert_allclose(face[:5], np.tile(to_rgba("#d3d3d3"), (5, 1)))
    assert _legend_texts(ax) == ["a", "b", "c", "NA"]


def test_size_scales_the_spots_by_the_lattice_pitch(adata: ad.AnnData) -> None:
    spots = _one(st.pl.segment(adata, size=0.5), EllipseCollection, "segment")
    np.testing.assert_allclose(spots.get_widths(), 50.0)
    np.testing.assert_allclose(spots.get_offsets(), adata.obsm["spatial"])


def test_spot_size_follows_the_spacing_of_scattered_cells() -> None:
    def drawn(xy: np.ndarray) -> float:
        cells = ad.AnnData(np.ones((len(xy), 1), dtype=np.float32), obsm={"spatial": xy})
        cells.obs["segment"] = pd.Categorical(np.where(np.arange(len(xy)) % 2, "a", "b"))
        return float(_one(st.pl.segment(cells), EllipseCollection, "segment").get_widths()[0])

    xy = np.random.default_rng(0).uniform(0, 1000, (10_000, 2))
    assert 7 < drawn(xy) < 11  # one cell per 10 x 10
    assert drawn(np.repeat(xy, 2, axis=0)) == pytest.approx(drawn(xy), rel=0.3)
    assert drawn(np.zeros((1, 2))) == drawn(np.zeros((4, 2))) == 1.0


def test_tissue_image_lies_beneath_at_its_scale(adata: ad.AnnData) -> None:
    assert not st.pl.segment(adata).images
    entry = adata.uns["spatial"]["section"]
    entry["images"]["lowres"] = np.ones((30, 40, 3), dtype=np.float32)
    entry["scalefactors"]["tissue_lowres_scalef"] = 0.02
    ax = st.pl.segment(adata)
    assert ax.images[0].get_extent() == pytest.approx((-25, 1975, 1475, -25))
    assert not st.pl.segment(adata, img=False).images
    assert len(st.pl.segment(adata, img="lowres").images) == 1
    with pytest.raises(KeyError, match="lowres"):
        st.pl.segment(adata, img="hires")
    adata.obsm["moved"] = adata.obsm["spatial"] + 1e4
    assert not st.pl.segment(adata, spatial_key="moved").images, "the picture does not fit other coordinates"


def test_large_image_is_thinned_in_its_place(adata: ad.AnnData) -> None:
    image = np.zeros((4001, 2, 3), dtype=np.uint8)
    adata.uns["spatial"]["section"] = {"images": {"hires": image}, "scalefactors": {"tissue_hires_scalef": 0.5}}
    drawn = st.pl.segment(adata).images[0]
    assert drawn.get_array().shape == (2001, 1, 3)
    assert drawn.get_extent() == pytest.approx((-1, 3, 8003, -1))


def test_results_are_drawn_at_the_positions_of_their_spatial_key(adata: ad.AnnData) -> None:
    adata.obsm["moved"] = adata.obsm["spatial"] + 1e4
    adata.uns["band"] = {"params": {"spatial_key": "moved"}}
    assert st.pl.segment(adata, "band").get_xlim()[0] > 9e3
    assert st.pl.segment(adata, "band", spatial_key="spatial").get_xlim()[0] < 1e3
    del adata.obsm["moved"]
    assert st.pl.segment(adata, "band").get_xlim()[0] < 1e3


def test_predicted_classes_have_the_colors_of_their_labels(adata: ad.AnnData) -> None:
    adata.obs["band_pred"] = adata.obs["band"].cat.set_categories(["c", "a", "b"])
    adata.uns["band_colors"] = ["#000011", "#000022", "#000033"]
    st.pl.segment(adata, key="band_pred")
    assert list(adata.uns["band_pred_colors"]) == ["#000033", "#000011", "#000022"]


def test_string_column_stays_a_string_column_and_floats_raise(adata: ad.AnnData) -> None:
    adata.obs["text"] = adata.obs["band"].astype(str)
    st.pl.segment(adata, key="text")
    assert not isinstance(adata.obs["text"].dtype, pd.CategoricalDtype)
    with pytest.raises(TypeError, match="floating"):
        st.pl.segment(adata, key="attention")


def test_region_graph_draws_contact_as_width_and_size_as_area(adata: ad.AnnData) -> None:
    ax = st.pl.region_graph(adata)
    edges = _one(ax, LineCollection, "edges")
    assert len(edges.get_segments()) == 2
    thin, wide = edges.get_linewidths()
    assert thin < wide
    centroid = adata.uns["regions"].obsm["spatial"]
    np.testing.assert_allclose(edges.get_segments()[1], centroid[[1, 2]])  # the longer border is drawn last
    nodes = next(c for c in ax.collections if c.get_label() == "regions")
    size = np.sort(adata.uns["regions"].obs["n_obs"])[::-1]
    assert (np.diff(nodes.get_sizes()) <= 0).all()
    np.testing.assert_allclose(nodes.get_sizes() / nodes.get_sizes()[0], size / size[0])
    assert {"segment", "observations", "contact length"} <= set(_legend_texts(ax))


def test_images_of_no_section_are_reported(several: ad.AnnData) -> None:
    several.uns["spatial"] = {"slide7": {"images": {"hires": np.ones((4, 4, 3))}, "scalefactors": {}}}
    with pytest.warns(UserWarning, match="images of 'slide7' and none of the sections 'lib0', 'lib1', .*: no image"):
        st.pl.segment(several)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        st.pl.segment(several, img=False)
        several.uns["spatial"] = {"slide7": {"metadata": {"unit": "micron"}}}
        st.pl.segment(several)


def test_thousands_of_categories_are_drawn_and_a_gene_is_referred_to_scanpy() -> None:
    xy = np.random.default_rng(0).uniform(size=(8000, 2))
    adata = ad.AnnData(np.ones((8000, 2), dtype=np.float32), obsm={"spatial": xy})
    adata.var_names = ["ESR1", "MUC1"]
    adata.obs["cell"] = [f"cell{i}" for i in range(8000)]
    assert _legend_texts(st.pl.segment(adata, "cell"))[-1] == "... and 7960 more"
    with pytest.raises(KeyError, match=r"`sc.pl.embedding\(adata, 'spatial', color='ESR1'\)` draws this gene"):
        st.pl.segment(adata, "ESR1")


def test_nodes_of_many_regions_do_not_cover_the_tissue_and_differ_by_size() -> None:
    x, y = np.meshgrid(np.arange(60.0), np.arange(60.0))
    adata = ad.AnnData(np.ones((x.size, 2), dtype=np.float32), obsm={"spatial": np.c_[x.ravel(), y.ravel()]})
    adata.obs["layer"] = pd.Categorical((x.ravel() // 20).astype(int).astype(str))
    st.tl.region_graph(adata, "layer", max_size=4)
    ax = st.pl.region_graph(adata)
    assert _legend_texts(ax)[0] == "layer"
    ax.figure.canvas.draw()
    nodes = next(c for c in ax.collections if c.get_label() == "regions")
    assert len(nodes.get_offsets()) > 700
    panel = np.prod(ax.get_window_extent().size / ax.figure.dpi * 72)
    diameter = np.sqrt(np.broadcast_to(nodes.get_sizes(), len(nodes.get_offsets()))) + nodes.get_linewidths()[0]
    assert (np.pi / 4 * diameter**2).sum() < 0.25 * panel
    texts, handles = _legend_texts(ax), ax.figure.legends[0].legend_handles
    sizes = [h.get_markersize() for h in handles[texts.index("observations") + 1 : texts.index("contact length")]]
    assert len(set(sizes)) == len(sizes) >= 2, "sizes in the legend differ"


@pytest.mark.parametrize("n_classes", [3, 4, 7])
def test_a_heading_stands_over_its_entries(n_classes: int) -> None:
    x, y = np.meshgrid(np.arange(24.0), np.arange(6.0))  # wide: the legend has columns
    adata = ad.AnnData(np.ones((x.size, 2), dtype=np.float32), obsm={"spatial": np.c_[x.ravel(), y.ravel()]})
    adata.obs["layer"] = pd.Categorical(np.floor(np.sqrt(x.ravel() / 24) * n_classes).astype(int).astype(str))
    st.tl.region_graph(adata, "layer", max_size=None)
    figure = st.pl.region_graph(adata).figure
    figure.canvas.draw()
    texts = figure.legends[0].get_texts()
    row = [text.get_text() for text in texts].index("observations")
    assert texts[row + 1].get_window_extent().y1 <= texts[row].get_window_extent().y0


def test_edges_stay_within_their_section(several: ad.AnnData) -> None:
    for i, ax in enumerate(st.pl.region_graph(several)):
        segments = np.array(_one(ax, LineCollection, "edges").get_segments()).reshape(-1, 2)
        here = several.uns["regions"].obsm["spatial"][3 * i : 3 * i + 3]
        assert {tuple(p) for p in segments} == {tuple(p) for p in here}
    alone = several[(several.obs["library"] == "lib1").to_numpy()].copy()
    del alone.uns["spatial"]
    assert len(_one(st.pl.region_graph(alone), LineCollection, "edges").get_segments()) == 2


def test_attention_of_an_edge_is_the_mean_of_both_directions(adata: ad.AnnData) -> None:
    ax = st.pl.attention(adata)
    edges = _one(ax, LineCollection, "attention")
    np.testing.assert_allclose(edges.get_array(), [0.15, 0.30])  # (0.1 + 0.2) / 2 and twice that; no self loops
    widths = edges.get_linewidths()
    assert widths[0] < widths[1]
    ax.figure.canvas.draw()
    luminance = edges.get_colors()[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert luminance[0] > luminance[1], "stronger is darker"
    assert [a.get_xlabel() for a in ax.figure.axes if a is not ax] == ["attention between regions"]
    clipped = _one(st.pl.attention(adata, vmax=0.1), LineCollection, "attention")
    assert clipped.get_linewidths()[0] == clipped.get_linewidths()[1]


def test_attention_on_a_dark_background_is_bright_where_strong(adata: ad.AnnData) -> None:
    with plt.style.context("dark_background"):
        ax = st.pl.attention(adata)
    edges = _one(ax, LineCollection, "attention")
    colors = edges.to_rgba(edges.get_array())
    assert colors[-1, :3].sum() > colors[0, :3].sum()
    assert _one(ax, EllipseCollection, "observations").get_facecolor()[:, :3].mean() < 0.4


def test_attention_colors_the_observations(adata: ad.AnnData) -> None:
    adata.obs.loc[adata.obs_names[0], "attention"] = np.nan
    ax = st.pl.attention(adata, color="attention")
    spots = _one(ax, EllipseCollection, "observations")
    values = spots.get_array()
    assert values.mask.sum() == 1
    np.testing.assert_allclose(values[1:], np.sort(adata.obs["attention"].to_numpy()[1:]))
    np.testing.assert_allclose(spots.get_offsets()[0], adata.obsm["spatial"][0])
    assert len(ax.figure.axes) == 3  # two colour bars
    assert not st.pl.attention(adata, color=None, legend=False).figure.legends


def test_graph_without_edges_is_drawn(adata: ad.AnnData) -> None:
    regions = adata.uns["regions"]
    for key in ("attention", "contact_length", "spatial_connectivities"):
        regions.obsp[key] = sparse.csr_matrix((3, 3))
    st.pl.region_graph(adata).figure.canvas.draw()
    st.pl.attention(adata).figure.canvas.draw()


def test_regions_are_drawn_at_their_own_coordinates(adata: ad.AnnData) -> None:
    adata.obsm["aligned"] = adata.obsm["spatial"] + 5000
    adata.uns["regions"].uns["params"] = {"spatial_key": "aligned"}
    ax = st.pl.region_graph(adata)
    assert ax.get_xlim()[0] > 4000
    with pytest.raises(ValueError, match="spatial_key='other'"):
        st.pl.region_graph(adata, spatial_key="other")
    with pytest.raises(ValueError, match="spatial_key='spatial'"):
        st.pl.region_graph(adata, spatial_key="spatial")


def test_attention_and_region_graph_without_their_slots_raise(adata: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"st\.tl\.embed"):
        st.pl.attention(adata, key="attention_gradient")
    del adata.uns["regions"].obsp["attention"]
    with pytest.raises(KeyError, match=r"st\.tl\.embed"):
        st.pl.attention(adata)
    adata.uns["regions"] = {"a": 1}
    with pytest.raises(TypeError, match="dict"):
        st.pl.region_graph(adata)
    with pytest.raises(ValueError, match="color"):
        st.pl.attention(adata, color="banana")


def test_sections_are_found_from_uns_spatial_or_need_a_library_key(several: ad.AnnData) -> None:
    several.uns["segment"] = {"params": {}}
    del several.uns["regions"]
    titles = [ax.get_title() for ax in st.pl.segment(several, "band")]
    assert titles == ["lib0", "lib1", "lib2"], 'the column that holds the names in uns["spatial"]'
    several.obs["slide"] = several.obs.pop("library").cat.rename_categories(lambda name: f"slide of {name}")
    with pytest.raises(ValueError, match="library_key"):
        st.pl.segment(several)
    assert len(st.pl.segment(several, library_key="slide")) == 3
    assert isinstance(st.pl.segment(several, library_key=False), plt.Axes)
    several.uns["segment"]["params"]["library_key"] = False
    assert isinstance(st.pl.segment(several), plt.Axes), "what the segments were made with"


def test_many_observations_are_rasterised(make_section: Callable[..., ad.AnnData], monkeypatch) -> None:
    adata = _write_results(make_section())
    assert not _one(st.pl.segment(adata), EllipseCollection, "segment").get_rasterized()
    monkeypatch.setattr("stxtools.pl._sections.RASTERIZE_ABOVE", 100)
    assert _one(st.pl.segment(adata), EllipseCollection, "segment").get_rasterized()


def test_squidpy_draws_the_same_colors(adata: ad.AnnData) -> None:
    import squidpy as sq

    adata.uns["spatial"]["section"]["scalefactors"] |= {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 90.0}
    st.pl.segment(adata)
    colors = list(adata.uns["segment_colors"])
    ax = sq.pl.spatial_scatter(adata, color="segment", shape=None, library_id="section", img=False, return_ax=True)
    assert list(adata.uns["segment_colors"]) == colors
    drawn = {to_hex(c) for c in ax.collections[0].get_facecolors()}
    assert drawn == set(colors)


def test_real_section_has_image_legend_and_spot_size(real_section: Callable[[str], ad.AnnData]) -> None:
    adata = real_section("dlpfc_151673")
    ax = st.pl.segment(adata, key="layer")
    assert len(ax.images) == 1
    assert _legend_texts(ax) == [*adata.obs["layer"].cat.categories, "NA"]
    spots = _one(ax, EllipseCollection, "layer")
    assert spots.get_widths()[0] / 0.8 == pytest.approx(137.5, rel=0.02)  # 100 um at 96.4 px per 70 um of this scan
