"""Attribution of the joint framework, by gene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stxtools._data.expression import Expression
from stxtools._data.framework import KnownInput
from stxtools._data.regions import Regions
from stxtools._validate import listing

from ._attribution_genes import carried_to_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from stxtools.models import TissueNet
    from stxtools.models.explain.integrated_gradients import TissueEvidence


class TissueSource:
    """A joint model on the sections of an AnnData, its region graph held fixed.

    ``wanted``: classes that one of its tasks must know.
    """

    def __init__(
        self, adata: AnnData, model: TissueNet, wanted: Sequence[str], layer: str | None, regions: Regions,
    ) -> None:  # fmt: skip
        task = next((t for t, names in model.classes.items() if set(wanted) <= set(names)), None)
        if task is None:
            known = "; ".join(f"{t}: {listing(names)}" for t, names in model.classes.items())
            raise ValueError(
                f"No task of the model in `attribution_model` tells {listing(wanted)} apart ({known or 'none'}); "
                "group by what it was trained on, or name classes of one task in `groups`."
            )
        ensemble = model.ensembles.get(task)
        if ensemble is not None and ensemble.elsewhere.weights.network == 0 and ensemble.elsewhere.linear is None:
            raise ValueError(
                f"The model in `attribution_model` predicts {listing(model.classes[task])} by trees, which have no "
                "gradient. Train one with `st.tl.multitask(..., ensemble=['network', 'linear'])`."
            )
        self._model, self._task, self._layer, self._n_vars = model, task, layer, adata.n_vars
        self._region = regions
        self._genes = np.flatnonzero(~adata.var_names.isin(model.expression))  # those to predict were not read
        self._adata = adata if len(self._genes) == adata.n_vars else adata[:, self._genes]
        self._sections: list[TissueEvidence] | None = None

    def explain(
        self, group: str, reference: str, inside: NDArray[np.bool_], outside: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return every gene's part of the evidence for a group."""
        from stxtools.models.explain.integrated_gradients import TissueEvidence

        model, names = self._model, self._model.classes[self._task]
        if model.projection is None:
            return np.zeros(self._n_vars)
        if self._sections is None:
            found = KnownInput(self._adata, model, self._layer).sections(self._region)
            self._sections = [TissueEvidence(model, section, self._task) for section in found]
        at = names.index(group)
        others = [i for i in range(len(names)) if i != at] if reference == "rest" else [names.index(reference)]
        known = self._region.region >= 0
        inside, outside = inside & known, outside & known
        side = inside / max(int(inside.sum()), 1) - outside / max(int(outside.sum()), 1)
        gradient = np.zeros((len(side), model.n_features))
        own = np.zeros(self._adata.n_vars)
        for evidence, rows in zip(self._sections, self._region.where.parts, strict=True):
            if np.any(side[rows]):
                gradient[rows], direct = evidence.parts(at, others, side[rows])
                place = self._adata.var_names.get_indexer(model.genes or [])
                here = (place >= 0) & (len(direct) > 0)
                own[place[here]] += direct[here] if len(direct) else 0.0
        own += carried_to_genes(
            Expression(self._adata, self._layer, in_memory=False), model.projection, gradient, self._region.where.parts
        )
        out = np.zeros(self._n_vars)
        out[self._genes] = own
        return out
