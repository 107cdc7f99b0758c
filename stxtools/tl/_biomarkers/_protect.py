"""Protection from testing groups on the very counts they were found in: found again in half, tested on the other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from stxtools import _keys
from stxtools._data.chunks import is_out_of_core
from stxtools._data.expression import Expression, stored_matrix
from stxtools._data.noise import thin_counts
from stxtools._data.representation import log_normalize, median_depth, principal_axes, select_genes
from stxtools._slots import records, slots_of
from stxtools._spatial.matrices import column_moments
from stxtools._validate import Labels, categories, check_in, stored_library_key
from stxtools._warn import warn

METHODS = ("thinning", None)
SAME = 0.9  # share of a stored PCA's variance that one made of the counts must explain to pass for the same
_HALF = 0.5
_FOUND = "found_again"  # the column in which groups are found again
_LEAST_AGREEMENT = 0.8  # below this Rand index the groups of half the counts are not those of all of them
_TARGETS = (None, 1e4)  # depth after normalisation: the median, or scanpy's habit


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
                _warn_unprotected(groupby, half)
            else:
                self.layer, (self.adata, self.codes, record) = None, half
        self.protected = bool(record)
        self.read = Expression(self.adata, self.layer, in_memory=False)
        self.record = record or self.read.record


def found_in_expression(adata: AnnData, groupby: str, layer: str | None) -> bool:
    """Return whether this package found the groups of ``obs[groupby]`` in the expression that is to be tested."""
    split = recorded(adata.uns.get(_keys.SPLIT))
    for params in records(adata.uns):
        call, source = str(params.get("call")), str(params.get("segment_key"))
        if f"obs/{groupby}" not in slots_of(params) or call == "io.read_annotations":  # drawn on the image
            continue
        if call == "tl.region_graph":
            return source != groupby and found_in_expression(adata, source, layer)
        other_half = bool(split) and {layer, params.get("layer")} == {split["train"], split["test"]}  # pp.split_counts
        return not other_half
    return False


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
    train, test = thin_counts(read.matrix, _HALF, np.random.default_rng(seed), np.argsort(names, kind="stable"))
    if train.nnz == 0 or test.nnz == 0:
        return "there are too few counts to divide"
    work, tested = (AnnData(part, obs=adata.obs.copy(), var=adata.var[[]].copy()) for part in (train, test))
    found, found_names, how = _found_again(adata, work, read.matrix, params, show_progress)
    matched, agreement = _match(groups, found, found_names)
    _warn_other_groups(groupby, agreement, how["protect_missing"])
    return tested, matched, {"protect_agreement": agreement, **how, **read.record}


def _found_again(
    adata: AnnData, part: AnnData, counts: sparse.csr_matrix, given: Mapping[str, Any], show_progress: bool | None
) -> tuple[NDArray[np.int64], list[str], dict[str, Any]]:
    """Segment ``part``, which holds a part of the ``counts`` of ``adata``, with the parameters of its segmentation.

    Return the groups, their names, and what ``params`` say of them: in what they were found, and what was missing.
    """
    from stxtools.tl import segment

    missing: list[str] = []
    image_key, pretrained = _image(adata, given, missing), _start(given, missing)
    spatial_key = str(given.get("spatial_key", _keys.SPATIAL))
    part.obsm[spatial_key] = adata.obsm[spatial_key]
    if _keys.RASTER in adata.uns and _keys.RASTER in adata.obsm:
        part.obsm[_keys.RASTER], part.uns[_keys.RASTER] = adata.obsm[_keys.RASTER], adata.uns[_keys.RASTER]
    if image_key is not None:
        part.uns[_keys.SPATIAL] = adata.uns[_keys.SPATIAL]
    representation = "PCA of the variable genes" if pretrained is None else "components of the pretrained model"
    if _reads_stored_pca(given, there=_keys.X_PCA in adata.obsm):
        representation = _put_pca(adata, part, counts, missing) or representation

    labels_key = None if given.get("labels_key") is None else str(given["labels_key"])
    shares = given.get("class_shares")
    if shares is not None and labels_key is not None:  # 0: not given
        classes = categories(part, labels_key, "labels_key")[1]
        shares = {c: float(v) for c, v in zip(classes, shares, strict=True) if v}
    segment(
        part, n_segments=None if labels_key is not None else int(given["n_segments"]), labels_key=labels_key,
        keep_labels=bool(given.get("keep_labels", False)), class_shares=shares,
        abstain_below=given.get("abstain_below"), pretrained=pretrained, image_key=image_key,
        spatial_key=spatial_key, library_key=stored_library_key(given),
        params={k: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for k, v in given["segmenter"].items()},
        random_state=int(given.get("random_state", 0)), show_progress=show_progress, key_added=_FOUND,
    )  # fmt: skip
    read = {"protect_representation": representation, "protect_missing": missing or None}
    return *categories(part, _FOUND, "groupby"), read


def _image(adata: AnnData, given: Mapping[str, Any], missing: list[str]) -> str | None:
    """Return the image that was read, if it is still there."""
    if given.get("image_key") is None:
        return None
    key, spatial = str(given["image_key"]), adata.uns.get(_keys.SPATIAL)
    if isinstance(spatial, Mapping) and any(key in entry.get(_keys.IMAGES, {}) for entry in spatial.values()):
        return key
    missing.append(f"the image {key!r}, which is not in `uns['spatial']` any more")
    return None


def _start(given: Mapping[str, Any], missing: list[str]) -> str | None:
    """Return the file of the pretrained model that training started from, if it is still there."""
    path = str(given.get("pretrained_path", ""))
    if not given.get("pretrained", False):
        return None
    if os.path.exists(path):
        return path
    missing.append(
        f"the pretrained model, which is not at {path!r} any more"
        if path
        else "the pretrained model, which was given in memory (name its file as `pretrained=`)"
    )
    return None


def _reads_stored_pca(given: Mapping[str, Any], *, there: bool) -> bool:
    """Whether a segmentation read ``obsm["X_pca"]`` as it was."""
    if str(given.get("use_rep", "")) == _keys.X_PCA:
        return True
    if "representation" in given:
        return str(given["representation"]) == _keys.X_PCA
    return "layer" not in given and there and not given.get("pretrained", False)


def _put_pca(adata: AnnData, part: AnnData, counts: sparse.csr_matrix, missing: list[str]) -> str:
    """Make ``obsm["X_pca"]`` again from ``part`` of the counts, in the way that makes it from all; return how.

    Of the usual ways the one is taken whose components of all counts explain most of the stored ones. Components are
    those of the part: stored loadings have seen the noise of the other part, too.
    """
    if _keys.X_PCA not in adata.obsm:
        missing.append("`obsm['X_pca']`, which is not there any more")
        return ""
    stored = np.asarray(adata.obsm[_keys.X_PCA], dtype=np.float64)
    stored = stored - stored.mean(axis=0)
    genes, chosen = _genes_of_pca(adata, counts)
    ways = {}
    for target, scaled in product(_TARGETS, (False, True)):
        found = _pca(counts, genes, stored.shape[1], target, scaled).astype(np.float64)
        left = stored - found @ np.linalg.lstsq(found, stored, rcond=None)[0]
        ways[target, scaled] = 1.0 - float(np.square(left).sum()) / max(float(np.square(stored).sum()), 1e-300)
    (target, scaled), explained = max(ways.items(), key=lambda way: way[1])
    part.obsm[_keys.X_PCA] = _pca(part.X, genes, stored.shape[1], target, scaled)
    if explained < SAME:
        missing.append(
            f"`obsm['X_pca']` as it is: of the usual ways to make it from these counts none explains more than "
            f"{explained:.0%} of it"
        )
    depth = "the median" if target is None else f"{target:g}"
    how = f"{stored.shape[1]} components of {len(genes)} {chosen}, depth {depth}{', z-scores' if scaled else ''}"
    return f"PCA made again: {how}; on all counts it explains {explained:.1%} of `obsm['X_pca']`"


def _genes_of_pca(adata: AnnData, counts: sparse.csr_matrix) -> tuple[NDArray[np.int64], str]:
    """Return the genes that a stored PCA was made of, as far as the AnnData says so, and how they are known."""
    used: dict[str, NDArray[np.bool_]] = {}
    if "PCs" in adata.varm:
        used["genes with loadings"] = np.abs(np.asarray(adata.varm["PCs"], dtype=np.float64)).sum(axis=1) > 0
    if "highly_variable" in adata.var:
        used["variable genes"] = np.asarray(adata.var["highly_variable"], dtype=bool)
    seen = np.asarray((counts > 0).sum(axis=0)).ravel() >= min(3, counts.shape[0])
    for how, some in used.items():
        if (some & seen).sum() > 1:
            return np.flatnonzero(some & seen), how
    return select_genes(counts, "counts"), "variable genes chosen here"


def _pca(
    counts: sparse.csr_matrix, genes: NDArray[np.int64], n_comps: int, target: float | None, scaled: bool
) -> NDArray[np.float32]:
    depth = median_depth(np.asarray(counts.sum(axis=1)).ravel()) if target is None else target
    logged = log_normalize(counts, "counts", target_sum=depth)[:, genes].astype(np.float64)
    if scaled:
        spread = np.sqrt(column_moments(logged)[1])
        logged.data *= (1.0 / np.where(spread > 0, spread, 1.0))[logged.indices]
    mean, axes = principal_axes(logged, min(n_comps, len(genes), counts.shape[0] - 1))
    return np.ascontiguousarray(np.asarray(logged @ axes) - mean @ axes, dtype=np.float32)


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


def _warn_other_groups(groupby: str, agreement: float, missing: list[str] | None) -> None:
    """Warn where the tested groups differ from the user's."""
    parts = []
    if missing:
        parts.append(f"were found without {'; without '.join(missing)}")
    if agreement < _LEAST_AGREEMENT:
        parts.append(f"agree with `{groupby}` to an adjusted Rand index of {agreement:.2f} only")
    if parts:
        warn(
            f"The tested groups were found again in one half of the counts. They {' and '.join(parts)}: the table "
            f"describes these groups, not those of `{groupby}`. See `protect_agreement` in the table's params.",
        )


def _warn_unprotected(groupby: str, why: str) -> None:
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
