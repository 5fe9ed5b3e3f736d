"""The rounds of `federated` over Flower: a superlink and a supernode for each client, each a process of its own.

The server's app drives the same `Strategy`, the client's app the same `Trainer` as the simulation in one process does; with
the same split and seed both give the same weights. A message to a client holds theta, the number of the round and whether
one since the last message was the best; a message from a client holds theta, the functional embedding and three counts
(`RECORDS`), and `unpack_update` refuses anything else. All that is personal, the masks and Adam's moments among it, stays in
the supernode's memory between rounds. Errors of a client are told in its own log, and the server hears only that there was
one.

Flower installs the server's app on the clients, so a client that joins runs the server's code: join only whom you trust.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latticework.core import store
from latticework.core.errors import Failure, UserError
from latticework.core.ledger import write_whole
from latticework.core.run import Run
from latticework.data.graph import Graph

from .federated import FederatedMethod, Judged, Kept, Plain, Trainer, Update, bytes_of, fill, mean_accuracy, participants

RECORDS = {"theta": ("theta",), "embedding": ("embedding",), "counts": ("nodes", "correct", "asked")}
SETTINGS, CLIENT = "LATTICEWORK_FEDERATE_SERVER", "LATTICEWORK_FEDERATE_CLIENT"
PATIENCE_S = 0.5
GIVE_UP_S = 600.0  # a client that cannot reach its server for so long ends


def flower() -> Any:
    """The `flwr` package, or an error that names the extra."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        import flwr.app
        import flwr.clientapp
        import flwr.serverapp
    except ImportError:
        raise UserError("federated processes need Flower: pip install 'latticework[federated]'") from None
    return flwr


# -- what crosses the wire -----------------------------------------------------------------------------------------------
def pack_update(update: Update) -> Any:
    """An `Update` as Flower's records."""
    app = flower().app
    content = app.RecordDict({"theta": app.ArrayRecord({"theta": app.Array(update.theta.numpy())})})
    if update.embedding is not None:
        content["embedding"] = app.ArrayRecord({"embedding": app.Array(update.embedding.numpy())})
    content["counts"] = app.MetricRecord({"nodes": update.nodes, "correct": update.correct, "asked": update.asked})
    return content


def unpack_update(content: Any) -> Update:
    """Flower's records as an `Update`. ``ValueError`` for anything that is not one of `RECORDS`, or not of its form."""
    for name, record in content.items():
        if name not in RECORDS or sorted(record) != sorted(RECORDS[name]):
            raise ValueError(f"a client sent {name!r} with {sorted(record)}")
    if "theta" not in content or "counts" not in content:
        raise ValueError("a client sent no weights or no counts")
    counts = [content["counts"][name] for name in RECORDS["counts"]]
    nodes, correct, asked = counts
    if not all(isinstance(c, int) for c in counts) or nodes < 1 or not 0 <= correct <= asked:
        raise ValueError(f"counts that cannot be: nodes {nodes}, correct {correct}, asked {asked}")
    embedding = _vector(content, "embedding") if "embedding" in content else None
    return Update(_vector(content, "theta"), embedding, *counts)


def _vector(content: Any, name: str) -> Tensor:
    """float32 [n] of a record; ``ValueError`` for any other array, and for what is none."""
    try:
        array = content[name][name].numpy()
    except Exception:
        raise ValueError(f"{name} that is no array") from None
    if array.dtype != np.float32 or array.ndim != 1:
        raise ValueError(f"{name} as {array.dtype} {list(array.shape)} instead of float32 [n]")
    return torch.from_numpy(array.copy())


def pack_model(theta: Tensor, round: int, best: bool) -> Any:
    """What a client is sent: its weights, the round, and whether a round since the last message was the best by mean validation."""
    app = flower().app
    content = app.RecordDict({"theta": app.ArrayRecord({"theta": app.Array(theta.contiguous().numpy())})})
    content["round"] = app.ConfigRecord({"round": round, "best": best})
    return content


