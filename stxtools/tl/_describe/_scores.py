"""Scores to test in place of expression: activities of gene sets, and ligand-receptor pairs at contacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools._types import Bools, Csr, Floats, Ints

from ._resources import MIN_TARGETS, import_extra

MIN_CONTACT = 10  # observations of a compartment that touch another
_ROWS = 5000  # observations that decoupler makes dense at a time


class ScoreMatrix:
    """Scores of all observations (CSR) in place of expression."""

    depth = n_genes = None
    limit = np.inf

    def __init__(self, values: Csr, names: Sequence[str]) -> None:
        self.values, self.names = values, list(names)
        self.shape = (int(values.shape[0]), int(values.shape[1]))
        self.slices = [slice(0, self.shape[1])]
        self.signed = bool(values.data.min(initial=0.0) < 0)

    def block(self, genes: slice) -> Csr:
        """Return all features: there is one block."""
        return self.values

    def rows(self, genes: Ints | None = None, within: Ints | None = None) -> Iterator[tuple[slice, Csr]]:
        """Yield all observations, or those ``within``, at once."""
        values = self.values if within is None else self.values[within]
        yield slice(0, self.shape[0]), values if genes is None else values[:, genes]

    def means(self, side: Bools) -> Floats:
        """Mean of each feature over some observations."""
        return np.asarray(self.values.T @ side.astype(np.float64)) / max(int(side.sum()), 1)


def activities(logged: Csr, genes: Sequence[str], net: pd.DataFrame) -> ScoreMatrix:
    """Activity of each source in each observation: decoupler's univariate linear model, centred."""
    expressed = np.flatnonzero(np.diff(logged.indptr))  # others have no activity
    adata = AnnData(logged[expressed], var=pd.DataFrame(index=pd.Index(genes)))
    import_extra("decoupler", "`net=`").mt.ulm(adata, net, tmin=MIN_TARGETS, empty=False, bsize=_ROWS)
    scores = adata.obsm["score_ulm"]
    values = np.zeros((logged.shape[0], scores.shape[1]))
    values[expressed] = np.nan_to_num(scores.to_numpy(dtype=np.float64))
    centred = (values - values.mean(axis=0)).astype(np.float32)
    return ScoreMatrix(sparse.csr_matrix(centred), [str(name) for name in scores.columns])


def contact_scores(
    graph: Csr, codes: Ints, n: int, logged: Csr, genes: Sequence[str], pairs: pd.DataFrame
) -> tuple[ScoreMatrix, Ints]:
    """Score pairs at borders: geometric mean of the ligand and of the receptor in the neighbours across the border.

    Return the code of the contact of each observation, too: ``own * n + other``, the compartment that it touches most.
    """
    from sklearn.preprocessing import normalize

    edges = graph.tocoo()
    across = (codes[edges.row] >= 0) & (codes[edges.col] >= 0) & (codes[edges.row] != codes[edges.col])
    row, col = edges.row[across], edges.col[across]
    touched = sparse.csr_matrix((np.ones(len(row)), (row, codes[col])), shape=(len(codes), n))
    other = np.asarray(touched.argmax(axis=1)).ravel()
    contact = np.where(np.diff(touched.indptr) > 0, codes * n + other, -1)
    kept = codes[col] == other[row]
    neighbours = sparse.csr_matrix((np.ones(kept.sum()), (row[kept], col[kept])), shape=graph.shape)

    border = np.flatnonzero(contact >= 0)
    by_gene, mean = sparse.csc_matrix(logged[border]), normalize(neighbours, norm="l1")[border][:, border]
    at = {gene: i for i, gene in enumerate(genes)}
    sides = []
    for column in ("ligand", "receptor"):
        expression = {  # of a complex: its least expressed subunit
            name: reduce(lambda a, b: a.minimum(b), (by_gene[:, [at[gene]]] for gene in name.split("_")))
            for name in pairs[column].unique()
        }
        sides.append(sparse.hstack([expression[name] for name in pairs[column]], format="csr"))
    score = sparse.csc_matrix(sides[0].multiply(mean @ sides[1])).sqrt()
    scored = np.flatnonzero(np.diff(score.indptr) >= MIN_CONTACT)
    part = sparse.coo_matrix(score[:, scored], dtype=np.float32)
    values = sparse.csr_matrix((part.data, (border[part.row], part.col)), shape=(len(codes), len(scored)))
    names = (pairs["ligand"] + "^" + pairs["receptor"]).to_numpy()[scored]
    return ScoreMatrix(values, [str(name) for name in names]), contact
