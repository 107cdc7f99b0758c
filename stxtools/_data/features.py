"""Input of the models from an AnnData, in training and prediction: features, genes, and genes to predict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._progress import stage
from stxtools._spatial.matrices import leading_axes
from stxtools._types import Csr, Floats32, Ints
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

_WARN_SHARE = 0.5  # of the model's genes: a smaller share gives a warning
_MIN_SHARE, _MIN_GENES = 0.02, 20  # of the model's genes: fewer do not determine the components
_MIN_SHARED = 20  # genes shared by data sets
_NAME_COLUMNS = (
    "gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "gene_symbols", "gene_symbol", "symbol", "gene_name",
    "gene_names", "feature_name",
)  # fmt: skip
_VERSION = re.compile(r"^(ENS[A-Z]*G\d+)\.\d+$")


def compute_representation(
    read: Expression, random_state: int, *, n_comps: int = N_COMPS, n_top_genes: int = N_TOP_GENES
) -> tuple[Floats32, GeneProjection]:
    """PCA of the log-normalised variable genes; out of core, from a sample of a large matrix.

    Genes are not z-scored: on cortex sections z-scoring lost 0.2 ARI and more.
    """
    out_of_core = is_out_of_core(read.matrix)
    matrix = read.sample(random_state) if out_of_core else read.matrix
    stage("choosing genes")
    genes = select_genes(matrix, read.scale, n_top_genes)
    stage("computing components")
    target = median_depth(read.summary.depth if out_of_core else np.asarray(matrix.sum(axis=1)).ravel())
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
    if len(values) == len(read.summary.depth):
        return np.ascontiguousarray(values, dtype=np.float32), projection
    projected = _project(read, projection, [str(name) for name in read.names])
    return projected, replace(projection, variance=projected.var(axis=0, dtype=np.float64))


def _project(read: Expression, projection: GeneProjection, names: Sequence[str]) -> Floats32:
    parts = log_chunks(read, lambda logged, rows: projection.transform(logged, names), projection.target_sum)
    return np.concatenate(list(parts))


def joint_representation(
    adatas: Sequence[AnnData], layer: str | None = None
) -> tuple[list[Floats32], GeneProjection, list[Expression]]:
    """PCA of the log-normalised genes that are shared by all data sets and variable in most of them."""
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
        variable = select_genes(r.matrix[:, columns], r.scale)
        votes[variable] += 1 / len(variable)
        logged.append(log_normalize(r.matrix, r.scale, target_sum=target)[:, columns])
    genes = np.sort(np.argsort(-votes, kind="stable")[: min(N_TOP_GENES, int((votes > 0).sum()))])
    logged = [part[:, genes] for part in logged]
    means = [np.asarray(part.mean(axis=0)).ravel() for part in logged]
    n_comps = min(N_COMPS, len(genes) - 1, min(a.n_obs for a in adatas) - 1)
    stacked = sparse.vstack(logged, format="csr").astype(np.float64)
    n_obs = np.array([part.shape[0] for part in logged], dtype=np.float64)
    overall = np.average(np.stack(means), axis=0, weights=n_obs)
    scatter = (stacked.T @ stacked).toarray()  # within data sets
    for mean, n in zip(means, n_obs, strict=True):
        scatter -= n * np.outer(mean, mean)
    components = leading_axes(scatter / n_obs.sum(), n_comps)
    values = [np.asarray(part @ components - overall @ components, dtype=np.float32) for part in logged]
    within = np.concatenate([v - v.mean(axis=0) for v in values])
    noise = residual_variance(stacked, overall, np.concatenate(values))
    names = [shared[i] for i in genes]
    return values, GeneProjection(names, overall, components, target, within.var(axis=0), noise), read


@dataclass
class Features:
    """Features of the observations, and how they were made."""

    adata: AnnData
    values: Floats32
    expression: Expression | None = None  # source of the features, or what a saved model needs besides them
    record: dict[str, Any] = field(default_factory=dict)  # entries of ``params``
    name: str = "pca"  # of the representation
    projection: GeneProjection | None = None  # by which a saved model computes it on other sections

    def genes(self, where: Geometry, names: Sequence[str], genes: Ints | None = None) -> list[GeneSection] | None:
        """Return log expression of ``genes`` (default: all) by section; None if it was not read."""
        return None if self.expression is None else self.expression.by_section(where, names, genes)

    def genes_in_memory(self, where: Geometry, names: Sequence[str]) -> list[GeneSection] | None:
        """Return log expression by section, read now if it was not; None if there is none, or not in memory."""
        read = self.expression or Expression.if_any(self.adata)
        return None if read is None or is_out_of_core(read.stored) else read.by_section(where, names)


def training_features(
    adata: AnnData, use_rep: str | None, layer: str | None, *,
    portable: bool = False, recompute: bool = False, random_state: int = 0,
) -> Features:  # fmt: skip
    """Return the representation for a new model; if ``portable``, with a projection even if it is stored."""
    name = None if use_rep is None else check_key("use_rep", use_rep)
    if use_rep is None and not recompute and layer is None and _keys.X_PCA in adata.obsm:
        name = _keys.X_PCA
    if name is None:
        read = Expression(adata, layer, in_memory=False)
        values, projection = compute_representation(read, random_state)
        return Features(adata, values, read, read.record, projection=projection)
    out = Features(adata, stored_representation(adata, name), name=name)
    if portable and use_rep is None:
        out.expression = Expression.if_any(adata)
        if out.expression is not None:
            out.projection = stored_projection(adata, out.values, out.expression.matrix, out.expression.scale)
        if out.projection is None:
            warn(
                f"`adata.obsm[{name!r}]` cannot be computed from the expression in `adata`, so the saved model reads "
                f"`obsm[{name!r}]` of other sections too: they must hold the same representation. Delete "
                f"`adata.obsm[{name!r}]` to train a model on a PCA that is saved with it."
            )
    return out


def model_features(
    adata: AnnData, model: BaseModel[Any, Any], layer: str | None, *,
    n_others: int = 0, names: Sequence[str] | None = None, by_name: bool = False,
) -> Features:  # fmt: skip
    """Return the features that a trained model reads, besides ``n_others``; genes ``by_name`` need expression."""
    read = Expression(adata, layer, in_memory=False) if by_name or model.projection is not None else None
    if model.projection is None or read is None:
        values, expected = stored_representation(adata, str(model.use_rep)), model.n_features - n_others
        if values.shape[1] != expected:
            raise ValueError(
                f"The model was trained on {expected} columns of `adata.obsm[{model.use_rep!r}]`; there are "
                f"{values.shape[1]}. Compute them as for the training data."
            )
        return Features(adata, values, read)
    genes = model.projection.genes
    if names is None:
        names = [str(name) for name in adata.var_names]
        check_genes(genes, names)
    share = len(set(genes).intersection(names)) / len(genes)
    return Features(adata, _project(read, model.projection, names), read, {"genes_found": share, **read.record})


class GeneNames:
    """Names of genes, and their aliases in columns of ``var``."""

    def __init__(self, adata: AnnData) -> None:
        self.names = [str(name) for name in adata.var_names]
        columns: list[Any] = [adata.var[c] for c in _NAME_COLUMNS if c in adata.var]
        self._columns = [[_without_version(str(name)) for name in column] for column in columns]

    def aliases(self) -> dict[str, str]:
        """Return another name of each gene, from the first column in which all differ; empty if there is none."""
        column = next((names for names in self._columns if len(set(names)) == len(names)), [])
        return dict(zip(self.names, column, strict=False))

    def matched(self, genes: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
        """Return names in which most of a model's ``genes`` are found, by their name or alias."""
        lookups = [{_without_version(g): g for g in genes}, {_without_version(a): g for g, a in aliases.items()}]
        best, most = self.names, sum(g in lookups[0] for g in self.names)
        for names in ([_without_version(g) for g in self.names], *self._columns):
            for lookup in lookups:
                matches = [lookup.get(name, "") for name in names]
                count = len({match for match in matches if match})
                if count > most:
                    best, most = _unique_names(matches, self.names), count
        return best


