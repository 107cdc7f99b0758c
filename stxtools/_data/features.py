"""Input features of a model: in training, and on another section."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._progress import stage
from stxtools._spatial.matrices import leading_axes
from stxtools._types import Floats32, Ints
from stxtools._warn import warn
from stxtools.models._projection import GeneProjection
from stxtools.models.ensemble.gene_means import GeneSection

from .chunks import is_out_of_core
from .expression import Expression, log_chunks
from .representation import (
    N_COMPS,
    N_TOP_GENES,
    log_normalize,
    median_depth,
    principal_axes,
    residual_variance,
    select_genes,
    stored_projection,
    stored_representation,
)
from .sections import Geometry

if TYPE_CHECKING:
    from stxtools.models._base import BaseModel

_WARN_SHARE = 0.5  # of the genes: fewer, and the user is warned
_MIN_SHARE, _MIN_GENES = 0.02, 20  # fewer cannot tell the components apart
_MIN_SHARED = 20  # genes of several data sets
_NAME_COLUMNS = (
    "gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "gene_symbols", "gene_symbol", "symbol", "gene_name",
    "gene_names", "feature_name",
)  # fmt: skip
_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")


def compute_representation(
    read: Expression, random_state: int, *, n_comps: int = N_COMPS, n_top_genes: int = N_TOP_GENES
) -> tuple[Floats32, GeneProjection]:
    """PCA of the log-normalised variable genes; of a large matrix out of core, axes come from a sample.

    Genes are not z-scored: on cortex sections z-scoring lost 0.2 ARI and more.
    """
    away = is_out_of_core(read.matrix)
    matrix = read.sample(random_state) if away else read.matrix
    stage("choosing genes")
    genes = select_genes(matrix, read.scale, n_top_genes)
    stage("computing components")
    target = median_depth(read.survey.depth if away else np.asarray(matrix.sum(axis=1)).ravel())
    logged = log_normalize(matrix, read.scale, target_sum=target)[:, genes]
    n_comps = min(n_comps, len(genes), matrix.shape[0] - 1)
    if n_comps < 1:
        raise ValueError(f"`adata` has {matrix.shape[0]} observation(s); a representation needs at least 2.")
    mean, components = principal_axes(logged, n_comps, random_state=random_state)
    values = np.asarray(logged @ components) - mean @ components
    noise = residual_variance(logged, mean, values)
    projection = GeneProjection(
        [str(g) for g in read.names[genes]], mean, components, target, values.var(axis=0), noise
    )
    if len(values) == len(read.survey.depth):
        return np.ascontiguousarray(values, dtype=np.float32), projection
    found = _projected(read, projection, [str(name) for name in read.names])
    return found, replace(projection, variance=found.var(axis=0, dtype=np.float64))


def joint_representation(
    adatas: Sequence[AnnData], layer: str | None = None
) -> tuple[list[Floats32], GeneProjection, list[Expression]]:
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
    components = leading_axes(moment / weights.sum(), n_comps)
    values = [np.asarray(part @ components - overall @ components, dtype=np.float32) for part in logged]
    within = np.concatenate([v - v.mean(axis=0) for v in values])
    noise = residual_variance(stacked, overall, np.concatenate(values))
    names = [shared[i] for i in genes]
    return values, GeneProjection(names, overall, components, target, within.var(axis=0), noise), read


class _Features:
    """What a model reads of an AnnData.

    - ``expression``: What the features were made of, or what a model for other sections needs beside them.
    - ``record``: What ``params`` say of it.
    """

    values: Floats32
    expression: Expression | None
    record: dict[str, Any]

    def __init__(self, adata: AnnData) -> None:
        self._any_expression = partial(Expression.if_any, adata)

    def genes(self, where: Geometry, names: Sequence[str], at: Ints | None = None) -> list[GeneSection] | None:
        """Log expression of genes, all or those ``at`` positions, by section; None where it was not read."""
        return None if self.expression is None else self.expression.by_section(where, names, at)

    def genes_in_memory(self, where: Geometry, names: Sequence[str]) -> list[GeneSection] | None:
        """Log expression by section, read now if it was not; None where there is none, or it is not in memory."""
        read = self.expression or self._any_expression()
        return None if read is None or is_out_of_core(read.stored) else read.by_section(where, names)


class TrainingFeatures(_Features):
    """The representation that a new model reads, with ``name`` and ``projection``, which the model remembers.

    If ``portable``, the projection says how to make a stored one elsewhere.
    """

    projection: GeneProjection | None

    def __init__(
        self, adata: AnnData, use_rep: str | None, layer: str | None, *,
        portable: bool = False, anew: bool = False, random_state: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(adata)
        stored = None if use_rep is None else check_key("use_rep", use_rep)
        if use_rep is None and not anew and layer is None and _keys.X_PCA in adata.obsm:
            stored = _keys.X_PCA
        self.name, self.projection, self.expression = stored or "pca", None, None
        self.record = {}
        if stored is None:
            self.expression = read = Expression(adata, layer, in_memory=None)
            self.values, self.projection = compute_representation(read, random_state)
            self.record = read.record
            return
        self.values = stored_representation(adata, stored)
        if portable and use_rep is None:
            self.expression = found = Expression.if_any(adata)
            if found is not None:
                self.projection = stored_projection(adata, self.values, found.matrix, found.scale)
            if self.projection is None:
                warn(
                    f"`adata.obsm[{stored!r}]` cannot be computed from the expression in `adata`, so the saved model "
                    f"reads `obsm[{stored!r}]` of other sections too: they must hold the same representation. Delete "
                    f"`adata.obsm[{stored!r}]` to train a model on a PCA that it carries along."
                )


class ModelFeatures(_Features):
    """The features that a trained model reads."""

    def __init__(
        self, adata: AnnData, model: BaseModel[Any, Any], layer: str | None, *,
        n_others: int = 0, names: Sequence[str] | None = None, by_name: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(adata)
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


def _projected(read: Expression, projection: GeneProjection, names: list[str]) -> Floats32:
    parts = log_chunks(read, lambda x, rows: projection.transform(x, names), projection.target_sum)
    return np.concatenate(list(parts))


class GeneNames:
    """What genes are called: their names, and the columns of ``var`` that give them others."""

    def __init__(self, adata: AnnData) -> None:
        self.own = [str(name) for name in adata.var_names]
        found: list[Any] = [adata.var[c] for c in _NAME_COLUMNS if c in adata.var]
        self._columns = [[_plain(str(name)) for name in column] for column in found]

    def others(self) -> dict[str, str]:
        """Second name of each gene, from the first column that gives one to all; none where there is none."""
        column = next((names for names in self._columns if len(set(names)) == len(names)), [])
        return dict(zip(self.own, column, strict=False))

    def as_model(self, genes: Sequence[str], ids: Mapping[str, str]) -> list[str]:
        """Names as a model calls the genes, which knows ``genes`` and second names of some."""
        known = [{_plain(g): g for g in genes}, {_plain(i): g for g, i in ids.items()}]
        best, most = self.own, sum(g in known[0] for g in self.own)
        for names in ([_plain(g) for g in self.own], *self._columns):
            for by_name in known:
                found = [by_name.get(name, "") for name in names]
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


def check_genes(genes: Sequence[str], names: Sequence[str], *, enough: int | None = None) -> None:
    """Check that 20 of the model's ``genes`` are among ``names``, and one in fifty; warn where fewer than half are."""
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
