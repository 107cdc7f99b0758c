"""Values of observations to test beside genes: activities of gene sets, and ligand-receptor scores at contacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from ._resources import MIN_TARGETS, library, subunits

_ROWS = 5000  # observations that decoupler makes dense at a time


class Features:
    """Features of all observations (CSR), read like expression."""

    depth = n_genes = None
    limit = np.inf

    def __init__(self, values: sparse.csr_matrix, names: Sequence[str]) -> None:
        self.values, self.names = values, list(names)
        self.shape = (int(values.shape[0]), int(values.shape[1]))
        self.slices = [slice(0, self.shape[1])]

    def block(self, genes: slice) -> sparse.csr_matrix:
        """Return all features, of which there is one block."""
        return self.values

    def rows(self, genes: NDArray[np.int64] | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        """Yield all observations at once."""
        yield slice(0, self.shape[0]), self.values if genes is None else self.values[:, genes]

    def means(self, side: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Mean of each feature over some observations."""
        return np.asarray(self.values.T @ side.astype(np.float64)) / max(int(side.sum()), 1)


def activities(logged: sparse.csr_matrix, genes: Sequence[str], net: pd.DataFrame) -> Features:
    """Activity of each source in each observation: decoupler's univariate linear model, centred."""
    from anndata import AnnData as _AnnData

    decoupler = library("decoupler", "`net=`")
    expressed = np.flatnonzero(np.diff(logged.indptr))  # others have no activity
    box = _AnnData(logged[expressed], var=pd.DataFrame(index=pd.Index(genes)))
    decoupler.mt.ulm(box, net, tmin=MIN_TARGETS, empty=False, bsize=_ROWS)
    found = box.obsm["score_ulm"]
    values = np.zeros((logged.shape[0], found.shape[1]))
    values[expressed] = np.nan_to_num(found.to_numpy(dtype=np.float64))
    centred = (values - values.mean(axis=0)).astype(np.float32)
    return Features(sparse.csr_matrix(centred), [str(name) for name in found.columns])


class Contacts:
    """Observations that touch another compartment: their ``code`` is ``own * n + other``, the one they touch most."""

    def __init__(self, graph: sparse.csr_matrix, codes: NDArray[np.int64], n: int) -> None:
        from sklearn.preprocessing import normalize

        edges = graph.tocoo()
        across = (codes[edges.row] >= 0) & (codes[edges.col] >= 0) & (codes[edges.row] != codes[edges.col])
        row, col = edges.row[across], edges.col[across]
        touched = sparse.csr_matrix((np.ones(len(row)), (row, codes[col])), shape=(len(codes), n))
        other = np.asarray(touched.argmax(axis=1)).ravel()
        self.code = np.where(np.diff(touched.indptr) > 0, codes * n + other, -1)
        kept = codes[col] == other[row]
        weights = sparse.csr_matrix((np.ones(kept.sum()), (row[kept], col[kept])), shape=graph.shape)
        self._mean = normalize(weights, norm="l1")

    def scores(self, logged: sparse.csr_matrix, genes: Sequence[str], pairs: pd.DataFrame, min_obs: int) -> Features:
        """Geometric mean of a ligand in an observation and its receptor in the neighbours across the border."""
        border = np.flatnonzero(self.code >= 0)
        by_gene, across = sparse.csc_matrix(logged[border]), self._mean[border][:, border]
        at = {gene: i for i, gene in enumerate(genes)}
        sides = []
        for column in ("ligand", "receptor"):
            each = {name: _least(by_gene, [at[g] for g in subunits(name)]) for name in pairs[column].unique()}
            sides.append(sparse.hstack([each[name] for name in pairs[column]], format="csr"))
        score = sparse.csc_matrix(sides[0].multiply(across @ sides[1])).sqrt()
        seen = np.flatnonzero(np.diff(score.indptr) >= min_obs)
        part = sparse.coo_matrix(score[:, seen], dtype=np.float32)
        values = sparse.csr_matrix((part.data, (border[part.row], part.col)), shape=(len(self.code), len(seen)))
        names = (pairs["ligand"] + "^" + pairs["receptor"]).to_numpy()[seen]
        return Features(values, [str(name) for name in names])


def _least(by_gene: sparse.csc_matrix, genes: list[int]) -> sparse.csc_matrix:
    """Expression of a complex: that of its least expressed gene."""
    out = by_gene[:, [genes[0]]]
    for gene in genes[1:]:
        out = out.minimum(by_gene[:, [gene]])
    return out
