"""st.tl.segment: slots, modes, errors, files, plots by squidpy."""

from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ON_CPU, assert_same
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import stxtools as st


def run(adata, params, *args, **kwargs):
    return st.tl.segment(adata, *args, params=params, **(ON_CPU | kwargs))


def mask_and_pixels(adata, key="segment", library="section"):
    """Return the mask of a section, and row and column of its observations."""
    mask = adata.uns[key]["masks"][library]
    at = np.rint((adata.obsm["spatial"] - mask["origin"]) * mask["scale"]).astype(int)
    assert (at >= 0).all()
    assert (at < mask["image"].shape[::-1]).all()
    return mask["image"], at.T[::-1]


@pytest.mark.parametrize("kind", ["hex", "square", "scattered"])
def test_slots_agree_with_each_other(make_section, quick_unet, kind):
    adata = make_section(kind)
    adata.obsm["spatial"] -= 1e4
    x = adata.X.copy()
    assert run(adata, quick_unet, 3) is None
    assert (x != adata.X).nnz == 0
    segment = adata.obs["segment"]
    assert isinstance(segment.dtype, pd.CategoricalDtype)
    assert list(segment.cat.categories) == ["0", "1", "2"]
    proba = adata.obsm["segment_proba"]
    assert list(proba.columns) == ["0", "1", "2"]
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert (proba.idxmax(axis=1) == segment.astype(str)).all()
    np.testing.assert_array_equal(adata.obs["segment_confidence"], proba.max(axis=1))
    np.testing.assert_array_equal(adata.obs["segment_id"], segment.cat.codes + 1)
    assert adata.obsm["X_unet"].shape == (adata.n_obs, 8)
    assert "spatial" not in adata.uns
    mask, at = mask_and_pixels(adata)
    assert mask.dtype == np.uint32
    assert (mask[tuple(at)] == adata.obs["segment_id"]).mean() > 0.95
    assert set(np.unique(mask)) <= {0, 1, 2, 3}
    assert (mask > 0).mean() > 0.7  # the image is where the tissue is


def test_same_seed_gives_the_same_bits_in_copies(make_section, quick_unet):
    adata = make_section()
    before = adata.copy()
    one, two = (run(adata, quick_unet, 3, copy=True) for _ in range(2))
    assert_same(adata, before)
    assert_same(one, two)


def test_chosen_number_of_segments_has_the_lowest_bic(quick_unet):
    adata = st.datasets.synthetic_tissue(500, 200, n_compartments=4, difficulty=0.3, random_state=2)
    run(adata, quick_unet)
    curve = adata.uns["segment"]["stability"]
    assert list(curve.columns) == ["n_segments", "stability", "bic"]
    best = curve["n_segments"][curve["bic"].idxmin()]
    assert best == 4
    assert adata.obs["segment"].nunique() == adata.uns["segment"]["params"]["n_segments"] == best


def test_tissue_without_structure_is_one_segment_with_a_warning(make_section, quick_unet):
    adata = make_section(rows=24, cols=20)
    adata.X = adata.X[np.random.default_rng(0).permutation(adata.n_obs)]
    with pytest.warns(UserWarning, match="n_segments"):
        run(adata, quick_unet)
    assert adata.obs["segment"].nunique() == 1
    assert adata.uns["segment"]["stability"]["n_segments"].tolist() == [1]


def test_few_labels_give_the_segments_of_their_classes(make_section, quick_unet):
    adata = make_section()
    adata.obs["scribble"] = adata.obs["band"].where(np.arange(adata.n_obs) % 9 == 0)
    run(adata, quick_unet | {"epochs": 30}, labels_key="scribble")
    assert list(adata.obs["segment"].cat.categories) == ["a", "b", "c"]
    assert (adata.obs["segment"].astype(str) == adata.obs["band"].astype(str)).mean() > 0.85


def test_labels_that_no_observation_is_predicted_as_are_reported(make_section, quick_unet):
    adata, rng = make_section(), np.random.default_rng(0)
    scribble = adata.obs["band"].astype(object).where(rng.random(adata.n_obs) < 0.3)
    scribble.iloc[rng.choice(adata.n_obs, 3, replace=False)] = "rare"
    adata.obs["scribble"] = pd.Categorical(scribble)
    with pytest.warns(UserWarning, match="No observation is predicted as 'rare'"):
        run(adata, quick_unet, labels_key="scribble")
    assert not (adata.obs["segment"] == "rare").any()


