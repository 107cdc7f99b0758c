"""What a segmentation model looks at to tell a group apart: integrated gradients, carried to genes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from .._representation import log_expression
from .._validate import listing
from ._inputs import Geometry, geometry, make_sections
from ._transfer import model_features

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import Section, Segmenter

_STEPS = 16  # Gauss-Legendre points on the path; the sum over genes is then within 1 % of the logits' difference
_WINDOW = 256  # pixels; a longer raster is explained window by window


def load_models(models: Any) -> list[Segmenter]:
    """Return fitted Segmenters from a path, a Segmenter, or several of them; none for None.

    Raises
    ------
    TypeError, ValueError
        Something else, or a model that does not know its genes.
    """
    if models is None:
        return []
    from stxtools.models import Segmenter

    several = not isinstance(models, (str, os.PathLike, Segmenter)) and isinstance(models, Iterable)
    items = list(models) if several else [models]
    if not items:
        raise ValueError("`attribution_model` is empty; name a saved Segmenter, or leave it out.")
    out = []
    for item in items:
        if not isinstance(item, (str, os.PathLike, Segmenter)):
            raise TypeError(
                "`attribution_model` must be a path, a stxtools.models.Segmenter, or a list of those, not "
                f"{type(item).__name__}."
            )
        model = item if isinstance(item, Segmenter) else Segmenter.load(item)
        if model.projection is None:
            raise ValueError(
                f"The model reads `obsm[{str(model.use_rep)!r}]` and does not know how genes make it. Train one that "
                "does: `st.tl.segment(adata, save_model='model.stx')`."
            )
        out.append(model)
    return out


class ModelAttribution:
    """Attribution of groups by segmenters, averaged; what groups share (features, sections) is made once."""

    def __init__(
        self,
        adata: AnnData,
        models: Sequence[Segmenter],
        groups: Sequence[str],
        reference: str,
        layer: str | None,
        spatial_key: str,
        library_key: str | None,
    ) -> None:
        wanted = [*groups, *([] if reference == "rest" else [reference])]
        for model in models:
            unknown = [g for g in wanted if g not in model.classes]
            if unknown:
                raise ValueError(
                    f"The model in `attribution_model` tells {listing(model.classes)} apart, not {listing(unknown)}; "
                    "group by what it was trained on, or name its classes in `groups`."
                )
        self._adata, self._models, self._layer = adata, models, layer
        self._where: Geometry = geometry(adata, spatial_key, library_key)

    def __call__(self, group: str, reference: str, inside: NDArray[np.bool_], outside: NDArray[np.bool_]) -> NDArray:
        """Return one number per gene, absolute values summing to 1."""
        total = np.zeros(self._adata.n_vars)
        for model in self._models:
            values = self._explain(model, group, reference, inside, outside)
            norm = float(np.abs(values).sum())
            total += values / norm if norm > 0 else values
        norm = float(np.abs(total).sum())
        return total / norm if norm > 0 else total

    def _explain(
        self, model: Segmenter, group: str, reference: str, inside: NDArray[np.bool_], outside: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        projection = model.projection
        if projection is None:
            return np.zeros(self._adata.n_vars)
        features, _ = model_features(self._adata, model, self._layer)
        logged = log_expression(self._adata, self._layer, target_sum=projection.target_sum)
        ours, theirs = projection.match(list(self._adata.var_names))
        side = inside / max(int(inside.sum()), 1) - outside / max(int(outside.sum()), 1)
        at = np.zeros(len(theirs))
        for section, rows in zip(make_sections(features, self._where), self._where.parts, strict=True):
            if not np.any(side[rows]):
                continue
            gradient = section_gradient(model, section, group, reference, side[rows])
            part = sparse.csr_matrix(logged[rows][:, theirs])
            mean = np.asarray(part.mean(axis=0)).ravel()
            # genes -> features is linear: a gene's part of the features times the features' gradient, summed
            moved = np.asarray(part.T @ gradient) - mean[:, None] * gradient.sum(axis=0)
            at += (moved * projection.components[ours]).sum(axis=1)
        out = np.zeros(self._adata.n_vars)
        out[theirs] = at
        return out


def section_gradient(
    model: Segmenter, section: Section, group: str, reference: str, side: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Path gradient of a model's evidence for a group with respect to the observations' features, (n, C).

    The evidence is the log odds of the group (against ``reference``, or against all other classes), averaged over
    the group's observations minus over the reference's (``side``). The gradient is averaged over the straight path
    from the section's mean expression to what was measured (integrated gradients, Sundararajan et al. 2017, by Captum).
    """
    import torch
    from captum.attr import IntegratedGradients

    net = model.net
    if net is None:
        raise ValueError("The model in `attribution_model` is not trained.")
    net.eval()
    target = model.classes.index(group)
    others = [i for i in range(len(model.classes)) if i != target]
    if reference != "rest":
        others = [model.classes.index(reference)]
    z = (section.features - section.features.mean(axis=0)) / model.scale
    x, occupied = torch.from_numpy(section.to_raster(z)), torch.from_numpy(section.occupied())
    count = np.bincount(section.flat_pixels, minlength=section.shape[0] * section.shape[1])
    at_pixel = np.bincount(section.flat_pixels, side, minlength=len(count)).reshape(section.shape)
    weight = torch.from_numpy(at_pixel.astype(np.float32))
    gradient = torch.zeros_like(x)
    for rows, columns in _windows(section.shape):
        here = weight[rows, columns]
        if not bool((here != 0).any()):
            continue
        known = occupied[None, :, rows, columns]

        def evidence(values: torch.Tensor, known: torch.Tensor = known, here: torch.Tensor = here) -> torch.Tensor:
            logits, _ = net(values, known.expand(len(values), -1, -1, -1))
            odds = logits[:, target] - torch.logsumexp(logits[:, others], dim=1)
            return (odds * here).sum(dim=(1, 2))

        explainer = IntegratedGradients(evidence, multiply_by_inputs=False)
        found = explainer.attribute(x[None, :, rows, columns], n_steps=_STEPS, internal_batch_size=1)
        gradient[:, rows, columns] = found[0].detach().float()
    share = gradient.flatten(1).numpy().T / np.maximum(count, 1)[:, None]
    return share[section.flat_pixels].astype(np.float64) / model.scale


def _windows(shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    starts = [range(0, size, _WINDOW) for size in shape]
    return [(slice(r, r + _WINDOW), slice(c, c + _WINDOW)) for r in starts[0] for c in starts[1]]
