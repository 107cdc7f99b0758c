"""Attribution of models: integrated gradients of a group's log odds, by gene."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from stxtools._checks import listing
from stxtools._data.expression import Expression, log_chunks, without_genes
from stxtools._data.features import gene_names, model_features
from stxtools._data.sections import Geometry, make_sections
from stxtools._types import Bools, Floats, Ints
from stxtools.stats._design import Design

from ._probe import normalized

if TYPE_CHECKING:
    from stxtools._data.regions import Regions
    from stxtools.models import GeneProjection, Segmenter, TissueNet


def load_models(models: Any) -> list[Segmenter | TissueNet]:
    """Return fitted models that know their genes from a path, a Segmenter or TissueNet, or several; none for None."""
    if models is None:
        return []
    from stxtools.models import Segmenter
    from stxtools.models._base import model_of

    several = isinstance(models, Iterable) and not isinstance(models, (str, os.PathLike))
    items = list(models) if several else [models]
    if not items:
        raise ValueError("`attribution_model` is empty; name a saved Segmenter or TissueNet, or omit it.")
    out: list[Any] = [model_of(item, "Segmenter", "TissueNet", param="attribution_model") for item in items]
    for model in out:
        if model.projection is None:
            call = "segment" if isinstance(model, Segmenter) else "multitask"
            raise ValueError(
                f"The model reads `obsm[{str(model.use_rep)!r}]` and has no gene loadings for it. Train one that "
                f"does: `st.tl.{call}(adata, ..., save_model='model.stx')`."
            )
    return out


def reads_regions(model: Segmenter | TissueNet) -> bool:
    """Whether a model reads a region graph."""
    from stxtools.models import TissueNet

    return isinstance(model, TissueNet)


def model_attributions(
    adata: AnnData, models: Sequence[Segmenter | TissueNet], designs: Sequence[Design], codes: Ints,
    reference: str, layer: str | None, where: Geometry, regions: Regions | None,
) -> list[Floats]:  # fmt: skip
    """Attribution by models, averaged: one number per gene for each design; absolute values sum to 1."""
    groups = [design.name for design in designs] + ([] if reference == "rest" else [reference])
    tasks = [_task_of(model, groups) for model in models]
    totals = [np.zeros(adata.n_vars) for _ in designs]
    for model, task in zip(models, tasks, strict=True):
        explainer = ModelExplainer(adata, model, task, layer, where, regions)
        for total, design in zip(totals, designs, strict=True):
            used = np.isin(where.libs.codes, design.libraries)
            total += normalized(explainer.explain(design.name, reference, *(s & used for s in design.sides(codes))))
    return [normalized(total) for total in totals]


def _task_of(model: Any, groups: Sequence[str]) -> str | None:
    """Return the task of a TissueNet whose classes include the groups, None for a Segmenter; raise where none does."""
    if not reads_regions(model):
        unknown = [g for g in groups if g not in model.classes]
        if unknown:
            raise ValueError(
                f"The model in `attribution_model` has the classes {listing(model.classes)}, not {listing(unknown)}; "
                "group by the labels that it was trained on, or name its classes in `groups`."
            )
        return None
    task = next((t for t, names in model.classes.items() if set(groups) <= set(names)), None)
    if task is None:
        known = "; ".join(f"{t}: {listing(names)}" for t, names in model.classes.items())
        raise ValueError(
            f"No task of the model in `attribution_model` has the classes {listing(groups)} ({known or 'none'}); "
            "group by the labels that it was trained on, or name classes of one task in `groups`."
        )
    if task not in model.ensembles or model.ensembles[task].unlabelled.genes is None:
        raise ValueError(
            f"The model in `attribution_model` predicts {listing(model.classes[task])} without a linear model of "
            "genes, which attribution needs. Train one with `st.tl.multitask(..., ensemble='auto')`."
        )
    return task


class ModelExplainer:
    """Attribution of a model by section: of its ridge classifier of genes, or of the U-Net where it has none.

    ``parts`` and ``attributions``: the rows of each section, and what explains the model there.
    """

    def __init__(
        self, adata: AnnData, model: Any, task: str | None, layer: str | None, where: Geometry, regions: Regions | None
    ) -> None:
        self._model, self._layer, self._n_vars = model, layer, adata.n_vars
        self._adata, self._genes = adata, np.arange(adata.n_vars)  # without those that the model may not read
        self._names: Sequence[str]  # theirs, as the model knows them
        self._explained = np.ones(adata.n_obs, dtype=bool)  # observations for which the model has a prediction
        self.attributions: list[Any]
        if task is None or regions is None:
            self.classes, self.parts = model.classes, where.parts
            self.attributions = self._of_segmenter(where)
        else:
            self.classes, self.parts = model.classes[task], regions.where.parts
            self._explained = regions.region >= 0
            self.attributions = self._of_tissuenet(task, regions)

    def _of_segmenter(self, where: Geometry) -> list[Any]:
        from stxtools.models.explain.integrated_gradients import RidgeAttribution, SegmenterAttribution

        adata, model = self._adata, self._model
        if model.gene_classifier is None:
            features = model_features(adata, self._layer, model)
            self._names = features.names
            return [SegmenterAttribution(model, section) for section in make_sections(features.values, where)]
        self._names, _ = gene_names(adata, model)
        read = Expression(adata, self._layer, in_memory=False)
        genes = read.by_section(where, self._names, model.gene_classifier.moments.match(self._names)[1])
        return [RidgeAttribution(model.gene_classifier, section) for section in genes]

    def _of_tissuenet(self, task: str, regions: Regions) -> list[Any]:
        from stxtools.models.explain.integrated_gradients import RidgeAttribution

        adata, model = self._adata, self._model
        features = model_features(*without_genes(adata, model.hidden_genes, self._layer), model)
        if model.expression:  # genes to predict were not read
            self._genes = np.flatnonzero(~adata.var_names.isin(model.expression))
            self._adata = adata[:, self._genes]
        self._names, classifier = features.names, model.ensembles[task].unlabelled.genes
        sections = features.sections(regions)
        return [RidgeAttribution(classifier, s.by_name) for s in sections if s.by_name is not None]

    def explain(self, group: str, reference: str, inside: Bools, outside: Bools) -> Floats:
        """Return the attribution of every gene for a group against its reference."""
        at, classes = self.classes.index(group), range(len(self.classes))
        others = [i for i in classes if i != at] if reference == "rest" else [self.classes.index(reference)]
        inside, outside = inside & self._explained, outside & self._explained
        weight = inside / max(int(inside.sum()), 1) - outside / max(int(outside.sum()), 1)
        gradient, by_gene = np.zeros((len(weight), self._model.n_features)), np.zeros(len(self._genes))
        for attribution, rows in zip(self.attributions, self.parts, strict=True):
            if np.any(weight[rows]):
                features, genes = attribution.attribute(at, others, weight[rows])
                by_gene += genes.reindex(self._names, fill_value=0.0)
                if features.size:
                    gradient[rows] = features
        if gradient.any():
            read = Expression(self._adata, self._layer, in_memory=False)
            by_gene += _project_to_genes(read, self._names, self._model.projection, gradient, self.parts)
        out = np.zeros(self._n_vars)
        out[self._genes] = by_gene
        return out


def _project_to_genes(
    read: Expression, names: Sequence[str], projection: GeneProjection, gradient: Floats, parts: Sequence[Ints]
) -> Floats:
    """Attribution of genes through the features: deviation from the section's mean times gradient."""
    centred = np.array(gradient)
    for rows in parts:  # (y - mean)' g = y' (g - mean of g)
        centred[rows] -= gradient[rows].mean(axis=0)
    at, loadings = projection.loadings(names)
    total = np.zeros((len(names), gradient.shape[1]))
    for part in log_chunks(read, lambda logged, rows: np.asarray(logged.T @ centred[rows]), projection.target_sum):
        total += part
    out = np.zeros(len(names))
    out[at] = (total[at] * loadings).sum(axis=1)
    return out
