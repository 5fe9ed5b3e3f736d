"""Edges of weight 0 join nothing, and other weights make another graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import latticework as lw
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import suited
from latticework.core.grid import entry_of
from latticework.core.run import Run, fitted
from latticework.data.graph import Graph, facts, finish
from latticework.nodes.tasks import NodeClassification

METHODS = [
    "label-propagation", "gcn(epochs=3)", "gat(epochs=3)", "sage(epochs=3)", "appnp(epochs=3)", "dagnn(epochs=3)",
    "linkx(epochs=3)", "adpa(epochs=3)", "adpa(epochs=3; direction=directed)",
    "hei(backbone=mlp(epochs=9); warm_up=3; infer_epochs=3)",
    "lagnn(backbone=gcn(epochs=3; hidden=8); generator.method=neighbour-cvae(selection=none; epochs=1))",
    "fastrp(dim=8)", "ppmi(dim=8)", "netmf(dim=8)", "svd(dim=8)",
]  # fmt: skip


@pytest.fixture
def weighted(make_blocks: Callable[..., Graph]) -> Graph:
    graph = make_blocks(directed=True)
    alone = ~np.isin(graph.edge_index, [0, 1]).any(0)  # two nodes without edges: zeros must not reach them
    graph = replace(graph, edge_index=graph.edge_index[:, alone], _cache={})
    weight = np.random.default_rng(0).integers(1, 4, graph.edge_index.shape[1]).astype(np.float32)
    return replace(graph, weight=weight, _cache={})


def with_zeros(graph: Graph) -> Graph:
    """The graph with edges of weight 0 between nodes that no edge joins, first and last among the edges."""
    assert graph.weight is not None
    A = np.eye(graph.nodes, dtype=bool)
    A[tuple(graph.edge_index)] = True
    apart = np.argwhere(~(A | A.T))
    zeros = np.random.default_rng(1).permutation(apart)[:80].T
    edges = np.concatenate([zeros[:, :40], graph.edge_index, zeros[:, 40:]], 1)
    weight = np.concatenate([np.zeros(40), graph.weight, np.zeros(40)]).astype(np.float32)
    return finish(replace(graph, edge_index=edges, weight=weight, notes=(), _cache={}), graph.directed)


def chances(text: str, graph: Graph) -> Any:
    data = open_data(graph)
    task = NodeClassification().for_data(data)
    fold = task.fold(data, "random-0")
    model = fitted(suited(task, entry_of(text)), fold.train, fold.valid, Run(task=task, digest="", fold="random-0"))
    return np.asarray(model.predict(fold.test.blind()))


@pytest.mark.parametrize("text", METHODS)
def test_edges_of_weight_zero_change_no_answer(text: str, weighted: Graph) -> None:
    assert np.array_equal(chances(text, with_zeros(weighted)), chances(text, weighted))


@pytest.mark.parametrize("probe", ["homophily", "amud(bootstrap=0)", "over-smoothing(hops=5)"])
def test_edges_of_weight_zero_change_no_measure(probe: str, weighted: Graph) -> None:
    assert lw.probe(probe, with_zeros(weighted)).scalars == lw.probe(probe, weighted).scalars


def test_groups_and_facts_leave_them_out(weighted: Graph) -> None:
    found, plain = (facts(g) for g in (with_zeros(weighted), weighted))
    keys = ("pairs joined", "degree min / median / max", "isolated nodes", "components", "edge homophily", "node homophily")
    assert {k: found[k] for k in keys} == {k: plain[k] for k in keys}
    slices = []
    for graph in (with_zeros(weighted), weighted):
        data = open_data(graph)
        slices.append(NodeClassification().for_data(data).fold(data, "random-0").test.truth.slices)
    assert all(np.array_equal(slices[0][name][0], slices[1][name][0]) for name in slices[1])


@pytest.mark.parametrize("text", ["fastrp(dim=8)", "ppmi(dim=8)", "label-propagation", "linkx(epochs=3)"])
def test_a_graph_of_other_weights_is_another_graph(text: str, weighted: Graph) -> None:
    assert weighted.weight is not None
    data = open_data(weighted)
    task = NodeClassification().for_data(data)
    fold = task.fold(data, "random-0")
    model = fitted(suited(task, entry_of(text)), fold.train, fold.valid, Run(task=task, digest="", fold="random-0"))
    part = task.ask(data, task.Query(), model.schema)
    assert len(model.predict(part)) == weighted.nodes
    for weight in (weighted.weight[::-1].copy(), weighted.weight * 2, None):
        other = open_data(replace(weighted, weight=weight, _cache={}))
        with pytest.raises(UserError, match="this is another one"):
            model.predict(task.ask(other, task.Query(), model.schema))
    # weights that are all 1 say nothing
    plain, ones = (open_data(replace(weighted, weight=w, _cache={})) for w in (None, np.ones_like(weighted.weight)))
    assert task.ask(plain, task.Query(), model.schema).schema == task.ask(ones, task.Query(), model.schema).schema
