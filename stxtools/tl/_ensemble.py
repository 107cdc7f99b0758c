"""The framework's ensemble: the parameter, the table of weights, and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from stxtools._validate import listing
from stxtools._warn import warn

if TYPE_CHECKING:
    from stxtools.models import TissueNet, TissueNetParams, TissuePrediction


def with_ensemble(params: TissueNetParams | Mapping[str, Any] | None, ensemble: str | Sequence[str]) -> TissueNetParams:
    """Parameters with the members named in ``ensemble=``; ``"auto"`` leaves what ``params`` say."""
    from stxtools.models import TissueNetParams
    from stxtools.models._params import resolve
    from stxtools.models.tissuenet.params import check_ensemble

    check_ensemble(ensemble)
    resolved = resolve(params, TissueNetParams)
    return resolved if isinstance(ensemble, str) else replace(resolved, ensemble=tuple(ensemble))


def weights_table(predictions: Sequence[TissuePrediction], libraries: Sequence[str]) -> pd.DataFrame:
    """Factor of each member's logits in every task and section."""
    tasks = predictions[0].weights
    pairs = list(zip(libraries, predictions, strict=True))
    return pd.DataFrame([{"task": t, "library": name} | vars(p.weights[t]) for t in tasks for name, p in pairs])


def warn_of_network(model: TissueNet, weights: pd.DataFrame, key: str, *, saved: bool) -> None:
    """Warn where the network has not converged, or has no weight."""
    how = model.convergence
    named = model.params.ensemble != "auto"
    if not how["converged"]:
        what = "It keeps the weight that `ensemble` gives it" if named else "Its weight in the ensemble is 0"
        warn(
            f"The network has not converged: its lowest loss on {how['judged_on']} is {how['loss']:.3g} (epoch "
            f"{how['best_epoch'] + 1} of {how['epochs']}), not below {how['uninformed_loss']:.3g}, that of predicting "
            f"the classes' shares. {what}; embeddings and attention are those of this network. More labels, more "
            "epochs or a smaller `params['lr']` may help.",
        )
    elif not named and any(_without_network(model, task) for task in model.classes):
        where = sorted(set(weights.loc[weights["network"] == 0, "library"]))
        if where or saved:
            scope = f"in {listing(where)}" if where else "in the sections that the saved model will be applied to"
            warn(
                f"The network has weight 0 {scope}: three or more sections have labels, so that a linear classifier, "
                f"chosen on held-out sections, predicts alone where there are none (`adata.uns[{key!r}]['weights']`). "
                "`ensemble=` names other members.",
            )


def _without_network(model: TissueNet, task: str) -> bool:
    return task in model.ensembles and model.weights(task).network == 0
