"""Clients: folders of several parties, and one graph cut into clients; ids, columns and classes are kept and matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import latticework as lw
from latticework.core.errors import UserError
from latticework.data.clients import Clients, GivenClients, Partition, cut, gather, label_likeness, partitioned
from latticework.data.graph import Graph, undirected_pairs
from latticework.data.graph_sets import GivenGraph
from latticework.testing import check_data

pytest.importorskip("pymetis")


def folder(root: Path, **clients: tuple[str, str]) -> Path:
    for name, (nodes, edges) in clients.items():
        (root / name).mkdir(parents=True)
        (root / name / "nodes.csv").write_text(nodes)
        (root / name / "edges.csv").write_text(edges)
    return root


def test_a_folder_of_folders(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "banks",
        north=("id,label,age,kind\na,good,1,x\nb,bad,2,y\nc,,3,x\n", "source,target\na,b\nb,c\n"),
        south=("id,label,kind,age\nq,odd,z,7\nc,good,x,8\n", "source,target\nq,c\n"),
    )
    given = lw.dataset(root)
    assert given.kind == "clients" and given.name == "client-folder"
    held: Clients = given.read()
    assert held.names == ("north", "south") and held.classes == ("bad", "good", "odd")
    assert held.features == ("age", "kind=x", "kind=y", "kind=z")  # by name, whatever the order; a missing category is zero
    north, south = held.graphs
    assert north.x is not None and north.x.tolist() == [[1, 1, 0, 0], [2, 0, 1, 0], [3, 1, 0, 0]]
    assert south.x is not None and south.x.tolist() == [[7, 0, 0, 1], [8, 1, 0, 0]]
    assert north.y is not None and north.y.tolist() == [1, 0, -1] and south.y is not None and south.y.tolist() == [2, 1]
    assert held.places[0].tolist() == [0, 1, 2] and held.places[1].tolist() == [3, 2]  # node c is the same one
    assert held.labelled.tolist() == [True, True, True, True]
    said = "; ".join(given.check())
    assert "1 nodes stand in more than one client" in said and "client 'south' has 1 categories that others lack" in said
    assert "north: 3 nodes, 2 joined pairs, 2 labelled (2 of 3 classes" in said
    check_data(given)


def test_export_reads_back(tmp_path: Path, make_blocks: Callable[..., Graph]) -> None:
    whole = GivenGraph.hold(make_blocks(40))
    given = Partition(of=whole, clients=4)
    given.write(tmp_path / "out")
    back: Clients = lw.dataset(tmp_path / "out").read()
    before: Clients = given.read()
    assert back.names == before.names and back.features == before.features and back.classes == before.classes
    for a, b in zip(back.graphs, before.graphs, strict=True):
        assert a.ids == b.ids and np.array_equal(a.edge_index, b.edge_index) and a.y is not None and np.array_equal(a.y, b.y)  # type: ignore[arg-type]
        assert a.x is not None and b.x is not None and np.allclose(a.x, b.x, rtol=1e-6)
    assert sorted(np.concatenate(back.places).tolist()) == list(range(40))
    check_data(given)
    check_data(GivenClients.hold(before))
    assert lw.dataset(before).digest() == GivenClients.hold(before).digest()


@given(st.integers(0, 1000), st.integers(1, 6), st.sampled_from(["metis", "louvain", "random"]))
@settings(max_examples=25, deadline=None)
def test_a_cut_takes_each_node_once(seed: int, clients: int, by: Any) -> None:
    rng = np.random.default_rng(seed)
    n = 40
    u, v = np.nonzero(np.triu(rng.random((n, n)) < np.where(np.arange(n)[:, None] % 4 == np.arange(n) % 4, 0.5, 0.03), 1))
    graph = Graph(np.concatenate([np.stack([u, v]), np.stack([v, u])], 1), tuple(f"n{i}" for i in range(n)), directed=False)
    try:
        nodes = cut(graph, clients, by, seed=seed)
    except UserError as error:
        assert by == "louvain" and "communities" in str(error)
        return
    assert len(nodes) == clients and sorted(np.concatenate(nodes).tolist()) == list(range(n))
    made = partitioned(graph, nodes)
    for own, part in zip(nodes, made.graphs, strict=True):
        assert part.ids == tuple(graph.ids[i] for i in own)
        inside = np.isin(graph.edge_index, own).all(0)
        assert np.array_equal(own[part.edge_index], graph.edge_index[:, inside])
    again = cut(graph, clients, by, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(nodes, again, strict=True))


def test_metis_cuts_few_edges(make_blocks: Callable[..., Graph]) -> None:
    graph = make_blocks(90, seed=3)
    pairs = undirected_pairs(graph)

    def lost(by: Any) -> int:
        member = np.zeros(graph.nodes, int)
        for k, own in enumerate(cut(graph, 3, by)):
            member[own] = k
        return int((member[pairs[0]] != member[pairs[1]]).sum())

    assert lost("metis") < 0.6 * lost("random") and lost("louvain") < 0.6 * lost("random")
    sizes = [len(own) for own in cut(graph, 3, "metis")]
    assert max(sizes) <= 1.1 * min(sizes)


def test_overlapping_clients(make_blocks: Callable[..., Graph]) -> None:
    graph = make_blocks(60)
    nodes = cut(graph, 6, "metis", overlap=3)
    parts = cut(graph, 2, "metis")
    assert len(nodes) == 6
    for k, own in enumerate(nodes):
        assert len(own) == len(parts[k // 3]) // 2 == len(np.unique(own)) and np.isin(own, parts[k // 3]).all()
    assert not np.array_equal(nodes[0], nodes[1])
    made = partitioned(graph, nodes)
    assert "nodes are held by no client" in "; ".join(made.notes)
    with pytest.raises(UserError, match="7 clients cannot be made so"):
        cut(graph, 7, "metis", overlap=3)


def test_every_field_of_a_partition_is_its_identity(make_blocks: Callable[..., Graph]) -> None:
    of = GivenGraph.hold(make_blocks(60))
    made = [
        Partition(of=of, clients=4), Partition(of=of, clients=3), Partition(of=of, clients=4, by="random"),
        Partition(of=of, clients=4, by="random", seed=1), Partition(of=of, clients=4, overlap=2),
        Partition(of=GivenGraph.hold(make_blocks(60, seed=1)), clients=4),
    ]  # fmt: skip
    assert len({p.digest() for p in made}) == len(made)
    assert Partition(of=of, clients=4).digest() == made[0].digest()


def test_a_partition_of_a_path(graph_folder: Path) -> None:
    given = lw.dataset("partition", of=str(graph_folder), clients=3, by="random")
    assert given.facts()["clients"] == 3 and given.facts()["different nodes"] == 60
    assert lw.dataset(f"partition(of={graph_folder}; clients=3; by=random)").digest() == given.digest()


def test_likeness_of_labels(make_blocks: Callable[..., Graph]) -> None:
    graph = make_blocks(30, classes=3)
    nodes = [np.flatnonzero(np.arange(30) % 3 == 0), np.flatnonzero(np.arange(30) % 3 == 1), np.arange(30)]
    likeness = label_likeness(partitioned(graph, nodes))
    assert likeness[0, 1] == 0 and likeness[0, 2] == pytest.approx(1 / np.sqrt(3)) and np.allclose(np.diag(likeness), 1)


def test_what_cannot_be_gathered(make_blocks: Callable[..., Graph]) -> None:
    graph = make_blocks(12)
    other = replace(graph, features=("f0", "f1", "f2", "height"), _cache={})
    with pytest.raises(UserError, match="client 'a' has feature 'f3' that client 'b' lacks"):
        gather({"a": graph, "b": other})
    with pytest.raises(UserError, match="'b' has no features"):
        gather({"a": graph, "b": replace(graph, features=(), x=None, _cache={})})
    assert graph.y is not None
    with pytest.raises(UserError, match="node 'node 0' has one label on client 'a' and another on 'b'"):
        gather({"a": graph, "b": replace(graph, y=(graph.y + 1) % 3, _cache={})})
    with pytest.raises(UserError, match="client 'a' has several labels a node"):
        gather({"a": replace(graph, y=np.ones((12, 3), bool), _cache={}), "b": graph})
    with pytest.raises(UserError, match="holds no client"):
        gather({})


def test_without_pymetis(monkeypatch: pytest.MonkeyPatch, make_blocks: Callable[..., Graph]) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(UserError, match=r"latticework\[federated\]"):
        cut(make_blocks(20), 2, "metis")
    assert len(cut(make_blocks(20), 2, "random")) == 2


def test_the_published_partition(mirror: Callable[[str], Path]) -> None:
    mirror("planetoid-cora")
    facts = lw.dataset("partition").facts()
    assert facts["different nodes"] == 2485 and facts["clients"] == 10 and facts["joined pairs"] < 5069
    thirty = lw.dataset("partition", clients=30, overlap=5).read()
    assert len(thirty.graphs) == 30 and 200 <= min(g.nodes for g in thirty.graphs) <= 210
