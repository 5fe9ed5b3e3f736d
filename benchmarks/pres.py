"""PRES and the memory baselines: an epoch at one and at four times the batch, the filter's share of a step, the tables'
against PyG's dictionaries, and the variance of an epoch's gradient along the batch (theorem 1).

Rows: seconds of one training epoch, medians, in one process. ``PRES at 4x`` races the base at its own batch; ``filter`` is a
step with the filter over one without, at equal batch; ``memory`` is our TGN memory against PyG's `TGNMemory` over the same
events, width and batch, forward alone. The rows ``gradient variance`` have the columns `batch` and `variance`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.temporal.memory import EventBatch, Moved, advance
from latticework.temporal.memory_baselines import TGN, Clock, Targets, Whole, train_step
from latticework.temporal.pres import PRESMethod, gradient_variance, incoherence
from latticework.temporal.stream import schema_at

EVENTS, WARM = 8_000, 1
BASE = "tgn(width=64; time=32)"


def log(name: str = "wikipedia-temporal", events: int = EVENTS) -> Part:
    """The first events of a log, as a train part."""
    data = open_data(name).read().rows(0, events)
    return Part(data, None, None, schema_at(data))


def epoch_of(whole: Whole, base: Any, part: Part, beta: float = 0.0) -> Callable[[], float]:
    """A function that trains an epoch and gives its seconds."""
    events = EventBatch.of(part.data)
    targets, optimiser = Targets(events), torch.optim.Adam(whole.parameters(), lr=base.rate())

    def penalty(moved: Moved) -> torch.Tensor:
        return beta * incoherence(moved.before, moved.written)

    def go() -> float:
        rng = np.random.default_rng(0)
        whole.train()
        whole.reset()
        before = time.perf_counter()
        for a in range(0, len(events.src), base.batch):
            end = a + base.batch
            train_step(whole, optimiser, base, events.rows(a, end), targets.by(end), rng, penalty if beta else None)
        return time.perf_counter() - before

    return go


def medians(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median seconds, the sides taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for r in range(rounds + WARM):
        for name, go in sides.items():
            seconds = go()
            if r >= WARM:
                taken[name].append(seconds)
    return {name: float(np.median(v)) for name, v in taken.items()}


def wholes(part: Part, method: PRESMethod) -> tuple[Whole, Whole]:
    """The base alone and with the filter, from the same start."""
    run = Run(task=None)
    found = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        whole = method.build_whole(method.base, part, run)
        found.append(whole if wrapped else Whole(whole.net))
    return found[0], found[1]


def races(rounds: int) -> list[dict[str, Any]]:
    part = log()
    method: Any = entry_of(f"pres(base={BASE})")
    plain, filtered = wholes(part, method)
    base = method.base
    four = base.but(batch=4 * base.batch)
    taken = medians(
        {
            "base": epoch_of(plain, base, part), "base 4x": epoch_of(Whole(plain.net), four, part),
            "PRES 4x": epoch_of(filtered, four, part, method.beta), "PRES": epoch_of(filtered, base, part, method.beta),
        },
        rounds,
    )  # fmt: skip
    numbers = sum(getattr(filtered.correct, k).numel() for k in ("n", "xi", "psi"))
    n, d = filtered.net.memory.shape
    return [
        {
            "name": "PRES at 4x against the base at its batch, TGN, an epoch", "ours_s": taken["PRES 4x"], "peer": "TGN at 200",
            "peer_s": taken["base"], "ratio": taken["base"] / taken["PRES 4x"],
        },
        {
            "name": "the base at 4x against the base at its batch, TGN, an epoch", "ours_s": taken["base 4x"], "peer": "TGN at 200",
            "peer_s": taken["base"], "ratio": taken["base"] / taken["base 4x"],
        },
        {
            "name": "filter: TGN without it against TGN with it, at 800", "ours_s": taken["PRES 4x"], "peer": "TGN at 800",
            "peer_s": taken["base 4x"], "ratio": taken["base 4x"] / taken["PRES 4x"], "numbers over 2 n d + n": numbers - (2 * n * d + n),
        },
        {
            "name": "filter: TGN without it against TGN with it, at 200", "ours_s": taken["PRES"], "peer": "TGN at 200",
            "peer_s": taken["base"], "ratio": taken["base"] / taken["PRES"],
        },
    ]  # fmt: skip


def against_pyg(rounds: int) -> dict[str, Any]:
    """The memory alone, evaluation mode: hold and move every batch; PyG keeps a dictionary entry a node."""
    from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator, TGNMemory

    part = log()
    events = EventBatch.of(part.data)
    nodes, batch = len(part.schema["nodes"]), 200
    ours = TGN(nodes, 64, Clock.of(part.data), time=32, neighbours=0).eval()
    peer = TGNMemory(nodes, 1, 64, 32, IdentityMessage(1, 64, 32), LastAggregator())
    peer.eval()  # which returns nothing there

    def mine() -> float:
        ours.reset()
        before = time.perf_counter()
        with torch.no_grad():
            for a in range(0, len(events.src), batch):
                ours.hold(events.rows(a, a + batch))
                advance(ours)
        return time.perf_counter() - before

    def theirs() -> float:
        peer.reset_state()
        before = time.perf_counter()
        with torch.no_grad():
            for a in range(0, len(events.src), batch):
                some = events.rows(a, a + batch)
                peer.update_state(some.src, some.dst, some.t.long(), some.weight[:, None])
        return time.perf_counter() - before

    taken = medians({"ours": mine, "peer": theirs}, rounds)
    return {
        "name": "memory: tables against PyG's TGNMemory, update of all events at 200", "ours_s": taken["ours"],
        "peer": "torch_geometric TGNMemory", "peer_s": taken["peer"], "ratio": taken["peer"] / taken["ours"],
        "events a second": EVENTS / taken["ours"],
    }  # fmt: skip


def variances(draws: int = 6) -> list[dict[str, Any]]:
    """Weights fixed; only the false targets are drawn anew."""
    part = log("college-msg", 4000)
    events, base = EventBatch.of(part.data), entry_of("tgn(width=32; time=16)")
    torch.manual_seed(0)
    net: Any = base.build(part, Run(task=None))  # type: ignore[attr-defined]
    return [
        {
            "name": f"gradient variance of an epoch at batch {batch}", "batch": batch,
            "variance": gradient_variance(net, base, events, batch, draws, np.random.default_rng(batch)),
        }
        for batch in (50, 100, 200, 400, 800)
    ]  # fmt: skip


def run(rounds: int = 3) -> list[dict[str, Any]]:
    return [*races(rounds), against_pyg(rounds), *variances()]
