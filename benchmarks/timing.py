"""Seconds of rivals in one process, taken in turns, so that a slow spell of the machine falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

ROUNDS = 5


def timed(rivals: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each call and round; two rounds to warm up, and the order turns from round to round."""
    names = list(rivals)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds + 2):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            rivals[name]()
            seconds = time.perf_counter() - start
            if i >= 2:
                taken[name].append(seconds)
    return taken


def medians(rivals: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each call."""
    return {name: float(np.median(values)) for name, values in timed(rivals, rounds).items()}


def taken(work: Callable[[], object], times: int = 3, warm: bool = True) -> float:
    """Median seconds of a few calls of one, after one to warm up (unless a call is too long for that)."""
    if warm:
        work()
    found = []
    for _ in range(times):
        before = time.perf_counter()
        work()
        found.append(time.perf_counter() - before)
    return float(np.median(found))
