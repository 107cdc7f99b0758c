"""Pseudo-labels, the soft targets of the U-Net: from a consensus of mixtures or a few labels, and as rasters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from stxtools._progress import progress, stage
from stxtools._types import Bools, Floats, Floats32, Ints, Reals
from stxtools.models._section import Section
from stxtools.models.ensemble.gene_means import GeneSection
from stxtools.nn._tiles import PixelRaster
from stxtools.nn._views import block_mask

from .batches import segments_of_batches
from .calibration import matching_temperature
from .classes import with_all_classes
from .discriminants import label_views, spread_labels, voted_confidence
from .mixtures import consensus, cotrain, edge_views, most_rounds, multiscale_views, some_rows, stacked
from .number import choose_number

SHARPEN = 3  # averaged memberships are soft; trained on as they are, the U-Net loses small classes
MOST_TARGETS = 60_000  # observations that get a target, at most
_DENSE = 0.5  # share of labelled observations of a section from which the others count nothing
_MOST_HELD = 0.25  # share of a section
_CHOICES = 8  # hold-outs among which the first is taken that misses no class


@dataclass
class PseudoLabels:
    """Soft targets for the observations of all sections, one after the other.

    - ``classes``: Class names.
    - ``target``, ``weight``: Class probabilities to learn (n, K), and how much they count (n,); 0 where there is no
      target.
    - ``confidence``: Probability that each class is right (n, K); rows of NaN where it is unknown.
    - ``labelled``: Observations with a label of their own, (n,).
    - ``curve``: What the number of classes was chosen by (:class:`.number.Choice`); empty where it was given.
    """

    classes: list[str]
    target: Floats
    weight: Floats
    confidence: Floats
    labelled: Bools
    curve: dict[str, list[float]] = field(default_factory=dict)

    def spread(self, rows: Ints, n: int) -> PseudoLabels:
        """Return the pseudo-labels of n observations of which these are the ``rows``; the others have none."""
        nothing = {"target": 1 / len(self.classes), "weight": 0.0, "confidence": np.nan, "labelled": False}
        full = {name: np.full((n, *getattr(self, name).shape[1:]), value) for name, value in nothing.items()}
        for name, values in full.items():
            values[rows] = getattr(self, name)
        return replace(self, **full)  # type: ignore[arg-type]

    def by_section(self, sections: Sequence[Section]) -> tuple[list[Floats], list[Floats]]:
        """Class shares and weights of the observations of each section, for what learns from its labels.

        Where less than half of a section is labelled, its other observations together weigh as much as the labels.
        """
        ends = np.cumsum([s.n_obs for s in sections])[:-1]
        weights = []
        for known, weight in zip(np.split(self.labelled, ends), np.split(self.weight, ends), strict=True):
            if not known.any() or known.mean() >= _DENSE:
                weights.append(known.astype(np.float64))
            else:
                weights.append(np.where(known, max(float(weight[~known].sum()) / float(known.sum()), 1.0), weight))
        return np.split(self.target, ends), weights

    def temperature(self, proba: Sequence[Floats32]) -> float:
        """Temperature at which the mean confidence of ``proba`` is that of these labels in the predicted classes."""
        predicted, judged = np.concatenate(list(proba)), ~np.isnan(self.confidence[:, 0])
        if self.labelled.mean() < 0.5:
            judged &= ~self.labelled
        chosen = self.confidence[judged, predicted[judged].argmax(axis=1)]
        return matching_temperature(predicted[judged], float(chosen.mean())) if judged.any() else 1.0


def pseudo_labels_from_clustering(
    sections: Sequence[Section], k: int | None, rng: np.random.Generator, show_progress: bool | None, batch: Ints,
    centre: Ints, expression: Sequence[GeneSection] | None,
) -> PseudoLabels:  # fmt: skip
    """Consensus of Gaussian mixtures on spatial means, refined by co-training of the mixtures.

    With several batches (:func:`.batches.batches`, by section) each has its own, so that segments are not those of
    patients; those alike in ``expression``, by default in the features, are joined. Sections of one ``centre``
    (:func:`.centres.sharing_centres`) are centred by their common mean.
    """
    if len(sections) > 1:  # what is left of donors' means, if little, is what small sections would be split by
        means = [np.concatenate([s.features for s, own in zip(sections, centre, strict=True) if own == c]).mean(axis=0)
                 for c in range(centre.max() + 1)]  # fmt: skip
        sections = [replace(s, features=s.features - means[c]) for s, c in zip(sections, centre, strict=True)]
    n = sum(s.n_obs for s in sections)
    rows = some_rows(n, MOST_TARGETS, rng)
    curve: dict[str, list[float]] = {}
    if k is None:
        stage("choosing the number of segments")
        choice = choose_number(sections, rng)
        k, curve = choice.k, choice.curve
    names = [str(i) for i in range(k)]
    if k == 1:
        one = np.ones((n, 1))
        return PseudoLabels(names, one, one[:, 0], one, np.zeros(n, dtype=bool), curve)
    parts, rounds = _by_section(rows, sections), most_rounds(n // len(sections))
    plain = [multiscale_views(s, part, rounds) for s, part in zip(sections, parts, strict=True)]
    sharp = [edge_views(s, part) for s, part in zip(sections, parts, strict=True)]
    seen = [s.features[part] for s, part in zip(sections, parts, strict=True)]
    with progress((batch.max() + 1) * len(plain[0]), "finding compartments", show_progress) as bar:
        if batch.max() == 0:
            voted = start = consensus(stacked(plain), k, rng, lambda: bar.update(1))
        else:
            genes = seen if expression is None else [e.logged[part] for e, part in zip(expression, parts, strict=True)]
            voted, start, offsets = segments_of_batches(plain, sharp, seen, genes, batch, k, rng, lambda: bar.update(1))
            plain, sharp = (
                [[view.less(offset) for view in own] for own, offset in zip(kind, offsets, strict=True)]
                for kind in (plain, sharp)
            )
    stage("agreeing on compartments")
    views = [*stacked(plain), *stacked(sharp)]
    spaces: list[Reals] = [views[0][slice(None)], np.concatenate(seen)]
    voted = with_all_classes(voted, spaces)
    target = cotrain(views, voted if start is voted else with_all_classes(start, spaces), rng)
    agreement = target.max(axis=1)
    target = target**SHARPEN / (target**SHARPEN).sum(axis=1, keepdims=True)
    balance = (target.mean() / target.mean(axis=0).clip(1e-6)) ** 0.5  # small compartments are not to be lost
    weight = agreement * balance[target.argmax(axis=1)]
    return PseudoLabels(names, target, weight, voted, np.zeros(len(rows), dtype=bool), curve).spread(rows, n)


def pseudo_labels_from_labels(
    sections: Sequence[Section], labels: Sequence[Ints], classes: Sequence[str], seed: int,
    class_shares: Floats | None = None,
) -> PseudoLabels:  # fmt: skip
    """Co-trained discriminant analyses of several views for the unlabelled, and the labels themselves."""
    rng = np.random.default_rng(seed)
    codes, k = np.concatenate(list(labels)), len(classes)
    known = codes >= 0
    rows = np.flatnonzero(known)
    free = np.flatnonzero(~known)
    free = free[some_rows(len(free), max(MOST_TARGETS - len(rows), 1), rng)]
    rows = np.sort(np.concatenate([rows, free]))
    stage("spreading labels")
    views = label_views(sections, _by_section(rows, sections))
    target = spread_labels(views, codes[rows], k, class_shares=class_shares)
    confidence = voted_confidence(views, codes[rows], k, rng)
    weight = (target.max(axis=1) - 1 / k) / (1 - 1 / k)
    target[known[rows]] = np.eye(k)[codes[rows][known[rows]]]
    weight[known[rows]] = 2.0
    return PseudoLabels(list(classes), target, weight, confidence, known[rows]).spread(rows, len(codes))


def _by_section(rows: Ints, sections: Sequence[Section]) -> list[Ints]:
    """Split ascending rows of all sections into rows of each."""
    starts = np.cumsum([0, *(s.n_obs for s in sections)])[:-1]
    return [part - start for part, start in zip(np.split(rows, np.searchsorted(rows, starts[1:])), starts, strict=True)]


def target_rasters(
    sections: Sequence[Section], pseudo_labels: PseudoLabels, scale: Reals, seed: int
) -> tuple[list[PixelRaster], list[Ints]]:
    """Rasters with targets, and each observation's pixel; some blocks are held out for early stopping."""
    out, members, end = [], [], 0
    for i, section in enumerate(sections):
        rows = slice(end, end + section.n_obs)
        end = rows.stop
        raster, member = section.raster(scale)
        weight = torch.from_numpy(section.pooled(pseudo_labels.weight[rows, None], member)[:, 0])
        target = torch.from_numpy(section.pooled(pseudo_labels.target[rows], member, pseudo_labels.weight[rows] + 1e-9))
        labelled = section.pooled(pseudo_labels.labelled[rows, None].astype(np.float64), member)[:, 0] > 0
        held = _held_out(raster, target * weight[:, None], torch.from_numpy(labelled), seed + i)
        raster.target, raster.weight, raster.val_weight = target, weight * ~held, weight * held
        out.append(raster)
        members.append(member)
    return out, members


