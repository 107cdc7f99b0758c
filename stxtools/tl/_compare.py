"""Compartments compared between conditions, with the subject as unit."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_seed, listing
from stxtools._progress import progress_bar, stage
from stxtools._slots import Slots, free_key, provenance
from stxtools._types import Array, Ints
from stxtools._validate import categories, check_adata, value_per_unit
from stxtools._warn import warn
from stxtools.stats._subjects import MIN_SUBJECTS, compare_subjects

from ._subject_values import MIN_OBS, Subjects, UnitValues, Values


@public
@progress_bar({"reading expression": 1, "comparing subjects": 1})
def compare(
    adata: AnnData, condition_key: str, subject_key: str, *, groupby: str = _keys.SEGMENT, reference: str | None = None,
    layer: str | None = None, spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
    key_added: str | None = None, random_state: int = 0, show_progress: bool | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Test for differences between conditions in compartment shares, contacts and gene expression.

    The subject (patient, animal) is the replicate, whatever its number of sections and observations. Three kinds of
    values are computed for each subject, on a log2 scale:

    - ``"share"``: fraction of the subject's observations in a compartment;
    - ``"contact"``: number of neighbours between two compartments, relative to the number expected if they were mixed
      at random;
    - ``"expression"``: pseudobulk counts of a gene in a compartment, per million.

    Contacts and expression need at least 10 observations of the subject in the compartment. A gene is tested if at
    least 10 observations express it, in at least as many subjects as the smaller condition has.

    Each value is tested by a moderated t-test (limma, Smyth 2004; propeller, Phipson et al. 2022), calibrated by
    permuting subjects. With fewer than three subjects in a condition there is a confidence interval, but no p-value.
    Subjects with both conditions (before and after, tumour and normal, in separate sections) enter as pairs.

    Parameters
    ----------
    condition_key
        Column of ``obs`` with the condition of each observation. A section has one condition.
    reference
        Condition to compare the others with; by default the first category.

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=300, n_patients=6, disease="patient")
    >>> st.tl.compare(adata, "disease", "patient", groupby="compartment", library_key="section")
    >>> shares = adata.uns["compare"].query("kind == 'share'")
    """
    check_adata(adata, layer=layer, copy=copy)
    key = free_key(adata, "tl.compare", key_added, _keys.COMPARE, uns=["", "_params"])
    seed = check_seed(random_state)
    conditions, condition_names = categories(adata, condition_key, "condition_key", min_classes=2)
    if reference is not None and (not isinstance(reference, str) or reference not in condition_names):
        raise ValueError(f"`reference={reference!r}` is not a condition; `adata.obs[{condition_key!r}]` has "
                         f"{listing(condition_names)}.")  # fmt: skip
    base = 0 if reference is None else condition_names.index(reference)
    subjects = Subjects(adata, subject_key, groupby, spatial_key, library_key)
    value_per_unit(subjects.where.libs, conditions, condition_names, condition_key)
    # a unit is a subject in a condition
    known = (subjects.codes >= 0) & (conditions >= 0)
    units = np.full(adata.n_obs, -1)
    pairs, units[known] = np.unique(np.stack([subjects.codes, conditions])[:, known], axis=1, return_inverse=True)
    values = UnitValues(adata, layer, subjects, units)

    stage("comparing subjects")
    tables, within = [], []
    for other in range(len(condition_names)):
        if other == base or not {base, other} <= set(pairs[1].tolist()):
            continue
        chosen, paired = _units(pairs, other, base, subjects.names, condition_names)
        group = pairs[1, chosen] == other
        for part in (values.shares(chosen), values.contacts(chosen), values.expression(chosen, (group, ~group))):
            if part.names:
                table = _table(part, compare_subjects(part.log2, group, part.level, seed, paired=paired))
                table.insert(0, "group", condition_names[other])
                tables.append(table)
        within += [condition_names[other]] * paired
    if not tables:
        raise ValueError(
            f"No subject (`{subject_key}`) is known in {condition_names[base]!r} and in another condition."
        )
    params = provenance(
        condition_key=condition_key, subject_key=subject_key, groupby=groupby, reference=condition_names[base],
        min_obs=MIN_OBS, min_subjects=MIN_SUBJECTS, layer=layer, **values.record, spatial_key=spatial_key,
        library_key=subjects.library_key, random_state=seed, compartments=values.names, within_subjects=within,
    )  # fmt: skip
    uns = {key: pd.concat(tables, ignore_index=True), f"{key}_params": params}
    return Slots("tl.compare", uns=uns).write(adata, copy)


def _units(
    pairs: Ints, group: int, reference: int, subject_names: list[str], condition_names: list[str]
) -> tuple[Ints, bool]:
    """Return the units of two conditions by subject, and whether they are paired: of subjects with both."""
    chosen = np.flatnonzero(np.isin(pairs[1], [group, reference]))
    subjects, counts = np.unique(pairs[0, chosen], return_counts=True)
    if counts.max() == 1:
        return chosen, False
    unpaired = subjects[counts == 1]
    if len(unpaired):
        warn(
            f"{condition_names[group]!r} and {condition_names[reference]!r} are compared within the "
            f"{len(subjects) - len(unpaired)} subject(s) that have both; omitted: "
            f"{listing(subject_names[i] for i in unpaired)}."
        )
    return chosen[~np.isin(pairs[0, chosen], unpaired)], True


def _table(values: Values, columns: dict[str, Array]) -> pd.DataFrame:
    means = {name: np.exp2(columns[name]) for name in ("mean_group", "mean_reference")}
    table = values.effects(columns | means, "names", "logfoldchanges")
    if values.kind != "expression":
        return table
    order = (-table["logfoldchanges"].abs(), table["pvals"].fillna(2.0), pd.factorize(table["compartment"])[0])
    return table.iloc[np.lexsort(order)].reset_index(drop=True)
