"""Sparse rasters, cut into windows for training and into tiles for prediction.

Tiles overlap by the receptive field, so that tiled predictions equal those of the whole raster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stxtools._settings import settings

from ._unet import PyramidMLP, SegmentationNet, UNet

LARGEST_TILE = 256  # pixels; larger ones exceed the CPU cache: 1.4 times the time, 1.7 times the memory
SMALLEST_TILE = 64


@dataclass
class PixelRaster:
    """The P occupied pixels of a section; indices are on the CPU, values may be on another device."""

    shape: tuple[int, int]  # rows and columns of the raster
    flat: Tensor  # index of every occupied pixel in the flattened raster, ascending, (P,)
    x: Tensor  # standardised features, (P, C)
    target: Tensor | None = None  # soft labels (P, K), or None for pretraining and prediction
    weight: Tensor | None = None  # sample weights in training and in validation, (P,)
    val_weight: Tensor | None = None

    def to(self, device: torch.device) -> PixelRaster:
        """Return a copy with the values on ``device``."""
        return replace(self, **{name: values.to(device) for name, values in self._values().items()})  # type: ignore[arg-type]

    def _values(self) -> dict[str, Tensor]:
        return {k: v for k, v in vars(self).items() if k not in ("shape", "flat") and v is not None}

    def window(self, top: int, left: int, height: int, width: int) -> dict[str, Tensor]:
        """Return the values of a window as dense tensors (C, H, W), and its mask ``occupied``; zero where empty."""
        # pixels are sorted by row: those of a window are one run in each of its rows
        first_row = min(max(top, 0), self.shape[0])
        rows = torch.arange(first_row, max(min(top + height, self.shape[0]), first_row)) * self.shape[1]
        first = torch.searchsorted(self.flat, rows + max(left, 0))
        count = torch.searchsorted(self.flat, rows + min(left + width, self.shape[1])) - first
        count = count.clamp_min(0)
        skipped = first - (count.cumsum(0) - count)
        index = torch.arange(int(count.sum())) + torch.repeat_interleave(skipped, count)
        row, col = self.flat[index] // self.shape[1], self.flat[index] % self.shape[1]
        index, pixel = torch.stack([index, (row - top) * width + (col - left)]).to(self.x.device)
        out = {"occupied": self.x.new_ones(len(pixel))} | {name: v[index] for name, v in self._values().items()}
        for name, values in out.items():
            dense = values.new_zeros((*values.shape[1:], height * width))
            dense[..., pixel] = values.movedim(0, -1)
            out[name] = dense.reshape(-1, height, width)
        return out


def tile_margin(unet: UNet | PyramidMLP) -> int:
    """Return the overlap of tiles in pixels: the receptive field, rounded up to a multiple of the stride."""
    return -(-unet.receptive_field // unet.stride) * unet.stride


def tile_side(unet: UNet | PyramidMLP, channels: int) -> int:
    """Return the side of a tile whose prediction fits into ``settings.max_memory``, by a conservative estimate."""
    per_pixel = 4 * (channels * (3 + 2 * len(unet.pyramid.sigmas)) + 20 * unet.width)
    fits = math.isqrt(int(settings.max_memory * 2**30 / per_pixel)) - 2 * tile_margin(unet)
    side = min(max(fits, SMALLEST_TILE), LARGEST_TILE)
    return max(side // unet.stride, 1) * unet.stride


@torch.no_grad()
def predict_pixels(
    net: SegmentationNet | PyramidMLP, raster: PixelRaster, device: torch.device, *, side: int | None = None,
    only: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return class probabilities (P, K) and features (P, width) of the occupied pixels, on the CPU."""
    net = net.to(device).eval()
    needed = 4 * len(raster.flat) * (raster.x.shape[1] + 2 * net.unet.width)  # bytes of the raster and its predictions
    fits = device.type != "cuda" or 2 * needed <= torch.cuda.mem_get_info(device)[0]
    raster = raster.to(device if fits else torch.device("cpu"))
    side = tile_side(net.unet, raster.x.shape[1]) if side is None else side
    if side % net.unet.stride:
        raise ValueError(f"`side={side}` must be a multiple of the U-Net's stride, {net.unet.stride}.")
    flat, width = raster.flat if only is None else raster.flat[only], raster.shape[1]
    out: list[Tensor] = []
    for members, (top, left, height, tile_width) in tiles(flat, raster.shape, side, tile_margin(net.unet)):
        view = raster.window(top, left, height, tile_width)
        logits, features = net(view["x"][None].to(device), view["occupied"][None].to(device))
        pixel = ((flat[members] // width - top) * tile_width + flat[members] % width - left).to(device)
        parts = logits[0].flatten(1)[:, pixel].softmax(dim=0).T, features[0].flatten(1)[:, pixel].T
        out = out or [raster.x.new_empty((len(flat), part.shape[1])) for part in parts]
        members = members.to(raster.x.device)
        for whole, part in zip(out, parts, strict=True):
            whole[members] = part.to(whole.device)
    if not out:
        raise ValueError("The raster has no occupied pixel; there is nothing to predict.")
    return out[0].cpu(), out[1].cpu()


def tiles(
    flat: Tensor, shape: tuple[int, int], side: int, margin: int
) -> Iterator[tuple[Tensor, tuple[int, int, int, int]]]:
    """Yield the pixels in the core of every tile that is not empty, and its window: top, left, height, width."""
    height, width = shape
    if height * width <= side * side and len(flat):
        yield torch.arange(len(flat)), (0, 0, height, width)
        return
    per_row = -(-width // side)
    number = (flat // width // side) * per_row + flat % width // side
    order = torch.argsort(number, stable=True)
    tiles, count = torch.unique_consecutive(number[order], return_counts=True)
    for tile, members in zip(tiles.tolist(), order.split(count.tolist()), strict=True):
        row, col = tile // per_row * side, tile % per_row * side
        top, left = max(row - margin, 0), max(col - margin, 0)
        bottom, right = min(row + side + margin, height), min(col + side + margin, width)
        yield members, (top, left, bottom - top, right - left)