def test_shares_of_classes_correct_few_labels(make_section, quick_unet):
    adata = make_section(rows=30, cols=20)
    band = adata.obs["band"].astype(str)
    true = band.value_counts(normalize=True).to_dict()
    adata.obs["scribble"] = adata.obs["band"].where(np.arange(adata.n_obs) % 60 == 0)
    skewed = {"a": 0.9, "b": 0.05, "c": 0.05}
    found = {}
    for name, shares in {"none": None, "true": true, "skewed": skewed, "some": {"a": 0.9}}.items():
        run(adata, quick_unet, labels_key="scribble", class_shares=shares)
        found[name] = adata.obs["segment"].astype(str)
    sizes = {name: (labels == "a").mean() for name, labels in found.items()}
    assert sizes["skewed"] > max(sizes["none"], sizes["true"])
    assert sizes["some"] > max(sizes["none"], sizes["true"])
    assert (found["true"] == band).mean() >= (found["skewed"] == band).mean()
    assert abs(sizes["true"] - true["a"]) <= abs(sizes["none"] - true["a"]) + 0.02
    assert list(adata.uns["segment"]["params"]["class_shares"]) == [0.9, 0.0, 0.0]


@pytest.mark.parametrize(
    ("shares", "error", "match"),
    [
        ({"d": 0.5}, ValueError, "names 'd'"),
        ({"a": 1.0}, ValueError, "leave nothing"),
        ({"a": 30, "b": 30, "c": 40}, ValueError, "class_shares"),
        ({"a": 0.1, "b": 0.1, "c": 0.1}, ValueError, "expected about 1"),
        ([0.3, 0.3, 0.4], TypeError, "must map"),
    ],
)
def test_wrong_class_shares_are_reported(make_section, shares, error, match):
    adata = make_section()
    with pytest.raises(error, match=match):
        st.tl.segment(adata, labels_key="band", class_shares=shares, show_progress=False)
    with pytest.raises(ValueError, match="needs `labels_key=`"):
        st.tl.segment(adata, 3, class_shares={"a": 0.5}, show_progress=False)
    assert "segment" not in adata.obs


def test_labels_can_be_kept_and_uncertain_observations_be_missing(make_section, quick_unet):
    adata = make_section()
    wrong = adata.obs["band"].cat.rename_categories({"a": "c", "c": "a"})
    adata.obs["scribble"] = wrong.where(np.arange(adata.n_obs) % 9 == 0)
    known = adata.obs["scribble"].notna()
    run(adata, quick_unet, labels_key="scribble", keep_labels=True, abstain_below=0.6)
    assert (adata.obs["segment"].astype(object)[known] == adata.obs["scribble"].astype(object)[known]).all()
    unsure = adata.obs["segment_confidence"] < 0.6
    assert unsure.any()
    assert (adata.obs["segment"].isna() == unsure).all()
    assert (adata.obs["segment_id"][unsure] == 0).all()
    st.tl.region_graph(adata)
    assert (adata.obs["region_id"].isna() == unsure).all()
    with pytest.raises(ValueError, match="labels_key"):
        run(adata, quick_unet, 3, keep_labels=True)
    with pytest.raises(ValueError, match="abstain_below"):
        run(adata, quick_unet, 3, abstain_below=1.5)


def test_suggested_observations_are_uncertain_unlabelled_and_far_apart(make_section, quick_unet):
    adata = make_section(rows=30, cols=20)
    adata.obs["scribble"] = adata.obs["band"].where(np.arange(adata.n_obs) % 40 == 0)
    run(adata, quick_unet | {"epochs": 15}, labels_key="scribble")
    st.tl.suggest_labels(adata, 6)
    order = adata.obs["suggested"].dropna()
    assert sorted(order) == [1, 2, 3, 4, 5, 6]
    assert adata.obs.loc[order.index, "scribble"].isna().all()
    proba = np.sort(adata.obsm["segment_proba"].to_numpy(), axis=1)
    margin = pd.Series(proba[:, -1] - proba[:, -2], adata.obs_names)
    assert margin[order.index].mean() < margin.mean()
    xy = adata[order.index].obsm["spatial"]
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=-1)[np.triu_indices(6, 1)]
    assert apart.min() > 150
    with pytest.raises(ValueError, match="have no label"):
        st.tl.suggest_labels(adata, adata.n_obs)
    with pytest.raises(KeyError, match=r"st\.tl\.segment"):
        st.tl.suggest_labels(make_section())


