"""Tissue compartments by a U-Net on the expression raster."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy as copied
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_bool, check_int, check_number, check_seed, check_writable, listing
from stxtools._colors import colors_for, colors_slot, stored_colors
from stxtools._data.features import model_features, training_features
from stxtools._data.sections import N_IMAGE_FEATURES, Geometry, image_frame, make_sections, with_image_features
from stxtools._lazy import importing
from stxtools._progress import FEATURES, progress_bar, stage
from stxtools._slots import Slots, categorical, check_free, provenance, put_frame
from stxtools._spatial.mask import REACH, REACH_SCATTERED, render_mask, tissue_frame
from stxtools._types import Array, Floats, Ints
from stxtools._validate import Labels, check_adata, check_key_added, label_classes
from stxtools._warn import warn

if TYPE_CHECKING:
    from stxtools.models import Segmentation, Segmenter, SegmenterParams

_ARCHITECTURE = ("width", "depth", "kernel_size", "sigmas")


@public
@progress_bar({
    **FEATURES, "loading PyTorch": 2, "spreading labels": 2, "choosing the number of segments": 1,
    "finding compartments": 2, "agreeing on compartments": 2.5, "pretraining": 2, "training the U-Net": 6,
    "predicting": 0.3,
})  # fmt: skip
def segment(
    adata: AnnData, n_segments: int | None = None, *,
    labels_key: str | None = None, keep_labels: bool = False, class_shares: Mapping[str, float] | None = None,
    abstain_below: float | None = None, model: str | os.PathLike[str] | Segmenter | None = None, adapt: bool = True,
    save_model: str | os.PathLike[str] | None = None, pretrained: str | os.PathLike[str] | Segmenter | None = None,
    use_rep: str | None = None, layer: str | None = None, image_key: str | None = None,
    spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
    params: SegmenterParams | Mapping[str, Any] | None = None, random_state: int = 0, accelerator: str = "auto",
    devices: int | str = 1, show_progress: bool | None = None, key_added: str | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Segment tissue into compartments with a U-Net (Ronneberger et al. 2015) on the expression raster.

    It learns pseudo-labels of Gaussian mixtures, fitted by batch and matched, or with labels of discriminant analyses.

    Parameters
    ----------
    n_segments
        Number of compartments. By default, without labels: from 2 to 12 by BIC, or 1 if there is no spatial structure.
    labels_key
        Column of ``obs`` with known classes, else missing. One small patch per class: confidence is often too high.
    keep_labels
        Whether labelled observations keep their label instead of the predicted class.
    class_shares
        With ``labels_key``: approximate share of the tissue for some or all classes, such as ``{"Layer4": 0.08}``.
    abstain_below
        Confidence (0 to 1) below which an observation gets no compartment: missing, and background in the mask.
    model
        Trained model to apply: path, Segmenter or name in :func:`stxtools.models.available`. Labels correct it.
    adapt
        Whether ``model`` adapts to the components of each section (of 760 observations or more).
    save_model
        Path to which the trained model is saved. On other sections it needs expression, or the same ``use_rep``.
    pretrained
        Path of a model of :func:`pretrain`, or a fitted Segmenter, from which training starts, with its genes.
    use_rep
        Key of ``obsm`` to use, or ``"X"``; by default ``"X_pca"`` if present, else a PCA of highly variable genes.
    image_key
        Image in ``uns["spatial"][library]["images"]`` whose colours are used as six additional features.
    params
        :class:`stxtools.models.SegmenterParams`, or a mapping of some of its fields.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.tl.segment(adata, n_segments=4)
    """
    check_adata(adata, min_obs=10, layer=layer, copy=copy, genes=True)
    labels = None if labels_key is None else label_classes(adata, labels_key, "labels_key")
    key, random_state = check_key_added(key_added, _keys.SEGMENT), check_seed(random_state)
    if save_model is not None:
        check_writable(save_model, "save_model")
    if n_segments is not None and check_int("n_segments", n_segments, minimum=1) > adata.n_obs:
        raise ValueError(f"`n_segments={n_segments}` is more than the {adata.n_obs} observations there are.")
    if model is not None:
        training = {"n_segments": n_segments, "save_model": save_model, "pretrained": pretrained, "use_rep": use_rep,
                    "params": params, "class_shares": class_shares}  # fmt: skip
        if given := [f"`{name}=`" for name, value in training.items() if value is not None]:
            raise ValueError(f"`model=` applies a trained model as it is; drop {', '.join(given)}.")
    if pretrained is not None and use_rep is not None:
        raise ValueError("`pretrained=` brings its own representation; drop `use_rep=`.")
    if labels is not None:
        _check_labels(labels, labels_key, key, n_segments)
    shares = None if class_shares is None else _class_shares(class_shares, labels)
    if abstain_below is not None:
        check_number("abstain_below", abstain_below, minimum=0, maximum=1)
    adapt = check_bool("adapt", adapt)
    if check_bool("keep_labels", keep_labels) and labels is None:
        raise ValueError("`keep_labels=True` needs `labels_key=`, the column with the labels to keep.")
    unet_key = _keys.X_UNET if key == _keys.SEGMENT else f"{key}_unet"
    check_free(
        adata, "tl.segment", obs=[key, _keys.mask_id(key), _keys.confidence(key)],
        obsm=[_keys.proba(key), unet_key], uns=[key],
    )  # fmt: skip

    where = Geometry(adata, spatial_key, library_key)
    if model is None and pretrained is None:
        features = training_features(adata, use_rep, layer, portable=save_model is not None, random_state=random_state)
        stage("loading PyTorch")
        from stxtools.models import Segmenter

        fitted = Segmenter(params)
        fitted.use_rep, fitted.projection, fitted.image_key = features.rep, features.projection, image_key
    else:
        fitted = _given_segmenter(model, pretrained, params, image_key)
        if model is not None and labels is not None and fitted.gene_classifier is None:
            raise ValueError(
                "`labels_key=` corrects a model that learned from labels and genes; this one did not. Drop one of "
                "`labels_key=` and `model=`, or train a model with `segment(adata, labels_key=..., save_model=...)`."
            )
        n_image_features = 0 if fitted.image_key is None else N_IMAGE_FEATURES
        features = model_features(adata, layer, fitted, n_image_features=n_image_features)
    sections = make_sections(with_image_features(features.values, where, fitted.image_key), where)

    genes: Any = None
    if model is None:
        if labels is None and use_rep is None:
            genes = partial(features.genes_in_memory, where)  # read only if there are several batches
        elif labels is not None and save_model is not None and fitted.image_key is None:
            genes = features.genes(where)  # from which a model without an image classifies other sections
        fitted.fit(
            sections, n_segments=n_segments, labels=None if labels is None else where.split(labels.codes),
            classes=None if labels is None else labels.names, class_shares=shares, expression=genes,
            random_state=random_state, accelerator=accelerator, devices=devices, show_progress=show_progress,
        )  # fmt: skip
        fitted.ids = features.aliases | fitted.ids  # those of a pretrained model stay
        results = fitted.predict(sections, accelerator=accelerator)
    else:
        if fitted.gene_classifier is not None:
            genes = features.genes(where, fitted.gene_classifier.moments.match(features.names)[1])
        codes = None if labels is None else where.split(_label_codes(labels, labels_key, fitted.classes))
        results = fitted.predict(sections, expression=genes, adapt=adapt, labels=codes, accelerator=accelerator)
    if save_model is not None:
        fitted.save(save_model)

    slots = _make_slots(
        fitted, results, where, key=key, unet_key=unet_key, on_images=spatial_key == _keys.SPATIAL,
        kept=_label_codes(labels, labels_key, fitted.classes) if keep_labels and labels is not None else None,
        abstain_below=abstain_below, trained=model is None,
    )  # fmt: skip
    slots.uns[_keys.colors(key)] = colors_slot(
        colors_for(fitted.classes, stored_colors(adata, labels_key), stored_colors(adata, key))
    )
    slots.uns[key]["params"] = provenance(
        n_segments=len(fitted.classes), labels_key=labels_key, keep_labels=keep_labels,
        class_shares=None if class_shares is None else [float(class_shares.get(c, 0)) for c in fitted.classes],
        abstain_below=abstain_below, use_rep=use_rep, layer=layer, image_key=fitted.image_key,
        adapt=adapt, pretrained=pretrained is not None,
        pretrained_path=os.fspath(pretrained) if isinstance(pretrained, (str, os.PathLike)) else None,
        representation=fitted.use_rep, temperature=fitted.temperature,
        spatial_key=spatial_key, library_key=library_key, random_state=random_state, **features.record,
        model="given" if model is not None else "trained", segmenter=fitted.params_dict(),
    )  # fmt: skip
    return slots.write(adata, copy)


