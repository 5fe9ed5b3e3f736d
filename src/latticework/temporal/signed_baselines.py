"""What must be beaten on signed links: shares, running counts, the last sign, triads, and a graph convolution without time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.method import Method, Model, Stream
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.training import Patience, Watch, train, watched
from latticework.core.value import setting
from latticework.data.events import Events

from .signed_counts import NAMES, SignedCounts
from .signed_memory import OUTPUTS, signed_loss
from .signed_tasks import other_targets
from .tasks import Pairs

Array = NDArray[Any]


class SignedMethod(Method):
    """What the baselines share."""

    tasks: ClassVar[tuple[str, ...]] = ("signed-links",)
    gives: ClassVar[tuple[type[Any], ...]] = (Stream,)
    chance: ClassVar[bool] = False


def _sign_only(method: Method, task: Task) -> str | None:
    target = getattr(task, "target", "sign")
    return None if target == "sign" else f"{method.name} knows signs alone, and the target is {target}"


def _pairs(query: Pairs) -> tuple[Array, Array, tuple[int, int]]:
    """Sources and targets of all asked pairs in a row, and the shape [b, c] of the answer."""
    b, c = query.dst.shape
    return np.repeat(query.src, c), query.dst.ravel(), (b, c)


# -- trivial -----------------------------------------------------------------------------------------------------------------
class MajorityOfSigns(Model):
    """The same answer for every pair; what is revealed changes nothing."""

    def __init__(self, method: Any, schema: Mapping[str, Any], values: Array) -> None:
        self.method, self.schema, self.values = method, schema, values

    def observe(self, new: Events) -> None:
        """Nothing is kept."""

    def predict(self, part: Part) -> Array:
        shape: tuple[int, ...] = part.query.dst.shape
        return np.broadcast_to(
            self.values if len(self.values) == 3 else self.values[0], (*shape, 3)[: 2 + (len(self.values) == 3)]
        )

    def state(self) -> Mapping[str, Any]:
        return {"values": torch.from_numpy(self.values)}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["values"].numpy())


class SignMajority(SignedMethod):
    """Answers every pair with the train events' shares of the signs (or their mean weight); a link is as likely as none."""

    name: ClassVar[str] = "sign-majority"
    model: ClassVar[type[MajorityOfSigns]] = MajorityOfSigns

    def fit(self, train: Part, valid: Part | None, run: Run) -> MajorityOfSigns:
        weight = train.data.weight
        share, target = float((weight > 0).mean()), train.schema["target"]
        if target == "weight":
            values = np.array([weight.mean()], np.float64)
        elif target == "existence":
            values = np.zeros(1)
        else:
            logs = np.log(np.clip([1 - share, share], 1e-6, 1))
            values = np.array([logs[1] - logs[0]]) if target == "sign" else np.array([*(logs + np.log(0.5)), np.log(0.5)])
        run.log(1)
        return MajorityOfSigns(self, dict(train.schema), values)


# -- classic -----------------------------------------------------------------------------------------------------------------
class CountsModel(Model):
    """Running counts and a linear score of them. `observe` takes events in one by one; how they are cut does not matter."""

    def __init__(
        self,
        method: Any,
        schema: Mapping[str, Any],
        counts: SignedCounts,
        weights: Array,
        bias: Array,
        mean: Array,
        spread: Array,
    ) -> None:
        self.method, self.schema, self.counts = method, schema, counts
        self.weights, self.bias, self.mean, self.spread = weights, bias, mean, spread

    def observe(self, new: Events) -> None:
        assert new.weight is not None
        self.counts.insert(new.src, new.dst, new.weight)

    def predict(self, part: Part) -> Array:
        src, dst, shape = _pairs(part.query)
        found = (self.counts.of(src, dst) - self.mean) / self.spread @ self.weights.T + self.bias
        return np.asarray(found.reshape(*shape, 3) if len(self.bias) == 3 else found.reshape(shape))

    def state(self) -> Mapping[str, Any]:
        arrays = self.counts.arrays() | {
            "weights": self.weights, "bias": self.bias, "mean": self.mean, "spread": self.spread,
        }  # fmt: skip
        return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        arrays = {name: value.numpy() for name, value in state.items()}
        counts = SignedCounts()
        counts.load(arrays)
        return cls(method, schema, counts, arrays["weights"], arrays["bias"], arrays["mean"], arrays["spread"])

    def explain(self, part: Part) -> Any:
        from latticework.core.result import Findings

        if len(self.bias) == 3:
            return Findings()
        order = np.argsort(-np.abs(self.weights[0]))
        return Findings({}, {"weights of the counts": [{"count": NAMES[k], "weight": float(self.weights[0, k])} for k in order]})


