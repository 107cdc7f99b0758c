"""What an evaluation and a search share: data, targets, splits, hidden labels and scores."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stxtools._checks import check_choice, check_int, check_key
from stxtools._data.chunks import is_out_of_core
from stxtools._data.expression import Expression, with_expression_in_x
from stxtools._data.features import compute_representation
from stxtools._data.representation import log_normalize, stored_representation
from stxtools._data.sections import Geometry, make_sections
from stxtools._spatial.blocks import assign_parts, spatial_blocks
from stxtools._types import Bools, Floats32, Ints
from stxtools._validate import Libraries, categories, check_in, subjects_of
from stxtools._version import __version__

if TYPE_CHECKING:
    from stxtools.models.baselines.simple import Classes, EvaluationSection, Labels

Fold = tuple[str, Bools]  # name, and mask of the test observations

SCHEMES = ("block", "library", "random")
LEAKY = frozenset({"random"})  # the neighbours of a test observation are in the training set
CLASS_METRICS = ("accuracy", "precision", "recall", "auroc")
METRICS = (*CLASS_METRICS, "mse")
_BLOCKS_PER_FOLD = 5
_SMALLEST_BLOCK = 16  # observations


@dataclass(frozen=True)
class EvaluationTarget:
    """A column to predict, with class codes (-1: unknown) and class names."""

    name: str
    key: str
    codes: Ints
    classes: list[str]


class Protocol:
    """Checked settings of both calls, and the data, with expression in ``X`` unless a layer is named.

    - ``record``: What ``params`` hold of it.
    - ``settings``: What every result depends on.
    - ``seed``: Seed of the components.
    """

    def __init__(
        self, adata: AnnData, keys: Mapping[str, str | None], schemes: Sequence[str], allowed: Sequence[str] = SCHEMES,
        *, n_folds: int, max_folds: int | None, use_rep: str | None, layer: str | None, spatial_key: str,
        library_key: str | bool | None, subject_key: str | None, seed: int, accelerator: str, devices: int | str,
    ) -> None:  # fmt: skip
        for name in schemes or [""]:
            check_choice("scheme", name, allowed)
        check_key("accelerator", accelerator)
        self.where, self.schemes = Geometry(adata, spatial_key, library_key), list(dict.fromkeys(schemes))
        if "library" in schemes and len(self.where.libs) < 2:
            raise ValueError(
                "`scheme='library'` holds out whole sections: name them with `library_key=`, at least two."
            )
        if subject_key is not None and "library" not in schemes:
            raise ValueError("`subject_key` holds out whole subjects: pass `scheme='library'` with it, or omit it.")
        libs = self.where.libs
        self.held_out = libs if subject_key is None else _held_out(adata, libs, subject_key)
        if use_rep is not None:
            check_in(adata, "obsm", use_rep, "use_rep")
        self.targets, self.n_folds = _targets(adata, keys), check_int("n_folds", n_folds, minimum=2)
        self.max_folds = None if max_folds is None else check_int("max_folds", max_folds, minimum=1)
        self.use_rep, self.layer, self.seed, self.adata = use_rep, layer, seed, adata
        self.run: dict[str, Any] = {"accelerator": accelerator, "devices": devices, "show_progress": False}
        self.record: dict[str, Any] = {f"{name}_key": key for name, key in keys.items()} | {
            "n_folds": n_folds, "max_folds": max_folds, "use_rep": use_rep, "layer": layer, "random_state": seed,
            "spatial_key": spatial_key, "library_key": library_key, "subject_key": subject_key,
        }  # fmt: skip
        if use_rep is not None:
            matrix = sparse.csr_matrix(stored_representation(adata, use_rep))
        else:
            read = Expression(adata, layer)
            matrix = read.matrix
            self.record |= read.record
            self.adata = adata if layer is not None else with_expression_in_x(adata, read)
        self.settings: dict[str, Any] = {
            "version": __version__, "data": _checksum(self.adata, self.where, self.targets, matrix),
            "n_folds": self.n_folds, "use_rep": use_rep, "layer": layer, "pca_seed": seed,
        }  # fmt: skip
        if subject_key is not None:
            self.settings["subjects"] = zlib.crc32(self.held_out.codes.tobytes())

    def with_adata(self, adata: AnnData, layer: str | None) -> Protocol:
        """Return the protocol for other expression of the same observations."""
        out = copy(self)
        vars(out).pop("_shared_features", None)  # of the other expression
        out.adata, out.layer = adata, layer
        return out

    def folds(self, scheme: str, seed: int) -> list[Fold]:
        """Return the folds with test observations of every target; each must have two classes to learn from."""
        fold, names = self._assign(scheme, seed)
        out = []
        for k, name in enumerate(names[: self.max_folds]):
            test = fold == k
            for t in self.targets:
                seen, counts = np.unique(t.codes[~test & (t.codes >= 0)], return_counts=True)
                if len(seen) > 1 and counts.max() == 1:
                    raise ValueError(
                        f"`adata.obs[{t.key!r}]` gives every observation a class of its own in the training part of "
                        f"fold {name!r}; name a column whose classes repeat."
                    )
                if len(seen) < 2:
                    raise ValueError(
                        f"With scheme {scheme!r} and seed {seed}, the training part of fold {name!r} holds only "
                        f"{[t.classes[k] for k in seen]} of `adata.obs[{t.key!r}]`; two classes are needed. Use more "
                        "folds, another scheme, or more labels."
                    )
            if all((t.codes[test] >= 0).any() for t in self.targets):
                out.append((name, test))
        if not out:
            raise ValueError(f"No fold of scheme {scheme!r} has labelled observations to predict.")
        return out

    def _assign(self, scheme: str, seed: int) -> tuple[Ints, list[str]]:
        """Return the fold of every observation and the names of the folds."""
        xy = self.where.xy
        if scheme == "library":
            return self.held_out.codes.copy(), list(self.held_out.names)
        rng = np.random.default_rng([seed, 7])
        fold = np.empty(len(xy), dtype=np.int64)
        for rows in self.where.parts:
            unit = np.arange(len(rows))
            if scheme == "block":
                n_blocks = np.clip(len(rows) // _SMALLEST_BLOCK, self.n_folds, _BLOCKS_PER_FOLD * self.n_folds)
                unit = spatial_blocks(xy[rows], int(n_blocks))
            fold[rows] = assign_parts(unit, self.n_folds, rng)
        return fold, [str(k) for k in range(self.n_folds)]

    def sections(self, scheme: str, test: Bools) -> list[EvaluationSection]:
        """Return features and expression by section.

        Genes and components must not be chosen on held-out sections; within sections they see no label, and all folds
        share them.
        """
        from stxtools.models.baselines.simple import EvaluationSection

        values, logged, variable = self._features(~test) if scheme == "library" else self._shared_features
        out = []
        for rows, s in zip(self.where.parts, make_sections(values, self.where), strict=True):
            own = None if logged is None else logged[rows]
            subject = self.held_out.names[self.held_out.codes[rows[0]]] if self.record["subject_key"] else None
            out.append(EvaluationSection(s.name, s.features, s.pixels, s.shape, s.graph, s.xy, own, variable, subject))
        return out

    @cached_property
    def _shared_features(self) -> tuple[Floats32, sparse.csr_matrix | None, Sequence[int]]:
        return self._features(None)

    def _features(self, train: Bools | None) -> tuple[Floats32, sparse.csr_matrix | None, Sequence[int]]:
        """Return features, log expression (None with ``use_rep``) and variable genes, from a PCA of ``train``."""
        if self.use_rep is not None:
            return stored_representation(self.adata, self.use_rep), None, ()
        adata = self.adata.to_memory() if self.adata.isbacked else self.adata  # a backed view has no views
        rows = slice(None) if train is None else np.flatnonzero(train)
        read = Expression(adata[rows], self.layer, in_memory=False)
        _, projection = compute_representation(read, self.seed)
        if train is not None or is_out_of_core(read.matrix):
            read = Expression(adata, self.layer)
        logged = log_normalize(read.matrix, read.scale, target_sum=projection.target_sum)
        values = projection.transform(logged, adata.var_names)
        return values, logged, adata.var_names.get_indexer(projection.genes).tolist()

    def labels(self, test: Bools) -> tuple[Labels, Classes]:
        """Return class codes of each target by section, hidden (-1) in the test part, and the numbers of classes."""
        labels = {t.name: self.where.split(np.where(test, -1, t.codes)) for t in self.targets}
        return labels, {t.name: len(t.classes) for t in self.targets}

    def new_model(self, name: str | Callable[..., Any], params: Mapping[str, Any] | None, seed: int) -> Any:
        """Return an untrained model: the framework, a baseline, or a user's function."""
        run = self.run | {"random_state": seed}
        if name == "framework":
            from ._framework import Framework  # which imports the whole pipeline

            return Framework(params, run)
        from stxtools.models.baselines.registry import baseline

        return baseline(name, params=params, run=run)

    def scores(self, test: Bools, proba: Mapping[str, Any]) -> Iterator[tuple[EvaluationTarget, dict[str, float]]]:
        """Yield each target with the scores of its test part."""
        for t in self.targets:
            rows = test & (t.codes >= 0)
            yield t, _scores(self.where.join(proba[t.name])[rows], t.codes[rows])


