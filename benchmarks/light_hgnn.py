"""A request for 100 vertices of a random hypergraph: LightHGNN's student against its teacher, HGNN.

Features lie in a memory-mapped file, both sides are warm, in this process, and read what they need: the student 100 rows;
the whole-hypergraph teacher all rows; the teacher of the 2-hop sub-hypergraph, which is the honest peer, what its two layers
reach (in a thick hypergraph that is all of it, so a thin one stands beside). A full pass over all vertices follows, and how a
request grows with the hypergraph.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latticework.core.dataset import open_data
from latticework.layers.hypergraph import HypergraphOperator, incidence, receptive_field, with_singletons
from latticework.layers.propagation import SparseOperator, threads
from latticework.nodes.hyper_baselines import HGNN
from latticework.nodes.light_hgnn import LightStudent

SIZES = (5_000, 11_000, 25_000, 55_000)
THICK, THIN = 39, 4  # largest hyperedge; the smallest has two vertices
FEATURES, CLASSES, TEACHER, STUDENT, ASKED = 128, 8, 32, 128, 100


class Sides:
    """Teacher and student of one random hypergraph (as many hyperedges as vertices, sizes uniform from 2)."""

    def __init__(self, nodes: int, folder: Path, largest: int) -> None:
        recipe = f"random-hypergraph(nodes={nodes}; features={FEATURES}; classes={CLASSES}; largest={largest})"
        graph = open_data(recipe).read()
        path = folder / f"x{nodes}.npy"
        np.save(path, graph.x)
        self.x = np.load(path, mmap_mode="c")
        self.H = with_singletons(incidence(graph.edge_index, graph.nodes, graph.hyperedges))
        self.L = HypergraphOperator(self.H)
        torch.manual_seed(0)
        self.teacher = HGNN(FEATURES, CLASSES, TEACHER).eval()
        self.student = LightStudent(FEATURES, CLASSES, STUDENT).eval()
        self.nodes, self.memberships = nodes, self.H.nnz
        self.V, self.E = self.L.to_vertices.to_scipy(), self.L.to_edges.to_scipy()

    def read(self, rows: np.ndarray | slice) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.x[rows]))

    @torch.no_grad()
    def whole(self, rows: np.ndarray) -> torch.Tensor:
        return self.teacher(self.read(slice(None)), self.L)[torch.from_numpy(rows)]

    @torch.no_grad()
    def reached(self, rows: np.ndarray) -> torch.Tensor:
        """The teacher on what its two layers reach: the same answers, from slices of both products."""
        (_, e0), (v1, e1), (v2, _) = receptive_field(self.H, rows, 2)

        def smooth(x: torch.Tensor, to: np.ndarray, edges: np.ndarray, source: np.ndarray) -> torch.Tensor:
            down = SparseOperator.from_scipy(self.E[edges][:, source])
            up = SparseOperator.from_scipy(self.V[to][:, edges])
            return up @ (down @ x)

        net = self.teacher
        h = torch.relu(smooth(net.first(self.read(v2)), v1, e1, v2) + net.first_bias)
        return smooth(net.second(h), rows, e0, v1) + net.second_bias

    @torch.no_grad()
    def small(self, rows: np.ndarray) -> torch.Tensor:
        return self.student(self.read(rows))

    @torch.no_grad()
    def student_pass(self, _: np.ndarray) -> torch.Tensor:
        return self.student(self.read(slice(None)))


def median(call: Callable[[np.ndarray], Any], asked: list[np.ndarray]) -> float:
    taken = []
    for rows in asked:
        before = time.perf_counter()
        call(rows)
        taken.append(time.perf_counter() - before)
    return float(np.median(taken))


def requests(sides: Sides, rounds: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice(sides.nodes, ASKED, replace=False) for _ in range(rounds)]


def race(sides: Sides, words: str, rounds: int, points: dict[str, list[float]] | None = None) -> list[dict[str, Any]]:
    """Rows of one hypergraph; medians go to `points`."""
    first, asked = requests(sides, 1, seed=1)[0], requests(sides, rounds)
    # the sub-hypergraph is no approximation
    assert torch.allclose(sides.whole(first), sides.reached(first), atol=1e-4)
    seconds = {}
    for name in ("whole", "reached", "small"):
        getattr(sides, name)(first)
        seconds[name] = median(getattr(sides, name), asked * 20 if name == "small" else asked)
        if points is not None:
            points.setdefault(name, []).append(seconds[name])
    share = len(receptive_field(sides.H, asked[0], 2)[-1][0]) / sides.nodes
    facts = {"nodes": sides.nodes, "memberships": sides.memberships, "threads": threads()}
    rows = []
    for name, peer in (("whole", "whole-hypergraph teacher"), ("reached", "2-hop teacher")):
        rows.append(
            {
                "name": f"a request for {ASKED} of {sides.nodes:,} vertices{words}, student against {peer}",
                "ours_s": seconds["small"], "peer": f"HGNN, {peer}", "peer_s": seconds[name],
                "ratio": seconds[name] / seconds["small"], "share of vertices read": share if name == "reached" else 1.0, **facts,
            }
        )  # fmt: skip
    sides.student_pass(first)
    teacher, student = median(sides.whole, asked), median(sides.student_pass, asked)
    rows.append(
        {
            "name": f"a full pass over {sides.nodes:,} vertices{words}, student against teacher", "ours_s": student,
            "peer": "HGNN", "peer_s": teacher, "ratio": teacher / student, **facts,
        }
    )  # fmt: skip
    return rows


def run(rounds: int = 7) -> list[dict[str, Any]]:
    """Rows of one thread: requests and full passes at every size, a thin hypergraph, growth exponents."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    points: dict[str, list[float]] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for nodes in SIZES:
                rows += race(Sides(nodes, Path(folder), THICK), "", rounds, points)
            rows += race(Sides(SIZES[-1], Path(folder), THIN), " of a thin hypergraph", rounds)
    finally:
        torch.set_num_threads(before)
    for name, words in (("whole", "whole-hypergraph teacher"), ("reached", "2-hop teacher"), ("small", "student")):
        slope = float(np.polyfit(np.log(SIZES), np.log(points[name]), 1)[0])
        rows.append({"name": f"growth of a request in vertices: {words}", "exponent": slope, "from": SIZES[0], "to": SIZES[-1]})
    return rows


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line))
