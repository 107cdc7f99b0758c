"""Graphs passed through the network in parts: the same result as at once, and learning from one part a step."""

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

import stxtools as st
from stxtools._data.regions import node_features, read_regions, region_sections
from stxtools._spatial.subgraphs import subgraphs
from stxtools.models import TissueNet
from stxtools.models.tissuenet.partition import fitting_regions, graph_parts
from stxtools.nn._gnn import GraphPart, RegionGNN
from stxtools.nn._recipe import Training, seeded
from stxtools.nn._tissue import GraphTensors, TissueModule
from stxtools.nn._tissue_task import EmbeddingTask
from stxtools.nn._training import run_training

HOW = {"show_progress": False, "accelerator": "cpu"}


def planar(n: int, seed: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Triangulated points; every fifth one has lost its edges."""
    xy = np.random.default_rng(seed).uniform(size=(n, 2))
    tri = Delaunay(xy).simplices
    row, col = np.concatenate([tri[:, [0, 1]], tri[:, [1, 2]], tri[:, [2, 0]]]).T
    keep = (row % 5 > 0) & (col % 5 > 0)
    graph = sparse.csr_matrix((np.ones(keep.sum()), (row[keep], col[keep])), shape=(n, n))
    return ((graph + graph.T) > 0).astype(float).tocsr(), xy


def as_parts(graph: sparse.csr_matrix, xy: np.ndarray, size: int, hops: int) -> list[GraphPart]:
    found = subgraphs(graph, xy, size, hops)
    return [GraphPart(torch.from_numpy(p.nodes), p.core, torch.from_numpy(p.edges)) for p in found]


@settings(max_examples=15, deadline=None)
@given(n=hs.integers(5, 80), size=hs.integers(1, 60), hops=hs.integers(0, 3), seed=hs.integers(0, 20))
def test_every_node_is_in_one_core_and_the_halo_is_what_lies_within_the_hops(n, size, hops, seed):
    graph, xy = planar(n, seed)
    steps = shortest_path(graph, unweighted=True)
    cores = []
    for part in subgraphs(graph, xy, size, hops):
        core = part.nodes[: part.core]
        cores.append(core)
        assert 0 < len(core) <= size
        expected = np.flatnonzero((steps[core] <= hops).any(axis=0))
        np.testing.assert_array_equal(np.sort(part.nodes), expected)
        among = sparse.csr_matrix((np.ones(part.edges.shape[1]), part.edges), shape=(len(part.nodes),) * 2)
        assert (among != graph[part.nodes][:, part.nodes]).nnz == 0
    np.testing.assert_array_equal(np.sort(np.concatenate(cores)), np.arange(n))


@pytest.mark.parametrize("conv", ["gatv2", "sum"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_part_by_part_is_the_same_as_at_once(conv, layers):
    graph, xy = planar(200, 0)
    with seeded(0):
        gnn = RegionGNN(5, hidden=8, out_channels=4, layers=layers, conv=conv, heads=2).eval()
        x = torch.randn(200, 5)
    coo = graph.tocoo()
    whole = gnn(x, torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64)))
    parts = gnn.by_parts(x, as_parts(graph, xy, 30, layers))
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-5)
    first, second = (sparse.csr_matrix((w.detach().numpy(), e.numpy()), shape=(200, 200)) for _, e, w in (whole, parts))
    assert parts[1].shape == whole[1].shape  # no edge is told twice
    assert abs(first - second).max() < 1e-6
    short = gnn.by_parts(x, as_parts(graph, xy, 30, layers - 1))[0]  # a halo too narrow would show
    assert not torch.allclose(short, whole[0], atol=1e-4)


def sections_of(adata):
    inp = read_regions(adata, "regions", "spatial")
    values = np.asarray(adata.obsm["X_unet"], dtype=np.float32)
    codes = {"classification": adata.obs["segment"].cat.codes.to_numpy().astype(np.int64)}
    return region_sections(values, node_features(values, inp), inp, codes)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_trained_network_says_the_same(line, quick_net, labelled):
    sections = sections_of(line)
    classes = {"classification": list(line.obs["segment"].cat.categories)} if labelled else None
    net = TissueNet(quick_net | {"ensemble": ("network",)}).fit(sections, classes=classes, **HOW)
    whole = net.predict(sections, accelerator="cpu")
    net.params = net.featurizer.params = replace(net.params, max_nodes=4)
    assert all(len(graph_parts(s, net.params)) > 1 for s in sections)
    for a, b in zip(whole, net.predict(sections, accelerator="cpu"), strict=True):
        np.testing.assert_allclose(b.states, a.states, atol=1e-5)
        np.testing.assert_allclose(b.z, a.z, atol=1e-5)
        assert abs(a.attention - b.attention).max() < 1e-5
        assert a.attention.nnz == b.attention.nnz
        for task, proba in a.obs_proba.items():
            np.testing.assert_allclose(b.obs_proba[task], proba, atol=1e-5)


@pytest.mark.parametrize("objective", ["masked", "contrastive"])
def test_learning_from_parts(objective):
    graph, xy = planar(240, 1)
    coo = graph.tocoo()
    where = torch.from_numpy(xy).float()
    nodes = torch.cat([torch.sin(6 * where), torch.cos(6 * where)], dim=1)
    g = GraphTensors(nodes, torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64)))
    g.parts = as_parts(graph, xy, 40, 2)
    with seeded(0):
        module = TissueModule(4, RegionGNN(4, hidden=16, out_channels=8, heads=2), 8, None, {})
        task = EmbeddingTask(module, [g], Training(30, 30, lr=0.01), objective, 0.3)
    assert len(task.graphs) == len(g.parts) > 5
    train, val = task.loaders(0)
    assert {i for epoch in range(4) for i, _ in _epoch(train, epoch)} == set(range(len(task.graphs)))  # all are seen
    assert len(val) < len(task.graphs)
    history = run_training(task, train, val, random_state=0, accelerator="cpu", show_progress=False)
    assert min(row["val_loss"] for row in history[1:]) < (0.9 if objective == "masked" else 1) * history[0]["val_loss"]


def test_no_loss_looks_at_the_halo():
    graph, xy = planar(60, 1)
    part = as_parts(graph, xy, 20, 2)[0]
    with seeded(0):
        module = TissueModule(4, RegionGNN(4, hidden=8, out_channels=8, heads=2), 8, None, {}).eval()
        piece = GraphTensors(torch.randn(len(part.nodes), 4), part.edges, core=part.core)
        task = EmbeddingTask(module, [piece], Training(), "masked", 0.3)
    before = float(task._loss((0, 3)).detach())
    hidden = torch.rand(len(part.nodes), generator=torch.Generator().manual_seed(3)) < task.hide
    assert hidden[part.core :].any()
    piece.nodes[part.core :][hidden[part.core :]] += 100.0  # hidden, so it is not read either
    assert float(task._loss((0, 3)).detach()) == before
    piece.nodes[: part.core][hidden[: part.core]] += 100.0
    assert float(task._loss((0, 3)).detach()) > 100 * before


def _epoch(loader, epoch):
    loader.dataset.set_epoch(epoch)
    return list(loader)


def test_embed_by_parts_fills_the_same_slots(line, quick_net):
    again = line.copy()
    for adata in (line, again):
        st.tl.embed(adata, params=quick_net | {"max_nodes": 4}, **HOW)
    assert_same(line, again)
    regions = line.uns["regions"]
    assert np.isfinite(regions.obsm["X_gnn"]).all()
    np.testing.assert_allclose(np.asarray(regions.obsp["attention"].sum(axis=1)).ravel(), 1, rtol=1e-5)
    assert line.uns["embed"]["params"]["tissuenet"]["max_nodes"] == 4


def test_little_memory_asks_for_smaller_parts(line, monkeypatch):
    section = sections_of(line)[0]
    params = TissueNet().params
    assert graph_parts(section, params) == []
    plenty = fitting_regions(section, params)
    monkeypatch.setattr(st.settings, "_max_memory", st.settings.max_memory / 4)
    assert fitting_regions(section, params) == pytest.approx(plenty / 4, rel=1e-3)
    monkeypatch.setattr(st.settings, "_max_memory", 1e-6)
    assert fitting_regions(section, params) == 256  # a part still has something to learn from


def test_max_nodes_is_checked():
    with pytest.raises(ValueError, match="max_nodes"):
        TissueNet({"max_nodes": 0})
