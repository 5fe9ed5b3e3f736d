"""A message-passing network whose neighbourhoods are folded by a learned monoid, a GRU, or a fixed function; for graphs and for nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch
from torch_geometric.nn import MessagePassing

from latticework.common.graph_batches import Packed
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.training import Patience, Watch, train
from latticework.core.value import setting

from ..network import GraphModel, GraphNet, GraphNetwork, outputs_of, ready
from ..set_tasks import graphs_of
from .aggregation import Name, aggregation_of, ordered_in, ordering, penalty_in
from .set_net import Late, laws_of

Array = np.ndarray[Any, Any]


class FoldedConv(MessagePassing):  # type: ignore[misc]
    """``h_i' = U [h_i || fold_{j -> i} ReLU(W [h_j || e_ji])]`` with an aggregator given as ``aggr``; [n, H] -> [n, H]."""

    def __init__(self, width: int, edge_inputs: int, aggr: nn.Module) -> None:
        super().__init__(aggr=aggr)
        self.tell = nn.Linear(width + edge_inputs, width)
        self.change = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        folded = self.propagate(edge_index, h=h, edge_attr=edge_attr, size=(len(h), len(h)))
        found: Tensor = self.change(torch.cat([h, folded], 1))
        return found

    def message(self, h_j: Tensor, edge_attr: Tensor | None) -> Tensor:
        told: Tensor = self.tell(h_j if edge_attr is None else torch.cat([h_j, edge_attr], 1))
        return told.relu()


