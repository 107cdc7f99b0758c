"""Segmenters as segment gets them (new, loaded, or started from a pretrained one), and their genes and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools._data.features import GeneNames, check_genes, remember_input
from stxtools._data.representation import Representation
from stxtools._lazy import importing
from stxtools._progress import stage
from stxtools._validate import Labels, listing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stxtools._data.expression import Expression
    from stxtools._data.sections import Geometry
    from stxtools.models import GeneSection, Segmenter, SegmenterParams

_ARCHITECTURE = ("width", "depth", "kernel_size", "sigmas")


def new_segmenter(params: Any, rep: Representation, image_key: str | None) -> Segmenter:
    """Return an untrained Segmenter that knows its input."""
    stage("loading PyTorch")
    from stxtools.models import Segmenter

    out = Segmenter(params)
    remember_input(out, rep)
    out.image_key = image_key
    return out


def given_segmenter(model: Any, pretrained: Any, params: Any, image_key: str | None) -> Segmenter | None:
    """Return a copy of the model to apply, or one whose training starts from a pretrained U-Net; None for a new one."""
    if model is None and pretrained is None:
        return None
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


def genes_to_learn(
    read: Expression | None, fitted: Segmenter, labels: Labels | None, where: Geometry, known: GeneNames
) -> list[GeneSection] | None:
    """Genes that a model for other sections learns by name; None where it reads their representation, or an image."""
    if labels is None or fitted.image_key is not None or read is None:
        return None
    return read.by_section(where, known.own)


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


def transfer_genes(
    read: Expression | None, fitted: Segmenter, where: Geometry, names: Sequence[str] | None
) -> list[GeneSection] | None:
    """Genes of all sections that the model's linear members read."""
    if fitted.by_genes is None or read is None or names is None:
        return None
    return read.by_section(where, names, fitted.by_genes.moments.match(names)[1])


def labels_for_model(
    labels: Labels | None, labels_key: str | None, fitted: Segmenter, where: Geometry
) -> list[NDArray[np.int64]] | None:
    """Class codes of the labelled observations by section, in the model's classes."""
    if labels is None:
        return None
    if fitted.by_genes is None:
        raise ValueError(
            "`labels_key=` corrects a model that learned from labels and genes; this one did not. Drop one of "
            "`labels_key=` and `model=`, or train a model with `segment(adata, labels_key=..., save_model=...)`."
        )
    return where.split(label_codes(labels, labels_key, fitted.classes))


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
