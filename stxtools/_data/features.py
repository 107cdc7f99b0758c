"""Input features of a model: in training, and on another section."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stxtools import _keys
from stxtools._validate import check_in
from stxtools._warn import warn
from stxtools.models._projection import GeneProjection

from .chunks import is_out_of_core, iter_rows
from .expression import Expression, log_chunks
from .representation import (
    N_COMPS,
    N_TOP_GENES,
    log_normalize,
    median_depth,
    principal_components,
    residual_variance,
    select_genes,
    signed,
)

if TYPE_CHECKING:
    import pandas as pd

    from stxtools.models._base import BaseModel

_WARN_SHARE = 0.5  # of the genes: fewer, and the user is warned
_MIN_SHARE, _MIN_GENES = 0.02, 20  # fewer cannot tell the components apart
_REPRODUCED = 0.999  # part of the variance of the stored values that the loadings must give again
_MIN_SHARED = 20  # genes of several data sets
_TARGET = 1e4  # scanpy's other usual depth


_NAME_COLUMNS = (
    "gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "gene_symbols", "gene_symbol", "symbol", "gene_name",
    "gene_names", "feature_name",
)  # fmt: skip
_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")


def stored_representation(adata: AnnData, use_rep: str) -> NDArray[np.float32]:
    """Return ``obsm[use_rep]`` (or ``X`` for ``use_rep="X"``) as a dense float32 array."""
    if not isinstance(use_rep, str):
        raise TypeError(f"`use_rep` must be a string, 'X' or a key of `adata.obsm`; got {use_rep!r}.")
    if use_rep != "X":
        check_in(adata, "obsm", use_rep, "use_rep", "Use 'X' for the expression matrix itself.")
    values: Any = adata.X if use_rep == "X" else adata.obsm[use_rep]
    for read in ("to_memory", "compute", "toarray"):  # of a sparse matrix in a file, of dask, of a sparse one
        values = getattr(values, read)() if hasattr(values, read) else values
    try:
        array = np.array(values, dtype=np.float32, order="C")  # sums depend on the order: the same as read from a file
    except (TypeError, ValueError) as err:
        raise TypeError(f"`use_rep={use_rep!r}` holds no numbers: {err}") from err
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"`use_rep={use_rep!r}` has shape {array.shape}; expected (n_obs, n_features).")
    if not np.isfinite(array).all():
        raise ValueError(f"`use_rep={use_rep!r}` holds NaN or infinite values; fill or drop them first.")
    return array


def compute_representation(
    read: Expression, random_state: int, *, n_comps: int = N_COMPS, n_top_genes: int = N_TOP_GENES
) -> tuple[NDArray[np.float32], GeneProjection]:
    """PCA of the log-normalised variable genes; of a large matrix out of core, axes come from a sample."""
    away = is_out_of_core(read.matrix)
    matrix = read.sample(random_state) if away else read.matrix
    values, projection = principal_components(
        matrix, read.scale, read.names, n_comps=n_comps, n_top_genes=n_top_genes, random_state=random_state,
        depth=read.survey.depth if away else None,
    )  # fmt: skip
    if len(values) < len(read.survey.depth):  # of a sample
        values = _projected(read, projection, [str(name) for name in read.names])
        projection = replace(projection, variance=values.var(axis=0, dtype=np.float64))
    return values, projection


def joint_representation(
    adatas: Sequence[AnnData], layer: str | None = None
) -> tuple[list[NDArray[np.float32]], GeneProjection, list[Expression]]:
    """PCA of the log-normalised genes that all share; the variable ones, by how many of the data call them so."""
    shared = sorted(set.intersection(*(set(map(str, a.var_names)) for a in adatas)))
    if len(shared) < _MIN_SHARED:
        raise ValueError(
            f"The {len(adatas)} data sets share {len(shared)} genes; at least {_MIN_SHARED} are needed. Are they of "
            "one species, and named in the same way (symbols or Ensembl identifiers)?"
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
    moment = (stacked.T @ stacked).toarray()  # within data sets
    for mean, weight in zip(means, weights, strict=True):
        moment -= weight * np.outer(mean, mean)
    components = signed(np.linalg.eigh(moment / weights.sum())[1][:, ::-1][:, :n_comps])
    values = [np.asarray(part @ components - overall @ components, dtype=np.float32) for part in logged]
    within = np.concatenate([v - v.mean(axis=0) for v in values])
    noise = residual_variance(stacked, overall, np.concatenate(values))
    names = [shared[i] for i in genes]
    return values, GeneProjection(names, overall, components, target, within.var(axis=0), noise), read


class TrainingFeatures:
    """The representation that a new model reads; if ``portable``, with how to make it elsewhere.

    - ``name``, ``projection``: What the model remembers of it.
    - ``record``: What ``params`` say of the expression.
    """

    projection: GeneProjection | None
    expression: Expression | None

    def __init__(
        self, adata: AnnData, use_rep: str | None, layer: str | None, *,
        portable: bool = False, anew: bool = False, random_state: int = 0,
    ) -> None:  # fmt: skip
        stored = use_rep
        if use_rep is None and not anew and layer is None and _keys.X_PCA in adata.obsm:
            stored = _keys.X_PCA
        self.name, self.projection, self.expression = stored or "pca", None, None
        self.record: dict[str, str] = {}
        if stored is None:
            self.expression = read = Expression(adata, layer, in_memory=None)
            self.values, self.projection = compute_representation(read, random_state)
            self.record = read.record
            return
        self.values = stored_representation(adata, stored)
        if portable and use_rep is None:
            self.expression = Expression.if_any(adata)
            candidates = () if self.expression is None else _log_candidates(adata, self.expression)
            gene_sets = _gene_sets(adata, self.values.shape[1])
            self.projection = _projection_of(self.values, stored, candidates, gene_sets, adata.var_names)


class ModelFeatures:
    """The features that a trained model reads of an AnnData, and what ``params`` say of them."""

    values: NDArray[np.float32]
    record: dict[str, Any]
    expression: Expression | None

    def __init__(
        self, adata: AnnData, model: BaseModel[Any, Any], layer: str | None, *,
        n_others: int = 0, names: Sequence[str] | None = None, by_name: bool = False,
    ) -> None:  # fmt: skip
        projection, read = model.projection, None
        if projection is not None or by_name:
            read = Expression(adata, layer, in_memory=False)
        self.expression = read
        if projection is None or read is None:
            self.values, self.record = stored_representation(adata, str(model.use_rep)), {}
            if self.values.shape[1] != model.n_features - n_others:
                raise ValueError(
                    f"The model reads {model.n_features - n_others} columns of `adata.obsm[{model.use_rep!r}]`; "
                    f"there are {self.values.shape[1]}."
                )
            return
        known = [str(name) for name in adata.var_names] if names is None else list(names)
        if names is None:
            check_genes(projection.genes, known)
        share = len(set(projection.genes).intersection(known)) / len(projection.genes)
        self.values = _projected(read, projection, known)
        self.record = {"genes_found": share, **read.record}


def _projected(read: Expression, projection: GeneProjection, names: list[str]) -> NDArray[np.float32]:
    parts = log_chunks(read, lambda x, rows: projection.transform(x, names), projection.target_sum)
    return np.concatenate(list(parts))


class GeneNames:
    """What genes are called: their names, and the columns of ``var`` that give them others."""

    def __init__(self, adata: AnnData) -> None:
        self.own = [str(name) for name in adata.var_names]
        found: list[Any] = [adata.var[c] for c in _NAME_COLUMNS if c in adata.var]
        self._columns = [[_plain(str(name)) for name in column] for column in found]

    def others(self) -> list[str]:
        """Second name of each gene, from the first column that gives one to all; none where there is none."""
        return next((names for names in self._columns if len(set(names)) == len(names)), [])

    def as_model(self, genes: Sequence[str], ids: Mapping[str, str]) -> list[str]:
        """Names as a model calls the genes, which knows ``genes`` and second names of some."""
        known = [{_plain(g): g for g in genes}, {_plain(i): g for g, i in ids.items()}]
        best, most = self.own, sum(g in known[0] for g in self.own)
        for names in ([_plain(g) for g in self.own], *self._columns):
            for called in known:
                found = [called.get(name, "") for name in names]
                count = len({f for f in found if f})
                if count > most:
                    best, most = _once(found, self.own), count
        return best


def _once(found: Sequence[str], own: Sequence[str]) -> list[str]:
    """Names that the model uses, each for one gene alone; the others keep their own."""
    used = dict(zip(reversed(found), reversed(range(len(found))), strict=True))  # where each stands first
    kept = [mine if mine not in used else f"{mine}'" for mine in own]
    return [name if name and used[name] == i else kept[i] for i, name in enumerate(found)]


def _plain(name: str) -> str:
    return _VERSION.sub(r"\1", name)


def check_genes(genes: Sequence[str], names: Sequence[str], *, enough: int | None = None) -> float:
    """Share of the model's ``genes`` that are among ``names``; an error where fewer than 20 are, or one in fifty."""
    found, total = len(set(genes).intersection(names)), len(genes)
    share = found / total
    needed = min(max(_MIN_GENES, int(np.ceil(_MIN_SHARE * total)) if enough is None else 0), int(np.ceil(total / 4)))
    if found < needed:
        raise ValueError(
            f"`adata` has {found} of the model's {total} genes ({share:.0%}); at least {needed} are needed. "
            f"The model expects names like {list(genes[:3])}; `adata.var_names` begins with {list(names[:3])}."
        )
    if share < _WARN_SHARE and (enough is None or found < enough):
        how = "the rest is inferred from them" if enough is None else "its classifiers read only these"
        warn(f"`adata` has {found} of the model's {total} genes ({share:.0%}); {how}.")
    return share


