"""The latest neighbours of every node in a stream of events: a ring of fixed length a node, kept without a loop over events."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class RecentNeighbours:
    """For each node its latest `size` (neighbour, time, payload), newest first.

    A batch of events is taken in at once, each for both of its ends (a self-loop once), in the order given; within a batch
    the later event counts as the newer. Memory: ``nodes * size * (2 + payload)`` numbers, whatever the number of events.
    Ids int64, times float64, payload float32. Nodes beyond `nodes` make the tables grow.
    """

    def __init__(self, nodes: int, size: int, payload: int = 0, device: str | torch.device = "cpu") -> None:
        if size < 1:
            raise ValueError(f"at least one neighbour is kept a node, not {size}")
        self.size = size
        self.neighbour = torch.full((nodes, size), -1, dtype=torch.int64, device=device)
        self.time = torch.zeros((nodes, size), dtype=torch.float64, device=device)
        self.payload = torch.zeros((nodes, size, payload), device=device)
        self.seen = torch.zeros(nodes, dtype=torch.int64, device=device)  # entries ever put in a node's ring

    @property
    def nodes(self) -> int:
        return len(self.seen)

    def grow(self, nodes: int) -> None:
        """Empty rings up to `nodes` nodes."""
        more = nodes - self.nodes
        if more <= 0:
            return

        def longer(table: Tensor, fill: int = 0) -> Tensor:
            return torch.cat([table, table.new_full((more, *table.shape[1:]), fill)])

        self.neighbour, self.time = longer(self.neighbour, -1), longer(self.time)
        self.payload, self.seen = longer(self.payload), longer(self.seen)

    def insert(self, src: Tensor, dst: Tensor, t: Tensor, payload: Tensor | None = None) -> None:
        """Take in events (src, dst int64 [m], t float64 [m], payload float32 [m, P]), the oldest first."""
        if not len(src):
            return
        self.grow(int(torch.maximum(src.max(), dst.max())) + 1)
        # both ends, kept in the order of the events; a self-loop is one entry
        owner, other = torch.stack([src, dst], 1).ravel(), torch.stack([dst, src], 1).ravel()
        event = torch.arange(len(src), device=src.device).repeat_interleave(2)
        keep = torch.ones(len(owner), dtype=torch.bool, device=src.device)
        keep[1::2] = src != dst
        owner, other, event = owner[keep], other[keep], event[keep]
        order = torch.argsort(owner, stable=True)
        owner, other, event = owner[order], other[order], event[order]
        nodes, count = torch.unique_consecutive(owner, return_counts=True)
        start = torch.repeat_interleave(torch.cumsum(count, 0) - count, count)
        rank = torch.arange(len(owner), device=src.device) - start  # of an entry among its node's entries of this batch
        last = rank >= torch.repeat_interleave(count, count) - self.size  # older ones would be written over in this batch
        place = (self.seen[owner] + rank)[last] % self.size
        owner, other, event = owner[last], other[last], event[last]
        self.neighbour[owner, place] = other
        self.time[owner, place] = t.to(torch.float64)[event]
        if payload is not None:
            self.payload[owner, place] = payload.detach().to(self.payload.dtype)[event]
        self.seen[nodes] += count

    def latest(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(neighbour int64 [q, size], -1 where there is none; time float64 [q, size]; payload [q, size, P]), newest first.

        A node that the tables do not know has no neighbours.
        """
        known = nodes < self.nodes
        rows = torch.where(known, nodes, 0) if self.nodes else torch.zeros_like(nodes)
        if not self.nodes:
            q = len(nodes)
            empty = self.neighbour.new_full((q, self.size), -1)
            return empty, self.time.new_zeros((q, self.size)), self.payload.new_zeros((q, self.size, self.payload.shape[2]))
        back = torch.arange(1, self.size + 1, device=nodes.device)
        place = (self.seen[rows][:, None] - back) % self.size
        neighbour = torch.where(known[:, None], self.neighbour[rows[:, None], place], -1)
        return neighbour, self.time[rows[:, None], place], self.payload[rows[:, None], place]

    def state(self) -> dict[str, Tensor]:
        return {"neighbour": self.neighbour, "time": self.time, "payload": self.payload, "seen": self.seen}

    def load(self, state: Mapping[str, Tensor]) -> None:
        device = self.seen.device
        for name in ("neighbour", "time", "payload", "seen"):
            setattr(self, name, state[name].to(device).clone())
