"""Integrated gradients (Sundararajan et al. 2017) of a model's evidence for a class in its input features.

A joint model reads, of each observation, a raster of features, means of features over neighbourhoods, scores of
smoothed genes and, pooled by region, the features again; the region graph is held fixed. All of these are linear in
features and genes, so that gradients are carried back to them as they are.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from stxtools.models.segmenter.rasters import centred
from stxtools.models.tissuenet.genes import pooling
from stxtools.nn._tissue import GraphTensors

if TYPE_CHECKING:
    from stxtools.models._section import Section
    from stxtools.models.segmenter.model import Segmenter
    from stxtools.models.tissuenet.inputs import RegionSection
    from stxtools.models.tissuenet.model import TissueNet

Floats = NDArray[np.float64]

_UNET_STEPS = 16  # Gauss-Legendre points on the path; genes then sum to within 1 % of the logits' difference
_WINDOW = 256  # pixels; a longer raster is explained window by window
STEPS = 32  # of a joint model: a normalised layer bends more near the baseline than the U-Net does


class SegmenterEvidence:
    """A Segmenter on one section: the evidence for a class, and its gradient on the path from the mean tissue."""

    def __init__(self, model: Segmenter, section: Section) -> None:
        self.net, self.scale, self.section = model.fitted_net().eval(), model.scale, section

    def parts(self, group: int, others: list[int], side: Floats) -> tuple[Floats, pd.Series]:
        """Return the gradient with respect to every observation's features, (n, C); no genes are read beside them."""
        from captum.attr import IntegratedGradients

        section = self.section
        z = (section.features - section.features.mean(axis=0)) / self.scale
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
                logits, _ = self.net(values, known.expand(len(values), -1, -1, -1))
                odds = logits[:, group] - torch.logsumexp(logits[:, others], dim=1)
                return (odds * here).sum(dim=(1, 2))

            explainer = IntegratedGradients(evidence, multiply_by_inputs=False)
            found = explainer.attribute(x[None, :, rows, columns], n_steps=_UNET_STEPS, internal_batch_size=1)
            gradient[:, rows, columns] = found[0].detach().float()
        share = gradient.flatten(1).numpy().T / np.maximum(count, 1)[:, None]
        return share[section.flat_pixels].astype(np.float64) / self.scale, pd.Series(dtype=np.float64)


def _windows(shape: tuple[int, int]) -> list[tuple[slice, slice]]:
    rows, columns = ([slice(start, start + _WINDOW) for start in range(0, size, _WINDOW)] for size in shape)
    return list(product(rows, columns))


