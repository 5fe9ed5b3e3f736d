"""The task of link prediction: its cut, its negatives, its metrics against brute force, users' files, leaks that are planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latticework as lw
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.result import Score
from latticework.core.task import Fold, Part
from latticework.core.value import digest_of
from latticework.data.events import Events, in_order
from latticework.data.graph import Graph, finish
from latticework.data.graph_sets import GivenGraph
from latticework.links.baselines import CommonNeighbours, HeuristicModel
from latticework.links.heuristics import linked, pattern, shared
from latticework.links.negatives import distinct_non_links, hard_negatives, non_links, ranked_partners
from latticework.links.ranking import Truth, hits_at, kth_best, list_ranks, ranks
from latticework.links.tasks import (
    TEST,
    TRAIN,
    VALID,
    Candidates,
    LinkPairs,
    LinkPrediction,
    as_fitted,
    deal,
    graph_of,
    links_of,
    schema_for,
)
from latticework.testing import check_task
from latticework.testing.links import check_no_link_leak

from ..conftest import blocks

SMALL = {"k": 5}
HARD = {"k": 5, "negatives": "hard", "against": 20}


def keys(pairs: Any, n: int) -> set[int]:
    return {int(min(i, j)) * n + int(max(i, j)) for i, j in np.asarray(pairs).T}


def given_graph(n: int = 60, **how: Any) -> Any:
    return open_data(blocks(n, **how))


# -- the cut -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields", [SMALL, HARD])
def test_battery(fields: dict[str, Any]) -> None:
    check_task(LinkPrediction(**fields), "karate")


@pytest.mark.parametrize("fields", [SMALL, HARD])
def test_parts(fields: dict[str, Any]) -> None:
    data = given_graph()
    links = links_of(data)
    n, m = 60, links.pairs.shape[1]
    fold = LinkPrediction(**fields).fold(data, "random-3")
    assert fold.valid is not None
    parts = (fold.train, fold.valid, fold.test)
    mine = [keys(p.query.pairs[:, p.truth.y], n) for p in parts]
    assert [len(k) for k in mine] == [round(0.7 * m), round(0.8 * m) - round(0.7 * m), m - round(0.8 * m)]
    assert set.union(*mine) == keys(links.pairs, n) and sum(map(len, mine)) == m
    for part in parts:
        edges = part.data.edge_index.numpy()
        assert keys(edges, n) == mine[0] and edges.shape[1] == 2 * len(mine[0])  # both directions, once
        assert part.data.x.shape == (60, 4) and not part.data.directed and part.data.y is None
        assert part.query.ids == blocks().ids
    # the test part avoids all links, the validation part all that it may know
    assert not keys(fold.test.query.pairs[:, ~fold.test.truth.y], n) & keys(links.pairs, n)
    assert not keys(fold.valid.query.pairs[:, ~fold.valid.truth.y], n) & (mine[0] | mine[1])
    if fold.test.truth.lists is None:
        false = fold.test.query.pairs[:, ~fold.test.truth.y]
        assert len(keys(false, n)) == false.shape[1] == len(mine[2])
    else:
        for number in range(len(mine[2])):
            here = fold.test.truth.lists == number
            pairs, y = fold.test.query.pairs[:, here], fold.test.truth.y[here]
            assert y.sum() == 1 and len(y) == 21 and len(keys(pairs, n)) == 21
            ends = set(pairs[:, y].ravel().tolist())
            assert all(len(ends & set(pair)) == 1 for pair in pairs[:, ~y].T.tolist())  # each keeps one end


def test_the_order_of_a_query_tells_nothing() -> None:
    """Neither the place in the query nor which end comes first differs between links and others (chance: 1 in a million)."""
    fold = LinkPrediction(k=50).fold(given_graph(400, seed=2), "random-0")
    y, pairs = fold.test.truth.y, fold.test.query.pairs
    place = np.arange(len(y))
    spread = len(y) / np.sqrt(12) * np.sqrt(4 / len(y))
    assert abs(place[y].mean() - place[~y].mean()) < 5 * spread
    rising = [float((pairs[0, side] < pairs[1, side]).mean()) for side in (y, ~y)]
    assert all(abs(share - 0.5) < 5 / np.sqrt(2 * len(y)) for share in rising)


def test_deal_hangs_on_the_pair_alone() -> None:
    pairs = np.stack([np.arange(500), np.arange(500) + 7])
    whole = deal(pairs, 3)
    assert np.array_equal(deal(pairs[:, ::-1][:, :100], 3), whole[::-1][:100])
    assert len(np.unique(whole)) == 500 and not np.array_equal(whole, deal(pairs, 4))
    share = float((whole < np.uint64(2**62)).mean())
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 500)


def test_keep_train_thins_after_the_split() -> None:
    data, task = given_graph(), LinkPrediction(**SMALL)
    whole, half = task.fold(data, "random-0"), task.but(keep_train=0.5).fold(data, "random-0")
    assert whole.valid is not None and half.valid is not None
    n = 60
    many, few = keys(whole.train.query.pairs, n), keys(half.train.query.pairs, n)
    assert few < many and len(few) == round(0.5 * len(many))
    assert keys(half.train.data.edge_index.numpy(), n) == few
    assert np.array_equal(whole.test.query.pairs, half.test.query.pairs)  # the same questions


def test_add_valid_shows_validation_links_at_the_test_alone() -> None:
    fold = LinkPrediction(**SMALL, add_valid=True).fold(given_graph(), "random-0")
    assert fold.valid is not None
    train, valid = keys(fold.train.query.pairs, 60), keys(fold.valid.query.pairs[:, fold.valid.truth.y], 60)
    assert keys(fold.valid.data.edge_index.numpy(), 60) == train
    assert keys(fold.test.data.edge_index.numpy(), 60) == train | valid


def test_a_model_for_use_keeps_only_validation_links_out() -> None:
    data, task = given_graph(), LinkPrediction(**SMALL)
    fold = task.fold(data, task.final(data))
    m = links_of(data).pairs.shape[1]
    assert fold.train.query.pairs.shape[1] == round(0.9 * m) and fold.valid is not None
    assert int(fold.valid.truth.y.sum()) == m - round(0.9 * m) and not len(fold.test.truth.y)
    assert task.but(valid=0.0).fold(data, "all-0").valid is None


def log(n: int = 30, m: int = 400, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    src, dst = rng.integers(0, n, m), rng.integers(0, n, m)
    return in_order(Events(tuple(str(i) for i in range(n)), src, dst, rng.integers(0, 60, m).astype(float)))


def test_by_time_cuts_first_meetings_in_order() -> None:
    events = log()
    data = open_data(events)
    task = LinkPrediction(k=5, split="by-time")
    links = links_of(data)
    first: dict[tuple[int, int], float] = {}
    for u, v, t in zip(events.src.tolist(), events.dst.tolist(), events.t.tolist(), strict=True):
        if u != v:
            first.setdefault((min(u, v), max(u, v)), t)
    assert links.time is not None
    assert {tuple(p): t for p, t in zip(links.pairs.T.tolist(), links.time.tolist(), strict=True)} == first
    code = task.cut(links, "by-time-0")
    times = [links.time[code == c] for c in (TRAIN, VALID, TEST)]
    assert times[0].max() < times[1].min() and times[1].max() < times[2].min()  # equal times are never cut apart
    fold = task.fold(data, "by-time-0")
    assert keys(fold.test.data.edge_index.numpy(), events.nodes) == {
        u * events.nodes + v for (u, v), t in first.items() if t < times[1].min()
    }
    check_task(task, data)
    check_task(LinkPrediction(k=5), data)


def test_direction_repeats_and_loops() -> None:
    edges = np.array([[0, 1, 1, 2, 2, 3, 0], [1, 0, 2, 1, 2, 2, 1]])
    graph = finish(Graph(edges, tuple("abcd"), weight=np.array([1, 5, 2, 1, 9, 3, 1], np.float32)), None)
    links = links_of(open_data(graph))
    assert links.pairs.T.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert links.weight is not None and links.weight.tolist() == [5.0, 2.0, 3.0]  # max of (1 + 1, 5), of (2, 1)
    both = graph_of(links, np.array([0, 2]))
    assert both.edge_index.T.tolist() == [[0, 1], [2, 3], [1, 0], [3, 2]] and both.weight is not None
    assert both.weight.tolist() == [5.0, 3.0, 5.0, 3.0]


# -- negatives ---------------------------------------------------------------------------------------------------------------
def test_an_edge_of_weight_zero_is_a_link() -> None:
    edges, weight = np.array([[0, 1, 2, 3, 2], [1, 2, 0, 0, 1]]), np.array([0, 1, 0, 2, 3], np.float32)
    links = links_of(GivenGraph.hold(finish(Graph(edges, tuple("abcd"), weight=weight), None)))
    assert links.pairs.T.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2]]
    assert links.weight is not None and links.weight.tolist() == [0, 0, 2, 3]


def test_uniform_non_links_are_uniform() -> None:
    A = pattern(np.array([[0, 1, 2], [1, 2, 3]]), 6)
    free = [(i, j) for i in range(6) for j in range(i + 1, 6) if not A[i, j]]
    drawn = non_links(A, 24_000, np.random.default_rng(0))
    assert drawn.shape == (2, 24_000) and not linked(A, drawn).any() and (drawn[0] != drawn[1]).all()
    counts = np.array([((np.sort(drawn, axis=0) == np.array([pair]).T).all(0)).sum() for pair in free])
    expected = 24_000 / len(free)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    few = distinct_non_links(A, 5, np.random.default_rng(1))
    assert len(keys(few, 6)) == 5
    # and where rejection is used instead of a list
    big = pattern(np.stack([np.arange(299), np.arange(1, 300)]), 300)
    many = distinct_non_links(big, 1000, np.random.default_rng(2))
    assert len(keys(many, 300)) == 1000 and not linked(big, many).any()


def test_too_few_non_links() -> None:
    full = pattern(np.stack(np.nonzero(np.triu(np.ones((5, 5)), 1))), 5)
    with pytest.raises(UserError, match="all 5 nodes are joined"):
        non_links(full, 1, np.random.default_rng(0))
    with pytest.raises(UserError, match=r"3 pairs without a link are needed.* 0 among the 5 nodes"):
        distinct_non_links(full, 3, np.random.default_rng(0))


def test_hard_negatives_are_what_heuristics_rank_highest() -> None:
    """Against a dense computation; candidates that no heuristic tells apart may come in any order."""
    from scipy.stats import rankdata

    links = links_of(open_data(blocks(40, seed=3)))
    A = pattern(links.pairs, 40)
    dense, degree = A.toarray(), A.sum(1)
    allocation = dense @ np.diag(1 / np.maximum(degree, 1)) @ dense
    P = dense / degree[:, None]
    x = np.eye(40)[:, :7] + 0.01  # the first nodes are alike in nothing, the rest in all
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for features, third in ((None, []), (x, [unit @ unit.T])):
        found = ranked_partners(A, A, np.arange(40), 10, np.random.default_rng(0), features)
        for node in range(40):
            views = [allocation[node], _steps(P, node), *(view[node] for view in third)]
            rank = np.mean([rankdata(-view.round(12)) for view in views], axis=0)
            rank[dense[node] > 0] = rank[node] = np.inf
            assert np.allclose(rank[found[node]], np.sort(rank)[:10], atol=1e-9)
            assert np.isfinite(rank[found[node]]).all() and len(set(found[node].tolist())) == 10


def _steps(P: Any, node: int) -> Any:
    start = np.eye(len(P))[node]
    state = start
    for _ in range(20):
        state = 0.15 * start + 0.85 * (state @ P)
    return state


def test_hard_negatives_of_full_nodes_are_fewer() -> None:
    star = pattern(np.stack([np.zeros(9, int), np.arange(1, 10)]), 10)
    pairs, lists = hard_negatives(star, star, np.array([[0], [1]]), 10, np.random.default_rng(0))
    assert (pairs[1] == 1).all() and set(pairs[0].tolist()) <= set(range(2, 10)) and len(lists) == 5


# -- metrics -----------------------------------------------------------------------------------------------------------------
scores = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(scores, scores, st.integers(1, 30))
def test_ranks_and_hits_equal_brute_force(positives: list[int], negatives: list[int], k: int) -> None:
    p, q = np.array(positives, float), np.array(negatives, float)
    expected = [1 + sum(b > a for b in negatives) + sum(b == a for b in negatives) / 2 for a in positives]
    assert np.array_equal(ranks(p, q), expected)
    if k > len(q):
        with pytest.raises(ValueError, match=f"the {k}-th best of {len(q)}"):
            kth_best(q, k)
    else:
        assert hits_at(p, q, k) == np.mean([a > sorted(negatives, reverse=True)[k - 1] for a in positives])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=8), min_size=1, max_size=6), st.integers(0, 10_000))
def test_lists_equal_brute_force(given_lists: list[list[int]], seed: int) -> None:
    """Each list's first score is the link's; Hits and MRR of the task on them, in any order of pairs."""
    rng = np.random.default_rng(seed)
    flat = [(number, i == 0, float(s)) for number, row in enumerate(given_lists) for i, s in enumerate(row)]
    order = rng.permutation(len(flat))
    lists, y, answer = (np.array([flat[i][c] for i in order]) for c in range(3))
    rank = [1 + sum(b > row[0] for b in row[1:]) + sum(b == row[0] for b in row[1:]) / 2 for row in given_lists]
    truth = Truth(y.astype(bool), lists)
    assert sorted(list_ranks(answer, truth)) == sorted(rank)
    task = LinkPrediction(negatives="hard", k=2, against=3)
    part = Part(None, LinkPairs(np.zeros((2, len(y)), int), ()), truth)
    found = {s.metric: s.value for s in task.score(answer, part, None)}
    assert found["mrr"] == pytest.approx(np.mean(1 / np.array(rank))) == task.value(answer, part, None)  # type: ignore[arg-type]
    assert found["hits@2"] == np.mean([row[0] > sorted(row[1:], reverse=True)[1] for row in given_lists])


def test_scores_of_the_uniform_task() -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    task = LinkPrediction(k=5)
    part = task.fold(given_graph(), "random-0").test
    answer = np.random.default_rng(0).normal(size=len(part.truth.y)) + part.truth.y
    found = task.score(answer, part, None)
    whole = {s.metric: s.value for s in found if not s.at}
    assert task.headline_metric == "hits@5" and task.headline(found) == whole["hits@5"] == task.value(answer, part, None)  # type: ignore[arg-type]
    assert whole["auc"] == roc_auc_score(part.truth.y, answer)
    assert whole["average-precision"] == average_precision_score(part.truth.y, answer)
    for kind in ("common neighbours", "smaller degree"):  # slices cut the links and their mean is the whole
        mine = [s for s in found if s.at.get("slice") == kind]
        assert sum(s.at["links"] for s in mine) == part.truth.y.sum() and len(mine) > 1
        assert sum((s.value or 0) * s.at["links"] for s in mine) / part.truth.y.sum() == pytest.approx(whole["hits@5"])


def test_slices_say_what_they_say() -> None:
    part = LinkPrediction(k=5).fold(given_graph(), "random-0").test
    group, names = part.truth.slices["common neighbours"]
    A = pattern(part.data.edge_index, 60)
    common = shared(A, part.query.pairs)
    ranges = {"0": (0, 0), "1–2": (1, 2), "3–9": (3, 9), "10 or more": (10, 1e9)}
    for row in np.flatnonzero(part.truth.y):
        low, high = ranges[names[group[row]]]
        assert low <= common[row] <= high
    assert (group[~part.truth.y] == -1).all()


def test_nothing_to_judge() -> None:
    task = LinkPrediction(k=5)
    fold = task.fold(given_graph(), "all-0")
    found = task.score(np.zeros(0), fold.test, None)
    assert all(s == Score(s.metric, None, {}, "there are no links") for s in found) and len(found) == 4


# -- leaks, planted and caught -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields", [SMALL, HARD, {**SMALL, "add_valid": True}, {**SMALL, "keep_train": 0.7}])
def test_no_leak(fields: dict[str, Any]) -> None:
    check_no_link_leak(LinkPrediction(**fields), given_graph(), "resource-allocation")


class Leaky(LinkPrediction):
    """A task that leaves test links in the message passing, in a feature, or in the heuristic that ranks negatives."""

    name: ClassVar[str] = "link-prediction"
    where: ClassVar[str] = "edges"

    def fold(self, data: Any, name: str) -> Fold:
        fold = super().fold(data, name)
        links = links_of(data)
        if self.where == "heuristic" or fold.valid is None:
            return fold
        whole = graph_of(links, np.arange(links.pairs.shape[1]))
        seen = fold.train.data.clone()
        if self.where == "edges":
            seen = whole.tensors()
        elif self.where == "one edge":
            test = torch.from_numpy(fold.test.query.pairs[:, fold.test.truth.y][:, :1])
            seen.edge_index = torch.cat([seen.edge_index, test], dim=1)
        else:
            degree = np.bincount(whole.edge_index[0], minlength=whole.nodes).astype(np.float32)
            seen.x = torch.cat([seen.x, torch.from_numpy(degree)[:, None]], dim=1)
        return Fold(*(p._replace(data=seen) for p in (fold.train, fold.valid, fold.test)))

    def _part(self, graph: Any, of: Any, asked: Any, known: Any, name: str, schema: Any) -> Part:
        if self.where != "heuristic":
            return super()._part(graph, of, asked, known, name, schema)
        # partners are ranked by what the whole graph says
        part = super()._part(graph_of(of, np.arange(of.pairs.shape[1])), of, asked, known, name, schema)
        return part._replace(data=graph.tensors())


@pytest.mark.parametrize(
    ("where", "says"),
    [("edges", "is an edge of the graph"), ("one edge", "is an edge of the graph"), ("feature", "part changes with the test links"),
     ("heuristic", "the valid part changes with the test links")],
)  # fmt: skip
def test_a_planted_leak_is_caught(where: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leaky, "where", where)
    fields = HARD if where == "heuristic" else SMALL
    with pytest.raises(AssertionError, match=says):
        check_no_link_leak(Leaky(**fields), given_graph())


class Peeking(CommonNeighbours):
    """A heuristic that counts in the whole graph, which it finds by the run's digest."""

    name: ClassVar[str] = "common-neighbours"

    def fit(self, train: Part, valid: Part | None, run: Any) -> HeuristicModel:
        held = next(g for c, g in GivenGraph._held.items() if digest_of([GivenGraph.name, c]) == run.digest)
        A = pattern(held.edge_index, held.nodes)
        model = HeuristicModel(self, dict(train.schema))
        model.predict = lambda part: shared(A, part.query.pairs)  # type: ignore[method-assign]
        return model


