"""Hypergraphs: the reader's acts and their counts, round trips, sub-hypergraphs, the catalogue, PyG objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data.hypergraph_data import HyperGraphData

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.graph import Graph, finish
from latticework.data.graph_sets import GivenGraph
from latticework.data.hypergraph import (
    Hypergraph,
    HypergraphFiles,
    from_memberships,
    from_pyg,
    read_hypergraph,
    subhypergraph,
    write_hypergraph,
)
from latticework.data.hypergraph_sets import _FILES, Neighbourhoods, content_digest
from latticework.testing import check_data

NODES = "id,label,f,colour\na,x,1,red\nb,y,2,blue\nc,x,3,red\nd,,4,blue\n"
MEMBERS = "edge,node\ne1,a\ne2,c\ne1,b\ne2,b\ne1,a\ne3,c\ne4,b\ne4,a\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nodes.csv").write_text(NODES)
    (tmp_path / "hyperedges.csv").write_text(MEMBERS)
    return tmp_path


def sets_of(graph: Hypergraph) -> dict[str, set[str]]:
    """Each hyperedge as a set of ids."""
    ends = zip(graph.edge_ids, graph.edge_ptr[:-1], graph.edge_ptr[1:], strict=True)
    return {name: {graph.ids[i] for i in graph.edge_nodes[start:stop]} for name, start, stop in ends}


def test_a_folder_as_it_was_written(folder: Path) -> None:
    graph = read_hypergraph(folder)
    assert sets_of(graph) == {"e1": {"a", "b"}, "e2": {"b", "c"}, "e3": {"c"}, "e4": {"a", "b"}}
    assert graph.edge_ids == ("e1", "e2", "e3", "e4")  # by first appearance
    assert graph.ids == ("a", "b", "c", "d") and graph.classes == ("x", "y") and graph.y.tolist() == [0, 1, 0, -1]
    assert graph.features == ("f", "colour=blue", "colour=red") and graph.x[1].tolist() == [2, 1, 0]
    said = "; ".join(graph.notes)
    for text in (
        "1 repeated lines", "1 hyperedges of one node", "1 hyperedges repeat the nodes of another", "1 nodes are in no hyperedge",
        "1 nodes have no label", "categorical",
    ):  # fmt: skip
        assert text in said, said
    facts = HypergraphFiles(path=folder).facts()
    assert facts["memberships"] == 7 and facts["isolated nodes"] == 1 and facts["equal hyperedges"] == 1
    # e1, e2 and e4 hold one x and one y each; e3 has one labelled node and says nothing
    assert facts["mean share of a hyperedge's commonest class"] == pytest.approx(0.5)


def test_writing_reads_back(folder: Path, tmp_path: Path) -> None:
    graph = read_hypergraph(folder)
    write_hypergraph(graph, tmp_path / "again")
    again = read_hypergraph(tmp_path / "again")
    assert content_digest(again) == content_digest(graph)
    alone = subhypergraph(graph, np.array([3]))
    assert alone.hyperedges == 0 and alone.ids == ("d",)


def test_recognised_by_header_alone(folder: Path) -> None:
    assert open_data(str(folder)).kind == "hypergraph"
    lone = open_data(str(folder / "hyperedges.csv")).read()
    assert lone.ids == ("a", "c", "b") and lone.x is None and "3 nodes are those that hyperedges name" in lone.notes[0]
    (folder / "hyperedges.csv").unlink()
    with pytest.raises(UserError, match="cannot tell what"):  # labels without hyperedges are somebody's mistake
        open_data(str(folder))
    (folder / "nodes.csv").write_text("id,f\na,1\nb,2\n")
    alone = open_data(str(folder)).read()
    assert not alone.linked and alone.hyperedges == 0 and "no hyperedges.csv" in alone.notes[0]
    (folder / "edges.csv").write_text("source,target\na,b\n")
    assert open_data(str(folder)).kind == "graph"


def test_the_digest_follows_the_bytes(folder: Path) -> None:
    before = HypergraphFiles(path=folder).digest()
    (folder / "hyperedges.csv").write_text(MEMBERS + "e4,c\n")
    assert HypergraphFiles(path=folder).digest() != before


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4)), max_size=40))
@settings(deadline=None, max_examples=60)
def test_memberships_are_sets_in_order(pairs: list[tuple[int, int]]) -> None:
    index = np.array(pairs, np.int64).reshape(-1, 2).T
    pointer, members, repeats = from_memberships(index[0], index[1], 5)
    for e in range(5):
        lines = list(dict.fromkeys(v for v, edge in pairs if edge == e))
        assert members[pointer[e] : pointer[e + 1]].tolist() == lines
    assert repeats == len(pairs) - len(set(pairs))


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_a_sub_hypergraph_is_the_sets_cut_down(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = open_data("random-hypergraph(nodes=30; hyperedges=12; largest=6; features=2)").read()
    nodes = rng.permutation(30)[: rng.integers(1, 30)]
    small = subhypergraph(graph, nodes)
    kept = {graph.ids[i] for i in nodes}
    assert sets_of(small) == {name: members & kept for name, members in sets_of(graph).items() if members & kept}
    assert small.ids == tuple(graph.ids[i] for i in nodes)
    assert np.array_equal(small.x, graph.x[nodes]) and np.array_equal(small.y, graph.y[nodes])


def test_a_pyg_object() -> None:
    index = torch.tensor([[0, 1, 2, 2, 0, 0], [0, 0, 0, 1, 1, 1]])
    data = HyperGraphData(x=torch.randn(4, 3), edge_index=index, y=torch.tensor([0, 1, 1, -1]))
    graph = from_pyg(data)
    assert graph.nodes == 4 and sets_of(graph) == {"0": {"0", "1", "2"}, "1": {"0", "2"}}
    assert "1 repeated memberships left out" in graph.notes and graph.labelled.tolist() == [True] * 3 + [False]
    given_set = HypergraphFiles.from_object(data)
    assert given_set is not None and given_set.kind == "hypergraph" and given_set.read().nodes == 4
    assert HypergraphFiles.from_object(object()) is None
    back = graph.tensors()
    assert isinstance(back, HyperGraphData) and back.vertices == 4 and back.hyperedges == 2
    assert from_pyg(back).edge_nodes.tolist() == graph.edge_nodes.tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"edge_index": torch.tensor([[0, 1], [0, 2]])}, "hyperedge '1' has no node"),
        ({"edge_index": torch.tensor([[0, 9], [0, 0]])}, "outside 0..3"),
        ({"edge_index": torch.tensor([[0, -1], [0, 0]])}, "negative"),
        ({"edge_index": torch.tensor([0, 1])}, r"edge_index \[2, memberships\]"),
        ({"x": torch.full((4, 2), float("nan"))}, "not finite, first in row 0"),
        ({"y": torch.tensor([0, 1])}, "one label for each of the 4 vertices"),
        ({"x": torch.randn(5, 2)}, "one label for each of the 5 vertices"),
        ({"x": torch.randn(4)}, r"x of a HyperGraphData is \[4\]; \[4, features\] is read"),
    ],
)
def test_a_broken_pyg_object(change: dict[str, Any], says: str) -> None:
    parts = {"x": torch.randn(4, 3), "y": torch.tensor([0, 1, 1, 0]), "edge_index": torch.tensor([[0, 1], [0, 0]])} | change
    with pytest.raises(UserError, match=says):
        from_pyg(HyperGraphData(**parts))


def test_neighbourhoods_of_a_graph() -> None:
    edges = np.array([[0, 1, 1, 3], [1, 0, 2, 3]])  # a path 0 - 1 - 2, written partly twice, a loop, nothing at 4
    graph = finish(Graph(edges, tuple("abcde"), y=np.array([0, 1, 0, 1, 0]), classes=("x", "y")), None)
    found = Neighbourhoods(of=GivenGraph.hold(graph)).read()
    assert sets_of(found) == {
        "a – b": {"a", "b"}, "b – c": {"b", "c"}, "around a": {"a", "b"}, "around b": {"a", "b", "c"}, "around c": {"b", "c"},
    }  # fmt: skip
    assert found.ids == graph.ids and np.array_equal(found.y, graph.y) and "2 nodes are in no hyperedge" in found.notes[-1]


def test_neighbourhoods_of_a_rewritten_file_are_made_anew(tmp_path: Path) -> None:
    ids = []
    for edges in ("a,b\n", "a,b\nb,c\n"):
        (tmp_path / "edges.csv").write_text("source,target\n" + edges)
        ids.append(open_data(f"neighbourhoods(of=graph-files(path={tmp_path}))").read().ids)
    assert ids == [("a", "b"), ("a", "b", "c")]


@pytest.mark.parametrize(
    "name",
    ["digits-hyperedges(images=60)", "random-hypergraph(nodes=60; largest=5)", "neighbourhoods(of=karate)"],
)
def test_data(name: str) -> None:
    check_data(name)


def test_random_sizes_are_uniform_and_members_distinct() -> None:
    graph = open_data("random-hypergraph(nodes=2000; seed=3)").read()
    assert graph.hyperedges == 2000 and graph.sizes.min() == 2 and graph.sizes.max() == 39
    # 38 sizes, 2,000 draws: a share of 1/38 each, within four standard deviations
    counts = np.bincount(graph.sizes, minlength=40)[2:]
    assert np.abs(counts - 2000 / 38).max() < 4 * np.sqrt(2000 / 38)
    assert all(len(set(p.tolist())) == len(p) for p in np.split(graph.edge_nodes, graph.edge_ptr[1:-1]))
    with pytest.raises(UserError, match="smallest is 5"):
        open_data("random-hypergraph(nodes=3; smallest=5)").read()


@pytest.mark.parametrize("name", sorted(_FILES))
def test_the_catalogue(name: str, mirror: Any) -> None:
    mirror(_FILES[name].folder)
    check_data(name)


def test_published_counts(mirror: Any) -> None:
    mirror("hypergraphs-citation")
    expected = {
        "cora-coauthorship": (1072, 102, 320),
        "cora-cocitation": (1579, 96, 1274),
        "citeseer-cocitation": (1079, 75, 1854),
    }
    for name, (edges, same, alone) in expected.items():
        facts = open_data(f"hypergraphs-citation:{name}").facts()
        assert (facts["hyperedges"], facts["equal hyperedges"], facts["isolated nodes"]) == (edges, same, alone)


def test_hyperedges_of_a_heterogeneous_graph(mirror: Any) -> None:
    path = mirror("hetero-heco") / "dblp.npz"
    with np.load(path) as z:
        papers = np.split(z["paper_author_indices"], z["paper_author_indptr"][1:-1])
        terms = np.split(z["paper_term_indices"], z["paper_term_indptr"][1:-1])
    by_term = sets_of(open_data("hypergraphs-heco:dblp-term").read())
    for term in (0, 17, 3000):
        authors = {str(a) for written, held in zip(papers, terms, strict=True) if term in held for a in written}
        assert by_term.get(f"term {term}", set()) == authors
    by_paper = sets_of(open_data("hypergraphs-heco:dblp-paper").read())
    assert by_paper["paper 5"] == {str(a) for a in papers[5]}
    imdb = open_data("hypergraphs-heco:imdb").read()
    assert {name.split()[0] for name in imdb.edge_ids} == {"actor", "director"}