class Terms(NamedTuple):
    """What all parties agree on: the method, the columns, the classes and the seed. The server's app brings it."""

    method: FederatedMethod
    features: tuple[str, ...]
    classes: tuple[str, ...]
    seed: int
    bags: bool = False  # whether features are read as bags of words

    def text(self) -> str:
        return json.dumps({**self._asdict(), "method": self.method.plain()})

    @classmethod
    def read(cls, text: str) -> Terms:
        from latticework.core.registry import class_value

        plain = json.loads(text)
        method: Any = class_value("method", plain["method"])
        return cls(method, tuple(plain["features"]), tuple(plain["classes"]), int(plain["seed"]), bool(plain["bags"]))

    def run(self) -> Run:
        return Run(task=None, seed=self.seed)


# -- a client's side -----------------------------------------------------------------------------------------------------
class Site(NamedTuple):
    """A client as its own machine knows it; none of this is sent."""

    name: str
    graph: Path
    out: Path
    done: Path

    def text(self) -> str:
        return json.dumps({k: str(v) for k, v in self._asdict().items()})

    @classmethod
    def read(cls, text: str) -> Site:
        plain = json.loads(text)
        return cls(plain["name"], *(Path(plain[k]) for k in ("graph", "out", "done")))


def agreed(graph: Graph, terms: Terms, where: str) -> Graph:
    """A client's graph with the agreed columns and classes, by name. `UserError` where they are not there."""
    from dataclasses import replace

    from .tasks import match_features

    if graph.multi_label:
        raise UserError(f"{where}: several labels a node (a column 'labels'); one is needed (a column 'label')")
    if not graph.labelled.any():
        raise UserError(f"{where}: no node has a label, so this client can neither train nor be judged")
    strange = [c for c in graph.classes if c not in terms.classes]
    if strange:
        raise UserError(f"{where}: class {strange[0]!r} is not among the agreed ones: {', '.join(terms.classes)}")
    try:
        graph = match_features(graph, terms.features)
    except UserError as error:
        raise UserError(f"{where}: not the agreed feature columns: {error}") from None
    code = np.array([terms.classes.index(c) for c in graph.classes], np.int64)
    assert graph.y is not None
    return replace(graph, y=np.where(graph.y >= 0, np.append(code, -1)[graph.y], -1), classes=terms.classes, _cache={})


def own_split(graph: Graph, run: Run) -> np.ndarray[Any, Any]:
    """int8 [n]: the column 'split' where there is one, else 80 % of the labelled nodes train and 20 % validate."""
    if graph.fixed is not None:
        split = graph.fixed.copy()
    else:
        nodes = run.rng("split").permutation(np.flatnonzero(graph.labelled))
        split = np.full(graph.nodes, -1, np.int8)
        split[nodes] = 1
        split[nodes[: max(round(0.8 * len(nodes)), 1)]] = 0
    split[~graph.labelled] = -1
    return np.asarray(split)


