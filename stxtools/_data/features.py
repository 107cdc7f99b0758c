"""What a model reads of expression: in training, and again on another section."""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stxtools._warn import at_caller

from .chunks import LogExpression
from .portable import with_loadings
from .representation import Representation, representation, stored_representation

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy import sparse

    from stxtools.models import GeneProjection

_WARN_SHARE = 0.5  # of the genes: fewer, and the user is told
_MIN_SHARE, _MIN_GENES = 0.02, 20  # fewer cannot tell the components apart


class ReadsGenes(Protocol):
    """A model that knows its input."""

    projection: GeneProjection | None
    use_rep: str | None

    @property
    def n_features(self) -> int:
        """Length of the feature vectors."""


def training_representation(
    adata: AnnData, use_rep: str | None, layer: str | None, *, portable: bool, random_state: int
) -> Representation:
    """Choose the representation: the same for a model that is saved, which also learns how to make it elsewhere."""
    rep = representation(adata, use_rep, layer, random_state=random_state)
    return with_loadings(adata, rep, layer) if portable and use_rep is None and rep.genes is None else rep


def remember_input(model: ReadsGenes, rep: Representation) -> None:
    """Tell the model where its features came from."""
    from stxtools.models import GeneProjection

    model.use_rep = rep.name
    if rep.genes is not None and rep.mean is not None and rep.components is not None and rep.target_sum is not None:
        model.projection = GeneProjection(
            rep.genes, rep.mean, rep.components, rep.target_sum, rep.variance, rep.noise, rep.gene_scale
        )


def model_features(
    adata: AnnData, model: ReadsGenes, layer: str | None, *, n_others: int = 0
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """Return the features that a trained model reads of ``adata``, and what ``params`` say of it.

    That is the share of the model's genes that were found, and the scale and source of the expression; nothing where it
    reads no genes.

    ``n_others`` of its features come from elsewhere (a picture). Expression is read in chunks of rows and may lie
    in a file or in a dask array.

    Raises
    ------
    ValueError
        If fewer than 20 of its genes (a quarter of a small panel), or than one in fifty, are there; below a half it
        warns.
    KeyError
        If it reads a key of ``obsm`` that is not there.
    """
    if model.projection is None:
        rep = stored_representation(adata, str(model.use_rep))
        if rep.values.shape[1] != model.n_features - n_others:
            raise ValueError(
                f"The model reads {model.n_features - n_others} columns of `adata.obsm[{model.use_rep!r}]`; "
                f"there are {rep.values.shape[1]}."
            )
        return rep.values, {}
    share = _gene_share(adata, model.projection)
    logged = LogExpression(adata, layer, target_sum=model.projection.target_sum)
    names = [str(name) for name in adata.var_names]
    values = np.concatenate(logged.map(partial(_projected, model.projection, names)))
    return values, {"genes_found": share, **logged.read}


def _projected(
    projection: GeneProjection, names: list[str], logged: sparse.csr_matrix, rows: slice
) -> NDArray[np.float32]:
    return projection.transform(logged, names)


def _gene_share(adata: AnnData, projection: GeneProjection) -> float:
    found, total = len(projection.match(list(adata.var_names))[0]), len(projection.genes)
    share = found / total
    needed = min(max(_MIN_GENES, int(np.ceil(_MIN_SHARE * total))), int(np.ceil(total / 4)))
    if found < needed:
        raise ValueError(
            f"`adata` has {found} of the model's {total} genes ({share:.0%}); at least {needed} are needed. "
            f"The model expects names like {projection.genes[:3]}; `adata.var_names` begins with "
            f"{[str(v) for v in adata.var_names[:3]]}."
        )
    if share < _WARN_SHARE:
        warnings.warn(
            f"`adata` has {found} of the model's {total} genes ({share:.0%}); the rest is inferred from them.",
            UserWarning,
            stacklevel=at_caller(),
        )
    return share
