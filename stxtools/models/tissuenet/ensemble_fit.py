"""Fits the ensemble of a task: the members beside the network, and the weights of all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from stxtools._types import Bools, Floats32, Ints
from stxtools.models._params import MEMBERS
from stxtools.models.ensemble.discriminant import Linear
from stxtools.models.ensemble.gene_classifier import GeneClassifier
from stxtools.models.ensemble.linear import LinearInput, deal_folds, linear_classifier, linear_regression, sampled
from stxtools.models.ensemble.stacking import Ensemble, Stack, Weights, out_of_fold
from stxtools.models.ensemble.trees import N_HELD_OUT_TREES, N_TREES, Trees, grow_trees

from .features import EXPRESSION, TrainingTargets
from .inputs import groups_of

_LOGIT_SHARE, _VALUE_SHARE = 0.2, 1 / 3  # of the network, where it takes part
_LARGE_BLOCKS = 16  # of a section, in the second of two divisions into folds


class EnsembleFitter:
    """Fits the members beside the network on its training sections.

    ``members`` names them. With ``"auto"``, sections with labels are predicted by all but the gene classifier, others
    by this one, because components and trees of one section mean something else in another. The network then takes part
    if it has ``converged``; elsewhere not if the model is made ``across`` three sections or more. Members for sections
    without labels are fitted only if there are such sections or the model is ``inductive``.
    """

    def __init__(
        self, training: TrainingTargets, members: str | Sequence[str], *, converged: bool, inductive: bool
    ) -> None:
        self.training, self.sections, self.rng, self.inductive = training, training.sections, training.rng, inductive
        auto = members == "auto"
        named = MEMBERS if auto else tuple(members)
        self.with_labels = [m for m in named if m != "genes" and not (auto and m == "network" and not converged)]
        self.without_labels = self.with_labels
        self.expression = [s.by_name for s in self.sections if s.by_name is not None]
        if len(self.expression) == len(self.sections) and "genes" in named:
            network = [m for m in self.with_labels if m == "network" and not (auto and training.across)]
            self.without_labels = [*network, "genes"]
        elif auto and training.across:
            self.without_labels = ["linear"]
        subjects = [s.subject for s in self.sections if s.subject is not None]
        self.subjects = np.array(subjects) if subjects else None
        self.in_region = np.concatenate([s.region >= 0 for s in self.sections])

    def fit(self, task: str) -> Ensemble:
        """Fit the ensemble of ``task`` on all its labels."""
        if task == EXPRESSION:
            return self._regression()
        stacked = self._stacked(task, self.with_labels) if {"linear", "trees"} & set(self.with_labels) else None
        if stacked is not None and not self.inductive and all((s.labels[task] >= 0).any() for s in self.sections):
            return stacked  # no section without labels will be predicted
        labelled = None if stacked is None else stacked.labelled or stacked.unlabelled
        if "genes" in self.without_labels:
            one_hot = np.eye(self.training.tasks[task])
            shares = [one_hot[s.labels[task]] for s in self.sections]
            known = [((s.region >= 0) & (s.labels[task] >= 0)).astype(np.float64) for s in self.sections]
            genes = GeneClassifier.fit(self.expression, shares, known, self.rng.spawn(1)[0], subject=self.subjects)
            weights = Weights(genes=1.0).with_network(_network_share(self.without_labels, _LOGIT_SHARE))
            return Ensemble(Stack(weights, genes=genes), labelled)
        if stacked is None or self.without_labels == self.with_labels:
            return stacked or self._stacked(task, self.with_labels)
        return Ensemble(self._stacked(task, self.without_labels).unlabelled, labelled)

    def _regression(self) -> Ensemble:
        if "linear" not in self.with_labels:
            return Ensemble(Stack(Weights(network=1.0)))
        parts = zip(*(self.training.values(s) for s in self.sections), strict=True)
        values, known = (np.concatenate(part) for part in parts)
        inp = self._input(across=self.training.across)
        fitted = linear_regression(inp, values, known & self.in_region, self.rng)
        weights = Weights(linear=1.0).with_network(_network_share(self.with_labels, _VALUE_SHARE))
        return Ensemble(Stack(weights, fitted))

    def _stacked(self, task: str, members: Sequence[str]) -> Ensemble:
        inp, n_classes = self._input(across=False), self.training.tasks[task]
        labels = [np.where(s.region >= 0, s.labels[task], -1) for s in self.sections]
        codes = np.concatenate(labels)
        known, share = codes >= 0, _network_share(members, _LOGIT_SHARE)
        seed = int(self.rng.integers(2**31))

        def linear(training: Bools) -> Linear:
            return linear_classifier(inp, np.where(training, codes, -1), n_classes)

        def trees(training: Bools, n_trees: int = N_TREES) -> Trees:
            rows = sampled(np.flatnonzero(training))
            return grow_trees(inp.z[rows, : inp.genes.start], codes[rows], n_classes, seed, n_trees)

        predict = {
            "linear": lambda training, held: linear(training)(inp.z[held]),
            "trees": lambda training, held: trees(training, N_HELD_OUT_TREES)(inp.z[held, : inp.genes.start]),
        }
        predicted = out_of_fold(
            [(s.section.xy, c) for s, c in zip(self.sections, labels, strict=True)],
            self._folds(known, inp), n_classes, {name: predict[name] for name in predict if name in members},
            label_propagation="label_propagation" in members,
        )  # fmt: skip
        # too few blocks with labels for folds: the first member stands for all
        first = next((m for m in predict if m in members), "network")
        weights = (Weights(**{first: 1.0}), None) if predicted is None else predicted.weights()
        fitted = linear(known) if "linear" in members else None
        grown = trees(known) if any(w is not None and w.trees > 0 for w in weights) else None
        return Ensemble(*(Stack(w.with_network(share), fitted, grown) for w in weights if w is not None))

    @cached_property
    def _features(self) -> Floats32:
        z = np.zeros((len(self.in_region), self.training.featurizer.n_inputs), dtype=np.float32)
        z[self.in_region] = np.concatenate([g.features.numpy() for g in self.training.graphs if g.features is not None])
        return z

    def _input(self, *, across: bool) -> LinearInput:
        featurizer = self.training.featurizer
        width, unit = len(featurizer.scaling.centre), float(featurizer.scales["unit"][0])
        groups = np.concatenate(groups_of(self.sections, whole=across))
        if across and self.subjects is not None:
            groups = np.repeat(self.subjects, [s.section.n_obs for s in self.sections])
        return LinearInput(self._features, featurizer.params.neighbours, width, unit, groups)

    def _folds(self, known: Bools, inp: LinearInput) -> list[Ints]:
        """Divisions of the labelled observations into folds of whole blocks, -1 for the others."""
        folds = []
        for group in (inp.group, np.concatenate(groups_of(self.sections, whole=False, most=_LARGE_BLOCKS))):
            if len(np.unique(group[known])) > 1:
                folds.append(np.full(len(known), -1))
                folds[-1][known] = deal_folds(group[known], self.rng)
        return folds


def _network_share(members: Sequence[str], beside_others: float) -> float:
    if "network" not in members:
        return 0.0
    return 1.0 if len(members) == 1 else beside_others
