"""SPEN: permutation-equivariant linear maps inside every node's ego network, weights shared by egos of one size.

A tensor T2 lives on the ordered pairs of nodes that stand together in some ego, T1 on the nodes. A layer restricts both to each ego,
``X = T2[E x E]``, ``v = T1[E]``, applies all linear maps that commute with permutations of the ego's nodes, and takes the mean
over the egos that hold a pair or a node:

    T2' = mean over egos of [L22 X, L12 v],   T1' = mean over egos of [L21 X, L11 v]

then ELU and GraphNorm. At the end every ego gives ``[L20 X, L10 v]``, and their mean is the graph's vector. Egos of equal size share
weights, others do not, but for rare sizes: see `weight_size`.

Source: "Subgraph Permutation Equivariant Networks" (arXiv 2111.11840), sections 3 and 4. The maps: `layers.equivariant_tensors`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GraphNorm

from latticework.layers.equivariant_tensors import EquivariantLinear, sums_of

from ..network import GraphNet


def weight_size(size: int, own: Sequence[int]) -> int:
    """The size whose weights an ego of `size` nodes takes, of the sizes `own` (rising): its own, or the nearest (ties: smaller)."""
    return min(own, key=lambda known: (abs(known - size), known))


class Block(NamedTuple):
    """Egos of one size in a batch: `size` m, where their nodes and pairs stand, [B m] and [B m^2]."""

    size: int
    node: Tensor
    pair: Tensor


class Plan(NamedTuple):
    """How a batch's egos are computed: `blocks` of equal sizes, together all egos; the `graph` int64 [E] of each, in that order.

    `some`: blocks of the egos whose input differs, one of each kind, and `spread_node` [sum m], `spread_pair` [sum m^2]: where
    among their results those of all egos stand.
    """

    blocks: list[Block]
    graph: Tensor
    some: list[Block]
    spread_node: Tensor
    spread_pair: Tensor

    @property
    def node(self) -> Tensor:
        return torch.cat([b.node for b in self.blocks])

    @property
    def pair(self) -> Tensor:
        return torch.cat([b.pair for b in self.blocks])


def plan_of(batch: Any) -> Plan:
    """The plan of a batch of `EgoGraph`."""
    device = batch.ego_size.device
    # index arithmetic in numpy, once a batch
    size, kind = batch.ego_size.cpu().numpy(), batch.ego_class.cpu().numpy()
    graph = np.repeat(np.arange(batch.num_graphs), np.atleast_1d(_numpy(batch.ego_total)))
    calls, call = np.unique(np.atleast_1d(_numpy(batch.ego_call)), return_inverse=True)
    if len(calls) > 1:
        kind = (size * len(calls) + call[graph]) * (kind.max(initial=0) + 1) + kind
    start_node, start_pair = np.cumsum(size) - size, np.cumsum(size**2) - size**2
    order = np.argsort(size, kind="stable")
    _, first, which = np.unique(kind, return_index=True, return_inverse=True)  # classes rise with the size

    def blocks(egos: Any) -> list[Block]:
        found, sizes = [], size[egos]
        for m in np.unique(sizes).tolist():
            own = egos[sizes == m]
            node = (start_node[own][:, None] + np.arange(m)).ravel()
            pair = (start_pair[own][:, None] + np.arange(m * m)).ravel()
            rows = [torch.from_numpy(r).to(device) for r in (node, pair)]
            found.append(Block(m, batch.ego_node[rows[0]], batch.ego_pair[rows[1]]))
        return found

    m, mine = size[order], which[order]
    of_kind = size[first]
    spread = []
    for length, widths in ((m, of_kind), (m * m, of_kind * of_kind)):
        start = (np.cumsum(widths) - widths)[mine]
        spread.append(np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum()))
    here = [torch.from_numpy(a).to(device) for a in (graph[order], *spread)]
    return Plan(blocks(order), here[0], blocks(first), here[1], here[2])


def _numpy(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


class LocalMaps(nn.Module):
    """All equivariant maps of egos of one size: (X [B, m, m, c2], v [B, m, c1] or none) -> ([B, m, m, 2 h], [B, m, 2 h]).

    Without v (`nodes` = 0) the results have h channels.
    """

    def __init__(self, pairs: int, nodes: int, width: int) -> None:
        super().__init__()
        self.pairs_to_pairs, self.pairs_to_nodes = EquivariantLinear(2, 2, pairs, width), EquivariantLinear(2, 1, pairs, width)
        self.nodes_to_pairs = EquivariantLinear(1, 2, nodes, width) if nodes else None
        self.nodes_to_nodes = EquivariantLinear(1, 1, nodes, width) if nodes else None

    def forward(self, X: Tensor, v: Tensor | None = None, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        sums = sums_of(X, size)
        Y, y = self.pairs_to_pairs(X, size, sums), self.pairs_to_nodes(X, size, sums)
        if self.nodes_to_pairs is None or self.nodes_to_nodes is None:
            return Y, y
        return torch.cat([Y, self.nodes_to_pairs(v, size)], -1), torch.cat([y, self.nodes_to_nodes(v, size)], -1)


class LocalReadOut(nn.Module):
    """(X [B, m, m, c2], v [B, m, c1]) -> [B, 2 h]: ``[L20 X, L10 v]``."""

    def __init__(self, pairs: int, nodes: int, width: int) -> None:
        super().__init__()
        self.pairs, self.nodes = EquivariantLinear(2, 0, pairs, width), EquivariantLinear(1, 0, nodes, width)

    def forward(self, X: Tensor, v: Tensor, size: Tensor | None = None) -> Tensor:
        return torch.cat([self.pairs(X, size), self.nodes(v, size)], -1)


class LocalLayer(nn.Module):
    """One local equivariant layer, with weights of its own for each size in `sizes`: (T2 [P, c2], T1 [n, c1] or none) -> the same.

    With T1 none only the egos that differ are computed (`Plan.some`): that is for the first layer, whose input is the labelled ego
    and nothing else. Later layers' inputs know of the rest of the graph, so their egos do not repeat.
    """

    def __init__(self, pairs: int, nodes: int, width: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sorted(sizes))
        self.maps = nn.ModuleDict({str(m): LocalMaps(pairs, nodes, width) for m in self.sizes})
        self.width = 2 * width if nodes else width

    def forward(self, T2: Tensor, T1: Tensor | None, plan: Plan, count: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
        pairs_found, nodes_found = [], []
        for block in plan.some if T1 is None else plan.blocks:
            m = block.size
            X = T2[block.pair].view(-1, m, m, T2.shape[1])
            v = None if T1 is None else T1[block.node].view(-1, m, T1.shape[1])
            Y, y = self.maps[str(weight_size(m, self.sizes))](X, v)
            pairs_found.append(Y.reshape(-1, self.width))
            nodes_found.append(y.reshape(-1, self.width))
        on_pairs, on_nodes = torch.cat(pairs_found), torch.cat(nodes_found)
        if T1 is None:
            on_pairs, on_nodes = on_pairs[plan.spread_pair], on_nodes[plan.spread_node]
        rows = plan.node
        held = on_nodes.new_zeros(nodes, 1).index_add_(0, rows, on_nodes.new_ones(len(rows), 1))
        return (
            on_pairs.new_zeros(len(T2), self.width).index_add(0, plan.pair, on_pairs) / count[:, None],
            on_nodes.new_zeros(nodes, self.width).index_add(0, rows, on_nodes) / held,
        )


class SPEN(GraphNet):
    """A batch of `EgoGraph` (see `with_egos`) -> [G, outputs].

    `inputs`: width of `x` (0: there is none); `edge_inputs`: width of the edges' features; `sizes`: the ego sizes with own weights;
    `widths`: h of the local layers, the last one the read-out's, too; `hidden`: widths of the head.

    T2 starts with the normalised adjacency ``D^-1/2 A D^-1/2``, x on the diagonal, and the edges' features: 1 + F + D channels.
    ``norm="none"`` leaves out GraphNorm: then a disjoint union as one graph has the mean of its parts' vectors, weighted by their
    egos. GraphNorm over pairs says more than the egos do: its mean runs over all pairs of the graph, so it knows how many there are.
    A ring of 8 and two rings of 4 have equal egos for one hop, but 40 and 32 pairs, and are told apart by that alone.
    ``ValueError`` for no layer, no size, or an unknown norm.
    """

    def __init__(
        self, inputs: int, outputs: int, sizes: Sequence[int], widths: Sequence[int] = (16, 16, 16), edge_inputs: int = 0,
        hidden: Sequence[int] = (256, 128), dropout: float = 0.5, norm: Literal["graph", "none"] = "graph",
    ) -> None:  # fmt: skip
        super().__init__()
        if not len(sizes) or not len(widths):
            raise ValueError("there must be one layer and one ego size with weights at least")
        if norm not in ("graph", "none"):
            raise ValueError(f"norm must be graph or none, not {norm!r}")
        self.inputs, self.edge_inputs, self.dropout = inputs, edge_inputs, dropout
        self.sizes = tuple(sorted(sizes))
        self.local, self.norms = nn.ModuleList(), nn.ModuleList()
        pairs, nodes = 1 + inputs + edge_inputs, 0
        for width in widths:
            layer = LocalLayer(pairs, nodes, width, self.sizes)
            pairs = nodes = layer.width
            self.local.append(layer)
            self.norms.append(nn.ModuleList([GraphNorm(pairs), GraphNorm(nodes)] if norm == "graph" else []))
        self.read_out = nn.ModuleDict({str(m): LocalReadOut(pairs, nodes, widths[-1]) for m in self.sizes})
        steps = [2 * widths[-1], *hidden, outputs]
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(steps))
        for linear in self.mlp:
            nn.init.xavier_normal_(linear.weight)  # type: ignore[arg-type]
            nn.init.constant_(linear.bias, 0.1)  # type: ignore[arg-type]

    def input(self, batch: Any) -> Tensor:
        """T2 [P, 1 + F + D] of the first layer."""
        like = next(self.parameters())
        T2 = like.new_zeros(len(batch.pair_count), 1 + self.inputs + self.edge_inputs)
        T2[batch.edge_pair, 0] = batch.edge_norm.to(like.dtype)
        if self.inputs:
            T2[batch.node_pair, 1 : 1 + self.inputs] = batch.x.to(like.dtype)
        if self.edge_inputs:
            T2[batch.edge_pair, 1 + self.inputs :] = batch.edge_channels.to(like.dtype)
        return T2

    def encode(self, batch: Any) -> Tensor:
        """The mean over a graph's egos of ``ELU [L20 X, L10 v]``: [G, 2 h]."""
        plan = plan_of(batch)
        graphs, nodes = int(batch.num_graphs), len(batch.batch)
        of_pair = batch.batch[:0].new_tensor(np.repeat(np.arange(graphs), np.atleast_1d(_numpy(batch.pair_total))))
        T2, T1 = self.input(batch), None
        count = batch.pair_count.to(T2.dtype)
        for layer, norms in zip(self.local, self.norms, strict=True):
            T2, T1 = layer(T2, T1, plan, count, nodes)
            T2, T1 = F.elu(T2), F.elu(T1)
            if len(norms):  # type: ignore[arg-type]
                T2, T1 = norms[0](T2, of_pair, graphs), norms[1](T1, batch.batch, graphs)  # type: ignore[index]
        assert T1 is not None
        found = []
        for block in plan.blocks:
            m = block.size
            X, v = T2[block.pair].view(-1, m, m, T2.shape[1]), T1[block.node].view(-1, m, T1.shape[1])
            found.append(F.elu(self.read_out[str(weight_size(m, self.sizes))](X, v)))
        z = torch.cat(found)
        egos = z.new_zeros(graphs, 1).index_add_(0, plan.graph, z.new_ones(len(z), 1))
        return z.new_zeros(graphs, z.shape[1]).index_add(0, plan.graph, z) / egos.clamp(min=1)

    def head(self, z: Tensor) -> Tensor:
        for linear in self.mlp[:-1]:
            z = F.dropout(F.relu(linear(z)), self.dropout, self.training)
        out: Tensor = self.mlp[-1](z)
        return out