def test_sections_have_masks_of_their_own_and_an_integrated_representation_is_used(make_section, quick_unet):
    both = make_section(libraries=2)
    run(both, quick_unet, 3, library_key="library")
    assert set(both.uns["segment"]["masks"]) == {"lib0", "lib1"}
    assert both.uns["segment"]["params"]["library_key"] == "library"
    expected = normalized_mutual_info_score(both.obs["library"], both.obs["segment"])
    assert both.uns["segment"]["library_nmi"] == pytest.approx(expected)
    unsure = both.copy()
    run(unsure, quick_unet, 3, library_key="library", abstain_below=float(both.obs["segment_confidence"].median()))
    assert unsure.obs["segment"].isna().any()
    assert unsure.uns["segment"]["library_nmi"] == pytest.approx(expected)  # no compartment is not one
    integrated = both.copy()  # such as by scanpy.external.pp.harmony_integrate
    both.obsm["X_pca"] = integrated.obsm["X_pca_harmony"] = np.asarray(both.X[:, :12].toarray(), dtype=np.float64)
    run(both, quick_unet, 3, library_key="library")
    run(integrated, quick_unet, 3, library_key="library", use_rep="X_pca_harmony")
    np.testing.assert_array_equal(integrated.obsm["segment_proba"], both.obsm["segment_proba"])
    assert integrated.uns["segment"]["params"]["representation"] == "X_pca_harmony"
    both.uns["spatial"] = {"lib0": {}, "lib1": {}}
    with pytest.raises(ValueError, match="library_key"):
        run(both, quick_unet, 3)


