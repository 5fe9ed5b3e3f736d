"""What must be beaten on whole graphs: the trivial and the classic answers, and the usual graph networks.

The networks are PyG's layers in one frame (a first map, layers with normalisation and residual links, a read-out, a two-layer
head), with depth, width, read-out, residual links and dropout as fields that tuning searches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric import nn as pyg
from torch_geometric.data import Batch, Data

from latticework.common.majority import MajorityModel, shares_of
from latticework.core.errors import UserError
from latticework.core.method import Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting

from . import wl_kernel
from .codes import codes_of
from .network import GRAPH_TASKS, GraphModel, GraphNet, GraphNetwork, degree_of, inputs_of, with_features
from .of_nodes import NodesOrGraphs, NodesOrGraphsModel

Array = NDArray[Any]


# -- trivial -----------------------------------------------------------------------------------------------------------------
class GraphMajority(Method):
    """Answers every graph with the shares of the classes among the train graphs."""

    name: ClassVar[str] = "graph-majority"
    tasks: ClassVar[tuple[str, ...]] = ("graph-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[MajorityModel]] = MajorityModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> MajorityModel:
        return MajorityModel(self, dict(train.schema), shares_of(train.truth.y, len(train.schema["classes"])))


class MeanModel(Model):
    """The same numbers float64 [T] for every graph."""

    def __init__(self, method: Method, schema: Mapping[str, Any], mean: Tensor) -> None:
        self.method, self.schema, self.mean = method, schema, mean

    def predict(self, part: Part) -> Array:
        """float64 [q, T]."""
        return self.mean.expand(len(part.query.rows), -1).numpy()

    def state(self) -> Mapping[str, Any]:
        return {"mean": self.mean}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["mean"])


class GraphMean(Method):
    """Answers every graph with the mean of the train graphs' numbers (or their median, which the absolute error wants)."""

    name: ClassVar[str] = "graph-mean"
    tasks: ClassVar[tuple[str, ...]] = ("graph-regression", "subgraph-counting")
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[MeanModel]] = MeanModel
    of: Literal["mean", "median"] = setting("mean", "what is answered")

    def fit(self, train: Part, valid: Part | None, run: Run) -> MeanModel:
        y = np.asarray(train.truth.y, np.float64)
        return MeanModel(self, dict(train.schema), torch.from_numpy(y.mean(0) if self.of == "mean" else np.median(y, 0)))


# -- sums of node features -----------------------------------------------------------------------------------------------
def bag(graphs: Sequence[Data]) -> Array:
    """float64 [G, 2 F + 4]: sums and means of the node features, and the numbers of nodes and edges, as they are and as log(1 + n)."""
    rows = []
    for g in graphs:
        x, n, m = g.x.double().numpy(), int(g.num_nodes or 0), g.edge_index.shape[1]
        rows.append(np.concatenate([x.sum(0), x.sum(0) / max(n, 1), [n, m, np.log1p(n), np.log1p(m)]]))
    return np.stack(rows)


class BagModel(Model):
    """A scikit-learn pipeline on `bag`; a class that no train graph had gets 0."""

    def __init__(self, method: BagOfFeatures, schema: Mapping[str, Any], estimator: Any) -> None:
        self.method, self.schema, self.estimator = method, schema, estimator

    def predict(self, part: Part) -> Array:
        """Probabilities float64 [q, C], or numbers [q, T]."""
        outputs = len(self.schema["classes"]) or len(self.schema["targets"])
        if not len(part.data):
            return np.zeros((0, outputs))
        x = bag(with_features(part.data, self.schema))
        if not self.schema["classes"]:
            return np.asarray(self.estimator.predict(x)).reshape(len(x), outputs)
        chances = np.zeros((len(x), outputs))
        chances[:, self.estimator.classes_.astype(int)] = self.estimator.predict_proba(x)
        return chances

    def state(self) -> Mapping[str, Any]:
        return {"estimator": self.estimator}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["estimator"])

    def parameters(self) -> int:
        return int(np.size(self.estimator[-1].coef_) + np.size(self.estimator[-1].intercept_))


