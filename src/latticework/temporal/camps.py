"""Two hidden camps: a log of signed events whose signs follow balance theory and nothing else."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np

from latticework.core.value import setting
from latticework.data.events import Events, EventSet, content_digest, in_order


def camp_events(nodes: int, events: int, flips: float, seed: int) -> Events:
    """Events between uniformly drawn pairs of two equal camps; the sign is the product of the camps (+1, -1) of its ends, and
    turned round with probability `flips`. Event k happens at time k. ``ValueError`` for fewer than two nodes or no event.
    """
    if nodes < 2 or events < 1:
        raise ValueError(f"camps need two nodes and an event, not {nodes} and {events}")
    rng = np.random.default_rng([seed, 0x63616D70])
    camp = rng.permutation(np.where(np.arange(nodes) % 2, 1.0, -1.0))
    src = rng.integers(nodes, size=events)
    dst = (src + rng.integers(1, nodes, size=events)) % nodes
    weight = camp[src] * camp[dst] * np.where(rng.random(events) < flips, -1, 1)
    ids = tuple(f"n{i}" for i in range(nodes))
    return in_order(Events(ids, src, dst, np.arange(events, dtype=np.float64), weight.astype(np.float32), signed=True))


@lru_cache(maxsize=4)
def _made(nodes: int, events: int, flips: float, seed: int) -> Events:
    return camp_events(nodes, events, flips, seed)


class Camps(EventSet):
    """Signed events between two equal hidden camps: friends within, foes across, some signs turned round.

    A node's own record says nothing here (half of all signs are negative, for everybody); who shares a friend or a foe with
    whom says it all. The best that can be had is an AUC of 1 - flips.
    """

    name: ClassVar[str] = "camps"
    nodes: int = setting(200, "nodes, half in each camp", ge=2, le=10_000_000)
    events: int = setting(10_000, "events, one a time step", ge=1, le=100_000_000)
    flips: float = setting(0.1, "share of signs that are turned round", ge=0, le=0.5)
    seed: int = setting(0, "of the draw", ge=0)

    def read(self) -> Events:
        return _made(self.nodes, self.events, self.flips, self.seed)

    def digest(self) -> str:
        return content_digest(self.read())
