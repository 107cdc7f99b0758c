"""Means and standard deviations of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stxtools import _keys
from stxtools._checks import check_key
from stxtools._docs import documented
from stxtools._validate import check_adata, check_bool, check_choice, listing

if TYPE_CHECKING:
    from anndata import AnnData

_METRICS = ("accuracy", "precision", "recall", "auroc", "mse")
_BY = ("model", "target", "scheme", "leaky", "noise")


@documented
def evaluation(
    adata: AnnData,
    metric: str | None = None,
    *,
    target: str | None = None,
    versus: str | None = None,
    per_seed: bool = False,
    key: str = _keys.EVALUATION,
) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of what :func:`stxtools.tl.evaluate` measured.

    The folds of a seed are averaged first; seeds, not folds, are the replicates.

    Parameters
    ----------
    metric
        ``"accuracy"``, ``"precision"``, ``"recall"``, ``"auroc"`` or ``"mse"``; all by default.
    versus
        A model to compare the others with, seed by seed: adds ``difference`` and its standard error ``se``.
    per_seed
        Return the seeds themselves, ``seed`` and ``value`` instead of ``mean``, ``sd`` and ``n``.
    %(parameters)s

    Returns
    -------
    A new table with one row per model, target, scheme, noise level and metric, and the columns ``model``, ``target``,
    ``scheme``, ``leaky``, ``noise``, ``metric``, ``mean``, ``sd`` (NaN for one seed), ``n`` (seeds), and with
    ``versus`` also ``difference`` and ``se``.

    Raises
    ------
    KeyError
        There is no such table.
    ValueError
        A metric, target or model that is not in it.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.evaluate(adata, ["lda", "nearest_label"], region_key="compartment", n_seeds=2)
    >>> table = st.get.evaluation(adata, "accuracy", versus="nearest_label")
    """
    check_adata(adata, unique_vars=False)
    table = adata.uns.get(check_key("key", key))
    if not isinstance(table, pd.DataFrame) or not {*_BY, "seed", "fold", *_METRICS} <= set(table.columns):
        raise KeyError(
            f"`adata.uns[{key!r}]` holds no evaluation; run `st.tl.evaluate(adata, region_key=...)` first, or name "
            "the table with `key`."
        )
    if metric is not None:
        check_choice("metric", metric, _METRICS)
    models = list(dict.fromkeys(table["model"].astype(str)))
    targets = list(dict.fromkeys(table["target"].astype(str)))
    for name, value in (("target", target), ("versus", versus)):
        if value is not None:
            check_key(name, value)
    if target is not None and target not in targets:
        raise ValueError(f"`target={target!r}` is not in the evaluation; it has {listing(targets)}.")
    if versus is not None and versus not in models:
        raise ValueError(f"`versus={versus!r}` is not among the models; they are {listing(models)}.")
    long = table.melt([*_BY, "seed", "fold"], list(_METRICS) if metric is None else [metric], "metric", "value")
    long = long[long["value"].notna() & (target is None or long["target"] == target)]
    by = [*_BY, "metric"]
    seeds = long.groupby([*by, "seed"], sort=False, observed=True)["value"].mean().reset_index()
    order = {name: i for i, name in enumerate(models)}
    if check_bool("per_seed", per_seed):
        return _ordered(seeds, order)
    out = seeds.groupby(by, sort=False, observed=True)["value"].agg(mean="mean", sd="std", n="size").reset_index()
    if versus is not None:
        out = out.merge(_differences(seeds, by, versus), on=by, how="left")
    return _ordered(out, order)


def _ordered(table: pd.DataFrame, order: dict[str, int]) -> pd.DataFrame:
    """Sort by what is compared, then by model in the order of the call."""
    table = table.sort_values("model", key=lambda column: column.map(order), kind="stable")
    return table.sort_values(["target", "metric", "scheme", "noise"], kind="stable").reset_index(drop=True)


def _differences(seeds: pd.DataFrame, by: list[str], versus: str) -> pd.DataFrame:
    """Mean difference to one model over the seeds that both have, and its standard error."""
    rest = [c for c in by if c != "model"]
    other = seeds.loc[seeds["model"] == versus, [*rest, "seed", "value"]].rename(columns={"value": "other"})
    both = seeds.merge(other, on=[*rest, "seed"])
    both["difference"] = both["value"] - both["other"]
    return both.groupby(by, sort=False, observed=True)["difference"].agg(difference="mean", se="sem").reset_index()
