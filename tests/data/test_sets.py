"""The kind sets: reading, writing, checks, generators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.drawn_graphs import NeighbourSecondMinimum, PnaMultitask, adjacency, second_smallest, targets_of, toggled
from latticework.data.graphs import checked
from latticework.data.sets import DrawnSets, GivenSets, SecondMinimum, SetFiles, Sets, SumModulo, facts, read_sets, write_sets
from latticework.testing import check_data

TABLE = "set,value,target,split\na,0.5,1,train\na,0.25,1,train\nb,2,,\nc,-1.5,3.5,TEST\nc,4,3.5,TEST\nc,4,3.5,TEST\n"


def some(seed: int = 0, empty: bool = True) -> Sets:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0 if empty else 1, 5, 12)
    y = rng.normal(size=12)
    y[3] = np.nan
    values = rng.normal(size=(int(sizes.sum()), 2)).astype(np.float32)
    return Sets(tuple(f"s{i}" for i in range(12)), sizes, values, ("a", "b"), y, rng.integers(-1, 3, 12).astype(np.int8))


def same(a: Sets, b: Sets) -> bool:
    arrays = ((a.sizes, b.sizes), (a.values, b.values), (a.y, b.y), (a.split, b.split))
    equal = all(
        (x is None) == (y is None) and (x is None or np.array_equal(x, y, equal_nan=x.dtype.kind == "f")) for x, y in arrays
    )  # type: ignore[arg-type]
    return equal and a.ids == b.ids and a.features == b.features


def test_a_table_as_people_write_it(tmp_path: Path) -> None:
    (tmp_path / "sets.csv").write_text(TABLE)
    sets = read_sets(tmp_path)
    assert sets.ids == ("a", "b", "c") and sets.sizes.tolist() == [2, 1, 3] and sets.features == ("value",)
    assert sets.values[:, 0].tolist() == [0.5, 0.25, 2, -1.5, 4, 4] and sets.values.dtype == np.float32
    assert sets.y is not None and sets.y[[0, 2]].tolist() == [1, 3.5] and np.isnan(sets.y[1])
    assert sets.split is not None and sets.split.tolist() == [0, -1, 2]
    # lines of a set need not stand together; ids are text
    (tmp_path / "sets.csv").write_text("Set,x,y\n01,1,5\n1,2,6\n01,3,5\n")
    sets = read_sets(tmp_path / "sets.csv")
    assert sets.ids == ("01", "1") and sets.values[:, 0].tolist() == [1, 3, 2] and "put together" in sets.notes[0]


def test_an_npz_as_people_write_it(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "sets.npz",
        values=np.array([1, 2, 3]),
        sizes=np.array([2, 0, 1]),
        target=np.array([1.0, np.nan, 2]),
        more=np.zeros(2),
    )
    sets = read_sets(tmp_path)
    assert sets.ids == ("0", "1", "2") and sets.values.tolist() == [[1], [2], [3]] and sets.features == ("value",)
    assert "more" in sets.notes[0] and facts(sets)["empty"] == 1 and facts(sets)["labelled"] == 2
    lines = open_data(tmp_path).check()
    assert any("1 sets are empty" in line for line in lines)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.booleans())
def test_writing_reads_back_as_the_same(tmp_path_factory: pytest.TempPathFactory, seed: int, empty: bool) -> None:
    to = tmp_path_factory.mktemp("sets")
    sets = some(seed, empty)
    write_sets(sets, to)
    assert same(read_sets(to), sets)
    assert (to / "sets.npz").exists() == bool((sets.sizes == 0).any())
    write_sets(sets, to / "other.npz")
    assert same(read_sets(to / "other.npz"), sets)


def test_taking_some() -> None:
    sets = some()
    rows = np.array([7, 0, 7, 2])
    taken = sets.take(rows)
    for k, i in enumerate(rows.tolist()):
        assert np.array_equal(taken.values[taken.ptr[k] : taken.ptr[k + 1]], sets.values[sets.ptr[i] : sets.ptr[i + 1]])
    assert taken.ids == ("s7", "s0", "s7", "s2") and np.array_equal(taken.y, sets.y[rows], equal_nan=True)  # type: ignore[index, arg-type]
    assert len(sets.take(np.zeros(0, np.int64))) == 0 and sets.hidden().y is None and sets.hidden().split is None


def test_duplicates_are_counted_in_any_order() -> None:
    values = np.array([[1], [2], [2], [1], [1], [1], [2]], np.float32)
    sets = Sets(("a", "b", "c"), np.array([2, 2, 3]), values)
    assert facts(sets)["duplicates"] == 1


def test_data_sets(tmp_path: Path) -> None:
    for name in (
        "second-minimum(sets=50)",
        "sum-modulo(sets=50; modulus=3)",
        "pna-multitask(graphs=6)",
        "neighbour-second-minimum(graphs=3; nodes=12)",
    ):
        check_data(name)
    data = open_data(some())
    assert isinstance(data, GivenSets)
    check_data(data)
    write_sets(some(), tmp_path / "mine")
    read = open_data(str(tmp_path / "mine"))
    assert isinstance(read, SetFiles)
    check_data(read)


def test_second_minimum_is_the_second_smallest() -> None:
    data = SecondMinimum(sets=300, smallest=1, largest=9, seed=3)
    sets = data.read()
    assert sets.y is not None and set(sets.sizes.tolist()) == set(range(1, 10))
    for a, b, y in zip(sets.ptr[:-1], sets.ptr[1:], sets.y, strict=True):
        assert y == (np.sort(sets.values[a:b, 0])[1] if b - a > 1 else 1)
    assert data.digest() != data.but(seed=4).digest()
    drawn = data.draw(np.array([4, 0, 64]), np.random.default_rng(0))
    assert drawn.sizes.tolist() == [4, 0, 64] and drawn.y is not None and drawn.y[1] == 1
    with pytest.raises(UserError, match="smallest=9 is above largest=3"):
        SecondMinimum(smallest=9, largest=3).read()


def test_sum_modulo_counts() -> None:
    sets = SumModulo(sets=200, modulus=3).read()
    assert sets.y is not None and set(np.unique(sets.values)) == {0, 1}
    for a, b, y in zip(sets.ptr[:-1], sets.ptr[1:], sets.y, strict=True):
        assert y == sets.values[a:b].sum() % 3


def test_the_second_smallest_of_neighbours() -> None:
    graphs = checked(NeighbourSecondMinimum(graphs=4, nodes=15, p=0.2).read())
    assert graphs.x is not None and graphs.node_targets is not None
    u, v = graphs.edge_index
    for node in range(graphs.nodes):
        mine = np.sort(graphs.x[u[v == node], 0])
        assert graphs.node_targets[node] == (mine[1] if len(mine) > 1 else 1)
    assert second_smallest(np.zeros(0, np.float32), np.zeros(0, np.int64), 2).tolist() == [1, 1]


def test_the_targets_of_pna_against_networkx() -> None:
    import networkx as nx

    rng = np.random.default_rng(0)
    for family in ("barabasi-albert", "tree", "grid", "lobster"):
        joined, value = adjacency(family, 12, rng), rng.random(12)
        graph = nx.from_numpy_array(joined)
        nodes, (connected, diameter, radius) = targets_of(joined, value, 3)
        assert nodes["eccentricity"].tolist() == [nx.eccentricity(graph)[i] for i in range(12)]
        assert nodes["sssp"].tolist() == [nx.single_source_shortest_path_length(graph, 3)[i] for i in range(12)]
        np.testing.assert_allclose(nodes["laplacian"], nx.laplacian_matrix(graph).toarray() @ value)
        assert connected == 1 and diameter == nx.diameter(graph)
        np.testing.assert_allclose(radius, max(abs(nx.adjacency_spectrum(graph))), rtol=1e-5)
    apart = np.zeros((5, 5), bool)
    apart[0, 1] = apart[1, 0] = True
    nodes, (connected, diameter, _) = targets_of(apart, np.ones(5), 0)
    assert connected == 0 and diameter == 1 and nodes["sssp"][:2].tolist() == [0, 1] and np.isnan(nodes["sssp"][2:]).all()


@pytest.mark.parametrize(
    "family", ["erdos-renyi", "barabasi-albert", "grid", "caveman", "tree", "ladder", "line", "star", "caterpillar", "lobster"]
)
def test_families_have_the_nodes_asked_for(family: str) -> None:
    for n in (4, 7, 16):
        joined = adjacency(family, n, np.random.default_rng(n))
        assert joined.shape == (n, n) and np.array_equal(joined, joined.T) and not joined.diagonal().any()
        if family in ("tree", "line", "star", "caterpillar", "lobster"):
            assert joined.sum() == 2 * (n - 1)


def test_toggling_keeps_the_mean_degree() -> None:
    rng = np.random.default_rng(0)
    before = adjacency("grid", 30, rng)
    after = [toggled(before, rng) for _ in range(200)]
    assert abs(np.mean([a.sum() for a in after]) / before.sum() - 1) < 0.03
    assert 0.05 < np.mean([(before & ~a).sum() / before.sum() for a in after]) < 0.15


def test_pna_multitask_is_what_it_says() -> None:
    graphs = checked(PnaMultitask(graphs=12, node_target="sssp").read())
    assert graphs.features == ("value", "source") and graphs.targets is not None and graphs.x is not None
    assert (np.add.reduceat(graphs.x[:, 1], graphs.ptr[:-1]) == 1).all()
    assert graphs.sizes.min() >= 15 and graphs.sizes.max() <= 24
    assert graphs.node_targets is not None and (graphs.node_targets[graphs.x[:, 1] == 1] == 0).all()
    with pytest.raises(UserError, match="above largest"):
        PnaMultitask(smallest=30).read()


def test_given_sets_are_looked_at() -> None:
    fine = some()
    from dataclasses import replace

    for bad, words in (
        (replace(fine, ids=("a",) * 12), "each of its own"),
        (replace(fine, sizes=fine.sizes + 1), "the sizes add up"),
        (replace(fine, features=("a",)), "1 features are named"),
        (replace(fine, values=fine.values * np.float32(np.nan)), "a value is not finite"),
        (replace(fine, y=np.full(12, np.inf)), "one finite number a set"),
    ):
        with pytest.raises(UserError, match=words):
            GivenSets.hold(bad)
    assert issubclass(SecondMinimum, DrawnSets)


def test_as_typed(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "sets.csv").write_text(TABLE)
    status, out, err = command("data", "check", tmp_path)
    assert status == 0 and "sets: 3" in out and "set-regression" in out, out + err
    status, out, err = command("data", "export", "second-minimum", tmp_path / "out", "-s", "sets=20")
    assert status == 0, out + err
    assert len(read_sets(tmp_path / "out")) == 20
