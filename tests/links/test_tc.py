"""Topological Concentration as users meet it: the probe, the method, the commands, the batteries, real data."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latticework as lw
from latticework.core.errors import UserError
from latticework.core.run import Run, fitted
from latticework.data.graph import Graph, finish
from latticework.data.graph_sets import GivenGraph
from latticework.layers.propagation import SparseOperator
from latticework.links.baselines import GCNLinks, LinkMF, SAGELinks
from latticework.links.heuristics import pattern
from latticework.links.tasks import LinkPrediction
from latticework.links.topological_concentration import row_softmax, topological_concentration
from latticework.links.topological_concentration.method import ReweightedNet, TCReweight, mark_of
from latticework.links.topological_concentration.probe import TopologicalConcentrationProbe
from latticework.testing import check_method, check_probe
from latticework.testing.links import check_no_link_leak

PRINTS = Path(__file__).with_name("fingerprints_tc.json")
TASK = LinkPrediction(k=5)
SHORT: dict[str, Any] = {
    "decoder": "mlp", "dropout": 0.0, "lr": 0.01, "hidden": 16, "epochs": 8, "patience": 8, "batch": 1152, "weight_decay": 0.0,
    "row_normalise": True, "layers": 2, "residual": False, "norm": "none",
}  # fmt: skip
SMALL = GCNLinks(**SHORT)


def probed(data: Any, folder: Path | None = None, **settings: Any) -> Any:
    given = lw.dataset(data)
    run = Run(task=None, digest=given.digest(), label="test", folder=folder)
    with run.seeded():
        return TopologicalConcentrationProbe(task=TASK).with_settings(settings).measure(given, run)


# -- batteries -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("link", [SMALL, SAGELinks(**SHORT)], ids=["gcn", "sage"])
def test_method_passes_the_battery(link: Any) -> None:
    check_method(TCReweight(link=link), "karate", TASK, fingerprints=PRINTS if link is SMALL else None)


@pytest.mark.parametrize("settings", [{}, {"exact": False}, {"hops": 2, "model.method": "common-neighbours"}], ids=str)
def test_probe_passes_the_battery(settings: dict[str, Any]) -> None:
    check_probe(TopologicalConcentrationProbe(task=TASK, splits=2).with_settings(settings), "karate")


# -- the probe ---------------------------------------------------------------------------------------------------------------
def test_values_are_those_of_the_split(tmp_path: Path) -> None:
    found = probed("karate", tmp_path)
    data = lw.dataset("karate")
    fold = TASK.fold(data, "random-0")
    A = pattern(fold.train.query.pairs, 34)
    test = pattern(fold.test.query.pairs[:, fold.test.truth.y], 34)
    with found.files[0].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list(data.read().ids)
    for word, asked in (("train", None), ("test", test)):
        exact = topological_concentration(A, asked)
        for row, value, defined in zip(rows, exact.values, exact.defined, strict=True):
            assert (row[f"tc_{word}"] != "") == bool(defined)
            assert not defined or float(row[f"tc_{word}"]) == pytest.approx(value)
        assert found.scalars[f"TC of {word} neighbours"] == pytest.approx(exact.mean())
    both = topological_concentration(A).defined & topological_concentration(A, test).defined
    change = (topological_concentration(A).values - topological_concentration(A, test).values)[both].mean()
    assert found.scalars["shift to test neighbours (train - test)"] == pytest.approx(change)
    assert set(found.figures) == {"train and test neighbours"} and found.scalars["train links"] == 55


def test_a_small_graph_needs_no_settings() -> None:
    """Without a fit here, the k of the task's Hits@k asks nothing of the graph; the split is the same."""
    assert lw.probe("topological-concentration", "karate").scalars == probed("karate").scalars
    with pytest.raises(UserError, match=r"use -s task\.k="):
        lw.probe("topological-concentration", "karate", settings={"model.method": "gcn-links"})


def test_a_complete_graph_is_measured_too() -> None:
    """No pair without a link is needed where nothing is judged, and none is chosen by a heuristic."""
    i, j = np.triu_indices(12, 1)
    graph = finish(Graph(np.stack([i, j]), tuple(f"n{k}" for k in range(12)), directed=False), False)
    found = lw.probe("topological-concentration", graph)
    assert 0 < found.scalars["TC of train neighbours"] <= 1
    with pytest.raises(UserError, match="every node is joined to every other"):
        lw.probe("topological-concentration", graph, settings={"model.method": "common-neighbours"})
    karate = lw.probe("topological-concentration", "karate", settings={"model.method": "common-neighbours"})
    assert karate.scalars["nodes ranked for"] > 0


