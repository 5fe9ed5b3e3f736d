"""Environments by construction: a feature that always tells a little and one that tells much, but not where it counts.

A node has a label ``y`` in {0, 1}, a pattern ``z`` uniform in (0, 1) and two features ``±1 + 0.1 N(0, 1)``. The first agrees
with y with probability 0.8 everywhere. The second, spurious one agrees with probability 0.999 where z < 0.5 and 0.8 above
among the train nodes, and with probability 0.1 among the test nodes, whatever z. A classifier that leans on the second is
right nine times in ten in training and once in ten in testing; one that reads the first alone is right four times in five in
both. Whoever sees z can tell the two kinds of train nodes apart, and so that the second feature is not to be trusted.

Source: this library's, in the style of the coloured digits of "Invariant Risk Minimization" (arXiv 1907.02893), for nodes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from latticework.core.value import digest_of, setting

from .graph import Graph, GraphDataset, finish

INVARIANT, TRUSTED, DOUBTFUL, SHIFTED = 0.8, 0.999, 0.8, 0.1


class Drawn(NamedTuple):
    """`x` float32 [3n, 2], `y` int64 [3n], `z` float64 [3n]; the first n rows are for training, the other 2n for testing."""

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    z: np.ndarray[Any, Any]
    n: int


def draw_environments(n: int, seed: int = 0) -> Drawn:
    """n train and 2n test nodes of the law above. ``ValueError`` for n < 1."""
    if n < 1:
        raise ValueError(f"n must be >= 1, is {n}")
    rng = np.random.default_rng([seed, 0x73686966])
    total = 3 * n
    y = rng.integers(0, 2, total)
    z = rng.random(total)
    trusted = np.where(z < 0.5, TRUSTED, DOUBTFUL)
    trusted[n:] = SHIFTED
    sign = 2.0 * y - 1
    invariant = np.where(rng.random(total) < INVARIANT, sign, -sign)
    spurious = np.where(rng.random(total) < trusted, sign, -sign)
    x = np.stack([invariant, spurious], 1) + 0.1 * rng.standard_normal((total, 2))
    return Drawn(x.astype(np.float32), y.astype(np.int64), z, n)


class ShiftedEnvironments(GraphDataset):
    """Two classes, a feature to trust and a better-looking one that betrays the test nodes: `n` train and 2 `n` test nodes.

    The split is fixed and has no validation part: one drawn like the train nodes would choose the spurious feature, one
    drawn like the test nodes would give the game away. With ``graph=true`` each node has one neighbour of its own, unlabelled,
    whose features lie at distance z in a random direction: the mean distance to its neighbours, which HEI measures, is the
    node's pattern z exactly, and no edge says anything about the label. With ``graph=false`` there are no edges: the table
    for classifiers that read features alone; it cannot carry the pattern, so methods that look at neighbours refuse it, and
    z is had from `draw_environments` in Python.
    """

    name: ClassVar[str] = "shifted-environments"
    n: int = setting(2000, "train nodes; there are twice as many test nodes", ge=2, le=1_000_000)
    seed: int = setting(0, "of the draw", ge=0)
    graph: bool = setting(False, "true: a neighbour for each node that carries its pattern; false: no edges")

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> Graph:
        return _shifted(self.n, self.seed, self.graph)


@lru_cache(maxsize=4)
def _shifted(n: int, seed: int, graph: bool) -> Graph:
    drawn = draw_environments(n, seed)
    total = len(drawn.y)
    x, y, fixed = drawn.x, drawn.y, np.full(total, 2, np.int8)
    fixed[:n] = 0
    ids = tuple(f"node {i}" for i in range(total))
    edges = np.zeros((2, 0), np.int64)
    if graph:
        angle = np.random.default_rng([seed, 0x616E676C]).uniform(0, 2 * np.pi, total)
        away = drawn.z[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        x = np.concatenate([x, (x + away).astype(np.float32)])
        y = np.concatenate([y, np.full(total, -1, np.int64)])
        fixed = np.concatenate([fixed, np.full(total, -1, np.int8)])
        ids += tuple(f"neighbour of node {i}" for i in range(total))
        edges = np.stack([np.arange(total), np.arange(total) + total])
    note = "no edges: nothing here tells which environment a node is from" if not graph else "a neighbour for each node"
    return finish(
        Graph(
            edges, ids, x=x, y=y, classes=("0", "1"), features=("invariant", "spurious"), fixed=fixed, notes=(note,),
        ),
        False,
    )  # fmt: skip
