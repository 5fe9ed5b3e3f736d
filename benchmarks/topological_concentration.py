"""ATC against exact Topological Concentration: seconds on the squirrel pages, growth with edges, error against speed.

``LATTICEWORK_DATA=... python benchmarks/topological_concentration.py``. The exact side is the sampled product of
`latticework.links.topological_concentration`, compiled and on as many threads as the other; both start from the same pairs.
Graphs drawn for the growth keep ten pairs a node, with attachment by degree, so that they have hubs.
"""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from timing import taken

from latticework.core.errors import UserError
from latticework.data.graph import undirected_pairs
from latticework.layers.propagation import threads
from latticework.links.heuristics import pattern
from latticework.links.topological_concentration import approximate, atc_embedding, atc_limit, topological_concentration

DIM, HOPS = 64, 2
DIMS = (16, 64, 256, 1024)
GROWTH = (3_000, 10_000, 30_000, 100_000)  # nodes


def squirrel() -> Any | None:
    """The page-page network's adjacency, or none where the data folder lacks it."""
    import latticework as lw

    try:
        graph = lw.dataset("geom-gcn:squirrel").read()
    except UserError:
        return None
    return pattern(undirected_pairs(graph), graph.nodes)


def grown(n: int, each: int = 10) -> Any:
    """A graph of n nodes whose newcomers join `each` earlier ones, half of them found through an edge (so by degree)."""
    rng = np.random.default_rng(0)
    new = np.repeat(np.arange(1, n), each)
    old = (rng.random(len(new)) * new).astype(np.int64)
    through = rng.random(len(new)) < 0.5
    place = (rng.random(len(new)) * (new - 1) * each).astype(np.int64)
    old = np.where(through & (new > 1), old[place], old)
    return pattern(np.stack([new, old]), n)


def atc(A: Any, dim: int = DIM, hops: int = HOPS) -> np.ndarray:
    return approximate(A, atc_embedding(A, dim, hops)).values


def on_squirrel() -> list[dict[str, Any]]:
    A = squirrel()
    name = f"ATC, dim {DIM}, {HOPS} hops, squirrel"
    if A is None:
        return [{"name": name, "note": "geom-gcn is not in LATTICEWORK_DATA"}]
    exact = topological_concentration(A, hops=HOPS)
    peer = taken(lambda: topological_concentration(A, hops=HOPS))
    ours = taken(lambda: atc(A), 7)
    tracemalloc.start()
    atc(A)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    row = {"name": name, "ours_s": ours, "peer": "exact TC", "peer_s": peer, "ratio": peer / ours}
    rows = [{**row, "pairs": A.nnz // 2, "peak_bytes": peak, "graph_bytes": A.data.nbytes + A.indices.nbytes + A.indptr.nbytes}]
    limit, ok = atc_limit(A, hops=HOPS), exact.defined
    for dim in DIMS:
        found = atc(A, dim)
        rows.append(
            {
                "name": f"error at dim {dim}, squirrel", "dim": dim, "ours_s": taken(lambda dim=dim: atc(A, dim)),
                "error": float(np.abs(found - limit).mean()), "of": float(limit[ok].mean()),
                "rank with the limit": float(spearmanr(found[ok], limit[ok])[0]),
                "rank with exact TC": float(spearmanr(found[ok], exact.values[ok])[0]),
            }
        )  # fmt: skip
    return rows


def growth() -> list[dict[str, Any]]:
    """Seconds by pairs of both, and the exponents by which they grow (log-log slope)."""
    rows: list[dict[str, Any]] = []
    for n in GROWTH:
        A = grown(n)
        ours, peer = taken(lambda A=A: atc(A)), taken(lambda A=A: topological_concentration(A, hops=HOPS), 1)
        rows.append(
            {
                "name": f"growth, {n} nodes", "pairs": A.nnz // 2, "ours_s": ours, "peer": "exact TC", "peer_s": peer,
                "ratio": peer / ours,
            }
        )  # fmt: skip
    pairs = np.log([row["pairs"] for row in rows])
    slopes = {key: float(np.polyfit(pairs, np.log([row[key] for row in rows]), 1)[0]) for key in ("ours_s", "peer_s")}
    return [*rows, {"name": "exponents of the growth", "ATC": slopes["ours_s"], "exact": slopes["peer_s"]}]


def run() -> list[dict[str, Any]]:
    """Rows {name, ours_s, peer, peer_s, ratio}, ratio > 1 where ATC is faster; then errors by dim, and growth."""
    return [{**row, "threads": threads()} for row in [*on_squirrel(), *growth()]]


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line))
