"""Federated training: rounds of local training at clients and averaging at a server, in one process or over Flower.

A `Trainer` is a client's side (its graph, its network, its optimiser), a `Strategy` the server's. Between them pass a vector
of weights one way and an `Update` the other, nothing else; `simulate` drives both in one process, and
`federated_processes` the same two objects over Flower's. The peers of FED-PUB stand here: training alone, FedAvg, FedProx,
and central training, all with the same network, so that what differs is the method.

Source: McMahan, Moore, Ramage, Hampson, y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized Data"
(AISTATS 2017, arXiv 1602.05629), algorithm 1; Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in
Heterogeneous Networks" (MLSys 2020, arXiv 1812.06127), algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.common.majority import shares_of
from latticework.core.errors import OutOfTime, UserError
from latticework.core.method import Method, Model, Predictor
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import lines
from latticework.core.task import Part, Task
from latticework.core.value import setting

from .network import Features, features_of, operator_of

Array = NDArray[Any]
Shared = dict[str, Tensor]
ReadOut = Literal["last", "best-valid", "own-best"]
READ_OUTS: tuple[ReadOut, ...] = ("last", "best-valid", "own-best")
TASKS = ("federated-node-classification",)


# -- trivial ---------------------------------------------------------------------------------------------------------
class ClientMajorityModel(Model):
    """The same probabilities for all nodes of a client: `shares` float32 [K, C]."""

    def __init__(self, method: Method, schema: Mapping[str, Any], shares: Tensor) -> None:
        self.method, self.schema, self.shares = method, schema, shares

    def predict(self, part: Part) -> tuple[Array, ...]:
        place = _places(self.schema, part)
        return tuple(self.shares[k].expand(len(rows), -1).numpy() for k, rows in zip(place, part.query.asked, strict=True))

    def state(self) -> Mapping[str, Any]:
        return {"shares": self.shares}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["shares"])


class ClientMajority(Method):
    """Answers every node of a client with the shares of the classes among the client's own train nodes."""

    name: ClassVar[str] = "client-majority"
    tasks: ClassVar[tuple[str, ...]] = TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[ClientMajorityModel]] = ClientMajorityModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> ClientMajorityModel:
        classes = len(train.schema["classes"])
        return ClientMajorityModel(self, dict(train.schema), torch.stack([shares_of(y, classes) for y in train.truth]))


def _places(schema: Mapping[str, Any], part: Part) -> list[int]:
    """The clients of a part by their place in the fitted model."""
    known = {name: k for k, name in enumerate(schema["clients"])}
    strange = [name for name in part.query.names if name not in known]
    if strange:
        raise UserError(f"the model was not fitted for client {strange[0]!r}; it knows {', '.join(known)}")
    return [known[name] for name in part.query.names]


# -- what passes between client and server ---------------------------------------------------------------------------
class Update(NamedTuple):
    """All that a client sends after a round, and nothing else of it ever leaves.

    `theta` float32 [P], its weights and biases; `embedding` [h] or none, its answer to the random graph; `nodes`, on how
    many it trained; `correct` of `asked` of its validation nodes it gets right.
    """

    theta: Tensor
    embedding: Tensor | None
    nodes: int
    correct: int
    asked: int


def flat(shared: Mapping[str, Tensor]) -> Tensor:
    """Tensors as one vector [P], in the order of the network."""
    return torch.cat([p.detach().reshape(-1) for p in shared.values()]).cpu()


@torch.no_grad()
def fill(shared: Mapping[str, Tensor], theta: Tensor) -> None:
    """Write a vector [P] into the tensors. ``ValueError`` where the sizes differ."""
    total = sum(p.numel() for p in shared.values())
    if theta.shape != (total,):
        raise ValueError(f"the network has {total} shared weights, the vector is {list(theta.shape)}")
    at = 0
    for p in shared.values():
        p.copy_(theta[at : at + p.numel()].reshape(p.shape))
        at += p.numel()


