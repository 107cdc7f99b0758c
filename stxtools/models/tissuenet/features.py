"""Tensors of sections: scaled neighbourhood means, gene scores, region graphs, and the labels to learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from stxtools._spatial.blocks import Subgraph, subgraphs
from stxtools._spatial.matrices import column_moments
from stxtools._spatial.points import evenly_spread
from stxtools._spatial.smoothing import averages, dense_means, nearest
from stxtools._types import Array, Bools, Floats, Floats32, Ints, Reals
from stxtools.models._params import TissueNetParams
from stxtools.models._section import FeatureScaling
from stxtools.nn._tissue import GraphTensors, Target

from .inputs import RegionSection, groups_of, held_out, made_for_others, region_means

BIOMARKER, CLASSES, EXPRESSION = "biomarker", "classification", "expression"
_UNIT_AXES = 20  # gene scores are divided by the root mean variance of the first axes
_PART = 1024  # regions of a part: as good as 4,096 at a third of the time
_GENE_SIZES = (7, 19, 61, 127)
_N_AXES = 200
_FIT_ROWS = 4000  # observations from which the axes are learned
_SCALE_ROWS = 2000  # observations in which the standard deviations of a section's genes are measured
_FLOOR = 0.01  # added to the standard deviation of a gene: rarely expressed ones are not blown up
_SECTION_FLOOR = 0.1  # added to that of a smoothed gene in one section of several (log expression)


@dataclass(frozen=True, eq=False)
class SmoothedGenes:
    """Principal axes of genes that were centred by section, scaled, and averaged over several neighbourhoods.

    The scores keep their variances: a ridge penalty on them is one on the genes themselves. A gene that a section lacks
    counts as average. With several sections, smoothed genes are divided by their standard deviations in each section.
    """

    sizes: list[int] | Ints  # of the neighbourhoods; arrays in older files
    by_section: bool | Bools  # whether there were several sections
    gene_scale: Floats32  # divisors of the genes, (G,), and then of the smoothed ones, (sizes x G,)
    scale: Floats32
    axes: Floats32  # (sizes x G, k)

    @classmethod
    def fit(
        cls, sizes: Sequence[int], sections: Sequence[tuple[sparse.csr_matrix, Floats]], rng: np.random.Generator
    ) -> SmoothedGenes:
        """Learn scales and axes from log expression (n, G) and coordinates of the sections."""
        n = np.array([logged.shape[0] for logged, _ in sections])
        variance = sum(column_moments(logged)[1] * m for (logged, _), m in zip(sections, n, strict=True)) / n.sum()
        gene_scale = (np.sqrt(variance) + _FLOOR).astype(np.float32)
        ones = np.ones(len(gene_scale) * len(sizes), dtype=np.float32)
        out = cls(list(sizes), len(sections) > 1, gene_scale, ones, ones[:, None])
        counts = np.maximum(1, (n * min(1.0, _FIT_ROWS / n.sum())).astype(int))
        parts = []
        for (logged, xy), count in zip(sections, counts, strict=True):
            part = out._smoothed(logged, xy, np.sort(rng.permutation(len(xy))[:count]))
            part -= np.tile(_gene_means(logged), len(sizes))
            part /= out._scale(logged, xy)
            parts.append(part)
        sample = np.concatenate(parts)
        if not out.by_section:
            out = replace(out, scale=(sample.std(axis=0) + 1e-3).astype(np.float32))
            sample /= out.scale
        k = min(_N_AXES, *sample.shape)
        _, _, right = randomized_svd(sample, k, n_iter=3, random_state=int(rng.integers(2**31)))
        return replace(out, axes=np.ascontiguousarray(right.T, dtype=np.float32))

    def transform(self, logged: sparse.csr_matrix, xy: Floats, rows: Ints | None = None) -> Floats32:
        """Scores of a section, (n, k), or of some of its ``rows``."""
        near, mean = nearest(xy, max(self.sizes), rows), _gene_means(logged)
        axes = np.split(self.axes / self._scale(logged, xy)[:, None], len(self.sizes))
        if rows is not None:  # project their neighbours alone
            neighbours, codes = np.unique(near, return_inverse=True)
            logged, near = logged[neighbours], codes.reshape(near.shape).astype(np.int32)
        scores = np.zeros((len(near), self.axes.shape[1]), dtype=np.float32)
        for size, part in zip(self.sizes, axes, strict=True):
            scores += averages(near[:, :size], logged.shape[0]) @ (logged @ part) - mean @ part
        return scores

    def loadings(self, coefficients: Reals, sections: Sequence[tuple[sparse.csr_matrix, Floats]]) -> list[Floats]:
        """Coefficients of the genes' means at each size, (G, m), from those of the scores, (k, m)."""
        scale = np.mean([self._scale(logged, xy) for logged, xy in sections], axis=0)
        return np.split(((self.axes @ coefficients) / scale[:, None]).astype(np.float64), len(self.sizes))

    def _scale(self, logged: sparse.csr_matrix, xy: Floats) -> Floats32:
        """Divisor of each smoothed gene, (sizes x G,)."""
        if not self.by_section:
            return np.tile(self.gene_scale, len(self.sizes)) * self.scale
        rows = evenly_spread(logged.shape[0], _SCALE_ROWS)
        return np.asarray(self._smoothed(logged, xy, rows).std(axis=0) + _SECTION_FLOOR)

    def _smoothed(self, logged: sparse.csr_matrix, xy: Floats, rows: Ints) -> Floats32:
        """Means of all genes over each neighbourhood of ``rows``, (m, sizes x G)."""
        near = nearest(xy, max(self.sizes), rows)
        return np.concatenate([dense_means(near[:, :size], logged) for size in self.sizes], axis=1)


