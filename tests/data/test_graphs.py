"""Graph sets: container, readers against independent ones, 1-WL against sets of tuples, twins, matching, writing, published sets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.graph_texts import read_graph6, read_text, read_tu, write_graphs
from latticework.data.graphs import (
    GivenGraphSet,
    GraphSet,
    GraphSetFiles,
    both_ways,
    checked,
    facts,
    match_features,
    remarks,
    schema_of,
    twin_pairs,
    twins_across,
    wl_colours,
    wl_node_codes,
)
from latticework.testing import check_data

TEXT = "3\n3 a\n5 2 1 2\n7 1 0\n5 1 0\n1 b\n5 0\n2 a\n7 1 1\n7 1 0\n"


def drawn(seed: int, count: int = 7, tags: int = 3, edge_tags: int = 0, most: int = 9) -> GraphSet:
    """Random undirected graphs with tags, some without an edge."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, most, count)
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    ends = []
    for g, n in enumerate(sizes):
        joined = np.triu(rng.random((n, n)) < rng.random() * 0.8, 1)
        u, v = np.nonzero(joined | joined.T)
        ends.append(np.stack([u, v]) + ptr[g])
    edge_index = np.concatenate(ends, axis=1).astype(np.int64)
    n, m = int(ptr[-1]), edge_index.shape[1]
    low, high = edge_index.min(0), edge_index.max(0)
    return GraphSet(
        tuple(f"m{g}" for g in range(count)), sizes, edge_index,
        x=np.eye(tags, dtype=np.float32)[rng.integers(0, tags, n)] if tags else None,
        features=tuple(f"tag={t}" for t in range(tags)),
        edge_x=np.eye(edge_tags, dtype=np.float32)[(low * 7 + high) % edge_tags] if edge_tags and m else None,
        edge_features=tuple(f"tag={t}" for t in range(edge_tags if m else 0)), y=rng.integers(0, 2, count), classes=("no", "yes"),
    )  # fmt: skip


def same(a: GraphSet, b: GraphSet) -> bool:
    """Equal in all but the notes."""
    for f in fields(GraphSet):
        one, two = getattr(a, f.name), getattr(b, f.name)
        if f.name in ("notes", "_cache"):
            continue
        if isinstance(one, np.ndarray):
            if two is None or one.dtype != two.dtype or not np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
                return False
        elif one != two:
            return False
    return True


# -- the container -------------------------------------------------------------------------------------------------------
@given(st.integers(0, 10_000), st.lists(st.integers(0, 6), min_size=1, max_size=10))
@settings(max_examples=25, deadline=None)
def test_take_is_graph_by_graph(seed: int, rows: list[int]) -> None:
    of = drawn(seed, edge_tags=2)
    taken = of.take(rows)
    every = of.graphs()
    for row, data in zip(rows, taken.graphs(), strict=True):
        assert set(data.to_dict()) == set(every[row].to_dict())
        assert data.num_nodes == every[row].num_nodes == of.sizes[row]
        for key in ("edge_index", "x", "edge_attr"):
            assert (data[key] == every[row][key]).all() if key in data else key not in every[row]
    assert taken.ids == tuple(of.ids[r] for r in rows) and np.array_equal(taken.y, of.y[rows])
    if len(set(rows)) == len(rows):
        checked(taken)
    assert same(of.take(np.isin(np.arange(7), rows)), of.take(sorted(set(rows))))


def test_no_truth_in_the_data() -> None:
    of = open_data("rings-and-cliques(graphs=6)").read()
    for data in of.graphs():
        assert set(data.to_dict()) == {"edge_index", "num_nodes", "x"}
    part = open_data("rings-and-cliques(graphs=6)").whole()
    assert part.truth is None and part.query.ids == of.ids and part.schema["classes"] == ["ring", "clique"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": ("a", "a")}, "two graphs have the id 'a'"),
        ({"sizes": np.array([3, 0])}, "graph 'b' has no node"),
        ({"edge_index": np.array([[0, 1], [1, 2]])}, "joins a node of graph 'a' with one of 'b'"),
        ({"edge_index": np.array([[0], [9]])}, "names a node outside 0 to 2"),
        ({"edge_index": np.array([[2, 0], [2, 1]])}, "not sorted by graph"),
        ({"x": np.array([[1.0], [np.nan], [0]], np.float32)}, "node feature 'f' of node 1 in graph 'a' is nan"),
        ({"x": np.zeros((2, 1), np.float32)}, r"x has shape \(2, 1\), expected \(3, 1\)"),
        ({"y": np.array([0, 2])}, "a class has a number outside -1 to 1"),
        ({"targets": np.array([[np.inf], [0]]), "target_names": ("t",)}, "a target is infinite"),
    ],
)
def test_what_is_checked(change: dict[str, Any], says: str) -> None:
    good = GraphSet(
        ("a", "b"), np.array([2, 1]), np.array([[0, 1], [1, 0]]), x=np.ones((3, 1), np.float32), features=("f",), y=np.array([0, 1]),
        classes=("p", "q"),
    )  # fmt: skip
    assert checked(good) is good
    with pytest.raises(UserError, match=says):
        checked(replace(good, **change, _cache={}))


