"""``st.report``: content of the file, and its display in a browser."""

from __future__ import annotations

import base64
import gzip
import json
import re
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from chromium import PROGRAM, Chromium
from conftest import QUICK_UNET, assert_same
from scipy import sparse

import stxtools as st

READY = "document.body?.dataset.ready"
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")


def meta_of(page: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="meta">(.*?)</script>', page, re.DOTALL)[1])


def block(page: str, name: str, dtype: str) -> np.ndarray:
    text = re.search(rf'<script type="text/plain" id="block-{name}">(.*?)</script>', page)[1]
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype=dtype)


def with_table(adata: ad.AnnData, groupby: str = "segment") -> ad.AnnData:
    """Add a table as biomarkers writes it."""
    rng, groups = np.random.default_rng(0), [str(c) for c in adata.obs[groupby].cat.categories]
    n = len(groups) * adata.n_vars
    scores = -np.sort(-rng.normal(size=(len(groups), adata.n_vars)), axis=1).ravel()
    names = np.concatenate([rng.permutation(adata.var_names) for _ in groups])
    adata.uns["biomarkers"] = pd.DataFrame({
        "group": np.repeat(groups, adata.n_vars), "names": names, "scores": scores,
        "logfoldchanges": scores, "pvals": 0.5, "pvals_adj": 10.0 ** (-3 * np.abs(scores)), "auroc": 0.6,
        "beyond_composition": np.arange(n) % 2 == 0, "n_libraries": 2,
    })  # fmt: skip
    adata.uns["biomarkers_params"] = {"groupby": groupby, "reference": "rest", "call": "tl.biomarkers"}
    return adata


def written(adata: ad.AnnData, tmp_path: Path, **how: Any) -> str:
    st.report(adata, tmp_path / "report.html", **how)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_embeds_coordinates_colours_genes_and_biomarkers(line, tmp_path):
    adata = with_table(line)
    adata.obs_names = [f"<i>{name}" for name in adata.obs_names]
    adata.obs["band"] = adata.obs["band"].cat.rename_categories({"a": "</script>&<b>"})
    adata.uns["band_colors"] = ["red", "tab:blue", "#00ff0080"]
    before = adata.copy()
    page = written(adata, tmp_path, genes=["gene3"], color=["band"], library_key="library")
    assert written(adata, tmp_path, genes=["gene3"], color=["band"], library_key="library") == page
    assert_same(before, adata)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]

    meta = meta_of(page)
    assert "</script>&<b>" not in page
    assert [s["name"] for s in meta["sections"]] == ["lib0", "lib1"]
    labels = {entry["label"]: entry for entry in meta["colors"]}
    assert labels["band"]["names"] == ["</script>&<b>", "b", "c"]
    assert labels["band"]["colors"] == ["#ff0000", "#1f77b4", "#00ff00"]  # the page reads no names of colours
    assert list(labels) == ["Segment", "Confidence", "Region", "Attention", "band"]
    xy = block(page, "xy", "<f4").reshape(-1, 2)
    for i in range(2):  # sections keep their shape and lie side by side
        rows = slice(i * 224, (i + 1) * 224)
        shift = xy[rows] - adata.obsm["spatial"][rows]
        np.testing.assert_allclose(shift - shift[0], 0, atol=0.01)
    assert xy[:224].max(axis=0)[0] < xy[224:].min(axis=0)[0]
    codes = block(page, labels["Segment"]["block"], "<u4")
    assert [labels["Segment"]["names"][c] for c in codes] == list(adata.obs["segment"])
    assert labels["Segment"]["colors"] == list(adata.uns["segment_colors"])
    confidence = labels["Confidence"]
    level = block(page, confidence["block"], "u1") / 254 * (confidence["high"] - confidence["low"]) + confidence["low"]
    np.testing.assert_allclose(level, adata.obs["segment_confidence"], atol=0.002)
    sc.pp.normalize_total(before)
    sc.pp.log1p(before)
    (name, high), expected = meta["genes"][0], before[:, "gene3"].X.toarray().ravel()
    assert name == "gene3"
    np.testing.assert_allclose(block(page, "gene0", "u1") / 254 * high, expected, atol=0.01)
    changes = adata.uns["biomarkers"]["logfoldchanges"].astype("f4")
    np.testing.assert_array_equal(block(page, "t-logfoldchanges", "<f4"), changes)
    sentences = ("The tissue falls into 3 segments", "connected regions", "mark at least one of 3 segments", "tl.embed")
    assert [text for text in sentences if text not in page] == []


