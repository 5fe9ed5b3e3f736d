"""An epoch of HEI on LINKX against plain LINKX, on squirrel, and how the neighbour pattern's cost grows with edges."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.nodes.hei import neighbour_pattern

EPOCHS = 12


def seconds(entry: str, fold: Any, task: Any) -> list[float]:
    """Seconds of each epoch of a fit without validation, the first two left out."""
    at: list[float] = []
    run = Run(task=task, fold="bench", label=entry, on_log=lambda label, step, values: at.append(time.perf_counter()))
    with run.seeded():
        entry_of(entry).fit(fold.train, None, run)
    return np.diff(at)[2:].tolist()


def run(rounds: int = 5) -> list[dict[str, Any]]:
    data = open_data("geom-gcn:squirrel")
    task = task_of("node-classification").for_data(data)
    fold = task.fold(data, "given-0")
    backbone = f"linkx(epochs={EPOCHS})"
    rows: list[dict[str, Any]] = []
    for penalty in ("irm", "gap"):
        taken: dict[str, list[float]] = {"plain": [], penalty: []}
        for _ in range(rounds):
            taken["plain"] += seconds(backbone, fold, task)
            taken[penalty] += seconds(f"hei(backbone={backbone}; penalty={penalty}; warm_up=0; infer_epochs=1)", fold, task)
        ours, peer = (float(np.median(taken[name])) for name in (penalty, "plain"))
        rows.append(
            {
                "name": f"HEI epoch, {penalty}, K=4, against LINKX's, squirrel", "ours_s": ours, "peer": "LINKX, plain",
                "peer_s": peer, "ratio": peer / ours,
            }
        )  # fmt: skip
    rng = np.random.default_rng(0)
    n, features = 20_000, 64
    x = rng.normal(size=(n, features)).astype(np.float32)
    for m in (50_000, 100_000, 200_000, 400_000):
        edges = rng.integers(0, n, (2, m))
        neighbour_pattern(x, edges)
        times = []
        for _ in range(3):
            before = time.perf_counter()
            neighbour_pattern(x, edges)
            times.append(time.perf_counter() - before)
        rows.append({"name": f"neighbour pattern, {m} edges, 64 features", "edges": m, "ours_s": min(times)})
    return rows
