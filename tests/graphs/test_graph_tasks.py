"""Tasks on graph sets: folds that test every graph, strata, scenarios with exact shares, errors, scores by hand, files, commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data

import latticework as lw
from latticework.common.graph_batches import Packed
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.data.graphs import GivenGraphSet, GraphSet
from latticework.graphs.scenarios import deal, disturbed, drawn, quantile_strata, quotas, spread, thinned
from latticework.graphs.tasks import (
    TEST,
    TRAIN,
    VALID,
    GraphClassification,
    GraphQuery,
    GraphRegression,
    SubgraphCounting,
    class_scores,
    number_scores,
)
from latticework.testing import check_task

RINGS = "rings-and-cliques(graphs=60; seed=0)"
Command = Callable[..., tuple[int, str, str]]


def rings(**changes: Any) -> GraphSet:
    found: GraphSet = open_data(RINGS).read()
    return replace(found, **changes, _cache={}) if changes else found


def cycle(n: int, **more: Any) -> Data:
    u = torch.arange(n)
    v = (u + 1) % n
    return Data(edge_index=torch.stack([torch.cat([u, v]), torch.cat([v, u])]), num_nodes=n, **more)


def pairs(graph: Data) -> set[tuple[int, int]]:
    return {(min(a, b), max(a, b)) for a, b in graph.edge_index.T.tolist()}


# -- splits ------------------------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 3), min_size=10, max_size=60), st.integers(2, 10), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_dealt_folds_are_even_in_size_and_in_every_stratum(y: list[int], folds: int, seed: int) -> None:
    strata = np.array(y)
    fold = deal(strata, folds, np.random.default_rng(seed))
    sizes = np.bincount(fold, minlength=folds)
    assert sizes.max() - sizes.min() <= 1 and sizes.sum() == len(y)
    for c in np.unique(strata):
        of_class = np.bincount(fold[strata == c], minlength=folds)
        assert of_class.max() - of_class.min() <= 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_quotas_add_up_and_are_proportional(counts: list[int], share: float) -> None:
    total = round(share * sum(counts))
    given_out = quotas(np.array(counts), total)
    assert given_out.sum() == total and (given_out <= counts).all()
    assert (np.abs(given_out - np.array(counts) * total / sum(counts)) < 1 + 1e-6).all()


def test_published_folds_take_in_the_graphs_of_none_by_a_fixed_rule() -> None:
    folds = np.array([1, 1, 1, 2, 2, 0, 0, 0], np.int8)
    y = np.array([0, 0, 1, 0, 1, 0, 1, 0])
    # class 0 first: row 5 goes where one of its class is, row 7 (two and two, three and three) to the lowest; then class 1, row 6
    # (one and one) to the smaller fold
    assert spread(folds, y).tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    whole = np.array([1, 2, 1, 2], np.int8)
    assert spread(whole, np.zeros(4, int)).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("published", [False, True])
def test_ten_folds_test_every_graph_once_and_validation_is_another_slice(published: bool) -> None:
    folds = np.array([0] * 6 + [1 + i % 10 for i in range(54)], np.int8) if published else None
    data = GivenGraphSet.hold(rings(folds=folds))
    task = GraphClassification(protocol="folds").for_data(data)
    graphs = data.read()
    splits = [task.split(graphs, name) for name, _ in task.plan(data, 20)]
    for ten in (splits[:10], splits[10:]):
        assert (sum((s == TEST).astype(int) for s in ten) == 1).all()
    assert not np.array_equal(splits[0] == TEST, splits[10] == TEST)  # the next ten are another draw
    for split in splits:
        shares = [np.bincount(graphs.y[split == part], minlength=2) for part in (TRAIN, VALID, TEST)]
        assert sum(s.sum() for s in shares) == 60
        assert shares[1].sum() == round((60 - shares[2].sum()) / 9)
        # published folds need not be stratified; what is drawn is
        ratio = shares[0] / (shares[0] + shares[1])
        assert abs(ratio[0] - ratio[1]) < 0.03
        assert published or abs(int(shares[2][0]) - int(shares[2][1])) <= 1
    if published:
        for number, split in enumerate(splits[:10]):
            assert (split[folds == number + 1] == TEST).all()


def test_given_folds_are_left_as_they_are_and_repeats_beyond_them_are_seeds() -> None:
    folds = np.array([0] * 6 + [1 + i % 10 for i in range(54)], np.int8)
    data = GivenGraphSet.hold(rings(folds=folds))
    task = GraphClassification(protocol="given")
    assert task.plan(data, 12)[9:] == [("given-9", 0), ("given-0", 1), ("given-1", 1)]
    for number in range(10):
        split = task.split(data.read(), f"given-{number}")
        assert ((split == TEST) == (folds == number + 1)).all() and (split[:6] != TEST).all() and (split == VALID).sum() == 6


def test_the_order_of_the_file_cuts_sixths_and_repeats_are_seeds() -> None:
    data = open_data(RINGS)
    task = GraphClassification(protocol="order")
    assert task.plan(data, 2) == [("order", 0), ("order", 1)] and task.overlap(data) is None
    assert task.split(data.read(), "order").tolist() == [VALID] * 10 + [TEST] * 10 + [TRAIN] * 40


def test_random_draws_have_their_shares_and_numbers_are_drawn_by_quantile() -> None:
    data = open_data(RINGS)
    for task in (GraphClassification(protocol="random"), GraphRegression(protocol="random", train=0.5, valid=0.25)):
        counts = [
            [int((task.split(data.read(), name) == p).sum()) for p in (TRAIN, VALID, TEST)] for name, _ in task.plan(data, 3)
        ]
        assert counts == [[48, 6, 6] if isinstance(task, GraphClassification) else [30, 15, 15]] * 3
    values = np.random.default_rng(0).normal(size=200)
    strata = quantile_strata(values)
    assert np.bincount(strata).tolist() == [20] * 10
    assert all(values[strata == k].max() < values[strata == k + 1].min() for k in range(9))
    chosen = drawn(strata, 20, np.random.default_rng(1))
    assert np.bincount(strata[chosen]).tolist() == [2] * 10


def test_a_model_for_use_keeps_nothing_back_but_what_chooses() -> None:
    data = open_data(RINGS)
    fold = GraphClassification().fold(data, GraphClassification().final(data))
    assert [len(p.data) for p in (fold.train, fold.valid, fold.test)] == [54, 6, 0]  # type: ignore[union-attr]


# -- parts -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "task",
    [
        "graph-classification", "graph-regression", "subgraph-counting", GraphClassification(protocol="folds"),
        GraphClassification(scenario="noisy", noise="rewire", share=0.3), GraphClassification(scenario="imbalanced"),
        GraphClassification(scenario="few-shot", labels=5), GraphRegression(scenario="noisy", noise="add", protocol="order"),
    ],
    ids=str,
)  # fmt: skip
def test_battery(task: Any) -> None:
    check_task(task, RINGS)


def test_a_part_holds_its_own_graphs_without_any_truth() -> None:
    data = open_data(RINGS)
    graphs = data.read()
    task = GraphClassification(protocol="random")
    split = task.split(graphs, "random-0")
    fold = task.fold(data, "random-0")
    for part, code in ((fold.train, TRAIN), (fold.valid, VALID), (fold.test, TEST)):
        rows = np.flatnonzero(split == code)
        assert part is not None and part.query.ids == tuple(graphs.ids[r] for r in rows)
        assert part.query.rows.tolist() == list(range(len(rows))) and part.truth.y.tolist() == graphs.y[rows].tolist()
        for made, row in zip(part.data, rows, strict=True):
            assert set(made.keys()) <= {"x", "edge_index", "edge_attr", "num_nodes"}
            assert made.num_nodes == graphs.sizes[row]
        assert part.schema["classes"] == ["ring", "clique"] and part.schema["targets"] == []
    assert fold.train.truth.slices == {} and set(fold.test.truth.slices) == {"nodes", "twin in train"}
    numbers = GraphRegression().fold(data, "random-0").train
    assert numbers.schema["classes"] == [] and numbers.schema["targets"] == ["triangles"]
    assert numbers.schema["deviation"] == [pytest.approx(np.abs(numbers.truth.y - numbers.truth.y.mean()).mean())]


def test_twins_in_train_are_named_and_a_relabelled_copy_is_one() -> None:
    graphs = rings()
    rng = np.random.default_rng(0)
    made = graphs.graphs()
    copies = []
    for g in made[:6]:  # the first six again, their nodes in another order
        place = torch.from_numpy(rng.permutation(g.num_nodes))
        x = torch.empty_like(g.x)
        x[place] = g.x
        copies.append(Data(x=x, edge_index=place[g.edge_index], num_nodes=g.num_nodes))
    both = GivenGraphSet.hold(
        [Data(**{**g.to_dict(), "y": int(c)}) for g, c in zip([*copies, *made], [*graphs.y[:6], *graphs.y], strict=True)]
    )
    fold = GraphClassification(protocol="order").fold(both, "order")  # 0-10 valid, 11-21 test: originals 5..15
    group, names = fold.test.truth.slices["twin in train"]
    assert names == ("no", "yes") and len(group) == 11
    task = GraphClassification(protocol="order")
    split = np.full(66, TRAIN, np.int8)
    split[6:12] = TEST  # the originals, whose copies train
    from latticework.graphs.tasks import graph_slices

    twins, _ = graph_slices(both.read(), np.flatnonzero(split == TRAIN))["twin in train"]
    assert twins[6:12].tolist() == [1] * 6
    alone, _ = graph_slices(both.read(), np.arange(12, 66))["twin in train"]
    assert set(np.flatnonzero(alone == 0)) <= set(range(12)) and task.split(both.read(), "order")[0] == VALID


# -- scenarios ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", ["remove", "rewire", "add"])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_noise_changes_the_share_of_pairs_exactly_and_nothing_else(noise: Any, share: float) -> None:
    rng = np.random.default_rng(0)
    for n in (5, 12, 31):
        graph = cycle(n, x=torch.randn(n, 2), edge_attr=torch.arange(2.0 * n)[:, None] % n)
        before = {k: v.clone() if torch.is_tensor(v) else v for k, v in graph.to_dict().items()}
        count = int(share * n + 0.5)
        new = disturbed(graph, noise, share, rng)
        kept, free = pairs(graph) & pairs(new), n * (n - 1) // 2 - n
        gained = pairs(new) - pairs(graph)
        assert len(kept) == (n if noise == "add" else n - count if noise == "remove" or free >= count else n - free)
        assert len(gained) == (0 if noise == "remove" else min(count, free))
        assert all(a != b for a, b in pairs(new)) and torch.equal(new.x, graph.x) and new.num_nodes == n
        both = {(int(a), int(b)) for a, b in new.edge_index.T.tolist()}
        assert all((b, a) in both for a, b in both) and len(both) == new.edge_index.shape[1] == len(new.edge_attr)
        of = {(int(a), int(b)): float(e) for (a, b), e in zip(new.edge_index.T.tolist(), new.edge_attr, strict=True)}
        assert all(of[a, b] == of[b, a] for a, b in of)  # the features of both directions stay together
        assert all(torch.equal(before[k], v) if torch.is_tensor(v) else before[k] == v for k, v in graph.to_dict().items())


def test_noise_is_nested_leaves_self_loops_and_knows_full_and_empty_graphs() -> None:
    graph = cycle(30)
    few, many = (disturbed(graph, "remove", s, np.random.default_rng(3)) for s in (0.1, 0.4))
    assert pairs(many) < pairs(few) < pairs(graph)
    looped = Data(edge_index=torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]), num_nodes=2)
    assert disturbed(looped, "remove", 1.0, np.random.default_rng(0)).edge_index.tolist() == [[0, 1], [0, 1]]
    full = Data(edge_index=torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]), num_nodes=3)
    for noise in ("rewire", "add"):
        assert pairs(disturbed(full, noise, 1.0, np.random.default_rng(0))) == pairs(full)  # type: ignore[arg-type]
    empty = Data(edge_index=torch.zeros(2, 0, dtype=torch.int64), num_nodes=1)
    assert disturbed(empty, "add", 0.5, np.random.default_rng(0)) is empty
    one_way = Data(edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=4)
    assert disturbed(one_way, "rewire", 0.4, np.random.default_rng(0)).edge_index.shape == (2, 3)


def test_noise_hits_train_valid_and_test_alike_and_is_drawn_for_each_fold() -> None:
    data = open_data(RINGS)
    plain, noisy = GraphClassification(protocol="random"), GraphClassification(protocol="random", scenario="noisy", share=0.2)
    before, after = plain.fold(data, "random-0"), noisy.fold(data, "random-0")
    for a, b in zip(before, after, strict=True):
        assert a.query.ids == b.query.ids  # the same split
        for g, h in zip(a.data, b.data, strict=True):
            assert len(pairs(g)) - len(pairs(h)) == int(0.2 * len(pairs(g)) + 0.5) and pairs(h) < pairs(g)
    other = noisy.fold(data, "random-1")
    first = {i: pairs(g) for part in after for i, g in zip(part.query.ids, part.data, strict=True)}
    second = {i: pairs(g) for part in other for i, g in zip(part.query.ids, part.data, strict=True)}
    assert sum(first[i] != second[i] for i in first) > 40


def test_unequal_classes_keep_their_ratio_and_the_test_part_is_whole() -> None:
    data = open_data(RINGS)
    task = GraphClassification(protocol="random", scenario="imbalanced", ratio=0.2)
    whole, thin = GraphClassification(protocol="random").fold(data, "random-0"), task.fold(data, "random-0")
    for a, b in ((whole.train, thin.train), (whole.valid, thin.valid)):
        assert a is not None and b is not None and set(b.query.ids) <= set(a.query.ids)
        counts = np.bincount(a.truth.y)
        assert np.bincount(b.truth.y).tolist() == [counts[0], max(int(counts[1] * 0.2 + 0.5), 1)]
    assert thin.test.query.ids == whole.test.query.ids
    assert task.headline_metric == "macro-f1" and GraphClassification().headline_metric == "accuracy"
    assert thinned(np.array([0, 0, 1, 1, 1]), np.array([1, 5]), np.random.default_rng(0)).sum() == 4


def test_few_labels_are_as_many_a_class_in_train_and_no_more_in_valid() -> None:
    data = open_data(RINGS)
    task = GraphClassification(protocol="random", scenario="few-shot", labels=2)
    fold = task.fold(data, "random-0")
    assert np.bincount(fold.train.truth.y).tolist() == [2, 2] and np.bincount(fold.valid.truth.y).tolist() == [2, 2]  # type: ignore[union-attr]
    assert len(fold.test.data) == 6
    with pytest.raises(
        UserError, match=r"class 'ring' has 24 graphs in the train part of random-0, fewer than labels=25; use -s"
    ):
        task.but(labels=25).fold(data, "random-0")


# -- errors ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "task", "says"),
    [
        ({"y": np.zeros(60, np.int64)}, GraphClassification(), r"all labelled graphs have one class \('ring'\); two are needed"),
        ({"y": np.full(60, -1)}, GraphClassification(missing="leave-out"), "no graph has a label"),
        ({"y": None}, GraphClassification(), "the graphs have no labels; they have numbers: use -s task=graph-regression"),
        ({"targets": None, "target_names": ()}, GraphRegression(), "no numbers to predict; they have labels: use -s task=graph-cl"),
        (
            {"y": np.array([-1, 0, 1] * 20)}, GraphClassification(),
            "20 of 60 graphs have no label, first graph 'g0'; add it, or leave them to be predicted with -s task.missing=leave-out",
        ),
        ({"targets": np.array([[1.0], [np.nan]] * 30)}, GraphRegression(), "30 of 60 graphs have no target, first graph 'g1'"),
        (
            {"targets": np.array([[1.0, 2.0]] * 7 + [[3.0, np.nan]] * 53), "target_names": ("a", "b")}, GraphRegression(),
            r"target 'b' of graph 'g7' \(number 8\) is nan; give a finite number",
        ),
        ({}, GraphClassification(protocol="folds", folds=70), "60 graphs cannot make 70 folds; use fewer"),
        ({}, GraphClassification(train=0.9, valid=0.1), "train=0.9 and valid=0.1 leave no graph to test; their sum is below 1"),
        ({}, GraphClassification(protocol="given"), "the data bring no folds; use -s task.protocol=folds or random"),
        (
            {"y": np.array([0] * 29 + [1] * 30 + [2]), "classes": ("a", "b", "c")}, GraphClassification(protocol="folds", folds=2),
            r"class 'c' has no graph in the train part of folds-\d \(it has 1 in all\)",
        ),
    ],
)  # fmt: skip
def test_errors(changes: dict[str, Any], task: Any, says: str) -> None:
    data = GivenGraphSet.hold(rings(**changes))
    with pytest.raises(UserError, match=says):
        for name, _ in task.for_data(data).plan(data, 2):
            task.fold(data, name)


def test_too_few_graphs_and_scenarios_that_need_classes() -> None:
    few = GivenGraphSet.hold(rings().take(np.arange(3)))
    with pytest.raises(UserError, match=r"the (test|train) part of random-0 holds no graph|one class"):
        GraphClassification().fold(few, "random-0")
    with pytest.raises(UserError, match="scenario"):
        GraphRegression.make({"scenario": "few-shot"})


def test_graphs_without_a_truth_are_left_out_and_are_what_is_asked() -> None:
    y = rings().y.copy()
    y[:9] = -1
    data = GivenGraphSet.hold(rings(y=y))
    task = GraphClassification(missing="leave-out").for_data(data)
    split = task.split(data.read(), "random-0")
    assert (split[:9] == -1).all() and (split[9:] >= 0).all()
    schema = task.fold(data, "random-0").train.schema
    assert task.ask(data, GraphQuery(), schema).query.ids == tuple(f"g{i}" for i in range(9))
    assert len(task.ask(data, GraphQuery(graphs="all"), schema).data) == 60
    assert len(task.ask(open_data(RINGS), GraphQuery(), schema).data) == 60


def test_columns_are_matched_by_name_and_a_category_that_is_missing_here_is_zero() -> None:
    graphs = rings()
    schema = GraphClassification().fold(open_data(RINGS), "random-0").train.schema
    assert graphs.x is not None
    other = GivenGraphSet.hold(rings(x=graphs.x[:, [2, 0]], features=("tag=2", "tag=0")))
    part = GraphClassification().ask(other, GraphQuery(graphs="all"), schema)
    x = torch.cat([g.x for g in part.data]).numpy()
    assert (x[:, [0, 2]] == graphs.x[:, [0, 2]]).all() and (x[:, 1] == 0).all()
    strange = GivenGraphSet.hold(rings(x=graphs.x, features=("a", "b", "c")))
    with pytest.raises(UserError, match="the model needs the node features 'tag=0', 'tag=1', 'tag=2'; found a, b, c"):
        GraphClassification().ask(strange, GraphQuery(), schema)


# -- scores ------------------------------------------------------------------------------------------------------------------
def test_scores_by_hand() -> None:
    y, chances = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    found = {s.metric: s.value for s in class_scores(y, chances.argmax(1), chances)}
    assert found == {"accuracy": 0.75, "macro-f1": pytest.approx((2 / 3 + 0.8) / 2), "roc-auc": 1.0}
    assert class_scores(np.zeros(2, int), np.zeros(2, int), chances[:2])[2].value is None
    true, said = np.array([[1.0, 0.0], [3.0, 10.0]]), np.array([[2.0, 0.0], [3.0, 6.0]])
    scores = number_scores(true, said, ["a", "b"], [0.5, 4.0])
    means = {s.metric: s.value for s in scores if not s.at}
    assert means["mae"] == 1.25 and means["rmse"] == pytest.approx((np.sqrt(0.5) + np.sqrt(8)) / 2)
    assert means["r2"] == pytest.approx((1 - 0.5 / 1 + 1 - 8 / 25) / 2) and means["normalised-mae"] == pytest.approx(
        (1 + 0.5) / 2
    )
    assert {s.at["range"]: s.value for s in scores if s.at and s.metric == "mae"} == {"a": 0.5, "b": 2.0}
    assert {s.why for s in number_scores(true * 0, said, ["a", "b"], [0.0, 1.0]) if s.value is None and not s.at} == {
        "the true numbers are all equal here", "the train graphs' numbers are all equal",
    }  # fmt: skip


def test_the_mean_of_train_scores_about_one_and_counts_have_their_headline() -> None:
    data = open_data("rings-and-cliques(graphs=200; seed=1)")
    task = SubgraphCounting().for_data(data)
    fold = task.fold(data, "random-0")
    run = Run(task=task)
    model = entry_of("graph-mean").fit(fold.train, fold.valid, run)
    scores = task.score(task.answer(model, fold.test.blind(), run), fold.test, run)
    assert task.headline(scores) == next(s.value for s in scores if s.metric == "normalised-mae")
    assert 0.8 < task.headline(scores) < 1.2  # type: ignore[operator]
    assert next(s for s in scores if s.metric == "exact").value == 0.0
    assert GraphRegression().headline_metric == "mae" and task.headline_metric == "normalised-mae"
    assert {s.at["slice"] for s in scores if s.at} == {"nodes", "twin in train"}


def test_answers_of_a_wrong_shape_or_not_finite_are_named() -> None:
    data = open_data(RINGS)
    task = GraphClassification()
    test = task.fold(data, "random-0").test

    class Wrong:
        method = entry_of("graph-majority")

        def __init__(self, answer: Any) -> None:
            self.answer = answer

        def predict(self, part: Any) -> Any:
            return self.answer

    with pytest.raises(
        UserError, match=r"graph-majority gave \[6, 3\] instead of class probabilities \[6, 2\] \(graphs x classes\)"
    ):
        task.answer(Wrong(np.zeros((6, 3))), test, Run(task=task))
    bad = np.full((6, 2), 0.5)
    bad[2, 0] = np.nan
    with pytest.raises(UserError, match=f"not finite for graph '{test.query.ids[2]}'"):
        task.answer(Wrong(bad), test, Run(task=task))


# -- batches -----------------------------------------------------------------------------------------------------------------
def test_a_gathered_batch_is_pygs_batch() -> None:
    torch.manual_seed(0)

    def made(n: int, m: int) -> Data:
        edges = torch.randint(0, n, (2, m)) if n else torch.zeros(2, 0, dtype=torch.int64)
        return Data(x=torch.randn(n, 3), edge_index=edges, edge_attr=torch.randn(m, 2), num_nodes=n, k=3, code=torch.randn(()))

    graphs = [made(5, 8), made(1, 0), made(40, 160), made(0, 0), made(7, 2)]
    rows = torch.tensor([2, 1, 0, 3, 2])
    packed = Packed(graphs)
    ours, theirs = packed.batch(rows), Batch.from_data_list([graphs[int(r)] for r in rows])
    assert packed.plain and set(ours.keys()) == set(theirs.keys()) and ours.num_graphs == theirs.num_graphs == 5
    for key in theirs.keys():  # noqa: SIM118  (iterating a batch gives pairs)
        same = torch.equal(ours[key], theirs[key]) if torch.is_tensor(theirs[key]) else ours[key] == theirs[key]
        assert same, key
    for place, row in enumerate(rows.tolist()):
        assert torch.equal(ours.get_example(place).edge_index, graphs[row].edge_index)
    odd = Packed([Data(num_nodes=2, edge_index=torch.zeros(2, 0, dtype=torch.int64), name="a") for _ in range(3)])
    assert not odd.plain and odd.batch(torch.tensor([0, 2])).name == ["a", "a"]


def test_a_last_batch_of_one_graph_joins_the_one_before() -> None:
    packed = Packed([cycle(3) for _ in range(9)])
    assert [len(b) for b in packed.batches(4)] == [4, 5] and [len(b) for b in packed.batches(3)] == [3, 3, 3]
    shuffled = packed.batches(4, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(shuffled).tolist()) == list(range(9))


# -- commands ----------------------------------------------------------------------------------------------------------------
def test_by_command(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("data", "export", "rings-and-cliques", "mine", "-s", "graphs=40")[0] == 0
    status, out, err = command("compare", "mine", "-m", "gin", "-s", "epochs=2", "-s", "task.scenario=noisy", "--repeats", "2",
                               "--classic", "1")  # fmt: skip
    assert status == 0, err
    assert "graph-majority" in out and "wl-svm" in out and "gin" in out and "accuracy" in out
    status, out, err = command("fit", "wl-svm", "mine", "-o", "MODEL")
    assert status == 0, err
    assert command("predict", "MODEL", "mine", "-o", "answers.csv")[0] == 0
    lines = Path("answers.csv").read_text().splitlines()
    assert lines[0] == "id,prediction,p(ring),p(clique)" and len(lines) == 41
    status, out, err = command("score", "graph-classification", "answers.csv", "mine")
    assert status == 0 and "accuracy" in out and "roc-auc" in out, err
    graphs = open_data(tmp_path / "mine").read()
    rows = [f"{i},{graphs.classes[c]}" for i, c in zip(graphs.ids, graphs.y, strict=True)]
    Path("truth.csv").write_text("id,label\n" + "\n".join(rows) + "\n")
    assert command("score", "graph-classification", "answers.csv", "truth.csv")[1] == out
    Path("truth.csv").write_text("id,label\n" + "\n".join(rows[1:]) + "\n")
    status, _, err = command("score", "graph-classification", "answers.csv", "truth.csv")
    assert status == 2 and f"id '{graphs.ids[0]}' has no label in truth.csv" in " ".join(err.split())


def test_numbers_by_command(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("rings-and-cliques(graphs=40)", "-s", "task=graph-regression")
    status, out, err = command("fit", "bag-of-features", *words, "-o", "MODEL")
    assert status == 0, err
    assert command("predict", "MODEL", "rings-and-cliques(graphs=30; seed=3)", "-o", "answers.csv")[0] == 0
    lines = Path("answers.csv").read_text().splitlines()
    assert lines[0] == "id,prediction" and len(lines) == 31
    graphs = open_data("rings-and-cliques(graphs=30; seed=3)").read()
    rows = [f"{i},{t}" for i, t in zip(graphs.ids, graphs.targets[:, 0], strict=True)]
    Path("truth.csv").write_text("id,triangles\n" + "\n".join(rows) + "\n")
    status, out, err = command("score", "graph-regression", "answers.csv", "truth.csv")
    assert status == 0 and "mae" in out and "rmse" in out, err


# -- published sets ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "left_out"), [("tu-mutag", 8), ("tu-ptc", 4)])
def test_published_folds_of_tu_sets_test_every_graph(name: str, left_out: int, mirror: Any) -> None:
    mirror(name)
    data = open_data(name)
    task = GraphClassification().for_data(data)
    graphs = data.read()
    assert task.protocol == "folds" and (graphs.folds == 0).sum() == left_out
    tested = np.stack([task.split(graphs, f"folds-{i}") == TEST for i in range(10)])
    assert (tested.sum(0) == 1).all() and all(tested[i][graphs.folds == i + 1].all() for i in range(10))
    assert tested.sum(1).max() - tested.sum(1).min() <= 3


def test_counts_follow_the_file_behind_a_path(tmp_path: Path) -> None:
    rings = open_data("rings-and-cliques(graphs=10)")
    rings.write(tmp_path / "set")
    text = f"counted(of=graph-set-files(path={tmp_path / 'set'}); target=cycle-3)"
    first = open_data(text)
    assert len(first.read().sizes) == 10
    before = first.digest()
    shutil.rmtree(tmp_path / "set")
    open_data("rings-and-cliques(graphs=14)").write(tmp_path / "set")
    again = open_data(text)
    assert len(again.read().sizes) == 14 and again.digest() != before


def test_published_folds_are_taken_whatever_their_number() -> None:
    given_set = replace(open_data(RINGS).read(), _cache={})
    folds = np.arange(len(given_set.sizes)) % 5 + 1
    data = open_data(replace(given_set, folds=folds))
    task: Any = task_of("graph-classification").for_data(data)
    assert task.protocol == "folds" and task.folds == 5
    for i in range(5):
        tested = [g.split(" ")[0] for g in task.fold(data, f"folds-{i}").test.query.ids]
        assert {int(folds[given_set.ids.index(g)]) for g in tested} == {i + 1}
    assert task_of("graph-classification(folds=4)").for_data(data).folds == 4


@pytest.mark.parametrize(
    ("field", "value", "scenario"),
    [("labels", 3, "few-shot"), ("share", 0.3, "noisy"), ("noise", "add", "noisy"), ("ratio", 0.5, "imbalanced")],
)
def test_a_field_of_another_scenario_is_refused(field: str, value: Any, scenario: str) -> None:
    data = open_data(RINGS)
    with pytest.raises(UserError, match=f"task.{field} belongs to scenario={scenario}"):
        GraphClassification.make({field: value}).for_data(data)
    GraphClassification.make({field: value, "scenario": scenario}).for_data(data)


def test_one_train_graph_is_named() -> None:
    one = [Data(edge_index=torch.tensor([[0, 1], [1, 0]]), num_nodes=2, y=torch.tensor([float(i)])) for i in range(3)]
    how: dict[str, Any] = {"task": "graph-regression", "fold": "folds-0", "settings": {"task.folds": 2, "task.protocol": "folds"}}
    with pytest.raises(UserError, match="k-path: batch normalisation needs two train graphs at least, and there is 1"):
        lw.fit("k-path", one, **how)
    lw.fit("gin", one, **how, epochs=1)  # its statistics are over nodes
