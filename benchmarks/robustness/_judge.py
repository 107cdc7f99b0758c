"""Judge a call: is its error named, is the data unchanged, are its results meaningful?"""

from __future__ import annotations

import hashlib
import linecache
import logging
import os
import re
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import stxtools as st

PACKAGE = str(Path(st.__file__).parent) + os.sep
ATTRIBUTES = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")
# words that say what an error is about, beside the names of the call's parameters
SUBJECTS = {
    "adata", "obs", "var", "obsm", "varm", "obsp", "layers", "uns", "X", "obs_names", "var_names", "observation",
    "observations", "genes", "model", "file", "folder", "section", "sections", "sample", "settings", "coordinates",
    "positions", "position", "expression", "stxtools", *st.models.SegmenterParams.__dataclass_fields__,
    *st.models.TissueNetParams.__dataclass_fields__,
}  # fmt: skip

# what may be missing, and why
MAY_BE_MISSING = [
    r"^obs/[^/]*suggested",  # no number: not suggested
    r"^obs/[^/]*(_next|_previous)$|^uns/[^/]*_values\[|^uns/.*/(compartments|links)\[",  # at no other time
    r"^obs/[^/]*attention|^obsm/X_gnn|^obs/.*saliency",  # observations outside any region
    r"^obsm/[^/]*(_proba|_pred)",  # the same
    r"^obsp/|/obsp/",  # checked on their stored values only
    r"history|stability",  # a loss that a stage does not have
    r"^uns/.*\[(accuracy|precision|recall|auroc|mse)\]$",  # a metric that a fold or a target does not allow
    r"^uns/.*/trials\[",  # the spread over one fold; a field that a trial does not have
    r"^uns/.*/table\[",  # attention_fidelity: a change where nothing is left
    r"^uns/[^/]*\[(effect|slope|ci_|mean_|logfold|pvals|scores|auroc|direction|attribution)[^/]*\]$",  # not tested
    r"^uns/[^/]*\[\w*(tractab|drug|safety|score)\w*\]$",  # targets: a gene that the table does not know
    r"^uns/.*/attribution_agreement$",  # a correlation over genes of which all are alike
    r"^uns/align/score",  # what a method does not measure
]


# ---------------------------------------------------------------- data, value by value


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each array, column and plain value below ``value`` with its path of keys."""
    if isinstance(value, ad.AnnData):
        yield from contents(value, f"{path}/")
    elif isinstance(value, Mapping):
        if not value:
            yield path, {}
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, pd.DataFrame):
        yield f"{path}[index]", value.index
        yield f"{path}[columns]", [str(c) for c in value.columns]
        for at, key in enumerate(value.columns):
            yield f"{path}[{key}]", value.iloc[:, at]
    else:
        yield path, value


def contents(adata: ad.AnnData, root: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all arrays, columns and values of an AnnData."""
    x = adata.X
    if hasattr(x, "to_memory"):  # in a file
        x = x.to_memory()
    elif x is not None and not isinstance(x, np.ndarray) and not sparse.issparse(x) and hasattr(x, "__array__"):
        x = np.asarray(x[()] if hasattr(x, "id") else x)
    yield f"{root}X", x
    yield f"{root}obs_names", adata.obs_names
    yield f"{root}var_names", adata.var_names
    if adata.raw is not None:
        yield f"{root}raw/X", adata.raw.X
    for name in ATTRIBUTES:
        container = getattr(adata, name)
        if isinstance(container, pd.DataFrame):
            yield f"{root}{name}[columns]", list(container.columns)
            for at, key in enumerate(container.columns):
                yield f"{root}{name}/{key}", container.iloc[:, at]
        else:
            for key in container:
                yield from leaves(container[key], f"{root}{name}/{key}")


def fingerprint(adata: Any) -> dict[str, str]:
    """Return path -> digest of its value."""
    if not isinstance(adata, ad.AnnData):
        return {}
    return {path: _digest(value) for path, value in contents(adata)}


def _digest(value: Any) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, pd.Series | pd.Index):
        yield type(value).__name__.encode() + str(value.dtype).encode()
        if isinstance(value.dtype, pd.CategoricalDtype):
            codes = value.cat.codes if isinstance(value, pd.Series) else value.codes
            names = value.cat.categories if isinstance(value, pd.Series) else value.categories
            yield np.asarray(codes).tobytes()
            yield repr([(type(n).__name__, n) for n in names]).encode()
            return
        value = value.to_numpy()
    if sparse.issparse(value):
        yield f"{value.format}{value.shape}{value.dtype}".encode()
        ordered = sparse.csr_matrix(value, copy=True)  # in which order entries are stored is no matter
        ordered.sort_indices()
        yield ordered.indptr.astype(np.int64).tobytes() + ordered.indices.astype(np.int64).tobytes()
        yield ordered.data.tobytes()
    elif hasattr(value, "dask"):
        yield b"dask"
        yield from _parts(value.compute())
    elif isinstance(value, np.ma.MaskedArray):
        yield from _parts(np.ma.getmaskarray(value))
        yield from _parts(np.asarray(value.data))
    elif isinstance(value, np.ndarray):
        yield f"{value.shape}{value.dtype}".encode()
        if value.dtype.kind == "O":
            yield repr([(type(v).__name__, str(v)) for v in value.ravel()]).encode()
        else:
            yield np.ascontiguousarray(value).tobytes()
    else:
        text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
        yield f"{type(value).__name__}:{text}".encode()


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the paths that were added, removed or changed."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


