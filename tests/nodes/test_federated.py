"""The task, the rounds in one process, the peers of FED-PUB, and the same rounds over a stand-in for Flower's grid."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

import latticework as lw
from latticework.core.errors import OutOfTime, UserError
from latticework.core.evaluate import ask, evaluate, fit
from latticework.core.grid import entry_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.data.clients import Clients, GivenClients, Partition, gather, partitioned
from latticework.data.graph import Graph
from latticework.data.graph_sets import GivenGraph
from latticework.nodes.fed_pub import FedPub
from latticework.nodes.federated import (
    Alone,
    FedAvg,
    FederatedMethod,
    FedProx,
    Kept,
    Local,
    Strategy,
    Trainer,
    Update,
    fill,
    flat,
    mean_accuracy,
    simulate,
)
from latticework.nodes.federated_tasks import FederatedNodeClassification
from latticework.testing import check_method, check_task, find_leak

FINGERPRINTS = Path(__file__).parent / "fingerprints_federated.json"
TASK = FederatedNodeClassification()


def data_of(graph: Graph, clients: int = 3, by: str = "random") -> Partition:
    return Partition(of=GivenGraph.hold(graph), clients=clients, by=by)  # type: ignore[arg-type]


@pytest.fixture
def three(make_blocks: Callable[..., Graph]) -> Partition:
    return data_of(make_blocks(90, seed=1))


# -- the task ------------------------------------------------------------------------------------------------------------
def test_task_and_methods_through_the_batteries() -> None:
    check_task(TASK, "partition(of=karate; clients=2; by=random)")
    check_task(FederatedNodeClassification(protocol="fixed"), with_split())
    for name in ("client-majority", "local", "fedavg", "fedprox", "central", "fed-pub"):
        method = entry_of(name)
        fields = {"rounds": 4, "hidden": 8} if isinstance(method, FederatedMethod) else {}
        check_method(
            method.with_settings(fields) if fields else method, "partition(of=digits-knn; clients=3; by=random)",
            fingerprints=FINGERPRINTS,
        )  # fmt: skip


def with_split() -> GivenClients:
    """Clients that bring a split of their own."""
    held: Clients = lw.dataset("partition(of=digits-knn; clients=3; by=random)").read()
    rng = np.random.default_rng(0)
    graphs = {
        n: replace(g, fixed=rng.integers(0, 3, g.nodes).astype(np.int8), _cache={})
        for n, g in zip(held.names, held.graphs, strict=True)
    }
    return GivenClients.hold(gather(graphs))


def test_one_split_for_all_clients(make_blocks: Callable[..., Graph]) -> None:
    """Drawn on all nodes before the cut: exact shares over all, other shares at each client, one side for a shared node."""
    graph = make_blocks(100)
    data = Partition(of=GivenGraph.hold(graph), clients=6, overlap=3, by="random")
    held: Clients = data.read()
    split = TASK.split(held, "random-4")
    side: dict[int, int] = {}
    for place, code in zip(held.places, split, strict=True):
        for node, s in zip(place.tolist(), code.tolist(), strict=True):
            assert side.setdefault(node, s) == s
    whole = TASK.split(partitioned(graph, [np.arange(100)]), "random-4")[0]
    assert np.bincount(whole).tolist() == [20, 40, 40] and all(whole[n] == s for n, s in side.items())
    shares = {float((code == 0).mean()) for code in split}
    assert len(shares) > 1
    assert any(not np.array_equal(a, b) for a, b in zip(TASK.split(held, "random-5"), split, strict=True))


def test_a_client_with_one_labelled_node_trains_on_it_in_a_model_for_use(make_blocks: Callable[..., Graph]) -> None:
    """Nothing is judged there, so no draw may leave a client without a train node."""
    graph, task = make_blocks(60), FederatedNodeClassification()
    parts = partitioned(graph, [np.arange(0, 30), np.arange(30, 55), np.arange(55, 60)]).graphs
    few = np.where(np.arange(5) == 2, parts[2].y, -1)
    clients = gather({"a": parts[0], "b": parts[1], "c": replace(parts[2], y=few, _cache={})})
    lone = 0
    for number in range(20):
        split = task.split(clients, f"all-{number}")
        assert all((code == 0).any() for code in split) and any((code == 1).any() for code in split)
        assert split[2].tolist() == [-1, -1, 0, -1, -1] and not any((code == 2).any() for code in split)
        lone += (task.split(clients, f"random-{number}")[2] != 0).all()
    assert lone  # in a split that judges, it stays as drawn
    for part in task.fold(GivenClients.hold(clients), "all-0")[:1]:
        assert part.query.asked[2].tolist() == [2]


def test_a_leak_at_one_client_is_found(three: Partition) -> None:
    fold = TASK.fold(three, "random-0")
    held: Clients = three.read()
    for k, (y, rows) in enumerate(zip(fold.test.truth, fold.test.query.asked, strict=True)):
        alone = Part(fold.train.data[k], type("Q", (), {"rows": rows}), fold.train.truth[k], fold.train.schema)
        assert find_leak([alone], [y], alone) is None
        planted = alone._replace(schema={**alone.schema, "y": held.graphs[k].y.tolist()})  # type: ignore[union-attr]
        assert find_leak([planted], [y], planted) is not None


def test_scores_stand_at_the_client(three: Partition) -> None:
    fold = TASK.fold(three, "random-0")
    right = tuple(np.eye(3)[y] for y in fold.test.truth)
    wrong = (np.roll(right[0], 1, axis=1), *right[1:])
    scores = TASK.score(wrong, fold.test, None)
    assert TASK.headline(scores) == pytest.approx(2 / 3)
    own = {s.at["client"]: s.value for s in scores if s.at.get("slice") and s.metric == "accuracy"}
    assert own == {"client-0": 0, "client-1": 1, "client-2": 1}
    empty = fold.test._replace(
        query=fold.test.query._replace(asked=(np.array([], int), *fold.test.query.asked[1:])), truth=(np.array([], int), *fold.test.truth[1:])
    )  # fmt: skip
    scores = TASK.score((np.zeros((0, 3)), *right[1:]), empty, None)
    assert TASK.headline(scores) == 1.0 and [s.why for s in scores if s.value is None] == ["no node of this client is judged"] * 2


def test_what_cannot_be_a_task(three: Partition, make_blocks: Callable[..., Graph]) -> None:
    with pytest.raises(UserError, match=r"leaves client 'client-0'.* without a train node"):
        FederatedNodeClassification(train=0.01).fold(data_of(make_blocks(30), 10), "random-0")
    with pytest.raises(UserError, match="leave no node to test on"):
        FederatedNodeClassification(train=0.6, valid=0.4).for_data(three)
    with pytest.raises(UserError, match="brings no column 'split'"):
        FederatedNodeClassification(protocol="fixed").fold(three, "fixed")
    graph = make_blocks(20)
    sides = np.tile([0, 0, 1, 2], 5).astype(np.int8)
    given = {name: replace(graph, fixed=code, _cache={}) for name, code in (("a", sides), ("b", sides[::-1].copy()))}
    with pytest.raises(UserError, match=r"node 'node 0' is in the train part of client 'a' and in the test part of 'b' \("):
        FederatedNodeClassification(protocol="fixed").fold(GivenClients.hold(gather(given)), "fixed")
    silent = {"a": given["a"], "b": replace(graph, fixed=np.where(sides == 2, -1, sides).astype(np.int8), _cache={})}
    FederatedNodeClassification(protocol="fixed").fold(GivenClients.hold(gather(silent)), "fixed")
    bare = replace(graph, y=np.full(20, -1), ids=tuple(f"other {i}" for i in range(20)), _cache={})
    with pytest.raises(UserError, match="client 'bare' has no labelled node"):
        TASK.for_data(GivenClients.hold(gather({"full": graph, "bare": bare})))


# -- the rounds ----------------------------------------------------------------------------------------------------------
def fitted(method: FederatedMethod, data: Any, seed: int = 0, **run: Any) -> Any:
    fold = TASK.fold(data, "random-0")
    context = Run(task=TASK, seed=seed, **run)
    with context.seeded():
        return method.fit(fold.train, fold.valid, context), context


def test_one_client_is_plain_local_training(make_blocks: Callable[..., Graph]) -> None:
    """K = 1, no penalties, no masks: the same bits as a loop of plain torch, after five rounds."""
    data = data_of(make_blocks(40), 1)
    fold, run = TASK.fold(data, "random-0"), Run(task=TASK)
    method = FedPub(rounds=5, hidden=8, mask=False)
    model, _ = fitted(method, data)
    net: Any = method.module(4, 3)
    fill(net.shared(), method.start(4, 3, run))
    inputs = method.inputs(fold.train.data[0], "cpu", fold.train.schema)
    rows, y = torch.from_numpy(fold.train.query.asked[0]), torch.from_numpy(fold.train.truth[0])
    optimiser = torch.optim.Adam(net.parameters(), lr=method.lr, weight_decay=method.weight_decay)
    for r in range(5):
        with torch.random.fork_rng():
            torch.manual_seed(int(run.rng(f"client client-0, round {r}").integers(2**62)))
            optimiser.zero_grad()
            F.cross_entropy(net.train()(*inputs)[rows], y).backward()
            optimiser.step()
    assert torch.equal(model.weights["last"][0], flat(net.shared()))
    assert torch.equal(model.weights["last"], fitted(Local(rounds=5, hidden=8), data)[0].weights["last"])
    assert torch.equal(model.weights["last"], fitted(FedAvg(rounds=5, hidden=8), data)[0].weights["last"])


def test_clients_that_were_never_drawn_are_served_by_the_common_model(three: Partition) -> None:
    fold = TASK.fold(three, "random-0")
    run = Run(task=TASK, digest=three.digest(), fold="random-0")
    method = FedPub(rounds=1, hidden=8, fraction=0.3)
    model: Any = fitted(method, three)[0]
    valid, weights = model.history["valid"][0], model.weights["last"]
    drawn = torch.isfinite(valid)
    assert int(drawn.sum()) == 1 and not bool((valid[~drawn] == 0).any())
    start = method.start(len(fold.train.schema["features"]), len(fold.train.schema["classes"]), run)
    trainers = method.trainers(fold.train, fold.valid, run)
    for place in torch.nonzero(~drawn).flatten().tolist():
        own = trainers[place].shared
        fill(own, start)
        assert not torch.allclose(weights[place], trainers[place].evaluated(), atol=1e-4)  # not where everybody started
    a, b = weights[~drawn]
    assert torch.equal(a, b)  # one model for both, for no mask is their own yet


def test_a_mean_by_size_is_what_newcomers_get() -> None:
    strategy = Strategy(torch.zeros(2), by_size=True)
    updates = {n: Update(torch.full((2,), v), None, k, 0, 0) for n, v, k in (("a", 1.0, 90), ("b", 0.0, 10))}
    assert strategy.receive(updates) == ["a", "b"]
    for name in ("a", "b", "newcomer"):
        assert torch.allclose(strategy.model_for(name), torch.full((2,), 0.9))


@pytest.mark.parametrize(
    "method", [FedPub(rounds=4, hidden=8, l1=1e-3, l2=1e-2), FedAvg(rounds=4, hidden=8), FedPub(rounds=4, hidden=8, fraction=0.5)]
)
def test_the_order_of_clients_is_nothing(method: FederatedMethod, make_blocks: Callable[..., Graph]) -> None:
    held: Clients = data_of(make_blocks(90, seed=1), 4).read()
    turned = [2, 0, 3, 1]
    other = Clients(
        tuple(held.names[k] for k in turned),
        tuple(held.graphs[k] for k in turned),
        tuple(held.places[k] for k in turned),
        held.labelled,
    )
    first, again = (fitted(method, GivenClients.hold(c))[0] for c in (held, other))
    for word in ("last", "own-best", "best-valid"):
        assert torch.allclose(first.weights[word][turned], again.weights[word], atol=1e-5)


def test_proximal_term_holds_clients_near(three: Partition) -> None:
    free, held = (
        fitted(m, three)[0].weights["last"]
        for m in (FedAvg(rounds=3, epochs=5, hidden=8), FedProx(rounds=3, epochs=5, hidden=8, mu=50))
    )
    assert torch.equal(fitted(FedProx(rounds=3, epochs=5, hidden=8, mu=0), three)[0].weights["last"], free)
    spread = [float((w - w.mean(0)).norm()) for w in (free, held)]
    assert spread[1] < 0.7 * spread[0]


def test_a_proximal_term_needs_two_steps(three: Partition) -> None:
    """Its gradient is 0 where a round begins: with one full batch a round both proximal terms change nothing."""
    for with_term, without in (
        (FedProx(rounds=3, hidden=8, mu=9), FedAvg(rounds=3, hidden=8)),
        (FedPub(rounds=3, hidden=8, l2=9), FedPub(rounds=3, hidden=8)),
    ):
        assert torch.equal(fitted(with_term, three)[0].weights["last"], fitted(without, three)[0].weights["last"])
        apart = [fitted(m.but(epochs=2), three)[0].weights["last"] for m in (with_term, without)]
        assert not torch.equal(*apart)


def test_averaging_by_size() -> None:
    updates = {"a": Update(torch.tensor([1.0]), None, 1, 0, 0), "b": Update(torch.tensor([4.0]), None, 3, 0, 0)}
    plain, weighted = Strategy(torch.zeros(1)), Strategy(torch.zeros(1), by_size=True)
    for strategy in (plain, weighted):
        strategy.receive(updates)
    assert float(plain.model_for("a")) == 2.5 and float(weighted.model_for("b")) == pytest.approx(3.25)
    alone = Alone(torch.zeros(1))
    alone.receive(updates)
    assert float(alone.model_for("a")) == 1 and float(alone.model_for("b")) == 4
    assert float(alone.model_for("newcomer")) == 0  # alone, it has nothing of the others
    plain.receive({"a": updates["a"]})
    assert float(plain.model_for("b")) == 1  # one model for all, also for who missed the round


def test_read_outs_are_what_they_say(three: Partition) -> None:
    seen: dict[int, torch.Tensor] = {}

    class Watched(Local):
        pass

    method = Watched(rounds=12, hidden=8, lr=0.05)
    fold, run = TASK.fold(three, "random-0"), Run(task=TASK)
    trainers = method.trainers(fold.train, fold.valid, run)
    for k, trainer in enumerate(trainers):
        kept = trainer.evaluated
        trainer.evaluated = lambda k=k, kept=kept: seen.setdefault(len(seen), kept())  # type: ignore[method-assign]
    model = simulate(method, trainers, fold.train, run)
    history = model.history["valid"]
    assert history.shape == (12, 3) and len(seen) == 36
    own = history.argmax(0)
    assert len(set(own.tolist())) > 1
    mean = int(history.mean(1).argmax())
    for k in range(3):
        assert torch.equal(model.weights["own-best"][k], seen[int(own[k]) * 3 + k])
        assert torch.equal(model.weights["best-valid"][k], seen[mean * 3 + k])
        assert torch.equal(model.weights["last"][k], seen[33 + k])
    # never by test: the history is that of the validation nodes
    chances = model.at(read_out="last").predict(fold.valid)
    for k, (p, y) in enumerate(zip(chances, fold.valid.truth, strict=True)):  # type: ignore[union-attr]
        assert float((p.argmax(1) == y).mean()) == pytest.approx(float(history[-1, k]))


def test_the_best_round_hangs_on_no_order_of_the_clients() -> None:
    """A round that is another's in another order of the clients is as good as it, and not better."""
    shares = np.random.default_rng(0).integers(1, 7, 10) / 7
    for seed in range(50):
        order = np.random.default_rng(seed).permutation(10)
        kept = Kept(10, torch.zeros(3))
        kept.look(torch.zeros(10, 3), torch.from_numpy(shares))
        kept.look(torch.ones(10, 3), torch.from_numpy(shares[order]))
        assert not kept.weights["best-valid"].any()
        assert kept.best_mean == mean_accuracy(shares[order].tolist())


