"""Parameters of the models: frozen data classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from stxtools._checks import check_bool, check_choice, check_int, check_number

P = TypeVar("P")

# upper limits, so that a typing error is refused before memory is allocated
_MAX_WIDTH, _MAX_LAYERS, _MAX_KERNEL, _MAX_SIGMA = 4096, 64, 63, 1000.0

MEMBERS = ("network", "linear", "trees", "label_propagation", "genes")  # of an ensemble


@dataclass(frozen=True)
class SegmenterParams:
    """Architecture and training of the U-Net.

    Attributes
    ----------
    width, depth, kernel_size, dropout
        Channels of the first level, number of downsampling steps, (odd) side of the filters, dropout of feature maps
        (in pretraining, or without any in the first round of training). A depth of 1 segments as well as 2 and
        transfers better to other sections.
    sigmas
        Standard deviations of Gaussian filters on the input, in pixels; 0 is the unfiltered raster.
    pretrain
        Self-supervised pretraining: ``"masked"`` reconstruction, ``"contrastive"`` (SimCLR-style) or ``"none"``.
    pretrain_epochs, epochs
        Maximum number of epochs, with early stopping on the validation loss. ``epochs=None`` takes 10, or 30 for tissue
        larger than four training views, and repeats while fewer than 90 % of the pixels agree with their pseudo-labels.
    steps_per_epoch, batch_size
        Steps per epoch and random views per step.
    view_size
        Largest side of a training view in pixels.
    lr, weight_decay, patience
        Adam's learning rate and decoupled weight decay, epochs without improvement before stopping. At a rate of 1e-4,
        the few hundred steps on a section are far from convergence.
    rotation, scaling, drop
        Augmentation: largest rotation in degrees, largest relative change of size, share of masked pixels.
    """

    width: int = 24
    depth: int = 1
    kernel_size: int = 3
    dropout: float = 0.1
    sigmas: tuple[float, ...] = (0.0, 1.0, 2.0)
    pretrain: Literal["masked", "contrastive", "none"] = "masked"
    pretrain_epochs: int = 2
    epochs: int | None = None
    steps_per_epoch: int = 8
    batch_size: int = 1
    view_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-4
    patience: int = 8
    rotation: float = 180.0
    scaling: float = 0.25
    drop: float = 0.1

    def __post_init__(self) -> None:
        check_choice("pretrain", self.pretrain, ("masked", "contrastive", "none"))
        for name in ("pretrain_epochs", "steps_per_epoch", "batch_size", "patience"):
            check_int(name, getattr(self, name), minimum=1)
        _check_unet(self.width, self.depth, self.kernel_size)
        if self.epochs is not None:
            check_int("epochs", self.epochs, minimum=1)
        check_int("view_size", self.view_size, minimum=8)
        for name in ("dropout", "drop"):
            check_number(name, getattr(self, name), minimum=0, maximum=0.95)
        check_number("lr", self.lr, above=0)
        for name in ("weight_decay", "rotation", "scaling"):
            check_number(name, getattr(self, name), minimum=0)
        for sigma in _check_numbers("sigmas", self.sigmas):
            check_number("sigmas", sigma, minimum=0, maximum=_MAX_SIGMA)


@dataclass(frozen=True)
class TissueNetParams:
    """Architecture and training of the joint network on the region graph.

    Attributes
    ----------
    conv
        ``"gatv2"`` (attention) or ``"sum"`` (over the neighbours).
    hidden, out_channels, layers, heads, dropout
        Widths of the node states, message-passing layers, attention heads, dropout (with labels).
    unet
        Whether a U-Net on the raster is trained jointly (multi-task); its features are read at each observation and
        pooled by region.
    unet_width, unet_depth, kernel_size
        Its architecture, as in :class:`SegmenterParams`.
    pretrain, pretrain_epochs
        Pretraining of the U-Net, ``"masked"`` reconstruction or ``"none"``, and its epochs.
    neighbours
        Sizes of the neighbourhoods (nearest observations, including itself) whose means are input features.
    spot_width, input_dropout
        Width of the layer on these features, and their dropout.
    genes
        Whether up to 2,000 variable genes, averaged over neighbourhoods, are input features, too; or their names.
    ensemble
        Members whose weighted logits are the prediction, some of ``"network"``, ``"linear"`` (discriminant analysis of
        the representation's neighbourhood means, ridge logistic regression of the genes'), ``"trees"`` (extremely
        randomised trees of the representation's), ``"label_propagation"`` and ``"genes"`` (ridge regression of
        neighbourhood means of genes standardised within each section, in sections without labels); or ``"auto"``. See
        :func:`stxtools.tl.multitask`.
    alpha, beta, gamma
        Factors of the biomarker, the tissue-class and the expression loss; tasks with a factor of 0 are not trained.
    weighting
        Weights by which the losses are multiplied, too: ``"fixed"`` (1), ``"gradnorm"`` (Chen et al. 2018),
        ``"uncertainty"`` (Kendall et al. 2018) or ``"famo"`` (Liu et al. 2023).
    region_loss
        Weight of the loss on the regions' label shares; that of the observations is 1.
    hide
        Share of regions that are masked and reconstructed, without labels.
    max_nodes
        Largest graph (in regions) that is processed at once. Larger ones are cut into parts of 1,024 regions, or this
        number if smaller: compact blocks from the whole section, with a halo of ``layers`` steps. Predictions are the
        same either way; without labels, a training step is on one part.
    epochs, patience, lr, weight_decay
        Maximum number of epochs, epochs without improvement before stopping, Adam's learning rate and weight decay.
    """

    conv: Literal["gatv2", "sum"] = "gatv2"
    hidden: int = 64
    out_channels: int = 32
    layers: int = 2
    heads: int = 4
    dropout: float = 0.3
    unet: bool = True
    unet_width: int = 16
    unet_depth: int = 2
    kernel_size: int = 3
    pretrain: Literal["masked", "none"] = "masked"
    pretrain_epochs: int = 4
    neighbours: tuple[int, ...] = (1, 7, 19, 37, 61, 127)
    spot_width: int = 64
    input_dropout: float = 0.3
    genes: bool | tuple[str, ...] = True
    ensemble: Literal["auto"] | tuple[str, ...] = "auto"
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    weighting: Literal["fixed", "gradnorm", "uncertainty", "famo"] = "fixed"
    region_loss: float = 0.5
    hide: float = 0.3
    max_nodes: int = 4096
    epochs: int = 60
    patience: int = 15
    lr: float = 3e-3
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        check_choice("conv", self.conv, ("gatv2", "sum"))
        check_choice("pretrain", self.pretrain, ("masked", "none"))
        check_choice("weighting", self.weighting, ("fixed", "gradnorm", "uncertainty", "famo"))
        check_ensemble(self.ensemble)
        check_bool("unet", self.unet)
        if not isinstance(self.genes, tuple):
            check_bool("genes", self.genes)
        for name in ("pretrain_epochs", "epochs", "patience", "max_nodes"):
            check_int(name, getattr(self, name), minimum=1)
        for name in ("hidden", "out_channels", "heads", "spot_width"):
            check_int(name, getattr(self, name), minimum=1, maximum=_MAX_WIDTH)
        check_int("layers", self.layers, minimum=1, maximum=_MAX_LAYERS)
        _check_unet(self.unet_width, self.unet_depth, self.kernel_size, "unet_")
        for name in ("dropout", "hide", "input_dropout"):
            check_number(name, getattr(self, name), minimum=0, maximum=0.95)
        check_number("lr", self.lr, above=0)
        for name in ("alpha", "beta", "gamma", "region_loss", "weight_decay"):
            check_number(name, getattr(self, name), minimum=0)
        if self.alpha == self.beta == 0:
            raise ValueError("`alpha` and `beta` are both 0: nothing would be learned; set one above 0.")
        for size in _check_numbers("neighbours", self.neighbours):
            check_int("neighbours", size, minimum=1)
        if self.conv == "gatv2" and (self.hidden % self.heads or self.out_channels % self.heads):
            raise ValueError(
                f"`hidden={self.hidden}` and `out_channels={self.out_channels}` must be multiples of "
                f"`heads={self.heads}`."
            )


def _check_unet(width: Any, depth: Any, kernel_size: Any, prefix: str = "") -> None:
    """Check width, depth and an odd kernel size."""
    check_int(f"{prefix}width", width, minimum=1, maximum=_MAX_WIDTH)
    check_int(f"{prefix}depth", depth, minimum=0, maximum=6)
    if check_int("kernel_size", kernel_size, minimum=1, maximum=_MAX_KERNEL) % 2 == 0:
        raise ValueError(f"`kernel_size={kernel_size}` must be odd.")


def check_ensemble(value: object) -> None:
    """Check the members of an ensemble."""
    if isinstance(value, str) and value == "auto":
        return
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise TypeError(f"`ensemble={value!r}` must be 'auto' or a list of members: {', '.join(MEMBERS)}.")
    for name in value:
        check_choice("ensemble", name, MEMBERS)
    if not value or len(set(value)) < len(value):
        raise ValueError(f"`ensemble={list(value)!r}` must name at least one member, and each once.")
    if tuple(value) == ("label_propagation",):
        raise ValueError("`ensemble` names only label propagation, which predicts nothing in a section without "
                         "labels; add 'network', 'linear', 'trees' or 'genes'.")  # fmt: skip


def _check_numbers(name: str, value: Any) -> Sequence[Any]:
    """Check that ``value`` is a tuple or list that is not empty."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"`{name}` must be a tuple or list of numbers, not {value!r}.")
    if not value:
        raise ValueError(f"`{name}` is empty; give at least one number, such as (1,).")
    return value


def resolve(params: P | Mapping[str, Any] | None, kind: type[P]) -> P:
    """Return an instance of ``kind`` from an instance, a mapping of some of its fields, or None."""
    if params is None:
        return kind()
    if isinstance(params, kind):
        return params
    if not isinstance(params, Mapping):
        raise TypeError(f"`params` must be a {kind.__name__}, a mapping of its fields or None, not {params!r}.")
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in set(params) - known)
    if unknown:
        raise ValueError(
            f"Unknown field(s) of {kind.__name__}: {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in params.items()})
