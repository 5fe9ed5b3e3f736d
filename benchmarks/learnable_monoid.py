"""A star and a power-law graph folded by the learned monoid against a GRU, PyG's padded class and a sum; its growth with a set's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import taken
from torch import Tensor, nn
from torch_geometric.nn.aggr import LCMAggregation, SumAggregation

from latticework.graphs.learnable_monoid import BinaryGRU, LearnableMonoid, RecurrentAggregation

WIDTH = 16


class CellByCell(nn.Module):
    """The recurrent aggregator as it is written down: one call of a GRU cell an element, the destinations that have ended left out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)

    def forward(self, x: Tensor, index: Tensor, dim_size: int) -> Tensor:
        counts = torch.bincount(index, minlength=dim_size)
        start = counts.cumsum(0) - counts
        order = torch.argsort(index, stable=True)
        h, live = x.new_zeros(dim_size, x.shape[1]), torch.arange(dim_size)
        for t in range(int(counts.max())):
            live = live[counts[live] > t]
            h = h.index_copy(0, live, self.cell(x[order[start[live] + t]], h[live]))
        return h


def step(aggregate: nn.Module, x: Tensor, index: Tensor, n: int) -> Callable[[], None]:
    """Forward and backward through an aggregator, to its parameters and to the messages."""

    def work() -> None:
        messages = x.detach().requires_grad_()
        aggregate(messages, index, dim_size=n).square().sum().backward()

    return work


def saved(aggregate: nn.Module, x: Tensor, index: Tensor, n: int) -> int:
    """Bytes of the tensors that a forward call keeps for the backward one, each storage once."""
    held: dict[int, int] = {}
    keep: list[Tensor] = []  # so that no storage is freed and its address used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        keep.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = aggregate(x.detach().requires_grad_(), index, dim_size=n)
    del out
    return sum(held.values())


def power_law(n: int, most: int, exponent: float, seed: int = 0) -> Tensor:
    """Destinations int64 [E], sorted: degrees 1 to `most` with P(d) ~ d^-exponent, the largest there once."""
    degrees = np.arange(1, most + 1)
    chance = degrees**-exponent
    drawn = np.random.default_rng(seed).choice(degrees, n, p=chance / chance.sum())
    drawn[0] = most
    return torch.arange(n).repeat_interleave(torch.from_numpy(drawn))


def calls(monoid: LearnableMonoid, x: Tensor, index: Tensor) -> int:
    """How often the operator is called, one call after another."""
    found = 0

    def count(*_: Any) -> None:
        nonlocal found
        found += 1

    hook = monoid.op.register_forward_hook(count)
    monoid(x, index)
    hook.remove()
    return found


def run() -> list[dict[str, Any]]:
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    monoid, cells, kernel = (
        LearnableMonoid(WIDTH, WIDTH, project=False),
        CellByCell(WIDTH),
        RecurrentAggregation(WIDTH, WIDTH, project=False),
    )

    # a star
    leaves = 4096
    x, index = torch.randn(leaves, WIDTH), torch.zeros(leaves, dtype=torch.int64)
    ours = taken(step(monoid, x, index, 1))
    for name, peer, aggregate in (
        ("a star of 4,096 leaves, forward and backward", "a GRU cell along the leaves", cells),
        ("the same star against the GRU kernel", "torch.nn.GRU", kernel),
        ("the same star against a sum", "a sum", SumAggregation()),
    ):
        theirs = taken(step(aggregate, x, index, 1))
        rows.append({"name": name, "ours_s": ours, "peer": peer, "peer_s": theirs, "ratio": theirs / ours})

    # ragged against padded
    n, most = 10_000, 1000
    index = power_law(n, most, 2.5)
    x = torch.randn(len(index), WIDTH)
    padded = LCMAggregation(WIDTH, WIDTH, project=False)
    assert isinstance(monoid.op, BinaryGRU)
    padded.gru_cell.load_state_dict(monoid.op.cell.state_dict())
    ours, mine = taken(step(monoid, x, index, n)), saved(monoid, x, index, n)
    # the hub alone makes the padded class fold 1,000 rows a node: a twentieth of the nodes, not scaled up, is enough to see it
    share = n // 20
    few = index[index < share]
    theirs = taken(step(padded, x[: len(few)], few, share), 1)
    size = saved(padded, x[: len(few)], few, share)
    peer = {"peer": f"PyG's padded class on the first {share} nodes alone, the hub among them"}
    rows.append({
        "name": "10,000 nodes of power-law degrees up to 1,000, forward and backward", "ours_s": ours, **peer, "peer_s": theirs,
        "ratio": theirs / ours, "edges": len(index),
    })  # fmt: skip
    rows.append({
        "name": "bytes kept for the backward call, the same graph", "ours_bytes": mine, **peer, "peer_bytes": size, "ratio": size / mine,
    })  # fmt: skip
    theirs = taken(step(SumAggregation(), x, index, n))
    rows.append(
        {"name": "the same graph against a sum", "ours_s": ours, "peer": "a sum", "peer_s": theirs, "ratio": theirs / ours}
    )

    # growth with the size of one set
    for size in (16, 64, 256, 1024, 4096):
        x, index = torch.randn(size, WIDTH), torch.zeros(size, dtype=torch.int64)
        ours, theirs = taken(step(monoid, x, index, 1)), taken(step(cells, x, index, 1), 1)
        rows.append({
            "name": f"growth: one set of {size} elements", "elements": size, "ours_s": ours, "peer": "a GRU cell along the elements",
            "peer_s": theirs, "ratio": theirs / ours, "depth": calls(monoid, x, index),
        })  # fmt: skip
    return rows
