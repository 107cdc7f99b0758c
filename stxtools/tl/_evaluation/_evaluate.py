"""Compare models on held-out parts of the user's sections, without leaks."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from numbers import Integral
from types import CodeType, FunctionType, MethodType
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_int, check_names, check_number, check_path, check_seed, listing
from stxtools._data.expression import Expression, without_genes
from stxtools._data.noise import noised_copy, noised_values
from stxtools._data.representation import log_normalize
from stxtools._files import write_text
from stxtools._progress import progress, progress_bar, stage
from stxtools._slots import Slots, free_key, provenance
from stxtools._types import Array, Bools, Floats, Ints
from stxtools._validate import check_adata, genes_to_predict

from ._protocol import CLASS_METRICS, LEAKY, METRICS, Protocol, settings_fingerprint

MODELS = ("framework", "unet", "gnn", "random_forest", "random_forest_means", "lda", "nearest_label")
COLUMNS: dict[str, Any] = {
    "model": str, "target": str, "key": str, "scheme": str, "leaky": bool, "seed": int, "noise": float, "fold": str,
    "n_train": int, "n_test": int, **dict.fromkeys(METRICS, float), "seconds": float,
}  # fmt: skip


@public
@progress_bar({"loading PyTorch": 4, "evaluate": 100})
def evaluate(
    adata: AnnData, models: Sequence[str | Callable[..., Any]] | Mapping[str, str | Callable[..., Any]] | None = None,
    *, biomarker_key: str | None = None, region_key: str | None = None, genes: int | Sequence[str] | None = None,
    scheme: Literal["block", "library", "random"] | Sequence[str] = "block", n_folds: int = 5,
    max_folds: int | None = None, n_seeds: int = 5, noise: float | Sequence[float] = 0.0,
    params: Mapping[str, Mapping[str, Any]] | None = None, checkpoint: str | os.PathLike[str] | None = None,
    use_rep: str | None = None, layer: str | None = None, spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None, subject_key: str | None = None, random_state: int = 0,
    accelerator: str = "auto", devices: int | str = 1, show_progress: bool | None = None, key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Benchmark models on held-out tissue, over folds, seeds and noise levels.

    Labels of test observations are hidden from all models; networks also scale and pretrain on their expression.
    Genes and components are chosen without labels, and with ``scheme="library"`` from the training sections only.

    Parameters
    ----------
    adata
        Annotated data matrix with labels; observations without a label are used neither for training nor for testing.
    models
        Names, by default all but ``"logistic"``: ``"framework"`` (:func:`multitask` and the calls before it),
        ``"unet"``, ``"gnn"`` on the graph of observations, ``"random_forest"`` on single observations; on means over
        the 19 and 61 nearest observations ``"random_forest_means"``, ``"lda"``, ``"logistic"``; ``"nearest_label"``.
        Or functions ``f(sections, labels, n_classes, random_state)`` of lists of :class:`stxtools.models.Section` and
        of class codes (-1: hidden) that return class probabilities for each section. A mapping names the models.
    genes
        Genes to hide and predict, or their number, drawn for each seed; adds the target ``"expression"`` (``mse``).
    scheme
        What to hold out: ``"block"`` (spatial blocks), ``"library"`` (a section, or with ``subject_key`` all sections
        of a subject, which else may be in the training set), ``"random"`` (leaky), or several.
    n_folds, max_folds
        Number of folds of ``"block"`` and ``"random"``, and maximum number of folds to run per seed.
    n_seeds
        Number of seeds, counted from ``random_state``. Folds, noise and models are drawn anew for each seed.
    noise
        Levels of Gaussian noise as in :func:`stxtools.pp.add_noise`, added to training and test observations.
    params
        Mapping from models to their parameters; for ``"framework"`` by call: ``{"multitask": {"params": {...}}}``.
    checkpoint
        Folder for results of finished folds (JSON), from which an interrupted run resumes. Several processes can share
        it. Results of other data or settings are kept apart.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", n_seeds=2)
    >>> table = st.get.evaluation(adata)
    """
    check_adata(adata, min_obs=20, layer=layer, copy=copy)
    key = free_key(adata, "tl.evaluate", key_added, _keys.EVALUATION, uns=["", "_params"])
    seed = check_seed(random_state)
    chosen = _models(models)
    if params is not None and not (
        isinstance(params, Mapping) and all(isinstance(v, Mapping) for v in params.values())
    ):
        raise TypeError(f"`params` must be a mapping of models to mappings of their parameters, not {params!r}.")
    model_params = {str(name): dict(value) for name, value in (params or {}).items()}
    if unknown := sorted(set(model_params) - set(chosen)):
        raise ValueError(f"`params` names {listing(unknown)}; the models are {listing(chosen)}.")
    if use_rep is not None and genes is not None:
        raise ValueError("`genes` are hidden before the representation is made; drop `use_rep=`.")
    protocol = Protocol(
        adata, {"biomarker": biomarker_key, "region": region_key}, check_names("scheme", scheme, "a scheme"),
        n_folds=n_folds, max_folds=max_folds, use_rep=use_rep, layer=layer, spatial_key=spatial_key,
        library_key=library_key, subject_key=subject_key, seed=seed, accelerator=accelerator, devices=devices,
    )  # fmt: skip
    if isinstance(genes, Integral):
        genes = check_int("genes", genes, minimum=1, maximum=protocol.adata.n_vars - 2)
    elif genes is not None:
        if not isinstance(genes, Iterable):
            raise TypeError(f"`genes` must be how many genes to hide, or a list of their names, not {genes!r}.")
        genes = genes_to_predict(protocol.adata, genes, None, "genes")
    evaluation = Evaluation(
        protocol, chosen, model_params, [check_seed(seed + i) for i in range(check_int("n_seeds", n_seeds, minimum=1))],
        [check_number("noise", level, minimum=0, maximum=1) for level in np.ravel(noise)] or [0.0], genes,
    )  # fmt: skip
    rows = evaluation.run(checkpoint, show_progress=show_progress)
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    record = provenance(
        models=list(chosen), scheme=protocol.schemes, n_seeds=n_seeds, noise=evaluation.noise, **protocol.record,
        genes=genes, params={name: str(value) for name, value in model_params.items()} or None,
    )  # fmt: skip
    return Slots("tl.evaluate", uns={key: table, f"{key}_params": record}).write(adata, copy)


