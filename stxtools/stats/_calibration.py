"""P-values of a region calibrated by those of its random regions, pooled over genes (as in Tusher et al. 2001).

A gene's moments hardly show rare expression, so the tail of a beta distribution is too light where a region is small.
Under the null, the region is one more random region. So each random region is tested as if it were the region, with the
moments of the others, and a p-value of the region becomes the share of these p-values that are as small, among genes
of similar expression: rare genes would hide the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import stats

from stxtools._types import Floats, Ints

from ._tails import region_pvals, shrunken_kurtosis

START = 0.01  # p-values above are raised to the power that calibrates this one
_LEAST_Z = 2.2  # nearer to 0, p-values are above START, unless there are fewer than 6 degrees of freedom
_LEAST_Z_ONE_SIDED = 1.5  # on the side of the shorter tail
_BEYOND = 0.1  # p-values per random region beyond which the tail is extrapolated
_FEWEST = 10  # p-values that show a tail
_SMALL = 0.001
_TRIMMED = 0.01  # share of the random regions with most of them: by chance, some are a compartment of the tissue
_STRATUM, _MOST_STRATA = 200, 3  # fewest genes of a stratum of mean expression, most strata


@dataclass(frozen=True)
class PowerSums:
    """Sums of the second, third and fourth powers of ``n`` null correlations of every gene."""

    n: int
    square: Floats
    cube: Floats
    fourth: Floats

    def add(self, null: Floats) -> PowerSums:
        """Add null correlations (genes x regions)."""
        squares = null * null
        powers = squares.sum(axis=1), np.einsum("gb,gb->g", squares, null), np.einsum("gb,gb->g", squares, squares)
        square, cube, fourth = map(np.add, (self.square, self.cube, self.fourth), powers)
        return PowerSums(self.n + null.shape[1], square, cube, fourth)

    def without(self, gene: Ints, r: Floats) -> PowerSums:
        """Return the sums of some genes, each without one of its correlations."""
        square = np.maximum(self.square[gene] - r**2, 1e-3 * self.square[gene])
        return PowerSums(self.n - 1, square, self.cube[gene] - r**3, self.fourth[gene] - r**4)

    def moments(self, most: float) -> tuple[Floats, Floats, Floats]:
        """Return effective degrees of freedom, at ``most`` those of white noise; skewness; shrunken kurtosis."""
        square = np.where(self.square > 0, self.square, 1.0)
        # the correlation has null variance 1 / (n_eff - 1) (Dutilleul 1993), at least that of white noise
        df = np.clip(1.0 / (square / self.n) - 1.0, 1.0, most)
        skewness, kurtosis = self.cube * np.sqrt(self.n) / square**1.5, self.fourth * self.n / square**2
        return df, skewness, shrunken_kurtosis(kurtosis, df, self.n)


def null_tail(null: Floats, first: int, sums: PowerSums, most: float, *, one_sided: bool) -> Floats:
    """Return the small p-values of null correlations (genes x regions, from the ``first`` on).

    Columns: -log p with the sign of the correlation, the gene and the region.
    """
    least = (_LEAST_Z_ONE_SIDED if one_sided else _LEAST_Z) * np.sqrt(sums.square / sums.n)
    gene, region = np.nonzero(np.abs(null) > np.maximum(least, 1e-9)[:, None])
    r = null[gene, region]
    pvals = region_pvals(np.clip(r, -0.999999, 0.999999), *sums.without(gene, r).moments(most), one_sided=one_sided)
    return np.stack([-np.log(pvals) * np.sign(r), gene, first + region], axis=1)[pvals <= START]


def calibrated(statistic: Floats, df: Floats, mean: Floats, tail: Floats, n_null: int, *, one_sided: bool) -> Floats:
    """Return t statistics with calibrated p-values, which are never smaller; in a stratum, their order stays.

    ``mean``: expression, NaN in genes without a test. ``tail``: small p-values of the others in ``n_null`` random
    regions; each sign by itself if ``one_sided``.
    """
    out = statistic.copy()
    tail, n_null = _usual(tail, n_null)
    known = ~np.isnan(mean)
    n_strata = int(np.clip(known.sum() // _STRATUM, 1, _MOST_STRATA))
    borders = [part[0] for part in np.array_split(np.sort(mean[known]), n_strata)[1:]]
    stratum = np.where(known, np.searchsorted(borders, mean, side="right"), -1)  # equal genes share one
    of_tail = stratum[tail[:, 1].astype(np.int64)]
    for i, sign in product(range(n_strata), (1.0, -1.0)):
        genes, null = np.flatnonzero(stratum == i), tail[of_tail == i, 0]
        null = np.abs(null[null * sign > 0] if one_sided else null)
        part = genes[np.sign(statistic[genes]) == sign]
        score = -np.log(2.0 * stats.t.sf(np.abs(statistic[part]), df[part]))
        n = n_null * len(genes) / (1 + one_sided)
        mended = _curve(score, np.sort(null)[::-1], n, _BEYOND * n_null)
        part, mended = part[mended < score], mended[mended < score]  # the others stay equal to the bit
        out[part] = sign * stats.t.isf(np.exp(-mended) / 2.0, df[part])
    return out


def _usual(tail: Floats, n_null: int) -> tuple[Floats, int]:
    """Leave out the random regions with most small p-values; return the others' and their number."""
    region = tail[:, 2].astype(np.int64)
    count = np.bincount(region[np.abs(tail[:, 0]) >= -np.log(_SMALL)], minlength=n_null)
    usual = np.ones(n_null, dtype=bool)
    usual[np.argsort(-count, kind="stable")[: int(_TRIMMED * n_null)]] = False
    return tail[usual[region]], int(usual.sum())


def _curve(score: Floats, null: Floats, n: float, beyond: float) -> Floats:
    """Calibrate ``score``, -log p: by ``null``, the greatest of ``n``, sorted; beyond, by an exponential tail."""
    k = int(min(max(beyond, _FEWEST), len(null) - 1))
    if k < _FEWEST:
        return score
    start, shares = -np.log(START), np.arange(1, len(null) + 1) / n
    inner = np.interp(score, null[k:][::-1], -np.log(shares[k:])[::-1])
    slope = max(1.0, float(np.mean(null[:k] - null[k])))  # Hill (1975)
    outer = -np.log(shares[k]) + (score - null[k]) / slope
    below = score * (-np.log(shares[-1]) / start)
    return np.minimum(score, np.where(score > null[k], outer, np.where(score < start, below, inner)))
