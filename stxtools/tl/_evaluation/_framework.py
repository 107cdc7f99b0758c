"""The framework as a baseline: segment, region graph and joint training, by the public calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy import sparse

from stxtools import _keys
from stxtools._slots import categorical
from stxtools._types import Floats, Floats32, Ints
from stxtools.models import TissueNetParams
from stxtools.models._params import resolve
from stxtools.models.baselines.simple import Baseline, Classes, EvaluationSection, Labels
from stxtools.tl._multitask import multitask
from stxtools.tl._region_graph import region_graph
from stxtools.tl._segment import segment

_REP, _LIBRARY, _SUBJECT, _TRUTH = "evaluated", "evaluated_library", "evaluated_subject", "evaluated_{}"
_HIDDEN, _KNOWN, _VARIABLE = "hidden_gene{}", "expression_shown", "variable"
_STAGES = ("segment", "region_graph", "multitask")


class Framework(Baseline):
    """U-Net, region graph and graph network, trained together on the targets."""

    def fit(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> Baseline:
        """Run the calls on the sections and keep the predictions for :meth:`predict_proba`."""
        if unknown := sorted(set(self.params) - set(_STAGES)):
            raise ValueError(f"Unknown stage(s) of the framework: {', '.join(unknown)}; it has {', '.join(_STAGES)}.")
        return self.train(self.prepare(sections, labels, classes), classes)

    def prepare(self, sections: Sequence[EvaluationSection], labels: Labels, classes: Classes) -> AnnData:
        """Return an AnnData of the sections with labels, compartments and region graph."""
        # the classifier of genes, which predicts in sections without labels, chooses among all genes
        adata = _to_adata(sections, all_genes=any((c < 0).all() for codes in labels.values() for c in codes))
        for target, codes in labels.items():
            column = categorical(np.concatenate(list(codes)), [str(k) for k in range(classes[target])])
            adata.obs[_TRUTH.format(target)] = column.remove_unused_categories()
        labels_key = _TRUTH.format("region" if "region" in labels else next(iter(labels)))
        arguments = {"labels_key": labels_key, "use_rep": _REP, "library_key": _LIBRARY} | self.run
        segment(adata, **arguments | dict(self.params.get("segment", {})))
        region_graph(adata, **self.seed | dict(self.params.get("region_graph", {})))
        return adata

    def train(self, adata: AnnData, classes: Classes) -> Framework:
        """Train the joint network on what :meth:`prepare` returned."""
        self.classes, self.adata = dict(classes), adata
        self._multitask(adata)
        return self

    def _multitask(self, adata: AnnData, **genes_to_predict: Any) -> None:
        """Train the joint network, which reads the variable genes beside the representation."""
        arguments = dict(self.params.get("multitask", {}))
        params = resolve(arguments.get("params"), TissueNetParams)
        if params.genes is True:  # `X` may hold a representation, whose values may be negative
            genes = tuple(adata.var_names[adata.var[_VARIABLE]]) or bool(adata.X.min() >= 0)
            params = replace(params, genes=genes)
        tasks: dict[str, Any] = {f"{target}_key": _TRUTH.format(target) for target in self.classes}
        tasks |= {"use_rep": _REP, "subject_key": _SUBJECT if _SUBJECT in adata.obs else None}
        tasks |= genes_to_predict | self.run
        multitask(adata, **tasks | arguments | {"params": params})

    def proba(self, target: str, sections: Sequence[EvaluationSection]) -> list[Floats32]:
        """Return probabilities by section; the mean ones for observations without a region."""
        frame = self.adata.obsm[_keys.proba(_TRUTH.format(target))]
        proba = np.zeros((self.adata.n_obs, self.classes[target]), dtype=np.float32)
        proba[:, [int(c) for c in frame.columns]] = frame.to_numpy()
        unknown = np.isnan(proba).any(axis=1)
        proba[unknown] = proba[~unknown].mean(axis=0)
        return np.split(proba, _cuts(sections))

    def predict_expression(self, sections: Sequence[EvaluationSection], values: Sequence[Floats]) -> list[Floats]:
        """Train again, with the genes as a third task."""
        every = np.concatenate(list(values))  # standardised, but the call takes values from 0
        low = np.nanmin(every, axis=0)
        width = np.maximum(np.nanmax(every, axis=0) - low, 1e-12)
        known = np.asarray(np.isfinite(every).all(axis=1))
        scaled = sparse.csr_matrix(np.where(known[:, None], (every - low) / width, 0.0), dtype=np.float32)
        names = [_HIDDEN.format(i) for i in range(every.shape[1])]
        genes = AnnData(scaled, obs=self.adata.obs[[]], var=pd.DataFrame({_VARIABLE: False}, index=names))
        adata = concat([self.adata, genes], axis="var", merge="first", uns_merge="first")
        adata.obs[_KNOWN] = known
        self._multitask(adata, expression=names, expression_key=_KNOWN)
        predicted = adata.obsm[_keys.EXPRESSION_PRED].to_numpy(dtype=np.float64) * width + low
        return np.split(np.where(np.isnan(predicted), np.nanmean(predicted, axis=0), predicted), _cuts(sections))


def _cuts(sections: Sequence[EvaluationSection]) -> Ints:
    return np.cumsum([s.n_obs for s in sections])[:-1]


def _to_adata(sections: Sequence[EvaluationSection], *, all_genes: bool) -> AnnData:
    """Return an AnnData of the sections for the public calls, with all genes or the variable ones."""
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
    if all(s.subject is not None for s in sections):
        adata.obs[_SUBJECT] = pd.Categorical(np.repeat([str(s.subject) for s in sections], n_obs))
    variable = sections[0].variable if all_genes or logged[0] is None else range(adata.n_vars)
    adata.var[_VARIABLE] = np.isin(np.arange(adata.n_vars), variable)
    adata.uns["log1p"] = {}  # marks the values as logarithms
    adata.obsm[_REP] = np.concatenate([s.features for s in sections])
    adata.obsm[_keys.SPATIAL] = np.concatenate([s.xy - s.xy.min(axis=0) for s in sections])
    return adata
