"""Segmenters that segment is given, to apply or to train on from: their genes and their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools._data.features import GeneNames, check_genes
from stxtools._lazy import importing
from stxtools._progress import stage
from stxtools._validate import Labels, listing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stxtools.models import Segmenter, SegmenterParams

_ARCHITECTURE = ("width", "depth", "kernel_size", "sigmas")


def given_segmenter(model: Any, pretrained: Any, params: Any, image_key: str | None) -> Segmenter:
    """Return a copy of the model to apply, or one whose training starts from a pretrained U-Net."""
    stage("loading PyTorch")
    with importing():
        from stxtools.models._base import model_of

    if model is not None:
        out: Segmenter = copy(model_of(model, "Segmenter", param="model"))
        if out.net is None:
            raise ValueError(
                "This model was pretrained but knows no compartments yet; give it as `pretrained=` to train on from it."
            )
    else:
        out = model_of(pretrained, "Segmenter", param="pretrained").starting_point()
        out.params = out.params if params is None else _continued(out, params)
    if image_key is not None and out.image_key is None:
        raise ValueError(f"The model was trained without an image; drop `image_key={image_key!r}`.")
    out.image_key = out.image_key if image_key is None else image_key  # another one: "hires" for "lowres"
    return out


def _continued(start: Segmenter, params: SegmenterParams | Mapping[str, Any]) -> SegmenterParams:
    """Parameters of a training that continues: ``params`` must keep the architecture."""
    given = params if isinstance(params, Mapping) else asdict(params)
    wanted = type(start)(asdict(start.params) | dict(given)).params
    other = [name for name in _ARCHITECTURE if getattr(wanted, name) != getattr(start.params, name)]
    if other:
        raise ValueError(
            f"`params` change {', '.join(f'`{name}`' for name in other)}, but the pretrained U-Net has "
            f"{', '.join(f'{name}={getattr(start.params, name)}' for name in other)}; drop them."
        )
    return wanted


def remember_names(known: GeneNames, fitted: Segmenter) -> None:
    """Let the model know its genes by their second names, too."""
    ids = known.others()
    if fitted.by_genes is not None and ids:
        read = set(_genes_read(fitted))
        fitted.ids = {g: i for g, i in zip(known.own, ids, strict=True) if g in read}


def transfer_names(known: GeneNames, fitted: Segmenter) -> list[str] | None:
    """Names of the genes, of which it must know enough, as the model calls them; None where it learned none by name."""
    if fitted.by_genes is None:
        return None
    names = known.as_model(_genes_read(fitted), fitted.ids)
    check_genes(fitted.by_genes.moments.genes, names, enough=fitted.by_genes.enough)
    return names


def _genes_read(fitted: Segmenter) -> list[str]:
    """Genes of the model, of the linear members and of the components."""
    members = [] if fitted.by_genes is None else fitted.by_genes.moments.genes
    return list(dict.fromkeys([*members, *(fitted.projection.genes if fitted.projection is not None else [])]))


def label_codes(labels: Labels, labels_key: str | None, classes: Sequence[str]) -> NDArray[np.int64]:
    """Class of each observation among ``classes``, -1 where it has no label."""
    unknown = [name for name in labels.names if name not in classes]
    if unknown:
        raise ValueError(
            f"`adata.obs[{labels_key!r}]` has the classes {listing(unknown)}, which the model does not know; it knows "
            f"{listing(list(classes))}. Rename them, or train without `model=`."
        )
    place = np.array([list(classes).index(name) for name in labels.names], dtype=np.int64)
    return np.where(labels.codes >= 0, place[labels.codes], -1)
