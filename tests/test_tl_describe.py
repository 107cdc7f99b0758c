"""tl.describe, get.describe, pl.describe: gene sets and contacts of compartments, tested like genes."""

from __future__ import annotations

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from conftest import assert_same, read_back
from scipy import ndimage, sparse

import stxtools as st

BANDS = np.array(["outer", "middle", "inner"], dtype=object)


def _section(seed: int = 0, size: int = 40) -> ad.AnnData:
    """Three compartments in turn. Genes 0 to 7 mark "middle", 10 the border of "outer" with it, 11 and 12 its own."""
    rng = np.random.default_rng(seed)
    row, col = (a.ravel() for a in np.mgrid[:size, :size])
    band = row // 5 % 3
    rate = np.full((size * size, 300), 2.0)
    rate[band == 1, :8] *= 3
    rate[row % 15 == 4, 10] *= 6
    rate[row % 15 == 5, 11] *= 6
    rate[row % 15 == 5, 12] *= 6
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.var_names = [f"G{i}" for i in range(300)]
    adata.obs_names = [f"spot{i}" for i in range(adata.n_obs)]
    adata.obs["band"] = pd.Categorical(BANDS[band], list(BANDS))
    adata.obsm["spatial"] = np.c_[col, row].astype(float)
    return adata


