"""Networks as baselines: the U-Net alone, and the graph network alone on observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stxtools._types import Array, Floats32, Ints
from stxtools.models.segmenter.model import Segmenter
from stxtools.models.tissuenet.inputs import RegionSection
from stxtools.models.tissuenet.model import TissueNet, TissuePrediction

from .simple import Baseline, Classes, EvaluationSection, Labels, widened


class UNetAlone(Baseline):
    """The U-Net of :class:`stxtools.models.Segmenter`, one for each target."""

    def fit(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> Baseline:
        """Train a U-Net for each target; ``params`` are those of :class:`stxtools.models.SegmenterParams`."""
        self.classes, self.nets = dict(classes), {}
        for target, codes in labels.items():
            seen = np.setdiff1d(np.concatenate(list(codes)), [-1])
            self.nets[target] = Segmenter(self.params or None).fit(
                sections,
                labels=[np.where(c < 0, -1, np.searchsorted(seen, c)) for c in codes],
                classes=[str(k) for k in seen],
                **self.run,
            )
        return self

    def proba(self, target: str, sections: Sequence[EvaluationSection]) -> list[Floats32]:
        """Probabilities; a class without any label in training has 0."""
        net = self.nets[target]
        seen = np.array([int(name) for name in net.classes])
        predicted = net.predict(sections, accelerator=self.run["accelerator"])
        return [widened(p.proba, seen, self.classes[target]) for p in predicted]

    def embed(self, sections: Sequence[EvaluationSection]) -> list[Array]:
        """Return the last features of all U-Nets, concatenated."""
        predicted = [net.predict(sections, accelerator=self.run["accelerator"]) for net in self.nets.values()]
        return [np.concatenate([p.features for p in parts], axis=1) for parts in zip(*predicted, strict=True)]


class SpotGNN(Baseline):
    """The graph network of :class:`stxtools.models.TissueNet` on observations as regions, without raster."""

    TASKS: Mapping[str, str] = {"biomarker": "biomarker", "region": "classification"}

    def fit(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> Baseline:
        """Train on all sections; ``params`` are those of :class:`stxtools.models.TissueNetParams`."""
        self.classes = dict(classes)
        tissue = [self._spots(s, {t: codes[i] for t, codes in labels.items()}) for i, s in enumerate(sections)]
        alone = {"unet": False, "genes": False, "neighbours": (1,), "ensemble": ("network",), "region_loss": 0.0}
        self.net = TissueNet(alone | self.params).fit(
            tissue,
            classes={self.TASKS[target]: [str(k) for k in range(n)] for target, n in classes.items()},
            **self.run,
        )
        return self

    def _spots(self, s: EvaluationSection, labels: Mapping[str, Ints]) -> RegionSection:
        codes = {self.TASKS[target]: np.asarray(values) for target, values in labels.items()}
        return RegionSection(s, np.arange(s.n_obs), s.features, s.graph, codes)

    def _predicted(self, sections: Sequence[EvaluationSection]) -> list[TissuePrediction]:
        return self.net.predict([self._spots(s, {}) for s in sections], accelerator=self.run["accelerator"])

    def proba(self, target: str, sections: Sequence[EvaluationSection]) -> list[Floats32]:
        """Class probabilities of the observations."""
        return [p.observations[self.TASKS[target]] for p in self._predicted(sections)]

    def embed(self, sections: Sequence[EvaluationSection]) -> list[Array]:
        """Return the node states."""
        return [p.states for p in self._predicted(sections)]
