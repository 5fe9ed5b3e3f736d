"""Ten million events: read, checked and cut into the task's parts, against the same file read by numpy.

Each side runs in a process of its own, so that its peak of memory is its own; both on the same file, one after the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

EVENTS, NODES = 10_000_000, 200_000
OURS = """
from pathlib import Path
from latticework.data.events import EventFiles
from latticework.temporal.tasks import TemporalLinkPrediction
data = EventFiles(path=Path({path!r}))
data.check()
TemporalLinkPrediction(against=1).fold(data, "by-time-0")
"""
NUMPY = """
import numpy as np
table = np.loadtxt({path!r}, delimiter=",", skiprows=1)
ids, ends = np.unique(table[:, :2].astype(np.int64), return_inverse=True)
order = np.argsort(table[:, 2], kind="stable")
"""
MEASURED = """
import json, resource, time
start = time.perf_counter()
{code}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([time.perf_counter() - start, peak]))
"""


def measured(code: str) -> tuple[float, float]:
    """(seconds, GiB at the peak) of code in a fresh process."""
    done = subprocess.run([sys.executable, "-c", MEASURED.format(code=code)], capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def run() -> list[dict[str, Any]]:
    import polars as pl

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.csv"
        source = (rng.pareto(1.2, EVENTS) * 50).astype(np.int64) % NODES
        columns = {"source": source, "target": rng.integers(NODES, size=EVENTS), "time": np.cumsum(rng.integers(0, 5, EVENTS))}
        pl.DataFrame(columns).write_csv(path)
        ours, peak = measured(OURS.format(path=str(path)))
        numpy, numpy_peak = measured(NUMPY.format(path=str(path)))
    row = {"name": f"read, check and cut {EVENTS:,} events", "ours_s": ours, "peak_gib": peak}
    return [{**row, "peer": "numpy, read and sorted alone", "peer_s": numpy, "peer_peak_gib": numpy_peak, "ratio": numpy / ours}]
