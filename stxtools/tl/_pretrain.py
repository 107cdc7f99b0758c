"""Self-supervised pretraining of the segmentation U-Net across sections."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._api import public
from stxtools._checks import check_bool, check_seed, check_writable
from stxtools._data.features import gene_names, joint_representation
from stxtools._data.representation import stored_representation
from stxtools._data.sections import Geometry, make_sections
from stxtools._progress import FEATURES, progress_bar, stage
from stxtools._slots import Slots, check_free, provenance
from stxtools._validate import check_adata, check_key_added

if TYPE_CHECKING:
    from stxtools.models import SegmenterParams


@public
@progress_bar({"loading PyTorch": 4, **FEATURES, "pretraining": 8})
def pretrain(
    adata: AnnData | Sequence[AnnData], *, save_model: str | os.PathLike[str], use_rep: str | None = None,
    layer: str | None = None, spatial_key: str = _keys.SPATIAL, library_key: str | bool | None = None,
    params: SegmenterParams | Mapping[str, Any] | None = None, random_state: int = 0, accelerator: str = "auto",
    devices: int | str = 1, show_progress: bool | None = None, key_added: str | None = None, copy: bool = False,
) -> AnnData | list[AnnData] | None:  # fmt: skip
    """Pretrain the U-Net of :func:`~stxtools.tl.segment` on unlabelled sections.

    Shared genes are reduced to common principal components, centred within each data set. The U-Net learns to
    reconstruct masked parts of the rasters (He et al. 2022), or to match two views of one location (SimCLR, Chen et al.
    2020). ``segment(new, pretrained="tissue.stx")`` starts its training from the saved model, with or without labels.

    Parameters
    ----------
    adata
        One AnnData or a list of several, which may differ in donor, depth and platform.
    use_rep
        Key of ``obsm`` to use instead of expression; all data sets need it, with the same number of columns.
    params
        :class:`stxtools.models.SegmenterParams`, or a mapping of some of its fields; ``pretrain`` is the objective,
        ``pretrain_epochs`` the number of epochs.

    Returns
    -------
    None, or the modified copy (a list for several AnnData) with ``copy=True``. Saves the model and sets the following
    fields of each AnnData:

    %(slots)s

    Examples
    --------
    >>> sections = [st.datasets.synthetic_tissue(n_obs=400, random_state=i) for i in range(2)]
    >>> st.tl.pretrain(sections, save_model="tissue.stx")
    >>> st.tl.segment(sections[0], n_segments=4, pretrained="tissue.stx")
    """
    stage("loading PyTorch")
    from stxtools.models import Segmenter

    adatas: list[Any] = list(adata) if isinstance(adata, Sequence) else [adata]
    if not adatas:
        raise ValueError("`adata` is an empty list; pass at least one AnnData.")
    key = check_key_added(key_added, _keys.PRETRAIN)
    random_state = check_seed(random_state)
    for one in adatas:
        check_adata(one, min_obs=10, layer=layer)
        check_free(one, "tl.pretrain", uns=[key])
    check_writable(save_model, "save_model")
    adatas = [one.copy() for one in adatas] if check_bool("copy", copy) else adatas

    geometries = [Geometry(one, spatial_key, library_key) for one in adatas]
    model, records = Segmenter(params), [dict[str, str]()] * len(adatas)
    model.use_rep = "pca" if use_rep is None else use_rep
    if use_rep is None:
        values, model.projection, read = joint_representation(adatas, layer)
        records = [r.record for r in read]
        for one in adatas:
            model.ids = gene_names(one)[1] | model.ids
    else:
        values = [stored_representation(one, use_rep) for one in adatas]
        widths = [v.shape[1] for v in values]
        if len(set(widths)) > 1:
            raise ValueError(f"`adata.obsm[{use_rep!r}]` has {widths} columns; all data need a common representation.")
    sections = [section for pair in zip(values, geometries, strict=True) for section in make_sections(*pair)]
    model.pretrain(
        sections, random_state=random_state, accelerator=accelerator, devices=devices, show_progress=show_progress
    )
    model.save(save_model)
    for one, record in zip(adatas, records, strict=True):
        params = provenance(
            n_sections=len(sections), use_rep=use_rep, layer=layer, **record, spatial_key=spatial_key,
            library_key=library_key, random_state=random_state, segmenter=model.params_dict(),
        )  # fmt: skip
        Slots("tl.pretrain", uns={key: {"params": params, "history": pd.DataFrame(model.history)}}).write(one)
    if not copy:
        return None
    return adatas if isinstance(adata, Sequence) else adatas[0]