class Party:
    """One client over many messages: what it keeps between rounds goes through `state` and `resume`."""

    def __init__(self, terms: Terms, site: Site, graph: Graph) -> None:
        self.terms, self.site, self.run = terms, site, terms.run()
        method, device = terms.method, "cpu"
        graph = agreed(graph, terms, str(site.graph))
        split = own_split(graph, self.run)
        assert graph.y is not None and graph.x is not None
        data = Plain(
            torch.from_numpy(np.ascontiguousarray(graph.x)), torch.from_numpy(graph.edge_index),
            None if graph.weight is None else torch.from_numpy(graph.weight), graph.nodes, graph.directed,
        )  # fmt: skip
        rows, held = np.flatnonzero(split == 0), np.flatnonzero(split == 1)
        if not len(rows):
            raise UserError(f"{site.graph}: no train node; the column 'split' must say train for some labelled node")
        y = torch.from_numpy(graph.y)
        net = method.module(len(terms.features), len(terms.classes))
        proxy = method.proxy(len(terms.features), method.proxy_seed(self.run), device)
        judged = Judged(0, torch.from_numpy(held), y[held])
        inputs = method.inputs(data, device, {"bags": terms.bags})
        self.trainer = Trainer(site.name, method, net, inputs, torch.from_numpy(rows), y[rows], [judged], proxy)
        start = method.start(len(terms.features), len(terms.classes), self.run)
        fill(self.trainer.shared, start)
        self.kept = Kept(1, start)

    def train(self, theta: Tensor, round: int, best: bool) -> Update:
        """A round, and what of it may be sent."""
        self._best(best)
        update = self.trainer.train(theta, round, self.run)
        valid = torch.tensor([update.correct / update.asked if update.asked else math.nan], dtype=torch.float64)
        chosen = self.kept.weights["best-valid"]
        self.kept.look(self.trainer.evaluated()[None], valid)
        self.kept.weights["best-valid"] = chosen  # of which the mean over all clients decides, and the server knows it
        sparse = torch.tensor([self.trainer.net.sparsity()])  # type: ignore[operator]
        for word, value in (
            ("valid", valid),
            ("sparsity", sparse),
            ("sent", torch.tensor([float(bytes_of(self.trainer, update))])),
        ):
            self.kept.history[word].append(value)
        return update

    def _best(self, best: bool) -> None:
        if best:
            self.kept.weights["best-valid"] = self.kept.weights["last"]

    def finish(self, theta: Tensor, best: bool) -> None:
        """Save the client's own model, with its masks multiplied in; who took part in no round has what the others made."""
        from .federated_tasks import FederatedNodeClassification

        self._best(best)
        if not self.trainer.rounds:
            fill(self.trainer.shared, theta)
            now, none = self.trainer.evaluated()[None], torch.tensor([math.nan], dtype=torch.float64)
            self.kept.look(now, none)
            for word, value in (("valid", none), ("sparsity", torch.zeros(1)), ("sent", torch.zeros(1))):
                self.kept.history[word].append(value)
        method = self.terms.method
        schema = {
            "classes": list(self.terms.classes),
            "features": list(self.terms.features),
            "clients": [self.site.name],
            "multi": False,
            "bags": self.terms.bags,
        }
        history = {word: torch.stack(values) for word, values in self.kept.history.items() if values}
        model = method.model(method, schema, self.kept.weights, history)
        from latticework import __version__

        provenance = {"task": FederatedNodeClassification().plain(), "version": __version__, "seed": self.terms.seed}
        store.save_model(model, self.site.out, provenance)
        write_whole(self.site.done, "done\n")

    def state(self) -> dict[str, Any]:
        return {"trainer": self.trainer.state(), "kept": vars(self.kept)}

    def resume(self, state: Mapping[str, Any]) -> None:
        self.trainer.resume(state["trainer"])
        vars(self.kept).update(state["kept"])


def client_message(content: Any, context: Any, finish: bool) -> Any:
    """A message of the server's at the client: restore what was kept, do the round, keep again, answer."""
    from latticework.data.graph import read_graph

    flwr = flower()
    try:
        torch.set_num_threads(1)  # sums depend on it
        terms, site = Terms.read(str(context.run_config["terms"])), Site.read(os.environ[CLIENT])
        party = Party(terms, site, read_graph(site.graph))
        if "kept" in context.state:
            arrays = {name: torch.from_numpy(array.numpy().copy()) for name, array in context.state["arrays"].items()}
            party.resume(store.unflatten(json.loads(str(context.state["kept"]["tree"])), arrays))
        config, theta = content["round"], torch.from_numpy(content["theta"]["theta"].numpy().copy())
        if finish:
            party.finish(theta, bool(config["best"]))
            return flwr.app.RecordDict()
        update = party.train(theta, int(config["round"]), bool(config["best"]))
        skeleton, tensors = store.flatten(party.state())
        context.state["kept"] = flwr.app.ConfigRecord({"tree": json.dumps(skeleton)})
        context.state["arrays"] = flwr.app.ArrayRecord({name: flwr.app.Array(t.numpy()) for name, t in tensors.items()})
        return pack_update(update)
    except Exception as error:
        print(f"latticework: this client could not do its part: {error}", file=sys.stderr, flush=True)
        if finish:  # there is no further message to wait for
            with contextlib.suppress(Exception):
                write_whole(Site.read(os.environ[CLIENT]).done, "failed\n")
    # Flower sends the text of an error to the server: it says nothing
    raise RuntimeError("the client could not do its part; its own log says why")


