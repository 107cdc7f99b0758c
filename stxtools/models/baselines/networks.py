"""Networks as baselines: the U-Net alone, and the graph network alone on spots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from stxtools._spatial.blocks import deal, spatial_blocks
from stxtools.models.segmenter.model import Segmenter
from stxtools.nn._gnn import RegionGNN
from stxtools.nn._recipe import Training, seeded
from stxtools.nn._tissue import GraphTensors
from stxtools.nn._tissue_task import GraphTask
from stxtools.nn._training import run_training

from .simple import Baseline, Classes, EvaluationSection, Labels, widened

_HELD = 6  # one block of labels in six is held out for early stopping
_THREADS_FROM = 20_000  # observations from which several CPU threads pay


class UNetAlone(Baseline):
    """The U-Net of :class:`stxtools.models.Segmenter`, trained on the labels: one network a target."""

    def fit(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> Baseline:
        """Train a U-Net for each target; ``params`` are those of :class:`stxtools.models.SegmenterParams`."""
        self.classes, self.nets = dict(classes), {}
        self.seen: dict[str, NDArray[np.int64]] = {}
        for target, codes in labels.items():
            every = np.concatenate(list(codes))
            seen = np.unique(every[every >= 0])
            place = np.full(classes[target] + 1, -1)
            place[seen] = np.arange(len(seen))
            self.seen[target] = seen
            self.nets[target] = Segmenter(self.params or None).fit(
                sections,
                labels=[place[c] for c in codes],
                classes=[str(k) for k in seen],
                random_state=self.random_state,
                accelerator=self.accelerator,
                show_progress=False,
            )
        return self

    def predict_proba(self, sections: Sequence[EvaluationSection]) -> dict[str, list[NDArray[np.float32]]]:
        """Probabilities; a class without any label in training has 0."""
        out = {}
        for target, net in self.nets.items():
            found = net.predict(sections, accelerator=self.accelerator)
            out[target] = [widened(p.proba, self.seen[target], self.classes[target]) for p in found]
        return out

    def embed(self, sections: Sequence[EvaluationSection]) -> list[NDArray[Any]]:
        """Return the U-Nets' last features side by side."""
        found = [net.predict(sections, accelerator=self.accelerator) for net in self.nets.values()]
        return [np.concatenate([p.features for p in parts], axis=1) for parts in zip(*found, strict=True)]


class SpotGNN(Baseline):
    """Graph attention network on the graph of neighbouring observations, without raster and regions."""

    TRAINING: Mapping[str, Any] = {"epochs": 60, "patience": 12, "lr": 3e-3, "weight_decay": 1e-4}

    def fit(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> Baseline:
        """Train on all sections together; one block of labels in six is held out for early stopping."""
        how = dict(self.TRAINING) | {k: v for k, v in self.params.items() if k in self.TRAINING}
        shape = {k: v for k, v in self.params.items() if k not in self.TRAINING}
        self.classes = dict(classes)
        x = np.concatenate([s.features for s in sections])
        self.mean, self.scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        with seeded(self.random_state):
            self.net = _Net(x.shape[1], self.classes, shape)
        rng = np.random.default_rng([self.random_state, 11])
        graphs = [self._with_labels(s, {t: c[i] for t, c in labels.items()}, rng) for i, s in enumerate(sections)]
        task = _SpotTask(
            self.net, graphs, Training(how["epochs"], how["patience"], lr=how["lr"], weight_decay=how["weight_decay"])
        )
        run_training(
            task,
            *task.loaders(self.random_state),
            random_state=self.random_state,
            accelerator=self.accelerator,
            desc="training the network",
            show_progress=False,
            threads=1 if len(x) < _THREADS_FROM else None,
        )
        return self

    def _graph(self, s: EvaluationSection) -> GraphTensors:
        coo = sparse.coo_matrix(s.graph)
        z = ((s.features - self.mean) / self.scale).astype(np.float32)
        return GraphTensors(torch.from_numpy(z), torch.from_numpy(np.stack([coo.col, coo.row]).astype(np.int64)))

    def _with_labels(
        self, s: EvaluationSection, labels: Mapping[str, NDArray[np.int64]], rng: np.random.Generator
    ) -> GraphTensors:
        """A section with its labels, some blocks of them held out: neighbours stay together."""
        out = self._graph(s)
        held = torch.from_numpy(deal(spatial_blocks(s.xy, int(np.clip(s.n_obs // 16, 1, 36))), _HELD, rng) == 0)
        for target, codes in labels.items():
            out.targets[target] = y = torch.from_numpy(np.asarray(codes))
            out.weight[target], out.val_weight[target] = (y >= 0) & ~held, (y >= 0) & held
        return out

    def _states(self, sections: Sequence[EvaluationSection]) -> list[Tensor]:
        graphs = [self._graph(s) for s in sections]
        with torch.no_grad():
            return [self.net.gnn(g.nodes, g.edges)[0] for g in graphs]

    def predict_proba(self, sections: Sequence[EvaluationSection]) -> dict[str, list[NDArray[np.float32]]]:
        """Class probabilities of the observations."""
        states = self._states(sections)
        with torch.no_grad():
            return {t: [self.net.heads[f"head_{t}"](h).softmax(dim=1).numpy() for h in states] for t in self.classes}

    def embed(self, sections: Sequence[EvaluationSection]) -> list[NDArray[Any]]:
        """Return the states before the heads."""
        return [h.numpy() for h in self._states(sections)]


class _Net(nn.Module):
    def __init__(self, n_features: int, classes: Mapping[str, int], shape: Mapping[str, Any]) -> None:
        super().__init__()
        settings = {"hidden": 64, "out_channels": 32} | dict(shape)
        self.gnn = RegionGNN(n_features, **settings)
        # a prefix: a target may have the name of an attribute of ModuleDict
        self.heads = nn.ModuleDict({f"head_{t}": nn.Linear(settings["out_channels"], k) for t, k in classes.items()})


class _SpotTask(GraphTask):
    """Cross-entropy on labelled observations, summed over targets."""

    least_steps = 4

    def __init__(self, net: _Net, graphs: list[GraphTensors], training: Training) -> None:
        super().__init__(graphs, training)
        self.net = net

    def judged(self) -> list[int]:
        """All sections where any label is held out."""
        every = list(range(len(self.graphs)))
        return every if any(bool(w.any()) for g in self.graphs for w in g.val_weight.values()) else []

    def loss(self, batch: tuple[int, int], held_out: bool = False) -> Tensor:
        """Loss of one section, on the blocks held out or on all others."""
        g = self.graphs[batch[0]]
        h, _, _ = self.net.gnn(g.nodes, g.edges)
        total = h.sum() * 0.0  # a section without labels contributes nothing
        for target, counts in (g.val_weight if held_out else g.weight).items():
            if bool(counts.any()):
                total = total + F.cross_entropy(self.net.heads[f"head_{target}"](h[counts]), g.targets[target][counts])
        return total
