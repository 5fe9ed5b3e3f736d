"""What must be beaten: the trivial and the classic answers to node classification.

GCN, GAT and GraphSAGE carry residual links, normalisation, dropout and depth as fields with search ranges: tuned so they
match most newer methods, and a comparison without them would not be honest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.common.majority import MajorityModel, shares_of
from latticework.common.settled import read_alike
from latticework.core.errors import OutOfTime, UserError
from latticework.core.method import Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.data.graph import joined
from latticework.layers.attention import Edges, attend, attention_weights
from latticework.layers.propagation import SparseOperator, WeakCache, adjacency
from latticework.layers.sparse_features import FeatureLinear, SparseFeatures

from .embedding import EmbeddingMethod, EmbeddingModel
from .network import (
    FEATURE_TASKS,
    EncodeHead,
    Features,
    FirstMaps,
    NodeNetwork,
    features_of,
    operator_of,
    several_dropout,
)

_kept = WeakCache()


# -- trivial ---------------------------------------------------------------------------------------------------------
class Majority(Method):
    """Answers every node with the shares of the classes among the train nodes."""

    name: ClassVar[str] = "majority"
    tasks: ClassVar[tuple[str, ...]] = FEATURE_TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[MajorityModel]] = MajorityModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> MajorityModel:
        return MajorityModel(self, dict(train.schema), shares_of(train.truth.y, len(train.schema["classes"])))


# -- without a graph -------------------------------------------------------------------------------------------------
class MLP(EncodeHead):
    """``layers`` linear maps with ReLU and dropout between. [n, F] (or `inputs` of them) -> [n, C]."""

    def __init__(self, features: int, classes: int, hidden: int, layers: int, dropout: float, inputs: int = 1) -> None:
        super().__init__()
        sizes = [features] + [hidden] * (layers - 1) + [classes]
        self.maps = nn.ModuleList(
            first_map(lambda: FeatureLinear(features, sizes[1]), inputs)
            if i == 0
            else FeatureLinear(inputs * a if i == 1 else a, b)
            for i, (a, b) in enumerate(itertools.pairwise(sizes))
        )
        self.dropout = dropout

    def encode(self, x: Features | Sequence[Features], *graph: Any) -> Tensor:
        """The states before the last map (with a single map, its scores)."""
        h = self.maps[0](several_dropout(x, self.dropout, self.training))
        for layer in self.maps[1:-1]:
            h = layer(F.dropout(F.relu(h), self.dropout, self.training))
        return h

    def head(self, h: Tensor, *graph: Any) -> Tensor:
        return self.maps[-1](F.dropout(F.relu(h), self.dropout, self.training)) if len(self.maps) > 1 else h


def first_map(make: Callable[[], nn.Module], inputs: int) -> nn.Module:
    """The first layer of a network, or one for each of several feature matrices."""
    return make() if inputs == 1 else FirstMaps([make() for _ in range(inputs)])


def refuse_inputs(layers: int, inputs: int) -> None:
    """Several feature matrices need a layer that brings them together."""
    if inputs > 1 and layers < 2:
        raise UserError("several feature matrices need two layers or more: the second brings them together")


class MLPMethod(NodeNetwork):
    """A multilayer perceptron on the node features: what the graph must add to."""

    name: ClassVar[str] = "mlp"
    tasks: ClassVar[tuple[str, ...]] = FEATURE_TASKS
    encode_head: ClassVar[bool] = True
    many_inputs: ClassVar[bool] = True
    layers: int = setting(2, "linear maps", ge=1, le=16, search=(1, 3))

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        refuse_inputs(self.layers, inputs)
        return MLP(features, classes, self.hidden, self.layers, self.dropout, inputs)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        return (features_of(part, device, self.row_normalise),)


class EstimatorModel(Model):
    """A scikit-learn classifier on the node features."""

    def __init__(self, method: LogisticRegression, schema: Mapping[str, Any], estimator: Any) -> None:
        self.method, self.schema, self.estimator = method, schema, estimator

    def predict(self, part: Part) -> Any:
        x = self.method.matrix(read_alike(part, self.schema))[part.query.rows]
        return full_chances(self.estimator, x, len(self.schema["classes"]), self.schema["multi"])

    def state(self) -> Mapping[str, Any]:
        return {"estimator": self.estimator}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["estimator"])


def full_chances(estimator: Any, x: Any, classes: int, multi: bool) -> np.ndarray[Any, Any]:
    """Probabilities over all classes: a class that no train node had gets 0."""
    given = np.asarray(estimator.predict_proba(x))
    chances = np.zeros((x.shape[0], classes))
    known = range(classes) if multi else [int(c) for c in estimator.classes_]
    chances[:, list(known)] = given
    return chances


class LogisticRegression(Method):
    """Logistic regression (scikit-learn) on the node features, one against the rest with several labels a node."""

    name: ClassVar[str] = "logistic-regression"
    tasks: ClassVar[tuple[str, ...]] = FEATURE_TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[EstimatorModel]] = EstimatorModel
    c: float = setting(1.0, "inverse of the L2 penalty", gt=0, le=1e6, search=(1e-2, 1e3, "log"))
    row_normalise: bool = setting(False, "divide a node's features by their sum where all are 0 or 1 (bags of words)")

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return None if facts["features"] else "the nodes have no features, which it reads; use fastrp or svd"

    def matrix(self, part: Part) -> Any:
        x = features_of(part, "cpu", self.row_normalise)
        return x.scipy() if isinstance(x, SparseFeatures) else x.numpy()

    def fit(self, train: Part, valid: Part | None, run: Run) -> EstimatorModel:
        return EstimatorModel(self, dict(train.schema), fit_logistic(self.matrix(train)[train.query.rows], train.truth.y, self.c))


def fit_logistic(x: Any, y: np.ndarray[Any, Any], c: float) -> Any:
    """The classifier that read-outs and baselines share."""
    from sklearn.linear_model import LogisticRegression as Logistic
    from sklearn.multiclass import OneVsRestClassifier

    if y.ndim == 2:
        return OneVsRestClassifier(Logistic(C=c, solver="liblinear")).fit(x, y.astype(int))
    return Logistic(C=c, max_iter=2000).fit(x, y)


# -- label propagation -----------------------------------------------------------------------------------------------
class PropagatedModel(Model):
    """Label shares spread over the fitted graph."""

    scope: Literal["fitted data", "new data"] = "fitted data"

    def __init__(self, method: Method, schema: Mapping[str, Any], chances: Tensor) -> None:
        self.method, self.schema, self.chances = method, schema, chances

    def predict(self, part: Part) -> Any:
        same_graph(self, part)
        return self.chances[torch.from_numpy(part.query.rows)].numpy()

    def state(self) -> Mapping[str, Any]:
        return {"chances": self.chances}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["chances"])


def same_graph(model: Model, part: Part) -> None:
    """Refuse another graph than the fitted one, saying how to go on."""
    if part.schema["graph"] != model.schema["graph"]:
        name = model.method.name
        raise UserError(
            f"{name} answers for the graph it was fitted on ({model.schema['nodes']} nodes) and this is another one "
            f"({part.schema['nodes']} nodes); fit again: latticework fit {name} NEW-DATA -o MODEL"
        )


class LabelPropagation(Method):
    """Known labels spread along edges: ``Y <- alpha S Y + (1 - alpha) Y0`` with S the symmetric normalised adjacency.

    Source: Zhou et al., "Learning with Local and Global Consistency" (NIPS 2003).
    """

    name: ClassVar[str] = "label-propagation"
    reads_features: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("node-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[PropagatedModel]] = PropagatedModel
    alpha: float = setting(0.9, "share that comes from the neighbours", gt=0, lt=1, search=(0.1, 0.99))
    steps: int = setting(50, "iterations", ge=1, le=10_000)

    def fit(self, train: Part, valid: Part | None, run: Run) -> PropagatedModel:
        S = operator_of(train, self_loops=False)
        y = train.truth.y
        classes = len(train.schema["classes"])
        start = torch.zeros(S.shape[0], classes)
        hot = y.astype(np.float32) if y.ndim == 2 else np.eye(classes, dtype=np.float32)[y]
        start[torch.from_numpy(train.query.rows)] = torch.from_numpy(hot)
        state = start
        for step in range(self.steps):
            state = self.alpha * (S @ state) + (1 - self.alpha) * start
            try:
                run.log(step)
            except OutOfTime:
                run.stopped = True
                break
        # a node that nothing reaches gets the shares of the train part
        shares = torch.from_numpy(hot.mean(0))
        total = state.sum(1, keepdim=True)
        chances = torch.where(total > 1e-12, state / total.clamp(min=1e-12), shares[None])
        return PropagatedModel(self, dict(train.schema), chances)


# -- convolutions (PyG's layers) -------------------------------------------------------------------------------------
class ConvNet(EncodeHead):
    """A stack of PyG convolutions with optional residual links and normalisation.

    ``h <- drop(relu(norm(conv(h) + residual(h))))`` in every layer but the last, which gives logits [n, C]. The operator is
    what the convolutions take: a sparse operator (GCN, SAGE) or `Edges` (GAT). With `inputs` > 1 the first layer is
    one convolution for each feature matrix.
    """

    def __init__(self, kind: str, features: int, classes: int, method: Convolution, inputs: int = 1) -> None:
        super().__init__()
        self.dropout = method.dropout
        depth, hidden = method.layers, method.hidden
        sizes = [features] + [hidden] * (depth - 1) + [classes]
        self.convolutions, self.norms, self.residuals = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            last, copies = i == depth - 1, inputs if i == 0 else 1
            a = inputs * a if i == 1 else a
            self.convolutions.append(first_map(lambda a=a, b=b, last=last: convolution(kind, a, b, method, last), copies))
            norm: nn.Module = nn.Identity()
            if not last and method.norm != "none":
                norm = nn.BatchNorm1d(copies * b) if method.norm == "batch" else nn.LayerNorm(copies * b)
            self.norms.append(norm)
            residual = first_map(lambda a=a, b=b: FeatureLinear(a, b), copies) if method.residual else nn.Identity()
            self.residuals.append(residual)
        self.residual = method.residual

    def _layer(self, i: int, h: Any, operator: Any) -> Tensor:
        h = several_dropout(h, self.dropout, self.training)
        new = self.convolutions[i](h, operator)
        return new + self.residuals[i](h) if self.residual else new

    def encode(self, x: Features | Sequence[Features], operator: Any) -> Any:
        """The states before the last convolution (with a single one, the features)."""
        h: Any = x
        for i in range(len(self.convolutions) - 1):
            h = F.relu(self.norms[i](self._layer(i, h, operator)))
        return h

    def head(self, h: Any, operator: Any) -> Tensor:
        return self._layer(len(self.convolutions) - 1, h, operator)


class GCNLayer(nn.Module):
    """PyG's ``GCNConv`` on an operator that is normalised already; its linear map also takes sparse features."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.conv = GCNConv(inputs, outputs, normalize=False)
        linear = FeatureLinear(inputs, outputs, bias=False)
        nn.init.xavier_uniform_(linear.weight)
        self.conv.lin = linear

    def forward(self, x: Features, operator: SparseOperator | Tensor) -> Tensor:
        if isinstance(operator, SparseOperator):  # the same sum through the faster kernel
            return operator @ self.conv.lin(x) + self.conv.bias
        return self.conv(x, operator)