# -- readers -------------------------------------------------------------------------------------------------------------
def test_one_file_text(tmp_path: Path) -> None:
    (tmp_path / "set.txt").write_text(TEXT)
    (tmp_path / "folds.txt").write_text("1\n0\n2\n")
    data = open_data(tmp_path)
    assert isinstance(data, GraphSetFiles) and open_data(tmp_path / "set.txt").digest() == data.digest()
    of = data.read()
    assert of.classes == ("a", "b") and of.y.tolist() == [0, 1, 0] and of.sizes.tolist() == [3, 1, 2]
    assert of.features == ("tag=5", "tag=7") and of.x.argmax(1).tolist() == [0, 1, 0, 0, 1, 1]
    assert of.edge_index.T.tolist() == [[0, 1], [0, 2], [1, 0], [2, 0], [4, 5], [5, 4]]
    assert of.folds.tolist() == [1, 0, 2]
    assert "the 2 published folds never test 1 of 3 graphs" in data.check()
    check_data(tmp_path)


def test_one_file_text_with_attributes_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("2\n2 -1\n0 1 1 0.5 2\n0 1 0 -1.5 3e1\n\n1 1\n0 0 .25 0\n")
    of = read_text(tmp_path / "a.txt")
    assert of.features == ("attr0", "attr1") and of.classes == ("-1", "1")
    assert of.x.tolist() == [[0.5, 2], [-1.5, 30], [0.25, 0]]
    assert any("tags tell nothing" in note for note in of.notes)


def networkx_sets() -> list[Any]:
    import networkx as nx

    rng = np.random.default_rng(0)
    graphs = [nx.gnp_random_graph(int(n), 0.4, seed=int(n)) for n in rng.integers(1, 20, 20)]
    return [*graphs, nx.gnp_random_graph(70, 0.1, seed=1), nx.path_graph(63), nx.empty_graph(1)]


def test_graph6_against_networkx(tmp_path: Path) -> None:
    import networkx as nx

    graphs = networkx_sets()
    (tmp_path / "some.g6").write_bytes(b"".join(nx.to_graph6_bytes(g, header=i == 0) for i, g in enumerate(graphs)))
    of = read_graph6(tmp_path / "some.g6")
    assert of.sizes.tolist() == [len(g) for g in graphs]
    for g, data in zip(graphs, of.graphs(), strict=True):
        assert data.edge_index.T.tolist() == sorted([[a, b] for u, v in g.edges for a, b in ((u, v), (v, u))])
    check_data(tmp_path / "some.g6")


def tu_folder(folder: Path, **files: str) -> Path:
    folder.mkdir()
    every = {
        "A": "1, 2\n2, 1\n2, 3\n3, 2\n5, 6\n6, 5\n", "graph_indicator": "1\n1\n1\n2\n3\n3\n", "graph_labels": "1\n-1\n1\n",
        "node_labels": "3\n4\n3\n9\n4\n4\n", "node_attributes": "0.5, 1\n1.5, 1\n-2, 1\n0, 1\n0.25, 1\n3, 1\n",
        "edge_labels": "0\n0\n1\n1\n0\n0\n", "graph_attributes": "0.5\n-1.25\n3\n",
    } | files  # fmt: skip
    for name, text in every.items():
        if text:
            (folder / f"TOY_{name}.txt").write_text(text)
    return folder


def test_tu_folder_against_pyg(tmp_path: Path) -> None:
    from torch_geometric.io import read_tu_data

    folder = tu_folder(tmp_path / "TOY", graph_attributes="", node_labels="0\n1\n0\n2\n1\n1\n")
    data, slices, _ = read_tu_data(str(folder), "TOY")
    of = open_data(folder).read()
    assert of.features == ("attr0", "attr1", "tag=0", "tag=1", "tag=2") and of.edge_features == ("tag=0", "tag=1")
    assert np.array_equal(of.x, data.x.numpy()) and np.array_equal(of.edge_x, data.edge_attr.numpy())
    assert np.array_equal(np.concatenate([d.edge_index for d in of.graphs()], axis=1), data.edge_index.numpy())
    assert of.ptr.tolist() == slices["x"].tolist() and of.edge_ptr.tolist() == slices["edge_index"].tolist()
    assert np.array_equal(of.y, data.y.numpy()) and of.classes == ("-1", "1")
    check_data(folder)


