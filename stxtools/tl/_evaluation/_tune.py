"""Search parameters on the user's sections with Optuna."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_bool, check_choice, check_int, check_seed, listing
from stxtools._globals import GLOBAL_LOCK
from stxtools._progress import progress, progress_bar
from stxtools._slots import Slots, free_key, provenance
from stxtools._validate import check_adata

from ._protocol import LEAKY, SCHEMES, Fold, Protocol, settings_fingerprint

SEARCHES = ("grid", "random", "tpe")
_TRIALS = 20
_WARM_UP = 4  # trials that are never pruned: the median needs some

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


@public
@progress_bar({"loading PyTorch": 4, "tune": 100})
def tune(
    adata: AnnData, part: Literal["unet", "gnn", "weights"] = "gnn", *, biomarker_key: str | None = None,
    region_key: str | None = None, space: Mapping[str, Sequence[Any]] | None = None,
    search: Literal["grid", "random", "tpe"] | None = None, n_trials: int | None = None, prune: bool = True,
    params: Mapping[str, Any] | None = None, stages: Mapping[str, Mapping[str, Any]] | None = None, storage: Any = None,
    scheme: Literal["block", "library"] = "block", n_folds: int = 3, max_folds: int | None = None,
    use_rep: str | None = None, layer: str | None = None, spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None, subject_key: str | None = None, random_state: int = 0,
    accelerator: str = "auto", devices: int | str = 1, show_progress: bool | None = None, key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Tune hyperparameters of the U-Net, the graph network or the loss weights with Optuna.

    The objective is the mean AUROC over targets and folds, with the splits of :func:`evaluate`, but without folds that
    test a single class. As the maximum over trials, the best value is optimistic: evaluate the parameters on other
    tissue.

    Parameters
    ----------
    part
        What to tune. ``"unet"``: fields of :class:`stxtools.models.SegmenterParams`. ``"gnn"``: fields of
        :class:`stxtools.models.TissueNetParams`, on the same regions in all trials. ``"weights"``: ``alpha`` and
        ``beta``, the weights of the two losses; needs both keys.
    space
        Mapping from fields to the values to try; each part has a default space.
    search
        ``"grid"``, ``"random"`` or ``"tpe"`` (Bayesian optimisation, Bergstra et al. 2011). By default random for the
        U-Net, TPE for the graph network, grid for the weights.
    n_trials
        Maximum number of trials over all processes; by default 20, or the whole grid.
    prune
        Whether to stop trials whose value falls below the median of earlier trials.
    params
        Fields that are fixed in all trials.
    stages
        Arguments of the preceding calls for ``"gnn"`` and ``"weights"``: ``{"segment": {...}, "region_graph": {...}}``.
    storage
        Optuna storage or its URL (``"sqlite:///tune.db"``), to resume later or share trials between processes. Each
        combination of data and settings is a study, named in ``uns["tune"]["params"]["study"]``.
    scheme, n_folds, max_folds
        How to split, as in :func:`evaluate`, and the maximum number of folds per trial.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> space = {"width": [8, 16]}
    >>> st.tl.tune(adata, "unet", region_key="compartment", space=space, n_trials=2, n_folds=2, params={"epochs": 3})
    >>> st.tl.segment(adata, labels_key="compartment", params=adata.uns["tune"]["best_params"])
    """
    check_adata(adata, min_obs=20, layer=layer, copy=copy)
    key = free_key(adata, "tl.tune", key_added, _keys.TUNE, uns=[""])
    seed = check_seed(random_state)
    check_choice("part", part, tuple(PARTS))
    kind = PARTS[part][0] if search is None else search
    check_choice("search", kind, SEARCHES)
    if part == "weights" and (biomarker_key is None or region_key is None):
        raise ValueError("`part='weights'` balances two losses: name `biomarker_key=` and `region_key=`.")
    for name, given in {"params": params, "stages": stages}.items():
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"`{name}` must be a mapping of names to values, not {given!r}.")
    if set(stages or {}) - {"segment", "region_graph"} or (stages and part == "unet"):
        raise ValueError(
            f"`stages` takes 'segment' and 'region_graph' for 'gnn' and 'weights'; got {listing(stages or [])}."
        )
    fixed = dict(params or {})
    fields = search_space(part, space, fixed)
    if n_trials is not None:
        check_int("n_trials", n_trials, minimum=1)
    protocol = Protocol(
        adata, {"biomarker": biomarker_key, "region": region_key}, [scheme], [s for s in SCHEMES if s not in LEAKY],
        n_folds=n_folds, max_folds=max_folds, use_rep=use_rep, layer=layer, spatial_key=spatial_key,
        library_key=library_key, subject_key=subject_key, seed=seed, accelerator=accelerator, devices=devices,
    )  # fmt: skip
    n_grid = prod(len(values) for values in fields.values())
    study = Search(
        protocol, part, kind, fields, fixed, {k: dict(v) for k, v in (stages or {}).items()},
        min(n_trials or n_grid, n_grid) if kind == "grid" else n_trials or _TRIALS, check_bool("prune", prune),
    )  # fmt: skip
    best, value, trials = study.run(storage, show_progress=show_progress)
    entry = {
        "best_params": best,
        "best_value": value,
        "trials": trials,
        "params": provenance(
            part=part, search=kind, n_trials=n_trials, prune=prune, scheme=scheme, study=study.name,
            space={name: str(list(values)) for name, values in fields.items()}, fixed=str(fixed) if fixed else None,
            **protocol.record,
        ),
    }  # fmt: skip
    return Slots("tl.tune", uns={key: entry}).write(adata, copy)