class SAGELayer(nn.Module):
    """PyG's ``SAGEConv`` with mean aggregation; the linear map comes first, which the mean commutes with."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        from torch_geometric.nn import SAGEConv

        self.conv = SAGEConv(inputs, outputs)
        self.conv.lin_l = FeatureLinear(inputs, outputs)
        self.conv.lin_r = FeatureLinear(inputs, outputs, bias=False)

    def forward(self, x: Features, operator: SparseOperator | Tensor) -> Tensor:
        neighbours, own = self.conv.lin_l, self.conv.lin_r
        product = x @ neighbours.weight.T if isinstance(x, SparseFeatures) else F.linear(x, neighbours.weight)
        return operator @ product + neighbours.bias + own(x)


class GATLayer(nn.Module):
    """PyG's ``GATConv`` by row sums, with its linear map before it, so that it also takes sparse features."""

    def __init__(self, inputs: int, outputs: int, heads: int, dropout: float) -> None:
        super().__init__()
        from torch_geometric.nn import GATConv

        self.linear = FeatureLinear(inputs, outputs, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)
        self.conv = GATConv(outputs, outputs // heads, heads=heads, dropout=dropout)
        self.conv.lin = nn.Identity()

    def forward(self, x: Features, edges: Edges) -> Tensor:
        conv = self.conv
        h = self.linear(x).unflatten(1, (conv.heads, -1))
        here, there = (h * conv.att_dst).sum(2), (h * conv.att_src).sum(2)
        a = attention_weights(here, there, edges, conv.negative_slope, conv.dropout, self.training)
        return attend(a, h, edges).flatten(1) + conv.bias


def convolution(kind: str, inputs: int, outputs: int, method: Convolution, last: bool) -> nn.Module:
    """One PyG layer."""
    if kind == "gcn":
        return GCNLayer(inputs, outputs)
    if kind == "sage":
        return SAGELayer(inputs, outputs)
    assert isinstance(method, GAT)
    heads = 1 if last else method.heads
    if not last and outputs % heads:
        raise UserError(f"gat.hidden: {outputs} is not a multiple of {heads} heads")
    return GATLayer(inputs, outputs, heads, method.dropout)


class Convolution(NodeNetwork):
    """Fields that the classic graph convolutions share."""

    encode_head: ClassVar[bool] = True
    many_inputs: ClassVar[bool] = True
    layers: int = setting(2, "convolutions", ge=1, le=64, search=(1, 4))
    residual: bool = setting(False, "add a linear map of each layer's input to its output", search=[False, True])
    norm: Literal["none", "batch", "layer"] = setting("none", "normalisation of hidden layers", search=["none", "batch", "layer"])

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        refuse_inputs(self.layers, inputs)
        return ConvNet(self.name, features, classes, self, inputs)


class GCN(Convolution):
    """Graph convolutional network: ``H <- relu(S H W)`` with ``S = D^-1/2 (A + I) D^-1/2`` of the undirected graph.

    Source: Kipf and Welling, ICLR 2017. Two layers, 16 wide there; 64 here.
    """

    name: ClassVar[str] = "gcn"
    weight_decay: float = setting(5e-4, "on the first convolution", ge=0, le=1, search=(1e-5, 2e-2, "log"))

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        assert isinstance(net, ConvNet)
        return first_layer_decay(net, net.convolutions[0], self.weight_decay)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        S = operator_of(part)
        return features_of(part, device, self.row_normalise), S if device == "cpu" else S.to_torch(device)


class SAGE(Convolution):
    """GraphSAGE with mean aggregation over undirected neighbours, full batch. Source: Hamilton et al., NIPS 2017."""

    name: ClassVar[str] = "sage"

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        S = operator_of(part, kind="row", self_loops=False)
        return features_of(part, device, self.row_normalise), S if device == "cpu" else S.to_torch(device)


class GAT(Convolution):
    """Graph attention network over undirected neighbours. Source: Velickovic et al., ICLR 2018: 8 heads of 8."""

    name: ClassVar[str] = "gat"
    revision: ClassVar[int] = 2  # 1 drew the dropout of attention in another order
    heads: int = setting(8, "attention heads of hidden layers; their widths add up to `hidden`", ge=1, le=64)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        return features_of(part, device, self.row_normalise), edges_of(part, device)


def edges_of(part: Part, device: str) -> Edges:
    """A part's edges in both directions, without repeats and those of weight 0, and a loop at each node; kept with its graph."""
    data = part.data

    def make() -> Edges:
        index = joined(data.edge_index, data.edge_weight)
        return Edges(adjacency(index, int(data.num_nodes), undirected=True, self_loops=True), device)

    found: Edges = _kept.get(data, ("edges", device), make)
    return found


class APPNP(EncodeHead):
    """``Z = MLP(X)``, then ``Z_k = (1 - teleport) S Z_(k-1) + teleport Z``: personalised PageRank on class scores.

    Source: Gasteiger et al., "Predict then Propagate" (ICLR 2019). [n, F] -> [n, C].
    """

    def __init__(self, features: int, classes: int, hidden: int, hops: int, teleport: float, dropout: float) -> None:
        super().__init__()
        self.mlp = MLP(features, classes, hidden, 2, dropout)
        self.hops, self.teleport = hops, teleport

    def encode(self, x: Features, S: Any) -> Tensor:
        return self.mlp.encode(x)

    def head(self, h: Tensor, S: Any) -> Tensor:
        Z = self.mlp.head(h)
        state = Z
        for _ in range(self.hops):
            state = (1 - self.teleport) * (S @ state) + self.teleport * Z
        return state


def first_layer_decay(net: nn.Module, first: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on the first layer alone, as in the papers of GCN and APPNP: on the scores it would shrink them away."""
    own = {id(p) for p in first.parameters()}
    return [
        {"params": list(first.parameters()), "weight_decay": weight_decay},
        {"params": [p for p in net.parameters() if id(p) not in own], "weight_decay": 0.0},
    ]


class APPNPMethod(NodeNetwork):
    """Personalised PageRank of class scores."""

    name: ClassVar[str] = "appnp"
    encode_head: ClassVar[bool] = True
    hops: int = setting(10, "power iterations", ge=1, le=1000)
    teleport: float = setting(0.1, "chance of going back to the node itself", gt=0, lt=1, search=(0.05, 0.5))
    weight_decay: float = setting(5e-3, "on the first linear map", ge=0, le=1, search=(1e-5, 2e-2, "log"))

    def groups(self, net: nn.Module) -> list[dict[str, Any]]:
        assert isinstance(net, APPNP)
        first = net.mlp.maps[0]
        return first_layer_decay(net, first, self.weight_decay)

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        return APPNP(features, classes, self.hidden, self.hops, self.teleport, self.dropout)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        S = operator_of(part)
        return features_of(part, device, self.row_normalise), S if device == "cpu" else S.to_torch(device)


# -- embeddings ------------------------------------------------------------------------------------------------------
class SVD(EmbeddingMethod):
    """Truncated SVD of the adjacency matrix: ``A ~ U s V^T``, a node's vector is its row of ``U s`` (scikit-learn)."""

    name: ClassVar[str] = "svd"
    dim: int = setting(128, "length of a node's vector", ge=1, le=4096)

    def fit(self, train: Part, valid: Part | None, run: Run) -> EmbeddingModel:
        from sklearn.decomposition import TruncatedSVD

        A = undirected_matrix(train)
        dim = min(self.dim, A.shape[0] - 1)
        if dim < self.dim:
            run.notes.append(f"dim {dim} instead of {self.dim}: the graph has {A.shape[0]} nodes")
        seed = int(run.rng("svd").integers(2**31))
        vectors = TruncatedSVD(dim, random_state=seed).fit_transform(A)
        return EmbeddingModel(self, dict(train.schema), torch.from_numpy(vectors.astype(np.float32)))


def undirected_matrix(part: Part) -> sp.csr_array:
    """float64 CSR [n, n], ``max(A, A^T)``, weights kept."""
    data = part.data
    return adjacency(data.edge_index, int(data.num_nodes), data.edge_weight, undirected=True)


class DeepWalk(EmbeddingMethod):
    """Uniform random walks read as sentences by skip-gram (gensim's Word2Vec). Source: Perozzi et al., KDD 2014.

    The settings are the published ones but for `dim`; `epochs` is gensim's passes over the walks.
    """

    name: ClassVar[str] = "deepwalk"
    dim: int = setting(128, "length of a node's vector", ge=1, le=4096)
    walks: int = setting(10, "walks that start at each node", ge=1, le=1000)
    length: int = setting(80, "nodes of a walk", ge=2, le=10_000)
    window: int = setting(10, "context on each side", ge=1, le=100)
    epochs: int = setting(1, "passes over the walks", ge=1, le=1000)

    def fit(self, train: Part, valid: Part | None, run: Run) -> EmbeddingModel:
        from latticework.layers.walks import random_walks

        try:
            from gensim.models import Word2Vec
        except ImportError:
            raise UserError("deepwalk needs gensim: pip install 'latticework[walks]'") from None
        A = undirected_matrix(train)
        walks = random_walks(A.indptr, A.indices, self.walks, self.length, run.rng("walks"))
        sentences = [[str(node) for node in walk if node >= 0] for walk in walks]
        # one worker: gensim's threads would race, and the same seed would give other vectors
        model = Word2Vec(
            sentences, vector_size=self.dim, window=self.window, min_count=0, sg=1, hs=1, negative=0,
            workers=1, epochs=self.epochs, seed=int(run.rng("word2vec").integers(2**31)),
        )  # fmt: skip
        vectors = np.stack([model.wv[str(node)] for node in range(A.shape[0])])
        return EmbeddingModel(self, dict(train.schema), torch.from_numpy(vectors))
