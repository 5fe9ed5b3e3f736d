"""The rounds over Flower: the same weights as in one process, faults, and every byte that crosses the wire.

Most of it runs on a stand-in for Flower's grid that calls the client's app; one test runs the real processes over loopback,
with a tap between the supernodes and the superlink.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import latticework as lw
from latticework.core import store
from latticework.core.errors import Failure, UserError
from latticework.core.run import Run
from latticework.data.clients import Clients, GivenClients, gather, partitioned
from latticework.data.graph import Graph, write_graph
from latticework.nodes import federated_processes
from latticework.nodes.fed_pub import FedPub
from latticework.nodes.federated import FedAvg, FederatedMethod, Update
from latticework.nodes.federated_processes import (
    CLIENT,
    Party,
    Rules,
    Server,
    Site,
    Terms,
    Tls,
    agreed,
    client_message,
    join,
    pack_update,
    serve,
    unpack_update,
)
from latticework.nodes.federated_tasks import FederatedNodeClassification

flwr = pytest.importorskip("flwr.app")
FIXED = FederatedNodeClassification(protocol="fixed")


def clients_of(graph: Graph, count: int, seed: int = 0) -> Clients:
    """A graph cut at random, each client with a split of its own."""
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(graph.nodes) % count)
    cut = partitioned(graph, [np.flatnonzero(member == k) for k in range(count)])
    split = {
        n: replace(g, fixed=rng.choice(3, g.nodes, p=[0.4, 0.3, 0.3]).astype(np.int8), _cache={})
        for n, g in zip(cut.names, cut.graphs, strict=True)
    }
    return gather(split)


class Grid:
    """What `Server` asks of Flower's grid; every answer comes from the client's app, through records, at once or never.

    `fate(node, round)` may say: dead, late (the answer comes with the next round), nan, error, strange.
    """

    def __init__(
        self, clients: Clients, folder: Path, terms: Terms, fate: Callable[[int, int], str] = lambda n, r: "fine"
    ) -> None:
        self.fate, self.terms, self.sent, self.number = fate, terms, dict[str, Any](), itertools.count()
        self.sites, self.contexts = {}, {}
        for k, (name, graph) in enumerate(zip(clients.names, clients.graphs, strict=True)):
            write_graph(graph, folder / name)
            self.sites[k + 1] = Site(name, folder / name, folder / f"model-{name}", folder / f"done-{name}")
            self.contexts[k + 1] = SimpleNamespace(run_config={"terms": terms.text()}, state=flwr.RecordDict())
        self.round = 0
        self.crossed: list[Any] = []

    def get_node_ids(self) -> list[int]:
        return list(self.sites)

    def create_message(self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float) -> Any:
        return SimpleNamespace(content=content, metadata=SimpleNamespace(dst_node_id=dst_node_id, message_type=message_type))

    def push_messages(self, messages: Any) -> list[str]:
        ids = []
        for message in messages:
            ids.append(str(next(self.number)))
            self.round = int(message.content["round"]["round"])
            self.sent[ids[-1]] = (message, self.round)
        return ids

    def pull_messages(self, ids: Any) -> list[Any]:
        found = []
        for i in ids:
            message, number = self.sent[i]
            node = message.metadata.dst_node_id
            fate = self.fate(node, number)
            if fate == "dead" or (fate == "late" and self.round == number):
                continue
            os.environ[CLIENT] = self.sites[node].text()
            try:
                content, broken = (
                    client_message(message.content, self.contexts[node], message.metadata.message_type == "query"),
                    False,
                )
            except RuntimeError:
                content, broken = None, True
            if fate == "nan" and content is not None:
                content = pack_update(
                    unpack_update(content)._replace(theta=torch.full((len(unpack_update(content).theta),), math.nan))
                )
            if fate == "strange" and content is not None:
                content["features"] = flwr.ArrayRecord({"x": flwr.Array(np.zeros(3))})
            self.crossed.append(content)
            metadata = SimpleNamespace(reply_to_message_id=i)
            found.append(SimpleNamespace(content=content, metadata=metadata, has_error=lambda b=broken or fate == "error": b))
        return found


def run_server(
    clients: Clients, folder: Path, method: FederatedMethod, fate: Any = lambda n, r: "fine", timeout: float = 0.2
) -> tuple[Server, Grid]:
    terms = Terms(method, clients.features, clients.classes, 3)
    grid = Grid(clients, folder, terms, fate)
    server = Server(terms, Rules(len(clients.names), 1, timeout), grid, say=lambda text: None)
    server.gather_clients()
    for number in range(method.rounds):
        server.round(number)
    server.finish()
    return server, grid


@pytest.mark.parametrize("method", [FedPub(rounds=4, hidden=6, l1=1e-4), FedAvg(rounds=4, hidden=6)])
def test_the_same_weights_as_in_one_process(method: FederatedMethod, make_blocks: Callable[..., Graph], tmp_path: Path) -> None:
    clients = clients_of(make_blocks(80), 4)
    server, grid = run_server(clients, tmp_path, method)
    data = GivenClients.hold(lw.dataset(_only(tmp_path, clients)).read())  # the same files, so the same numbers
    fold, run = FIXED.fold(data, "fixed"), Run(task=FIXED, seed=3)
    model: Any = method.fit(fold.train, fold.valid, run)
    for k, site in enumerate(grid.sites.values()):
        own: Any = store.load_model(site.out)
        assert own.schema["clients"] == [site.name]
        for word in ("last", "best-valid", "own-best"):
            assert torch.equal(own.weights[word][0], model.weights[word][k]), (site.name, word)
        assert torch.equal(own.history["valid"][:, 0], model.history["valid"][:, k])
    assert [r["used"] for r in server.rounds] == [4] * 4
    if isinstance(method, FedPub):
        assert np.allclose(server.report()["similarity"], model.history["similarity"][-1].numpy(), atol=1e-6)
    # nothing crosses but the records that are named, and these are no larger than they must be
    P = model.weights["last"].shape[1]
    for content in grid.crossed[: 4 * 4]:
        update = unpack_update(content)
        assert update.theta.shape == (P,) and (update.embedding is None or update.embedding.shape == (6,))


def _only(folder: Path, clients: Clients) -> Path:
    (folder / "all").mkdir()
    for name in clients.names:
        (folder / "all" / name).symlink_to(folder / name)
    return folder / "all"


@pytest.mark.parametrize("fault", ["dead", "late", "nan", "error", "strange"])
def test_one_fault_leaves_the_rest_alone(fault: str, make_blocks: Callable[..., Graph], tmp_path: Path) -> None:
    """Client 2 fails in the second round: the others get in it what they would get without it, and it may come back."""
    clients = clients_of(make_blocks(60), 3)
    method = FedPub(rounds=4, hidden=6)

    def fate(node: int, number: int) -> str:
        if node == 2 and (number == 1 or (fault == "dead" and number > 1)):
            return fault
        return "fine"

    seen: dict[int, dict[str, torch.Tensor]] = {}

    class Watched(Server):
        def round(self, number: int) -> dict[str, Any]:
            found = super().round(number)
            seen[number] = {k: v.clone() for k, v in self.strategy.personal.items()}
            return found

    terms = Terms(method, clients.features, clients.classes, 3)
    grid = Grid(clients, tmp_path, terms, fate)
    said: list[str] = []
    server = Watched(terms, Rules(3, 1, 0.2), grid, say=said.append)
    for number in range(4):
        server.round(number)
    after = {"dead": [2, 2], "late": [2, 3]}.get(fault, [3, 3])  # a late answer comes in the middle of the next round
    assert [r["used"] for r in server.rounds] == [3, 2, *after]
    assert all(bool(torch.isfinite(v).all()) for v in server.strategy.personal.values())
    assert server.rounds[1]["notes"] and "2 " in server.rounds[1]["notes"][0]
    assert torch.equal(seen[1]["2"], seen[0]["2"])  # it keeps what it had
    if fault == "late":
        assert said == ["2 answered late: thrown away"]
    if fault == "dead":  # it is waited for once
        assert server.rounds[1]["seconds"] >= 0.2 and server.rounds[2]["notes"] == []
    # the round's average of the others, by hand
    alone, _ = run_server(
        gather({n: g for n, g in zip(clients.names, clients.graphs, strict=True)}),
        tmp_path / "again",
        method,
        lambda n, r: "error" if n == 2 and r == 1 else "fine",
    )
    assert alone.rounds[1]["used"] == 2
    expected = Server(
        terms,
        Rules(3, 1, 0.2),
        Grid(clients, tmp_path / "third", terms, lambda n, r: "error" if n == 2 and r == 1 else "fine"),
        say=said.append,
    )
    expected.round(0)
    expected.round(1)
    assert torch.equal(expected.strategy.personal["1"], seen[1]["1"]) and torch.equal(
        expected.strategy.personal["3"], seen[1]["3"]
    )


def test_records_hold_an_update_and_nothing_else() -> None:
    update = Update(torch.randn(7), torch.randn(3), 5, 2, 4)
    content = pack_update(update)
    assert {name: sorted(record) for name, record in content.items()} == {
        "theta": ["theta"],
        "embedding": ["embedding"],
        "counts": ["asked", "correct", "nodes"],
    }
    back = unpack_update(content)
    assert (
        torch.equal(back.theta, update.theta)
        and back.embedding is not None
        and torch.equal(back.embedding, torch.as_tensor(update.embedding))
    )
    assert back[2:] == update[2:]
    content["mask"] = flwr.ArrayRecord({"m": flwr.Array(np.ones(3))})
    with pytest.raises(ValueError, match="a client sent 'mask'"):
        unpack_update(content)
    with pytest.raises(ValueError, match="no weights or no counts"):
        unpack_update(flwr.RecordDict())


P = len(FedPub(hidden=4).start(2, 2, Run(task=None, seed=0)))
TERMS = Terms(FedPub(hidden=4, rounds=1), ("a", "b"), ("x", "y"), 0)


def packed(node: int, **changes: Any) -> Any:
    """What a client of `TERMS` sends, with some records exchanged."""
    draw = torch.Generator().manual_seed(node)
    content = pack_update(Update(torch.randn(P, generator=draw), torch.randn(4, generator=draw), 5, 2, 4))
    return flwr.RecordDict({**content, **changes})


class Answers:
    """A stand-in for Flower's grid: `give(node, round)` is a client's answer, which comes after `delay(node, round)` seconds."""

    def __init__(
        self, nodes: list[int], give: Callable[[int, int], Any] = lambda n, r: packed(n), delay: Any = lambda n, r: 0.0
    ) -> None:
        self.nodes, self.give, self.delay, self.number = nodes, give, delay, itertools.count()
        self.waiting: dict[str, tuple[int, int, float]] = {}
        self.asked: list[tuple[str, int, int, bool]] = []

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def create_message(self, content: Any, message_type: str, dst_node_id: int, group_id: str, ttl: float) -> Any:
        return content, message_type, dst_node_id

    def push_messages(self, messages: Any) -> list[str]:
        ids = []
        for content, kind, node in messages:
            number = int(content["round"]["round"])
            self.asked.append((kind, node, number, bool(content["round"]["best"])))
            ids.append(str(next(self.number)))
            self.waiting[ids[-1]] = node, number, time.monotonic() + self.delay(node, number)
        return ids

    def pull_messages(self, ids: Any) -> list[Any]:
        came = [i for i in ids if time.monotonic() >= self.waiting[i][2]]
        return [
            SimpleNamespace(
                content=self.give(*self.waiting[i][:2]), metadata=SimpleNamespace(reply_to_message_id=i), has_error=lambda: False
            )
            for i in came
        ]


def array(values: Any, name: str = "theta") -> Any:
    return flwr.ArrayRecord({name: flwr.Array(np.asarray(values))})


def counts(nodes: Any, correct: Any, asked: Any) -> Any:
    return flwr.MetricRecord({"nodes": nodes, "correct": correct, "asked": asked})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embedding": array(np.zeros(7, np.float32), "embedding")}, "a functional embedding of 7 numbers instead of 4"),
        ({"embedding": array(np.zeros((1, 4), np.float32), "embedding")}, "embedding as float32 [1, 4]"),
        ({"theta": array(["a"] * P)}, "theta as <U1"),
        ({"theta": array(np.zeros(P, np.float64))}, "theta as float64"),
        ({"theta": array(np.zeros(P, np.complex64))}, "theta as complex64"),
        ({"theta": flwr.MetricRecord({"theta": 1.0})}, "theta that is no array"),
        (
            {"theta": flwr.ArrayRecord({"theta": flwr.Array("float32", (P,), "numpy.ndarray", b"no array")})},
            "theta that is no array",
        ),
        ({"counts": counts([5, 5], 2, 4)}, "counts that cannot be"),
        ({"counts": counts(5, math.inf, 4)}, "counts that cannot be"),
        ({"counts": counts(5, 5, 4)}, "counts that cannot be"),
        ({"counts": counts(-10, 2, 4)}, "counts that cannot be"),
        ({"counts": counts(0, 2, 4)}, "counts that cannot be"),
    ],
)
def test_a_record_of_another_form_leaves_the_rest_alone(changes: dict[str, Any], says: str) -> None:
    """What a client of another version, or of ill will, sends is dropped and said; the others' average is as without it."""
    server = Server(TERMS, Rules(3, 1, 1), Answers([1, 2, 3], lambda n, r: packed(n, **(changes if n == 2 else {}))))
    found = server.round(0)
    assert (found["answered"], found["used"]) == (3, 2) and len(found["notes"]) == 1 and says in found["notes"][0]
    alone = Server(TERMS, Rules(2, 1, 1), Answers([1, 3]))
    alone.round(0)
    for node in ("1", "3"):
        assert torch.equal(server.strategy.personal[node], alone.strategy.personal[node])
    assert found["mean validation accuracy"] == 0.5