def _models(models: Any) -> dict[str, str | Callable[..., Any]]:
    """Return the registered name or the function of each model, by the name it is given."""
    stage("loading PyTorch")
    from stxtools.models.baselines.registry import BASELINES

    if isinstance(models, Mapping):
        pairs = dict(models)
    else:
        one = isinstance(models, str) or callable(models)
        try:
            listed = [models] if one else list(MODELS if models is None else models)
        except TypeError:
            raise TypeError(f"`models` must be names or functions, in a list or mapping, not {models!r}.") from None
        pairs = {str(getattr(m, "__name__", m if isinstance(m, str) else type(m).__name__)): m for m in listed}
        if len(pairs) < len(listed):
            raise ValueError("Two models have the same name; name them in a mapping.")
    known = ("framework", *BASELINES)
    for name, model in pairs.items():
        if not callable(model) and model not in known:
            raise ValueError(f"There is no model {model!r}; choose from {listing(known)}, or a function.")
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise ValueError(f"`models` has the name {name!r}; a name must be a non-empty string.")
    if not pairs:
        raise ValueError(f"`models` is empty; choose from {listing(known)}.")
    return pairs


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
        """Run what is not in the checkpoint and return all rows, by scheme, seed, noise, fold and model."""
        p, settings = self.protocol, list(product(self.protocol.schemes, self.seeds, self.noise))
        hidden = {seed: self._hidden_genes(seed) for seed in self.seeds}
        codes = {name: m if isinstance(m, str) else function_code(m) for name, m in self.models.items()}
        # models, seeds and noise levels are left out: each file is of one of them
        store = Checkpoint(checkpoint, settings_fingerprint(p.settings | {"genes": self.genes, "params": self.params}))
        folds = {(scheme, seed): p.folds(scheme, seed) for scheme in p.schemes for seed in self.seeds}
        rows: list[dict[str, Any]] = []
        total = len(codes) * sum(len(folds[scheme, seed]) for scheme, seed, _ in settings)
        with progress(total, "evaluate", show_progress) as bar:
            for scheme, seed, noise in settings:
                # read once, and only where a fold is not in the checkpoint
                data = cache(partial(self._data, seed, noise, hidden[seed]))
                for fold, test in folds[scheme, seed]:
                    split = cache(partial(self._split, data, scheme, test))
                    for model in self.models:
                        unit = (model, scheme, seed, noise, fold)
                        bar.set_postfix({"model": model, "fold": fold})
                        rows += store.rows(partial(self._measure, unit, test, split), codes[model], *unit)
                        bar.update(1)
        return rows

    def _hidden_genes(self, seed: int) -> Ints | None:
        """Return the positions of the genes that are hidden from the models and predicted."""
        adata, genes = self.protocol.adata, self.genes
        if genes is None:
            return None
        if isinstance(genes, int):
            return np.sort(np.random.default_rng([seed, 13]).permutation(adata.n_vars)[:genes])
        return np.sort(adata.var_names.get_indexer(genes))

    def _data(self, seed: int, noise: float, hidden: Ints | None) -> tuple[Protocol, Floats | None]:
        """Return the protocol on noised data without the hidden genes, and their expression."""
        p, values, given = self.protocol, None, self.protocol.adata
        if noise > 0:
            counts = p.use_rep is None and p.layer is None and _keys.COUNTS in given.layers  # come before X
            layer = _keys.COUNTS if counts else p.layer
            noised, _ = noised_values(given, noise, kind="gaussian", layer=layer, use_rep=p.use_rep, seed=seed)
            copied = noised_copy(given, noised, kind="counts" if counts else "gaussian", use_rep=p.use_rep)
            p = p.with_adata(copied, None)  # in whose X they are
        if hidden is not None:
            read = Expression(p.adata, p.layer)
            values = log_normalize(read.matrix, read.scale)[:, hidden].toarray().astype(np.float64)
            noised = p.adata if noise > 0 else None
            p = p.with_adata(*without_genes(given, given.var_names[hidden], self.protocol.layer, noised))
        return p, values

    def _split(
        self, data: Callable[[], tuple[Protocol, Floats | None]], scheme: str, test: Bools
    ) -> tuple[list[Any], Array | None]:
        """Return sections, and hidden expression standardised on the training part: the mean has an MSE near 1."""
        p, values = data()
        scaled = None if values is None else (values - values[~test].mean(axis=0)) / (values[~test].std(axis=0) + 1e-9)
        return p.sections(scheme, test), scaled

    def _measure(
        self, unit: tuple[Any, ...], test: Bools, split: Callable[[], tuple[list[Any], Array | None]]
    ) -> list[dict[str, Any]]:
        """Train one model on one split and score each target."""
        p, (name, scheme, seed, noise, fold), (sections, expression) = self.protocol, unit, split()
        start = time.perf_counter()
        model = p.new_model(self.models[name], self.params.get(name), seed)
        model.fit(sections, *p.labels(test))
        proba = model.predict_proba(sections)
        seconds = time.perf_counter() - start
        scores = [(t.name, t.key, t.codes >= 0, values, seconds) for t, values in p.scores(test, proba)]
        if expression is not None:
            start = time.perf_counter()
            predicted = p.where.join(
                model.predict_expression(sections, p.where.split(np.where(test[:, None], np.nan, expression)))
            )
            mse = float(np.mean((predicted[test] - expression[test]) ** 2))
            values = dict.fromkeys(CLASS_METRICS, np.nan) | {"mse": mse}
            scores.append(("expression", "", np.ones(len(test), dtype=bool), values, time.perf_counter() - start))
        return [
            {
                "model": name, "target": target, "key": key, "scheme": scheme, "leaky": scheme in LEAKY, "seed": seed,
                "noise": noise, "fold": fold, "n_train": int((known & ~test).sum()),
                "n_test": int((known & test).sum()), **values, "seconds": seconds,
            }
            for target, key, known, values, seconds in scores
        ]  # fmt: skip