class SignedCountsMethod(SignedMethod):
    """Logistic regression on 14 running counts of a pair (Leskovec, Huttenlocher, Kleinberg, WWW 2010): signed links that each
    end gave and got, balanced and unbalanced triads, the way back. Ridge regression of the weight where that is asked.

    A train event's counts are those before its batch of `batch`; with 1, before itself. Once fitted, counts are as fresh as the
    task's walk lets them be: asked after every event they know far more than after a thousand.
    """

    name: ClassVar[str] = "signed-counts"
    model: ClassVar[type[CountsModel]] = CountsModel
    batch: int = setting(1, "train events that do not count for each other", ge=1, search=[1, 1000])
    c: float = setting(1.0, "inverse strength of the L2 penalty", gt=0, search=(1e-3, 1e2, "log"))

    def fit(self, train: Part, valid: Part | None, run: Run) -> CountsModel:
        from sklearn.linear_model import LogisticRegression, Ridge

        events: Events = train.data
        target = train.schema["target"]
        assert events.weight is not None
        x, label = self._rows(events, events.dst), (events.weight > 0).astype(np.int64)
        if target in ("existence", "sign-or-none"):
            x = np.concatenate(
                [x, self._rows(events, other_targets(events.dst, np.unique(events.dst), run.rng("false targets")))]
            )
            label = np.concatenate([np.ones_like(label) if target == "existence" else label, np.full(len(events), 2)])
            if target == "existence":
                label = (label == 1).astype(np.int64)
        mean, spread = x.mean(0), x.std(0)
        spread[spread == 0] = 1.0
        scaled = (x - mean) / spread
        if target == "weight":
            line = Ridge(1 / self.c).fit(scaled, events.weight.astype(np.float64))
            weights, bias = line.coef_[None], np.array([line.intercept_])
        else:
            fitted = LogisticRegression(C=self.c, max_iter=2000).fit(scaled, label)
            weights, bias = fitted.coef_, fitted.intercept_
        counts = SignedCounts()
        counts.insert(events.src, events.dst, events.weight)
        run.log(1)
        return CountsModel(self, dict(train.schema), counts, weights, bias, mean, spread)

    def _rows(self, events: Events, asked: Array) -> Array:
        """float64 [m, 14]: counts of each event's source with `asked`, before its batch."""
        counts, weight = SignedCounts(), events.weight
        assert weight is not None
        if self.batch == 1:
            return counts.walk(events.src, events.dst, weight, asked)
        found = []
        for a in range(0, len(events), self.batch):
            some = slice(a, a + self.batch)
            found.append(counts.of(events.src[some], asked[some]))
            counts.insert(events.src[some], events.dst[some], weight[some])
        return np.concatenate(found)


# -- rules -------------------------------------------------------------------------------------------------------------------
class LastSignModel(Model):
    """The latest sign between each two nodes, in either direction, and the latest that each node got."""

    def __init__(self, method: Any, schema: Mapping[str, Any]) -> None:
        self.method, self.schema = method, schema
        self.between: dict[tuple[int, int], float] = {}
        self.got: dict[int, float] = {}

    def observe(self, new: Events) -> None:
        """Take events in; how they are cut into chunks does not matter."""
        assert new.weight is not None
        sign = np.sign(new.weight).tolist()
        low, high = np.minimum(new.src, new.dst).tolist(), np.maximum(new.src, new.dst).tolist()
        self.between.update(zip(zip(low, high, strict=True), sign, strict=True))
        self.got.update(zip(new.dst.tolist(), sign, strict=True))

    def __deepcopy__(self, memo: Any) -> Self:
        other = type(self)(self.method, self.schema)
        other.between, other.got = dict(self.between), dict(self.got)
        return other

    def predict(self, part: Part) -> Array:
        src, dst, shape = _pairs(part.query)
        pairs = zip(np.minimum(src, dst).tolist(), np.maximum(src, dst).tolist(), strict=True)
        mutual = np.array([self.between.get(pair, 0.0) for pair in pairs])
        got = np.array([self.got.get(v, 0.0) for v in dst.tolist()])
        return np.where(mutual != 0, 2 * mutual, got).reshape(shape)

    def state(self) -> Mapping[str, Any]:
        return {
            "pairs": torch.tensor(list(self.between), dtype=torch.int64).reshape(-1, 2),
            "between": torch.tensor(list(self.between.values()), dtype=torch.float64),
            "targets": torch.tensor(list(self.got), dtype=torch.int64),
            "got": torch.tensor(list(self.got.values()), dtype=torch.float64),
        }

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        model = cls(method, schema)
        model.between = {(u, v): s for (u, v), s in zip(state["pairs"].tolist(), state["between"].tolist(), strict=True)}
        model.got = dict(zip(state["targets"].tolist(), state["got"].tolist(), strict=True))
        return model


