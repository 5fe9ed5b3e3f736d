"""SEMBA: seconds of an epoch and memory against the number of events; its store against dictionaries, counts against numpy.

The card's bounds: an epoch of bitcoin-otc (35,592 events in batches of 1,000, 10 latest links) in 5 s on one core; memory
that does not grow with the events.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of
from latticework.temporal.camps import camp_events
from latticework.temporal.memory import EventBatch, advance, flat_state
from latticework.temporal.memory_baselines import Clock, Targets, Whole, train_step
from latticework.temporal.semba import ROUTES, SEMBA
from latticework.temporal.signed_counts import SignedCounts


def epoch(net: SEMBA, events: EventBatch, batch: int = 1000) -> float:
    """Seconds of one epoch of training."""
    base: Any = entry_of("semba")
    whole, rng, targets = Whole(net).train(), np.random.default_rng(0), Targets(events)
    optimiser = torch.optim.Adam(whole.parameters(), lr=0.01)
    before = time.perf_counter()
    whole.reset()
    for a in range(0, len(events.src), batch):
        train_step(whole, optimiser, base, events.rows(a, a + batch), targets.by(a + batch), rng)
    return time.perf_counter() - before


def by_dictionary(net: SEMBA, events: EventBatch, batch: int) -> float:
    """Seconds to move the same memories with a dictionary for each node, as the official code keeps its messages."""
    d = net.memory.shape[1] // 2
    zero = torch.zeros(d)
    store: dict[tuple[str, int], torch.Tensor] = {}
    last: dict[int, float] = {}
    before = time.perf_counter()
    with torch.no_grad():
        for a in range(0, len(events.src), batch):
            told: dict[tuple[str, int], list[torch.Tensor]] = {}
            for u, v, t, w in zip(*(c[a : a + batch].tolist() for c in events[:4]), strict=True):
                for i, j in ((u, v), (v, u)):
                    for side in "+-":
                        other = ROUTES["balance"][side, "+" if w > 0 else "-"]
                        passed = torch.tensor([t - last.get(i, t)], dtype=torch.float64)
                        said = (
                            store.get((side, i), zero),
                            store.get((other, j), zero),
                            torch.tensor([abs(w)]),
                            net.code(passed)[0],
                        )
                        told.setdefault((side, i), []).append(torch.cat(said))
            for side, cell in (("+", net.plus), ("-", net.minus)):
                keys = [key for key in told if key[0] == side]
                means = torch.stack([torch.stack(told[key]).mean(0) for key in keys])
                moved = cell(means, torch.stack([store.get(key, zero) for key in keys]))
                store |= dict(zip(keys, moved, strict=True))
            for u, v, t in zip(*(c[a : a + batch].tolist() for c in events[:3]), strict=True):
                last[u] = last[v] = t
    return time.perf_counter() - before


def store_row() -> dict[str, Any]:
    log = camp_events(1000, 4000, 0.1, 0)
    events, clock = EventBatch.of(log), Clock.of(log)
    torch.manual_seed(0)
    net = SEMBA(log.nodes, clock)
    peer = by_dictionary(net, events, 1000)
    before = time.perf_counter()
    with torch.no_grad():
        for a in range(0, len(log), 1000):
            net.hold(events.rows(a, a + 1000))
            advance(net)
    ours = time.perf_counter() - before
    return {"name": "moving the memories, 4,000 events", "ours_s": ours, "peer": "a dictionary for each node", "peer_s": peer, "ratio": peer / ours}  # fmt: skip


def counts_row() -> dict[str, Any]:
    log = camp_events(1000, 20_000, 0.1, 0)
    SignedCounts().walk(log.src[:9], log.dst[:9], log.weight[:9])  # type: ignore[index]
    before = time.perf_counter()
    SignedCounts().walk(log.src, log.dst, log.weight)  # type: ignore[arg-type]
    ours = time.perf_counter() - before
    near: list[dict[int, float]] = [{} for _ in range(1000)]
    before = time.perf_counter()
    for u, v, w in zip(log.src.tolist(), log.dst.tolist(), log.weight.tolist(), strict=True):  # type: ignore[union-attr]
        signs = [near[u][k] * near[v][k] for k in near[u].keys() & near[v].keys()]
        (signs.count(1.0), signs.count(-1.0))
        near[u][v] = near[v][u] = w
    peer = time.perf_counter() - before
    return {"name": "triads of 20,000 events as they come", "ours_s": ours, "peer": "sets of neighbours in Python (triads alone)", "peer_s": peer, "ratio": peer / ours}  # fmt: skip


def run(rounds: int = 3) -> list[dict[str, Any]]:
    data = open_data("bitcoin-otc")
    events = data.read()
    batch, clock = EventBatch.of(events), Clock.of(events)
    rows = []
    for name in ("semba", "semba:single"):
        method: Any = entry_of(name)
        torch.manual_seed(0)
        net = method.module(events.nodes, clock, {"target": "sign", "features": []})
        seconds = min(epoch(net, batch) for _ in range(rounds))
        rows.append({"name": f"{name}: an epoch of bitcoin-otc", "ours_s": seconds, "bound_s": 5.0, "ratio": 5.0 / seconds})
    for m in (5_000, 10_000, 20_000, 40_000):
        log = camp_events(1000, m, 0.1, 0)
        torch.manual_seed(0)
        net = SEMBA(log.nodes, Clock.of(log))
        seconds = epoch(net, EventBatch.of(log))
        numbers = sum(v.numel() for v in flat_state(net).values())
        rows.append({"name": "growth with events", "events": m, "ours_s": seconds, "numbers kept": numbers})
    return [*rows, store_row(), counts_row()]


if __name__ == "__main__":
    for row in run():
        print(row)