def test_tu_folder(tmp_path: Path) -> None:
    of = open_data(tu_folder(tmp_path / "TOY")).read()
    assert of.ids == ("1", "2", "3") and of.sizes.tolist() == [3, 1, 2]
    assert of.features[2:] == ("tag=3", "tag=4", "tag=9")  # tags stay what they are called
    assert of.targets.tolist() == [[0.5], [-1.25], [3]] and of.target_names == ("target",)
    raw = tmp_path / "root" / "raw"
    raw.parent.mkdir()
    tu_folder(raw)
    assert same(open_data(raw.parent).read(), of) and open_data(raw.parent).digest() == open_data(tmp_path / "TOY").digest()


def test_tu_folder_out_of_order(tmp_path: Path) -> None:
    """Nodes and edges of graphs mixed up: the same graphs, and a note."""
    of = read_tu(tu_folder(tmp_path / "TOY"))
    new = np.array([5, 0, 3, 2, 1, 4])  # node k stands on line new[k]
    moved = np.empty(6, int)
    moved[new] = np.arange(6)

    def lines(part: str) -> str:
        rows = (tmp_path / "TOY" / f"TOY_{part}.txt").read_text().splitlines()
        return "".join(f"{rows[k]}\n" for k in moved)

    edges = [[4, 5], [5, 4], [0, 1], [1, 0], [1, 2], [2, 1]]
    text = "".join(f"{new[u] + 1}, {new[v] + 1}\n" for u, v in edges)
    mixed = read_tu(
        tu_folder(
            tmp_path / "MIXED", A=text, graph_indicator=lines("graph_indicator"), node_labels=lines("node_labels"),
            node_attributes=lines("node_attributes"), edge_labels="0\n0\n0\n0\n1\n1\n",
        )
    )  # fmt: skip
    assert any("not sorted" in note for note in mixed.notes)
    assert np.array_equal(wl_colours(mixed, None), wl_colours(of, None)) and mixed.sizes.tolist() == of.sizes.tolist()
    together = replace(
        of, ids=tuple("abcdef"), sizes=np.tile(of.sizes, 2), edge_index=np.concatenate([of.edge_index, mixed.edge_index + 6], axis=1),
        x=np.concatenate([of.x, mixed.x]), edge_x=np.concatenate([of.edge_x, mixed.edge_x]), y=None, targets=None, _cache={},
    )  # fmt: skip
    assert wl_colours(together, None).tolist() == [0, 1, 2, 0, 1, 2]


def test_unknown_labels_and_several_node_labels(tmp_path: Path) -> None:
    of = read_tu(tu_folder(tmp_path / "TOY", graph_labels="good one\n\n\n", node_labels="a, 1\nb, 1\na, 2\na, 1\nb, 2\nb, 1\n"))
    assert of.y.tolist() == [0, -1, -1] and of.classes == ("good one",)
    assert of.features[2:] == ("tag0=a", "tag0=b", "tag1=1", "tag1=2")
    assert "2 graphs have no label: they are the ones to predict" in of.notes


def test_direction(tmp_path: Path) -> None:
    folder = tu_folder(tmp_path / "TOY", A="1, 2\n2, 3\n3, 2\n5, 6\n", edge_labels="0\n1\n1\n0\n")
    data = open_data(folder)
    assert data.facts()["directed"]
    assert any("directed: 2 of 4 edges lack their reverse" in line for line in data.check())
    both = open_data(folder, {"directed": False})
    assert both.digest() != data.digest() and not both.facts()["directed"]
    assert "declared undirected: 2 reverse edges added" in both.read().notes
    whole = read_tu(tu_folder(tmp_path / "WHOLE"))
    colours = wl_colours(both.read(), None)
    assert np.array_equal(colours, wl_colours(whole, None)) and len(set(colours.tolist())) == 3
    assert both_ways(whole).edge_index.shape == whole.edge_index.shape


def test_lists_of_data() -> None:
    import torch
    from torch_geometric.data import Data

    edge = torch.tensor([[0, 1], [1, 0]])
    graphs = [
        Data(x=torch.eye(2), edge_index=edge, y=torch.tensor([1])),
        Data(x=torch.ones(1, 2), edge_index=edge[:, :0], y=torch.tensor([0])),
    ]
    data = open_data(graphs)
    assert isinstance(data, GivenGraphSet)
    of = data.read()
    assert isinstance(open_data(of), GivenGraphSet)
    assert of.classes == ("0", "1") and of.y.tolist() == [1, 0] and of.features == ("x0", "x1")
    assert all(
        torch.equal(a.x, b.x) and torch.equal(a.edge_index, b.edge_index) for a, b in zip(of.graphs(), graphs, strict=True)
    )
    check_data(graphs)
    # three meanings of y
    numbers = open_data([Data(edge_index=edge, num_nodes=2, y=torch.tensor([[0.5, 1.0]]))] * 2).read()
    assert (
        numbers.targets.tolist() == [[0.5, 1], [0.5, 1]] and numbers.target_names == ("target0", "target1") and numbers.y is None
    )
    nodes = open_data(
        [Data(edge_index=edge, num_nodes=2, y=torch.tensor([0.5, 1])), Data(edge_index=edge, num_nodes=3, y=torch.ones(3))]
    )
    assert nodes.read().node_targets.tolist() == [0.5, 1, 1, 1, 1] and nodes.read().targets is None
    for bad, says in (
        (Data(x=torch.ones(2, 3), edge_index=edge), "graph 2 of the list has 3 columns in x, graph 0 has 2"),
        (Data(edge_index=edge, num_nodes=2), "graph 0 of the list has x, and graph 2 has none"),
        (Data(x=torch.ones(2, 2), edge_index=edge + 1), "graph 2 of the list has an edge to node 2, outside 0 to 1"),
        (Data(x=torch.ones(0, 2), edge_index=edge[:, :0]), "graph 2 of the list has no node"),
        (Data(x=torch.tensor([[0, np.inf], [0, 0]]), edge_index=edge), "node feature 'x1' of node 0 in graph '2' is inf"),
        (17, "graph 2 of the list is a int"),
    ):
        with pytest.raises(UserError, match=says):
            GivenGraphSet.hold([Data(x=g.x, edge_index=g.edge_index) for g in graphs] + [bad])
    with pytest.raises(UserError, match="cannot use a list"):
        open_data([])


