"""What an evaluation and a search have in common: data, targets, splits, hidden labels and scores."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stxtools._checks import check_key
from stxtools._data.chunks import is_out_of_core
from stxtools._data.expression import Expression, with_expression_in_x
from stxtools._data.features import compute_representation
from stxtools._data.representation import log_normalize, stored_representation
from stxtools._data.sections import Geometry, make_sections
from stxtools._spatial.blocks import assign_parts, spatial_blocks
from stxtools._types import Bools, Floats32, Ints
from stxtools._validate import categories, check_choice, check_in, check_int
from stxtools._version import __version__

if TYPE_CHECKING:
    from stxtools.models.baselines.simple import Classes, EvaluationSection, Labels

# features, log expression of all genes, and which of them are variable; the latter none for a representation
Read = tuple[Floats32, sparse.csr_matrix | None, Sequence[int]]
Fold = tuple[str, Bools]  # name, and which observations are predicted

SCHEMES = ("block", "library", "random")
LEAKY = frozenset({"random"})  # the neighbours of a test observation are in the training set
CLASS_METRICS = ("accuracy", "precision", "recall", "auroc")
METRICS = (*CLASS_METRICS, "mse")
_BLOCKS_A_FOLD = 5
_SMALLEST_BLOCK = 16  # observations


@dataclass(frozen=True)
class Target:
    """A target: its name, the column, class codes (-1: unknown) and class names."""

    name: str
    key: str
    codes: Ints
    classes: list[str]


class Protocol:
    """Checked settings of both calls, and the data to read, in whose ``X`` is the expression that was found.

    - ``record``: What ``params`` say of the expression; ``settings``: what every result depends on.
    - ``seed``: Of the components.
    """

    def __init__(
        self, adata: AnnData, keys: Mapping[str, str | None], schemes: Sequence[str], allowed: Sequence[str] = SCHEMES,
        *, n_folds: int, max_folds: int | None, use_rep: str | None, layer: str | None, spatial_key: str,
        library_key: str | bool | None, seed: int, accelerator: str,
    ) -> None:  # fmt: skip
        for name in schemes or [""]:
            check_choice("scheme", name, allowed)
        check_key("accelerator", accelerator)
        self.where, self.schemes = Geometry(adata, spatial_key, library_key), list(dict.fromkeys(schemes))
        if "library" in schemes and len(self.where.libs) < 2:
            raise ValueError(
                "`scheme='library'` leaves whole sections out: name them with `library_key=`; two at least."
            )
        if use_rep is not None:
            check_in(adata, "obsm", use_rep, "use_rep")
        self.targets, self.n_folds = _targets(adata, keys), check_int("n_folds", n_folds, minimum=2)
        self.max_folds = None if max_folds is None else check_int("max_folds", max_folds, minimum=1)
        self.use_rep, self.layer, self.seed, self.accelerator = use_rep, layer, seed, accelerator
        self.adata, self.record = adata, dict[str, str]()
        if use_rep is not None:
            matrix = sparse.csr_matrix(stored_representation(adata, use_rep))
        else:
            found = Expression(adata, layer)
            matrix, self.record = found.matrix, found.record
            self.adata = adata if layer is not None else with_expression_in_x(adata, found)
        self.settings: dict[str, Any] = {
            "version": __version__, "data": _checksum(self.adata, self.where, self.targets, matrix),
            "n_folds": self.n_folds, "use_rep": use_rep, "layer": layer, "pca_seed": seed,
        }  # fmt: skip

    def reading(self, adata: AnnData, layer: str | None) -> Protocol:
        """Return the same protocol for other expression of the same observations."""
        out = copy(self)
        out.adata, out.layer = adata, layer
        return out

    def folds(self, scheme: str, seed: int) -> list[Fold]:
        """Folds in which every target has something to learn from and something to predict."""
        fold, names = self._dealt(scheme, seed)
        out = []
        for k, name in enumerate(names[: self.max_folds]):
            test = fold == k
            for t in self.targets:
                seen, often = np.unique(t.codes[~test & (t.codes >= 0)], return_counts=True)
                if len(seen) > 1 and often.max() == 1:
                    raise ValueError(
                        f"`adata.obs[{t.key!r}]` gives every observation a class of its own in the training part of "
                        f"fold {name!r}; name a column whose classes repeat."
                    )
                if len(seen) < 2:
                    found = [t.classes[k] for k in seen]
                    raise ValueError(
                        f"With scheme {scheme!r} and seed {seed}, the training part of fold {name!r} holds only "
                        f"{found} of `adata.obs[{t.key!r}]`; two classes are needed. Use more folds, another scheme, "
                        "or more labels."
                    )
            if all((t.codes[test] >= 0).any() for t in self.targets):
                out.append((name, test))
        if not out:
            raise ValueError(f"No fold of scheme {scheme!r} has labelled observations to predict.")
        return out

    def _dealt(self, scheme: str, seed: int) -> tuple[Ints, list[str]]:
        """Fold of every observation, and the names of the folds."""
        libs, xy = self.where.libs, self.where.xy
        if scheme == "library":
            return libs.codes.copy(), list(libs.names)
        rng = np.random.default_rng([seed, 7])
        fold = np.empty(len(xy), dtype=np.int64)
        for rows in self.where.parts:
            unit = np.arange(len(rows))
            if scheme == "block":
                wanted = np.clip(len(rows) // _SMALLEST_BLOCK, self.n_folds, _BLOCKS_A_FOLD * self.n_folds)
                unit = spatial_blocks(xy[rows], int(wanted))
            fold[rows] = assign_parts(unit, self.n_folds, rng)
        return fold, [str(k) for k in range(self.n_folds)]

    def features(self, learn_from: Bools | None = None) -> Read:
        """Features (n, d) of all observations, log expression and variable genes; no label is looked at."""
        if self.use_rep is not None:
            return stored_representation(self.adata, self.use_rep), None, ()
        adata = self.adata.to_memory() if self.adata.isbacked else self.adata  # anndata divides no part of a file again
        rows = slice(None) if learn_from is None else np.flatnonzero(learn_from)
        read = Expression(adata[rows], self.layer, in_memory=None)
        _, projection = compute_representation(read, self.seed)
        if learn_from is not None or is_out_of_core(read.matrix):
            read = Expression(adata, self.layer)
        logged = log_normalize(read.matrix, read.scale, target_sum=projection.target_sum)
        values = projection.transform(logged, adata.var_names)
        return values, logged, adata.var_names.get_indexer(projection.genes).tolist()

    def sections(self, read: Read) -> list[EvaluationSection]:
        """Split features and expression by section."""
        from stxtools.models.baselines.simple import EvaluationSection

        values, logged, variable = read
        out = []
        for rows, s in zip(self.where.parts, make_sections(values, self.where), strict=True):
            own = None if logged is None else logged[rows]
            out.append(EvaluationSection(s.name, s.features, s.pixels, s.shape, s.graph, s.xy, own, variable))
        return out

    def labels(self, test: Bools) -> tuple[Labels, Classes]:
        """Class codes of each target per section, hidden (-1) in the test part, and the numbers of classes."""
        labels = {t.name: self.where.split(np.where(test, -1, t.codes)) for t in self.targets}
        return labels, {t.name: len(t.classes) for t in self.targets}

    def scores(self, test: Bools, proba: Mapping[str, Any]) -> Iterator[tuple[Target, dict[str, float]]]:
        """Yield each target with the scores of its test part."""
        for t in self.targets:
            rows = test & (t.codes >= 0)
            yield t, _scores(self.where.join(proba[t.name])[rows], t.codes[rows])


def _scores(proba: NDArray[np.floating], truth: Ints) -> dict[str, float]:
    """Accuracy, and precision, recall and AUROC averaged over the classes that occur in ``truth``."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    found, classes = proba.argmax(axis=1), np.unique(truth)
    how: dict[str, Any] = {"labels": classes, "average": "macro", "zero_division": 0}
    precision, recall, *_ = precision_recall_fscore_support(truth, found, **how)
    aurocs = [roc_auc_score(truth == k, proba[:, k]) for k in classes] if len(classes) > 1 else [np.nan]
    values = (accuracy_score(truth, found), precision, recall, np.mean(aurocs), np.nan)
    return {name: float(value) for name, value in zip(METRICS, values, strict=True)}


