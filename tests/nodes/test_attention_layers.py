"""GAT and HAN by row sums are PyG's layers: the same answers and gradients from the same weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, HANConv
from torch_geometric.utils import to_undirected

from latticework.layers.attention import Edges
from latticework.nodes.baselines import GATLayer, edges_of
from latticework.nodes.han_layer import HANLayer


def test_gat_reads_each_neighbour_and_itself_once() -> None:
    n, rng = 12, np.random.default_rng(0)
    arcs = torch.from_numpy(rng.integers(0, n - 1, (2, 30)))  # loops and repeats among them; the last node is alone
    part: Any = SimpleNamespace(data=Data(edge_index=arcs, num_nodes=n))
    x = torch.randn(n, 5, requires_grad=True)
    ours, theirs = GATLayer(5, 6, 3, 0.0), GATConv(5, 2, heads=3)
    theirs.load_state_dict({**ours.conv.state_dict(), "lin.weight": ours.linear.weight})
    mine, other = ours(x, edges_of(part, "cpu")), theirs(x, to_undirected(arcs, num_nodes=n))
    torch.testing.assert_close(mine, other)
    by = torch.randn_like(mine)
    mine.backward(by)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.autograd.grad(other, x, by)[0])
    torch.testing.assert_close(
        ours.conv.att_src.grad, torch.autograd.grad(theirs(x, to_undirected(arcs, num_nodes=n)), theirs.att_src, by)[0]
    )
    assert edges_of(part, "cpu") is edges_of(part, "cpu")


def test_han_attends_along_each_path_from_the_row() -> None:
    rng = np.random.default_rng(1)
    paths = {
        ("a", name, "a"): Edges(sp.csr_array((rng.random((9, 9)) < chance) * 1.0)) for name, chance in (("p", 0.3), ("q", 0.6))
    }
    torch.manual_seed(0)
    ours, theirs = HANLayer(4, 6, (["a"], list(paths)), heads=2), HANConv(4, 6, (["a"], list(paths)), heads=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(9, 4)
    index = {kind: torch.stack([e.column, e.row]) for kind, e in paths.items()}
    mine, other = ours({"a": x}, paths)["a"], theirs({"a": x}, index)["a"]
    torch.testing.assert_close(mine, other)
    for a, b in zip(torch.autograd.grad(mine.square().sum(), list(ours.parameters())),
                    torch.autograd.grad(other.square().sum(), list(theirs.parameters())), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)
