"""Protection from double dipping: groups found in the counts are found again in one half and tested on the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._data.chunks import is_out_of_core
from stxtools._data.expression import Expression, stored_matrix
from stxtools._data.noise import thin_counts
from stxtools._data.representation import log_normalize, median_depth, principal_axes, recorded_genes, select_genes
from stxtools._data.sections import check_one_section
from stxtools._slots import records, slots_of
from stxtools._spatial.matrices import column_moments
from stxtools._types import Csr, Floats32, Ints
from stxtools._validate import Labels, categories, check_in, coordinates, stored_library_key
from stxtools._warn import warn

_MIN_EXPLAINED = 0.9  # share of a stored PCA's variance that a PCA of the counts must explain to be the same
_SEGMENT = "found_again"  # the column that holds the groups of one half of the counts
_MIN_AGREEMENT = 0.8  # below this Rand index the groups of half the counts are not those of all of them
_TARGETS = (None, 1e4)  # depth after normalisation: the median, or scanpy's habit


class CannotSplit(Exception):
    """Why the groups cannot be found again in one half of the counts."""


class DataToTest:
    """Expression to test and the groups' ``codes``; of one half of the counts where the groups were found in them.

    ``protected``: counts were divided. ``record``: entries of ``params`` on that (``unprotected``: why p-values are
    optimistic) and on the expression.
    """

    def __init__(
        self, adata: AnnData, groupby: str, groups: Labels, layer: str | None, protect: str | None, seed: int,
        show_progress: bool | None,
    ) -> None:  # fmt: skip
        self.adata, self.layer, self.codes, self.protected = adata, layer, groups.codes, False
        record: dict[str, Any] = {}
        # segments that were renamed, merged or dropped by hand are as dependent as the segments themselves
        column = next((c for c in _segmentations(adata) if _repeats(groups.codes, adata.obs[c])), groupby)
        dependent = found_in_expression(adata, column, layer)
        if dependent and protect is None:
            record["unprotected"] = "the groups were found in the tested expression"
            _warn_unprotected(groupby)
        elif dependent:
            try:
                self.adata, self.codes, record = _split(adata, column, groups, layer, seed, show_progress)
                self.layer, self.protected = None, True
            except CannotSplit as why:
                record["unprotected"] = str(why)
                _warn_unprotected(groupby, f" (not protected: {why})")
        self.read = Expression(self.adata, self.layer, in_memory=False)
        self.record = record if self.protected else record | self.read.record


def found_in_expression(adata: AnnData, groupby: str, layer: str | None) -> bool:
    """Return whether this package found the groups of ``obs[groupby]`` in the expression that is to be tested."""
    split = next(records(adata.uns.get(_keys.SPLIT)), {})
    for params in records(adata.uns):
        call, source = str(params.get("call")), str(params.get("segment_key"))
        if f"obs/{groupby}" not in slots_of(params) or call == "io.read_annotations":  # drawn on the image
            continue
        if call == "tl.region_graph":
            return source != groupby and found_in_expression(adata, source, layer)
        other_half = bool(split) and {layer, params.get("layer")} == {split["train"], split["test"]}  # pp.split_counts
        return not other_half
    return {_keys.mask_id(groupby), _keys.confidence(groupby)} <= set(adata.obs)  # of `segment`; its record is lost


def _segmentations(adata: AnnData) -> Iterator[str]:
    """Yield the columns of segments that were found without labels."""
    for key in adata.obs.columns.intersection(list(adata.uns)):
        params = next(records(adata.uns[key]), {})
        if params.get("call") == "tl.segment" and params.get("labels_key") is None:
            yield key


def _repeats(codes: Ints, segments: pd.Series) -> bool:
    """Whether groups are segments under other names, merged or in part."""
    segment = pd.factorize(segments)[0]
    pairs = segment * (codes.max() + 2) + codes
    return len(np.unique(pairs)) == len(np.unique(segment)) and bool((codes[segment < 0] < 0).all())


def _split(
    adata: AnnData, groupby: str, groups: Labels, layer: str | None, seed: int, show_progress: bool | None
) -> tuple[AnnData, Ints, dict[str, Any]]:
    """Segment one half of the counts; return the other half, the groups found, and what to record."""
    if is_out_of_core(stored_matrix(adata, layer)[0]):
        raise ValueError(
            f"The groups of `{groupby}` were found in this expression. `protect='thinning'` splits the counts "
            "and segments again in memory, but the expression is out of core. Load it (`adata.to_memory()`), "
            "or split the counts with `st.pp.split_counts`, find groups in one part and test the other "
            "(`layer=`). With `protect=None` p-values are optimistic: rank genes by effect."
        )
    params = next(records(adata.uns.get(groupby)), {})
    _check_repeatable(set(adata.obs), groupby, params)
    if stored_library_key(params) is None:
        try:
            check_one_section(adata.obs, coordinates(adata, str(params.get("spatial_key", _keys.SPATIAL))), None)
        except ValueError as err:
            why = "they were found in single sections, joined since: segment these together with `library_key=`"
            raise CannotSplit(why) from err
    read_from = layer if layer is not None or "layer" not in params else str(params["layer"])
    if read_from is not None:
        check_in(adata, "layers", read_from, "layer")
    read = Expression(adata, read_from)
    if read.scale != "counts" or read.matrix.nnz == 0:
        raise CannotSplit("the expression is not integer counts: name a `layer` that holds them")
    names = np.asarray(adata.obs_names, dtype=str)
    train, test = thin_counts(read.matrix, 0.5, np.random.default_rng(seed), np.argsort(names, kind="stable"))
    if train.nnz == 0 or test.nnz == 0:
        raise CannotSplit("there are too few counts to divide")
    half, tested = (AnnData(part, obs=adata.obs.copy(), var=adata.var[[]].copy()) for part in (train, test))
    segments, record = _segment_again(adata, half, read.matrix, params, show_progress)
    codes, agreement = _match(groups, segments)
    _warn_other_groups(groupby, agreement, record["protect_missing"])
    return tested, codes, {"protect_agreement": agreement, **record, **read.record}


def _check_repeatable(columns: set[str], groupby: str, params: Mapping[str, Any]) -> None:
    """Check that the call with these ``params``, which found the groups, can be made again."""
    if not params and _keys.mask_id(groupby) in columns:
        lost = f"`uns['{groupby}']`, which says how, is lost, as after `sc.concat` without `uns_merge='same'`"
        raise CannotSplit(lost)
    if "segmenter" not in params:
        raise CannotSplit(f"only groups of `st.tl.segment` can be found again, and `{groupby}` is not one")
    if str(params.get("model", "trained")) == "given":
        raise CannotSplit("they come from a saved model that may have been trained on these counts")
    use_rep = str(params.get("use_rep", _keys.X_PCA))
    if use_rep != _keys.X_PCA:
        raise CannotSplit(f"they were found in `obsm[{use_rep!r}]`, which cannot be made again from half the counts")
    labels_key = params.get("labels_key")
    if labels_key is not None and str(labels_key) not in columns:
        raise CannotSplit(f"their labels, `obs[{str(labels_key)!r}]`, no longer exist")


def _segment_again(
    adata: AnnData, half: AnnData, counts: Csr, params: Mapping[str, Any], show_progress: bool | None
) -> tuple[Labels, dict[str, Any]]:
    """Segment ``half`` of the ``counts`` of ``adata`` with the ``params`` of its segmentation.

    Return the groups and what to record: the representation that they were found in, and what was missing.
    """
    from stxtools.tl import segment

    missing: list[str] = []
    image_key, pretrained = _image_key(adata, params, missing), _pretrained_path(params, missing)
    spatial_key = str(params.get("spatial_key", _keys.SPATIAL))
    half.obsm[spatial_key] = adata.obsm[spatial_key]
    if _keys.RASTER in adata.uns and _keys.RASTER in adata.obsm:
        half.obsm[_keys.RASTER], half.uns[_keys.RASTER] = adata.obsm[_keys.RASTER], adata.uns[_keys.RASTER]
    if image_key is not None:
        half.uns[_keys.SPATIAL] = adata.uns[_keys.SPATIAL]
    representation = "PCA of the variable genes" if pretrained is None else "components of the pretrained model"
    if _reads_stored_pca(params, stored=_keys.X_PCA in adata.obsm):
        representation = _write_pca(adata, half, counts, missing) or representation

    labels_key = None if params.get("labels_key") is None else str(params["labels_key"])
    abstain_below = None if params.get("abstain_below") is None else float(params["abstain_below"])
    shares = params.get("class_shares")
    if shares is not None and labels_key is not None:  # 0: not given
        classes = categories(half, labels_key, "labels_key")[1]
        shares = {c: float(v) for c, v in zip(classes, shares, strict=True) if v}
    segment(
        half, n_segments=None if labels_key is not None else int(params["n_segments"]), labels_key=labels_key,
        keep_labels=bool(params.get("keep_labels", False)), class_shares=shares,
        abstain_below=abstain_below, pretrained=pretrained, image_key=image_key,
        spatial_key=spatial_key, library_key=stored_library_key(params),
        params={k: v.tolist() if isinstance(v, np.ndarray | np.generic) else v for k, v in params["segmenter"].items()},
        random_state=int(params.get("random_state", 0)), show_progress=show_progress, key_added=_SEGMENT,
    )  # fmt: skip
    record = {"protect_representation": representation, "protect_missing": missing or None}
    return categories(half, _SEGMENT, "groupby"), record


def _image_key(adata: AnnData, params: Mapping[str, Any], missing: list[str]) -> str | None:
    """Return the key of the image that was read, if it is still there."""
    if params.get("image_key") is None:
        return None
    key, spatial = str(params["image_key"]), adata.uns.get(_keys.SPATIAL)
    if isinstance(spatial, Mapping) and any(key in entry.get(_keys.IMAGES, {}) for entry in spatial.values()):
        return key
    missing.append(f"the image {key!r}, which is no longer in `uns['spatial']`")
    return None


def _pretrained_path(params: Mapping[str, Any], missing: list[str]) -> str | None:
    """Return the file of the pretrained model that training started from, if it is still there."""
    if not params.get("pretrained", False):
        return None
    path = str(params.get("pretrained_path", ""))
    if os.path.exists(path):
        return path
    reason = f"is no longer at {path!r}" if path else "was given in memory (name its file as `pretrained=`)"
    missing.append(f"the pretrained model, which {reason}")
    return None


def _reads_stored_pca(params: Mapping[str, Any], *, stored: bool) -> bool:
    """Whether a segmentation read ``obsm["X_pca"]`` as it was."""
    if str(params.get("use_rep", "")) == _keys.X_PCA:
        return True
    if "representation" in params:
        return str(params["representation"]) == _keys.X_PCA
    return "layer" not in params and stored and not params.get("pretrained", False)


def _write_pca(adata: AnnData, half: AnnData, counts: Csr, missing: list[str]) -> str:
    """Write ``obsm["X_pca"]`` of ``half`` the counts, computed as that of all counts was; return a description.

    Of the usual pipelines the one is taken whose components of all counts explain most of the stored ones. Components
    are those of the half: stored loadings are fitted to the noise of the other half, too.
    """
    if _keys.X_PCA not in adata.obsm:
        missing.append("`obsm['X_pca']`, which no longer exists")
        return ""
    stored = np.asarray(adata.obsm[_keys.X_PCA], dtype=np.float64)
    stored = stored - stored.mean(axis=0)
    genes, genes_from = _genes_of_pca(adata, counts, stored.shape[1])
    explained_by = {}
    for pipeline in product(_TARGETS, (False, True)):
        values = _pca(counts, genes, stored.shape[1], *pipeline).astype(np.float64)
        residual = stored - values @ np.linalg.lstsq(values, stored, rcond=None)[0]
        total = max(float(np.square(stored).sum()), 1e-300)
        explained_by[pipeline] = 1.0 - float(np.square(residual).sum()) / total
    (target, scaled), explained = max(explained_by.items(), key=lambda item: item[1])
    half.obsm[_keys.X_PCA] = _pca(half.X, genes, stored.shape[1], target, scaled)
    if explained < _MIN_EXPLAINED:
        missing.append(
            f"`obsm['X_pca']` as it is: none of the usual ways to compute it from these counts explains more than "
            f"{explained:.0%} of it"
        )
    depth = "the median" if target is None else f"{target:g}"
    how = f"{stored.shape[1]} components of {len(genes)} {genes_from}, depth {depth}{', z-scores' if scaled else ''}"
    return f"PCA made again: {how}; on all counts it explains {explained:.1%} of `obsm['X_pca']`"


def _genes_of_pca(adata: AnnData, counts: Csr, n_comps: int) -> tuple[Ints, str]:
    """Return the genes of a stored PCA, as far as the AnnData records them, and how they were found."""
    expressed = np.asarray((counts > 0).sum(axis=0)).ravel() >= min(3, counts.shape[0])
    for source, genes in recorded_genes(adata, n_comps).items():
        if expressed[genes].sum() > 1:
            return genes[expressed[genes]], source
    return select_genes(counts, "counts"), "variable genes chosen here"


def _pca(counts: Csr, genes: Ints, n_comps: int, target: float | None, scaled: bool) -> Floats32:
    depth = median_depth(np.asarray(counts.sum(axis=1)).ravel()) if target is None else target
    logged = log_normalize(counts, "counts", target_sum=depth)[:, genes].astype(np.float64)
    if scaled:
        spread = np.sqrt(column_moments(logged)[1])
        logged.data *= (1.0 / np.where(spread > 0, spread, 1.0))[logged.indices]
    mean, axes = principal_axes(logged, min(n_comps, len(genes), counts.shape[0] - 1))
    return np.ascontiguousarray(np.asarray(logged @ axes) - mean @ axes, dtype=np.float32)


def _match(groups: Labels, segments: Labels) -> tuple[Ints, float]:
    """Map segments to the groups that they overlap most, one to one where the numbers agree; return the Rand index."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score

    (codes, names), (segment, segment_names) = groups, segments
    both = (codes >= 0) & (segment >= 0)
    overlap = np.zeros((len(segment_names), len(names)))
    np.add.at(overlap, (segment[both], codes[both]), 1.0)
    if set(names) == set(segment_names) and not all(n.isdigit() for n in names):
        group_of = np.array([names.index(n) for n in segment_names])
    elif len(names) == len(segment_names):
        group_of = linear_sum_assignment(-overlap)[1]
    else:
        group_of = overlap.argmax(axis=1)
    matched = np.where(both, group_of[np.maximum(segment, 0)], -1).astype(np.int64)
    merged = matched if len(names) < len(segment_names) else segment
    return matched, float(adjusted_rand_score(codes[both], merged[both])) if both.any() else 0.0


def _warn_other_groups(groupby: str, agreement: float, missing: list[str] | None) -> None:
    parts = []
    if missing:
        parts.append(f"were found without {'; without '.join(missing)}")
    if agreement < _MIN_AGREEMENT:
        parts.append(f"agree with `{groupby}` to an adjusted Rand index of {agreement:.2f} only")
    if parts:
        warn(
            f"The tested groups were found again in one half of the counts. They {' and '.join(parts)}: the table "
            f"describes these groups, not those of `{groupby}`. See `protect_agreement` in the table's params."
        )


def _warn_unprotected(groupby: str, reason: str = "") -> None:
    warn(
        f"The groups of `{groupby}` were found in the expression that is tested, so p-values are optimistic"
        f"{reason}. Use `protect='thinning'` on integer counts (`layer=`), or "
        "split the counts with `st.pp.split_counts`, find groups in one part and test the other (`layer=`). "
        "Otherwise rank genes by effect (`auroc`, `logfoldchanges`), not by p-value."
    )