def test_a_round_waits_for_somebody_and_the_end_for_those_who_are_late() -> None:
    """Where all are late, rounds do not pass with nobody; who is late in the last round is still asked to save its model."""
    slow = {(1, 0), (2, 0), (2, 2)}
    grid = Answers([1, 2], delay=lambda n, r: 1.0 if (n, r) in slow else 0.0)
    server = Server(TERMS, Rules(2, 20, 0.3), grid, say=lambda text: None)
    for number in range(3):
        server.round(number)
    server.finish()
    asked = [r["asked"] for r in server.rounds]
    assert asked[0] == 2 and min(asked) >= 1 and server.rounds[0]["used"] == 0
    assert [(kind, node) for kind, node, *_ in grid.asked if kind == "query"] == [("query", 1), ("query", 2)]
    assert not server.owing

    gone = Server(TERMS, Rules(2, 0.3, 0.2), grid := Answers([1, 2]))
    gone.round(0)
    grid.nodes.clear()
    with pytest.raises(Failure, match=r"no client was ready for a round within 0\.3 s: all have gone"):
        gone.round(1)
    assert len(gone.rounds) == 1


def test_a_share_of_the_clients_takes_part_and_hears_of_the_best_round(make_blocks: Callable[..., Graph], tmp_path: Path) -> None:
    """`fraction` holds over Flower, too: each round asks the same clients as in one process, and gives them the same weights."""
    clients = clients_of(make_blocks(80), 4)
    method = FedPub(rounds=5, hidden=6, fraction=0.5)
    server, grid = run_server(clients, tmp_path, method)
    assert [r["asked"] for r in server.rounds] == [2] * 5
    data = GivenClients.hold(lw.dataset(_only(tmp_path, clients)).read())
    fold, run = FIXED.fold(data, "fixed"), Run(task=FIXED, seed=3)
    model: Any = method.fit(fold.train, fold.valid, run)
    took_part = ~torch.isnan(model.history["valid"][0])
    assert took_part.sum() == 2
    for k, site in enumerate(grid.sites.values()):
        own: Any = store.load_model(site.out)
        assert torch.equal(own.weights["last"][0], model.weights["last"][k]), site.name
        if took_part[k]:
            for word in ("best-valid", "own-best"):
                assert torch.equal(own.weights[word][0], model.weights[word][k]), (site.name, word)


