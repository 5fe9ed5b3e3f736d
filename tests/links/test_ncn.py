"""NCN as a recipe: the batteries, leaks, errors, node classifiers as encoders, real data, the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from latticework.core import store
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import evaluate
from latticework.core.grid import entry_of, task_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run, peak_bytes, reset_peak
from latticework.core.task import Fold, Part
from latticework.data.graph import Graph, finish, undirected_pairs
from latticework.links import heuristics
from latticework.links.neural_common_neighbor.method import NCN, LinkNet, NCNModel, pattern_of
from latticework.links.neural_common_neighbor.predictor import prior_odds
from latticework.links.neural_common_neighbor.sets import joined, without
from latticework.links.tasks import LinkPairs, LinkPrediction
from latticework.testing import check_method
from latticework.testing.links import check_no_link_leak

FINGERPRINTS = Path(__file__).parent / "fingerprints_ncn.json"
TINY = {"hidden": 16, "batch": 24, "epochs": 4, "lr": 0.01, "predictor_lr": 0.01, "x_dropout": 0.2, "set_dropout": 0.1}
TASK = "link-prediction(k=5)"


def tiny(**fields: Any) -> NCN:
    found = NCN().with_settings(TINY | fields)
    assert isinstance(found, NCN)
    return found


def fitted(method: NCN, fold: Fold, task: Any, **how: Any) -> NCNModel:
    run = Run(task=task, seed=0, label="ncn", **how)
    with run.seeded():
        return method.fit(fold.train, fold.valid, run)


# -- batteries -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"depth": 1, "learn_pt": True, "train_draws": 3},
        {"common": "none"},
        {"common": "count", "beyond": "difference"},
        {"encoder": "gcn(hidden=8)", "beyond": "second"},
        {"encoder": "convolutions", "residual": True, "remove_targets": False},
    ],
    ids=lambda fields: "-".join(map(str, fields)) or "plain",
)
def test_battery(fields: dict[str, Any]) -> None:
    # one stored score a method and data set
    check_method(tiny(**fields), "karate", TASK, fingerprints=None if fields else FINGERPRINTS)


def test_battery_without_features() -> None:
    check_method(tiny(depth=1), "barabasi-albert(nodes=50; edges=3)", TASK, fingerprints=FINGERPRINTS)


@pytest.mark.parametrize(
    "preset", ["cora", "citeseer", "pubmed", "collab", "seal", "completion", "gae", "count", "difference", "second"]
)
def test_presets_are_known(preset: str) -> None:
    method = entry_of(f"ncn:{preset}")
    assert isinstance(method, NCN) and method.refuses(task_of(TASK), {}) is None
    assert (preset == "cora") == (method == NCN())


# -- leaks -----------------------------------------------------------------------------------------------------------
class Thinned(LinkPrediction):
    """The task on data from which the test links have been deleted: the same training, validation and question."""

    def fold(self, data: Any, name: str) -> Fold:
        whole = super().fold(data, name)
        graph = data.read()
        links = undirected_pairs(graph)
        test = whole.test.query.pairs[:, whole.test.truth.y]
        n = graph.nodes
        gone = np.isin(links.min(0) * n + links.max(0), test.min(0) * n + test.max(0))
        left = finish(replace(graph, edge_index=links[:, ~gone], weight=None, _cache={}), False)
        A = heuristics.pattern(left.edge_index, n)
        valid = whole.valid.query.pairs[:, whole.valid.truth.y]
        seen = without(A, valid)
        i, j = seen.nonzero()
        data_seen = replace(left, edge_index=np.stack([i, j]).astype(np.int64), y=None, classes=(), _cache={}).tensors()
        return Fold(*(part._replace(data=data_seen) for part in whole))


@pytest.mark.parametrize("depth", [0, 1])
def test_deleting_test_links_changes_no_score(depth: int) -> None:
    data = open_data("karate")
    answers = []
    for task in (LinkPrediction(k=5), Thinned(k=5)):
        fold = task.fold(data, "random-0")
        answers.append(fitted(tiny(depth=depth), fold, task).predict(fold.test.blind()))
    assert np.array_equal(*answers) and np.ptp(answers[0]) > 0


def test_exchanging_test_links_changes_no_answer() -> None:
    check_no_link_leak(TASK, "karate", tiny(depth=1))


@pytest.mark.parametrize("encoder", ["puregcn", "convolutions", "sage(hidden=8; layers=2)"])
def test_a_step_does_not_see_its_own_links(encoder: str) -> None:
    """The step's loss stays the same when the batch is added to the graph; without removal it changes."""
    fold = LinkPrediction(k=5).fold(open_data("karate"), "random-0")
    part = fold.train
    links, others = part.query.pairs[:, :12], fold.test.query.pairs[:, ~fold.test.truth.y][:, :12]
    A = pattern_of(part.data)
    bare = without(A, links)
    assert (joined(bare, links) != A).nnz == 0
    for removed in (True, False):
        method = tiny(encoder=encoder, remove_targets=removed, depth=1, offset=0.0)
        torch.manual_seed(0)
        net = LinkNet(method, part.schema).eval()
        x = method.features(part, "cpu")
        with torch.no_grad():
            a, b = (float(method.loss(net, graph, links, others, part, x, "cpu")) for graph in (A, bare))
        assert (a == b) == removed


