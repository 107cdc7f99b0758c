"""Compare models on one's own sections, without leaks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from anndata import AnnData

from stxtools import _keys
from stxtools._checks import check_names
from stxtools._docs import documented
from stxtools._ownership import free_key
from stxtools._progress import stage, whole_call
from stxtools._slots import Slots, provenance
from stxtools._validate import check_adata, check_int, check_number, check_seed, listing

from ._protocol import checked_protocol
from ._run import COLUMNS, Evaluation

MODELS = ("framework", "unet", "gnn", "random_forest", "random_forest_means", "lda", "nearest_label")


@documented
@whole_call({
    "loading PyTorch": 4, "evaluate": 100,
})  # fmt: skip
def evaluate(
    adata: AnnData, models: Sequence[str | Callable[..., Any]] | Mapping[str, str | Callable[..., Any]] | None = None,
    *, biomarker_key: str | None = None, region_key: str | None = None, genes: int | Sequence[str] | None = None,
    scheme: Literal["block", "library", "random"] | Sequence[str] = "block", n_folds: int = 5,
    max_folds: int | None = None, n_seeds: int = 5, noise: float | Sequence[float] = 0.0,
    params: Mapping[str, Mapping[str, Any]] | None = None, checkpoint: str | os.PathLike[str] | None = None,
    use_rep: str | None = None, layer: str | None = None, spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None, random_state: int = 0, accelerator: str = "auto",
    show_progress: bool | None = None, key_added: str | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Measure how well models predict held-out parts of the tissue, over folds, seeds and noise levels.

    Labels of the test observations are removed before any model sees the data; expression and coordinates stay. Genes
    and components are chosen without labels, and with ``scheme="library"`` from the training sections alone.

    Parameters
    ----------
    adata
        Annotated data with labels; observations without a label are neither learned from nor counted.
    models
        Names, by default all but ``"logistic"``: ``"framework"`` (:func:`multitask` and what it needs), ``"unet"``
        alone, ``"gnn"`` on the observations, ``"random_forest"`` on each observation, ``"random_forest_means"``,
        ``"lda"`` and ``"logistic"`` on means over the 19 and 61 nearest ones, ``"nearest_label"``. Or functions
        ``f(sections, labels, n_classes, random_state)`` of :class:`stxtools.models.Section` and class codes (-1:
        hidden) that return class probabilities of each section.
    biomarker_key, region_key
        Columns of ``obs`` to predict; one of them at least.
    genes
        Genes to hide and to predict, or how many for each seed: adds the target ``"expression"`` with its ``mse``.
    scheme
        ``"block"`` (blocks of neighbours held out), ``"library"`` (whole sections), ``"random"`` (leaky), or several.
    n_folds, max_folds
        Folds of ``"block"`` and ``"random"``, and the most that are run for each seed.
    n_seeds
        Number of seeds from ``random_state`` on. Each draws its own folds, noise and models.
    noise
        Levels of Gaussian noise, as in :func:`stxtools.pp.add_noise`: on all observations, training and test.
    params
        Model name -> its parameters; for ``"framework"`` by call: ``{"multitask": {"params": {"alpha": 2}}}``.
    checkpoint
        File of finished folds (JSON lines): a run with it goes on where it was interrupted, also in several processes
        (``FILE.lock`` keeps them apart).
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", n_seeds=2)
    >>> table = st.get.evaluation(adata)
    """
    check_adata(adata, min_obs=20, layer=layer, copy=copy)
    key = free_key(adata, "tl.evaluate", key_added, _keys.EVALUATION, uns=["", "_params"])
    seed = check_seed(random_state)
    chosen = _models(models)
    if params is not None and not (
        isinstance(params, Mapping) and all(isinstance(v, Mapping) for v in params.values())
    ):
        raise TypeError(f"`params` must be a mapping of models to mappings of their parameters, not {params!r}.")
    model_params = {str(name): dict(value) for name, value in (params or {}).items()}
    unknown = sorted(set(model_params) - set(chosen))
    if unknown:
        raise ValueError(f"`params` names {listing(unknown)}; the models are {listing(chosen)}.")
    if use_rep is not None and genes is not None:
        raise ValueError("`genes` are hidden before the representation is made; drop `use_rep=`.")
    levels = [noise] if isinstance(noise, (int, float)) else noise
    how = {"n_folds": n_folds, "max_folds": max_folds, "use_rep": use_rep, "layer": layer, "spatial_key": spatial_key,
           "library_key": library_key}  # fmt: skip
    protocol = checked_protocol(
        adata, {"biomarker": biomarker_key, "region": region_key}, check_names("scheme", scheme, "a scheme"), seed=seed,
        accelerator=accelerator, **how,
    )  # fmt: skip
    evaluation = Evaluation(
        protocol, chosen, model_params, [seed + i for i in range(check_int("n_seeds", n_seeds, minimum=1))],
        [check_number("noise", level, minimum=0, maximum=1) for level in levels], genes,
    )  # fmt: skip
    rows = evaluation.run(checkpoint, show_progress=show_progress)
    slots = Slots("tl.evaluate")
    slots.uns[key] = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    slots.uns[f"{key}_params"] = provenance(
        models=list(chosen), biomarker_key=biomarker_key, region_key=region_key, scheme=protocol.schemes,
        n_seeds=n_seeds, noise=evaluation.noise, random_state=seed, **how, **protocol.record,
        genes=genes if genes is None or isinstance(genes, int) else list(genes),
        params={name: str(value) for name, value in model_params.items()} or None,
    )  # fmt: skip
    return slots.write(adata, copy)


def _models(models: Any) -> dict[str, str | Callable[..., Any]]:
    """Name -> registered name or function."""
    stage("loading PyTorch")
    from stxtools.models.baselines.simple import BASELINES

    if models is None:
        models = MODELS
    if isinstance(models, (str, Mapping)) or callable(models):
        pairs = dict(models) if isinstance(models, Mapping) else {_name(models): models}
    else:
        pairs = {_name(m): m for m in models}
        if len(pairs) < len(list(models)):
            raise ValueError("Two models have the same name; give them names with a mapping.")
    known = ("framework", *BASELINES)
    for name, model in pairs.items():
        if not callable(model) and model not in known:
            raise ValueError(
                f"There is no model {model!r} ({name!r}); choose from {listing(known)}, or pass a function."
            )
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise ValueError(f"`models` has the name {name!r}; a name is text that is not empty.")
    if not pairs:
        raise ValueError(f"`models` is empty; choose from {listing(known)}.")
    return pairs


def _name(model: Any) -> str:
    return model if isinstance(model, str) else str(getattr(model, "__name__", type(model).__name__))
