"""Common interface of the baselines, and the simple ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stxtools._types import Array, Floats, Floats32, Ints
from stxtools.models._section import Section

Labels = Mapping[str, Sequence[Ints]]
Classes = Mapping[str, int]

_SIZES = (19, 61)  # two rings and four of a hexagonal lattice


@dataclass
class EvaluationSection(Section):
    """A section with its expression, which some baselines read."""

    logged: sparse.csr_matrix | None = None  # log-normalised, (n, G); None if only a representation is given
    variable: Sequence[int] = ()  # columns of the variable genes
    subject: str | None = None  # name, where subjects are held out

    @property
    def raw(self) -> sparse.csr_matrix | None:
        """Log-normalised expression of the variable genes."""
        return None if self.logged is None else self.logged[:, np.asarray(self.variable)].tocsr()


class Baseline(ABC):
    """A classifier of observations, for one or several targets."""

    def __init__(self, params: Mapping[str, Any] | None, run: Mapping[str, Any]) -> None:
        """``run`` are the keywords of every ``fit``: seed, accelerator, devices and progress."""
        self.params, self.run = dict(params or {}), dict(run)
        self.seed = {"random_state": self.run["random_state"]}
        self.classes: dict[str, int] = {}

    def fit(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> Baseline:
        """Fit on labelled observations; by default store the labels."""
        self.classes, self.labels = dict(classes), dict(labels)
        return self

    def predict_proba(self, sections: Sequence[EvaluationSection]) -> dict[str, list[Floats32]]:
        """Target -> per section, class probabilities of all observations, (n, K)."""
        return {target: self.proba(target, sections) for target in self.classes}

    @abstractmethod
    def proba(self, target: str, sections: Sequence[EvaluationSection]) -> list[Floats32]:
        """Class probabilities for one target."""

    def embed(self, sections: Sequence[EvaluationSection]) -> list[Array]:
        """Per section, the last hidden features of the observations, (n, d); by default the input features."""
        return [s.features for s in sections]

    def predict_expression(self, sections: Sequence[EvaluationSection], values: Sequence[Floats]) -> list[Floats]:
        """Predict expression from :meth:`embed` by ridge regression; unknown rows of ``values`` are NaN."""
        return _regress(make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11))), self.embed(sections), values)


def _regress(model: Any, features: Sequence[Any], values: Sequence[Floats]) -> list[Floats]:
    known = [~np.isnan(v).any(axis=1) for v in values]
    x = np.concatenate([f[k] for f, k in zip(features, known, strict=True)])
    model.fit(x, np.concatenate([v[k] for v, k in zip(values, known, strict=True)]))
    return [np.asarray(model.predict(f)).reshape(len(f), -1) for f in features]


class PointwiseBaseline(Baseline):
    """A scikit-learn classifier (``make``) of the features of single observations (``read``)."""

    def __init__(self, make: Callable[..., Any], read: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.make, self.read = make, read

    def fit(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> Baseline:
        """Fit one classifier per target."""
        self.classes, self.fitted = dict(classes), {}
        features = self.embed(sections)
        x: Any = sparse.vstack(features, format="csr") if sparse.issparse(features[0]) else np.concatenate(features)
        for target, codes in labels.items():
            y = np.concatenate(list(codes))
            rows = np.flatnonzero(y >= 0)
            self.fitted[target] = self.make(**self.seed | self.params).fit(x[rows], y[rows])
        return self

    def proba(self, target: str, sections: Sequence[EvaluationSection]) -> list[Floats32]:
        """Probabilities; a class without any label in training has 0."""
        model, n = self.fitted[target], self.classes[target]
        return [widened(model.predict_proba(x), model.classes_, n) for x in self.embed(sections)]

    def embed(self, sections: Sequence[EvaluationSection]) -> list[Array]:
        """Per section, the input features."""
        return [self.read(s) for s in sections]


class Forest(PointwiseBaseline):
    """Random forest, also for expression."""

    def predict_expression(self, sections: Sequence[EvaluationSection], values: Sequence[Floats]) -> list[Floats]:
        """Predict expression by a random forest."""
        model = RandomForestRegressor(**self.seed | {"min_samples_leaf": 5} | self.params)
        features: list[Any] = self.embed(sections)
        return _regress(model, [f.toarray() if sparse.issparse(f) else f for f in features], values)


def widened(proba: Array, seen: Ints, n_classes: int) -> Floats32:
    """Expand the probabilities of the classes ``seen`` in training to all classes."""
    out = np.zeros((len(proba), n_classes), dtype=np.float32)
    out[:, seen] = proba
    return out


def expression(s: EvaluationSection) -> Any:
    """Log-normalised expression, dense if small, which is faster for trees; else the representation."""
    raw = s.raw
    if raw is None:
        return s.features
    return raw.toarray() if raw.shape[1] <= 500 else raw


def means(s: EvaluationSection) -> Floats:
    """Means over the nearest 19 and 61 observations, including itself, of features centred by section.

    Independent of the models' own code, so that the baseline does not change with it.
    """
    near = cKDTree(s.xy).query(s.xy, k=min(max(_SIZES), s.n_obs))[1].reshape(s.n_obs, -1).T
    values = (s.features - s.features.mean(axis=0)).astype(np.float64)
    return np.concatenate([np.asarray(sum(values[i] for i in near[:k])) / min(k, s.n_obs) for k in _SIZES], axis=1)


class NearestLabel(Baseline):
    """Class of the nearest labelled observation of the section, or else the frequencies of the classes."""

    def proba(self, target: str, sections: Sequence[EvaluationSection]) -> list[Floats32]:
        """Inverse distances to the nearest label of each class, normalised."""
        codes, n_classes = self.labels[target], self.classes[target]
        pooled = np.concatenate(codes)
        share = np.bincount(pooled[pooled >= 0], minlength=n_classes) / max(int((pooled >= 0).sum()), 1)
        return [_by_distance(s.xy, c, n_classes, share) for s, c in zip(sections, codes, strict=True)]

    def predict_expression(self, sections: Sequence[EvaluationSection], values: Sequence[Floats]) -> list[Floats]:
        """Expression of the nearest known observation; the overall mean in a section without any."""
        mean = np.nanmean(np.concatenate(list(values)), axis=0)
        out = [np.tile(mean, (len(value), 1)) for value in values]
        for i, (section, value) in enumerate(zip(sections, values, strict=True)):
            known = np.flatnonzero(~np.isnan(value).any(axis=1))
            if len(known):
                out[i] = value[known[cKDTree(section.xy[known]).query(section.xy)[1]]]
        return out


def _by_distance(xy: Floats, codes: Ints, n_classes: int, share: Floats) -> Floats32:
    if not (codes >= 0).any():
        return np.tile(share, (len(xy), 1)).astype(np.float32)
    closeness = np.zeros((len(xy), n_classes))
    for k in np.unique(codes[codes >= 0]):
        distance = cKDTree(xy[codes == k]).query(xy)[0]
        closeness[:, k] = 1 / np.maximum(distance, 1e-9 * max(float(np.ptp(xy)), 1.0))
    return (closeness / closeness.sum(axis=1, keepdims=True)).astype(np.float32)


class FunctionBaseline(Baseline):
    """A user's function ``f(sections, labels, n_classes, random_state)`` that returns probabilities per section."""

    def __init__(self, function: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function

    def proba(self, target: str, sections: Sequence[EvaluationSection]) -> list[Floats32]:
        """Call the function and check what it returns."""
        codes, n_classes = [c.copy() for c in self.labels[target]], self.classes[target]
        proba = self.function(list(sections), codes, n_classes, self.run["random_state"])
        shapes, expected = [np.shape(p) for p in proba], [(s.n_obs, n_classes) for s in sections]
        if shapes != expected:
            raise ValueError(
                f"The model {getattr(self.function, '__name__', self.function)!r} returned arrays of shapes "
                f"{shapes}; expected one array of class probabilities per section: {expected}."
            )
        return [np.asarray(p, dtype=np.float32) for p in proba]