def client_app() -> Any:
    """Flower's app of a client."""
    flwr = flower()
    app = flwr.clientapp.ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Any, context: Any) -> Any:
        return flwr.app.Message(client_message(message.content, context, finish=False), reply_to=message)

    @app.query()  # type: ignore[untyped-decorator]
    def finish(message: Any, context: Any) -> Any:
        return flwr.app.Message(client_message(message.content, context, finish=True), reply_to=message)

    return app


# -- the server's side ---------------------------------------------------------------------------------------------------
class Rules(NamedTuple):
    """How the server waits: for `clients` to be there, at most `wait_s`; for the answers of a round, at most `timeout_s`."""

    clients: int
    wait_s: float
    timeout_s: float


class Server:
    """The rounds over a Flower grid. A client that dies, is late or sends what cannot be used leaves the rest alone.

    Late: its answer comes after `timeout_s`; it is thrown away, and the client takes part again once it has come. A client
    that missed a round is not waited for in the next ones until it has answered in time. A round needs somebody: where all
    are late or gone, it begins when one is back, and `Failure` says so where none is within `wait_s`.
    """

    def __init__(self, terms: Terms, rules: Rules, grid: Any, say: Callable[[str], None] = print) -> None:
        self.terms, self.rules, self.grid, self.say = terms, rules, grid, say
        self.method, self.run = terms.method, terms.run()
        start = self.method.start(len(terms.features), len(terms.classes), self.run)
        self.strategy = self.method.strategy(start)
        self.owing: dict[int, tuple[str, float]] = {}  # client -> message that it has not answered, when it lapses
        self.slow: set[int] = set()
        self.best, self.shares = -1.0, dict[str, float]()  # of all means; each client's newest validation accuracy
        self.untold: set[int] = set()  # clients that were not asked since a round that was the best one
        self.rounds: list[dict[str, Any]] = []

    def nodes(self) -> list[int]:
        return sorted(self.grid.get_node_ids())

    def gather_clients(self) -> list[int]:
        """Wait for the clients; `Failure` where none comes."""
        until = time.monotonic() + self.rules.wait_s
        while len(found := self.nodes()) < self.rules.clients and time.monotonic() < until:
            time.sleep(PATIENCE_S)
        if not found:
            raise Failure(f"no client joined within {self.rules.wait_s:g} s")
        return found

    def round(self, number: int) -> dict[str, Any]:
        """One round; gives what is known of it."""
        began = time.monotonic()
        there = self._drawn(self._free(), number)
        sent = self._send(there, lambda n: pack_model(self.strategy.model_for(str(n)), number, n in self.untold), "train", number)
        replies = self._wait(sent, [n for n in there if n not in self.slow] or there)
        updates, notes = {}, []
        for node, reply in replies.items():
            try:
                if reply.has_error():
                    raise ValueError("an error instead of an update")
                updates[str(node)] = unpack_update(reply.content)
            except ValueError as error:
                notes.append(f"{node} sent {error}")
        before = len(self.strategy.notes)
        used = self.strategy.receive(updates)
        notes += self.strategy.notes[before:]
        missing = [n for n in there if n not in replies]
        for n in missing:
            late = (
                "did not answer yet, and was not waited for"
                if n in self.slow
                else f"did not answer within {self.rules.timeout_s:g} s"
            )
            notes.append(f"{n} {late}")
        self.slow = (self.slow | set(missing)) - set(replies)
        fresh = {n: updates[n].correct / updates[n].asked for n in used if updates[n].asked}
        self.shares |= fresh  # as in one process, who was not asked counts with the model that it has
        mean = mean_accuracy(self.shares.values()) if fresh else None
        if mean is not None and mean > self.best:
            self.best = mean
            self.untold = set(self.nodes())
        found = {
            "round": number + 1, "asked": len(there), "answered": len(replies), "used": len(used), "mean validation accuracy": mean,
            "bytes received": int(sum(4 * (u.theta.numel() + (0 if u.embedding is None else u.embedding.numel())) for u in updates.values())),
            "seconds": round(time.monotonic() - began, 2), "notes": notes,
        }  # fmt: skip
        self.rounds.append(found)
        return found

    def _drawn(self, there: Sequence[int], number: int) -> list[int]:
        """Who takes part in a round, the method's share of those who may be asked."""
        chosen = participants([str(n) for n in there], self.method.fraction, self.run, number)
        return [n for n in there if str(n) in chosen]

    def _free(self) -> list[int]:
        """Clients that owe no answer; without any, rounds would pass with nobody, so the first to be back is waited for."""
        until = time.monotonic() + self.rules.wait_s
        while True:
            self._collect_late()
            if there := [n for n in self.nodes() if n not in self.owing]:
                return there
            if time.monotonic() > until:
                late = f"{len(self.owing)} owe an answer" if self.owing else "all have gone"
                raise Failure(
                    f"no client was ready for a round within {self.rules.wait_s:g} s: {late}; a longer --timeout may help"
                )
            time.sleep(PATIENCE_S)

    def finish(self) -> None:
        """Ask the clients to save their models, those who are late as soon as they are back, at most `timeout_s` later."""
        until, told = time.monotonic() + self.rules.timeout_s, set[int]()
        while True:
            self._collect_late()
            there = [n for n in self.nodes() if n not in self.owing and n not in told]
            told |= set(there)
            sent = self._send(
                there, lambda n: pack_model(self.strategy.model_for(str(n)), self.method.rounds, n in self.untold), "query", -1
            )
            self._wait(sent, there)
            if not any(n in self.owing and n not in told for n in self.nodes()) or time.monotonic() > until:
                return
            time.sleep(PATIENCE_S)

    def _send(self, nodes: Sequence[int], content: Callable[[int], Any], kind: str, number: int) -> dict[int, str]:
        life = 2 * self.rules.timeout_s + 10
        messages = [self.grid.create_message(content(n), kind, n, str(number + 1), ttl=life) for n in nodes]
        ids = list(self.grid.push_messages(messages)) if messages else []
        sent = {n: i for n, i in zip(nodes, ids, strict=True) if i}
        self.owing |= {n: (i, time.monotonic() + life) for n, i in sent.items()}
        self.untold -= set(sent)
        return sent

    def _wait(self, sent: Mapping[int, str], expected: Sequence[int]) -> dict[int, Any]:
        """Answers by client, until all that are waited for have answered or time is up."""
        until, found = time.monotonic() + self.rules.timeout_s, dict[int, Any]()
        while True:
            left = [i for n, i in sent.items() if n not in found]
            for reply in self.grid.pull_messages(left) if left else ():
                node = next((n for n, i in sent.items() if i == reply.metadata.reply_to_message_id), None)
                if node is not None:
                    found[node] = reply
                    self.owing.pop(node, None)
            if all(n in found for n in expected) or time.monotonic() > until:
                return found
            time.sleep(PATIENCE_S)

    def _collect_late(self) -> None:
        """Throw away late answers; their senders are free again, as are those whose message has lapsed."""
        ids = [i for i, _ in self.owing.values()]
        came = {m.metadata.reply_to_message_id for m in self.grid.pull_messages(ids)} if ids else set()
        for node, (message, lapses) in list(self.owing.items()):
            if message in came:
                self.say(f"{node} answered late: thrown away")
            if message in came or time.monotonic() > lapses:
                del self.owing[node]

    def report(self) -> dict[str, Any]:
        """What the server learnt, as plain JSON."""
        names = sorted(self.strategy.personal)
        S = self.strategy.seen(names)
        rows = [] if S is None else [[None if math.isnan(v) else round(float(v), 6) for v in row] for row in S.tolist()]
        return {"terms": json.loads(self.terms.text()), "rounds": self.rounds, "clients": names, "similarity": rows}


