"""What a labelled model applies to other sections: linear members for their genes, adaptation, a residual U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from stxtools._progress import stage
from stxtools.models._model_file import ModelFile
from stxtools.models._params import SegmenterParams
from stxtools.models._section import Section
from stxtools.models.ensemble.evidence import Answers, Evidence
from stxtools.models.ensemble.gene_means import READ_GENES, FloatArray, GeneMeans, GeneSection, chosen_genes
from stxtools.models.ensemble.moments import N_COMPS, LabelMoments, moments_of
from stxtools.nn._recipe import Run, Training, seeded
from stxtools.nn._refiner import Refiner
from stxtools.nn._tiles import predict_pixels
from stxtools.nn._views import Augmentation, view_loader, view_size, whole_loader

from .out_of_fold import Task, calibrated, held_out_loss, logit_raster, out_of_fold
from .pseudo_labels import PseudoLabels

_DENSE = 0.5  # share of labelled observations from which the others count nothing
_GAIN = 0.01  # part of the held-out loss that the network must save to take part
EPOCHS = 20


@dataclass
class Transfer:
    """Linear members and network that were learned from labelled sections.

    - ``moments``: What the linear members are solved from.
    - ``ids``: Second names of genes that the model reads (Ensembl ids beside symbols).
    - ``inverse_temperature``: Factor that calibrates the logits on held-out blocks or sections.
    - ``net``: The U-Net that corrects them; None where it did not lower the loss there.
    - ``history``: Losses of its training.
    """

    moments: LabelMoments
    ids: dict[str, str] = field(default_factory=dict)
    inverse_temperature: float = 1.0
    net: Refiner | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    enough: ClassVar[int] = READ_GENES  # genes that its members read at most

    # ---------------------------------------------------------------- training

    @classmethod
    def fit(
        cls,
        expression: Sequence[GeneSection],
        sections: Sequence[Section],
        shares: Sequence[FloatArray],
        weights: Sequence[NDArray[np.float64]],
        params: SegmenterParams,
        run: Run,
    ) -> Transfer:
        """Learn from sections with class shares (n, K) and weights (n,) of their observations; all count alike.

        - ``expression``, ``sections``: Genes, and raster, of each section.
        - ``shares``, ``weights``: What is known of the classes.
        - ``params``: Training of the network: epochs, steps, views, learning rate.
        - ``run``: Seed, device and progress bar.
        """
        stage("solving linear members")
        labelled = [i for i, w in enumerate(weights) if w.any()]
        expression, sections = [expression[i] for i in labelled], [sections[i] for i in labelled]
        shares, weights = [shares[i] for i in labelled], [weights[i] / weights[i].sum() for i in labelled]
        genes, means = chosen_genes(expression)
        self = cls(moments_of(genes, means, shares, weights))
        read, means = genes[:READ_GENES], [m.leading(READ_GENES) for m in means]
        tasks = list(out_of_fold(read, means, sections, shares, weights, np.random.default_rng(run["random_state"])))
        self.inverse_temperature = calibrated(tasks)
        self._train_network(tasks, params, run)
        return self

    def _train_network(self, tasks: list[Task], p: SegmenterParams, run: Run) -> None:
        from stxtools.nn._segmentation import RefinerTask
        from stxtools.nn._training import run_training

        rasters = [t.raster(self.inverse_temperature) for t in tasks]
        with seeded(run["random_state"]):
            net = Refiner(self.moments.n_classes)
        before = held_out_loss(rasters)
        if not np.isfinite(before):
            return
        training = Training(EPOCHS if p.epochs is None else p.epochs, p.patience, lr=p.lr, weight_decay=1e-2)
        views = view_loader(
            rasters, size=view_size(rasters, net.unet.stride, p.view_size), steps=p.steps_per_epoch,
            batch_size=p.batch_size, how=Augmentation(p.rotation, p.scaling, True, p.drop / 2),
            seed=run["random_state"],
        )  # fmt: skip
        self.history = run_training(
            RefinerTask(net, training), views, whole_loader(rasters), stage="refine", desc="training the U-Net", **run
        )
        if min(row["val_loss"] for row in self.history) < (1 - _GAIN) * before:
            self.net = net

    # ---------------------------------------------------------------- use

    def match(self, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions, in the model and in ``names``, of the best genes that both have."""
        place = {name: i for i, name in enumerate(names)}
        pairs = [(i, place[gene]) for i, gene in enumerate(self.moments.genes) if gene in place][:READ_GENES]
        ours, theirs = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return ours, theirs

    def predict(
        self,
        expression: GeneSection,
        section: Section,
        device: torch.device,
        *,
        labels: NDArray[np.int64] | None = None,
        adapt: bool = True,
    ) -> Evidence:
        """Class logits of a section that may share only some of the genes, and may have some ``labels`` itself."""
        ours, theirs = self.match(expression.genes)
        means = GeneMeans(expression, theirs)
        answers, components = Answers.of(self.moments.solve(ours), means, means.axes(N_COMPS))
        found = answers.gated(components, labels, adapt=adapt)
        logits = self.inverse_temperature * found.logits
        if self.net is None:
            return Evidence(logits, found.weights | {"network": 0.0})
        raster, member = logit_raster(section, logits)
        proba, _ = predict_pixels(self.net, raster, device)
        self.net.to("cpu")
        own = raster.x.softmax(dim=1).numpy().clip(1e-12)
        change = np.log(proba.numpy().clip(1e-12)) - np.log(own)  # of the pixel: observations keep what is their own
        return Evidence(log_softmax(logits + change[member], axis=1), found.weights | {"network": 1.0})

    # ---------------------------------------------------------------- files

    def to_file(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return what a model file keeps."""
        described, arrays = self.moments.to_file()
        if self.net is not None:
            arrays |= {f"refiner.{k}": v.detach().cpu().numpy() for k, v in self.net.state_dict().items()}
        described |= {"inverse_temperature": self.inverse_temperature}
        return described | {"id_genes": list(self.ids), "ids": list(self.ids.values())}, arrays

    @classmethod
    def from_file(cls, file: ModelFile, n_classes: int) -> Transfer | None:
        """Return what :meth:`to_file` wrote, None where there is nothing."""
        moments = LabelMoments.from_file(file, n_classes)
        if moments is None:
            return None
        self = cls(moments, inverse_temperature=file.number("inverse_temperature", 1.0, above=0.0))
        first, second = file.names("id_genes"), file.names("ids")
        if len(first) != len(second):
            raise file.damaged(f"it has {len(second)} second names of {len(first)} genes")
        self.ids = dict(zip(first, second, strict=True))
        if any(name.startswith("refiner.") for name in file.arrays):
            self.net = file.module(lambda: Refiner(n_classes), "refiner.")
        return self


def transfer_targets(
    pseudo_labels: PseudoLabels, sections: Sequence[Section]
) -> tuple[list[FloatArray], list[NDArray[np.float64]]]:
    """Class shares and weights of the observations of each section.

    Where less than half of a section is labelled, its unlabelled observations count as well, together as much as the
    labels, by how sure their pseudo-labels are. A section without any label counts nothing.
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