def _class_shares(class_shares: Mapping[str, float], labels: Labels | None) -> Floats:
    """Return the share of every class, NaN where it is not given."""
    if labels is None:
        raise ValueError("`class_shares=` needs `labels_key=`, the column with some labelled observations.")
    if not isinstance(class_shares, Mapping):
        raise TypeError(f"`class_shares` must map classes to shares, not {type(class_shares).__name__}.")
    if unknown := [name for name in class_shares if name not in labels.names]:
        raise ValueError(f"`class_shares` names {listing(unknown)}; the labels have {listing(labels.names)}.")
    given = {c: check_number(f"class_shares[{c!r}]", v, minimum=1e-4, maximum=1) for c, v in class_shares.items()}
    shares = np.array([given.get(name, np.nan) for name in labels.names], dtype=np.float64)
    total = float(np.nansum(shares))
    if np.isnan(shares).any():
        if total >= 1:
            raise ValueError(f"`class_shares` add up to {total:g} and leave nothing for the other classes.")
        return shares
    if not 0.5 <= total <= 2:
        raise ValueError(f"`class_shares` of all classes add up to {total:g}; expected about 1.")
    return shares / total


def _check_labels(labels: Labels, labels_key: str | None, key: str, n_segments: int | None) -> None:
    """Refuse labels that the result would overwrite, or whose classes are not as many as asked for."""
    if labels_key == key:
        raise ValueError(f"The result would overwrite the labels in `adata.obs[{key!r}]`; pass `key_added=`.")
    if n_segments not in {None, len(labels.names)}:
        raise ValueError(
            f"`n_segments={n_segments}` but `adata.obs[{labels_key!r}]` has {len(labels.names)} classes; drop one."
        )


