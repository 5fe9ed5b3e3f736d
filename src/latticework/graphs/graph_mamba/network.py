"""The network of Graph Mamba: local encoders of tokens, Mamba blocks over them, and layers over the nodes of a graph."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch

from latticework.layers.propagation import SparseOperator
from latticework.layers.selective_scan import BidirectionalMamba

from ..network import GraphNet
from .tokens import csr_of, induced_edges

Encoder = Literal["mean", "gin"]
Mixer = Literal["mamba", "attention", "none"]
ReadsAt = Literal["graph", "nodes", "asked"]


class GINLayer(nn.Module):
    """``MLP((1 + eps) h_i + sum_j m_ij)`` over the edges j -> i; ``m_ij = h_j``, or ``ReLU(h_j + W e_ij)`` with edge features (GINE).

    The MLP has one hidden layer with LayerNorm, so that no graph's answer depends on the others of its batch. ``h`` [n, d].
    """

    def __init__(self, width: int, edges: int = 0) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(()))
        self.edge = nn.Linear(edges, width) if edges else None
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))

    def forward(
        self, h: Tensor, sums: SparseOperator | None, edge_index: Tensor | None = None, edge_x: Tensor | None = None
    ) -> Tensor:
        if self.edge is None or edge_x is None or edge_index is None:
            near = sums @ h
        else:
            sent = F.relu(h[edge_index[0]] + self.edge(edge_x))
            near = torch.zeros_like(h).index_add(0, edge_index[1], sent)
        out: Tensor = self.mlp((1 + self.eps) * h + near)
        return out


def both_directions(edge_index: Tensor, edge_x: Tensor) -> tuple[Tensor, Tensor]:
    """The edges with, for each that has no edge the other way, one with the same features; int64 [2, m], [m, D]."""
    source, target = edge_index
    n = int(edge_index.max()) + 1 if edge_index.numel() else 0
    alone = ~torch.isin(target * n + source, source * n + target)
    return torch.cat([edge_index, edge_index[:, alone].flip(0)], 1), torch.cat([edge_x, edge_x[alone]])


def means_of(sizes: Any, columns: Any, width: int) -> SparseOperator:
    """[T, width]: row t is the mean over its `sizes[t]` columns; `columns` int [K], token after token. No size is 0."""
    values = np.repeat((1 / sizes).astype(np.float32), sizes)
    return SparseOperator.unchecked(np.concatenate([[0], np.cumsum(sizes)]), columns, values, (len(sizes), width))


class LocalEncoder(nn.Module):
    """Token sub-graphs -> vectors [n, S, d].

    ``mean``: the mean of the embedded features of the token's nodes, joined with how much of it is different nodes and how often
    the walks came back, and a linear map (the house's cheap form). ``gin``: `depth` GIN layers over the induced sub-graph, then the mean.
    ``local=False``: the mean of the features alone, without what tells of the sub-graph's shape.
    """

    def __init__(self, width: int, encoder: Encoder = "mean", local: bool = True, depth: int = 1) -> None:
        super().__init__()
        self.encoder: Encoder = encoder
        self.local = local
        self.mix = nn.Linear(width + 2, width) if local and encoder == "mean" else None
        self.layers = nn.ModuleList(GINLayer(width) for _ in range(depth if local and encoder == "gin" else 0))

    def forward(self, e: Tensor, batch: Batch, both_ways: bool = False) -> Tensor:
        n, width = e.shape
        sizes, index = batch.token_size.cpu().numpy(), batch.token_index.cpu().numpy()
        if len(self.layers):
            indptr, indices = csr_of(batch.edge_index.cpu().numpy(), n, both_ways)
            first, near = induced_edges(indptr, indices, index, sizes)
            sums = SparseOperator.unchecked(first, near, np.ones(len(near), np.float32), (len(index), len(index)))
            h = e[batch.token_index]
            for layer in self.layers:
                h = h + layer(h, sums)
            token = means_of(sizes, np.arange(len(index)), len(index)) @ h
        else:
            token = means_of(sizes, index, n) @ e
        if self.mix is not None:
            token = self.mix(torch.cat([token, batch.token_shape.to(e.dtype)], 1))
        return token.view(n, -1, width)


class Sequences:
    """The nodes of a batch of graphs as padded sequences: in front, so that the last step is always a node.

    `place` int64 [n]: of each node in its graph; `batch` [n]: its graph; sizes [G] -> [G, l, d] and a mask, and back.
    """

    def __init__(self, place: Tensor, batch: Tensor, sizes: Tensor) -> None:
        self.graphs, self.longest = len(sizes), int(sizes.max()) if len(sizes) else 0
        self.at = batch * self.longest + (self.longest - sizes[batch]) + place
        filled = torch.zeros(self.graphs * self.longest, dtype=torch.bool, device=place.device)
        filled[self.at] = True
        self.mask = filled.view(self.graphs, self.longest)
        self.full = len(place) == self.graphs * self.longest

    def lay(self, h: Tensor) -> Tensor:
        out = h.new_zeros(self.graphs * self.longest, h.shape[1]).index_copy(0, self.at, h)
        return out.view(self.graphs, self.longest, -1)

    def gather(self, y: Tensor) -> Tensor:
        return y.reshape(-1, y.shape[-1])[self.at]


class FullAttention(nn.Module):
    """``x + attention(LayerNorm(x))`` among all nodes of a graph: the control of equal width. Cost l^2."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h = self.norm(x)
        y, _ = self.attend(h, h, h, key_padding_mask=None if mask is None else ~mask, need_weights=False)
        return x + (y if mask is None else y.masked_fill(~mask[..., None], 0))


class NodeLayer(nn.Module):
    """One layer over the nodes: a block that reads each graph as a sequence, with message passing beside, both added to the input.

    `mixer`: ``mamba``; ``attention`` (full attention of equal width, as in GPS) and ``none`` are controls.
    """

    def __init__(
        self, width: int, state: int = 16, inner: int = 0, mixer: Mixer = "mamba", mpnn: bool = True, bidirectional: bool = True,
        dropout: float = 0.0, edges: int = 0, heads: int = 4, longest: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.block: nn.Module | None = None
        if mixer == "mamba":
            self.block = BidirectionalMamba(width, state, inner, bidirectional=bidirectional, dropout=dropout, longest=longest)
        elif mixer == "attention":
            self.block = FullAttention(width, next(h for h in range(min(heads, width), 0, -1) if width % h == 0), dropout)
        self.norm = nn.LayerNorm(width) if mpnn else None
        self.mpnn = GINLayer(width, edges) if mpnn else None
        self.dropout = dropout

    def forward(
        self, h: Tensor, sequences: Sequences, sums: SparseOperator | None, edge_index: Tensor, edge_x: Tensor | None
    ) -> Tensor:
        out = h
        if self.block is not None:
            out = sequences.gather(self.block(sequences.lay(h), None if sequences.full else sequences.mask))
        if self.mpnn is not None:
            assert self.norm is not None
            sent = self.mpnn(self.norm(h), sums, edge_index, edge_x)
            out = out + F.dropout(sent, self.dropout, self.training)
        return out


class GraphMamba(GraphNet):
    """Graph Mamba for nodes and for whole graphs (`reads`: ``graph``, the mean or sum over nodes; ``nodes``; ``asked``, one node a graph).

    ``h = x W`` (features and codes); with walks, `LocalEncoder`, `layers` Mamba blocks over each node's tokens [n, S, d] and the
    state of the last one, then one `NodeLayer`; without (``walk_length = 0``), `layers` of them. A LayerNorm, the read-out, a linear
    head. The order of nodes is ascending importance, so that the important come late and, reading onward, see most.

    The batch holds `x` [n, F], `edge_index`, `batch`, `ptr`, `place` (and `code`, `token_*`, `edge_attr`, `asked`) as `prepare` of the
    recipe gives them. `encode` gives what is read, [G, d] or [n, d]; `states` the nodes' vectors. Memory O(n S (d + N)) in all.
    """

    def __init__(
        self, features: int, outputs: int, width: int = 64, layers: int = 4, walk_length: int = 0, state: int = 16, inner: int = 0,
        encoder: Encoder = "mean", local: bool = True, mixer: Mixer = "mamba", mpnn: bool = True, bidirectional: bool = True,
        both_ways: bool = False, pool: Literal["mean", "sum"] = "mean", reads: ReadsAt = "graph", dropout: float = 0.0, edges: int = 0,
        heads: int = 4, longest: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.walk_length, self.both_ways, self.reads = walk_length, both_ways, reads
        self.pool: Literal["mean", "sum"] = pool
        self.embed = nn.Linear(features, width)
        self.local = LocalEncoder(width, encoder, local) if walk_length else None
        self.blocks = nn.ModuleList(
            BidirectionalMamba(width, state, inner, bidirectional=bidirectional, dropout=dropout)
            for _ in range(layers if walk_length else 0)
        )
        self.layers = nn.ModuleList(
            NodeLayer(width, state, inner, mixer, mpnn, bidirectional, dropout, edges, heads, longest)
            for _ in range(1 if walk_length else layers)
        )
        self.passes = mpnn and not edges
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, outputs)

    def states(self, batch: Batch) -> Tensor:
        """[n, d]."""
        x = batch.x if batch.get("code") is None else torch.cat([batch.x, batch.code.to(batch.x.dtype)], 1)
        h = self.embed(x)
        if not bool(torch.isfinite(h.detach()).all()):
            bad = torch.nonzero(~torch.isfinite(h.detach()).all(1)).flatten()
            raise ValueError(f"x holds NaN or infinite values, first in row {int(bad[0])}")
        if self.local is not None:
            tokens = self.local(h, batch, self.both_ways)
            for block in self.blocks:
                tokens = block(tokens)
            h = tokens[:, -1]
        sizes = batch.ptr[1:] - batch.ptr[:-1]
        sequences = Sequences(batch.place, batch.batch, sizes)
        sums = None
        if self.passes:  # a node sums over the edges that enter it
            n = len(h)
            indptr, indices = csr_of(batch.edge_index.flip(0).cpu().numpy(), n, self.both_ways)
            sums = SparseOperator.unchecked(indptr, indices, np.ones(len(indices), np.float32), (n, n))
        edge_index, edge_x = batch.edge_index, batch.get("edge_attr")
        if self.both_ways and edge_x is not None:
            edge_index, edge_x = both_directions(edge_index, edge_x)
        for layer in self.layers:
            h = layer(h, sequences, sums, edge_index, edge_x)
        out: Tensor = self.norm(h)
        return out

    def encode(self, batch: Batch) -> Tensor:
        h = self.states(batch)
        if self.reads == "nodes":
            return h
        if self.reads == "asked":
            return h[batch.asked]
        total = h.new_zeros(int(batch.num_graphs), h.shape[1]).index_add(0, batch.batch, h)
        if self.pool == "sum":
            return total
        return total / (batch.ptr[1:] - batch.ptr[:-1]).clamp(min=1)[:, None].to(h.dtype)

    def head(self, z: Tensor) -> Tensor:
        out: Tensor = self.out(z)
        return out
