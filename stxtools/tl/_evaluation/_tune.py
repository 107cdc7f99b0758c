"""Choose parameters on one's own sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from stxtools import _keys
from stxtools._ownership import check_free
from stxtools._progress import whole_call
from stxtools._slots import Slots, provenance
from stxtools._validate import (
    check_adata,
    check_bool,
    check_choice,
    check_int,
    check_key_added,
    check_number,
    check_seed,
    listing,
)

from ._data import FeatureSource
from ._metrics import CLASS_METRICS
from ._protocol import checked_protocol, readable
from ._splits import LEAKY, SCHEMES
from ._tuning import PARTS, SEARCHES, Search, search_space, study_of

if TYPE_CHECKING:
    from anndata import AnnData


@whole_call({
    "loading PyTorch": 4, "tune": 100,
})  # fmt: skip
def tune(
    adata: AnnData,
    part: Literal["unet", "gnn", "weights"] = "gnn",
    *,
    biomarker_key: str | None = None,
    region_key: str | None = None,
    space: Mapping[str, Sequence[Any]] | None = None,
    search: Literal["grid", "random", "tpe"] | None = None,
    n_trials: int | None = None,
    metric: Literal["accuracy", "precision", "recall", "auroc"] = "auroc",
    patience: int | None = None,
    prune: bool = True,
    params: Mapping[str, Any] | None = None,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    storage: Any = None,
    study_name: str | None = None,
    scheme: Literal["block", "library"] = "block",
    n_folds: int = 3,
    max_folds: int | None = None,
    use_rep: str | None = None,
    layer: str | None = None,
    spatial_key: str = _keys.SPATIAL,
    library_key: str | bool | None = None,
    random_state: int = 0,
    accelerator: str = "auto",
    show_progress: bool | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Search parameters of the U-Net, of the graph network, or the weights of the two losses, with Optuna.

    A trial is judged by the mean of ``metric`` over targets and folds, with the splits of :func:`evaluate`. The best
    value found is the best of many and therefore too good: judge the parameters on other tissue.

    Parameters
    ----------
    adata
        Annotated data with labels.
    part
        ``"unet"``: fields of :class:`stxtools.models.SegmenterParams`, the U-Net trained alone. ``"gnn"``: fields of
        :class:`stxtools.models.TissueNetParams`, the framework trained on compartments and regions that all trials
        share. ``"weights"``: its ``alpha`` and ``beta``; needs both keys.
    biomarker_key, region_key
        Columns of ``obs`` to predict; one of them at least.
    space
        Field -> values to choose from; a sensible one for each part by default.
    search
        ``"grid"``, ``"random"`` or ``"tpe"`` (Bergstra et al. 2011: Bayesian). By default random for the U-Net, TPE
        for the graph network, grid for the weights.
    n_trials
        Number of trials, of all processes together; 20 by default, the whole grid with ``search="grid"``.
    metric
        What to maximise.
    patience
        Stop after as many trials without a better one; None goes through all.
    prune
        Whether a trial whose running mean is below the median of earlier ones is given up between folds.
    params
        Fields that are the same in all trials: numbers, strings, booleans.
    stages
        ``{"segment": {...}, "region_graph": {...}}``: keyword arguments of these calls, for ``"gnn"`` and
        ``"weights"``.
    storage
        Where trials are kept, so that a study can go on later and several processes can work on it together: a
        database URL (``"sqlite:///tune.db"``) or a storage object of Optuna
        (``JournalStorage(JournalFileBackend("tune.log"))`` works on network drives). In memory by default. The order
        of trials then depends on the processes, and so does what is found.
    study_name
        Name in the storage; ``"stxtools_{part}"`` by default. A study of other data or settings is refused.
    scheme
        How to split: ``"block"`` or ``"library"``.
    n_folds, max_folds
        Folds, and the most of them that a trial runs.
    use_rep, layer, spatial_key, library_key
        What to read, as in :func:`evaluate`.
    random_state
        Seed of folds, networks and search.
    accelerator
        Where networks are trained, as in Lightning.
    show_progress
        Whether to show progress; by default in terminals and notebooks.
    key_added
        Name of the entry in ``uns`` instead of ``"tune"``.
    copy
        Whether to return a changed copy.

    Returns
    -------
    None, or the changed copy with ``copy=True``. Sets these slots:

    ``uns["tune"]["best_params"]`` : dict
        The best fields together with ``params``: what :func:`segment` (``"unet"``) or :func:`multitask` take as
        ``params=``.
    ``uns["tune"]["best_value"]`` : float
        Mean metric of the best trial.
    ``uns["tune"]["trials"]`` : :class:`pandas.DataFrame`
        One row per trial: ``number``, ``state``, ``value``, ``value_sd`` (standard deviation over folds; NaN for
        one), ``value_{target}``, ``n_folds``, ``seconds`` and a column for each field.
    ``uns["tune"]["params"]`` : dict
        Parameters, seed and versions.

    Raises
    ------
    KeyError
        If a key is not there.
    ValueError
        If a field or a search is not understood, or the study in ``storage`` belongs to other data.

    See Also
    --------
    stxtools.pl.sensitivity : the metric over alpha and beta.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=400)
    >>> st.tl.tune(
    ...     adata, "unet", region_key="compartment", n_trials=2, n_folds=2, space={"width": [8, 16]},
    ...     params={"epochs": 3},
    ... )
    >>> st.tl.segment(adata, labels_key="compartment", params=adata.uns["tune"]["best_params"])
    """
    check_adata(adata, min_obs=20)
    key = check_key_added(key_added, _keys.TUNE)
    seed = check_seed(random_state)
    check_free(adata, "tl.tune", uns=[key])
    check_choice("part", part, tuple(PARTS))
    check_choice("metric", metric, CLASS_METRICS)
    how = PARTS[part].search if search is None else search
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
    if patience is not None:
        check_number("patience", patience, minimum=1)
    protocol = checked_protocol(
        adata, {part: "unet" if part == "unet" else "framework"}, {"biomarker": biomarker_key, "region": region_key},
        [scheme], [seed], FeatureSource(use_rep, layer, seed), n_folds=n_folds, max_folds=max_folds,
        spatial_key=spatial_key, library_key=library_key, accelerator=accelerator,
        allowed=[s for s in SCHEMES if s not in LEAKY],
    )  # fmt: skip
    task = Search(
        part=part, kind=how, space=fields, fixed=fixed, stages={k: dict(v) for k, v in (stages or {}).items()},
        metric=metric, n_trials=n_trials, patience=patience, prune=check_bool("prune", prune), protocol=protocol,
    )  # fmt: skip
    adata = adata.copy() if check_bool("copy", copy) else adata
    read_from, record = readable(adata, protocol.source)
    best, value, trials = study_of(
        read_from, task, storage, study_name or f"stxtools_{part}", seed, show_progress=show_progress
    )
    slots = Slots("tl.tune")
    slots.uns[key] = {
        "best_params": best,
        "best_value": value,
        "trials": trials,
        "params": provenance(
            part=part, search=how, biomarker_key=biomarker_key, region_key=region_key, metric=metric,
            n_trials=n_trials, patience=patience, prune=prune, scheme=scheme, n_folds=n_folds, max_folds=max_folds,
            space={name: str(list(values)) for name, values in fields.items()}, fixed=str(fixed) if fixed else None,
            study_name=study_name, use_rep=use_rep, layer=layer, spatial_key=spatial_key, library_key=library_key,
            random_state=seed, **record,
        ),
    }  # fmt: skip
    slots.write(adata)
    return adata if copy else None
