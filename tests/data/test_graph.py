"""Users' graphs: what a person writes in a spreadsheet is read without loss, and said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import polars as pl
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import latticework as lw
from latticework.core.errors import UserError
from latticework.data.clients import gather
from latticework.data.graph import Graph, degrees, finish, local_homophily, read_graph, undirected_pairs, write_graph


@pytest.fixture
def spreadsheet(tmp_path: Path) -> Path:
    """Text ids, another order of columns, a BOM, CRLF, semicolons, missing labels, a category, a split column."""
    nodes = "Colour;split;Label;ID;size\r\nred;train;cat;Anna B.;1,5\r\n;test;;Ü 2;2\r\nblue;;dog;003;3\r\nred;valid;dog;4;4\r\n"
    edges = "Weight,target,source\r\n1.5,Ü 2,Anna B.\r\n2,003,Ü 2\r\n1,4,003\r\n1,003,4\r\n"
    (tmp_path / "nodes.csv").write_bytes(b"\xef\xbb\xbf" + nodes.replace("1,5", "1.5").encode())
    (tmp_path / "edges.csv").write_bytes(b"\xef\xbb\xbf" + edges.encode())
    return tmp_path


def test_a_spreadsheet_is_read_as_it_was_meant(spreadsheet: Path) -> None:
    graph = read_graph(spreadsheet)
    assert graph.ids == ("Anna B.", "Ü 2", "003", "4")
    assert graph.classes == ("cat", "dog") and graph.y is not None and graph.y.tolist() == [0, -1, 1, 1]
    assert graph.edge_index.tolist() == [[0, 1, 2, 3], [1, 2, 3, 2]]
    assert graph.weight is not None and graph.weight.tolist() == [1.5, 2, 1, 1]
    assert graph.features == ("Colour=", "Colour=blue", "Colour=red", "size")
    assert graph.x is not None and graph.x[:, 3].tolist() == [1.5, 2, 3, 4] and graph.x[1, :3].tolist() == [1, 0, 0]
    assert graph.fixed is not None and graph.fixed.tolist() == [0, 2, -1, 1]
    said = "; ".join(graph.notes)
    assert "1 nodes have no label" in said and "'Colour' is categorical: 3 one-hot features" in said
    assert graph.directed and "directed: 2 of 4 edges lack their reverse" in said


def test_direction_can_be_declared(spreadsheet: Path) -> None:
    graph = read_graph(spreadsheet, directed=False)
    assert not graph.directed and graph.edge_index.shape[1] == 6 and "2 reverse edges added" in "; ".join(graph.notes)
    assert graph.weight is not None and graph.weight[-2:].tolist() == [1.5, 2]
    assert read_graph(spreadsheet, directed=True).edge_index.shape[1] == 4


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(2, 12)), int(rng.integers(1, 30))
    graph = finish(
        Graph(
            rng.integers(0, n, (2, m)), tuple(f"a,\"{i}\" b" for i in range(n)), x=rng.normal(size=(n, 2)).astype(np.float32),
            y=np.concatenate([[0, 1], rng.integers(-1, 2, n - 2)]).astype(np.int64), classes=("x;y", "z"), features=("p", "q r"),
            weight=rng.random(m).astype(np.float32), fixed=rng.integers(-1, 3, n).astype(np.int8),
        ),
        True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("g") / "out"
    write_graph(graph, folder)
    again = read_graph(folder, directed=True)
    assert again.ids == graph.ids and again.classes == graph.classes and again.features == graph.features
    for a, b in ((again.edge_index, graph.edge_index), (again.y, graph.y), (again.fixed, graph.fixed)):
        assert np.array_equal(np.asarray(a), np.asarray(b))
    for a, b in ((again.x, graph.x), (again.weight, graph.weight)):
        assert np.allclose(np.asarray(a), np.asarray(b), rtol=1e-6)


def test_several_labels_a_node(tmp_path: Path) -> None:
    (tmp_path / "nodes.csv").write_text("id,labels\na,red|big\nb,\nc,small\n")
    (tmp_path / "edges.csv").write_text("source,target\na,b\nb,c\n")
    graph = read_graph(tmp_path)
    assert graph.multi_label and graph.classes == ("big", "red", "small")
    assert graph.y is not None and graph.y.astype(int).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert graph.labelled.tolist() == [True, False, True]


def test_other_forms_hold_the_same_graph(tmp_path: Path, make_blocks: Callable[..., Graph]) -> None:
    graph = make_blocks(n=20)
    pairs = undirected_pairs(graph)
    pl.DataFrame({"source": graph.edge_index[0], "target": graph.edge_index[1]}).write_parquet(tmp_path / "edges.parquet")
    matrix = sp.coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(20, 20))
    scipy.io.mmwrite(tmp_path / "m.mtx", matrix, symmetry="general")
    g = nx.Graph()
    g.add_nodes_from((str(i), {"label": graph.classes[c]}) for i, c in enumerate(graph.y.tolist()))  # type: ignore[union-attr]
    g.add_edges_from((str(a), str(b)) for a, b in pairs.T)
    nx.write_graphml(g, tmp_path / "g.graphml")
    nx.write_gml(g, tmp_path / "g.gml")
    for name, directed in (("edges.parquet", None), ("m.mtx", False), ("g.graphml", None), ("g.gml", None)):
        found = read_graph(tmp_path / name, directed)
        names = {i: int(i) - (name == "m.mtx") for i in found.ids}
        edges = {frozenset((names[found.ids[a]], names[found.ids[b]])) for a, b in found.edge_index.T}
        assert edges == {frozenset((int(a), int(b))) for a, b in pairs.T}, name
        assert not found.directed
    assert read_graph(tmp_path / "g.graphml").classes == graph.classes


def test_a_lone_edge_list_names_its_nodes(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("from,to\nx,y\ny,x\nz,x\n")
    graph = read_graph(tmp_path / "e.csv")
    assert sorted(graph.ids) == ["x", "y", "z"] and "no nodes.csv" in graph.notes[0]


def test_numbers_of_graphs_made_in_python_are_looked_at() -> None:
    import torch
    from torch_geometric.data import Data

    edge_index, x = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.ones(3, 2)
    x[2, 1] = float("nan")
    with pytest.raises(UserError, match="feature 'x1' of node '2' is nan"):
        lw.dataset(Data(edge_index=edge_index, x=x, num_nodes=3))
    for bad in (float("nan"), -1.0, float("inf")):
        data = Data(edge_index=edge_index, edge_weight=torch.tensor([1.0, bad, 1.0]), num_nodes=3)
        with pytest.raises(
            UserError, match=r"the edge from '1' to '2' has weight .* \(1 such\); weights are finite and at least 0"
        ):
            lw.dataset(data)
    graph = finish(Graph(edge_index.numpy(), ("a", "b", "c"), x=np.ones((3, 1), np.float32), features=("size",)), None)
    broken = replace(graph, x=np.array([[1], [np.inf], [1]], np.float32), _cache={})
    with pytest.raises(UserError, match="feature 'size' of node 'b' is inf"):
        lw.dataset(broken)
    with pytest.raises(UserError, match="client 'two': feature 'size' of node 'b' is inf"):
        gather({"one": graph, "two": broken})


def test_a_pyg_data_is_taken_as_it_is() -> None:
    import torch
    from torch_geometric.data import Data

    data = Data(x=torch.eye(4), y=torch.tensor([0, 1, 0, 1]), edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]))
    data.train_mask = torch.tensor([True, True, False, False])
    data.val_mask, data.test_mask = torch.tensor([False, False, True, False]), torch.tensor([False, False, False, True])
    given_graph = lw.dataset(data)
    assert given_graph.kind == "graph" and given_graph.digest() == lw.dataset(data.clone()).digest()
    assert given_graph.read().fixed.tolist() == [0, 0, 1, 2]


def test_degrees_and_homophily_by_hand() -> None:
    graph = finish(
        Graph(np.array([[0, 1, 1, 2, 2], [1, 0, 2, 2, 3]]), tuple("abcde"), y=np.array([0, 0, 1, 1, -1]), classes=("p", "q")),
        None,
    )
    assert degrees(graph).tolist() == [1, 2, 2, 1, 0]
    assert local_homophily(graph)[:4].tolist() == [1.0, 0.5, 0.5, 1.0] and np.isnan(local_homophily(graph)[4])


def test_the_identity_is_the_bytes_not_the_place(graph_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(graph_folder, tmp_path / "elsewhere")
    first, moved = lw.dataset(graph_folder), lw.dataset(tmp_path / "elsewhere")
    assert first.digest() == moved.digest()
    with (tmp_path / "elsewhere" / "edges.csv").open("a") as file:
        file.write("node 0,node 5\n")
    assert lw.dataset(tmp_path / "elsewhere").digest() != first.digest()
    assert lw.dataset(graph_folder, directed=True).digest() != first.digest()


def test_a_million_classes_are_refused_at_once(tmp_path: Path) -> None:
    n = 1_000_000
    pl.DataFrame({"id": range(n), "label": range(n)}).write_csv(tmp_path / "nodes.csv")
    (tmp_path / "edges.csv").write_text("source,target\n0,1\n")
    with pytest.raises(UserError, match="1000000 different values"):
        read_graph(tmp_path)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("planetoid-cora", {"nodes": 2708, "pairs joined": 5278, "features": 1433, "classes": 7, "edge homophily": 0.810}),
        ("planetoid-citeseer", {"nodes": 3327, "pairs joined": 4552, "features": 3703, "classes": 6}),
        ("geom-gcn:texas", {"nodes": 183, "pairs joined": 279, "features": 1703, "edge homophily": 0.0609, "directed": True}),
        ("geom-gcn:film", {"nodes": 7600, "pairs joined": 26659, "features": 932, "node homophily": 0.2199}),
        ("heterophilous:minesweeper", {"nodes": 10000, "pairs joined": 39402, "features": 7, "edge homophily": 0.6828}),
        ("heterophilous:chameleon", {"nodes": 890, "pairs joined": 8854, "edge homophily": 0.2361}),
        ("citation-directed:cora", {"nodes": 2708, "edges as written": 5429, "directed": True}),
        ("blogcatalog", {"nodes": 10312, "pairs joined": 333983, "classes": 39, "multi-label": True}),
        ("musae-facebook", {"nodes": 22470, "pairs joined": 170823, "classes": 4, "edge homophily": 0.885}),
    ],
)
def test_the_catalogue_has_the_published_counts(name: str, facts: dict[str, Any], mirror: Callable[[str], Path]) -> None:
    mirror(name.partition(":")[0])
    found = lw.dataset(name).facts()
    assert {k: found[k] for k in facts} == {k: pytest.approx(v, abs=2e-3) for k, v in facts.items()}


@given(
    st.lists(
        st.sampled_from(["0", "7", "07", "+7", "12", "1e3", "1000", "-3", "x", "99999999999", " "]),
        min_size=1,
        max_size=12,
        unique=True,
    ),
    st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_ids_are_compared_as_text_however_they_are_read(ids: list[str], seed: int) -> None:
    from latticework.data.graph import coded

    rng = np.random.default_rng(seed)
    columns = [
        pl.Series([["7", "07", "x", "12", "5"][int(i)] for i in rng.integers(0, 5, 6)]),
        pl.Series(rng.choice(ids, 6).tolist()),
    ]
    names, codes = coded(columns, pl.Series("id", ids))
    place = {text: i for i, text in enumerate(ids)}
    assert names.to_list() == ids
    assert [c.tolist() for c in codes] == [[place.get(t, -1) for t in column] for column in columns]
    found, own = coded(columns)
    assert found.to_list() == list(dict.fromkeys([*columns[0], *columns[1]]))
    assert [[found[int(i)] for i in c] for c in own] == [c.to_list() for c in columns]
