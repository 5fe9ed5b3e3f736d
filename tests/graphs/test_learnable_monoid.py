"""The tasks and recipes of the learnable monoid: batteries, parts, scores, the commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from latticework.core.dataset import Dataset, open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of
from latticework.core.run import Run
from latticework.core.task import Task
from latticework.data.graph_sets import GivenGraph
from latticework.data.graphs import GivenGraphSet
from latticework.data.sets import GivenSets, Sets
from latticework.graphs.set_tasks import NodeRegression, Numbers, SetRegression
from latticework.testing import check_method, check_task

FINGERPRINTS = Path(__file__).parent / "fingerprints_lcm.json"
SETS = SetRegression(tests=20, test_sizes=(4, 20))
NODES = NodeRegression(tests=3)
SET_FIELDS = "width=8; steps=6; look=3; batch=32"
NET_FIELDS = "width=8; layers=1; epochs=2"


@pytest.fixture(scope="module")
def drawn_sets() -> Dataset:
    return open_data("second-minimum(sets=200)")


@pytest.fixture(scope="module")
def drawn_graphs() -> Dataset:
    return open_data("neighbour-second-minimum(graphs=12; nodes=12; p=0.3)")


def own_sets(n: int = 60, split: bool = False) -> GivenSets:
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 7, n)
    values = rng.normal(size=(int(sizes.sum()), 2)).astype(np.float32)
    y = np.bincount(np.repeat(np.arange(n), sizes), values[:, 0], n)
    y[:3] = np.nan
    return GivenSets.hold(
        Sets(tuple(f"s{i}" for i in range(n)), sizes, values, ("a", "b"), y, np.arange(n, dtype=np.int8) % 3 if split else None)
    )


def fitted(name: str, data: Dataset, task: Task) -> tuple[Any, Any, Run]:
    """(model, fold, run) of a fit on the first fold."""
    name_of_fold = task.plan(data, 1)[0][0]
    fold = task.for_data(data).fold(data, name_of_fold)
    run = Run(task=task.for_data(data), digest=data.digest(), fold=name_of_fold)
    with run.seeded():
        return entry_of(name).fit(fold.train, fold.valid, run), fold, run


# -- batteries -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("aggregation", ["lcm", "gru", "sum", "mean", "max", "std", "pna"])
def test_set_net(aggregation: str, drawn_sets: Dataset) -> None:
    check_method(f"set-net(aggregation={aggregation}; {SET_FIELDS})", drawn_sets, SETS, fingerprints=FINGERPRINTS)


@pytest.mark.parametrize("method", ["set-net", "graph-net"])
def test_every_aggregation_has_a_preset(method: str) -> None:
    for aggregation in ("lcm", "gru", "sum", "mean", "max", "std", "pna"):
        assert entry_of(f"{method}:{aggregation}") == entry_of(f"{method}(aggregation={aggregation})")


def test_set_net_with_the_laws(drawn_sets: Dataset) -> None:
    check_method(
        f"set-net(associativity=0.1; identity_law=0.1; consistency=0.1; error=absolute; {SET_FIELDS})", drawn_sets, SETS,
        fingerprints=FINGERPRINTS,
    )  # fmt: skip


@pytest.mark.parametrize("aggregation", ["lcm", "gru", "pna"])
def test_graph_net_on_nodes(aggregation: str, drawn_graphs: Dataset) -> None:
    check_method(f"graph-net(aggregation={aggregation}; {NET_FIELDS})", drawn_graphs, NODES, fingerprints=FINGERPRINTS)


@pytest.mark.parametrize("more", ["aggregation=lcm", "aggregation=lcm; readout=same; consistency=0.1", "aggregation=sum"])
def test_graph_net_on_graphs(more: str) -> None:
    check_method(
        f"graph-net({more}; {NET_FIELDS})", "rings-and-cliques(graphs=40)", "graph-classification",
        fingerprints=None if "consistency" in more else FINGERPRINTS,
    )  # fmt: skip


def test_graph_net_on_numbers_of_graphs() -> None:
    check_method(f"graph-net({NET_FIELDS})", "pna-multitask(graphs=30)", "graph-regression")


def test_median(drawn_sets: Dataset, drawn_graphs: Dataset) -> None:
    check_method("median", drawn_sets, SETS, fingerprints=FINGERPRINTS)
    check_method("median", drawn_graphs, NODES)


def test_tasks(drawn_sets: Dataset, drawn_graphs: Dataset) -> None:
    check_task(SETS, drawn_sets)
    check_task("set-regression", own_sets())
    check_task("set-regression", own_sets(split=True))
    check_task(NODES, drawn_graphs)
    check_task("node-regression", GivenGraphSet.hold(drawn_graphs.read()))
    check_task(NODES, open_data("pna-multitask(graphs=12; node_target=sssp)"))


# -- set regression ------------------------------------------------------------------------------------------------------
def test_what_is_left_open_is_made_concrete(drawn_sets: Dataset) -> None:
    task = SetRegression().for_data(drawn_sets)
    assert (task.protocol, task.train_sizes, task.test_sizes, task.tests) == ("drawn", (2, 16), (4, 8, 16, 32, 64), 2000)
    assert SetRegression().for_data(own_sets()).protocol == "random"
    assert SetRegression().for_data(own_sets(split=True)).protocol == "given"
    assert task.plan(drawn_sets, 2) == [("drawn-0", 0), ("drawn-1", 1)]


def test_no_part_for_training_has_a_size_beyond_the_range(drawn_sets: Dataset) -> None:
    task = SETS.but(train_sizes=(3, 6)).for_data(drawn_sets)
    fold = task.fold(drawn_sets, "drawn-0")
    assert fold.valid is not None
    for part in (fold.train, fold.valid):
        assert set(part.data.sizes.tolist()) <= {3, 4, 5, 6} and part.data.y is None
    assert len(fold.train.truth) == 200 and len(fold.valid.truth) == 20
    assert fold.test.data.sizes.tolist() == [4] * 20 + [20] * 20
    other = task.fold(drawn_sets, "drawn-1")
    assert not np.isin(other.test.data.values, fold.test.data.values).any()
    # on given sets the range holds for training, and the test is whole
    fold = SetRegression(train_sizes=(2, 3)).fold(own_sets(), "random-0")
    assert set(fold.train.data.sizes.tolist()) == {2, 3} and fold.test.data.sizes.max() > 3


def test_scores_stand_at_sizes_and_the_headline_is_the_trained_range(drawn_sets: Dataset) -> None:
    task = SETS.for_data(drawn_sets)
    part = task.fold(drawn_sets, "drawn-0").test
    wrong = np.where(part.data.sizes == 4, 0.25, 3.0)
    scores = task.score(Numbers(part.truth + wrong, wrong / 2), part, None)
    found = {(s.metric, s.at.get("size")): s.value for s in scores}
    expected = {
        ("mae", None): 0.25, ("rmse", None): 0.25, ("permutation-gap", None): 0.125, ("mae", 4): 0.25, ("mae", 20): 3.0,
        ("permutation-gap", 4): 0.125, ("permutation-gap", 20): 1.5,
    }  # fmt: skip
    assert found.keys() == expected.keys() and all(np.isclose(found[k], v) for k, v in expected.items())  # type: ignore[arg-type]
    assert np.isclose(task.headline(scores), 0.25)  # type: ignore[arg-type]


def test_many_sizes_are_judged_in_ranges() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, 300)
    data = GivenSets.hold(
        Sets(tuple(map(str, range(300))), sizes, rng.normal(size=(int(sizes.sum()), 1)).astype(np.float32), y=sizes * 1.0)
    )
    task = SetRegression().for_data(data)
    fold = task.fold(data, "random-0")
    scores = task.score(Numbers(fold.test.truth + 1), fold.test, None)
    ranges = [s for s in scores if s.at.get("slice") == "size"]
    assert len(ranges) == 4 and sum(s.at["count"] for s in ranges) == len(fold.test.truth)
    assert task.headline(scores) == 1


def test_unusual_answers_are_named(drawn_sets: Dataset) -> None:
    part = SETS.fold(drawn_sets, "drawn-0").test

    class Odd:
        method = entry_of("median")

        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def predict(self, part: Any) -> Any:
            return self.answer

    with pytest.raises(UserError, match=r"gave \[3\] instead of numbers \[40\]"):
        SETS.answer(Odd(np.zeros(3)), part, Run(task=SETS))
    with pytest.raises(UserError, match="not finite for '7'"):
        SETS.answer(Odd(np.where(np.arange(40) == 7, np.inf, 0)), part, Run(task=SETS))


# -- late fields ---------------------------------------------------------------------------------------------------------
def test_the_order_at_test_is_late(drawn_sets: Dataset) -> None:
    model, fold, run = fitted(f"set-net({SET_FIELDS})", drawn_sets, SETS)
    part = fold.test.blind()
    assert set(model.method.late_fields()) == {"order", "draws"}
    random, more, canonical = model, model.at(draws=20), model.at(order="canonical")
    assert not np.array_equal(random.predict(part), canonical.predict(part))
    gaps = [float(m.permutation_gap(part).mean()) for m in (random, more, canonical)]
    assert gaps[0] > 2 * gaps[1] > 0 and gaps[2] == 0
    # the same set in another order: the canonical answer is bit for bit the same
    data = part.data
    moved = replace(data, values=np.concatenate([v[::-1] for v in np.split(data.values, data.ptr[1:-1])]), _cache={})
    assert np.array_equal(canonical.predict(part._replace(data=moved)), canonical.predict(part))
    assert np.array_equal(random.predict(part), model.predict(part))  # asking changes nothing
    plain, _, _ = fitted(f"set-net(aggregation=sum; {SET_FIELDS})", drawn_sets, SETS)
    assert plain.permutation_gap(part) is None
    assert "permutation-gap" in {s.metric for s in SETS.score(SETS.answer(model, part, run), fold.test, run)}


def test_an_answer_does_not_depend_on_the_other_sets(drawn_sets: Dataset) -> None:
    for name in ("lcm", "gru"):
        model, fold, _ = fitted(f"set-net(aggregation={name}; order=canonical; {SET_FIELDS})", drawn_sets, SETS)
        few = fold.test.data.take(np.arange(5))
        alone = fold.test._replace(data=few, query=fold.test.query._replace(rows=np.arange(5)))
        np.testing.assert_allclose(model.predict(alone), model.predict(fold.test)[:5], atol=1e-6)


def test_the_monoid_learns_what_a_sum_does_not() -> None:
    """Few steps on small sets: the second smallest, held against the constant."""
    data, task = open_data("second-minimum(sets=4000)"), SetRegression(train_sizes=(2, 6), test_sizes=(4,), tests=500)
    error = {}
    for name in ("median", "set-net(aggregation=lcm; width=16; steps=150; look=50; lr=0.01)"):
        model, fold, run = fitted(name, data, task)
        concrete = task.for_data(data)
        error[name[:7]] = concrete.headline(concrete.score(concrete.answer(model, fold.test.blind(), run), fold.test, run))
    assert error["set-net"] < 0.3 * error["median"]  # type: ignore[operator]


# -- node regression -----------------------------------------------------------------------------------------------------
def test_test_graphs_are_fresh_and_larger_ones_stand_apart(drawn_graphs: Dataset) -> None:
    task = NODES.for_data(drawn_graphs)
    assert task.test_sizes == (12, 48)
    fold = task.fold(drawn_graphs, "drawn-0")
    assert [int(g.num_nodes) for g in fold.test.data] == [12] * 3 + [48] * 3 and len(fold.train.data) == 12
    assert all("y" not in g and "node_y" not in g for g in fold.train.data)
    error = np.where(np.arange(len(fold.test.truth)) < 36, 0.5, 2.0)
    scores = task.score(Numbers(fold.test.truth + error), fold.test, None)
    assert np.isclose(task.headline(scores), 0.5)  # type: ignore[arg-type]
    at = {s.at["size"]: s.value for s in scores if "size" in s.at}
    assert at.keys() == {12, 48} and np.isclose(at[48], 2.0)
    assert sum(s.at["count"] for s in scores if s.at.get("slice") == "degree") == len(fold.test.truth)


def test_unknown_numbers_of_nodes_are_neither_trained_on_nor_judged() -> None:
    data = open_data("pna-multitask(graphs=20; node_target=sssp)")
    given = GivenGraphSet.hold(data.read())
    task = NodeRegression().for_data(given)
    assert task.protocol == "random"
    model, fold, run = fitted(f"graph-net({NET_FIELDS})", given, task)
    unknown = int(np.isnan(data.read().node_targets).sum())
    parts = [fold.train, fold.valid, fold.test]
    assert unknown > 0 and sum(len(p.truth) for p in parts) == data.read().nodes - unknown
    assert all(np.isfinite(p.truth).all() for p in parts)
    assert task.answer(model, fold.test.blind(), run).values.shape == fold.test.truth.shape


def test_a_column_of_one_graph(make_blocks: Callable[..., Any]) -> None:
    data = GivenGraph.hold(make_blocks(directed=True))
    task = NodeRegression(target="f1").for_data(data)
    check_task(task, data)
    fold = task.fold(data, "random-0")
    assert fold.train.schema["features"] == ["f0", "f2", "f3"] and fold.train.schema["targets"] == ["f1"]
    assert fold.train.data[0].x.shape == (60, 3) and len(fold.train.truth) == 42
    check_method(f"graph-net({NET_FIELDS})", data, task)
    with pytest.raises(UserError, match=r"name a numeric column of nodes.csv by -s task.target=NAME; found f0, f1"):
        NodeRegression().for_data(data)
    with pytest.raises(UserError, match="no numeric column 'age'"):
        NodeRegression(target="age").for_data(data)


def test_mistakes_are_named(drawn_sets: Dataset, drawn_graphs: Dataset) -> None:
    with pytest.raises(UserError, match="no numbers at their nodes"):
        NodeRegression().for_data(open_data([Data(edge_index=torch.tensor([[0, 1], [1, 0]]), y=torch.tensor([0]))] * 2))
    with pytest.raises(UserError, match="leave nothing to test"):
        SetRegression.make({"train": 0.9, "valid": 0.1})
    with pytest.raises(UserError, match="test_sizes are different sizes"):
        NodeRegression.make({"test_sizes": (4, 4)})
    with pytest.raises(UserError, match="bring no split"):
        NodeRegression(protocol="given").for_data(drawn_graphs)
    with pytest.raises(UserError, match="bring no split"):
        SetRegression(protocol="given").for_data(drawn_sets)
    with pytest.raises(UserError, match="identity_law is a law of the monoid"):
        fitted("graph-net(aggregation=max; identity_law=1)", drawn_graphs, NODES)


# -- the commands --------------------------------------------------------------------------------------------------------
def test_as_typed(tmp_path: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

    monkeypatch.chdir(tmp_path)
    small = [f"-s{w}" for w in ("width=8", "steps=4", "look=2")]
    status, out, err = command(
        "compare", "second-minimum", "-m", "set-net:lcm,set-net:gru,set-net:sum,set-net:max", "--repeats", "1", "--classic", "0",
        "-s", "data.sets=100", "-s", "task.tests=10", "--runs", tmp_path / "runs", *small,
    )  # fmt: skip
    assert status == 0 and "median" in out and "set-net(" in out, out + err
    assert command("data", "export", "second-minimum", "mine", "-s", "sets=80")[0] == 0
    status, out, err = command("fit", "set-net", "mine", "-o", "MODEL", *small)
    assert status == 0, out + err
    assert command("predict", "MODEL", "mine", "-o", "said.csv")[0] == 0
    said = pl.read_csv("said.csv")
    assert said.columns == ["set", "prediction"] and len(said) == 80
    status, out, err = command("score", "set-regression", "said.csv", "mine")
    assert status == 0 and "mae" in out, out + err
    status, out, err = command(
        "compare", "neighbour-second-minimum", "-m", "graph-net:lcm,graph-net:sum", "-s", "task=node-regression", "--repeats", "1",
        "--classic", "0", "-s", "data.graphs=4", "-s", "data.nodes=10", "-s", "task.tests=2", "-s", "epochs=1", "--runs", tmp_path / "runs",
    )  # fmt: skip
    assert status == 0 and "graph-net" in out, out + err
