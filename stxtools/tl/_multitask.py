"""The joint framework: biomarker state and tissue class by U-Net, region graph and GNN."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_key, check_seed, check_writable, listing
from stxtools._data.expression import log_values, without_genes
from stxtools._data.features import joint_training_features, model_features
from stxtools._data.regions import Regions, graph_slots, predicted_class
from stxtools._data.sections import Geometry, make_sections
from stxtools._progress import FEATURES, progress_bar, stage
from stxtools._slots import Slots, check_free, provenance, put_frame
from stxtools._types import Floats32
from stxtools._validate import check_adata, check_key_added, genes_to_predict, label_classes, subjects_of
from stxtools._warn import warn

if TYPE_CHECKING:
    from stxtools.models import Section, TissueNet, TissueNetParams, TissueStudent
    from stxtools.models.tissuenet.model import TissuePrediction

_PARAMS = {"biomarker": "biomarker_key", "classification": "region_key"}


@public
@progress_bar({
    "loading PyTorch": 4, **FEATURES, "pretraining": 2, "training the network": 17, "weighing the ensemble": 10,
    "predicting": 0.5,
})  # fmt: skip
def multitask(
    adata: AnnData, biomarker_key: str | None = None, region_key: str | None = None, *,
    expression: Sequence[str] | None = None, expression_key: str | None = None,
    model: str | os.PathLike[str] | TissueNet | TissueStudent | None = None,
    save_model: str | os.PathLike[str] | None = None, use_rep: str | None = None, layer: str | None = None,
    regions_key: str = _keys.REGIONS, spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
    subject_key: str | None = None, ensemble: str | Sequence[str] = "auto",
    params: TissueNetParams | Mapping[str, Any] | None = None, random_state: int = 0, accelerator: str = "auto",
    devices: int | str = 1, show_progress: bool | None = None, key_added: str | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    r"""Predict biomarker state, tissue class and gene expression with a multi-task network in a stacked ensemble.

    A U-Net on the raster and a graph network on the regions are trained jointly on :math:`L = \alpha L_{biomarker} +
    \beta L_{classification} + \gamma L_{expression}`, and combined with simpler models. Predictions on labelled
    observations do *not* estimate the accuracy on new tissue; use :func:`evaluate`.

    Parameters
    ----------
    biomarker_key, region_key
        Columns of ``obs`` with the classes to predict, missing where unknown; None omits the task.
    expression, expression_key
        Genes to predict as a third task, not read as input; Boolean column of ``obs``: where they are learned.
    model
        Model to apply without training: path, or a fitted :class:`stxtools.models.TissueNet`. The keys then only name
        the outputs. A student (:func:`distill`) needs no region graph and predicts classes only.
    subject_key
        Column of ``obs`` with subjects. Members for unlabelled sections are then chosen on held-out subjects.
    ensemble
        Members: ``"network"``, ``"linear"``, ``"trees"``, ``"label_propagation"`` and, for sections without labels,
        ``"genes"`` (linear, on genes standardised within sections). ``"auto"``: all that apply, without a network
        that has not converged; ``"genes"`` alone for sections without labels if three or more sections have labels.

    Returns
    -------
    None, or the modified copy with ``copy=True``. Sets the following fields, for both keys as ``{key}``:

    %(slots)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, "disease", "compartment", params={"epochs": 5})
    """
    check_adata(adata, layer=layer, copy=copy)
    key = check_key_added(key_added, _keys.MULTITASK)
    random_state = check_seed(random_state)
    if save_model is not None:
        check_writable(save_model, "save_model")
    training_only = (save_model, use_rep, params, expression, expression_key, subject_key)
    if model is not None and (any(value is not None for value in training_only) or ensemble != "auto"):
        raise ValueError(
            "`model=` applies a trained model as it is; drop `save_model=`, `use_rep=`, `params=`, `ensemble=`, "
            "`expression=`, `expression_key=` and `subject_key=`."
        )
    stage("loading PyTorch")
    from stxtools.models import TissueStudent
    from stxtools.models._base import model_of

    applied = None if model is None else model_of(model, "TissueNet", "TissueStudent")
    student = applied if isinstance(applied, TissueStudent) else None
    columns = _columns(
        biomarker_key, region_key, required=student is not None or (applied is None and expression is None)
    )
    labels, learned_genes = {}, genes_to_predict(adata, expression, expression_key)
    if applied is None:
        labels = {task: label_classes(adata, column, _PARAMS[task]) for task, column in columns.items()}
    else:
        known = applied.classes if student is None else student.tasks
        if missing := [_PARAMS[task] for task in columns if task not in known]:
            trained_for = ", ".join(known) or "no class"
            raise ValueError(f"The model was trained for {trained_for}; drop {' and '.join(missing)}.")
    obs, obsm = [_keys.pred(c) for c in columns.values()], [_keys.proba(c) for c in columns.values()]
    if student is None:
        obs, obsm = [*obs, _keys.ATTENTION], [*obsm, _keys.X_GNN]
        if learned_genes if applied is None else applied.expression:
            obsm.append(_keys.EXPRESSION_PRED)
    check_free(adata, "tl.multitask", uns=[key], obs=obs, obsm=obsm)
    if student is not None:
        where, features = Geometry(adata, spatial_key, library_key), model_features(adata, layer, student)
        slots = _student_slots(student, make_sections(features.values, where), columns, where, accelerator)
        slots.uns[key] = {"params": provenance(
            biomarker_key=biomarker_key, region_key=region_key, layer=layer, **features.record,
            spatial_key=spatial_key, library_key=library_key, model="student", student=student.params_dict(),
        )}  # fmt: skip
        return slots.write(adata, copy)

    fitted = _new_model(params, ensemble) if applied is None else applied
    regions = Regions(adata, regions_key, spatial_key, library_key)
    for task, (codes, names) in labels.items():
        if len(inside := np.unique(codes[(codes >= 0) & (regions.region >= 0)])) < 2:
            raise ValueError(
                f"Within the regions, `adata.obs[{columns[task]!r}]` labels {listing(names[i] for i in inside)} of its "
                f"classes {listing(names)}; two at least are needed. Label observations that lie in a region."
            )
    libs, subjects = regions.where.libs, [None] * len(regions.where.libs)
    if subject_key is not None:
        subjects = subjects_of(adata, libs, check_key("subject_key", subject_key)).codes.tolist()
    if applied is None:
        targets, record = log_values(adata, learned_genes, layer, expression_key) if learned_genes else (None, {})
        source = without_genes(adata, learned_genes, layer)
        features = joint_training_features(
            *source, fitted, use_rep=use_rep, recompute=targets is not None, portable=save_model is not None,
            random_state=random_state,
        )  # fmt: skip
        features.record = record | features.record
        sections = features.sections(regions, {task: codes for task, (codes, _) in labels.items()}, targets)
        for section, subject in zip(sections, subjects, strict=True):
            section.subject = subject
        fitted.fit(
            sections, classes={task: names for task, (_, names) in labels.items()}, expression=learned_genes,
            inductive=save_model is not None, random_state=random_state, accelerator=accelerator, devices=devices,
            show_progress=show_progress,
        )  # fmt: skip
    else:
        features = model_features(*without_genes(adata, fitted.hidden_genes, layer), fitted)
        sections = features.sections(regions)
    predictions = fitted.predict(sections, accelerator=accelerator)
    if save_model is not None:
        fitted.save(save_model)

    slots, z = _network_slots(fitted, predictions, regions, regions_key, columns)
    named = list(zip(regions.where.libs.names, predictions, strict=True))
    tasks = predictions[0].weights  # weight of each member's logits by task and section
    weights = pd.DataFrame([{"task": t, "library": name} | vars(p.weights[t]) for t in tasks for name, p in named])
    slots.uns[key] = {
        "params": provenance(
            biomarker_key=biomarker_key, region_key=region_key, expression=learned_genes or None,
            expression_key=expression_key, use_rep=use_rep, layer=layer, **features.record,
            library_key=library_key, subject_key=subject_key, regions_key=regions_key, spatial_key=spatial_key,
            random_state=random_state,
            model="given" if applied is not None else "trained", tissuenet=fitted.params_dict(),
        ),
        "task_weights": fitted.task_weights,
        "weights": weights,
        "Z": z,
    }  # fmt: skip
    if applied is None:
        slots.uns[key]["history"] = pd.DataFrame(fitted.history)
        slots.uns[key]["training"] = fitted.convergence
        _warn_about_network(fitted, weights, key, saved=save_model is not None)
    return slots.write(adata, copy)


def _new_model(params: TissueNetParams | Mapping[str, Any] | None, ensemble: str | Sequence[str]) -> TissueNet:
    """Return an untrained model with the members named in ``ensemble=``, or those of ``params`` with ``"auto"``."""
    from stxtools.models import TissueNet, TissueNetParams  # a student needs none of what this imports
    from stxtools.models._params import check_ensemble, resolve

    check_ensemble(ensemble)
    resolved = resolve(params, TissueNetParams)
    return TissueNet(resolved if isinstance(ensemble, str) else replace(resolved, ensemble=tuple(ensemble)))


def _columns(biomarker_key: str | None, region_key: str | None, *, required: bool) -> dict[str, str]:
    """Return the label column of each task that was named."""
    keys = {"biomarker": biomarker_key, "classification": region_key}
    columns = {task: check_key(_PARAMS[task], key) for task, key in keys.items() if key is not None}
    if not columns and required:
        raise ValueError("Name `biomarker_key`, `region_key` or both: without a label column there is no task.")
    if columns and biomarker_key == region_key:
        raise ValueError(f"`biomarker_key` and `region_key` are both {region_key!r}; name two different columns.")
    return columns


def _student_slots(
    student: TissueStudent, sections: list[Section], columns: dict[str, str], where: Geometry, accelerator: str
) -> Slots:
    """Return the class probabilities that a student predicts."""
    slots, results = Slots("tl.multitask"), student.predict(sections, accelerator=accelerator)
    for task, column in columns.items():
        proba = where.join([r[task] for r in results]).astype(np.float32)
        _put_classes(slots, column, proba, student.tasks[task])
    return slots


def _network_slots(
    model: TissueNet, predictions: list[TissuePrediction], regions: Regions, regions_key: str, columns: dict[str, str]
) -> tuple[Slots, pd.DataFrame]:
    """Return what is predicted for observations and regions, and a table of section embeddings."""
    slots, z = graph_slots("tl.multitask", regions_key, predictions, regions)
    for name in [*columns, *(["expression"] if model.expression else [])]:
        at_obs = regions.where.join([p.observations[name] for p in predictions])
        at_regions = regions.join([p.regions[name] for p in predictions])
        for to, values in ((slots, at_obs), (slots.inner[regions_key], at_regions)):
            if name in columns:
                _put_classes(to, columns[name], values, model.classes[name])
            else:
                put_frame(to, _keys.EXPRESSION_PRED, values, model.expression)
    for table in slots.obsm:
        slots.missing[f"obsm/{table}"] = regions.region < 0
    return slots, z


def _put_classes(slots: Slots, column: str, proba: Floats32, names: list[str]) -> None:
    put_frame(slots, _keys.proba(column), proba, names)
    slots.obs[_keys.pred(column)] = predicted_class(proba, names)


def _warn_about_network(model: TissueNet, weights: pd.DataFrame, key: str, *, saved: bool) -> None:
    """Warn where the network has not converged, or has no weight."""
    training = model.convergence
    named = model.params.ensemble != "auto"
    if not training["converged"]:
        what = "It keeps the weight that `ensemble` gives it" if named else "Its weight in the ensemble is 0"
        warn(
            f"The network has not converged: its lowest loss on {training['judged_on']} is {training['loss']:.3g} "
            f"(epoch {training['best_epoch'] + 1} of {training['epochs']}), not below "
            f"{training['uninformed_loss']:.3g}, that of predicting the classes' shares. {what}; embeddings and "
            "attention are those of this network. More labels, more epochs or a smaller `params['lr']` may help."
        )
    elif not named and any(model.unlabelled_stack(task).weights.network == 0 for task in model.classes):
        where = sorted(set(weights.loc[weights["network"] == 0, "library"]))
        if where or saved:
            scope = f"in {listing(where)}" if where else "in the sections that the saved model will be applied to"
            warn(
                f"The network has weight 0 {scope}: three or more sections have labels, so that a linear classifier, "
                f"chosen on held-out sections, predicts alone where there are none (`adata.uns[{key!r}]['weights']`). "
                "`ensemble=` names other members."
            )