def server_main(grid: Any, context: Any) -> None:
    """All rounds of a run; what happens is written to the server's own file after each."""
    rules = json.loads(os.environ[SETTINGS])
    out = Path(rules.pop("out"))
    server: Server | None = None

    def write(**more: Any) -> None:
        write_whole(out, json.dumps({**(server.report() if server else {}), **more}, indent=1) + "\n")

    try:
        server = Server(Terms.read(str(context.run_config["terms"])), Rules(**rules), grid)
        there = server.gather_clients()
        print(f"{len(there)} clients are there", flush=True)
        for number in range(server.method.rounds):
            found = server.round(number)
            print(json.dumps(found), flush=True)
            write(done=False)
        server.finish()
        write(done=True)
    except Exception as error:
        write(done=True, failed=f"{type(error).__name__}: {error}")
        raise


def run_tasks(address: str) -> None:
    """Take a supernode's tasks and run each in a fork of this process, which has torch and the client's app loaded.

    Flower's own runner starts a fresh interpreter for every message; its imports cost ten times what a round on a small
    graph does. The tasks, the app and the wire are Flower's all the same.
    """
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.constant import TaskType
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.supernode.runtime.run_clientapp import run_clientapp

    from . import fed_pub, federated_tasks  # noqa: F401  (loaded once, for all forks)

    torch.set_num_threads(1)
    client = RuntimeHttpClient.from_server_address(
        server_address=address, insecure=True, root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")], retry_invoker=make_simple_http_retry_invoker(),
    )  # fmt: skip
    parent = os.getppid()
    while os.getppid() == parent:
        task = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if task.HasField("task") and task.token:
            pid = os.fork()
            if pid == 0:
                try:
                    run_clientapp(address, task.token, insecure=True)
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
        else:
            time.sleep(0.2)