def test_nothing_is_written_without_a_folder() -> None:
    assert not probed("karate").files


def test_answers_at_nodes_are_the_models(tmp_path: Path) -> None:
    """Common neighbours, ranked by hand on the train graph, known links left out."""
    found = probed("karate", tmp_path, **{"model.method": "common-neighbours", "k": 3, "least": 1})
    data = lw.dataset("karate")
    fold = TASK.fold(data, "random-0")
    A = pattern(fold.train.query.pairs, 34)
    common = (A @ A).toarray()
    truth = pattern(fold.test.query.pairs[:, fold.test.truth.y], 34).toarray() > 0
    known = (A + pattern(fold.valid.query.pairs[:, fold.valid.truth.y], 34)).toarray() > 0
    with found.files[0].open() as file:
        rows = list(csv.DictReader(file))
    asked = 0
    for i, row in enumerate(rows):
        if not truth[i].any():
            assert row["hits@3"] == row["mrr"] == ""
            continue
        asked += 1
        free = [j for j in range(34) if j != i and not known[i, j]]
        best = max(common[i, j] for j in free if truth[i, j])
        ahead, level = sum(common[i, j] > best for j in free), sum(common[i, j] >= best for j in free)
        assert 1 / level <= float(row["mrr"]) <= 1 / (ahead + 1) + 1e-9
        if ahead >= 3 or level <= 3:
            assert float(row["hits@3"]) == (ahead < 3)
    assert found.scalars["nodes ranked for"] == asked
    assert {"performance by TC", "performance by degree"} <= set(found.figures)
    assert found.scalars["TC over degree, nodes"] == pytest.approx(
        found.scalars["TC with performance, nodes"] - found.scalars["degree with performance, nodes"]
    )


def test_a_saved_model_brings_its_split_along(tmp_path: Path, graph_folder: Path) -> None:
    lw.fit("common-neighbours", graph_folder, settings={"task.k": 5}).save(tmp_path / "model")
    found = probed(graph_folder, tmp_path / "out", **{"model.saved": str(tmp_path / "model")})
    # a model for use trains on all but the validation links
    assert found.scalars["judged by"] == "valid links of all-0" and found.scalars["TC of test neighbours"] is None
    assert found.scalars["nodes ranked for"] > 0
    lw.fit("common-neighbours", graph_folder, settings={"task.k": 5}, fold="random-1").save(tmp_path / "other")
    kept = probed(graph_folder, **{"model.saved": str(tmp_path / "other")})
    assert kept.scalars["judged by"] == "test links of random-1"
    with pytest.raises(UserError, match="fitted on other data"):
        probed("karate", **{"model.saved": str(tmp_path / "model")})


def test_errors_of_the_probe() -> None:
    for settings, word in (
        ({"hops": 0}, "hops"),
        ({"model.method": "majority"}, "majority is for"),
        ({"model.net": "net:make"}, "bare net"),
        ({"task.split": "by-time"}, "needs events with times"),
    ):
        with pytest.raises(UserError, match=word):
            probed("karate", **settings)
    lonely = GivenGraph.hold(finish(Graph(np.zeros((2, 0), np.int64), ("a", "b", "c")), False))
    with pytest.raises(UserError, match="no two different nodes are joined"):
        probed(lonely)


def test_approximate_alone_has_a_bound_and_no_exact_value(tmp_path: Path) -> None:
    found = probed("karate", tmp_path, exact=False, dim=256)
    assert not any(key.startswith("TC") for key in found.scalars) and found.scalars["ATC of train neighbours"] is not None
    assert found.scalars["standard error of ATC, train neighbours"] > 0
    wide = probed("karate", exact=False, dim=4096)
    ratio = found.scalars["standard error of ATC, train neighbours"] / wide.scalars["standard error of ATC, train neighbours"]
    assert ratio == pytest.approx(4, rel=0.25)
    header = (tmp_path / "nodes.csv").read_text().splitlines()[0].split(",")
    assert "atc_error_train" in header and "tc_train" not in header


