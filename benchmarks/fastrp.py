"""FastRP against DeepWalk (one epoch of gensim's Word2Vec) on BlogCatalog, and how its time grows with the edges.

``LATTICEWORK_DATA=... python benchmarks/fastrp.py`` runs all but the large graph; ``--big`` adds an edge list of ten
million lines and a million nodes, written to a temporary folder, read and embedded. Both sides of a ratio run in this
process with the same number of threads.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from timing import medians, taken

from latticework.layers.propagation import threads
from latticework.layers.walks import random_walks
from latticework.nodes.fastrp import fastrp

DIM = 128
WALKS, LENGTH, WINDOW = 10, 80, 10
GROWTH = (100_000, 300_000, 1_000_000, 3_000_000)


def blogcatalog() -> sp.csr_array | None:
    """BlogCatalog's adjacency, float32, or None where the data folder lacks it."""
    path = Path(os.environ.get("LATTICEWORK_DATA", "/nonexistent")) / "blogcatalog" / "blogcatalog.npz"
    if not path.exists():
        return None
    with np.load(path) as z:
        edges, n = z["edge_index"], int(z["y_shape"][0])
    return undirected(edges, n)


def undirected(edges: np.ndarray, n: int) -> sp.csr_array:
    """Each edge [2, m] both ways, weight 1."""
    both = np.concatenate([edges, edges[::-1]], axis=1)
    return sp.csr_array((np.ones(both.shape[1], np.float32), (both[0], both[1])), shape=(n, n))


def uniform(nnz: int, seed: int = 0) -> sp.csr_array:
    """An undirected random graph of about ``nnz`` non-zeros, twenty to a node."""
    n = nnz // 20
    return undirected(np.random.default_rng(seed).integers(0, n, (2, nnz // 2)), n)


def deepwalk(A: sp.csr_array, dim: int = DIM, share: float = 1.0) -> float:
    """Seconds of walks and one epoch of skip-gram on a ``share`` of them, scaled up to all; gensim, negative sampling."""
    from gensim.models import Word2Vec

    start = time.perf_counter()
    walks = random_walks(A.indptr, A.indices, WALKS, LENGTH, np.random.default_rng(0))
    walking = time.perf_counter() - start
    chosen = np.random.default_rng(1).permutation(len(walks))[: max(1, int(share * len(walks)))]
    sentences = [[str(node) for node in walk if node >= 0] for walk in walks[chosen]]
    model = Word2Vec(vector_size=dim, window=WINDOW, min_count=0, sg=1, workers=threads(), epochs=1, seed=0)
    model.build_vocab(sentences)
    start = time.perf_counter()
    model.train(sentences, total_examples=len(sentences), epochs=1)
    return walking + (time.perf_counter() - start) / share


def against_deepwalk(share: float = 1.0) -> list[dict[str, Any]]:
    A = blogcatalog()
    name = f"embed BlogCatalog, dim {DIM}"
    if A is None:
        return [{"name": name, "note": "blogcatalog is not in LATTICEWORK_DATA"}]
    ours = taken(lambda: fastrp(A, DIM), 5)
    rows: list[dict[str, Any]] = []
    peer = "gensim Word2Vec, one epoch of DeepWalk"
    if importlib.util.find_spec("gensim") is None:
        rows.append({"name": name, "ours_s": ours, "peer": peer, "note": "gensim is not installed"})
    else:
        seconds = deepwalk(A, share=share)
        row = {"name": name, "ours_s": ours, "peer": peer, "peer_s": seconds, "ratio": seconds / ours}
        rows.append(row if share == 1 else {**row, "note": f"scaled from {share:g} of the walks"})
    peer = "scikit-network RandomProjection"
    if importlib.util.find_spec("sknetwork") is None:
        rows.append({"name": name, "ours_s": ours, "peer": peer, "note": "scikit-network is not installed"})
    else:
        from sknetwork.embedding import RandomProjection

        # its three iterations stand beside our four orders
        matrix = sp.csr_matrix(A)
        seconds = taken(lambda: RandomProjection(n_components=DIM, n_iter=3).fit(matrix), 3)
        rows.append({"name": name, "ours_s": ours, "peer": peer, "peer_s": seconds, "ratio": seconds / ours})
    return rows


def growth(rounds: int = 5) -> list[dict[str, Any]]:
    """Seconds by non-zeros and the exponent by which they grow (log-log slope)."""
    graphs = [uniform(nnz) for nnz in GROWTH]
    seconds = list(medians({str(A.nnz): lambda A=A: fastrp(A, DIM) for A in graphs}, rounds).values())  # type: ignore[misc]
    rows: list[dict[str, Any]] = [
        {"name": f"embed {A.nnz} non-zeros, dim {DIM}", "nnz": A.nnz, "ours_s": s} for A, s in zip(graphs, seconds, strict=True)
    ]
    slope = float(np.polyfit(np.log([A.nnz for A in graphs]), np.log(seconds), 1)[0])
    return [*rows, {"name": "growth in non-zeros", "exponent": slope, "from": GROWTH[0], "to": GROWTH[-1]}]


def big(nodes: int = 1_000_000, edges: int = 10_000_000) -> list[dict[str, Any]]:
    """An edge list from a CSV file to vectors: reading, embedding, and the process's peak memory."""
    import polars as pl

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edges.csv"
        drawn = np.random.default_rng(0).integers(0, nodes, (2, edges), dtype=np.int32)
        pl.DataFrame({"source": drawn[0], "target": drawn[1]}).write_csv(path)
        del drawn
        start = time.perf_counter()
        table = pl.read_csv(path, schema={"source": pl.Int32, "target": pl.Int32})
        A = undirected(np.stack([table["source"].to_numpy(), table["target"].to_numpy()]), nodes)
        del table
        reading = time.perf_counter() - start
    start = time.perf_counter()
    U = fastrp(A, DIM)
    embedding = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    name = f"embed {nodes} nodes, {edges} edges from CSV, dim {DIM}"
    return [
        {
            "name": name,
            "read_s": reading,
            "ours_s": embedding,
            "peak_bytes": peak,
            "vector_bytes": U.nbytes,
            "graph_bytes": A.data.nbytes + A.indices.nbytes + A.indptr.nbytes,
        }
    ]


def run(share: float = 1.0, large: bool = False) -> list[dict[str, Any]]:
    """Rows {name, ours_s, peer, peer_s, ratio}, ratio > 1 where ours is faster, and growth rows; ``large`` adds the CSV."""
    rows = [*against_deepwalk(share), *growth(), *(big() if large else [])]
    return [{**row, "threads": threads()} for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--big", action="store_true", help="also a million nodes and ten million edges from a CSV file")
    parser.add_argument("--share", type=float, default=1.0, help="share of the walks that gensim learns from, scaled up")
    given = parser.parse_args()
    for line in run(given.share, given.big):
        print(json.dumps(line))
