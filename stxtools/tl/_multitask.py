"""The joint framework: biomarker state and tissue class from U-Net, region graph and GNN."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stxtools import _keys
from stxtools._slots import Slots, categorical, proba_frame, provenance
from stxtools._validate import check_adata, check_bool, check_int, check_key_added, check_writable

from ._regions import RegionInput, classes_of, gather, node_features, read_regions, region_sections, with_graph_result
from ._transfer import model_features, remember_input, training_representation

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import TissueNet, TissueNetParams


def multitask(
    adata: AnnData,
    biomarker_key: str,
    region_key: str,
    *,
    model: str | os.PathLike[str] | TissueNet | None = None,
    save_model: str | os.PathLike[str] | None = None,
    use_rep: str | None = None,
    layer: str | None = None,
    regions_key: str = _keys.REGIONS,
    spatial_key: str = _keys.SPATIAL,
    params: TissueNetParams | Mapping[str, Any] | None = None,
    random_state: int = 0,
    accelerator: str = "auto",
    devices: int | str = 1,
    show_progress: bool | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Predict biomarker state and tissue class of regions with one jointly trained network.

    A U-Net reads the expression raster; its features are averaged inside each region of
    :func:`region_graph` and go, beside the region's mean representation, through the graph network; two
    heads read the region's state and the section's embedding Z. All parts are trained together on
    :math:`L = \alpha L_{biomarker} + \beta L_{classification}`, both cross-entropy. One labelled region in
    six is held out for early stopping: the predictions on labelled observations are *not* an estimate of
    accuracy on new tissue.

    Parameters
    ----------
    adata
        Annotated data with a region graph.
    biomarker_key
        Column of ``obs`` with the biomarker state (disease, say); missing where unknown.
    region_key
        Column of ``obs`` with the tissue class; missing where unknown.
    model
        A saved model (path) or a fitted :class:`stxtools.models.TissueNet`, applied without training; the
        two columns need not exist then and only name the outputs.
    save_model
        Where to write the trained model.
    use_rep
        Key of ``obsm`` to read; by default as in :func:`segment`.
    layer
        Layer to take expression from where the representation is computed.
    regions_key
        Key of ``uns`` with the region graph.
    spatial_key
        Key of ``obsm`` with x, y positions.
    params
        :class:`stxtools.models.TissueNetParams` or a mapping of some of its fields, such as ``alpha``
        and ``beta``.
    random_state
        Seed. The same seed gives the same result, to the bit on a CPU.
    accelerator, devices
        Where to train, as in Lightning.
    show_progress
        Whether to show progress; by default in terminals and notebooks.
    key_added
        Name of the entry in ``uns`` instead of ``"multitask"``.
    copy
        Whether to return a changed copy.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Sets these slots, the first two for both keys:

    ``obs["{key}_pred"]`` : :class:`pandas.Categorical`, (n_obs,)
        Predicted class of the observation's region.
    ``obsm["{key}_proba"]`` : :class:`pandas.DataFrame`, (n_obs, n_classes)
        Class probabilities; NaN outside any region.
    ``obsm["X_gnn"]``, ``obs["attention"]``, and in ``uns["regions"]``
        Embeddings and attention as :func:`embed` writes them.
    ``uns["multitask"]`` : dict
        ``params``, ``history``, ``task_weights`` and ``Z`` (sections x d).

    Raises
    ------
    KeyError
        If a column or the region graph is not there.
    ValueError
        If a column has fewer than two classes.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, "disease", "compartment", params={"epochs": 5})
    >>> adata.obsm["disease_proba"].columns.tolist()
    ['healthy', 'diseased']
    """
    from stxtools.models import TissueNet

    check_adata(adata)
    key = check_key_added(key_added, _keys.MULTITASK)
    random_state = check_int("random_state", random_state, minimum=0)
    inp = read_regions(adata, regions_key, spatial_key)
    columns = {"biomarker": biomarker_key, "classification": region_key}
    if biomarker_key == region_key:
        raise ValueError(f"`biomarker_key` and `region_key` are both {region_key!r}; they name two different columns.")
    if save_model is not None:
        check_writable(save_model)
    if model is not None and any(given is not None for given in (save_model, use_rep, params)):
        raise ValueError("`model=` applies a trained model as it is; drop `save_model=`, `use_rep=` and `params=`.")
    if model is not None and not isinstance(model, (str, os.PathLike, TissueNet)):
        raise TypeError(f"`model` must be a path or a stxtools.models.TissueNet, not {type(model).__name__}.")
    adata = adata.copy() if check_bool("copy", copy) else adata

    if model is not None:
        fitted = model if isinstance(model, TissueNet) else TissueNet.load(model)
        values, found = model_features(adata, fitted, layer)
        sections = region_sections(values, node_features(values, inp), inp, {})
    else:
        labels = {task: classes_of(adata, column, f"{param}_key") for (task, column), param in
                  zip(columns.items(), ("biomarker", "region"), strict=True)}  # fmt: skip
        rep = training_representation(adata, use_rep, layer, portable=save_model is not None, random_state=random_state)
        values, found = rep.values, None
        fitted = TissueNet(params)
        remember_input(fitted, rep)
        codes = {task: c for task, (c, _) in labels.items()}
        sections = region_sections(values, node_features(values, inp), inp, codes)
        fitted.fit(
            sections, classes={task: names for task, (_, names) in labels.items()}, random_state=random_state,
            accelerator=accelerator, devices=devices, show_progress=show_progress,
        )  # fmt: skip
    predictions = fitted.predict(sections, accelerator=accelerator)
    if save_model is not None:
        fitted.save(save_model)

    result = gather(predictions, inp)
    slots = Slots()
    for task, column in columns.items():
        proba = _stack([p.proba[task] for p in predictions], inp)
        _add_prediction(slots, column, proba, fitted.classes[task], inp, adata.obs_names)
    slots.obsm[_keys.X_GNN] = result.to_obs(result.states)
    slots.obs[_keys.ATTENTION] = result.to_obs(result.received)
    slots.uns[regions_key] = with_graph_result(inp, result)
    slots.uns[key] = {
        "params": provenance(
            biomarker_key=biomarker_key, region_key=region_key, use_rep=use_rep, layer=layer, genes_found=found,
            regions_key=regions_key, spatial_key=spatial_key, random_state=random_state,
            model="given" if model is not None else "trained", tissuenet=fitted.params_dict(),
        ),
        "task_weights": fitted.task_weights,
        "Z": result.z,
    }  # fmt: skip
    if model is None:
        slots.uns[key]["history"] = pd.DataFrame(fitted.history)
    slots.write(adata)
    return adata if copy else None


def _stack(parts: list[NDArray[np.float32]], inp: RegionInput) -> NDArray[np.float32]:
    out = np.empty((inp.regions.n_obs, parts[0].shape[1]), dtype=np.float32)
    for i, part in enumerate(parts):
        out[inp.rows(i)] = part
    return out


def _add_prediction(
    slots: Slots, column: str, proba: NDArray[np.float32], names: list[str], inp: RegionInput, index: pd.Index
) -> None:
    """Carry the regions' predictions to their observations."""
    known = inp.region >= 0
    at_obs = np.full((len(known), proba.shape[1]), np.nan, dtype=np.float32)
    at_obs[known] = proba[inp.region[known]]
    codes = np.full(len(known), -1, dtype=np.int64)
    codes[known] = proba.argmax(axis=1)[inp.region[known]]
    slots.obs[_keys.pred(column)] = categorical(codes, names)
    slots.obsm[_keys.proba(column)] = proba_frame(at_obs, names, index)