def test_missing_segments_and_more_than_65_536_classes_are_encoded(line, tmp_path):
    line.obs["segment"] = line.obs["segment"].where(np.zeros(line.n_obs, dtype=bool))
    many = pd.Index(np.arange(70_000)).astype(str)
    line.obs["cluster"] = pd.Categorical.from_codes(np.arange(line.n_obs) + 69_000, categories=many)
    page = written(line, tmp_path, color=["cluster"], library_key="library")
    assert "No observation has a segment." in page
    labels = {entry["label"]: entry for entry in meta_of(page)["colors"]}
    assert (block(page, labels["Segment"]["block"], "<u4") == 2**32 - 1).all()
    np.testing.assert_array_equal(block(page, labels["cluster"]["block"], "<u4"), np.arange(line.n_obs) + 69_000)


def test_map_of_many_observations_shows_a_random_sample(line, tmp_path, monkeypatch):
    monkeypatch.setattr("stxtools._report.arrays.POINTS_MAX", 100)
    page = written(line, tmp_path, color=["band"], library_key="library")
    assert page == written(line, tmp_path, color=["band"], library_key="library")  # the same ones each time
    meta = meta_of(page)
    assert [section["n"] for section in meta["sections"]] == [50, 50]
    band = next(entry for entry in meta["colors"] if entry["label"] == "band")
    assert len(block(page, "xy", "<f4")) == 200
    assert len(block(page, band["block"], "<u4")) == 100
    assert "show 100 of the 448 observations, drawn at random" in page
    assert "448 observations (spots or cells) and" in page


def test_first_genes_come_from_every_group(line, tmp_path):
    adata = with_table(line)
    genes = [name for name, _ in meta_of(written(adata, tmp_path))["genes"]]
    table = adata.uns["biomarkers"]
    first, last = (table.groupby("group")["names"].nth(i) for i in (0, -1))
    assert set(genes[:6]) <= {*first, *last}
    assert set(genes) == set(adata.var_names)


def test_composition_is_mentioned_only_where_it_was_tested(line, tmp_path):
    """Between sections there is no second test: its p-values are NaN, and no gene is beyond composition."""
    adata = with_table(line)
    adata.uns["biomarkers"]["pvals_composition"] = 0.5
    page = written(adata, tmp_path)
    assert meta_of(page)["biomarkers"]["composition"]
    assert "beyond composition (more than the mixture explains)" in page
    adata.uns["biomarkers"] = adata.uns["biomarkers"].assign(pvals_composition=np.nan, beyond_composition=False)
    page = written(adata, tmp_path)
    assert not meta_of(page)["biomarkers"]["composition"]
    assert "more than the mixture explains)" not in page


def test_summary_says_what_the_results_rest_on(make_section, tmp_path):
    """Numbers of observations and sections, agreement, unprotected groups, targets, conditions; all parameters."""
    adata = make_section(libraries=4)
    adata.obs["patient"] = adata.obs["library"]
    adata.obs["arm"] = adata.obs["library"].map({"lib0": "A", "lib1": "A", "lib2": "B", "lib3": "B"}).astype("category")
    st.tl.segment(adata, 2, library_key="library", params=QUICK_UNET)
    with pytest.warns(UserWarning, match="optimistic"):
        st.tl.biomarkers(adata, "segment", n_null=100, protect=None)
    page = written(adata, tmp_path)
    assert "the p-values are too small" in page
    assert "as targets" not in page

    st.tl.biomarkers(adata, "band", groups=["a"], reference="b", library_key="library", n_null=100)
    assert "The unit is the section: 4 were combined, and each counts alone" in written(adata, tmp_path)
    adata.obs["patient"] = adata.obs["library"].map({"lib0": "x", "lib1": "x", "lib2": "y", "lib3": "z"})
    how = {"groups": ["a"], "reference": "b", "library_key": "library", "subject_key": "patient", "n_null": 100}
    st.tl.biomarkers(adata, "band", **how)
    table, params = adata.uns["biomarkers"], adata.uns["biomarkers_params"]
    sizes = (adata.obs["band"] == "a").sum(), (adata.obs["band"] == "b").sum()
    assert (params["n_obs_group"][0], params["n_obs_reference"][0]) == sizes
    table["pvals_adj"] = np.where(table["scores"] > 0, 0.01, 1.0)
    gene, essential, unknown = table["names"][:3]
    drugs = pd.DataFrame({"gene_name": [gene], "drug_name": ["x"], "approved": [True]})
    needed = pd.DataFrame({"id": ["1"], "approvedSymbol": [essential], "geneEssentiality": [[{"isEssential": True}]]})
    for joined in (drugs, needed):
        with pytest.warns(UserWarning, match="are not in it"):
            st.tl.targets(adata, joined)
    st.tl.compare(adata, "arm", "patient", groupby="band", library_key="library")
    st.tl.describe(adata, "band")
    page = written(adata, tmp_path)
    n, same = (table["scores"] > 0).sum(), (table["direction_consistent"] & (table["scores"] > 0)).sum()
    for text in (
        f"({sizes[0]} and {sizes[1]} observations)", "unit is the subject: 3 were combined.",
        f"Of {n} differences {same} have the same",
        f"({gene}: approved drugs (1), drugs (1); {essential}: against: essential)",
        "B against A (2 and 1 subject): nothing was tested", "Proposed names: a: ", "<summary>tl.targets</summary>",
    ):  # fmt: skip
        assert text in page
    assert "too small" not in page
    assert meta_of(page)["biomarkers"]["texts"] == ["subjects", "targets"]
    sections, targets = (bytes(block(page, f"t-{name}", "u1")).decode().split("\n") for name in ("subjects", "targets"))
    assert set(sections) <= {"3, agree", "3, differ"}
    assert targets[:3] == ["approved drugs (1), drugs (1)", "against: essential", ""]
    assert table["names"][2] == unknown


