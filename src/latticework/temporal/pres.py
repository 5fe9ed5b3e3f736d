"""PRES: larger time batches for memory models, by predicting each row's drift and penalising incoherent jumps.

Events of one batch do not see each other, so rows grow staler with the batch. PRES keeps for every node the mean rate of change
of its row, ``mu_i = xi_i / n_i``, predicts the row, ``s^_i(t2) = s_i(t1) + (t2 - t1) mu_i``, and writes a mixture with the
model's own update, ``s-_i(t2) = (1 - g) s^_i(t2) + g s_i(t2)``; the loss gains ``beta (1 - mean_i cos(s_i(t1), s-_i(t2)))``. It
wraps any network with the node-memory socket (`latticework.temporal.memory`); with g = 1 and beta = 0 it is that network.

Source: Su, Zou, Wu, "PRES: Toward Scalable Memory-Based Dynamic Graph Neural Networks" (ICLR 2024, arXiv 2402.04284), sections 3
(temporal discontinuity, theorems 1 and 2) and 4 (prediction and correction, memory coherence). The paper's mixture has a
component for each kind of event; memories are moved by events that happened alone, so one component is kept here. The official
code writes the row back without the correction, never counts its events and detaches the coherence term: none of that is here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.method import Backbone, Method, Stream
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import lines
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.data.events import Events

from .memory import EventBatch, Moved, advance, load_flat, missing
from .memory_baselines import Clock, MemoryModel, Targets, Whole, fit_memory

Array = NDArray[Any]
BATCHES = (50, 100, 200, 400, 800, 1600)


class PredictionCorrection(nn.Module):
    """The filter: predicts rows from their own drift, corrects the prediction by the model's update, tracks what came of it.

    ``forward(nodes [q], before [q, d], after [q, d], since float64 [q], now float64 [q]) -> s- [q, d]`` for distinct nodes,
    with ``dt = max(1, (now - since) / unit)`` (1 for a row that was never written):
    ``s- = (1 - g)(before + dt mu) + g after``, then, without gradient, ``delta = (s- - before) / dt``, ``n += 1``,
    ``xi += delta``, ``psi += delta^2``. `with_dt` = false: dt is 1 throughout. `gate`: a fixed g in [0, 1], or "learned" (the
    sigmoid of one number, `start` at first). `anchors`: the nodes that are tracked (left out: all, new ones too); the others are
    predicted to stay. Trackers take 2 k d + k numbers for k tracked nodes.

    ``ValueError`` for g outside [0, 1], a unit that is not positive, no node, no anchor.
    """

    def __init__(
        self, nodes: int, width: int, gate: float | Literal["learned"] = "learned", *, start: float = 0.9, with_dt: bool = True,
        unit: float = 1.0, anchors: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if nodes < 1 or width < 1:
            raise ValueError(f"a filter needs nodes >= 1 and width >= 1, not {nodes} and {width}")
        if gate != "learned" and not 0 <= gate <= 1:
            raise ValueError(f"the gate lies in [0, 1], {gate} does not")
        if gate == "learned" and not 0 < start < 1:
            raise ValueError(f"a learned gate starts within (0, 1), not at {start}")
        if not 0 < unit < math.inf:
            raise ValueError(f"the unit of time must be positive, is {unit}")
        if anchors is not None and not len(anchors):
            raise ValueError("no node is tracked: give anchors, or leave them out to track all")
        self.fixed, self.with_dt = None if gate == "learned" else float(gate), with_dt
        self.logit = nn.Parameter(torch.tensor(math.log(start / (1 - start)))) if gate == "learned" else None
        self.register_buffer("unit", torch.tensor(unit, dtype=torch.float64))
        tracked = nodes if anchors is None else len(anchors)
        self.register_buffer("slot", None)
        if anchors is not None:
            self.slot = torch.full((nodes,), -1, dtype=torch.int64)
            self.slot[anchors] = torch.arange(tracked)
        self.register_buffer("n", torch.zeros(tracked))
        self.register_buffer("xi", torch.zeros(tracked, width))
        self.register_buffer("psi", torch.zeros(tracked, width))

    @property
    def g(self) -> Tensor:
        """The gate."""
        return self.n.new_tensor(self.fixed) if self.logit is None else torch.sigmoid(self.logit)

    def reset(self) -> None:
        """Trackers to 0, as the memory is at the start of an epoch."""
        for table in (self.n, self.xi, self.psi):
            table.zero_()

    def grow(self, nodes: int) -> None:
        """Room for new nodes: tracked from 0 where all are, untracked where anchors were chosen."""
        if self.slot is not None:
            self.slot = torch.cat([self.slot, self.slot.new_full((max(nodes - len(self.slot), 0),), -1)])
            return
        more = nodes - len(self.n)
        if more > 0:
            self.n = torch.cat([self.n, self.n.new_zeros(more)])
            for name in ("xi", "psi"):
                table = getattr(self, name)
                setattr(self, name, torch.cat([table, table.new_zeros(more, table.shape[1])]))

    def _slots(self, nodes: Tensor) -> Tensor:
        return nodes if self.slot is None else self.slot[nodes]

    def rate(self, nodes: Tensor) -> Tensor:
        """mu [q, d]: the mean rate of change; 0 where nothing was tracked."""
        slot = self._slots(nodes)
        row = slot.clamp(min=0)
        found = self.xi[row] / self.n[row].clamp(min=1)[:, None]
        return found if self.slot is None else found.masked_fill((slot < 0)[:, None], 0.0)

    def variance(self, nodes: Tensor) -> Tensor:
        """[q, d]: psi / n - mu^2, the variance of the rate of change; 0 where nothing was tracked."""
        slot = self._slots(nodes)
        row = slot.clamp(min=0)
        found = (self.psi[row] / self.n[row].clamp(min=1)[:, None] - self.rate(nodes) ** 2).clamp(min=0)
        return found if self.slot is None else found.masked_fill((slot < 0)[:, None], 0.0)

    def steps(self, since: Tensor, now: Tensor) -> Tensor:
        """dt [q] in units, at least 1."""
        if not self.with_dt:
            return self.n.new_ones(len(now))
        passed = ((now - since) / self.unit).clamp(min=1)
        return torch.where(torch.isfinite(passed), passed, torch.ones_like(passed)).to(self.xi.dtype)

    def forward(self, nodes: Tensor, before: Tensor, after: Tensor, since: Tensor, now: Tensor) -> Tensor:
        dt = self.steps(since, now)[:, None]
        with torch.no_grad():
            predicted = before + dt * self.rate(nodes)
        if self.fixed == 1:
            written = after
        else:
            g = self.g.to(after.dtype)
            written = (1 - g) * predicted + g * after
        self.track(nodes, (written.detach() - before.detach()) / dt)
        return written

    @torch.no_grad()
    def track(self, nodes: Tensor, delta: Tensor) -> None:
        """Count rates of change [q, d] of distinct nodes."""
        slot = self._slots(nodes)
        if self.slot is not None:
            slot, delta = slot[slot >= 0], delta[slot >= 0]
        self.n[slot] += 1
        self.xi[slot] += delta
        self.psi[slot] += delta**2


def incoherence(before: Tensor, written: Tensor) -> Tensor:
    """``1 - mean_i cos(before_i, written_i)`` over the rows [q, d] that were not 0 before; 0 where all were.

    0 for rows that keep their direction, 1 for orthogonal ones. The gradient goes to `written`, and through it to the updater.
    """
    there = (before != 0).any(1)
    if not bool(there.any()):
        return written.new_zeros(())
    return 1 - F.cosine_similarity(before[there].detach(), written[there], dim=1, eps=1e-8).mean()


def pending_events(src: Array, dst: Array, batch: int) -> Array:
    """bool [m]: the events an end of which has an earlier event in the same batch, when events are cut into batches in order.

    ``ValueError`` for a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"a batch holds at least one event, not {batch}")
    m = len(src)
    if not m:
        return np.zeros(0, bool)
    row = np.arange(m)
    nodes = int(max(src.max(), dst.max())) + 1
    # one number for a node in a batch; the first time that it stands in order is the node's first event there
    places = (np.stack([src, dst], 1) + (row // batch)[:, None] * nodes).ravel()
    _, first, inverse = np.unique(places, return_index=True, return_inverse=True)
    earlier: Array = (first // 2)[inverse].reshape(m, 2) < row[:, None]
    return earlier.any(1)


def dropped_messages(src: Array, dst: Array, batch: int) -> float:
    """The share of messages (two an event) that are not the last to their node in their batch: lost where the last one counts."""
    m = len(src)
    if not m:
        return 0.0
    nodes = int(max(src.max(), dst.max())) + 1
    places = (np.stack([src, dst], 1) + (np.arange(m) // batch)[:, None] * nodes).ravel()
    return 1 - len(np.unique(places)) / (2 * m)


def gradient_variance(net: Any, base: Any, events: EventBatch, batch: int, draws: int, rng: np.random.Generator) -> float:
    """The variance of an epoch's gradient under the draw of false targets, weights fixed: the sum over its batches of each
    mean loss's gradient, the variance summed over all weights (what theorem 1 bounds from below by a multiple of m / batch^2).
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    targets = Targets(events)
    net.eval()  # dropout is no part of it
    total = [torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64) for _ in range(2)]
    for _ in range(draws):
        net.reset()
        for p in parameters:
            p.grad = None
        for a in range(0, len(events.src), batch):
            some = events.rows(a, a + batch)
            advance(net)
            base.loss(net, some, targets.by(a + batch), rng).backward()
            net.settle()
            net.hold(some)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).double().ravel() for p in parameters])
        total[0] += flat
        total[1] += flat**2
    mean = total[0] / draws
    return float(((total[1] / draws - mean**2) * draws / (draws - 1)).sum())


# -- the recipe ----------------------------------------------------------------------------------------------------------
class Tried(NamedTuple):
    """One batch that `batch=auto` tried."""

    batch: int
    value: float
    seconds: float
    pending: float


class PRESModel(MemoryModel):
    """A memory model with the filter; the trackers go on with the memory, the gate stays as it was fitted."""

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        whole = method.whole_of(len(state["net.memory"]), schema)
        correct = whole.correct
        for name in ("n", "xi", "psi", "slot"):
            if f"correct.{name}" in state:
                setattr(correct, name, torch.zeros_like(state[f"correct.{name}"]))
        load_flat(whole, state)
        return cls(method, schema, whole)

    def explain(self, part: Part) -> Findings:
        """The gate, what the trackers hold, and the batches that were tried."""
        correct = self.whole.correct
        seen = correct.n > 0
        drift = (correct.xi[seen] / correct.n[seen][:, None]).norm(dim=1)
        scalars = {
            "batch": self.method.batch,
            "gate (weight of the model's own update)": float(correct.g.detach()),
            "tracked nodes": len(correct.n),
            "nodes with a drift": int(seen.sum()),
            "mean moves of such a node": float(correct.n[seen].mean()) if bool(seen.any()) else 0.0,
            "mean length of a drift": float(drift.mean()) if len(drift) else 0.0,
        }
        tried = self.schema.get("tried", ())
        tables = {"batches tried": list(tried)} if tried else {}
        name = self.schema.get("tried by", "value")
        figures = (
            {f"{name} by batch": lines({name: [(row["batch"], row["value"]) for row in tried]}, name, "batch", dots=True)}
            if tried
            else {}
        )
        return Findings(scalars, tables, figures)


class PRESMethod(Method):
    """Trains any memory model with larger batches: each row's drift is predicted, corrected by the model's own update, and
    sudden turns of a row cost (Su, Zou, Wu, ICLR 2024).

    `base` is a method whose network has the node-memory socket (tgn, jodie, semba); its fields are used as they are, but for
    `batch`. With ``gate=1`` and ``beta=0`` it is the base, bit for bit. dt is counted in mean gaps between a node's train
    events, at least 1. ``batch=auto`` fits the base's batch and 2, 4 and 8 times it for `trial_epochs` epochs on the first
    `prefix` of the train events, lets each see the rest, and takes the largest one whose validation value is within
    `tolerance` of the base batch's. After the fit events are taken in as the base takes them (200 at a time; semba: its own
    `batch`), with the filter and its trackers at work.
    """

    name: ClassVar[str] = "pres"
    tasks: ClassVar[tuple[str, ...]] = ("temporal-link-prediction",)
    gives: ClassVar[tuple[type[Any], ...]] = (Stream,)
    model: ClassVar[type[PRESModel]] = PRESModel

    base: Backbone = setting("tgn", "the memory model that is trained: tgn, jodie, semba")
    batch: int | Literal["auto"] = setting(800, "events of a training step; auto: as large as validation allows")
    tolerance: float = setting(0.01, "batch=auto: how much of the validation value a larger batch may cost", ge=0, le=1)
    beta: float = setting(0.1, "weight of the incoherence in the loss", ge=0, le=100, search=[0.0, 0.01, 0.1, 1.0])
    gate: float | Literal["learned"] = setting("learned", "weight of the model's own update against the prediction, in [0, 1]")
    with_dt: bool = setting(True, "drift is a rate, times the time that passed; false: the mean change of a step")
    track: float | Literal["all"] = setting("all", "nodes whose drift is tracked: all, or this share, those with the most events")
    prefix: float = setting(0.5, "batch=auto: share of the train events that trials are fitted on", gt=0, le=1)
    trial_epochs: int = setting(2, "batch=auto: epochs of a trial", ge=1, le=1000)

    @field_validator("batch")
    @classmethod
    def _batch(cls, batch: int | str) -> int | str:
        if batch != "auto" and int(batch) < 1:
            raise ValueError("a batch holds at least 1 event")
        return batch

    @field_validator("gate")
    @classmethod
    def _gate(cls, gate: float | str) -> float | str:
        if gate != "learned" and not 0 <= float(gate) <= 1:
            raise ValueError("the gate lies in [0, 1], or is learned")
        return gate

    @field_validator("track")
    @classmethod
    def _track(cls, track: float | str) -> float | str:
        if track != "all" and not 0 < float(track) <= 1:
            raise ValueError("a share of the nodes in (0, 1], or all")
        return track

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        lacking = [name for name in ("build", "whole_of", "loss", "answer", "rate", "observed") if not hasattr(self.base, name)]
        if lacking:
            return f"{self.base.name} has no node memory to stand behind: it lacks {', '.join(lacking)}; use tgn, jodie or semba"
        if not set(task.names()) & set(self.base.tasks):
            return f"its base {self.base.name} is made for {', '.join(self.base.tasks)}"
        return self.base.refuses(task, facts)

    # -- what a memory model asks of its method ------------------------------------------------------------------------
    def answer(self, net: Any, query: Any) -> Tensor:
        return self.base.answer(net, query)  # type: ignore[attr-defined, no-any-return]

    def observed(self) -> int:
        return self.base.observed()  # type: ignore[attr-defined, no-any-return]

    def whole_of(self, nodes: int, schema: Mapping[str, Any]) -> Whole:
        net = self.base.whole_of(nodes, schema).net  # type: ignore[attr-defined]
        return Whole(net, self._filter(nodes, net, 1.0, None if self.track == "all" else torch.tensor([0])))

    def _filter(self, nodes: int, net: Any, unit: float, anchors: Tensor | None) -> PredictionCorrection:
        return PredictionCorrection(
            nodes, net.memory.shape[1], self.gate, with_dt=self.with_dt, unit=unit, anchors=anchors
        )  # fmt: skip

    def build_whole(self, base: Any, train: Part, run: Run) -> Whole:
        """The base's network and the filter. `UserError` names what of the socket the network lacks."""
        net = base.build(train, run)
        lacking = missing(net)
        if lacking:
            raise UserError(
                f"{base.name} has no node memory for pres to stand behind: its network lacks {', '.join(lacking)}; use tgn, "
                "jodie or semba"
            )
        events: Events = train.data
        nodes, anchors = len(net.memory), None
        if self.track != "all":
            degree = np.bincount(np.concatenate([events.src, events.dst]), minlength=nodes)
            most = np.argsort(-degree, kind="stable")[: max(round(float(self.track) * nodes), 1)]
            anchors = torch.from_numpy(np.sort(most))
        return Whole(net, self._filter(nodes, net, Clock.of(events).pace, anchors)).to(run.device)

    # -- fitting -----------------------------------------------------------------------------------------------------------
    def fit(self, train: Part, valid: Part | None, run: Run) -> PRESModel:
        method, schema = self, dict(train.schema)
        if self.batch == "auto":
            tried = self._try(train, valid, run)
            sign = 1 if run.metric.better == "higher" else -1
            fair = [row for row in tried if sign * row.value >= sign * tried[0].value - self.tolerance]
            method = self.but(batch=fair[-1].batch)
            schema |= {"tried": [row._asdict() for row in tried], "tried by": run.metric.name}
            run.notes.append(
                f"batch {method.batch}, the largest of {', '.join(str(r.batch) for r in tried)} within the tolerance"
            )
        return method.fit_fixed(train, valid, run, schema)

    def fit_fixed(
        self, train: Part, valid: Part | None, run: Run, schema: Mapping[str, Any], epochs: int | None = None
    ) -> PRESModel:
        """A fit with the batch that stands in the field; `epochs` other than the base's for a trial."""
        base: Any = self.base.but(batch=self.batch, **({} if epochs is None else {"epochs": epochs}))
        model = PRESModel(self, schema, self.build_whole(base, train, run))  # type: ignore[arg-type]

        def penalty(moved: Moved) -> Tensor:
            return self.beta * incoherence(moved.before, moved.written)

        fit_memory(model, base, train, valid, run, penalty=penalty if self.beta else None)
        return model

    def _try(self, train: Part, valid: Part | None, run: Run) -> Sequence[Tried]:
        if valid is None:
            raise UserError("pres: batch=auto is chosen on a validation part, and there is none; give batch a number")
        events: Events = train.data
        cut = max(round(self.prefix * len(events)), 1)
        prefix, rest = train._replace(data=events.rows(0, cut)), events.rows(cut, len(events))
        found: list[Tried] = []
        start = int(self.base.batch)  # type: ignore[attr-defined]
        for batch in (start, 2 * start, 4 * start, 8 * start):
            child = run.child(label=f"{run.label} > batch {batch}")
            before = time.perf_counter()
            with run.seeded("trials"):
                model = self.but(batch=batch).fit_fixed(prefix, None, child, dict(train.schema), self.trial_epochs)
                seconds = (time.perf_counter() - before) / max(len(child.curve["loss"]), 1)
                if len(rest):
                    model.observe(rest)
                value = run.judge(model, valid)
            share = float(pending_events(prefix.data.src, prefix.data.dst, batch).mean())
            found.append(Tried(batch, value, seconds, share))
            run.stopped |= child.stopped
            run.log(batch, **{"valid by batch": value, "seconds an epoch by batch": seconds, "pending share by batch": share})
        return found


class PendingEvents(Probe):
    """How stale a batch of events makes a memory: the share of events an end of which has an earlier event in its batch.

    Such events are scored and stored without what happened a moment before. `dropped messages`: the share of messages that a
    model which keeps a node's last message of a batch never reads. The share rises with the batch; at 1 it is 0.
    """

    name: ClassVar[str] = "pending-events"
    kinds: ClassVar[tuple[str, ...]] = ("events",)
    batch: int = setting(200, "events of a batch", ge=1)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("pending-events needs events")
        events: Events = data.read()
        src, dst = events.src, events.dst
        own = pending_events(src, dst, self.batch)
        rows = [
            {
                "batch": b, "pending share": float(pending_events(src, dst, b).mean()),
                "dropped messages": dropped_messages(src, dst, b),
            }
            for b in sorted({*BATCHES, self.batch})
        ]  # fmt: skip
        scalars = {
            "events": len(events),
            "pending": int(own.sum()),
            "pending share": float(own.mean()),
            "dropped messages": dropped_messages(src, dst, self.batch),
        }
        figure = lines(
            {name: [(math.log2(row["batch"]), row[name]) for row in rows] for name in ("pending share", "dropped messages")},
            "share", "log2 of the batch", dots=True,
        )  # fmt: skip
        return Findings(scalars, {"share by batch": rows}, {"pending events by batch": figure})
