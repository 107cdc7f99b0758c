"""Attribution without a model: what a linear probe of the groups looks at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from .._representation import compute_representation
from .._validate import Libraries
from ..stats._contrast import Design
from ..stats._probe import contrast, linear_attribution

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

_COMPS = 100  # a biomarker is a small part of the variance: with 20 components it is ranked worse


class LinearProbe:
    """Expression PCs of the tested observations, and each design's attribution on them."""

    def __init__(
        self,
        adata: AnnData,
        layer: str | None,
        logged: sparse.csr_matrix,
        codes: NDArray[np.int64],
        libs: Libraries,
        seed: int,
        *,
        unused: bool = False,
    ) -> None:
        self._logged, self._libraries, self._codes = logged, libs.codes, codes
        self._values: NDArray[np.float32] | None = None
        seen = np.bincount(logged.indices, minlength=adata.n_vars)
        if not unused and (seen >= min(3, adata.n_obs)).any():
            n_comps = int(np.clip(adata.n_obs // 10, 2, _COMPS))
            rep = compute_representation(adata, layer, n_comps=n_comps, random_state=seed)
            if rep.genes is not None and rep.components is not None:
                self._values = rep.values
                self._components = rep.components
                self._at = adata.var_names.astype(str).get_indexer(rep.genes)

    def __call__(self, design: Design) -> NDArray[np.float64]:
        out = np.zeros(self._logged.shape[1])
        if self._values is None:
            return out
        inside, outside = design.sides(self._codes)
        used = (inside | outside) & np.isin(self._libraries, design.libraries)
        blocks = self._libraries[used] if design.kind == "within" else None
        weight = np.zeros(len(used))
        weight[used] = contrast(inside[used], blocks)
        difference = np.asarray(weight @ self._logged).ravel()
        out[self._at] = linear_attribution(
            self._values[used], self._components, difference[self._at], inside[used], blocks
        )
        return out
