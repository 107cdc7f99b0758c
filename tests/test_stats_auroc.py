"""Sparse AUROC against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.metrics import roc_auc_score

from stxtools.stats._section import aurocs


def _auroc(dense: np.ndarray, label: np.ndarray) -> np.ndarray:
    return aurocs(sparse.csr_matrix(dense), [label])[:, 0]


@settings(deadline=None, max_examples=25)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12),
               elements=st_.integers(-3, 4).map(float)),
    st_.randoms(use_true_random=False),
)  # fmt: skip
def test_auroc_equals_sklearn_with_ties_zeros_and_negatives(dense, random):
    label = np.array([random.random() < 0.5 for _ in range(len(dense))])
    label[0], label[1] = True, False
    expected = [roc_auc_score(label, dense[:, j]) for j in range(dense.shape[1])]
    np.testing.assert_allclose(_auroc(dense, label), expected, atol=1e-12)


def test_auroc_of_a_large_sparse_matrix_equals_sklearn():
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.3, size=(3000, 20)).astype(np.float32)
    label = rng.random(3000) < 0.2
    dense[label, 3] += 1
    expected = [roc_auc_score(label, dense[:, j]) for j in range(20)]
    np.testing.assert_allclose(_auroc(dense, label), expected, rtol=1e-12)


def test_auroc_of_an_unexpressed_gene_is_one_half_and_needs_both_sides():
    dense = np.zeros((6, 2), dtype=np.float32)
    dense[0, 1] = 2.0
    label = np.array([True, False, True, False, False, False])
    np.testing.assert_allclose(_auroc(dense, label), [0.5, (4 * 0.5 + 4 * 1.0) / 8])
    with pytest.raises(ValueError, match="both sides"):
        _auroc(dense, np.zeros(6, dtype=bool))
