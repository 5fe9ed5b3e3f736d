"""A block over the nodes of a graph, forward and backward, against full attention of equal width: time and peak memory by nodes."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import taken
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from latticework.core.dataset import open_data
from latticework.graphs.graph_mamba.network import FullAttention
from latticework.graphs.graph_mamba.tokens import csr_of, tokenise
from latticework.layers.selective_scan import BidirectionalMamba

WIDTH, STATES, HEADS = 64, 16, 4
NODES = (256, 512, 1024, 2048, 4096, 8192)
WITH_MATRIX = 4096  # nodes up to which attention with its matrix is run: at 8,192 that takes gigabytes
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of(work: Callable[[], Any]) -> float | None:
    """The most bytes that the process held while at work beyond those before; none where the system does not say (not Linux)."""
    if not CLEAR.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that it is counted again when it is needed
    CLEAR.write_text("5")  # the high-water mark is what is held now
    before = _held("VmRSS")
    work()
    return max(_held("VmHWM") - before, 1.0)


def _held(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024.0 * int(line.split()[1])


def training(block: nn.Module, nodes: int, kernel: SDPBackend | None = None) -> Callable[[], None]:
    x = torch.randn(1, nodes, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def work() -> None:
        if kernel is None:
            block(x).square().sum().backward()
        else:
            with sdpa_kernel(kernel):
                block(x).square().sum().backward()

    return work


def run() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scan, attention = BidirectionalMamba(WIDTH, STATES), FullAttention(WIDTH, HEADS)
    rows: list[dict[str, Any]] = []
    faster: dict[str, list[int]] = {"matrix": [], "flash": []}
    for nodes in NODES:
        times = 3 if nodes < 4096 else 1
        ours, peak = taken(training(scan, nodes), times), peak_of(training(scan, nodes))
        rows.append({"name": f"growth of the scan, {nodes:,} nodes", "nodes": nodes, "ours_s": ours})
        for form, kernel in (("matrix", SDPBackend.MATH), ("flash", SDPBackend.FLASH_ATTENTION)):
            if form == "matrix" and nodes > WITH_MATRIX:
                continue
            work = training(attention, nodes, kernel)
            theirs, other = taken(work, times), peak_of(work)
            words = "attention with its matrix" if form == "matrix" else "attention without its matrix"
            rows.append({"name": f"growth of {words}, {nodes:,} nodes", "nodes": nodes, "peer_s": theirs})
            row = {
                "name": f"time against {words}, {nodes:,} nodes", "nodes": nodes, "ours_s": ours, "peer": words, "peer_s": theirs,
                "ratio": theirs / ours,
            }  # fmt: skip
            rows.append(row)
            if theirs > ours:
                faster[form].append(nodes)
            if peak and other:
                rows.append({
                    "name": f"peak memory against {words}, {nodes:,} nodes", "nodes": nodes, "ours_mb": peak / 2**20, "peer": words,
                    "peer_mb": other / 2**20, "ratio": other / peak,
                })  # fmt: skip
    for form, found in faster.items():
        rows.append({"name": f"crossover: nodes from which the scan is faster, {form}", "nodes": min(found, default=None)})
    return rows + tokens()


def tokens() -> list[dict[str, Any]]:
    """Walks of a whole graph, as they are drawn anew in every epoch."""
    try:
        graph: Any = open_data("heterophilous:minesweeper").read()
        name = "Minesweeper"
    except Exception:  # without the mirror
        graph, name = open_data("karate").read(), "the karate club"
    indptr, indices = csr_of(graph.edge_index, graph.nodes)
    rows = []
    for length in (1, 3, 6):
        seconds = taken(lambda length=length: tokenise(indptr, indices, length, 4, 2, np.random.default_rng(0)))
        rows.append({
            "name": f"tokens of {name}, walks of up to {length}", "walk_length": length, "ours_s": seconds,
            "tokens_per_s": graph.nodes * (2 * length + 1) / seconds,
        })  # fmt: skip
    return rows
