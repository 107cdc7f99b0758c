"""Ridge logistic regression, solved to convergence: features of very different variance do not slow it down."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from stxtools._warn import warn

FloatArray = NDArray[np.float64]

_TOLERANCE = 1e-5  # largest gradient, relative to that of the start
_STEPS = 2000  # a well-scaled problem takes some tens


def ridge_logistic(u: FloatArray, codes: NDArray[np.int64], n_classes: int, c: float) -> tuple[FloatArray, FloatArray]:
    r"""Coefficients (d, K) and intercepts (K,) of the multinomial model with the lowest penalised cross-entropy.

    Minimises :math:`\sum_i -\log p(y_i) + \lVert W \rVert^2 / 2c` with intercepts free of penalty, by L-BFGS in
    variables that are divided by the root of an upper bound of the curvature. ``u`` are features (n, d); each class of
    ``codes`` (n,) occurs. For two classes ``c`` is that of the usual model with one vector of coefficients.
    """
    n, d = u.shape
    penalty = (2.0 if n_classes == 2 else 1.0) / c  # two vectors of half the length carry half the squares
    centre = u.mean(axis=0)
    x = np.concatenate([u - centre, np.ones((n, 1))], axis=1)
    ridge = np.append(np.full(d, penalty), 0.0)[:, None]
    scale = 1 / np.sqrt(np.square(x).sum(axis=0)[:, None] / 4 + ridge + 1e-12)
    truth = np.zeros((n, n_classes))
    truth[np.arange(n), codes] = 1.0

    def loss(flat: FloatArray) -> tuple[float, FloatArray]:
        w = flat.reshape(d + 1, n_classes) * scale
        logits = x @ w
        total = logsumexp(logits, axis=1)
        value = float((total - (logits * truth).sum(axis=1)).sum() + (ridge * w**2).sum() / 2)
        gradient = x.T @ (np.exp(logits - total[:, None]) - truth) + ridge * w
        return value, (gradient * scale).ravel()

    start = np.zeros((d + 1) * n_classes)
    steepest = float(np.abs(loss(start)[1]).max())
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B",
        options={"maxiter": _STEPS, "maxfun": 2 * _STEPS, "gtol": _TOLERANCE * steepest, "ftol": 0.0, "maxcor": 20},
    )  # fmt: skip
    left = float(np.abs(found.jac).max())
    if not np.isfinite(found.fun) or left > 100 * _TOLERANCE * steepest:
        warn(
            f"The linear classifier of the ensemble has not converged after {found.nit} steps (its gradient is "
            f"{left / steepest:.1e} of that at the start): look for extreme values in the expression.",
        )
    w = found.x.reshape(d + 1, n_classes) * scale
    coef = w[:-1] - w[:-1].mean(axis=1, keepdims=True)
    intercept = w[-1] - centre @ coef
    return coef, intercept - intercept.mean()
