"""Segmenters as segment gets them: new, loaded from a file, or started from a pretrained one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from stxtools._data.features import remember_input
from stxtools._data.image import N_IMAGE_FEATURES
from stxtools._data.representation import Representation
from stxtools._lazy import importing
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


def trained_segmenter(model: str | os.PathLike[str] | Segmenter) -> Segmenter:
    """Return a Segmenter that can be applied.

    Raises
    ------
    ValueError
        If it was pretrained only.
    """
    out = _segmenter(model, "model")
    if out.net is None:
        raise ValueError(
            "This model was pretrained but knows no compartments yet; give it as `pretrained=` to train on from it."
        )
    return out


def _segmenter(model: str | os.PathLike[str] | Segmenter, param: str) -> Segmenter:
    stage("loading PyTorch")
    with importing():
        from stxtools.models._base import model_of

    return model_of(model, "Segmenter", param=param)


def started_segmenter(
    model: str | os.PathLike[str] | Segmenter, params: SegmenterParams | Mapping[str, Any] | None
) -> Segmenter:
    """Return a Segmenter whose training starts from a pretrained U-Net; ``params`` must keep its architecture."""
    from stxtools.models import Segmenter

    start = _segmenter(model, "pretrained").starting_point()
    if params is None:
        return start
    merged = {f.name: getattr(start.params, f.name) for f in fields(start.params)}
    fields_set = params if isinstance(params, Mapping) else {f.name: getattr(params, f.name) for f in fields(params)}
    wanted = Segmenter(merged | dict(fields_set)).params
    other = [name for name in _ARCHITECTURE if getattr(wanted, name) != getattr(start.params, name)]
    if other:
        raise ValueError(
            f"`params` change {', '.join(f'`{name}`' for name in other)}, but the pretrained U-Net has "
            f"{', '.join(f'{name}={getattr(start.params, name)}' for name in other)}; drop them."
        )
    start.params = wanted
    return start


def agreed_image(model: Segmenter, image_key: str | None) -> str | None:
    """Image that a model reads: its own, or another one that is named instead (``"hires"`` for ``"lowres"``).

    Raises
    ------
    ValueError
        If the model was trained without an image.
    """
    if image_key is not None and model.image_key is None:
        raise ValueError(f"The model was trained without an image; drop `image_key={image_key!r}`.")
    return image_key if image_key is not None else model.image_key


def number_of_image_features(model: Segmenter) -> int:
    """Number of channels that come from the image."""
    return 0 if model.image_key is None else N_IMAGE_FEATURES
