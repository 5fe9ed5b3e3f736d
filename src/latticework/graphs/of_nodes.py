"""Networks of this wing that serve the nodes of one graph, too: the part decides what is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from latticework.common.graph_batches import Packed
from latticework.core.errors import UserError
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.training import Patience, Watch, train

from .network import GraphModel, GraphNetwork, answers_of, device_of, outputs_of, ready


def is_graph(part: Part) -> bool:
    """Whether the part is one graph whose nodes are asked (else a list of graphs)."""
    return not isinstance(part.data, list | tuple)


def bare(data: Data) -> Data:
    """A node task's graph as one of a set: features and edges alone."""
    made = Data(edge_index=data.edge_index, num_nodes=int(data.num_nodes or 0))
    if data.x is not None:
        made.x = data.x
    return made


class NodesOrGraphsModel(GraphModel):
    """A trained network of a graph's nodes, or of whole graphs."""

    def prepared(self, part: Part) -> list[Data]:
        """What the network reads; ``UserError`` for the other kind of data."""
        if is_graph(part) != (self.schema.get("reads") == "nodes"):
            fitted, given = ("nodes", "graphs") if self.schema.get("reads") == "nodes" else ("graphs", "one graph's nodes")
            raise UserError(f"this model was fitted on {fitted} and is asked about {given}; fit one on data of that kind")
        if is_graph(part):
            return self.method.prepare([bare(part.data)], self.schema)
        return ready(self.method, part, self.schema)

    def answers(self, part: Part, made: Sequence[Data]) -> Any:
        """Of prepared graphs: probabilities float64 [q, C] of the asked nodes or graphs, or numbers [q, T] in raw units."""
        if not made:
            return np.zeros((0, outputs_of(self.schema)))
        packed = Packed(made, device_of(self.net))
        with torch.no_grad():
            out = torch.cat([self.net(packed.batch(rows)) for rows in packed.batches(self.method.batch)])
        if is_graph(part):
            out = out[torch.from_numpy(part.query.rows).to(out.device)]
        if self.schema.get("multi"):
            return torch.sigmoid(out.double()).cpu().numpy()
        return answers_of(out, self.schema, self.centre, self.scale)

    def predict(self, part: Part) -> Any:
        return self.answers(part, self.prepared(part))


class NodesOrGraphs(GraphNetwork):
    """A recipe whose ``module`` reads node states where ``schema["reads"]`` is ``nodes``, and else a vector a graph."""

    model: ClassVar[type[GraphModel]] = NodesOrGraphsModel

    def settled(self, train: Part) -> dict[str, Any]:
        if is_graph(train):
            schema = {"edge_features": [], "targets": [], **train.schema}
            return super().settled(train._replace(data=[bare(train.data)], schema=schema)) | {"reads": "nodes"}
        return super().settled(train) | {"reads": "graph"}

    def fit(self, train: Part, valid: Part | None, run: Run) -> GraphModel:
        return fit_nodes(self, train, valid, run) if is_graph(train) else super().fit(train, valid, run)


def fit_nodes(method: GraphNetwork, part: Part, valid: Part | None, run: Run) -> GraphModel:
    """Full-batch training on the labelled nodes; the weights of the best epoch on the valid part are kept."""
    schema = method.settled(part)
    given = method.prepare([bare(part.data)], schema)
    net = method.module(schema["inputs"], outputs_of(schema), schema).to(run.device)
    optimiser = method.optimiser(net)
    index, target = asked_of(part, run.device)
    whole = torch.zeros(1, dtype=torch.int64)

    def step(epoch: int) -> float:
        batch = Packed(method.redraw(given, schema, epoch, run) or given, run.device).batch(whole)
        optimiser.zero_grad(set_to_none=True)
        value = node_loss(net(batch)[index], target)
        value.backward()
        if method.clip:
            nn.utils.clip_grad_norm_(net.parameters(), method.clip)
        optimiser.step()
        return float(value.detach())

    watch = None
    if valid is not None:
        seen = given if valid.data is part.data else method.prepare([bare(valid.data)], schema)
        held, truth = asked_of(valid, run.device)
        fixed = Packed(seen, run.device).batch(whole)

        def look() -> Watch:
            with torch.no_grad():
                logits = net(fixed)[held]
                value = float(node_loss(logits, truth))
            score = None
            if method.stop == "metric" and run.task is not None:
                chances = torch.sigmoid(logits) if valid.schema["multi"] else torch.softmax(logits, 1)
                score = run.task.value(chances.cpu().double().numpy(), valid, run)
            if score is None:
                return Watch(value, {"valid loss": value})
            # ties in a coarse metric are broken by the loss
            sign = -1.0 if run.metric.better == "higher" else 1.0
            return Watch(sign * score + 1e-6 * value, {"valid loss": value, "valid": score})

        watch = look
    epoch = train(
        net, step, run, epochs=method.epochs, optimiser=optimiser, schedule=method.schedule(), watch=watch,
        patience=Patience(epochs=method.patience),
    )  # fmt: skip
    if valid is not None:
        run.notes.append(f"weights of epoch {epoch + 1}, chosen on validation {method.stop}")
    nothing = torch.zeros(0, dtype=torch.float64)
    return method.model(method, schema, net.cpu(), nothing, nothing)


def asked_of(part: Part, device: str) -> tuple[Tensor, Tensor]:
    y = torch.from_numpy(np.asarray(part.truth.y, np.float32 if part.truth.y.ndim == 2 else np.int64))
    return torch.from_numpy(part.query.rows).to(device), y.to(device)


def node_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of one class a node, or the binary one of several."""
    if target.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.cross_entropy(logits, target)
