"""Weights of the losses of several tasks, against hand-computed results."""

from __future__ import annotations

import pytest
import torch

from stxtools.nn import Famo, GradNorm, Uncertainty, task_weighting


def test_fixed_weighting_uses_the_factors():
    weighting = task_weighting("fixed", {"a": 2.0, "b": 0.5})
    total = weighting.combine({"a": torch.tensor(3.0), "b": torch.tensor(4.0)}, torch.zeros(1))
    assert float(total) == pytest.approx(8.0)
    assert weighting.current() == {"a": 2.0, "b": 0.5}


def test_uncertainty_weighting_converges_to_its_minimum():
    # d/ds of exp(-s) L + s / 2 is 0 at exp(-s) = 1 / (2 L), and at exp(-s) / 2 = 1 / (2 L) for squared errors
    weighting = Uncertainty({"a": 1.0, "b": 1.0}, ["b"])
    losses = {"a": torch.tensor(0.25), "b": torch.tensor(4.0)}
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        weighting.combine(losses, torch.zeros(1)).backward()
        optimizer.step()
    assert weighting.current() == pytest.approx({"a": 2.0, "b": 0.125}, rel=1e-2)


def test_gradnorm_equalises_gradient_norms():
    shared = torch.ones(4, requires_grad=True)
    weighting = GradNorm({"a": 1.0, "b": 1.0})
    for _ in range(300):
        weighting.combine({"a": 3.0 * shared.sum(), "b": shared.sum()}, shared)
    weights = weighting.current()
    assert sum(weights.values()) == pytest.approx(2.0)
    assert 3.0 * weights["a"] == pytest.approx(weights["b"], rel=0.15)


def test_gradnorm_raises_the_weight_of_a_slower_task():
    shared = torch.ones(4, requires_grad=True)
    weighting = GradNorm({"a": 1.0, "b": 1.0})
    for i in range(100):
        pace = 1.0 if i == 0 else 0.2
        weighting.combine({"a": shared.sum(), "b": pace * shared.sum() + (1 - pace) * shared.sum().detach()}, shared)
    slow = dict(weighting.current())
    weighting = GradNorm({"a": 1.0, "b": 1.0})
    for i in range(100):
        fallen = 0.0 if i == 0 else 3.0
        weighting.combine({"a": shared.sum(), "b": shared.sum() - fallen}, shared)
    assert weighting.current()["a"] > 1.1 > 0.9 > weighting.current()["b"]
    assert slow["b"] > 1  # its gradient is the smaller one
    for slope, falls in ((1.7, False), (1.9, True)):  # of mean gradient 1, at a pace of 1.5: 1.5 ** 1.5 is 1.84
        weighting = GradNorm({"a": 1.0, "b": 1.0})
        for slopes, values in (((1.0, 1.0), (4.0, 4.0)), ((slope, 2.0 - slope), (6.0, 2.0))):
            losses = [s * (shared.sum() - 4) + value for s, value in zip(slopes, values, strict=True)]
            weighting.combine(dict(zip("ab", losses, strict=True)), shared)
        assert (weighting.current()["a"] < 0.99) == falls


def test_famo_raises_the_weight_of_a_task_whose_loss_stays():
    weighting = Famo({"a": 1.0, "b": 1.0})
    before = {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}
    weighting.combine(before, torch.zeros(1))
    assert weighting.current() == pytest.approx({"a": 1.0, "b": 1.0})
    for _ in range(40):
        weighting.after_step(before, lambda: {"a": torch.tensor(0.5), "b": torch.tensor(1.0)})
    weighting.combine(before, torch.zeros(1))
    assert weighting.current()["b"] > 1.2 > weighting.current()["a"]
    # at equal logits, weights go with the inverse of the losses: the gradient of the mean log loss
    fresh = Famo({"a": 1.0, "b": 1.0})
    fresh.combine({"a": torch.tensor(3.0), "b": torch.tensor(1.0)}, torch.zeros(1))
    assert fresh.current() == pytest.approx({"a": 0.5, "b": 1.5})
