"""The framework's network, its losses and the weighting of its tasks, against hand-computed results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_same
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy import sparse
from scipy.sparse.csgraph import shortest_path
from scipy.spatial import Delaunay
from torch.nn import functional as F

import stxtools as st
from stxtools._spatial.blocks import Subgraph, subgraphs
from stxtools.models import RegionSection, Section, TissueNet
from stxtools.models.tissuenet.features import graph_parts
from stxtools.nn import (
    SCHEMES,
    EmbeddingTask,
    GraphTensors,
    RegionGNN,
    Target,
    TissueModule,
    TissueTask,
    Training,
    UNet,
    UNetPretraining,
    convergence,
    pooled,
    run_training,
    seeded,
    task_weighting,
    weighted_mse,
)

TASKS = {"biomarker": 2, "classification": 3}
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]])
HOW = {"accelerator": "cpu", "show_progress": False}
QUIET = {"random_state": 0, **HOW}


def tissue(tasks: dict[str, int] = TASKS, conv: str = "gatv2") -> tuple[TissueModule, GraphTensors]:
    with seeded(1):
        unet = UNet(3, width=8, depth=1, dropout=0.0)
        gnn = RegionGNN(4 + 8 + 8, hidden=8, out_channels=8, heads=2, conv=conv, dropout=0.0)
        module = TissueModule(4, gnn, 8, unet, tasks, n_features=6, width=8, dropout=0.0, input_dropout=0.0)
        g = GraphTensors(
            torch.randn(5, 4), EDGES, torch.randn(3, 6, 6), torch.ones(1, 6, 6), torch.arange(36),
            torch.arange(36) % 5, torch.randn(36, 6),
        )  # fmt: skip
    for name, k in tasks.items():
        for targets, n in ((g.targets, 5), (g.obs_targets, 36)):
            targets[name] = Target(F.one_hot(torch.arange(n) % k, k).float(), torch.ones(n), torch.zeros(n))
    return module, g


def step(module: TissueModule, g: GraphTensors, factors: dict[str, float], scheme: str = "fixed") -> TissueTask:
    task = TissueTask(module, [g], Training(), task_weighting(scheme, factors))
    loss = task((0, 0))
    assert loss is not None
    loss.backward()
    return task


def gradient_size(parameter: torch.Tensor) -> float:
    return 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())


class Pointwise(torch.nn.Module):
    """A U-Net that sees one pixel only."""

    def forward(self, x, occupied):
        return x * occupied


@pytest.mark.parametrize("turn", range(1, 8))
def test_turned_raster_gives_the_features_of_the_same_pixels(turn):
    module, g = tissue()
    g.x, g.occupied = g.x.reshape(3, 4, 9), g.occupied.reshape(1, 4, 9)
    assert not torch.allclose(module.observe(g, turn), module.observe(g), atol=1e-3)
    module.unet = Pointwise()
    assert torch.equal(module.observe(g, turn), module.observe(g))


@pytest.mark.parametrize("trained", list(TASKS))
def test_loss_of_one_task_trains_the_unet_and_its_own_head_only(trained):
    module, g = tissue()
    step(module, g, {trained: 1.0})
    assert gradient_size(module.unet.stem.weight) > 0
    for name in TASKS:
        assert (gradient_size(module.heads[name].weight) > 0) == (name == trained)
        assert (gradient_size(module.obs_heads[name].weight) > 0) == (name == trained)


def test_loss_of_the_regions_trains_the_unet_through_the_graph():
    module, g = tissue()
    module(g).logits["classification"].sum().backward()
    assert gradient_size(module.unet.stem.weight) > 0
    assert gradient_size(module.reader[1].weight) > 0


def test_pooled_features_are_means_of_regions():
    _, g = tissue()
    values = torch.randn(36, 2)
    expected = torch.stack([values[g.region == r].mean(dim=0) for r in range(5)])
    torch.testing.assert_close(pooled(values, g), expected)


def test_logits_of_an_observation_add_its_own_to_those_of_its_region():
    module, g = tissue()
    out = module(g)
    own = module.obs_heads["biomarker"](module.observe(g))
    torch.testing.assert_close(out.obs_logits["biomarker"], out.logits["biomarker"][g.region] + own)


@pytest.mark.parametrize("conv", ["gatv2", "sum"])
def test_gate_of_zero_stops_messages_along_an_edge(conv):
    module, _ = tissue(conv=conv)
    nodes = torch.randn((5, 4 + 8 + 8), generator=torch.Generator().manual_seed(0))
    gate = torch.ones(6)
    open_ = module.gnn(nodes, EDGES, gate)[0]
    torch.testing.assert_close(open_, module.gnn(nodes, EDGES)[0])
    gate[EDGES[1] == 0] = 0
    closed = module.gnn(nodes, EDGES, gate)[0]
    moved = (closed - open_).abs().sum(dim=1) > 1e-6
    assert moved.tolist() == [True, True, False, False, False]  # two layers: it reaches region 1 through region 0
    nodes[1] += 3.0
    if conv == "sum":
        torch.testing.assert_close(module.gnn.convs[0](nodes, EDGES, gate)[0], module.gnn.convs[0].bias)


def test_weighted_mse_equals_a_hand_computed_value():
    values, target, weight = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.zeros(2, 2), torch.tensor([3.0, 1.0])
    assert float(weighted_mse(values, target, weight)) == pytest.approx(5.0 * 3 / 4)


def test_sum_convolution_equals_a_hand_computed_sum():
    conv = RegionGNN(2, out_channels=3, layers=1, conv="sum").convs[0]
    h, edges = torch.randn(4, 2), torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]])
    transformed = h @ conv.lin.weight.T
    expected = (
        torch.stack([transformed[1], transformed[0] + transformed[2], transformed[3], torch.zeros(3)]) + conv.bias
    )
    torch.testing.assert_close(conv(h, edges), expected)


@pytest.mark.parametrize("conv", ["gatv2", "sum"])
def test_attention_of_incoming_edges_sums_to_one(conv):
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    gnn = RegionGNN(5, hidden=8, out_channels=8, heads=2, conv=conv).eval()
    h, at, weight = gnn(torch.randn(4, 5), edges)
    assert h.shape == (4, 8)
    assert bool(((weight >= 0) & (weight <= 1)).all())
    total = torch.zeros(4).index_add(0, at[1], weight)
    torch.testing.assert_close(total, torch.ones(4))


def test_messages_travel_one_edge_per_layer():
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])  # a path 0-1-2-3
    gnn = RegionGNN(3, hidden=8, out_channels=4, heads=2, layers=2).eval()
    h = torch.randn(4, 3)
    before = gnn(h, edges)[0]
    h[3] += 5
    moved = (gnn(h, edges)[0] - before).abs().sum(dim=1) > 1e-6
    assert moved.tolist() == [False, True, True, True]


# ---------------------------------------------------------------- weighting


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weighting_schemes_train_both_heads_and_are_deterministic(scheme):
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


def test_convergence_is_judged_in_the_epoch_whose_weights_are_kept():
    history = [{"loss": 0.0, "val_loss": loss} for loss in (3.0, float("nan"), 2.0, 1.99995, 2.5)]
    found = convergence(history, 1.99999, validated=True)
    assert (found["best_epoch"], found["loss"], found["converged"]) == (2, 2.0, False)
    assert convergence(history, 2.1, validated=True)["converged"]


def test_pretraining_loss_of_the_unet_falls():
    module, g = tissue()
    before = module.unet.stem.weight.detach().clone()
    task = UNetPretraining(module.unet, 3, [g], Training(8, 8, lr=0.01))
    losses = [row["loss"] for row in run_training(task, *task.loaders(0), **QUIET)]
    assert losses[-1] < losses[0]
    assert not torch.equal(before, module.unet.stem.weight)


# ---------------------------------------------------------------- part by part


def planar(n: int, seed: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Triangulated points; every fifth one has lost its edges."""
    xy = np.random.default_rng(seed).uniform(size=(n, 2))
    tri = Delaunay(xy).simplices
    row, col = np.concatenate([tri[:, [0, 1]], tri[:, [1, 2]], tri[:, [2, 0]]]).T
    keep = (row % 5 > 0) & (col % 5 > 0)
    graph = sparse.csr_matrix((np.ones(keep.sum()), (row[keep], col[keep])), shape=(n, n))
    return ((graph + graph.T) > 0).astype(float).tocsr(), xy