class FoldedNet(GraphNet):
    """A first map, `layers` of `FoldedConv` with ReLU and dropout, and a head of one hidden layer.

    For graphs the node vectors are joined by `readout` (mean, sum, or the aggregator itself: *same*) before the head; with
    `at_nodes` the head reads each node, [n, outputs].
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, layers: int, aggregation: Name, edge_inputs: int = 0, dropout: float = 0.0,
        readout: Literal["mean", "sum", "same"] = "mean", at_nodes: bool = False, histogram: Tensor | None = None, **monoid: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(
            FoldedConv(width, edge_inputs, aggregation_of(aggregation, width, histogram, **monoid)) for _ in range(layers)
        )
        self.dropout, self.at_nodes = dropout, at_nodes
        joined: Name = aggregation if readout == "same" else readout
        self.readout = None if at_nodes else aggregation_of(joined, width, histogram, **(monoid if joined == "lcm" else {}))
        self.out = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs))

    def nodes(self, batch: Batch) -> Tensor:
        """A vector [n, H] of each node."""
        h: Tensor = self.first(batch.x)
        for layer in self.layers:
            h = F.dropout(layer(h, batch.edge_index, batch.get("edge_attr")).relu(), self.dropout, self.training)
        return h

    def encode(self, batch: Batch) -> Tensor:
        h = self.nodes(batch)
        if self.readout is None:
            return h
        found: Tensor = self.readout(h, batch.batch, dim_size=batch.num_graphs)
        return found

    def head(self, z: Tensor) -> Tensor:
        found: Tensor = self.out(z)
        return found


class FoldedModel(GraphModel):
    """A trained network; its order at test and the number of orders averaged are late fields."""

    def predict(self, part: Part) -> Any:
        """As the task asks: probabilities or numbers of graphs [q, out], or numbers of nodes [q]."""
        return self._said(part)

    def permutation_gap(self, part: Part) -> Array | None:
        """How far the answers move between two orders of the neighbours, under the order at test; none where order plays no part."""
        if not ordered_in(self.net):
            return None
        return np.abs(self._said(part) - self._said(part, shift=1))

    def _said(self, part: Part, shift: int = 0) -> Any:
        method = self.method
        assert isinstance(method, GraphNetMethod)
        at_nodes = self.schema.get("at") == "nodes"
        with ordering(self.net, method.order, method.draws, shift):
            found = super().predict(part._replace(data=graphs_of(part)) if at_nodes else part)
        return found[part.query.rows, 0] if at_nodes else found


class GraphNetMethod(GraphNetwork):
    """Message passing in which a node's messages are folded by a learned monoid (``aggregation=lcm``), a GRU, or a fixed function.

    The rest of the network is the same for all aggregations, so that a comparison of presets compares them alone: each layer tells a
    neighbour ``ReLU(W h_j)`` (with the edge's features beside), folds, and maps what was folded beside the node's own vector. A random
    order of each neighbourhood is drawn at every step. For whole graphs the node vectors are joined by `readout`; for node regression
    each node is answered for. `associativity`, `identity_law` and `consistency` weigh the regularisers of the monoid.

    A layer costs two GRU steps an edge with lcm, one with gru, and then in as many steps one after another as the largest degree.
    """

    name: ClassVar[str] = "graph-net"
    revision: ClassVar[int] = 2  # orders in evaluation are each node's own
    tasks: ClassVar[tuple[str, ...]] = ("graph-classification", "graph-regression", "subgraph-counting", "node-regression")
    model: ClassVar[type[GraphModel]] = FoldedModel

    aggregation: Name = setting("lcm", "how a neighbourhood becomes one vector: lcm, gru, sum, mean, max, std or pna")
    readout: Literal["mean", "sum", "same"] = setting("mean", "how nodes become one vector of a graph; same: by the aggregation")
    order: Late = setting("random", "order at test: drawn for each neighbourhood, or canonical (sorted by value)", late=True)
    draws: int = setting(1, "random orders averaged at test, in each layer", ge=1, le=1000, late=True)
    associativity: float = setting(0.0, "lcm: weight of the associativity loss", ge=0)
    identity_law: float = setting(0.0, "lcm: weight of the identity loss", ge=0)
    consistency: float = setting(0.0, "lcm: weight of the difference between two orders", ge=0)
    layers: int = setting(2, "layers that pass messages", ge=1, le=64, search=(1, 4))
    width: int = setting(32, "width of the hidden layers", ge=1, le=4096, search=[32, 64])
    dropout: float = setting(0.0, "dropout in the head and after each layer", ge=0, lt=1, search=(0.0, 0.5))
    lr: float = setting(3e-3, "learning rate", gt=0, le=1, search=(5e-4, 1e-2, "log"))
    clip: float = setting(1.0, "largest norm of the gradient; 0: any", ge=0)

    def settled(self, train: Part) -> dict[str, Any]:
        found = super().settled(train)
        if self.aggregation == "pna":
            degrees = torch.cat([torch.bincount(g.edge_index[1], minlength=int(g.num_nodes or 0)) for g in train.data])
            found["degrees"] = torch.bincount(degrees).tolist()
        return found

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> FoldedNet:
        histogram = torch.tensor(schema["degrees"]) if "degrees" in schema else None
        return FoldedNet(
            inputs, outputs, self.width, self.layers, self.aggregation, schema["edge inputs"], self.dropout, self.readout,
            schema.get("at") == "nodes", histogram, **laws_of(self),
        )  # fmt: skip

    def extra_loss(self, net: nn.Module, batch: Batch, run: Run) -> Tensor | None:
        return penalty_in(net)

    def build(self, train: Part, run: Run) -> nn.Module:
        return super().build(self._plain(train), run)

    def fit(self, train: Part, valid: Part | None, run: Run) -> GraphModel:
        if train.schema.get("at") != "nodes":
            return super().fit(train, valid, run)
        return fit_nodes(self, self._plain(train), valid, run)

    @staticmethod
    def _plain(part: Part) -> Part:
        return part._replace(data=graphs_of(part)) if part.schema.get("at") == "nodes" else part


def fit_nodes(method: GraphNetMethod, part: Part, valid: Part | None, run: Run) -> GraphModel:
    """Mini-batches of graphs, the loss over the nodes with a known number; the best epoch by the error on the valid part is kept."""
    schema = method.settled(part)
    truth = torch.from_numpy(np.asarray(part.truth, np.float64))
    centre, scale = truth.mean()[None], truth.std(correction=0)[None]
    scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
    graphs = ready(method, part, schema)
    sizes = [int(g.num_nodes or 0) for g in graphs]
    y = torch.full((sum(sizes),), torch.nan)
    y[torch.from_numpy(part.query.rows)] = ((truth - centre) / scale).float()
    for graph, mine in zip(graphs, y.split(sizes), strict=True):
        graph.node_y = mine
    packed = Packed(graphs, run.device)
    net = method.module(schema["inputs"], outputs_of(schema), schema).to(run.device)
    optimiser = method.optimiser(net)
    loss_of = F.l1_loss if method.error == "absolute" else F.mse_loss

    def step(epoch: int) -> float:
        total, count = torch.zeros((), device=run.device), 0
        for rows in packed.batches(method.batch, run.generator(f"batches {epoch}")):
            batch = packed.batch(rows)
            known = ~torch.isnan(batch.node_y)
            asked = int(known.sum())
            if not asked:
                continue
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(net(batch)[known, 0], batch.node_y[known])
            extra = method.extra_loss(net, batch, run)
            (loss if extra is None else loss + extra).backward()
            if method.clip:
                nn.utils.clip_grad_norm_(net.parameters(), method.clip)
            optimiser.step()
            total, count = total + loss.detach() * asked, count + asked
        return float(total) / max(count, 1)

    def look() -> Watch:
        assert valid is not None
        error = float(np.abs(method.model(method, schema, net, centre, scale).predict(valid) - valid.truth).mean())
        return Watch(error, {"valid": error})

    watch, patience = None if valid is None else look, Patience(epochs=method.patience)
    epoch = train(net, step, run, epochs=method.epochs, optimiser=optimiser, watch=watch, patience=patience)
    if valid is not None:
        run.notes.append(f"weights of epoch {epoch + 1}, chosen by the error on the valid part")
    return method.model(method, schema, net.cpu(), centre, scale)
