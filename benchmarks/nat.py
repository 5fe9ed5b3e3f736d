"""NAT: an epoch of college-msg against TGN, joint neighbourhoods against building them on line, cost of an event along the degree.

The on-line peers keep every node's neighbours in the order of time and build, for each pair asked about, what the join of two
N-caches gives: exact sets of common neighbours before t; and CAWN-style features, backward walks of two steps from both ends and
how often each node occurs at each step of either (in numpy and dictionaries, as the published code does it).
"""

from __future__ import annotations

import bisect
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.temporal.nat import NAT

HUB = 100_000
BATCH, BATCHES = 200, 5
WALKS = 32


class Log:
    """Every node's neighbours and times, in order."""

    def __init__(self) -> None:
        self.other: dict[int, list[int]] = defaultdict(list)
        self.time: dict[int, list[float]] = defaultdict(list)

    def add(self, src: np.ndarray, dst: np.ndarray, t: np.ndarray) -> None:
        for u, v, when in zip(src.tolist(), dst.tolist(), t.tolist(), strict=True):
            for a, b in ((u, v), (v, u)):
                self.other[a].append(b)
                self.time[a].append(when)

    def before(self, u: int, t: float) -> int:
        return bisect.bisect_left(self.time[u], t)

    def common(self, u: int, v: int, t: float) -> set[int]:
        """The exact common neighbours before t."""
        return set(self.other[u][: self.before(u, t)]) & set(self.other[v][: self.before(v, t)])

    def walks(self, u: int, t: float, rng: np.random.Generator) -> list[dict[int, int]]:
        """How often each node stands at steps 0, 1, 2 of `WALKS` walks back in time from u."""
        counts: list[dict[int, int]] = [{u: WALKS}, {}, {}]
        heads, times = [u] * WALKS, [t] * WALKS
        for step in (1, 2):
            for i, (node, when) in enumerate(zip(heads, times, strict=True)):
                end = self.before(node, when) if node >= 0 else 0
                if not end:
                    heads[i] = -1
                    continue
                k = int(rng.integers(end))
                heads[i], times[i] = self.other[node][k], self.time[node][k]
                counts[step][heads[i]] = counts[step].get(heads[i], 0) + 1
        return counts

    def features(self, u: int, v: int, t: float, rng: np.random.Generator) -> dict[int, np.ndarray]:
        """Key -> counts at each step of either side."""
        found: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(6, np.float32))
        for side, node in enumerate((u, v)):
            for step, counts in enumerate(self.walks(node, t, rng)):
                for key, count in counts.items():
                    found[key][3 * side + step] += count
        return found


def median(values: list[float]) -> float:
    return float(np.median(values))