def test_a_method_that_peeks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latticework.testing.links.fitted", lambda method, train, valid, run: method.fit(train, valid, run))
    check_no_link_leak(LinkPrediction(**SMALL), given_graph(), CommonNeighbours())
    with pytest.raises(AssertionError, match="answers change with the test links"):
        check_no_link_leak(LinkPrediction(**SMALL), given_graph(), Peeking())


# -- errors ------------------------------------------------------------------------------------------------------------------
def test_k_above_the_negatives_names_both() -> None:
    with pytest.raises(UserError, match=r"k = 100 needs more negatives.* has 7; use -s task.k=3"):
        LinkPrediction().fold(lw.dataset("karate"), "random-0")
    with pytest.raises(UserError, match=r"k = 100 needs more.*shortest list of a link has \d+"):
        LinkPrediction(negatives="hard", against=50).fold(lw.dataset("karate"), "random-0")


def test_errors_of_the_cut() -> None:
    with pytest.raises(UserError, match="must add up to less than 1"):
        LinkPrediction(train=0.9, valid=0.1, k=1).fold(lw.dataset("karate"), "random-0")
    with pytest.raises(UserError, match="needs events with times"):
        LinkPrediction(split="by-time").for_data(lw.dataset("karate"))
    pair = finish(Graph(np.array([[0], [1]]), ("a", "b", "c")), False)
    with pytest.raises(UserError, match="too few links: the valid part of split random-0 has none"):
        LinkPrediction(k=1).fold(open_data(pair), "random-0")
    loops = finish(Graph(np.array([[0], [0]]), ("a", "b")), False)
    with pytest.raises(UserError, match="no two different nodes are joined"):
        LinkPrediction(k=1).fold(open_data(loops), "random-0")
    full = finish(Graph(np.stack(np.nonzero(1 - np.eye(8))).astype(np.int64), tuple("abcdefgh")), False)
    with pytest.raises(UserError, match="pairs without a link are needed"):
        LinkPrediction(k=1).fold(open_data(full), "random-0")


