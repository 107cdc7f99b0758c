"""Fits the ensemble of a task: the members beside the network, and the weights of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from stxtools._types import Bools, Floats, Floats32, Ints
from stxtools.models._params import MEMBERS
from stxtools.models.ensemble.discriminant import Linear
from stxtools.models.ensemble.gene_classifier import GeneClassifier
from stxtools.models.ensemble.linear import LinearInput, deal_folds, linear_classifier, linear_regression, sampled
from stxtools.models.ensemble.stacking import Ensemble, Stack, Weights, out_of_fold
from stxtools.models.ensemble.trees import N_HELD_OUT_TREES, N_TREES, Trees, grow_trees

from .features import EXPRESSION, TrainingTargets
from .inputs import groups_of

_OF_LOGITS, _OF_VALUES = 0.2, 1 / 3  # the network's share where it takes part
_LARGE = 16  # large blocks of a section to hold out for the members' weights


class EnsembleFit:
    """Fits the members beside the network on the sections that it learned from.

    ``members`` names them, or is ``"auto"``: in sections with labels all but the classifier of genes, elsewhere this
    one, for components and trees of one section mean something else in another. The network takes part if it has
    ``converged`` on held-out labels; elsewhere not where the model is made ``across`` three sections or more.
    ``kept`` says whether the model goes to other sections later; those for sections without labels are else not fitted.
    """

    def __init__(self, training: TrainingTargets, members: str | Sequence[str], *, converged: bool, kept: bool) -> None:
        self.training, self.sections, self.rng, self.kept = training, training.sections, training.rng, kept
        auto = members == "auto"
        named = MEMBERS if auto else tuple(members)
        self.within = [m for m in named if not auto or (m != "genes" and (converged or m != "network"))]
        self.by_name = [s.by_name for s in self.sections if s.by_name is not None]
        self.elsewhere = [m for m in self.within if m != "genes"]
        if len(self.by_name) == len(self.sections) and "genes" in named:
            self.elsewhere = [m for m in self.within if m == "network" and not (auto and training.across)] + ["genes"]
        elif auto and training.across:
            self.elsewhere = ["linear"]
        self.in_region = np.concatenate([s.region >= 0 for s in self.sections])

    def of(self, task: str) -> Ensemble:
        """Fit the ensemble of ``task`` on all its labels."""
        if task == EXPRESSION:
            return self._regression()
        members = [m for m in self.within if m != "genes"]
        stacked = self._stacked(task, members) if set(members) - {"label_propagation", "network"} else None
        if stacked is not None and not self.kept and all((s.labels[task] >= 0).any() for s in self.sections):
            return stacked  # no section without labels will be predicted
        labelled = None if stacked is None else stacked.labelled or stacked.elsewhere
        if "genes" in self.elsewhere:
            one_hot = np.eye(self.training.tasks[task])
            shares = [one_hot[s.labels[task]] for s in self.sections]
            known = [((s.region >= 0) & (s.labels[task] >= 0)).astype(np.float64) for s in self.sections]
            genes = GeneClassifier.fit(self.by_name, shares, known, self.rng.spawn(1)[0])
            weights = Weights(genes=1.0).with_network(_share(task, self.elsewhere))
            return Ensemble(Stack(weights, genes=genes), labelled)
        if stacked is None or self.elsewhere == members:
            return stacked or self._stacked(task, members)
        return Ensemble(self._stacked(task, self.elsewhere).elsewhere, labelled)

    def _regression(self) -> Ensemble:
        share = _share(EXPRESSION, self.within)
        if "linear" not in self.within:
            return Ensemble(Stack(Weights(network=1.0)))
        read = [self.training.values(s) for s in self.sections]
        values, known = (np.concatenate(parts) for parts in zip(*read, strict=True))
        inp = self._input(across=self.training.across)
        fitted = linear_regression(inp, values, known & self.in_region, self.rng)
        return Ensemble(Stack(Weights(linear=1.0).with_network(share), fitted))

    def _stacked(self, task: str, members: Sequence[str]) -> Ensemble:
        inp, n_classes = self._input(across=False), self.training.tasks[task]
        labels = [np.where(s.region >= 0, s.labels[task], -1) for s in self.sections]
        codes = np.concatenate(labels)
        known, share = codes >= 0, _share(task, members)
        seed = int(self.rng.integers(2**31))

        def linear(seen: Bools) -> Linear:
            return linear_classifier(inp, np.where(seen, codes, -1), n_classes)

        def trees(seen: Bools, n_trees: int = N_TREES) -> Trees:
            rows = sampled(np.flatnonzero(seen))
            return grow_trees(inp.z[rows, : inp.genes.start], codes[rows], n_classes, seed, n_trees)

        asked: dict[str, Callable[[Bools, Bools], Floats]] = {
            "linear": lambda seen, held: linear(seen)(inp.z[held]),
            "trees": lambda seen, held: trees(seen, N_HELD_OUT_TREES)(inp.z[held, : inp.genes.start]),
        }
        fitted = linear(known) if "linear" in members else None
        predicted = out_of_fold(
            [(s.section.xy, found) for s, found in zip(self.sections, labels, strict=True)],
            self._folds(known, inp), n_classes, {name: asked[name] for name in asked if name in members},
            label_propagation="label_propagation" in members,
        )  # fmt: skip
        if predicted is None:
            first = next((m for m in ("linear", "trees") if m in members), "network")
            without, around = Weights(**{first: 1.0}), None
        else:
            without, around = predicted.weights()
        grown = trees(known) if without.trees > 0 or (around is not None and around.trees > 0) else None
        return Ensemble(
            Stack(_beside(without, share), fitted, grown),
            Stack(_beside(around, share), fitted, grown) if around is not None else None,
        )

    @cached_property
    def _features(self) -> Floats32:
        z = np.zeros((len(self.in_region), self.training.featurizer.n_own), dtype=np.float32)
        z[self.in_region] = np.concatenate([g.own.numpy() for g in self.training.graphs if g.own is not None])
        return z

    def _input(self, *, across: bool) -> LinearInput:
        featurizer = self.training.featurizer
        width, unit = len(featurizer.scaling.centre), float(featurizer.scales["unit"][0])
        groups = np.concatenate(groups_of(self.sections, whole=across))
        return LinearInput(self._features, featurizer.params.neighbours, width, unit, groups)

    def _folds(self, known: Bools, inp: LinearInput) -> list[Ints]:
        """Divisions of the labels into folds of whole blocks, -1 where nothing is known."""
        found = []
        for group in (inp.group, np.concatenate(groups_of(self.sections, whole=False, most=_LARGE))):
            if len(np.unique(group[known])) > 1:
                fold = np.full(len(known), -1)
                fold[known] = deal_folds(group[known], self.rng)
                found.append(fold)
        return found


def _share(task: str, members: Sequence[str]) -> float:
    """The network's share of the logits."""
    if "network" not in members:
        return 0.0
    return 1.0 if len(members) == 1 else _OF_VALUES if task == EXPRESSION else _OF_LOGITS


def _beside(weights: Weights, share: float) -> Weights:
    """The weights with the network's; all for the network where no other member counts."""
    others = weights.linear + weights.trees + weights.label_propagation
    return weights.with_network(share if others > 0 else 1.0 if share > 0 else 0.0)