def _gene_means(logged: sparse.csr_matrix) -> Floats32:
    return np.asarray(logged.mean(axis=0), dtype=np.float32).ravel()


class Featurizer:
    """Input features of the network, scaled as in the training sections."""

    def __init__(
        self, params: TissueNetParams, scaling: FeatureScaling | None = None,
        scales: dict[str, Array] | None = None, smoothed: SmoothedGenes | None = None,
    ) -> None:  # fmt: skip
        self.params, self.scaling = params, scaling or FeatureScaling()
        self.scales, self.smoothed = scales or {}, smoothed

    @property
    def n_inputs(self) -> int:
        """Number of neighbourhood features of an observation."""
        n_scores = 0 if self.smoothed is None else self.smoothed.axes.shape[1]
        return len(self.scaling.centre) * len(self.params.neighbours) + n_scores

    def fit(self, sections: Sequence[RegionSection], rng: np.random.Generator, *, labelled: bool) -> list[Floats32]:
        """Learn means, scales and gene axes; return the sections' neighbourhood features, if they are ``labelled``."""
        nodes = np.concatenate([s.nodes for s in sections])
        self.scaling = FeatureScaling.of([s.section for s in sections])
        self.scales = {"node_centre": nodes.mean(axis=0), "node_scale": nodes.std(axis=0) + 1e-6}
        if not labelled:
            return []
        if self.params.genes and all(s.genes is not None and s.genes.shape[1] > 0 for s in sections):
            parts = [(s.genes, s.section.xy) for s in sections if s.genes is not None]
            # means over half of a small section are hardly local
            largest = max(float(np.median([s.section.n_obs for s in sections])) / 4, _GENE_SIZES[0])
            self.smoothed = SmoothedGenes.fit([size for size in _GENE_SIZES if size <= largest], parts, rng)
        unscaled = [self._unscaled(s) for s in sections]
        means, scores = (np.concatenate(parts) for parts in zip(*unscaled, strict=True))
        unit = np.sqrt(scores.var(axis=0)[:_UNIT_AXES].mean()) + 1e-6 if scores.size else 1.0
        self.scales |= {
            "own_centre": means.mean(axis=0), "own_scale": means.std(axis=0) + 1e-6,
            "unit": np.array([unit], dtype=np.float32),
        }  # fmt: skip
        expression = [s.expression for s in sections if s.expression is not None]
        if expression:
            values = np.concatenate(expression)
            self.scales["expression_centre"] = np.nanmean(values, axis=0)
            self.scales["expression_scale"] = np.nanstd(values, axis=0) + 1e-6
        return [self._scaled(*parts) for parts in unscaled]

    def _standardised(self, s: RegionSection) -> Floats32:
        return self.scaling.centred(s.section).features / self.scaling.scale

    def _unscaled(self, s: RegionSection) -> tuple[Floats32, Floats32]:
        """Neighbourhood means of the features, and scores of the genes."""
        z, near = self._standardised(s), nearest(s.section.xy, max(self.params.neighbours))
        means = np.concatenate([averages(near[:, :size], len(z)) @ z for size in self.params.neighbours], axis=1)
        if self.smoothed is None or s.genes is None:
            return means, np.zeros((s.section.n_obs, 0), dtype=np.float32)
        return means, self.smoothed.transform(s.genes, s.section.xy)

    def _scaled(self, means: Reals, scores: Floats32) -> Floats32:
        means = (means - self.scales["own_centre"]) / self.scales["own_scale"]
        return np.concatenate([means, scores / self.scales["unit"]], axis=1).astype(np.float32)

    def tensors(self, s: RegionSection, features: Floats32 | None = None) -> GraphTensors:
        """Tensors of one section, without labels; ``features`` are its neighbourhood features, if already known."""
        nodes = (s.nodes - self.scales["node_centre"]) / self.scales["node_scale"]
        coo = sparse.coo_matrix(s.adjacency)
        edges = np.stack([coo.row, coo.col]).astype(np.int64)
        out = GraphTensors(torch.from_numpy(nodes.astype(np.float32)), torch.from_numpy(edges))
        out.parts = graph_parts(s, self.params)
        if "own_centre" not in self.scales:
            return out
        section, known = s.section, s.region >= 0
        out.pixel = torch.from_numpy(section.flat_pixels[known])
        out.region = torch.from_numpy(s.region[known])
        out.features = torch.from_numpy((self._scaled(*self._unscaled(s)) if features is None else features)[known])
        if self.params.unet:
            z = self._standardised(s)
            out.x, out.occupied = torch.from_numpy(section.to_raster(z)), torch.from_numpy(section.occupied())
        return out