def server_app() -> Any:
    """Flower's app of the server."""
    app = flower().serverapp.ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Any, context: Any) -> None:
        server_main(grid, context)

    return app


# -- the processes -------------------------------------------------------------------------------------------------------
_APP = '''\
"""The rounds of latticework over Flower."""

from latticework.nodes.federated_processes import client_app, server_app

server = server_app()
client = client_app()
'''
_PROJECT = """\
[project]
name = "latticework-federate"
version = "1.0.0"
description = "Rounds of latticework over Flower"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "latticework"

[tool.flwr.app.components]
serverapp = "latticework_federate.app:server"
clientapp = "latticework_federate.app:client"

[tool.flwr.app.config]
terms = {terms}
"""


def _environment(home: Path, **more: str) -> dict[str, str]:
    """Flower's programs find one another by name, keep to a folder of ours, and call nobody."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **quiet, "FLWR_HOME": str(home), "PATH": path, **more}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(words: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a session of its own, ended with all that it started."""
    with log.open("ab") as sink:
        child = subprocess.Popen(words, env=dict(env), stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield child
    finally:
        for sign, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(seconds)
            if not _alive(child.pid):
                break


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    # what it prints while it shuts down says nothing of why
    wrong = next((i for i, line in reversed(list(enumerate(lines))) if "ERROR" in line), len(lines) - 3)
    return re.sub(r"\x1b\[[0-9;]*m", "", " | ".join(lines[max(wrong, 0) :][:3]))


class Tls(NamedTuple):
    """Certificates of a server (`certificate`, `key`) and of who signed them (`authority`), in PEM files."""

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def check(self, host: str, insecure: bool) -> bool:
        """Whether to use TLS. Without it only this machine is served, unless it is asked for."""
        given = [p for p in self if p is not None]
        for path in given:
            if not path.is_file():
                raise UserError(f"{path} does not exist; it should be a PEM file")
        if not given and not insecure and host not in ("127.0.0.1", "localhost", "::1"):
            raise UserError(
                f"{host} is not this machine, and without certificates weights would cross the network in the open; give --ca "
                "(and --cert, --key at the server), or --insecure where the network is trusted"
            )
        return bool(given)


def serve(
    terms: Terms, rules: Rules, out: Path, *, host: str = "127.0.0.1", port: int = 9092, tls: Tls = Tls(), insecure: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:  # fmt: skip
    """Run a superlink and all rounds on it; gives the report, which also stands at `out`.

    Raises `UserError` for a port in use or missing certificates, `Failure` where Flower or the rounds fail.
    """
    flower()
    secure = tls.check(host, insecure)
    if secure and None in tls:
        raise UserError("a server with TLS needs --cert, --key and --ca")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise UserError(f"port {port} is in use; choose another with --port")
    out = out.resolve()
    if out.is_dir():
        raise UserError(f"{out} is a folder; -o names the file of the rounds' report, as in {out.name}/rounds.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        work = Path(folder)
        app = work / "app" / "latticework_federate"
        app.mkdir(parents=True)
        (app / "__init__.py").write_text("")
        (app / "app.py").write_text(_APP)
        (work / "app" / "pyproject.toml").write_text(_PROJECT.format(terms=json.dumps(terms.text())))
        near = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        connection = {"address": f"{near}:{port}"} | ({"root-certificates": str(tls.authority)} if secure else {"insecure": True})
        lines = [f"{k} = {json.dumps(v)}" for k, v in connection.items()]
        (work / "home").mkdir()
        (work / "home" / "config.toml").write_text("\n".join(['[superlink]\ndefault = "here"\n\n[superlink.here]', *lines, ""]))
        env = _environment(work / "home", **{SETTINGS: json.dumps({**rules._asdict(), "out": str(out)})})
        words = ["flower-superlink", "--host", host, "--port", str(port), "--disable-runtime-dependency-installation"]
        words += _tls_words(tls) if secure else ["--insecure"]
        log = work / "superlink.log"
        out.unlink(missing_ok=True)
        with _process(words, env, log) as child:
            _until(lambda: _listens(near, port), child, log, 60, "Flower's superlink did not start")
            started = subprocess.run(
                ["flwr", "run", str(work / "app"), "here", "--format", "json"], env=env, capture_output=True, text=True, cwd=work
            )
            if started.returncode or '"success": true' not in started.stdout:
                raise Failure(f"Flower did not take the run: {(started.stdout + started.stderr).strip()[-400:]}")
            say(f"serving {terms.method.label} on {host}:{port}; waiting for {rules.clients} clients")
            return _follow(out, child, log, rules, say)


def _tls_words(tls: Tls) -> list[str]:
    return [
        "--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.key), "--ssl-ca-certfile", str(tls.authority),
    ]  # fmt: skip


def _follow(out: Path, child: subprocess.Popen[bytes], log: Path, rules: Rules, say: Callable[[str], None]) -> dict[str, Any]:
    """Tell each round as it is written, until the last."""
    told, quiet_since = 0, time.monotonic()
    while True:
        report = json.loads(out.read_text()) if out.exists() else {}
        for found in report.get("rounds", [])[told:]:
            valid = found["mean validation accuracy"]
            shown = "" if valid is None else f", mean validation accuracy {valid:.4f}"
            say(f"round {found['round']}: {found['used']} of {found['asked']} clients{shown} ({found['seconds']:.1f} s)")
            for note in found["notes"]:
                say(f"  {note}")
            told, quiet_since = told + 1, time.monotonic()
        if report.get("failed"):
            raise Failure(str(report["failed"]))
        if report.get("done"):
            return dict(report)
        if child.poll() is not None:
            raise Failure(f"Flower's superlink ended: {_tail(log)}")
        if time.monotonic() - quiet_since > rules.wait_s + 3 * rules.timeout_s + 60:
            raise Failure(f"nothing was heard of the run for long: {_tail(log)}")
        time.sleep(PATIENCE_S)


def join(
    site_graph: Path,
    server: str,
    out: Path,
    name: str,
    *,
    tls: Tls = Tls(),
    insecure: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Run a supernode for one client until the rounds are done and its model is saved at `out`.

    Raises `UserError` for a graph that cannot be read, `Failure` where the supernode ends before, or cannot reach the server
    for `GIVE_UP_S` seconds.
    """
    from latticework.data.graph import read_graph

    flower()
    host, _, port = server.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"the server is given as HOST:PORT, not {server!r}")
    secure = tls.check(host, insecure)
    graph = read_graph(site_graph)
    if not graph.labelled.any():
        raise UserError(f"{site_graph}: no node has a label, so this client can neither train nor be judged")
    with TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "home").mkdir()
        site = Site(name, site_graph.resolve(), out.resolve(), work / "done")
        env = _environment(work / "home", **{CLIENT: site.text()})
        here = f"127.0.0.1:{_free_port()}"
        log = work / "supernode.log"
        words = ["flower-supernode", "--superlink", server, "--port", here.rpartition(":")[2]]
        words += ["--max-wait-time", str(GIVE_UP_S)]  # left out, Flower looks for a server that has gone for ever
        words += ["--root-certificates", str(tls.authority)] if secure else ["--insecure"]
        runner = [sys.executable, "-m", "latticework.nodes.federated_processes", here]
        warm = _can_fork()
        say(f"{name} joins {server}; {graph.nodes} nodes stay here")
        with contextlib.ExitStack() as running:
            child = running.enter_context(_process(words + (["--isolation", "process"] if warm else []), env, log))
            tasks = running.enter_context(_process(runner, env, log)) if warm else child
            told = 0
            while not site.done.exists():
                told = _tell(log, told, say)
                if child.poll() is not None or tasks.poll() is not None:
                    raise Failure(f"no model was made, since Flower's supernode ended: {_tail(log)}")
                time.sleep(PATIENCE_S)
            time.sleep(4)  # the supernode looks for answers to send every three seconds
            _tell(log, told, say)
            if site.done.read_text() != "done\n":
                raise Failure("the rounds are over and this client made no model; why is said above")
    say(f"wrote {out}")


def _tell(log: Path, told: int, say: Callable[[str], None]) -> int:
    """Pass on the rounds and what the client's own app said: its errors are told nowhere else."""
    lines = log.read_text(errors="replace").splitlines()
    for before, line in zip(["", *lines][told:], lines[told:], strict=False):
        if line.startswith("latticework: "):
            say(line.removeprefix("latticework: "))
        elif "Receiving: train" in line and "ROUND" in before:
            say(before[before.index("ROUND") :].rstrip("]").lower())
    return len(lines)


def _can_fork() -> bool:
    """Whether `run_tasks` can work here: it needs a system that forks, and inner parts of Flower that may move."""
    try:
        import flwr.supercore.interceptors
        import flwr.supernode.runtime.run_clientapp  # noqa: F401
    except ImportError:
        return False
    return hasattr(os, "fork")


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def _until(ready: Callable[[], bool], child: subprocess.Popen[bytes], log: Path, seconds: float, why: str) -> None:
    until = time.monotonic() + seconds
    while not ready():
        if child.poll() is not None or time.monotonic() > until:
            raise Failure(f"{why}: {_tail(log)}")
        time.sleep(0.1)


if __name__ == "__main__":
    run_tasks(sys.argv[1])