def _given_segmenter(model: Any, pretrained: Any, params: Any, image_key: str | None) -> Segmenter:
    """Return a copy of the model to apply, or one whose training starts from a pretrained U-Net."""
    stage("loading PyTorch")
    with importing():
        from stxtools.models._base import model_of

    if model is not None:
        out: Segmenter = copied(model_of(model, "Segmenter", param="model"))
        if out.net is None:
            raise ValueError(
                "This model is pretrained but has no compartments; pass it as `pretrained=` to continue its training."
            )
    else:
        out = model_of(pretrained, "Segmenter", param="pretrained").starting_point()
        out.params = out.params if params is None else _continued_params(out, params)
    if image_key is not None and out.image_key is None:
        raise ValueError(f"The model was trained without an image; drop `image_key={image_key!r}`.")
    out.image_key = out.image_key if image_key is None else image_key  # another one: "hires" for "lowres"
    return out


def _continued_params(start: Segmenter, params: SegmenterParams | Mapping[str, Any]) -> SegmenterParams:
    """Return the parameters of a continued training, of which ``params`` must keep the architecture."""
    changes = params if isinstance(params, Mapping) else asdict(params)
    continued = type(start)(asdict(start.params) | dict(changes)).params
    changed = [name for name in _ARCHITECTURE if getattr(continued, name) != getattr(start.params, name)]
    if changed:
        raise ValueError(
            f"`params` change {', '.join(f'`{name}`' for name in changed)}, but the pretrained U-Net has "
            f"{', '.join(f'{name}={getattr(start.params, name)}' for name in changed)}; drop them."
        )
    return continued


