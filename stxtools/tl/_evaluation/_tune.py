"""Choose parameters on one's own sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from anndata import AnnData

from stxtools import _keys
from stxtools._docs import documented
from stxtools._ownership import free_key
from stxtools._progress import whole_call
from stxtools._slots import Slots, provenance
from stxtools._validate import check_adata, check_bool, check_choice, check_int, check_seed, listing

from ._protocol import CLASS_METRICS, LEAKY, SCHEMES, checked_protocol
from ._tuning import PARTS, SEARCHES, Search, search_space


@documented
@whole_call({
    "loading PyTorch": 4, "tune": 100,
})  # fmt: skip
def tune(
    adata: AnnData, part: Literal["unet", "gnn", "weights"] = "gnn", *, biomarker_key: str | None = None,
    region_key: str | None = None, space: Mapping[str, Sequence[Any]] | None = None,
    search: Literal["grid", "random", "tpe"] | None = None, n_trials: int | None = None,
    metric: Literal["accuracy", "precision", "recall", "auroc"] = "auroc", prune: bool = True,
    params: Mapping[str, Any] | None = None, stages: Mapping[str, Mapping[str, Any]] | None = None, storage: Any = None,
    scheme: Literal["block", "library"] = "block", n_folds: int = 3, max_folds: int | None = None,
    use_rep: str | None = None, layer: str | None = None, spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None, random_state: int = 0, accelerator: str = "auto",
    show_progress: bool | None = None, key_added: str | None = None, copy: bool = False,
) -> AnnData | None:  # fmt: skip
    """Search parameters of the U-Net, of the graph network, or the weights of the two losses, with Optuna.

    A trial is judged by the mean of ``metric`` over targets and folds, with the splits of :func:`evaluate`. The best
    value is the best of many and therefore too good: judge the parameters on other tissue.

    Parameters
    ----------
    adata
        Annotated data with labels.
    part
        ``"unet"``: fields of :class:`stxtools.models.SegmenterParams`. ``"gnn"``: of
        :class:`stxtools.models.TissueNetParams`, on regions that all trials share. ``"weights"``: alpha and beta.
    biomarker_key, region_key
        Columns of ``obs`` to predict; one of them at least, both for ``"weights"``.
    space
        Field -> values to choose from; by default one for each part.
    search
        ``"grid"``, ``"random"`` or ``"tpe"`` (Bayesian, Bergstra et al. 2011). By default random for the U-Net, TPE for
        the graph network, grid for the weights.
    n_trials
        Most trials, of all processes together; 20, or the whole grid.
    metric
        What to maximise.
    prune
        Whether to stop trials that are below the median of earlier ones.
    params
        Fields that are the same in all trials.
    stages
        Arguments of earlier calls for ``"gnn"`` and ``"weights"``: ``{"segment": {...}, "region_graph": {...}}``.
    storage
        Optuna storage (``"sqlite:///tune.db"`` or an object), to go on later or in several processes at once. Each
        data set with its settings is a study of its own; ``uns["tune"]["params"]["study"]`` names it.
    scheme, n_folds, max_folds
        How to split, as in :func:`evaluate`, and the most folds that a trial runs.
    %(parameters)s

    Examples
    --------
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> space = {"width": [8, 16]}
    >>> st.tl.tune(adata, "unet", region_key="compartment", space=space, n_trials=2, n_folds=2, params={"epochs": 3})
    >>> st.tl.segment(adata, labels_key="compartment", params=adata.uns["tune"]["best_params"])
    """
    check_adata(adata, min_obs=20, layer=layer, copy=copy)
    key = free_key(adata, "tl.tune", key_added, _keys.TUNE, uns=[""])
    seed = check_seed(random_state)
    check_choice("part", part, tuple(PARTS))
    check_choice("metric", metric, CLASS_METRICS)
    how = PARTS[part][0] if search is None else search
    check_choice("search", how, SEARCHES)
    if part == "weights" and (biomarker_key is None or region_key is None):
        raise ValueError("`part='weights'` balances two losses: name `biomarker_key=` and `region_key=`.")
    unknown = sorted(set(stages or {}) - {"segment", "region_graph"})
    if unknown or (stages and part == "unet"):
        raise ValueError(
            f"`stages` takes 'segment' and 'region_graph' for 'gnn' and 'weights'; got {listing(stages or [])}."
        )
    fixed = dict(params or {})
    fields = search_space(part, space, fixed)
    if n_trials is not None:
        check_int("n_trials", n_trials, minimum=1)
    split = {"n_folds": n_folds, "max_folds": max_folds, "use_rep": use_rep, "layer": layer, "spatial_key": spatial_key,
             "library_key": library_key}  # fmt: skip
    protocol = checked_protocol(
        adata, {"biomarker": biomarker_key, "region": region_key}, [scheme], [s for s in SCHEMES if s not in LEAKY],
        seed=seed, accelerator=accelerator, **split,
    )  # fmt: skip
    search_of_part = Search(
        protocol, part, how, fields, fixed, {k: dict(v) for k, v in (stages or {}).items()}, metric, n_trials,
        check_bool("prune", prune),
    )  # fmt: skip
    best, value, trials = search_of_part.run(storage, show_progress=show_progress)
    slots = Slots("tl.tune")
    slots.uns[key] = {
        "best_params": best,
        "best_value": value,
        "trials": trials,
        "params": provenance(
            part=part, search=how, biomarker_key=biomarker_key, region_key=region_key, metric=metric,
            n_trials=n_trials, prune=prune, scheme=scheme, study=search_of_part.name, random_state=seed,
            space={name: str(list(values)) for name, values in fields.items()}, fixed=str(fixed) if fixed else None,
            **split, **protocol.record,
        ),
    }  # fmt: skip
    return slots.write(adata, copy)
