"""Input of every model in an evaluation: sections, labels and folds, without test labels."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stxtools._data.chunks import is_out_of_core
from stxtools._data.expression import Expression
from stxtools._data.features import compute_representation, stored_representation
from stxtools._data.representation import log_normalize, median_depth
from stxtools._data.sections import Geometry, make_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import Section

# features, log expression of all genes, and which of them are variable; the latter none for a stored representation
Read = tuple["NDArray[np.float32]", sparse.csr_matrix | None, Sequence[int]]


@dataclass(frozen=True)
class Target:
    """A target: its name, the column, class codes (-1: unknown) and class names."""

    name: str
    key: str
    codes: NDArray[np.int64]
    classes: list[str]


@dataclass(frozen=True)
class FeatureSource:
    """Source of the features: a stored representation or a layer, and the seed of the components."""

    use_rep: str | None
    layer: str | None
    seed: int


def read_features(adata: AnnData, how: FeatureSource, learn_from: NDArray[np.bool_] | None = None) -> Read:
    """Features (n, d) of all observations, log expression and variable genes; no label is looked at."""
    if how.use_rep is not None:
        return stored_representation(adata, how.use_rep).values, None, ()
    adata = adata.to_memory() if adata.isbacked else adata  # anndata divides no part of a file again
    rows = slice(None) if learn_from is None else np.flatnonzero(learn_from)
    rep, read = compute_representation(adata[rows], how.layer, random_state=how.seed)
    if learn_from is not None or is_out_of_core(read.matrix):
        read = Expression(adata, how.layer)
    if rep.genes is None or rep.mean is None or rep.components is None:  # for the type checker: it was computed
        return rep.values, None, ()
    columns = adata.var_names.get_indexer(rep.genes)
    logged = log_normalize(read.matrix, read.scale, target_sum=rep.target_sum)
    values = np.asarray(logged[:, columns] @ rep.components) - rep.mean @ rep.components
    return np.ascontiguousarray(values, dtype=np.float32), logged, columns.tolist()


def evaluation_sections(read: Read, where: Geometry) -> list[Section]:
    """Split features and expression by section."""
    from stxtools.models.baselines.simple import EvaluationSection

    values, logged, variable = read
    out: list[Section] = []
    for rows, s in zip(where.parts, make_sections(values, where), strict=True):
        own = None if logged is None else logged[rows]
        out.append(EvaluationSection(s.name, s.features, s.pixels, s.shape, s.graph, s.xy, own, variable))
    return out


def held_out_genes(adata: AnnData, genes: int | Sequence[str], seed: int) -> NDArray[np.int64]:
    """Positions of the genes that are hidden from the models and predicted."""
    if isinstance(genes, (int, np.integer)):
        if not 1 <= genes < adata.n_vars - 1:
            raise ValueError(f"`genes={genes}` must be between 1 and {adata.n_vars - 2}: two genes must be left.")
        return np.sort(np.random.default_rng([seed, 13]).permutation(adata.n_vars)[:genes])
    if isinstance(genes, str) or not isinstance(genes, Iterable):
        raise TypeError(f"`genes` must be how many genes to hide, or a list of their names, not {genes!r}.")
    names = [str(g) for g in genes]
    place = adata.var_names.get_indexer(names)
    unknown = [g for g, p in zip(names, place, strict=True) if p < 0]
    if unknown or not names:
        raise KeyError(f"`genes` must name genes of `adata.var_names`; not there: {unknown or 'an empty list'}.")
    if len(set(names)) > adata.n_vars - 2:
        raise ValueError(f"`genes` names {len(names)} of {adata.n_vars} genes; two must be left to predict from.")
    return np.unique(place)


def standardised(values: NDArray[np.float64], train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scale to mean 0 and variance 1 over the training observations: predicting the mean then has an MSE near 1."""
    return (values - values[train].mean(axis=0)) / (values[train].std(axis=0) + 1e-9)


def log_values(adata: AnnData, layer: str | None, columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-normalised expression of some genes, dense."""
    read = Expression(adata, layer)
    target = None if read.scale == "log" else median_depth(np.asarray(read.matrix.sum(axis=1)).ravel())
    return log_normalize(read.matrix, read.scale, target_sum=target)[:, columns].toarray().astype(np.float64)


def data_checksum(adata: AnnData, where: Geometry, targets: Sequence[Target], how: FeatureSource) -> int:
    """Checksum of what an evaluation reads: names, coordinates, sections, labels and expression."""
    if how.use_rep is not None:
        matrix: Any = sparse.csr_matrix(stored_representation(adata, how.use_rep).values)
    else:
        matrix = Expression(adata, how.layer).matrix
    parts: list[Any] = [where.xy, where.libs.codes, matrix.data, matrix.indices, matrix.indptr]
    parts += [t.codes for t in targets]
    text = [*where.libs.names, *adata.obs_names, *adata.var_names, *(c for t in targets for c in [t.key, *t.classes])]
    value = zlib.crc32("\n".join(str(x) for x in text).encode())
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).tobytes(), value)
    return value
