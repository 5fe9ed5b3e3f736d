"""Motifs: the exact numbers of simple paths and cycles of each graph of a set, as a table and a file.

Source: the counts are those that "Revisiting Graph Neural Networks on Graph-level Tasks" (arXiv 2501.00773, 2025) asks networks to
learn; here they are walked, not learned.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import lines
from latticework.core.value import setting
from latticework.data.graphs import GraphSet

from .counted import LIMIT, LONGEST, counts_of

Array = NDArray[Any]
BLOCK = 64  # graphs between two looks at the clock
FILE = "counts.csv"


class Motifs(Probe):
    """Exact numbers of simple paths and cycles in each graph, as ``counts.csv``: id, nodes, edges, path-1 …, cycle-3 ….

    ``path-L`` are simple paths with L edges, ``cycle-L`` cycles of L nodes, each once; edges count as undirected, self-loops and
    repeated edges are left out (`edges` counts what is left). A graph whose counts take more than `limit` steps has empty
    fields there: nothing is estimated. Classes, where there are some, are compared by their mean counts.
    """

    name: ClassVar[str] = "motifs"
    kinds: ClassVar[tuple[str, ...]] = ("graph-set",)
    paths: int = setting(4, "longest path, in edges; 0: none", ge=0, le=LONGEST)
    cycles: int = setting(6, "longest cycle, in nodes; 0: none", ge=0, le=LONGEST)
    limit: int = setting(LIMIT, "steps that the paths or the cycles of a graph may take", ge=1, le=10**15)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("motifs counts in graphs: give a set of them, as in latticework probe motifs mygraphs/")
        if 0 < self.cycles < 3:
            raise UserError(f"cycles={self.cycles}: the shortest cycle has 3 nodes; cycles=0 counts none")
        graphs: GraphSet = data.read()
        paths = [f"path-{length}" for length in range(1, self.paths + 1)]
        names = paths + [f"cycle-{length}" for length in range(3, self.cycles + 1)]
        if not names:
            raise UserError("nothing is asked: paths and cycles are both 0")
        found = []
        for start in range(0, len(graphs), BLOCK):
            found.append(counts_of(graphs.take(np.arange(start, min(start + BLOCK, len(graphs)))), names, self.limit))
            run.log(start, graphs=float(min(start + BLOCK, len(graphs))))
        counts = np.concatenate(found)
        edges = counts_of(graphs, ["path-1"])[:, 0]
        beyond = (counts < 0).any(1)
        scalars: dict[str, Any] = {"graphs": len(graphs), "graphs beyond the limit": int(beyond.sum())}
        scalars |= {f"{name} in all": int(counts[counts[:, t] >= 0, t].sum()) for t, name in enumerate(names)}
        tables: dict[str, Any] = {"counts": [self._row(name, counts[:, t]) for t, name in enumerate(names)]}
        if graphs.y is not None and len(graphs.classes) > 1:
            tables["mean count by class"] = _by_class(names, counts, graphs)
        per_graph = {
            word: [(float(name[len(word) + 1 :]), row["mean"]) for name, row in zip(names, tables["counts"], strict=True)
                   if name.startswith(word) and row["mean"] is not None]
            for word in ("path", "cycle")
        }  # fmt: skip
        figure = lines({k: v for k, v in per_graph.items() if v}, "mean count of a graph", "length", dots=True)
        return Findings(scalars, tables, {"mean count by length": figure}, self._written(run, graphs, edges, names, counts))

    @staticmethod
    def _row(name: str, counts: Array) -> dict[str, Any]:
        known = counts[counts >= 0]
        if not len(known):
            return {"pattern": name, "mean": None, "median": None, "most": None, "graphs with one": 0}
        return {
            "pattern": name, "mean": float(known.mean()), "median": float(np.median(known)), "most": int(known.max()),
            "graphs with one": int((known > 0).sum()),
        }  # fmt: skip

    @staticmethod
    def _written(run: Run, graphs: GraphSet, edges: Array, names: list[str], counts: Array) -> list[Any]:
        """The file in the run's folder, where there is one."""
        if run.folder is None:
            return []
        import polars as pl

        columns: dict[str, Any] = {"id": list(graphs.ids), "nodes": graphs.sizes, "edges": edges}
        for t, name in enumerate(names):
            columns[name] = pl.Series([c if c >= 0 else None for c in counts[:, t].tolist()], dtype=pl.Int64)
        path = run.folder / FILE
        run.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, pl.DataFrame(columns).write_csv())
        return [path]


def _by_class(names: list[str], counts: Array, graphs: GraphSet) -> list[dict[str, Any]]:
    rows = []
    for t, name in enumerate(names):
        row: dict[str, Any] = {"pattern": name}
        for c, word in enumerate(graphs.classes):
            mine = counts[(graphs.y == c) & (counts[:, t] >= 0), t]
            row[word] = float(mine.mean()) if len(mine) else None
        rows.append(row)
    return rows
