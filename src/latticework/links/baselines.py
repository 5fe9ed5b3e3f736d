"""What must be beaten: counts over shared neighbours, walks and paths, factorisation, and the classic graph autoencoders.

GCN and GraphSAGE carry width, depth, dropout, residual links, normalisation and the decoder as fields with search ranges: tuned
they match most newer methods on links drawn at random, and a comparison without them would not be honest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.common.readout import ReadoutModel
from latticework.common.settled import read_as_bags
from latticework.core import registry
from latticework.core.errors import UserError
from latticework.core.method import Backbone, Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.training import Patience, Watch, minibatches, watched
from latticework.core.training import train as train_net
from latticework.core.value import setting
from latticework.layers.propagation import SparseOperator, WeakCache, normalised_adjacency
from latticework.layers.sparse_features import SparseFeatures, compact

from .heuristics import adamic_adar, by_rows, katz_rows, pagerank_rows, pattern, resource_allocation, shared, to_digits
from .negatives import non_links

Array = NDArray[Any]
Features = Tensor | SparseFeatures
TASKS = ("link-prediction",)
# numbers of one block of decoded pairs
_DECODED = 1 << 22
_graphs = WeakCache()


def pattern_of(part: Part) -> sp.csr_array:
    """The pattern of a part's graph, kept with it."""
    found: sp.csr_array = _graphs.get(part.data, "pattern", lambda: pattern(part.data.edge_index, int(part.data.num_nodes)))
    return found


def same_nodes(model: Model, part: Part) -> None:
    """Refuse other nodes than the fitted ones, saying how to go on."""
    if part.schema["graph"] != model.schema["graph"]:
        method, known = model.method, set(model.schema["ids"])
        name, again = method.name, method.name
        if isinstance(method, LinkReadout):
            name, again = method.encoder.name, f"{method.encoder.name} -s task=link-prediction"
        new = [i for i in part.schema["ids"] if i not in known]
        what = f"first {new[0]!r} is new" if new else f"{len(known) - len(part.schema['ids'])} of them are missing"
        raise UserError(
            f"{name} answers for the {len(known)} nodes it was fitted on, and these are others ({what}); fit again: "
            f"latticework fit {again} NEW-DATA -o MODEL"
        )


# -- counts and walks --------------------------------------------------------------------------------------------------------
class HeuristicModel(Model):
    """Nothing is learned: scores are computed from the graph that is given, whatever its nodes and features."""

    def __init__(self, method: Heuristic, schema: Mapping[str, Any]) -> None:
        self.method: Heuristic = method
        self.schema = {**schema, "logits": False, "ids": []}

    def predict(self, part: Part) -> Array:
        """float64 [q], to 12 digits: sums that are equal by the formula tie, in whatever order they were added up."""
        return to_digits(self.method.scores(pattern_of(part), np.asarray(part.query.pairs)))

    def state(self) -> Mapping[str, Any]:
        return {}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema)


class Heuristic(Method):
    """A score of two nodes that needs no training; subclasses give `scores`."""

    tasks: ClassVar[tuple[str, ...]] = TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    reads_features: ClassVar[bool] = False
    chance: ClassVar[bool] = False
    model: ClassVar[type[HeuristicModel]] = HeuristicModel

    def scores(self, A: sp.csr_array, pairs: Array) -> Array:
        """float64 [q] of pairs int64 [2, q] in the pattern A."""
        raise NotImplementedError

    def fit(self, train: Part, valid: Part | None, run: Run) -> HeuristicModel:
        return HeuristicModel(self, dict(train.schema))


class CommonNeighbours(Heuristic):
    """The number of neighbours that two nodes share: ``|N(i) n N(j)|``."""

    name: ClassVar[str] = "common-neighbours"

    def scores(self, A: sp.csr_array, pairs: Array) -> Array:
        return shared(A, pairs)


class AdamicAdar(Heuristic):
    """Shared neighbours, each by 1 over the logarithm of its degree. Source: Adamic and Adar, Social Networks 2003."""

    name: ClassVar[str] = "adamic-adar"
    revision: ClassVar[int] = 2  # 1 told sums apart that differ by rounding alone

    def scores(self, A: sp.csr_array, pairs: Array) -> Array:
        return adamic_adar(A, pairs)


