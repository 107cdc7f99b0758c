"""Protection from testing groups on the very counts they were found in."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools import _keys
from stxtools._data.chunks import is_out_of_core
from stxtools._data.expression import Expression, stored_matrix
from stxtools._spatial.order import name_order
from stxtools._validate import categories, stored_library_key
from stxtools._warn import at_caller
from stxtools.stats._thinning import thin_counts

from ._found_again import SAME, reads_stored_pca, same_image, same_pca, same_start

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy import sparse

METHODS = ("thinning", None)
_HALF = 0.5
_FOUND_AGAIN = 0.8  # below this Rand index the groups of half the counts are not those of all of them


@dataclass(frozen=True)
class Protected:
    """Counts to test and the groups found without them, with their agreement to the user's groups.

    ``representation`` names the input they were found in, ``missing`` the user's input that was not available.
    """

    adata: AnnData
    codes: NDArray[np.int64]
    agreement: float
    representation: str
    missing: list[str]
    read: dict[str, str]


def guard(
    adata: AnnData, groupby: str, layer: str | None, protect: str | None, seed: int, show_progress: bool | None
) -> Protected | None:
    """Return the other half of the counts and the groups found without it, or warn that p-values are optimistic."""
    if not found_in_expression(adata, groupby, layer):
        return None
    if protect is not None and is_out_of_core(stored_matrix(adata, layer)[0]):
        raise ValueError(
            f"The groups of `{groupby}` were found in this expression. `protect='thinning'` splits the counts and "
            "segments again in memory, but the expression is out of core. Load it (`adata.to_memory()`), or split the "
            "counts with `st.pp.split_counts`, find groups in one part and test the other (`layer=`). With "
            "`protect=None` p-values are optimistic: rank genes by effect."
        )
    found = "" if protect is None else protect_by_thinning(adata, groupby, layer, seed, show_progress)
    if isinstance(found, Protected):
        return found
    warn_unprotected(groupby, found)
    return None


def found_in_expression(adata: AnnData, groupby: str, layer: str | None) -> bool:
    """Return whether this package found the groups of ``obs[groupby]`` in the expression that is to be tested."""
    params = _params(adata.uns.get(groupby))
    if params is not None:
        return not _other_half(adata, params, layer)
    regions: Any = adata.uns.get(_keys.REGIONS)
    if groupby == _keys.REGION_ID and hasattr(regions, "obs"):
        source = str(_mapping(regions.uns.get("params")).get("segment_key", ""))
        return source != groupby and found_in_expression(adata, source, layer)
    predicted = _params(adata.uns.get(_keys.MULTITASK)) or {}
    return groupby in {_keys.pred(str(predicted[k])) for k in ("biomarker_key", "region_key") if k in predicted}


def protect_by_thinning(
    adata: AnnData, groupby: str, layer: str | None, seed: int, show_progress: bool | None
) -> Protected | str:
    """Segment again on one half of the counts and return the other, or say why that cannot be done."""
    params = _params(adata.uns.get(groupby)) or {}
    if "segmenter" not in params:
        return f"only groups of `st.tl.segment` can be found again, and `{groupby}` is none"
    if str(params.get("model", "trained")) == "given":
        return "they come from a saved model that may have been trained on these counts"
    if str(params.get("use_rep", _keys.X_PCA)) != _keys.X_PCA:
        return f"they were found in `obsm[{str(params['use_rep'])!r}]`, which cannot be made again from half the counts"
    labels_key = params.get("labels_key")
    if labels_key is not None and str(labels_key) not in adata.obs:
        return f"their labels, `obs[{str(labels_key)!r}]`, are not there any more"
    source = layer if layer is not None or "layer" not in params else str(params["layer"])
    read = Expression(adata, source)
    counts = read.matrix
    if not _are_counts(counts):
        return "the expression is not integer counts: name a `layer` that holds them"
    order = name_order(np.asarray(adata.obs_names, dtype=str))
    train, test = thin_counts(counts, _HALF, np.random.default_rng(seed), order)
    if train.nnz == 0 or test.nnz == 0:
        return "there are too few counts to divide"
    codes, names = categories(adata, groupby, "groupby")
    again = _segment_again(adata, counts, train, params, show_progress)
    matched, agreement = _match(codes, again.codes, names, again.names)
    _warn_other_groups(groupby, agreement, again.missing)
    return Protected(_with_counts(adata, test), matched, agreement, again.representation, again.missing, read.record)


def _warn_other_groups(groupby: str, agreement: float, missing: list[str]) -> None:
    """Warn where the tested groups differ from the user's."""
    parts = []
    if missing:
        parts.append(f"were found without {'; without '.join(missing)}")
    if agreement < _FOUND_AGAIN:
        parts.append(f"agree with `{groupby}` to an adjusted Rand index of {agreement:.2f} only")
    if parts:
        warnings.warn(
            f"The tested groups were found again in one half of the counts. They {' and '.join(parts)}: the table "
            f"describes these groups, not those of `{groupby}`. See `protect_agreement` in the table's params.",
            UserWarning,
            stacklevel=at_caller(),
        )