class BagOfFeatures(Method):
    """Logistic or ridge regression on sums and means of node features and the graph's size: what structure must add to.

    Graphs without node features are read by their degrees (one-hot, as the networks do).
    """

    name: ClassVar[str] = "bag-of-features"
    tasks: ClassVar[tuple[str, ...]] = GRAPH_TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[BagModel]] = BagModel
    c: float = setting(1.0, "inverse of the L2 penalty", gt=0, le=1e6, search=(1e-3, 1e3, "log"))

    def fit(self, train: Part, valid: Part | None, run: Run) -> BagModel:
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        schema = dict(train.schema) | inputs_of("auto", train.data, train.schema)
        last = LogisticRegression(C=self.c, max_iter=2000) if schema["classes"] else Ridge(alpha=1 / self.c)
        estimator = make_pipeline(StandardScaler(), last).fit(bag(with_features(train.data, schema)), train.truth.y)
        return BagModel(self, schema, estimator)


# -- WL kernel ---------------------------------------------------------------------------------------------------------------
class WLModel(Model):
    """A kernel machine on WL counts: the train graphs' counts and what scikit-learn fitted on their kernel."""

    def __init__(
        self, method: WLSVM, schema: Mapping[str, Any], known: Array, features: sp.csr_array, estimator: Any, mean: Tensor
    ) -> None:
        self.method: WLSVM = method
        self.schema, self.known, self.features, self.estimator, self.mean = schema, known, features, estimator, mean

    def predict(self, part: Part) -> Array:
        """Probabilities float64 [q, C], or numbers [q, T] in raw units."""
        outputs = len(self.schema["classes"]) or len(self.schema["targets"])
        if not len(part.data):
            return np.zeros((0, outputs))
        found, graph = wl_kernel.colours_of(part.data, self.method.iterations)
        new = wl_kernel.normalised(*wl_kernel.counts(found, graph, len(part.data), self.known))
        kernel = (new @ self.features.T).toarray()
        if not self.schema["classes"]:
            return np.asarray(self.estimator.predict(kernel)).reshape(len(kernel), outputs) + self.mean.numpy()
        chances = np.zeros((len(kernel), outputs))
        chances[:, self.estimator.classes_.astype(int)] = self.estimator.predict_proba(kernel)
        return chances

    def state(self) -> Mapping[str, Any]:
        return {
            "known": torch.from_numpy(self.known.view(np.int64)), "shape": torch.tensor(self.features.shape),
            "counts.indptr": torch.from_numpy(self.features.indptr.astype(np.int64)),
            "counts.indices": torch.from_numpy(self.features.indices.astype(np.int64)),
            "counts.values": torch.from_numpy(self.features.data), "mean": self.mean, "estimator": self.estimator,
        }  # fmt: skip

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        parts = tuple(state[f"counts.{name}"].numpy() for name in ("values", "indices", "indptr"))
        features = sp.csr_array(parts, shape=tuple(state["shape"].tolist()))
        return cls(method, schema, state["known"].numpy().view(np.uint64), features, state["estimator"], state["mean"])

    def parameters(self) -> int:
        return int(self.features.nnz)