class ResourceAllocation(Heuristic):
    """Shared neighbours, each by 1 over its degree. Source: Zhou, Lü and Zhang, European Physical Journal B 2009."""

    name: ClassVar[str] = "resource-allocation"
    revision: ClassVar[int] = 2  # as Adamic-Adar's

    def scores(self, A: sp.csr_array, pairs: Array) -> Array:
        return resource_allocation(A, pairs)


class Katz(Heuristic):
    """Paths between two nodes, by length: ``sum over l = 1..steps of beta^l (A^l)_ij``.

    The sum is cut at `steps`, so it is finite for every `beta`; it nears Katz's ``(I - beta A)^-1 - I`` where beta is below 1 over
    the largest eigenvalue. Source: Katz, Psychometrika 1953; `beta` of Liben-Nowell and Kleinberg (2007).
    """

    name: ClassVar[str] = "katz"
    revision: ClassVar[int] = 2  # as Adamic-Adar's
    beta: float = setting(0.005, "factor for each link of a path", gt=0, le=1, search=(5e-4, 0.1, "log"))
    steps: int = setting(5, "links of the longest path", ge=1, le=100)

    def scores(self, A: sp.csr_array, pairs: Array) -> Array:
        return by_rows(lambda sources: katz_rows(A, sources, self.beta, self.steps), few_sources(pairs), A.shape[0])


class PersonalisedPageRank(Heuristic):
    """Walks with restarts from either node, and how often they are at the other: ``r_i(j) + r_j(i)``.

    Walks on an undirected graph are reversible, ``d_i r_i(j) = d_j r_j(i)``, so one of the two is computed. Source: Liben-Nowell
    and Kleinberg (2007), rooted PageRank.
    """

    name: ClassVar[str] = "personalised-pagerank"
    revision: ClassVar[int] = 2  # as Adamic-Adar's
    restart: float = setting(0.15, "chance of going back to the start at each step", gt=0, lt=1, search=(0.05, 0.5))
    steps: int = setting(50, "power iterations", ge=1, le=10_000)

    def scores(self, A: sp.csr_array, pairs: Array) -> Array:
        i, j = pairs = few_sources(pairs)
        found = by_rows(lambda sources: pagerank_rows(A, sources, self.restart, self.steps), pairs, A.shape[0])
        degree = np.diff(A.indptr)
        return found * (1 + degree[i] / np.maximum(degree[j], 1))


def few_sources(pairs: Array) -> Array:
    """The pairs, turned where that leaves fewer different first nodes, whose rows are to be computed."""
    fewer = len(np.unique(pairs[1])) < len(np.unique(pairs[0]))
    return pairs[::-1] if fewer else pairs


