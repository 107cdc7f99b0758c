"""Distillation: a student predicts what the whole framework does, without a region graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch.utils.data import DataLoader, TensorDataset

from stxtools._progress import stage
from stxtools._spatial.blocks import spatial_blocks
from stxtools._types import Array, Floats, Floats32, Reals
from stxtools.models._base import BaseModel
from stxtools.models._params import SegmenterParams, resolve
from stxtools.models._projection import GeneProjection
from stxtools.models._section import FeatureScaling, Section
from stxtools.nn._options import RunOptions, Training, best_device, seeded, with_defaults
from stxtools.nn._segmentation import DistillationTask
from stxtools.nn._tiles import predict_pixels
from stxtools.nn._training import run_training
from stxtools.nn._unet import PyramidMLP, Smoother

if TYPE_CHECKING:
    from .features import SmoothedGenes
    from .inputs import RegionSection
    from .model import TissueNet

_MAX_PIXELS = 60_000  # for training: more did not help
_MAX_BATCH = 512  # smaller for small sections, for some 30 steps an epoch
_BLOCKS, _HELD_OUT = 40, 4  # blocks of a section, and those for validation
_DEFAULTS: dict[str, Any] = {"width": 32, "depth": 0, "sigmas": (0.0, 1.0, 2.0, 4.0), "epochs": 20, "patience": 4}
_MIN_PROBA = 1e-3  # before the logarithm
_N_AXES = 16
_FIT_ROWS = 10_000  # observations from which the axes are learned
_PENALTY = 1e-2  # of the ridge, in units of the mean variance of the scores


class TissueStudent(BaseModel[SegmenterParams, PyramidMLP]):
    """Small network, distilled from a :class:`~stxtools.models.TissueNet`, that predicts single observations.

    Its input is the components of the teacher and a few more axes of the genes, along which the teacher's predictions
    change, smoothed at several spatial scales. Like a :class:`Segmenter`, it needs rasters but no region graph.

    Parameters
    ----------
    params
        A :class:`SegmenterParams`, or a mapping of some of its fields; ``width``, ``sigmas``, ``epochs``, ``patience``,
        ``lr`` and ``weight_decay`` count. By default 32 wide, with means at 0, 1, 2 and 4 pixels.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, "disease", "compartment", save_model="net.stx", params={"epochs": 2})
    >>> st.tl.distill(adata, "net.stx", save_model="student.stx", params={"epochs": 2})
    >>> st.models.TissueStudent.load("student.stx").tasks["biomarker"]
    ['healthy', 'diseased']
    """

    params_type = SegmenterParams
    used_by = "st.tl.multitask(adata, model=...)"
    saved = BaseModel.saved | {"tasks": "dict[str, list[str]]"}

    def __init__(self, params: SegmenterParams | Mapping[str, Any] | None = None) -> None:
        resolve(params, SegmenterParams)  # raises for anything else
        super().__init__(params if isinstance(params, SegmenterParams) else {**_DEFAULTS, **(params or {})})
        self.tasks: dict[str, list[str]] = {}
        self.agreements: dict[str, float] = {}

    def soft_targets(
        self, teacher: TissueNet, sections: Sequence[RegionSection], *, random_state: int = 0, accelerator: str = "auto"
    ) -> list[Floats32]:
        """Predict ``sections`` with the teacher; sets the features and tasks of the student.

        Returns for each section the class probabilities of all tasks side by side, (n, K); NaN outside any region.
        """
        if not teacher.classes:
            raise ValueError("The model predicts no classes and cannot be distilled; train one with labels.")
        predictions = teacher.predict(sections, accelerator=accelerator)
        proba = [np.concatenate([p.observations[task] for task in teacher.classes], axis=1) for p in predictions]
        self.tasks = {task: list(names) for task, names in teacher.classes.items()}
        self.projection, self.use_rep, self.ids = teacher.projection, teacher.use_rep, teacher.ids
        smoothed, genes = teacher.featurizer.smoothed, teacher.genes
        if self.projection is not None and smoothed is not None and genes is not None:
            rng = np.random.default_rng(random_state)
            logits = [self._logits(p) for p in proba]
            self.projection = with_readout(self.projection, genes, smoothed, sections, logits, rng)
        return proba

    def _logits(self, proba: Floats32) -> Floats:
        """Log probabilities with a mean of 0 over the classes of each task."""
        logs = self._by_task(np.log(np.maximum(proba.astype(np.float64), _MIN_PROBA)))
        return np.concatenate([part - part.mean(axis=1, keepdims=True) for part in logs], axis=1)

    def _by_task(self, values: Array) -> list[Array]:
        return np.split(values, np.cumsum([len(names) for names in self.tasks.values()])[:-1], axis=1)

    def fit(self, sections: Sequence[Section], targets: Sequence[Floats32], **run: Unpack[RunOptions]) -> TissueStudent:
        """Learn the :meth:`soft_targets` of ``sections`` from their features; ``run`` as in `Segmenter.fit`.

        Sets ``agreements``: for each task the share of held-out pixels for which both predict the same class.
        """
        p, run = self.params, with_defaults(run)
        seed, device = run["random_state"], best_device(run["accelerator"])
        self.scaling = FeatureScaling.of(sections)
        rng = np.random.default_rng(seed)
        with seeded(seed):
            net = self._new_net()
        means, proba, held_out = self._pixels(sections, targets, net, rng, device)
        if held_out.all() or not held_out.any():
            raise ValueError(
                f"The {len(held_out)} pixels of the raster cannot be divided into blocks for training and for "
                "validation; check the coordinates, or distil on more tissue."
            )
        epochs = _DEFAULTS["epochs"] if p.epochs is None else p.epochs
        task = DistillationTask(net, Training(epochs, p.patience, lr=p.lr, weight_decay=p.weight_decay))
        train = DataLoader(
            TensorDataset(means[~held_out], proba[~held_out]),
            batch_size=min(max(int((~held_out).sum()) // 30, 16), _MAX_BATCH),
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        )
        val = DataLoader(TensorDataset(means[held_out], proba[held_out]), batch_size=4096)
        self.history = run_training(task, train, val, stage="distill", desc="training the student", **run)
        self.net = net
        with torch.no_grad():
            predicted = net.from_means(means[held_out])
        parts = zip(predicted, proba[held_out].split(net.sizes, dim=1), strict=True)
        same = [float((a.argmax(dim=1) == b.argmax(dim=1)).float().mean()) for a, b in parts]
        self.agreements = dict(zip(self.tasks, same, strict=True))
        return self

    def _pixels(
        self, sections: Sequence[Section], targets: Sequence[Floats32], net: PyramidMLP,
        rng: np.random.Generator, device: torch.device,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Smoothed features and targets of a sample of pixels, and whether they are held out."""
        share = _MAX_PIXELS / max(sum(s.n_obs for s in sections), 1)
        parts = []
        for section, proba in zip(sections, targets, strict=True):
            raster, member = self.scaling.raster(section)
            known = np.asarray(np.isfinite(proba).all(axis=1), dtype=np.float64)
            target = section.pooled(np.nan_to_num(proba), member, known)
            rows = np.flatnonzero((np.bincount(member, known) > 0) & (rng.random(len(raster.flat)) < share))
            flat = raster.flat.numpy()[rows]
            row_column = np.column_stack(np.divmod(flat, section.shape[1])).astype(np.float64)
            block = spatial_blocks(row_column, _BLOCKS)
            blocks = rng.permutation(np.unique(block))
            held = torch.from_numpy(np.isin(block, blocks[: max(1, len(blocks) * _HELD_OUT // _BLOCKS)]))
            means = predict_pixels(Smoother(net), raster, device, only=torch.from_numpy(rows))[1]  # type: ignore[arg-type]
            parts.append((means, torch.from_numpy(target[rows]), held))
        inputs, outputs, held_out = (torch.cat(column) for column in zip(*parts, strict=True))
        return inputs, outputs, held_out

    def predict(self, sections: Sequence[Section], *, accelerator: str = "auto") -> list[dict[str, Floats32]]:
        """Return for each section a mapping from tasks to class probabilities of the observations, (n, K)."""
        net, device, out = self.fitted_net(), best_device(accelerator), []
        stage("predicting")
        for section in sections:
            raster, member = self.scaling.raster(section)
            proba = predict_pixels(net, raster, device)[0].numpy()[member]
            out.append(dict(zip(self.tasks, self._by_task(proba * len(self.tasks)), strict=True)))
        net.to("cpu")
        return out

    def _new_net(self) -> PyramidMLP:
        sizes = [len(names) for names in self.tasks.values()]
        return PyramidMLP(self.n_features, sizes, width=self.params.width, sigmas=self.params.sigmas)


def with_readout(
    projection: GeneProjection, genes: Sequence[str], smoothed: SmoothedGenes, sections: Sequence[RegionSection],
    logits: Sequence[Reals], rng: np.random.Generator,
) -> GeneProjection:  # fmt: skip
    """Add to a projection at most 16 axes of the genes along which a framework's predictions change.

    The first components of expression separate tissues, but not always a disease. A ridge regression of the ``logits``
    (NaN: none) on the ``smoothed`` genes gives an axis for each class and size.
    """
    from sklearn.linear_model import Ridge  # here: applying a student needs none of it

    parts = [(s.genes, s.section.xy) for s in sections if s.genes is not None]
    share = _FIT_ROWS / max(sum(len(a) for a in logits), 1)
    rows = [np.flatnonzero(np.isfinite(a).all(axis=1) & (rng.random(len(a)) < share)) for a in logits]
    scores = np.concatenate([smoothed.transform(*part, at) for part, at in zip(parts, rows, strict=True)])
    scores = scores.astype(np.float64)
    targets = np.concatenate([a[at] for a, at in zip(logits, rows, strict=True)]).astype(np.float64)
    penalty = max(_PENALTY * len(scores) * float(scores.var(axis=0).mean()), 1e-12)
    coefficients = Ridge(penalty).fit(scores, targets).coef_.T
    loadings = np.concatenate(smoothed.loadings(coefficients, parts), axis=1)
    return _extended(projection, genes, loadings, [logged for logged, _ in parts])


def _extended(
    projection: GeneProjection, genes: Sequence[str], loadings: Floats, logged: Sequence[sparse.csr_matrix]
) -> GeneProjection:
    """Add the directions of ``loadings`` (G, m) that the components lack, strongest first."""
    names = list(dict.fromkeys([*projection.genes, *genes]))
    at, known = pd.Index(names).get_indexer(list(genes)), len(projection.genes)
    old = np.zeros((len(names), projection.components.shape[1]))
    old[:known] = projection.components
    new = np.zeros((len(names), loadings.shape[1]))
    new[at] = loadings / np.maximum(np.linalg.norm(loadings, axis=0), 1e-12)
    new -= old @ np.linalg.lstsq(old, new, rcond=None)[0]
    left, strength, _ = np.linalg.svd(new, full_matrices=False)
    axes = left[:, :_N_AXES][:, strength[:_N_AXES] > 1e-6]
    axes -= old @ np.linalg.lstsq(old, axes, rcond=None)[0]  # removes rounding errors
    mean, scale = np.zeros(len(names)), np.ones(len(names))
    mean[at] = sum(np.asarray(part.sum(axis=0)).ravel() for part in logged) / sum(part.shape[0] for part in logged)
    mean[:known] = projection.mean
    scores = np.concatenate([np.asarray(part @ axes[at]) for part in logged])
    variance = None if projection.variance is None else np.concatenate([projection.variance, scores.var(axis=0)])
    if projection.gene_scale is not None:  # the other genes were not scaled
        scale[:known] = projection.gene_scale
    return replace(
        projection, genes=names, mean=mean, components=np.concatenate([old, axes], axis=1), variance=variance,
        gene_scale=None if projection.gene_scale is None else scale,
    )  # fmt: skip
