"""tl.biomarkers with covariates: composition and columns; calibration and power on generated and real tissue."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import grid_positions, poisson_section

import stxtools as st


def _tissue(seed: int, planted: int = 0, fold: float = 2.0, side: int = 40, n_vars: int = 120) -> ad.AnnData:
    """Cell types in smooth patches make most of the variance; ``planted`` genes change in another region."""
    rng = np.random.default_rng(seed)
    xy = grid_positions(side)

    def smooth(length: float) -> np.ndarray:
        frequency = rng.standard_normal((200, 2)) / length
        return np.cos(xy @ frequency.T + rng.uniform(0, 2 * np.pi, 200)).sum(axis=1) / 10

    share = np.exp(2 * np.stack([smooth(6.0) for _ in range(3)], axis=1))
    share /= share.sum(axis=1, keepdims=True)
    rate = share @ (np.exp(rng.normal(0, 1, (3, n_vars))) * rng.gamma(2, 1, n_vars))
    region = smooth(12.0)
    region = region > np.quantile(region, 0.7)
    rate[:, :planted] *= np.where(region, 1.0, 1 / fold)[:, None]
    kind = np.array(list("abc"))[share.argmax(axis=1)]
    out = poisson_section(rate, xy, rng, region=np.where(region, "in", "out"), type=kind, x=xy[:, 0])
    out.obsm["share"] = share[:, :2]
    return out


def _called(adata: ad.AnnData, planted: int, **kwargs) -> tuple[float, int]:
    st.tl.biomarkers(adata, "region", groups=["in"], n_null=120, **kwargs)
    called = adata.uns["biomarkers"].set_index("names").loc[adata.var_names, "pvals_adj"].to_numpy() < 0.05
    return float(called[:planted].mean()) if planted else 0.0, int(called[planted:].sum())


def test_planted_genes_are_found_in_total_and_given_composition():
    total, given, false = [], [], []
    for seed in range(4):
        adata = _tissue(seed, planted=8)
        power, wrong = _called(adata, 8)
        table = adata.uns["biomarkers"].set_index("names").loc[adata.var_names]
        beyond = table["beyond_composition"].to_numpy()
        np.testing.assert_array_equal(beyond, table["pvals_adj_composition"] <= 0.05)
        total.append(power)
        given.append(beyond[:8].mean())
        false += [wrong, beyond[8:].sum()]
    assert np.mean(total) > 0.7
    assert np.mean(given) > 0.7
    assert np.mean(false) <= 2.0  # of 112


def test_columns_given_composition_equal_those_of_a_call_with_covariates():
    adata = _tissue(1, planted=8)
    st.tl.biomarkers(adata, "region", groups=["in"], n_null=60)
    total = adata.uns["biomarkers"].set_index("names").loc[adata.var_names]
    st.tl.biomarkers(adata, "region", groups=["in"], n_null=60, covariates="composition")
    given = adata.uns["biomarkers"].set_index("names").loc[adata.var_names]
    for column in ("scores", "pvals", "pvals_adj"):
        np.testing.assert_array_equal(given[column], total[f"{column}_composition"])
        np.testing.assert_array_equal(given[f"{column}_total"], total[column])
    np.testing.assert_array_equal(given["beyond_composition"], total["beyond_composition"])


def test_random_regions_have_no_markers_in_total_or_given_composition():
    tables = []
    for seed in range(10):
        adata = _tissue(50 + seed, side=26, n_vars=60)
        st.tl.biomarkers(adata, "region", groups=["in"], n_null=120)
        tables.append(adata.uns["biomarkers"])
    for suffix, limit in (("", 0.09), ("_composition", 0.08)):
        pooled = np.concatenate([table[f"pvals{suffix}"] for table in tables])
        assert sum((table[f"pvals_adj{suffix}"] < 0.05).any() for table in tables) <= 2
        assert np.mean(pooled < 0.05) < limit
        assert np.mean(pooled < 0.01) < 0.02
        assert 0.35 < np.median(pooled) < 0.65


def test_composition_explains_differences_between_cell_types():
    """Cell types against each other: everything differs in total, little given composition."""
    adata = _tissue(3)
    table = {}
    for covariates in (None, "composition"):
        st.tl.biomarkers(adata, "type", groups=["a"], covariates=covariates, n_null=100)
        table[covariates] = adata.uns["biomarkers"].set_index("names").loc[adata.var_names]
    assert table["composition"]["scores"].abs().mean() < 0.6 * table[None]["scores"].abs().mean()
    np.testing.assert_array_equal(table["composition"]["auroc"], table[None]["auroc"])  # descriptions stay as they are


def test_covariates_from_obs_and_obsm_raise_the_power():
    adata = _tissue(1, planted=8)
    shares = _called(adata, 8, covariates="share")
    given = adata.uns["biomarkers"].set_index("names").loc[adata.var_names, "scores"].to_numpy()
    both = _called(adata, 8, covariates=["type", "x"])
    total = _called(adata, 8)
    plain = adata.uns["biomarkers"].set_index("names").loc[adata.var_names, "scores"].to_numpy()
    assert np.abs(given[:8]).mean() > np.abs(plain[:8]).mean()
    assert shares[0] >= total[0]
    assert both[1] <= 1
    _called(adata, 8, covariates=["composition", "x"])
    assert list(adata.uns["biomarkers_params"]["covariates"]) == ["composition", "x"]


def test_gene_that_the_covariates_explain_entirely_is_not_tested():
    """Its residual in single precision is rounding."""
    adata = _tissue(2, side=16, n_vars=20)
    depth = adata.X.sum(axis=1).A1
    adata.obs["own"] = np.log1p(0.05 * adata.X[:, [4]].toarray()[:, 0] * np.median(depth) / depth)
    st.tl.biomarkers(adata, "region", groups=["in"], covariates="own", n_null=60)
    table = adata.uns["biomarkers"].set_index("names")
    assert table.loc["g4", ["pvals", "n_libraries", "rank_score"]].tolist() == [1, 0, 0]
    assert (table["n_libraries"].drop("g4") == 1).all()


def test_libraries_are_combined_given_composition():
    parts = [_tissue(s, planted=8, side=22) for s in range(3)]
    adata = ad.concat(parts, label="library", index_unique="-")
    st.tl.biomarkers(adata, "region", groups=["in"], covariates="composition", library_key="library", n_null=80)
    table = st.get.biomarkers(adata)
    assert set(table["names"][:5]) <= {f"g{i}" for i in range(8)}
    assert (table["n_libraries"] == 3).all()


@pytest.mark.parametrize(
    ("covariates", "error", "match"),
    [
        ("nope", KeyError, "neither 'composition' nor in"),
        (3, TypeError, "covariates"),
        ([3], KeyError, "neither 'composition' nor in"),
        ("region", ValueError, "nothing would be left"),
        ("gap", ValueError, "missing values"),
        ("bad", ValueError, "NaN"),
    ],
)
def test_wrong_covariates_are_reported(covariates, error, match):
    adata = _tissue(0, side=10)
    adata.obs["gap"] = pd.Categorical([None, *["a"] * (adata.n_obs - 1)])
    adata.obsm["bad"] = np.full((adata.n_obs, 2), np.nan)
    with pytest.raises(error, match=match):
        st.tl.biomarkers(adata, "region", covariates=covariates)
    assert not adata.uns


def test_covariates_of_a_comparison_between_libraries_are_an_error():
    adata = ad.concat([_tissue(s, side=12) for s in range(4)], label="library", index_unique="-")
    adata.obs["sick"] = np.where(adata.obs["library"].isin(["0", "1"]), "yes", "no")
    with pytest.raises(ValueError, match="different libraries"):
        st.tl.biomarkers(adata, "sick", library_key="library", covariates="composition")
