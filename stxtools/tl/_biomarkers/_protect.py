"""Protection from testing groups on the very counts they were found in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from stxtools import _keys
from stxtools._data.chunks import is_out_of_core
from stxtools._data.expression import Expression, stored_matrix
from stxtools._spatial.order import name_order
from stxtools._validate import Labels, check_in
from stxtools._warn import warn
from stxtools.stats._thinning import thin_counts

from ._found_again import found_again

METHODS = ("thinning", None)
_HALF = 0.5
_FOUND_AGAIN = 0.8  # below this Rand index the groups of half the counts are not those of all of them


class Tested:
    """What is tested: expression and the groups' ``codes``; where these were found in it, of one half of the counts.

    ``protected`` says whether counts were divided, ``record`` what ``params`` say of that and of the expression.
    """

    def __init__(
        self, adata: AnnData, groupby: str, groups: Labels, layer: str | None, protect: str | None, seed: int,
        show_progress: bool | None,
    ) -> None:  # fmt: skip
        self.adata, self.layer, self.codes = adata, layer, groups.codes
        record: dict[str, Any] = {}
        if found_in_expression(adata, groupby, layer):
            half = "" if protect is None else _divided(adata, groupby, groups, layer, seed, show_progress)
            if isinstance(half, str):
                warn_unprotected(groupby, half)
            else:
                self.layer, (self.adata, self.codes, record) = None, half
        self.protected = bool(record)
        self.read = Expression(self.adata, self.layer, in_memory=False)
        self.record = record or self.read.record


def found_in_expression(adata: AnnData, groupby: str, layer: str | None) -> bool:
    """Return whether this package found the groups of ``obs[groupby]`` in the expression that is to be tested."""
    params, split = recorded(adata.uns.get(groupby)), recorded(adata.uns.get(_keys.SPLIT))
    if params:
        drawn = params.get("call") == "io.read_annotations"  # by a pathologist, on the image
        return not drawn and not _other_half(split, params, layer)
    regions: Any = adata.uns.get(_keys.REGIONS)
    if groupby == _keys.REGION_ID and hasattr(regions, "obs"):
        source = str(recorded(regions.uns).get("segment_key", ""))
        return source != groupby and found_in_expression(adata, source, layer)
    predicted = recorded(adata.uns.get(_keys.MULTITASK))
    keys = [predicted.get(name) for name in ("biomarker_key", "region_key")]
    return groupby in {_keys.pred(str(key)) for key in keys if key is not None}


def _divided(
    adata: AnnData, groupby: str, groups: Labels, layer: str | None, seed: int, show_progress: bool | None
) -> tuple[AnnData, NDArray[np.int64], dict[str, Any]] | str:
    """Segment again on one half of the counts; return the other with those groups, or say why that cannot be done."""
    if is_out_of_core(stored_matrix(adata, layer)[0]):
        raise ValueError(
            f"The groups of `{groupby}` were found in this expression. `protect='thinning'` splits the counts "
            "and segments again in memory, but the expression is out of core. Load it (`adata.to_memory()`), "
            "or split the counts with `st.pp.split_counts`, find groups in one part and test the other "
            "(`layer=`). With `protect=None` p-values are optimistic: rank genes by effect."
        )
    params = recorded(adata.uns.get(groupby))
    if "segmenter" not in params:
        return f"only groups of `st.tl.segment` can be found again, and `{groupby}` is none"
    if str(params.get("model", "trained")) == "given":
        return "they come from a saved model that may have been trained on these counts"
    if str(params.get("use_rep", _keys.X_PCA)) != _keys.X_PCA:
        return f"they were found in `obsm[{str(params['use_rep'])!r}]`, which cannot be made again from half the counts"
    labels_key = params.get("labels_key")
    if labels_key is not None and str(labels_key) not in adata.obs:
        return f"their labels, `obs[{str(labels_key)!r}]`, are not there any more"
    read_from = layer if layer is not None or "layer" not in params else str(params["layer"])
    if read_from is not None:
        check_in(adata, "layers", read_from, "layer")
    read = Expression(adata, read_from)
    if read.scale != "counts" or read.matrix.nnz == 0:
        return "the expression is not integer counts: name a `layer` that holds them"
    names = np.asarray(adata.obs_names, dtype=str)
    train, test = thin_counts(read.matrix, _HALF, np.random.default_rng(seed), name_order(names))
    if train.nnz == 0 or test.nnz == 0:
        return "there are too few counts to divide"
    work, tested = (AnnData(part, obs=adata.obs.copy(), var=adata.var[[]].copy()) for part in (train, test))
    found, found_names, how = found_again(adata, work, read.matrix, params, show_progress)
    matched, agreement = _match(groups, found, found_names)
    _warn_other_groups(groupby, agreement, how["protect_missing"])
    return tested, matched, {"protect_agreement": agreement, **how, **read.record}


def _warn_other_groups(groupby: str, agreement: float, missing: list[str] | None) -> None:
    """Warn where the tested groups differ from the user's."""
    parts = []
    if missing:
        parts.append(f"were found without {'; without '.join(missing)}")
    if agreement < _FOUND_AGAIN:
        parts.append(f"agree with `{groupby}` to an adjusted Rand index of {agreement:.2f} only")
    if parts:
        warn(
            f"The tested groups were found again in one half of the counts. They {' and '.join(parts)}: the table "
            f"describes these groups, not those of `{groupby}`. See `protect_agreement` in the table's params.",
        )


