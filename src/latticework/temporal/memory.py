"""The node-memory socket: one row of numbers for every node, moved by the messages of each batch of events.

A memory model of a stream works in steps. At the start of a step the messages of the batch before move the rows,
``s_i(t2) = update(s_i(t1), messages of i)``; then the batch is scored from the moved rows; then its events are held as the next
messages. `NodeMemory` says what a network must offer for that, so that a recipe (PRES, for one) can stand between the moved
rows and what is written, whatever the model is. `MemoryTable` keeps the rows, the times, the latest neighbours and the held
events as tensors, without a dictionary per node; `advance` is the step's first half.

Source: Rossi et al., "Temporal Graph Networks for Deep Learning on Dynamic Graphs" (2020, arXiv 2006.10637), section 3; the
order of a step is that of its section 3.2 (raw messages are stored and consumed in the next batch, which gives the updater a
gradient).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latticework.layers.recent_neighbours import RecentNeighbours


class EventBatch(NamedTuple):
    """Events in order as tensors: `src`, `dst` int64 [m], `t` float64 [m], `weight` float32 [m] (ones where there is none),
    `x` float32 [m, De] (De = 0 where there are no features)."""

    src: Tensor
    dst: Tensor
    t: Tensor
    weight: Tensor
    x: Tensor

    @classmethod
    def of(cls, events: Any, device: str = "cpu") -> EventBatch:
        """From the container of kind "events" (or anything with its columns)."""
        m = len(events.src)
        weight = torch.ones(m) if events.weight is None else torch.tensor(events.weight, dtype=torch.float32)
        x = torch.zeros(m, 0) if events.x is None else torch.tensor(events.x, dtype=torch.float32)
        src, dst = (torch.tensor(v, dtype=torch.int64) for v in (events.src, events.dst))
        t = torch.tensor(events.t, dtype=torch.float64)
        return cls(*(v.to(device) for v in (src, dst, t, weight, x)))

    def rows(self, a: int, b: int) -> EventBatch:
        """Events a to b."""
        return EventBatch(*(column[a:b] for column in self))


class Messages(NamedTuple):
    """What one batch's events say to the nodes that take part: two messages an event, one to each end, in the order of time.

    `to` int64 [k]: the row of `nodes` that a message is for; `other` int64 [k]: the node at the other end; `t` float64 [k];
    `weight` float32 [k]; `x` float32 [k, De]; `out` bool [k]: the node is the event's source. Within one node the last message
    is the latest event (of equal times the later row).
    """

    to: Tensor
    other: Tensor
    t: Tensor
    weight: Tensor
    x: Tensor
    out: Tensor


class Pending(NamedTuple):
    """`nodes` int64 [q], ascending, each once; their `messages`; `t` float64 [q], the time of each node's latest message."""

    nodes: Tensor
    messages: Messages
    t: Tensor


@runtime_checkable
class NodeMemory(Protocol):
    """What a network must offer to be trained, and wrapped, as a memory of nodes. `MemoryTable` gives all but the last three.

    A row may hold several memories side by side (a friendly and a hostile one); whoever wraps it treats it as one vector.
    Node numbers beyond the table are never-seen nodes: their rows are 0 and their time is -inf; only `grow` makes room.
    ``rows, updated, embed, link`` only read; ``write, hold, settle, grow, reset`` change.
    """

    memory: Tensor  # float32 [n, d]: what is settled, without gradient

    def reset(self) -> None:
        """Forget: rows 0, times -inf, no neighbours, nothing held; as at the start of an epoch."""

    def grow(self, nodes: int) -> None:
        """Room for nodes 0 .. nodes - 1; new rows are 0."""

    def hold(self, batch: EventBatch) -> None:
        """Take in a batch: its events become the pending messages and enter the neighbours' table. Its rows do not move yet."""

    def pending(self) -> Pending | None:
        """The messages that were held since the last `write`, by node; none where there are none."""

    def rows(self, nodes: Tensor) -> Tensor:
        """float32 [q, d]: the rows as they are, written ones with their gradient."""

    def times(self, nodes: Tensor) -> Tensor:
        """float64 [q]: when each row was last written; -inf for never."""

    def write(self, nodes: Tensor, rows: Tensor, t: Tensor) -> None:
        """Put rows [q, d] of distinct nodes in place at times [q]; the pending messages are thereby consumed. A gradient of
        `rows` stays reachable through `rows()` and `embed()` until `settle`."""

    def settle(self) -> None:
        """Cut the gradient of what was written; called after each step's update, so no graph lives on."""

    def updated(self, nodes: Tensor, messages: Messages) -> Tensor:
        """float32 [q, d]: the rows after their messages, with a gradient to the updater; nothing is written."""

    def embed(self, nodes: Tensor, t: Tensor) -> Tensor:
        """float32 [q, h]: the nodes' vectors at times float64 [q], from rows and past events alone."""

    def link(self, source: Tensor, target: Tensor) -> Tensor:
        """float32 [b]: logits that the nodes of vectors [b, h] and [b, h] interact."""