class LastSign(SignedMethod):
    """2 or -2: the latest sign between the two, in either direction; else 1 or -1: the latest that the target got; else 0."""

    name: ClassVar[str] = "last-sign"
    model: ClassVar[type[LastSignModel]] = LastSignModel

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return _sign_only(self, task)

    def fit(self, train: Part, valid: Part | None, run: Run) -> LastSignModel:
        model = LastSignModel(self, {**train.schema, "logits": False})
        model.observe(train.data)
        run.log(1)
        return model


class TriadsModel(Model):
    """Signed links so far. `observe` takes them in; how they are cut does not matter."""

    def __init__(self, method: Any, schema: Mapping[str, Any], counts: SignedCounts) -> None:
        self.method, self.schema, self.counts = method, schema, counts

    def observe(self, new: Events) -> None:
        assert new.weight is not None
        self.counts.insert(new.src, new.dst, new.weight)

    def predict(self, part: Part) -> Array:
        src, dst, shape = _pairs(part.query)
        rows = self.counts.of(src, dst)
        balanced, unbalanced = (np.rint(np.expm1(rows[:, NAMES.index(f"{word} triads")])) for word in ("balanced", "unbalanced"))
        return np.asarray((balanced - unbalanced).reshape(shape))

    def state(self) -> Mapping[str, Any]:
        return {name: torch.from_numpy(np.array(value)) for name, value in self.counts.arrays().items()}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        counts = SignedCounts()
        counts.load({name: value.numpy() for name, value in state.items()})
        return cls(method, schema, counts)


class BalanceTriads(SignedMethod):
    """sum_k sign(u, k) sign(v, k) over common neighbours k, by the latest sign of each link: a friend's friend is a friend, a
    friend's foe a foe. 0 where the two share nobody."""

    name: ClassVar[str] = "balance-triads"
    model: ClassVar[type[TriadsModel]] = TriadsModel

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return _sign_only(self, task)

    def fit(self, train: Part, valid: Part | None, run: Run) -> TriadsModel:
        counts = SignedCounts()
        counts.insert(train.data.src, train.data.dst, train.data.weight)
        run.log(1)
        return TriadsModel(self, {**train.schema, "logits": False}, counts)


