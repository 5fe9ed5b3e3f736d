"""LINKX: a node's row of the adjacency matrix and its features, embedded apart and then joined.

``h_A = MLP_A(A)``, ``h_X = MLP_X(X)``, ``h = relu(W [h_A ; h_X] + h_A + h_X)``, ``Y = MLP_f(h)``. The first map of MLP_A has
a row of weights for every node, so nothing is averaged over neighbours: *which* neighbours a node has counts, not what they
are like. That is why it is strong on large heterophilic graphs, and why it answers for the graph that it was fitted on alone.

Source: "Large Scale Learning on Non-Homophilous Graphs: New Benchmarks and Strong Simple Methods" (NeurIPS 2021), section 4.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.task import Part
from latticework.core.value import setting
from latticework.layers.propagation import SparseOperator, normalised_adjacency
from latticework.layers.sparse_features import FeatureLinear

from .baselines import same_graph
from .network import EncodeHead, Features, NodeModel, NodeNetwork, features_of


class Stack(nn.Module):
    """Linear maps with ReLU, BatchNorm and dropout between, in that order: [n, a] -> [n, b]. One size gives the identity."""

    def __init__(self, sizes: list[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.maps = nn.ModuleList(FeatureLinear(a, b) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(b) for b in sizes[1:-1])
        self.dropout = dropout

    def forward(self, h: Features) -> Any:
        for i, layer in enumerate(self.maps):
            h = layer(h)
            if i < len(self.norms):
                h = F.dropout(self.norms[i](F.relu(h)), self.dropout, self.training)
        return h


class LINKX(EncodeHead):
    """``encode(x, A) = relu(W [h_A ; h_X] + h_A + h_X)`` [n, h], ``head(h) = MLP_f(h)`` [n, C]; `forward` is one after the other.

    ``h_A`` is A times a weight [n, h], then ``layers_a - 1`` further maps; ``h_X`` has ``layers_x`` maps, the head ``layers``.
    Hidden layers are followed by ReLU, BatchNorm and, in the head alone, dropout.

    Shapes: ``x`` [n, F] (a tensor, or `SparseFeatures`), ``A`` [n, n] (a `SparseOperator` or a torch tensor), the plain
    adjacency without normalisation -> logits [n, C]. ``ValueError`` for fewer than two classes, fewer than one layer, or an
    adjacency of another number of nodes than the weights were made for.
    """

    def __init__(
        self,
        nodes: int,
        features: int,
        classes: int,
        hidden: int = 128,
        layers: int = 2,
        layers_a: int = 1,
        layers_x: int = 1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be >= 2, is {classes}: there is nothing to tell apart")
        if min(nodes, layers, layers_a, layers_x) < 1:
            raise ValueError("nodes, layers, layers_a and layers_x must be >= 1")
        # nn.Linear's own law, for a map that is kept [n, h] since A multiplies it from the left
        self.weight_a = nn.Parameter(torch.empty(nodes, hidden).uniform_(-1 / math.sqrt(nodes), 1 / math.sqrt(nodes)))
        self.bias_a = nn.Parameter(torch.empty(hidden).uniform_(-1 / math.sqrt(nodes), 1 / math.sqrt(nodes)))
        self.norm_a = nn.BatchNorm1d(hidden) if layers_a > 1 else None
        self.rest_a = Stack([hidden] * layers_a)
        self.stack_x = Stack([features] + [hidden] * layers_x)
        self.join = nn.Linear(2 * hidden, hidden)
        self.final = Stack([hidden] * layers + [classes], dropout)

    def encode(self, x: Features, A: SparseOperator | Tensor) -> Tensor:
        """What the head reads: [n, h]."""
        if A.shape[0] != len(self.weight_a):
            raise ValueError(f"the adjacency has {A.shape[0]} nodes, the weights are for {len(self.weight_a)}")
        h_a = A @ self.weight_a + self.bias_a
        if self.norm_a is not None:
            h_a = self.rest_a(self.norm_a(F.relu(h_a)))
        h_x = self.stack_x(x)
        return F.relu(self.join(torch.cat([h_a, h_x], 1)) + h_a + h_x)

    def head(self, h: Tensor, *graph: Any) -> Tensor:
        """Logits [n, C]; the graph is not read."""
        found: Tensor = self.final(h)
        return found


class LINKXModel(NodeModel):
    """A trained LINKX: a row of weights for each node of the fitted graph, so it answers for that graph alone."""

    scope: Literal["fitted data", "new data"] = "fitted data"

    def predict(self, part: Part) -> Any:
        same_graph(self, part)
        return super().predict(part)


class LINKXMethod(NodeNetwork):
    """Adjacency rows and features embedded apart and joined: a plain, strong classifier for heterophilic graphs.

    It has weights for every node of the graph (`hidden` each), so a fitted model answers for the fitted data alone: for
    another graph, or one with new nodes, fit again. AdamW for at most `epochs` full batches; the weights of the best
    validation accuracy are kept. The graph is symmetrised unless `symmetrise` is false (then a node has the neighbours that
    its edges lead to); edge weights count, repeated edges add up.
    """

    name: ClassVar[str] = "linkx"
    model: ClassVar[type[NodeModel]] = LINKXModel
    encode_head: ClassVar[bool] = True

    hidden: int = setting(128, "width of both embeddings and of the head", ge=1, le=4096)
    layers: int = setting(2, "linear maps of the head", ge=1, le=16, search=[1, 2, 3])
    layers_a: int = setting(1, "linear maps of the adjacency rows", ge=1, le=16)
    layers_x: int = setting(1, "linear maps of the features", ge=1, le=16)
    dropout: float = setting(0.5, "dropout on the head's hidden layers", ge=0, lt=1, search=(0.0, 0.8))
    lr: float = setting(0.01, "learning rate of AdamW", gt=0, le=1, search=(5e-4, 1e-2, "log"))
    weight_decay: float = setting(1e-3, "on all parameters, decoupled (AdamW)", ge=0, le=1, search=(1e-5, 2e-2, "log"))
    stop: Literal["loss", "metric"] = setting("metric", "the epoch is chosen by the headline, or by validation loss")
    symmetrise: bool = setting(True, "take edges both ways; false: a node has the neighbours that its edges lead to")

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        # Adam with a decoupled decay is AdamW, by group
        return [{"params": list(net.parameters()), "weight_decay": self.weight_decay, "decoupled_weight_decay": True}]

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        nodes = int(schema["nodes"])
        return LINKX(nodes, features, classes, self.hidden, self.layers, self.layers_a, self.layers_x, self.dropout)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        data = part.data
        edges = data.edge_index if self.symmetrise else data.edge_index.flip(0)  # rows of the operator are targets
        A = normalised_adjacency(
            edges, int(data.num_nodes), data.edge_weight, kind="none", self_loops=False,
            undirected=self.symmetrise, owner=data if self.symmetrise else None,
        )  # fmt: skip
        return features_of(part, device, self.row_normalise), A if device == "cpu" else A.to_torch(device)