# ---------------------------------------------------------------- errors


def is_named(err: BaseException, parameters: set[str]) -> bool:
    """Return whether an error has a usual type, was raised by this package, and names a parameter or slot."""
    if not isinstance(err, (KeyError, ValueError, TypeError, OSError, ImportError, NotImplementedError)):
        return False
    frames = traceback.extract_tb(err.__traceback__)
    last = frames[-1]
    if not last.filename.startswith(PACKAGE):
        return False
    if not linecache.getline(last.filename, last.lineno or 0).lstrip().startswith("raise"):
        return False
    words = set(re.findall(r"\w+", str(err)))
    return bool(words & (parameters | SUBJECTS)) and len(str(err)) > 20


def where_raised(err: BaseException) -> str:
    """Return the innermost line in this package, and the innermost line of all."""
    frames = traceback.extract_tb(err.__traceback__)
    ours = [f for f in frames if f.filename.startswith(PACKAGE)]
    shown = [ours[-1]] if ours else []
    shown += [frames[-1]] if not ours or frames[-1] is not ours[-1] else []
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(shown))


# ---------------------------------------------------------------- results


def faults(adata: ad.AnnData, changed: list[str], *, pairs: bool = True) -> list[str]:
    """Return the faults of the slots that a call wrote."""
    found = []
    values = dict(contents(adata))
    for path in changed:
        if path in values:
            found += _faults_of(path, values[path])
    if not found and pairs:
        found += _unreadable(adata, changed)
    return found


def _faults_of(path: str, value: Any) -> list[str]:
    if isinstance(value, pd.Series):
        value = value.to_numpy() if not isinstance(value.dtype, pd.CategoricalDtype) else value
    if isinstance(value, pd.Series):
        return [f"{path}: all missing"] if len(value) and value.isna().all() else []
    if sparse.issparse(value):
        value = value.data
    if isinstance(value, float):
        value = np.array([value])
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fc" or value.size == 0:
        return []
    out = []
    if np.isinf(value).any():
        out.append(f"{path}: infinite")
    missing = np.isnan(value)
    if missing.any() and not any(re.search(pattern, path) for pattern in MAY_BE_MISSING):
        out.append(f"{path}: NaN in {int(missing.sum())} of {missing.size}")
    if re.search(r"^obs/.*confidence$", path) and not ((value >= 0) & (value <= 1 + 1e-5)).all():
        out.append(f"{path}: outside 0..1")
    return out


def _unreadable(adata: ad.AnnData, changed: list[str]) -> list[str]:
    """Return the faults of writing the changed slots to a file and reading them."""
    new = ad.AnnData(obs=pd.DataFrame(index=[str(i) for i in range(adata.n_obs)]),
                     var=pd.DataFrame(index=[str(i) for i in range(adata.n_vars)]))  # fmt: skip
    for name in ATTRIBUTES:
        source, target = getattr(adata, name), getattr(new, name)
        for key in list(source.keys()):
            if any(p == f"{name}/{key}" or p.startswith((f"{name}/{key}/", f"{name}/{key}[")) for p in changed):
                value = source[key]
                if isinstance(value, pd.DataFrame | pd.Series) and name in {"obs", "var", "obsm", "varm"}:
                    value = value.copy()
                    value.index = new.obs_names if name.startswith("obs") else new.var_names
                target[key] = value
    before = {p: d for p, d in fingerprint(new).items() if p not in {"X", "obs_names", "var_names"}}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            new.write_h5ad(f"{folder}/a.h5ad")
            back = ad.read_h5ad(f"{folder}/a.h5ad")
        except Exception as err:
            return [f"cannot be written to h5ad: {type(err).__name__}: {str(err)[:150]}"]
    kept = {p.split("[")[0] for p in fingerprint(back)}
    lost = sorted({p.split("[")[0] for p in before} - kept)
    return [f"lost in h5ad: {', '.join(lost[:3])}"] if lost else []


# ---------------------------------------------------------------- global state


def global_state() -> dict[str, Any]:
    """Return what no call may change."""
    return {
        "torch random": _digest(torch.random.get_rng_state().numpy()),
        "numpy random": _digest(np.random.get_state()[1]),  # noqa: NPY002
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "default dtype": str(torch.get_default_dtype()),
        "rcParams": _digest(sorted((k, repr(v)) for k, v in mpl.rcParams.items())),
        "errstate": repr(np.geterr()),
        "working folder": os.getcwd(),
        "log levels": {
            name: logging.getLogger(name).level for name in ("root", "lightning", "lightning.pytorch", "scanpy")
        },
    }