# -- networks ----------------------------------------------------------------------------------------------------------------
class LinkNet(nn.Module):
    """An encoder of nodes and a decoder of pairs: the socket that wrappers of link predictors use.

    ``encode(x, S)``: x [n, F] or none (then a learned table), S the operator that the convolutions sum with (a `SparseOperator` or
    a torch tensor, whose values may be others than those of `LinkNetwork.operator`) -> h [n, d]. ``decode(h, pairs)``: pairs
    int64 [2, q] -> logits [q], symmetric: ``dot`` is ``<h_i, h_j>`` (with a bias a node where `biases`), ``mlp`` is
    ``W_2 drop(relu(W_1 (h_i * h_j) + b_1)) + b_2``.
    """

    def __init__(
        self, encoder: nn.Module | None, nodes: int, features: int, width: int, decoder: str, dropout: float, biases: bool = False
    ) -> None:
        super().__init__()
        self.table = None if features else nn.Embedding(nodes, width)
        if self.table is not None:
            nn.init.xavier_uniform_(self.table.weight)
        self.encoder = encoder
        self.biases = nn.Embedding(nodes, 1) if biases else None
        if self.biases is not None:
            nn.init.zeros_(self.biases.weight)
        self.mlp = None
        if decoder == "mlp":
            self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def encode(self, x: Features | None, S: Any) -> Tensor:
        start = x if self.table is None else self.table.weight
        assert start is not None
        h: Any = start if self.encoder is None else self.encoder(start, S)
        return h  # type: ignore[no-any-return]

    def decode(self, h: Tensor, pairs: Tensor) -> Tensor:
        left, right = F.embedding(pairs, h)  # half the time of indexing, both ways
        product = left * right
        logits: Tensor = product.sum(1) if self.mlp is None else self.mlp(product).squeeze(1)
        if self.biases is not None:
            logits = logits + self.biases.weight[pairs[0], 0] + self.biases.weight[pairs[1], 0]
        return logits

    def forward(self, x: Features | None, S: Any, pairs: Tensor) -> Tensor:
        return self.decode(self.encode(x, S), pairs)

    def halves(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters of the encoder and of the decoder."""
        decoder = [] if self.mlp is None else list(self.mlp.parameters())
        held = {id(p) for p in decoder}
        return [p for p in self.parameters() if id(p) not in held], decoder


class LinkNetModel(Model):
    """A trained encoder and decoder. Without features it answers for the fitted nodes, with them also for new graphs."""

    def __init__(self, method: LinkNetwork, schema: Mapping[str, Any], net: LinkNet) -> None:
        self.method: LinkNetwork = method
        self.schema, self.net = schema, net.eval()
        self.scope = "fitted data" if net.table is not None else "new data"
        self._vectors = WeakCache()

    @torch.no_grad()
    def vectors(self, part: Part) -> Tensor:
        """float32 [n, d] on the part's graph, kept while that lives."""
        if self.net.table is not None:
            same_nodes(self, part)
        device = str(next(self.net.parameters()).device)

        def make() -> Tensor:
            return self.net.encode(self.method.features(part, device), self.method.operator(part, device))

        found: Tensor = self._vectors.get(part.data, device, make)
        return found

    @torch.no_grad()
    def predict(self, part: Part) -> Array:
        """Logits float32 [q], decoded in blocks."""
        h = self.vectors(part)
        pairs = torch.from_numpy(np.ascontiguousarray(part.query.pairs)).to(h.device)
        size = max(1, _DECODED // h.shape[1])
        found = [self.net.decode(h, pairs[:, a : a + size]) for a in range(0, pairs.shape[1], size)]
        return torch.cat(found).cpu().numpy() if found else np.zeros(0, np.float32)

    def state(self) -> Mapping[str, Any]:
        return self.net.state_dict()

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = method.module(schema)
        net.load_state_dict(dict(state))
        return cls(method, schema, net)


class LinkNetwork(Backbone):
    """Fields and fit of an encoder with a decoder of pairs, trained on links against as many uniform non-links.

    Each epoch goes once through the training links in batches; non-links are drawn anew from the training graph. The loss is
    ``mean softplus(-s+) + mean softplus(s-)``; the epoch is chosen by the task's headline on the validation part.
    """

    tasks: ClassVar[tuple[str, ...]] = TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[LinkNetModel]] = LinkNetModel

    hidden: int = setting(256, "width of node vectors and hidden layers", ge=1, le=4096, search=[64, 128, 256])
    decoder: Literal["dot", "mlp"] = setting("dot", "inner product, or a small network on the product", search=["dot", "mlp"])
    dropout: float = setting(0.5, "dropout on features and hidden layers", ge=0, lt=1, search=(0.0, 0.7))
    lr: float = setting(0.005, "learning rate of Adam", gt=0, le=1, search=(1e-3, 3e-2, "log"))
    weight_decay: float = setting(0.0, "on all parameters", ge=0, le=1)
    batch: int = setting(1152, "links of a step", ge=1, le=100_000_000)
    epochs: int = setting(200, "at most", ge=1, le=100_000)
    patience: int = setting(50, "epochs without a better validation value before the fit stops", ge=1)
    clip: float = setting(0.0, "largest norm of the gradients of the encoder, and of the decoder; 0: any", ge=0, later=True)
    row_normalise: bool = setting(
        False, "divide a node's features by their sum where all are 0 or 1 (bags of words)", search=[False, True]
    )

    # -- the network and what it reads -------------------------------------------------------------------------------------
    def module(self, schema: Mapping[str, Any]) -> LinkNet:
        raise NotImplementedError

    def operator(self, part: Part, device: str) -> Any:
        """What the convolutions sum with; none where there are none."""
        return None

    def build(self, train: Part, run: Run) -> LinkNet:
        return self.module(train.schema)

    def features(self, part: Part, device: str) -> Features | None:
        """The features of all nodes, kept with the graph; none where there are none."""
        x = part.data.x
        if x is None:
            return None
        n = int(part.data.num_nodes)
        if len(x) != n:
            raise UserError(f"{len(x)} rows of features for {n} nodes; one row a node is needed")

        divided = self.row_normalise and read_as_bags(part, x)

        def make() -> Features:
            scaled = x / x.sum(1, keepdim=True).clamp(min=1e-12) if divided else x
            return compact(scaled) if device == "cpu" else scaled.to(device)

        found: Features = _graphs.get(part.data, ("x", divided, device), make)
        return found

    # -- training ------------------------------------------------------------------------------------------------------------
    def fit(self, train: Part, valid: Part | None, run: Run) -> LinkNetModel:
        return self.trained(self.build(train, run), train, valid, run)

    def trained(self, net: LinkNet, train: Part, valid: Part | None, run: Run) -> LinkNetModel:
        """`net` fitted on the links of `train`."""
        device, A = run.device, pattern_of(train)
        net = net.to(device)
        schema, positives = dict(train.schema), torch.from_numpy(np.ascontiguousarray(train.query.pairs)).to(device)
        x, S = self.features(train, device), self.operator(train, device)
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr, weight_decay=self.weight_decay)

        def step(epoch: int) -> float:
            batches = minibatches(positives.shape[1], self.batch, run.generator(f"order {epoch}"))
            drawn = torch.from_numpy(non_links(A, positives.shape[1], run.rng(f"negatives {epoch}"))).to(device)
            total, used = 0.0, 0
            for batch in batches:
                optimiser.zero_grad(set_to_none=True)
                links, others = positives[:, batch.to(device)], drawn[:, used : used + len(batch)]
                logits = net(x, S, torch.cat([links, others], dim=1))
                b = len(batch)
                value = F.softplus(-logits[:b]).mean() + F.softplus(logits[b:]).mean()
                value.backward()
                for half in net.halves() if self.clip else ():
                    nn.utils.clip_grad_norm_(half, self.clip)
                optimiser.step()
                total, used = total + float(value.detach()) * b, used + b
            return total / used

        def look() -> Watch:
            assert valid is not None
            return watched(LinkNetModel(self, schema, net), valid, run)

        epoch = train_net(
            net, step, run, epochs=self.epochs, optimiser=optimiser, watch=None if valid is None else look,
            patience=Patience(epochs=self.patience),
        )  # fmt: skip
        if valid is not None:
            run.notes.append(f"weights of epoch {epoch + 1}, chosen on validation {run.metric.name}")
        return self.model(self, schema, net.cpu())