# -- 1-WL ----------------------------------------------------------------------------------------------------------------
def refined(of: GraphSet, rounds: int) -> tuple[list[Any], list[Any]]:
    """Colours of nodes and graphs as nested tuples: colour refinement as it is written, exact."""
    n = of.nodes
    colour: list[Any] = [tuple(of.x[v].tolist()) if of.x is not None else () for v in range(n)]
    for _ in range(rounds):
        near: list[list[Any]] = [[] for _ in range(n)]
        for e, (u, v) in enumerate(of.edge_index.T.tolist()):
            near[v].append((colour[u], tuple(of.edge_x[e].tolist()) if of.edge_x is not None else ()))
        new = [(colour[v], tuple(sorted(near[v]))) for v in range(n)]
        names = {c: i for i, c in enumerate(sorted(set(new)))}
        colour = [names[c] for c in new]
    return colour, [tuple(sorted(colour[a:b])) for a, b in zip(of.ptr[:-1], of.ptr[1:], strict=True)]


def partition(values: Any) -> list[int]:
    """Numbers by first appearance."""
    seen: dict[Any, int] = {}
    return [seen.setdefault(v, len(seen)) for v in values]


@given(st.integers(0, 100_000), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_colours_against_tuples(seed: int, rounds: int, tags: int, edge_tags: int) -> None:
    of = drawn(seed, count=12, tags=tags, edge_tags=edge_tags, most=5)
    nodes, graphs = refined(of, rounds)
    *_, codes = wl_node_codes(of, rounds)
    assert partition(codes.tolist()) == partition(nodes)
    assert wl_colours(of, rounds).tolist() == partition(graphs)
    assert wl_colours(of, None).tolist() == partition(refined(of, 6)[1])


@given(st.integers(0, 100_000))
@settings(max_examples=25, deadline=None)
def test_colours_need_no_order_of_nodes(seed: int) -> None:
    of = drawn(seed, edge_tags=2)
    rng = np.random.default_rng(seed)
    place = np.concatenate([rng.permutation(n) + s for n, s in zip(of.sizes, of.ptr[:-1], strict=True)])
    x = np.empty_like(of.x)
    x[place] = of.x
    moved = replace(of, edge_index=place[of.edge_index], x=x, _cache={})
    assert np.array_equal(wl_colours(of), wl_colours(moved))
    *_, codes = wl_node_codes(of, 2)
    wide = replace(of, x=np.concatenate([of.x, np.zeros((of.nodes, 2), np.float32)], axis=1), _cache={})
    assert np.array_equal(codes, list(wl_node_codes(wide, 2))[-1])  # a column of zeros changes no code: sets can be compared


def test_colours_are_the_same_in_every_process() -> None:
    code = (
        "from latticework.core.dataset import open_data\nfrom latticework.data.graphs import wl_node_codes\n"
        "of = open_data('rings-and-cliques(graphs=6)').read()\nprint(int(list(wl_node_codes(of, 2))[-1].sum()))"
    )
    *_, codes = wl_node_codes(open_data("rings-and-cliques(graphs=6)").read(), 2)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert int(said.stdout) == int(codes.sum())


def test_known_twins(tmp_path: Path) -> None:
    """Two triangles and a hexagon are WL twins; with a third graph they are not."""
    import networkx as nx

    graphs = [nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3)), nx.cycle_graph(6), nx.path_graph(6)]
    (tmp_path / "t.g6").write_bytes(b"".join(nx.to_graph6_bytes(g, header=False) for g in graphs))
    of = read_graph6(tmp_path / "t.g6")
    assert wl_colours(of).tolist() == [0, 0, 1] == wl_colours(of, None).tolist()
    labelled = replace(of, y=np.array([0, 1, 1]), classes=("a", "b"), folds=np.array([1, 2, 1], np.int8))
    assert twin_pairs(labelled) == (1, 1) and facts(labelled)["duplicates"] == 2
    assert any("2 graphs have a WL twin: 1 pairs; 1 of them have different classes" in line for line in remarks(labelled))
    assert any(
        "2 of 3 test graphs (66.7%) have a WL twin in train, over the published folds" in line for line in remarks(labelled)
    )


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_twins_are_counted_pair_by_pair(seed: int) -> None:
    of = drawn(seed, count=25, tags=1, most=4)
    c, y = wl_colours(of, None), of.y
    pairs = [(i, j) for i in range(25) for j in range(i) if c[i] == c[j]]
    assert twin_pairs(of) == (len(pairs), sum(y[i] != y[j] for i, j in pairs))
    folds = np.random.default_rng(seed).integers(0, 4, 25)
    across = sum(bool(folds[i]) and any(c[i] == c[j] and folds[i] != folds[j] for j in range(25)) for i in range(25))
    assert twins_across(of, folds) == across