class WLSVM(Method):
    """A support vector machine on the normalised Weisfeiler-Lehman subtree kernel; kernel ridge regression of numbers.

    Node and edge features are read as categories (equal rows, equal colour), so attributes that are measured on a scale say little
    here. Probabilities are the decision values through a sigmoid fitted in cross-validation on the train graphs.
    Source: Shervashidze et al., "Weisfeiler-Lehman Graph Kernels" (JMLR 2011). Memory grows with the square of the train graphs.
    """

    name: ClassVar[str] = "wl-svm"
    tasks: ClassVar[tuple[str, ...]] = GRAPH_TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[WLModel]] = WLModel
    iterations: int = setting(4, "depth of the subtrees", ge=0, le=20, search=(1, 6))
    c: float = setting(10.0, "cost of errors of the machine; ridge penalty 1 / (2 c)", gt=0, le=1e6, search=(1e-1, 1e3, "log"))

    def fit(self, train: Part, valid: Part | None, run: Run) -> WLModel:
        found, graph = wl_kernel.colours_of(train.data, self.iterations)
        known = wl_kernel.vocabulary(found)
        features = wl_kernel.normalised(*wl_kernel.counts(found, graph, len(train.data), known))
        kernel = (features @ features.T).toarray()
        y = train.truth.y
        if train.schema["classes"]:
            return WLModel(self, dict(train.schema), known, features, calibrated(kernel, y, self.c, run), torch.zeros(0))
        from sklearn.kernel_ridge import KernelRidge

        mean = torch.from_numpy(np.asarray(y, np.float64).mean(0))
        estimator = KernelRidge(alpha=1 / (2 * self.c), kernel="precomputed").fit(kernel, y - mean.numpy())
        return WLModel(self, dict(train.schema), known, features, estimator, mean)