class TrainingTargets:
    """Training sections as tensors with targets; some blocks of labels are held out for early stopping.

    ``across`` says whether the model is made for sections without labels.
    """

    def __init__(
        self, featurizer: Featurizer, sections: Sequence[RegionSection], features: Sequence[Floats32],
        tasks: Mapping[str, int], rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self.featurizer, self.sections, self.tasks, self.rng = featurizer, list(sections), dict(tasks), rng
        self.across = made_for_others(sections)
        self.held = held_out(sections, groups_of(sections, whole=False), rng)
        self.graphs = [self._with_targets(*parts) for parts in zip(sections, features, self.held, strict=True)]

    def _with_targets(self, s: RegionSection, features: Floats32, held: Bools) -> GraphTensors:
        out, inside, n = self.featurizer.tensors(s, features), s.region >= 0, len(s.nodes)
        for task, size in self.tasks.items():
            if task == EXPRESSION:
                values, known = self.values(s)
            else:
                values, known = np.eye(size)[s.labels[task]], s.labels[task] >= 0
            mean, weight = region_means(s.region, values, known & ~held, n)
            val_mean, val_weight = region_means(s.region, values, known & held, n)
            val_weight = val_weight * (weight == 0)  # a region across a block's border is for training alone
            out.targets[task] = _target(np.where(val_weight[:, None] > 0, val_mean, mean), weight, val_weight)
            at_obs = np.where(known[:, None], values, 0)
            out.obs_targets[task] = _target(at_obs[inside], (known & ~held)[inside], (known & held)[inside])
        return out

    def values(self, s: RegionSection) -> tuple[Reals, Bools]:
        """Standardised expression to predict, (n, T), and whether it is known, (n,)."""
        scales = self.featurizer.scales
        if s.expression is None:
            return np.zeros((s.section.n_obs, self.tasks[EXPRESSION]), np.float32), np.zeros(s.section.n_obs, bool)
        values = (s.expression - scales["expression_centre"]) / scales["expression_scale"]
        return values.astype(np.float32), np.asarray(np.isfinite(values).all(axis=1))


def _target(*parts: Array) -> Target:
    return Target(*(torch.from_numpy(part.astype(np.float32)) for part in parts))


def graph_parts(s: RegionSection, params: TissueNetParams) -> list[Subgraph]:
    """Parts of a graph of more than ``max_nodes`` regions; none of a smaller one."""
    if len(s.nodes) <= params.max_nodes:
        return []
    centres = region_means(s.region, s.section.xy, s.region >= 0, len(s.nodes))[0].astype(np.float64)
    parts = subgraphs(s.adjacency, centres, min(params.max_nodes, _PART), params.layers)
    return [Subgraph(torch.from_numpy(nodes), core, torch.from_numpy(edges)) for nodes, core, edges in parts]