# -- check ---------------------------------------------------------------------------------------------------------------
def test_check_names_what_is_odd() -> None:
    of = GraphSet(
        ("a", "b", "c"), np.array([2, 1, 2]), np.array([[0, 0, 1, 3, 3], [1, 1, 1, 4, 4]]),
        x=np.array([[1, 2, 5], [0, 3, 5], [1, 4, 5], [0, 5, 5], [1, 2, 5]], np.float32), features=("f", "g", "h"),
        y=np.array([0, -1, 1]), classes=("p", "q"), targets=np.array([[1.0], [np.nan], [3.0]]), target_names=("t",),
    )  # fmt: skip
    data = GivenGraphSet.hold(of)
    lines = "\n".join(data.check())
    for says in (
        "nodes, largest/median/smallest: [2, 2.0, 1]", "self-loops: 1", "repeated edges: 2", "graphs without edges: 1", "directed: True",
        "isolated nodes: 1", "labelled: 2", "class sizes: p 1, q 1", "feature g: 2 to 5", "constant features, which tell nothing: h",
        "target t: 1 to 3, mean 2; 1 unknown", "class 'p' has 1 graphs: ten folds leave some without it", "1 graphs have one node",
    ):  # fmt: skip
        assert says in lines, says


def test_folds_without_a_class_are_named() -> None:
    of = drawn(0, count=6)
    of = replace(of, y=np.array([0, 0, 1, 1, 1, 2]), classes=("a", "b", "c"), folds=np.array([1, 2, 1, 2, 1, 1], np.int8))
    lines = remarks(of)
    assert "outside of fold 1 no graph has class 'c': it cannot be predicted there" in lines
    assert "fold 2 tests no graph of class 'c'" in lines and sum("fold" in line and "class" in line for line in lines) == 5


def test_arrays_get_the_types_promised() -> None:
    of = drawn(1)
    other = replace(of, sizes=of.sizes.astype(np.int32), x=of.x.astype(np.float64), y=of.y.astype(np.int16), _cache={})
    assert GivenGraphSet.hold(other).digest() == GivenGraphSet.hold(of).digest()
    assert same(GivenGraphSet.hold(other).read(), of) and GivenGraphSet.hold(of).read() is of


# -- a fitted model meets a new file ---------------------------------------------------------------------------------------
def test_features_are_matched_by_name() -> None:
    x = np.array([[1, 0, 0.5, 9], [0, 1, 1.5, 9]], np.float32)
    of = GraphSet(("a",), np.array([2]), np.zeros((2, 0), np.int64), x=x, features=("atom=C", "atom=Xe", "degree", "extra"))
    wanted = {"features": ["degree", "atom=N", "atom=C"], "edge_features": ["bond=single"]}
    with pytest.warns(UserWarning) as said:
        got = match_features(of, wanted)
    assert got.x.tolist() == [[0.5, 0, 1], [1.5, 0, 0]] and got.features == ("degree", "atom=N", "atom=C")
    assert got.edge_x.shape == (0, 1) and schema_of(got)["features"] == wanted["features"]
    assert [str(warning.message) for warning in said] == [
        "1 nodes are atom=Xe, which the model never saw: nothing is told of it",
        "1 node features are none of the model's and left out: 'extra'",
    ]
    assert match_features(of, schema_of(of)) is of
    with pytest.raises(UserError, match="the model needs the node feature 'charge'; found atom=C, atom=Xe, degree, extra"):
        match_features(of, {"features": ["degree", "charge"]})
    with pytest.raises(UserError, match="needs the node features 'tag=1', 'tag=2'; there are no node features"):
        match_features(replace(of, x=None, features=()), {"features": ["tag=1", "tag=2"]})
    with pytest.warns(UserWarning, match="4 node features are none of the model's"):
        assert match_features(of, {"features": []}).x is None