def test_a_client_without_validation_leaves_the_mean(three: Partition) -> None:
    fold = TASK.fold(three, "random-0")
    assert fold.valid is not None
    none = np.array([], np.int64)
    valid = fold.valid._replace(
        query=fold.valid.query._replace(asked=(none, *fold.valid.query.asked[1:])), truth=(none, *fold.valid.truth[1:])
    )
    run = Run(task=TASK)
    model = Local(rounds=3, hidden=8).fit(fold.train, valid, run)
    assert model.history["valid"][:, 0].isnan().all() and not model.history["valid"][:, 1:].isnan().any()
    assert dict(run.curve["valid"])[2] == pytest.approx(float(model.history["valid"][2, 1:].mean()))
    assert torch.equal(model.weights["own-best"][0], model.weights["best-valid"][0])  # it cannot choose for itself
    assert Local(rounds=2, hidden=8).fit(fold.train, None, Run(task=TASK)).points()


def test_a_client_that_diverges_leaves_the_rest_alone(three: Partition) -> None:
    method = FedPub(rounds=4, hidden=8)
    fold, run = TASK.fold(three, "random-0"), Run(task=TASK)

    def broken(at: int) -> list[Trainer]:
        trainers = method.trainers(fold.train, fold.valid, run)
        honest = trainers[1].train

        def train(theta: torch.Tensor, round: int, run: Run) -> Update:
            update = honest(theta, round, run)
            return update._replace(theta=update.theta * math.nan) if round >= at else update

        trainers[1].train = train  # type: ignore[method-assign]
        return trainers

    model = simulate(method, broken(2), fold.train, run)
    assert all(bool(torch.isfinite(w).all()) for w in model.weights.values())
    assert any("client-1 sent weights that are not finite" in note for note in run.notes)
    assert "2 updates were dropped in 4 rounds" in run.notes
    two = simulate(method, [t for t in broken(0) if t.name != "client-1"], fold.train, Run(task=TASK))
    from_start = simulate(method, broken(0), fold.train, Run(task=TASK))
    for k in (0, 2):  # as if it had never been there
        assert torch.equal(from_start.weights["last"][k], two.weights["last"][k])


