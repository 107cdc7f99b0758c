"""Pseudo-labels (soft targets of the U-Net) from a consensus of mixtures or a few labels, and as rasters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.special import softmax

from stxtools._progress import progress, stage
from stxtools._types import Bools, Floats, Floats32, Ints, Reals
from stxtools.models._section import Section
from stxtools.models.ensemble.gene_means import GeneSection
from stxtools.nn._tiles import PixelRaster
from stxtools.nn._views import block_mask

from .batches import segments_of_batches
from .calibration import centring_offsets, matching_temperature
from .discriminants import label_views, redrawn_confidence, spread_labels
from .mixtures import consensus, cotrain, some_rows, spatial_views, with_all_classes
from .number import choose_number

_SHARPEN = 3  # exponent of the averaged memberships: trained on soft ones, the U-Net loses small classes
_MAX_TARGETS = 60_000  # observations that get a target
_DENSE = 0.5  # share of labelled observations of a section from which its unlabelled ones get no weight
_MAX_HELD_OUT = 0.25  # share of a section
_DRAWS = 8  # of validation blocks, until one misses no class


@dataclass
class PseudoLabels:
    """Soft targets for the observations of all sections, one after the other.

    - ``classes``: Class names.
    - ``target``, ``weight``: Class probabilities to learn (n, K) and their weights (n,), 0 without a target.
    - ``confidence``: Probability that each class is right (n, K); NaN where unknown.
    - ``labelled``: Whether each observation was labelled by the user, (n,).
    - ``curve``: BIC and stability of each number of classes; empty if the number was given.
    """

    classes: list[str]
    target: Floats
    weight: Floats
    confidence: Floats
    labelled: Bools
    curve: dict[str, list[float]] = field(default_factory=dict)

    def expanded(self, rows: Ints, n: int) -> PseudoLabels:
        """Pseudo-labels of ``n`` observations, of which these are the ``rows``; the others have none."""
        nothing = {"target": 1 / len(self.classes), "weight": 0.0, "confidence": np.nan, "labelled": False}
        full = {name: np.full((n, *getattr(self, name).shape[1:]), value) for name, value in nothing.items()}
        for name, values in full.items():
            values[rows] = getattr(self, name)
        return replace(self, **full)  # type: ignore[arg-type]

    def by_section(self, sections: Sequence[Section]) -> tuple[list[Floats], list[Floats]]:
        """Class shares and weights of the observations of each section, from which the linear members learn.

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
        predicted, known = np.concatenate(list(proba)), ~np.isnan(self.confidence[:, 0])
        if self.labelled.mean() < 0.5:
            known &= ~self.labelled
        confidence = self.confidence[known, predicted[known].argmax(axis=1)]
        return matching_temperature(predicted[known], float(confidence.mean())) if known.any() else 1.0


def pseudo_labels_from_clustering(
    sections: Sequence[Section], k: int | None, rng: np.random.Generator, show_progress: bool | None, batch: Ints,
    centre: Ints, expression: Sequence[GeneSection] | None,
) -> PseudoLabels:  # fmt: skip
    """Consensus of Gaussian mixtures on spatial means, refined by co-training of the mixtures.

    Several batches (:func:`.batches.batches`, by section) are clustered one by one, so that segments are not those of
    patients; clusters alike in ``expression``, by default in the features, are joined. Sections of one ``centre``
    (:func:`.batches.shared_centres`) are centred by their common mean.
    """
    if len(sections) > 1:  # small sections would be split by what is left of the donors' means
        means = [np.concatenate([sections[i].features for i in np.flatnonzero(centre == c).tolist()]).mean(axis=0)
                 for c in range(centre.max() + 1)]  # fmt: skip
        sections = [replace(s, features=s.features - means[c]) for s, c in zip(sections, centre, strict=True)]
    n = sum(s.n_obs for s in sections)
    rows = some_rows(n, _MAX_TARGETS, rng)
    curve: dict[str, list[float]] = {}
    if k is None:
        stage("choosing the number of segments")
        k, curve = choose_number(sections, rng)
    names = [str(i) for i in range(k)]
    if k == 1:
        one = np.ones((n, 1))
        return PseudoLabels(names, one, one[:, 0], one, np.zeros(n, dtype=bool), curve)
    parts = _by_section(rows, sections)
    plain, edges = spatial_views(sections, parts)
    features = np.concatenate([s.features[part] for s, part in zip(sections, parts, strict=True)])
    with progress((batch.max() + 1) * len(plain), "finding compartments", show_progress) as bar:
        if batch.max() == 0:
            voted = start = consensus(plain, k, rng, lambda: bar.update(1))
        else:
            genes: Any = features
            if expression is not None:
                logged = [e.logged[part] for e, part in zip(expression, parts, strict=True)]
                genes = sparse.vstack(logged, "csr")
            of_rows = np.repeat(batch, [len(part) for part in parts])
            voted, start, offset = segments_of_batches(
                plain, edges, features, genes, of_rows, k, rng, lambda: bar.update(1)
            )
            plain, edges = [v.minus(offset) for v in plain], [v.minus(offset) for v in edges]
    stage("agreeing on compartments")
    views = [*plain, *edges]
    spaces: list[Reals] = [views[0][slice(None)], features]
    voted = with_all_classes(voted, spaces)
    target = cotrain(views, voted if start is voted else with_all_classes(start, spaces), rng)
    certainty = target.max(axis=1)
    target = target**_SHARPEN / (target**_SHARPEN).sum(axis=1, keepdims=True)
    balance = (target.mean() / target.mean(axis=0).clip(1e-6)) ** 0.5  # keeps small compartments
    weight = certainty * balance[target.argmax(axis=1)]
    return PseudoLabels(names, target, weight, voted, np.zeros(len(rows), dtype=bool), curve).expanded(rows, n)