SOCKET = ("memory", "reset", "grow", "hold", "pending", "rows", "times", "write", "settle", "updated", "embed", "link")


def missing(net: Any) -> tuple[str, ...]:
    """What of the socket a network lacks, by name."""
    return tuple(name for name in SOCKET if not hasattr(net, name))


class Moved(NamedTuple):
    """One move of the memory: `nodes` [q], rows `before`, `after` as the model updated them, and as `written`, each [q, d]."""

    nodes: Tensor
    before: Tensor
    after: Tensor
    written: Tensor


Correct = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def advance(net: Any, correct: Correct | None = None) -> Moved | None:
    """Consume the pending messages: rows before, rows after, and what is written (`after`, or what `correct` makes of it).

    ``correct(nodes [q], before [q, d], after [q, d], since float64 [q], now float64 [q]) -> rows [q, d]``, `since` being when
    the rows were last written (-inf: never) and `now` the time of the latest message. None where nothing is pending.
    """
    found = net.pending()
    if found is None:
        return None
    before = net.rows(found.nodes)
    after = net.updated(found.nodes, found.messages)
    written = after if correct is None else correct(found.nodes, before, after, net.times(found.nodes), found.t)
    net.write(found.nodes, written, found.t)
    return Moved(found.nodes, before, after, written)


def messages_of(batch: EventBatch) -> Pending | None:
    """A batch's events as messages to both of their ends, grouped by node; a self-loop says two to its node."""
    m = len(batch.src)
    if m == 0:
        return None
    ends = torch.stack([batch.src, batch.dst], 1)
    nodes, to = torch.unique(ends.ravel(), return_inverse=True)
    t = batch.t.repeat_interleave(2)
    out = torch.tensor([True, False], device=to.device).repeat(m)
    messages = Messages(to, ends.flip(1).ravel(), t, batch.weight.repeat_interleave(2), batch.x.repeat_interleave(2, 0), out)
    return Pending(nodes, messages, t[latest_of(to, len(nodes))])


def latest_of(to: Tensor, q: int) -> Tensor:
    """int64 [q]: the position of the last message to each of q nodes, all of which have one."""
    places = torch.arange(len(to), device=to.device)
    return torch.zeros(q, dtype=torch.int64, device=to.device).scatter_reduce(0, to, places, "amax", include_self=False)


def mean_of(values: Tensor, to: Tensor, q: int) -> Tensor:
    """[q, d]: the mean of the messages [k, d] to each of q nodes."""
    total = values.new_zeros(q, values.shape[1]).index_add(0, to, values)
    count = values.new_zeros(q).index_add(0, to, values.new_ones(len(to)))
    return total / count.clamp(min=1)[:, None]


