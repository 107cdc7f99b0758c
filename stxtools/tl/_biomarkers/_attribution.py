"""Attribution of models: integrated gradients of a group's log odds, by gene."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools._data.expression import Expression
from stxtools._data.features import ModelFeatures
from stxtools._data.sections import Geometry, make_sections
from stxtools._validate import listing
from stxtools.stats._design import Design

from ._attribution_genes import carried_to_genes
from ._attribution_tissue import TissueSource

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools._data.regions import Regions
    from stxtools.models import Section, Segmenter, TissueNet

_STEPS = 16  # Gauss-Legendre points on the path; the sum over genes is then within 1 % of the logits' difference
_WINDOW = 256  # pixels; a longer raster is explained window by window


def load_models(models: Any) -> list[Segmenter | TissueNet]:
    """Return fitted models that know their genes from a path, a Segmenter or TissueNet, or several; none for None."""
    if models is None:
        return []
    from stxtools.models import Segmenter
    from stxtools.models._base import model_of

    several = isinstance(models, Iterable) and not isinstance(models, (str, os.PathLike))
    items = list(models) if several else [models]
    if not items:
        raise ValueError("`attribution_model` is empty; name a saved Segmenter or TissueNet, or leave it out.")
    out: list[Any] = [model_of(item, "Segmenter", "TissueNet", param="attribution_model") for item in items]
    for model in out:
        if model.projection is None:
            call = "segment" if isinstance(model, Segmenter) else "multitask"
            raise ValueError(
                f"The model reads `obsm[{str(model.use_rep)!r}]` and does not know how genes make it. Train one that "
                f"does: `st.tl.{call}(adata, ..., save_model='model.stx')`."
            )
    return out


def reads_regions(models: Sequence[Segmenter | TissueNet]) -> bool:
    """Whether one of the models reads a region graph."""
    if not models:  # PyTorch is not needed then
        return False
    from stxtools.models import TissueNet

    return any(isinstance(model, TissueNet) for model in models)


class ModelAttribution:
    """Attribution of groups by models, averaged; what groups share (features, sections) is made once."""

    def __init__(
        self, adata: AnnData, models: Sequence[Segmenter | TissueNet], groups: Sequence[str], reference: str,
        layer: str | None, where: Geometry, regions: Regions | None,
    ) -> None:  # fmt: skip
        from stxtools.models import TissueNet

        wanted = [*groups, *([] if reference == "rest" else [reference])]
        self._adata, self._layer, self._reference = adata, layer, reference
        self._sources: list[TissueSource | SegmenterSource] = []
        for model in models:
            if isinstance(model, TissueNet):
                if regions is not None:  # always: it was read for this model
                    self._sources.append(TissueSource(adata, model, wanted, layer, regions))
                continue
            unknown = [g for g in wanted if g not in model.classes]
            if unknown:
                raise ValueError(
                    f"The model in `attribution_model` tells {listing(model.classes)} apart, not {listing(unknown)}; "
                    "group by what it was trained on, or name its classes in `groups`."
                )
            self._sources.append(SegmenterSource(adata, model, layer, where))

    def of(self, design: Design, codes: NDArray[np.int64], library: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return one number per gene for a design, absolute values summing to 1."""
        inside, outside = design.sides(codes)
        used = np.isin(library, design.libraries)
        total = np.zeros(self._adata.n_vars)
        for source in self._sources:
            values = source.explain(design.name, self._reference, inside & used, outside & used)
            norm = float(np.abs(values).sum())
            total += values / norm if norm > 0 else values
        norm = float(np.abs(total).sum())
        return total / norm if norm > 0 else total


class SegmenterSource:
    """A segmenter on the sections of an AnnData."""

    def __init__(self, adata: AnnData, model: Segmenter, layer: str | None, where: Geometry) -> None:
        self._adata, self._model, self._layer, self._where = adata, model, layer, where
        self._sections: list[Section] | None = None

    def explain(
        self, group: str, reference: str, inside: NDArray[np.bool_], outside: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return every gene's part of the evidence for a group."""
        model, projection = self._model, self._model.projection
        if projection is None:
            return np.zeros(self._adata.n_vars)
        if self._sections is None:
            self._sections = make_sections(ModelFeatures(self._adata, model, self._layer).values, self._where)
        side = inside / max(int(inside.sum()), 1) - outside / max(int(outside.sum()), 1)
        gradient = np.zeros((self._adata.n_obs, model.n_features))
        for section, rows in zip(self._sections, self._where.parts, strict=True):
            if np.any(side[rows]):
                gradient[rows] = section_gradient(model, section, group, reference, side[rows])
        return carried_to_genes(
            Expression(self._adata, self._layer, in_memory=False), projection, gradient, self._where.parts
        )


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