# -- commands --------------------------------------------------------------------------------------------------------------
def test_commands(command: Callable[..., tuple[int, str, str]], graph_folder: Path, tmp_path: Path) -> None:
    edges, model, out = graph_folder / "edges.csv", tmp_path / "model", tmp_path / "findings"
    words = ("-s", "link=gcn-links", "-s", "link.hidden=8", "-s", "link.epochs=3", "-s", "task.k=5")
    status, said, error = command("fit", "tc-reweight", edges, *words, "-o", model)
    assert status == 0, error
    status, said, error = command(
        "probe", "topological-concentration", edges, "-s", "hops=1", "-s", f"model.saved={model}", "-o", out
    )
    assert status == 0, error
    assert "TC with performance, nodes" in said and (out / "nodes.csv").exists()
    assert json.loads((out / "findings.json").read_text())["scalars"]["judged by"] == "valid links of all-0"
    status, said, error = command("predict", model, edges, "--top", 3, "-o", tmp_path / "links.csv")
    assert status == 0, error
    assert len((tmp_path / "links.csv").read_text().splitlines()) == 4
    status, said, error = command("fit", "tc-reweight", edges, "-s", "link=link-mf", "-o", tmp_path / "no")
    assert status == 2 and "gcn-links or sage-links" in error and not (tmp_path / "no").exists()


# -- the method ------------------------------------------------------------------------------------------------------------
def fit_on(data: str, method: Any, seed: int = 0) -> tuple[Any, Any, Run]:
    given = lw.dataset(data)
    fold = TASK.fold(given, "random-0")
    run = Run(task=TASK, digest=given.digest(), fold="random-0", seed=seed)
    return fitted(method, fold.train, fold.valid, run), fold, run


@pytest.mark.parametrize("link", [SMALL, SAGELinks(**SHORT)], ids=["gcn", "sage"])
def test_alpha_zero_is_the_bare_predictor(link: Any) -> None:
    bare, fold, _ = fit_on("karate", link)
    model, _, _ = fit_on("karate", TCReweight(link=link, alpha=0.0))
    assert (bare.predict(fold.test.blind()) == model.predict(fold.test.blind())).all()
    S = link.operator(fold.train, "cpu")
    assert (model.net.weights.numpy() == S.values).all()


def test_gradients_of_encoder_and_decoder_are_clipped_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TCReweight().link.clip == 2.0
    seen: list[tuple[float, ...]] = []
    step = torch.optim.Adam.step

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        encoder, decoder = net.halves()
        seen.append(tuple(float(torch.cat([p.grad.flatten() for p in half]).norm()) for half in (encoder, decoder)))
        return step(self, *args, **more)

    fold = TASK.fold(lw.dataset("karate"), "random-0")
    for clip in (0.0, 0.01):
        link = SMALL.but(clip=clip)
        net = TCReweight(link=link).wrapped(link.build(fold.train, Run(task=TASK)))
        assert sum(map(len, net.halves())) == len(list(net.parameters())) and len(net.halves()[1]) == 4
        net.begin(link.features(fold.train, "cpu"), link.operator(fold.train, "cpu"))
        seen.clear()
        with monkeypatch.context() as m:
            m.setattr(torch.optim.Adam, "step", watched)
            link.trained(net, fold.train, None, Run(task=TASK))
        norms = torch.tensor(seen)
        assert len(norms) == 8 and (bool((norms > 0.011).any()) if clip == 0 else bool((norms < 0.0101).all()))


def test_added_mass_and_the_time_of_the_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[int] = []
    whole = ReweightedNet.update
    monkeypatch.setattr(ReweightedNet, "update", lambda self: (updates.append(int(self.epoch)), whole(self))[1])
    model, fold, _ = fit_on("karate", TCReweight(link=SMALL, alpha=1.5, warm_up=2, interval=3))
    assert updates == [2, 5]  # of eight epochs
    updates.clear()
    model, fold, _ = fit_on("karate", TCReweight(link=SMALL, alpha=1.5, warm_up=0, interval=3))
    assert updates == [0, 3, 6]
    S = SMALL.operator(fold.train, "cpu")
    W = S.with_values(model.net.weights.numpy())
    before, after = S.to_scipy().sum(1), W.to_scipy().sum(1)
    assert np.abs(after - before - 1.5 * before).max() < 1e-5


def test_weights_are_of_the_formula_and_leave_no_gradient() -> None:
    given = lw.dataset("karate")
    fold = TASK.fold(given, "random-0")
    net = TCReweight(link=SMALL, alpha=2.0).wrapped(SMALL.build(fold.train, Run(task=TASK)))
    S, x = SMALL.operator(fold.train, "cpu"), SMALL.features(fold.train, "cpu")
    net.begin(x, S)
    with torch.no_grad():
        h = net.link.encode(x, S)
    net.train()
    net.train()  # the second epoch, the first with an update
    assert net.training and all(p.grad is None for p in net.parameters())
    rows = torch.from_numpy(np.repeat(np.arange(34), np.diff(S.indptr)))
    columns = torch.from_numpy(S.indices.astype(np.int64))
    with torch.no_grad():
        q = torch.sigmoid(net.link.mlp((S @ h)[rows] * h[columns]).squeeze(1))
        u = torch.zeros(34).index_add(0, rows, torch.from_numpy(S.values))
        expected = torch.from_numpy(S.values) + 2.0 * u[rows] * row_softmax(q, rows, 34)
    assert (net.weights - expected).abs().max() < 1e-6
    assert not net.weights.requires_grad


