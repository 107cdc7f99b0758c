"""Centre and scale of the features of sections, as the training data had them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stxtools.models._model_file import ModelFile
from stxtools.models._section import Section
from stxtools.nn._tiles import PixelRaster

from .rasters import section_raster

PRIOR_OBS = 20


def centred(features: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take the section's own mean out: the simplest account of depth, staining and donor.

    The mean of a small section is drawn towards that of the training data, as if ``PRIOR_OBS`` more
    observations lay there.
    """
    n = len(features)
    mean = (n * features.mean(axis=0) + PRIOR_OBS * centre) / (n + PRIOR_OBS)
    return (features - mean).astype(np.float32)


@dataclass(frozen=True)
class FeatureScaling:
    """Mean of the training sections, and the standard deviation within them.

    - ``centre``, ``scale``: Mean and standard deviation of each feature, (C,).
    """

    centre: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    scale: NDArray[np.float32] = field(default_factory=lambda: np.ones(0, dtype=np.float32))

    @classmethod
    def of(cls, sections: Sequence[Section]) -> FeatureScaling:
        """Measure the features of ``sections``."""
        centre = np.concatenate([s.features for s in sections]).mean(axis=0)
        raw = cls(centre, np.ones_like(centre))
        return cls(centre, np.concatenate([raw.centred(s).features for s in sections]).std(axis=0) + 1e-6)

    @property
    def n_features(self) -> int:
        """Length of a feature vector."""
        return len(self.centre)

    def centred(self, section: Section) -> Section:
        """Take the section's own mean out, as :func:`centred` does."""
        return replace(section, features=centred(section.features, self.centre))

    def raster(self, section: Section) -> tuple[PixelRaster, NDArray[np.int64]]:
        """Raster of the centred and scaled section, and each observation's place among its pixels."""
        return section_raster(self.centred(section), self.scale)

    def to_file(self) -> dict[str, NDArray[np.float32]]:
        """Arrays of a model file."""
        return {"centre": self.centre, "scale": self.scale}

    @classmethod
    def from_file(cls, file: ModelFile) -> FeatureScaling:
        """Read what :meth:`to_file` gave."""
        centre = file.array("centre", (None,))
        return cls(centre, file.array("scale", centre.shape, above=0.0))
