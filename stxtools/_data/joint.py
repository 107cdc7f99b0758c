"""One representation for several AnnData with different gene panels, depths and platforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stxtools.models._projection import GeneProjection

from .expression import Expression
from .representation import N_COMPS, N_TOP_GENES, log_normalize, median_depth, residual_variance, select_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

MIN_SHARED = 20


def joint_representation(
    adatas: Sequence[AnnData], layer: str | None = None
) -> tuple[list[NDArray[np.float32]], GeneProjection, list[Expression]]:
    """PCA of the log-normalised genes that all share; the variable ones, by how many of the data call them so."""
    shared = sorted(set.intersection(*(set(map(str, a.var_names)) for a in adatas)))
    if len(shared) < MIN_SHARED:
        raise ValueError(
            f"The {len(adatas)} data sets share {len(shared)} genes; at least {MIN_SHARED} are needed. Are they of one "
            "species, and named in the same way (symbols or Ensembl identifiers)?"
        )
    read = [Expression(a, layer) for a in adatas]
    depths = [np.asarray(r.matrix.sum(axis=1)).ravel() for r in read if r.scale != "log"]
    target = median_depth(np.concatenate(depths)) if depths else 1.0
    votes, logged = np.zeros(len(shared)), []
    for r in read:
        columns = r.names.astype(str).get_indexer(shared)
        chosen = select_genes(r.matrix[:, columns], r.scale)
        votes[chosen] += 1 / len(chosen)
        logged.append(log_normalize(r.matrix, r.scale, target_sum=target)[:, columns])
    genes = np.sort(np.argsort(-votes, kind="stable")[: min(N_TOP_GENES, int((votes > 0).sum()))])
    logged = [part[:, genes] for part in logged]
    means = [np.asarray(part.mean(axis=0)).ravel() for part in logged]
    n_comps = min(N_COMPS, len(genes) - 1, min(a.n_obs for a in adatas) - 1)
    stacked = sparse.vstack(logged, format="csr").astype(np.float64)
    weights = np.array([part.shape[0] for part in logged], dtype=np.float64)
    overall = np.average(np.stack(means), axis=0, weights=weights)
    components = _within_components(stacked, means, weights, n_comps)
    values = [np.asarray(part @ components - overall @ components, dtype=np.float32) for part in logged]
    within = np.concatenate([v - v.mean(axis=0) for v in values])
    noise = residual_variance(stacked, overall, np.concatenate(values))
    names = [shared[i] for i in genes]
    return values, GeneProjection(names, overall, components, target, within.var(axis=0), noise), read


def _within_components(
    stacked: sparse.csr_matrix, means: Sequence[NDArray[np.float64]], weights: NDArray[np.float64], n_comps: int
) -> NDArray[np.float64]:
    """Leading eigenvectors of the covariance within data sets, (genes, n_comps); their largest entry is positive."""
    moment = (stacked.T @ stacked).toarray()
    for mean, weight in zip(means, weights, strict=True):
        moment -= weight * np.outer(mean, mean)
    _, vectors = np.linalg.eigh(moment / weights.sum())
    out = np.ascontiguousarray(vectors[:, ::-1][:, :n_comps])
    return out * np.sign(out[np.abs(out).argmax(axis=0), np.arange(n_comps)])
