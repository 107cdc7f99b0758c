"""A student that imitates the whole framework: tissue classes and biomarker state without a region graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stxtools.models._model_file import ModelFile
from stxtools.models._params import SegmenterParams
from stxtools.models._section import Section
from stxtools.models.segmenter.model import Segmenter
from stxtools.models.segmenter.student import Student
from stxtools.nn._student import JointNet, PyramidMLP

if TYPE_CHECKING:
    from .inputs import RegionSection
    from .model import TissueNet

SQUEEZED = 16  # channels that are smoothed: genes of a disease are not among the first few
_DEFAULTS: dict[str, Any] = {"width": 32}
_LEAST = 1e-3  # probability below which an answer is no surer


@dataclass(frozen=True)
class Answers:
    """What a framework says of the observations of each section.

    Attributes
    ----------
    classes
        Task -> class names.
    proba
        Per section, the class probabilities of all tasks side by side, (n, K); NaN outside any region.
    """

    classes: dict[str, list[str]]
    proba: list[NDArray[np.float32]]

    @property
    def sizes(self) -> list[int]:
        """Number of classes of each task."""
        return [len(names) for names in self.classes.values()]

    def logits(self) -> list[NDArray[np.float64]]:
        """Log probabilities without what all classes of a task share."""
        out = []
        for proba in self.proba:
            logs = np.split(np.log(np.maximum(proba.astype(np.float64), _LEAST)), np.cumsum(self.sizes)[:-1], axis=1)
            out.append(np.concatenate([part - part.mean(axis=1, keepdims=True) for part in logs], axis=1))
        return out


class TissueStudent(Student):
    """Small network that gives nearly the answers of a trained :class:`TissueNet`, observation by observation.

    It reads spatial means of the framework's components and of a few more axes of the genes, those along which the
    framework's answers change. It needs no region graph, and is applied to rasters, as a :class:`Segmenter` is.

    Parameters
    ----------
    params
        As for :class:`Student`; by default 32 wide.

    Examples
    --------
    >>> import stxtools as st
    >>> adata = st.datasets.synthetic_tissue(n_obs=600)
    >>> st.tl.region_graph(adata, "compartment", max_size=20)
    >>> st.tl.multitask(adata, "disease", "compartment", save_model="net.stx", params={"epochs": 2})
    >>> st.tl.distill(adata, "net.stx", save_model="student.stx", params={"epochs": 2})
    >>> st.models.TissueStudent.load("student.stx").tasks["biomarker"]
    ['healthy', 'diseased']
    """

    def __init__(self, params: SegmenterParams | Mapping[str, Any] | None = None) -> None:
        super().__init__(params if isinstance(params, SegmenterParams) else {**_DEFAULTS, **(params or {})})
        self.tasks: dict[str, list[str]] = {}
        self.agreements: dict[str, float] = {}

    def ask(
        self,
        teacher: TissueNet,
        sections: Sequence[RegionSection],
        *,
        random_state: int = 0,
        accelerator: str = "auto",
    ) -> Answers:
        """Ask the teacher about ``sections``; sets what the student reads (:attr:`projection`, :attr:`use_rep`).

        Raises
        ------
        ValueError
            If the teacher knows no classes: it embeds, or predicts genes alone.
        """
        from .readout import with_readout  # a student that is only applied needs none of what it imports

        if not teacher.classes:
            raise ValueError(
                "The model predicts no classes (it embeds regions, or predicts genes); none can be taught."
            )
        found = teacher.predict(sections, accelerator=accelerator)
        proba = [np.concatenate([p.obs_proba[task] for task in teacher.classes], axis=1) for p in found]
        answers = Answers({task: list(names) for task, names in teacher.classes.items()}, proba)
        self.projection, self.use_rep = teacher.projection, teacher.use_rep
        smoothed, genes = teacher.reading.smoothed, teacher.genes
        if self.projection is not None and smoothed is not None and genes is not None:
            rng = np.random.default_rng(random_state)
            self.projection = with_readout(self.projection, genes, smoothed, sections, answers.logits(), rng)
        return answers

    def learn(
        self,
        sections: Sequence[Section],
        answers: Answers,
        *,
        random_state: int = 0,
        accelerator: str = "auto",
        devices: int | str = 1,
        show_progress: bool | None = None,
    ) -> TissueStudent:
        """Learn to give the teacher's ``answers`` about ``sections``, whose features the student reads.

        Sets :attr:`agreements`: for each task the share of pixels in blocks that were not learned from on which both
        name the same class.
        """
        self.tasks = answers.classes
        self.classes = _all_names(self.tasks)
        how: dict[str, Any] = {
            "seed": random_state, "accelerator": accelerator, "devices": devices, "show_progress": show_progress
        }  # fmt: skip
        found = self._learn(self._standards(sections), answers.proba, answers.sizes, how)
        self.agreements = dict(zip(self.tasks, found, strict=True))
        return self

    def imitate(self, teacher: Segmenter, sections: Sequence[Section], **kwargs: Any) -> Student:
        """Raise: its teacher is a framework.

        Raises
        ------
        NotImplementedError
            Always; call :meth:`ask` and :meth:`learn`.
        """
        raise NotImplementedError(
            "A TissueStudent learns from a TissueNet; call `ask` and `learn`, or `st.tl.distill`."
        )

    def predict_tasks(
        self, sections: Sequence[Section], *, accelerator: str = "auto"
    ) -> list[dict[str, NDArray[np.float32]]]:
        """Task -> class probabilities of the observations (n, K), for each section."""
        out = []
        cuts = np.cumsum([len(names) for names in self.tasks.values()])[:-1]
        for found in self.predict(sections, accelerator=accelerator):
            parts = np.split(found.proba * len(self.tasks), cuts, axis=1)
            out.append(dict(zip(self.tasks, parts, strict=True)))
        return out

    def _new_unet(self) -> Any:
        return PyramidMLP(self.n_features, width=self.params.width, sigmas=self.params.sigmas, squeezed=SQUEEZED)

    def _new_net(self) -> JointNet:
        return JointNet(self._new_unet(), [len(names) for names in self.tasks.values()])

    def _described(self) -> dict[str, Any]:
        return super()._described() | {"tasks": self.tasks}

    def _remember(self, file: ModelFile) -> None:
        super()._remember(file)
        self.tasks = file.names_by_task("tasks")
        if self.classes != _all_names(self.tasks):
            raise file.damaged("'classes' and 'tasks' in its description differ")


def _all_names(tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of the classes of all tasks, each after its task's."""
    return [f"{task}: {name}" for task, names in tasks.items() for name in names]
