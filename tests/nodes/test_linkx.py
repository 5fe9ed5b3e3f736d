"""LINKX: against PyG's, its two stages, the graph it answers for, and the battery."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.layers.propagation import SparseOperator
from latticework.nodes.linkx import LINKX
from latticework.testing import check_method

FINGERPRINTS = Path(__file__).parent / "fingerprints_hei.json"


def copy_linear(ours: Any, theirs: Any) -> None:
    theirs.weight.copy_(ours.weight)
    theirs.bias.copy_(ours.bias)


@pytest.mark.parametrize("layers,layers_a,layers_x", [(1, 1, 1), (2, 1, 1), (3, 2, 2)])
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_one_of_pyg(layers: int, layers_a: int, layers_x: int, training: bool) -> None:
    from torch_geometric.nn.models import LINKX as Theirs

    torch.manual_seed(0)
    n, edges, x = 30, torch.randint(30, (2, 80)), torch.randn(30, 5)
    ours = LINKX(n, 5, 3, 8, layers, layers_a, layers_x, dropout=0.0)
    theirs = Theirs(n, 5, 8, 3, layers, num_edge_layers=layers_a, num_node_layers=layers_x)
    with torch.no_grad():
        theirs.edge_lin.weight.copy_(ours.weight_a)
        theirs.edge_lin.bias.copy_(ours.bias_a)
        for a, b in zip(ours.stack_x.maps, theirs.node_mlp.lins, strict=True):
            copy_linear(a, b)
        for a, b in zip(ours.final.maps, theirs.final_mlp.lins, strict=True):
            copy_linear(a, b)
        if layers_a > 1:
            for a, b in zip(ours.rest_a.maps, theirs.edge_mlp.lins, strict=True):
                copy_linear(a, b)
        # W [h_A ; h_X] as two maps
        theirs.cat_lin1.weight.copy_(ours.join.weight[:, :8])
        theirs.cat_lin2.weight.copy_(ours.join.weight[:, 8:])
        theirs.cat_lin1.bias.copy_(ours.join.bias)
        theirs.cat_lin2.bias.zero_()
    for net in (ours, theirs):
        net.train(training)
    A = SparseOperator.from_edges(edges, None, n)
    assert torch.allclose(ours(x, A), theirs(x, edges), atol=1e-5)


def test_two_stages_are_the_network() -> None:
    torch.manual_seed(0)
    net = LINKX(20, 4, 3, 8)
    A, x = SparseOperator.from_edges(torch.randint(20, (2, 40)), None, 20), torch.randn(20, 4)
    for training in (True, False):
        net.train(training)
        with torch.random.fork_rng():
            whole = net(x, A)
        assert torch.equal(whole, net.head(net.encode(x, A), A))


def test_nodes_are_told_apart_by_which_neighbours_they_have() -> None:
    """Constant features and a bipartite pattern of neighbours: one weight a node is enough to learn it."""
    torch.manual_seed(0)
    y = torch.arange(40) % 2
    u = torch.arange(40)
    edges = torch.stack([u.repeat_interleave(3), (u.repeat_interleave(3) + torch.tensor([1, 3, 5]).repeat(40)) % 40])
    A = SparseOperator.from_edges(edges, None, 40)
    net = LINKX(40, 1, 2, 8, layers=1)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(torch.ones(40, 1), A)[:30], y[:30]).backward()
        optimiser.step()
    assert float((net(torch.ones(40, 1), A).argmax(1) == y)[30:].float().mean()) > 0.85  # features alone: 0.5


def test_errors() -> None:
    with pytest.raises(ValueError, match="classes"):
        LINKX(4, 2, 1)
    with pytest.raises(ValueError, match="layers"):
        LINKX(4, 2, 2, layers_a=0)
    with pytest.raises(ValueError, match="5 nodes"):
        LINKX(4, 2, 2)(torch.ones(5, 2), SparseOperator.from_edges(torch.tensor([[0], [1]]), None, 5))


def test_decay_is_decoupled() -> None:
    """Its groups make Adam the AdamW of torch, step by step."""
    method: Any = entry_of("linkx(lr=0.01; weight_decay=0.1)")
    torch.manual_seed(0)
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    ours = torch.optim.Adam(method.groups(a), lr=method.lr)
    theirs = torch.optim.AdamW(b.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(3):
        for net, optimiser in ((a, ours), (b, theirs)):
            optimiser.zero_grad()
            net(torch.ones(1, 3)).square().sum().backward()
            optimiser.step()
    assert torch.equal(a.weight, b.weight)


@pytest.mark.parametrize("weighted", [False, True])
def test_directions_that_differ_in_weight_or_number_are_taken_both_ways(weighted: bool, make_blocks: Any) -> None:
    graph = make_blocks()
    if weighted:
        weight = np.arange(1, graph.edge_index.shape[1] + 1, dtype=np.float32)
        graph = replace(graph, weight=weight, _cache={})
    else:  # some edges stand twice, one way only
        graph = replace(graph, edge_index=np.concatenate([graph.edge_index, graph.edge_index[:, :5]], 1), _cache={})
    assert not graph.directed
    data = open_data(graph)
    fold = task_of("node-classification").for_data(data).fold(data, "random-0")
    written = np.zeros((graph.nodes, graph.nodes))
    np.add.at(written, tuple(graph.edge_index), 1.0 if graph.weight is None else graph.weight)
    A = np.maximum(written, written.T)
    assert not np.array_equal(A, written)
    assert np.array_equal(entry_of("linkx").inputs(fold.train, "cpu")[1].to_scipy().toarray(), A)
    A = A + np.eye(len(A))
    root = 1 / np.sqrt(A.sum(1))
    for name in ("gcn", "dagnn", "appnp"):
        S = entry_of(name).inputs(fold.train, "cpu")[1].to_scipy().toarray()
        np.testing.assert_allclose(S, root[:, None] * A * root, rtol=1e-6)


def test_one_way_neighbours_are_those_that_edges_lead_to(make_blocks: Any) -> None:
    data = open_data(make_blocks(directed=True))
    fold = task_of("node-classification").for_data(data).fold(data, "random-0")
    u, v = data.read().edge_index
    both, one = (entry_of(f"linkx(symmetrise={s})").inputs(fold.train, "cpu")[1].to_scipy().toarray() for s in ("true", "false"))
    wanted = np.zeros_like(one)
    wanted[u, v] = 1
    assert np.array_equal(one, wanted) and np.array_equal(both, np.maximum(wanted, wanted.T))


def test_it_answers_for_the_fitted_graph_alone(make_blocks: Any) -> None:
    task = task_of("node-classification")
    folds = [task.for_data(d).fold(d, "random-0") for d in (open_data(make_blocks(seed=s)) for s in (0, 1))]
    run = Run(task=task, fold="x", label="linkx")
    with run.seeded():
        model = entry_of("linkx(epochs=3)").fit(folds[0].train, folds[0].valid, run)
    assert model.scope == "fitted data" and model.predict(folds[0].test).shape[1] == 3
    with pytest.raises(UserError, match="fit again"):
        model.predict(folds[1].test)


def test_battery() -> None:
    check_method(entry_of("linkx(epochs=6; hidden=8)"), "karate", fingerprints=FINGERPRINTS)
