"""Homophily: against PyG and brute force, its worked values, and the probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import task_of
from latticework.core.registry import value_of
from latticework.core.run import Run
from latticework.data.graph import Graph
from latticework.nodes.homophily import homophily
from latticework.testing import check_probe


def graph_of(edges: Any, y: Any, classes: int = 0) -> Graph:
    y = np.asarray(y, np.int64)
    names = tuple(str(c) for c in range(classes or int(y.max()) + 1))
    return Graph(np.asarray(edges, np.int64), tuple(str(i) for i in range(len(y))), y=y, classes=names)


def random_graph(seed: int, n: int = 40, m: int = 150, unknown: float = 0.0) -> Graph:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    y[:3] = range(3)
    y[rng.random(n) < unknown] = -1
    return graph_of(rng.integers(0, n, (2, m)), y, 3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999))
def test_equals_pyg(seed: int) -> None:
    from torch_geometric.utils import homophily as theirs
    from torch_geometric.utils import remove_self_loops, to_undirected

    graph = random_graph(seed)
    assert graph.y is not None
    edges = remove_self_loops(to_undirected(torch.from_numpy(graph.edge_index), num_nodes=graph.nodes))[0]
    y, found = torch.from_numpy(graph.y), homophily(graph)
    assert found.edge == pytest.approx(theirs(edges, y, method="edge"), abs=1e-6)
    assert found.insensitive == pytest.approx(theirs(edges, y, method="edge_insensitive"), abs=1e-6)
    # PyG counts a node without neighbours as 0, here it is left out
    alone = int(np.isnan(found.local).sum())
    assert found.node * (graph.nodes - alone) / graph.nodes == pytest.approx(theirs(edges, y, method="node"), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999))
def test_equals_a_loop_over_pairs(seed: int) -> None:
    graph = random_graph(seed, unknown=0.3)
    assert graph.y is not None
    pairs = {(min(u, v), max(u, v)) for u, v in graph.edge_index.T.tolist() if u != v and min(graph.y[u], graph.y[v]) >= 0}
    ends = [(graph.y[u], graph.y[v]) for u, v in pairs]
    edge = np.mean([a == b for a, b in ends])
    D = np.array([sum(int(a == c) + int(b == c) for a, b in ends) for c in range(3)])
    chance = ((D / (2 * len(ends))) ** 2).sum()
    found = homophily(graph)
    assert found.pairs == len(pairs) and found.degrees.tolist() == D.tolist()
    assert found.edge == pytest.approx(edge) and found.adjusted == pytest.approx((edge - chance) / (1 - chance))
    for c in range(3):
        if D[c]:
            assert found.by_class[c] == pytest.approx(2 * sum(int(a == b == c) for a, b in ends) / D[c])


def test_worked_values() -> None:
    # a square whose corners alternate, and a triangle of one class hung on it
    found = homophily(graph_of([[0, 1, 2, 3, 4, 5, 4, 0], [1, 2, 3, 0, 5, 6, 6, 4]], [0, 1, 0, 1, 0, 0, 0]))
    assert found.pairs == 8 and found.edge == 0.5
    assert found.local.tolist() == [1 / 3, 0, 0, 0, 1, 1, 1]
    assert found.degrees.tolist() == [12, 4] and found.by_class.tolist() == [8 / 12, 0]
    assert found.adjusted == pytest.approx((0.5 - 0.625) / 0.375)
    # chance agreement gives 0, perfect agreement 1
    both = np.array([(i, j) for i in range(4) for j in range(4, 8)]).T
    assert homophily(graph_of(both, [0, 0, 1, 1, 0, 0, 1, 1])).adjusted == pytest.approx(0)
    assert homophily(graph_of([[0, 2], [1, 3]], [0, 0, 1, 1])).adjusted == 1


def test_relabelling_changes_nothing() -> None:
    graph = random_graph(5)
    assert graph.y is not None
    order = np.random.default_rng(1).permutation(graph.nodes)
    moved = graph_of(np.argsort(order)[graph.edge_index], np.array([2, 0, 1])[graph.y[order]], 3)
    a, b = homophily(graph), homophily(moved)
    assert (a.edge, a.pairs) == (b.edge, b.pairs)
    assert (a.node, a.adjusted, a.insensitive) == pytest.approx((b.node, b.adjusted, b.insensitive))
    np.testing.assert_allclose(a.local[order], b.local)


def test_errors() -> None:
    with pytest.raises(ValueError, match="no edge joins"):
        homophily(graph_of([[0, 1], [0, 2]], [0, 1, -1], 2))
    with pytest.raises(ValueError, match="one label"):
        homophily(Graph(np.zeros((2, 0), np.int64), ("a",)))
    with pytest.raises(UserError, match="needs a graph"):
        value_of("probe", "homophily").measure(None, Run(task=None))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="cannot be measured"):
        value_of("probe", "homophily").measure(open_data("shifted-environments(n=10)"), Run(task=None))  # type: ignore[attr-defined]


def test_one_class_of_neighbours() -> None:
    """Adjusted homophily has no value there: none in the findings, where JSON has no NaN."""
    graph = graph_of([[0, 1], [1, 2]], [0, 0, 0, 1])
    assert np.isnan(homophily(graph).adjusted)
    check_probe("homophily", open_data(graph))


@pytest.mark.parametrize("fold", ["", "; fold=random-0"])
@pytest.mark.parametrize("similarity", ["norm2", "cos"])
def test_battery(fold: str, similarity: str, make_blocks: Any) -> None:
    data = open_data(make_blocks())
    task_of("node-classification").for_data(data).fold(data, "random-0")  # what a graph keeps of a fold is kept before
    check_probe(f"homophily(similarity={similarity}{fold})", data)


def test_the_pattern_is_read_where_it_carries_something(make_blocks: Any) -> None:
    """Features that are the class: the distance to the neighbours is the share of unlike ones, up to a factor."""
    from dataclasses import replace

    graph = make_blocks()
    plain = replace(graph, x=np.eye(3, dtype=np.float32)[graph.y], features=("a", "b", "c"), _cache={})
    found = value_of("probe", "homophily").measure(open_data(plain), Run(task=None))  # type: ignore[attr-defined]
    assert found.scalars["correlation of z with homophily"] == pytest.approx(-1)
    bare = replace(graph, x=None, features=(), _cache={})
    found = value_of("probe", "homophily").measure(open_data(bare), Run(task=None))  # type: ignore[attr-defined]
    assert "no features" in found.scalars["z"] and "edge" in found.scalars


@pytest.mark.parametrize("name,edge,node", [("chameleon", 0.2361, 0.2441), ("squirrel", 0.2072, 0.1905)])
def test_recorded_values_of_the_filtered_graphs(name: str, edge: float, node: float, mirror: Any) -> None:
    mirror("heterophilous")
    run = Run(task=None)
    found = value_of("probe", "homophily").measure(open_data(f"heterophilous:{name}"), run).scalars  # type: ignore[attr-defined]
    assert found["edge"] == pytest.approx(edge, abs=1e-4) and found["node"] == pytest.approx(node, abs=1e-4)


def test_as_a_user(command: Callable[..., tuple[int, str, str]], graph_folder: Path) -> None:
    status, out, err = command("probe", "homophily", graph_folder)
    assert status == 0 and "adjusted" in out and "correlation of z with homophily" in out, out + err