# -- writing -------------------------------------------------------------------------------------------------------------
@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_export_reads_back_as_the_same(tmp_path_factory: pytest.TempPathFactory, seed: int, tags: int, edge_tags: int) -> None:
    of = drawn(seed, tags=tags, edge_tags=edge_tags)
    rng = np.random.default_rng(seed)
    if seed % 2:
        more = rng.normal(size=(of.nodes, 2)).astype(np.float32)
        x = more if of.x is None else np.concatenate([of.x, more], axis=1) if seed % 3 else np.concatenate([more, of.x], axis=1)
        names = ("charge", "a, b") if of.x is None or not seed % 3 else (*of.features, "charge", "a, b")
        of = replace(of, x=x, features=(*names, *of.features) if of.x is not None and not seed % 3 else names)
        of = replace(of, targets=np.where(rng.random((7, 2)) < 0.3, np.nan, rng.normal(size=(7, 2))), target_names=("u", "v"))
    if seed % 5 == 0:
        of = replace(of, y=np.where(of.y == 0, -1, 0), folds=rng.integers(0, 3, 7).astype(np.int8))
        of = replace(of, node_targets=rng.normal(size=of.nodes).astype(np.float32), classes=("no",))
    if of.y is not None and (of.y < 0).all():
        of = replace(of, y=None, classes=())
    folder = tmp_path_factory.mktemp("out") / "SET"
    write_graphs(of, folder)
    assert same(checked(read_tu(folder)), of)


def test_export_keeps_what_no_graph_uses(tmp_path: Path) -> None:
    """A part of a set lacks some of its tags and classes: the columns stay, and stay in their order."""
    of = drawn(3)
    part = of.take([int(np.flatnonzero(of.y == 1)[0])])
    part = replace(part, features=("tag=b", "tag=a", "tag=never"), edge_x=np.zeros((part.edge_index.shape[1], 1), np.float32))
    part = replace(part, edge_features=("bond",), _cache={})
    write_graphs(part, tmp_path / "PART")
    assert not (tmp_path / "PART" / "PART_node_attributes.txt").exists()
    assert same(read_tu(tmp_path / "PART"), part)
    alone = replace(part, edge_index=part.edge_index[:, :0], edge_x=part.edge_x[:0], _cache={})
    write_graphs(alone, tmp_path / "ALONE")
    assert same(read_tu(tmp_path / "ALONE"), alone)


def test_export_of_drawn_graphs(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = command("data", "export", "rings-and-cliques", tmp_path / "RC")
    assert status == 0, out + err
    assert same(open_data(tmp_path / "RC").read(), open_data("rings-and-cliques").read())
    status, out, err = command("data", "check", tmp_path / "RC")
    assert status == 0 and "class sizes: ring 100, clique 100" in out, out + err


# -- drawn and user's data as data sets ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["rings-and-cliques(graphs=60; seed=0)", "rings-and-cliques(graphs=9; seed=3)"])
def test_data(name: str) -> None:
    check_data(name)
    assert open_data(name).digest() != open_data("rings-and-cliques(graphs=60; seed=1)").digest()


def test_rings_and_cliques_are_what_they_say() -> None:
    import networkx as nx

    of = open_data("rings-and-cliques(graphs=40; seed=5)").read()
    assert np.bincount(of.y).tolist() == [20, 20]
    at = 0
    for g, data in enumerate(of.graphs()):
        graph = nx.Graph(data.edge_index.T.tolist())
        assert nx.is_connected(graph) and len(graph) == data.num_nodes
        cycles = sorted(len(c) for c in nx.minimum_cycle_basis(graph))
        assert cycles == ([5] if of.y[g] == 0 else [3, 3, 3])
        assert of.targets[g, 0] == sum(nx.triangles(graph).values()) / 3
        local = [nx.clustering(graph, v) for v in range(data.num_nodes)]
        assert np.allclose(of.node_targets[at : at + data.num_nodes], local)
        at += data.num_nodes


def test_recognised_by_content(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text("source,target\na,b\n")
    assert open_data(tmp_path / "edges.csv").kind == "graph"
    (tmp_path / "m.csv").write_text("id,SMILES,label\na,CC,x\n")
    assert open_data(tmp_path / "m.csv").kind == "graph-set"
    assert open_data(tmp_path).kind == "graph"  # edges.csv says what the folder is
    (tmp_path / "u.csv").write_text("user,item\na,x\n")
    assert open_data(tmp_path / "u.csv").kind == "ratings"
    (tmp_path / "notes.txt").write_text("some\nwords here\n")
    with pytest.raises(UserError, match="cannot tell what"):
        open_data(tmp_path / "notes.txt")
    two = tmp_path / "two"
    two.mkdir()
    (two / "a.txt").write_text(TEXT)
    (two / "b.txt").write_text(TEXT)
    with pytest.raises(UserError, match=r"holds several graph sets: 'a.txt', 'b.txt'; give the path of one"):
        open_data(two).read()


def test_identity(tmp_path: Path) -> None:
    one, two = tu_folder(tmp_path / "one"), tu_folder(tmp_path / "two")
    assert open_data(one).digest() == open_data(two).digest()
    (two / "TOY_graph_labels.txt").write_text("1\n1\n1\n")
    assert open_data(one).digest() != open_data(two).digest()
    (one / "readme.md").write_text("of no account")
    assert open_data(one).digest() == open_data(tu_folder(tmp_path / "three")).digest()


# -- molecules -----------------------------------------------------------------------------------------------------------
def test_smiles(tmp_path: Path) -> None:
    pytest.importorskip("rdkit")
    (tmp_path / "m.csv").write_text(
        "id,smiles,label,target,price\nethanol,CCO ,drink,1.5,3\nbenzene,c1ccccc1,not,,4\nneon,[Ne],,-2,5\nsalt,[Na+].[Cl-],not,0,1\n"
    )
    of = open_data(tmp_path / "m.csv").read()
    assert of.ids == ("ethanol", "benzene", "neon", "salt") and of.sizes.tolist() == [3, 6, 1, 2]
    assert of.features == (
        "atom=C",
        "atom=O",
        "atom=Ne",
        "atom=Na",
        "atom=Cl",
        "degree",
        "charge",
        "hydrogens",
        "aromatic",
        "in ring",
    )
    assert of.x[:3].tolist() == [[1, 0, 0, 0, 0, 1, 0, 3, 0, 0], [1, 0, 0, 0, 0, 2, 0, 2, 0, 0], [0, 1, 0, 0, 0, 1, 0, 1, 0, 0]]
    assert of.edge_index[:, :4].T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]] and of.edge_features == (
        "bond=single",
        "bond=aromatic",
    )
    assert of.x[-2:, 6].tolist() == [1, -1]
    assert of.classes == ("drink", "not") and of.y.tolist() == [0, 1, -1, 1]
    assert of.targets[:, 0].tolist()[0] == 1.5 and np.isnan(of.targets[1, 0]) and of.target_names == ("target",)
    assert any("nothing reads: price" in note for note in of.notes)
    named = open_data(tmp_path / "m.csv", {"target_column": "price", "label_column": "id"})
    assert named.read().targets[:, 0].tolist() == [3, 4, 5, 1] and named.read().classes == ("benzene", "ethanol", "neon", "salt")
    check_data(tmp_path / "m.csv")


