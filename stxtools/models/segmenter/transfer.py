"""What a labelled model applies to other sections: linear members for their genes, adaptation, a residual U-Net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from stxtools._progress import stage
from stxtools._spatial.blocks import deal, spatial_blocks
from stxtools.models._model_file import ModelFile
from stxtools.models._params import SegmenterParams
from stxtools.models._section import Section
from stxtools.nn._augment import Augmentation
from stxtools.nn._recipe import Run, Training, seeded
from stxtools.nn._refiner import Refiner
from stxtools.nn._tiles import PixelRaster, predict_pixels
from stxtools.nn._views import view_loader, view_size, whole_loader

from .adaptation import cotrained, same_class
from .gene_means import SIZES, FloatArray, GeneMeans, GeneSection
from .moments import N_COMPS, LabelMoments, LinearMembers
from .pseudo_labels import PseudoLabels
from .rasters import section_raster

MOST_GENES = 3000  # that a model keeps
READ_GENES = 500  # the best of those that a section has: more blur what they say
_RIDGE_SCALE = 6.0  # from scores to logits
_LEAST_LOG = -8.0
_ADAPT_FROM = SIZES[0] * 2 * N_COMPS  # observations: an independent neighbourhood for each component that is read
_GATE_FROM = 100  # observations from which the agreement of two classifiers is measured
_FOLDS, _BLOCKS, _DIVISIONS = 5, 25, 3
_DENSE = 0.5  # share of labelled observations from which the others count nothing
_GAIN = 0.01  # part of the held-out loss that the network must save to take part
EPOCHS = 20


@dataclass(frozen=True)
class Evidence:
    """Class logits of a section, (n, K), and the weight of each member in them."""

    logits: FloatArray
    weights: dict[str, float]


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
        genes, means = _chosen_genes(expression)
        weights = [w / max(float(w.sum()), 1e-12) for w in weights]
        self = cls(_moments(genes, means, shares, weights))
        read = genes[:READ_GENES]
        means = [GeneMeans(e, _columns(e, read)) for e in expression]
        tasks = list(_out_of_fold(read, means, sections, shares, weights, np.random.default_rng(run["random_state"])))
        self.inverse_temperature = _calibrated(tasks)
        self._train_network(tasks, params, run)
        return self

    def _train_network(self, tasks: list[_Task], p: SegmenterParams, run: Run) -> None:
        from stxtools.nn._segmentation import RefinerTask
        from stxtools.nn._training import run_training

        rasters = [t.raster(self.inverse_temperature) for t in tasks]
        with seeded(run["random_state"]):
            net = Refiner(self.moments.n_classes)
        before = _held_out_loss(rasters)
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
        found = _Answers.of(self.moments.solve(ours), means).evidence(means, labels, adapt=adapt)
        logits = self.inverse_temperature * found.logits
        if self.net is None:
            return Evidence(logits, found.weights | {"network": 0.0})
        raster, member = _raster(section, logits)
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
    labels, by how sure their pseudo-labels are.
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
        shares.append(pseudo_labels.target[rows])
        weights.append(weight)
    return shares, weights


@dataclass(frozen=True)
class _Answers:
    """Logits of ridge and discriminant analysis, (n, K) each."""

    ridge: FloatArray
    lda: FloatArray

    @classmethod
    def of(cls, members: LinearMembers, means: GeneMeans) -> _Answers:
        n_classes, k = len(members.ridge_intercept), members.axes.shape[1]
        both = means.projected([np.hstack([w, members.axes]) for w in members.ridge])
        first, second = both[:, : n_classes + k], both[:, n_classes + k :]
        scores = first[:, :n_classes] + second[:, :n_classes] + members.ridge_intercept
        z = np.hstack([first[:, n_classes:], second[:, n_classes:]])
        z = (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-9)
        lda = log_softmax(z @ members.lda + members.lda_intercept, axis=1)
        return cls(
            log_softmax(_RIDGE_SCALE * scores, axis=1), log_softmax(np.maximum(lda, _LEAST_LOG), axis=1)
        )  # fmt: skip

    def evidence(self, means: GeneMeans, labels: NDArray[np.int64] | None = None, *, adapt: bool = True) -> Evidence:
        """Combine the members for this section.

        The discriminant analysis takes part where the section's own components, taught by the ridge, come nearer to it
        than the ridge itself: they do not where components of another donor mean something else.
        """
        own = [means.components(means.axes(N_COMPS))]
        with_lda = len(self.ridge) < _GATE_FROM
        if not with_lda:
            taught = cotrained(self.ridge, own, prior=0.0)
            with_lda = same_class(taught, self.lda) > same_class(self.ridge, self.lda)
        return self.joined(own, with_lda=with_lda, labels=labels, adapt=adapt)

    def joined(
        self,
        own: Sequence[FloatArray],
        *,
        with_lda: bool,
        labels: NDArray[np.int64] | None = None,
        adapt: bool = True,
    ) -> Evidence:
        """Sum of the members, then co-trained with the section's ``own`` components."""
        logits = log_softmax(self.ridge + self.lda, axis=1) if with_lda else self.ridge
        adapts = labels is not None or (adapt and len(logits) >= _ADAPT_FROM)
        if adapts:
            logits = cotrained(logits, own, labels)
        return Evidence(logits, {"ridge": 1.0, "lda": float(with_lda), "adaptation": float(adapts)})