def _label_codes(labels: Labels, labels_key: str | None, classes: Sequence[str]) -> Ints:
    """Return the index of each observation's label in ``classes``, -1 without a label."""
    if unknown := [name for name in labels.names if name not in classes]:
        raise ValueError(
            f"`adata.obs[{labels_key!r}]` has the classes {listing(unknown)}, which the model does not have; it has "
            f"{listing(list(classes))}. Rename them, or train without `model=`."
        )
    index = pd.Index(classes).get_indexer(labels.names)
    return np.where(labels.codes >= 0, index[labels.codes], -1)


def _make_slots(
    fitted: Segmenter, results: Sequence[Segmentation], where: Geometry, *,
    key: str, unet_key: str, on_images: bool, kept: Ints | None, abstain_below: float | None, trained: bool,
) -> Slots:  # fmt: skip
    """Return classes (labels where ``kept``), probabilities, features, and ``uns[key]`` without ``params``."""
    proba = where.join([r.proba for r in results])
    if kept is not None:
        proba[kept >= 0] = np.eye(proba.shape[1], dtype=proba.dtype)[kept[kept >= 0]]
    codes = proba.argmax(axis=1)
    if abstain_below is not None:
        codes = np.where(proba.max(axis=1) < abstain_below, -1, codes)
    slots = Slots("tl.segment")
    slots.obs[key] = categorical(codes, fitted.classes)
    slots.obs[_keys.mask_id(key)] = (codes + 1).astype(np.int32)
    slots.obs[_keys.confidence(key)] = proba.max(axis=1)
    put_frame(slots, _keys.proba(key), proba, fitted.classes)
    slots.obsm[unet_key] = where.join([r.features for r in results])
    slots.uns[key] = {_keys.MASKS: _masks(codes + 1, where, on_images)}
    if len(where.libs) > 1:
        from sklearn.metrics import normalized_mutual_info_score

        slots.uns[key]["library_nmi"] = float(normalized_mutual_info_score(where.libs.codes, proba.argmax(axis=1)))
    if any(r.weights for r in results):
        weights = [{"library": n, **r.weights} for n, r in zip(where.libs.names, results, strict=True)]
        slots.uns[key]["members"] = pd.DataFrame(weights)
    if not trained:
        return slots
    if lost := [name for i, name in enumerate(fitted.classes) if not (proba.argmax(axis=1) == i).any()]:
        warn(f"No observation is predicted as {listing(lost)}: label these classes in more places, or raise `epochs` "
             "in `params`.")  # fmt: skip
    slots.uns[key]["history"] = pd.DataFrame(fitted.history)
    if len(where.libs) > 1:
        slots.uns[key]["batches"] = pd.DataFrame(
            {"library": where.libs.names, "batch": fitted.batch, "distance": fitted.distance, "centre": fitted.centre}
        )
    if fitted.curve:
        slots.uns[key]["stability"] = pd.DataFrame(fitted.curve)
    return slots


def _masks(values: Array, where: Geometry, on_images: bool) -> dict[str, dict[str, Any]]:
    out = {}
    for i, (name, rows, spacing) in enumerate(zip(where.libs.names, where.parts, where.spacings, strict=True)):
        reach = REACH_SCATTERED if where.grids[i].lattice == "scattered" else REACH
        xy = where.xy[rows]
        frame = image_frame(where.images[i], xy, spacing) if on_images else None
        frame = frame or tissue_frame(xy, spacing, margin=reach)
        out[name] = {
            "image": render_mask(xy, values[rows], spacing, frame, reach=reach), "scale": frame.scale,
            "origin": np.array(frame.origin, dtype=np.float64),
        }  # fmt: skip
    return out
