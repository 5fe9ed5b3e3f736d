"""The task graph-separation: pairs counted by buckets against all pairs one by one, published counts, batteries, commands."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.data.graphs import GivenGraphSet, from_data, wl_colours
from latticework.graphs.separation import Compared, GraphSeparation, Separator, near_pairs, renumbered
from latticework.testing import check_method, check_task

FINGERPRINTS = Path(__file__).parent / "fingerprints_spen.json"
RINGS = "rings-and-cliques(graphs=60; seed=0)"
Command = Callable[..., tuple[int, str, str]]


def of_networkx(graph: nx.Graph, y: int | None = None) -> Data:
    pairs = np.array(sorted(graph.edges())).reshape(-1, 2)
    edges = torch.from_numpy(np.concatenate([pairs, pairs[:, ::-1]]).T.copy())
    data = Data(edge_index=edges, num_nodes=graph.number_of_nodes())
    if y is not None:
        data.y = torch.tensor([y])
    return data


RING = nx.cycle_graph(6)
TRIANGLES = nx.disjoint_union(nx.cycle_graph(3), nx.cycle_graph(3))
EIGHT = nx.cycle_graph(8)
FOURS = nx.disjoint_union(nx.cycle_graph(4), nx.cycle_graph(4))


def told(name: str, data: Any, task: str = "graph-separation", seed: int = 0) -> tuple[dict[str, float], Any, Compared]:
    """(scores, answer, query) of a method on all graphs of a set."""
    opened = open_data(data)
    chosen: Any = task_of(task).for_data(opened)
    fold = chosen.fold(opened, "whole")
    run = Run(task=chosen, digest=opened.digest(), fold="whole", seed=seed)
    method: Any = entry_of(name)
    with run.seeded():
        model = method.fit(fold.train, None, run)
    answer = chosen.answer(model, fold.test.blind(), run)
    return {s.metric: s.value for s in chosen.score(answer, fold.test, run)}, answer, fold.test.query


# -- counting ------------------------------------------------------------------------------------------------------------------
def one_by_one(vectors: Any, gap: float) -> list[tuple[int, int]]:
    copies, graphs, _ = vectors.shape
    return [
        (g, h)
        for g, h in itertools.combinations(range(graphs), 2)
        if max(float(np.abs(vectors[c, g] - vectors[c, h]).sum()) for c in range(copies)) <= gap
    ]


@given(st.integers(1, 3), st.integers(0, 25), st.integers(0, 4), st.sampled_from([1, 3, 1000]), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_pairs_by_buckets_are_those_of_all_pairs(copies: int, graphs: int, width: int, levels: int, seed: int) -> None:
    """Whole numbers make ties, exact copies and distances that equal the gap; 1000 levels hardly any."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, levels + 1, (copies, graphs, width)).astype(float)
    for gap in (0.0, 1.0, 2.0, 150.0):
        wanted = one_by_one(vectors, gap)
        found = near_pairs(vectors, gap)
        assert found.count == len(wanted) and found.pairs is not None
        assert list(map(tuple, found.pairs.T.tolist())) == sorted(wanted)
        short = near_pairs(vectors, gap, most=max(len(wanted) - 1, -1))
        assert short.count == len(wanted) and (short.pairs is None or not wanted)


def test_rounding_of_the_sum_hides_no_pair() -> None:
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(2, 40, 6)) * 1e3, 2, axis=1)
    vectors += rng.normal(size=vectors.shape) * 1e-4
    for gap in (1e-4, 5e-4, 1e-3):
        assert near_pairs(vectors, gap).count == len(one_by_one(vectors, gap))


def test_few_pairs_are_compared_of_many() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1, 20_000, 3))
    vectors[0, 1::2] = vectors[0, ::2]
    found = near_pairs(vectors, 1e-3)
    assert found.count >= 10_000 and found.looked < 200_000  # of 200 million
    same = near_pairs(np.zeros((1, 5000, 2)), 1e-3)
    assert same.count == 5000 * 4999 // 2 and same.pairs is None and same.looked == 0
    with pytest.raises(ValueError, match="graph 3 is not finite"):
        near_pairs(np.array([[[0.0], [1], [2], [np.nan]]]), 1e-3)
    assert near_pairs(np.zeros((1, 1, 2)), 1.0).count == 0


# -- the task ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", ["graph-separation", "graph-separation(pairs=consecutive; relabelled=5)"])
def test_battery(task: str) -> None:
    check_task(task, RINGS)