class TissueEvidence:
    """A trained model on one section: the evidence for a class, and its gradient on the path from the mean tissue.

    The evidence is the log odds of the class against others by network and linear classifier, with their weights on a
    section without labels; trees have no gradient. The path runs straight from the mean expression to the section
    itself (Sundararajan et al. 2017).
    """

    def __init__(self, net: TissueNet, section: RegionSection, task: str) -> None:
        self.net, self.section, self.task = net, section, task
        self.module = net.fitted_net().eval()
        self.graph = net.featurizer.tensors(section)
        self._known = section.region >= 0
        self._read = [name for name in ("nodes", "x", "own") if getattr(self.graph, name) is not None]

    def baseline(self) -> GraphTensors:
        """Return the section if every observation had its mean expression."""
        scaling, section = self.net.featurizer.scaling, self.section.section
        mean = section.features.mean(axis=0, dtype=np.float64)
        z = (mean - (section.features - centred(section.features, scaling["centre"]))[0]) / scaling["scale"]
        out = replace(self.graph)
        nodes = (mean - scaling["node_centre"]) / scaling["node_scale"]
        out.nodes = torch.from_numpy(np.tile(nodes, (len(self.section.nodes), 1)).astype(np.float32))
        if self.graph.own is not None:
            means = (np.tile(z, len(self.net.params.neighbours)) - scaling["own_centre"]) / scaling["own_scale"]
            own = np.zeros(self.graph.own.shape[1])
            own[: len(means)] = means  # scores of genes are centred: 0 at the mean
            out.own = torch.from_numpy(np.tile(own, (len(self.graph.own), 1)).astype(np.float32))
        if self.graph.x is not None and self.graph.occupied is not None:
            out.x = self.graph.occupied * torch.from_numpy(z.astype(np.float32))[:, None, None]
        return out

    def evidence(self, graph: GraphTensors, group: int, others: list[int], side: Floats) -> torch.Tensor:
        """Return the weighted log odds of class ``group`` against ``others``, a number."""
        weights, ensemble = self.net.weights(self.task), self.net.ensembles.get(self.task)
        logits = weights.network * self.module(graph).obs_logits[self.task]
        linear = None if ensemble is None else ensemble.elsewhere.linear
        if linear is not None and graph.own is not None:
            coef, intercept = (torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in vars(linear).values())
            logits = logits + weights.linear * (graph.own @ coef + intercept)
        odds = logits[:, group] - torch.logsumexp(logits[:, others], dim=1)
        return (odds * torch.from_numpy(side[self._known].astype(np.float32))).sum()

    def parts(self, group: int, others: list[int], side: Floats) -> tuple[Floats, pd.Series]:
        """Return the gradient with respect to every observation's features, (n, C), and the read genes' own parts."""
        gradient = self._integrated(group, others, side)
        scaling, section = self.net.featurizer.scaling, self.section.section
        n, width = section.features.shape
        z = np.zeros((n, width))
        at_genes = pd.Series(dtype=np.float64)
        if "own" in gradient:
            own = np.zeros((n, gradient["own"].shape[1]))
            own[self._known] = gradient["own"]
            n_means = self.net.n_means
            at_means = own[:, :n_means] / scaling["own_scale"]
            for i, size in enumerate(self.net.params.neighbours):
                z += pooling(section.xy, size).T @ at_means[:, i * width : (i + 1) * width]
            if own.shape[1] > n_means:
                at_genes = self._gene_parts(own[:, n_means:] / float(scaling["unit"][0]))
        if "x" in gradient:
            flat, count = section.flat_pixels, section.shape[0] * section.shape[1]
            share = np.maximum(np.bincount(flat, minlength=count), 1)
            z += (gradient["x"].reshape(width, -1) / share).T[flat]
        features = z / scaling["scale"]
        held = np.maximum(np.bincount(self.section.region[self._known], minlength=len(self.section.nodes)), 1)
        at_nodes = gradient["nodes"] / scaling["node_scale"] / held[:, None]
        features[self._known] += at_nodes[self.section.region[self._known]]
        return features, at_genes

    def _gene_parts(self, at_scores: Floats) -> pd.Series:
        smoothed, genes = self.net.featurizer.smoothed, self.section.genes
        if smoothed is None or genes is None:
            return pd.Series(dtype=np.float64)
        total = np.zeros(len(smoothed.axes))
        for at, rows in smoothed.chunks(genes, self.section.section.xy, np.arange(len(at_scores))):
            total += (rows * (at_scores[at] @ smoothed.axes.T)).sum(axis=0)
        return pd.Series(total.reshape(len(smoothed.sizes), -1).sum(axis=0), self.net.genes)

    def _integrated(self, group: int, others: list[int], side: Floats) -> dict[str, Floats]:
        """Gradient averaged over the path, by Captum, of each thing that is read."""
        from captum.attr import IntegratedGradients

        def evidence(*parts: torch.Tensor) -> torch.Tensor:
            """Of a batch of points on the path."""
            graphs = (
                replace(self.graph, **dict(zip(self._read, row, strict=True))) for row in zip(*parts, strict=True)
            )
            return torch.stack([self.evidence(graph, group, others, side) for graph in graphs])

        ends = [tuple(getattr(graph, name)[None] for name in self._read) for graph in (self.graph, self.baseline())]
        found = IntegratedGradients(evidence, multiply_by_inputs=False).attribute(
            *ends, n_steps=STEPS, internal_batch_size=1
        )
        return {name: part[0].detach().double().numpy() for name, part in zip(self._read, found, strict=True)}
