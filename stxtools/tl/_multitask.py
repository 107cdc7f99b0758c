"""The joint framework: biomarker state and tissue class from U-Net, region graph and GNN."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._data.framework import expression_targets, genes_to_predict, known_sections, training_sections
from stxtools._data.regions import RegionInput, called, classes_of, gather, graph_slots, read_regions
from stxtools._data.sections import join
from stxtools._docs import documented
from stxtools._ownership import check_free
from stxtools._progress import stage, whole_call
from stxtools._slots import provenance, put_frame
from stxtools._validate import check_adata, check_bool, check_key_added, check_seed, check_writable

from ._ensemble import check_sections, warn_of_network, weights_table, with_ensemble
from ._student import apply_student

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import TissueNet, TissueNetParams, TissueStudent

_PARAMS = {"biomarker": "biomarker_key", "classification": "region_key"}


@documented
@whole_call({
    "loading PyTorch": 4,
    "reading expression": 0.5, "choosing genes": 1, "computing components": 1,
    "pretraining": 2, "training the network": 17, "weighing the ensemble": 10, "predicting": 0.5,
})  # fmt: skip
def multitask(
    adata: AnnData,
    biomarker_key: str | None = None,
    region_key: str | None = None,
    *,
    expression: Sequence[str] | None = None,
    expression_key: str | None = None,
    model: str | os.PathLike[str] | TissueNet | TissueStudent | None = None,
    save_model: str | os.PathLike[str] | None = None,
    use_rep: str | None = None,
    layer: str | None = None,
    regions_key: str = _keys.REGIONS,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None,
    ensemble: str | Sequence[str] = "auto",
    params: TissueNetParams | Mapping[str, Any] | None = None,
    random_state: int = 0,
    accelerator: str = "auto",
    devices: int | str = 1,
    show_progress: bool | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Predict biomarker state, tissue class and held-out genes with a network and a stacked ensemble.

    A U-Net on the raster and a graph network on the regions are trained together on :math:`L = \alpha L_{biomarker} +
    \beta L_{classification} + \gamma L_{expression}` and predict in an ensemble. Predictions on labelled observations
    do *not* estimate the accuracy on new tissue.

    Parameters
    ----------
    adata
        Annotated data with a region graph.
    biomarker_key, region_key
        Column of ``obs`` with the classes to predict, missing where unknown; None leaves the task out.
    expression
        Genes to predict in a third task; they are kept out of the input.
    expression_key
        Boolean column of ``obs``: where the genes may be learned from.
    model
        A saved model (path) or a fitted :class:`stxtools.models.TissueNet`, applied without training; the two keys then
        only name the outputs. Or its student (:func:`distill`), which needs no region graph and predicts classes.
    save_model
        Where to write the trained model.
    ensemble
        Members: ``"network"``, ``"linear"``, ``"trees"``, ``"label_propagation"``, or ``"auto"``: all but a network
        that has not converged; linear alone for sections without labels where three have some.
    params
        :class:`stxtools.models.TissueNetParams` or a mapping of some of its fields, as ``alpha`` and ``beta``.
    %(parameters)s

    Returns
    -------
    None, or the changed copy with ``copy=True``. Sets, with both ``{key}``:

    %(slots)s

    Raises
    ------
    KeyError, ValueError
        If a column, a gene or the region graph is missing, or a column has fewer than two classes.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, "disease", "compartment", params={"epochs": 5})
    """
    check_adata(adata)
    key = check_key_added(key_added, _keys.MULTITASK)
    random_state = check_seed(random_state)
    if save_model is not None:
        check_writable(save_model)
    training_only = (save_model, use_rep, params, expression, expression_key)
    if model is not None and (any(value is not None for value in training_only) or ensemble != "auto"):
        raise ValueError(
            "`model=` applies a trained model as it is; drop `save_model=`, `use_rep=`, `params=`, `ensemble=`, "
            "`expression=` and `expression_key=`."
        )
    stage("loading PyTorch")
    from stxtools.models import TissueStudent
    from stxtools.models._base import model_of

    applied = None if model is None else model_of(model, "TissueNet", "TissueStudent")
    if isinstance(applied, TissueStudent):
        columns = _columns(biomarker_key, region_key, needed=True)
        _check_tasks(applied.tasks, columns)
        named = {"obs": map(_keys.pred, columns.values()), "obsm": map(_keys.proba, columns.values())}
        check_free(adata, "tl.multitask", uns=[key], **named)
        adata = adata.copy() if check_bool("copy", copy) else adata
        apply_student(
            adata, applied, columns, key=key, layer=layer, spatial_key=spatial_key, library_key=library_key,
            accelerator=accelerator,
        )  # fmt: skip
        return adata if copy else None
    from stxtools.models import TissueNet  # a student, applied above, needs none of what this imports

    fitted = TissueNet(with_ensemble(params, ensemble))
    inp = read_regions(adata, regions_key, spatial_key)
    check_sections(adata, inp, library_key, regions_key)
    wanted = genes_to_predict(adata, expression)
    columns = _columns(biomarker_key, region_key, needed=model is None and not wanted)
    check_free(
        adata, "tl.multitask", uns=[key], obs=[_keys.ATTENTION, *map(_keys.pred, columns.values())],
        obsm=[_keys.X_GNN, *map(_keys.proba, columns.values()), *([_keys.EXPRESSION_PRED] if wanted else [])],
    )  # fmt: skip
    adata = adata.copy() if check_bool("copy", copy) else adata

    if applied is not None:
        fitted = applied
        _check_tasks(fitted.classes, columns)
        sections, found = known_sections(adata, fitted, layer, inp)
    else:
        labels = {task: classes_of(adata, column, _PARAMS[task]) for task, column in columns.items()}
        targets, learned = expression_targets(adata, wanted, expression_key, layer)
        sections, found = training_sections(
            adata, fitted, inp, {task: codes for task, (codes, _) in labels.items()}, targets, wanted,
            use_rep=use_rep, layer=layer, portable=save_model is not None, random_state=random_state,
        )  # fmt: skip
        fitted.fit(
            sections, classes={task: names for task, (_, names) in labels.items()}, expression=wanted,
            random_state=random_state, accelerator=accelerator, devices=devices, show_progress=show_progress,
        )  # fmt: skip
        found = learned | found
    predictions = fitted.predict(sections, accelerator=accelerator)
    if save_model is not None:
        fitted.save(save_model)

    result = gather(predictions, inp)
    slots = graph_slots("tl.multitask", regions_key, result)
    regions, outside = slots.inner[regions_key], inp.region < 0
    for task, column in columns.items():
        at_obs = join([p.obs_proba[task] for p in predictions], inp.where)
        at_regions = _stack([p.proba[task] for p in predictions], inp)
        names = fitted.classes[task]
        slots.obs[_keys.pred(column)] = called(at_obs, names)
        put_frame(slots, _keys.proba(column), at_obs, names, adata.obs_names)
        regions.obs[_keys.pred(column)] = called(at_regions, names)
        put_frame(regions, _keys.proba(column), at_regions, names, inp.regions.obs_names)
        slots.missing[f"obsm/{_keys.proba(column)}"] = outside
    if fitted.expression:
        at_obs = join([p.obs_expression for p in predictions if p.obs_expression is not None], inp.where)
        at_regions = _stack([p.expression for p in predictions], inp)
        put_frame(slots, _keys.EXPRESSION_PRED, at_obs, fitted.expression, adata.obs_names)
        put_frame(regions, _keys.EXPRESSION_PRED, at_regions, fitted.expression, inp.regions.obs_names)
        slots.missing[f"obsm/{_keys.EXPRESSION_PRED}"] = outside
    weights = weights_table(fitted, sections)
    slots.uns[key] = {
        "params": provenance(
            biomarker_key=biomarker_key, region_key=region_key, expression=wanted or None,
            expression_key=expression_key, use_rep=use_rep, layer=layer, **found,
            library_key=library_key, regions_key=regions_key, spatial_key=spatial_key, random_state=random_state,
            model="given" if model is not None else "trained", tissuenet=fitted.params_dict(),
        ),
        "task_weights": fitted.task_weights,
        "weights": weights,
        "Z": result.z,
    }  # fmt: skip
    if model is None:
        slots.uns[key]["history"] = pd.DataFrame(fitted.history)
        slots.uns[key]["training"] = fitted.convergence
        warn_of_network(fitted, weights, key, saved=save_model is not None)
    slots.write(adata)
    return adata if copy else None


def _columns(biomarker_key: str | None, region_key: str | None, *, needed: bool) -> dict[str, str]:
    """Task -> label column, for the tasks that were named."""
    keys = {"biomarker": biomarker_key, "classification": region_key}
    columns = {task: key for task, key in keys.items() if key is not None}
    if not columns and needed:
        raise ValueError("Name `biomarker_key`, `region_key` or both: without a label column there is no task.")
    if columns and biomarker_key == region_key:
        raise ValueError(f"`biomarker_key` and `region_key` are both {region_key!r}; they name two different columns.")
    return columns


def _check_tasks(known: Mapping[str, Sequence[str]], columns: dict[str, str]) -> None:
    """Check that the model was trained for the tasks asked for."""
    missing = [_PARAMS[task] for task in columns if task not in known]
    if missing:
        raise ValueError(f"The model was trained for {', '.join(known) or 'no class'}; drop {' and '.join(missing)}.")


def _stack(parts: Sequence[Any], inp: RegionInput) -> NDArray[np.float32]:
    out = np.empty((inp.regions.n_obs, parts[0].shape[1]), dtype=np.float32)
    for i, part in enumerate(parts):
        out[inp.rows(i)] = part
    return out
