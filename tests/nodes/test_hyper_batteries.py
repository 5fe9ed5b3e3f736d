"""Hypergraph methods, their task and their probe through the batteries; what folds hold; answers and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.task import Part
from latticework.data.graph import Nodes
from latticework.data.hypergraph import Hypergraph, finish
from latticework.data.hypergraph_sets import GivenHypergraph
from latticework.nodes.hyper_baselines import CliqueGCN
from latticework.nodes.hyper_tasks import HypergraphNodeClassification, calibration_error
from latticework.testing import check_method, check_probe, check_task

FINGERPRINTS = Path(__file__).parent / "fingerprints_hyper.json"
DATA = "digits-hyperedges(images=150)"
METHODS = (
    "hgnn(epochs=6)", "hgnn(norm=row; epochs=6)", "hnhn(epochs=6)", "clique-gcn(epochs=6)", "light-hgnn(epochs=6; teacher.method=hgnn(epochs=6))",
    "light-hgnn-plus(epochs=6; teacher.method=hgnn(epochs=6))", "majority", "mlp(epochs=6)", "logistic-regression",
)  # fmt: skip


@pytest.mark.parametrize("text", METHODS)
def test_method(text: str) -> None:
    # stored scores are by method and data: the second form of a method stands on other data
    data = DATA.replace("150", "120") if "norm=row" in text else DATA
    check_method(entry_of(text), data, "hypergraph-node-classification", fingerprints=FINGERPRINTS)


@pytest.mark.parametrize("protocol", ["transductive", "production"])
def test_task(protocol: str) -> None:
    check_task(HypergraphNodeClassification(protocol=protocol), DATA)  # type: ignore[arg-type]


def test_probe() -> None:
    check_probe("hypergraph-smoothness(net.method=hnhn(epochs=3); against.method=hgnn(epochs=3))", DATA)


# -- folds ---------------------------------------------------------------------------------------------------------------
def given(y: list[int], members: list[list[int]], features: int = 2, classes: int | None = None) -> GivenHypergraph:
    n = len(y)
    x = np.random.default_rng(0).standard_normal((n, features)).astype(np.float32) + np.array(y)[:, None]
    return GivenHypergraph.hold(
        finish(
            Hypergraph(
                np.cumsum([0, *map(len, members)]), np.array([v for m in members for v in m], np.int64),
                tuple(f"v{i}" for i in range(n)), tuple(f"e{i}" for i in range(len(members))), x=x.astype(np.float32),
                y=np.array(y, np.int64), classes=tuple(f"class {c}" for c in range(classes or max(y) + 1)),
                features=tuple(f"f{i}" for i in range(features)),
            )
        )
    )  # fmt: skip


def test_labels_are_drawn_a_class(mirror: Any) -> None:
    mirror("hypergraphs-citation")
    data = open_data("hypergraphs-citation:cora-coauthorship")
    fold = HypergraphNodeClassification().fold(data, "draw-1")
    assert fold.valid is not None
    assert (np.bincount(fold.train.truth.y) == 20).all() and (np.bincount(fold.valid.truth.y) == 100).all()
    rows = np.concatenate([p.query.rows for p in (fold.train, fold.valid, fold.test)])
    assert np.array_equal(np.sort(rows), np.arange(2708))
    other = HypergraphNodeClassification().fold(data, "draw-2")
    assert len(np.intersect1d(fold.train.query.rows, other.train.query.rows)) < 40  # 140 of 2,708: 7 are expected
    # for use, nothing is kept back but what chooses the epoch
    last = HypergraphNodeClassification().fold(data, "all-0")
    assert last.valid is not None and len(last.test.query.rows) == 0
    assert len(last.train.query.rows) + len(last.valid.query.rows) == 2708


def test_production_hides_the_new_vertices_and_their_memberships(mirror: Any) -> None:
    mirror("hypergraphs-citation")
    data = open_data("hypergraphs-citation:cora-coauthorship")
    graph = data.read()
    fold = HypergraphNodeClassification(protocol="production").fold(data, "draw-0")
    assert fold.valid is not None
    group, names = fold.test.truth.slices["vertices"]
    assert names == ("observed", "unseen") and group.sum() == round(0.2 * len(fold.test.query.rows))
    unseen = {fold.test.query.ids[i] for i in fold.test.query.rows[group == 1]}
    seen = set(fold.train.query.ids)
    assert seen == set(graph.ids) - unseen and fold.train.data.vertices == len(seen) == len(fold.train.data.x)
    assert fold.valid.data is fold.train.data and fold.test.data.vertices == 2708
    # memberships: those of observed vertices, as sets by id
    vertex, edge = graph.edge_index
    kept = [(graph.ids[v], e) for v, e in zip(vertex, edge, strict=True) if graph.ids[v] in seen]
    inner = fold.train.data.edge_index.numpy()
    number = {e: k for k, e in enumerate(sorted({e for _, e in kept}))}
    assert {(fold.train.query.ids[v], e) for v, e in inner.T} == {(i, number[e]) for i, e in kept}
    # the labels belong to the same ids as in the whole
    label = dict(zip(graph.ids, graph.y, strict=True))
    for part in fold:
        assert part is not None
        assert [label[part.query.ids[r]] for r in part.query.rows] == part.truth.y.tolist()
    # the same labels as in the transductive protocol: only what is seen differs
    open_fold = HypergraphNodeClassification().fold(data, "draw-0")
    assert [fold.train.query.ids[r] for r in fold.train.query.rows] == [
        open_fold.train.query.ids[r] for r in open_fold.train.query.rows
    ]
    assert np.array_equal(fold.test.query.rows, open_fold.test.query.rows)


@pytest.mark.parametrize(
    ("size", "labels", "valid", "expected"),
    [(121, 20, 100, (20, 100)), (120, 20, 100, (20, 50)), (30, 20, 100, (15, 7)), (3, 20, 100, (2, 0)), (1, 20, 100, (1, 0)), (9, 4, 0, (4, 0))],
)  # fmt: skip
def test_a_class_with_few_labels(size: int, labels: int, valid: int, expected: tuple[int, int]) -> None:
    data = given([0] * size + [1] * 300, [[0, size]])
    task = HypergraphNodeClassification(labels=labels, valid=valid)
    split = task.split(data.read(), "draw-0")[:size]
    assert ((split == 0).sum(), (split == 1).sum()) == expected
    assert task.short(data.read()) == ({} if expected == (labels, valid) else {"class 0": expected})


def test_few_labels_are_said_by_the_fit() -> None:
    from latticework.core.run import Run, fitted

    task, data = HypergraphNodeClassification(), given([0] * 9 + [1] * 300, [[0, 10], [3, 4]])
    fold = task.fold(data, "draw-0")
    for name in ("hgnn(epochs=2)", "light-hgnn(epochs=2; teacher.method=hgnn(epochs=2))", "clique-gcn(epochs=2)"):
        run = Run(task=task, digest=data.digest(), fold="draw-0")
        fitted(entry_of(name), fold.train, fold.valid, run)
        assert "class 'class 0' has few labelled nodes: 5 train and 2 validate" in run.notes, run.notes


def test_what_cannot_be_learnt_is_said_before_training() -> None:
    task = task_of("hypergraph-node-classification")
    for data, says in (
        (given([-1, -1], [[0, 1]], classes=2), "no node has a label"),
        (given([0, 0, -1], [[0, 1]]), r"all labelled nodes have one class \('class 0'\)"),
        (given([0, 2, 2], [[0, 1]]), "no node has class 'class 1'"),
    ):
        with pytest.raises(UserError, match=says):
            task.for_data(data)
    with pytest.raises(UserError, match="no labelled node is left to test on"):
        task.fold(given([0, 1], [[0, 1]]), "draw-0")
    # unlabelled vertices are seen, never judged
    fold = task.fold(given([0, 0, 1, 1, -1], [[0, 4]]), "draw-0")
    assert fold.train.data.vertices == 5 and 4 not in np.concatenate([fold.train.query.rows, fold.test.query.rows])


def test_the_calibration_error_by_hand() -> None:
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.62, 0.38], [0.3, 0.7]])
    y = np.array([0, 1, 0, 1])
    # bins of 1/15: two answers of confidence .9 half right, .62 right, .7 right
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.62) + abs(1 - 0.7)) / 4
    assert calibration_error(chances, y) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(np.eye(3)[[0, 1, 2]], np.array([0, 1, 2])) == pytest.approx(0, abs=1e-6)


def test_scores_stand_at_vertices() -> None:
    task = HypergraphNodeClassification(protocol="production")
    fold = task.fold(open_data(DATA), "draw-0")
    group = fold.test.truth.slices["vertices"][0]
    answer = np.full((len(group), 10), 0.05)
    answer[np.arange(len(group)), fold.test.truth.y] = 0.55
    answer[group == 1] = np.roll(answer[group == 1], 1, axis=1)  # right on the observed, wrong on the unseen
    scores = task.score(answer, fold.test, None)
    at = {s.at["range"]: s.value for s in scores if s.at.get("slice") == "vertices"}
    assert at == {"observed": 1.0, "unseen": 0.0}
    assert task.headline(scores) == pytest.approx((group == 0).mean())
    assert {s.metric for s in scores if not s.at} == {m.name for m in task.metrics}
    assert next(s.value for s in scores if s.metric == "unseen-drop") == pytest.approx(1.0)


# -- baselines -----------------------------------------------------------------------------------------------------------
def test_a_method_of_hyperedges_says_that_it_needs_them() -> None:
    from latticework.core.run import Run, fitted

    task, data = HypergraphNodeClassification(), open_data(DATA)
    fold = task.fold(data, "draw-0")
    bare = Hypergraph(np.zeros(1, np.int64), np.zeros(0, np.int64), ("a", "b"), (), x=np.ones((2, 64), np.float32), linked=False)
    part = Part(bare.tensors(), Nodes(np.arange(2), bare.ids), None, fold.test.schema)
    for name in ("hgnn(epochs=1)", "hnhn(epochs=1)", "clique-gcn(epochs=1)"):
        run = Run(task=task, digest=data.digest(), fold="draw-0")
        model = fitted(entry_of(name), fold.train, fold.valid, run)
        with pytest.raises(UserError, match=f"{model.method.name} reads hyperedges, and none were given; add hyperedges.csv"):
            model.predict(part)
        facts = {**data.facts(), "linked": False}
        assert "add hyperedges.csv" in str(model.method.refuses(task, facts))
        assert "no features" in str(model.method.refuses(task, {**data.facts(), "features": 0}))
    # one who reads features alone answers
    assert fitted(entry_of("mlp(epochs=1)"), fold.train, fold.valid, run).predict(part).shape == (2, 10)


def test_clique_gcn_is_gcn_on_the_clique_graph() -> None:
    from latticework.layers.propagation import normalised_adjacency

    data = given([0, 1, 0, 1, 0], [[0, 1, 2], [1, 3], [0, 2]])
    part = HypergraphNodeClassification().fold(data, "draw-0").train
    pairs = torch.tensor([[0, 0, 1, 1], [1, 2, 2, 3]])
    expected = normalised_adjacency(pairs, 5, undirected=True)
    S = CliqueGCN().inputs(part, "cpu")[1]
    assert np.abs(S.to_scipy().toarray() - expected.to_scipy().toarray()).max() < 1e-6