@pytest.mark.parametrize("links", [1, 2, 5, 200, 3455, 3456, 9999])
def test_a_step_leaves_most_of_a_small_graph(links: int) -> None:
    size = NCN().links_of_a_step(links)
    assert 1 <= size <= max(1, links / 3) and (size == 1152 or links < 3456)
    assert NCN().but(remove_targets=False).links_of_a_step(links) == 1152


def test_no_step_of_a_small_graph_looks_at_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default batch, greater than the whole graph."""
    left: list[float] = []

    def seen(A: Any, links: Any) -> Any:
        bare = without(A, links)
        left.append(bare.nnz / A.nnz)
        return bare

    monkeypatch.setattr("latticework.links.neural_common_neighbor.method.without", seen)
    task = LinkPrediction(k=5)
    fold, run = task.fold(open_data("karate"), "random-0"), Run(task=task, seed=0, label="ncn")
    with run.seeded():
        tiny(batch=1152).fit(fold.train, fold.valid, run)
    assert len(left) >= 12 and min(left) > 0.6
    links = fold.train.query.pairs.shape[1]
    assert f"steps of {links // 3} links instead of 1152: two thirds of the graph must be left without them" in run.notes


@pytest.mark.parametrize("pt", [1e-50, 1e-6, 1.0])
def test_completion_is_finite_for_every_share(pt: float) -> None:
    """Where a link is all but sure and its odds are multiplied by next to nothing."""
    logit = torch.tensor([-1e3, -3.0, 0.0, 3.0, 1e3], requires_grad=True)
    found = prior_odds(logit, pt, 1.0, 100.0, -100.0)
    found.sum().backward()
    assert logit.grad is not None and torch.isfinite(logit.grad).all() and (found >= 0).all() and (found <= 1).all()
    learned = prior_odds(logit, torch.full((5,), pt), 1.0, 100.0, -100.0)
    assert torch.isfinite(learned).all() and torch.allclose(learned, found, atol=1e-6)


# -- the model -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("depth", [1, 2])
def test_sampled_completion_answers_each_pair_alike(depth: int) -> None:
    """Whatever else is asked, whichever end comes first, however often."""
    given = open_data("karate")
    task = task_of(TASK).for_data(given)
    fold = task.fold(given, "random-0")
    model = fitted(tiny(depth=depth, test_draws=1, offset=-2.0), fold, task)
    part = fold.test.blind()
    whole = model.predict(part)
    pairs = part.query.pairs
    assert np.array_equal(model.predict(part), whole)
    turned = model.predict(part._replace(query=part.query._replace(pairs=pairs[::-1, ::-1].copy())))[::-1]
    alone = np.concatenate([model.predict(part._replace(query=part.query._replace(pairs=pairs[:, i : i + 1]))) for i in range(9)])
    assert np.allclose(turned, whole, atol=1e-5) and np.allclose(alone, whole[:9], atol=1e-5)
    exact = fitted(tiny(depth=depth, offset=-2.0), fold, task).predict(part)
    assert not np.allclose(exact, whole, atol=1e-4)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    task = LinkPrediction(k=5)
    fold = task.fold(open_data("karate"), "random-0")
    model = fitted(tiny(depth=1), fold, task)
    whole = model.predict(fold.test)
    monkeypatch.setattr("latticework.links.neural_common_neighbor.method._BUDGET", 50)
    monkeypatch.setattr("latticework.links.neural_common_neighbor.predictor._BUDGET", 50)
    assert np.allclose(model.predict(fold.test), whole, atol=1e-5)
    nothing = fold.test._replace(query=LinkPairs(np.zeros((2, 0), np.int64), fold.test.query.ids))
    assert model.predict(nothing).shape == (0,)
    assert all(len(column) == 0 for column in model.counts(nothing).values())


def test_counts_and_explanation() -> None:
    task = LinkPrediction(k=5)
    fold = task.fold(open_data("karate"), "random-0")
    model = fitted(tiny(depth=1, hops=2), fold, task)
    counted = model.counts(fold.test)
    A = heuristics.pattern(fold.test.data.edge_index, 34)
    assert counted["common neighbours"].tolist() == heuristics.shared(A, fold.test.query.pairs).tolist()
    assert (counted["expected by completion"] >= 0).all() and counted["expected by completion"].max() > 0
    said = model.explain(fold.test)
    assert set(said.scalars) >= {"beta", "common neighbours of a pair, mean", "pairs with expected by completion"}
    assert [row["hop"] for row in said.tables["weight per hop"]] == [1, 2]
    alone = fitted(tiny(common="none"), fold, task)
    assert alone.explain(fold.test).scalars == {}


def test_scope_follows_the_features(tmp_path: Path) -> None:
    task = LinkPrediction(k=5)
    with_features = task.fold(open_data("karate"), "random-0")
    assert fitted(tiny(), with_features, task).scope == "new data"
    data = open_data("barabasi-albert(nodes=50; edges=3)")
    fold = task.fold(data, "random-0")
    model = fitted(tiny(), fold, task)
    assert model.scope == "fitted data"
    store.save_model(model, tmp_path / "m")
    assert np.array_equal(store.load_model(tmp_path / "m").predict(fold.test), model.predict(fold.test))
    larger = open_data("barabasi-albert(nodes=51; edges=3)").read()
    part = Part(larger.tensors(), LinkPairs(np.array([[0], [50]]), larger.ids), None, model.schema)
    with pytest.raises(UserError, match=r"a vector for each of 50 nodes.*51"):
        model.predict(part)


def test_an_epoch_is_chosen_on_the_valid_part() -> None:
    task = LinkPrediction(k=5)
    fold = task.fold(open_data("karate"), "random-0")
    run = Run(task=task, seed=0)
    with run.seeded():
        model = tiny(epochs=12, batch=16).fit(fold.train, fold.valid, run)
    curve = [v for _, v in run.curve["valid"]]
    best = max(curve)
    assert task.value(model.predict(fold.valid), fold.valid, run) == best
    assert run.notes == [f"weights of epoch {curve.index(best) + 1}, chosen on validation hits@5"]
    free = Run(task=task, seed=0)
    with free.seeded():
        tiny(epochs=2, batch=16).fit(fold.train, None, free)
    assert "valid" not in free.curve and len(free.curve["loss"]) == 2 and not free.notes


# -- errors ----------------------------------------------------------------------------------------------------------
def test_what_does_not_go_together_is_refused() -> None:
    for fields, says in (
        ({"common": "count", "depth": 1, "clean_recursion": False}, "set clean_recursion=true"),
        ({"encoder": "convolutions", "hops": 0}, "set hops=1"),
    ):
        reason = tiny(**fields).refuses(task_of(TASK), {})
        assert reason is not None and says in reason


def test_errors() -> None:
    task = LinkPrediction(k=5)
    fold = task.fold(open_data("karate"), "random-0")
    model = fitted(tiny(epochs=1), fold, task)

    def asked(pairs: list[list[int]]) -> Part:
        return fold.test._replace(query=LinkPairs(np.array(pairs), fold.test.query.ids))

    with pytest.raises(ValueError, match=r"nodes are numbered 0..33"):
        model.predict(asked([[0], [34]]))
    with pytest.raises(ValueError, match="node 3 with itself"):
        model.predict(asked([[3], [3]]))
    negative = fold.train.data.clone()
    negative.edge_weight = -torch.ones(negative.edge_index.shape[1])
    with pytest.raises(UserError, match="weight -1"):
        fitted(tiny(), fold._replace(train=fold.train._replace(data=negative)), task)
    empty = fold.train._replace(query=LinkPairs(np.zeros((2, 0), np.int64), fold.train.query.ids))
    with pytest.raises(UserError, match="no link to learn from"):
        fitted(tiny(), fold._replace(train=empty), task)
    with pytest.raises(UserError, match="k = 100 needs more negatives than there are: one part has"):
        task_of("link-prediction").fold(open_data("karate"), "random-0")
    facts = open_data("karate").facts()
    assert "looks at no neighbours" in str(tiny(common="none", depth=1).refuses(task, facts))
    for other in ("adpa", "gin", "gps", "graph-mamba", "k-path", "hgnn", "clique-gcn"):  # of whole graphs, of hypergraphs
        assert "no network" in str(NCN(encoder=entry_of(other)).refuses(task, facts)), other  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no method is called 'gnc'"):
        entry_of("ncn(encoder=gnc)")


def test_out_of_time_keeps_what_it_has(tmp_path: Path) -> None:
    task, data = LinkPrediction(k=5), open_data("karate")
    late = evaluate(task, data, tiny(epochs=100_000), "random-0", 0, Ledger(tmp_path), deadline_in(2.0))
    assert late.status == "stopped" and late.headline is not None


def deadline_in(seconds: float) -> Any:
    from latticework.core.evaluate import Options

    return Options(time_s=seconds)


# -- real data -------------------------------------------------------------------------------------------------------
def test_usair_beats_counting(mirror: Callable[[str], Path]) -> None:
    """A few epochs, one split: above common neighbours by far."""
    mirror("seal-links")
    task, data = LinkPrediction(k=20), open_data("seal-links:usair")
    fold = task.fold(data, "random-0")
    method = entry_of("ncn:seal(hidden=64; epochs=15)")
    assert isinstance(method, NCN)
    model = fitted(method, fold, task)
    answer = task.answer(model, fold.test.blind(), Run(task=task))
    scores = {s.metric: s.value for s in task.score(answer, fold.test, None) if not s.at}
    counted = heuristics.shared(heuristics.pattern(fold.test.data.edge_index, 332), fold.test.query.pairs)
    assert scores["hits@20"] is not None and scores["auc"] is not None
    assert scores["auc"] > 0.92 and scores["hits@20"] > task.value(counted, fold.test, Run(task=task)) + 0.03  # type: ignore[operator]


def test_many_pairs_take_little_memory(mirror: Callable[[str], Path]) -> None:
    mirror("seal-links")
    graph = open_data("seal-links:router").read()
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, graph.nodes, (2, 100_000))
    pairs = pairs[:, pairs[0] != pairs[1]]
    method = NCN(hidden=64, depth=1)
    schema = {"features": [], "nodes": graph.nodes, "classes": []}
    model = NCNModel(method, schema, LinkNet(method, schema))
    part = Part(graph.tensors(), LinkPairs(pairs, graph.ids), None, schema)
    model.vectors(part)
    reset_peak()
    before = peak_bytes()
    assert np.isfinite(model.predict(part)).all()
    assert peak_bytes() - before < 500e6


# -- as a user types it ----------------------------------------------------------------------------------------------
def test_command_line(command: Any, tmp_path: Path, make_blocks: Callable[..., Graph]) -> None:
    graph = make_blocks(n=60)
    i, j = undirected_pairs(graph)
    pl.DataFrame({"source": [graph.ids[k] for k in i], "target": [graph.ids[k] for k in j]}).write_csv(tmp_path / "links.csv")
    small = ["-s", "hidden=16", "-s", "epochs=5", "-s", "batch=64", "-s", "task.k=5"]
    status, out, err = command("fit", "ncn:completion", tmp_path / "links.csv", "-o", tmp_path / "MODEL", "--time", "1m", *small)
    assert status == 0, err
    assert "common-neighbours" in out + err or (tmp_path / "MODEL").is_dir()
    status, out, err = command("predict", tmp_path / "MODEL", tmp_path / "links.csv", "--top", "20", "-o", tmp_path / "c.csv")
    assert status == 0, err
    found = pl.read_csv(tmp_path / "c.csv")
    assert found.columns == ["source", "target", "score", "probability", "common neighbours", "expected by completion"]
    assert len(found) == 20 and found["probability"].is_between(0, 1).all() and found["score"].is_sorted(descending=True)
    known = set(zip(i.tolist(), j.tolist(), strict=True))
    place = {name: k for k, name in enumerate(graph.ids)}
    asked = [tuple(sorted((place[a], place[b]))) for a, b in zip(found["source"], found["target"], strict=True)]
    assert len(set(asked)) == 20 and not known & set(asked)
    pl.DataFrame({"source": ["node 0", "node 1"], "target": ["node 5", "node 9"]}).write_csv(tmp_path / "pairs.csv")
    words = ["predict", tmp_path / "MODEL", tmp_path / "links.csv", "--pairs", tmp_path / "pairs.csv", "-o", tmp_path / "p.csv"]
    status, out, err = command(*words)
    assert status == 0, err
    assert pl.read_csv(tmp_path / "p.csv")["target"].to_list() == ["node 5", "node 9"]
    (tmp_path / "more.csv").write_text((tmp_path / "links.csv").read_text() + "node 0,stranger\n")
    status, out, err = command("predict", tmp_path / "MODEL", tmp_path / "more.csv", "-o", tmp_path / "x.csv")
    assert status == 2 and "a vector for each of 60 nodes" in err
