"""GRADCO: all 28 orbit adjacencies, streamed: against enumeration, the published wheel and ORCA, and growth with the edges.

The wheel (``gradco``, not a dependency: its licence is non-commercial) and ``orca-graphlets`` are installed by pip into an
environment of their own, in a temporary folder, and run there as another process that times itself; without them their rows
say why they are missing. Peers and ours run on one thread; the two graphs of about 20,000 nodes on as many as torch has.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import scipy.sparse as sp
import torch
from timing import taken

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.run import peak_bytes, reset_peak
from latticework.layers.propagation import threads
from latticework.nodes.gradco.counts import FAR, ORBITS, OrbitCounts
from latticework.nodes.gradco.definition import orbits_by_definition
from latticework.nodes.gradco.method import simple_adjacency

SMALL = 200
PEERS = 5_000
GROWTH = (2_500, 5_000, 10_000, 20_000)

GRADCO = """
import json, sys, time
import scipy.sparse as sp
import gradco
A = sp.load_npz(sys.argv[1])
start = time.perf_counter()
counter = gradco.Counter(A)
counter.count()
found = [[int(h), int(a), int(b), int(M.nnz), int(M.sum())] for h, a, b, M in counter.generate_orbit_adjacencies()]
taken = time.perf_counter() - start
print("\\n" + json.dumps({"seconds": taken, "found": found}))
"""
ORCA = """
import json, sys, time
import numpy as np, scipy.sparse as sp
from orca import orca_nodes
A = sp.load_npz(sys.argv[1])
edges = np.argwhere(sp.triu(A).toarray())
start = time.perf_counter()
found = orca_nodes(edges, num_nodes=A.shape[0], graphlet_size=4)
taken = time.perf_counter() - start
print("\\n" + json.dumps({"seconds": taken, "found": np.asarray(found).tolist()}))
"""


def preferential(n: int, m: int = 10) -> sp.csr_array:
    return sp.csr_array(nx.to_scipy_sparse_array(nx.barabasi_albert_graph(n, m, seed=0), dtype=np.int64))


def everything(A: sp.csr_array, orbits: Any = ORBITS) -> dict[Any, list[int]]:
    """Entries and sum of each matrix; no matrix is kept."""
    totals = {orbit: [0, 0] for orbit in orbits}
    for _, found in OrbitCounts(A).blocks(orbits):
        for orbit, block in found.items():
            totals[orbit][0] += block.nnz
            totals[orbit][1] += int(block.sum())
    return totals


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def against_enumeration() -> list[dict[str, Any]]:
    A = preferential(SMALL)
    orbits_by_definition(A[:10][:, :10])
    expected, counts = {}, OrbitCounts(A)
    peer = taken(lambda: expected.update(orbits_by_definition(A)), 1, warm=False)
    ours = taken(lambda: everything(A), 9)
    equal = all(np.array_equal(m.toarray(), expected[o]) for o, m in counts.matrices().items())
    name = f"all 28 against enumeration, {SMALL} nodes"
    return [{"name": name, "ours_s": ours, "peer": "numba enumeration", "peer_s": peer, "ratio": peer / ours, "equal": equal}]


def environment(folder: Path) -> tuple[Path | None, str]:
    """The Python of a fresh environment with the peers, or why there is none."""
    try:
        venv.create(folder, with_pip=True)
        python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        words = [python, "-m", "pip", "install", "-q", "gradco", "orca-graphlets"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"no environment of their own: {error}"
    return (python, "") if done.returncode == 0 else (None, f"pip cannot install it: {done.stderr.strip().splitlines()[-1]}")


def peer_run(python: Path, code: str, A: sp.csr_array, folder: Path) -> dict[str, Any]:
    sp.save_npz(folder / "A.npz", A)
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", code, folder / "A.npz"], capture_output=True, text=True, timeout=600, env=quiet, cwd=folder
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def against_peers() -> list[dict[str, Any]]:
    names = [f"all 28 against the gradco wheel, {PEERS} nodes", "graphlet degrees against ORCA in Python, 1000 nodes"]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        python, reason = environment(folder / "peers")
        if python is None:
            return [{"name": name, "note": reason} for name in names]
        A, totals = preferential(PEERS), everything(preferential(PEERS))
        ours = taken(lambda: everything(A), 1, warm=False)
        rows = [_row(names[0], ours, "gradco 0.1.8", python, GRADCO, A, folder)]
        if "found" in rows[0]:
            rows[0]["equal totals"] = {(h, a, b): [k, total] for h, a, b, k, total in rows[0].pop("found")} == totals
        A = preferential(1_000)
        ours = taken(lambda: OrbitCounts(A).node_orbits(), 3)
        rows.append(_row(names[1], ours, "orca-graphlets", python, ORCA, A, folder))
        if "found" in rows[1]:
            rows[1]["equal"] = np.array_equal(rows[1].pop("found"), OrbitCounts(A).node_orbits())
    return rows


def _row(name: str, ours: float, peer: str, python: Path, code: str, A: sp.csr_array, folder: Path) -> dict[str, Any]:
    try:
        found = peer_run(python, code, A, folder)
    except (RuntimeError, subprocess.SubprocessError) as error:
        return {"name": name, "ours_s": ours, "note": f"{peer} did not run: {error}"}
    return {
        "name": name, "ours_s": ours, "peer": peer, "peer_s": found["seconds"], "ratio": found["seconds"] / ours, "found": found["found"],
    }  # fmt: skip


def large() -> list[dict[str, Any]]:
    """Two graphs of about 20,000 nodes, and one whose hubs join nearly all at distance two: seconds, the process's peak memory."""
    rows: list[dict[str, Any]] = []
    near = [orbit for orbit in ORBITS if orbit != FAR]
    cases = [("musae-facebook", ORBITS), ("barabasi-albert(nodes=20000; edges=10)", ORBITS), ("blogcatalog", near)]
    for data, orbits in cases:
        name = f"{'all 28' if orbits is ORBITS else 'all but 3:4-4'}, {data}"
        try:
            graph = open_data(data).read()
        except UserError as error:
            rows.append({"name": name, "note": str(error)})
            continue
        A = simple_adjacency(graph.edge_index, graph.nodes)[0]
        totals: dict[Any, list[int]] = {}
        reset_peak()
        with contextlib.nullcontext() if orbits is ORBITS else one_thread():
            ours = taken(lambda A=A, o=orbits, totals=totals: totals.update(everything(A, o)), 1, warm=False)
            used = threads()
        entries = sum(k for k, _ in totals.values())
        row = {
            "name": name,
            "nodes": graph.nodes,
            "edges": A.nnz // 2,
            "ours_s": ours,
            "peak_bytes": peak_bytes(),
            "entries": entries,
        }
        rows.append({**row, "threads": used})
    return rows


def growth() -> list[dict[str, Any]]:
    """Seconds by edges, twenty to a node: all 28, and all but 3:4-4, which fills up with the square of the nodes."""
    rows: list[dict[str, Any]] = []
    for n in GROWTH:
        A = preferential(n)
        for name, orbits in (("growth of all 28", ORBITS), ("growth without 3:4-4", [o for o in ORBITS if o != FAR])):
            ours = taken(lambda A=A, o=orbits: everything(A, o), 1, warm=False)  # type: ignore[misc]
            rows.append({"name": name, "nodes": n, "edges": A.nnz // 2, "ours_s": ours})
    return rows


def run() -> list[dict[str, Any]]:
    everything(preferential(50))  # compiled before anything is timed
    OrbitCounts(preferential(50)).node_orbits()
    with one_thread():
        rows = [{**row, "threads": 1} for row in (*against_enumeration(), *against_peers())]
    return [*rows, *large(), *({**row, "threads": threads()} for row in growth())]


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line), file=sys.stdout, flush=True)