def test_the_graph_at_hand_decides_the_weights() -> None:
    """On the fitted graph the kept weights; on another, weights made from its own operator."""
    model, fold, _ = fit_on("karate", TCReweight(link=SMALL, warm_up=0))
    net, S = model.net, SMALL.operator(fold.train, "cpu")
    x = SMALL.features(fold.train, "cpu")
    assert (net.operator(x, S).values == net.weights.numpy()).all()
    other = SparseOperator.from_scipy(S.to_scipy() * np.float32(0.5))
    with torch.no_grad():
        found = net.operator(x, other)
    assert mark_of(other) != mark_of(S) and found.nnz == S.nnz
    assert np.allclose(found.to_scipy().sum(1), 3 * other.to_scipy().sum(1), atol=1e-5)
    assert (found.values != net.weights.numpy()).any()


def test_held_out_links_enter_no_weight() -> None:
    """Another choice of validation and test links, same training links: the same weights."""
    given = lw.dataset("karate")
    fold = TASK.fold(given, "random-0")
    nets = []
    for valid in (fold.valid, fold.valid._replace(query=fold.test.query, truth=fold.test.truth)):
        run = Run(task=TASK, digest=given.digest(), fold="random-0")
        method = TCReweight(link=SMALL.but(epochs=1, patience=1), warm_up=0)
        nets.append(fitted(method, fold.train, valid, run).net.weights)
    assert (nets[0] == nets[1]).all()
    train = pattern(fold.train.query.pairs, 34)
    assert len(nets[0]) == train.nnz + 34  # the training links both ways, and loops


def test_a_fit_cut_short_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    from latticework.core.ledger import Ledger

    given, method = lw.dataset("karate"), TCReweight(link=SMALL)
    fold = TASK.fold(given, "random-0")

    class Cut(Exception):
        pass

    def run(stop: int | None, root: Path) -> Any:
        def log(label: str, step: int, values: Any) -> None:
            if step == stop:
                raise Cut

        made = Run(task=TASK, digest=given.digest(), fold="random-0", ledger=Ledger(root), on_log=log, label="x")
        keep = made.keep
        made.keep = lambda step, state, every_s=30.0: keep(step, state, every_s=-1.0)  # type: ignore[method-assign]
        return made

    whole = fitted(method, fold.train, fold.valid, run(None, tmp_path / "a"))
    with pytest.raises(Cut):
        fitted(method, fold.train, fold.valid, run(5, tmp_path / "b"))
    resumed = fitted(method, fold.train, fold.valid, run(None, tmp_path / "b"))
    for key, value in whole.state().items():
        assert torch.equal(value, resumed.state()[key]), key


def test_model_says_where_the_weight_went() -> None:
    model, fold, _ = fit_on("karate", TCReweight(link=SMALL, warm_up=0))
    found = model.explain(fold.test.blind()).scalars
    assert found["weight after over before"] == pytest.approx(3, abs=1e-4)
    assert 0 < found["share of the weight on edges within triangles, before"] < 1


def test_the_method_refuses_what_has_no_edges_to_weigh() -> None:
    reason = TCReweight(link=LinkMF()).refuses(TASK, lw.dataset("karate").facts())
    assert reason is not None and "gcn-links or sage-links" in reason


# -- real data -------------------------------------------------------------------------------------------------------------
def test_new_neighbours_share_less_on_a_split_by_time(mirror: Callable[[str], Path]) -> None:
    mirror("college-msg")
    by_time = probed("college-msg", **{"task.split": "by-time"}).scalars
    random = probed("college-msg").scalars
    key = "shift to test neighbours (train - test)"
    assert by_time[key] > 0.05 and by_time["TC of train neighbours"] > 2 * by_time["TC of test neighbours"]
    assert abs(random[key]) < 0.03


def test_concentration_goes_with_performance_on_cora(mirror: Callable[[str], Path]) -> None:
    """A predictor without training, so that it is quick: resource allocation."""
    mirror("planetoid-cora")
    found = probed("planetoid-cora", **{"model.method": "resource-allocation", "nodes": 600, "task.k": 100}).scalars
    assert found["TC with performance, binned"] > 0.8
    assert found["TC over degree, nodes"] > 0.2


def test_no_test_link_is_within_reach() -> None:
    check_no_link_leak(TASK, "karate", TCReweight(link=SMALL))