def as_parts(graph: sparse.csr_matrix, xy: np.ndarray, size: int, hops: int) -> list[Subgraph]:
    found = subgraphs(graph, xy, size, hops)
    return [Subgraph(torch.from_numpy(p.nodes), p.core, torch.from_numpy(p.edges)) for p in found]


@settings(max_examples=15, deadline=None)
@given(n=hs.integers(5, 80), size=hs.integers(1, 60), hops=hs.integers(0, 3), seed=hs.integers(0, 20))
def test_subgraphs_partition_nodes_and_hold_all_neighbours_within_the_hops(n, size, hops, seed):
    graph, xy = planar(n, seed)
    steps = shortest_path(graph, unweighted=True)
    cores = []
    for part in subgraphs(graph, xy, size, hops):
        core = part.nodes[: part.core[0]]
        cores.append(core)
        assert 0 < len(core) <= size
        expected = np.flatnonzero((steps[core] <= hops).any(axis=0))
        np.testing.assert_array_equal(np.sort(part.nodes), expected)
        among = sparse.csr_matrix((np.ones(part.edges.shape[1]), part.edges), shape=(len(part.nodes),) * 2)
        assert (among != graph[part.nodes][:, part.nodes]).nnz == 0
    np.testing.assert_array_equal(np.sort(np.concatenate(cores)), np.arange(n))


