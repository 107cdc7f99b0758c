"""Weights of the losses of several tasks, by which each scheme multiplies the user's factors (alpha, beta)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, autograd, nn

SCHEMES = ("fixed", "gradnorm", "uncertainty", "famo")


class TaskWeighting(nn.Module):
    """Fixed factors, L = sum_i c_i L_i, and base of the other schemes; the tasks ``squared`` have squared errors."""

    factors: Tensor
    weights: Tensor
    state: Tensor  # learned parameters of a scheme
    first: Tensor  # losses of the first step
    RATE, DECAY = 0.025, 0.0

    def __init__(self, factors: Mapping[str, float], squared: Sequence[str] = ()) -> None:
        super().__init__()
        self.tasks = list(factors)
        self.squared = frozenset(squared)
        self.register_buffer("factors", torch.tensor([float(f) for f in factors.values()]))
        for name, start in (("weights", torch.ones), ("state", torch.ones), ("first", torch.zeros)):
            self.register_buffer(name, start(len(self.tasks)))
        self._adam: torch.optim.Adam | None = None

    @property
    def learned_weights(self) -> Tensor:
        """Weight of each task, without the factors."""
        return self.weights

    def current(self) -> dict[str, float]:
        """Task -> current weight of its loss, with the factor."""
        weights = (self.factors * self.learned_weights).detach()
        return dict(zip(self.tasks, weights.tolist(), strict=True))

    def combine(self, losses: Mapping[str, Tensor], shared: Tensor) -> Tensor:
        """Return the weighted sum of the losses; ``shared`` are the states that all tasks use."""
        weights = (self.factors * self.learned_weights)[self._positions(losses)]
        return (weights * torch.stack(list(losses.values()))).sum()

    def after_step(self, before: Mapping[str, Tensor], evaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Update the weights; ``evaluate`` returns the losses of the same batch with the new parameters."""

    def _positions(self, losses: Mapping[str, Tensor]) -> list[int]:
        return [self.tasks.index(task) for task in losses]

    def _adam_step(self, at: Sequence[int], gradient: Tensor) -> None:
        """Update the state by Adam with a given gradient."""
        if self._adam is None:  # not in __init__: the module may have moved to another device
            self._adam = torch.optim.Adam([self.state], lr=self.RATE, weight_decay=self.DECAY)
        self.state.grad = torch.zeros_like(self.state)
        self.state.grad[list(at)] = gradient
        self._adam.step()
        self.state.grad = None


class Uncertainty(TaskWeighting):
    r"""Homoscedastic uncertainty (Kendall, Gal and Cipolla 2018).

    :math:`L = \sum_i c_i (e^{-s_i} L_i + s_i / 2)` with :math:`s_i = \log \sigma_i^2` learned; a squared error
    enters with :math:`e^{-s_i} / 2`.
    """

    def __init__(self, factors: Mapping[str, float], squared: Sequence[str] = ()) -> None:
        super().__init__(factors, squared)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))

    @property
    def learned_weights(self) -> Tensor:
        """Precision of each task, halved for squared errors."""
        half = torch.tensor([0.5 if t in self.squared else 1.0 for t in self.tasks], device=self.log_variance.device)
        return half * torch.exp(-self.log_variance)

    def combine(self, losses: Mapping[str, Tensor], shared: Tensor) -> Tensor:
        """Return the weighted losses and the penalty of large variances."""
        at = self._positions(losses)
        penalty = self.factors[at] * self.log_variance[at] / 2
        return super().combine(losses, shared) + penalty.sum()


class GradNorm(TaskWeighting):
    r"""Gradient normalisation (Chen et al. 2018).

    Weights follow the gradient of the sum of absolute differences between the norm of each task's gradient at the
    shared states and its target: the mean norm times the task's relative rate to the power of :data:`RESTORING`. They
    are then rescaled to a mean of 1. A task's rate is its loss over its first loss.
    """

    RESTORING = 1.5

    def combine(self, losses: Mapping[str, Tensor], shared: Tensor) -> Tensor:
        """Return the weighted losses, and update the weights for the next step."""
        total = super().combine(losses, shared)
        if len(losses) > 1 and torch.is_grad_enabled() and shared.requires_grad:
            at = self._positions(losses)
            grads = [autograd.grad(loss, shared, retain_graph=True, materialize_grads=True) for loss in losses.values()]
            norms = torch.stack([gradient.norm() for (gradient,) in grads])
            with torch.no_grad():
                current = torch.stack([loss.detach() for loss in losses.values()]).clamp_min(1e-8)
                self.first[at] = torch.where(self.first[at] == 0, current, self.first[at])
                rate = current / self.first[at]
                scaled = self.factors[at] * norms
                weighted = self.weights[at] * scaled
                target = weighted.mean() * (rate / rate.mean()) ** self.RESTORING
                self._adam_step(at, torch.sign(weighted - target) * scaled)
                self.state.clamp_(min=1e-3)
                self.state.mul_(len(self.state) / self.state.sum())
                self.weights.copy_(self.state)
        return total


class Famo(TaskWeighting):
    r"""Fast adaptive multitask optimisation (Liu et al. 2023).

    A step descends :math:`\sum_i c\, z_i \log L_i` with :math:`z = \mathrm{softmax}(\xi)` and
    :math:`1/c = \sum_i z_i / L_i`; :math:`\xi` is updated by the decrease of each log loss, so that all decrease at
    the same rate, without a gradient for each task.
    """

    DECAY = 1e-3

    def combine(self, losses: Mapping[str, Tensor], shared: Tensor) -> Tensor:
        """Return the losses weighted by :math:`c z_i / L_i` times their number: the gradient of weighted log losses."""
        at = self._positions(losses)
        with torch.no_grad():
            current = torch.stack([loss.detach() for loss in losses.values()]).clamp_min(1e-8)
            share = torch.softmax(self.state[at], dim=0) / current
            self.weights[at] = share * len(at) / share.sum()
        return super().combine(losses, shared)

    @torch.no_grad()
    def after_step(self, before: Mapping[str, Tensor], evaluate: Callable[[], Mapping[str, Tensor]]) -> None:
        """Update the logits by the decrease of the log losses."""
        if len(before) < 2:
            return
        after = evaluate()
        at = self._positions(before)
        decrease = torch.stack([torch.log(before[t].clamp_min(1e-8) / after[t].clamp_min(1e-8)) for t in before])
        share = torch.softmax(self.state[at], dim=0)
        self._adam_step(at, share * (decrease - (share * decrease).sum()))


def task_weighting(scheme: str, factors: Mapping[str, float], squared: Sequence[str] = ()) -> TaskWeighting:
    """Return the weighting of a scheme, one of :data:`SCHEMES`."""
    kinds = {"fixed": TaskWeighting, "uncertainty": Uncertainty, "gradnorm": GradNorm, "famo": Famo}
    return kinds[scheme](factors, squared)