def calibrated(kernel: Array, y: Array, c: float, run: Run) -> Any:
    """A support vector machine of a precomputed kernel [n, n] whose decision values give probabilities."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    machine = SVC(C=c, kernel="precomputed")
    smallest = int(np.bincount(y)[np.unique(y)].min())
    cut: Any = min(5, smallest)
    if smallest < 2:
        run.notes.append("a class has one train graph: probabilities were fitted on the train graphs' own decision values")
        cut = [(np.arange(len(y)), np.arange(len(y)))]
    return CalibratedClassifierCV(machine, method="sigmoid", cv=cut, ensemble=False).fit(kernel, y)


# -- networks ----------------------------------------------------------------------------------------------------------------
ReadOut = Literal["sum", "mean", "max", "sum-mean"]


def read_out(h: Tensor, batch: Batch, how: ReadOut) -> Tensor:
    """Node states [n, h] -> one vector a graph, [G, h] ([G, 2 h] for sum-mean)."""
    parts = {"sum": pyg.global_add_pool, "mean": pyg.global_mean_pool, "max": pyg.global_max_pool}
    return torch.cat([parts[word](h, batch.batch, batch.num_graphs) for word in how.split("-")], 1)


class ConvGraphNet(GraphNet):
    """``h_0 = W x``; ``h_(l+1) = relu(norm(conv_l(h_l))) [+ h_l]``; ``z`` the read-out of the last states, or of all side by side
    (`reads` vectors of each; 0: as many as the read-out gives).

    The head is ``W_2 drop(relu(W_1 drop(z)))``: dropout where a graph is one row costs nothing.
    """

    def __init__(
        self, inputs: int, outputs: int, convolutions: Sequence[nn.Module], method: Convolutions, reads: int = 0
    ) -> None:
        super().__init__()
        width = method.width
        self.start = nn.Linear(inputs, width)
        self.convolutions = nn.ModuleList(convolutions)
        kinds = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
        self.norms = nn.ModuleList(kinds[method.norm](width) if method.norm in kinds else nn.Identity() for _ in convolutions)
        vectors = (len(convolutions) + 1 if method.jump else 1) * (reads or len(method.readout.split("-")))
        self.first, self.last = nn.Linear(vectors * width, width), nn.Linear(width, outputs)
        self.dropout, self.residual, self.jump = method.dropout, method.residual, method.jump
        self.readout: ReadOut = method.readout

    def encode(self, batch: Batch) -> Tensor:
        h = self.start(batch.x)
        states = [h]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            new = F.relu(norm(convolution(h, batch)))
            h = h + new if self.residual else new
            states.append(h)
        return torch.cat([read_out(s, batch, self.readout) for s in (states if self.jump else states[-1:])], 1)

    def head(self, z: Tensor) -> Tensor:
        h = F.relu(self.first(F.dropout(z, self.dropout, self.training)))
        return self.last(F.dropout(h, self.dropout, self.training))


class OnBatch(nn.Module):
    """A PyG convolution called with a batch; `edges`: it reads edge features."""

    def __init__(self, convolution: nn.Module, edges: bool = False) -> None:
        super().__init__()
        self.convolution, self.edges = convolution, edges

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        return self.convolution(h, batch.edge_index, batch.edge_attr) if self.edges else self.convolution(h, batch.edge_index)


class Convolutions(GraphNetwork):
    """Fields that the usual graph networks share."""

    norm: Literal["batch", "layer", "none"] = setting("batch", "normalisation after each layer")
    residual: bool = setting(False, "add a layer's input to its output", search=[False, True])
    readout: ReadOut = setting("mean", "how node states become a graph's vector", search=["sum", "mean"])
    jump: bool = setting(False, "read the states of all layers, side by side")

    def convolution(self, edges: int, schema: Mapping[str, Any]) -> nn.Module:
        """One layer: (h [n, width], batch) -> [n, width]; `edges`: width of the edge features, 0: none."""
        raise NotImplementedError

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> nn.Module:
        made = [self.convolution(schema["edge inputs"], schema) for _ in range(self.layers)]
        return ConvGraphNet(inputs, outputs, made, self)


def mlp(width: int) -> nn.Sequential:
    """The two-layer map of GIN, with normalisation between."""
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))


def gin_layer(width: int, edges: int) -> OnBatch:
    """``MLP((1 + eps) h_v + sum_u h_u)``; with edge features ``relu(h_u + W e_uv)`` in the sum (GINE)."""
    if edges:
        return OnBatch(pyg.GINEConv(mlp(width), train_eps=True, edge_dim=edges), edges=True)
    return OnBatch(pyg.GINConv(mlp(width), train_eps=True))


class GIN(Convolutions):
    """Graph isomorphism network, sums over neighbours and over nodes, all layers read. Source: Xu et al., ICLR 2019.

    Edge features, where there are some, enter as in GINE (Hu et al., ICLR 2020).
    """

    name: ClassVar[str] = "gin"
    readout: ReadOut = setting("sum", "how node states become a graph's vector", search=["sum", "mean"])
    jump: bool = setting(True, "read the states of all layers, side by side")

    def convolution(self, edges: int, schema: Mapping[str, Any]) -> nn.Module:
        return gin_layer(self.width, edges)


class GraphGCN(Convolutions):
    """Graph convolutions (Kipf and Welling, ICLR 2017) with a read-out; edge features are not read."""

    name: ClassVar[str] = "graph-gcn"

    def convolution(self, edges: int, schema: Mapping[str, Any]) -> nn.Module:
        return OnBatch(pyg.GCNConv(self.width, self.width))


class GraphSAGE(Convolutions):
    """GraphSAGE with mean aggregation (Hamilton et al., NIPS 2017) and a read-out; edge features are not read."""

    name: ClassVar[str] = "graph-sage"

    def convolution(self, edges: int, schema: Mapping[str, Any]) -> nn.Module:
        return OnBatch(pyg.SAGEConv(self.width, self.width))


class GraphGAT(Convolutions):
    """Graph attention (GATv2, Brody et al., ICLR 2022) with a read-out; edge features enter the attention."""

    name: ClassVar[str] = "graph-gat"
    heads: int = setting(4, "attention heads; `width` is a multiple", ge=1, le=64)

    def convolution(self, edges: int, schema: Mapping[str, Any]) -> nn.Module:
        several_of(self)
        return OnBatch(pyg.GATv2Conv(self.width, self.width // self.heads, self.heads, edge_dim=edges or None), edges > 0)


class PNA(Convolutions):
    """Principal neighbourhood aggregation: mean, least, largest and deviation, each scaled by the degree in three ways.

    Source: Corso et al., NeurIPS 2020; the degrees' scale is the train graphs'.
    """

    name: ClassVar[str] = "pna"
    residual: bool = setting(True, "add a layer's input to its output", search=[False, True])

    def settled(self, train: Part) -> dict[str, Any]:
        degree = np.concatenate([degree_of(g) for g in train.data])
        histogram = np.bincount(np.minimum(degree, 4096))
        if not histogram[1:].any():  # no edge: any scale serves, but not 0
            histogram = np.array([0, 1])
        return super().settled(train) | {"degrees": histogram.tolist()}

    def convolution(self, edges: int, schema: Mapping[str, Any]) -> nn.Module:
        layer = pyg.PNAConv(
            self.width, self.width, ["mean", "min", "max", "std"], ["identity", "amplification", "attenuation"],
            torch.tensor(schema["degrees"]), edge_dim=edges or None,
        )  # fmt: skip
        return OnBatch(layer, edges > 0)


class GPSLayer(nn.Module):
    """PyG's ``GPSConv``: a GIN layer and attention over all nodes of the graph, side by side, then a two-layer map."""

    def __init__(self, width: int, heads: int, edges: int, dropout: float) -> None:
        super().__init__()
        inner = gin_layer(width, edges).convolution
        self.convolution, self.edges = pyg.GPSConv(width, inner, heads=heads, dropout=dropout, attn_type="multihead"), edges

    def forward(self, h: Tensor, batch: Batch) -> Tensor:
        more = {"edge_attr": batch.edge_attr} if self.edges else {}
        return self.convolution(h, batch.edge_index, batch.batch, **more)


