"""What the lattice costs on a cell, and what two jobs bring over one."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from latticework.core.dataset import open_data
from latticework.core.grid import Grid, Pool, entry_of, run_grid
from latticework.core.run import Run
from latticework.nodes.tasks import NodeClassification

CELLS = 8


def seconds(grid: Grid, pool: Pool) -> float:
    with tempfile.TemporaryDirectory() as root:
        before = time.perf_counter()
        run_grid(grid, root, workers=pool)
        return time.perf_counter() - before


def jobs(rounds: int = 3) -> dict[str, Any]:
    """The same grid on one worker and on two that run already, one thread a cell in both; best of the rounds."""
    grid = Grid.make({"data": ["digits-knn"], "entries": ["gcn(epochs=300; patience=300)"], "repeats": CELLS, "baselines": False})
    warm = Grid.make({"data": ["digits-knn"], "entries": ["gcn(epochs=2)"], "repeats": 4, "baselines": False})
    with Pool(1) as one, Pool(2) as two:
        for pool in (one, two):
            seconds(warm, pool)
        single, double = [], []
        for _ in range(rounds):
            single.append(seconds(grid, one))
            double.append(seconds(grid, two))
    return {
        "name": f"{CELLS} cells on two jobs against one", "ours_s": min(double), "peer": "one job", "peer_s": min(single),
        "ratio": min(single) / min(double),
    }  # fmt: skip


def overhead(cells: int = 40) -> dict[str, Any]:
    """Seconds of a cell above its bare fit and predict, for a method that does next to nothing."""
    data = open_data("digits-knn")
    task = NodeClassification().for_data(data)
    grid = Grid.make({"data": ["digits-knn"], "entries": ["majority"], "repeats": cells, "baselines": False})
    fold = task.fold(data, "random-0")
    before = time.perf_counter()
    for _ in range(cells):
        model = entry_of("majority").fit(fold.train, fold.valid, Run(task=task))
        task.score(task.answer(model, fold.test, Run(task=task)), fold.test, None)
    bare = (time.perf_counter() - before) / cells
    with tempfile.TemporaryDirectory() as root:
        before = time.perf_counter()
        run_grid(grid, root)
        whole = (time.perf_counter() - before) / cells
    return {
        "name": "the lattice's own work on a cell",
        "ours_s": whole,
        "peer": "bare fit, predict, score",
        "peer_s": bare,
        "overhead_s": whole - bare,
    }


def run() -> list[dict[str, Any]]:
    return [overhead(), jobs()]