class MemoryTable(nn.Module):
    """Rows, times, latest neighbours and held events of n nodes, as tensors: the part of the socket that all models share.

    A subclass gives ``updated(nodes, messages)``, ``embed(nodes, t)`` and ``link(source, target)``. `payload` is how many
    numbers the neighbours' table keeps for an event (`carried` says which: weight and features by default). Within a step,
    written rows lie in a small table of their own beside the settled one, so a step costs what it touches, not n.

    ``ValueError`` for no node, no width, events out of order or of another number of features.
    """

    def __init__(self, nodes: int, width: int, features: int = 0, neighbours: int = 10, payload: int | None = None) -> None:
        super().__init__()
        if nodes < 1 or width < 1:
            raise ValueError(f"a memory needs nodes >= 1 and width >= 1, not {nodes} and {width}")
        if features < 0 or neighbours < 0:
            raise ValueError(f"features and neighbours must be >= 0, are {features} and {neighbours}")
        self.features, self.kept = features, neighbours
        self.register_buffer("memory", torch.zeros(nodes, width))
        self.register_buffer("last", torch.full((nodes,), -math.inf, dtype=torch.float64))
        self.register_buffer("place", torch.full((nodes,), -1, dtype=torch.int64), persistent=False)
        self.payload = 1 + features if payload is None else payload
        self.recent = self._no_neighbours(nodes)
        self._fresh: Tensor | None = None
        self._fresh_nodes: Tensor | None = None
        self._held: EventBatch | None = None
        self._newest = -math.inf

    def _no_neighbours(self, nodes: int) -> RecentNeighbours | None:
        return RecentNeighbours(nodes, self.kept, self.payload, self.memory.device) if self.kept else None

    @property
    def nodes(self) -> int:
        return len(self.memory)

    def carried(self, batch: EventBatch) -> Tensor:
        """What the neighbours' table keeps of an event: [m, payload]."""
        return torch.cat([batch.weight[:, None], batch.x], 1)

    # -- the socket ------------------------------------------------------------------------------------------------------
    def reset(self) -> None:
        self.settle()
        self.memory.zero_()
        self.last.fill_(-math.inf)
        self.recent = self._no_neighbours(self.nodes)
        self._held, self._newest = None, -math.inf

    def grow(self, nodes: int) -> None:
        more = nodes - self.nodes
        if more <= 0:
            return
        self.settle()
        self.memory = torch.cat([self.memory, self.memory.new_zeros(more, self.memory.shape[1])])
        self.last = torch.cat([self.last, self.last.new_full((more,), -math.inf)])
        self.place = torch.cat([self.place, self.place.new_full((more,), -1)])
        if self.recent is not None:
            self.recent.grow(nodes)

    def hold(self, batch: EventBatch) -> None:
        if not len(batch.src):
            return
        if batch.x.shape[1] != self.features:
            raise ValueError(f"the events have {batch.x.shape[1]} features, the memory was built for {self.features}")
        if bool((batch.t[1:] < batch.t[:-1]).any()) or float(batch.t[0]) < self._newest:
            raise ValueError("events must come in the order of time, after those already held")
        self.grow(int(torch.maximum(batch.src.max(), batch.dst.max())) + 1)
        self._newest = float(batch.t[-1])
        if self._held is None:
            self._held = batch
        else:
            self._held = EventBatch(*(torch.cat(pair) for pair in zip(self._held, batch, strict=True)))
        if self.recent is not None:
            self.recent.insert(batch.src, batch.dst, batch.t, self.carried(batch))

    def pending(self) -> Pending | None:
        return None if self._held is None else messages_of(self._held)

    def rows(self, nodes: Tensor) -> Tensor:
        inside, unseen = self._inside(nodes)
        found = self.memory[inside]
        if self._fresh is not None:
            place = self.place[inside]
            found = torch.where((place >= 0)[:, None], self._fresh[place.clamp(min=0)], found)
        return found if unseen is None else found.masked_fill(unseen[:, None], 0.0)

    def times(self, nodes: Tensor) -> Tensor:
        inside, unseen = self._inside(nodes)
        found = self.last[inside]
        return found if unseen is None else found.masked_fill(unseen, -math.inf)

    def write(self, nodes: Tensor, rows: Tensor, t: Tensor) -> None:
        self.settle()
        self._held = None
        self.last[nodes] = t
        if rows.requires_grad:
            self._fresh, self._fresh_nodes = rows, nodes
            self.place[nodes] = torch.arange(len(nodes), device=nodes.device)
        else:
            self.memory[nodes] = rows

    def settle(self) -> None:
        if self._fresh is None or self._fresh_nodes is None:
            return
        self.memory[self._fresh_nodes] = self._fresh.detach()
        self.place[self._fresh_nodes] = -1
        self._fresh = self._fresh_nodes = None

    # -- for subclasses --------------------------------------------------------------------------------------------------
    def _inside(self, nodes: Tensor) -> tuple[Tensor, Tensor | None]:
        """The numbers that the table has, and a mask of those it has not (none where it has all)."""
        if not nodes.numel() or int(nodes.max()) < self.nodes:
            return nodes, None
        unseen = nodes >= self.nodes
        return nodes.masked_fill(unseen, 0), unseen

    def elapsed(self, nodes: Tensor, t: Tensor) -> Tensor:
        """float64 [q]: time since each row was last written; 0 for one that never was."""
        since = self.times(nodes)
        return torch.where(torch.isfinite(since), t - since, torch.zeros_like(t))

    def neighbourhood(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The latest neighbours of nodes: `other` int64 [q, s] (0 where there is none), their times float64 [q, s], what
        was kept of the events float32 [q, s, P], and a mask bool [q, s] of the places that hold one; newest first."""
        if self.recent is None:
            raise ValueError("this memory was built without neighbours")
        other, t, kept = self.recent.latest(nodes)
        return other.clamp(min=0), t, kept, other >= 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        if self.recent is not None:  # its tables go where the buffers go; times stay in double precision
            self.recent.load({key: value.to(self.memory.device) for key, value in self.recent.state().items()})
        self.last = self.last.to(torch.float64)
        return moved

    # -- saving ----------------------------------------------------------------------------------------------------------
    def get_extra_state(self) -> dict[str, Any]:
        newest = torch.tensor(self._newest, dtype=torch.float64)
        return {"newest": newest} | ({} if self.recent is None else dict(self.recent.state()))

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self._newest = float(state["newest"])
        self._held = self._fresh = self._fresh_nodes = None  # a saved state has nothing under way
        self.place.fill_(-1)
        if self.recent is not None:
            self.recent.load({key: value for key, value in state.items() if key != "newest"})


EXTRA = "_extra_state."


def flat_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters, buffers and tables as tensors by name, as a model file holds them."""
    found: dict[str, Tensor] = {}
    for name, item in module.state_dict().items():
        found |= {f"{name}.{key}": value for key, value in item.items()} if isinstance(item, Mapping) else {name: item}
    return found


def load_flat(module: nn.Module, state: Mapping[str, Any]) -> None:
    """The inverse of `flat_state`, in a module with as many nodes."""
    nested: dict[str, Any] = {}
    for name, item in state.items():
        head, extra, key = name.rpartition(EXTRA)
        if extra:
            nested.setdefault(head + EXTRA[:-1], {})[key] = item
        else:
            nested[name] = item
    module.load_state_dict(nested)
