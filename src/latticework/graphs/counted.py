"""How often a pattern occurs in each graph of a set, counted exactly: data for the task subgraph-counting.

Patterns are ``path-L``, simple paths with L edges, and ``cycle-L``, cycles of L nodes; a path and a cycle count once, whatever the
direction in which they are read. Other edges may lie between their nodes (sub-graphs, not induced ones).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting
from latticework.data.graphs import GraphSet, GraphSetData, checked
from latticework.layers.paths import motif_totals, simple_graph

Array = NDArray[Any]
LONGEST = 12
PATTERN = re.compile(r"(path|cycle)-(\d+)")
LIMIT = 1_000_000_000  # steps that one graph may take


def pattern_of(word: str) -> tuple[str, int]:
    """``cycle-5`` -> ("cycle", 5). ``ValueError`` names what a pattern is."""
    found = PATTERN.fullmatch(word)
    kind, length = (found[1], int(found[2])) if found else ("", 0)
    if not (1 if kind == "path" else 3) <= length <= LONGEST:
        raise ValueError(
            f"{word!r} is no pattern: path-1 to path-{LONGEST} (its edges) or cycle-3 to cycle-{LONGEST} (its nodes)"
        )
    return kind, length


def counts_of(graphs: GraphSet, patterns: Sequence[str], limit: int = LIMIT) -> NDArray[np.int64]:
    """int64 [G, T]: how often each pattern occurs in each graph; -1 where a graph takes more than `limit` steps.

    Edges count as undirected; self-loops and repeated edges are left out.
    """
    asked = [pattern_of(word) for word in patterns]
    longest = max((length for kind, length in asked if kind == "path"), default=0)
    girth = max((length for kind, length in asked if kind == "cycle"), default=0)
    paths, cycles = motif_totals(simple_graph(graphs.edge_index, graphs.nodes), longest, girth, graphs.ptr, limit)
    columns = [paths[:, length - 1] if kind == "path" else cycles[:, length - 3] for kind, length in asked]
    return np.stack(columns, 1)


def joined(first: GraphSet, second: GraphSet) -> GraphSet:
    """Two sets one after the other: ids, sizes and edges; node features where both have the same columns, no edge features."""
    same = first.x is not None and second.x is not None and first.features == second.features
    x = np.concatenate([first.x, second.x]) if same else None  # type: ignore[list-item]
    ids = first.ids + second.ids
    if len(set(ids)) < len(ids):
        ids = tuple(f"1:{i}" for i in first.ids) + tuple(f"2:{i}" for i in second.ids)
    notes = [*first.notes, *second.notes]
    notes += [] if same else ["node features of the two sets differ: left out"]
    notes += ["edge features are left out"] if first.edge_x is not None or second.edge_x is not None else []
    return GraphSet(
        ids, np.concatenate([first.sizes, second.sizes]),
        np.concatenate([first.edge_index, second.edge_index + first.nodes], 1), x, first.features if same else (),
        notes=tuple(notes),
    )  # fmt: skip


class Counted(GraphSetData):
    """Another set of graphs whose targets are exact numbers of paths and cycles; its classes and folds are left out.

    ``counted(of=tu-mutag; target=cycle-5)``; several patterns are several targets: ``target=cycle-5,cycle-6,path-4``. With `also`
    a second set follows the first. Counts are of the graphs as they are: noise that a task adds comes later.
    """

    name: ClassVar[str] = "counted"
    of: Dataset = setting(..., "the graphs")
    also: Dataset | None = setting(None, "more graphs, after the first")
    target: tuple[str, ...] = setting(("cycle-5",), "patterns: path-L (L edges) or cycle-L (L nodes)")

    @field_validator("target", mode="before")
    @classmethod
    def _words(cls, given: Any) -> Any:
        return tuple(word.strip() for word in given.split(",")) if isinstance(given, str) else given

    @field_validator("target")
    @classmethod
    def _patterns(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if not given or len(set(given)) < len(given):
            raise ValueError("target is one pattern or several different ones, as in cycle-5,path-4")
        for word in given:
            pattern_of(word)
        return given

    def digest(self) -> str:
        return digest_of(
            [self.name, self.revision, self.of.digest(), None if self.also is None else self.also.digest(), self.target]
        )

    def read(self) -> GraphSet:
        return _counted(self, self.digest())


@lru_cache(maxsize=4)
def _counted(value: Counted, digest: str) -> GraphSet:
    """The counts of a value's sets, kept by their content: a file behind a path may change."""
    graphs = _graphs(value.of)
    if value.also is not None:
        graphs = joined(graphs, _graphs(value.also))
    found = counts_of(graphs, value.target)
    beyond = np.argwhere(found < 0)
    if len(beyond):
        row, column = beyond[0].tolist()
        raise UserError(
            f"graph {graphs.ids[row]!r} ({int(graphs.sizes[row])} nodes) takes more than {LIMIT:,} steps to count "
            f"{value.target[column]}: ask for shorter patterns, or leave such dense graphs out"
        )
    note = f"targets are exact counts of {', '.join(value.target)}; edges count as undirected"
    made = replace(
        graphs, y=None, classes=(), folds=None, node_targets=None, targets=found.astype(np.float64), target_names=value.target,
        notes=(*graphs.notes, note), _cache={},
    )  # fmt: skip
    return checked(made)


def _graphs(of: Dataset) -> GraphSet:
    graphs = of.read()
    if not isinstance(graphs, GraphSet):
        raise UserError(f"counted counts in a set of graphs, and {of.name} is data of kind {of.kind!r}")
    return graphs