class LinkMF(LinkNetwork):
    """Matrix factorisation with logistic loss: ``s_ij = <u_i, u_j> + b_i + b_j``, or a network on ``u_i * u_j``; no graph, no features.

    Source: Menon and Elkan, "Link prediction via matrix factorization" (ECML 2011), with drawn non-links.
    """

    name: ClassVar[str] = "link-mf"
    reads_features: ClassVar[bool] = False
    weight_decay: float = setting(1e-4, "on all parameters", ge=0, le=1, search=(1e-6, 1e-2, "log"))

    def module(self, schema: Mapping[str, Any]) -> LinkNet:
        return LinkNet(None, int(schema["nodes"]), 0, self.hidden, self.decoder, self.dropout, biases=True)

    def features(self, part: Part, device: str) -> Features | None:
        return None


class ConvolutionLinks(LinkNetwork):
    """Fields that the convolutional link predictors share. Nodes without features get a learned table."""

    convolution: ClassVar[str]  # the node classifier whose layers are used
    layers: int = setting(2, "convolutions", ge=1, le=64, search=(1, 3))
    residual: bool = setting(False, "add a linear map of each layer's input to its output", search=[False, True])
    norm: Literal["none", "batch", "layer"] = setting("none", "normalisation of hidden layers", search=["none", "batch", "layer"])

    def module(self, schema: Mapping[str, Any]) -> LinkNet:
        convolutions: Any = registry.value_of("method", self.convolution).but(
            hidden=self.hidden, layers=self.layers, residual=self.residual, norm=self.norm, dropout=self.dropout
        )
        features = len(schema["features"])
        # its class scores are the node vectors here
        net = convolutions.module(features or self.hidden, self.hidden, schema)
        return LinkNet(net, int(schema["nodes"]), features, self.hidden, self.decoder, self.dropout)

    kind: ClassVar[Literal["symmetric", "row"]]
    self_loops: ClassVar[bool]

    def operator(self, part: Part, device: str) -> SparseOperator | Tensor:
        data = part.data
        S = normalised_adjacency(
            data.edge_index, int(data.num_nodes), data.edge_weight, self.kind, self_loops=self.self_loops,
            undirected=bool(data.directed), owner=data,
        )  # fmt: skip
        return S if device == "cpu" else S.to_torch(device)


