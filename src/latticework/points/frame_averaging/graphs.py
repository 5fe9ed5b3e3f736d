"""Frames of S_n around a network of PyG batches: nodes are numbered in the order of their spectral keys (GIN+ID)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.common.graph_batches import Packed
from latticework.layers.frames import Sn, distinct_orderings, frame_size
from latticework.layers.hashing import uniform

LISTED = 3_000_000  # numbers of all framed adjacencies, beyond which a graph's orderings are drawn


def add_frames(graphs: Sequence[Any], group: Sn) -> list[Any]:
    """New PyG graphs with what `FramedGraphs` reads; the given ones stay as they are.

    `frame_rank` int64 [n]: the nodes' ranks by key (features, where there are some, among them); `frame_copies` int64 [1]: how many framed
    graphs are listed, 0 where the frame is too large; `frame_places` int64 [copies n]: the place of each node in each of them. Graphs
    of one size are decomposed together. An edge list is taken as it is: one that lacks reverses makes a directed A, whose keys are
    those of ``(A + A^T)/2``.
    """
    made = [copy.copy(g) for g in graphs]
    sizes = np.array([int(g.num_nodes or 0) for g in made], np.int64)
    for n in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == n)
        if n == 0:
            for r in rows:
                _hold(made[r], np.zeros(0, np.int64), np.zeros((0, 0), np.int64))
            continue
        for some in np.array_split(rows, max(1, len(rows) * n * n // 2_000_000)):
            A = np.zeros((len(some), n, n))
            for place, r in enumerate(some):
                u, v = made[r].edge_index.numpy()
                np.add.at(A[place], (u, v), 1.0)
            held = [made[r].get("x") for r in some]
            x = None if any(v is None for v in held) else torch.stack(held)
            ranks = group.ranks(torch.from_numpy(A), x)
            for place, r in enumerate(some):
                orders = np.zeros((0, n), np.int64)
                if frame_size(ranks[place]) * n * n <= LISTED:
                    seen = None if x is None else x[place].double().numpy()
                    edges = _edge_marks(made[r], A[place])
                    orders = distinct_orderings(ranks[place], edges, seen, LISTED)
                _hold(made[r], ranks[place], orders)
    return made


def _edge_marks(graph: Any, A: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A where the edges have no features; else a number for each different collection of edges between two nodes."""
    features = graph.get("edge_attr")
    if features is None or not len(features):
        return A
    _, kind = np.unique(features.double().numpy().reshape(len(features), -1), axis=0, return_inverse=True)
    counts = np.zeros((len(A), len(A), int(kind.max()) + 1), np.int64)
    u, v = graph.edge_index.numpy()
    np.add.at(counts, (u, v, kind.ravel()), 1)
    _, marks = np.unique(counts.reshape(len(A) ** 2, -1), axis=0, return_inverse=True)
    return np.asarray(marks.reshape(A.shape))


def _hold(graph: Any, ranks: np.ndarray[Any, Any], orders: np.ndarray[Any, Any]) -> None:
    n = int(graph.num_nodes or 0)
    graph.num_nodes = n
    graph.frame_rank = torch.from_numpy(ranks)
    graph.frame_copies = torch.tensor([len(orders)])
    graph.frame_places = torch.from_numpy(np.ascontiguousarray(orders.argsort(1)).reshape(-1))


def draw_places(rank: Tensor, graph: Tensor, ptr: Tensor, number: Tensor | None = None) -> Tensor:
    """One ordering for each graph of a batch, uniform in its frame: the place int64 [N] of each node; rank and graph number [N].

    With the `number` [G] of each graph's draw, the draw is the graph's own, the same in every batch; else torch's generator draws.
    """
    if number is None:
        u = torch.rand(len(rank), dtype=torch.float64)
    else:
        within = torch.arange(len(rank), device=ptr.device) - ptr[graph]
        u = torch.from_numpy(uniform(number.cpu()[graph.cpu()].numpy(), within.cpu().numpy()))
    order = u.to(rank.device).argsort(stable=True)
    order = order[rank[order].argsort(stable=True)]
    order = order[graph[order].argsort(stable=True)]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places - ptr[graph]


class FramedGraphs(nn.Module):
    """``encode(batch)``: the mean over orderings of the backbone's vectors, with each node's place as one-hot columns beside its x.

    Places beyond `positions` share the last column. While training `train_samples` orderings are drawn (none: as in answering); in
    answering all of the frame, where it is listed, else `draws` of it; or `samples` draws, where that is set. Input: batches of graphs
    from `add_frames`.
    """

    def __init__(self, net: nn.Module, positions: int, draws: int = 8, train_samples: int | None = 1) -> None:
        super().__init__()
        self.net, self.positions, self.draws, self.train_samples = net, positions, draws, train_samples
        self.samples: int | None = None
        self.own_draws = False  # whether a graph's draws are its own, whatever it is asked with; else torch's generator draws

    def encode(self, batch: Any) -> Tensor:
        G = int(batch.num_graphs)
        k = self.train_samples if self.training and self.train_samples is not None else self.samples
        own = self.own_draws and not self.training
        if k == 1:
            once = copy.copy(batch)
            number = torch.zeros(G, dtype=torch.int64) if own else None
            once.x = self._placed(batch.x, draw_places(batch.frame_rank, batch.batch, batch.ptr, number))
            z: Tensor = self.net.encode(once)
            return z
        listed = batch.frame_copies.view(-1)
        whole = (listed > 0) if k is None else (listed > 0) & (listed <= k)
        copies = torch.where(whole, listed, torch.full_like(listed, self.draws if k is None else k))
        many, owner = repeated(batch, copies)
        number = torch.cat([torch.arange(c) for c in copies.tolist()]) if own else None
        places = draw_places(many.frame_rank, many.batch, many.ptr, number)
        if bool(whole.any()):
            sizes = batch.ptr[1:] - batch.ptr[:-1]
            held = batch.frame_places[torch.repeat_interleave(whole, listed * sizes)]
            places[whole[owner][many.batch]] = held
        many.x = self._placed(many.x, places)
        z = self.net.encode(many)
        total = z.new_zeros(G, z.shape[1]).index_add(0, owner, z)
        return total / copies.to(z.dtype).unsqueeze(1)

    def _placed(self, x: Tensor | None, places: Tensor) -> Tensor:
        code = F.one_hot(places.clamp(max=self.positions - 1), self.positions)
        return code.float() if x is None else torch.cat([x, code.to(x.dtype)], 1)

    def head(self, z: Tensor) -> Tensor:
        found: Tensor = self.net.head(z)
        return found

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.encode(batch))


def repeated(batch: Any, copies: Tensor) -> tuple[Any, Tensor]:
    """Each graph of a PyG batch so many times, its copies side by side; the new batch, and whose copy each is."""
    owner = torch.repeat_interleave(torch.arange(len(copies), device=copies.device), copies)
    return Packed(batch.to_data_list(), str(copies.device)).batch(owner.cpu()), owner
