"""The recipe: NAT trained on a stream, epoch by epoch from empty caches."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from latticework.core.errors import OutOfTime, UserError
from latticework.core.method import Backbone, Model, Stream
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars
from latticework.core.task import Part
from latticework.core.training import Patience, Watch, train
from latticework.core.value import setting
from latticework.data.events import Events

from ..memory import EventBatch
from ..stream import Walk, batch_ends
from ..tasks import Pairs
from .network import COMMON, NAT, REPEAT

PAIRS_AT_ONCE = 20_000  # of a question, so that memory does not grow with the number of candidates
LOOK = 100  # batches of an epoch between two looks at the clock
SHOWN = 50  # pairs explained one by one


class NATModel(Model):
    """A trained NAT with its caches, which goes on from them."""

    def __init__(self, method: NATMethod, schema: Mapping[str, Any], net: NAT) -> None:
        self.method: NATMethod = method
        self.schema = schema
        self.net = net

    def __deepcopy__(self, memo: Any) -> Self:
        return type(self)(self.method, self.schema, copy.deepcopy(self.net, memo))

    @property
    def device(self) -> torch.device:
        return self.net.state.device

    def observe(self, new: Events) -> None:
        """Take events in, in batches of about the method's `batch` from the chunk's start; equal times stay in one batch.

        Events of one batch do not see each other, so a stream cut elsewhere leaves other vectors (the same keys and times).
        """
        self.net.eval()
        events = EventBatch.of(new, str(self.device))
        start = 0
        for stop in batch_ends(new.t, self.method.batch).tolist():
            src, dst, t, _, x = events.rows(start, stop)
            self.net.write(src, dst, t, x)
            start = stop

    @torch.no_grad()
    def predict(self, part: Part) -> np.ndarray[Any, Any]:
        """Logits float64 [b, c]; nothing is written."""
        self.net.eval()
        asked: Pairs = part.query
        src, dst, t = (torch.from_numpy(np.ascontiguousarray(column)).to(self.device) for column in asked)
        at_once = max(PAIRS_AT_ONCE // max(dst.shape[1], 1), 1)
        pieces = zip(src.split(at_once), dst.split(at_once), t.split(at_once), strict=True)
        found = [self.net(*piece) for piece in pieces]
        return torch.cat(found).double().cpu().numpy() if found else np.zeros(dst.shape)

    def state(self) -> dict[str, Tensor]:
        return {**self.net.state_dict(), "cache.seed": torch.tensor(self.net.cache.seed)}

    @classmethod
    def restore(cls, method: NATMethod, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        tensors = dict(state)
        seed = int(tensors.pop("cache.seed"))
        net = method.network(len(tensors["state"]), tensors["latest_x"].shape[1], seed)
        net.load_state_dict(tensors)
        return cls(method, schema, net.eval())

    def parameters(self) -> int:
        """The weights alone; the caches grow with the nodes."""
        return sum(p.numel() for p in self.net.parameters())

    def explain(self, part: Part) -> Findings:
        """Why a pair: whether the caches hold their last meeting, and which common neighbours they hold."""
        walk = part.data
        if not isinstance(walk, Walk) or not len(walk.ends) or not len(walk.events):
            return Findings()
        model: NATModel = self
        if len(walk.before):
            model = copy.deepcopy(self)
            model.observe(walk.before)
        stop = int(walk.ends[0])
        events = walk.events.rows(0, stop)
        asked = walk.asked["dst"][:stop] if "dst" in walk.asked else events.dst[:, None]
        return _findings(model, events, asked)


@torch.no_grad()
def _findings(model: NATModel, events: Events, asked: np.ndarray[Any, Any]) -> Findings:
    net, (b, c) = model.net.eval(), asked.shape
    src, dst, t = (torch.from_numpy(np.ascontiguousarray(v)).to(model.device) for v in (events.src, asked, events.t))
    logits, seen = net.ask(src, dst, t)
    one = torch.arange(b, device=model.device)
    rows = net.rows(seen, one.repeat(c), torch.arange(b, b * (1 + c), device=model.device))
    target = dst.T.reshape(-1)
    repeat = torch.zeros(b * c, dtype=torch.bool, device=model.device)
    repeat[rows.pair[(rows.key == target[rows.pair]) & (rows.code & REPEAT == REPEAT)]] = True
    common = (rows.code & COMMON) == COMMON
    shared = torch.bincount(rows.pair[common], minlength=b * c)
    names = {int(i): events.ids[i] for i in rows.key[common].unique().tolist() if i < len(events.ids)}
    by_pair: dict[int, list[str]] = {}
    for pair, key in zip(rows.pair[common].tolist(), rows.key[common].tolist(), strict=True):
        by_pair.setdefault(pair, []).append(names.get(key, str(key)))
    chance = torch.sigmoid(logits.T.reshape(-1)).tolist()
    # pair p is row p % b, column p // b; shown row by row
    table = [
        {
            "source": events.ids[int(events.src[row])], "target": _named(events, int(asked[row, column])), "time": float(events.t[row]),
            "probability": chance[column * b + row], "met before, by the caches": bool(repeat[column * b + row]),
            "common neighbours in the caches": len(by_pair.get(column * b + row, ())),
            "first of them": ", ".join(by_pair.get(column * b + row, ())[:5]),
        }
        for row in range(b) for column in range(c)
    ][:SHOWN]  # fmt: skip
    fill = [float((net.cache.key[:, net.cache.hop == k] >= 0).double().mean()) for k in range(len(net.cache.slots))]
    scalars = {
        "pairs looked at": b * c,
        "share that met before, by the caches": float(repeat.double().mean()),
        "mean common neighbours in the caches": float(shared.double().mean()),
        "rows of a joint neighbourhood": len(rows.pair) / (b * c),
    }
    figure = bars([str(k) for k in range(len(fill))], fill, "share of slots in use", "hop")
    return Findings(scalars, {"why": table}, {"share of slots in use": figure})


def _named(events: Events, node: int) -> str:
    return events.ids[node] if node < len(events.ids) else f"node {node}, not met yet"


class NATMethod(Backbone):
    """Links in a stream from the joint neighbourhood of two nodes, read off small hashed dictionaries of recent neighbours.

    Each epoch starts from empty caches and walks the train events in batches of about `batch` (equal times stay together): a
    batch is scored against one random target an event, the weights move, then the events are written. Adam; an epoch counts
    as better when its validation average precision is larger by a thousandth of the best so far, and after `patience` epochs
    without one the fit stops; the weights and the caches of the best epoch are kept together.

    `join=false` keeps the keys of the two nodes apart: the control that has all but the joint neighbourhood. `attention=true`
    is the paper's pooling, the default the released code's plain sum. `hash=official` is the released code's hash, which uses
    a quarter of the slots when its random factor is even. The released code's width of the pool is that of the node features
    (172 zeros where there are none); here it is `pool_width`.
    """

    name: ClassVar[str] = "nat"
    tasks: ClassVar[tuple[str, ...]] = ("temporal-link-prediction",)
    gives: ClassVar[tuple[type[Any], ...]] = (Stream,)
    model: ClassVar[type[Any]] = NATModel

    slots: tuple[int, ...] = setting((1, 32, 16), "cached neighbours a node at hop 0 (itself), 1 and 2; two numbers: one hop")
    replace: float = setting(
        0.9, "chance that a new neighbour takes the slot of another", ge=0, le=1, search=[0.5, 0.7, 0.9, 1.0]
    )
    width: int = setting(4, "of a cached neighbour's vector", ge=1, le=1024)
    state_width: int = setting(72, "of a node's own long-term state", ge=1, le=4096)
    code_width: int = setting(16, "of the embedding of where a key occurs", ge=1, le=1024)
    pool_width: int = setting(64, "of the pooled joint neighbourhood", ge=1, le=4096, search=[32, 64, 128])
    heads: int = setting(2, "maps averaged in the pool", ge=1, le=64)
    attention: bool = setting(
        False, "weigh the rows of a pair by attention (the paper) instead of summing them (the released code)"
    )
    join: bool = setting(True, "false: keys of the two nodes are kept apart (the control)")
    time_width: int = setting(1, "of the code of time", ge=1, le=1024)
    elapsed: bool = setting(False, "code the time since a meeting instead of the time of the meeting")
    unit: float = setting(1.0, "times are divided by it before they are coded", gt=0)
    hash: Literal["mixing", "official"] = setting("mixing", "how a key finds its slot")
    dropout: float = setting(0.1, "on rows of the joint neighbourhood and on the pool", ge=0, lt=1)
    lr: float = setting(1e-4, "learning rate of Adam", gt=0, le=1, search=(1e-4, 1e-2, "log"))
    batch: int = setting(64, "events of a batch, about: equal times are not cut apart", ge=1, le=100_000, search=[50, 100, 200])
    epochs: int = setting(50, "at most", ge=1, le=10_000)
    patience: int = setting(3, "epochs without a better validation value before the fit stops", ge=1)

    def network(self, nodes: int, edge: int, seed: int) -> NAT:
        """The bare network with empty caches; `seed` is the hash's and the replacement's."""
        try:
            return NAT(
                nodes, slots=self.slots, width=self.width, state=self.state_width, code_width=self.code_width,
                pool_width=self.pool_width, heads=self.heads, attention=self.attention, join=self.join, dropout=self.dropout,
                time_width=self.time_width, elapsed=self.elapsed, unit=self.unit, edge=edge, replace=self.replace,
                hash=self.hash, seed=seed,
            )  # fmt: skip
        except ValueError as reason:
            raise UserError(f"nat: {reason}") from None

    def build(self, train: Part, run: Run) -> NAT:
        events: Events = train.data
        net = self.network(events.nodes, len(events.features), int(run.rng("hash").integers(100)))
        if len(events):
            net.origin.fill_(events.t[0])
        return net

    def fit(self, train_part: Part, valid: Part | None, run: Run) -> NATModel:
        events: Events = train_part.data
        if not len(events):
            raise UserError("nat: there are no events to learn from")
        net = self.build(train_part, run).to(run.device)
        model = NATModel(self, dict(train_part.schema), net)
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr)
        told = EventBatch.of(events, run.device)
        ends = batch_ends(events.t, self.batch).tolist()
        targets = np.unique(events.dst)

        def step(epoch: int) -> float:
            net.reset()
            false = run.rng(f"targets {epoch}").choice(targets, len(events))
            chosen = torch.from_numpy(false).to(run.device)
            loss, start, learn = 0.0, 0, True
            for number, stop in enumerate(ends):
                src, dst, t, _, x = told.rows(start, stop)
                seen = None
                if learn:
                    value, seen = self._learn(net, optimiser, src, dst, chosen[start:stop], t)
                    loss += value
                net.write(src, dst, t, x, seen)
                start = stop
                if learn and number % LOOK == LOOK - 1:
                    try:
                        run.log(epoch)
                    except OutOfTime:  # a model that is given back has seen all of train: the rest is read without learning
                        learn, run.stopped = False, True
            return loss / len(events)

        def watch() -> Watch:
            assert valid is not None
            value = run.judge(model, valid)
            value = -math.inf if math.isnan(value) else value
            past = [v for _, v in run.curve.get("valid", [])]
            return Watch(-value if better(value, past) else math.inf, {"valid": value})

        epoch = train(
            net, step, run, epochs=self.epochs, optimiser=optimiser, watch=None if valid is None else watch,
            patience=Patience(epochs=self.patience),
        )  # fmt: skip
        if valid is not None:
            run.notes.append(f"weights and caches of epoch {epoch + 1}, chosen on validation")
        return NATModel(self, dict(train_part.schema), net.cpu())

    def _learn(self, net: NAT, optimiser: Any, src: Tensor, dst: Tensor, false: Tensor, t: Tensor) -> tuple[float, Any]:
        """One batch: the summed loss, and what was read of its nodes (none where equal times made it too large to score at once)."""
        net.train()
        asked = torch.stack([dst, false], 1)
        truth = asked.new_tensor([1, 0]).to(net.state.dtype)
        total, seen = 0.0, None
        most = max(4 * self.batch, 1000)
        for a in range(0, len(src), most):
            piece = slice(a, a + most)
            logits, seen = net.ask(src[piece], asked[piece], t[piece])
            # the released code adds the mean losses of the true and the false pairs
            loss = 2 * F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(logits)
        return total, seen if len(src) <= most else None


def better(value: float, past: list[float], tolerance: float = 1e-3) -> bool:
    """Whether a value is an improvement by more than `tolerance`, as a share of the best that counted before it."""
    best = None
    for v in past:
        if best is None or (v - best) / max(abs(best), 1e-12) > tolerance:
            best = v
    return best is None or (value - best) / max(abs(best), 1e-12) > tolerance
