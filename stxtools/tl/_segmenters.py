"""Segmenters as segment gets them: new, loaded from a file, or started from a pretrained one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from stxtools._data.features import remember_input
from stxtools._data.image import N_IMAGE_FEATURES
from stxtools._data.representation import Representation
from stxtools._progress import stage

if TYPE_CHECKING:
    from stxtools.models import Segmenter, SegmenterParams

_ARCHITECTURE = ("width", "depth", "kernel_size", "sigmas")


def new_segmenter(params: Any, rep: Representation, image_key: str | None) -> Segmenter:
    """Return an untrained Segmenter that knows its input."""
    stage("loading PyTorch")
    from stxtools.models import Segmenter

    out = Segmenter(params)
    remember_input(out, rep)
    out.image_key = image_key
    return out


def load_segmenter(model: str | os.PathLike[str] | Segmenter, param: str) -> Segmenter:
    """Return ``model`` itself, or the Segmenter in the file of that path."""
    stage("loading PyTorch")
    from stxtools.models import Segmenter, TissueStudent
    from stxtools.models._storage import model_kind

    if isinstance(model, TissueStudent) or (
        isinstance(model, (str, os.PathLike)) and model_kind(model) == TissueStudent.__name__
    ):
        raise ValueError(f"`{param}` is a student of the framework; apply it with `st.tl.multitask(adata, model=...)`.")
    if isinstance(model, Segmenter):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"`{param}` must be a path or a stxtools.models.Segmenter, not {type(model).__name__}.")
    return Segmenter.load(model)


def trained_segmenter(model: str | os.PathLike[str] | Segmenter) -> Segmenter:
    """Return a Segmenter that can be applied.

    Raises
    ------
    ValueError
        If it was pretrained only.
    """
    out = load_segmenter(model, "model")
    if out.net is None:
        raise ValueError(
            "This model was pretrained but knows no compartments yet; give it as `pretrained=` to train on from it."
        )
    return out


def started_segmenter(
    model: str | os.PathLike[str] | Segmenter, params: SegmenterParams | Mapping[str, Any] | None
) -> Segmenter:
    """Return a Segmenter whose training starts from a pretrained U-Net; ``params`` must keep its architecture."""
    from stxtools.models import Segmenter

    start = load_segmenter(model, "pretrained").starting_point()
    if params is None:
        return start
    merged = {f.name: getattr(start.params, f.name) for f in fields(start.params)}
    given = params if isinstance(params, Mapping) else {f.name: getattr(params, f.name) for f in fields(params)}
    wanted = Segmenter(merged | dict(given)).params
    other = [name for name in _ARCHITECTURE if getattr(wanted, name) != getattr(start.params, name)]
    if other:
        raise ValueError(
            f"`params` change {', '.join(f'`{name}`' for name in other)}, but the pretrained U-Net has "
            f"{', '.join(f'{name}={getattr(start.params, name)}' for name in other)}; drop them."
        )
    start.params = wanted
    return start


def agreed_image(model: Segmenter, image_key: str | None) -> str | None:
    """Picture that a model reads: its own, or another one that is named instead (``"hires"`` for ``"lowres"``).

    Raises
    ------
    ValueError
        If the model was trained without a picture.
    """
    if image_key is not None and model.image_key is None:
        raise ValueError(f"The model was trained without a picture; drop `image_key={image_key!r}`.")
    return image_key if image_key is not None else model.image_key


def number_of_image_features(model: Segmenter) -> int:
    """Number of channels that come from the picture."""
    return 0 if model.image_key is None else N_IMAGE_FEATURES