def function_code(function: Callable[..., Any]) -> str:
    """Return a digest of a function's code, of its bound constants, and of functions of its module that it calls."""
    text = "\0".join(_code_of(function, set()))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _code_of(value: Any, seen: set[int]) -> Iterator[str]:
    if value is None or isinstance(value, (str, bytes, int, float, complex, np.generic)):
        yield repr(value)
    elif isinstance(value, (set, frozenset)):  # its order differs between processes
        yield repr(sorted(map(repr, value)))
    elif isinstance(value, np.ndarray):
        yield repr(value.tolist())
    elif isinstance(value, (tuple, list, dict)):
        for item in value.items() if isinstance(value, dict) else value:
            yield from _code_of(item, seen)
    elif id(value) not in seen:
        seen.add(id(value))
        yield from _code_of(_components(value), seen)


def _components(value: Any) -> tuple[Any, ...]:
    """Return code and constants of a callable, or of an object that it is bound to."""
    if isinstance(value, FunctionType):
        named = (value.__globals__.get(name) for name in value.__code__.co_names)
        called = tuple(f for f in named if isinstance(f, FunctionType) and f.__module__ == value.__module__)
        bound = (cell.cell_contents for cell in value.__closure__ or ())
        cells = tuple(c for c in bound if not isinstance(c, list))  # to which a function may append on every call
        return value.__code__, value.__defaults__, value.__kwdefaults__, cells, called
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, value.co_consts
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if callable(value) and isinstance(getattr(type(value), "__call__", None), FunctionType):  # noqa: B004
        return f"{type(value).__module__}.{type(value).__qualname__}", type(value).__call__, vars(value)
    return (f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}",)


class Checkpoint:
    """Rows of finished folds, each in a JSON file of a folder that processes may share; nothing without a folder."""

    def __init__(self, folder: str | os.PathLike[str] | None, settings: str) -> None:
        self.folder, self.settings = None if folder is None else check_path("checkpoint", folder), settings
        try:
            usable = self.folder is None or (
                self.folder.parent.is_dir() and (self.folder.is_dir() or not self.folder.exists())
            )
        except OSError:  # the name is too long
            usable = False
        if not usable:
            raise ValueError(f"`checkpoint={str(folder)!r}` must be a folder, new or not, within one that exists.")

    def rows(self, measure: Callable[[], list[dict[str, Any]]], *unit: Any) -> list[dict[str, Any]]:
        """Return the rows of a unit: those of its file, or, where that is missing or damaged, of ``measure``."""
        if self.folder is None:
            return measure()
        path = self.folder / f"{settings_fingerprint({'settings': self.settings, 'unit': unit})}.json"
        with suppress(FileNotFoundError, TypeError, ValueError):
            return list(json.loads(path.read_text(encoding="utf-8")))
        rows = measure()
        try:
            self.folder.mkdir(exist_ok=True)
            write_text(path, json.dumps(rows))
        except OSError as err:
            message = f"`checkpoint` cannot be written ({err.strerror or err})"
            raise OSError(err.errno, message, str(self.folder)) from err
        return rows