@pytest.mark.parametrize("name", ["wl-1", "degree-sequence", "untrained(backbone=gin(width=4; layers=2); copies=3)"])
def test_methods(name: str) -> None:
    check_method(name, RINGS, "graph-separation", fingerprints=FINGERPRINTS)


def test_which_pairs_are_asked() -> None:
    paired = [of_networkx(g, y) for g, y in ((RING, 0), (TRIANGLES, 1), (EIGHT, 1), (FOURS, 0))]
    task: Any = task_of("graph-separation")
    assert task.for_data(open_data(paired)).pairs == "consecutive"
    for changed in (
        [of_networkx(g, 0) for g in (RING, TRIANGLES)],
        [of_networkx(g, y) for g, y in ((RING, 0), (EIGHT, 1))],
        paired[:3],
        [of_networkx(g) for g in (RING, TRIANGLES)],
    ):
        assert task.for_data(open_data(changed)).pairs == "all"
    scores, answer, query = told("wl-1", paired)
    assert query.total == 2 and scores["unresolved"] == 2 and answer.pairs.tolist() == [[0, 2], [1, 3]]
    scores, answer, query = told("wl-1", paired, "graph-separation(pairs=all)")
    assert query.total == 6 and scores["unresolved"] == 2 and scores["separated"] == pytest.approx(4 / 6)
    with pytest.raises(UserError, match=r"even number of graphs, and there are 3; use pairs=all"):
        told("wl-1", paired[:3], "graph-separation(pairs=consecutive)")
    with pytest.raises(UserError, match="one graph alone"):
        told("wl-1", paired[:1])


def test_a_relabelled_graph_is_the_same_graph() -> None:
    rng = np.random.default_rng(0)
    graph = nx.gnp_random_graph(9, 0.4, seed=2)
    data = of_networkx(graph)
    data.x = torch.arange(9.0)[:, None]
    data.edge_attr = data.x[data.edge_index[0]] * 100 + data.x[data.edge_index[1]]
    again = renumbered(data, rng)
    assert not torch.equal(again.x, data.x)
    u, v = again.x[again.edge_index]
    assert torch.equal(again.edge_attr, u * 100 + v)  # edges keep what they carry
    there = {(int(a), int(b)) for a, b in zip(u, v, strict=True)}
    assert there == {(int(a), int(b)) for a, b in data.edge_index.T}


class ByNumbering:
    """Separates by the first node's degree and by nothing that a graph is."""

    copies, gap = 1, 0.5

    def __init__(self, method: Any) -> None:
        self.method = method

    def vectors(self, part: Any, copy: int, rows: Any) -> Any:
        return np.array([[float((part.data[r].edge_index[0] == 0).sum())] for r in rows.tolist()])


def test_who_separates_by_numbering_is_found_out() -> None:
    data = open_data([of_networkx(nx.star_graph(5)), of_networkx(nx.path_graph(6)), of_networkx(nx.star_graph(6))])
    task: Any = GraphSeparation().for_data(data)
    part = task.fold(data, "whole").test
    model: Any = ByNumbering(entry_of("wl-1"))
    assert isinstance(model, Separator)
    answer = task.answer(model, part, Run(task=task))
    scores = {s.metric: s.value for s in task.score(answer, part, None)}
    assert scores["told by numbering"] >= 1 and scores["unresolved"] == 0
    assert told("wl-1", data)[0]["told by numbering"] == told("degree-sequence", data)[0]["told by numbering"] == 0


def test_vectors_of_a_wrong_shape_or_not_finite_are_named() -> None:
    data = open_data([of_networkx(RING), of_networkx(TRIANGLES)])
    task: Any = GraphSeparation().for_data(data)
    part = task.fold(data, "whole").test
    model: Any = ByNumbering(entry_of("wl-1"))
    model.vectors = lambda part, copy, rows: np.zeros(3)
    with pytest.raises(UserError, match=r"wl-1 gave \[3\] instead of a vector for each of 4 graphs"):
        task.answer(model, part, Run(task=task))
    model.vectors = lambda part, copy, rows: np.full((len(rows), 2), np.inf)
    with pytest.raises(UserError, match="a vector that is not finite"):
        task.answer(model, part, Run(task=task))