def patients(effect: float, names: str = "ab") -> ad.AnnData:
    """Sections of three stripes, of other widths, with an effect of the patient on every gene."""
    rng, parts = np.random.default_rng(0), []
    x, y = (at.ravel() for at in np.meshgrid(np.arange(20), np.arange(20)))
    shares = {"a": [0.6, 0.2, 0.2], "b": [0.2, 0.2, 0.6], "c": [0.2, 0.6, 0.2], "d": [0.8, 0.1, 0.1],
              "e": [0.1, 0.1, 0.8]}  # fmt: skip
    for name, share in ((n, shares[n]) for n in names):
        tissue = np.searchsorted(np.cumsum(share), (x + 0.5) / 20)
        mean = np.exp(effect * rng.standard_normal(60)) * np.where(np.arange(60) // 15 == tissue[:, None], 3, 1)
        obs = pd.DataFrame({"patient": name, "tissue": tissue.astype(str)}, index=[f"{name}{i}" for i in range(400)])
        at = {"spatial": np.column_stack([x, y]).astype(float)}
        parts.append(ad.AnnData(rng.poisson(mean).astype(np.float32), obs=obs, obsm=at))
    return ad.concat(parts)


def test_patients_with_a_batch_effect_are_clustered_apart_and_joined(tmp_path):
    one, two, unet = patients(0.0), patients(0.5), {"epochs": 6, "pretrain": "none"}
    run(one, unet, 3, library_key="patient")
    run(two, unet, 3, library_key="patient", save_model=tmp_path / "two.stx")
    assert one.uns["segment"]["batches"]["batch"].tolist() == [0, 0]
    found = two.uns["segment"]["batches"]
    assert found["library"].tolist() == ["a", "b"]
    assert found["batch"].tolist() == [0, 1]
    assert (found["distance"] > 5).all()
    assert (one.uns["segment"]["batches"]["distance"] < 2).all()
    # one mixture of both, each centred by its own mean, has 0.31: the sections' means differ by composition, too
    assert adjusted_rand_score(two.obs["tissue"], two.obs["segment"]) > 0.8
    steep = patients(0.5, "de")
    run(steep, unet, 3, library_key="patient")  # with the means of observations taken out, 0.14
    assert adjusted_rand_score(steep.obs["tissue"], steep.obs["segment"]) > 0.5
    reversed_rows = two[::-1].copy()
    run(reversed_rows, unet, 3, library_key="patient")
    assert adjusted_rand_score(reversed_rows.obs["segment"][::-1], two.obs["segment"]) == 1
    two.write_h5ad(tmp_path / "two.h5ad")
    assert_same(ad.read_h5ad(tmp_path / "two.h5ad").uns["segment"]["batches"], found)


def test_sections_without_a_batch_effect_share_a_centre(tmp_path):
    same, mild = patients(0.0, "abc"), patients(0.15, "abc")
    run(same, {}, 3, library_key="patient", save_model=tmp_path / "same.stx")
    run(mild, {"epochs": 1, "pretrain": "none"}, 3, library_key="patient")
    assert same.uns["segment"]["batches"]["centre"].tolist() == [0, 0, 0]
    assert mild.uns["segment"]["batches"]["centre"].tolist() == [0, 1, 2]
    assert mild.uns["segment"]["batches"]["batch"].tolist() == [0, 0, 0]
    assert adjusted_rand_score(same.obs["tissue"], same.obs["segment"]) > 0.93
    first = (same.obs["patient"] == "b").to_numpy()
    alone = same[first].copy()
    st.tl.segment(alone, model=tmp_path / "same.stx", **ON_CPU)
    np.testing.assert_allclose(alone.obsm["segment_proba"], same.obsm["segment_proba"][first], atol=1e-4)
    left = (same.obs["patient"] == "a").to_numpy() & (same.obsm["spatial"][:, 0] < 14)  # nearly all of one tissue
    part = same[left].copy()
    st.tl.segment(part, model=tmp_path / "same.stx", **ON_CPU)
    assert (part.obs["segment"] == same.obs["segment"][left]).mean() > 0.9
    same.obs["some"] = same.obs["tissue"].where(same.obs["patient"] == "a")
    run(same, {"epochs": 1, "pretrain": "none"}, None, library_key="patient", labels_key="some")
    assert same.uns["segment"]["batches"]["centre"].tolist() == [0, 0, 0]


def test_model_gives_a_training_section_the_same_probabilities(make_section, quick_unet, tmp_path):
    adata, path = make_section(libraries=2), tmp_path / "m.stx"
    run(adata, quick_unet, 3, library_key="library", save_model=path)
    first = (adata.obs["library"] == "lib0").to_numpy()
    part = make_section(libraries=2)[first].copy()
    other = part.copy()
    part = part[:, np.random.default_rng(0).permutation(part.n_vars)].copy()
    st.tl.segment(part, model=path, **ON_CPU)
    np.testing.assert_allclose(part.obsm["segment_proba"], adata.obsm["segment_proba"].to_numpy()[first], atol=1e-4)
    assert part.uns["segment"]["params"]["genes_found"] == 1.0
    with pytest.warns(UserWarning, match=r"12 of the model's 30 genes \(40%\)"):
        st.tl.segment(few := other[:, :12].copy(), model=st.models.Segmenter.load(path), **ON_CPU)
    assert adjusted_rand_score(few.obs["segment"], part.obs["segment"]) > 0.3  # 0.43; unrelated ones have 0
    with pytest.raises(ValueError, match="n_segments"):
        st.tl.segment(other, 3, model=path, **ON_CPU)
    other.var_names = [f"other{i}" for i in range(30)]
    with pytest.raises(ValueError, match="0 of the model's 30 genes"):
        st.tl.segment(other, model=path, **ON_CPU)
    assert "segment" not in other.obs


def test_model_of_use_rep_needs_the_same_columns(make_section, quick_unet, tmp_path):
    adata = make_section()
    adata.obsm["X_mine"] = np.log1p(adata.X.toarray()[:, :6])
    run(adata, quick_unet, 3, use_rep="X_mine", save_model=tmp_path / "m.stx")
    other = make_section(seed=1)
    with pytest.raises(KeyError, match="X_mine"):
        st.tl.segment(other, model=tmp_path / "m.stx", **ON_CPU)
    other.obsm["X_mine"] = np.ones((other.n_obs, 4))
    with pytest.raises(ValueError, match="6 columns"):
        st.tl.segment(other, model=tmp_path / "m.stx", **ON_CPU)


def test_key_added_keeps_earlier_results(make_section, quick_unet):
    adata = make_section()
    run(adata, quick_unet, 3)
    before = adata.obs["segment"].copy()
    run(adata, quick_unet, 2, key_added="coarse")
    pd.testing.assert_series_equal(before, adata.obs["segment"])
    assert adata.obs["coarse"].nunique() == 2
    assert set(adata.uns["coarse"]["masks"]) == {"section"}
    assert "coarse_unet" in adata.obsm


def test_libraries_of_one_observation_and_cells_without_counts_have_segments(make_section, quick_unet):
    adata = make_section()
    adata.obs["library"] = np.where(np.arange(adata.n_obs) == 0, "single", "rest")
    adata.X[5] = 0
    adata.X.eliminate_zeros()
    run(adata, quick_unet, 3, library_key="library")
    assert adata.obs["segment"].notna().all()


def test_mask_has_the_pixels_of_the_image(make_section, quick_unet):
    adata = make_section()
    image = np.full((180, 200, 3), 240, dtype=np.uint8)
    factors = {"tissue_hires_scalef": 0.11, "spot_diameter_fullres": 50.0}
    adata.uns["spatial"] = {"s": {"images": {"hires": image}, "scalefactors": factors}}
    before = adata.uns["spatial"]
    run(adata, quick_unet, 3)
    mask = adata.uns["segment"]["masks"]["s"]
    assert mask["image"].shape == (180, 200)
    assert mask["scale"] == 0.11
    np.testing.assert_array_equal(mask["origin"], 0)
    assert adata.uns["spatial"] is before
    factors["tissue_hires_scalef"] = 0.005  # too coarse: half a pixel for a spot
    run(adata, quick_unet, 3)
    assert adata.uns["segment"]["masks"]["s"]["scale"] > 0.01


@pytest.mark.parametrize(
    ("change", "kwargs", "error", "match"),
    [
        (lambda a: setattr(a, "var_names", ["g"] * a.n_vars), {}, ValueError, "var_names_make_unique"),
        (lambda a: a.X.data.__setitem__(0, np.nan), {}, ValueError, "NaN"),
        (lambda a: setattr(a, "X", a.X * 0), {}, ValueError, "No gene"),
        (lambda a: a.obs.insert(0, "number", 0.5), {"n_segments": None, "labels_key": "number"}, TypeError, "floating"),
        (lambda a: None, {"n_segments": 2.5}, TypeError, "n_segments"),
        (lambda a: None, {"library_key": "nope"}, KeyError, "nope"),
    ],
)
def test_unusable_expression_and_arguments_leave_the_data_unchanged(make_section, change, kwargs, error, match):
    adata = make_section()
    change(adata)
    before = list(adata.obs), list(adata.obsm), list(adata.uns)
    with pytest.raises(error, match=match):
        st.tl.segment(adata, **{"n_segments": 3, **ON_CPU, **kwargs})
    assert before == (list(adata.obs), list(adata.obsm), list(adata.uns))


def test_single_observation_or_table_instead_of_anndata_is_an_error(make_section):
    adata = make_section()
    with pytest.raises(ValueError, match="1 observation"):
        st.tl.segment(adata[:1].copy())
    with pytest.raises(TypeError, match="AnnData"):
        st.tl.segment(adata.to_df())


def test_squidpy_and_scanpy_draw_the_slots(line):
    import scanpy as sc
    import squidpy as sq

    how = {"color": "segment", "library_key": "library"}
    masks, regions = [line.uns["segment"]["masks"][name]["image"] for name in ("lib0", "lib1")], line.uns["regions"]
    sq.pl.spatial_segment(line, seg_cell_id="segment_id", seg=masks, img=False, **how)
    sq.pl.spatial_scatter(line, shape=None, **how)
    sc.pl.spatial(line[line.obs["library"] == "lib0"], color="segment", spot_size=90, show=False)
    sc.pl.embedding(regions, "X_gnn", color=["segment", "gene0"], show=False)
    sq.pl.spatial_scatter(regions, shape=None, connectivity_key="spatial_connectivities", **how)
    assert len(plt.get_fignums()) == 5