def _projection_of(
    values: NDArray[np.float32], name: str, candidates: Iterable[tuple[sparse.csr_matrix, float]],
    gene_sets: Sequence[NDArray[np.int64]], names: pd.Index,
) -> GeneProjection | None:  # fmt: skip
    """Return the linear map from log expression that gives the ``values`` of a stored PCA again, if there is one."""
    centre = values.mean(axis=0, dtype=np.float64)
    centred = values - centre
    total = float(np.square(centred).sum())
    for logged, target in candidates:
        for genes in gene_sets:
            mean, spread, shared = _moments(logged, genes, centred)
            for scale in (None, np.where(spread > 0, spread, 1.0)):
                components = shared if scale is None else shared / scale[:, None] ** 2
                found = _scores(logged, genes, components) - mean @ components
                if np.square(found - centred).sum() > (1 - _REPRODUCED) * total:
                    continue
                # the stored scores of a section may have a mean of their own
                shift = np.linalg.lstsq(components.T, centre, rcond=None)[0]
                variance = float(np.square(spread).sum()) if scale is None else len(genes)
                noise = max(variance - float(np.square(found).mean(axis=0).sum()), 0.0) / len(genes)
                return GeneProjection(
                    [str(g) for g in names[genes]], mean - shift, components, target, found.var(axis=0), noise, scale
                )
    warn(
        f"`adata.obsm[{name!r}]` cannot be computed from the expression in `adata`, so the saved model reads "
        f"`obsm[{name!r}]` of other sections too: they must hold the same representation. Delete "
        f"`adata.obsm[{name!r}]` to train a model on a PCA that it carries along."
    )
    return None


