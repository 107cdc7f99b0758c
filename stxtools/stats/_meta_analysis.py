"""Meta-analysis over sections: libraries are the replicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy import optimize, stats
from scipy.special import polygamma

from stxtools._types import Floats, Ints

from ._tails import normal_scores

Alternative: TypeAlias = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class Combined:
    """Per gene: effect over libraries, t statistic, its degrees of freedom, p-value, agreement of libraries."""

    effect: Floats
    statistic: Floats
    df: Floats
    pvals: Floats
    n_libraries: Ints
    agreement: Floats  # share of the libraries with the sign of the combined effect


def t_pvals(statistic: Floats, df: Floats, alternative: Alternative = "two-sided") -> Floats:
    """Return p-values of t statistics."""
    if alternative == "two-sided":
        pvals = 2.0 * stats.t.sf(np.abs(statistic), df)
    else:
        pvals = stats.t.sf(statistic if alternative == "greater" else -statistic, df)
    return np.clip(pvals, np.finfo(float).tiny, 1.0)


def signed_z(statistic: Floats, df: Floats) -> Floats:
    """Return normal quantiles with the p-values of t statistics: comparable over degrees of freedom."""
    half = np.maximum(stats.t.logsf(np.abs(statistic), df), np.log(np.finfo(float).tiny))
    return np.sign(statistic) * np.maximum(-stats.norm.ppf(np.exp(half)), 0.0)


def adjust_bh(pvals: Floats, weights: Floats | None = None) -> Floats:
    """Adjusted p-values of Benjamini & Hochberg (1995); ``weights`` have mean 1 (Genovese et al. 2006)."""
    weighted = pvals if weights is None else np.minimum(pvals / np.maximum(weights, 1e-12), 1.0)
    return stats.false_discovery_control(weighted, method="bh") if len(pvals) else pvals


def expression_weights(mean: Floats) -> Floats:
    """Weights of genes, with mean 1, by the root of their mean: the precision of fold changes of counts."""
    root = np.sqrt(mean)
    return root / root.mean() if root.any() else np.ones(len(root))


def squeeze_variance(variance: Floats, df: Floats) -> tuple[float, float]:
    """Prior of gene variances: scale and degrees of freedom, infinite without more than sampling error (Smyth 2004)."""
    use = (variance > 0) & (df > 0)
    if use.sum() < 3:
        return (float(variance[use].mean()) if use.any() else 1.0), 0.0
    s2, d = variance[use], df[use] / 2.0
    e = np.log(s2) - polygamma(0, d) + np.log(d)
    spread = float(e.var(ddof=1) - polygamma(1, d).mean())
    if spread <= 0:
        return float(np.exp(e.mean())), np.inf
    # 1 / y < trigamma(y) < 1 / y + 1 / y^2
    upper = (1.0 + np.sqrt(1.0 + 4.0 * spread)) / (2.0 * spread)
    half = float(optimize.brentq(lambda y: polygamma(1, y) - spread, 0.5 / spread, 2.0 * upper, rtol=1e-12))
    return float(np.exp(e.mean() + polygamma(0, half) - np.log(half))), 2.0 * half


def posterior_variance(variance: Floats, df: Floats, expected: Floats, prior: float) -> Floats:
    """Return variances shrunken towards the ``expected`` ones, which have ``prior`` degrees of freedom."""
    return expected if np.isinf(prior) else (prior * expected + df * variance) / np.maximum(prior + df, 1e-12)


def _moderate(variance: Floats, df: Floats, floor: float = 0.0) -> tuple[Floats, Floats]:
    scale, prior = squeeze_variance(variance, df)
    out = posterior_variance(variance, df, np.full_like(variance, max(scale, floor)), prior)
    return np.maximum(out, floor), np.minimum(prior + df, df.sum())  # no more than all genes together have


def combine_sections(
    effects: Floats, variances: Floats, dfs: Floats, skewness: Floats | None = None, kurtosis: Floats | None = None,
    *, alternative: Alternative = "two-sided",
) -> Combined:  # fmt: skip
    """Combine effects within libraries (libraries x genes).

    Random-effects meta-analysis with inverse-variance weights. The standard error is scaled by the effects'
    variation over libraries (Hartung & Knapp 2001), never below the within-library one (Rover et al. 2015); empirical
    Bayes shares that scale between genes (Smyth 2004). Variance 0 marks an effect that a library cannot estimate.

    ``skewness`` and ``kurtosis`` of effects under the null (normal by default) give the mean its normal quantile first.
    """
    known = variances > 0
    k = known.sum(axis=0)
    v = np.where(known, variances, 1.0)
    typical = np.where(known, v, 0.0).sum(axis=0) / np.maximum(k, 1)
    precision = np.where(known, 1.0 / v, 0.0)
    q, _ = _heterogeneity(effects, precision)
    several = k >= 2
    spread = 0.0
    if several.any():
        total = precision.sum(axis=0)
        scale = total - np.divide((precision**2).sum(axis=0), total, out=np.zeros_like(total), where=total > 0)
        tau2 = (q - (k - 1))[several] / scale[several]  # DerSimonian & Laird (1986), not truncated
        spread = max(0.0, float(np.median(tau2 / typical[several])))
    weight = np.where(known, 1.0 / (v + spread * typical), 0.0)
    q, mean = _heterogeneity(effects, weight)
    df = (k - 1).astype(float)
    ratio = np.divide(q, df, out=np.ones_like(q), where=several)
    factor, shared = np.ones_like(q), np.where(known, dfs, 0.0).sum(axis=0)
    if several.any():
        factor[several], moderated = _moderate(ratio[several], df[several], floor=1.0)
        shared[several] = np.minimum(moderated, shared[several])
    total = weight.sum(axis=0)
    statistic = mean * np.sqrt(total)
    if skewness is not None and kurtosis is not None:
        power = np.where(known, weight * np.sqrt(v), 0.0) / np.sqrt(np.where(total > 0, total, 1.0))
        third, excess = (power**3 * skewness).sum(axis=0), (power**4 * (kurtosis - 3.0)).sum(axis=0)
        statistic = normal_scores(statistic, third, 3.0 + excess, one_sided=alternative != "two-sided")
    statistic = np.where(k > 0, statistic / np.sqrt(factor), 0.0)
    shared = np.maximum(shared, 1.0)
    same = (np.sign(effects) == np.sign(mean)) & known & (mean != 0)
    agreement = same.sum(axis=0) / np.maximum(k, 1)
    pvals = np.where(k > 0, t_pvals(statistic, shared, alternative), 1.0)
    return Combined(mean, statistic, shared, pvals, k.astype(np.int64), agreement)


def _heterogeneity(effects: Floats, weight: Floats) -> tuple[Floats, Floats]:
    total = weight.sum(axis=0)
    mean = np.divide((weight * effects).sum(axis=0), total, out=np.zeros_like(total), where=total > 0)
    return (weight * (effects - mean) ** 2).sum(axis=0), mean


def compare_libraries(group: Floats, reference: Floats, alternative: Alternative = "two-sided") -> Combined:
    """Compare library means of two sets of libraries (libraries x genes) by a moderated t-test (Smyth 2004)."""
    k1, k0 = len(group), len(reference)
    effect = group.mean(axis=0) - reference.mean(axis=0)
    residual = sum(((side - side.mean(axis=0)) ** 2).sum(axis=0) for side in (group, reference))
    df = np.full(effect.shape, float(k1 + k0 - 2))
    known = (residual > 0) | (effect != 0)
    variance, moderated = residual / df, df.copy()
    if known.any():
        variance[known], moderated[known] = _moderate(variance[known], df[known])
    known &= variance > 0
    se = np.sqrt(np.where(known, variance, 1.0) * (1.0 / k1 + 1.0 / k0))
    statistic = np.where(known, effect / se, 0.0)
    sign = np.sign(effect)
    same = (np.sign(group - reference.mean(axis=0)) == sign).sum(axis=0)
    same = same + (np.sign(group.mean(axis=0) - reference) == sign).sum(axis=0)
    pvals = np.where(known, t_pvals(statistic, moderated, alternative), 1.0)
    return Combined(
        np.where(known, effect, 0.0), statistic, moderated, pvals,
        np.where(known, k1 + k0, 0).astype(np.int64), np.where(known, same / (k1 + k0), 0.0),
    )  # fmt: skip