class GCNLinks(ConvolutionLinks):
    """A graph autoencoder: graph convolutions encode the nodes, a decoder scores pairs.

    Source: Kipf and Welling, "Variational graph auto-encoders" (2016), section 1 (the one that is not variational), with drawn
    non-links, validation by the task's headline and, as fields, what later work added.
    """

    name: ClassVar[str] = "gcn-links"
    convolution: ClassVar[str] = "gcn"
    kind: ClassVar[Literal["symmetric", "row"]] = "symmetric"
    self_loops: ClassVar[bool] = True


class SAGELinks(ConvolutionLinks):
    """GraphSAGE with mean aggregation encodes the nodes, a decoder scores pairs. Source: Hamilton et al., NIPS 2017."""

    name: ClassVar[str] = "sage-links"
    convolution: ClassVar[str] = "sage"
    kind: ClassVar[Literal["symmetric", "row"]] = "row"
    self_loops: ClassVar[bool] = False


# -- encoders ----------------------------------------------------------------------------------------------------------------
class LinkReadoutModel(ReadoutModel):
    """An encoder's model and a classifier of products of its vectors."""

    def predict(self, part: Part) -> Array:
        """Logits float64 [q], in blocks."""
        if self.scope == "fitted data":
            same_nodes(self, part)
        vectors = np.asarray(self.encoder.embed(part))
        i, j = np.asarray(part.query.pairs)
        size = max(1, _DECODED // vectors.shape[1])
        cuts = range(0, len(i), size)
        found = [self.estimator.decision_function(vectors[i[a : a + size]] * vectors[j[a : a + size]]) for a in cuts]
        return np.concatenate(found) if found else np.zeros(0)


class LinkReadout(Method):
    """The task's read-out: logistic regression on the product of two nodes' vectors, entry by entry, scaled to deviation 1.

    It learns from the training links and as many uniform non-links of the training graph. The encoder sees that graph alone.
    Source of the product: Grover and Leskovec, node2vec (KDD 2016), table 1.
    """

    name: ClassVar[str] = "link-readout"
    tasks: ClassVar[tuple[str, ...]] = TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[LinkReadoutModel]] = LinkReadoutModel
    encoder: Method = setting(..., "the method whose vectors are read")
    c: float = setting(0.1, "inverse of the L2 penalty, the same for all encoders", gt=0, le=1e6)

    def row(self) -> str:
        tail = "" if self.c == 0.1 else f" (C = {self.c:g})"
        return f"{self.encoder.row()} + logistic regression on products{tail}"

    @property
    def reads_features(self) -> bool:  # type: ignore[override]
        return self.encoder.reads_features

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return self.encoder.refuses(task, facts)

    def fit(self, train: Part, valid: Part | None, run: Run) -> LinkReadoutModel:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        encoder = run.model(self.encoder, train, valid)
        vectors = np.asarray(encoder.embed(train))
        links = np.asarray(train.query.pairs)
        i, j = np.concatenate([links, non_links(pattern_of(train), links.shape[1], run.rng("negatives"))], axis=1)
        estimator = make_pipeline(StandardScaler(), LogisticRegression(C=self.c, max_iter=2000))
        estimator.fit(vectors[i] * vectors[j], np.arange(len(i)) < links.shape[1])
        return LinkReadoutModel(self, {**train.schema, "encoder": dict(encoder.schema)}, encoder, estimator)
