"""What the node classifiers that train a network share: inputs, loss, the choice of the epoch, the saved model.

A recipe says how its network is built (`module`) and what it is fed (`inputs`); the rest is here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.common.settled import read_alike, read_as_bags
from latticework.core.errors import UserError
from latticework.core.method import Backbone, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.training import Patience, Watch, train
from latticework.core.value import setting
from latticework.layers.propagation import SparseOperator, normalised_adjacency
from latticework.layers.sparse_features import SparseFeatures, compact, feature_dropout

Features = Tensor | SparseFeatures
# tasks whose answers need no more than the target nodes' own features
FEATURE_TASKS = ("node-classification", "hetero-node-classification", "hypergraph-node-classification")


class NodeModel(Model):
    """A trained node classifier: its network, rebuilt from the method and the schema."""

    scope: Literal["fitted data", "new data"] = "new data"

    def __init__(self, method: NodeNetwork, schema: Mapping[str, Any], net: nn.Module) -> None:
        self.method: NodeNetwork = method
        self.schema, self.net = schema, net.eval()

    def predict(self, part: Part) -> Any:
        """Probabilities float32 [q, C] of the asked nodes."""
        with torch.no_grad():
            logits = self.net(*self.method.inputs(read_alike(part, self.schema), device_of(self.net)))
        chances = torch.sigmoid(logits) if self.schema["multi"] else torch.softmax(logits, 1)
        return chances[torch.from_numpy(part.query.rows).to(chances.device)].cpu().numpy()

    def state(self) -> Mapping[str, Any]:
        return self.net.state_dict()

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = method.module(len(schema["features"]), len(schema["classes"]), schema)
        net.load_state_dict(dict(state))
        return cls(method, schema, net)


class EncodeHead(nn.Module):
    """A network in two stages: ``logits = head(encode(x, *graph), *graph)``, so that one encoder can serve several heads.

    ``encode`` gives hidden states [n, h]; ``head`` maps them (and may smooth them along the graph) to logits [n, C].
    """

    def encode(self, x: Any, *graph: Any) -> Tensor:
        raise NotImplementedError

    def head(self, h: Tensor, *graph: Any) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Any, *graph: Any) -> Tensor:
        return self.head(self.encode(x, *graph), *graph)


class FirstMaps(nn.Module):
    """The first layer of a network that reads k feature matrices: a map of its own for each, results side by side.

    k x [n, f] -> [n, k h]; with one matrix it is that map alone, under the same parameter names.
    """

    def __init__(self, maps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, x: Sequence[Features], *graph: Any) -> Tensor:
        if len(x) != len(self.maps):
            raise ValueError(f"{len(x)} feature matrices were given, the network reads {len(self.maps)}")
        return torch.cat([layer(part, *graph) for layer, part in zip(self.maps, x, strict=True)], dim=1)


def several_dropout(x: Features | Sequence[Features], p: float, training: bool) -> Any:
    """Dropout on one feature matrix, or on each of several."""
    if isinstance(x, list | tuple):
        return [feature_dropout(part, p, training) for part in x]
    return feature_dropout(x, p, training)  # type: ignore[arg-type]


def backbones_with(socket: str) -> list[str]:
    """Names of the node classifiers whose network has a socket (``encode_head`` or ``many_inputs``)."""
    from latticework.core import registry

    found = []
    for entry in registry.entries("method"):
        kind = entry.load()
        if issubclass(kind, NodeNetwork) and "node-classification" in kind.tasks and getattr(kind, socket):
            found.append(entry.name)
    return found


class NodeNetwork(Backbone):
    """Fields and fit of a full-batch node classifier; subclasses give `module` and `inputs`."""

    tasks: ClassVar[tuple[str, ...]] = ("node-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[NodeModel]] = NodeModel
    socket: ClassVar[str] = "nodes"  # what its network reads: features and operators of a graph's nodes
    encode_head: ClassVar[bool] = False  # the network has the socket of `EncodeHead`
    many_inputs: ClassVar[bool] = False  # `module(…, inputs=k)` builds a network that reads k feature matrices

    hidden: int = setting(64, "width of the hidden layers", ge=1, le=4096)
    dropout: float = setting(0.5, "dropout on features and hidden layers", ge=0, lt=1, search=(0.0, 0.8))
    lr: float = setting(0.01, "learning rate of Adam", gt=0, le=1, search=(1e-3, 3e-2, "log"))
    weight_decay: float = setting(5e-4, "on all parameters", ge=0, le=1, search=(1e-5, 2e-2, "log"))
    epochs: int = setting(500, "at most", ge=1, le=100_000)
    patience: int = setting(100, "epochs without a better validation value before the fit stops", ge=1)
    stop: Literal["loss", "metric"] = setting("loss", "the epoch is chosen by validation loss, or by the headline")
    row_normalise: bool = setting(True, "divide a node's features by their sum where all are 0 or 1 (bags of words)")

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        """The bare network; with `inputs` > 1 (where `many_inputs`) its first argument is so many feature matrices."""
        raise NotImplementedError

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        """What the network is called with, for the whole graph of a part."""
        raise NotImplementedError

    def settled(self, train: Part) -> dict[str, Any]:
        """What of `common.settled` the method itself settles on its train part."""
        return {}

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        """Parameters by weight decay."""
        return [{"params": list(net.parameters()), "weight_decay": self.weight_decay}]

    def patience_of(self) -> Patience:
        return Patience(epochs=self.patience)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return None if facts["features"] else "the nodes have no features, which it reads; use fastrp or svd"

    def build(self, train: Part, run: Run) -> nn.Module:
        return self.module(len(train.schema["features"]), len(train.schema["classes"]), train.schema)

    def fit(self, train: Part, valid: Part | None, run: Run) -> NodeModel:
        return fit_network(self, train, valid, run)

    def finished(self, net: nn.Module, part: Part) -> NodeModel:
        return self.model(self, dict(part.schema), net)


def fit_network(method: NodeNetwork, part: Part, valid: Part | None, run: Run) -> NodeModel:
    """Full-batch training on the labelled nodes; the weights of the best epoch on the valid part are kept."""
    part, valid = settle(method, part, valid)
    net = method.build(part, run).to(run.device)
    inputs = method.inputs(part, run.device)
    optimiser = torch.optim.Adam(method.groups(net), lr=method.lr)
    index, target = asked_of(part, run.device)

    def step(epoch: int) -> float:
        optimiser.zero_grad(set_to_none=True)
        value = loss_of(net(*inputs)[index], target)
        value.backward()
        optimiser.step()
        return float(value.detach())

    watch = None
    if valid is not None:
        seen = inputs if valid.data is part.data else method.inputs(valid, run.device)
        watch = watching(method.stop, valid, run, lambda: net(*seen))
    epoch = train(net, step, run, epochs=method.epochs, optimiser=optimiser, watch=watch, patience=method.patience_of())
    if valid is not None:
        run.notes.append(f"weights of epoch {epoch + 1}, chosen on validation {method.stop}")
    return method.finished(net.cpu(), part)


def watching(stop: str, valid: Part, run: Run, answer: Callable[[], Tensor]) -> Callable[[], Watch]:
    """A look at the valid part: `answer` gives logits [n, C] of all nodes; `stop` is what the epoch is chosen by."""
    held, truth = asked_of(valid, run.device)

    def look() -> Watch:
        with torch.no_grad():
            logits = answer()[held]
            value = float(loss_of(logits, truth))
        if stop == "loss":
            return Watch(value, {"valid loss": value})
        score = score_of(logits, valid, run)
        # ties in a coarse metric are broken by the loss
        return Watch(-score + 1e-6 * value, {"valid loss": value, "valid": score})

    return look


def score_of(logits: Tensor, valid: Part, run: Run) -> float:
    assert run.task is not None
    chances = torch.sigmoid(logits) if valid.schema["multi"] else torch.softmax(logits, 1)
    value = run.task.value(chances.cpu().numpy().astype(np.float64), valid, run)
    return 0.0 if value is None else value


def asked_of(part: Part, device: str) -> tuple[Tensor, Tensor]:
    y = torch.from_numpy(np.asarray(part.truth.y, np.float32 if part.truth.y.ndim == 2 else np.int64))
    return torch.from_numpy(part.query.rows).to(device), y.to(device)


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    if target.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, target)
    return F.cross_entropy(logits, target)


def features_of(part: Part, device: str, row_normalise: bool) -> Features:
    """The features of all nodes, sparse where they are mostly zero and the device is a CPU."""
    target = getattr(part.query, "target", None)  # of several node types, the one that is asked about
    x: Tensor | None = getattr(part.data if target is None else part.data[target], "x", None)
    if x is None:
        raise UserError("the nodes have no features, and this method reads them; use fastrp or svd, or add columns to nodes.csv")
    if row_normalise and read_as_bags(part, x):
        x = x / x.sum(1, keepdim=True).clamp(min=1e-12)
    return compact(x) if device == "cpu" else x.to(device)


def settle(method: NodeNetwork, train: Part, valid: Part | None) -> tuple[Part, Part | None]:
    """Both parts with what a fit settles on its train part in their schemas."""
    train = train._replace(schema={**train.schema, **method.settled(train)})
    return train, None if valid is None else read_alike(valid, train.schema)


def operator_of(part: Part, **how: Any) -> SparseOperator:
    """The normalised adjacency of a part's graph, symmetrised; kept with the graph.

    Where every edge has its reverse, the two may still differ: in weight, or in how often they are written.
    """
    data = part.data
    return normalised_adjacency(data.edge_index, int(data.num_nodes), data.edge_weight, undirected=True, owner=data, **how)


def device_of(net: nn.Module) -> str:
    found = next(iter(net.parameters()), None)
    return "cpu" if found is None else str(found.device)