def _net(n: int = 12, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    random = {f"random {i}": rng.choice(np.arange(13, 300), 8, replace=False) for i in range(n)}
    rows = [(name, f"G{g}", 1.0) for name, genes in {"middle set": range(8), **random}.items() for g in genes]
    return pd.DataFrame(rows, columns=["source", "target", "weight"])


PAIRS = pd.DataFrame({"ligand": ["G10", "G20", "G30"], "receptor": ["G11_G12", "G21", "G31"]})


def _marked(adata: ad.AnnData, **kwargs: object) -> ad.AnnData:
    st.tl.biomarkers(adata, "band", n_null=50)
    st.tl.describe(adata, "band", n_null=100, **kwargs)  # type: ignore[arg-type]
    return adata


def _logged(adata: ad.AnnData) -> np.ndarray:
    other = ad.AnnData(adata.X.copy())
    sc.pp.normalize_total(other)
    sc.pp.log1p(other)
    return other.X.toarray()


def test_activities_equal_decoupler_and_find_the_planted_set() -> None:
    decoupler = pytest.importorskip("decoupler", reason="the extra `describe` is not installed")
    adata = _marked(_section(), net=_net())
    table = st.get.describe(adata, "activity")
    scores, _ = decoupler.mt.ulm(pd.DataFrame(_logged(adata), adata.obs_names, adata.var_names), _net(), tmin=5)
    means = (scores - scores.mean()).groupby(adata.obs["band"], observed=True).mean().stack()
    found = table.set_index(["group", "names"])["mean_group"]
    np.testing.assert_allclose(found, means.reindex(found.index), atol=1e-4)
    called = table[(table["pvals_adj"] <= 0.05) & (table["scores"] > 0) & (table["group"] == "middle")]
    assert list(called["names"]) == ["middle set"]
    summary = st.get.describe(adata)
    assert summary.loc["middle", "activity"] == "middle set"
    assert summary.loc["middle", "proposed_name"].startswith("middle set (G")
    assert list(summary.index) == list(BANDS)
    assert summary["n_obs"].sum() == adata.n_obs
    two = {"sets": _net(), "others": _net(seed=1)}
    st.tl.describe(adata, "band", net=two, n_null=50)
    assert list(adata.uns["describe_params"]["kinds"]) == ["sets", "others"]


def test_contact_scores_by_hand_find_the_planted_pair() -> None:
    adata = _marked(_section(), resource=PAIRS)
    logged, band = _logged(adata), adata.obs["band"].to_numpy()
    size = 40
    ligand, receptor = logged[:, 10], np.minimum(logged[:, 11], logged[:, 12])
    at = [(r, c) for r in (4, 19, 34) for c in range(size)]  # the last rows of "outer" before "middle"
    wanted = np.mean([np.sqrt(ligand[r * size + c] * receptor[(r + 1) * size + c]) for r, c in at])
    table = st.get.describe(adata, "contact")
    row = table[(table["group"] == "outer") & (table["partner"] == "middle") & (table["names"] == "G10^G11_G12")]
    assert row["mean_group"].item() == pytest.approx(wanted, rel=1e-5)
    borders = [(r, r + 1) for r in range(4, 39, 5)] + [(r, r - 1) for r in range(5, 40, 5)]
    others = [(r, s) for r, s in borders if {r % 15, s % 15} != {4, 5}]  # without the other side of the same borders
    other = np.mean([np.sqrt(ligand[r * size + c] * receptor[s * size + c]) for r, s in others for c in range(size)])
    assert row["mean_reference"].item() == pytest.approx(other, rel=1e-5)
    assert set(zip(table["group"], table["partner"], strict=True)) == {
        (one, other) for one in BANDS for other in BANDS if one != other}  # fmt: skip
    assert set(band) == set(BANDS)
    called = table[(table["pvals_adj"] <= 0.05) & (table["scores"] > 0)]
    assert set(called["names"]) == {"G10^G11_G12"}
    assert st.get.describe(adata, group="outer")["contact"].item() == "G10^G11_G12 (middle)"


def test_smooth_expression_without_an_effect_is_not_significant() -> None:
    rng, adata = np.random.default_rng(0), _section()
    fields = np.stack([ndimage.gaussian_filter(rng.normal(size=(40, 40)), 3).ravel() for _ in range(301)], axis=1)
    fields /= fields.std(axis=0)
    adata.X = sparse.csr_matrix(rng.poisson(np.exp(1 + fields[:, 1:])).astype(np.float32))
    adata.obs["band"] = pd.qcut(fields[:, 0], 3, labels=list(BANDS))
    pairs = pd.DataFrame(rng.choice(adata.var_names, (150, 2), replace=False), columns=["ligand", "receptor"])
    table = st.get.describe(_marked(adata, resource=pairs), "contact")
    assert len(table) >= 4 * 150
    assert (table["pvals"] <= 0.05).mean() <= 0.1
    assert (table["pvals_adj"] <= 0.05).mean() <= 0.02


def test_sections_of_a_subject_count_as_one() -> None:
    parts = {f"s{i}": _section(i, 20) for i in range(3)}
    adata = ad.concat(parts, label="section", index_unique="-")
    adata.obs["patient"] = adata.obs["section"].map({"s0": "p", "s1": "p", "s2": "q"})
    how = {"net": _net(), "library_key": "section", "n_null": 50}
    st.tl.biomarkers(adata, "band", library_key="section", subject_key="patient", n_null=50)
    for key, n in ((None, 3), ("patient", 2)):
        st.tl.describe(adata, "band", subject_key=key, **how)
        assert set(adata.uns["describe_evidence"]["n_libraries"]) == {n}


def test_tables_do_not_depend_on_row_order_and_survive_files(tmp_path: Path) -> None:
    adata = _section()
    st.tl.biomarkers(adata, "band", n_null=50)
    one = st.tl.describe(adata, "band", resource=PAIRS, n_null=50, copy=True)
    assert one is not None
    assert "describe" not in adata.uns
    permuted = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    PAIRS.to_csv(tmp_path / "pairs.tsv", sep="\t", index=False)
    st.tl.describe(permuted, "band", resource=tmp_path / "pairs.tsv", n_null=50)
    for key in ("describe", "describe_evidence"):
        pd.testing.assert_frame_equal(permuted.uns[key], one.uns[key])
    without = st.tl.describe(one, "band", copy=True)
    assert len(without.uns["describe_evidence"]) == 0
    assert "contact" not in without.uns["describe"]
    for described in (one, without):
        for back in read_back(described, tmp_path):
            for key in ("describe", "describe_evidence"):
                pd.testing.assert_frame_equal(back.uns[key], described.uns[key], check_dtype=False)


def test_resource_is_read_from_liana_by_name() -> None:
    pytest.importorskip("liana", reason="the extra `describe` is not installed")
    adata = _section()
    adata.var_names = ["LGALS9", "PTPRC", *adata.var_names[2:]]
    adata = _marked(adata, resource="consensus")
    assert set(st.get.describe(adata, "contact")["names"]) == {"LGALS9^PTPRC"}
    with pytest.raises(ValueError, match="not in liana"):
        st.tl.describe(adata, "band", resource="nothing")


def test_pl_describe_draws_the_significant_contact() -> None:
    adata = _marked(_section(), resource=PAIRS)
    ax = st.pl.describe(adata, "contact", show=False)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["outer → middle"]
    assert ax.get_yticklabels()[0].get_text() == "G10^G11_G12"
    drawn = ax.collections[0].get_array()[0, 0]
    assert drawn == pytest.approx(st.get.describe(adata, "contact", group="outer")["scores"].iloc[0])
    with pytest.raises(ValueError, match="was not described"):
        st.pl.describe(adata, "activity")


def test_wrong_arguments_leave_the_data_unchanged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    adata = _section()
    with pytest.raises(KeyError, match=r"st\.tl\.biomarkers"):
        st.tl.describe(adata, "band")
    st.tl.biomarkers(adata, "band", n_null=50)
    adata.obs["half"] = np.arange(adata.n_obs) < 800
    before = adata.copy()
    for error, match, how in (
        (ValueError, "made for `groupby='band'`", {"groupby": "half"}),
        (KeyError, "lacks the column", {"net": _net().drop(columns="target")}),
        (ValueError, "not finite numbers", {"net": _net().assign(weight="x")}),
        (ValueError, "has 5 targets", {"net": _net().assign(target=lambda t: t["target"].str.lower())}),
        (ValueError, "columns of the output", {"net": {"markers": _net()}}),
        (ValueError, "all of its genes", {"resource": PAIRS.assign(ligand="g")}),
        (FileNotFoundError, "no.csv", {"resource": tmp_path / "no.csv"}),
        (TypeError, r"`net\['x'\]` must be", {"net": {"x": 3}}),
    ):
        with pytest.raises(error, match=match):
            st.tl.describe(adata, **{"groupby": "band", **how})  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "decoupler", None)
    with pytest.raises(ImportError, match=r"pip install 'stxtools\[describe\]'"):
        st.tl.describe(adata, "band", net=_net())
    with pytest.raises(KeyError, match=r"st\.tl\.describe"):
        st.get.describe(adata)
    assert_same(before, adata)
