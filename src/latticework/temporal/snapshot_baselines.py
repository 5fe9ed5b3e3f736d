"""What must be beaten on snapshots: the last window again, a tuned recency score, and for classes the majority and a logistic
regression on counts; beside them, by name, a GCN on the last snapshot and a GCN with a GRU over node vectors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latticework.core.errors import UserError
from latticework.core.method import Method, Stream
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.data.events import Events

from .snapshot_network import Snapshot, SnapshotNetwork, place_of, recency_of
from .snapshots import LINKS, NODES, ClassQuery, LinkBlock, SnapshotModel, runs_of, truth_of, windows_of

Array = NDArray[Any]


# -- links without training ----------------------------------------------------------------------------------------------
class RecencyModel(SnapshotModel):
    """Scores of pairs from the windows in which they met."""

    def link_scores(self, query: LinkBlock) -> Array:
        """float32 [b, n]."""
        met = self.cached(("met", query.window, query.nodes), lambda: self.method.met(self, query))
        return met[query.src].toarray().astype(np.float32)  # type: ignore[no-any-return]


class RecencyMethod(Method):
    """A score from the windows in which a pair met; subclasses say how far they look back."""

    tasks: ClassVar[tuple[str, ...]] = ("snapshot-prediction",)
    gives: ClassVar[tuple[type[Any], ...]] = (Stream,)
    model: ClassVar[type[Any]] = RecencyModel
    chance: ClassVar[bool] = False

    of: Literal["presence", "events"] = setting(
        "events", "what a window counts: that a pair met, or how often", search=["presence", "events"]
    )

    def met(self, model: SnapshotModel, query: LinkBlock) -> Any:
        """CSR [n, n]."""
        raise NotImplementedError

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        target = getattr(task, "target", LINKS)
        return None if target == LINKS else f"it predicts links, not {target}; use snapshot-majority or snapshot-logistic"

    def started(self, train: Part) -> RecencyModel:
        """The model that has seen the train part; there is nothing to train."""
        model = RecencyModel(self, dict(train.schema))
        model.observe(train.data)
        return model

    def fit(self, train: Part, valid: Part | None, run: Run) -> RecencyModel:
        model = self.started(train)
        run.log(1)
        return model


class RepeatLast(RecencyMethod):
    """The last window again: how often a pair met in it (or that it did)."""

    name: ClassVar[str] = "repeat-last"

    def met(self, model: SnapshotModel, query: LinkBlock) -> Any:
        return recency_of(model.links, query.window, 0, 1.0, query.nodes, directed=bool(model.schema["directed"]), of=self.of)


class RecencyDecay(RecencyMethod):
    """``sum_k decay^k x_k`` over the windows of the task's history, x_k being how often a pair met (or that it did) k windows
    before the last. Tuned it has two choices, and it is above most of what is learned."""

    name: ClassVar[str] = "recency-decay"

    decay: float = setting(0.7, "weight of a window against the one after it", gt=0, le=1, search=(0.3, 0.99))

    def met(self, model: SnapshotModel, query: LinkBlock) -> Any:
        schema = model.schema
        return recency_of(
            model.links,
            query.window,
            int(schema["history"]),
            self.decay,
            query.nodes,
            directed=bool(schema["directed"]),
            of=self.of,
        )


# -- classes -------------------------------------------------------------------------------------------------------------
class ClassMethod(Method):
    """A method for the classes of links or nodes alone."""

    tasks: ClassVar[tuple[str, ...]] = ("snapshot-prediction",)
    gives: ClassVar[tuple[type[Any], ...]] = (Stream,)
    chance: ClassVar[bool] = False

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return "it answers with classes, not links; use repeat-last" if getattr(task, "target", LINKS) == LINKS else None


class ShareModel(SnapshotModel):
    """The same probabilities for everything."""

    shares: Array

    def observe(self, new: Events) -> None:
        """Nothing is kept."""

    def class_scores(self, query: ClassQuery) -> Array:
        return np.tile(self.shares, (query.rows.shape[-1], 1))

    def state(self) -> Mapping[str, Any]:
        return {"shares": torch.from_numpy(self.shares)}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        model = cls(method, schema)
        model.shares = state["shares"].numpy()
        return model


class SnapshotMajority(ClassMethod):
    """The shares of the classes in the train windows, for every link or node."""

    name: ClassVar[str] = "snapshot-majority"
    model: ClassVar[type[Any]] = ShareModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> ShareModel:
        model = ShareModel(self, dict(train.schema))
        y = np.concatenate([truth_of(events, train.schema)[1] for events in pieces_of(train.data, train.schema)])
        model.shares = np.bincount(y, minlength=len(train.schema["classes"])) / len(y)
        run.log(1)
        return model


def pieces_of(events: Events, schema: Mapping[str, Any]) -> list[Events]:
    """The events of each window that has any, in order."""
    return [events.rows(a, b) for a, b in runs_of(windows_of(events.t, schema["origin"], schema["window"]))]


class CountModel(SnapshotModel):
    """How many labels of each class every node has given and received, and every pair, in all windows so far."""

    estimator: Any = None

    def __init__(self, method: Any, schema: Mapping[str, Any]) -> None:
        super().__init__(method, schema)
        classes = len(schema["classes"])
        self.given, self.received = np.zeros((0, classes)), np.zeros((0, classes))
        self.pairs: dict[tuple[int, int], Array] = {}

    def __deepcopy__(self, memo: Any) -> Self:
        other = super().__deepcopy__(memo)
        other.given, other.received = self.given.copy(), self.received.copy()
        other.pairs = {pair: counts.copy() for pair, counts in self.pairs.items()}
        return other

    def observe(self, new: Events) -> None:
        """Events of whole windows: a pair's (or source's) label of a window counts once."""
        for events in pieces_of(new, self.schema) if len(new) else ():
            rows, y = truth_of(events, self.schema)
            more = events.nodes - len(self.given)
            if more > 0:
                self.given, self.received = (np.pad(v, ((0, more), (0, 0))) for v in (self.given, self.received))
            if self.schema["target"] == NODES:
                np.add.at(self.given, (rows, y), 1)
                continue
            np.add.at(self.given, (rows[0], y), 1)
            np.add.at(self.received, (rows[1], y), 1)
            for u, v, c in zip(*rows.tolist(), y.tolist(), strict=True):
                self.pairs.setdefault((u, v), np.zeros(len(self.schema["classes"])))[c] += 1

    def features(self, query: ClassQuery) -> Array:
        """float64 [q, F], logarithms of counts. Pairs: labels that the source and the target gave and received, and that the
        pair had in either direction, by class, and both degrees in the window (14 numbers for two classes). Nodes: own labels
        by class, the mean of those of its partners in the window, its degree."""
        degree: dict[int, int] = {}
        for u in np.concatenate([query.src, query.dst]).tolist():
            degree[u] = degree.get(u, 0) + 1
        if self.schema["target"] != NODES:
            u, v = query.rows
            none = np.zeros(len(self.schema["classes"]))
            there, back = (
                [self.pairs.get(p, none) for p in zip(a.tolist(), b.tolist(), strict=True)] for a, b in ((u, v), (v, u))
            )
            blocks = [
                _at(self.given, u), _at(self.received, u), _at(self.given, v), _at(self.received, v),
                np.array(there).reshape(len(u), -1), np.array(back).reshape(len(u), -1),
                np.array([[degree[a], degree[b]] for a, b in zip(u.tolist(), v.tolist(), strict=True)]).reshape(len(u), 2),
            ]  # fmt: skip
            return np.log1p(np.concatenate(blocks, 1).astype(np.float64))
        top = int(max(query.src.max(), query.dst.max())) + 1
        total = np.zeros((top, len(self.schema["classes"])))
        for a, b in ((query.src, query.dst), (query.dst, query.src)):
            own = _at(self.given, b)
            np.add.at(total, a, own / np.maximum(own.sum(1, keepdims=True), 1))
        count = np.array([degree[a] for a in query.rows.tolist()])[:, None]
        return np.concatenate([np.log1p(_at(self.given, query.rows)), total[query.rows] / count, np.log1p(count)], 1)

    def class_scores(self, query: ClassQuery) -> Array:
        if not query.rows.shape[-1]:
            return np.zeros((0, len(self.schema["classes"])))
        found = np.zeros((query.rows.shape[-1], len(self.schema["classes"])))
        found[:, self.estimator.classes_.tolist()] = self.estimator.predict_proba(self.features(query))
        return found

    def state(self) -> Mapping[str, Any]:
        pairs = np.array(list(self.pairs), np.int64).reshape(-1, 2)
        counts = np.array(list(self.pairs.values())).reshape(len(pairs), len(self.schema["classes"]))
        arrays = {"given": self.given, "received": self.received, "pairs": pairs, "counts": counts}
        return {name: torch.from_numpy(v) for name, v in arrays.items()} | {"estimator": self.estimator}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        model = cls(method, schema)
        model.given, model.received = state["given"].numpy().copy(), state["received"].numpy().copy()
        counts = state["counts"].numpy().copy()
        model.pairs = {(u, v): row for (u, v), row in zip(state["pairs"].tolist(), counts, strict=True)}
        model.estimator = state["estimator"]
        return model


def _at(table: Array, nodes: Array) -> Array:
    """Rows of a table of counts; zeros for nodes beyond it."""
    found = np.zeros((len(nodes), table.shape[1]))
    known = nodes < len(table)
    found[known] = table[nodes[known]]
    return found


class SnapshotLogistic(ClassMethod):
    """Logistic regression (scikit-learn) on counts of labels so far: of the ends of a link and the pair, or of a node and its
    partners. Trained on the train windows in order, each described by what came before it."""

    name: ClassVar[str] = "snapshot-logistic"
    model: ClassVar[type[Any]] = CountModel

    strength: float = setting(1.0, "C, the inverse of the penalty", gt=0, le=1e4, search=(1e-3, 1e2, "log"))
    balanced: bool = setting(True, "classes count alike in the loss, however rare", search=[True, False])

    def fit(self, train: Part, valid: Part | None, run: Run) -> CountModel:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = CountModel(self, dict(train.schema))
        x, y = [], []
        for events in pieces_of(train.data, train.schema):
            rows, labels = truth_of(events, train.schema)
            if len(labels):
                x.append(model.features(ClassQuery(0, events.src, events.dst, rows)))
                y.append(labels)
            model.observe(events)
        found = np.concatenate(y)
        if len(np.unique(found)) < 2:
            raise UserError("the train windows hold one class alone: there is nothing to tell apart")
        classifier = LogisticRegression(C=self.strength, max_iter=1000, class_weight="balanced" if self.balanced else None)
        model.estimator = make_pipeline(StandardScaler(), classifier).fit(np.concatenate(x), found)
        run.log(1)
        return model


# -- networks ------------------------------------------------------------------------------------------------------------
class GraphConvolutions(nn.Module):
    """``H^l = RReLU(S H^{l-1} W^l)`` with fixed weights, no bias: what EvolveGCN evolves."""

    def __init__(self, features: int, layers: Sequence[int]) -> None:
        super().__init__()
        sizes = [features, *layers]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(a, b).uniform_(-(b**-0.5), b**-0.5)) for a, b in itertools.pairwise(sizes)
        )
        self.activation, self.width = nn.RReLU(), sizes[-1]

    def convolve(self, snapshot: Snapshot) -> Tensor:
        """[r, d]."""
        H: Any = snapshot.X
        for W in self.weights:
            H = self.activation(snapshot.A @ (H @ W))
        found: Tensor = H
        return found

    def forward(self, history: Sequence[Snapshot]) -> tuple[Array, Tensor]:
        return history[-1].nodes, self.convolve(history[-1])


class SnapshotGCN(SnapshotNetwork):
    """A GCN on the latest snapshot alone, trained as EvolveGCN is: what evolving the weights must add to."""

    name: ClassVar[str] = "snapshot-gcn"

    def body(self, features: int, schema: Mapping[str, Any]) -> nn.Module:
        return GraphConvolutions(features, self.layers)


class RecurrentConvolutions(GraphConvolutions):
    """A GCN on every snapshot, and over each node's vectors in time a GRU that all nodes share. [T snapshots] -> [k + 1, d]."""

    def __init__(self, features: int, layers: Sequence[int]) -> None:
        super().__init__(features, layers)
        self.cell = nn.GRU(self.width, self.width)

    def forward(self, history: Sequence[Snapshot]) -> tuple[Array, Tensor]:
        nodes = np.unique(np.concatenate([s.nodes for s in history]))
        rows = []
        for snapshot in history:
            place = np.append(place_of(snapshot.nodes, nodes), len(snapshot.nodes))  # the last: nodes of no snapshot
            H = self.convolve(snapshot)
            rows.append(H[torch.from_numpy(place).to(H.device)])
        _, last = self.cell(torch.stack(rows))
        return nodes, last[0]


class GCNGRU(SnapshotNetwork):
    """GCN-GRU: node vectors of every snapshot, carried through time by a GRU that all nodes share.

    It needs a node's past, which EvolveGCN does not; a node of no snapshot of the history has the vector of a lone node.
    """

    name: ClassVar[str] = "gcn-gru"

    def body(self, features: int, schema: Mapping[str, Any]) -> nn.Module:
        return RecurrentConvolutions(features, self.layers)