@dataclass(frozen=True)
class _Task:
    """Out-of-fold logits of a section and what they should be."""

    section: Section
    logits: FloatArray
    share: FloatArray
    weight: NDArray[np.float64]
    held: NDArray[np.bool_]

    def raster(self, inverse_temperature: float) -> PixelRaster:
        raster, member = _raster(self.section, inverse_temperature * self.logits)
        pooled = self.section.pooled
        weight = torch.from_numpy(pooled(self.weight[:, None] / self.weight.max(), member)[:, 0])
        held = torch.from_numpy(pooled(self.held[:, None].astype(float), member)[:, 0] > 0.5)
        raster.target = torch.from_numpy(pooled(self.share, member, self.weight + 1e-12))
        raster.weight, raster.val_weight = weight * ~held, weight * held
        return raster


def _chosen_genes(expression: Sequence[GeneSection]) -> tuple[list[str], list[GeneMeans]]:
    """Genes that all sections have, by the mean share of their variance that survives averaging; and their means."""
    shared = [g for g in expression[0].genes if all(g in set(e.genes) for e in expression[1:])]
    score = np.zeros(len(shared))
    for e in expression:
        score += GeneMeans(e, _columns(e, shared)).structure() / len(expression)
    order = np.argsort(-score, kind="stable")[:MOST_GENES]
    order = order[score[order] > 0] if (score > 0).any() else order
    genes = [shared[i] for i in order]
    return genes, [GeneMeans(e, _columns(e, genes)) for e in expression]


def _columns(section: GeneSection, genes: Sequence[str]) -> NDArray[np.int64]:
    place = {gene: i for i, gene in enumerate(section.genes)}
    return np.array([place[g] for g in genes], dtype=np.int64)


def _moments(
    genes: Sequence[str],
    means: Sequence[GeneMeans],
    shares: Sequence[FloatArray],
    weights: Sequence[NDArray[np.float64]],
) -> LabelMoments:
    used = [np.flatnonzero(w[m.sample] > 0) for m, w in zip(means, weights, strict=True)]
    z = np.concatenate([m.standardised()[u] for m, u in zip(means, used, strict=True)])
    at = [m.sample[u] for m, u in zip(means, used, strict=True)]
    share = np.concatenate([s[a] for s, a in zip(shares, at, strict=True)])
    return LabelMoments.of(genes, z, share, np.concatenate([w[a] for w, a in zip(weights, at, strict=True)]))


def _out_of_fold(
    genes: Sequence[str],
    means: Sequence[GeneMeans],
    sections: Sequence[Section],
    shares: Sequence[FloatArray],
    weights: Sequence[NDArray[np.float64]],
    rng: np.random.Generator,
) -> Iterator[_Task]:
    """Evidence as a new section would get it: from models that have not seen the block, or the section."""
    own = [[m.components(m.axes(N_COMPS))] for m in means]
    whole = len(sections) > 1
    stops = int(rng.integers(len(sections)))  # section that ends the training
    chosen = np.arange(len(genes))
    for _ in range(1 if whole else _DIVISIONS):
        folds = [np.full(s.n_obs, i) for i, s in enumerate(sections)] if whole else [_blocks(sections[0].xy, rng)]
        found = [_Answers(np.zeros_like(s), np.zeros_like(s)) for s in shares]
        for fold in range(len(sections) if whole else _FOLDS):
            seen = [np.where(f == fold, 0.0, w) for f, w in zip(folds, weights, strict=True)]
            if not any(w.any() for w in seen):
                continue
            members = _moments(genes, means, shares, seen).solve(chosen)
            for m, f, out in zip(means, folds, found, strict=True):
                left = f == fold
                if left.any():
                    answers = _Answers.of(members, m)
                    out.ridge[left], out.lda[left] = answers.ridge[left], answers.lda[left]
        for i, (section, answers) in enumerate(zip(sections, found, strict=True)):
            held = np.full(section.n_obs, i == stops) if whole else spatial_blocks(section.xy, 16) % 5 == 2
            for with_lda in (False, True):
                logits = answers.joined(own[i], with_lda=with_lda).logits
                yield _Task(section, logits, shares[i], weights[i], held)


def _blocks(xy: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Fold of each observation; whole blocks, cut along random axes."""
    angle = rng.uniform(0, np.pi)
    turned = xy @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return deal(spatial_blocks(turned, _BLOCKS), _FOLDS, rng)


def _calibrated(tasks: Sequence[_Task]) -> float:
    """Inverse temperature with the lowest cross-entropy of the out-of-fold logits."""

    def loss(log_factor: float) -> float:
        losses = []
        for t in tasks:
            log_share = (t.share * log_softmax(np.exp(log_factor) * t.logits, axis=1)).sum(axis=1)
            losses.append(-float(t.weight @ log_share) / float(t.weight.sum()))
        return float(np.mean(losses))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 1.5), method="bounded").x))


def _held_out_loss(rasters: Sequence[PixelRaster]) -> float:
    """Cross-entropy of the logits as they are, where the network is judged, as its training logs it."""
    losses = []
    for r in rasters:
        weight = r.val_weight
        if weight is not None and r.target is not None and float(weight.sum()) > 0:
            loss = -(r.target * r.x.log_softmax(dim=1)).sum(dim=1)
            losses.append(float((loss * weight).sum() / weight.sum()))
    return float(np.mean(losses)) if losses else np.nan


def _raster(section: Section, logits: FloatArray) -> tuple[PixelRaster, NDArray[np.int64]]:
    made = replace(section, features=logits.astype(np.float32))
    return section_raster(made, np.ones(logits.shape[1], dtype=np.float32))
