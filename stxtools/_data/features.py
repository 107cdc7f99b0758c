"""What models read of an AnnData, in training and on another section: features, genes, and genes to predict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
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
from .regions import Regions, region_sections
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
    from stxtools.models import TissueNet
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


class _FrameworkInput:
    """Features of the observations, and log expression of genes."""

    values: Floats32
    genes: sparse.csr_matrix | None
    labels: Mapping[str, Ints] = MappingProxyType({})
    targets: Floats32 | None = None
    named: tuple[Expression, Sequence[str], Ints | None] | None = None
    record: dict[str, Any]

    def sections(self, regions: Regions) -> list[Any]:
        """Split by section what a model reads and learns."""
        by_name = None if self.named is None else self.named[0].by_section(regions.where, *self.named[1:])
        return region_sections(
            self.values, regions, self.labels, genes=self.genes, expression=self.targets, by_name=by_name
        )


class TrainingInput(_FrameworkInput):
    """What a new model reads and learns; it remembers what it reads."""

    def __init__(
        self, adata: AnnData, model: TissueNet, labels: Mapping[str, Ints],
        targets: tuple[Sequence[str], str | None], *,
        use_rep: str | None, layer: str | None, portable: bool, random_state: int,
    ) -> None:  # fmt: skip
        self.labels, self.genes, self.targets = labels, None, None
        withheld, learned_at = targets
        own: dict[str, str] = {}
        if withheld:
            learned = Expression(adata, layer)
            at, own = learned.names.get_indexer(list(withheld)), learned.record
            self.targets = log_normalize(learned.matrix, learned.scale)[:, at].toarray().astype(np.float32)
            if learned_at is not None:
                self.targets[~adata.obs[learned_at].to_numpy()] = np.nan
        source = adata[:, ~adata.var_names.isin(list(withheld))] if withheld else adata
        features = TrainingFeatures(
            source, use_rep, layer, portable=portable, anew=bool(withheld), random_state=random_state
        )
        model.use_rep, model.projection = features.name, features.projection
        self.values, self.record = features.values, own | features.record
        if not model.params.genes:
            return
        read = features.expression
        if read is None or is_out_of_core(read.matrix):
            read = Expression(source, layer, scaled=True)
        if read.scale == "scaled":
            warn(
                "`adata.X` holds negative values, as after scaling, which are not expression, and there is no other: "
                "the model reads the representation alone. `params={'genes': False}` says so beforehand."
            )
            return
        named = model.params.genes
        at = read.names.get_indexer([] if isinstance(named, bool) else list(named))
        if not isinstance(named, bool) and (at < 0).any():
            raise KeyError(f"`params['genes']` names {[named[i] for i in np.flatnonzero(at < 0)[:3]]}, not found in "
                           "`adata.var_names` (genes to predict are not read).")  # fmt: skip
        chosen = select_genes(read.matrix, read.scale) if isinstance(named, bool) else np.unique(at)
        model.target_sum = median_depth(np.asarray(read.matrix.sum(axis=1)).ravel())
        model.genes = [str(g) for g in read.names[chosen]]
        self.record = own | read.record
        self.genes = log_normalize(read.matrix, read.scale, target_sum=model.target_sum)[:, chosen]
        known = GeneNames(source)
        self.named, model.ids = (read, known.own, None), known.others()


class KnownInput(_FrameworkInput):
    """What a trained model reads: ``values``, ``genes`` and, as ``record``, what ``params`` say of them."""

    def __init__(self, adata: AnnData, model: TissueNet, layer: str | None) -> None:
        if model.expression:  # they took no part in the depth when it was trained
            adata = adata[:, ~adata.var_names.isin(model.expression)]
        names = GeneNames(adata).as_model(model.read_genes, model.ids)
        if model.projection is not None:
            check_genes(model.projection.genes, names)
        features = ModelFeatures(adata, model, layer, names=names, by_name=model.genes is not None)
        self.values, self.record = features.values, features.record
        self.genes, read = None, features.expression
        if model.genes is None or read is None:
            return
        self.named = read, names, np.flatnonzero(np.isin(names, model.read_genes))
        at = pd.Index(names).get_indexer(model.genes)
        # a gene that is not there stays 0, which is average after centring by section
        pick = sparse.csr_matrix(
            (np.ones(int((at >= 0).sum()), np.float32), (at[at >= 0], np.flatnonzero(at >= 0))),
            shape=(len(read.names), len(at)),
        )
        parts = list(log_chunks(read, lambda logged, rows: logged @ pick, model.target_sum))
        self.genes = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
        self.record = self.record or {"genes_found": float((at >= 0).mean()), **read.record}
