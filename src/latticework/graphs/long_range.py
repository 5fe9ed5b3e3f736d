"""Long range: what one node of a graph (or the graph) is, where what tells of it lies far away.

`RingTransfer` makes graphs where it lies exactly so far: a ring, a class shown at one node, and asked at the opposite one. Message
passing of L layers cannot answer beyond L hops, so the share of right answers by distance shows how far a method hears.
Source of the task: Bodnar et al., "Weisfeiler and Lehman Go Cellular" (NeurIPS 2021), section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import shortest_path

from latticework.core.errors import UserError
from latticework.core.task import Part
from latticework.core.value import digest_of, setting
from latticework.data.graphs import GraphSet, GraphSetData, checked
from latticework.data.images import TEST, ImageSet

from .baselines import GraphMajority
from .tasks import GraphClassification

Array = NDArray[Any]
MARK = "asked"  # the feature column that is 1 at the node whose state is read


# -- the data ---------------------------------------------------------------------------------------------------------------
class RingTransfer(GraphSetData):
    """Rings with a class shown at one node and asked at the opposite one.

    Features: one column a class (``class=0`` …), 1 at the source alone, and ``asked``, 1 at the node opposite to it; so the answer lies
    nodes / 2 hops away. Numbers of the nodes are shuffled. With `least` the rings have least, least + 2, … `nodes` nodes in turn,
    and scores stand at their distance. Classes are equally frequent.
    """

    name: ClassVar[str] = "ring-transfer"

    nodes: int = setting(20, "nodes of the largest ring (even)", ge=4, le=100_000)
    classes: int = setting(5, "how many classes", ge=2, le=1000)
    graphs: int = setting(1000, "how many rings", ge=2, le=1_000_000)
    least: int = setting(0, "nodes of the smallest ring (even); 0: all are as large as the largest", ge=0)
    seed: int = setting(0, "of the draw", ge=0)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> GraphSet:
        if self.nodes % 2 or self.least % 2 or (self.least and not 4 <= self.least <= self.nodes):
            raise UserError(
                f"ring-transfer: the opposite node needs even rings of 4 nodes or more, least <= nodes; nodes={self.nodes} and "
                f"least={self.least} were given"
            )
        return _rings(self)


@lru_cache(maxsize=4)
def _rings(of: RingTransfer) -> GraphSet:
    rng = np.random.default_rng([of.seed, 0x72696E67])
    y = rng.permutation(np.arange(of.graphs) % of.classes)
    choices = np.arange(of.least or of.nodes, of.nodes + 1, 2)
    sizes = rng.permutation(choices[np.arange(of.graphs) % len(choices)])
    starts = np.cumsum(sizes) - sizes
    x = np.zeros((int(sizes.sum()), of.classes + 1), np.float32)
    edges = []
    for size, start, label in zip(sizes.tolist(), starts.tolist(), y.tolist(), strict=True):
        place = start + rng.permutation(size)
        x[place[0], label] = 1
        x[place[size // 2], of.classes] = 1
        after = np.roll(place, -1)
        both = np.concatenate([np.stack([place, after], 1), np.stack([after, place], 1)])
        edges.append(both[np.lexsort((both[:, 1], both[:, 0]))])
    return checked(
        GraphSet(
            tuple(f"ring{i}" for i in range(of.graphs)), sizes.astype(np.int64), np.ascontiguousarray(np.concatenate(edges).T),
            x=x, features=(*(f"class={c}" for c in range(of.classes)), MARK), y=y.astype(np.int64),
            classes=tuple(str(c) for c in range(of.classes)),
        ),
        "ring-transfer",
    )  # fmt: skip


class SuperpixelGrid(GraphSetData):
    """Images as grids of `cells` x `cells` cells: a stand-in for superpixel graphs, which follow the picture's edges; these don't.

    A node is a cell: the mean of its pixels in each channel (0 to 1), and the cell's row and column (0 to 1). Cells that touch at a side
    are joined, both ways. The images' test split, where there is one, is fold 1: ``-s task.protocol=given`` tests on it.
    """

    name: ClassVar[str] = "superpixel-grid"

    of: ImageSet = setting(..., "the images, as in mnist, fashion-mnist or digits")
    cells: int = setting(8, "cells a side", ge=2, le=256)
    most: int = setting(0, "the first so many images of each class and split alone; 0: all", ge=0)

    def digest(self) -> str:
        return digest_of([self.name, self.revision, self.of.digest(), self.cells, self.most])

    def read(self) -> GraphSet:
        return _grids(self, self.digest())


@lru_cache(maxsize=2)
def _grids(of: SuperpixelGrid, digest: str) -> GraphSet:
    images = of.of.read()
    height, width, channels = images.size
    if of.cells > min(height, width):
        raise UserError(
            f"superpixel-grid: {of.cells} cells a side, but the images have {height} x {width} pixels; use fewer cells"
        )
    rows = np.arange(len(images))
    splits = np.zeros(len(images), np.int8) if images.splits is None else images.splits
    if of.most:
        seen: dict[tuple[int, int], int] = {}
        keep = []
        for i, key in enumerate(zip(images.labels.tolist(), splits.tolist(), strict=True)):
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= of.most:
                keep.append(i)
        rows = np.array(keep)
    k = of.cells
    cut_y, cut_x = (np.arange(k) * height) // k, (np.arange(k) * width) // k
    area = np.outer(np.diff([*cut_y, height]), np.diff([*cut_x, width]))
    sums = np.add.reduceat(np.add.reduceat(images.pixels[rows].astype(np.float64), cut_y, axis=1), cut_x, axis=2)
    mean = (sums / area[None, :, :, None] / 255).reshape(len(rows), k * k, channels)
    at = np.stack(np.divmod(np.arange(k * k), k), 1) / (k - 1)
    x = np.concatenate([mean, np.broadcast_to(at, (len(rows), k * k, 2))], axis=2).reshape(-1, channels + 2)
    number = np.arange(k * k).reshape(k, k)
    pairs = np.concatenate([
        np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], 1), np.stack([number[:-1].ravel(), number[1:].ravel()], 1)
    ])  # fmt: skip
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    edges = (pairs[None] + (np.arange(len(rows)) * k * k)[:, None, None]).reshape(-1, 2).T
    names = ("grey",) if channels == 1 else ("red", "green", "blue")
    tests = (splits[rows] == TEST).astype(np.int8)
    return checked(
        GraphSet(
            tuple(images.ids[i] for i in rows.tolist()), np.full(len(rows), k * k, np.int64), np.ascontiguousarray(edges),
            x=x.astype(np.float32), features=(*names, "row", "column"), y=images.labels[rows].astype(np.int64),
            classes=images.classes, folds=tests if tests.any() and not tests.all() else None,
            notes=(f"a fixed grid of {k} x {k} cells stands in for superpixels",),
        ),
        "superpixel-grid",
    )  # fmt: skip


# -- the task ---------------------------------------------------------------------------------------------------------------
class LongRange(GraphClassification):
    """The class of one asked node a graph, where the data mark it by a column ``asked``, else of the graph; scored at distance.

    With a mark a method reads the state of that node alone: pooling over the graph, which any distance is nothing to, is no answer
    here, so only methods that name this task take it. ``distance`` is the number of hops from the asked node to the nearest node
    with a feature other than 0 (the mark apart); without a mark scores stand at quartiles of the graphs' ``diameter`` (of the largest
    finite distance where a graph is not connected). Distances count edges both ways.
    """

    name: ClassVar[str] = "long-range"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return (cls.name,)

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "long-range-majority", "graph-mamba:messages"

    def check(self, given: GraphSet) -> None:
        super().check(given)
        if MARK in given.features:
            assert given.x is not None
            marked = np.add.reduceat(given.x[:, given.features.index(MARK)] > 0, given.ptr[:-1], dtype=np.int64)
            if (marked != 1).any():
                g = int(np.flatnonzero(marked != 1)[0])
                raise UserError(
                    f"graph {given.ids[g]!r} has {int(marked[g])} nodes whose feature {MARK!r} is above 0; exactly one is read"
                )

    def schema_for(self, given: GraphSet, train: Array) -> dict[str, Any]:
        return super().schema_for(given, train) | {"asked": MARK if MARK in given.features else None}

    def part(self, given: GraphSet, rows: Array, schema: Mapping[str, Any], fold: str, slices: Any) -> Part:
        if slices:  # of the test part
            slices = {**slices, **distance_slices(given)}
        return super().part(given, rows, schema, fold, slices)


def distance_slices(given: GraphSet) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """Groups of graphs: by hops from the asked node to what tells of it, or by quartiles of their diameter."""
    if "long range" not in given._cache:
        if MARK in given.features:
            hops = asked_distances(given)
            known = np.unique(hops)
            names = tuple("nowhere" if h < 0 else str(int(h)) for h in known)
            found = {"distance": (np.searchsorted(known, hops), names)}
        else:
            reach = diameters(given)
            edges = np.unique(np.quantile(reach, [0.25, 0.5, 0.75], method="higher"))
            group = np.searchsorted(edges, reach, side="left")
            words = [
                f"{reach[group == i].min()}–{reach[group == i].max()}" if (group == i).any() else ""
                for i in range(len(edges) + 1)
            ]
            found = {"diameter": (group, tuple(words))}
        given._cache["long range"] = found
    return given._cache["long range"]  # type: ignore[no-any-return]


def _adjacency(given: GraphSet) -> sp.csr_array:
    u, v = given.edge_index
    n = given.nodes
    return sp.csr_array((np.ones(2 * len(u), np.int8), (np.concatenate([u, v]), np.concatenate([v, u]))), shape=(n, n))


def asked_distances(given: GraphSet) -> Array:
    """int64 [G]: hops from each graph's asked node to the nearest node with another feature that is not 0; -1: none is reached."""
    assert given.x is not None
    column = given.features.index(MARK)
    others = np.delete(given.x, column, axis=1)
    sources = (others != 0).any(1)
    A = _adjacency(given)
    asked = np.flatnonzero(given.x[:, column] > 0)
    found = np.full(len(given), -1, np.int64)
    hops, reached = 0, sources  # outwards from all sources of all graphs at once
    while True:
        found[(found < 0) & reached[asked]] = hops
        further = reached | (A @ reached.astype(np.float32) > 0)
        if (further == reached).all():
            return found
        hops, reached = hops + 1, further


def diameters(given: GraphSet) -> Array:
    """int64 [G]: the largest finite distance of each graph."""
    A = _adjacency(given)
    ptr = given.ptr
    found = np.zeros(len(given), np.int64)
    for g in range(len(given)):
        own = A[ptr[g] : ptr[g + 1], ptr[g] : ptr[g + 1]]
        away = shortest_path(own, directed=False, unweighted=True)
        found[g] = int(away[np.isfinite(away)].max(initial=0))
    return found


class LongRangeMajority(GraphMajority):
    """Answers every asked node with the shares of the classes among the train graphs."""

    name: ClassVar[str] = "long-range-majority"
    tasks: ClassVar[tuple[str, ...]] = ("long-range",)
