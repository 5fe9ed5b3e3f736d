"""Forks a process that runs a grid, kills it with SIGKILL after a random time, again and again, then lets it finish."""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from latticework.core.grid import Grid, run_grid


def main(root: str, kills: int, seed: int) -> None:
    import optuna  # noqa: F401  (imported before the fork, so that kills fall into the work)
    import sklearn.linear_model  # noqa: F401
    import torch

    torch.set_num_threads(1)
    grid = grid_of()
    rng = random.Random(seed)
    killed = 0
    while killed < kills:
        child = os.fork()
        if child == 0:
            try:
                run_grid(grid, root)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.05, 0.6))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        if not os.WIFSIGNALED(status):
            print("finished before it was killed", flush=True)
            break
    run_grid(grid, root)
    print(f"killed {killed} times", flush=True)


def grid_of() -> Grid:
    return Grid.make(
        {
            "data": ["karate"], "repeats": 6, "tune": 2, "baselines": False,
            "entries": ["mlp(epochs=60)", "gcn(epochs=60)", "svd(dim=4)", "label-propagation", "majority"],
        }
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
