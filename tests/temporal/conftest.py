"""A small log of meetings that every test of the wing can use."""

from __future__ import annotations

import numpy as np
import pytest

from latticework.data.events import Events, GivenEvents


@pytest.fixture(scope="session")
def meetings() -> GivenEvents:
    """300 events between 24 nodes: two halves that keep to themselves, old partners more often than new ones."""
    rng = np.random.default_rng(3)
    src, dst = [], []
    for _ in range(300):
        u = int(rng.integers(24))
        if src and rng.random() < 0.5:
            k = int(rng.integers(len(src)))
            u, v = src[k], dst[k]
        else:
            v = int(rng.choice([w for w in range(24) if w != u and w % 2 == u % 2]))
        src.append(u)
        dst.append(v)
    t = np.cumsum(rng.integers(0, 20, 300)).astype(np.float64)
    return GivenEvents.hold(Events(tuple(f"n{i}" for i in range(24)), np.array(src), np.array(dst), t))
