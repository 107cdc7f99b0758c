"""Parameters of the framework on the region graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stxtools._checks import check_bool, check_choice, check_int, check_number
from stxtools.models._params import DEEPEST, WIDEST, check_unet, several

Weighting = Literal["fixed", "gradnorm", "uncertainty", "famo"]
Pretraining = Literal["masked", "none"]

MEMBERS = ("network", "linear", "trees", "label_propagation", "genes")


def check_ensemble(value: object) -> None:
    """Check the names of an ensemble's members."""
    if isinstance(value, str) and value == "auto":
        return
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise TypeError(f"`ensemble={value!r}` must be 'auto' or a list of members: {', '.join(MEMBERS)}.")
    for name in value:
        check_choice("ensemble", name, MEMBERS)
    if not value or len(set(value)) < len(value):
        raise ValueError(f"`ensemble={list(value)!r}` must name one member at least, and each once.")
    if tuple(value) == ("label_propagation",):
        raise ValueError("`ensemble` names label propagation alone, which predicts nothing in a section without "
                         "labels; add 'network', 'linear', 'trees' or 'genes'.")  # fmt: skip


@dataclass(frozen=True)
class TissueNetParams:
    """Architecture and training of the framework on the region graph.

    Attributes
    ----------
    conv
        ``"gatv2"`` (attention) or ``"sum"`` (plain sum over the neighbours).
    hidden, out_channels, layers, heads, dropout, embed_dropout
        Node state lengths, message-passing steps, attention heads, share of states dropped with labels and without.
    unet
        Whether a U-Net on the raster is trained along (multi-task); its features are read at each observation
        and pooled by region.
    unet_width, unet_depth, kernel_size
        Its architecture, as in :class:`SegmenterParams`.
    pretrain, pretrain_epochs
        Pretraining of the U-Net on the sections at hand, ``"masked"`` reconstruction or ``"none"``, and its epochs.
    neighbours
        Sizes of the neighbourhoods (nearest observations, itself included) whose means each observation reads.
    spot_width, input_dropout
        Width of the layer that reads them, share of them dropped.
    genes
        Whether the expression of up to 2,000 variable genes, averaged over neighbourhoods, is read beside the
        representation; or the names of the genes to read there.
    ensemble
        Members whose weighted logits are the prediction, some of ``"network"``, ``"linear"`` (discriminant analysis of
        the representation's neighbourhood means, ridge logistic regression of the genes'), ``"trees"`` (extremely
        randomised trees of the representation's), ``"label_propagation"`` and ``"genes"`` (ridge regression of
        neighbourhood means of genes standardised within each section, in sections without labels); or ``"auto"``. See
        :func:`stxtools.tl.multitask`.
    alpha, beta, gamma
        Factors of the biomarker, the tissue-class and the expression loss; a task whose factor is 0 is not trained.
    weighting
        Weights that the losses get beside these factors: ``"fixed"`` (1), ``"gradnorm"`` (Chen et al. 2018),
        ``"uncertainty"`` (Kendall et al. 2018) or ``"famo"`` (Liu et al. 2023).
    region_loss
        Weight of the loss on the regions' label shares beside that on the observations.
    hide
        Share of regions that are hidden, to be reconstructed, without labels.
    max_nodes
        Regions of a section up to which its graph is passed through the network at once. A larger one is cut into
        parts of 4,096 regions at most (fewer where this or ``settings.max_memory`` asks for it): compact blocks from
        all over the section, each read with what lies within ``layers`` steps around it. A trained network says the
        same either way; without labels it learns from one part a step.
    epochs, patience, lr, weight_decay
        Most epochs, epochs without gain before stopping, Adam's learning rate and decay.
    """

    conv: Literal["gatv2", "sum"] = "gatv2"
    hidden: int = 64
    out_channels: int = 32
    layers: int = 2
    heads: int = 4
    dropout: float = 0.3
    embed_dropout: float = 0.1
    unet: bool = True
    unet_width: int = 16
    unet_depth: int = 2
    kernel_size: int = 3
    pretrain: Pretraining = "masked"
    pretrain_epochs: int = 4
    neighbours: tuple[int, ...] = (1, 7, 19, 37, 61, 127)
    spot_width: int = 64
    input_dropout: float = 0.3
    genes: bool | tuple[str, ...] = True
    ensemble: Literal["auto"] | tuple[str, ...] = "auto"
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    weighting: Weighting = "fixed"
    region_loss: float = 0.5
    hide: float = 0.3
    max_nodes: int = 10_000
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
            check_int(name, getattr(self, name), minimum=1, maximum=WIDEST)
        check_int("layers", self.layers, minimum=1, maximum=DEEPEST)
        check_unet(self.unet_width, self.unet_depth, self.kernel_size, "unet_")
        for name in ("dropout", "embed_dropout", "hide", "input_dropout"):
            check_number(name, getattr(self, name), minimum=0, maximum=0.95)
        for name in ("alpha", "beta", "gamma", "region_loss", "lr", "weight_decay"):
            check_number(name, getattr(self, name), minimum=0)
        if self.alpha == self.beta == 0:
            raise ValueError("`alpha` and `beta` are both 0: nothing would be learned.")
        for size in several("neighbours", self.neighbours):
            check_int("neighbours", size, minimum=1)
        if self.conv == "gatv2" and (self.hidden % self.heads or self.out_channels % self.heads):
            raise ValueError(
                f"`hidden={self.hidden}` and `out_channels={self.out_channels}` must be multiples of "
                f"`heads={self.heads}`."
            )
