"""Synthetic tissue has the effects that its truth columns state."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import assert_same, read_back
from scipy import sparse, stats
from scipy.spatial import cKDTree
from sklearn.ensemble import RandomForestClassifier

import stxtools as st
from stxtools.datasets._anatomy import field_at, gaussian_field
from stxtools.datasets._expression import negative_binomial

PLATFORM_NAMES = ["visium", "merfish"]


@pytest.fixture(scope="module")
def cohort() -> ad.AnnData:
    return st.datasets.synthetic_tissue(3001, 40, n_patients=3, sections_per_patient=2, random_state=4)


def _dense(adata: ad.AnnData) -> np.ndarray:
    return adata.X.toarray().astype(np.float64)


def _morans_i(values: np.ndarray, xy: np.ndarray, k: int = 6) -> float:
    """Moran's I with k-nearest-neighbour weights, from its definition."""
    neighbours = cKDTree(xy).query(xy, k + 1)[1][:, 1:]
    z = values - values.mean()
    return float((z[:, None] * z[neighbours]).mean() / (z**2).mean())


@pytest.mark.parametrize(("platform", "shape"), [("visium", (10_000, 50)), ("merfish", (5_000, 30))])
def test_platform_defaults_have_the_documented_sizes(platform: str, shape: tuple[int, int]) -> None:
    adata = st.datasets.synthetic_tissue(platform=platform)
    assert adata.shape == shape
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    assert (adata.X.data > 0).all()
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    xy = adata.obsm["spatial"]
    assert xy.dtype == np.float64
    assert xy.shape == (shape[0], 2)
    assert (xy >= 0).all()
    assert list(adata.obs["compartment"].cat.categories) == ["layer_1", "layer_2", "layer_3", "layer_4", "island_1"]
    assert adata.obs["compartment"].value_counts().min() > 0.05 * shape[0]
    assert list(adata.obs["disease"].cat.categories) == ["healthy", "diseased"]
    # the lesion is 30 % of the section, by construction to the observation
    assert (adata.obs["disease"] == "diseased").mean() == pytest.approx(0.3, abs=1e-3)
    assert adata.var["is_biomarker"].sum() == round(0.1 * shape[1])
    assert adata.X.sum() / shape[0] == pytest.approx(2 * shape[1], rel=0.05)
    assert ("array_row" in adata.obs) == (platform == "visium")


def test_visium_spots_form_a_hexagonal_lattice() -> None:
    adata = st.datasets.synthetic_tissue(900, 5)
    xy = adata.obsm["spatial"]
    row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
    assert ((row + col) % 2 == 0).all()
    assert min(row.min(), col.min()) in (0, 1)
    assert not pd.DataFrame({"r": row, "c": col}).duplicated().any()
    # Visium's geometry: a step of two columns is 100 um, a row is 100 * sqrt(3) / 2
    np.testing.assert_allclose(xy[:, 0] - xy[0, 0], (col - col[0]) * 50.0, atol=1e-6)
    np.testing.assert_allclose(xy[:, 1] - xy[0, 1], (row - row[0]) * 50.0 * np.sqrt(3), atol=1e-6)
    distance = cKDTree(xy).query(xy, 7)[0][:, 1:]
    np.testing.assert_allclose(distance[:, 0], 100.0)
    # no holes: all spots but those at the outline have six neighbours at 100 um
    assert (distance[:, 5] < 101).mean() > 0.85


def test_merfish_cells_are_scattered_evenly() -> None:
    adata = st.datasets.synthetic_tissue(2_000, 5, platform="merfish")
    assert "array_row" not in adata.obs
    xy = adata.obsm["spatial"]
    distance = cKDTree(xy).query(xy, 2)[0][:, 1]
    assert len(np.unique(np.round(distance, 9))) > 900
    # complete spatial randomness has a coefficient of variation of 0.52; packed cells are more even
    assert distance.std() / distance.mean() < 0.5


