"""Rules for every plot: show, save, given Axes, nothing changed by an error, no global state."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from conftest import assert_same
from matplotlib.transforms import Bbox
from matplotlib_scalebar.scalebar import ScaleBar
from test_pl_images import write_tables

import stxtools as st


@pytest.fixture(autouse=True)
def _no_figures_left(tmp_path: Path) -> Iterator[None]:
    names = ("figdir", "autoshow", "file_format_figs")
    settings = {name: getattr(sc.settings, name) for name in names}
    sc.settings.figdir = tmp_path
    yield
    for name, value in settings.items():
        setattr(sc.settings, name, value)
    plt.close("all")


@pytest.fixture
def drawn(line: ad.AnnData) -> ad.AnnData:
    """Two sections with every slot that is drawn."""
    write_tables(line)
    line.uns["tune"] = {
        "params": {"metric": "auroc"},
        "trials": pd.DataFrame({
            "alpha": [0.5, 1.0, 0.5, 1.0], "beta": [0.5, 0.5, 1.0, 1.0], "value": [0.8, 0.85, 0.9, 0.7],
            "state": "COMPLETE",
        }),
    }  # fmt: skip
    line.uns["compare"] = pd.DataFrame({
        "kind": "expression", "group": "ill", "reference": "well", "n_group": 3, "n_reference": 3, "compartment": "a",
        "names": line.var_names[:4],
        "logfoldchanges": [2.0, 1.0, -1.0, 0.1], "ci_low": -3.0, "ci_high": 3.0, "pvals": [1e-4, 1e-3, 1e-3, 0.5],
        "pvals_adj": [1e-3, 1e-2, 1e-2, 0.6],
    })  # fmt: skip
    line.uns["describe"] = pd.DataFrame({"proposed_name": ["x", "y"], "markers": ""}, index=["a", "b"])
    line.uns["describe_evidence"] = pd.DataFrame({
        "kind": "contact", "group": ["a", "a", "b", "b"], "partner": ["b", "b", "a", "a"], "names": ["l^r", "l^s"] * 2,
        "scores": [3.0, -1.0, 0.5, 1.0], "pvals_adj": [0.01, 0.5, 0.7, 0.4],
    })  # fmt: skip
    compartments = {"time": [0.0, 1.0], "compartment": "a", "lineage": "1", "share": 1.0, "previous": 1.0, "next": 1.0}
    link = {"time_from": [0.0], "time_to": 1.0, "source": "a", "target": "a", "event": "continues", "mass": 1.0,
            "forward": 1.0, "backward": 1.0}  # fmt: skip
    line.uns["track"] = {"links": pd.DataFrame(link), "compartments": pd.DataFrame(compartments),
                         "params": {"time_key": "time", "library_key": "library"}}  # fmt: skip
    line.obs["track"], line.obs["track_next"], line.obs["track_previous"] = pd.Categorical(["1"] * line.n_obs), 1.0, 1.0
    line.uns["trends"] = pd.DataFrame({
        "kind": "share", "compartment": ["a"], "feature": "", "slope": 1.0, "ci_low": 0.5, "ci_high": 1.5, "pvals": 0.1,
        "pvals_adj": 0.1, "pvals_order": 0.1,
    })  # fmt: skip
    line.uns["trends_values"] = pd.DataFrame({"s0": [-2.0], "s1": [-1.0]})
    line.uns["trends_params"] = {"times": np.array([0.0, 1.0]), "time_key": "time", "subjects": np.array(["x", "y"])}
    curve = {"n_segments": [2, 3, 4], "stability": [0.5, 0.9, 0.6], "bic": [5.0, 3.0, 4.0]}
    line.uns["segment"]["stability"] = pd.DataFrame(curve)
    line.uns["segment"]["params"]["n_segments"] = 3
    return line


# what the second positional argument is, and what makes a single panel
CALLS: dict[str, tuple[str, dict[str, object]]] = {
    "attention": ("attention", {"library": "lib0", "color": "attention"}),
    "attention_fidelity": ("edges", {}),
    "biomarkers": ("tumour", {}),
    "compare": ("expression", {}),
    "describe": ("contact", {}),
    "evaluation": ("accuracy", {}),
    "history": ("segment", {"stage": "segment"}),
    "region_graph": ("regions", {"library": "lib0"}),
    "robustness": ("accuracy", {}),
    "segment": ("band", {"library": "lib0"}),
    "sensitivity": ("alpha", {}),
    "stability": ("segment", {}),
    "targets": ("tumour", {}),
    "track": ("alluvial", {}),
    "trends": ("share", {}),
    "volcano": ("tumour", {"kind": "volcano"}),
}


def test_all_plots_are_tested_here() -> None:
    assert set(CALLS) - {"volcano"} | {"annotate"} == set(st.pl.__all__)  # a widget, no plot


def _draw(name: str, adata: ad.AnnData, **kwargs: object) -> object:
    second, how = CALLS[name]
    return getattr(st.pl, "biomarkers" if name == "volcano" else name)(adata, second, **how, **kwargs)


@pytest.mark.parametrize("name", [name for name in st.pl.__all__ if name != "annotate"])
def test_signature_ends_with_figsize_ax_show_save(name: str) -> None:
    signature = inspect.signature(getattr(st.pl, name))
    last = [(p.name, p.default) for p in signature.parameters.values()][-4:]
    assert last == [("figsize", None), ("ax", None), ("show", None), ("save", None)]
    assert {"title", "legend"} <= signature.parameters.keys()
    assert "Axes" in signature.return_annotation


@pytest.mark.parametrize("name", CALLS)
def test_figure_has_the_given_size_with_its_legend(name: str, drawn: ad.AnnData) -> None:
    axes = _draw(name, drawn, figsize=np.array([7, 5.5]), title="own")
    first = axes[0] if isinstance(axes, list) else axes
    assert tuple(first.figure.get_size_inches()) == (7, 5.5)
    assert first.get_title().startswith("own")
    figures = plt.get_fignums()
    with pytest.raises(ValueError, match="omit `ax`"):
        _draw(name, drawn, figsize=(7, 5), ax=first)
    for figsize, error in [((7,), TypeError), ("wide", TypeError), ((7, "5"), TypeError), ((7, 0), ValueError)]:
        with pytest.raises(error, match="`figsize"):
            _draw(name, drawn, figsize=figsize)
    assert plt.get_fignums() == figures


@pytest.mark.parametrize("name", ["sensitivity", "describe", "attention"])
def test_colour_map_can_be_chosen(name: str, drawn: ad.AnnData) -> None:
    axes = _draw(name, drawn, cmap="cividis")
    found = [c.get_cmap()(0.0) for c in axes.collections if c.get_array() is not None]
    assert mpl.colormaps["cividis"](0.0) in found
    with pytest.raises(ValueError, match="not a colour map"):
        _draw(name, drawn, cmap="no such map")


def test_a_single_trial_has_the_colour_that_its_colour_bar_gives_it(drawn: ad.AnnData) -> None:
    drawn.uns["tune"]["trials"] = drawn.uns["tune"]["trials"].iloc[:1]
    ax = st.pl.sensitivity(drawn)
    assert ax.collections[0].get_clim() == ax.figure.axes[-1].get_xlim()


def test_stability_without_a_legend(drawn: ad.AnnData) -> None:
    assert st.pl.stability(drawn, legend=False).get_legend() is None
    assert st.pl.stability(drawn).get_legend() is not None


@pytest.mark.parametrize("name", CALLS)
def test_save_follows_scanpy_and_closes_the_figure(name: str, drawn: ad.AnnData, tmp_path: Path) -> None:
    sc.settings.file_format_figs = "png"
    figures = plt.get_fignums()
    assert _draw(name, drawn, save=True) is not None
    _draw(name, drawn, save="_x.svg")
    _draw(name, drawn, save=tmp_path / "own.jpg")
    _draw(name, drawn, save=False)
    stem = "biomarkers" if name == "volcano" else name
    assert {p.name for p in tmp_path.iterdir()} == {f"{stem}.png", f"{stem}_x.svg", "own.jpg"}
    assert len(plt.get_fignums()) == len(figures) + 1, "what was saved is closed"


def test_show_follows_scanpy(drawn: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda *_, **__: shown.append(1))
    assert st.pl.segment(drawn, show=True) is None
    assert len(st.pl.segment(drawn, show=False)) == len(st.pl.segment(drawn)) == 2, "agg has no window"
    assert len(shown) == 1
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    assert st.pl.segment(drawn) is None
    assert st.pl.segment(drawn, show=False) is not None
    _, ax = plt.subplots()
    assert st.pl.segment(drawn, library="lib0", ax=ax) is ax, "a part of the caller's figure"
    assert len(shown) == 2
    sc.settings.autoshow = False
    assert st.pl.segment(drawn) is not None
    with pytest.raises(TypeError, match="show"):
        st.pl.segment(drawn, show="yes")
    with pytest.raises(TypeError, match="save"):
        st.pl.segment(drawn, save=3)
    with pytest.raises(ValueError, match=r"pathlib\.Path\('a/b\.png'\)"):
        st.pl.segment(drawn, save="a/b.png")


@pytest.mark.parametrize("name", CALLS)
def test_plot_stays_within_the_given_axes(name: str, drawn: ad.AnnData) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 4))
    place = axes[0].get_window_extent().frozen()
    other = axes[1].get_position().bounds
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the legend fits
        assert _draw(name, drawn, ax=axes[0]) is axes[0]
    figure.canvas.draw()
    assert not figure.legends
    assert axes[1].get_position().bounds == other
    given, _, *strips = figure.axes
    strips += [bar for strip in strips for bar in strip.child_axes]
    boxes = [part.get_tightbbox() for part in (given.get_legend(), *strips, *given.texts) if part is not None]
    boxes = [box for box in boxes if box is not None]
    boxes += [given.get_window_extent()]
    room = Bbox.from_extents(place.x0 - 2, place.y0 - 2, place.x1 + 2, place.y1 + 2)
    for box in boxes:
        assert (box.p0 >= room.p0).all()
        assert (box.p1 <= room.p1).all()


@pytest.mark.parametrize("name", ["segment", "region_graph", "attention"])
def test_legend_within_given_axes_does_not_cover_the_tissue(name: str, drawn: ad.AnnData) -> None:
    figure, ax = plt.subplots(figsize=(5, 4))
    _draw(name, drawn, ax=ax)
    figure.canvas.draw()
    here = (drawn.obs["library"] == "lib0").to_numpy()
    x, y = ax.transData.transform(drawn.obsm["spatial"][here]).T
    bars = [bar for strip in figure.axes[1:] for bar in strip.child_axes]
    for box in [part.get_tightbbox() for part in (ax.get_legend(), *bars) if part is not None]:
        if box is not None:
            assert not ((box.x0 < x) & (x < box.x1) & (box.y0 < y) & (y < box.y1)).any()


def test_legend_that_does_not_fit_is_omitted_with_a_warning(drawn: ad.AnnData) -> None:
    _, ax = plt.subplots(figsize=(0.6, 0.6))
    with pytest.warns(UserWarning, match="legend does not fit"):
        st.pl.region_graph(drawn, library="lib0", ax=ax)
    assert ax.get_legend() is None


@pytest.mark.parametrize("name", CALLS)
def test_plot_keeps_rcparams_and_labels_its_color_bars(name: str, drawn: ad.AnnData) -> None:
    settings = dict(mpl.rcParams)
    axes = _draw(name, drawn, show=False)
    assert dict(mpl.rcParams) == settings
    first = axes[0] if isinstance(axes, list) else axes
    bars = [a for a in first.figure.axes if hasattr(a, "_colorbar")]
    assert all(bar.get_xlabel() or bar.get_ylabel() for bar in bars)
    assert bars or name not in {"attention", "sensitivity", "biomarkers", "targets"}


@pytest.mark.parametrize("name", ["biomarkers", "describe", "region_graph", "targets", "volcano"])
def test_text_is_readable_on_a_dark_background(name: str, drawn: ad.AnnData) -> None:
    more = {"region_graph": {"scale_bar": 1.0}}.get(name, {})
    with plt.style.context("dark_background"):
        axes = _draw(name, drawn, show=False, **more)
    first = axes[0] if isinstance(axes, list) else axes
    texts = [*first.get_xticklabels(), *first.get_yticklabels(), first.title]
    handles = [h for legend in first.figure.legends for h in (*legend.get_texts(), *legend.get_lines())]
    colors = [h.get_color() for h in texts + handles] + [a.color for a in first.artists if isinstance(a, ScaleBar)]
    assert not any(mpl.colors.same_color(color, "black") for color in colors)
    rims = [effect._gc["foreground"] for text in first.texts for effect in text.get_path_effects()]
    assert set(rims) <= {"black"}
    assert rims or name != "volcano"


def _without_colors(adata: ad.AnnData) -> ad.AnnData:
    adata = adata.copy()
    for holder in (adata, adata.uns["regions"]):
        for key in [k for k in holder.uns if k.endswith("_colors")]:
            del holder.uns[key]
    return adata


BAD: list[tuple[str, dict[str, object], type[Exception]]] = [
    ("segment", {"size": 1e9}, ValueError),
    ("segment", {"size": 0}, ValueError),
    ("segment", {"size": np.inf}, TypeError),
    ("segment", {"img": "nope"}, KeyError),
    ("segment", {"img": 3}, TypeError),
    ("segment", {"title": 3}, TypeError),
    ("segment", {"legend": "no"}, TypeError),
    ("segment", {"scale_bar": "yes"}, TypeError),
    ("segment", {"scale_bar": True}, ValueError),
    ("segment", {"scale_bar": -1.0}, TypeError),
    ("segment", {"palette": 7}, TypeError),
    ("segment", {"palette": np.array(3)}, TypeError),
    ("track", {"library": "lib0"}, ValueError),
    ("track", {"library_key": "nope"}, KeyError),
    ("track", {"spatial_key": "nope"}, KeyError),
    ("segment", {"library": 5}, TypeError),
    ("segment", {"save": Path("/no/such/folder/x.png")}, OSError),
    ("region_graph", {"img": "nope"}, KeyError),
    ("region_graph", {"labels": 1}, TypeError),
    ("attention", {"cmap": "nope"}, ValueError),
    ("attention", {"vmax": "x"}, TypeError),
    ("attention", {"key": 5}, TypeError),
    ("biomarkers", {"n_genes": 10**6}, ValueError),
    ("targets", {"n_genes": 10**6}, ValueError),
]


@pytest.mark.parametrize(("name", "kwargs", "error"), BAD)
def test_wrong_arguments_raise_and_change_nothing(
    name: str, kwargs: dict[str, object], error: type[Exception], drawn: ad.AnnData
) -> None:
    drawn = _without_colors(drawn)
    before, figures = drawn.copy(), plt.get_fignums()
    with pytest.raises(error):
        getattr(st.pl, name)(drawn, **kwargs)
    assert_same(before, drawn)
    assert plt.get_fignums() == figures, "no empty figure is left"


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("ax", ["axes", [1], 3, np.array([None])])
def test_ax_of_a_wrong_type_raises(name: str, ax: object, drawn: ad.AnnData) -> None:
    with pytest.raises(TypeError, match="`ax` must be a matplotlib Axes"):
        _draw(name, drawn, ax=ax)


@pytest.mark.parametrize(
    "name", ["segment", "region_graph", "attention", "history", "biomarkers", "stability", "targets"]
)
@pytest.mark.parametrize("key", [5, None, ("a",), ["a"], b"segment"])
def test_key_of_a_wrong_type_raises(name: str, key: object, drawn: ad.AnnData) -> None:
    with pytest.raises(TypeError, match=r"must be a string|`key` must"):
        getattr(st.pl, name)(drawn, key=key)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda xy: xy + 1j, TypeError),
        (lambda xy: xy * 1e200, ValueError),
        (lambda xy: np.ma.masked_less(xy, 100), ValueError),
    ],
    ids=["complex", "huge", "masked"],
)
def test_coordinates_that_cannot_be_drawn_raise(change: Callable, error: type[Exception], drawn: ad.AnnData) -> None:
    drawn.obsm["odd"] = change(drawn.obsm["spatial"])
    with pytest.raises(error, match="odd"):
        st.pl.segment(drawn, spatial_key="odd")


def test_polar_or_removed_axes_raise(drawn: ad.AnnData) -> None:
    _, polar = plt.subplots(subplot_kw={"projection": "polar"})
    with pytest.raises(TypeError, match="polar"):
        st.pl.segment(drawn, library="lib0", ax=polar)
    _, gone = plt.subplots()
    gone.remove()
    with pytest.raises(ValueError, match="removed"):
        st.pl.segment(drawn, library="lib0", ax=gone)


@pytest.mark.parametrize(
    ("name", "slot", "column", "value", "error"),
    [
        ("evaluation", ("evaluation",), "accuracy", "high", TypeError),
        ("evaluation", ("evaluation",), "accuracy", np.inf, ValueError),
        ("robustness", ("evaluation",), "noise", "high", TypeError),
        ("history", ("segment", "history"), "epoch", "first", TypeError),
        ("history", ("segment", "history"), "epoch", None, KeyError),
        ("stability", ("segment", "stability"), "n_segments", 9, ValueError),
        ("sensitivity", ("tune", "trials"), "value", "good", TypeError),
        ("attention_fidelity", ("attention_fidelity", "table"), "change", "much", TypeError),
        ("targets", ("biomarkers",), "n_drugs", "many", TypeError),
        ("volcano", ("biomarkers",), "pvals", np.nan, ValueError),
        ("biomarkers", ("biomarkers",), "auroc", 1j, TypeError),
    ],
)
def test_damaged_tables_raise_and_name_the_call(
    name: str, slot: tuple[str, ...], column: str, value: object, error: type[Exception], drawn: ad.AnnData
) -> None:
    holder = drawn.uns if len(slot) == 1 else drawn.uns[slot[0]]
    table = holder[slot[-1]].drop(columns=column)
    holder[slot[-1]] = table if value is None else table.assign(**{column: value})
    with pytest.raises(error, match=r"st\.tl\."):
        _draw(name, drawn)


def test_too_many_panels_raise(drawn: ad.AnnData) -> None:
    drawn.obs["many"] = [f"s{i % 150}" for i in range(drawn.n_obs)]
    with pytest.raises(ValueError, match="panels"):
        st.pl.segment(drawn, "band", library_key="many")


def test_class_names_are_not_read_as_formulas_and_are_shortened(make_section: Callable[..., ad.AnnData]) -> None:
    adata = make_section()
    adata.obs["band"] = adata.obs["band"].cat.rename_categories({"a": "$\\frac{$", "b": "b" * 500})
    ax = st.pl.segment(adata, "band")
    ax.figure.canvas.draw()
    assert ax.figure.get_figwidth() < 12


def test_axes_of_means_say_how_many_seeds_and_fit_the_figure(drawn: ad.AnnData) -> None:
    for ax in (st.pl.evaluation(drawn, "auroc"), st.pl.robustness(drawn, "auroc")):
        ax.figure.canvas.draw()
        assert ax.get_ylabel().endswith("mean ± SD, 3 seeds")
        box = ax.yaxis.label.get_window_extent()
        assert box.y0 >= 0
        assert box.y1 <= ax.figure.bbox.y1
