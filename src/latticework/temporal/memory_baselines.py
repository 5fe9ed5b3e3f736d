"""Memory models of a stream: TGN and JODIE, as networks with the node-memory socket, and how any such network is trained.

TGN: the message of an event to node i is ``[s_i, s_j, edge, T(t - last_i)]``; the last one of a batch (or their mean) moves the
row by a GRU; a node's vector is attention over its latest neighbours, ``z_i = MLP([attend([s_i, T(0)], [s_j, edge, T(t - t_ij)]),
s_i])``. JODIE: the row moves by a plain recurrent cell and is carried to time t by ``z_i = s_i * (1 + w (t - last_i))``. A pair's
logit is ``MLP([z_u, z_v])``. Each batch is scored from the rows that the batches before have left, against one random target
an event, and moves them after; rows start at 0 in every epoch.

Sources: Rossi et al., "Temporal Graph Networks" (2020, arXiv 2006.10637), sections 3 and 3.2; Kumar et al., "Predicting Dynamic
Embedding Trajectory in Temporal Interaction Networks" (KDD 2019), equations 1 to 4, in the form that the TGN paper compares
with. Times are divided by the mean gap of the train events (JODIE's projection: by the mean gap of a node), so no unit matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.errors import UserError
from latticework.core.method import Backbone, Model, Stream
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.training import Patience, Watch, train, watched
from latticework.core.value import setting
from latticework.data.events import Events
from latticework.layers.time_code import TimeCode

from .memory import EventBatch, MemoryTable, Messages, Moved, advance, flat_state, latest_of, load_flat, mean_of
from .tasks import Pairs

Array = NDArray[Any]
OBSERVED = 200  # events taken in together after the fit
ASKED = 2000  # pairs scored at a time: a bound on memory


class Clock(NamedTuple):
    """What a fit learns of time and size from its train events alone.

    `unit`: the mean gap between events; `pace`: the mean gap between a node's events; `heaviest`: the largest \\|weight\\|;
    `mean`, `spread` [De]: of the event features. All scales are positive: 1 where the events give none.
    """

    unit: float
    pace: float
    heaviest: float
    mean: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()

    @classmethod
    def of(cls, events: Any) -> Clock:
        t, m = np.asarray(events.t, np.float64), len(events.t)
        ends = np.concatenate([events.src, events.dst])
        first = np.full(int(ends.max()) + 1, np.inf)
        last = np.full(len(first), -np.inf)
        np.minimum.at(first, ends, np.tile(t, 2))
        np.maximum.at(last, ends, np.tile(t, 2))
        count = np.bincount(ends)
        there = count > 0
        pace = float((last - first)[there].sum() / max((count[there] - 1).sum(), 1))
        heaviest = 1.0 if events.weight is None else float(np.abs(events.weight).max())
        x = np.zeros((m, 0)) if events.x is None else np.asarray(events.x, np.float64)
        spread = x.std(0)
        return cls(
            float((t[-1] - t[0]) / max(m - 1, 1)) or 1.0, pace or 1.0, heaviest or 1.0,
            tuple(x.mean(0).tolist()), tuple(np.where(spread > 0, spread, 1.0).tolist()),
        )  # fmt: skip


def pair_score(width: int) -> nn.Sequential:
    """[z_u, z_v] -> logit: one hidden layer with ReLU, Xavier normal."""
    made = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))
    for layer in made:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
    return made


class RecurrentMemory(MemoryTable):
    """Rows [n, d] moved by ``cell(message, s_i)``, the message being ``[s_i, s_j, edge, T(t - last_i)]`` with edge =
    [weight, features]; of a node's messages in a batch the last one counts, or their mean.

    `cell`: "gru" or "rnn". Shapes as in `NodeMemory`. ``ValueError`` for an unknown cell or aggregate.
    """

    def __init__(
        self, nodes: int, width: int, clock: Clock, *, time: int = 100, neighbours: int = 0,
        cell: Literal["gru", "rnn"] = "gru", aggregate: Literal["last", "mean"] = "last",
    ) -> None:  # fmt: skip
        super().__init__(nodes, width, len(clock.mean), neighbours)
        if cell not in ("gru", "rnn") or aggregate not in ("last", "mean"):
            raise ValueError(f"cell must be gru or rnn and aggregate last or mean, not {cell!r} and {aggregate!r}")
        self.aggregate = aggregate
        for name, value in clock._asdict().items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32 if name in ("mean", "spread") else torch.float64))
        self.code = TimeCode(time)
        edge = 1 + self.features
        self.cell = (nn.GRUCell if cell == "gru" else nn.RNNCell)(2 * width + edge + time, width)
        self.pair = pair_score(width)

    def edge(self, weight: Tensor, x: Tensor) -> Tensor:
        """[..., 1 + De]: weight over the heaviest, features over their spread."""
        return torch.cat([(weight / self.heaviest).to(x.dtype)[..., None], (x - self.mean) / self.spread], -1)

    def message(self, nodes: Tensor, m: Messages) -> Tensor:
        """[k, 2 d + 1 + De + time]."""
        own = nodes[m.to]
        passed = self.code(self.elapsed(own, m.t) / self.unit)
        return torch.cat([self.rows(own), self.rows(m.other), self.edge(m.weight, m.x), passed], 1)

    def updated(self, nodes: Tensor, messages: Messages) -> Tensor:
        if self.aggregate == "last":
            last = latest_of(messages.to, len(nodes))
            said = self.message(nodes, Messages(*(column[last] for column in messages)))
        else:
            said = mean_of(self.message(nodes, messages), messages.to, len(nodes))
        found: Tensor = self.cell(said, self.rows(nodes))
        return found

    def link(self, source: Tensor, target: Tensor) -> Tensor:
        found: Tensor = self.pair(torch.cat([source, target], 1))
        return found[:, 0]


class TGN(RecurrentMemory):
    """Temporal graph network: a GRU memory and one layer of attention over the latest neighbours.

    A node without neighbours has attention 0, one never seen row 0 as well: its vector is the MLP's constant.
    ``ValueError`` where `heads` does not divide width + time.
    """

    def __init__(
        self, nodes: int, width: int, clock: Clock, *, time: int = 100, neighbours: int = 10, heads: int = 2,
        dropout: float = 0.1, aggregate: Literal["last", "mean"] = "last",
    ) -> None:  # fmt: skip
        if heads < 1 or (width + time) % heads:
            raise ValueError(f"{heads} heads do not divide width + time = {width} + {time}")
        super().__init__(nodes, width, clock, time=time, neighbours=neighbours, aggregate=aggregate)
        asks, tells = width + time, width + 1 + self.features + time
        self.attend = nn.MultiheadAttention(asks, heads, dropout=dropout, kdim=tells, vdim=tells, batch_first=True)
        self.merge = nn.Sequential(nn.Linear(asks + width, width), nn.ReLU(), nn.Linear(width, width))
        for layer in (self.merge[0], self.merge[2]):
            nn.init.xavier_normal_(layer.weight)

    def embed(self, nodes: Tensor, t: Tensor) -> Tensor:
        own = self.rows(nodes)
        other, when, kept, there = self.neighbourhood(nodes)
        q, s = other.shape
        passed = self.code((t[:, None] - when) / self.unit)
        told = torch.cat([self.rows(other.ravel()).view(q, s, -1), self.edge(kept[..., 0], kept[..., 1:]), passed], 2)
        asked = torch.cat([own, self.code(t.new_zeros(q))], 1)
        alone = ~there.any(1)
        # softmax over nothing is undefined: a node alone attends to its empty first place, and gets 0
        hidden = ~there
        hidden = torch.cat([hidden[:, :1] & ~alone[:, None], hidden[:, 1:]], 1)
        found, _ = self.attend(asked[:, None], told, told, key_padding_mask=hidden, need_weights=False)
        found = found[:, 0].masked_fill(alone[:, None], 0.0)
        out: Tensor = self.merge(torch.cat([found, own], 1))
        return out


class JODIE(RecurrentMemory):
    """A recurrent memory whose rows drift with time: ``z_i(t) = s_i * (1 + w (t - last_i) / pace)``; no neighbours."""

    def __init__(
        self, nodes: int, width: int, clock: Clock, *, time: int = 100, dropout: float = 0.1,
        aggregate: Literal["last", "mean"] = "last",
    ) -> None:  # fmt: skip
        super().__init__(nodes, width, clock, time=time, neighbours=0, cell="rnn", aggregate=aggregate)
        self.drift = nn.Linear(1, width)
        nn.init.normal_(self.drift.weight, std=1 / math.sqrt(width))
        nn.init.zeros_(self.drift.bias)
        self.dropout = nn.Dropout(dropout)

    def embed(self, nodes: Tensor, t: Tensor) -> Tensor:
        passed = (self.elapsed(nodes, t) / self.pace).to(self.drift.weight.dtype)
        found: Tensor = self.dropout(self.rows(nodes) * (1 + self.drift(passed[:, None])))
        return found


# -- training ------------------------------------------------------------------------------------------------------------
class Targets:
    """The targets of a stream that are known by a row: false ones that nobody has met yet would be told apart by that alone,
    and teach nothing."""

    def __init__(self, events: EventBatch) -> None:
        nodes, place = np.unique(events.dst.cpu().numpy(), return_index=True)
        order = np.argsort(place)
        self.first, self.order = place[order], torch.from_numpy(nodes[order]).to(events.dst.device)

    def by(self, row: int) -> Tensor:
        """int64: the targets of the events before `row`, ascending, each once."""
        return self.order[: int(np.searchsorted(self.first, row))].sort().values


def drawn_without(targets: Tensor, true: Tensor, rng: np.random.Generator) -> Tensor:
    """int64 [b]: for each true target another one, uniform over the ascending `targets`; itself where there is no other."""
    drawn = torch.from_numpy(rng.integers(max(len(targets) - 1, 1), size=len(true))).to(targets.device)
    if len(targets) > 1:  # the draw skips the true one's place
        drawn = drawn + (drawn >= torch.searchsorted(targets, true))
    return targets[drawn]


class Whole(nn.Module):
    """A network with the socket and, where there is one, what stands between its moved rows and what is written."""

    def __init__(self, net: Any, correct: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.correct = net, correct

    def reset(self) -> None:
        """As before the first event: rows, neighbours and trackers."""
        self.net.reset()
        if self.correct is not None:
            self.correct.reset()

    def grow(self, nodes: int) -> None:
        self.net.grow(nodes)
        if self.correct is not None:
            self.correct.grow(nodes)

    def take_in(self, batch: EventBatch, size: int) -> None:
        """Events after the fit, `size` at a time: held, then moved; without gradient."""
        if len(batch.src):
            self.grow(int(torch.maximum(batch.src.max(), batch.dst.max())) + 1)
        with torch.no_grad():
            for a in range(0, len(batch.src), size):
                self.net.hold(batch.rows(a, a + size))
                advance(self.net, self.correct)


class MemoryModel(Model):
    """A fitted memory model: its weights, and the memory that has seen the train events.

    `observe` takes events in by 200 at a time (fewer where it is given fewer): the events of such a piece do not see each
    other, and of a node's events in it the last one (or the mean) moves its memory. `predict` reads alone. A node never seen
    has memory 0 and no neighbours.
    """

    def __init__(self, method: MemoryMethod, schema: Mapping[str, Any], whole: Whole) -> None:
        self.method: Any = method
        self.schema, self.whole = schema, whole.eval()

    @property
    def device(self) -> str:
        return str(self.whole.net.memory.device)

    def observe(self, new: Events) -> None:
        self.whole.take_in(EventBatch.of(new, self.device), self.method.observed())

    def predict(self, part: Part) -> Array:
        with torch.no_grad():
            return self.method.answer(self.whole.net, part.query).cpu().numpy()  # type: ignore[no-any-return]

    def state(self) -> Mapping[str, Any]:
        return flat_state(self.whole)

    def parameters(self) -> int:
        """The weights alone; memory, neighbours and trackers grow with the nodes."""
        return sum(p.numel() for p in self.whole.parameters())

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        whole = method.whole_of(len(state["net.memory"]), schema)
        load_flat(whole, state)
        return cls(method, schema, whole)


class MemoryMethod(Backbone):
    """Fields and fit of a memory model; subclasses give `module`, and may give another `loss` and `answer`.

    Every batch of `batch` events in order is a step: the rows are moved by the batch before, the events are scored against one
    random target each (among the targets known by then), and then held. The epoch with the best headline on the valid part
    is kept, its memory with it.
    """

    tasks: ClassVar[tuple[str, ...]] = ("temporal-link-prediction",)
    gives: ClassVar[tuple[type[Any], ...]] = (Stream,)
    model: ClassVar[type[MemoryModel]] = MemoryModel

    width: int = setting(172, "numbers of a node's memory", ge=1, le=4096)
    time: int = setting(100, "width of the code of time", ge=1, le=4096)
    aggregate: Literal["last", "mean"] = setting("last", "of a node's events in a batch: the last one moves it, or their mean")
    dropout: float = setting(0.1, "in the embedding", ge=0, lt=1, search=(0.0, 0.5))
    batch: int = setting(200, "events of a training step", ge=1)
    epochs: int = setting(50, "at most", ge=1, le=100_000)
    patience: int = setting(5, "epochs without a better validation value before the fit stops", ge=1)
    lr: float = setting(1e-3, "learning rate of Adam", gt=0, le=1, search=(1e-4, 1e-2, "log"))
    scale_lr: bool = setting(False, "multiply lr by sqrt(batch / 200): larger batches take fewer steps")

    def module(self, nodes: int, clock: Clock, schema: Mapping[str, Any]) -> nn.Module:
        """The bare network, with the socket, for so many nodes."""
        raise NotImplementedError

    def loss(self, net: Any, batch: EventBatch, targets: Tensor, rng: np.random.Generator) -> Tensor:
        """What a step lowers, scored from the rows as they are before the batch. `targets`: who false ones are drawn among,
        the targets known by the end of the batch, ascending."""
        b = len(batch.src)
        false = drawn_without(targets, batch.dst, rng)
        z = net.embed(torch.cat([batch.src, batch.dst, false]), batch.t.repeat(3))
        logits = torch.cat([net.link(z[:b], z[b : 2 * b]), net.link(z[:b], z[2 * b :])])
        return F.binary_cross_entropy_with_logits(logits, torch.cat([logits.new_ones(b), logits.new_zeros(b)]))

    def answer(self, net: Any, query: Pairs) -> Tensor:
        """Logits float32 [b, c] of the candidates."""
        b, c = query.dst.shape
        if not b:
            return torch.zeros(0, c)
        src, dst = (torch.from_numpy(np.ascontiguousarray(v)).to(net.memory.device) for v in (query.src, query.dst))
        t = torch.from_numpy(np.ascontiguousarray(query.t, np.float64)).to(net.memory.device)
        found = []
        rows = max(ASKED // c, 1)
        for a in range(0, b, rows):
            some = slice(a, a + rows)
            k = len(src[some])
            z = net.embed(torch.cat([src[some], dst[some].ravel()]), torch.cat([t[some], t[some].repeat_interleave(c)]))
            found.append(net.link(z[:k].repeat_interleave(c, 0), z[k:]).view(k, c))
        return torch.cat(found)

    def build(self, train: Part, run: Run) -> nn.Module:
        events: Events = train.data
        return self.module(len(train.schema["nodes"]), Clock.of(events), train.schema)

    def whole_of(self, nodes: int, schema: Mapping[str, Any]) -> Whole:
        """An untrained whole for a saved state of so many nodes (its scales come with the state)."""
        features = len(schema["features"])
        return Whole(self.module(nodes, Clock(1.0, 1.0, 1.0, (0.0,) * features, (1.0,) * features), schema))

    def observed(self) -> int:
        """How many events are taken in together after the fit, whatever the batch of the fit."""
        return OBSERVED

    def rate(self) -> float:
        return self.lr * math.sqrt(self.batch / 200) if self.scale_lr else self.lr

    def fit(self, train: Part, valid: Part | None, run: Run) -> MemoryModel:
        model = self.model(self, dict(train.schema), Whole(self.build(train, run)).to(run.device))
        fit_memory(model, self, train, valid, run)
        return model


def fit_memory(
    model: MemoryModel, base: Any, part: Part, valid: Part | None, run: Run, *, penalty: Callable[[Moved], Tensor] | None = None
) -> int:
    """Train a model's whole in place by `base`'s fields and loss, step by step; `penalty` of what moved is added to the loss.

    The epoch that is kept (its number is returned) has memory, neighbours and trackers that have seen the train events once.
    """
    whole, device = model.whole, run.device
    events = EventBatch.of(part.data, device)
    m, targets = len(events.src), Targets(events)
    if m <= base.batch:
        run.notes.append(f"a batch of {base.batch} holds all {m} train events: one step an epoch, and no memory moves within it")
    optimiser = torch.optim.Adam(whole.parameters(), lr=base.rate())

    def step(epoch: int) -> float:
        rng, total = run.rng(f"false targets {epoch}"), 0.0
        whole.reset()
        for a in range(0, m, base.batch):
            batch = events.rows(a, a + base.batch)
            total += train_step(whole, optimiser, base, batch, targets.by(a + base.batch), rng, penalty) * len(batch.src)
        with torch.no_grad():
            advance(whole.net, whole.correct)
        return total / m

    def look() -> Watch:
        assert valid is not None
        return watched(model, valid, run)

    epoch = train(
        whole, step, run, epochs=base.epochs, optimiser=optimiser, watch=None if valid is None else look,
        patience=Patience(epochs=base.patience),
    )  # fmt: skip
    if valid is not None:
        run.notes.append(f"weights and memory of epoch {epoch + 1}, chosen on the validation part")
    return epoch


def train_step(
    whole: Whole, optimiser: torch.optim.Optimizer, base: Any, batch: EventBatch, targets: Tensor, rng: np.random.Generator,
    penalty: Callable[[Moved], Tensor] | None = None,
) -> float:  # fmt: skip
    """One step: move the rows by the batch before, score the batch, step the weights, hold the batch. Returns the loss."""
    optimiser.zero_grad(set_to_none=True)
    moved = advance(whole.net, whole.correct)
    loss = base.loss(whole.net, batch, targets, rng)
    value = float(loss.detach())
    if penalty is not None and moved is not None:
        loss = loss + penalty(moved)
    loss.backward()
    optimiser.step()
    whole.net.settle()
    whole.net.hold(batch)
    return value


class TGNMethod(MemoryMethod):
    """TGN as a stream model: rows moved by a GRU, attention over the latest neighbours (Rossi et al., 2020).

    The defaults are the paper's. On one core the time of an epoch goes with the events: ``tgn:small`` is a third as wide.
    """

    name: ClassVar[str] = "tgn"

    neighbours: int = setting(10, "latest neighbours that a node looks at", ge=1, le=10_000)
    heads: int = setting(2, "of the attention", ge=1, le=64)

    def module(self, nodes: int, clock: Clock, schema: Mapping[str, Any]) -> TGN:
        try:
            return TGN(
                nodes, self.width, clock, time=self.time, neighbours=self.neighbours, heads=self.heads, dropout=self.dropout,
                aggregate=self.aggregate,
            )  # fmt: skip
        except ValueError as reason:
            raise UserError(f"tgn: {reason}") from None


class JODIEMethod(MemoryMethod):
    """JODIE as a stream model: rows moved by a recurrent cell and carried forward in time (Kumar et al., KDD 2019).

    As in the comparison of the TGN paper: a pair is scored by the same MLP, and batches are plain cuts of the stream.
    """

    name: ClassVar[str] = "jodie"

    def module(self, nodes: int, clock: Clock, schema: Mapping[str, Any]) -> JODIE:
        return JODIE(nodes, self.width, clock, time=self.time, dropout=self.dropout, aggregate=self.aggregate)
