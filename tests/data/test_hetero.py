"""Heterogeneous graphs: reading, writing, meta-paths, derived sets, PyG's container."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.hetero import (
    HeteroGraph,
    biadjacency,
    chain_counts,
    chain_instances,
    chain_types,
    doubled_steps,
    finish_hetero,
    meta_paths,
    parse_path,
    path_text,
    read_hetero,
    relation_text,
    reverse_chain,
    write_hetero,
)
from latticework.data.hetero_sets import HeteroBlocks, content_digest
from latticework.testing import check_data


def small() -> HeteroGraph:
    """Authors who write or review papers, papers that cite papers."""
    rng = np.random.default_rng(0)
    edges = {
        ("author", "writes", "paper"): (4, 5), ("author", "reviews", "paper"): (4, 5), ("paper", "cites", "paper"): (5, 5),
        ("paper", "at", "open-venue"): (5, 2),
    }  # fmt: skip
    sizes = {"author": 4, "paper": 5, "open-venue": 2}
    return finish_hetero(
        HeteroGraph(
            tuple(sizes), {k: tuple(f"{k} {i}" for i in range(n)) for k, n in sizes.items()},
            {key: np.stack(np.nonzero(rng.random(shape) < 0.5)) for key, shape in edges.items()},
            x={"paper": rng.normal(size=(5, 2)).astype(np.float32)}, features={"paper": ("f", "g")},
            y={"author": np.array([0, 1, -1, 1])}, classes={"author": ("u", "v")},
            fixed={"author": np.array([0, 1, -1, 2], np.int8)}, splits={"author": {"mine": np.array([0, 0, 1, 2], np.int8)}},
        )
    )  # fmt: skip


def same(a: HeteroGraph, b: HeteroGraph) -> None:
    assert set(a.types) == set(b.types) and set(a.relations) == set(b.relations)
    for kind in a.types:
        assert a.ids[kind] == b.ids[kind]
    for key, edges in a.relations.items():
        assert np.array_equal(edges, b.relations[key])
    for held, other in ((a.x, b.x), (a.y, b.y), (a.fixed, b.fixed), (a.weights, b.weights)):
        assert set(held) == set(other)
        assert all(np.array_equal(v, other[k]) for k, v in held.items())
    assert a.classes == b.classes and a.features == b.features
    assert all(np.array_equal(s, b.splits[k][n]) for k, named in a.splits.items() for n, s in named.items())


def test_written_and_read_back(tmp_path: Path) -> None:
    graph = small()
    write_hetero(graph, tmp_path / "g")
    same(graph, read_hetero(tmp_path / "g"))


def test_spreadsheets_ways(tmp_path: Path) -> None:
    """A BOM, CRLF, semicolons, another order of columns, categories, missing labels, weights."""
    (tmp_path / "nodes").mkdir()
    (tmp_path / "edges").mkdir()
    (tmp_path / "nodes" / "a.csv").write_bytes("\ufefflabel;id;colour;f\r\nx;007;red;1\r\n;8;blue;2\r\ny;9;red;3\r\n".encode())
    (tmp_path / "nodes" / "b.csv").write_text("id\n1\n2\n")
    (tmp_path / "edges" / "a__to__b.csv").write_text("target,weight,source\n2,0.5,007\n1,2,9\n1,2,9\n")
    graph = read_hetero(tmp_path)
    assert graph.ids["a"] == ("007", "8", "9") and graph.y["a"].tolist() == [0, -1, 1]
    assert graph.relations["a", "to", "b"].tolist() == [[0, 2, 2], [1, 0, 0]] and graph.weights["a", "to", "b"].tolist() == [
        0.5,
        2,
        2,
    ]
    assert graph.features["a"] == ("colour=blue", "colour=red", "f")
    said = " | ".join(graph.notes)
    for words in (
        "a: 1 nodes have no label",
        "'colour' is categorical",
        "1 repeated edges kept",
        "features for a only; b have none",
    ):
        assert words in said


def test_paths_as_written() -> None:
    graph = small()
    cites = ("paper", "cites", "paper")
    assert parse_path("paper-paper", graph) == ((cites, True),)
    assert parse_path("paper-[<cites]-paper", graph) == ((cites, False),)
    assert parse_path("paper-[writes]-author", graph) == ((("author", "writes", "paper"), False),)
    assert chain_types(parse_path("author-[writes]-paper-open-venue", graph)) == ("author", "paper", "open-venue")
    for chain in meta_paths(graph, "author", 3):
        assert parse_path(path_text(chain, graph), graph) == chain
    for text, words in (
        ("author-paper", "reviews all join author and paper"), ("author-editor", "'editor' is not a node type"),
        ("author-open-venue", "nothing joins author and open-venue"), ("author", "has no step"),
        ("author-[edits]-paper", "no relation 'edits' goes from author to paper"),
        ("author-[writes]-paper-open-venue-shelf", "'shelf' is not a node type"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            parse_path(text, graph)


def test_paths_of_types_with_hyphens_read_back() -> None:
    """Types a, a-b and b, joined in every way: what is written for a chain is read as that chain."""
    kinds = ("a", "a-b", "b")
    pair = np.zeros((2, 1), np.int64)
    graph = HeteroGraph(kinds, {k: ("x",) for k in kinds}, {(s, f"to{t}", t): pair for s in kinds for t in kinds})
    texts = {}
    for chain in meta_paths(graph, "a", 3):
        texts[path_text(chain, graph)] = chain
        assert parse_path(path_text(chain, graph), graph) == chain
    assert len(texts) == len(meta_paths(graph, "a", 3)) > 20
    fewer = HeteroGraph(kinds, graph.ids, {key: pair for key in (("a", "r", "b"), ("b", "s", "a-b"))})
    assert chain_types(parse_path("a-b-a-b", fewer)) == ("a", "b", "a-b")  # the reading that the relations allow


def test_counts_equal_brute_force_on_both_containers() -> None:
    graph = small()
    for data in (graph, graph.tensors()):
        for chain in meta_paths(graph, "paper", 3):
            found = chain_counts(data, chain)
            dense = np.eye(5, dtype=np.int64)
            for key, forward in chain:
                step = np.zeros((len(graph.ids[key[0]]), len(graph.ids[key[2]])), np.int64)
                np.add.at(step, tuple(graph.relations[key]), 1)
                dense = dense @ (step if forward else step.T)
            assert found.dtype == np.int64 and np.array_equal(found.toarray(), dense)
            assert chain_instances(data, chain) == dense.sum()
            assert np.array_equal(chain_counts(data, reverse_chain(chain)).toarray(), dense.T)
    assert biadjacency(graph, (("paper", "cites", "paper"), True)).shape == (5, 5)
    with pytest.raises(ValueError, match="empty"):
        chain_counts(graph, ())
    with pytest.raises(ValueError, match="breaks"):
        chain_counts(graph, ((("author", "writes", "paper"), True), (("author", "reviews", "paper"), True)))


def test_steps_that_say_nothing_new() -> None:
    """Both directions of a relation, edges within a type both ways, a copy under another name; not what merely has as many edges."""
    graph = small()
    by = graph.relations["author", "writes", "paper"][::-1][:, ::-1].copy()
    cites = graph.relations["paper", "cites", "paper"]
    both = np.concatenate([cites, cites[::-1]], 1)
    relations = {**graph.relations, ("paper", "by", "author"): by, ("paper", "near", "paper"): both}
    wide = finish_hetero(replace(graph, relations=relations, _cache={}))
    assert doubled_steps(graph) == ()
    doubled = doubled_steps(wide)
    assert set(doubled) == {(("paper", "by", "author"), forward) for forward in (True, False)} | {
        (("paper", "near", "paper"), False)
    }
    of_plain = {path_text(c, graph) for c in meta_paths(graph, "author", 3)}
    without_near = {k: e for k, e in relations.items() if k[1] != "near"}
    assert {path_text(c, graph) for c in meta_paths(list(without_near), "author", 3, doubled=doubled)} == of_plain
    moved = by.copy()
    moved[0, 0] = (moved[0, 0] + 1) % 5
    assert doubled_steps(replace(graph, relations={**graph.relations, ("paper", "by", "author"): moved}, _cache={})) == ()
    none = {("author", "writes", "paper"): by[:, :0], ("paper", "by", "author"): by[:, :0]}
    assert doubled_steps(replace(graph, relations=none, _cache={})) == ()


def test_enumerated_paths() -> None:
    relations = [("p", "by", "a"), ("p", "at", "c")]
    texts = ["".join(chain_types(c)) for c in meta_paths(relations, "a", 2)]
    assert texts == ["ap", "apa", "apc"]
    assert ["".join(chain_types(c)) for c in meta_paths(relations, "a", 4, end="a")] == ["apa", "apapa", "apcpa"]


def test_pyg_data_and_back() -> None:
    import torch
    from torch_geometric.data import HeteroData

    data = HeteroData()
    data["a"].x, data["a"].y = torch.eye(3), torch.tensor([0, 1, -1])
    data["a"].train_mask = torch.tensor([True, False, False])
    data["b"].num_nodes = 2
    data["a", "to", "b"].edge_index = torch.tensor([[0, 2], [1, 0]])
    given = open_data(data)
    graph = given.read()
    assert given.name == "given-hetero" and graph.y["a"].tolist() == [0, 1, -1] and graph.fixed["a"].tolist() == [0, -1, -1]
    tensors = graph.tensors()
    assert torch.equal(tensors["a"].x, data["a"].x) and "y" not in tensors["a"]
    assert torch.equal(tensors["a", "to", "b"].edge_index, data["a", "to", "b"].edge_index)
    data["a"].x[1, 1] = float("nan")
    with pytest.raises(UserError, match="first in row 1"):
        open_data(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: setattr(d["a"], "y", [0, 1]), r"y of 'a' is \[2\]; it has 3 nodes"),
        (lambda d: setattr(d["a"], "x", [1.0, 2.0, 3.0]), r"x of 'a' is \[3\]; \[3, features\] is read"),
        (lambda d: d["a", "to", "b"].pop("edge_index"), r"relation a-to-b has no edge_index \(edge_weight\)"),
        (lambda d: setattr(d["a", "to", "b"], "edge_weight", [1.0]), "a-to-b has 2 edges and 1 weights"),
        (lambda d: setattr(d["a", "to", "b"], "edge_weight", [1.0, -2.0]), "from '2' to '0' has weight -2"),
        (lambda d: setattr(d["a", "to", "b"], "edge_weight", [float("nan"), 1.0]), "from '0' to '1' has weight nan"),
    ],
)
def test_a_broken_pyg_object(change: Callable[[Any], Any], says: str) -> None:
    """What a file may not hold, an object may not either."""
    import torch
    from torch_geometric.data import HeteroData

    data = HeteroData()
    data["a"].x, data["a"].y = torch.eye(3), torch.tensor([0, 1, -1])
    data["a"].num_nodes, data["b"].num_nodes = 3, 2
    data["a", "to", "b"].edge_index, data["a", "to", "b"].edge_weight = torch.tensor([[0, 2], [1, 0]]), torch.ones(2)
    assert open_data(data).read().weights["a", "to", "b"].tolist() == [1, 1]
    change(data)
    for store in data.stores:
        for name, value in list(store.items()):
            if isinstance(value, list):
                store[name] = torch.tensor(value)
    with pytest.raises(UserError, match=says):
        open_data(data)


@pytest.mark.parametrize("name", ["hetero-blocks", "without-relation(of=hetero-blocks; relation=at)"])
def test_batteries(name: str) -> None:
    check_data(name)


def test_content_tells_graphs_apart() -> None:
    assert content_digest(HeteroBlocks().read()) != content_digest(HeteroBlocks(seed=1).read())
    assert content_digest(small()) == content_digest(small())


def test_without_relation_by_name() -> None:
    whole, left = (
        open_data("hetero-blocks").read(),
        open_data("without-relation(of=hetero-blocks; relation=paper-at-venue)").read(),
    )
    assert [relation_text(key) for key in left.relations] == ["author-writes-paper"] and left.types == whole.types
    with pytest.raises(UserError, match="no relation is called 'cites'; there are author-writes-paper, paper-at-venue"):
        open_data("without-relation(of=hetero-blocks; relation=cites)").read()


@pytest.mark.parametrize(("file", "counts"), [("dblp", (4057, 19645)), ("imdb", (4275, 12831)), ("acm", (4019, 13407))])
def test_mirror(file: str, counts: tuple[int, int], mirror: Callable[[str], Path]) -> None:
    mirror("hetero-heco")
    graph: Any = open_data(f"hetero-heco:{file}").read()
    target = graph.labelled[0]
    assert (graph.sizes[target], next(iter(graph.relations.values())).shape[1]) == counts
    # the published lists of IMDB name one train node of split 40 and five of split 60 twice
    twice = {"imdb": {40: 1, 60: 5}}.get(file, {})
    for rate in (20, 40, 60):
        split = graph.splits[target][str(rate)]
        wanted = rate * len(graph.classes[target]) - twice.get(rate, 0)
        assert np.bincount(split[split >= 0]).tolist() == [wanted, 1000, 1000]
        assert any(f"split {rate}: {twice.get(rate)} of" in note for note in graph.notes) == (rate in twice)


def test_export_and_check(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    assert command("data", "export", "hetero-blocks", tmp_path / "out")[0] == 0
    same(HeteroBlocks().read(), read_hetero(tmp_path / "out"))
    status, out, _ = command("data", "check", tmp_path / "out")
    assert status == 0 and "heterogeneous graph" in out and "meta-path author-paper-venue-paper-author" in out
    assert "hetero-node-classification fits" in out
