"""The segmentation model: S = U(X; theta)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stxtools._progress import progress
from stxtools.nn._augment import Augmentation, block_mask
from stxtools.nn._segmentation import (
    ContrastivePretraining,
    MaskedPretraining,
    RasterTensors,
    SegmentationTask,
    predict_section,
    view_loader,
    view_size,
    whole_loader,
)
from stxtools.nn._training import Training, run_training, seeded
from stxtools.nn._unet import SegmentationNet, UNet

from ._mixtures import consensus, most_rounds, multiscale_views, stability_curve, steady_view
from ._params import SegmenterParams, as_dict, resolve
from ._projection import GeneProjection
from ._section import Section
from ._spreading import spread_over_scales
from ._storage import load_model, save_model

CANDIDATES = tuple(range(2, 11))  # numbers of segments tried when none is given
PRIOR_OBS = 20
SHARPEN = 3  # averaged memberships are soft; taught as they are, the U-Net loses small classes
TIE = 0.01  # of numbers as stable as this, the larger one is taken: it tells more


@dataclass(frozen=True)
class Segmentation:
    """Result for one section.

    Attributes
    ----------
    proba
        Class probabilities of the observations, (n, K).
    features
        The U-Net's feature vector at every observation, (n, width).
    """

    proba: NDArray[np.float32]
    features: NDArray[np.float32]


class Segmenter:
    """U-Net that assigns the observations of spatial sections to compartments.

    It is trained on the sections it is fitted to: pretrained without labels (masked reconstruction or
    SimCLR), then taught by soft targets. Without labels the targets are a consensus of Gaussian
    mixtures on spatially averaged features; with labels, a shrinkage LDA on neighbourhood means for the
    unlabelled observations and the labels themselves for the labelled ones.

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

    def __init__(self, params: SegmenterParams | Mapping[str, Any] | None = None) -> None:
        self.params = resolve(params, SegmenterParams)
        self.classes: list[str] = []
        self.history: list[dict[str, Any]] = []
        self.stability: dict[int, float] = {}
        self.projection: GeneProjection | None = None
        self.use_rep: str | None = None
        self.pixel_size: float | None = None
        self.net: SegmentationNet | None = None
        self.centre: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self.scale: NDArray[np.float32] = np.ones(0, dtype=np.float32)

    @property
    def n_features(self) -> int:
        """Length of the feature vectors it reads."""
        return len(self.centre)

    def params_dict(self) -> dict[str, Any]:
        """Parameters as plain values."""
        return as_dict(self.params)

    # ---------------------------------------------------------------- training

    def fit(
        self,
        sections: Sequence[Section],
        *,
        n_segments: int | None = None,
        labels: Sequence[NDArray[np.int64]] | None = None,
        classes: Sequence[str] | None = None,
        random_state: int = 0,
        accelerator: str = "auto",
        devices: int | str = 1,
        show_progress: bool | None = None,
    ) -> Segmenter:
        """Train on ``sections``.

        Parameters
        ----------
        sections
            What to learn from.
        n_segments
            Number of compartments without labels; None chooses it by stability.
        labels
            Per section, class codes with -1 for unlabelled observations.
        classes
            Class names for ``labels``.
        random_state
            Seed; the same seed on the same machine gives the same result.
        accelerator, devices
            As in Lightning.
        show_progress
            Whether a bar is shown.

        Raises
        ------
        ValueError
            If the data do not hold ``n_segments`` distinct compartments.
        """
        rng = np.random.default_rng(random_state)
        self.net, self.history, self.stability = None, [], {}
        self.centre = np.concatenate([s.features for s in sections]).mean(axis=0)
        sections = [self._centred(s) for s in sections]
        self.scale = np.concatenate([s.features for s in sections]).std(axis=0) + 1e-6
        if labels is None:
            targets, weights = self._unsupervised_targets(sections, n_segments, rng, show_progress)
        else:
            targets, weights = self._label_targets(sections, labels, list(classes or []))
        hold = None if labels is None else [codes >= 0 for codes in labels]
        tensors = self._tensors(sections, targets, weights, hold, random_state)
        how: dict[str, Any] = {
            "seed": random_state, "accelerator": accelerator, "devices": devices, "show_progress": show_progress
        }  # fmt: skip
        self._train(tensors, how)
        if labels is None:
            self._keep_exactly(tensors, how)
        return self

    def _keep_exactly(self, tensors: list[RasterTensors], how: dict[str, Any]) -> None:
        """Order classes by size, and train again with equal weight for all should one have been lost."""
        sizes = self._sizes(tensors, how["accelerator"])
        for _ in range(3):
            if (sizes > 0).all():
                break
            share = torch.stack([class_mass(t) for t in tensors]).sum(dim=0)
            balance = share.mean() / share.clamp_min(1e-6)
            for t in tensors:
                if t.target is not None and t.weight is not None and t.val_weight is not None:
                    rare = balance[t.target.argmax(dim=0)]
                    t.weight, t.val_weight = t.weight * rare, t.val_weight * rare
            self._train(tensors, how, again=True)
            sizes = self._sizes(tensors, how["accelerator"])
        if (sizes == 0).any():
            raise ValueError(
                f"Only {int((sizes > 0).sum())} of the {len(sizes)} segments asked for could be told apart on "
                "this tissue; choose a smaller `n_segments`, or train longer, e.g. `params={'epochs': 40}`."
            )
        order = torch.from_numpy(np.argsort(-sizes, kind="stable"))
        head = self._trained().head
        with torch.no_grad():
            head.weight.copy_(head.weight[order])
            head.bias.copy_(head.bias[order])  # type: ignore[union-attr, index]

    def _sizes(self, tensors: list[RasterTensors], accelerator: str) -> NDArray[np.int64]:
        """Occupied pixels of every class."""
        device, sizes = best_device(accelerator), np.zeros(len(self.classes), dtype=np.int64)
        for t in tensors:
            proba, _ = predict_section(self._trained(), t, device)
            sizes += np.bincount(proba.argmax(dim=0)[t.occupied[0] > 0].numpy(), minlength=len(sizes))
        return sizes

    def _trained(self) -> SegmentationNet:
        if self.net is None:
            raise ValueError("This Segmenter is not trained; call `fit` or load a saved one.")
        return self.net

    def _unsupervised_targets(
        self, sections: Sequence[Section], k: int | None, rng: np.random.Generator, show_progress: bool | None
    ) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        rounds = most_rounds(sum(s.n_obs for s in sections) // len(sections))
        per_section = [multiscale_views(s.features, s.graph, rounds) for s in sections]
        views = [np.concatenate(parts) for parts in zip(*per_section, strict=True)]
        n = len(views[0])
        if k is None:
            candidates = [c for c in CANDIDATES if c <= max(2, n // 20)]
            steady = np.concatenate([steady_view(s.features, s.graph) for s in sections])
            curve = stability_curve(steady, candidates, rng) if len(candidates) > 1 else np.ones(1)
            self.stability = dict(zip(candidates, curve.tolist(), strict=True))
            k = max(c for c, s in zip(candidates, curve, strict=True) if s >= curve.max() - TIE)
        if k == 1:
            target, agreement = np.ones((n, 1)), np.ones(n)
        else:
            with progress(len(views), "teachers", show_progress) as bar:
                target, agreement = consensus(views, k, rng, lambda: bar.update(1))
        target = target**SHARPEN / (target**SHARPEN).sum(axis=1, keepdims=True)
        self.classes = [str(i) for i in range(k)]
        share = target.mean(axis=0)
        balance = (share.mean() / share.clip(1e-6)) ** 0.5  # small compartments are not to be lost
        weight = agreement * balance[target.argmax(axis=1)]
        cuts = np.cumsum([s.n_obs for s in sections])[:-1]
        return np.split(target, cuts), np.split(weight, cuts)

    def _label_targets(
        self, sections: Sequence[Section], labels: Sequence[NDArray[np.int64]], classes: list[str]
    ) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        self.classes = classes
        codes = np.concatenate(list(labels))
        proba = spread_over_scales([(s.features, s.xy) for s in sections], codes, len(classes))
        confidence = (proba.max(axis=1) - 1 / len(classes)) / (1 - 1 / len(classes))
        known = codes >= 0
        proba[known] = np.eye(len(classes))[codes[known]]
        cuts = np.cumsum([s.n_obs for s in sections])[:-1]
        targets, weights = np.split(proba, cuts), np.split(np.where(known, 2.0, confidence), cuts)
        return targets, weights

    def _tensors(
        self,
        sections: Sequence[Section],
        targets: Sequence[NDArray[np.float64]],
        weights: Sequence[NDArray[np.float64]],
        labelled: Sequence[NDArray[np.bool_]] | None,
        seed: int,
    ) -> list[RasterTensors]:
        """Rasters with targets; one block in ten is held out for early stopping, labelled pixels never are."""
        out = []
        for i, section in enumerate(sections):
            tensors = self._inputs(section)
            weight = torch.from_numpy(section.to_raster(weights[i][:, None])) * tensors.occupied
            generator = torch.Generator().manual_seed(seed + i)
            held = block_mask(section.shape, 0.1, 4, generator)[None]
            if labelled is not None:
                held &= torch.from_numpy(section.to_raster(labelled[i][:, None].astype(np.float64))) == 0
            tensors.target = torch.from_numpy(section.to_raster(targets[i], weights[i] + 1e-9))
            tensors.weight, tensors.val_weight = weight * ~held, weight * held
            out.append(tensors)
        return out

    def _centred(self, section: Section) -> Section:
        """Take the section's own mean out: the simplest account of depth, staining and donor.

        The mean of a small section is drawn towards that of the training data, as if ``PRIOR_OBS`` more
        observations lay there.
        """
        n = section.n_obs
        mean = (n * section.features.mean(axis=0) + PRIOR_OBS * self.centre) / (n + PRIOR_OBS)
        return replace(section, features=(section.features - mean).astype(np.float32))

    def _inputs(self, section: Section) -> RasterTensors:
        z = section.features / self.scale
        return RasterTensors(torch.from_numpy(section.to_raster(z)), torch.from_numpy(section.occupied()))

    def _new_net(self) -> SegmentationNet:
        p = self.params
        unet = UNet(self.n_features, width=p.width, depth=p.depth, kernel_size=p.kernel_size,
                    dropout=p.dropout, sigmas=p.sigmas)  # fmt: skip
        return SegmentationNet(unet, len(self.classes))

    def _train(self, tensors: list[RasterTensors], how: dict[str, Any], *, again: bool = False) -> None:
        p = self.params
        augmentation = Augmentation(p.rotation, p.scaling, True, p.drop)
        with seeded(how["seed"]):
            net = self._new_net() if self.net is None else self.net
        unet = net.unet
        size = view_size(tensors, unet.stride, p.view_size)
        if not again and p.pretrain != "none":
            self._pretrain(unet, tensors, augmentation, size, how)
        task = SegmentationTask(net, Training(p.epochs, p.patience, lr=p.lr, weight_decay=p.weight_decay))
        views = view_loader(
            tensors, size=size, steps=p.steps_per_epoch, batch_size=p.batch_size, how=augmentation, seed=how["seed"]
        )
        self.history += run_training(task, views, whole_loader(tensors), stage="segment", desc="U-Net", **how)
        self.net = net

    def _pretrain(
        self, unet: UNet, tensors: list[RasterTensors], augmentation: Augmentation, size: int, how: dict[str, Any]
    ) -> None:
        p = self.params
        training = Training(p.pretrain_epochs, p.pretrain_epochs, lr=p.lr, weight_decay=p.weight_decay)
        with seeded(how["seed"] + 1):
            if p.pretrain == "masked":
                task: Any = MaskedPretraining(unet, self.n_features, training)
            else:
                task = ContrastivePretraining(unet, self.n_features, training)
        twins = p.pretrain == "contrastive"
        views = view_loader(
            tensors,
            size=min(size, 32) if twins else size,
            steps=p.steps_per_epoch,
            batch_size=16 if twins else p.batch_size,
            how=augmentation,
            seed=how["seed"] + 1,
            twins=twins,
        )
        self.history += run_training(task, views, None, stage=f"pretrain_{p.pretrain}", desc="pretraining", **how)

    # ---------------------------------------------------------------- use

    def predict(self, sections: Sequence[Section], *, accelerator: str = "auto") -> list[Segmentation]:
        """Segment ``sections`` with the trained U-Net."""
        net, device, out = self._trained(), best_device(accelerator), []
        for section in sections:
            proba, features = predict_section(net, self._inputs(self._centred(section)), device)
            out.append(Segmentation(section.from_raster(proba.numpy()), section.from_raster(features.numpy())))
        net.to("cpu")
        return out

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights (safetensors) and description (JSON) to one file."""
        arrays = {f"net.{k}": v.detach().cpu().numpy() for k, v in self._trained().state_dict().items()}
        arrays |= {"centre": self.centre, "scale": self.scale}
        config: dict[str, Any] = {
            "params": as_dict(self.params),
            "classes": self.classes,
            "use_rep": self.use_rep,
            "pixel_size": self.pixel_size,
        }
        if self.projection is not None:
            described, projection = self.projection.to_file()
            config, arrays = config | described, arrays | projection
        save_model(path, type(self).__name__, config, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Segmenter:
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is not a saved Segmenter.
        """
        config, arrays = load_model(path, cls.__name__)
        self = cls(config["params"])
        self.classes, self.use_rep = list(config["classes"]), config["use_rep"]
        self.pixel_size = config["pixel_size"]
        self.centre, self.scale = arrays["centre"], arrays["scale"]
        self.projection = GeneProjection.from_file(config, arrays)
        self.net = self._new_net()
        weights = {
            k.removeprefix("net."): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith("net.")
        }
        self.net.load_state_dict(weights)
        self.net.eval()
        return self


def class_mass(t: RasterTensors) -> torch.Tensor:
    """Weight of every class among the targets of a section, (K,)."""
    if t.target is None or t.weight is None:
        return torch.zeros(0)
    return (t.target * t.weight).sum(dim=(1, 2))


def best_device(accelerator: str) -> torch.device:
    """Return the torch device that Lightning's ``accelerator`` names, for inference."""
    if accelerator in {"auto", "gpu", "cuda"} and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in {"gpu", "mps"} and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator in {"gpu", "cuda", "mps"}:
        raise ValueError(f"`accelerator={accelerator!r}` is not available on this machine; use 'auto' or 'cpu'.")
    return torch.device("cpu")