class GPSNet(ConvGraphNet):
    """GPS layers bring their own normalisation and residual links; random-walk codes are joined to the features.

    `of_nodes`: the states are read node by node.
    """

    def __init__(
        self, inputs: int, outputs: int, convolutions: Sequence[nn.Module], method: Convolutions, of_nodes: bool = False
    ) -> None:
        super().__init__(inputs, outputs, convolutions, method, reads=1 if of_nodes else 0)
        self.of_nodes = of_nodes

    def encode(self, batch: Batch) -> Tensor:
        h = self.start(batch.x if batch.get("rwse") is None else torch.cat([batch.x, batch.rwse], 1))
        states = [h]
        for layer in self.convolutions:
            h = layer(h, batch)
            states.append(h)
        kept = states if self.jump else states[-1:]
        return torch.cat(kept if self.of_nodes else [read_out(s, batch, self.readout) for s in kept], 1)


class GPS(Convolutions, NodesOrGraphs):
    """A general, powerful graph transformer: message passing and full attention in each layer. Source: Rampasek et al., NeurIPS 2022.

    ``pe=rwse`` adds the chance of a random walk's return to its node after 1..`steps` steps. Attention costs the square of a
    graph's nodes. One value serves graphs and the nodes of one graph: the part decides.
    """

    name: ClassVar[str] = "gps"
    tasks: ClassVar[tuple[str, ...]] = (*GRAPH_TASKS, "node-classification")
    model: ClassVar[type[GraphModel]] = NodesOrGraphsModel
    norm: Literal["batch", "layer", "none"] = setting("none", "has its own batch normalisation; left at none")
    residual: bool = setting(True, "has its own residual links; left at true")
    heads: int = setting(4, "attention heads; `width` is a multiple", ge=1, le=64)
    pe: Literal["none", "rwse"] = setting("rwse", "positional or structural code", search=["none", "rwse"])
    steps: int = setting(16, "pe=rwse: steps of the walk", ge=1, le=256)

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return None if self.norm == "none" and self.residual else "its layers bring their own normalisation and residual links"

    def module(self, inputs: int, outputs: int, schema: Mapping[str, Any]) -> nn.Module:
        several_of(self)
        layers = [GPSLayer(self.width, self.heads, schema["edge inputs"], self.dropout) for _ in range(self.layers)]
        inputs += self.steps if self.pe == "rwse" else 0
        return GPSNet(inputs, outputs, layers, self, schema.get("reads") == "nodes")

    def prepare(self, graphs: Sequence[Data], schema: Mapping[str, Any]) -> list[Data]:
        made = super().prepare(graphs, schema)
        if self.pe == "rwse":
            for graph in made:
                graph.rwse = codes_of(graph, "rwse", self.steps)
        return made


def several_of(method: Any) -> None:
    """Refuse a width that the heads do not divide."""
    if method.width % method.heads:
        raise UserError(f"{method.name}.width: {method.width} is not a multiple of {method.heads} heads")