def finite(t: Tensor) -> bool:
    """Whether all entries are; a finite sum says so at once, and a sum may overflow where they are."""
    return bool(torch.isfinite(t.sum())) or bool(torch.isfinite(t).all())


class Strategy:
    """The server's side: what each client is sent, from what the clients have sent. This one is FedAvg.

    ``theta <- sum_k w_k theta_k``, w uniform, or by the number of train nodes (algorithm 1). Every client gets the newest mean,
    newcomers and those who missed the round, too (where weights are personal, these keep what they had). An update that is not finite
    or of another size is dropped and said in `notes`.
    """

    def __init__(self, start: Tensor, by_size: bool = False) -> None:
        self.size, self.by_size = len(start), by_size
        self.common = start.clone()
        self.personal: dict[str, Tensor] = {}
        self.notes: list[str] = []

    def model_for(self, client: str) -> Tensor:
        """theta [P] of a client for its next round; not to be changed."""
        return self.personal.get(client, self.common)

    def receive(self, updates: Mapping[str, Update]) -> list[str]:
        """Take in a round's updates; gives the names of those that were used."""
        used = []
        for name, update in updates.items():
            wrong = self._wrong(update)
            if wrong is None:
                used.append(name)
            else:
                self.notes.append(f"{name} sent {wrong}: its update is dropped, the others go on")
        if used:
            theta = torch.stack([updates[n].theta for n in used])
            mixed = self.combine(used, theta, [updates[n] for n in used])
            self.personal |= dict(zip(used, mixed, strict=True))
        return used

    def _wrong(self, update: Update) -> str | None:
        if update.theta.shape != (self.size,):
            return f"{update.theta.numel()} weights instead of {self.size}"
        if not finite(update.theta):
            return "weights that are not finite"
        return self.usable(update)

    def usable(self, update: Update) -> str | None:
        """What else is wrong with an update, or none."""
        return None

    def combine(self, names: Sequence[str], theta: Tensor, updates: Sequence[Update]) -> Tensor:
        """theta [K, P] of the participants -> what each of them gets, [K, P]; `common` is what newcomers get from now on."""
        share = torch.tensor([float(u.nodes) if self.by_size else 1.0 for u in updates])
        self.common = mean = (share / share.sum()) @ theta
        self.personal = {name: mean for name in self.personal}  # one model for all, those who missed the round too
        return mean.expand(len(names), -1)

    def seen(self, names: Sequence[str]) -> Tensor | None:
        """What the server learnt of the clients' likeness, [K, K], where it does."""
        return None

    def state(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k in ("common", "personal", "notes", "similarity")}

    def resume(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


class Alone(Strategy):
    """Nothing is shared: every client goes on with its own weights."""

    def combine(self, names: Sequence[str], theta: Tensor, updates: Sequence[Update]) -> Tensor:
        return theta


class Judged(NamedTuple):
    """Validation nodes of a client within a trainer's graph: `rows`, their classes `y`; `place` of the client."""

    place: int
    rows: Tensor
    y: Tensor


class Trainer:
    """A client's side: its graph, its network with all that stays local, its optimiser.

    `inputs` (features, operator) of the graph, `rows` int64 [q] of the train nodes and their classes `y`.
    """

    def __init__(
        self, name: str, method: FederatedMethod, net: nn.Module, inputs: tuple[Features, Any], rows: Tensor, y: Tensor,
        judged: Sequence[Judged], proxy: Any = None,
    ) -> None:  # fmt: skip
        self.name, self.method, self.net, self.inputs, self.judged, self.proxy = name, method, net, inputs, judged, proxy
        self.rows, self.y = rows, y
        self.optimiser = torch.optim.Adam(net.parameters(), lr=method.lr, weight_decay=method.weight_decay)
        self.right = [0] * len(judged)  # of each client's validation nodes, at the newest look
        self.rounds = 0  # that it took part in
        self.loss = math.nan

    @property
    def shared(self) -> Shared:
        return self.net.shared()  # type: ignore[operator, no-any-return]

    def train(self, theta: Tensor, round: int, run: Run) -> Update:
        """One round: take theta, train, look at the validation nodes, and say what the server may know.

        Dropout draws from a stream of the client and the round, so a client's round is the same in any order and process.
        """
        fill(self.shared, theta)
        received = {n: p.detach().clone() for n, p in self.shared.items()}
        index = [self.rows.device] if self.rows.device.type == "cuda" else []
        with torch.random.fork_rng(devices=index):
            torch.manual_seed(int(run.rng(f"client {self.name}, round {round}").integers(2**62)))
            self.net.train()
            for _ in range(self.method.epochs):
                self.optimiser.zero_grad(set_to_none=True)
                loss = F.cross_entropy(self.net(*self.inputs)[self.rows], self.y)
                loss = loss + self.method.penalty(self.net, received, round)
                loss.backward()
                self.optimiser.step()
        self.loss = float(loss.detach())
        self.rounds += 1
        self.look()
        embedding = self.method.embedding(self.net, self.proxy)
        asked = sum(len(j.rows) for j in self.judged)
        return Update(flat(self.shared), embedding, len(self.rows), sum(self.right), asked)

    @torch.no_grad()
    def look(self) -> None:
        """Count the validation nodes that are right."""
        self.net.eval()
        if any(len(j.rows) for j in self.judged):
            said = self.net(*self.inputs).argmax(1)
            self.right = [int((said[j.rows] == j.y).sum()) for j in self.judged]

    def evaluated(self) -> Tensor:
        """theta [P] as it predicts, with what is local multiplied in."""
        return flat(self.net.evaluated())  # type: ignore[operator]

    def state(self) -> dict[str, Any]:
        """What stays at the client from round to round."""
        return {
            "net": dict(self.net.state_dict()), "optimiser": self.optimiser.state_dict(), "right": list(self.right),
            "rounds": self.rounds,
        }  # fmt: skip

    def resume(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.right, self.rounds = list(state["right"]), int(state["rounds"])


# -- the models --------------------------------------------------------------------------------------------------------
class FederatedModel(Model):
    """K networks in one, by client, at each of the three read-outs.

    `weights` read-out -> float32 [K, P]; `history`: `valid` [R, K] (NaN where a client has no validation nodes),
    `sparsity` [R, K], `sent` [R, K] bytes, and `similarity` [R, K, K] where the method has one.
    """

    def __init__(
        self, method: Any, schema: Mapping[str, Any], weights: Mapping[str, Tensor], history: Mapping[str, Tensor]
    ) -> None:
        self.method: FederatedMethod = method
        self.schema, self.weights, self.history = schema, dict(weights), dict(history)

    def points(self) -> Sequence[Mapping[str, Any]]:
        """The read-out chosen beforehand, and always the last round beside it."""
        return ({},) if self.method.read_out == "last" else ({}, {"read_out": "last"})

    def predict(self, part: Part) -> tuple[Array, ...]:
        """Probabilities float32 [q_k, C] of the asked nodes of each client."""
        net: Any = self.method.module(len(self.schema["features"]), len(self.schema["classes"]), plain=True).eval()
        weights = self.weights[self.method.read_out]
        found = []
        for k, data, rows in zip(_places(self.schema, part), part.data, part.query.asked, strict=True):
            fill(net.shared(), weights[k])
            with torch.no_grad():
                logits = net(*self.method.inputs(data, "cpu", part.schema))[torch.from_numpy(rows)]
            found.append(torch.softmax(logits, 1).numpy())
        return tuple(found)

    def state(self) -> Mapping[str, Any]:
        return {f"weights/{k}": v for k, v in self.weights.items()} | {f"history/{k}": v for k, v in self.history.items()}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        def under(head: str) -> dict[str, Tensor]:
            return {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}

        return cls(method, schema, under("weights/"), under("history/"))

    def parameters(self) -> int:
        """The numbers of the K networks of one read-out."""
        return int(self.weights["last"].numel())

    def explain(self, part: Part) -> Findings:
        """Each client's validation and what it sent; validation per round."""
        valid, sent = self.history["valid"].numpy(), self.history["sent"].numpy()
        sparse = self.history["sparsity"][-1].tolist()
        best = [int(np.nanargmax(v)) if np.isfinite(v).any() else len(v) - 1 for v in valid.T]
        rows = [
            {
                "client": name, "best round": best[k] + 1, "valid accuracy there": _finite(valid[best[k], k]),
                "valid accuracy in the last round": _finite(valid[-1, k]), "share of weights pruned": sparse[k],
                "bytes sent in all": float(sent[:, k].sum()),
            }
            for k, name in enumerate(self.schema["clients"])
        ]  # fmt: skip
        mean = [(r, float(np.nanmean(v))) for r, v in enumerate(valid) if np.isfinite(v).any()]
        scalars: dict[str, Any] = {
            "read-out": self.method.read_out,
            "rounds": len(valid),
            "bytes sent by a client in a round": float(sent[sent > 0].mean()) if (sent > 0).any() else 0.0,
            "bytes if all weights were sent": 4 * float(self.weights["last"].shape[1]),
        }
        if mean:
            scalars |= {"round of the best mean validation": max(mean, key=lambda p: p[1])[0] + 1}
            figures = {"validation per round": lines({"mean of the clients": mean}, "mean validation accuracy", "round")}
        else:
            figures = {}
        return Findings(scalars, {"clients": rows}, figures)


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


# -- the recipes ---------------------------------------------------------------------------------------------------------
class FederatedMethod(Method):
    """Fields and fit of a method that trains in rounds; subclasses give `strategy`, and what is added to the loss."""

    tasks: ClassVar[tuple[str, ...]] = TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[FederatedModel]] = FederatedModel
    sends: ClassVar[bool] = True  # False: nothing leaves a client

    rounds: int = setting(100, "rounds of local training and averaging", ge=1, le=100_000)
    epochs: int = setting(1, "full batches of local training in a round", ge=1, le=10_000)
    hidden: int = setting(128, "width of the hidden layers", ge=1, le=4096)
    dropout: float = setting(0.5, "dropout on hidden layers", ge=0, lt=1, search=(0.0, 0.8))
    lr: float = setting(0.01, "learning rate of Adam, whose moments stay at the client", gt=0, le=1, search=(1e-3, 3e-2, "log"))
    weight_decay: float = setting(1e-6, "on all parameters", ge=0, le=1, search=(1e-7, 1e-2, "log"))
    fraction: float = setting(1.0, "share of the clients that take part in a round", gt=0, le=1)
    row_normalise: bool = setting(True, "divide a node's features by their sum where all are 0 or 1 (bags of words)")
    read_out: ReadOut = setting(
        "own-best", "whose round is used: the last, that of the best mean validation, each client's own best", late=True
    )

    def module(self, features: int, classes: int, plain: bool = False) -> nn.Module:
        """The network of a client; `plain` has what is local multiplied in already."""
        from .fed_pub import MaskedGCN  # there the recipes of this file are built upon

        return MaskedGCN(features, classes, self.hidden, self.dropout, mask=False)

    def strategy(self, start: Tensor) -> Strategy:
        raise NotImplementedError

    def penalty(self, net: Any, received: Mapping[str, Tensor], round: int) -> Tensor | float:
        """What is added to the local loss; `received` are the weights that the round began with."""
        return 0.0

    def proxy(self, features: int, seed: int, device: str) -> Any:
        """What a client needs to answer the server's question, where there is one."""
        return None

    def embedding(self, net: Any, proxy: Any) -> Tensor | None:
        """A client's answer to it."""
        return None

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return None if facts["features"] else "the nodes have no features, which it reads; add columns to each nodes.csv"

    def inputs(self, data: Any, device: str, schema: Mapping[str, Any]) -> tuple[Features, Any]:
        """Features and normalised adjacency of one client's graph; what all clients settled stands in the schema."""
        part = Part(data, None, None, schema)
        S = operator_of(part)
        return features_of(part, device, self.row_normalise), S if device == "cpu" else S.to_torch(device)

    def start(self, features: int, classes: int, run: Run) -> Tensor:
        """The server's first theta [P]."""
        with run.seeded("theta"):
            return flat(self.module(features, classes).shared())  # type: ignore[operator]

    def proxy_seed(self, run: Run) -> int:
        return int(run.rng("proxy").integers(2**31))

    def trainers(self, train: Part, valid: Part | None, run: Run) -> list[Trainer]:
        """A trainer for each client of a part."""
        sizes, device = (len(train.schema["features"]), len(train.schema["classes"])), run.device
        proxy = self.proxy(sizes[0], self.proxy_seed(run), device)
        found = []
        for k, (name, data) in enumerate(zip(train.query.names, train.data, strict=True)):
            held = () if valid is None else (_judged(k, valid.query.asked[k], valid.truth[k], device),)
            net = self.module(*sizes).to(device)
            rows, y = _tensors(train.query.asked[k], train.truth[k], device)
            found.append(Trainer(name, self, net, self.inputs(data, device, train.schema), rows, y, held, proxy))
        return found

    def fit(self, train: Part, valid: Part | None, run: Run) -> FederatedModel:
        return simulate(self, self.trainers(train, valid, run), train, run)


def _tensors(rows: Array, y: Array, device: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(rows).to(device), torch.from_numpy(np.asarray(y, np.int64)).to(device)


def _judged(place: int, rows: Array, y: Array, device: str) -> Judged:
    return Judged(place, *_tensors(rows, y, device))


class Local(FederatedMethod):
    """Every client trains on its own graph alone: what federated learning must add to."""

    name: ClassVar[str] = "local"
    sends: ClassVar[bool] = False

    def strategy(self, start: Tensor) -> Strategy:
        return Alone(start)


class FedAvg(FederatedMethod):
    """One model for all clients: after each round the mean of what they trained.

    ``weighting=uniform`` is what the official code of FED-PUB runs under this name; ``size`` is that of algorithm 1.
    """

    name: ClassVar[str] = "fedavg"
    weighting: Literal["uniform", "size"] = setting("uniform", "each client alike, or by its number of train nodes")

    def strategy(self, start: Tensor) -> Strategy:
        return Strategy(start, self.weighting == "size")


class FedProx(FedAvg):
    """FedAvg with ``mu / 2 ||theta - received||^2`` in the local loss, which holds clients near the mean.

    The term and its gradient are 0 where a round begins, so with one full batch a round (``epochs=1``, the default of all
    methods here) this is FedAvg to the bit; it acts from ``epochs=2`` on.
    """

    name: ClassVar[str] = "fedprox"
    mu: float = setting(1e-2, "strength of the proximal term; 0: FedAvg", ge=0, le=100, search=(1e-3, 1.0, "log"))

    def penalty(self, net: Any, received: Mapping[str, Tensor], round: int) -> Tensor | float:
        from .fed_pub import distance_to

        return self.mu / 2 * distance_to(net.shared().values(), received.values(), squared=True) if self.mu else 0.0


class Central(FederatedMethod):
    """One model trained on all clients' graphs together, side by side: no client may do so, and it shows what pooling gives.

    Edges that were lost when a graph was cut stay lost. A round is `epochs` full batches over all clients.
    """

    name: ClassVar[str] = "central"
    sends: ClassVar[bool] = False

    def strategy(self, start: Tensor) -> Strategy:
        return Alone(start)

    def trainers(self, train: Part, valid: Part | None, run: Run) -> list[Trainer]:
        sizes, device = (len(train.schema["features"]), len(train.schema["classes"])), run.device
        first = np.concatenate([[0], np.cumsum([int(d.num_nodes) for d in train.data])])
        rows = np.concatenate([r + at for r, at in zip(train.query.asked, first, strict=False)])
        held = () if valid is None else tuple(
            _judged(k, r + first[k], y, device) for k, (r, y) in enumerate(zip(valid.query.asked, valid.truth, strict=True))
        )  # fmt: skip
        net = self.module(*sizes).to(device)
        inputs = self.inputs(side_by_side(train.data), device, train.schema)
        return [Trainer("all", self, net, inputs, *_tensors(rows, np.concatenate(train.truth), device), held)]


class Plain:
    """A graph as `features_of` and `operator_of` read it: x, edge_index, edge_weight, num_nodes, directed."""

    def __init__(self, x: Any, edge_index: Tensor, edge_weight: Tensor | None, num_nodes: int, directed: bool) -> None:
        self.x, self.edge_index, self.edge_weight = x, edge_index, edge_weight
        self.num_nodes, self.directed = num_nodes, directed


def side_by_side(graphs: Sequence[Any]) -> Plain:
    """Several graphs as one without edges between."""
    first = np.concatenate([[0], np.cumsum([int(g.num_nodes) for g in graphs])])
    edges = torch.cat([g.edge_index + int(at) for g, at in zip(graphs, first, strict=False)], dim=1)
    weight = None
    if any(g.edge_weight is not None for g in graphs):
        weight = torch.cat([torch.ones(g.edge_index.shape[1]) if g.edge_weight is None else g.edge_weight for g in graphs])
    x = None if any(g.x is None for g in graphs) else torch.cat([g.x for g in graphs])
    return Plain(x, edges, weight, int(first[-1]), any(bool(g.directed) for g in graphs))


# -- the rounds in one process -----------------------------------------------------------------------------------------
class Kept:
    """The weights of the three read-outs, and the history by which they are chosen."""

    def __init__(self, clients: int, start: Tensor) -> None:
        self.weights = {word: start.repeat(clients, 1) for word in READ_OUTS}
        self.best = torch.full((clients,), -1.0, dtype=torch.float64)
        self.best_mean = -1.0
        self.history: dict[str, list[Tensor]] = {"valid": [], "sparsity": [], "sent": [], "similarity": []}

    def look(self, now: Tensor, valid: Tensor) -> None:
        """Take in what each client predicts with after a round, [K, P], and its validation accuracy [K] (NaN: none)."""
        fine = torch.isfinite(now).all(1)
        now = torch.where(fine[:, None], now, self.weights["last"])  # a network that diverged predicts with its last good weights
        self.weights["last"] = now
        known = torch.isfinite(valid)
        if not bool(known.any()):
            self.weights["best-valid"] = self.weights["own-best"] = now
            return
        # a client without validation nodes cannot choose for itself: it follows the mean, which leaves it out
        mean = mean_accuracy(valid[known].tolist())
        better = torch.where(known, valid > self.best, torch.full_like(known, mean > self.best_mean))
        self.best = torch.where(known & better, valid, self.best)
        self.weights["own-best"] = torch.where(better[:, None], now, self.weights["own-best"])
        if mean > self.best_mean:
            self.best_mean = mean
            self.weights["best-valid"] = now


def mean_accuracy(shares: Collection[float]) -> float:
    """The mean over clients that a model is chosen by; summed exactly, so that it is the same in any order of the clients."""
    return math.fsum(shares) / len(shares)


def simulate(method: FederatedMethod, trainers: Sequence[Trainer], train: Part, run: Run) -> FederatedModel:
    """All rounds in this process: send, train, look, average; in the order of algorithm 1."""
    sizes, K = (len(train.schema["features"]), len(train.schema["classes"])), len(train.schema["clients"])
    start = method.start(*sizes, run)
    strategy, kept = method.strategy(start), Kept(K, start)
    done, dropped = 0, 0
    resumed = run.last()
    if resumed is not None:
        done, state = resumed
        _resume(state, strategy, kept, trainers)
    else:
        for trainer in trainers:
            fill(trainer.shared, start)
    for round in range(done, method.rounds):
        chosen = participants([t.name for t in trainers], method.fraction, run, round)
        asked = [t for t in trainers if t.name in chosen]
        updates = {t.name: t.train(strategy.model_for(t.name), round, run) for t in asked}
        used = strategy.receive(updates)
        dropped += len(updates) - len(used)
        valid, sent = torch.full((K,), math.nan, dtype=torch.float64), torch.zeros(K)
        now, sparse = kept.weights["last"].clone(), torch.zeros(K)
        for trainer in trainers:
            mine = [j.place for j in trainer.judged] or ([*range(K)] if len(trainers) == 1 else [trainers.index(trainer)])
            if not trainer.rounds:  # served by what the others have made; it has not told what it makes of it
                fill(trainer.shared, strategy.model_for(trainer.name))
            if trainer in asked or not trainer.rounds:
                now[mine] = trainer.evaluated()
            sparse[mine] = trainer.net.sparsity()  # type: ignore[operator]
            for j, right in zip(trainer.judged, trainer.right, strict=True):
                valid[j.place] = right / len(j.rows) if len(j.rows) and trainer.rounds else math.nan
            if method.sends and trainer in asked:
                sent[mine] = bytes_of(trainer, updates[trainer.name])
        kept.look(now, valid)
        found = strategy.seen([t.name for t in trainers])
        for word, value in (("valid", valid), ("sparsity", sparse), ("sent", sent), ("similarity", found)):
            if value is not None:
                kept.history[word].append(value)
        curves = {
            "loss": float(np.nanmean([t.loss for t in trainers])) if trainers else math.nan,
            "sparsity": float(sparse.mean()),
        }
        if bool(torch.isfinite(valid).any()):
            curves["valid"] = float(valid.nanmean())
        if method.sends:
            curves["bytes sent by a client"] = float(sent.mean())
        try:
            run.log(round, **curves)
        except OutOfTime:
            run.stopped = True
            break
        run.keep(round + 1, {"strategy": strategy.state(), "kept": vars(kept), "trainers": [t.state() for t in trainers]})
    run.notes += list(dict.fromkeys(strategy.notes))[:20]
    if dropped:
        run.notes.append(f"{dropped} updates were dropped in {method.rounds} rounds")
    history = {word: torch.stack(values) for word, values in kept.history.items() if values}
    return method.model(method, {**train.schema}, kept.weights, history)


def participants(names: Sequence[str], fraction: float, run: Run, round: int) -> set[str]:
    """Who takes part in a round: the same clients whatever their order, at least one where there is any."""
    count = max(1, math.ceil(fraction * len(names) - 1e-9))
    if count >= len(names):
        return set(names)
    names = sorted(names)
    return {names[i] for i in run.rng(f"participants of round {round}").permutation(len(names))[:count]}


def bytes_of(trainer: Trainer, update: Update) -> int:
    """Bytes that a client must send: 4 for each active weight, each bias and each number of the embedding."""
    biases = sum(p.numel() for n, p in trainer.shared.items() if n.endswith(".bias"))
    extra = 0 if update.embedding is None else update.embedding.numel()
    return 4 * (trainer.net.active_entries() + biases + extra)  # type: ignore[operator]


def _resume(state: Mapping[str, Any], strategy: Strategy, kept: Kept, trainers: Sequence[Trainer]) -> None:
    strategy.resume(state["strategy"])
    vars(kept).update(state["kept"])
    for trainer, mine in zip(trainers, state["trainers"], strict=True):
        trainer.resume(mine)
