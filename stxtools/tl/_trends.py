"""Compartments followed over time, with the subject as unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_seed
from stxtools._progress import progress_bar, stage
from stxtools._slots import Slots, free_key, provenance
from stxtools._spatial.graph import observation_area
from stxtools._types import Bools, Floats, Ints
from stxtools._validate import Libraries, check_adata
from stxtools.stats._subjects import MIN_SUBJECTS, jonckheere, regress_subjects

from ._subject_values import MIN_OBS, Subjects, UnitValues, Values, time_of


@public
@progress_bar({"reading expression": 1, "testing trends": 1})
def trends(
    adata: AnnData, time_key: str, *, subject_key: str, groupby: str = _keys.SEGMENT,
    layer: str | None = None, spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
    key_added: str | None = None, random_state: int = 0, show_progress: bool | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Test compartment shares, areas, contacts and gene expression for trends over time.

    The subject (animal, donor) is the replicate, whatever its number of sections and observations, and belongs to one
    time point. The values are those of :func:`compare`, and ``"area"``: log2 of the mean area of a compartment in the
    sections of a subject.

    Each value is regressed on time with a moderated variance (limma, Smyth 2004), calibrated by permuting subjects.
    With fewer than three subjects in either half of the time range there is a confidence interval, but no p-value.
    ``pvals_order`` tests for a monotonic trend, linear or not (Jonckheere 1954, Terpstra 1952).

    Parameters
    ----------
    groupby
        Column of ``obs`` with compartments that have the same names at all time points, such as the one that
        :func:`track` writes. Observations without a compartment are ignored.

    Examples
    --------
    >>> adata = st.datasets.synthetic_series(3, 3, obs_per_section=200)
    >>> st.tl.trends(adata, "time", subject_key="subject", groupby="compartment", library_key="section")
    >>> shares = adata.uns["trends"].query("kind == 'share'")
    """
    check_adata(adata, layer=layer, copy=copy)
    key = free_key(adata, "tl.trends", key_added, _keys.TRENDS, uns=["", "_params", "_values"])
    seed = check_seed(random_state)
    subjects = Subjects(adata, subject_key, groupby, spatial_key, library_key)
    times = time_of(adata, time_key, Libraries(subjects.names, subjects.codes), subject_key)

    # subjects in the order of their times; those without one are left out
    order = np.argsort(times, kind="stable")[: np.isfinite(times).sum()]
    x, middle = times[order], (np.nanmin(times) + np.nanmax(times)) / 2
    sides = (x < middle, x > middle)
    values = UnitValues(adata, layer, subjects, subjects.codes)

    stage("testing trends")
    areas = _areas(values, subjects.codes, order)
    parts = values.shares(order), areas, values.contacts(order), values.expression(order, sides)
    table = pd.concat([_table(part, x, sides, seed) for part in parts if part.names])
    log2 = np.concatenate([part.log2 for part in parts], axis=1).T.astype(np.float32)
    values_table = pd.DataFrame(log2, columns=[f"s{i}" for i in range(len(x))])
    params = provenance(
        time_key=time_key, subject_key=subject_key, groupby=groupby, min_obs=MIN_OBS, min_subjects=MIN_SUBJECTS,
        layer=layer, **values.record, spatial_key=spatial_key, library_key=subjects.library_key, random_state=seed,
        compartments=values.names, subjects=[subjects.names[i] for i in order], times=x,
    )  # fmt: skip
    uns = {key: table.reset_index(drop=True), f"{key}_values": values_table, f"{key}_params": params}
    return Slots("tl.trends", uns=uns).write(adata, copy)


def _areas(values: UnitValues, subject: Ints, chosen: Ints) -> Values:
    """Mean area of each compartment in the sections of each subject."""
    where, used, sizes = values.where, values.cell >= 0, values.sizes
    area = observation_area(where.libs.codes, where.grids, where.meshes)
    total = np.bincount(values.cell[used], area[used], minlength=sizes.size).reshape(sizes.shape)[chosen]
    pairs = np.unique(np.stack([subject, where.libs.codes], axis=1)[subject >= 0], axis=0)
    sections = np.bincount(pairs[:, 0], minlength=len(sizes))[chosen]
    known = (sizes[chosen] >= MIN_OBS) & (total > 0)
    mean = np.where(known, total, 1.0) / sections[:, None]
    return Values("area", np.where(known, np.log2(mean), np.nan), [(name, "") for name in values.names])


def _table(part: Values, x: Floats, sides: tuple[Bools, Bools], seed: int) -> pd.DataFrame:
    columns = regress_subjects(part.log2, x, sides, part.level, seed)
    known = np.isfinite(part.log2)
    n = known.sum(axis=0)
    mean = np.where(known, part.log2, 0).sum(axis=0) / np.maximum(n, 1)
    x_mean = x @ known / np.maximum(n, 1)
    columns["pvals_order"] = np.where(np.isfinite(columns["pvals"]), jonckheere(part.log2, x), np.nan)
    for name, time in (("mean_start", x.min()), ("mean_end", x.max())):
        columns[name] = np.exp2(mean + columns["effect"] * (time - x_mean))
    return part.effects(columns | {"n_subjects": n}, "feature", "slope")