@dataclass(frozen=True)
class Search:
    """A search; called with a trial, it returns the mean AUROC over targets and folds."""

    protocol: Protocol
    part: str
    kind: str
    space: dict[str, list[Any]]
    fixed: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    max_trials: int  # of all processes together
    prune: bool
    prepared: dict[str, Any] = field(default_factory=dict)  # by fold: compartments and regions, which all trials share

    @cached_property
    def folds(self) -> list[Fold]:
        """Folds of all trials."""
        p = self.protocol
        folds = p.folds(p.schemes[0], p.seed)
        for t in p.targets:
            if not any(len(np.unique(t.codes[test & (t.codes >= 0)])) > 1 for _, test in folds):
                raise ValueError(
                    f"Every fold tests a single class of `adata.obs[{t.key!r}]`, for which there is no AUROC. Use more "
                    "or fewer folds, or another scheme."
                )
        return folds

    def run(self, storage: Any, *, show_progress: bool | None) -> tuple[dict[str, Any], float, pd.DataFrame]:
        """Run the trials that are left and return the best fields, the best value and all trials."""
        import optuna
        from optuna.study import MaxTrialsCallback
        from optuna.trial import TrialState
        from sqlalchemy.exc import SQLAlchemyError

        if storage is not None and not isinstance(storage, (str, optuna.storages.BaseStorage)):
            raise TypeError(f"`storage` must be a database URL or a storage of Optuna, not {storage!r}.")
        finished = (TrialState.COMPLETE, TrialState.PRUNED)
        with GLOBAL_LOCK, ExitStack() as stack, warnings.catch_warnings():
            stack.callback(optuna.logging.set_verbosity, optuna.logging.get_verbosity())
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                study = optuna.create_study(
                    storage=storage, study_name=self.name, direction="maximize", load_if_exists=True,
                    sampler=self._sampler(shared=storage is not None),
                    pruner=optuna.pruners.MedianPruner(_WARM_UP, 0) if self.prune else optuna.pruners.NopPruner(),
                )  # fmt: skip
            except (SQLAlchemyError, ImportError) as err:
                raise ValueError(f"`storage={storage!r}` cannot be opened; use 'sqlite:///tune.db'. {err}") from err
            with progress(self.max_trials, "tune", show_progress) as bar:
                n_done = len(study.get_trials(False, finished))
                bar.update(min(n_done, self.max_trials))
                if n_done < self.max_trials:
                    stop = MaxTrialsCallback(self.max_trials, finished)
                    study.optimize(self, self.max_trials, callbacks=[lambda *_: bar.update(1), stop])
            if not study.get_trials(False, [TrialState.COMPLETE]):
                raise ValueError("No trial was completed; check `space`, or raise `n_trials`.")
            return self.fixed | study.best_params, float(study.best_value), self._table(study)

    @cached_property
    def name(self) -> str:
        """Name of the study, with a digest of data and settings."""
        p = self.protocol
        return f"stxtools_{self.part}_" + settings_fingerprint(p.settings | {
            "folds": len(self.folds), "part": self.part, "space": self.space,
            "kind": self.kind if self.kind == "grid" else "any", "fixed": self.fixed, "stages": self.stages,
            "scheme": p.schemes, "max_folds": p.max_folds, "seed": p.seed,
        })  # fmt: skip

    def _sampler(self, *, shared: bool) -> Any:
        import optuna

        seed = self.protocol.seed
        if shared:  # processes that share a study must not draw the same trials
            seed = int(np.random.SeedSequence([seed, os.getpid()]).generate_state(1)[0])
        if self.kind == "grid":
            return optuna.samplers.GridSampler(self.space, seed=seed)
        if self.kind == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(3, self.max_trials // 3)))

    def __call__(self, trial: Any) -> float:
        import optuna

        fields = {name: trial.suggest_categorical(name, values) for name, values in self.space.items()}
        aurocs: list[list[float]] = []
        for step, (name, test) in enumerate(self.folds):
            aurocs.append(self._score_fold(name, test, self.fixed | fields))
            trial.set_user_attr("n_folds", len(aurocs))
            if np.isnan(aurocs).all():  # one class alone in the test part
                continue
            trial.report(float(np.nanmean(aurocs)), step)
            if step + 1 < len(self.folds) and trial.should_prune():
                raise optuna.TrialPruned
        defined = [fold for fold in aurocs if not np.isnan(fold).all()]
        if len(defined) > 1:
            trial.set_user_attr("value_sd", float(np.nanmean(defined, axis=1).std(ddof=1)))
        for t, value in zip(self.protocol.targets, np.nanmean(defined, axis=0), strict=True):
            trial.set_user_attr(f"value_{t.name}", float(value))
        return float(np.nanmean(defined))

    def _score_fold(self, name: str, test: Any, fields: dict[str, Any]) -> list[float]:
        """Train on one fold and return the AUROC of each target."""
        p = self.protocol
        sections = p.sections(p.schemes[0], test)
        labels, classes = p.labels(test)
        if self.part == "unet":
            model = p.new_model("unet", fields, p.seed).fit(sections, labels, classes)
        else:
            model = p.new_model("framework", self.stages | {"multitask": {"params": fields}}, p.seed)
            if name not in self.prepared:
                self.prepared[name] = model.prepare(sections, labels, classes)
            model.train(self.prepared[name].copy(), classes)
        return [values["auroc"] for _, values in p.scores(test, model.predict_proba(sections))]

    def _table(self, study: Any) -> pd.DataFrame:
        """Return the trials as a table that h5ad can store."""
        trials = study.trials_dataframe(("number", "state", "value", "user_attrs", "duration", "params"))
        trials.columns = trials.columns.str.removeprefix("params_").str.removeprefix("user_attrs_")
        trials["seconds"] = trials.pop("duration").dt.total_seconds()
        targets = [f"value_{t.name}" for t in self.protocol.targets]
        columns = ["number", "state", "value", "value_sd", *targets, "n_folds", "seconds"]
        table = trials.reindex(columns=columns + list(self.space)).fillna({"n_folds": 0})
        for name, values in self.space.items():
            if any(isinstance(v, str) for v in values):
                table[name] = table[name].fillna("").astype(str)
            elif all(isinstance(v, bool) for v in values):
                table[name] = table[name].astype(float)
        return table.astype({"state": str, "n_folds": int} | dict.fromkeys(("value", "value_sd", *targets), float))


def search_space(
    part: str, space: Mapping[str, Sequence[Any]] | None, fixed: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Return the fields to search, checked against their parameter set."""
    from stxtools.models import SegmenterParams, TissueNetParams
    from stxtools.models._params import resolve

    kind: Any = SegmenterParams if part == "unet" else TissueNetParams
    resolve(fixed, kind)
    if space is not None and not (isinstance(space, Mapping) and all(map(_is_list, space.values()))):
        raise TypeError(f"`space` must map fields to lists of the values to try, not {space!r}.")
    defaults = {name: values for name, values in PARTS[part][1].items() if name not in fixed}
    out = {str(name): list(values) for name, values in (defaults if space is None else space).items()}
    if both := sorted(set(out) & set(fixed)):
        raise ValueError(f"{', '.join(both)}: a field is either searched (`space`) or fixed (`params`).")
    if not out or not all(out.values()):
        raise ValueError("`space` is empty, or one of its fields has no value to choose from.")
    for name, values in (out | {name: [value] for name, value in fixed.items()}).items():
        for value in values:
            if not isinstance(value, (bool, int, float, str)):
                raise TypeError(f"{name}={value!r}: numbers, strings and booleans can be searched or fixed.")
            resolve({name: value}, kind)
    return out


def _is_list(values: object) -> bool:
    return isinstance(values, Iterable) and not isinstance(values, str) and getattr(values, "ndim", 1) == 1