# -- what separates ---------------------------------------------------------------------------------------------------------------
def test_message_passing_is_bounded_by_its_colours_and_egos_are_not() -> None:
    graphs = [of_networkx(g) for g in (RING, TRIANGLES, EIGHT, FOURS)]
    colours = wl_colours(from_data(graphs), None)
    assert colours[0] == colours[1] and colours[2] == colours[3] and colours[0] != colours[2]
    small = "width=8; layers=4; hidden=16"
    for backbone, unresolved in (
        ("gin(width=8; layers=3)", [[0, 2], [1, 3]]),
        (f"spen(norm=none; {small})", [[0, 0, 2], [2, 3, 3]]),  # one hop: paths of three in all rings but triangles
        (f"spen(norm=none; hops=2; {small})", [[], []]),
        (f"ign({small})", [[0, 2], [1, 3]]),  # global nets of this order see no more than 1-WL
    ):
        scores, answer, _ = told(f"untrained(backbone={backbone}; copies=5)", graphs)
        assert answer.pairs.tolist() == unresolved, backbone
        assert scores["told by numbering"] == 0


def test_more_copies_tell_no_fewer_apart() -> None:
    found = [told(f"untrained(backbone=gin(width=2; layers=1); copies={copies}; gap=0.05)", RINGS)[0] for copies in (1, 4, 16)]
    pairs = [scores["unresolved"] for scores in found]
    assert pairs[0] > pairs[1] >= pairs[2]  # the first networks are the same ones


def test_an_untrained_network_that_is_saved_is_the_same(tmp_path: Path) -> None:
    from latticework.core import store

    data = open_data(RINGS)
    task: Any = task_of("graph-separation").for_data(data)
    fold = task.fold(data, "whole")
    run = Run(task=task, digest=data.digest(), fold="whole", seed=3)
    with run.seeded():
        model = entry_of("untrained(copies=2; backbone=gin(width=4; layers=2))").fit(fold.train, None, run)  # type: ignore[attr-defined]
    store.save_model(model, tmp_path / "model")
    again: Any = store.load_model(tmp_path / "model")
    rows = np.arange(10)
    for copy in range(2):
        assert np.array_equal(model.vectors(fold.test, copy, rows), again.vectors(fold.test, copy, rows))
    assert not np.array_equal(model.vectors(fold.test, 0, rows), model.vectors(fold.test, 1, rows))
    assert model.parameters() == 2 * sum(p.numel() for p in model.net(0).parameters())


def test_a_backbone_of_another_kind_is_refused() -> None:
    method: Any = entry_of("untrained(backbone=gcn)")
    assert "none for whole graphs" in method.refuses(GraphSeparation(), {})
    with pytest.raises(UserError, match="none for whole graphs; use gin, spen or k-path"):
        told("untrained(backbone=gcn)", [of_networkx(RING), of_networkx(EIGHT)])


# -- published sets -----------------------------------------------------------------------------------------------------------------
def test_published_counts_of_colour_refinement(mirror: Callable[[str], Path]) -> None:
    """graph8c: 312 of 61,788,286 pairs; EXP-pyg: all 600; CEXP: 300 of 600; SR25: all 105."""
    mirror("graph-separation")
    for name, total, unresolved in (
        ("graph8c", 61_788_286, 312),
        ("exp-pyg", 600, 600),
        ("cexp", 600, 300),
        ("sr251256", 105, 105),
    ):
        scores, answer, query = told("wl-1", f"graph-separation:{name}", "graph-separation(relabelled=5)")
        assert (query.total, scores["unresolved"], answer.pairs.shape[1]) == (total, unresolved, unresolved), name
        assert scores["told by numbering"] == 0


# -- the commands -------------------------------------------------------------------------------------------------------------------
def test_as_typed(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    GivenGraphSet.hold([of_networkx(g) for g in (RING, TRIANGLES, EIGHT, FOURS)]).write(tmp_path / "rings")
    untrained = "untrained(copies=2; backbone=spen(hops=2; width=4; layers=2; hidden=8))"
    status, out, err = command("compare", "rings", "-m", untrained, "-s", "task=graph-separation", "--repeats", "2")
    assert status == 0 and "wl-1" in out and "degree-sequence" in out and "unresolved" in out, out + err
    status, out, err = command("fit", "wl-1", "rings", "-s", "task=graph-separation", "-o", "MODEL")
    assert status == 0, out + err
    status, out, err = command("predict", "MODEL", "rings", "-o", "unresolved.csv")
    assert status == 0, out + err
    table = pl.read_csv("unresolved.csv")
    assert table.columns == ["graph", "other"] and len(table) == 2