def _unique_names(matches: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the first gene of each match under the matched name, and all others under a name of their own."""
    first = dict(zip(reversed(matches), reversed(range(len(matches))), strict=True))
    others = [name if name not in first else f"{name}'" for name in names]
    return [match if match and first[match] == i else others[i] for i, match in enumerate(matches)]


def _without_version(name: str) -> str:
    return _VERSION.sub(r"\1", name)


def check_genes(genes: Sequence[str], names: Sequence[str], *, enough: int | None = None) -> None:
    """Check that ``names`` contain 20 of the model's ``genes``, and one in fifty; warn if fewer than half."""
    found, total = len(set(genes).intersection(names)), len(genes)
    share = found / total
    needed = min(max(_MIN_GENES, int(np.ceil(_MIN_SHARE * total)) if enough is None else 0), int(np.ceil(total / 4)))
    if found < needed:
        raise ValueError(
            f"`adata` has {found} of the model's {total} genes ({share:.0%}); at least {needed} are needed. "
            f"The model expects names like {list(genes[:3])}; `adata.var_names` begins with {list(names[:3])}."
        )
    if share < _WARN_SHARE and (enough is None or found < enough):
        effect = "the others are inferred from them" if enough is None else "its classifiers read only these"
        warn(f"`adata` has {found} of the model's {total} genes ({share:.0%}); {effect}.")


@dataclass
class TissueInput:
    """Input of :class:`stxtools.models.TissueNet`, and what it learns."""

    values: Floats32  # features of the observations
    record: dict[str, Any]  # entries of ``params``
    genes: Csr | None = None  # log expression that is read besides the features
    named: tuple[Expression, Sequence[str], Ints | None] | None = None  # expression, names and genes read by name
    labels: Mapping[str, Ints] = field(default_factory=dict)
    targets: Floats32 | None = None  # log expression to predict

    def sections(self, regions: Regions) -> list[Any]:
        """Split the input by section."""
        by_name = None if self.named is None else self.named[0].by_section(regions.where, *self.named[1:])
        return region_sections(
            self.values, regions, self.labels, genes=self.genes, expression=self.targets, by_name=by_name
        )


def tissue_training_input(
    adata: AnnData, layer: str | None, model: TissueNet, labels: Mapping[str, Ints], targets: Floats32 | None, *,
    use_rep: str | None, portable: bool, random_state: int,
) -> TissueInput:  # fmt: skip
    """Return the input of a new model, which stores its representation, genes and depth."""
    known = GeneNames(adata)
    names, aliases = known.names, known.aliases()
    features = training_features(
        adata, use_rep, layer, portable=portable, recompute=targets is not None, random_state=random_state
    )
    model.use_rep, model.projection = features.name, features.projection
    out = TissueInput(features.values, features.record, labels=labels, targets=targets)
    chosen = model.params.genes
    if not chosen:
        return out
    read = features.expression
    if read is None or is_out_of_core(read.matrix):
        read = Expression(adata, layer, allow_scaled=True)
    if read.scale == "scaled":
        warn(
            "`adata.X` holds negative values, as after scaling, which are not expression, and there is no other: "
            "the model reads the representation alone. `params={'genes': False}` requests that explicitly."
        )
        return out
    if isinstance(chosen, bool):
        index = select_genes(read.matrix, read.scale)
    else:
        index = read.names.get_indexer(list(chosen))
        if (index < 0).any():
            raise KeyError(f"`params['genes']` names {[chosen[i] for i in np.flatnonzero(index < 0)[:3]]}, which are "
                           "not in `adata.var_names`, or are genes to predict.")  # fmt: skip
        index = np.unique(index)
    model.target_sum = median_depth(np.asarray(read.matrix.sum(axis=1)).ravel())
    model.genes = [str(g) for g in read.names[index]]
    out.record = read.record
    out.genes = log_normalize(read.matrix, read.scale, target_sum=model.target_sum)[:, index]
    out.named, model.ids = (read, names, None), aliases
    return out


def tissue_input(adata: AnnData, layer: str | None, model: TissueNet) -> TissueInput:
    """Return the input of a trained model, whose hidden genes ``adata`` lacks."""
    names = GeneNames(adata).matched(model.read_genes, model.ids)
    if model.projection is not None:
        check_genes(model.projection.genes, names)
    features = model_features(adata, model, layer, names=names, by_name=model.genes is not None)
    out, read = TissueInput(features.values, features.record), features.expression
    if model.genes is None or read is None:
        return out
    out.named = read, names, np.flatnonzero(np.isin(names, model.read_genes))
    index = pd.Index(names).get_indexer(model.genes)
    # a missing gene stays 0, which is average after centring by section
    selection = sparse.csr_matrix(
        (np.ones(int((index >= 0).sum()), np.float32), (index[index >= 0], np.flatnonzero(index >= 0))),
        shape=(len(read.names), len(index)),
    )
    parts = list(log_chunks(read, lambda logged, rows: logged @ selection, model.target_sum))
    out.genes = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
    out.record = out.record or {"genes_found": float((index >= 0).mean()), **read.record}
    return out