def _targets(adata: AnnData, keys: Mapping[str, str | None]) -> list[Target]:
    named = {name: key for name, key in keys.items() if key is not None}
    if not named:
        raise ValueError("Name what is to be predicted: `biomarker_key=`, `region_key=` or both.")
    out = [Target(name, key, *categories(adata, key, f"{name}_key", min_classes=2)) for name, key in named.items()]
    if len(set(named.values())) < len(named):
        key = next(iter(named.values()))
        raise ValueError(f"`biomarker_key` and `region_key` are both {key!r}; they name two different columns.")
    return out


def settings_fingerprint(settings: Mapping[str, Any]) -> str:
    """Short digest of everything that a row depends on and does not name itself."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _checksum(adata: AnnData, where: Geometry, targets: Sequence[Target], matrix: sparse.csr_matrix) -> int:
    """Checksum of what is read: names, coordinates, rasters, sections, labels and values."""
    text = [*where.libs.names, *adata.obs_names, *adata.var_names, *(grid.lattice for grid in where.grids)]
    text += [name for t in targets for name in (t.key, *t.classes)]
    value = zlib.crc32("\n".join(str(x) for x in text).encode())
    arrays = [where.xy, where.pixels, where.libs.codes, matrix.data, matrix.indices, matrix.indptr]
    arrays += [t.codes for t in targets]
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
    return value
