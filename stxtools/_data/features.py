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
from stxtools.models.tissuenet.inputs import RegionSection

from .chunks import is_out_of_core
from .expression import Expression, log_chunks, log_columns
from .regions import Regions
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
from .sections import Geometry, make_sections

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
    """Features of the observations, and how they were made; with what the joint model reads besides them."""

    adata: AnnData
    values: Floats32
    names: list[str]  # of the genes, as :func:`gene_names`
    aliases: dict[str, str]
    expression: Expression | None = None  # source of the features, or what a saved model needs besides them
    record: dict[str, Any] = field(default_factory=dict)  # entries of ``params``
    rep: str = "pca"  # name of the representation
    projection: GeneProjection | None = None  # by which a saved model computes it on other sections
    logged: Csr | None = None  # log expression that the joint model reads by observation
    by_name: Ints | None = None  # positions of the genes that its gene classifiers read

    def genes(self, where: Geometry, genes: Ints | None = None) -> list[GeneSection] | None:
        """Return log expression of ``genes`` (default: all) by section; None if it was not read."""
        return None if self.expression is None else self.expression.by_section(where, self.names, genes)

    def genes_in_memory(self, where: Geometry) -> list[GeneSection] | None:
        """Return log expression by section, read now if it was not; None if there is none, or not in memory."""
        read = self.expression or Expression.if_any(self.adata, in_memory=False)
        return None if read is None or is_out_of_core(read.stored) else read.by_section(where, self.names)

    def sections(
        self, regions: Regions, labels: Mapping[str, Ints] | None = None, targets: Floats32 | None = None, *,
        of_nodes: Floats32 | None = None,
    ) -> list[RegionSection]:  # fmt: skip
        """Return the input of the joint model by section, with what it learns: labels, and expression (``targets``).

        The means of the features, or of the values ``of_nodes``, describe the regions.
        """
        by_name = None if self.by_name is None else self.genes(regions.where, self.by_name)
        nodes, out = regions.means(self.values if of_nodes is None else of_nodes), []
        for i, section in enumerate(make_sections(self.values, regions.where)):
            obs, rows = regions.where.parts[i], regions.parts[i]
            local = np.full(len(regions) + 1, -1, dtype=np.int64)
            local[rows] = np.arange(len(rows))
            out.append(RegionSection(
                section, local[regions.region[obs]], nodes[rows], regions.adjacency[rows][:, rows].tocsr(),
                labels={task: codes[obs] for task, codes in (labels or {}).items()},
                genes=None if self.logged is None else self.logged[obs],
                expression=None if targets is None else targets[obs],
                by_name=None if by_name is None else by_name[i],
            ))  # fmt: skip
        return out


def training_features(
    adata: AnnData, use_rep: str | None, layer: str | None, *,
    portable: bool = False, recompute: bool = False, random_state: int = 0,
) -> Features:  # fmt: skip
    """Return the representation for a new model; if ``portable``, with a projection even if it is stored."""
    rep, names = None if use_rep is None else check_key("use_rep", use_rep), gene_names(adata)
    if use_rep is None and not recompute and layer is None and _keys.X_PCA in adata.obsm:
        rep = _keys.X_PCA
    if rep is None:
        read = Expression(adata, layer, in_memory=False)
        values, projection = compute_representation(read, random_state)
        return Features(adata, values, *names, read, read.record, projection=projection)
    out = Features(adata, stored_representation(adata, rep), *names, rep=rep)
    if portable and use_rep is None:
        out.expression = Expression.if_any(adata)
        if out.expression is not None:
            out.projection = stored_projection(adata, out.values, out.expression.matrix, out.expression.scale)
        if out.projection is None:
            warn(
                f"`adata.obsm[{rep!r}]` cannot be computed from the expression in `adata`, so the saved model reads "
                f"`obsm[{rep!r}]` of other sections too: they must hold the same representation. Delete "
                f"`adata.obsm[{rep!r}]` to train a model on a PCA that is saved with it."
            )
    return out


def model_features(
    adata: AnnData, layer: str | None, model: BaseModel[Any, Any], *, n_image_features: int = 0
) -> Features:
    """Return what a trained model reads (except from an image) of an AnnData without the genes that it predicts."""
    names, aliases = gene_names(adata, model)
    read = Expression(adata, layer, in_memory=False) if model.read_genes else None
    if model.projection is None or read is None:
        values, expected = stored_representation(adata, str(model.use_rep)), model.n_features - n_image_features
        if values.shape[1] != expected:
            raise ValueError(
                f"The model was trained on {expected} columns of `adata.obsm[{model.use_rep!r}]`; there are "
                f"{values.shape[1]}. Compute them as for the training data."
            )
        out = Features(adata, values, names, aliases, read)
    else:
        share = float(np.isin(model.projection.genes, names).mean())
        values = _project(read, model.projection, names)
        out = Features(adata, values, names, aliases, read, {"genes_found": share, **read.record})
    if model.genes is not None and read is not None:
        columns = pd.Index(names).get_indexer(model.genes)
        # a missing gene stays 0, which is average after centring by section
        out.logged = log_columns(read, columns, model.target_sum)
        out.by_name = np.flatnonzero(np.isin(names, model.read_genes))
        out.record = out.record or {"genes_found": float((columns >= 0).mean()), **read.record}
    return out


