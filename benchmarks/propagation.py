"""Propagation ``S X`` against what a user would pick instead: PyG's message passing and torch's sparse CSR product.

Every figure is a ratio of medians over alternating rounds in one process: all rivals run in each round, so that a slow
spell of the machine falls on all. Run it with the threads that are to be compared, say
``OMP_NUM_THREADS=2 NUMBA_NUM_THREADS=2 python benchmarks/propagation.py``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import medians, timed
from torch import Tensor

from latticework.layers.propagation import SparseOperator, adjacency, normalise, threads

NODES, EDGES, WIDTH, ROUNDS = 100_000, 1_000_000, 64, 15
GROWTH = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)


def uniform(n: int, m: int, seed: int = 0) -> np.ndarray:
    """``m`` arcs between uniform random nodes, int64 [2, m]."""
    return np.random.default_rng(seed).integers(0, n, (2, m))


def power_law(n: int, m: int, seed: int = 0, exponent: float = 0.75) -> np.ndarray:
    """``m`` arcs whose ends are drawn by ``rank^-exponent``, ranks spread at random over the nodes, int64 [2, m]."""
    rng = np.random.default_rng(seed)
    reach = np.cumsum(np.arange(1, n + 1) ** -exponent)
    name = rng.permutation(n)
    return np.stack([name[np.searchsorted(reach, rng.random(m) * reach[-1])] for _ in range(2)])


def operator(edges: np.ndarray, n: int) -> SparseOperator:
    """Random-walk normalised, so that the transpose is another matrix and has to be multiplied by too."""
    return SparseOperator.from_scipy(normalise(adjacency(edges, n), "row"), np.float32)


def rivals(S: SparseOperator, X: Tensor, backward: bool) -> dict[str, Callable[[], object]]:
    """Ours, PyG's message passing over an edge list with weights, torch's CSR product; each checked against ours."""
    from torch_geometric.nn import SimpleConv

    coo = S.to_scipy().tocoo()
    edge_index = torch.from_numpy(np.stack([coo.col, coo.row]).astype(np.int64))
    weight = torch.from_numpy(coo.data)
    conv, csr = SimpleConv(aggr="sum"), S.to_torch()
    forward: dict[str, Callable[[Tensor], Tensor]] = {
        "latticework": lambda x: S @ x,
        "PyG message passing": lambda x: conv(x, edge_index, weight),
        "torch CSR": lambda x: csr @ x,
    }
    expected = forward["latticework"](X)
    for name, call in forward.items():
        if not torch.allclose(call(X), expected, atol=1e-4):
            raise RuntimeError(f"{name} gives another product")
    if not backward:
        return {name: lambda call=call: call(X) for name, call in forward.items()}
    gradient = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))

    def both(call: Callable[[Tensor], Tensor]) -> Tensor:
        x = X.detach().requires_grad_()
        call(x).backward(gradient)
        assert x.grad is not None
        return x.grad

    expected = both(forward["latticework"])
    for name, call in forward.items():
        if not torch.allclose(both(call), expected, atol=1e-4):
            raise RuntimeError(f"{name} gives another gradient")
    return {name: lambda call=call: both(call) for name, call in forward.items()}


def compare(name: str, edges: np.ndarray, n: int, backward: bool, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    S = operator(edges, n)
    X = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))
    found = medians(rivals(S, X, backward), rounds)
    ours = found.pop("latticework")
    return [{"name": name, "ours_s": ours, "peer": peer, "peer_s": s, "ratio": s / ours} for peer, s in found.items()]


def growth(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Seconds by number of edges, ten to a node, and the exponent by which they grow (log-log slope).

    Here the best round counts: a thread that waits for its turn on a busy machine costs small graphs many times their work.
    """
    rows, seconds = [], []
    for m in GROWTH:
        n = m // 10
        S = operator(uniform(n, m), n)
        X = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))
        csr = S.to_torch()
        taken = timed({"ours": lambda S=S, X=X: S @ X, "torch": lambda csr=csr, X=X: csr @ X}, rounds)
        found = {name: min(values) for name, values in taken.items()}
        seconds.append(found["ours"])
        row = {"name": f"forward, {m} edges", "ours_s": found["ours"], "peer": "torch CSR", "peer_s": found["torch"]}
        rows.append({**row, "ratio": found["torch"] / found["ours"]})
    slope = float(np.polyfit(np.log(GROWTH), np.log(seconds), 1)[0])
    rows.append({"name": "growth in edges", "exponent": slope, "from": GROWTH[0], "to": GROWTH[-1]})
    return rows


def run(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """All comparisons; rows {name, ours_s, peer, peer_s, ratio}, ratio > 1 where ours is faster, and a growth row."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        rows = []
        for kind, make in (("uniform", uniform), ("power law", power_law)):
            edges = make(NODES, EDGES)
            for backward in (False, True):
                name = f"{'forward and backward' if backward else 'forward'}, {kind}"
                rows += compare(name, edges, NODES, backward, rounds)
        rows += growth()
    return [{**row, "threads": threads()} for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    for line in run(parser.parse_args().rounds):
        print(json.dumps(line))