def test_smiles_without_rdkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.csv").write_text("smiles\nCCO\n")
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(UserError, match=r"pip install 'latticework\[molecules\]'"):
        open_data(tmp_path / "m.csv").read()


def test_classes_of_a_list_of_graphs_may_be_text() -> None:
    import torch
    from torch_geometric.data import Data

    edges = torch.tensor([[0, 1], [1, 0]])
    for y in ("a", ["a"]):
        graphs = [Data(edge_index=edges, num_nodes=2, y=y), Data(edge_index=edges, num_nodes=2, y="b")]
        held = open_data(graphs).read()
        assert held.classes == ("a", "b") and held.y is not None and held.y.tolist() == [0, 1]
    signs = [Data(edge_index=edges, num_nodes=2, y=torch.tensor([i]), pos=torch.zeros(2, 3)) for i in (-1, 1, 1)]
    notes = " ".join(open_data(signs).read().notes)
    assert "1 graphs have a y below 0" in notes and "pos of the graphs is not read" in notes
    with pytest.raises(UserError, match="a y of 2 texts"):
        open_data([Data(edge_index=edges, num_nodes=2, y=["a", "b"])] * 2)


@pytest.mark.parametrize(
    ("name", "file", "column"),
    [("esol", "delaney-processed.csv", "measured log solubility in mols per litre"), ("freesolv", "SAMPL.csv", "expt")],
)
def test_smiles_against_the_published_arrays(mirror: Callable[[str], Path], name: str, file: str, column: str) -> None:
    pytest.importorskip("rdkit")
    ours = open_data(mirror(name) / file, {"target_column": column}).read()
    theirs = open_data(name).read()
    assert ours.features == theirs.features and ours.edge_features == theirs.edge_features
    for field in ("sizes", "edge_index", "x", "edge_x"):
        assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field
    assert np.allclose(
        ours.targets, theirs.targets, rtol=0, atol=5e-7
    )  # the arrays are float32, some cells of the CSV are longer
    assert match_features(ours, schema_of(theirs)) is ours


