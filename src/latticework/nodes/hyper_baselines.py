"""What must be beaten on hypergraphs, and who teaches: hypergraph convolutions, and GCN on the clique expansion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.errors import UserError
from latticework.core.method import Predictor
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.layers.hypergraph import HypergraphOperator, clique_expansion, incidence, with_singletons
from latticework.layers.propagation import SparseOperator, WeakCache, normalise
from latticework.layers.sparse_features import FeatureLinear

from .baselines import GCN, ConvNet
from .network import EncodeHead, Features, NodeModel, NodeNetwork, features_of

HYPER_TASKS = ("hypergraph-node-classification",)
# matrices of a part's hypergraph, for as long as its data live
kept = WeakCache()


def incidence_of(part: Part, name: str = "this method") -> sp.csr_array:
    """``H`` [n, E + isolated] of a part's hypergraph, each isolated vertex in a hyperedge of its own; kept with the data."""
    data = part.data
    if not data.linked:
        raise UserError(
            f"{name} reads hyperedges, and none were given; add hyperedges.csv (edge,node), or use a model that answers from "
            "features alone (mlp, light-hgnn)"
        )
    return kept.get(data, "incidence", lambda: with_singletons(incidence(data.edge_index, data.vertices, data.hyperedges)))


# -- hypergraph convolutions ---------------------------------------------------------------------------------------------
class HGNN(EncodeHead):
    """Hypergraph network of two layers: ``Z = L dropout(relu(L X T1 + b1)) T2 + b2`` with ``L`` a `HypergraphOperator`.

    The maps come before the products, which they commute with. Shapes: ``x`` [n, F] (a tensor, or `SparseFeatures`), ``L``
    [n, n] -> logits [n, C]. ``ValueError`` for x with another number of rows than L.

    Source: Feng et al., "Hypergraph Neural Networks" (AAAI 2019), equation 11.
    """

    def __init__(self, features: int, classes: int, hidden: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        self.first, self.second = FeatureLinear(features, hidden, bias=False), nn.Linear(hidden, classes, bias=False)
        self.first_bias, self.second_bias = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(classes))
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
        self.dropout = dropout

    def encode(self, x: Features, L: HypergraphOperator) -> Tensor:
        if x.shape[0] != L.shape[0]:
            raise ValueError(f"x has {x.shape[0]} rows, the hypergraph {L.shape[0]} vertices")
        return F.dropout(F.relu(L @ self.first(x) + self.first_bias), self.dropout, self.training)

    def head(self, h: Tensor, L: HypergraphOperator) -> Tensor:
        return L @ self.second(h) + self.second_bias


class HyperModel(NodeModel):
    """A trained hypergraph network, whose hidden states can be asked for."""

    def hidden(self, part: Part) -> Tensor:
        """float32 [n, hidden] of all vertices of a part."""
        net = self.net
        assert isinstance(net, EncodeHead)
        with torch.no_grad():
            return net.encode(*self.method.inputs(part, "cpu"))


class HyperNetwork(NodeNetwork):
    """What networks on hypergraphs share: the task, and what is said of classes with few labels."""

    socket: ClassVar[str] = "hypergraph"
    tasks: ClassVar[tuple[str, ...]] = HYPER_TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return refusal(self.name, facts)

    def fit(self, train: Part, valid: Part | None, run: Run) -> NodeModel:
        say_fewer(train, run)
        return super().fit(train, valid, run)


def refusal(name: str, facts: Mapping[str, Any]) -> str | None:
    """Why a method that learns from hyperedges and features cannot be used."""
    if not facts["features"]:
        return "the nodes have no features, which it reads; add columns to nodes.csv"
    return (
        None if facts["linked"] and facts["hyperedges"] else "there are no hyperedges, which it learns from; add hyperedges.csv"
    )


def say_fewer(train: Part, run: Run) -> None:
    """Note the classes that had fewer labels than the task asked for."""
    for name, (labels, valid) in train.schema.get("fewer labels", {}).items():
        run.notes.append(f"class {name!r} has few labelled nodes: {labels} train and {valid} validate")


