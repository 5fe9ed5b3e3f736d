"""Contrastive training for any network of whole graphs, with views that drop the edges which matter least.

``L = L_task + strength * L_con``: each train batch is also encoded as two views with some edges dropped, and the two vectors of a
graph are pulled together against those of all others (NT-Xent). An edge's importance ``a_uv = sigmoid(MLP([h_u + h_v, |h_u - h_v|]))``
is read from the encoder's node states (no gradient into them), and ``p_uv = min(p (a_max - a_uv) / (a_max - a_mean), p_max)`` of its
own graph is the chance that it is dropped, so that each graph loses about a share p and important edges stay. The scorer learns
through straight-through Bernoulli draws: the weight of a kept edge is 1 and has the gradient of the concrete relaxation.

Source: "Revisiting Graph Neural Networks on Graph-level Tasks" (arXiv 2501.00773, 2025); its abstract alone is in reach: that edges of
little importance are removed adaptively in contrastive learning is the paper's, the scorer and the rates are this library's reading.
NT-Xent: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020), equation 1, without the
positive in the denominator as in GraphCL (You et al., NeurIPS 2020); the normalisation of the rates: GCA (Zhu et al., WWW 2021).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch, Data

from latticework.common.graph_batches import Packed
from latticework.core.errors import UserError
from latticework.core.method import Backbone, Predictor
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.layers.contrastive import weighted_info_nce

from .network import GRAPH_TASKS, GraphModel, GraphNet, GraphNetwork, device_of, fit_network

SHOWN = 3  # graphs whose edges `explain` lists


# -- the science -------------------------------------------------------------------------------------------------------------
class EdgeScorer(nn.Module):
    """``a_uv = sigmoid(MLP([h_u + h_v, |h_u - h_v|]))``: h [n, d], pairs int64 [2, E] -> (0, 1) [E]; the same for (v, u)."""

    def __init__(self, features: int, width: int = 64) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(2 * features, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, h: Tensor, pairs: Tensor) -> Tensor:
        u, v = h[pairs[0]], h[pairs[1]]
        return torch.sigmoid(self.mlp(torch.cat([u + v, (u - v).abs()], 1)).squeeze(1))


def pairs_of(edge_index: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """The joined pairs int64 [2, E] (u < v) of edges int64 [2, m], and each edge's pair int64 [m], -1 for a self-loop."""
    low, high = edge_index.min(0).values, edge_index.max(0).values
    there = low != high
    code, place = torch.unique(low[there] * nodes + high[there], return_inverse=True)
    pair = torch.full((edge_index.shape[1],), -1, dtype=torch.int64, device=edge_index.device)
    pair[there] = place
    return torch.stack([code // max(nodes, 1), code % max(nodes, 1)]), pair


def drop_chances(a: Tensor, graph: Tensor, graphs: int, p: float, most: float = 0.7) -> Tensor:
    """``min(p (a_max - a) / (a_max - a_mean + 1e-9), most)``, maximum and mean over the edges of the same graph.

    a [E] in (0, 1), `graph` int64 [E] -> [E]. The most important edge of a graph has 0, and so have all where all are equal; where
    no chance is cut at `most` the mean of a graph is p.
    """
    top = a.new_zeros(graphs).scatter_reduce(0, graph, a, "amax", include_self=False)
    count = a.new_zeros(graphs).index_add(0, graph, torch.ones_like(a)).clamp(min=1)
    mean = a.new_zeros(graphs).index_add(0, graph, a) / count
    return (p * (top[graph] - a) / (top - mean + 1e-9)[graph]).clamp(max=most)


def straight_through(chance: Tensor, uniform: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """What stays where each item is dropped with its own chance: kept bool [E], and weights [E] that are exactly 0 or 1.

    `uniform` [E] in [0, 1): an item stays where it is at least its chance. The weights' gradient is that of the binary concrete
    relaxation ``sigmoid((logit(1 - chance) + logit(uniform)) / temperature)``, which is above 1/2 for just the items that stay.
    """
    kept = uniform >= chance.detach()
    soft = torch.sigmoid((_logit(1 - chance) + _logit(uniform)) / temperature)
    hard = kept.to(chance.dtype)
    return kept, hard + (soft - soft.detach())


def _logit(x: Tensor) -> Tensor:
    return torch.logit(x.clamp(1e-6, 1 - 1e-6))


def nt_xent(first: Tensor, second: Tensor, tau: float = 0.5) -> Tensor:
    """NT-Xent of two views [B, d] of B graphs: ``-mean_i log(e^(s_ip / tau) / sum_(j != i, p) e^(s_ij / tau))`` over the 2B vectors.

    s is the cosine and p the other view of the same graph; the sum is over the 2B - 2 vectors of other graphs. With equal views it
    is ``mean_i log(2 sum_(j != i) e^(cos(z_i, z_j) / tau)) - 1 / tau``. 0 for a single graph, which has no other to be told from.
    ``ValueError`` for tau <= 0 or views of different shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"the views must have one shape [B, d], have {tuple(first.shape)} and {tuple(second.shape)}")
    size = len(first)
    if size < 2:
        return first.sum() * 0
    a, b = F.normalize(first, dim=1), F.normalize(second, dim=1)

    def others(rows: Tensor, anchors: Tensor, positives: Tensor) -> Tensor:
        # column j of row i is the positive of j: i's own at j = i, i itself at the other half's place
        weight = anchors.new_ones(len(rows), len(positives))
        weight[torch.arange(len(rows), device=rows.device), rows] = 0
        weight[torch.arange(len(rows), device=rows.device), (rows + size) % (2 * size)] = 0
        return weight

    return weighted_info_nce(torch.cat([a, b]), torch.cat([b, a]), tau, others)


# -- any network of whole graphs ---------------------------------------------------------------------------------------------
class ContrastNet(GraphNet):
    """A network with a projector, and with a scorer of edges where views are adaptive; it answers as the network alone does."""

    def __init__(self, net: GraphNet, vectors: int, states: int | None, width: int = 64) -> None:
        super().__init__()
        self.net = net
        self.projector = nn.Sequential(nn.Linear(vectors, width), nn.ReLU(), nn.Linear(width, width))
        self.scorer = None if states is None else EdgeScorer(states)
        self.seen: Tensor | None = None  # node states of the last train batch
        self.learned = False  # whether the scorer ever had a gradient
        self.dropped: list[tuple[float, float]] = []  # (edges dropped, edges) of each view

    def encode(self, batch: Batch) -> Tensor:
        if not (self.training and self.scorer is not None):
            return self.net.encode(batch)
        with captured(self.net, int(batch.num_nodes)) as found:
            z = self.net.encode(batch)
        self.seen = self.states(found)
        return z

    def states(self, found: Sequence[Tensor]) -> Tensor | None:
        """What the scorer reads of the outputs that `captured` found: the last as wide as it (graphs' vectors may have as many rows)."""
        assert self.scorer is not None
        return next((h for h in reversed(found) if h.shape[1] == self.scorer.features), None)

    def head(self, z: Tensor) -> Tensor:
        return self.net.head(z)


@contextlib.contextmanager
def captured(net: nn.Module, nodes: int) -> Iterator[list[Tensor]]:
    """The outputs of a network's modules that have a row for each node, in order, without their gradients."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.dim() == 2 and len(out) == nodes and out.is_floating_point():
            found.append(out.detach())

    hooks = [module.register_forward_hook(keep) for module in net.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def without_statistics(net: nn.Module) -> Iterator[None]:
    """Batch normalisation reads a batch and its running statistics stay as they are: views are not what is answered."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in norms]
    for module in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, (momentum, count) in zip(norms, before, strict=True):
            module.momentum = momentum
            if count is not None and module.num_batches_tracked is not None:
                module.num_batches_tracked.copy_(count)


@contextlib.contextmanager
def weighted_messages(net: nn.Module, edge_index: Tensor, weight: Tensor) -> Iterator[None]:
    """Each message of PyG's layers times its edge's weight [m], by the masks that PyG has for its explainers."""
    from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

    set_masks(net, weight, edge_index, apply_sigmoid=False)
    try:
        yield
    finally:
        clear_masks(net)


def plain_view(batch: Any, kept: Tensor) -> Any:
    """A batch with the edges `kept` bool [m] alone; what was made of the edges beforehand (degrees, codes) stays as it was."""
    made = copy.copy(batch)
    made.edge_index = batch.edge_index[:, kept]
    if batch.edge_attr is not None:
        made.edge_attr = batch.edge_attr[kept]
    return made


# -- the recipe --------------------------------------------------------------------------------------------------------------
class ContrastModel(GraphModel):
    """A network trained with contrastive views; it can say which edges its scorer holds to be important."""

    def explain(self, part: Part) -> Findings:
        """Where views were adaptive: the importance of each edge of the first graphs, the least important first."""
        net = cast(ContrastNet, self.net)
        if net.scorer is None or not part.data:
            return Findings()
        graphs = part.data[:SHOWN]
        batch = Packed(self.method.prepare(graphs, self.schema), device_of(net)).batch(torch.arange(len(graphs)))
        with torch.no_grad(), captured(net.net, int(batch.num_nodes)) as found:
            net.net.encode(batch)
            pairs, _ = pairs_of(batch.edge_index, int(batch.num_nodes))
            states = net.states(found)
            if states is None or not pairs.shape[1]:
                return Findings()
            a = net.scorer(states, pairs)
        rows = []
        for e in torch.argsort(a).tolist():
            u, v = pairs[:, e].tolist()
            g = int(batch.batch[u])
            start = int(batch.ptr[g])
            rows.append({"graph": part.query.ids[g], "edge": f"{u - start} – {v - start}", "importance": float(a[e])})
        return Findings({}, {"importance of edges": sorted(rows, key=lambda row: str(row["graph"]))})


class ContrastMethod(Backbone):
    """Trains any network of whole graphs with a contrastive term whose views drop unimportant edges (arXiv 2501.00773).

    ``drop=adaptive`` spares the edges that a learned scorer holds to be important, ``random`` drops every edge with chance p, and
    with ``none`` both views are the graph itself, told apart by dropout alone. ``strength=0`` trains the backbone as it is, bit for
    bit. Views are made in training only; k-path counts its paths anew in each view, other networks keep what was made of the edges
    beforehand (degrees as features, structural codes). A step costs about three of the backbone's. The scorer learns where the
    backbone's layers are PyG's or k-path's; others leave it as it was initialised, and the fit says so.
    """

    name: ClassVar[str] = "contrast"
    tasks: ClassVar[tuple[str, ...]] = GRAPH_TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[GraphModel]] = ContrastModel
    encode_head: ClassVar[bool] = True

    backbone: Backbone = setting("k-path", "the network that is trained: any with the socket encode/head")
    strength: float = setting(0.1, "weight of the contrastive term; 0: none", ge=0, le=100, search=[0.0, 0.01, 0.1, 1.0])
    drop: Literal["adaptive", "random", "none"] = setting("adaptive", "which edges the views drop")
    p: tuple[float, float] = setting((0.2, 0.3), "share of the edges that each view drops")
    p_max: float = setting(0.7, "largest chance of an edge to be dropped", ge=0, lt=1)
    tau: float = setting(0.5, "temperature of the contrast", gt=0, le=100)

    @field_validator("p")
    @classmethod
    def _shares(cls, p: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= share < 1 for share in p):
            raise ValueError(f"shares lie in [0, 1), are {p[0]} and {p[1]}")
        return p

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if not isinstance(self.backbone, GraphNetwork) or not self.backbone.encode_head:
            return f"its backbone {self.backbone.name} has no socket encode/head for whole graphs; use gin or k-path"
        if self.drop != "none" and not self.backbone.reads_edges:
            return (
                f"its backbone {self.backbone.name} reads what was made of the edges beforehand, so that views without some of them "
                f"would change nothing; use {self.backbone.name} as it is, or gin or k-path as the backbone"
            )
        return self.backbone.refuses(task, facts)

    # -- what the shared fit asks of a method: the backbone's --------------------------------------------------------------
    @property
    def network(self) -> GraphNetwork:
        if not isinstance(self.backbone, GraphNetwork):
            raise UserError(f"contrast: {self.backbone.name} has no socket encode/head for whole graphs; use gin or k-path")
        return self.backbone

    @property
    def batch(self) -> int:
        return self.network.batch

    @property
    def epochs(self) -> int:
        return self.network.epochs

    @property
    def patience(self) -> int:
        return self.network.patience

    @property
    def stop(self) -> str:
        return self.network.stop

    @property
    def clip(self) -> float:
        return self.network.clip

    @property
    def error(self) -> str:
        return self.network.error

    def settled(self, train: Part) -> dict[str, Any]:
        return self.network.settled(train)

    def prepare(self, graphs: Sequence[Data], schema: Mapping[str, Any]) -> list[Data]:
        return self.network.prepare(graphs, schema)

    def redraw(self, graphs: list[Data], schema: Mapping[str, Any], epoch: int, run: Run) -> list[Data] | None:
        return self.network.redraw(graphs, schema, epoch, run)

    def optimiser(self, net: nn.Module) -> torch.optim.Optimizer:
        return self.network.optimiser(net)

    def schedule(self) -> Callable[[int], float] | None:
        return self.network.schedule()

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> nn.Module:
        """The backbone's network inside a `ContrastNet`; the rest leaves torch's generator as the backbone left it."""
        net = self.network.module(inputs, outputs, schema)
        with torch.random.fork_rng(devices=[]):
            vectors, states = self._widths(cast(GraphNet, net), schema)
            if self.drop == "adaptive" and states is None:
                raise UserError(
                    f"contrast: {self.backbone.name} has no layer with a state for each node, which drop=adaptive reads; "
                    "use drop=random"
                )
            return ContrastNet(cast(GraphNet, net), vectors, states if self.drop == "adaptive" else None)

    def _widths(self, net: GraphNet, schema: Mapping[str, Any]) -> tuple[int, int | None]:
        """Width of a graph's vector and of its node states, from three nodes in a row."""
        edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        path: dict[str, Any] = {"edge_index": edges, "num_nodes": 3}
        if schema["features"]:
            path["x"] = torch.zeros(3, len(schema["features"]))
        if schema["edge_features"]:
            path["edge_attr"] = torch.zeros(4, len(schema["edge_features"]))
        batch = Packed(self.prepare([Data(**path)], schema)).batch(torch.zeros(1, dtype=torch.int64))
        training = net.training
        net.eval()
        with torch.no_grad(), captured(net, 3) as found:
            z = net.encode(batch)
        net.train(training)
        return z.shape[1], found[-1].shape[1] if found else None

    # -- views -------------------------------------------------------------------------------------------------------------
    def extra_loss(self, net: nn.Module, batch: Batch, run: Run) -> Tensor | None:
        """``strength * NT-Xent`` of two views of a train batch, and the backbone's own term."""
        own = self.network.extra_loss(cast(ContrastNet, net).net, batch, run)
        if not self.strength:
            return own
        assert isinstance(net, ContrastNet)
        pairs, pair = pairs_of(batch.edge_index, int(batch.num_nodes))
        graph = batch.batch[pairs[0]]
        a = None
        if self.drop == "adaptive" and pairs.shape[1]:
            assert net.scorer is not None and net.seen is not None
            a = net.scorer(net.seen, pairs)
            a.register_hook(lambda slope: setattr(net, "learned", net.learned or bool(slope.any())))
        vectors = []
        with without_statistics(net):
            for share in self.p:
                z = self._encoded(net, batch, pair, self._chances(a, graph, pairs.shape[1], int(batch.num_graphs), share))
                vectors.append(net.projector(z))
        found = self.strength * nt_xent(vectors[0], vectors[1], self.tau)
        return found if own is None else own + found

    def _chances(self, a: Tensor | None, graph: Tensor, pairs: int, graphs: int, share: float) -> Tensor | None:
        if self.drop == "none" or not pairs or not share:
            return None
        if a is None:
            return torch.full((pairs,), min(share, self.p_max), device=graph.device)
        return drop_chances(a, graph, graphs, share, self.p_max)

    def _encoded(self, net: ContrastNet, batch: Batch, pair: Tensor, chance: Tensor | None) -> Tensor:
        """The vectors [G, h] of a view; `pair` int64 [m] is the joined pair of each edge, `chance` [E] what each is dropped with."""
        if chance is None:
            return net.net.encode(batch)
        kept, weight = straight_through(chance, torch.rand(len(chance)).to(chance.device))
        net.dropped.append((float((~kept).sum()), float(len(kept))))
        loops = pair < 0
        stays = loops | kept[pair]
        each = weight[pair].masked_fill(loops, 1.0) if chance.requires_grad else None
        view = getattr(self.network, "view", None)
        if view is not None:
            return net.net.encode(view(batch, stays, each))
        smaller = plain_view(batch, stays)
        if each is None:
            return net.net.encode(smaller)
        with weighted_messages(net.net, smaller.edge_index, each[stays]):
            return net.net.encode(smaller)

    # -- the fit -----------------------------------------------------------------------------------------------------------
    def build(self, train: Part, run: Run) -> nn.Module:
        return self.network.build(train, run)

    def fit(self, train: Part, valid: Part | None, run: Run) -> GraphModel:
        notes = getattr(self.network, "notes_of", None)
        if notes is not None:
            run.notes += notes(train)
        model = fit_network(cast(GraphNetwork, self), train, valid, run)
        net = cast(ContrastNet, model.net)
        if net.dropped:
            gone, edges = (sum(column) for column in zip(*net.dropped, strict=True))
            run.notes.append(f"views dropped {gone / max(edges, 1):.1%} of the edges ({self.drop})")
        if net.scorer is not None and self.strength and not net.learned:
            if not any(self.p) or not self.p_max:
                why = "the chances that an edge is dropped are 0"
            elif not net.dropped:
                why = "the train graphs have no edges"
            else:
                why = f"no layer of {self.backbone.name} weighs its messages by edge"
            run.notes.append(f"the scorer of edges learned nothing: {why}")
        return model
