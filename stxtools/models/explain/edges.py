"""Which edges u -> v and which regions drive the predicted class of v: attention, and measures that correct it.

Attention says what a layer mixed, not what the output depended on (Jain and Wallace 2019).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from stxtools._types import Bools, Floats, Floats32, Ints
from stxtools.models.tissuenet.inputs import RegionSection
from stxtools.models.tissuenet.model import TissueNet


class RegionAttribution:
    """The graph network of a trained model on one section, with everything before it held fixed."""

    def __init__(self, net: TissueNet, section: RegionSection, task: str, *, alone: bool = False) -> None:
        self.module, self.task = net.fitted_net().eval(), task
        self.graph = net.featurizer.tensors(section)
        with torch.no_grad():
            out = self.module(self.graph)
        self.nodes, self.n = out.inputs.detach(), len(out.inputs)
        at_obs = out.obs_logits[task].numpy()
        self.weight, others, mean = net.other_members(task, at_obs, self.graph, section)
        if alone:
            self.weight, others, mean = 1.0, np.zeros_like(others), np.zeros_like(mean)
        self._others, self._at_regions = (torch.from_numpy(a.astype(np.float32)) for a in (others, mean))
        stack = net.elsewhere(task)
        self._linear: Tensor | None = None
        if stack.linear is not None and not alone:
            self._linear = torch.from_numpy((stack.weights.linear * stack.linear.coef).astype(np.float32))
        coo = section.adjacency.tocoo()
        self.edges = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
        self.source, self.target = self.edges.numpy()
        self.proba = self.predict()
        self.predicted = self.proba.argmax(axis=1)
        found = sparse.csr_matrix((out.attention.double().numpy(), tuple(out.edges.numpy())), shape=(self.n, self.n))
        self.attention = np.asarray(found[self.source, self.target]).ravel()

    def predict(self, kept: Bools | None = None, hidden: Bools | None = None) -> Floats:
        """Class probabilities of the regions with the edges ``kept``, the features of ``hidden`` regions averaged."""
        edges = self.edges if kept is None else self.edges[:, torch.from_numpy(kept)]
        nodes = self.nodes
        if hidden is not None:
            nodes = torch.where(torch.from_numpy(hidden)[:, None], nodes.mean(dim=0), nodes)
        with torch.no_grad():
            return self._logits(nodes, edges).softmax(dim=1).double().numpy()

    def _logits(self, nodes: Tensor, edges: Tensor, gate: Tensor | None = None) -> Tensor:
        return self.weight * self.module.pass_messages(nodes, edges, gate)[2][self.task] + self._at_regions

    def edge_scores(self, method: str, regions: Ints, rng: np.random.Generator) -> Floats:
        """Scores of the edges that lead to ``regions``, NaN for the others, (E,)."""
        wanted = np.isin(self.target, regions)
        scores = np.full(len(self.target), np.nan)
        if method == "attention":
            scores[wanted] = self.attention[wanted]
        elif method == "random":
            scores[wanted] = rng.random(int(wanted.sum()))
        elif method == "occlusion":
            for e in np.flatnonzero(wanted):
                kept = np.ones(len(wanted), dtype=bool)
                kept[e] = False
                v = self.target[e]
                scores[e] = np.abs(self.predict(kept)[v] - self.proba[v]).sum() / 2
        else:
            for v in regions:
                incoming = np.flatnonzero(self.target == v)
                nodes = self.nodes.clone().requires_grad_(True)
                gate = torch.ones(self.edges.shape[1], requires_grad=True)
                logits = self._logits(nodes, self.edges, gate)[v]
                margin = logits[int(self.predicted[v])] - logits.mean()  # of the predicted class
                by_gate, by_node = torch.autograd.grad(margin, (gate, nodes))
                of_node = by_node.double().norm(dim=1).numpy()[self.source[incoming]]
                of_gate = by_gate.double().numpy()[incoming]
                scores[incoming] = np.abs(of_gate if method == "attention_gradient" else of_node)
        return scores

    def saliency(self) -> Floats32:
        """Length of the gradient of the predicted class's logits in each observation's raster or features, (n,)."""
        g = replace(self.graph)
        raster = g.x is not None
        g.x = g.x.clone().requires_grad_(True) if g.x is not None else None
        g.own = g.own.clone().requires_grad_(not raster) if g.own is not None else None
        logits = self.weight * self.module(g).obs_logits[self.task] + self._others
        if not raster and g.own is not None and self._linear is not None:
            logits = logits + (g.own - g.own.detach()) @ self._linear  # of value 0: its gradient is the linear member's
        margin = logits.max(dim=1).values - logits.mean(dim=1)
        read = g.x if raster else g.own
        if read is None:
            return np.zeros(len(margin), dtype=np.float32)
        (gradient,) = torch.autograd.grad(margin.sum(), read)
        at = gradient.flatten(1)[:, g.pixel].T if raster else gradient
        return at.norm(dim=1).numpy().astype(np.float32)

    def node_scores(self, edge_scores: Floats) -> Floats:
        """Importance of each region to its neighbours: the sum of the scores of the edges that leave it."""
        known = np.isfinite(edge_scores)
        return np.bincount(self.source[known], edge_scores[known], minlength=self.n).astype(np.float64)

    def top_edges(self, scores: Floats, regions: Ints, share: float) -> Bools:
        """The ``share`` of each region's incoming edges with the largest scores, one at least, (E,)."""
        top = np.zeros(len(scores), dtype=bool)
        for v in regions:
            incoming = np.flatnonzero(self.target == v)
            count = int(np.ceil(share * len(incoming)))
            top[incoming[np.argsort(-scores[incoming], kind="stable")[:count]]] = True
        return top

    def change(self, proba: Floats, regions: Ints) -> tuple[float, float]:
        """Mean change of the probabilities of ``regions`` (total variation), and the share whose class changed."""
        moved = np.abs(proba[regions] - self.proba[regions]).sum(axis=1) / 2
        return float(moved.mean()), float((proba[regions].argmax(axis=1) != self.predicted[regions]).mean())