# -- published sets: what their SOURCE.md says ---------------------------------------------------------------------------
TU = {
    # graphs, nodes, undirected edges, class sizes, tags, largest, isolated, never tested
    "mutag": (188, 3371, 3721, {"0": 63, "2": 125}, 7, 28, 0, 8),
    "ptc": (344, 8792, 8931, {"0": 192, "1": 152}, 19, 109, 0, 4),
    "proteins": (1113, 43471, 81044, {"0": 663, "1": 450}, 3, 620, 5, 3),
    "nci1": (4110, 122747, 132753, {"0": 2053, "1": 2057}, 37, 111, 428, 0),
    "nci109": (4127, 122494, 132604, {"0": 2048, "1": 2079}, 38, 111, 474, 7),
    "enzymes": (600, 19580, 37282, {str(c): 100 for c in range(6)}, 3, 126, 106, 0),
    "imdbbinary": (1000, 19773, 96531, {"0": 500, "1": 500}, 0, 136, 0, 0),
    "imdbmulti": (1500, 19502, 98903, {"0": 500, "1": 500, "2": 500}, 0, 89, 0, 0),
}


@pytest.mark.parametrize("name", TU)
def test_tu_sets(mirror: Callable[[str], Path], name: str) -> None:
    mirror(f"tu-{name}")
    graphs, nodes, edges, classes, tags, largest, isolated, never = TU[name]
    data = open_data(f"tu-{name}")
    found = data.facts()
    assert (found["graphs"], found["nodes"], found["pairs joined"], found["class sizes"]) == (graphs, nodes, edges, classes)
    assert (found["features"], found["nodes, largest/median/smallest"][0], found["isolated nodes"]) == (tags, largest, isolated)
    assert (found["self-loops"], found["directed"], found["repeated edges"], found["folds"]) == (0, False, 0, 10)
    folds = data.read().folds
    assert int((folds == 0).sum()) == never and set(np.bincount(folds)[1:].tolist()) == {graphs // 10 if name != "nci1" else 411}


def test_a_published_set_in_full(mirror: Callable[[str], Path], tmp_path: Path) -> None:
    mirror("tu-mutag")
    check_data("tu-mutag")
    lines = open_data("tu-mutag").check()
    assert "the 10 published folds never test 8 of 188 graphs" in lines
    assert any("24 graphs have a WL twin: 15 pairs" in line for line in lines)
    open_data("tu-mutag").write(tmp_path / "MUTAG")
    assert same(open_data(tmp_path / "MUTAG").read(), open_data("tu-mutag").read())
    # the digests of the catalogue are of its files; by path the same graphs
    assert same(open_data(mirror("tu-mutag")).read(), open_data("tu-mutag").read())


def test_another_file_is_no_mutag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tu-mutag").mkdir()
    (tmp_path / "tu-mutag" / "MUTAG.txt").write_text(TEXT)
    monkeypatch.setenv("LATTICEWORK_DATA", str(tmp_path))
    with pytest.raises(UserError, match="is not the file of the catalogue"):
        open_data("tu-mutag").read()


@pytest.mark.parametrize(
    ("name", "molecules", "atoms", "bonds", "low", "high"),
    [("esol", 1128, 14991, 15428, -11.6, 1.58), ("freesolv", 642, 5600, 5385, -25.47, 3.43)],
)
def test_molecule_sets(
    mirror: Callable[[str], Path], name: str, molecules: int, atoms: int, bonds: int, low: float, high: float
) -> None:
    mirror(name)
    found, of = open_data(name).facts(), open_data(name).read()
    assert (found["graphs"], found["nodes"], found["pairs joined"]) == (molecules, atoms, bonds)
    assert (of.targets.min(), of.targets.max()) == (low, high)
    check_data(name)


def test_separation_sets(mirror: Callable[[str], Path]) -> None:
    mirror("graph-separation")
    for name, nodes, edges, alike in (
        ("exp", (33, 73), 72_530, 600), ("exp-pyg", (32, 64), 66_130, 600), ("cexp", (40, 81), 83_736, 300)
    ):  # fmt: skip
        of = open_data(f"graph-separation:{name}").read()
        found = facts(of)
        assert (len(of), found["pairs joined"], (int(of.sizes.min()), int(of.sizes.max()))) == (1200, edges, nodes)
        colours = wl_colours(of, None)
        assert int((colours[::2] == colours[1::2]).sum()) == alike and len(set(colours.tolist())) == 1200 - alike
        assert (of.y[::2] != of.y[1::2]).all() and (of.sizes[::2] == of.sizes[1::2]).all()


def test_eight_nodes_and_strongly_regular_graphs(mirror: Callable[[str], Path]) -> None:
    mirror("graph-separation")
    of = open_data("graph-separation:graph8c").read()
    assert len(of) == 11_117 and set(of.sizes.tolist()) == {8} and wl_colours(of, None).max() + 1 == 10_897
    assert twin_pairs(of)[0] == 312
    regular = open_data("graph-separation:sr251256").read()
    assert len(regular) == 15 and wl_colours(regular, None).tolist() == [0] * 15
    for data in regular.graphs():
        a = np.zeros((25, 25), np.int64)
        a[tuple(data.edge_index.numpy())] = 1
        eye = np.eye(25, dtype=np.int64)
        assert np.array_equal(a @ a, 12 * eye + 5 * a + 6 * (1 - eye - a))  # srg(25, 12, 5, 6)