class HGNNMethod(HyperNetwork):
    """Hypergraph neural network: features smoothed twice over hyperedges, by two sparse products each time.

    ``Z = L dropout(relu(L X T1 + b1)) T2 + b2``. ``norm=symmetric`` is HGNN's ``D_v^-1/2 H D_e^-1 H^T D_v^-1/2``; ``row`` is
    ``D_v^-1 H D_e^-1 H^T``, the mean of a vertex's hyperedges, each the mean of its vertices: HGNN+, and torch_geometric's
    ``HypergraphConv``. A vertex in no hyperedge gets one of its own. Adam for `epochs` full batches, the weights of the best
    validation accuracy, bags of words as they are: that is how LightHGNN trains its teachers.
    """

    name: ClassVar[str] = "hgnn"
    model: ClassVar[type[NodeModel]] = HyperModel
    encode_head: ClassVar[bool] = True

    norm: Literal["symmetric", "row"] = setting("symmetric", "how the smoothing is normalised", search=["symmetric", "row"])
    hidden: int = setting(32, "width of the hidden layer", ge=1, le=4096)
    dropout: float = setting(0.5, "dropout on the hidden layer", ge=0, lt=1, search=(0.0, 0.8))
    epochs: int = setting(200, "at most", ge=1, le=100_000)
    patience: int = setting(200, "epochs without a better validation value before the fit stops", ge=1)
    stop: Literal["loss", "metric"] = setting("metric", "the epoch is chosen by validation loss, or by the headline")
    row_normalise: bool = setting(
        False, "divide a node's features by their sum where all are 0 or 1 (bags of words)", search=[False, True]
    )

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        return HGNN(features, classes, self.hidden, self.dropout)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        H = incidence_of(part, self.name)
        L = kept.get(part.data, f"operator {self.norm}", lambda: HypergraphOperator(H, self.norm))
        return features_of(part, device, self.row_normalise), L


class HNHN(EncodeHead):
    """Hypergraph network with a non-linear step at the hyperedges: ``E = relu(M_e X T1 + b1)``, ``h = relu(M_v E T2 + b2)``,
    and a last linear map.

    ``M_e = D_e^-1 H^T`` and ``M_v = D_v^-1 H`` are the two products of a row-normalised `HypergraphOperator`. Shapes as
    `HGNN`. Source: Dong, Sawin, Bengio, "HNHN: Hypergraph Networks with Hyperedge Neurons" (2020), equation 1 with
    alpha = beta = 0.
    """

    def __init__(self, features: int, classes: int, hidden: int = 32, dropout: float = 0.5) -> None:
        super().__init__()
        self.first, self.second = FeatureLinear(features, hidden), nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, classes)
        self.dropout = dropout

    def encode(self, x: Features, L: HypergraphOperator) -> Tensor:
        if x.shape[0] != L.shape[0]:
            raise ValueError(f"x has {x.shape[0]} rows, the hypergraph {L.shape[0]} vertices")
        edges = F.dropout(F.relu(L.to_edges @ self.first(x)), self.dropout, self.training)
        return F.dropout(F.relu(L.to_vertices @ self.second(edges)), self.dropout, self.training)

    def head(self, h: Tensor, L: HypergraphOperator) -> Tensor:
        return self.last(h)


class HNHNMethod(HGNNMethod):
    """Hypergraph network whose hyperedges have states and non-linearities of their own, between two means.

    Source: Dong, Sawin, Bengio, "HNHN: Hypergraph Networks with Hyperedge Neurons" (2020).
    """

    name: ClassVar[str] = "hnhn"
    norm: Literal["row"] = setting("row", "vertices and hyperedges are averaged")

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        return HNHN(features, classes, self.hidden, self.dropout)


# -- as a plain graph ----------------------------------------------------------------------------------------------------
class CliqueGCN(GCN):
    """GCN on the clique expansion: every two vertices that share a hyperedge are joined, once.

    What a plain graph method makes of a hypergraph; tuned, it says what hyperedges add. Fields as `gcn`.
    """

    socket: ClassVar[str] = "hypergraph"
    name: ClassVar[str] = "clique-gcn"
    tasks: ClassVar[tuple[str, ...]] = HYPER_TASKS

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        return ConvNet(GCN.name, features, classes, self, inputs)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return refusal(self.name, facts)

    def fit(self, train: Part, valid: Part | None, run: Run) -> NodeModel:
        say_fewer(train, run)
        return super().fit(train, valid, run)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        H = incidence_of(part, self.name)
        S: SparseOperator = kept.get(part.data, "cliques", lambda: _cliques(H))
        return features_of(part, device, self.row_normalise), S if device == "cpu" else S.to_torch(device)


def _cliques(H: sp.csr_array) -> SparseOperator:
    """``D~^-1/2 (A + I) D~^-1/2`` of the clique expansion."""
    try:
        A = clique_expansion(H)
    except ValueError as error:
        raise UserError(f"clique-gcn: {error}; use hgnn, which never forms them") from None
    return SparseOperator.from_scipy(normalise(A + sp.identity(A.shape[0], format="csr")), np.float32)
