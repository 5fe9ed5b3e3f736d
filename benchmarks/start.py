"""Seconds until the command line answers, against importing torch alone."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any


def least(*command: str, rounds: int = 5) -> float:
    """Least seconds of a command over the rounds."""
    taken = []
    for _ in range(rounds):
        before = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        taken.append(time.perf_counter() - before)
    return min(taken)


def run() -> list[dict[str, Any]]:
    peer = least("-c", "import torch")
    rows = []
    for words in (["--help"], ["methods"], ["data", "list"]):
        ours = least("-m", "latticework", *words)
        rows.append(
            {
                "name": f"latticework {' '.join(words)}",
                "ours_s": ours,
                "peer": "import torch",
                "peer_s": peer,
                "ratio": peer / ours,
            }
        )
    return rows
