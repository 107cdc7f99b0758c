"""The study behind :func:`stxtools.tl.tune`: space, sampler, objective, storage."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools._data.sections import Geometry
from stxtools._globals import exclusive
from stxtools._progress import progress

from ._checkpoint import settings_fingerprint
from ._data import evaluation_sections, read_features
from ._run import checked_folds, judged, learned_labels

if TYPE_CHECKING:
    from anndata import AnnData

    from ._protocol import Protocol

SEARCHES = ("grid", "random", "tpe")
_TRIALS = 20
_WARM_UP = 4  # trials that are never given up: the median needs some to stand on


PARTS: dict[str, tuple[str, dict[str, tuple[Any, ...]]]] = {  # part of the model -> its default search and space
    "unet": (
        "random",
        {
            "width": (16, 24, 32), "depth": (1, 2, 3), "kernel_size": (3, 5), "dropout": (0.0, 0.1, 0.3),
            "lr": (1e-3, 3e-3, 1e-2), "pretrain": ("masked", "contrastive", "none"),
        },
    ),
    "gnn": (
        "tpe",
        {
            "conv": ("gatv2", "sum"), "hidden": (32, 64, 128), "out_channels": (16, 32, 64), "layers": (1, 2, 3),
            "dropout": (0.0, 0.1, 0.3, 0.5), "lr": (1e-3, 3e-3, 1e-2), "weight_decay": (1e-4, 1e-3, 1e-2),
        },
    ),
    "weights": ("grid", {"alpha": (0.25, 0.5, 1.0, 2.0), "beta": (0.25, 0.5, 1.0, 2.0)}),
}  # fmt: skip


@dataclass(frozen=True)
class Search:
    """Everything that is asked for, checked."""

    part: str
    kind: str
    space: dict[str, list[Any]]
    fixed: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    metric: str
    n_trials: int | None
    patience: int | None
    prune: bool
    protocol: Protocol

    @property
    def most_trials(self) -> int:
        """Trials of all processes together."""
        if self.kind != "grid":
            return _TRIALS if self.n_trials is None else self.n_trials
        n_grid = prod(len(values) for values in self.space.values())
        return n_grid if self.n_trials is None else min(self.n_trials, n_grid)


def search_space(
    part: str, space: Mapping[str, Sequence[Any]] | None, fixed: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Return the fields to search, checked against the parameter set that they belong to."""
    from stxtools.models import SegmenterParams, TissueNetParams
    from stxtools.models._params import resolve

    kind: Any = SegmenterParams if part == "unet" else TissueNetParams
    resolve(fixed, kind)
    for name, value in fixed.items():
        if not isinstance(value, (bool, int, float, str)):
            raise TypeError(f"`params[{name!r}]` is {value!r}; numbers, strings and booleans can be fixed.")
    if space is not None and not isinstance(space, Mapping):
        raise TypeError(f"`space` must map fields to the values to try, not {space!r}.")
    chosen = PARTS[part][1] if space is None else space
    out = {str(name): list(values) for name, values in chosen.items() if space is not None or name not in fixed}
    both = sorted(set(out) & set(fixed))
    if both:
        raise ValueError(f"{', '.join(both)}: a field is either searched (`space`) or the same in all (`params`).")
    if not out or not all(out.values()):
        raise ValueError("`space` is empty, or one of its fields has no value to choose from.")
    for name, values in out.items():
        for value in values:
            if not isinstance(value, (bool, int, float, str)):
                raise TypeError(f"`space[{name!r}]` holds {value!r}; numbers, strings and booleans can be searched.")
            resolve({name: value}, kind)
    return out


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna's own messages off the user's screen for the length of a study, and give its level back."""
    import optuna

    with exclusive():
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                yield
        finally:
            optuna.logging.set_verbosity(before)


def study_of(
    adata: AnnData, task: Search, storage: Any, name: str, seed: int, *, show_progress: bool | None
) -> tuple[dict[str, Any], float, pd.DataFrame]:
    """Run the study, or what is left of it, and return best fields, best value and all trials."""
    import optuna
    from optuna.trial import TrialState

    if storage is not None and not isinstance(storage, (str, optuna.storages.BaseStorage)):
        raise TypeError(f"`storage` must be a database URL or a storage of Optuna, not {storage!r}.")
    where = Geometry(adata, task.protocol.spatial_key, task.protocol.library_key)
    objective = _Objective(adata, task, where, seed)
    finished = (TrialState.COMPLETE, TrialState.PRUNED)
    with _quiet_optuna():
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True,
            sampler=_sampler(task, seed, shared=storage is not None),
            pruner=optuna.pruners.MedianPruner(_WARM_UP, 0) if task.prune else optuna.pruners.NopPruner(),
        )  # fmt: skip
        _claim(study, objective.fingerprint)
        with progress(task.most_trials, "tune", show_progress) as bar:
            n_done = len(study.get_trials(False, finished))
            bar.update(min(n_done, task.most_trials))

            def after(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
                bar.update(1)
                trials = study.get_trials(False, finished)
                if len(trials) >= task.most_trials or _stalled(trials, task.patience):
                    study.stop()

            if n_done < task.most_trials:
                study.optimize(objective, callbacks=[after], n_trials=task.most_trials)
        best = _best(study.get_trials(deepcopy=False))
        if best is None:
            raise ValueError("No trial was completed; check `space`, or raise `n_trials`.")
    return task.fixed | dict(best.params), float(best.value or 0.0), _table(study, task)


def _stalled(trials: Sequence[Any], patience: int | None) -> bool:
    """Whether as many trials passed without a better one."""
    best = _best(trials)
    return patience is not None and sum(best is None or t.number > best.number for t in trials) >= patience


def _best(trials: Sequence[Any]) -> Any:
    """Return the first of the best completed trials; None where there is none."""
    complete = [t for t in trials if t.state.name == "COMPLETE"]
    return max(complete, key=lambda t: (t.value, -t.number), default=None)


def _sampler(task: Search, seed: int, *, shared: bool) -> Any:
    import optuna

    # processes that share a study must not draw the same trials
    own = int(np.random.SeedSequence([seed, os.getpid()]).generate_state(1)[0]) if shared else seed
    if task.kind == "grid":
        return optuna.samplers.GridSampler(task.space, seed=own)
    if task.kind == "random":
        return optuna.samplers.RandomSampler(seed=own)
    return optuna.samplers.TPESampler(seed=own, n_startup_trials=min(10, max(3, task.most_trials // 3)))


def _claim(study: Any, fingerprint: str) -> None:
    """Mark a new study as ours; refuse one that was made with other data or settings."""
    found = study.user_attrs.get("fingerprint")
    if found is None:
        if study.get_trials(deepcopy=False):
            raise ValueError(f"The study {study.study_name!r} in `storage` is not one of `st.tl.tune`; name another.")
        study.set_user_attr("fingerprint", fingerprint)
    elif found != fingerprint:
        raise ValueError(
            f"The study {study.study_name!r} in `storage` was made with other data or settings (fingerprint {found}, "
            f"now {fingerprint}); pass another `study_name=`."
        )


class _Objective:
    """Mean metric over targets and folds of one choice of fields."""

    def __init__(self, adata: AnnData, task: Search, where: Geometry, seed: int) -> None:
        p = task.protocol
        self.adata, self.task, self.where, self.seed = adata, task, where, seed
        self.folds = checked_folds(p.schemes[0], seed, where, p)
        settings = {"part": task.part, "space": task.space, "kind": task.kind if task.kind == "grid" else "any",
                    "fixed": task.fixed, "stages": task.stages, "metric": task.metric, "scheme": p.schemes,
                    "max_folds": p.max_folds, "seed": seed, "inputs": p.fingerprint(adata, where)}  # fmt: skip
        self.fingerprint = settings_fingerprint(settings)
        self.prepared: dict[str, Any] = {}
        self.shared = None if p.schemes[0] == "library" else read_features(adata, p.source)

    def __call__(self, trial: Any) -> float:
        import optuna

        fields = {name: trial.suggest_categorical(name, values) for name, values in self.task.space.items()}
        p, found = self.task.protocol, []
        for step, (name, test) in enumerate(self.folds):
            found.append(self._fold(name, test, self.task.fixed | fields))
            trial.report(float(np.mean(found)), step)
            if step + 1 < len(self.folds) and trial.should_prune():
                trial.set_user_attr("n_folds", step + 1)
                raise optuna.TrialPruned
        trial.set_user_attr("n_folds", len(found))
        if len(found) > 1:
            trial.set_user_attr("value_sd", float(np.mean(found, axis=1).std(ddof=1)))
        for t, value in zip(p.targets, np.mean(found, axis=0), strict=True):
            trial.set_user_attr(f"value_{t.name}", float(value))
        return float(np.mean(found))

    def _fold(self, name: str, test: Any, fields: dict[str, Any]) -> list[float]:
        """Metric of each target on one fold."""
        p = self.task.protocol
        features = read_features(self.adata, p.source, ~test) if self.shared is None else self.shared
        sections = evaluation_sections(features, self.where)
        model = self._trained(name, fields, sections, *learned_labels(p, self.where, test))
        found = judged(p, self.where, test, model.predict_proba(sections))
        return [values[self.task.metric] for _, values in found]

    def _trained(self, name: str, fields: dict[str, Any], sections: Any, labels: Any, classes: Any) -> Any:
        from stxtools.models.baselines.registry import baseline

        from ._framework import Framework

        how: dict[str, Any] = {"random_state": self.seed, "accelerator": self.task.protocol.accelerator}
        if self.task.part == "unet":
            return baseline("unet", params=fields, **how).fit(sections, labels, classes)
        model = Framework(params=self.task.stages | {"multitask": {"params": fields}}, **how)
        if name not in self.prepared:  # compartments and regions do not depend on what is searched
            self.prepared[name] = model.prepare(sections, labels, classes)
        return model.train(self.prepared[name].copy(), classes)


def _table(study: Any, task: Search) -> pd.DataFrame:
    found = study.trials_dataframe(("number", "state", "value", "user_attrs", "duration", "params"))
    found.columns = found.columns.str.removeprefix("params_").str.removeprefix("user_attrs_")
    found["seconds"] = found.pop("duration").dt.total_seconds()
    targets = [f"value_{t.name}" for t in task.protocol.targets]
    columns = ["number", "state", "value", "value_sd", *targets, "n_folds", "seconds"]
    table = found.reindex(columns=columns + list(task.space)).fillna({"n_folds": 0})
    for name, values in task.space.items():
        if any(isinstance(v, str) for v in values):
            table[name] = table[name].fillna("").astype(str)
        elif all(isinstance(v, bool) for v in values):
            table[name] = table[name].astype(float)
    return table.astype({"state": str, "n_folds": int} | dict.fromkeys(("value", "value_sd", *targets), float))
