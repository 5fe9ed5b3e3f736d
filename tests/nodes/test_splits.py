"""Folds, the shift by homophily, and the slices that the judge makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import fit
from latticework.core.grid import entry_of
from latticework.core.task import Part
from latticework.data.graph import Graph, local_homophily
from latticework.data.graph_sets import GivenGraph
from latticework.nodes.tasks import TEST, TRAIN, NodeClassification, Truth, homophily_halves, label_distances, upper_half
from latticework.testing import check_task


def test_folds_cover_every_node_once() -> None:
    data = open_data("karate")
    task = NodeClassification(protocol="folds", folds=4, valid=0.25).for_data(data)
    plan = task.plan(data, 8)
    splits = [task.split(data.read(), fold) for fold, _ in plan]
    for round_ in (splits[:4], splits[4:]):
        assert (sum((s == TEST).astype(int) for s in round_) == 1).all()
    assert any((a != b).any() for a, b in zip(splits[:4], splits[4:], strict=True))
    assert all((s == TRAIN).sum() > (s == TEST).sum() for s in splits)


def test_folds_battery() -> None:
    check_task(NodeClassification(protocol="folds"), "karate", repeats=6)
    check_task(NodeClassification(shift="high-to-low"), "digits-knn")


def test_too_many_folds() -> None:
    with pytest.raises(UserError, match="no class has 100 labelled nodes"):
        data = open_data("karate")
        NodeClassification(protocol="folds", folds=100).for_data(data).fold(data, "folds-0")


def test_halves_are_cut_by_count() -> None:
    assert upper_half(np.array([1.0, 1.0, 1.0, 1.0])).tolist() == [False, False, True, True]
    assert upper_half(np.array([0.2, 0.9, 0.5])).tolist() == [False, True, False]
    assert upper_half(np.array([])).tolist() == []


@pytest.mark.parametrize("shift", ["high-to-low", "low-to-high"])
def test_shift_parts_the_homophily(shift: str) -> None:
    data = open_data("digits-knn")
    graph = data.read()
    task = NodeClassification(shift=shift).for_data(data)  # type: ignore[arg-type]
    plain = NodeClassification().for_data(data)
    split, whole = task.split(graph, "random-0"), plain.split(graph, "random-0")
    local = local_homophily(graph)
    train, test = local[split == TRAIN], local[split == TEST]
    if shift == "high-to-low":
        assert train.min() >= np.median(local[whole == TRAIN]) and test.max() <= np.median(local[whole == TEST])
    else:
        assert train.max() <= np.median(local[whole == TRAIN]) and test.min() >= np.median(local[whole == TEST])
    assert abs(len(test) - (whole == TEST).sum() / 2) <= 1


def test_homophily_halves_of_the_test_nodes() -> None:
    data = open_data("digits-knn")
    graph = data.read()
    task = NodeClassification().for_data(data)
    test = task.fold(data, "random-0").test
    group, names = test.truth.slices["homophily"]
    assert names == ("low", "high")
    local = local_homophily(graph)[test.query.rows]
    assert local[group == 0].max() <= local[group == 1].min()
    assert abs(int((group == 0).sum()) - int((group == 1).sum())) <= 1
    alone = homophily_halves(graph, np.array([], np.int64))
    assert alone == {}


def test_the_headline_alone_is_the_headline_of_all_scores() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 50)
    answer = rng.random((50, 3))
    part = Part(None, None, Truth(y), {})
    for rank_by in ("accuracy", "macro-f1", "roc-auc"):
        task = NodeClassification(rank_by=rank_by, labels="single", protocol="random")  # type: ignore[arg-type]
        assert task.value(answer, part, None) == task.headline(task.score(answer, part, None))  # type: ignore[arg-type]
    several = Part(None, None, Truth(rng.random((50, 3)) > 0.5), {})
    task = NodeClassification(labels="multi", protocol="random", true_counts=True)
    assert task.value(answer, several, None) == task.headline(task.score(answer, several, None))  # type: ignore[arg-type]


def test_hops_to_the_nearest_train_node() -> None:
    arrows = np.array(
        [[0, 1, 3, 4, 4, 5, 6, 7, 8, 9], [1, 2, 2, 3, 5, 6, 7, 8, 9, 10]]
    )  # written in either direction; 11 and 12 apart
    graph = Graph(arrows, tuple(f"v{i}" for i in range(13)))
    [(group, names)] = label_distances(graph, np.array([0, 12])).values()
    known = nx.Graph(arrows.T.tolist())
    known.add_nodes_from(range(13))
    hops = nx.multi_source_dijkstra_path_length(known, {0, 12})
    assert group.tolist() == [min(hops.get(v, 99), 6) for v in range(13)] and len(names) == 7
    assert label_distances(graph, np.array([], np.int64)) == {}
    data = open_data("karate")
    task = NodeClassification().for_data(data)
    fold = task.fold(data, task.plan(data, 1)[0][0])
    assert (fold.test.truth.slices["hops to a train node"][0] >= 1).all()  # no test node is a train node


# -- what a user asks that cannot be ---------------------------------------------------------------------------------------
def test_a_model_for_use_trains_where_the_nodes_to_predict_are_the_test_nodes(make_blocks: Any) -> None:
    graph = make_blocks()
    fixed = (np.arange(graph.nodes) % 4).clip(0, 2).astype(np.int8)
    y = np.where(fixed == TEST, -1, graph.y)
    data = GivenGraph.hold(replace(graph, y=y, fixed=fixed, _cache={}))
    task = NodeClassification().for_data(data)
    model, _ = fit(entry_of("majority"), data, task)
    assert model.schema["classes"] == list(graph.classes)
    parts = task.fold(data, task.final(data))
    assert parts.train.query.rows.tolist() == np.flatnonzero(fixed == TRAIN).tolist() and parts.valid is not None
    with pytest.raises(UserError, match="the test part of split fixed has no labelled node"):
        task.fold(data, "fixed")  # nothing to judge by
    judged = GivenGraph.hold(replace(graph, fixed=fixed, _cache={}))
    assert NodeClassification().final(judged) == "fixed"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"train": 0.6, "valid": 0.4}, "task.train=0.6 and task.valid=0.4 leave none"),
        ({"per_class": 500}, "task.per_class=500 and task.valid_per_class=30 leave no class any"),
        ({"protocol": "folds", "valid": 0.999}, "task.valid=0.999 of 27 nodes leaves none to train"),
    ],
)
def test_shares_that_leave_nothing(fields: dict[str, Any], says: str) -> None:
    data = open_data("karate")
    task = NodeClassification(**{"protocol": "random", **fields}).for_data(data)
    with pytest.raises(UserError, match=says):
        task.fold(data, task.plan(data, 1)[0][0])


def test_a_small_validation_part_of_many_classes() -> None:
    data = open_data("digits-knn")
    task = NodeClassification(protocol="folds", valid=0.002).for_data(data)
    valid = task.fold(data, "folds-0").valid
    assert valid is not None and len(valid.query.rows) == 3  # of ten classes


def test_several_labels_a_node(make_blocks: Any) -> None:
    graph = make_blocks(n=12)
    data = GivenGraph.hold(replace(graph, y=np.eye(3, dtype=bool)[graph.y], _cache={}))
    with pytest.raises(UserError, match="12 nodes have labels, and there are 20 folds"):
        NodeClassification(protocol="folds", folds=20).for_data(data).fold(data, "folds-0")
    with pytest.raises(UserError, match="per_class needs one label a node"):
        NodeClassification(protocol="random", per_class=2).for_data(data).fold(data, "random-0")


@pytest.mark.parametrize("name", ["bogus", "random", "random-x", "given--1", "folds-1.5", "fixed-1"])
def test_names_of_splits(name: str) -> None:
    with pytest.raises(UserError, match=f"no split is called '{name}'"):
        data = open_data("karate")
        NodeClassification().for_data(data).fold(data, name)


def test_splits_that_the_data_do_not_bring(make_blocks: Any) -> None:
    graph = make_blocks()
    data = GivenGraph.hold(replace(graph, splits=np.tile((np.arange(graph.nodes) // 7 % 3).astype(np.int8), (2, 1)), _cache={}))
    task = NodeClassification().for_data(data)
    assert len(task.fold(data, "given-1").test.query.rows)
    with pytest.raises(UserError, match="split given-2: the data bring 2, given-0 to given-1"):
        task.fold(data, "given-2")
