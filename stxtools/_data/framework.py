"""Input of the framework from an AnnData: representation, genes, labels, and the genes it is to predict."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stxtools._validate import check_in
from stxtools._warn import at_caller

from .expression import Expression
from .features import compute_representation, model_features, remember_input, training_representation
from .regions import RegionInput, node_features, region_sections
from .representation import log_normalize, median_depth, select_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import TissueNet


def genes_to_predict(adata: AnnData, genes: Sequence[str] | None) -> list[str]:
    """Check the genes of ``expression=``.

    Raises
    ------
    KeyError
        If one of them is not in ``var_names``.
    ValueError
        If none, one twice, or all genes are named: something must be left to read.
    TypeError
        If it is a single string.
    """
    if genes is None:
        return []
    if isinstance(genes, str):
        raise TypeError(f"`expression={genes!r}` must be a list of genes, such as [{genes!r}].")
    names = [str(g) for g in genes]
    absent = [g for g in names if g not in adata.var_names]
    if absent:
        raise KeyError(f"`expression` names {absent[:3]}, not found in `adata.var_names`.")
    if not names or len(set(names)) < len(names) or len(names) >= adata.n_vars:
        raise ValueError(
            f"`expression` names {len(names)} gene(s), {len(set(names))} different ones, of {adata.n_vars}; name each "
            "gene once, and leave some to read."
        )
    return names


def expression_targets(
    adata: AnnData, genes: Sequence[str], key: str | None, layer: str | None
) -> tuple[NDArray[np.float32] | None, dict[str, str]]:
    """Log expression of ``genes``, (n_obs, n_genes), NaN where ``obs[key]`` is false, and what ``params`` say of it.

    None without genes.
    """
    if not genes:
        if key is not None:
            raise ValueError("`expression_key` says where `expression` may be learned from; name the genes, too.")
        return None, {}
    read = Expression(adata, layer)
    at = adata.var_names.get_indexer(list(genes))
    values = log_normalize(read.matrix, read.scale)[:, at].toarray().astype(np.float32)
    if key is not None:
        check_in(adata, "obs", key, "expression_key")
        column = adata.obs[key]
        if column.dtype != bool:
            raise TypeError(f"`adata.obs[{key!r}]` is {column.dtype}; `expression_key` takes a boolean column.")
        if not column.any():
            raise ValueError(f"`adata.obs[{key!r}]` is false everywhere: there is nothing to learn from.")
        values[~column.to_numpy()] = np.nan
    return values, read.record


def training_sections(
    adata: AnnData,
    model: TissueNet,
    inp: RegionInput,
    labels: dict[str, NDArray[np.int64]],
    targets: NDArray[np.float32] | None,
    withheld: Sequence[str],
    *,
    use_rep: str | None,
    layer: str | None,
    portable: bool,
    random_state: int,
) -> tuple[list[Any], dict[str, str]]:
    """Sections to train on, and what ``params`` say of the expression; the model remembers where its input came from.

    Where there is a representation but no expression (a scaled ``X``), no genes are read beside it.
    """
    source = adata[:, ~adata.var_names.isin(list(withheld))] if withheld else adata
    if withheld and use_rep is None:
        rep = compute_representation(source, layer, random_state=random_state)
    else:
        rep = training_representation(adata, use_rep, layer, portable=portable, random_state=random_state)
    remember_input(model, rep)
    genes, read = None, rep.read
    found = Expression(source, layer, scaled=True) if model.params.genes else None
    if found is not None and found.scale == "scaled":
        warnings.warn(
            "`adata.X` holds negative values, as after scaling, which are not expression, and there is no other: the "
            "model reads the representation alone. `params={'genes': False}` says so beforehand.",
            UserWarning,
            stacklevel=at_caller(),
        )
    elif found is not None:
        counts, scale, read = found.matrix, found.scale, found.record
        chosen = select_genes(counts, scale)
        model.target_sum = median_depth(np.asarray(counts.sum(axis=1)).ravel())
        model.genes = [str(g) for g in source.var_names[chosen]]
        genes = log_normalize(counts, scale, target_sum=model.target_sum)[:, chosen]
    sections = region_sections(rep.values, node_features(rep.values, inp), inp, labels, genes=genes, expression=targets)
    return sections, read


def known_sections(
    adata: AnnData, model: TissueNet, layer: str | None, inp: RegionInput
) -> tuple[list[Any], dict[str, Any]]:
    """Sections for a trained model, and what ``params`` say of its input, as in :func:`model_features`."""
    if model.expression:  # they took no part in the depth when it was trained
        adata = adata[:, ~adata.var_names.isin(model.expression)]
    values, found = model_features(adata, model, layer)
    genes = None
    if model.genes is not None:
        read = Expression(adata, layer)
        logged = log_normalize(read.matrix, read.scale, target_sum=model.target_sum)
        at = adata.var_names.get_indexer(model.genes)
        # a gene that is not there stays 0, which is average after centring by section
        pick = sparse.csr_matrix(
            (np.ones(int((at >= 0).sum()), np.float32), (at[at >= 0], np.flatnonzero(at >= 0))),
            shape=(adata.n_vars, len(at)),
        )
        genes = sparse.csr_matrix(logged @ pick)
        found = found or {"genes_found": float((at >= 0).mean()), **read.record}
    return region_sections(values, node_features(values, inp), inp, {}, genes=genes), found