def _moments(
    logged: sparse.csr_matrix, genes: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of some genes, and their regression on centred ``scores``."""

    def sums(chunk: sparse.csr_matrix, rows: slice) -> tuple[Any, ...]:
        part = chunk[:, genes].astype(np.float64)
        return part.sum(axis=0), part.multiply(part).sum(axis=0), part.T @ scores[rows]

    total, squares, products = (sum(parts) for parts in zip(*iter_rows(logged, sums), strict=True))
    mean, square = np.asarray(total).ravel() / len(scores), np.asarray(squares).ravel() / len(scores)
    regression = np.asarray(products) / np.maximum(np.square(scores).sum(axis=0), 1e-12)
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0)), regression


def _scores(
    logged: sparse.csr_matrix, genes: NDArray[np.int64], components: NDArray[np.float64]
) -> NDArray[np.float64]:
    return np.concatenate(list(iter_rows(logged, lambda part, _: part[:, genes].astype(np.float64) @ components)))


def _log_candidates(adata: AnnData, read: Expression) -> Iterator[tuple[sparse.csr_matrix, float]]:
    """Log expression as the PCA may have seen it, and the depth to which counts are brought for it."""
    matrix, scale = read.matrix, read.scale
    if scale == "log":
        yield matrix, _depth_of_logs(matrix)
        return
    beside = _keys.COUNTS in adata.layers and adata.X is not None and "log1p" in adata.uns  # logarithms in `X`
    depth = median_depth(np.asarray(matrix.sum(axis=1)).ravel())
    for target in dict.fromkeys(([_depth_of_logs(adata.X)] if beside else []) + [depth, _TARGET]):
        yield log_normalize(matrix, scale, target_sum=target), target


def _depth_of_logs(matrix: Any) -> float:
    """Median depth that a matrix of logarithms was brought to."""

    def depth(chunk: sparse.csr_matrix, _: slice) -> NDArray[np.float64]:
        back = chunk.astype(np.float64)
        back.data = np.expm1(np.minimum(back.data, 50.0))
        return np.asarray(back.sum(axis=1)).ravel()

    return median_depth(np.concatenate(list(iter_rows(matrix, depth))))


def _gene_sets(adata: AnnData, width: int) -> list[NDArray[np.int64]]:
    """Genes that the PCA may have been made of: those with loadings, the variable ones, all."""
    sets = [np.arange(adata.n_vars)]
    if "highly_variable" in adata.var:
        sets.insert(0, np.flatnonzero(adata.var["highly_variable"].to_numpy(dtype=bool, na_value=False)))
    loadings = adata.varm.get("PCs")
    if loadings is not None and np.ndim(loadings) == 2 and np.shape(loadings)[1] >= width:
        sets.insert(0, np.flatnonzero(np.asarray(loadings)[:, :width].any(axis=1)))
    return sets