def test_who_took_part_in_no_round_has_what_the_others_made(make_blocks: Callable[..., Graph], tmp_path: Path) -> None:
    clients = clients_of(make_blocks(60), 3)
    method = FedPub(rounds=1, hidden=6, fraction=0.3)
    server, grid = run_server(clients, tmp_path, method)
    (chosen,) = server.strategy.personal
    common = server.strategy.common
    for node, site in grid.sites.items():
        own: Any = store.load_model(site.out)
        assert torch.equal(own.weights["last"][0], common) == (str(node) != chosen)
        assert own.explain(None).scalars["rounds"] == 1


def test_no_node_right_is_the_best_round_once() -> None:
    """A mean of 0 is the best until there is a better one, as in one process."""
    grid = Answers([1, 2], lambda n, r: packed(n, counts=counts(5, 0, 4)))
    server = Server(TERMS, Rules(2, 1, 1), grid)
    for number in range(3):
        server.round(number)
    server.finish()
    assert [best for *_, best in grid.asked] == [False, False, True, True] + 4 * [False]


def test_errors_of_a_client_stay_with_it(
    make_blocks: Callable[..., Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    graph = make_blocks(20)
    write_graph(graph, tmp_path / "secret-place")
    terms = Terms(FedPub(hidden=4), ("other",), graph.classes, 0)
    site = Site("secret-name", tmp_path / "secret-place", tmp_path / "m", tmp_path / "d")
    monkeypatch.setenv(CLIENT, site.text())
    with pytest.raises(RuntimeError) as caught:
        client_message(flwr.RecordDict(), SimpleNamespace(run_config={"terms": terms.text()}, state=flwr.RecordDict()), False)
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None and caught.value.__context__ is None
    assert "not the agreed feature columns" in capsys.readouterr().err
    assert not site.done.exists()
    with pytest.raises(RuntimeError):  # where there is nothing more to come, who waits for the model must know
        client_message(flwr.RecordDict(), SimpleNamespace(run_config={"terms": terms.text()}, state=flwr.RecordDict()), True)
    assert site.done.read_text() == "failed\n" and not site.out.exists()


def test_what_was_not_agreed(make_blocks: Callable[..., Graph], tmp_path: Path) -> None:
    graph = make_blocks(20)
    terms = Terms(FedPub(hidden=4), graph.features[::-1], ("class 2", "class 1", "class 0", "more"), 0)
    same = agreed(graph, terms, "here")
    assert same.x is not None and graph.x is not None and np.array_equal(same.x, graph.x[:, ::-1])
    assert same.y is not None and graph.y is not None and np.array_equal(same.y, 2 - graph.y)
    with pytest.raises(UserError, match="class 'class 0' is not among the agreed"):
        agreed(graph, terms._replace(classes=("class 1", "class 2")), "here")
    with pytest.raises(UserError, match="no node has a label"):
        agreed(replace(graph, y=np.full(20, -1), _cache={}), terms, "here")
    with pytest.raises(UserError, match="no train node"):
        Party(terms, Site("a", tmp_path, tmp_path, tmp_path), replace(graph, fixed=np.full(20, 2, np.int8), _cache={}))


def test_the_verbs_refuse(graph_folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    def said(*words: Any) -> str:
        status, out, err = command("federate", *words)
        assert status in (1, 2), out
        return " ".join((out + err).split())

    assert "local sends nothing" in said("serve", "local", graph_folder, "-o", tmp_path / "r.json")
    assert "certificates" in said("serve", "fed-pub", graph_folder, "-o", tmp_path / "r.json", "--host", "0.0.0.0")
    assert "is a folder; -o names the file" in said("serve", "fed-pub", graph_folder, "-o", tmp_path, "--port", _free())
    assert "HOST:PORT" in said("join", graph_folder, "--server", "nowhere", "-o", tmp_path / "m")
    assert "certificates" in said("join", graph_folder, "--server", "10.0.0.1:9092", "-o", tmp_path / "m")
    assert "does not exist" in said("join", tmp_path / "nothing", "--server", "127.0.0.1:9092", "-o", tmp_path / "m")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "is in use" in said("serve", "fed-pub", graph_folder, "-o", tmp_path / "r.json", "--port", taken.getsockname()[1])
    with pytest.raises(UserError, match="--cert, --key and --ca"):
        serve(Terms(FedPub(), ("a",), ("x", "y"), 0), Rules(1, 1, 1), tmp_path / "r", tls=Tls(graph_folder / "nodes.csv"))
    assert not (tmp_path / "r.json").exists() and not (tmp_path / "m").exists()


def test_nobody_comes() -> None:
    terms = Terms(FedPub(hidden=4), ("a",), ("x", "y"), 0)
    with pytest.raises(Failure, match="no client joined within"):
        Server(terms, Rules(2, 0.1, 1), SimpleNamespace(get_node_ids=list)).gather_clients()


def test_a_client_whose_server_is_gone_ends(
    make_blocks: Callable[..., Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graph(make_blocks(20), tmp_path / "graph")
    monkeypatch.setattr(federated_processes, "GIVE_UP_S", 1.0)
    with pytest.raises(Failure, match="no model was made, since Flower's supernode ended: ERROR"):
        join(tmp_path / "graph", f"127.0.0.1:{_free()}", tmp_path / "model", "a", say=lambda text: None)
    assert not (tmp_path / "model").exists()


# -- the real processes --------------------------------------------------------------------------------------------------
class Tap:
    """A forwarder on loopback that keeps every byte, by connection and direction."""

    def __init__(self, to: int) -> None:
        self.to, self.up, self.down = to, list[bytearray](), list[bytearray]()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.to), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for source, sink, kept in ((near, far, self.up), (far, near, self.down)):
                log = bytearray()
                kept.append(log)
                threading.Thread(target=self._copy, args=(source, sink, log), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket, log: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                log += data
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def requests(self) -> Iterator[tuple[str, bytes]]:
        """(path, body) of all that the clients sent."""
        import h11

        for log in self.up:
            connection = h11.Connection(h11.SERVER)
            connection.receive_data(bytes(log))
            path, body = "", bytearray()
            while True:
                event = connection.next_event()
                if isinstance(event, h11.Request):
                    path, body = event.target.decode(), bytearray()
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    yield path, bytes(body)
                    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    connection.send(h11.EndOfMessage())
                    connection.start_next_cycle()
                else:
                    break


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until(ready: Callable[[], Any], seconds: float, logs: Callable[[], str]) -> Any:
    until = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < until, logs()
        time.sleep(0.2)
    return found


@contextlib.contextmanager
def _command(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", "latticework", "--debug", *words], stdout=sink, stderr=subprocess.STDOUT, env=env
        )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGCONT)
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()


def _tree(pid: int) -> list[int]:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return [p.pid for p in psutil.Process(pid).children(recursive=True)] + [pid]
    return []


def _signal(pids: list[int], sign: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)


ROUNDS, TIMEOUT = 5, 40


def test_real_processes_with_faults_and_a_tap_on_the_wire(make_blocks: Callable[..., Graph], tmp_path: Path) -> None:
    """Five clients: one sends NaN always, one is killed and one is late in the second round; all bytes are looked at."""
    pytest.importorskip("psutil")
    graph = make_blocks(150, features=5, seed=4)
    graph = replace(graph, ids=tuple(f"private-id-{i}" for i in range(graph.nodes)), _cache={})
    held = clients_of(graph, 5)
    names = ("private-alpha", "private-beta", "private-dies", "private-late", "private-nan")
    for name, own in zip(names, held.graphs, strict=True):
        if name == "private-nan":
            assert own.x is not None
            own = replace(own, x=np.full_like(own.x, 3e38), _cache={})
        write_graph(own, tmp_path / name)
    write_graph(make_blocks(12, features=5), tmp_path / "agreed")  # only its columns and classes are read
    port = _free()
    tap = Tap(port)
    report = tmp_path / "rounds.json"

    def rounds() -> list[dict[str, Any]]:
        return list(json.loads(report.read_text()).get("rounds", [])) if report.exists() else []

    def logs() -> str:
        return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-1500:]}" for p in sorted(tmp_path.glob("*.log")))

    with contextlib.ExitStack() as stack:
        words = [
            "federate",
            "serve",
            "fed-pub",
            str(tmp_path / "agreed"),
            "--clients",
            "5",
            "--port",
            str(port),
            "--timeout",
            str(TIMEOUT),
            "--wait",
            "240",
            "-s",
            f"rounds={ROUNDS}",
            "-s",
            "hidden=6",
            "-o",
            str(report),
        ]
        server = stack.enter_context(_command(words, tmp_path / "serve.log"))
        joined = {}
        for name in names:
            words = [
                "federate",
                "join",
                str(tmp_path / name),
                "--server",
                f"127.0.0.1:{tap.port}",
                "-o",
                str(tmp_path / f"model-{name}"),
            ]
            joined[name] = stack.enter_context(_command(words, tmp_path / f"{name}.log"))
        _until(lambda: len(rounds()) >= 1, 300, logs)
        dies, late = _tree(joined["private-dies"].pid), _tree(joined["private-late"].pid)
        _signal(dies, signal.SIGKILL)
        _signal(late, signal.SIGSTOP)
        _until(lambda: len(rounds()) >= 2, 120, logs)
        _signal(late, signal.SIGCONT)
        _until(lambda: server.poll() is not None or json.loads(report.read_text()).get("done"), 300, logs)
        _until(lambda: all((tmp_path / f"model-{n}").exists() for n in names[:2]), 60, logs)
        found = json.loads(report.read_text())
        assert not found.get("failed"), found
        assert server.wait(60) == 0, logs()
        for name in names[:2]:
            assert joined[name].wait(60) == 0, logs()
    tap.listener.close()

    # the rest went on: two clients answered in every round and were used in each, and learnt
    assert len(found["rounds"]) == ROUNDS
    assert found["rounds"][0]["answered"] == 5 and found["rounds"][0]["used"] == 4  # NaN is dropped from the first round on
    assert all(r["used"] >= 2 for r in found["rounds"])
    assert found["rounds"][1]["used"] == 2 and found["rounds"][1]["seconds"] >= TIMEOUT - 1
    assert found["rounds"][2]["seconds"] < TIMEOUT  # who missed a round is not waited for
    notes = [note for r in found["rounds"] for note in r["notes"]]
    # the one that was stopped did not answer; what was killed did not either, unless Flower had noticed by then: then it was
    # not asked, or an error came in its place
    second = [note for note in found["rounds"][1]["notes"] if "not finite" not in note]
    assert any("not finite" in note for note in notes) and any("did not answer within" in note for note in second)
    assert len(second) == found["rounds"][1]["asked"] - 3
    assert len(found["similarity"]) == 4 and all(abs(row[k] - 1) < 1e-5 for k, row in enumerate(found["similarity"]))
    for name in names[:2]:
        model = lw.load(tmp_path / f"model-{name}")
        weights: Any = model.model
        assert all(bool(torch.isfinite(w).all()) for w in weights.weights.values()) and len(weights.history["valid"]) == ROUNDS
        (tmp_path / f"own-{name}").mkdir()
        (tmp_path / f"own-{name}" / name).symlink_to(tmp_path / name)
        model.predict(tmp_path / f"own-{name}", nodes="all").write(tmp_path / "answers.csv")
        assert len(pl.read_csv(tmp_path / "answers.csv")) == 30

    look_at_the_wire(tap, held, graph, hidden=6)


def look_at_the_wire(tap: Tap, held: Clients, graph: Graph, hidden: int) -> None:
    """Every request of the clients: known calls only; the objects in them are weights, embeddings and three counts."""
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.proto.message_pb2 import PushObjectRequest
    from flwr.supercore.inflatable.inflatable_object import get_object_type_from_object_content

    P = 5 * hidden + hidden + hidden * hidden + hidden + hidden * 3 + 3
    calls, kinds, arrays, text = set(), dict[str, int](), list[np.ndarray[Any, Any]](), bytearray()
    for path, body in tap.requests():
        calls.add(path.rpartition("/")[2])
        text += body
        if path.endswith("push-messages"):
            for message in PushMessagesRequest.FromString(body).messages_list:
                assert not message.content.ListFields(), "the content of a message travels as objects only"
        if not path.endswith("push-object"):
            continue
        content = PushObjectRequest.FromString(body).object_content
        kind = get_object_type_from_object_content(content)
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind == "ArrayChunk":
            arrays.append(_array(_unpacked(content[content.index(b"\0") + 1 :])))
        text += _unpacked(content[content.index(b"\0") + 1 :])
    known = {
        "register-node", "activate-node", "deactivate-node", "unregister-node", "send-node-heartbeat", "pull-messages", "push-messages",
        "get-run", "get-fab", "push-object", "pull-object", "confirm-message-received",
    }  # fmt: skip
    assert {"push-object", "push-messages"} <= calls <= known, calls - known
    assert set(kinds) <= {"Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "MetricRecord"}, kinds
    sizes = {a.shape for a in arrays}
    assert sizes == {(P,), (hidden,)} and {a.dtype for a in arrays} == {np.dtype(np.float32)}
    # names, ids, classes, columns: none of them is anywhere
    for word in (b"private", b"class ", b"nodes.csv", b"edges.csv", str(Path.cwd()).encode(), b"mask", b"exp_avg"):
        assert word not in bytes(text), word
    assert set(re.findall(rb"(?:theta|embedding|counts|nodes|correct|asked)", bytes(text))) == {
        b"theta",
        b"embedding",
        b"counts",
        b"nodes",
        b"correct",
        b"asked",
    }
    raw = bytes(text)
    for own in held.graphs:
        assert own.x is not None and own.y is not None
        for row in own.x:
            assert row.astype(np.float32).tobytes() not in raw and row.astype(np.float64).tobytes() not in raw
        for labels in (own.y, own.y.astype(np.int32), own.y.astype(np.uint8)):
            assert labels.tobytes()[:40] not in raw
        for ends in (own.edge_index, own.edge_index.astype(np.int32)):
            assert ends.tobytes()[:64] not in raw


def _unpacked(body: bytes) -> bytes:
    import zlib

    try:
        return zlib.decompress(body)
    except zlib.error:
        return body


def _array(data: bytes) -> np.ndarray[Any, Any]:
    import io

    return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