@pytest.mark.parametrize("n_obs", [50, 203, 1234])
@pytest.mark.parametrize("platform", PLATFORM_NAMES)
def test_number_of_observations_is_exact(n_obs: int, platform: str) -> None:
    adata = st.datasets.synthetic_tissue(n_obs, 5, platform=platform, random_state=n_obs)
    assert len(np.unique(adata.obsm["spatial"], axis=0)) == adata.n_obs == n_obs


def test_counts_have_the_moments_of_a_negative_binomial() -> None:
    rng = np.random.default_rng(0)
    mean = np.repeat(np.array([[0.3, 2.0, 9.0]], dtype=np.float32), 200_000, axis=0)
    theta = np.array([5.0, 2.0, 0.8], dtype=np.float32)
    counts = negative_binomial(rng, mean, theta, 0.0)
    mu = mean[0].astype(float)
    np.testing.assert_allclose(counts.mean(axis=0), mu, rtol=0.02)
    np.testing.assert_allclose(counts.var(axis=0), mu + mu**2 / theta, rtol=0.03)
    expected_zero = stats.nbinom.pmf(0, theta, theta / (theta + mu))
    np.testing.assert_allclose((counts == 0).mean(axis=0), expected_zero, rtol=0.01)
    dropped = negative_binomial(rng, mean, theta, 0.4)
    np.testing.assert_allclose(dropped.mean(axis=0), 0.6 * mu, rtol=0.02)
    np.testing.assert_allclose((dropped == 0).mean(axis=0), 0.4 + 0.6 * expected_zero, rtol=0.01)