# -- a graph without time ----------------------------------------------------------------------------------------------------
class SignedGraph(nn.Module):
    """SGCN (Derr, Ma, Tang, "Signed Graph Convolutional Networks", ICDM 2018) over the links so far, and a linear head.

    ``forward(x float32 [n, 4], links int64 [2, e], positive bool [e]) -> [n, width]``: `layers` of PyG's ``SignedConv``, the first
    half of a vector from balanced paths, the second from unbalanced ones. Links are read in both directions.
    """

    def __init__(self, width: int, layers: int, outputs: int) -> None:
        super().__init__()
        from torch_geometric.nn import SignedConv

        self.convs = nn.ModuleList(SignedConv(4 if k == 0 else width // 2, width // 2, first_aggr=k == 0) for k in range(layers))
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor, links: Tensor, positive: Tensor) -> Tensor:
        both = torch.cat([links, links.flip(0)], 1)
        twice = positive.repeat(2)
        for conv in self.convs:
            x = F.relu(conv(x, both[:, twice], both[:, ~twice]))
        return x

    def score(self, z: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        """[q, k]."""
        found: Tensor = self.head(torch.cat([z[src], z[dst]], 1))
        return found


class SignedGCNModel(Model):
    """The network and all links so far; a node's inputs are log(1 + links that it gave and got, by sign).

    `observe` adds links; nodes are embedded anew when they are next asked about. A node never seen has no link.
    """

    def __init__(self, method: Any, schema: Mapping[str, Any], net: SignedGraph, heaviest: float) -> None:
        self.method, self.schema, self.net, self.heaviest = method, schema, net.eval(), heaviest
        self.src = self.dst = torch.zeros(0, dtype=torch.int64)
        self.positive = torch.zeros(0, dtype=torch.bool)
        self._z: Tensor | None = None

    def observe(self, new: Events) -> None:
        assert new.weight is not None
        self.src = torch.cat([self.src, torch.from_numpy(np.array(new.src))])
        self.dst = torch.cat([self.dst, torch.from_numpy(np.array(new.dst))])
        self.positive = torch.cat([self.positive, torch.from_numpy(new.weight > 0)])
        self._z = None

    def predict(self, part: Part) -> Array:
        src, dst, shape = _pairs(part.query)
        device = next(self.net.parameters()).device
        with torch.no_grad():
            known = int(max(self.src.max(), self.dst.max())) + 1
            top = max(int(max(src.max(initial=-1), dst.max(initial=-1))) + 1, known)
            if self._z is None or len(self._z) < top:
                self._z = self.net(*(v.to(device) for v in graph_of(self.src, self.dst, self.positive, top)))
            found = self.net.score(self._z, torch.from_numpy(src).to(device), torch.from_numpy(dst).to(device))
        if self.schema["target"] == "weight":
            found = found * self.heaviest
        found = found.cpu()
        return np.asarray(found.reshape(*shape, 3) if found.shape[1] == 3 else found.reshape(shape))

    def __deepcopy__(self, memo: Any) -> Self:
        other = type(self)(self.method, self.schema, self.net, self.heaviest)  # weights are read alone
        other.src, other.dst, other.positive = self.src, self.dst, self.positive
        return other

    def state(self) -> Mapping[str, Any]:
        return {
            **{f"net.{name}": value for name, value in self.net.state_dict().items()},
            "src": self.src, "dst": self.dst, "positive": self.positive,
            "heaviest": torch.tensor(self.heaviest, dtype=torch.float64),
        }  # fmt: skip

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = SignedGraph(method.width // 2 * 2, method.layers, OUTPUTS[schema["target"]])
        net.load_state_dict({k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")})
        model = cls(method, schema, net, float(state["heaviest"]))
        model.src, model.dst, model.positive = state["src"], state["dst"], state["positive"]
        return model


def graph_of(src: Tensor, dst: Tensor, positive: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x float32 [n, 4], links int64 [2, e], positive bool [e]) of the first links of a log."""
    x = torch.zeros(4, nodes)
    for row, (ends, mask) in enumerate(((src, positive), (src, ~positive), (dst, positive), (dst, ~positive))):
        x[row] = torch.bincount(ends[mask], minlength=nodes)
    return torch.log1p(x.T), torch.stack([src, dst]), positive


class SignedGCNMethod(SignedMethod):
    """A signed graph convolution over all links so far (SGCN, ICDM 2018), blind to time. Train events are cut into `windows`; those of each
    are scored from the graph of the ones before, under the losses of signed links, and new links enter the graph as they come."""

    name: ClassVar[str] = "signed-gcn"
    model: ClassVar[type[SignedGCNModel]] = SignedGCNModel
    chance: ClassVar[bool] = True
    width: int = setting(64, "numbers of a node's vector, half of balanced paths", ge=2, le=4096)
    layers: int = setting(2, "hops", ge=1, le=8, search=[1, 2, 3])
    windows: int = setting(6, "pieces of the train events; each is scored from those before", ge=2, le=1000)
    epochs: int = setting(60, "at most", ge=1, le=100_000)
    patience: int = setting(10, "epochs without a better validation value before the fit stops", ge=1)
    lr: float = setting(0.01, "learning rate of Adam", gt=0, le=1, search=(1e-3, 3e-2, "log"))
    weight_decay: float = setting(1e-4, "L2 penalty", ge=0)

    def fit(self, train_part: Part, valid: Part | None, run: Run) -> SignedGCNModel:
        events: Events = train_part.data
        assert events.weight is not None
        target = train_part.schema["target"]
        net = SignedGraph(self.width // 2 * 2, self.layers, OUTPUTS[target]).to(run.device)
        heaviest = float(np.abs(events.weight).max())
        model = SignedGCNModel(self, dict(train_part.schema), net, heaviest)
        model.observe(events)
        src, dst, positive = model.src, model.dst, model.positive
        weight = torch.from_numpy(events.weight).to(run.device)
        cuts = np.unique(np.linspace(0, len(events), self.windows + 1).astype(int))
        pieces = []
        for a, b in itertools.pairwise(cuts[1:]):  # the first piece has nothing before it
            graph = graph_of(src[:a], dst[:a], positive[:a], events.nodes)
            pieces.append((a, b, *(v.to(run.device) for v in graph)))
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)

        pool = np.unique(events.dst)

        def step(epoch: int) -> float:
            false = torch.from_numpy(other_targets(events.dst, pool, run.rng(f"false targets {epoch}")))
            total = 0.0
            for a, b, x, links, signs in pieces:
                optimiser.zero_grad(set_to_none=True)
                z = net(x, links, signs)
                u, v, w = (c[a:b].to(run.device) for c in (src, dst, false))
                without = net.score(z, u, w) if target in ("existence", "sign-or-none") else None
                loss = signed_loss(target, net.score(z, u, v), weight[a:b], without, heaviest)
                loss.backward()
                optimiser.step()
                total += float(loss.detach()) * (b - a)
            return total / max(len(events) - int(cuts[1]), 1)

        def look() -> Watch:
            model._z = None
            return watched(model, valid, run)  # type: ignore[arg-type]

        train(
            net, step, run, epochs=self.epochs, optimiser=optimiser, watch=None if valid is None else look,
            patience=Patience(epochs=self.patience),
        )  # fmt: skip
        model._z = None
        return model