def agreement(rasters: Sequence[PixelRaster], proba: Sequence[Reals]) -> float:
    """Weighted share of the pixels whose most probable class is that of the target."""
    agreed = total = 0.0
    for raster, found in zip(rasters, proba, strict=True):
        if raster.target is None or raster.weight is None or raster.val_weight is None:
            raise ValueError("The raster has no targets.")
        weight = (raster.weight + raster.val_weight).double().numpy()
        agreed += float(weight @ (raster.target.numpy().argmax(axis=1) == found.argmax(axis=1)))
        total += float(weight.sum())
    return agreed / total


def _held_out(raster: PixelRaster, mass: torch.Tensor, labelled: torch.Tensor, seed: int) -> torch.Tensor:
    """One block in ten, without labelled pixels: a random choice that misses no class, if one is soon found.

    Early stopping would otherwise keep weights that have lost a class without labels. Nothing is held out where such a
    choice takes too much of a small section, of which too little would be left to learn from.
    """
    best, most = torch.zeros_like(labelled), -1.0
    for attempt in range(_CHOICES):
        generator = torch.Generator().manual_seed(seed + 1000 * attempt)
        held = block_mask(raster.shape, 0.1, 4, generator).flatten()[raster.flat] & ~labelled
        least = float((mass[held].sum(dim=0) / mass.sum(dim=0).clamp_min(1e-9)).min())
        if least > most and float(mass[held].sum()) <= _MOST_HELD * float(mass.sum()):
            best, most = held, least
        if most > 0.03:
            break
    return best
