"""What the networks for whole graphs share: inputs, mini-batches, loss, the choice of the epoch, the saved model.

A recipe says how its network is built (`GraphNetwork.module`) and what it adds to each graph beforehand (`prepare`); the rest is
here, once: features, standardised numbers, batches, early stopping, one model for classes and for numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch, Data

from latticework.common.graph_batches import Packed
from latticework.core.errors import UserError
from latticework.core.method import Backbone, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.training import Patience, Watch, train
from latticework.core.value import setting
from latticework.layers.paths import simple_graph

T = TypeVar("T")
GRAPH_TASKS = ("graph-classification", "graph-regression", "subgraph-counting")
MOST_DEGREES = 128  # one-hot degrees: at most so many columns, however large the largest hub


class GraphFault(UserError):
    """What is wrong with one graph of those given, by its place; `told_by_id` puts the user's id there."""

    def __init__(self, graph: int, words: str) -> None:
        super().__init__(f"graph {graph}: {words}")
        self.graph, self.words = graph, words


def told_by_id(part: Part, work: Callable[[], T]) -> T:
    """What `work` gives on a part's graphs; a fault names its graph by the user's id."""
    try:
        return work()
    except GraphFault as fault:
        raise UserError(f"graph {part.query.ids[fault.graph]!r}: {fault.words}") from None


def ready(method: Any, part: Part, schema: Mapping[str, Any]) -> list[Data]:
    """The part's graphs as the method prepares them."""
    made: list[Data] = told_by_id(part, lambda: method.prepare(part.data, schema))
    return made


