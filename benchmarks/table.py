"""A ten-million-edge CSV read, checked and turned into CSR, against polars and scipy without any check."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sp

from latticework.data.graph import read_graph
from latticework.layers.propagation import adjacency


def run(nodes: int = 1_000_000, edges: int = 10_000_000) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edges.csv"
        drawn = np.random.default_rng(0).integers(0, nodes, (2, edges))
        pl.DataFrame({"source": drawn[0], "target": drawn[1]}).write_csv(path)
        before = time.perf_counter()
        graph = read_graph(path)
        reading = time.perf_counter() - before
        A = adjacency(graph.edge_index, graph.nodes)
        ours = time.perf_counter() - before
        before = time.perf_counter()
        frame = pl.read_csv(path)
        codes, ids = frame["source"].to_numpy(), frame["target"].to_numpy()
        B = sp.coo_array((np.ones(len(codes)), (codes, ids)), shape=(nodes, nodes)).tocsr()
        peer = time.perf_counter() - before
    assert A.nnz == B.nnz
    return [
        {
            "name": f"{edges} edges from CSV to CSR, checked", "ours_s": ours, "reading_s": reading,
            "peer": "polars and scipy, ids taken for row numbers, nothing checked", "peer_s": peer, "ratio": peer / ours,
        }
    ]  # fmt: skip
