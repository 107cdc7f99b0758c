"""What a labelled model applies to other sections: linear members that are solved for their genes, and adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stxtools._progress import stage
from stxtools.models._section import Section
from stxtools.models._storage import ModelFile
from stxtools.models.ensemble.evidence import Answers, Evidence
from stxtools.models.ensemble.gene_means import READ_GENES, FloatArray, GeneMeans, GeneSection, chosen_genes
from stxtools.models.ensemble.moments import N_COMPS, LabelMoments, moments_of

from .out_of_fold import calibrated, out_of_fold
from .pseudo_labels import PseudoLabels

_DENSE = 0.5  # share of labelled observations from which the others count nothing


@dataclass
class Transfer:
    """Linear members learned from labelled sections, calibrated, and second names (``ids``) of their genes."""

    moments: LabelMoments
    ids: dict[str, str] = field(default_factory=dict)
    inverse_temperature: float = 1.0

    enough: ClassVar[int] = READ_GENES  # genes that its members read at most

    @classmethod
    def fit(
        cls,
        expression: Sequence[GeneSection],
        shares: Sequence[FloatArray],
        weights: Sequence[NDArray[np.float64]],
        seed: int,
    ) -> Transfer:
        """Learn from sections with class shares (n, K) and weights (n,) of their observations; all count alike."""
        stage("solving linear members")
        labelled = [i for i, w in enumerate(weights) if w.any()]
        expression, shares = [expression[i] for i in labelled], [shares[i] for i in labelled]
        weights = [weights[i] / weights[i].sum() for i in labelled]
        genes, means = chosen_genes(expression)
        moments = moments_of(genes, means, shares, weights)
        genes, means = genes[:READ_GENES], [m.leading(READ_GENES) for m in means]
        xy, rng = [e.xy for e in expression], np.random.default_rng(seed)
        logits = out_of_fold(genes, means, xy, shares, weights, rng)
        return cls(moments, inverse_temperature=calibrated(logits, shares, weights))

    def predict(
        self, expression: GeneSection, *, labels: NDArray[np.int64] | None = None, adapt: bool = True
    ) -> Evidence:
        """Class logits of a section that may share only some of the genes, and may have some ``labels`` itself."""
        ours, theirs = self.moments.match(expression.genes)
        means = GeneMeans(expression, theirs)
        answers, components = Answers.of(self.moments.solve(ours), means, means.axes(N_COMPS))
        found = answers.gated(components, labels, adapt=adapt)
        return Evidence(self.inverse_temperature * found.logits, found.weights)

    def to_file(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return what a model file keeps."""
        described, arrays = self.moments.to_file()
        described |= {"inverse_temperature": self.inverse_temperature}
        return described | {"id_genes": list(self.ids), "ids": list(self.ids.values())}, arrays

    @classmethod
    def from_file(cls, file: ModelFile) -> Transfer | None:
        """Return what :meth:`to_file` wrote, None where there is nothing."""
        moments = LabelMoments.from_file(file)
        if moments is None:
            return None
        ids = dict(zip(file.config["id_genes"], file.config["ids"], strict=True))
        return cls(moments, ids, file.config["inverse_temperature"])


def transfer_targets(
    pseudo_labels: PseudoLabels, sections: Sequence[Section]
) -> tuple[list[FloatArray], list[NDArray[np.float64]]]:
    """Class shares and weights of the observations of each section.

    Where less than half of a section is labelled, its other observations together weigh as much as the labels.
    """
    shares, weights, end = [], [], 0
    for section in sections:
        rows = slice(end, end + section.n_obs)
        end = rows.stop
        known, weight = pseudo_labels.labelled[rows], pseudo_labels.weight[rows].astype(np.float64)
        if known.mean() >= _DENSE:
            weight = known.astype(np.float64)
        elif known.any():
            weight = np.where(known, max(float(weight[~known].sum()) / float(known.sum()), 1.0), weight)
        else:
            weight = np.zeros(section.n_obs)
        shares.append(pseudo_labels.target[rows])
        weights.append(weight)
    return shares, weights
