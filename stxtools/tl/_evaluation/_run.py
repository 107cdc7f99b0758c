"""The loop of an evaluation: prepare a split, hide its labels, train, predict, score, write down."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools._data.noise import noised_copy, noised_values
from stxtools._data.sections import Geometry
from stxtools._progress import progress

from ._checkpoint import Checkpoint
from ._data import FeatureSource, evaluation_sections, held_out_genes, log_values, read_features, standardised
from ._metrics import CLASS_METRICS, METRICS, scores
from ._protocol import Protocol
from ._splits import LEAKY, folds_of

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models.baselines.simple import Baseline, Classes, Labels

    from ._data import Target

UNIT = ("model", "scheme", "seed", "noise", "fold")
COLUMNS: dict[str, Any] = {
    "model": str, "target": str, "key": str, "scheme": str, "leaky": bool, "seed": int, "noise": float, "fold": str,
    "n_train": int, "n_test": int, **dict.fromkeys(METRICS, float), "seconds": float,
}  # fmt: skip


@dataclass
class _Split:
    """One split of one noised data set."""

    scheme: str
    seed: int
    noise: float
    fold: str
    test: NDArray[np.bool_]
    sections: list[Any]
    expression: NDArray[np.float64] | None

    def unit(self, model: str) -> tuple[Any, ...]:
        return (model, self.scheme, self.seed, self.noise, self.fold)


def run(
    adata: AnnData, p: Protocol, checkpoint: str | os.PathLike[str] | None, *, show_progress: bool | None
) -> list[dict[str, Any]]:
    """Run what is not in the checkpoint yet and return all rows that were asked for, in the order asked for."""
    where = Geometry(adata, p.spatial_key, p.library_key)
    hidden = None if p.genes is None else {seed: held_out_genes(adata, p.genes, seed) for seed in p.seeds}
    codes = p.codes()
    store = Checkpoint(checkpoint, p.fingerprint(adata, where), {"code": str, **COLUMNS})
    targets = [(t.name, t.key) for t in p.targets] + ([("expression", "")] if p.genes is not None else [])
    done = _finished(store.rows, targets, codes)
    plan = [(scheme, seed, noise) for scheme in p.schemes for seed in p.seeds for noise in p.noise]
    folds = {(scheme, seed): checked_folds(scheme, seed, where, p) for scheme in p.schemes for seed in p.seeds}
    wanted = [(model, *at, name) for at in plan for name, _ in folds[at[:2]] for model in p.models]
    with progress(len(wanted), "evaluate", show_progress) as bar:
        for scheme, seed, noise in plan:
            todo = {u for u in wanted if u[1:4] == (scheme, seed, noise)} - done.keys()
            bar.update(len(p.models) * len(folds[scheme, seed]) - len(todo))
            if not todo:
                continue
            columns = None if hidden is None else hidden[seed]
            for split in _splits(adata, p, where, folds[scheme, seed], (scheme, seed, noise), columns, todo):
                for name in p.models:
                    if split.unit(name) in todo:
                        store.refresh()  # another process may have done it meanwhile
                        done |= _finished(store.rows, targets, codes)
                        if split.unit(name) in done:
                            bar.update(1)
                            continue
                        bar.set_postfix({"model": name, "fold": split.fold})
                        rows = _measure(name, split, p, where)
                        store.add([{"code": codes[name], **row} for row in rows])
                        done[split.unit(name)] = rows
                        bar.update(1)
    return [row for unit in wanted for row in done[unit]]


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


def checked_folds(scheme: str, seed: int, where: Geometry, p: Protocol) -> list[tuple[str, NDArray[np.bool_]]]:
    """Folds in which every target has something to learn from and something to predict."""
    fold, names = folds_of(scheme, where.xy, where.libs, p.n_folds, seed)
    out = []
    for k, name in enumerate(names[: p.max_folds]):
        test = fold == k
        for t in p.targets:
            seen = np.unique(t.codes[~test & (t.codes >= 0)])
            if len(seen) < 2:
                found = [t.classes[k] for k in seen]
                raise ValueError(
                    f"With scheme {scheme!r} and seed {seed}, the training part of fold {name!r} holds only {found} of "
                    f"`adata.obs[{t.key!r}]`; two classes are needed. Use more folds, another scheme, or more labels."
                )
        if all((t.codes[test] >= 0).any() for t in p.targets):
            out.append((name, test))
    if not out:
        raise ValueError(f"No fold of scheme {scheme!r} has labelled observations to predict.")
    return out


def _splits(
    adata: AnnData,
    p: Protocol,
    where: Geometry,
    folds: list[tuple[str, NDArray[np.bool_]]],
    at: tuple[str, int, float],
    hidden: NDArray[np.int64] | None,
    todo: set[tuple[Any, ...]],
) -> Iterator[_Split]:
    """Noise and features for each split that has something to do."""
    scheme, seed, noise = at
    noised, how = _noised(adata, p, seed, noise)
    values = None if hidden is None else log_values(noised, how.layer, hidden)
    if hidden is not None:
        noised = noised[:, np.setdiff1d(np.arange(noised.n_vars), hidden)]
    # nothing of a left-out section may go into genes and components; within sections no label is looked at anyway
    shared = None if scheme == "library" else read_features(noised, how)
    for name, test in folds:
        if not any(unit[4] == name for unit in todo):
            continue
        features = read_features(noised, how, ~test) if shared is None else shared
        truth = None if values is None else standardised(values, ~test)
        yield _Split(scheme, seed, noise, name, test, evaluation_sections(features, where), truth)


def _noised(adata: AnnData, p: Protocol, seed: int, noise: float) -> tuple[AnnData, FeatureSource]:
    how = p.source
    if noise == 0:
        return adata, how
    values, _ = noised_values(adata, noise, kind=p.noise_kind, layer=how.layer, use_rep=how.use_rep, seed=seed)
    out = noised_copy(adata, values, kind=p.noise_kind, use_rep=how.use_rep)
    return out, FeatureSource(how.use_rep, None, how.seed)  # the noised values are in X


def _measure(name: str, split: _Split, p: Protocol, where: Geometry) -> list[dict[str, Any]]:
    """Train one model on one split and score each target."""
    start = time.perf_counter()
    model = _model(name, split.seed, p)
    model.fit(split.sections, *learned_labels(p, where, split.test))
    proba = model.predict_proba(split.sections)
    seconds = time.perf_counter() - start
    rows = []
    for t, reached in judged(p, where, split.test, proba):
        sizes = {f"n_{n}": int((t.codes[r] >= 0).sum()) for n, r in (("train", ~split.test), ("test", split.test))}
        rows.append(_row(name, t.name, t.key, split, sizes, reached, seconds))
    if split.expression is not None:
        start = time.perf_counter()
        shown = np.where(split.test[:, None], np.nan, split.expression)
        found = where.join(model.predict_expression(split.sections, [shown[rows] for rows in where.parts]))
        missed = float(np.mean((found[split.test] - split.expression[split.test]) ** 2))
        error = dict.fromkeys(CLASS_METRICS, np.nan) | {"mse": missed}
        sizes = {"n_train": int((~split.test).sum()), "n_test": int(split.test.sum())}
        rows.append(_row(name, "expression", "", split, sizes, error, time.perf_counter() - start))
    return rows


def learned_labels(p: Protocol, where: Geometry, test: NDArray[np.bool_]) -> tuple[Labels, Classes]:
    """Class codes of each target per section, hidden (-1) in the test part, and the numbers of classes."""
    masked = {t.name: np.where(test, -1, t.codes) for t in p.targets}
    labels = {name: [codes[rows] for rows in where.parts] for name, codes in masked.items()}
    return labels, {t.name: len(t.classes) for t in p.targets}


def judged(
    p: Protocol, where: Geometry, test: NDArray[np.bool_], proba: Mapping[str, Any]
) -> Iterator[tuple[Target, dict[str, float]]]:
    """Yield each target with the scores of its test part."""
    for t in p.targets:
        rows = test & (t.codes >= 0)
        yield t, scores(where.join(proba[t.name])[rows], t.codes[rows])


def _model(name: str, seed: int, p: Protocol) -> Baseline:
    from stxtools.models.baselines.registry import baseline

    chosen = p.models[name]
    how: dict[str, Any] = {"params": p.params.get(name), "random_state": seed, "accelerator": p.accelerator}
    if chosen != "framework":
        return baseline(chosen, **how)
    from ._framework import Framework  # here: it imports the whole pipeline

    return Framework(**how)


def _row(
    model: str, target: str, key: str, split: _Split, sizes: dict[str, int], found: dict[str, float], seconds: float
) -> dict[str, Any]:
    head = {
        "model": model, "target": target, "key": key, "scheme": split.scheme, "leaky": split.scheme in LEAKY,
        "seed": split.seed, "noise": split.noise, "fold": split.fold,
    }  # fmt: skip
    return head | sizes | found | {"seconds": seconds}
