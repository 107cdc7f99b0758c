"""A small network that imitates a trained framework, for very large sections."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_seed, check_writable
from stxtools._data.expression import without_genes
from stxtools._data.features import model_features
from stxtools._data.regions import Regions
from stxtools._data.sections import make_sections
from stxtools._progress import progress_bar
from stxtools._slots import Slots, free_key, provenance
from stxtools._validate import check_adata

if TYPE_CHECKING:
    from stxtools.models import SegmenterParams, TissueNet


@public
@progress_bar({"loading PyTorch": 4, "reading expression": 0.5, "predicting": 1, "training the student": 8})
def distill(
    adata: AnnData, model: str | os.PathLike[str] | TissueNet, *,
    save_model: str | os.PathLike[str], layer: str | None = None, spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None, regions_key: str = _keys.REGIONS,
    params: SegmenterParams | Mapping[str, Any] | None = None, random_state: int = 0, accelerator: str = "auto",
    devices: int | str = 1, show_progress: bool | None = None, key_added: str | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Distil a trained model of :func:`~stxtools.tl.multitask` into a small student network (Hinton et al. 2015).

    The student is a two-layer perceptron on the features smoothed at several spatial scales (as in GLNN, Zhang et al.
    2022). It learns the teacher's class probabilities on ``adata``. ``st.tl.multitask(new, "disease", "layer",
    model="student.stx")`` then predicts from the raster, without compartments or a region graph. A student predicts
    classes only: no gene expression and no embeddings.

    Parameters
    ----------
    adata
        Annotated data matrix with a region graph, of tissue like that to which the student will be applied. Labels
        are not needed.
    params
        :class:`stxtools.models.SegmenterParams`, or a mapping of some of its fields, of which the student uses
        ``width``, ``sigmas``, ``epochs``, ``patience``, ``lr`` and ``weight_decay``.

    Returns
    -------
    None, or the modified copy with ``copy=True``. Saves the student and sets the following fields:

    %(slots)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, "disease", "compartment", save_model="teacher.stx", params={"epochs": 2})
    >>> st.tl.distill(adata, "teacher.stx", save_model="student.stx", params={"epochs": 2})
    >>> st.tl.multitask(adata, "disease", "compartment", model="student.stx", key_added="student")
    >>> adata.obs["disease_pred"].cat.categories.tolist()
    ['healthy', 'diseased']
    """
    check_adata(adata, min_obs=10, layer=layer, copy=copy)
    key = free_key(adata, "tl.distill", key_added, _keys.DISTILL, uns=[""])
    seed = check_seed(random_state)
    check_writable(save_model, "save_model")
    from stxtools.models import TissueStudent
    from stxtools.models._base import model_of

    teacher: TissueNet = model_of(model, "TissueNet")
    regions = Regions(adata, regions_key, spatial_key, library_key)
    read = model_features(*without_genes(adata, teacher.hidden_genes, layer), teacher)
    sections = read.sections(regions)
    student = TissueStudent(params)
    targets = student.soft_targets(teacher, sections, random_state=seed, accelerator=accelerator)
    features = model_features(adata, layer, student if student.projection is not None else teacher)
    student.fit(
        make_sections(features.values, regions.where), targets, random_state=seed, accelerator=accelerator,
        devices=devices, show_progress=show_progress,
    )  # fmt: skip
    student.save(save_model)
    entry = {
        "params": provenance(
            layer=layer, spatial_key=spatial_key, library_key=library_key, random_state=random_state,
            **read.record, student=student.params_dict(), teacher="TissueNet", regions_key=regions_key,
        ),
        "history": pd.DataFrame(student.history),
        "agreement": student.agreements,
    }  # fmt: skip
    return Slots("tl.distill", uns={key: entry}).write(adata, copy)
