"""A student that imitates a trained Segmenter on very large sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from stxtools._spatial.blocks import spatial_blocks
from stxtools.models._params import SegmenterParams, resolve
from stxtools.models._section import Section
from stxtools.nn._recipe import Training, seeded
from stxtools.nn._student import Means, PyramidMLP
from stxtools.nn._tiles import PixelRaster, predict_pixels

from .model import Segmenter, best_device
from .rasters import section_raster

SAMPLE = 60_000  # pixels that are learned from: more did not help
BATCH = 512  # at most: a small section is learned in smaller steps, some 30 an epoch
_BLOCKS, _HELD = 40, 4  # blocks of a section, and how many of them are not learned from: pixels side by side are alike
_DEFAULTS: dict[str, Any] = {"width": 16, "depth": 0, "sigmas": (0.0, 1.0, 2.0, 4.0), "epochs": 20, "patience": 4}


class Student(Segmenter):
    """Small network that gives nearly the answers of a trained :class:`Segmenter`, and is saved and applied like one.

    It reads spatial means of the features at a few scales, pixel by pixel, instead of the U-Net's maps.

    Parameters
    ----------
    params
        A :class:`SegmenterParams`, or a mapping of some of its fields; ``width``, ``sigmas``, ``epochs``, ``patience``,
        ``lr`` and ``weight_decay`` count. By default 16 wide, with means at 0, 1, 2 and 4 pixels.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=500)
    >>> st.tl.segment(adata, n_segments=3, save_model="tissue.stx")
    >>> st.tl.distill(adata, "tissue.stx", save_model="student.stx")
    >>> st.models.Student.load("student.stx").classes
    ['0', '1', '2']
    """

    def __init__(self, params: SegmenterParams | Mapping[str, Any] | None = None) -> None:
        given = params if isinstance(params, SegmenterParams) else {**_DEFAULTS, **(params or {})}
        super().__init__(resolve(given, SegmenterParams))
        self.agreement = float("nan")

    def imitate(
        self,
        teacher: Segmenter,
        sections: Sequence[Section],
        *,
        random_state: int = 0,
        accelerator: str = "auto",
        devices: int | str = 1,
        show_progress: bool | None = None,
    ) -> Student:
        """Learn to answer as ``teacher`` does on ``sections``.

        Sets :attr:`agreement`, the share of pixels in blocks that were not learned from on which both name the same
        class.

        Parameters
        ----------
        teacher
            The trained model.
        sections
            Sections with the features that the teacher reads.
        random_state, accelerator, devices, show_progress
            As in :meth:`Segmenter.fit`.
        """
        self.classes, self.projection, self.use_rep = list(teacher.classes), teacher.projection, teacher.use_rep
        self.image_key, self.centre, self.scale = teacher.image_key, teacher.centre, teacher.scale
        answers = [teacher.predict([section], accelerator=accelerator)[0].proba for section in sections]
        how: dict[str, Any] = {
            "seed": random_state, "accelerator": accelerator, "devices": devices, "show_progress": show_progress
        }  # fmt: skip
        self.agreement = self._learn([self._centred(s) for s in sections], answers, [len(self.classes)], how)[0]
        return self

    def _learn(
        self,
        sections: Sequence[Section],
        answers: Sequence[NDArray[np.floating]],
        sizes: Sequence[int],
        how: dict[str, Any],
    ) -> list[float]:
        """Train on ``answers`` (n, K) about centred sections, NaN where there is none; return each task's agreement."""
        from stxtools.nn._imitation import Imitation
        from stxtools.nn._training import run_training

        self.temperature, self.history = 1.0, []  # the teacher's is in the answers that are imitated
        rng, device = np.random.default_rng(how["seed"]), best_device(how["accelerator"])
        with seeded(how["seed"]):
            net = self._new_net()
        share = SAMPLE / max(sum(s.n_obs for s in sections), 1)
        parts = []
        for section, answer in zip(sections, answers, strict=True):
            raster, member = section_raster(section, self.scale)
            known = np.isfinite(answer).all(axis=1)
            target = section.pooled(np.nan_to_num(answer), member, known)
            rows = np.flatnonzero((np.bincount(member, known) > 0) & (rng.random(len(raster.flat)) < share))
            held = _blocks_held(raster.flat.numpy()[rows], section.shape[1], rng)
            parts.append((_means_at(net.unet, raster, rows, device), torch.from_numpy(target[rows]), held))
        means, target_at, held_out = (torch.cat(column) for column in zip(*parts, strict=True))
        n_learned = int((~held_out).sum())
        p = self.params
        epochs = _DEFAULTS["epochs"] if p.epochs is None else p.epochs
        task = Imitation(net, Training(epochs, p.patience, lr=p.lr, weight_decay=p.weight_decay), sizes)
        generator = torch.Generator().manual_seed(how["seed"])
        train = DataLoader(
            TensorDataset(means[~held_out], target_at[~held_out]),
            batch_size=min(max(n_learned // 30, 16), BATCH),
            shuffle=True,
            generator=generator,
        )
        val = DataLoader(TensorDataset(means[held_out], target_at[held_out]), batch_size=4096)
        self.history = run_training(task, train, val, stage="distill", desc="training the student", **how)
        self.net = net
        with torch.no_grad():
            said = task.logits(means[held_out]).split(list(sizes), dim=1)
        wanted = target_at[held_out].split(list(sizes), dim=1)
        return [float((a.argmax(dim=1) == b.argmax(dim=1)).float().mean()) for a, b in zip(said, wanted, strict=True)]

    def fit(self, sections: Sequence[Section], **kwargs: Any) -> Segmenter:
        """Raise: a student learns from a teacher.

        Raises
        ------
        NotImplementedError
            Always; call :meth:`imitate`.
        """
        raise NotImplementedError("A Student learns from a trained Segmenter; call `imitate`, or `st.tl.distill`.")

    def _new_unet(self) -> Any:
        return PyramidMLP(self.n_features, width=self.params.width, sigmas=self.params.sigmas)


def _means_at(net: Any, raster: PixelRaster, rows: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Means that the perceptron reads at some of the occupied pixels, (len(rows), F)."""
    return predict_pixels(Means(net), raster, device, only=torch.from_numpy(rows))[1]  # type: ignore[arg-type]


def _blocks_held(flat: NDArray[np.int64], width: int, rng: np.random.Generator) -> torch.Tensor:
    """Which of the pixels lie in blocks that are not learned from."""
    block = spatial_blocks(np.column_stack([flat // width, flat % width]).astype(np.float64), _BLOCKS)
    found = np.unique(block)
    return torch.from_numpy(np.isin(block, rng.permutation(found)[: max(1, len(found) * _HELD // _BLOCKS)]))