def test_negative_weights_and_features_of_another_length() -> None:
    graph = blocks()
    weight = np.ones(graph.edge_index.shape[1], np.float32)
    weight[3] = -2
    u, v = (graph.ids[int(e[3])] for e in graph.edge_index)
    with pytest.raises(UserError, match=f"'{u}' to '{v}' has weight -2"):
        LinkPrediction(**SMALL).fold(open_data(replace(graph, weight=weight, _cache={})), "random-0")
    assert graph.x is not None
    with pytest.raises(UserError, match="59 rows of features for 60 nodes"):
        LinkPrediction(**SMALL).fold(open_data(replace(graph, x=graph.x[:-1], _cache={})), "random-0")


@pytest.mark.parametrize(
    ("pairs", "says"),
    [([[0, 60], [1, 2]], r"pair 1 is \(60, 2\): nodes are numbered 0..59"), ([[0, -1], [1, 2]], "pair 1 is"),
     ([[0, 4], [1, 4]], "joins 'node 4' to itself")],
)  # fmt: skip
def test_pairs_out_of_range_or_of_one_node(pairs: Any, says: str) -> None:
    task = LinkPrediction(**SMALL)
    fold = task.fold(given_graph(), "random-0")
    model = HeuristicModel(CommonNeighbours(), fold.train.schema)
    asked = fold.test.blind()._replace(query=LinkPairs(np.array(pairs), fold.test.query.ids))
    with pytest.raises(UserError, match=says):
        task.answer(model, asked, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bad", "says"), [(np.nan, "not finite for 'node"), (None, r"gave scores \[3\] for \d+ pairs")])
def test_bad_answers(bad: Any, says: str) -> None:
    task = LinkPrediction(**SMALL)
    part = task.fold(given_graph(), "random-0").test.blind()

    class Bad(HeuristicModel):
        def predict(self, part: Part) -> Any:
            return np.zeros(3) if bad is None else np.full(part.query.pairs.shape[1], bad)

    with pytest.raises(UserError, match=says):
        task.answer(Bad(CommonNeighbours(), part.schema), part, None)  # type: ignore[arg-type]


# -- a user's files ----------------------------------------------------------------------------------------------------------
def links_csv(path: Path, graph: Graph | None = None) -> Graph:
    """links.csv alone: each link once, as people write it."""
    graph = graph or blocks()
    pairs = links_of(open_data(graph)).pairs
    names = np.array(graph.ids, object)
    pl.DataFrame({"source": names[pairs[0]].tolist(), "target": names[pairs[1]].tolist()}).write_csv(path)
    return graph


def test_as_a_user_types_it(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    graph = links_csv(tmp_path / "links.csv")
    n, runs = graph.nodes, ("--runs", tmp_path / "runs")
    status, said, error = command(
        "fit", "gcn-links:small", tmp_path / "links.csv", "-s", "task.k=5", "-s", "epochs=5", "-o", tmp_path / "model", *runs
    )
    assert status == 0, error
    assert "weights of epoch" in said
    out = tmp_path / "candidates.csv"
    status, _, error = command("predict", tmp_path / "model", tmp_path / "links.csv", "--top", "12", "-o", out)
    assert status == 0, error
    table = pl.read_csv(out)
    assert table.columns == ["source", "target", "score", "probability", "common neighbours"] and len(table) == 12
    score = table["score"].to_numpy()
    assert (np.diff(score) <= 0).all() and np.allclose(table["probability"], 1 / (1 + np.exp(-score)))
    place = {name: i for i, name in enumerate(graph.ids)}
    pairs = np.array([[place[u], place[v]] for u, v in zip(table["source"], table["target"], strict=True)]).T
    A = pattern(links_of(open_data(graph)).pairs, n)
    assert not linked(A, pairs).any() and len(keys(pairs, n)) == 12
    assert table["common neighbours"].to_list() == shared(A, pairs).tolist()

    (tmp_path / "pairs.csv").write_text("source,target\nnode 0,node 1\nnode 3,node 0\n")
    status, _, error = command(
        "predict", tmp_path / "model", tmp_path / "links.csv", "--pairs", tmp_path / "pairs.csv", "-o", tmp_path / "two.csv"
    )
    assert status == 0, error
    two = pl.read_csv(tmp_path / "two.csv")
    assert two["source"].to_list() == ["node 0", "node 3"] and two["linked"].to_list() == [bool(A[0, 1]), bool(A[3, 0])]
    for text, says in (
        ("source,target\nnode 0,node 99\n", "line 2: 'node 99' is no node of the graph"),
        ("source,target\nnode 0,node 1\nnode 2,node 2\n", "line 3: 'node 2' is paired with itself"),
    ):
        (tmp_path / "pairs.csv").write_text(text)
        status, _, error = command(
            "predict", tmp_path / "model", tmp_path / "links.csv", "--pairs", tmp_path / "pairs.csv", "-o", tmp_path / "no.csv"
        )
        assert status != 0 and says in error and not (tmp_path / "no.csv").exists()

    status, said, error = command(
        "compare", tmp_path / "links.csv", "-s", "task.k=5", "-m", "adamic-adar,gcn-links(epochs=3)", "--repeats", "2",
        "--no-baselines", *runs,
    )  # fmt: skip
    assert status == 0 and "adamic-adar" in said and "gcn-links" in said, error


def test_top_is_the_best_of_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed in small blocks, the same as a sort of the whole matrix."""
    monkeypatch.setattr("latticework.links.tasks.CHUNK", 100)
    graph = links_csv(tmp_path / "links.csv")
    fitted = lw.fit("adamic-adar", tmp_path / "links.csv", settings={"task.k": 5})
    found = fitted.predict(tmp_path / "links.csv", top=30)
    assert isinstance(found.part.query, Candidates)
    A = pattern(links_of(open_data(graph)).pairs, graph.nodes)
    weight = 1 / np.log(np.maximum(np.diff(A.indptr), 2))
    score = (A @ np.diag(weight) @ A).astype(float)
    free = np.triu(A.toarray() == 0, 1)
    assert np.allclose(found.values.score, np.sort(score[free])[::-1][:30])
    place = {name: i for i, name in enumerate(graph.ids)}
    i, j = (np.array([place[found.part.query.ids[e]] for e in side]) for side in found.values.pairs)
    assert np.allclose(score[i, j], found.values.score)
    found.write(tmp_path / "out.csv")
    assert "probability" not in pl.read_csv(tmp_path / "out.csv").columns  # a count is no logit


def test_a_file_in_another_order_is_matched_by_name(tmp_path: Path) -> None:
    """A model of the fitted nodes answers the same wherever the lines of the file stand, also without a lonely node's line."""
    graph = links_csv(tmp_path / "links.csv")
    fitted = lw.fit("link-mf", tmp_path / "links.csv", settings={"task.k": 5, "epochs": 3, "hidden": 8})
    rows = pl.read_csv(tmp_path / "links.csv")
    rows.sample(fraction=1.0, shuffle=True, seed=1).write_csv(tmp_path / "other.csv")
    (tmp_path / "pairs.csv").write_text("source,target\nnode 0,node 1\nnode 3,node 0\n")
    one, two = (fitted.predict(tmp_path / f, pairs=tmp_path / "pairs.csv").values.score for f in ("links.csv", "other.csv"))
    assert np.array_equal(one, two)
    lonely = rows.filter((pl.col("source") != "node 5") & (pl.col("target") != "node 5"))
    lonely.write_csv(tmp_path / "fewer.csv")
    assert np.array_equal(one, fitted.predict(tmp_path / "fewer.csv", pairs=tmp_path / "pairs.csv").values.score)
    pl.concat([rows, pl.DataFrame({"source": ["node 0"], "target": ["stranger"]})]).write_csv(tmp_path / "more.csv")
    with pytest.raises(UserError, match=r"'stranger' is new.*fit again: latticework fit link-mf"):
        fitted.predict(tmp_path / "more.csv")
    assert graph.nodes == 60


def test_a_heuristic_answers_for_the_nodes_of_the_file_alone(tmp_path: Path) -> None:
    links_csv(tmp_path / "links.csv")
    fitted = lw.fit("common-neighbours", tmp_path / "links.csv", settings={"task.k": 5})
    fitted.save(tmp_path / "m")
    (tmp_path / "new.csv").write_text("source,target\nA,B\nB,C\n")
    for model in (fitted, lw.load(tmp_path / "m")):
        found = model.predict(tmp_path / "new.csv", top=5)
        ids = found.part.query.ids
        assert [(ids[i], ids[j]) for i, j in found.values.pairs.T] == [("A", "C")] and found.values.score.tolist() == [1.0]


@pytest.mark.parametrize("name", ["common-neighbours", "katz", "link-mf", "svd"])
def test_who_reads_no_features_asks_for_none(name: str) -> None:
    graph = blocks()
    assert graph.x is not None
    bare = replace(graph, x=None, features=(), _cache={})
    other = replace(graph, x=graph.x[:, :2], features=("p", "q"), _cache={})
    how = {"epochs": 2, "hidden": 8} if name == "link-mf" else {}
    fitted = lw.fit(name, graph, task="link-prediction", settings={"task.k": 5, **how})
    one, two, three = (fitted.predict(g, top=20).values.score for g in (graph, bare, other))
    assert np.array_equal(one, two) and np.array_equal(one, three)
    with pytest.raises(UserError, match="needs the node features"):
        lw.fit("gcn-links", graph, settings={"task.k": 5, "epochs": 2}).predict(bare)


def test_what_is_merged_is_said(tmp_path: Path) -> None:
    (tmp_path / "edges.csv").write_text(
        "source,target\n" + "".join(f"{i},{(i * 7 + j) % 30}\n" for i in range(30) for j in range(4))
    )
    fitted = lw.fit("common-neighbours", tmp_path / "edges.csv", settings={"task.k": 3, "data.directed": True})
    assert fitted.run is not None and fitted.run.notes[0] == "directed edges count as links: each pair once, both ways"
    assert any("self-loops do not count as links" in note for note in fitted.run.notes)
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, 20, (2, 200))
    events = in_order(Events(tuple(map(str, range(20))), src, dst, np.arange(200.0), np.ones(200, np.float32)))
    fitted = lw.fit("common-neighbours", events, task="link-prediction", settings={"task.k": 3})
    assert fitted.run is not None and "weights of events are not read" in fitted.run.notes


def test_an_encoder_of_other_nodes_is_named() -> None:
    fitted = lw.fit("svd", blocks(), task="link-prediction", settings={"task.k": 5})
    with pytest.raises(UserError, match=r"^svd answers for .* latticework fit svd -s task=link-prediction NEW-DATA"):
        fitted.predict(blocks(80))


def test_top_goes_with_no_file_of_pairs(tmp_path: Path) -> None:
    links_csv(tmp_path / "links.csv")
    (tmp_path / "pairs.csv").write_text("source,target\nnode 0,node 1\n")
    fitted = lw.fit("common-neighbours", tmp_path / "links.csv", settings={"task.k": 5})
    with pytest.raises(UserError, match="give one of them"):
        fitted.predict(tmp_path / "links.csv", pairs=tmp_path / "pairs.csv", top=1)


def test_a_node_with_itself_is_judged_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("source,target,label\na,b,1\nc,c,0\n")
    (tmp_path / "answers.csv").write_text("source,target,score\na,b,1\nc,c,0\n")
    with pytest.raises(UserError, match=r"answers\.csv, line 3: 'c' is paired with itself"):
        lw.score("link-prediction", tmp_path / "answers.csv", tmp_path / "truth.csv", {"task.k": 1})


def test_no_link_is_no_data_for_links() -> None:
    with pytest.raises(UserError, match="no two different nodes are joined"):
        LinkPrediction().for_data(open_data(finish(Graph(np.array([[0, 1], [0, 1]]), ("a", "b"), directed=False), False)))


def test_features_are_matched_by_name() -> None:
    graph = blocks()
    assert graph.x is not None
    turned = replace(graph, x=np.ascontiguousarray(graph.x[:, ::-1]), features=graph.features[::-1], _cache={})
    schema = schema_for(graph)
    same = as_fitted(turned, schema)
    assert same.x is not None and np.array_equal(same.x, graph.x) and same.features == graph.features
    with pytest.raises(UserError, match="needs the node feature 'f3'; found f0, f1, f2"):
        as_fitted(replace(graph, x=graph.x[:, :3], features=graph.features[:3], _cache={}), schema)


def test_a_category_that_does_not_occur_here_is_a_column_of_zeros() -> None:
    graph = replace(blocks(), features=("kind=a", "kind=b", "kind=c", "size"), _cache={})
    assert graph.x is not None
    fewer = replace(graph, x=graph.x[:, [3, 0]], features=("size", "kind=a"), _cache={})
    x = as_fitted(fewer, schema_for(graph)).x
    assert x is not None and np.array_equal(x[:, [0, 3]], graph.x[:, [0, 3]]) and not x[:, 1:3].any()


def test_judging_predictions_made_elsewhere(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    task = LinkPrediction(k=5)
    part = task.fold(given_graph(), "random-0").test
    answer = np.random.default_rng(0).normal(size=len(part.truth.y)) + part.truth.y
    names = np.array(part.query.ids, object)
    i, j = part.query.pairs
    task.write(answer, part, tmp_path / "answers.csv")
    # the truth in another order and direction
    order = np.random.default_rng(1).permutation(len(i))
    told = pl.DataFrame({
        "source": names[j[order]].tolist(), "target": names[i[order]].tolist(), "label": part.truth.y[order].astype(int),
    })  # fmt: skip
    told.write_csv(tmp_path / "truth.csv")
    expected = {s.metric: s.value for s in task.score(answer, part, None) if not s.at}
    found = {s.metric: s.value for s in task.judge(tmp_path / "answers.csv", tmp_path / "truth.csv")}
    assert found == pytest.approx(expected)
    status, said, error = command("score", "link-prediction", tmp_path / "answers.csv", tmp_path / "truth.csv", "-s", "k=5")
    assert status == 0 and f"{expected['hits@5']:.4f}" in said, error
    with pytest.raises(UserError, match=r"k = 1000 needs more negatives than the \d+ of"):
        task.but(k=1000).judge(tmp_path / "answers.csv", tmp_path / "truth.csv")
    told[1:].write_csv(tmp_path / "short.csv")
    with pytest.raises(UserError, match=r"short\.csv lacks the pair"):
        task.judge(tmp_path / "answers.csv", tmp_path / "short.csv")
    with pytest.raises(UserError, match="both 1"):
        told.with_columns(label=pl.lit(1)).write_csv(tmp_path / "ones.csv")
        task.judge(tmp_path / "answers.csv", tmp_path / "ones.csv")
    rows = pl.read_csv(tmp_path / "answers.csv")
    pl.concat([rows, rows[:1].select("target", "source", "score", "probability").rename({"target": "source", "source": "target"})]).write_csv(tmp_path / "twice.csv")  # fmt: skip
    with pytest.raises(UserError, match="stands more than once"):
        task.judge(tmp_path / "twice.csv", tmp_path / "truth.csv")


def test_a_truth_names_each_pair_once(tmp_path: Path) -> None:
    (tmp_path / "said.csv").write_text("source,target,score\na,b,1\nc,d,0\ne,f,0\n")
    for rows, hard in (
        ("b,a,1\na,b,0\nc,d,0\ne,f,0\n", False),
        ("a,b,1\nc,d,0\ne,f,0\nf,e,0\n", False),
        ("a,b,1,x\nc,d,0,x\nd,c,0,x\n", True),
    ):
        (tmp_path / "truth.csv").write_text("source,target,label" + (",list" if hard else "") + "\n" + rows)
        with pytest.raises(UserError, match=r"names the pair '.', '.' twice"):
            LinkPrediction(k=1, negatives="hard" if hard else "uniform").judge(tmp_path / "said.csv", tmp_path / "truth.csv")


def test_judging_lists(tmp_path: Path) -> None:
    task = LinkPrediction(**HARD)
    part = task.fold(given_graph(), "random-0").test
    names = np.array(part.query.ids, object)
    answer = np.asarray(shared(pattern(part.data.edge_index, 60), part.query.pairs))
    i, j = part.query.pairs
    ends = {"source": names[i].tolist(), "target": names[j].tolist()}
    turned = pl.DataFrame({**ends, "score": answer}).with_columns(
        low=pl.min_horizontal("source", "target"), high=pl.max_horizontal("source", "target")
    )
    turned.unique(["low", "high"]).write_csv(tmp_path / "answers.csv")  # a pair of two lists is answered once
    pl.DataFrame({**ends, "label": part.truth.y.astype(int), "list": part.truth.lists}).write_csv(tmp_path / "truth.csv")
    found = {s.metric: s.value for s in task.judge(tmp_path / "answers.csv", tmp_path / "truth.csv")}
    assert found == pytest.approx({s.metric: s.value for s in task.score(answer, part, None) if not s.at})
    with pytest.raises(UserError, match="column 'list': judge it with -s negatives=hard"):
        LinkPrediction(**SMALL).judge(tmp_path / "answers.csv", tmp_path / "truth.csv")