def test_symbols_stand_for_the_names_of_genes(line, tmp_path):
    """In the table, the plots and the report; a gene without a symbol keeps its name."""
    adata = with_table(line)
    adata.var["symbol"] = [f"SYM{i}" for i in range(adata.n_vars)]
    first = adata.uns["biomarkers"]["names"][0]
    adata.var.loc[first, "symbol"] = ""
    symbols = dict(zip(adata.var_names, adata.var["symbol"], strict=True)) | {first: first}
    before = adata.copy()
    table = st.get.biomarkers(adata, gene_symbols="symbol")
    assert list(table["symbol"]) == [symbols[name] for name in table["names"]]
    axis = st.pl.biomarkers(adata, "0", n_genes=3, gene_symbols="symbol", show=False)
    assert [text.get_text() for text in axis.get_yticklabels()] == list(table["symbol"][:3])
    page = written(adata, tmp_path, gene_symbols="symbol", genes=["SYM7"])
    assert meta_of(page)["genes"][0][0] == "SYM7"
    np.testing.assert_array_equal(
        block(page, "gene0", "u1"), block(written(adata, tmp_path, genes=[adata.var_names[7]]), "gene0", "u1")
    )
    assert set(bytes(block(page, "t-names", "u1")).decode().split("\n")) == set(symbols.values())
    assert_same(before, adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    backed = written(ad.read_h5ad(tmp_path / "a.h5ad", backed="r"), tmp_path, gene_symbols="symbol", genes=["SYM7"])
    np.testing.assert_array_equal(block(page, "gene0", "u1"), block(backed, "gene0", "u1"))
    with pytest.raises(KeyError, match="`gene_symbols='nope'` is not in"):
        st.report(adata, tmp_path / "no.html", gene_symbols="nope")


def test_report_omits_steps_that_were_not_run(make_section, tmp_path):
    adata = make_section(rows=6, cols=6)
    adata.X[:, 7] *= 50  # the gene of the largest variance
    meta = meta_of(page := written(adata, tmp_path))
    assert meta["colors"] == []
    assert meta["biomarkers"] is None
    assert meta["genes"][0][0] == "gene7"
    assert "<figure>" not in page
    adata.X = sparse.csr_matrix(adata.X.toarray() - 1)  # such as components
    assert meta_of(written(adata, tmp_path))["genes"] == []
    adata.X = None
    assert meta_of(written(adata, tmp_path))["genes"] == []


def test_results_under_other_keys_are_reported(make_section, tmp_path):
    adata = make_section(rows=6, cols=6)
    st.tl.region_graph(adata, "band")
    st.tl.biomarkers(adata, "band", key_added="markers", n_null=100)
    with pytest.warns(UserWarning, match=r"tl.biomarkers wrote 'markers': name it with `biomarkers_key=`"):
        page = written(adata, tmp_path)
    assert "Classes of obs[&#39;band&#39;] form" in page
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written(adata, tmp_path, biomarkers_key="markers")


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ({"genes": ["nope"]}, KeyError, "`genes` names 'nope'"),
        ({"genes": "gene1"}, TypeError, "`genes` must be a list"),
        ({"genes": [["gene1"]]}, TypeError, "`genes` must be a list"),
        ({"color": None}, TypeError, "`color` must be a list"),
        ({"key": "nope"}, KeyError, "`key='nope'` is not in `adata.obs`"),
        ({"biomarkers_key": "nope"}, KeyError, "`biomarkers_key='nope'` is not in `adata.uns`"),
        ({"color": ["nope"]}, KeyError, "`color='nope'`"),
        ({"title": 3}, TypeError, "`title`"),
        ({"path": "{here}/none/report.html"}, FileNotFoundError, "create it first"),
        ({"path": "{here}"}, IsADirectoryError, "name a file"),
        ({"spatial_key": "nope"}, KeyError, "nope"),
        ({"library_key": "nope"}, KeyError, "nope"),
    ],
)
def test_wrong_arguments_are_reported_and_write_no_file(make_section, tmp_path, how, error, match):
    path = str(how.pop("path", "{here}/report.html")).format(here=tmp_path)
    with pytest.raises(error, match=match):
        st.report(make_section(rows=6, cols=6), path, **how)
    assert list(tmp_path.iterdir()) == []