def gene_names(adata: AnnData, model: BaseModel[Any, Any] | None = None) -> tuple[list[str], dict[str, str]]:
    """Return the names of the genes (those that ``model`` knows them by), and another name of each.

    The other names are the first column of ``var`` in which all differ, such as Ensembl identifiers beside symbols. A
    model is searched for names and columns; enough of its genes must be found.
    """
    names = [str(name) for name in adata.var_names]
    stored: list[Any] = [adata.var[c] for c in _NAME_COLUMNS if c in adata.var]
    columns = [[str(name) for name in column] for column in stored]
    if model is not None and model.read_genes:
        names = _matched_names([names, *columns], model.read_genes, model.ids)
        _check_genes(model, names)
    others = next((column for column in columns if len(set(column)) == len(column)), [])
    return names, {name: _without_version(other) for name, other in zip(names, others, strict=False)}


def _matched_names(columns: Sequence[list[str]], genes: Sequence[str], aliases: Mapping[str, str]) -> list[str]:
    """Return the names in which most of a model's ``genes`` are found, by name or alias, in one of the ``columns``."""
    names = columns[0]
    lookups = [{_without_version(g): g for g in genes}, {_without_version(a): g for g, a in aliases.items()}]
    best, most = names, sum(g in lookups[0] for g in names)
    for column in columns:
        for lookup in lookups:
            matches = [lookup.get(_without_version(name), "") for name in column]
            count = len({match for match in matches if match})
            if count > most:
                best, most = _unique_names(matches, names), count
    return best


def _unique_names(matches: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the first gene of each match under the matched name, and all others under a name of their own."""
    first = dict(zip(reversed(matches), reversed(range(len(matches))), strict=True))
    others = [name if name not in first else f"{name}'" for name in names]
    return [match if match and first[match] == i else others[i] for i, match in enumerate(matches)]


def _without_version(name: str) -> str:
    return _VERSION.sub(r"\1", name)


def _check_genes(model: BaseModel[Any, Any], names: Sequence[str]) -> None:
    """Check that ``names`` contain 20 of the model's genes, and one in fifty; warn if fewer than half."""
    genes, enough = model.required_genes, model.enough_genes
    found, total = len(set(genes).intersection(names)), len(genes)
    share = found / total
    needed = min(max(_MIN_GENES, int(np.ceil(_MIN_SHARE * total)) if enough is None else 0), int(np.ceil(total / 4)))
    if found < needed:
        raise ValueError(
            f"`adata` has {found} of the model's {total} genes ({share:.0%}); at least {needed} are needed. "
            f"The model expects names like {list(genes[:3])}; `adata.var_names` begins with {list(names[:3])}. "
            "If a column of `adata.var` holds such names, make it `adata.var_names`."
        )
    if share < _WARN_SHARE and (enough is None or found < enough):
        inferred = (
            "the others are inferred from them" if model.projection is not None else "the others count as average"
        )
        effect = inferred if enough is None else "its classifiers read only these"
        warn(f"`adata` has {found} of the model's {total} genes ({share:.0%}); {effect}.")


def joint_training_features(
    adata: AnnData, layer: str | None, model: TissueNet, *,
    use_rep: str | None, recompute: bool, portable: bool, random_state: int,
) -> Features:  # fmt: skip
    """Return what a new joint model reads; the model keeps its representation, genes and depth."""
    features = training_features(
        adata, use_rep, layer, portable=portable, recompute=recompute, random_state=random_state
    )
    model.use_rep, model.projection, model.ids = features.rep, features.projection, features.aliases
    chosen = model.params.genes
    if not chosen:
        return features
    read = features.expression
    if read is None or is_out_of_core(read.matrix):
        read = Expression(adata, layer, allow_scaled=True)
    if read.scale == "scaled":
        warn(
            "`adata.X` holds negative values, as after scaling, which are not expression, and there is no other: "
            "the model reads the representation alone. `params={'genes': False}` requests that explicitly."
        )
        return features
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
    features.logged = log_normalize(read.matrix, read.scale, target_sum=model.target_sum)[:, index]
    features.by_name = np.arange(len(read.names))
    features.expression, features.record = read, read.record
    return features
