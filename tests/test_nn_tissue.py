"""The framework's network, its losses and the weighting of its tasks, against hand-computed results."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stxtools.nn._gnn import RegionGNN
from stxtools.nn._recipe import Training, seeded
from stxtools.nn._tissue import GraphTensors, TissueModule, _turn, _turn_back, pooled, weighted_mse
from stxtools.nn._tissue_task import EmbeddingTask, TissueTask, UNetPretraining, _nearest
from stxtools.nn._training import run_training
from stxtools.nn._unet import UNet
from stxtools.nn._weighting import SCHEMES, Famo, GradNorm, Uncertainty, task_weighting

TASKS = {"biomarker": 2, "classification": 3}
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
QUIET = {"random_state": 0, "accelerator": "cpu", "show_progress": False}


def tissue(tasks: dict[str, int] = TASKS, conv: str = "gatv2") -> tuple[TissueModule, GraphTensors]:
    with seeded(1):
        unet = UNet(3, width=8, depth=1, dropout=0.0)
        gnn = RegionGNN(4 + 8 + 8, hidden=8, out_channels=8, heads=2, conv=conv, dropout=0.0)
        module = TissueModule(4, gnn, 8, unet, tasks, own=6, width=8, dropout=0.0, input_dropout=0.0)
        g = GraphTensors(
            torch.randn(5, 4), EDGES, torch.randn(3, 6, 6), torch.ones(1, 6, 6), torch.arange(36),
            torch.arange(36) % 5, torch.randn(36, 6),
        )  # fmt: skip
    for name, k in tasks.items():
        g.targets[name], g.obs_targets[name] = (F.one_hot(torch.arange(n) % k, k).float() for n in (5, 36))
        g.weight[name], g.val_weight[name] = torch.ones(5), torch.zeros(5)
        g.obs_weight[name], g.obs_val_weight[name] = torch.ones(36), torch.zeros(36)
    return module, g


def step(module: TissueModule, g: GraphTensors, factors: dict[str, float], scheme: str = "fixed") -> TissueTask:
    task = TissueTask(module, [g], Training(), task_weighting(scheme, factors))
    loss = task.training_step((0, 0), 0)
    assert loss is not None
    loss.backward()
    return task


def size(parameter: torch.Tensor) -> float:
    return 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())


@pytest.mark.parametrize("turn", range(8))
def test_turning_back_undoes_turning(turn):
    x = torch.randn(1, 2, 3, 5)
    assert torch.equal(_turn_back(_turn(x, turn), turn), x)


@pytest.mark.parametrize("trained", list(TASKS))
def test_each_head_alone_trains_the_unet_and_not_the_other_head(trained):
    module, g = tissue()
    step(module, g, {trained: 1.0})
    assert size(module.unet.stem.weight) > 0
    for name in TASKS:
        assert (size(module.heads[name].weight) > 0) == (name == trained)
        assert (size(module.obs_heads[name].weight) > 0) == (name == trained)


def test_the_regions_loss_alone_reaches_the_unet_through_the_graph():
    module, g = tissue()
    module(g).logits["classification"].sum().backward()
    assert size(module.unet.stem.weight) > 0
    assert size(module.reader[1].weight) > 0


def test_pooling_is_the_mean_of_each_region():
    _, g = tissue()
    values = torch.randn(36, 2)
    expected = torch.stack([values[g.region == r].mean(dim=0) for r in range(5)])
    torch.testing.assert_close(pooled(values, g), expected)


def test_an_observation_s_output_is_its_region_s_and_its_own():
    module, g = tissue()
    out = module(g)
    own = module.obs_heads["biomarker"](module.observe(g))
    torch.testing.assert_close(out.obs_logits["biomarker"], out.logits["biomarker"][g.region] + own)


@pytest.mark.parametrize("conv", ["gatv2", "sum"])
def test_a_closed_gate_stops_the_message(conv):
    module, _ = tissue(conv=conv)
    nodes = torch.randn(5, 4 + 8 + 8)
    gate = torch.ones(6)
    open_ = module.gnn(nodes, EDGES, gate)[0]
    torch.testing.assert_close(open_, module.gnn(nodes, EDGES)[0])
    gate[EDGES[1] == 0] = 0
    closed = module.gnn(nodes, EDGES, gate)[0]
    moved = (closed - open_).abs().sum(dim=1) > 1e-6
    assert moved.tolist() == [True, True, False, False, False]  # two layers: region 1 hears of it through region 0
    nodes[1] += 3.0
    if conv == "sum":
        torch.testing.assert_close(module.gnn.convs[0](nodes, EDGES, gate)[0], module.gnn.convs[0].bias)


def test_losses_by_hand():
    values, target, weight = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2), torch.tensor([3.0, 1.0])
    assert float(weighted_mse(values, target, weight)) == pytest.approx(5.0 * 3 / 4)
    a = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1)
    near, far = torch.tensor(2.0).exp(), torch.tensor(1.0)
    assert float(_nearest(a, a)) == pytest.approx(float(-torch.log(near / (near + 2 * far))), abs=1e-6)


# ---------------------------------------------------------------- weighting


def test_fixed_weights_are_the_factors():
    weighting = task_weighting("fixed", {"a": 2.0, "b": 0.5})
    total = weighting.combine({"a": torch.tensor(3.0), "b": torch.tensor(4.0)}, torch.zeros(1))
    assert float(total) == pytest.approx(8.0)
    assert weighting.current() == {"a": 2.0, "b": 0.5}


def test_uncertainty_finds_the_weights_of_its_minimum():
    # d/ds of exp(-s) L + s / 2 is 0 at exp(-s) = 1 / (2 L), and at exp(-s) / 2 = 1 / (2 L) for squared errors
    weighting = Uncertainty({"a": 1.0, "b": 1.0}, ["b"])
    losses = {"a": torch.tensor(0.25), "b": torch.tensor(4.0)}
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.05)
    for _ in range(600):
        optimizer.zero_grad()
        weighting.combine(losses, torch.zeros(1)).backward()
        optimizer.step()
    assert weighting.current() == pytest.approx({"a": 2.0, "b": 0.125}, rel=1e-2)


def test_gradnorm_evens_out_the_gradients():
    shared = torch.ones(4, requires_grad=True)
    weighting = GradNorm({"a": 1.0, "b": 1.0})
    for _ in range(300):
        weighting.combine({"a": 3.0 * shared.sum(), "b": shared.sum()}, shared)
    weights = weighting.current()
    assert sum(weights.values()) == pytest.approx(2.0)
    assert 3.0 * weights["a"] == pytest.approx(weights["b"], rel=0.15)


def test_gradnorm_gives_more_to_the_task_that_lags():
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


def test_famo_gives_more_to_the_task_that_does_not_fall():
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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_trains_both_heads_writes_its_weights_and_is_deterministic(scheme):
    found = []
    for _ in range(2):
        module, g = tissue()
        task = TissueTask(module, [g], Training(5, 5, lr=0.01), task_weighting(scheme, dict.fromkeys(TASKS, 1.0)))
        history = run_training(task, *task.loaders(0), **QUIET)
        assert {f"{x}_{t}" for x in ("loss", "weight") for t in TASKS} <= set(history[-1])
        for name in TASKS:
            assert history[-1][f"loss_{name}"] < history[0][f"loss_{name}"]
        moved = abs(history[-1]["weight_biomarker"] - 1) + abs(history[-1]["weight_classification"] - 1)
        assert (moved > 1e-3) == (scheme != "fixed")
        found.append([module.state_dict(), history])
    assert all(torch.equal(a, b) for a, b in zip(*(f[0].values() for f in found), strict=True))
    assert str(found[0][1]) == str(found[1][1])


@pytest.mark.parametrize("objective", ["masked", "contrastive"])
def test_learning_without_labels_gets_better(objective):
    _, g = tissue({})
    with seeded(2):
        module = TissueModule(4, RegionGNN(4, hidden=8, out_channels=8, heads=2), 8, None, {})
        task = EmbeddingTask(module, [GraphTensors(g.nodes, g.edges)], Training(20, 20, lr=0.01), objective, 0.2)
    losses = [row["loss"] for row in run_training(task, *task.loaders(0), **QUIET)]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_pretraining_teaches_the_unet():
    module, g = tissue()
    before = module.unet.stem.weight.detach().clone()
    task = UNetPretraining(module.unet, 3, [g], Training(8, 8, lr=0.01))
    losses = [row["loss"] for row in run_training(task, *task.loaders(0), **QUIET)]
    assert losses[-1] < losses[0]
    assert not torch.equal(before, module.unet.stem.weight)
