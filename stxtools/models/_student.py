"""A student that imitates a trained Segmenter on very large sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, TensorDataset

from stxtools.nn._recipe import Training, seeded
from stxtools.nn._student import Means, PyramidMLP
from stxtools.nn._tiles import PixelRaster, predict_pixels

from ._params import SegmenterParams, resolve
from ._rasters import section_raster
from ._section import Section
from ._segmenter import Segmenter, best_device

SAMPLE = 60_000  # pixels that are learned from: more did not help
BATCH = 512  # at most: a small section is learned in smaller steps, some 30 an epoch
_HELD_OUT = 0.1
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

        Sets :attr:`agreement`, the share of pixels that were not learned from on which both name the same class.

        Parameters
        ----------
        teacher
            The trained model.
        sections
            Sections with the features that the teacher reads.
        random_state, accelerator, devices, show_progress
            As in :meth:`Segmenter.fit`.
        """
        from stxtools.nn._imitation import Imitation
        from stxtools.nn._training import run_training

        self.classes, self.projection, self.use_rep = list(teacher.classes), teacher.projection, teacher.use_rep
        self.image_key, self.centre, self.scale = teacher.image_key, teacher.centre, teacher.scale
        self.temperature, self.history = 1.0, []  # the teacher's is in the answers that are imitated
        rng, device = np.random.default_rng(random_state), best_device(accelerator)
        with seeded(random_state):
            net = self._new_net()
        share = SAMPLE / max(sum(s.n_obs for s in sections), 1)
        parts = []
        for section in sections:
            raster, member = section_raster(self._centred(section), self.scale)
            answer = teacher.predict([section], accelerator=accelerator)[0].proba
            target = np.empty((len(raster.flat), answer.shape[1]), dtype=np.float32)
            target[member] = answer  # the same for all observations of a pixel
            rows = np.flatnonzero(rng.random(len(raster.flat)) < share)
            parts.append((_means_at(net.unet, raster, rows, device), torch.from_numpy(target[rows])))
        means, target_at = (torch.cat(column) for column in zip(*parts, strict=True))
        order = torch.from_numpy(rng.permutation(len(means)))
        n_held = max(1, int(_HELD_OUT * len(means)))
        held, learned = order[:n_held], order[n_held:]
        p = self.params
        epochs = _DEFAULTS["epochs"] if p.epochs is None else p.epochs
        task = Imitation(net, Training(epochs, p.patience, lr=p.lr, weight_decay=p.weight_decay))
        generator = torch.Generator().manual_seed(random_state)
        train = DataLoader(
            TensorDataset(means[learned], target_at[learned]),
            batch_size=min(max(len(learned) // 30, 16), BATCH),
            shuffle=True,
            generator=generator,
        )
        val = DataLoader(TensorDataset(means[held], target_at[held]), batch_size=4096)
        self.history = run_training(
            task, train, val, seed=random_state, accelerator=accelerator, devices=devices,
            stage="distill", desc="student", show_progress=show_progress,
        )  # fmt: skip
        self.net = net
        with torch.no_grad():
            found = task.logits(means[held]).argmax(dim=1)
        self.agreement = float((found == target_at[held].argmax(dim=1)).float().mean())
        return self

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