def test_counts_drawn_in_chunks_keep_the_order_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows cut into chunks keep their order and expectation."""
    made = []
    for entries in (4_000_000, 7_000):
        monkeypatch.setattr("stxtools.datasets._expression._CHUNK_ENTRIES", entries)
        made.append(st.datasets.synthetic_tissue(1_000, 200, difficulty=0.1, mean_depth=4_000, random_state=4))
    depth = [np.asarray(adata.X.sum(axis=1)).ravel() for adata in made]
    assert np.corrcoef(np.log1p(depth))[0, 1] > 0.9  # the same depths, other draws
    assert depth[1].sum() == pytest.approx(depth[0].sum(), rel=0.02)


def test_planted_fold_change_is_recovered() -> None:
    """Nuisance shifts a gene in any one lesion; over independent sections it averages out."""
    adata = st.datasets.synthetic_tissue(
        24_000, 20, n_patients=12, disease="lesion", n_biomarkers=4, logfc=[1.0, -1.5, 0.5, 2.0], difficulty=0.2,
        mean_depth=200, random_state=2,
    )  # fmt: skip
    counts = _dense(adata)
    assert counts.sum(axis=1).mean() == pytest.approx(200, rel=0.05)
    ill = (adata.obs["disease"] == "diseased").to_numpy()
    ratios = []
    for rows in adata.obs.groupby("section", observed=True).indices.values():
        inside, outside = counts[rows][ill[rows]], counts[rows][~ill[rows]]
        ratios.append(np.log2(inside.mean(axis=0) / outside.mean(axis=0)))
    planted = adata.var["is_biomarker"].to_numpy()
    assert sorted(adata.var.loc[planted, "true_logfc"]) == [-1.5, 0.5, 1.0, 2.0]
    assert (adata.var.loc[~planted, "true_logfc"] == 0).all()
    assert (adata.var.loc[planted, "marker_of"] == "none").all()
    found, error = np.mean(ratios, axis=0), np.std(ratios, axis=0, ddof=1) / np.sqrt(12)
    assert error[planted].max() < 0.15
    assert (np.abs(found - adata.var["true_logfc"].to_numpy())[planted] < 3.5 * error[planted]).all()


def test_scalar_logfc_is_negative_for_every_third_biomarker() -> None:
    adata = st.datasets.synthetic_tissue(400, 30, n_biomarkers=6, logfc=2.0)
    assert sorted(adata.var["true_logfc"][adata.var["is_biomarker"]]) == [-2, -2, 2, 2, 2, 2]
    assert st.datasets.synthetic_tissue(400, 30, n_biomarkers=0).var["is_biomarker"].sum() == 0


def test_markers_are_highest_in_their_compartment() -> None:
    adata = st.datasets.synthetic_tissue(6_000, 40, difficulty=0.1, random_state=1)
    counts = pd.DataFrame(_dense(adata), columns=adata.var_names, index=adata.obs["compartment"])
    highest = counts.groupby(level=0, observed=True).mean().idxmax()
    marker = adata.var["marker_of"] != "none"
    assert (highest[marker.to_numpy()] == adata.var.loc[marker, "marker_of"].astype(str)).all()
    assert set(adata.var.loc[marker, "marker_of"]) == set(adata.obs["compartment"].cat.categories)


def test_gaussian_field_is_standard_normal_with_the_stated_correlation() -> None:
    rng = np.random.default_rng(0)
    at = np.array([[0.0, 0.0], [0.3, 0.0], [0.0, 0.6]])
    values = np.array([field_at(gaussian_field(rng, 0.3), at) for _ in range(600)])
    assert np.abs(values.mean(axis=0)).max() < 0.15
    np.testing.assert_allclose(values.std(axis=0), 1, atol=0.1)
    correlation = np.corrcoef(values.T)[0]
    np.testing.assert_allclose(correlation[1:], [np.exp(-0.5), np.exp(-2)], atol=0.12)


def test_genes_without_a_role_are_autocorrelated_and_carry_no_label() -> None:
    """Genes without a role look spatial, yet over seeds they know nothing of compartments or disease."""
    morans, shifts = [], []
    for seed in range(12):
        adata = st.datasets.synthetic_tissue(1_000, 14, difficulty=0.4, mean_depth=300, random_state=seed)
        roleless = ((adata.var["marker_of"] == "none") & ~adata.var["is_biomarker"]).to_numpy()
        values = np.log1p(_dense(adata)[:, roleless])
        morans.append([_morans_i(v, adata.obsm["spatial"]) for v in values.T])
        for column, label in (("compartment", "layer_1"), ("disease", "diseased")):
            inside = (adata.obs[column] == label).to_numpy()
            shifts.append((values[inside].mean(axis=0) - values[~inside].mean(axis=0)) / values.std(axis=0))
    # noise has an expected value of -1 / (n - 1) with a standard deviation of about 0.02
    assert np.median(morans) > 0.05
    # genes of one tissue share programs: the seeds are the sample
    per_seed = np.array([shift.mean() for shift in shifts]).reshape(12, 2)
    assert (np.abs(per_seed.mean(axis=0)) < 3 * per_seed.std(axis=0, ddof=1) / np.sqrt(12)).all()
    # a test that takes spots as independent would be fooled: its z is about 0.4 * sqrt(1000) * shift
    assert max(np.abs(shift).max() for shift in shifts) > 0.3


def test_first_two_layers_mix_along_their_border() -> None:
    adata = st.datasets.synthetic_tissue(5_000, 5, random_state=1)
    code, mixture = adata.obs["compartment"].cat.codes.to_numpy(), adata.obsm["compartment_mixture"].to_numpy()
    np.testing.assert_allclose(mixture.sum(axis=1), 1, atol=1e-6)
    assert (mixture >= 0).all()
    own = mixture[np.arange(len(code)), code]
    assert (own > 0.9).mean() > 0.6
    mixed = [((mixture[:, k] > 0.2) & (mixture[:, k + 1] > 0.2)).sum() for k in range(3)]
    assert mixed[0] > 1.5 * max(mixed[1:])


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_all_compartments_have_observations(n: int) -> None:
    adata = st.datasets.synthetic_tissue(3_000, 12, n_compartments=n, random_state=n)
    names = list(adata.obs["compartment"].cat.categories)
    assert len(set(names)) == n
    assert set(adata.obs["compartment"]) == set(names)
    assert list(adata.obsm["compartment_mixture"].columns) == names
    assert adata.obsm["compartment_mixture"].shape == (3_000, n)


def test_cohort_has_the_patients_and_sections(cohort: ad.AnnData) -> None:
    obs = cohort.obs
    assert cohort.n_obs == 3_001
    assert list(obs["section"].cat.categories) == ["P1_S1", "P1_S2", "P2_S1", "P2_S2", "P3_S1", "P3_S2"]
    assert obs["section"].value_counts().max() - obs["section"].value_counts().min() <= 1
    assert (obs.groupby("section", observed=True)["patient"].nunique() == 1).all()
    assert (obs.groupby("patient", observed=True)["disease"].nunique() == 1).all()
    assert set(obs["disease"]) == {"healthy", "diseased"}
    assert cohort.obs_names.is_unique
    assert not any("/" in s for s in obs["section"].cat.categories)


def test_section_is_an_affine_image_of_the_tissue(cohort: ad.AnnData) -> None:
    scales = []
    for rows in cohort.obs.groupby("section", observed=True).indices.values():
        tissue, placed = cohort.obsm["spatial_tissue"][rows], cohort.obsm["spatial"][rows]
        affine, missed, *_ = np.linalg.lstsq(np.c_[tissue, np.ones(len(tissue))], placed)
        assert missed.max() < 1e-6
        assert placed.min() >= 0
        scales.append(np.sqrt(np.linalg.det(affine[:2])))
    assert scales[0] == pytest.approx(1)
    assert np.std(scales) > 0.01
    assert 0.9 <= min(scales) <= max(scales) <= 1.1


def test_sections_of_a_patient_agree_in_the_tissue_frame() -> None:
    adata = st.datasets.synthetic_tissue(4_000, 10, n_patients=2, sections_per_patient=2, random_state=3)

    def agreement(a: str, b: str) -> float:
        one, two = (adata[adata.obs["section"] == s] for s in (a, b))
        nearest = cKDTree(one.obsm["spatial_tissue"]).query(two.obsm["spatial_tissue"])[1]
        return float(np.mean(one.obs["compartment"].to_numpy()[nearest] == two.obs["compartment"].to_numpy()))

    assert agreement("P1_S1", "P1_S2") > 0.7
    assert agreement("P1_S1", "P1_S2") > agreement("P1_S1", "P2_S1")


def test_batch_effect_scales_each_gene_per_section() -> None:
    adata = st.datasets.synthetic_tissue(
        8_000, 30, sections_per_patient=2, difficulty=1.0, n_biomarkers=0, mean_depth=600, random_state=1
    )
    first = (adata.obs["section"] == "P1_S1").to_numpy()
    counts = _dense(adata)
    ratio = np.log(counts[first].mean(axis=0) / counts[~first].mean(axis=0))
    # two effects of standard deviation 0.5 each, and what is left of the nuisance
    assert 0.4 < ratio.std() < 1.2


def test_lesion_covers_30_percent_of_every_patient() -> None:
    adata = st.datasets.synthetic_tissue(1_200, 10, n_patients=3, disease="lesion")
    share = (adata.obs["disease"] == "diseased").groupby(adata.obs["section"], observed=True).mean()
    np.testing.assert_allclose(share, 0.3, atol=0.01)


@pytest.mark.parametrize("platform", PLATFORM_NAMES)
def test_same_seed_same_bits(platform: str) -> None:
    kwargs = {"n_obs": 500, "n_vars": 12, "platform": platform, "n_patients": 2}
    one, two, other = (st.datasets.synthetic_tissue(**kwargs, random_state=seed) for seed in (7, 7, 8))
    assert_same(one, two)
    assert (one.X != other.X).nnz > 0
    assert not np.array_equal(one.obs["compartment"], other.obs["compartment"])


def test_cohort_survives_files(cohort: ad.AnnData, tmp_path: Path) -> None:
    for read in read_back(cohort, tmp_path):
        assert_same(cohort, read)


def _block_accuracy(adata: ad.AnnData) -> float:
    xy = adata.obsm["spatial"]
    blocks = [np.minimum(4 * stats.rankdata(v, method="ordinal") // (len(v) + 1), 3).astype(int) for v in xy.T]
    fold = (blocks[0] + blocks[1]) % 2
    values, truth = np.log1p(_dense(adata)), adata.obs["compartment"].astype(str).to_numpy()
    hits = []
    for k in (0, 1):
        forest = RandomForestClassifier(40, random_state=0).fit(values[fold != k], truth[fold != k])
        hits.append(forest.predict(values[fold == k]) == truth[fold == k])
    return float(np.concatenate(hits).mean())


@pytest.mark.parametrize("platform", PLATFORM_NAMES)
def test_classification_gets_harder_with_difficulty(platform: str) -> None:
    accuracy = []
    for difficulty in (0.0, 0.3, 0.6, 1.0):
        how = {"n_obs": 900, "n_vars": 30, "platform": platform, "difficulty": difficulty}
        tissues = [st.datasets.synthetic_tissue(**how, random_state=seed) for seed in (0, 1)]
        accuracy.append(np.mean([_block_accuracy(tissue) for tissue in tissues]))
    assert (np.diff(accuracy) < -0.05).all(), accuracy
    assert accuracy[0] > 0.93
    assert accuracy[-1] < 0.4  # five compartments: 0.2 by chance, 0.25 for the largest


@pytest.mark.parametrize("platform", PLATFORM_NAMES)
def test_effects_are_monotone_in_difficulty(platform: str) -> None:
    how = {"n_obs": 50, "n_vars": 12, "platform": platform}
    tissues = (st.datasets.synthetic_tissue(**how, difficulty=d) for d in np.linspace(0, 1, 11))
    frame = pd.DataFrame([tissue.uns["synthetic"]["effects"] for tissue in tissues])
    for name, column in frame.items():
        change = np.diff(column)
        assert (change < 0).all() if name in {"marker", "inverse_dispersion"} else (change >= 0).all(), name
    assert frame["marker"].iloc[-1] == 0


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"platform": "slideseq"}, ValueError, "visium"),
        ({"n_obs": 10}, ValueError, "at least 20"),
        ({"n_obs": 50, "n_patients": 4}, ValueError, "at least 80"),
        ({"n_obs": 1e4}, TypeError, "integer"),
        ({"n_vars": 1}, ValueError, "n_vars"),
        ({"n_compartments": 1}, ValueError, "n_compartments"),
        ({"n_patients": 0}, ValueError, "n_patients"),
        ({"sections_per_patient": 0}, ValueError, "sections_per_patient"),
        ({"difficulty": 1.5}, ValueError, "difficulty"),
        ({"difficulty": float("nan")}, TypeError, "finite"),
        ({"n_biomarkers": 50}, ValueError, "n_biomarkers"),
        ({"logfc": [1.0, 2.0]}, ValueError, "2 values for 5"),
        ({"logfc": float("inf")}, TypeError, "finite"),
        ({"logfc": 1e12}, ValueError, "at most 30"),
        ({"logfc": "3"}, TypeError, "finite"),
        ({"logfc": True}, TypeError, "finite"),
        ({"mean_depth": 0}, ValueError, "mean_depth"),
        ({"disease": "patient"}, ValueError, "n_patients"),
        ({"disease": "tumour"}, ValueError, "lesion"),
        ({"random_state": -1}, ValueError, "random_state"),
    ],
)
def test_wrong_arguments_raise(kwargs: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        st.datasets.synthetic_tissue(**kwargs)
