"""Parameter sets: frozen, documented, given as an instance, a mapping or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

from stxtools._checks import check_choice, check_int, check_number

P = TypeVar("P")

# larger networks fit into no memory at hand: a slip of the pen is refused before anything is allocated
WIDEST, DEEPEST, WIDEST_KERNEL, WIDEST_SIGMA = 4096, 64, 63, 1000.0


@dataclass(frozen=True)
class SegmenterParams:
    """Architecture and training of the U-Net.

    Attributes
    ----------
    width, depth, kernel_size, dropout
        Channels of the first level, number of halvings, side of the filters (odd; larger for coarser
        grids), share of feature maps dropped in training. One halving segments as well as two and reads
        other sections better: less of a section's layout can be learned by heart.
    sigmas
        Smoothing scales of the input in pixels; 0 is the raster itself.
    pretrain
        Self-supervised pretraining on the sections at hand: ``"masked"`` reconstruction,
        ``"contrastive"`` (SimCLR-style) or ``"none"``.
    pretrain_epochs, epochs
        Most epochs of each stage; training stops early when the validation loss no longer falls. ``epochs=None`` takes
        10, or 30 where there is more tissue than four training views hold.
    steps_per_epoch, batch_size
        Random views a step and steps an epoch.
    view_size
        Largest side of a training view in pixels.
    lr, weight_decay, patience
        Adam's learning rate and decoupled decay, epochs without gain before stopping. The method's
        description names 1e-4, which is far from converged after the few hundred steps that a
        section needs here.
    rotation, scaling, drop
        Augmentation: largest rotation in degrees, largest relative change of size, share of pixels hidden.
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
        check_unet(self.width, self.depth, self.kernel_size)
        if self.epochs is not None:
            check_int("epochs", self.epochs, minimum=1)
        check_int("view_size", self.view_size, minimum=8)
        for name in ("dropout", "drop"):
            check_number(name, getattr(self, name), minimum=0, maximum=0.95)
        for name in ("lr", "weight_decay", "rotation", "scaling"):
            check_number(name, getattr(self, name), minimum=0)
        for sigma in several("sigmas", self.sigmas):
            check_number("sigmas", sigma, minimum=0, maximum=WIDEST_SIGMA)


def check_unet(width: Any, depth: Any, kernel_size: Any, prefix: str = "") -> None:
    """Check channels, halvings and the side of the filters, an odd number."""
    check_int(f"{prefix}width", width, minimum=1, maximum=WIDEST)
    check_int(f"{prefix}depth", depth, minimum=0, maximum=6)
    if check_int("kernel_size", kernel_size, minimum=1, maximum=WIDEST_KERNEL) % 2 == 0:
        raise ValueError(f"`kernel_size={kernel_size}` must be odd.")


def several(name: str, value: Any) -> Sequence[Any]:
    """Return numbers that are given as a tuple or list, one at least."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"`{name}` must be a tuple or list of numbers, not {value!r}.")
    if not value:
        raise ValueError(f"`{name}` is empty; name one number at least, such as (1,).")
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
    tupled = {k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}
    return replace(kind(), **tupled)  # type: ignore[type-var]


def as_dict(params: Any) -> dict[str, Any]:
    """Fields as plain values that JSON and h5ad can hold."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(params).items()}
