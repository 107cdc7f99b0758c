"""Attribution of predicted classes to the edges of the region graph: attention, gradients and occlusion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stxtools._types import Array, Bools, Floats, Floats32, Ints
from stxtools.models.tissuenet.inputs import RegionSection
from stxtools.models.tissuenet.model import TissueNet
from stxtools.nn._options import best_device


class RegionAttribution:
    """The graph network of a trained model on a section, whose input features and other members are held fixed."""

    def __init__(
        self, net: TissueNet, section: RegionSection, task: str, *, network_only: bool = False, accelerator: str = "cpu"
    ) -> None:
        self.device, self.task = best_device(accelerator), task
        self.module = net.fitted_net().eval().to(self.device)
        on_cpu = net.featurizer.tensors(section)
        self.graph = on_cpu.to(self.device)
        with torch.no_grad():
            out = self.module(self.graph)
        self.nodes, self.n = out.inputs.detach(), len(out.inputs)
        at_obs = out.obs_logits[task].cpu().numpy()
        self.weight, others, mean = net.member_logits(task, at_obs, on_cpu, section)
        if network_only:
            self.weight, others, mean = 1.0, np.zeros_like(others), np.zeros_like(mean)
        self._others, self._at_regions = (self._tensor(a.astype(np.float32)) for a in (others, mean))
        stack = net.unlabelled_stack(task)
        self._linear: Tensor | None = None
        if stack.linear is not None and not network_only:
            self._linear = self._tensor((stack.weights.linear * stack.linear.coef).astype(np.float32))
        coo = section.adjacency.tocoo()
        self.source, self.target = np.stack([coo.row, coo.col]).astype(np.int64)
        self.edges = self._tensor(np.stack([self.source, self.target]))
        self.proba = self.predict()
        self.predicted = self.proba.argmax(axis=1)
        values, ends = out.attention.cpu().double().numpy(), tuple(out.edges.cpu().numpy())
        matrix = sparse.csr_matrix((values, ends), shape=(self.n, self.n))
        self.attention = np.asarray(matrix[self.source, self.target]).ravel()

    def _tensor(self, values: Array) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def predict(self, kept: Bools | None = None, hidden: Bools | None = None) -> Floats:
        """Class probabilities of the regions with the edges ``kept``; ``hidden`` regions have the mean features."""
        edges = self.edges if kept is None else self.edges[:, self._tensor(kept)]
        nodes = self.nodes
        if hidden is not None:
            nodes = torch.where(self._tensor(hidden)[:, None], nodes.mean(dim=0), nodes)
        with torch.no_grad():
            return self._logits(nodes, edges).softmax(dim=1).cpu().double().numpy()

    def _logits(self, nodes: Tensor, edges: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.weight * self.module.pass_messages(nodes, edges, gate)[2][self.task] + self._at_regions

    def edge_scores(self, method: str, regions: Ints, rng: np.random.Generator) -> Floats:
        """Scores of the edges to ``regions``, NaN for the others, (E,)."""
        selected = np.isin(self.target, regions)
        scores = np.full(len(self.target), np.nan)
        if method == "attention":
            scores[selected] = self.attention[selected]
        elif method == "random":
            scores[selected] = rng.random(int(selected.sum()))
        elif method == "occlusion":
            for e in np.flatnonzero(selected):
                kept = np.ones(len(selected), dtype=bool)
                kept[e] = False
                v = self.target[e]
                scores[e] = np.abs(self.predict(kept)[v] - self.proba[v]).sum() / 2
        else:
            for v in regions:
                incoming = np.flatnonzero(self.target == v)
                nodes = self.nodes.clone().requires_grad_(True)
                gate = torch.ones(self.edges.shape[1], device=self.device, requires_grad=True)
                logits = self._logits(nodes, self.edges, gate)[v]
                margin = logits[int(self.predicted[v])] - logits.mean()  # of the predicted class
                gate_gradient, node_gradient = torch.autograd.grad(margin, (gate, nodes))
                if method == "attention_gradient":
                    scores[incoming] = np.abs(gate_gradient.cpu().double().numpy()[incoming])
                else:
                    scores[incoming] = node_gradient.cpu().double().norm(dim=1).numpy()[self.source[incoming]]
        return scores

    def saliency(self) -> Floats32:
        """Norm of the gradient of the predicted class's logit by each observation's pixel or features, (n,)."""
        g = replace(self.graph)
        raster = g.x is not None
        g.x = g.x.clone().requires_grad_(True) if g.x is not None else None
        g.features = g.features.clone().requires_grad_(not raster) if g.features is not None else None
        logits = self.weight * self.module(g).obs_logits[self.task] + self._others
        if not raster and g.features is not None and self._linear is not None:  # adds 0, and the linear gradient
            logits = logits + (g.features - g.features.detach()) @ self._linear
        margin = logits.max(dim=1).values - logits.mean(dim=1)
        inputs = g.x if raster else g.features
        if inputs is None:
            return np.zeros(len(margin), dtype=np.float32)
        (gradient,) = torch.autograd.grad(margin.sum(), inputs)
        per_obs = gradient.flatten(1)[:, g.pixel].T if raster else gradient
        return per_obs.norm(dim=1).cpu().numpy().astype(np.float32)

    def node_scores(self, edge_scores: Floats) -> Floats:
        """Importance of each region to its neighbours: the sum of the scores of its outgoing edges."""
        known = np.isfinite(edge_scores)
        return np.bincount(self.source[known], edge_scores[known], minlength=self.n).astype(np.float64)

    def top_edges(self, scores: Floats, regions: Ints, share: float) -> Bools:
        """Select the ``share`` of each region's incoming edges with the largest scores, at least one, (E,)."""
        top = np.zeros(len(scores), dtype=bool)
        for v in regions:
            incoming = np.flatnonzero(self.target == v)
            count = int(np.ceil(share * len(incoming)))
            top[incoming[np.argsort(-scores[incoming], kind="stable")[:count]]] = True
        return top

    def change(self, proba: Floats, regions: Ints) -> tuple[float, float]:
        """Mean total variation distance of the probabilities of ``regions``, and the share whose class changed."""
        distance = np.abs(proba[regions] - self.proba[regions]).sum(axis=1) / 2
        return float(distance.mean()), float((proba[regions].argmax(axis=1) != self.predicted[regions]).mean())