def _scores(proba: NDArray[np.floating], truth: Ints) -> dict[str, float]:
    """Return accuracy, and precision, recall and AUROC averaged over the classes that occur in ``truth``."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    predicted, classes = proba.argmax(axis=1), np.unique(truth)
    average: dict[str, Any] = {"labels": classes, "average": "macro", "zero_division": 0}
    precision, recall, *_ = precision_recall_fscore_support(truth, predicted, **average)
    aurocs = [roc_auc_score(truth == k, proba[:, k]) for k in classes] if len(classes) > 1 else [np.nan]
    values = (accuracy_score(truth, predicted), precision, recall, np.mean(aurocs), np.nan)
    return {name: float(value) for name, value in zip(METRICS, values, strict=True)}


def _targets(adata: AnnData, keys: Mapping[str, str | None]) -> list[EvaluationTarget]:
    named = {name: key for name, key in keys.items() if key is not None}
    if not named:
        raise ValueError("Name the columns to predict: `biomarker_key=`, `region_key=` or both.")
    out = [
        EvaluationTarget(name, key, *categories(adata, key, f"{name}_key", min_classes=2))
        for name, key in named.items()
    ]
    if len(set(named.values())) < len(named):
        raise ValueError(f"`biomarker_key` and `region_key` are both {out[0].key!r}; name two different columns.")
    return out


def _held_out(adata: AnnData, libs: Libraries, subject_key: str) -> Libraries:
    """Return the subject of each observation, of at least two."""
    subjects = subjects_of(adata, libs, subject_key)
    if len(subjects) < 2:
        raise ValueError(
            f"`subject_key={subject_key!r}` names one subject ({subjects.names[0]!r}); holding out subjects takes two "
            "at least. Omit it to hold out sections."
        )
    return Libraries(subjects.names, subjects.codes[libs.codes])


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """Return a short digest of settings."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checksum(adata: AnnData, where: Geometry, targets: Sequence[EvaluationTarget], matrix: sparse.csr_matrix) -> int:
    """Return a checksum of the data: names, coordinates, rasters, sections, labels and values."""
    text = [*where.libs.names, *adata.obs_names, *adata.var_names, *(grid.lattice for grid in where.grids)]
    text += [name for t in targets for name in (t.key, *t.classes)]
    value = zlib.crc32("\n".join(str(x) for x in text).encode())
    arrays = [where.xy, where.pixels, where.libs.codes, matrix.data, matrix.indices, matrix.indptr]
    arrays += [t.codes for t in targets]
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
    return value
