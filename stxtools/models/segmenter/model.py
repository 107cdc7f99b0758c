"""The segmentation model: S = U(X; theta)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Unpack

import numpy as np
import torch
from scipy.special import softmax
from torch.utils.data import DataLoader

from stxtools._progress import stage
from stxtools._spatial.points import evenly_spread
from stxtools._types import Floats, Floats32, Ints
from stxtools.models._base import BaseModel
from stxtools.models._params import SegmenterParams
from stxtools.models._section import FeatureScaling, Section
from stxtools.models._storage import ModelFile
from stxtools.models.ensemble.gene_classifier import GeneClassifier
from stxtools.models.ensemble.gene_means import GeneSection
from stxtools.nn._options import RunOptions, Training, best_device, seeded, with_defaults
from stxtools.nn._segmentation import ContrastivePretraining, MaskedPretraining, SegmentationTask
from stxtools.nn._tiles import PixelRaster, predict_pixels
from stxtools.nn._training import run_training
from stxtools.nn._unet import SegmentationNet, UNet
from stxtools.nn._views import Augmentation, RandomViews, default_epochs, validation_loader, view_size

from .batches import batches, shared_centres
from .calibration import class_sizes, matching_temperature, offsets_for_all, share_offsets, tempered
from .pseudo_labels import agreement, pseudo_labels_from_clustering, pseudo_labels_from_labels, target_rasters

_REORDERINGS, _BIAS_STEPS = 4, 16  # attempts to number the classes by size: by their order, then by their biases
_LEARNED, _GAIN = 0.9, 0.01  # training is repeated until so much agrees with the targets, or gains no more
_CALIBRATED = 60_000  # observations of a section, at most, from which a temperature is found
_PIXELS = 500  # from which each step of a repetition learns: those of one view of small tissue are too few


@dataclass(frozen=True)
class Segmentation:
    """Result for one section."""

    proba: Floats32  # class probabilities of the observations, (n, K)
    features: Floats32  # of the U-Net at every observation, (n, width)
    weights: dict[str, float] = field(default_factory=dict)  # of the ensemble's members, if they predicted


class Segmenter(BaseModel[SegmenterParams, SegmentationNet]):
    """U-Net that assigns the observations of spatial sections to compartments.

    :meth:`fit` pretrains it without labels (masked reconstruction or SimCLR), or starts from a pretrained one, and then
    trains it on pseudo-labels (soft targets). Without labels these are a consensus of Gaussian mixtures on spatial
    means; with labels, the labels themselves, and discriminant analyses on neighbourhood means for the unlabelled
    observations. A temperature adjusts its confidence to that of the pseudo-labels.

    Parameters
    ----------
    params
        Architecture and training; an instance, a mapping of fields, or None for the defaults.

    Examples
    --------
    >>> import numpy as np, stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.tl.segment(adata, n_segments=3, save_model="tissue.stx")
    >>> model = st.models.Segmenter.load("tissue.stx")
    >>> model.classes
    ['0', '1', '2']
    """

    params_type = SegmenterParams
    used_by = "st.tl.segment(adata, model=...)"
    saved = BaseModel.saved | {"classes": "list[str]", "temperature": "float", "image_key": "str | None"}

    def __init__(self, params: SegmenterParams | Mapping[str, Any] | None = None) -> None:
        super().__init__(params)
        self.classes: list[str] = []
        self.curve: dict[str, list[float]] = {}
        # of each section it was trained on
        self.batch, self.distance, self.centre = np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64)
        self.image_key: str | None = None
        self.temperature = 1.0
        self.start: UNet | None = None  # pretrained, from which training starts
        self.gene_classifier: GeneClassifier | None = None  # predicts other sections

    @property
    def required_genes(self) -> list[str]:
        """Genes of the linear members, if it has any, else of the components."""
        return super().required_genes if self.gene_classifier is None else self.gene_classifier.moments.genes

    @property
    def enough_genes(self) -> int | None:  # type: ignore[override]
        """Number of genes that the linear members read."""
        return None if self.gene_classifier is None else self.gene_classifier.max_genes

    @property
    def read_genes(self) -> list[str]:
        """Genes of the linear members and of the components."""
        return list(dict.fromkeys([*self.required_genes, *super().required_genes]))

    # ---------------------------------------------------------------- training

    def fit(
        self, sections: Sequence[Section], *, n_segments: int | None = None, labels: Sequence[Ints] | None = None,
        classes: Sequence[str] | None = None, class_shares: Floats | None = None,
        expression: Sequence[GeneSection] | Callable[[], Sequence[GeneSection] | None] | None = None,
        **run: Unpack[RunOptions],
    ) -> Segmenter:  # fmt: skip
        """Train on ``sections``.

        Parameters
        ----------
        sections
            Training sections.
        n_segments
            Number of compartments without labels; None chooses it by BIC.
        labels
            Per section, class codes with -1 for unlabelled observations.
        classes
            Class names for ``labels``.
        class_shares
            With ``labels``: approximate share of each class among the observations, (K,); NaN where unknown.
        expression
            Genes of the same observations: with them and ``labels``, the model learns to be applied to other sections;
            without ``labels``, the clusters of different batches are compared by them. A function that reads them is
            called only where there are several batches.
        **run
            ``random_state``, ``accelerator``, ``devices`` and ``show_progress``, as in :func:`stxtools.tl.segment`.

        Raises
        ------
        ValueError
            If there are fewer distinct observations than ``n_segments``.
        """
        self.net, self.gene_classifier, self.history, run = None, None, [], with_defaults(run)
        # samples and sums then do not depend on how the rows are ordered
        orders = [s.canonical_order() for s in sections]
        unordered, sections = sections, [s.take(order) for s, order in zip(sections, orders, strict=True)]
        if self.start is None:
            self.scaling = FeatureScaling.of(sections)
        self.batch, self.distance = batches([s.features for s in sections])
        self.centre, axes = shared_centres(sections, self.batch)
        self.scaling = self.scaling.sharing(sections, self.centre, axes)
        if callable(expression):
            expression = expression() if self.batch.any() else None
        genes = None if expression is None else [e.take(order) for e, order in zip(expression, orders, strict=True)]
        sections = [self.scaling.centred(s) for s in sections]

        if labels is None:
            pseudo_labels = pseudo_labels_from_clustering(
                sections, n_segments, np.random.default_rng(run["random_state"]), run["show_progress"],
                self.batch, self.centre, genes,
            )  # fmt: skip
        else:
            ordered = [codes[order] for codes, order in zip(labels, orders, strict=True)]
            pseudo_labels = pseudo_labels_from_labels(
                sections, ordered, list(classes or []), run["random_state"], class_shares
            )
        self.classes, self.curve = pseudo_labels.classes, pseudo_labels.curve

        tensors, members = target_rasters(sections, pseudo_labels, self.scaling.scale, run["random_state"])
        predicted, accelerator = self._train(tensors, run), run["accelerator"]
        proba = [p[m] for (p, _), m in zip(predicted, members, strict=True)]
        # the class sizes that were promised: no class without an observation, or the shares that were given
        offsets = np.zeros(len(self.classes))
        if labels is None:
            offsets = self._offsets_for_all(tensors, np.concatenate([features for _, features in predicted]))
        elif class_shares is not None:
            offsets = share_offsets(np.concatenate(proba).astype(np.float64), class_shares)
        if offsets.any():
            with torch.no_grad():
                self.fitted_net().head.bias += torch.from_numpy(offsets).float()  # type: ignore[operator]
            proba = [p[m] for (p, _), m in zip(self._predicted(tensors, accelerator), members, strict=True)]
        self.temperature = pseudo_labels.temperature(proba)
        if labels is None:
            self._order_by_size(unordered, np.concatenate(proba), accelerator)
        elif genes is not None:
            rng = np.random.default_rng(run["random_state"])
            self.gene_classifier = GeneClassifier.fit(genes, *pseudo_labels.by_section(sections), rng, self.batch)
        return self

    def pretrain(self, sections: Sequence[Section], **run: Unpack[RunOptions]) -> Segmenter:
        """Train the U-Net without labels or classes, to start :meth:`fit` from it; keywords are those of `fit`."""
        if self.params.pretrain == "none":
            raise ValueError("`params` turn pretraining off; choose `pretrain='masked'` or 'contrastive'.")
        self.net, self.start, self.history, run = None, None, [], with_defaults(run)
        self.scaling = FeatureScaling.of(sections)
        rasters = [self.scaling.raster(s)[0] for s in sections]
        with seeded(run["random_state"]):
            unet = self._new_unet()
        self._pretrain(unet, rasters, run)
        self.start = unet
        return self

    def _offsets_for_all(self, tensors: list[PixelRaster], features: Floats32) -> Floats:
        """Offsets of the logits that restore classes lost in training."""
        head: Any = self.fitted_net().head
        weight, bias = head.weight.detach()[:, :, 0, 0].double().numpy(), head.bias.detach().double().numpy()
        wanted = class_sizes(np.concatenate([t.target.numpy() for t in tensors if t.target is not None]))
        return offsets_for_all(features @ weight.T + bias, wanted)

    def _order_by_size(self, sections: Sequence[Section], proba: Floats32, accelerator: str) -> None:
        """Number the classes by their predicted size, largest first.

        ``proba`` was predicted in training. :meth:`predict` reads the rows in their own order and rounds differently,
        so two classes of nearly the same size may change places: such classes are counted again as predicted.
        """
        head = self.fitted_net().head
        for turn in range(_REORDERINGS + _BIAS_STEPS):
            if turn:
                proba = np.concatenate([result.proba for result in self.predict(sections, accelerator=accelerator)])
            sizes = class_sizes(proba)
            smaller = np.diff(sizes) > 0
            if turn and not smaller.any():
                break
            with torch.no_grad():
                if turn < _REORDERINGS:
                    order = torch.from_numpy(np.argsort(-sizes, kind="stable"))
                    head.weight.copy_(head.weight[order])
                    head.bias.copy_(head.bias[order])  # type: ignore[union-attr, index]
                else:  # rounding makes the first of two nearly equal classes the smaller one, in either order
                    steps = 1e-6 * 2.0 ** (turn - _REORDERINGS)
                    head.bias[:-1][torch.from_numpy(smaller)] += steps  # type: ignore[index]
            if (np.diff(np.sort(sizes)) > 2 + len(proba) // 1000).all():  # more than rounding changes
                break

    def _predicted(self, tensors: list[PixelRaster], accelerator: str) -> list[tuple[Floats32, Floats32]]:
        """Class probabilities and features of the occupied pixels of every section."""
        stage("predicting")
        net, device = self.fitted_net(), best_device(accelerator)
        predicted = [predict_pixels(net, t, device) for t in tensors]
        net.to("cpu")
        return [(proba.numpy(), features.numpy()) for proba, features in predicted]

    def _new_unet(self) -> UNet:
        p = self.params
        return UNet(self.n_features, width=p.width, depth=p.depth, kernel_size=p.kernel_size,
                    dropout=p.dropout, sigmas=p.sigmas)  # fmt: skip

    def _new_net(self) -> SegmentationNet:
        unet = self._new_unet()
        if self.start is not None:
            unet.load_state_dict(self.start.state_dict())
        return SegmentationNet(unet, len(self.classes))

    def _train(self, tensors: list[PixelRaster], run: RunOptions) -> list[tuple[Floats32, Floats32]]:
        """Train until the predictions, which are returned, agree with the targets, or agree no better than before."""
        p = self.params
        with seeded(run["random_state"]):
            net = self._new_net()
        if p.pretrain != "none" and self.start is None:
            self._pretrain(net.unet, tensors, run)
        epochs = p.epochs or default_epochs(tensors, view_size(tensors, net.unet.stride, p.view_size))
        predicted, best, judged = [], -1.0, validation_loader(tensors)
        for turn in count():
            self.net, before = None, {name: value.clone() for name, value in net.state_dict().items()}
            task = SegmentationTask(net, Training(epochs, p.patience, lr=p.lr, weight_decay=p.weight_decay))
            views = self._views(tensors, net.unet, run["random_state"] + 5 * turn, least=_PIXELS if turn else 0)
            done = sum(row["stage"] == "segment" for row in self.history)
            rows = run_training(task, views, judged, stage="segment", desc="training the U-Net", **run)
            self.history += [{**row, "epoch": row["epoch"] + done} for row in rows]
            self.net, judged = net, None  # what a few pixels held out say of small tissue is chance
            now = self._predicted(tensors, run["accelerator"])
            agreed = agreement(tensors, [proba for proba, _ in now])
            gain = agreed - best
            if gain < 0:
                net.load_state_dict(before)
                break
            best, predicted = agreed, now
            if p.epochs or agreed >= _LEARNED or gain < _GAIN:
                break
        return predicted

    def _pretrain(self, unet: UNet, tensors: list[PixelRaster], run: RunOptions) -> None:
        p, seed = self.params, run["random_state"] + 1
        training = Training(p.pretrain_epochs, p.pretrain_epochs, lr=p.lr, weight_decay=p.weight_decay)
        contrastive = p.pretrain == "contrastive"
        with seeded(seed):
            kind = ContrastivePretraining if contrastive else MaskedPretraining
            task = kind(unet, self.n_features, training)
        views = self._views(tensors, unet, seed, pairs=contrastive)
        self.history += run_training(task, views, None, stage=f"pretrain_{p.pretrain}", desc="pretraining", **run)

    def _views(
        self, tensors: list[PixelRaster], unet: UNet, seed: int, *, pairs: bool = False, least: int = 0
    ) -> DataLoader[Any]:
        """Random views for training, as many a step as show ``least`` pixels, or many small pairs of them."""
        p, size = self.params, view_size(tensors, unet.stride, self.params.view_size)
        enough = least * len(tensors) // sum(len(t.flat) for t in tensors)
        size, batch = (min(size, 32), 16) if pairs else (size, max(p.batch_size, enough))
        how = Augmentation(p.rotation, p.scaling, True, p.drop)
        views = RandomViews(tensors, size, p.steps_per_epoch * batch, how, seed, pairs)
        return DataLoader(views, batch_size=batch)

    # ---------------------------------------------------------------- use

    def predict(
        self, sections: Sequence[Section], *, expression: Sequence[GeneSection] | None = None,
        labels: Sequence[Ints] | None = None, adapt: bool = True, accelerator: str = "auto",
    ) -> list[Segmentation]:  # fmt: skip
        """Segment ``sections``.

        Parameters
        ----------
        sections
            Sections to segment.
        expression
            Genes of the same observations, from which the linear members of the model predict, if it has any. Without
            them the U-Net predicts.
        labels
            Per section, class codes with -1 for unlabelled observations; they need ``expression``.
        adapt
            Whether the members adapt to each section's own components.
        accelerator
            Device of the U-Net.
        """
        net, device, out = self.fitted_net(), best_device(accelerator), []
        stage("predicting")
        for i, section in enumerate(sections):
            raster, member = self.scaling.raster(section)
            proba, features = predict_pixels(net, raster, device)
            if expression is None or self.gene_classifier is None:
                out.append(Segmentation(tempered(proba.numpy(), self.temperature)[member], features.numpy()[member]))
                continue
            known = None if labels is None or not (labels[i] >= 0).any() else labels[i]
            prediction = self.gene_classifier.predict(expression[i], labels=known, adapt=adapt)
            share, temperature = softmax(prediction.logits, axis=1), 1.0
            if prediction.agreement is not None:
                sample = share[evenly_spread(len(share), _CALIBRATED)]
                temperature = matching_temperature(sample, prediction.agreement)
                if known is None and not self.gene_classifier.alone:  # members share errors: accuracy may be lower
                    temperature = max(temperature, 1.0)
            out.append(Segmentation(tempered(share, temperature), features.numpy()[member], prediction.weights))
        net.to("cpu")
        return out

    def _weights(self) -> Mapping[str, torch.Tensor]:
        if self.net is None and self.start is not None:  # pretrained only
            return {f"unet.{name}": value for name, value in self.start.state_dict().items()}
        return super()._weights()

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"by_genes": self.gene_classifier}

    def _read_net(self, file: ModelFile) -> None:
        self.gene_classifier = file.value("by_genes", "GeneClassifier | None")
        if self.classes:
            super()._read_net(file)
        else:
            self.start = file.module(self._new_unet, "net.unet.")

    def starting_point(self) -> Segmenter:
        """Return an untrained Segmenter with this one's input and parameters; its training starts from this U-Net."""
        out = Segmenter(self.params)
        out.projection, out.use_rep, out.ids, out.image_key = self.projection, self.use_rep, self.ids, self.image_key
        out.scaling = self.scaling
        pretrained_only = self.net is None and self.start is not None
        out.start = self.start if pretrained_only else self.fitted_net().unet
        return out