def test_map_uses_the_coordinates_of_the_segmentation(make_section, tmp_path):
    adata = make_section(rows=6, cols=6)
    adata.obs["segment"], adata.uns["segment"] = adata.obs["band"], {"params": {"spatial_key": "moved"}}
    adata.obsm["moved"] = adata.obsm["spatial"] * 2
    entry = {"images": {"hires": np.zeros((8, 8, 3))}, "scalefactors": {"tissue_hires_scalef": 0.01}}
    adata.uns["spatial"] = {"section": entry}
    widths = []
    for how in ({"spatial_key": "spatial"}, {}):
        (section,) = meta_of(written(adata, tmp_path, **how))["sections"]
        assert (section["image"] is None) == (not how)  # the image does not fit other coordinates
        widths.append(section["pitch"])
    assert widths[1] == pytest.approx(2 * widths[0])


@needs_browser
def test_browser_links_map_table_volcano_and_legend(line, tmp_path):
    adata = with_table(line)
    written(adata, tmp_path)
    table = adata.uns["biomarkers"]
    text = "document.querySelector({!r}).textContent".format
    with Chromium() as page:
        page.open(tmp_path / "report.html", READY)
        group = table[(table["group"] == "0") & (table["pvals_adj"] <= 0.05)].sort_values("scores", ascending=False)
        group = pd.concat([group[group["scores"] > 0], group[group["scores"] < 0][::-1]])
        rows = "[...document.querySelectorAll('#table tbody td:first-child')].map(e => e.textContent)"
        assert page(rows) == list(group["names"])
        assert f"{len(group)} of 30 genes tell segment 0 from the rest" in page(text("#marked"))

        # a gene of the table colours the map and is marked in the volcano, where the pointer finds its name
        page.click(*page.place("#table tbody tr:nth-child(2)"))
        gene = group["names"].iloc[1]
        page.wait(f"document.querySelector('#map').dataset.drawn == {gene!r}")
        assert page("document.querySelector('#table tr[aria-selected=true] td').textContent") == gene
        page.mouse("mouseMoved", *page.place("#ring"))
        assert page(text("#tip")).startswith(gene)

        # hover and click an observation
        spot = "document.querySelector('#map').getBoundingClientRect().toJSON()"
        page.place("#map")
        box = page(spot)
        at = box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5  # within the first of two sections
        page.mouse("mouseMoved", *at)
        assert re.search(r"Segment \d\nConfidence 0\.\d\d\nRegion r\d+", page(text("#tip")))
        page.click(*at)
        page.wait(text("#picked") + ".startsWith('l0_o')")
        name = page(text("#picked")).split(":")[0]
        assert f"Segment {adata.obs.loc[name, 'segment']}, " in page(text("#picked"))
        before = page("view.k")
        page.mouse("mouseWheel", *at, deltaX=0, deltaY=-300)
        page.wait(f"view.k > 1.3 * {before}")

        # a class of the legend chooses its group; filters of the table
        page("document.querySelector('#color').value = 'column0', document.querySelector('#color').onchange()")
        page.wait("document.querySelectorAll('#legend button').length == 3")
        page.click(*page.place("#legend button:nth-child(3)"))
        assert page("document.querySelector('#group').value") == "2"
        wanted = table[(table["group"] == "2") & (table["pvals_adj"] <= 1) & table["beyond_composition"]]
        page("document.querySelector('#fdr').value = '2', document.querySelector('#beyond').click()")
        page.click(*page.place("#table th:nth-child(2) button"))
        order = wanted.sort_values("logfoldchanges", ascending=False)["names"]
        assert page(rows) == list(order)
        page("document.querySelector('#search').value = 'GENE1', document.querySelector('#search').oninput()")
        assert page(rows) == [g for g in order if "gene1" in g]
        assert page("document.querySelector('#table th:nth-child(2)').ariaSort") == "descending"

        page.resize(390, 844)  # a phone: one column, nothing beside it
        page.wait("document.querySelector('#map').getBoundingClientRect().width < 390")
        assert page("document.documentElement.scrollWidth") == 390
        assert page("document.querySelector('#results').getBoundingClientRect().left") < 20

        sizes = "[...document.querySelectorAll('canvas')].map(e => [e.width, e.height])"
        drawn = page(sizes)
        page.call("Emulation.setEmulatedMedia", media="print")  # no frame draws on paper: a new size would be blank
        page.resize(700, 900)
        page("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page(sizes) == drawn
        assert page.errors == []
        assert [r for r in page.requests if not r.startswith("data:")] == [(tmp_path / "report.html").as_uri()]


@needs_browser
def test_the_first_group_that_has_a_marker_is_shown(line, tmp_path):
    adata = with_table(line)
    table = adata.uns["biomarkers"]
    table.loc[table["group"] == "0", "pvals_adj"] = 1.0
    written(adata, tmp_path)
    with Chromium() as page:
        page.open(tmp_path / "report.html", READY)
        assert page("document.querySelector('#group').selectedOptions[0].textContent") == "1"
        assert page("document.querySelectorAll('#table tbody tr').length") > 0
    table["pvals_adj"] = 1.0
    written(adata, tmp_path)
    with Chromium() as page:
        page.open(tmp_path / "report.html", READY)
        assert page("document.querySelector('#group').selectedOptions[0].textContent") == "0"


@needs_browser
def test_browser_opens_reports_with_empty_or_missing_results(make_section, tmp_path):
    adata = make_section(rows=6, cols=6)
    adata.X = None
    written(adata, tmp_path)
    with Chromium() as page:
        page.open(tmp_path / "report.html", READY)
        assert page("[...document.querySelectorAll('section')].filter(e => !e.hidden).length") == 2
        adata.obs["segment"] = adata.obs["band"]
        table = with_table(adata).uns["biomarkers"]
        table.loc[:2, "pvals_adj"], table.loc[2:4, "logfoldchanges"] = np.nan, np.nan  # a test that could not be made
        for rows in (len(table), 0):
            adata.uns["biomarkers"] = table[:rows]
            written(adata, tmp_path)
            page.open(tmp_path / "report.html", READY)
            assert page("!document.querySelector('#biomarkers').hidden") == bool(rows)
        # of a single group the text above has the number of genes already
        adata.uns["biomarkers"] = table[table["group"] == "a"]
        assert "genes tell a from the rest" in written(adata, tmp_path)
        page.open(tmp_path / "report.html", READY)
        assert page("document.querySelector('#marked').textContent").startswith(" Higher: ")
        assert page.errors == []


@needs_browser
@pytest.mark.slow
def test_browser_opens_a_report_of_100_000_cells(tmp_path):
    rng, n = np.random.default_rng(0), 100_000
    adata = ad.AnnData(sparse.random(n, 100, 0.1, format="csr", dtype=np.float32, rng=rng))
    adata.X.data = np.ceil(8 * adata.X.data)
    adata.obs["segment"] = pd.Categorical(rng.integers(0, 8, n).astype(str))
    adata.obsm["spatial"] = rng.uniform(0, 5000, (n, 2))
    written(with_table(adata), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 30e6
    with Chromium() as page:
        page.open(tmp_path / "report.html", READY)
        gene = page("document.querySelector('#table tbody td').textContent")
        page.click(*page.place("#table tbody tr"))
        page.wait(f"document.querySelector('#map').dataset.drawn == {gene!r}")
        assert page.errors == []