def test_a_fit_resumes_with_the_same_bits(three: Partition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = FedPub(rounds=6, hidden=8)
    fold = TASK.fold(three, "random-0")
    whole, _ = fitted(method, three)

    def run_of(**more: Any) -> Run:
        run = Run(task=TASK, ledger=Ledger(tmp_path / "runs"), **more)
        run.fit_key = "key"
        return run

    first = run_of()
    monkeypatch.setattr(first, "_last_keep", -math.inf)
    keep = first.keep

    def keep_or_die(step: int, state: Any, every_s: float = 0) -> None:
        first._last_keep = -math.inf
        keep(step, state, 0)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(first, "keep", keep_or_die)
    with pytest.raises(KeyboardInterrupt), first.seeded():
        method.fit(fold.train, fold.valid, first)
    second = run_of()
    with second.seeded():
        model = method.fit(fold.train, fold.valid, second)
    assert [s for s, _ in second.curve["valid"]] == list(range(6))
    for word in ("last", "own-best", "best-valid"):
        assert torch.equal(model.weights[word], whole.weights[word])
    assert torch.equal(model.history["similarity"], whole.history["similarity"])


def test_out_of_time_keeps_what_there_is(three: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(task=TASK)
    log = run.log

    def until_two(step: int, **values: float) -> None:
        log(step, **values)
        if step == 1:
            raise OutOfTime

    monkeypatch.setattr(run, "log", until_two)
    fold = TASK.fold(three, "random-0")
    model = FedPub(rounds=9, hidden=8).fit(fold.train, fold.valid, run)
    assert run.stopped and len(model.history["valid"]) == 2


def test_bytes_and_what_is_said(three: Partition) -> None:
    model, run = fitted(FedPub(rounds=3, hidden=8, threshold=0.95, lr=0.03), three)
    P, h, sparse = model.weights["last"].shape[1], 8, model.history["sparsity"][-1]
    assert float(sparse.max()) > 0
    weights = 4 * 8 + 8 * 8 + 3 * 8
    for k in range(3):
        active = round((1 - float(sparse[k])) * weights)
        assert int(model.history["sent"][-1, k]) == 4 * (active + (8 + 8 + 3) + h)
    found = model.explain(TASK.fold(three, "random-0").test.blind())
    assert found.scalars["bytes if all weights were sent"] == 4 * P
    assert set(found.figures) == {"similarity between clients", "validation per round", "pruned weights"}
    assert all("<svg" in f for f in found.figures.values())
    json.dumps([dict(found.scalars), dict(found.tables)], allow_nan=False)
    table = found.tables["similarity between clients"]
    assert table[1]["client-1"] == pytest.approx(1, abs=1e-6) and table[0]["client-1"] == table[1]["client-0"]
    assert fitted(Local(rounds=2, hidden=8), three)[0].history["sent"].sum() == 0
    assert len(run.curve["bytes sent by a client"]) == 3


# -- use -----------------------------------------------------------------------------------------------------------------
def test_a_model_answers_for_a_known_client(three: Partition, tmp_path: Path) -> None:
    model, _ = fit(FedPub(rounds=3, hidden=8), three, TASK)
    values, part = ask(model, TASK, three, {"nodes": "all"})
    held: Clients = three.read()
    only = gather({"client-1": held.graphs[1]})
    alone, _ = ask(model, TASK, GivenClients.hold(only), {"nodes": "all"})
    assert len(alone) == 1 and np.array_equal(alone[0], values[1])
    TASK.write(values, part, tmp_path / "answers.csv")
    frame = pl.read_csv(tmp_path / "answers.csv")
    assert frame.columns == ["client", "id", "prediction", "p(class 0)", "p(class 1)", "p(class 2)"] and len(frame) == 90
    three.write(tmp_path / "truth")
    judged = TASK.judge(tmp_path / "answers.csv", tmp_path / "truth")
    expected = np.mean([(v.argmax(1) == g.y).mean() for v, g in zip(values, held.graphs, strict=True)])
    assert judged[0].value == pytest.approx(float(expected))
    with pytest.raises(UserError, match="was not fitted for client 'stranger'"):
        ask(model, TASK, GivenClients.hold(gather({"stranger": held.graphs[0]})), {})


def test_as_a_user_types_it(three: Partition, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    three.write(tmp_path / "clients")
    status, out, err = command(
        "compare", tmp_path / "clients", "-m", "local,fedavg,fed-pub", "--repeats", 2, "--classic", 0, "-s", "rounds=3", "-s", "hidden=8",
        "--runs", tmp_path / "runs", "-o", tmp_path / "report.html",
    )  # fmt: skip
    assert status == 0 and "client-majority [unasked]" in out and "fed-pub" in out, out + err
    text = (tmp_path / "report.html").read_text()
    assert "client client-0" in text and "similarity between clients" in text and "read_out last" in text
    status, out, err = command(
        "fit", "fed-pub", "partition", "-s", f"data.of={tmp_path / 'clients' / 'client-0'}", "-s", "data.clients=2", "-s",
        "data.by=random", "-s", "rounds=2", "-s", "hidden=4", "-o", tmp_path / "MODEL",
    )  # fmt: skip
    assert status == 0, out + err
    status, out, err = command(
        "predict", tmp_path / "MODEL", tmp_path / "clients", "-o", tmp_path / "p.csv", "-s", "read_out=last"
    )
    assert status == 2 and "was not fitted for client 'client-2'" in out + err


def test_cora_with_few_rounds(mirror: Callable[[str], Path], tmp_path: Path) -> None:
    """Ten METIS clients: a personal model beats one for all after a few rounds already, and majority by far."""
    mirror("planetoid-cora")
    data, ledger = lw.dataset("partition"), Ledger(tmp_path)
    found = {
        name: evaluate(TASK, data, entry_of(name), "random-0", 0, ledger)
        for name in ("client-majority", "fedavg(rounds=25)", "fed-pub(rounds=25)")
    }
    values = {name: r.headline or 0 for name, r in found.items()}
    assert values["fed-pub(rounds=25)"] > values["fedavg(rounds=25)"] + 0.03
    assert values["fed-pub(rounds=25)"] > values["client-majority"] + 0.05