class GraphNet(nn.Module):
    """A network for whole graphs in two stages: ``out = head(encode(batch))``, so that wrappers can use the vectors.

    ``encode(batch)``: a PyG ``Batch`` with `x` float32 [n, F], `edge_index` int64 [2, m], `edge_attr` float32 [m, D] where the set has
    edge features, `batch`, `ptr`, `num_graphs` (read-outs must take it: trailing graphs may have no node) -> [G, h].
    ``head(z)``: [G, h] -> [G, out], logits or standardised numbers.
    """

    def encode(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def head(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.encode(batch))


class GraphModel(Model):
    """A trained network for whole graphs, rebuilt from the method and the schema; numbers leave in the user's units."""

    scope: Literal["fitted data", "new data"] = "new data"

    def __init__(self, method: GraphNetwork, schema: Mapping[str, Any], net: nn.Module, centre: Tensor, scale: Tensor) -> None:
        self.method: GraphNetwork = method
        self.schema, self.net = schema, net.eval()
        self.centre, self.scale = centre.double(), scale.double()  # [T]; empty for classes

    def predict(self, part: Part) -> Any:
        """Probabilities float64 [q, C], or numbers float64 [q, T] in raw units."""
        if not len(part.data):
            return np.zeros((0, outputs_of(self.schema)))
        device = device_of(self.net)
        packed = Packed(ready(self.method, part, self.schema), device)
        with torch.no_grad():
            out = torch.cat([self.net(packed.batch(rows)) for rows in packed.batches(self.method.batch)])
        return answers_of(out, self.schema, self.centre, self.scale)

    def state(self) -> Mapping[str, Any]:
        weights = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        return {**weights, "target.centre": self.centre, "target.scale": self.scale}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = method.module(schema["inputs"], outputs_of(schema), schema)
        net.load_state_dict({k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")})
        return cls(method, schema, net, state["target.centre"], state["target.scale"])

    def parameters(self) -> int:
        return sum(p.numel() for p in self.net.parameters())


class GraphNetwork(Backbone):
    """Fields and fit of a network for whole graphs; subclasses give `module`, and `prepare` where they add to the graphs.

    What a net learns of the train part before training (the largest degree, the scale of a feature, a histogram) is put into the
    schema by `settled`; `prepare`, `module` and the saved model read it there.
    """

    tasks: ClassVar[tuple[str, ...]] = GRAPH_TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[GraphModel]] = GraphModel
    encode_head: ClassVar[bool] = True  # `module` has the socket of `GraphNet`
    degrees: ClassVar[Callable[[Data], Any]] = staticmethod(lambda graph: degree_of(graph))  # what features=degree counts
    reads_edges: ClassVar[bool] = True  # its net reads a batch's `edge_index`, not only what `prepare` made of it
    computes_equals_once: ClassVar[bool] = False  # compares (parts of) graphs by the features they have when they are prepared

    width: int = setting(64, "width of the hidden layers", ge=1, le=4096, search=[32, 64, 128])
    layers: int = setting(4, "layers that pass messages", ge=1, le=64, search=(2, 6))
    dropout: float = setting(0.3, "dropout on a graph's vector and within the head", ge=0, lt=1, search=(0.0, 0.6))
    lr: float = setting(1e-3, "learning rate", gt=0, le=1, search=(3e-4, 1e-2, "log"))
    weight_decay: float = setting(0.0, "on all parameters (decoupled)", ge=0, le=1)
    batch: int = setting(32, "graphs in a batch", ge=2, le=65_536)
    epochs: int = setting(200, "at most", ge=1, le=100_000)
    patience: int = setting(20, "epochs without a better validation value before the fit stops", ge=1)
    stop: Literal["loss", "metric"] = setting(
        "metric", "the epoch is chosen by the headline on validation (ties by loss), or by loss"
    )
    clip: float = setting(0.0, "largest norm of the gradient; 0: any", ge=0)
    error: Literal["absolute", "squared"] = setting("absolute", "loss of numbers, on standardised targets")
    features: Literal["auto", "given", "degree", "constant"] = setting(
        "auto", "node features: given; one-hot degree; one constant; auto: given, where there are none degree"
    )

    # -- what a recipe may say ---------------------------------------------------------------------------------------
    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> nn.Module:
        """The bare network (a `GraphNet`). `inputs`: width of `x`; ``schema["edge inputs"]``: width of `edge_attr` or 0."""
        raise NotImplementedError

    def settled(self, train: Part) -> dict[str, Any]:
        """The schema with what the net keeps of the train part; JSON values. Extend with ``super().settled(train) | {...}``."""
        return dict(train.schema) | inputs_of(self.features, train.data, train.schema, self.degrees)

    def prepare(self, graphs: Sequence[Data], schema: Mapping[str, Any]) -> list[Data]:
        """New graphs with what the net needs; once a part. `schema` is what `settled` gave. The given ones stay as they are."""
        return with_features(graphs, schema, self.degrees)

    def redraw(self, graphs: list[Data], schema: Mapping[str, Any], epoch: int, run: Run) -> list[Data] | None:
        """The prepared train graphs anew for an epoch, where something in them is drawn (walks); none: as they were."""
        return None

    def extra_loss(self, net: nn.Module, batch: Batch, run: Run) -> Tensor | None:
        """A term that is added to the loss of a train batch."""
        return None

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        kind = torch.optim.AdamW if self.weight_decay else torch.optim.Adam
        return kind(net.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)  # one pass over all parameters

    def schedule(self) -> Callable[[int], float] | None:
        """epoch -> factor on the learning rate."""
        return None

    # -- the fit -----------------------------------------------------------------------------------------------------
    def build(self, train: Part, run: Run) -> nn.Module:
        schema = self.settled(train)
        return self.module(schema["inputs"], outputs_of(schema), schema)

    def fit(self, train: Part, valid: Part | None, run: Run) -> GraphModel:
        return fit_network(self, train, valid, run)


def fit_network(method: GraphNetwork, part: Part, valid: Part | None, run: Run) -> GraphModel:
    """Mini-batch training; the weights of the best epoch on the valid part are kept (the last, without one)."""
    schema = method.settled(part)
    graphs = ready(method, part, schema)
    packed = Packed(graphs, run.device)
    centre, scale = target_scale(part)
    target = targets_of(part, centre, scale).to(run.device)
    net = method.module(schema["inputs"], outputs_of(schema), schema).to(run.device)
    optimiser = method.optimiser(net)
    numbers = target.is_floating_point()

    def step(epoch: int) -> float:
        nonlocal packed
        drawn = method.redraw(graphs, schema, epoch, run)
        if drawn is not None:
            packed = Packed(drawn, run.device)
        total = torch.zeros((), device=run.device)
        for rows in packed.batches(method.batch, run.generator(f"batches {epoch}")):
            batch = packed.batch(rows)
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(net(batch), target[rows.to(run.device)], method.error)
            extra = method.extra_loss(net, batch, run)
            (loss if extra is None else loss + extra).backward()
            if method.clip:
                nn.utils.clip_grad_norm_(net.parameters(), method.clip)
            optimiser.step()
            total += loss.detach() * len(rows)
        return float(total) / len(packed)

    watch = None
    if valid is not None:
        held = Packed(ready(method, valid, schema), run.device)
        watch = watching(method, net, held, valid, targets_of(valid, centre, scale), (centre, scale), run)
    patience = Patience(epochs=method.patience)
    try:
        epoch = train(
            net, step, run, epochs=method.epochs, optimiser=optimiser, schedule=method.schedule(), watch=watch, patience=patience
        )
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # torch's words for a batch of one
            raise
        raise UserError(
            f"{method.name}: batch normalisation needs two train graphs at least, and there is {len(graphs)}; give more graphs"
        ) from None
    if valid is not None:
        run.notes.append(f"weights of epoch {epoch + 1}, chosen on validation {method.stop}")
    if numbers:
        run.notes.append("targets were standardised by the train part's mean and standard deviation")
    return method.model(method, schema, net.cpu(), centre, scale)


def watching(
    method: GraphNetwork, net: nn.Module, held: Packed, valid: Part, target: Tensor, scales: tuple[Tensor, Tensor], run: Run
) -> Callable[[], Watch]:
    """A look at the valid part, whose batches are made once: its loss, and the task's headline where that chooses."""
    batches = [held.batch(rows) for rows in held.batches(method.batch)]

    def look() -> Watch:
        with torch.no_grad():
            out = torch.cat([net(batch) for batch in batches]).cpu()
        value = float(loss_of(out, target, method.error))
        if method.stop == "loss" or run.task is None:
            return Watch(value, {"valid loss": value})
        score = run.task.value(answers_of(out, valid.schema, *scales), valid, run)
        if score is None:
            return Watch(value, {"valid loss": value})
        # ties in a coarse metric are broken by the loss
        sign = -1.0 if run.metric.better == "higher" else 1.0
        return Watch(sign * score + 1e-6 * value, {"valid loss": value, "valid": score})

    return look


# -- answers and targets -----------------------------------------------------------------------------------------------------
def outputs_of(schema: Mapping[str, Any]) -> int:
    """Classes, or targets where the task asks for numbers."""
    return len(schema["classes"]) or len(schema["targets"])


def answers_of(out: Tensor, schema: Mapping[str, Any], centre: Tensor, scale: Tensor) -> Any:
    """A network's output [q, out] as probabilities, or as numbers in raw units; float64."""
    out = out.detach().cpu().double()
    return (torch.softmax(out, 1) if schema["classes"] else out * scale + centre).numpy()


def target_scale(part: Part) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation float64 [T] of the train part's targets; empty for classes. A constant target has scale 1."""
    if part.schema["classes"]:
        return torch.zeros(0, dtype=torch.float64), torch.ones(0, dtype=torch.float64)
    y = torch.from_numpy(np.asarray(part.truth.y, np.float64))
    scale = y.std(0, correction=0)
    return y.mean(0), torch.where(scale > 1e-12, scale, torch.ones_like(scale))


def targets_of(part: Part, centre: Tensor, scale: Tensor) -> Tensor:
    """What the network is to give: classes int64 [q], or standardised numbers float32 [q, T]."""
    if part.schema["classes"]:
        return torch.from_numpy(np.asarray(part.truth.y, np.int64))
    return ((torch.from_numpy(np.asarray(part.truth.y, np.float64)) - centre) / scale).float()


def loss_of(out: Tensor, target: Tensor, error: str = "absolute") -> Tensor:
    """Cross-entropy of classes; mean absolute or squared error of numbers."""
    if not target.is_floating_point():
        return F.cross_entropy(out, target)
    return F.l1_loss(out, target) if error == "absolute" else F.mse_loss(out, target)


# -- features ----------------------------------------------------------------------------------------------------------------
def inputs_of(
    rule: str, graphs: Sequence[Data], schema: Mapping[str, Any], degrees: Callable[[Data], Any] | None = None
) -> dict[str, Any]:
    """What the features rule keeps of the train graphs: `rule`, `inputs`, `edge inputs`, the degree cap, the columns' scales."""
    if rule == "auto":
        rule = "given" if schema["features"] else "degree"
    if rule == "given" and not schema["features"]:
        raise UserError("features=given, but the nodes of these graphs have none; use features=degree or features=constant")
    found: dict[str, Any] = {"rule": rule, "edge inputs": len(schema["edge_features"])}
    if rule == "given":
        found |= {"inputs": len(schema["features"]), "x scales": _column_scales([g.x for g in graphs])}
    elif rule == "degree":
        largest = max((int((degrees or degree_of)(g).max(initial=0)) for g in graphs), default=0)
        found |= {"degree cap": min(largest, MOST_DEGREES - 1), "inputs": min(largest, MOST_DEGREES - 1) + 1}
    else:
        found["inputs"] = 1
    if schema["edge_features"]:
        found["edge scales"] = _column_scales([g.edge_attr for g in graphs])
    return found


def _column_scales(columns: Sequence[Tensor]) -> list[list[float]] | None:
    """[centre, scale] of each column; (0, 1) where a column holds only 0 and 1; none where all do."""
    x = torch.cat(list(columns)).double() if columns else torch.zeros(0, 0)
    if not len(x):
        return None
    plain = ((x == 0) | (x == 1)).all(0)
    if bool(plain.all()):
        return None
    scale = x.std(0, correction=0)
    scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
    pairs = zip(torch.where(plain, 0.0, x.mean(0)).tolist(), torch.where(plain, 1.0, scale).tolist(), strict=True)
    return [[c, s] for c, s in pairs]


def with_features(graphs: Sequence[Data], schema: Mapping[str, Any], degrees: Callable[[Data], Any] | None = None) -> list[Data]:
    """New graphs whose `x` float32 [n, inputs] follows the rule that `inputs_of` settled; edge features on the train's scale."""
    made = []
    for graph in graphs:
        new = copy.copy(graph)
        n = int(graph.num_nodes or 0)
        if schema["rule"] == "given":
            new.x = _scaled(graph.x, schema.get("x scales"))
        elif schema["rule"] == "degree":
            place = torch.from_numpy(np.minimum((degrees or degree_of)(graph), schema["degree cap"]))
            new.x = F.one_hot(place, schema["inputs"]).float()
        else:
            new.x = torch.ones(n, 1)
        if schema["edge inputs"]:
            new.edge_attr = _scaled(graph.edge_attr, schema.get("edge scales"))
        made.append(new)
    return made


def _scaled(x: Tensor, scales: Sequence[Sequence[float]] | None) -> Tensor:
    if scales is None:
        return x
    pairs = torch.tensor(scales, dtype=torch.float64)
    return ((x.double() - pairs[:, 0]) / pairs[:, 1]).float()


def degree_of(graph: Data) -> Any:
    """int64 [n]: edges that end in each node, as the file writes them (undirected: its degree)."""
    return np.bincount(graph.edge_index[1].numpy(), minlength=int(graph.num_nodes or 0))


def unlike_simple(graph: Data) -> tuple[int, int, int]:
    """How many edges a simple graph would not have, or lacks: self-loops, repeats, edges whose reverse is not written."""
    u, v = graph.edge_index.numpy()
    n = int(graph.num_nodes or 0)
    keys = np.unique(u * n + v)
    lacking = ~np.isin(keys % n * n + keys // n, keys) if n else np.zeros(0, bool)
    return int((u == v).sum()), len(u) - len(keys), int(lacking.sum())


def simple_degree_of(graph: Data) -> Any:
    """int64 [n]: different neighbours, whichever way an edge is written; the node itself is none."""
    return np.diff(simple_graph(graph.edge_index.numpy(), int(graph.num_nodes or 0)).indptr)


def device_of(net: nn.Module) -> str:
    found = next(iter(net.parameters()), None)
    return "cpu" if found is None else str(found.device)