def warn_unprotected(groupby: str, why: str) -> None:
    """Warn that p-values are optimistic."""
    warn(
        f"The groups of `{groupby}` were found in the expression that is tested, so p-values are optimistic"
        f"{f' (not protected: {why})' if why else ''}. Use `protect='thinning'` on integer counts (`layer=`), or split "
        "the counts with `st.pp.split_counts`, find groups in one part and test the other (`layer=`). "
        "Otherwise rank genes by effect (`auroc`, `logfoldchanges`), not by p-value.",
    )


def recorded(entry: Any) -> dict[str, Any]:
    """Return the parameters that a call of this package wrote into an entry of ``uns``; none where another did."""
    params = entry.get("params") if isinstance(entry, Mapping) else None
    versions = params.get("versions") if isinstance(params, Mapping) else None
    if not isinstance(versions, Mapping) or "stxtools" not in versions:
        return {}
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in entry["params"].items()}


def _other_half(split: Mapping[str, Any], params: Mapping[str, Any], layer: str | None) -> bool:
    """Whether groups were found in one part of :func:`stxtools.pp.split_counts` and the test is to read the other."""
    if not split or layer is None or "layer" not in params:
        return False
    return {layer, str(params["layer"])} == {str(split["train"]), str(split["test"])}


def _match(groups: Labels, found: NDArray[np.int64], found_names: list[str]) -> tuple[NDArray[np.int64], float]:
    """Give every class that was found again the user's class it overlaps most, one to one where the numbers agree."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score

    codes, names = groups.codes, groups.names
    both = (codes >= 0) & (found >= 0)
    overlap = np.zeros((len(found_names), len(names)))
    np.add.at(overlap, (found[both], codes[both]), 1.0)
    if set(names) == set(found_names) and not all(n.isdigit() for n in names):
        to = np.array([names.index(n) for n in found_names])
    elif len(names) == len(found_names):
        to = np.empty(len(found_names), dtype=np.int64)
        rows, columns = linear_sum_assignment(-overlap)
        to[rows] = columns
    else:
        to = overlap.argmax(axis=1)
    matched = np.where(both, to[np.maximum(found, 0)], -1).astype(np.int64)
    return matched, float(adjusted_rand_score(codes[both], found[both])) if both.any() else 0.0
