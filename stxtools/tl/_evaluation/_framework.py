"""The framework as one model among others: segment, region graph and joint training, by the public calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy import sparse

from stxtools import _keys
from stxtools._types import Floats, Floats32, Ints
from stxtools.models import TissueNetParams
from stxtools.models._params import resolve
from stxtools.models.baselines.simple import Baseline, Classes, EvaluationSection, Labels
from stxtools.tl._multitask import multitask
from stxtools.tl._region_graph import region_graph
from stxtools.tl._segment import segment

_REP, _LIBRARY, _TRUTH = "evaluated", "evaluated_library", "evaluated_{}"
_HIDDEN, _SHOWN, _VARIABLE = "hidden_gene{}", "expression_shown", "variable"
_STAGES = ("segment", "region_graph", "multitask")


class Framework(Baseline):
    """U-Net, region graph and graph network, trained together on the targets."""

    def fit(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> Baseline:
        """Run the calls on the sections and keep the predictions for :meth:`predict_proba`."""
        unknown = sorted(set(self.params) - set(_STAGES))
        if unknown:
            raise ValueError(f"Unknown stage(s) of the framework: {', '.join(unknown)}; it has {', '.join(_STAGES)}.")
        return self.train(self.prepare(sections, labels, classes), classes)

    def _how(self) -> dict[str, Any]:
        return {"random_state": self.random_state, "accelerator": self.accelerator, "show_progress": False}

    def _joint(self, adata: AnnData) -> dict[str, Any]:
        """Arguments of the user for the joint network, which reads the variable genes beside the representation."""
        arguments = dict(self.params.get("multitask", {}))
        params = resolve(arguments.get("params"), TissueNetParams)
        if params.genes is True:  # a representation that stands for expression may have negative values
            genes = tuple(adata.var_names[adata.var[_VARIABLE]]) or bool(adata.X.min() >= 0)
            params = replace(params, genes=genes)
        return arguments | {"params": params}

    def prepare(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> AnnData:
        """Return an AnnData of the sections with labels, compartments and region graph."""
        # the classifier of genes chooses among all of them, and predicts where a section has no labels
        adata = _as_adata(sections, all_genes=any((c < 0).all() for codes in labels.values() for c in codes))
        for target, codes in labels.items():
            every = np.concatenate(list(codes))
            names = pd.Index([str(k) for k in range(classes[target])])
            column = pd.Categorical.from_codes(every, categories=names).remove_unused_categories()
            adata.obs[_TRUTH.format(target)] = column
        # compartments follow the tissue class where it is asked for
        guide = _TRUTH.format("region" if "region" in labels else next(iter(labels)))
        settings = {"labels_key": guide, "use_rep": _REP, "library_key": _LIBRARY} | self._how()
        segment(adata, **settings | dict(self.params.get("segment", {})))
        cut: dict[str, Any] = {"random_state": self.random_state} | dict(self.params.get("region_graph", {}))
        region_graph(adata, **cut)
        return adata

    def train(self, adata: AnnData, classes: Classes) -> Framework:
        """Train the joint network on what :meth:`prepare` returned."""
        self.classes, self.adata = dict(classes), adata
        tasks = {f"{target}_key": _TRUTH.format(target) for target in classes}
        multitask(adata, **tasks | {"use_rep": _REP} | self._how() | self._joint(adata))
        return self

    def proba(self, target: str, sections: Sequence[EvaluationSection]) -> list[Floats32]:
        """Probabilities of the observations; the shares of the classes where an observation is in no region."""
        frame = self.adata.obsm[_keys.proba(_TRUTH.format(target))]
        proba = np.zeros((self.adata.n_obs, self.classes[target]), dtype=np.float32)
        proba[:, [int(c) for c in frame.columns]] = frame.to_numpy()
        unknown = np.isnan(proba).any(axis=1)
        proba[unknown] = proba[~unknown].mean(axis=0)
        return np.split(proba, _cuts(sections))

    def predict_expression(self, sections: Sequence[EvaluationSection], values: Sequence[Floats]) -> list[Floats]:
        """Train once more with the expression head, beside the targets."""
        every = np.concatenate(list(values))  # standardised; the call takes none but values from 0 for expression
        low = np.nanmin(every, axis=0)
        width = np.maximum(np.nanmax(every, axis=0) - low, 1e-12)
        known = np.asarray(np.isfinite(every).all(axis=1))  # the others hold zeros and are marked
        shown = sparse.csr_matrix(np.where(known[:, None], (every - low) / width, 0.0), dtype=np.float32)
        hidden = [_HIDDEN.format(i) for i in range(every.shape[1])]
        genes = AnnData(shown, obs=self.adata.obs[[]], var=pd.DataFrame({_VARIABLE: False}, index=hidden))
        adata = concat([self.adata, genes], axis="var", merge="first", uns_merge="first")
        adata.obs[_SHOWN] = known
        asked: dict[str, Any] = {f"{target}_key": _TRUTH.format(target) for target in self.classes}
        asked |= {"use_rep": _REP, "expression": hidden, "expression_key": _SHOWN} | self._how()
        multitask(adata, **asked | self._joint(adata))
        found = adata.obsm[_keys.EXPRESSION_PRED].to_numpy(dtype=np.float64) * width + low
        return np.split(np.where(np.isnan(found), np.nanmean(found, axis=0), found), _cuts(sections))


def _cuts(sections: Sequence[EvaluationSection]) -> Ints:
    return np.cumsum([s.n_obs for s in sections])[:-1]


def _as_adata(sections: Sequence[EvaluationSection], *, all_genes: bool) -> AnnData:
    """Put arrays back into the AnnData that the public calls read, with all genes or the variable ones."""
    logged = [s.logged if all_genes else s.raw for s in sections]
    parts = [sparse.csr_matrix(s.features) if g is None else g for s, g in zip(sections, logged, strict=True)]
    n_obs = [s.n_obs for s in sections]
    names = pd.Index([f"o{i}" for i in range(sum(n_obs))])
    library = np.repeat([s.name for s in sections], n_obs)
    adata = AnnData(
        sparse.vstack(parts, format="csr").astype(np.float32),
        obs=pd.DataFrame({_LIBRARY: pd.Categorical(library, categories=[s.name for s in sections])}, index=names),
        var=pd.DataFrame(index=pd.Index([f"g{i}" for i in range(parts[0].shape[1])])),
    )
    variable = sections[0].variable if all_genes or logged[0] is None else range(adata.n_vars)
    adata.var[_VARIABLE] = np.isin(np.arange(adata.n_vars), variable)
    adata.uns["log1p"] = {}  # these values are logarithms
    adata.obsm[_REP] = np.concatenate([s.features for s in sections])
    adata.obsm[_keys.SPATIAL] = np.concatenate([s.xy - s.xy.min(axis=0) for s in sections])
    return adata
