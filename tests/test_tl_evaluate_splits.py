"""Splits of an evaluation: blocks, whole sections and whole subjects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from test_tl_evaluate import BY_LIBRARY, FAST, folds_of, spying_model, tissue_at

import stxtools as st


@settings(max_examples=15, deadline=None)
@given(
    n=hs.integers(20, 400),
    n_folds=hs.integers(2, 6),
    seed=hs.integers(0, 99),
    scheme=hs.sampled_from(["block", "random"]),
)
def test_folds_cover_every_observation_evenly(n: int, n_folds: int, seed: int, scheme: str) -> None:
    adata = tissue_at(np.random.default_rng(seed).uniform(size=(n, 2)))
    sizes = np.bincount(folds_of(adata, scheme, n_folds, seed), minlength=n_folds)
    assert len(sizes) == n_folds
    assert sizes.min() > 0
    assert sizes.max() <= 3 * sizes.min() + 16


def test_blocks_keep_neighbours_together_and_random_splits_do_not() -> None:
    adata = tissue_at(np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), axis=-1).reshape(-1, 2))
    same = {}
    for scheme in ("block", "random"):
        fold = folds_of(adata, scheme).reshape(40, 40)
        same[scheme] = float((fold[:, 1:] == fold[:, :-1]).mean())
    assert same["block"] > 0.85
    assert same["random"] == pytest.approx(0.2, abs=0.05)


def test_seeds_draw_different_blocks_and_libraries_are_whole_folds() -> None:
    xy = np.random.default_rng(0).uniform(size=(200, 2))
    one, two = tissue_at(xy), tissue_at(xy, np.where(np.arange(200) % 2, "b", "a"))
    assert not np.array_equal(folds_of(one, "block"), folds_of(one, "block", seed=1))
    np.testing.assert_array_equal(folds_of(two, "library"), np.arange(200) % 2)
    assert two.uns["evaluation"]["fold"].tolist() == ["a", "b"]


def test_all_sections_of_a_subject_are_held_out_together() -> None:
    xy = np.random.default_rng(0).uniform(size=(200, 2))
    adata = tissue_at(xy, np.array(list("abcde"))[np.arange(200) % 5])
    adata.obs["patient"] = adata.obs["library"].map({"a": "p1", "b": "p2", "c": "p1", "d": "p3", "e": "p1"})
    adata.obs.loc[adata.obs_names[:20], "patient"] = None  # the section's other observations name it
    given: list[tuple[list[Any], list[np.ndarray]]] = []
    how = BY_LIBRARY | {"region_key": "half", "subject_key": "patient", "use_rep": "rep", "show_progress": False}
    st.tl.evaluate(adata, {"m": spying_model(lambda *what: given.append(what))}, **how)
    hidden = [[s.name for s, codes in zip(*pair, strict=True) if (codes < 0).any()] for pair in given]
    assert hidden == [["a", "c", "e"], ["b"], ["d"]]
    table = adata.uns["evaluation"]
    assert table["fold"].tolist() == ["p1", "p2", "p3"]
    assert table["n_test"].tolist() == [120, 40, 40]
    assert adata.uns["evaluation_params"]["subject_key"] == "patient"
    st.tl.tune(
        adata, "unet", space={"width": [4]}, search="grid", params={"epochs": 1, "pretrain": "none"},
        accelerator="cpu", **{k: v for k, v in how.items() if k != "n_seeds"},
    )  # fmt: skip
    assert adata.uns["tune"]["trials"]["n_folds"].tolist() == [3]
    for wrong, column, words in (
        ({"scheme": "block"}, "patient", "pass `scheme='library'`"),
        ({}, "half", "'a' .`library_key`. has several values"),
        ({}, "one", "names one subject .'p'"),
        ({}, "nobody", "'nobody'"),
    ):
        adata.obs["one"] = "p"
        with pytest.raises((ValueError, KeyError), match=words):
            st.tl.evaluate(adata, FAST, **how | wrong | {"subject_key": column})
