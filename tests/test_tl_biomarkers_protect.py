"""Double dipping: groups found in the expression they are tested on."""

from __future__ import annotations

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from conftest import grid_positions, poisson_section

import stxtools as st


def _homogeneous(n: int = 700, n_vars: int = 80, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    out = poisson_section(np.tile(rng.gamma(1, 1, n_vars), (n, 1)), np.zeros((n, 2)), rng)
    out.obsm["spatial"] = rng.uniform(0, 100, (n, 2))
    return out


@pytest.fixture(scope="module")
def banded(quick_params) -> ad.AnnData:
    rng = np.random.default_rng(0)
    xy = grid_positions(24)
    band = (xy[:, 0] // 8).astype(int)
    rate = np.full((3, 60), 1.0)
    for k in range(3):
        rate[k, 10 * k : 10 * k + 10] = 8.0
    out = poisson_section(rate[band], xy, rng, band=np.array(list("abc"))[band])
    st.tl.segment(out, n_segments=3, params=quick_params)
    return out


@pytest.fixture(scope="module")
def quick_params() -> dict[str, object]:
    return {"width": 8, "epochs": 8, "pretrain_epochs": 1, "steps_per_epoch": 4, "sigmas": (0.0, 1.0)}


@pytest.fixture(scope="module")
def tested(banded) -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("default", "The tested groups were found again")  # 8 epochs: an index of 0.5 or so
        return st.tl.biomarkers(banded, "segment", n_null=60, copy=True)


def test_segments_are_found_in_one_half_of_the_counts_and_tested_in_the_other(tested, banded):
    params = tested.uns["biomarkers_params"]
    assert bool(params["protected"])
    assert params["protect_agreement"] > 0.3
    assert banded.uns["segment"]["params"]["representation"] == "pca"
    names = set(tested.obs["segment"].cat.categories)
    assert set(tested.uns["biomarkers"]["group"]) == names
    for name in names:  # segments keep their names: the top genes are those of the band under the segment
        band = tested.obs.loc[tested.obs["segment"] == name, "band"].mode()[0]
        top = {int(g[1:]) // 10 for g in st.get.biomarkers(tested, name, n_top=5)["names"]}
        assert top == {"abc".index(band)}
    pd.testing.assert_series_equal(tested.obs["segment"], banded.obs["segment"])
    assert set(tested.layers) - {None} == set()


def test_protection_equals_split_counts_segment_and_biomarkers(tested, banded, quick_params):
    """The groups of one part of ``pp.split_counts``, tested on the other."""
    halves = st.pp.split_counts(banded, copy=True)
    train, test = (ad.AnnData(halves.layers[f"split_{n}"], obs=halves.obs[[]].copy()) for n in ("train", "test"))
    train.var_names = test.var_names = banded.var_names
    train.obsm["spatial"] = test.obsm["spatial"] = banded.obsm["spatial"]
    st.tl.segment(train, 3, params=quick_params)
    test.obs["segment"] = train.obs["segment"]
    st.tl.biomarkers(test, "segment", n_null=60)
    columns, parts = ["names", "scores", "pvals_adj", "pct_nz_group", "auroc"], []
    for table in (test.uns["biomarkers"], tested.uns["biomarkers"]):  # classes have other names there
        found = [part[columns].sort_values("names").reset_index(drop=True) for _, part in table.groupby("group")]
        parts.append(pd.concat(sorted(found, key=lambda part: part["auroc"][0])))
    pd.testing.assert_frame_equal(*parts)


def test_protection_survives_files_and_renamed_segments(banded, tested, tmp_path):
    banded.write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad")
    names = dict(zip("012", ("core", "rim", "stroma"), strict=True))
    adata.obs["segment"] = adata.obs["segment"].cat.rename_categories(names)
    st.tl.biomarkers(adata, "segment", n_null=60)
    assert adata.uns["biomarkers_params"]["protect_agreement"] == tested.uns["biomarkers_params"]["protect_agreement"]
    for old, new in names.items():
        before, after = (st.get.biomarkers(*of).drop(columns="group") for of in ((tested, old), (adata, new)))
        pd.testing.assert_frame_equal(before, after)


def test_a_copy_of_the_segments_is_protected_too(banded, tested):
    adata = banded.copy()
    names = dict(zip("012", ("core", "rim", "stroma"), strict=True))
    adata.obs["named"] = adata.obs["segment"].astype(str).map(names)
    st.tl.biomarkers(adata, "named", n_null=60)
    assert adata.uns["biomarkers_params"]["protected"]
    for old, new in names.items():
        before, after = (st.get.biomarkers(*of).drop(columns="group") for of in ((tested, old), (adata, new)))
        pd.testing.assert_frame_equal(before, after)
    adata.obs["merged"] = adata.obs["segment"].astype(str).map(names | {"1": "core"})
    for column in ("merged", "segment_id"):
        st.tl.biomarkers(adata, column, n_null=60)
        assert adata.uns["biomarkers_params"]["protected"]
    adata.obs["other"] = adata.obs["named"].where(adata.obsm["spatial"][:, 1] > 1, "core")  # some spots by hand
    st.tl.biomarkers(adata, "other", n_null=60)
    assert not adata.uns["biomarkers_params"]["protected"]


@pytest.fixture
def second_segmentations(monkeypatch) -> list[tuple[ad.AnnData, dict]]:
    """Record the input of the second segmentation, which returns the user's groups without training."""
    seen = []

    def recorded(work, **kwargs):
        seen.append((work, kwargs))
        work.obs[kwargs["key_added"]] = work.obs["segment"]

    monkeypatch.setattr(st.tl, "segment", recorded)
    return seen


def _scanpy_pca(adata: ad.AnnData) -> None:
    work = ad.AnnData(adata.X.toarray(), var=adata.var[[]].copy())
    sc.pp.normalize_total(work, target_sum=1e4)
    sc.pp.log1p(work)
    sc.pp.scale(work)
    sc.pp.pca(work, n_comps=7)
    adata.obsm["X_pca"] = work.obsm["X_pca"]


def _tested(adata: ad.AnnData) -> dict:
    st.tl.biomarkers(adata, "segment", n_null=60)
    return adata.uns["biomarkers_params"]


@pytest.mark.parametrize("maker", ["stxtools", "scanpy"])
def test_stored_pca_is_computed_again_from_half_the_counts(banded, second_segmentations, maker):
    adata = banded.copy()
    st.pp.normalize(adata, n_comps=7, n_top_genes=40) if maker == "stxtools" else _scanpy_pca(adata)
    adata.uns["segment"]["params"]["representation"] = "X_pca"
    params = _tested(adata)
    assert "protect_missing" not in params
    assert params["protect_agreement"] == 1
    how = "7 components of 40 genes with loadings, depth the median;"
    if maker == "scanpy":
        how = "7 components of 60 variable genes chosen here, depth 10000, z-scores;"
    assert how in params["protect_representation"]
    half, stored = second_segmentations[0][0].obsm["X_pca"], adata.obsm["X_pca"]
    assert half.shape == stored.shape
    assert 0.3 < abs(np.corrcoef(half[:, 0], stored[:, 0])[0, 1]) < 0.99  # correlated, with other noise
    counts = adata.layers["counts"] if maker == "stxtools" else adata.X
    assert 0.4 < second_segmentations[0][0].X.sum() / counts.sum() < 0.6


def test_representation_that_counts_cannot_give_raises_a_warning(banded, second_segmentations, tmp_path):
    adata = banded.copy()
    adata.obsm["X_pca"] = np.c_[adata.obsm["spatial"], np.random.default_rng(0).normal(size=(adata.n_obs, 4))]
    adata.uns["segment"]["params"]["representation"] = "X_pca"
    with pytest.warns(UserWarning, match=r"found without `obsm\['X_pca'\]` as it is"):
        params = _tested(adata)
    assert len(params["protect_missing"]) == 1
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad").uns["biomarkers_params"]
    assert list(back["protect_missing"]) == list(params["protect_missing"])
    assert back["protect_representation"] == params["protect_representation"]
    del adata.obsm["X_pca"]
    with pytest.warns(UserWarning, match="which no longer exists"):
        _tested(adata)


def test_second_segmentation_uses_the_image_and_pretrained_model(banded, second_segmentations, tmp_path):
    adata = banded.copy()
    image = np.zeros((24, 24, 3), dtype=np.uint8)
    adata.uns["spatial"] = {"library": {"images": {"lowres": image}, "scalefactors": {"tissue_lowres_scalef": 1.0}}}
    path = tmp_path / "start.stx"
    path.write_bytes(b"a model")
    adata.uns["segment"]["params"] |= {"image_key": "lowres", "pretrained": True, "pretrained_path": str(path)}
    params = _tested(adata)
    work, kwargs = second_segmentations[0]
    assert (kwargs["image_key"], kwargs["pretrained"]) == ("lowres", str(path))
    np.testing.assert_array_equal(work.uns["spatial"]["library"]["images"]["lowres"], image)
    assert "protect_missing" not in params
    path.unlink()
    adata.uns["spatial"]["library"]["images"] = {}
    with pytest.warns(UserWarning, match=r"without the image 'lowres'.*without the pretrained model.* no longer at"):
        assert len(_tested(adata)["protect_missing"]) == 2
    adata.uns["segment"]["params"]["pretrained_path"] = ""
    with pytest.warns(UserWarning, match="given in memory"):
        _tested(adata)


def test_groups_that_are_not_reproduced_raise_a_warning(banded, second_segmentations, monkeypatch):
    def other(work, **kwargs):
        work.obs[kwargs["key_added"]] = pd.Categorical((work.obsm["spatial"][:, 1] // 8).astype(int).astype(str))

    monkeypatch.setattr(st.tl, "segment", other)
    with pytest.warns(UserWarning, match=r"adjusted Rand index of -?0\.\d\d only.*protect_agreement"):
        assert _tested(banded.copy())["protect_agreement"] < 0.8


def test_unprotected_tests_raise_a_warning(banded):
    adata = banded.copy()
    with pytest.warns(UserWarning, match="optimistic.*protect='thinning'"):
        st.tl.biomarkers(adata, "segment", protect=None, n_null=60)
    assert not adata.uns["biomarkers_params"]["protected"]
    adata.X = adata.X.log1p()
    with pytest.warns(UserWarning, match="name a `layer`"):
        st.tl.biomarkers(adata, "segment", n_null=60)
    adata.layers["raw"] = banded.X
    adata.obsm["X_other"] = np.random.default_rng(0).normal(size=(adata.n_obs, 4)).astype(np.float32)
    adata.uns["segment"]["params"]["use_rep"] = "X_other"
    with pytest.warns(UserWarning, match="X_other"):
        st.tl.biomarkers(adata, "segment", layer="raw", n_null=60)
    with pytest.raises(ValueError, match="protect"):
        st.tl.biomarkers(adata, "segment", protect="hope", n_null=60)


@pytest.mark.parametrize("uns_merge", [None, "only"])
def test_segments_of_joined_sections_are_known_though_their_record_is_lost(banded, uns_merge):
    adata = sc.concat({"A": banded, "B": banded}, label="slide", index_unique="_", uns_merge=uns_merge)
    with pytest.warns(UserWarning, match=r"optimistic \(not protected: `uns\['segment'\]`, .* as after `sc.concat`"):
        st.tl.biomarkers(adata, "segment", n_null=60, library_key="slide")
    assert not adata.uns["biomarkers_params"]["protected"]
    adata.obs["band"] = adata.obs["segment"]  # groups of another source, for all that the data say
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        st.tl.biomarkers(adata, "band", n_null=60, library_key="slide")


def test_held_out_counts_need_no_protection(quick_params):
    adata = _homogeneous()
    st.pp.split_counts(adata)
    st.tl.segment(adata, n_segments=2, layer="split_train", params=quick_params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        st.tl.biomarkers(adata, "segment", layer="split_test", n_null=60)
    assert not adata.uns["biomarkers_params"]["protected"]
    with pytest.warns(UserWarning, match="optimistic"):
        st.tl.biomarkers(adata, "segment", layer="split_train", protect=None, n_null=60)


@pytest.mark.parametrize("column", ["region_id", "areas_region", "band_pred"])
def test_regions_and_predictions_raise_a_warning(line, quick_net, column):
    if column == "areas_region":
        st.tl.region_graph(line, key_added="areas", library_key="library")
    elif column == "band_pred":
        st.tl.multitask(line, "band", key_added="joint", params=quick_net | {"epochs": 1})
    largest = str(line.obs[column].mode()[0])
    with pytest.warns(UserWarning, match="only groups of `st.tl.segment` can be found again"):
        st.tl.biomarkers(line, column, n_null=60, library_key="library", groups=[largest])


def test_annotations_raise_no_warning(banded, tmp_path):
    adata = banded.copy()
    boxes = [[[x, -1], [x + 8, -1], [x + 8, 24], [x, 24], [x, -1]] for x in (-0.5, 7.5)]
    features = [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [box]}, "properties": {"name": name}}
                for name, box in zip("ab", boxes, strict=True)]  # fmt: skip
    (tmp_path / "slide.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    st.io.read_annotations(adata, tmp_path / "slide.geojson")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        st.tl.biomarkers(adata, "annotation", n_null=50)
    assert not adata.uns["biomarkers_params"]["protected"]


def test_segments_of_labels_are_found_again(banded, quick_params):
    adata = banded.copy()
    adata.obs["few"] = adata.obs["band"].where(np.arange(adata.n_obs) % 15 == 0)
    st.tl.segment(adata, labels_key="few", params=quick_params)
    st.tl.biomarkers(adata, "segment", n_null=60)
    assert adata.uns["biomarkers_params"]["protect_agreement"] > 0.5
    assert list(pd.unique(adata.uns["biomarkers"]["group"])) == ["a", "b", "c"]


def test_held_out_counts_control_the_fdr_of_clusters():
    """Groups found in one half and tested on the other have no markers; on the same counts many."""
    from sklearn.mixture import GaussianMixture

    same, split = [], []
    for seed in range(3):
        adata = _homogeneous(1500, seed=seed)
        st.pp.split_counts(adata, random_state=seed)
        for layer, tested, out in (("split_train", "split_test", split), ("split_train", "split_train", same)):
            work = ad.AnnData(adata.layers[layer].copy())
            st.pp.normalize(work)
            found = GaussianMixture(3, random_state=0).fit_predict(work.obsm["X_pca"][:, :8])
            adata.obs["cluster"] = pd.Categorical(found.astype(str))
            st.tl.biomarkers(adata, "cluster", layer=tested, n_null=60)
            out.append((adata.uns["biomarkers"]["pvals_adj"] < 0.05).mean())
    assert np.mean(split) <= 0.005
    assert np.mean(same) > 0.01
