"""The loop of an evaluation: prepare a split, hide its labels, train, predict, score, write down."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from stxtools._data.expression import Expression
from stxtools._data.noise import noised_copy, noised_values
from stxtools._data.representation import log_normalize
from stxtools._progress import progress

from ._checkpoint import Checkpoint, function_code, settings_fingerprint
from ._protocol import CLASS_METRICS, LEAKY, METRICS, Protocol

if TYPE_CHECKING:
    from stxtools.models.baselines.simple import Baseline

    from ._protocol import Fold

UNIT = ("model", "scheme", "seed", "noise", "fold")
COLUMNS: dict[str, Any] = {
    "model": str, "target": str, "key": str, "scheme": str, "leaky": bool, "seed": int, "noise": float, "fold": str,
    "n_train": int, "n_test": int, **dict.fromkeys(METRICS, float), "seconds": float,
}  # fmt: skip


@dataclass
class _Split:
    """One split of one noised data set; ``expression`` of hidden genes, standardised over the training part."""

    scheme: str
    seed: int
    noise: float
    fold: str
    test: NDArray[np.bool_]
    sections: list[Any]
    expression: NDArray[np.float64] | None


@dataclass(frozen=True)
class Evaluation:
    """Models to compare, on every split of the protocol, for every seed and level of noise."""

    protocol: Protocol
    models: Mapping[str, str | Callable[..., Any]]
    params: dict[str, dict[str, Any]]
    seeds: list[int]
    noise: list[float]
    genes: int | Sequence[str] | None

    def run(self, checkpoint: str | os.PathLike[str] | None, *, show_progress: bool | None) -> list[dict[str, Any]]:
        """Run what is not in the checkpoint yet and return all rows that were asked for, in the order asked for."""
        p, plan = self.protocol, list(product(self.protocol.schemes, self.seeds, self.noise))
        hidden = {seed: self._hidden(seed) for seed in self.seeds}
        codes = {name: m if isinstance(m, str) else function_code(m) for name, m in self.models.items()}
        store = Checkpoint(checkpoint, self._fingerprint(), {"code": str, **COLUMNS})
        targets = [(t.name, t.key) for t in p.targets] + ([("expression", "")] if self.genes is not None else [])
        done = _finished(store.rows, targets, codes)
        folds = {(scheme, seed): p.folds(scheme, seed) for scheme in p.schemes for seed in self.seeds}
        wanted = [(model, *at, name) for at in plan for name, _ in folds[at[:2]] for model in self.models]
        with progress(len(wanted), "evaluate", show_progress) as bar:
            for at in plan:
                some = [f for f in folds[at[:2]] if any((model, *at, f[0]) not in done for model in self.models)]
                bar.update(len(self.models) * (len(folds[at[:2]]) - len(some)))
                for split in self._splits(at, some, hidden[at[1]]) if some else ():
                    for name in self.models:
                        unit = (name, *at, split.fold)
                        if unit not in done:
                            store.refresh()  # another process may have done it meanwhile
                            done |= _finished(store.rows, targets, codes)
                        if unit not in done:
                            bar.set_postfix({"model": name, "fold": split.fold})
                            done[unit] = self._measure(name, split)
                            store.add([{"code": codes[name], **row} for row in done[unit]])
                        bar.update(1)
        return [row for unit in wanted for row in done[unit]]

    def _fingerprint(self) -> str:
        """Digest of data and settings, without models, seeds and noise levels, which are columns of every row."""
        genes = self.genes if self.genes is None or isinstance(self.genes, int) else [str(g) for g in self.genes]
        return settings_fingerprint(self.protocol.settings | {"genes": genes, "params": self.params})

    def _hidden(self, seed: int) -> NDArray[np.int64] | None:
        """Positions of the genes that are hidden from the models and predicted."""
        adata, genes = self.protocol.adata, self.genes
        if genes is None:
            return None
        if isinstance(genes, (int, np.integer)):
            if not 1 <= genes < adata.n_vars - 1:
                raise ValueError(f"`genes={genes}` must be between 1 and {adata.n_vars - 2}: two genes must be left.")
            return np.sort(np.random.default_rng([seed, 13]).permutation(adata.n_vars)[:genes])
        if isinstance(genes, str) or not isinstance(genes, Iterable):
            raise TypeError(f"`genes` must be how many genes to hide, or a list of their names, not {genes!r}.")
        names = [str(g) for g in genes]
        place = adata.var_names.get_indexer(names)
        unknown = [g for g, p in zip(names, place, strict=True) if p < 0]
        if unknown or not names:
            raise KeyError(f"`genes` must name genes of `adata.var_names`; not there: {unknown or 'an empty list'}.")
        if len(set(names)) > adata.n_vars - 2:
            raise ValueError(f"`genes` names {len(names)} of {adata.n_vars} genes; two must be left to predict from.")
        return np.unique(place)

    def _splits(
        self, at: tuple[str, int, float], folds: Sequence[Fold], hidden: NDArray[np.int64] | None
    ) -> Iterator[_Split]:
        """Noise, features and hidden expression for some folds."""
        scheme, seed, noise = at
        p = self.protocol if noise == 0 else self._noised(seed, noise)
        values = None
        if hidden is not None:
            values = _log_values(p.adata, p.layer, hidden)
            p = replace(p, adata=p.adata[:, np.setdiff1d(np.arange(p.adata.n_vars), hidden)])
        # nothing of a left-out section may go into genes and components; within sections no label is looked at anyway
        shared = None if scheme == "library" else p.features()
        for name, test in folds:
            sections = p.sections(p.features(~test) if shared is None else shared)
            yield _Split(scheme, seed, noise, name, test, sections, values if values is None else _scaled(values, test))

    def _noised(self, seed: int, noise: float) -> Protocol:
        """Protocol for a copy with noise."""
        p, kind = self.protocol, "gaussian"
        values, _ = noised_values(p.adata, noise, kind=kind, layer=p.layer, use_rep=p.use_rep, seed=seed)
        return replace(p, adata=noised_copy(p.adata, values, kind=kind, use_rep=p.use_rep), layer=None)  # they are in X

    def _measure(self, name: str, split: _Split) -> list[dict[str, Any]]:
        """Train one model on one split and score each target."""
        p, test, every = self.protocol, split.test, np.ones(len(split.test), dtype=bool)
        start = time.perf_counter()
        model = self._model(name, split.seed)
        model.fit(split.sections, *p.labels(test))
        proba = model.predict_proba(split.sections)
        seconds = time.perf_counter() - start
        found = [(t.name, t.key, t.codes >= 0, reached, seconds) for t, reached in p.scores(test, proba)]
        if split.expression is not None:
            start = time.perf_counter()
            shown = p.where.split(np.where(test[:, None], np.nan, split.expression))
            predicted = p.where.join(model.predict_expression(split.sections, shown))
            missed = float(np.mean((predicted[test] - split.expression[test]) ** 2))
            error = dict.fromkeys(CLASS_METRICS, np.nan) | {"mse": missed}
            found.append(("expression", "", every, error, time.perf_counter() - start))
        rows = []
        for target, key, known, reached, seconds in found:
            row = {
                "model": name, "target": target, "key": key, "scheme": split.scheme, "leaky": split.scheme in LEAKY,
                "seed": split.seed, "noise": split.noise, "fold": split.fold, "n_train": int((known & ~test).sum()),
                "n_test": int((known & test).sum()),
            }  # fmt: skip
            rows.append(row | reached | {"seconds": seconds})
        return rows

    def _model(self, name: str, seed: int) -> Baseline:
        from stxtools.models.baselines.simple import baseline

        how: dict[str, Any] = {"params": self.params.get(name), "random_state": seed}
        how["accelerator"] = self.protocol.accelerator
        if self.models[name] != "framework":
            return baseline(self.models[name], **how)
        from ._framework import Framework  # here: it imports the whole pipeline

        return Framework(**how)


def _finished(
    rows: list[dict[str, Any]], targets: list[tuple[str, str]], codes: dict[str, str]
) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Units all of whose targets were written, each once, by the models that are asked for."""
    units: dict[tuple[Any, ...], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in rows:
        if codes.get(row["model"]) == row["code"]:
            unit = tuple(row[name] for name in UNIT)
            units.setdefault(unit, {})[row["target"], row["key"]] = row
    return {
        unit: [{name: found[t][name] for name in COLUMNS} for t in targets]
        for unit, found in units.items()
        if found.keys() >= set(targets)
    }


def _log_values(adata: AnnData, layer: str | None, columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-normalised expression of some genes, dense."""
    read = Expression(adata, layer)
    return log_normalize(read.matrix, read.scale)[:, columns].toarray().astype(np.float64)


def _scaled(values: NDArray[np.float64], test: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scale to mean 0 and variance 1 over the training part: predicting the mean then has an MSE near 1."""
    return (values - values[~test].mean(axis=0)) / (values[~test].std(axis=0) + 1e-9)