def pseudo_labels_from_labels(
    sections: Sequence[Section], labels: Sequence[Ints], classes: Sequence[str], seed: int,
    class_shares: Floats | None = None,
) -> PseudoLabels:  # fmt: skip
    """The labels themselves, and for unlabelled observations co-trained discriminant analyses of several views."""
    rng = np.random.default_rng(seed)
    codes, k = np.concatenate(list(labels)), len(classes)
    known = codes >= 0
    unlabelled = np.flatnonzero(~known)
    unlabelled = unlabelled[some_rows(len(unlabelled), max(_MAX_TARGETS - int(known.sum()), 1), rng)]
    rows = np.sort(np.concatenate([np.flatnonzero(known), unlabelled]))
    codes, known = codes[rows], known[rows]
    stage("spreading labels")
    parts = _by_section(rows, sections)
    views = label_views(sections, parts)
    target = spread_labels(views, codes, k, class_shares=class_shares)
    if class_shares is None and known.mean() < _DENSE:
        xy = [section.xy[part] for section, part in zip(sections, parts, strict=True)]
        of_sections = np.split(codes, np.cumsum([len(part) for part in parts])[:-1])
        target = softmax(np.log(target.clip(1e-9)) + centring_offsets(xy, of_sections, target), axis=1)
    weight = (target.max(axis=1) - 1 / k) / (1 - 1 / k)
    target[known] = np.eye(k)[codes[known]]
    weight[known] = 2.0
    confidence = redrawn_confidence(sections, parts, views, codes, target.argmax(axis=1), k, rng)
    return PseudoLabels(list(classes), target, weight, confidence, known).expanded(rows, sum(map(len, labels)))


def _by_section(rows: Ints, sections: Sequence[Section]) -> list[Ints]:
    """Split ascending rows of all sections into rows of each."""
    starts = np.cumsum([0, *(s.n_obs for s in sections)])[:-1]
    return [part - start for part, start in zip(np.split(rows, np.searchsorted(rows, starts[1:])), starts, strict=True)]


def target_rasters(
    sections: Sequence[Section], pseudo_labels: PseudoLabels, scale: Reals, seed: int
) -> tuple[list[PixelRaster], list[Ints]]:
    """Rasters with targets, and each observation's pixel; some blocks are held out for early stopping."""
    rasters, members, end = [], [], 0
    for i, section in enumerate(sections):
        rows = slice(end, end + section.n_obs)
        end = rows.stop
        raster, member = section.raster(scale)
        weight = torch.from_numpy(section.pooled(pseudo_labels.weight[rows, None], member)[:, 0])
        target = torch.from_numpy(section.pooled(pseudo_labels.target[rows], member, pseudo_labels.weight[rows] + 1e-9))
        labelled = section.pooled(pseudo_labels.labelled[rows, None].astype(np.float64), member)[:, 0] > 0
        val = _validation_pixels(raster, target * weight[:, None], torch.from_numpy(labelled), seed + i)
        raster.target, raster.weight, raster.val_weight = target, weight * ~val, weight * val
        rasters.append(raster)
        members.append(member)
    return rasters, members


def agreement(rasters: Sequence[PixelRaster], proba: Sequence[Reals]) -> float:
    """Weighted share of the pixels whose most probable class is that of the target."""
    agreed = total = 0.0
    for raster, predicted in zip(rasters, proba, strict=True):
        if raster.target is None or raster.weight is None or raster.val_weight is None:
            raise ValueError("The raster has no targets.")
        weight = (raster.weight + raster.val_weight).double().numpy()
        agreed += float(weight @ (raster.target.numpy().argmax(axis=1) == predicted.argmax(axis=1)))
        total += float(weight.sum())
    return agreed / total


def _validation_pixels(raster: PixelRaster, mass: torch.Tensor, labelled: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw one block in ten, without labelled pixels, until every class has validation pixels.

    Early stopping would otherwise keep weights that have lost a class. Draws that take too much of a small section are
    discarded; without any other, there are no validation pixels.
    """
    best, highest = torch.zeros_like(labelled), -1.0
    for draw in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed + 1000 * draw)
        pixels = block_mask(raster.shape, 0.1, 4, generator).flatten()[raster.flat] & ~labelled
        lowest = float((mass[pixels].sum(dim=0) / mass.sum(dim=0).clamp_min(1e-9)).min())
        if lowest > highest and float(mass[pixels].sum()) <= _MAX_HELD_OUT * float(mass.sum()):
            best, highest = pixels, lowest
        if highest > 0.03:
            break
    return best