def hub_graph(degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Node 0 meets `degree` others; each of these also meets another of them."""
    rng = np.random.default_rng(0)
    leaves = np.arange(1, degree + 1)
    src = np.stack([np.zeros(degree, np.int64), leaves], 1).ravel()
    dst = np.stack([leaves, rng.integers(1, degree + 1, degree)], 1).ravel()
    return src, dst, np.arange(2.0 * degree)


def filled(src: np.ndarray, dst: np.ndarray, t: np.ndarray) -> NAT:
    torch.manual_seed(0)
    net = NAT(int(max(src.max(), dst.max())) + 1).eval()
    for a in range(0, len(src), 2000):
        net.write(*(torch.from_numpy(c[a : a + 2000]) for c in (src, dst, t)))
    return net


def queries(degree: int, start: float) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        (np.zeros(BATCH, np.int64), rng.integers(1, degree + 1, BATCH), start + np.arange(BATCH) + BATCH * b)
        for b in range(BATCHES)
    ]


@torch.no_grad()
def cached(net: NAT, batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Seconds an event: joint neighbourhoods (refreshed and joined) with their writing, and with the score as well."""
    joined, scored = [], []
    one = torch.arange(BATCH)
    for batch in batches:
        src, dst, t = (torch.from_numpy(c) for c in batch)
        before = time.perf_counter()
        seen = net.read(torch.cat([src, dst]), t.repeat(2))
        net.rows(seen, one, one + BATCH)
        middle = time.perf_counter()
        net.link(seen, one, one + BATCH)
        after = time.perf_counter()
        net.write(src, dst, t, None, seen)
        wrote = time.perf_counter() - after
        joined.append((middle - before + wrote) / BATCH)
        scored.append((after - middle + middle - before + wrote) / BATCH)
    return median(joined), median(scored)


def against_the_log() -> list[dict[str, Any]]:
    src, dst, t = hub_graph(HUB)
    batches = queries(HUB, float(t[-1]) + 1)
    ours, _ = cached(filled(src, dst, t), batches)
    log, rng = Log(), np.random.default_rng(2)
    log.add(src, dst, t)
    exact, walked = [], []
    for k, (u, v, when) in enumerate(batches):
        asked = list(zip(u.tolist(), v.tolist(), when.tolist(), strict=True))
        some = asked[:4] if k == 0 else asked[:0]  # a query of the hub takes milliseconds
        before = time.perf_counter()
        for pair in some:
            log.common(*pair)
        if some:
            exact.append((time.perf_counter() - before) / len(some))
        before = time.perf_counter()
        for pair in asked:
            log.features(*pair, rng)
        log.add(u, v, when)
        walked.append((time.perf_counter() - before) / len(asked))
    return [
        {
            "name": "joint neighbourhood of a hub of 100,000, exact sets", "ours_s": ours, "peer": "sets built for each pair",
            "peer_s": median(exact), "ratio": median(exact) / ours,
        },
        {
            "name": "joint neighbourhood of a hub of 100,000, walks", "ours_s": ours, "peer": "CAWN-style walks, 32 of 2 steps",
            "peer_s": median(walked), "ratio": median(walked) / ours,
        },
    ]  # fmt: skip


def along_the_degree() -> list[dict[str, Any]]:
    rows = []
    nets = {
        degree: (filled(*(g := hub_graph(degree))), queries(degree, float(g[2][-1]) + 1))
        for degree in (100, 1000, 10_000, 100_000)
    }
    taken: dict[int, list[float]] = {degree: [] for degree in nets}
    for round in range(4):  # one after the other in every round, so that the machine's mood hits all alike
        for degree, (net, batches) in nets.items():
            if round:
                later = [(u, v, t + float(net.now)) for u, v, t in batches]
                taken[degree].append(cached(net, later)[1])
            else:
                cached(net, batches)
    base = min(taken[100])
    for degree, seconds in taken.items():
        rows.append(
            {
                "name": f"an event of a node of degree {degree}",
                "degree": degree,
                "ours_s": min(seconds),
                "over degree 100": min(seconds) / base,
            }
        )
    return rows


def epochs() -> list[dict[str, Any]]:
    data = open_data("college-msg")
    task = task_of("temporal-link-prediction(hidden_nodes=0)").for_data(data)
    train = task.fold(data, "by-time-0").train
    taken = {}
    entries = {
        "nat": "nat:small(epochs=1)", "no join": "nat:small(epochs=1; join=false)", "attention": "nat:small(epochs=1; attention=true)",
        "tgn": "tgn(epochs=1)", "tgn, small": "tgn:small(epochs=1)",
    }  # fmt: skip
    for name, entry in entries.items():
        run = Run(task=task, digest=data.digest(), fold="by-time-0", label=name)
        before = time.perf_counter()
        with run.seeded():
            entry_of(entry).fit(train, None, run)
        taken[name] = time.perf_counter() - before
    ours = taken["nat"]
    return [
        {"name": "an epoch of college-msg, batch 200, against TGN", "ours_s": ours, "peer": "TGN, its own widths", "peer_s": taken["tgn"], "ratio": taken["tgn"] / ours},
        {"name": "an epoch of college-msg, batch 200, against small TGN", "ours_s": ours, "peer": "TGN of width 64", "peer_s": taken["tgn, small"], "ratio": taken["tgn, small"] / ours},
        {"name": "an epoch of college-msg, the join", "ours_s": ours, "peer": "NAT without the join", "peer_s": taken["no join"], "ratio": taken["no join"] / ours},
        {"name": "an epoch of college-msg, the plain sum", "ours_s": ours, "peer": "NAT with attention", "peer_s": taken["attention"], "ratio": taken["attention"] / ours},
    ]  # fmt: skip


def run() -> list[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*epochs(), *against_the_log(), *along_the_degree()]
    finally:
        torch.set_num_threads(threads)
