"""A small network that imitates a trained segmentation model, for very large sections."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from stxtools import _keys
from stxtools._data.features import model_features
from stxtools._data.image import with_image
from stxtools._data.regions import read_regions
from stxtools._data.sections import geometry, make_sections
from stxtools._ownership import check_free
from stxtools._progress import whole_call
from stxtools._slots import Slots, provenance
from stxtools._validate import check_adata, check_bool, check_key_added, check_seed, check_writable

from ._ensemble import check_sections
from ._segmenters import number_of_image_features, trained_segmenter
from ._student import framework_of, taught_student

if TYPE_CHECKING:
    from anndata import AnnData

    from stxtools.models import Segmenter, SegmenterParams, Student, TissueNet

MIN_OBS = 10


@whole_call({
    "loading PyTorch": 4, "reading expression": 0.5, "predicting": 1, "training the student": 8,
})  # fmt: skip
def distill(
    adata: AnnData,
    model: str | os.PathLike[str] | Segmenter | TissueNet,
    *,
    save_model: str | os.PathLike[str],
    layer: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None,
    regions_key: str = _keys.REGIONS,
    params: SegmenterParams | Mapping[str, Any] | None = None,
    random_state: int = 0,
    accelerator: str = "auto",
    devices: int | str = 1,
    show_progress: bool | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Teach a small network to answer as a trained segmentation model, or the whole framework, does.

    The teacher's class probabilities on ``adata`` are imitated (Hinton et al. 2015) by a two-layer perceptron on
    spatial means of the features at a few scales (as in GLNN, Zhang et al. 2022).

    The student of a model of :func:`multitask` needs neither compartments nor a region graph:
    ``st.tl.multitask(new, "disease", "layer", model="student.stx")`` predicts observations from the raster alone,
    in a fraction of the time. Beside the components that the framework reads, it reads a few more axes of the genes:
    those along which the framework's answers change. It predicts no genes and embeds no regions.

    The student of a model of :func:`segment` is applied like its teacher, ``st.tl.segment(new, model="student.stx")``.
    What applying takes beside the network, reading expression and laying it out, stays the same, and is most of it.

    Parameters
    ----------
    adata
        One or several sections like those that the student will be applied to; no labels are needed. For a student of
        the framework with a region graph, as :func:`multitask` reads it.
    model
        The teacher: a saved model (path), a fitted :class:`stxtools.models.Segmenter` or
        :class:`stxtools.models.TissueNet`.
    save_model
        Where to write the student (``"student.stx"``).
    layer
        Layer to take expression from; by default ``layers["counts"]`` if there, else ``X``.
    spatial_key
        Key of ``obsm`` with x, y positions.
    library_key
        Column of ``obs`` that says which section an observation belongs to. For a student of the framework it must name
        the sections of the region graph. ``False`` says that all observations are one section.
    regions_key
        Key of ``uns`` with the region graph, for a student of the framework.
    params
        Fields of :class:`stxtools.models.SegmenterParams` that a :class:`stxtools.models.Student` reads: ``width``,
        ``sigmas``, ``epochs``, ``patience``, ``lr``, ``weight_decay``.
    random_state
        Seed. The same seed gives the same student, to the bit on a CPU.
    accelerator, devices
        Where to train, as in Lightning.
    show_progress
        Whether to show progress; by default in terminals and notebooks.
    key_added
        Name of the entry in ``uns`` instead of ``"distill"``.
    copy
        Whether to return a changed copy.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Writes the student's file and sets:

    ``uns["distill"]`` : dict
        ``params``, ``history`` (loss by epoch) and ``agreement``: the share of pixels in blocks that were not learned
        from on which student and teacher name the same class; for a framework a dict of each task's.

    Raises
    ------
    KeyError
        If a key does not exist, or the framework's region graph.
    ValueError
        If the teacher knows too few of the genes, or predicts no classes.
    FileNotFoundError
        If there is no such model, or no folder to write to.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.segment(adata, n_segments=3, save_model="teacher.stx")
    >>> st.tl.distill(adata, "teacher.stx", save_model="student.stx")
    >>> st.tl.segment(adata, model="student.stx", key_added="quick")
    >>> adata.obs["quick"].cat.categories.tolist()
    ['0', '1', '2']
    """
    check_adata(adata, min_obs=MIN_OBS)
    key = check_key_added(key_added, _keys.DISTILL)
    check_free(adata, "tl.distill", uns=[key])
    how: dict[str, Any] = {
        "random_state": check_seed(random_state), "accelerator": accelerator,
        "devices": devices, "show_progress": show_progress,
    }  # fmt: skip
    check_writable(save_model)
    framework = framework_of(model)
    if framework is not None and library_key is not None:
        check_sections(adata, read_regions(adata, regions_key, spatial_key), library_key, regions_key)
    adata = adata.copy() if check_bool("copy", copy) else adata
    student: Student
    agreement: float | dict[str, float]
    if framework is not None:
        student, found = taught_student(
            adata, framework, params, layer=layer, spatial_key=spatial_key, regions_key=regions_key, **how
        )
        agreement = student.agreements
    else:
        teacher = trained_segmenter(model)  # type: ignore[arg-type]
        student, found = _taught_by_segmenter(adata, teacher, params, layer, spatial_key, library_key, how)
        agreement = student.agreement
    student.save(save_model)
    entry = {
        "params": provenance(
            layer=layer, spatial_key=spatial_key, library_key=library_key, random_state=random_state,
            **found, student=student.params_dict(), teacher="Segmenter" if framework is None else "TissueNet",
            regions_key=None if framework is None else regions_key,
        ),
        "history": pd.DataFrame(student.history),
        "agreement": agreement,
    }  # fmt: skip
    Slots("tl.distill", uns={key: entry}).write(adata)
    return adata if copy else None


def _taught_by_segmenter(
    adata: AnnData,
    teacher: Segmenter,
    params: Any,
    layer: str | None,
    spatial_key: str,
    library_key: str | bool | None,
    how: dict[str, Any],
) -> tuple[Student, dict[str, Any]]:
    """Student of a segmentation model, and what ``params`` say of its input."""
    from stxtools.models import Student

    where = geometry(adata, spatial_key, library_key)
    values, found = model_features(adata, teacher, layer, n_others=number_of_image_features(teacher))
    values = with_image(values, adata, where, teacher.image_key)
    return Student(params).imitate(teacher, make_sections(values, where), **how), found