@pytest.mark.parametrize("conv", ["gatv2", "sum"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_gnn_on_subgraphs_equals_gnn_on_the_graph(conv, layers):
    graph, xy = planar(200, 0)
    with seeded(0):
        gnn = RegionGNN(5, hidden=8, out_channels=4, layers=layers, conv=conv, heads=2).eval()
        x = torch.randn(200, 5)
    coo = graph.tocoo()
    whole = gnn(x, torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64)))
    parts = gnn.by_parts(x, as_parts(graph, xy, 30, layers))
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-5)
    first, second = (sparse.csr_matrix((w.detach().numpy(), e.numpy()), shape=(200, 200)) for _, e, w in (whole, parts))
    assert parts[1].shape == whole[1].shape  # no edge occurs twice
    assert abs(first - second).max() < 1e-6
    short = gnn.by_parts(x, as_parts(graph, xy, 30, layers - 1))[0]  # a halo too narrow would show
    assert not torch.allclose(short, whole[0], atol=1e-4)


def region_section(n: int) -> RegionSection:
    """Triangulated observations, each a region of its own, whose features and class follow their place."""
    graph, xy = planar(n, 0)
    features = np.concatenate([np.sin(6 * xy), np.cos(6 * xy)], axis=1).astype(np.float32)
    one = Section("s", features, np.zeros((n, 2), np.int32), (1, 1), graph, xy)
    return RegionSection(one, np.arange(n), features, graph, {"classification": (xy[:, 0] > 0.5).astype(np.int64)})


@pytest.mark.parametrize("labelled", [False, True])
def test_trained_network_on_subgraphs_predicts_the_same(quick_net, labelled):
    section = region_section(120)
    classes = {"classification": ["left", "right"]} if labelled else None
    params = quick_net | {"ensemble": ("network",), "unet": False}
    net = TissueNet(params).fit([section], classes=classes, **HOW)
    (a,) = net.predict([section], accelerator="cpu")
    net.params = net.featurizer.params = replace(net.params, max_nodes=4)
    assert len(graph_parts(section, net.params)) > 1
    (b,) = net.predict([section], accelerator="cpu")
    np.testing.assert_allclose(b.states, a.states, atol=1e-5)
    np.testing.assert_allclose(b.z, a.z, atol=1e-5)
    assert abs(a.attention - b.attention).max() < 1e-5
    assert a.attention.nnz == b.attention.nnz
    assert bool(a.observations) is labelled
    for task, proba in a.observations.items():
        np.testing.assert_allclose(b.observations[task], proba, atol=1e-5)


def test_embedding_trained_on_subgraphs_improves():
    graph, xy = planar(240, 1)
    coo = graph.tocoo()
    where = torch.from_numpy(xy).float()
    nodes = torch.cat([torch.sin(6 * where), torch.cos(6 * where)], dim=1)
    g = GraphTensors(nodes, torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64)))
    g.parts = as_parts(graph, xy, 40, 2)
    with seeded(0):
        module = TissueModule(4, RegionGNN(4, hidden=16, out_channels=8, heads=2), 8, None, {})
        task = EmbeddingTask(module, [g], Training(30, 30, lr=0.01), 0.3)
    assert len(task.graphs) == len(g.parts) > 5
    train, val = task.loaders(0)
    assert {i for epoch in range(4) for i, _ in _epoch(train, epoch)} == set(range(len(task.graphs)))  # all are seen
    assert len(val) < len(task.graphs)
    history = run_training(task, train, val, random_state=0, accelerator="cpu", show_progress=False)
    assert min(row["val_loss"] for row in history[1:]) < 0.9 * history[0]["val_loss"]


def test_loss_ignores_the_halo_of_a_subgraph():
    graph, xy = planar(60, 1)
    part = as_parts(graph, xy, 20, 2)[0]
    with seeded(0):
        module = TissueModule(4, RegionGNN(4, hidden=8, out_channels=8, heads=2), 8, None, {}).eval()
        piece = GraphTensors(torch.randn(len(part.nodes), 4), part.edges, core=part.core)
        task = EmbeddingTask(module, [piece], Training(), 0.3)
    before = float(task.loss((0, 3)).detach())
    hidden = torch.rand(len(part.nodes), generator=torch.Generator().manual_seed(3)) < task.hide
    assert hidden[part.core[0] :].any()
    piece.nodes[part.core[0] :][hidden[part.core[0] :]] += 100.0  # hidden, so it is not read either
    assert float(task.loss((0, 3)).detach()) == before
    piece.nodes[: part.core[0]][hidden[: part.core[0]]] += 100.0
    assert float(task.loss((0, 3)).detach()) > 100 * before


def _epoch(loader, epoch):
    loader.dataset.epoch = epoch
    return list(loader)


def test_embed_on_subgraphs_is_deterministic_and_finite(line, quick_net):
    again = line.copy()
    for adata in (line, again):
        st.tl.embed(adata, params=quick_net | {"max_nodes": 4}, **HOW)
    assert_same(line, again)
    regions = line.uns["regions"]
    assert np.isfinite(regions.obsm["X_gnn"]).all()
    np.testing.assert_allclose(np.asarray(regions.obsp["attention"].sum(axis=1)).ravel(), 1, rtol=1e-5)
    assert line.uns["embed"]["params"]["tissuenet"]["max_nodes"] == 4
