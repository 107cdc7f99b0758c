"""Which observations to label next."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_int
from stxtools._data.sections import Geometry
from stxtools._slots import Slots, free_key, provenance
from stxtools._spatial.graph import neighbour_mean
from stxtools._types import Bools, Floats, Ints
from stxtools._validate import check_adata, check_in, inherited_library_key, params_of


@public
def suggest_labels(
    adata: AnnData, n: int = 10, *,
    key: str = _keys.SEGMENT, labels_key: str | None = None, spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None, key_added: str | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Suggest which observations to label next (active learning).

    Observations are selected one by one by the largest product of uncertainty and distance. Uncertainty is one minus
    the margin between the two most probable classes, averaged over spatial neighbours (uncertainty sampling, Lewis and
    Gale 1994). Distance is that to the nearest observation already labelled or selected in the section (farthest-first
    traversal, Gonzalez 1985), up to a tenth of its extent.

    Parameters
    ----------
    n
        Number of observations to suggest.
    key
        Key of the segments, the ``key_added`` of :func:`segment`.
    labels_key
        Column of ``obs`` with the existing labels; by default the one that :func:`segment` used, if any.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.tl.segment(adata, n_segments=3)
    >>> st.tl.suggest_labels(adata, n=5)
    >>> int(adata.obs["suggested"].notna().sum())
    5
    """
    check_adata(adata, copy=copy)
    n = check_int("n", n, minimum=1)
    out = free_key(adata, "tl.suggest_labels", key_added, _keys.SUGGESTED, obs=[""], uns=[""])
    check_in(adata, "obsm", _keys.proba(key), "key", "Run `st.tl.segment(adata)` first.")
    params = params_of(adata.uns.get(key))
    if labels_key is None and "labels_key" in params:
        labels_key = str(params["labels_key"])
    if labels_key is not None:
        check_in(adata, "obs", labels_key, "labels_key")
    where = Geometry(adata, spatial_key, inherited_library_key(adata, key, library_key))
    labelled = np.zeros(adata.n_obs, dtype=bool) if labels_key is None else adata.obs[labels_key].notna().to_numpy()
    if int((~labelled).sum()) < n:
        raise ValueError(
            f"`n={n}`, but only {int((~labelled).sum())} observations have no label; choose a smaller number."
        )

    proba = np.sort(adata.obsm[_keys.proba(key)].to_numpy(dtype=np.float64), axis=1)
    margin = proba[:, -1] - proba[:, -2] if proba.shape[1] > 1 else proba[:, -1]
    doubt = neighbour_mean(where.graph, (1 - margin)[:, None], rounds=1)[:, 0]
    rank = np.full(adata.n_obs, np.nan)
    rank[_select(doubt, where.xy, where.libs.codes, labelled, n)] = np.arange(1, n + 1)

    params = provenance(
        n=n, key=key, labels_key=labels_key, spatial_key=spatial_key, library_key=library_key, key_added=out
    )
    slots = Slots("tl.suggest_labels", obs={out: rank}, uns={out: {"params": params}}, missing={f"obs/{out}": None})
    return slots.write(adata, copy)


def _select(doubt: Floats, xy: Floats, library: Ints, labelled: Bools, n: int) -> list[int]:
    """Select ``n`` observations; distances count within a section, up to a tenth of its extent."""
    from scipy.spatial import cKDTree

    reach = np.ones(len(xy))
    distance = np.full(len(xy), np.inf)
    for i in np.unique(library):
        rows = np.flatnonzero(library == i)
        reach[rows] = max(float(np.ptp(xy[rows], axis=0).max()) / 10, 1e-12)
        if labelled[rows].any():
            distance[rows] = cKDTree(xy[rows[labelled[rows]]]).query(xy[rows])[0]
    score = np.where(labelled, -1.0, doubt + 1e-9)  # negative where labelled or selected
    selected: list[int] = []
    for _ in range(n):
        best = int(np.argmax(score * np.minimum(distance / reach, 1.0)))
        if score[best] < 0:  # all others have distance 0: take the most doubtful one
            best = int(np.argmax(score))
        selected.append(best)
        score[best] = -1.0
        same = library == library[best]
        distance[same] = np.minimum(distance[same], np.linalg.norm(xy[same] - xy[best], axis=1))
    return selected