def warn_unprotected(groupby: str, why: str) -> None:
    """Warn that p-values are optimistic."""
    warnings.warn(
        f"The groups of `{groupby}` were found in the expression that is tested, so p-values are optimistic"
        f"{f' (not protected: {why})' if why else ''}. Use `protect='thinning'` on integer counts (`layer=`), or split "
        "the counts with `st.pp.split_counts`, find groups in one part and test the other (`layer=`). "
        "Otherwise rank genes by effect (`auroc`, `logfoldchanges`), not by p-value.",
        UserWarning,
        stacklevel=at_caller(),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _params(record: Any) -> Mapping[str, Any] | None:
    """Return a call's parameters if this package wrote them."""
    params = _mapping(_mapping(record).get("params"))
    return params if "stxtools" in _mapping(params.get("versions")) else None


def _other_half(adata: AnnData, params: Mapping[str, Any], layer: str | None) -> bool:
    """Whether groups were found in one part of :func:`stxtools.pp.split_counts` and the test is to read the other."""
    split = _params(adata.uns.get(_keys.SPLIT))
    if split is None or layer is None or "layer" not in params:
        return False
    parts = {str(split["train"]), str(split["test"])}
    return {layer, str(params["layer"])} == parts


def _are_counts(counts: sparse.csr_matrix) -> bool:
    data = counts.data
    return data.size > 0 and bool(data.min() >= 0) and np.array_equal(data, np.rint(data))


def _with_counts(adata: AnnData, counts: sparse.csr_matrix) -> AnnData:
    """Return ``adata`` with ``counts`` as its only expression, and no representation of the others."""
    from anndata import AnnData as _AnnData

    out = _AnnData(counts, obs=adata.obs.copy(), var=adata.var[[]].copy())
    for key in adata.obsm:
        if key.startswith(_keys.SPATIAL) or key == _keys.RASTER:
            out.obsm[key] = adata.obsm[key]
    if _keys.RASTER in adata.uns:
        out.uns[_keys.RASTER] = adata.uns[_keys.RASTER]
    return out


@dataclass(frozen=True)
class _Again:
    """Groups found in a part of the counts, what in, and what was missing."""

    codes: NDArray[np.int64]
    names: list[str]
    representation: str
    missing: list[str]


def _segment_again(
    adata: AnnData,
    counts: sparse.csr_matrix,
    part: sparse.csr_matrix,
    params: Mapping[str, Any],
    show_progress: bool | None,
) -> _Again:
    """Segment ``part`` of the counts with the parameters and, as far as it can be made, the input of ``params``."""
    from stxtools.tl._segment import segment

    def stored(name: str) -> Any:
        value = params.get(name)
        return value.item() if isinstance(value, np.generic) else value

    work = _with_counts(adata, part)
    spatial_key = str(params.get("spatial_key", _keys.SPATIAL))
    work.obsm[spatial_key] = adata.obsm[spatial_key]
    missing: list[str] = []
    image_key, pretrained = same_image(adata, params, missing), same_start(params, missing)
    if image_key is not None:
        work.uns[_keys.SPATIAL] = adata.uns[_keys.SPATIAL]
    representation = "PCA of the variable genes" if pretrained is None else "components of the pretrained model"
    if reads_stored_pca(adata, params):
        if _keys.X_PCA not in adata.obsm:
            missing.append("`obsm['X_pca']`, which is not there any more")
        else:
            values, how, explained = same_pca(adata, counts, part)
            work.obsm[_keys.X_PCA] = values
            representation = f"PCA made again: {how}; on all counts it explains {explained:.1%} of `obsm['X_pca']`"
            if explained < SAME:
                missing.append(
                    f"`obsm['X_pca']` as it is: of the usual ways to make it from these counts none explains more than "
                    f"{explained:.0%} of it"
                )
    labels_key = None if stored("labels_key") is None else str(stored("labels_key"))
    settings = {k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in params["segmenter"].items()}
    key = "found_again"
    shares = params.get("class_shares")
    if shares is not None and labels_key is not None:  # 0: not given
        shares = {c: float(v) for c, v in zip(categories(work, labels_key, "labels_key")[1], shares, strict=True) if v}
    segment(
        work,
        n_segments=None if labels_key is not None else int(params["n_segments"]),
        labels_key=labels_key,
        keep_labels=bool(params.get("keep_labels", False)),
        class_shares=shares,
        abstain_below=stored("abstain_below"),
        pretrained=pretrained,
        image_key=image_key,
        spatial_key=spatial_key,
        library_key=stored_library_key(params),
        params=settings,
        random_state=int(params.get("random_state", 0)),
        show_progress=show_progress,
        key_added=key,
    )
    codes, names = categories(work, key, "groupby")
    return _Again(codes, names, representation, missing)


def _match(
    codes: NDArray[np.int64], found: NDArray[np.int64], names: list[str], found_names: list[str]
) -> tuple[NDArray[np.int64], float]:
    """Give every class that was found again the user's class it overlaps most, one to one where the numbers agree."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score

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
