"""A made-up log whose communities drift: a stochastic block model in which a few nodes move at every step."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np

from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .events import Events, EventSet, in_order


class DriftingSBM(EventSet):
    """A stochastic block model over `steps` steps: pairs of one community are linked with probability `within`, others with
    `between`; at every step `movers` nodes go over to another community.

    A stand-in for the made-up set of the snapshot papers, whose file is not to be had: sizes and probabilities are what is
    known of its recipe, not its numbers. Step k holds its links as events at times k + (0 .. 1), in a random order, each in
    one direction; cut it with a window of 1. The event column `label` is the source's community in that step. With `fresh`
    every step draws all links anew; without, a pair keeps its draw, so links change only where nodes move.
    """

    name: ClassVar[str] = "drifting-sbm"

    nodes: int = setting(1000, "how many nodes", ge=4, le=20_000)
    communities: int = setting(3, "how many communities", ge=2, le=100)
    within: float = setting(0.05, "chance of a link within a community", gt=0, le=1)
    between: float = setting(0.005, "chance of a link between communities", ge=0, le=1)
    fewest: int = setting(10, "nodes that move at a step, at least", ge=0)
    most: int = setting(20, "and at most", ge=0)
    steps: int = setting(50, "how many steps", ge=1, le=10_000)
    fresh: bool = setting(True, "every step draws its links anew")
    seed: int = setting(0, "of the draws", ge=0)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> Events:
        if self.fewest > self.most or self.most > self.nodes:
            raise UserError(f"drifting-sbm: fewest {self.fewest} <= most {self.most} <= nodes {self.nodes} must hold")
        return _drawn(self)


@lru_cache(maxsize=2)
def _drawn(given: DriftingSBM) -> Events:
    rng = np.random.default_rng([given.seed, 0x5B])
    n = given.nodes
    community = np.arange(n) % given.communities
    u, v = np.triu_indices(n, 1)
    chance = rng.random(len(u))
    src, dst, time, label = [], [], [], []
    for step in range(given.steps):
        if step:
            moved = rng.choice(n, int(rng.integers(given.fewest, given.most + 1)), replace=False)
            community[moved] = (community[moved] + rng.integers(1, given.communities, size=len(moved))) % given.communities
            if given.fresh:
                chance = rng.random(len(u))
            else:
                touched = np.isin(u, moved) | np.isin(v, moved)
                chance[touched] = rng.random(int(touched.sum()))
        linked = np.flatnonzero(chance < np.where(community[u] == community[v], given.within, given.between))
        linked = rng.permutation(linked)
        turned = rng.random(len(linked)) < 0.5
        a, b = np.where(turned, v[linked], u[linked]), np.where(turned, u[linked], v[linked])
        src.append(a)
        dst.append(b)
        time.append(step + np.arange(len(linked)) / max(len(linked), 1))
        label.append(community[a].astype(np.float32))
    t = np.concatenate(time)
    if not len(t):
        raise UserError("drifting-sbm drew no link at all; raise within")
    ids = tuple(f"n{i}" for i in range(n))
    x = np.concatenate(label)[:, None]
    return in_order(Events(ids, np.concatenate(src), np.concatenate(dst), t, None, x, ("label",)))
