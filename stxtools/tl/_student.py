"""A student of the framework: trained in distill, applied in multitask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stxtools import _keys
from stxtools._data.features import model_features
from stxtools._data.framework import known_sections
from stxtools._data.regions import called, read_regions
from stxtools._data.sections import Geometry, join, make_sections
from stxtools._slots import Slots, provenance, put_frame

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from stxtools.models import TissueNet, TissueStudent


def trained_student(
    adata: AnnData,
    teacher: TissueNet,
    params: Any,
    *,
    layer: str | None,
    spatial_key: str,
    regions_key: str,
    **how: Any,
) -> tuple[TissueStudent, dict[str, Any]]:
    """Student of a framework, and what ``params`` say of its input; reads the region graph of ``adata``."""
    from stxtools.models import TissueStudent

    inp = read_regions(adata, regions_key, spatial_key)
    sections, found = known_sections(adata, teacher, layer, inp)
    student = TissueStudent(params)
    targets = student.soft_targets(teacher, sections, random_state=how["random_state"], accelerator=how["accelerator"])
    read = student if student.projection is not None else teacher
    values, _ = model_features(adata, read, layer)
    student.fit(make_sections(values, inp.where), targets, **how)
    return student, found


def apply_student(
    adata: AnnData,
    student: TissueStudent,
    columns: Mapping[str, str],
    *,
    key: str,
    layer: str | None,
    spatial_key: str,
    library_key: str | bool | None,
    accelerator: str,
) -> None:
    """Write the student's predictions for the observations; no region graph is read or written."""
    where = Geometry(adata, spatial_key, library_key)
    values, found = model_features(adata, student, layer)
    predictions = student.predict(make_sections(values, where), accelerator=accelerator)
    slots = Slots("tl.multitask")
    for task, column in columns.items():
        proba = join([p[task] for p in predictions], where).astype(np.float32)
        slots.obs[_keys.pred(column)] = called(proba, student.tasks[task])
        put_frame(slots, _keys.proba(column), proba, student.tasks[task], adata.obs_names)
    slots.uns[key] = {
        "params": provenance(
            biomarker_key=columns.get("biomarker"), region_key=columns.get("classification"), layer=layer,
            **found, spatial_key=spatial_key, library_key=library_key, model="student",
            student=student.params_dict(),
        )
    }  # fmt: skip
    slots.write(adata)
