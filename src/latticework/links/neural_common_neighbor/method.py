"""The recipe: an encoder and the pair predictor trained on links that are taken out of the graph while they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from latticework.core.errors import UserError
from latticework.core.method import Backbone, Method, Model, Predictor
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.training import Watch, minibatches, watched
from latticework.core.training import train as train_net
from latticework.core.value import setting
from latticework.layers.propagation import WeakCache
from latticework.layers.sparse_features import compact

from ..negatives import non_links
from .encoders import Convolutions, Features, Smoothing, Table, smoother
from .predictor import NCNPredictor, Vectors
from .sets import check_pairs, chunks, pattern, without

Array = NDArray[Any]
# neighbours of one round of scoring: about 100 MB of hidden states at a width of 256
_BUDGET = 600_000
_graphs = WeakCache()


def pattern_of(data: Any) -> sp.csr_array:
    """The pattern of a part's graph, kept with it."""

    def make() -> sp.csr_array:
        try:
            return pattern(data.edge_index, int(data.num_nodes), data.edge_weight)
        except ValueError as error:
            raise UserError(f"ncn: {error}") from None

    found: sp.csr_array = _graphs.get(data, "pattern", make)
    return found


class LinkNet(nn.Module):
    """Encoder and predictor; where nodes have no features, a learned table stands in for them."""

    def __init__(self, method: NCN, schema: Mapping[str, Any]) -> None:
        super().__init__()
        features, width = len(schema["features"]), method.hidden
        self.table = None if features else Table(int(schema["nodes"]), width)
        inputs = features or width
        self.encoder: nn.Module
        if method.encoder == "convolutions":
            drop = method.x_dropout if features else method.in_dropout
            self.encoder = Convolutions(inputs, width, method.hops, method.norm, method.residual, drop, method.dropout)
        elif isinstance(method.encoder, str):
            self.encoder = Smoothing(
                features or None, width, method.hops, method.jk, method.x_dropout, method.in_dropout, method.dropout
            )
        else:
            # all of its network, head included: what it calls class scores are the node vectors here
            build: Any = method.encoder
            names = {"classes": [str(k) for k in range(width)], "features": [str(k) for k in range(inputs)], "multi": False}
            self.encoder = build.module(inputs, width, {**schema, **names})
        self.predictor = NCNPredictor(
            width, dropout=method.pair_dropout, edge_dropout=method.set_dropout, norm=method.norm, mix=method.mix,
            tail_act=method.tail_act, deep=method.deep, beta=method.beta, common=method.common, beyond=method.beyond,
            depth=method.depth, pt=method.pt, alpha=method.alpha, scale=method.scale, offset=method.offset,
            learn_pt=method.learn_pt, clean=method.clean_recursion, train_draws=method.train_draws, test_draws=method.test_draws,
        )  # fmt: skip

    def forward(self, x: Features | None, graph: tuple[Any, ...]) -> Tensor:
        """Node vectors [n, d]."""
        h: Tensor = self.encoder(x if self.table is None else self.table(), *graph)
        return h


class NCNModel(Model):
    """A trained predictor. Without features it answers for the nodes it was fitted on, with them also for new graphs."""

    def __init__(self, method: NCN, schema: Mapping[str, Any], net: LinkNet) -> None:
        self.method: NCN = method
        self.schema, self.net = schema, net.eval()
        self.scope = "new data" if schema["features"] else "fitted data"
        self._vectors = WeakCache()

    def vectors(self, part: Part) -> tuple[sp.csr_array, Vectors]:
        """The pattern of the part's graph and the node vectors on it, kept while the graph lives."""
        if self.net.table is not None and len(self.net.table.vectors) != int(part.data.num_nodes):
            raise UserError(
                f"ncn learned a vector for each of {len(self.net.table.vectors)} nodes, since they have no features, and this graph "
                f"has {int(part.data.num_nodes)}; fit again: latticework fit ncn NEW-DATA -o MODEL"
            )
        A = pattern_of(part.data)

        def make() -> Vectors:
            with torch.no_grad():
                device = str(next(self.net.parameters()).device)
                h = self.net(self.method.features(part, device), self.method.graph(A, part, device, False))
                return self.net.predictor.vectors(h)

        return A, self._vectors.get(part.data, "vectors", make)

    @torch.no_grad()
    def predict(self, part: Part) -> Any:
        """Logits float32 [q] of the asked pairs; memory does not grow with q beyond the answer."""
        A, vectors = self.vectors(part)
        pairs = check_pairs(part.query.pairs, A.shape[0])
        out = np.empty(pairs.shape[1], np.float32)
        for cut in chunks(A, pairs, _BUDGET):
            out[cut] = self.net.predictor(vectors, A, pairs[:, cut]).cpu().numpy()
        return out

    @torch.no_grad()
    def counts(self, part: Part) -> dict[str, Array]:
        """Of each asked pair: common neighbours seen, and (with completion) how many more are expected."""
        A, vectors = self.vectors(part)
        pairs = np.asarray(part.query.pairs)
        found = [self.net.predictor.counts(vectors, A, pairs[:, cut]) for cut in chunks(A, pairs, _BUDGET)]
        seen = np.concatenate([f.seen for f in found]) if found else np.zeros(0)
        columns: dict[str, Array] = {"common neighbours": seen.astype(np.int64)}
        if self.method.depth:
            columns["expected by completion"] = np.concatenate([f.expected for f in found]) if found else np.zeros(0)
        return columns

    def explain(self, part: Part) -> Findings:
        """How much the common neighbours weigh, and how many there are in the pairs that are asked."""
        scalars: dict[str, Any] = {}
        predictor = self.net.predictor
        if predictor.beta is not None:
            scalars["beta"] = float(predictor.beta.detach())
            for name, values in self.counts(part).items():
                scalars[f"{name} of a pair, mean"] = float(values.mean()) if len(values) else None
                scalars[f"pairs with {name}"] = float((values > 0.5).mean()) if len(values) else None
        weights = getattr(self.net.encoder, "weights", None)
        tables = {}
        if weights is not None:
            tables["weight per hop"] = [{"hop": k + 1, "weight": float(w)} for k, w in enumerate(weights.detach())]
        return Findings(scalars, tables)

    def state(self) -> Mapping[str, Any]:
        return self.net.state_dict()

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = LinkNet(method, schema)
        net.load_state_dict(dict(state))
        return cls(method, schema, net)


class NCN(Method):
    """A link is scored from its two node vectors and the sum of its common neighbours' vectors: neural common neighbours.

    One pass of `encoder` gives all node vectors; a pair adds to the product of its two the sum over N(i) n N(j), each through
    a small network. Counting (Adamic-Adar, resource allocation) is a special case; that sum is learned here. With
    ``depth=1`` (``ncn:completion``) neighbours of one node that the other probably has join the sum with their probability,
    which the same predictor gives: what incomplete data hide. ``common=none`` (``ncn:gae``) is a graph autoencoder with the
    same encoder, ``common=count`` (``ncn:count``) sees the number of common neighbours alone.

    In training the batch's own links are taken out of the graph, for encoder and neighbour sets alike (`remove_targets`):
    a link to be predicted is not there when it counts. Adam with a rate for the encoder (`lr`) and one for the predictor;
    ``loss = mean -log sigmoid(s+) + mean -log sigmoid(-s-)`` with as many uniform non-links of the training graph, drawn anew
    each epoch; a last incomplete batch is left out. Of a small graph a step takes no more than a third of the links. The epoch is the best by the task's headline on the valid part.

    `encoder`: ``puregcn`` (a linear map, then hops of symmetric smoothing), ``puresum`` (hops of A), ``convolutions``
    (GCN layers with LayerNorm), or a node classifier by name, as ``sage(layers=2)``, whose scores are the vectors. Nodes
    without features get a learned table. Graphs are read as undirected patterns: weights only say whether there is a link.
    Defaults are the official ones for Cora. Source: Wang et al., ICLR 2024; official repository GraphPKU/NeuralCommonNeighbor.
    """

    name: ClassVar[str] = "ncn"
    revision: ClassVar[int] = 2  # 1 took all links of a small graph out of it in one step, so that none was left to look at
    tasks: ClassVar[tuple[str, ...]] = ("link-prediction",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[NCNModel]] = NCNModel

    encoder: Literal["puregcn", "puresum", "convolutions"] | Backbone = setting(
        "puregcn", "puregcn, puresum, convolutions, or a node classifier"
    )
    hidden: int = setting(256, "width of node vectors and predictor", ge=1, le=4096, search=[64, 128, 256])
    hops: int = setting(1, "of smoothing, or layers of the convolutions", ge=0, le=100, search=[1, 2, 3])
    jk: bool = setting(True, "smoothing: learned weights on hops 1 to the last, instead of the last alone")
    residual: bool = setting(False, "convolutions: add a layer's input to its output")
    x_dropout: float = setting(0.7, "on features (a learned table has none)", ge=0, lt=1, search=(0.0, 0.8))
    in_dropout: float = setting(0.05, "on what is smoothed: mapped features, or the table", ge=0, lt=1)
    dropout: float = setting(0.3, "on node vectors, or within convolutions", ge=0, lt=1, search=(0.0, 0.6))
    edge_dropout: float = setting(0.0, "on the encoder's edges, the rest scaled up", ge=0, lt=1)
    pair_dropout: float = setting(0.05, "within the predictor", ge=0, lt=1, search=(0.0, 0.6))
    set_dropout: float = setting(0.4, "on the links that neighbour sets are read from", ge=0, lt=1, search=(0.0, 0.6))
    norm: bool = setting(True, "LayerNorm in the predictor (and in convolutions)")
    mix: bool = setting(True, "h + f(h) is summed over common neighbours instead of h")
    tail_act: bool = setting(True, "the two branches end with their ReLU, without another linear map")
    deep: bool = setting(False, "a second hidden block before the logit")
    beta: float = setting(1.0, "weight of the common neighbours' branch at the start", ge=-100, le=100)
    common: Literal["vectors", "count", "none"] = setting(
        "vectors", "what common neighbours bring: vectors, their number, nothing"
    )
    beyond: Literal["nothing", "difference", "second"] = setting(
        "nothing", "further sets: neighbours of one alone, or at distance 1 and 2"
    )
    depth: int = setting(0, "levels of completion; 1 is NCNC", ge=0, le=2)
    pt: float = setting(0.75, "completion: factor on the odds of a link", gt=0, le=1)
    alpha: float = setting(1.0, "completion: factor on its probabilities", ge=0, le=10)
    scale: float = setting(4.3, "completion: how steeply probability follows the logit", gt=0, le=100)
    offset: float = setting(2.8, "completion: the logit that counts as a half", ge=-100, le=100)
    learn_pt: bool = setting(False, "completion: pt is learned from the pair's vectors")
    clean_recursion: bool = setting(
        True, "completion asks NCN itself; false: vectors transformed twice, as the official code does"
    )
    train_draws: int = setting(0, "completion in training: sample so many of each difference; 0: all", ge=0, le=100_000)
    test_draws: int = setting(0, "the same when predicting", ge=0, le=100_000)
    remove_targets: bool = setting(True, "take the batch's own links out of the graph")
    lr: float = setting(0.0043, "Adam's rate for the encoder", gt=0, le=1, search=(1e-4, 2e-2, "log"))
    predictor_lr: float = setting(0.0024, "and for the predictor", gt=0, le=1, search=(1e-4, 2e-2, "log"))
    batch: int = setting(
        1152, "links of a step; at most a third of all where the graph is read without them", ge=1, le=10_000_000
    )
    epochs: int = setting(100, "passes over the training links", ge=1, le=100_000)
    row_normalise: bool = setting(False, "divide a node's features by their sum")

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if not isinstance(self.encoder, str):
            kind = type(self.encoder)
            if getattr(kind, "socket", "") != "nodes" or not getattr(kind, "encode_head", False):
                return f"ncn.encoder: {self.encoder.name} has no network that gives a vector for each node of a graph; use gcn, sage or dagnn"
        if self.common == "none" and (self.depth or self.beyond != "nothing"):
            return "ncn.common=none looks at no neighbours: set depth=0 and beyond=nothing"
        if self.common == "count" and self.depth and not self.clean_recursion:
            return "ncn.common=count has no vectors for clean_recursion=false: set clean_recursion=true"
        if self.encoder == "convolutions" and not self.hops:
            return "ncn.encoder=convolutions with hops=0 has no layer: set hops=1 or more"
        return None

    # -- what the network reads ----------------------------------------------------------------------------------------
    def features(self, part: Part, device: str) -> Features | None:
        """The features of all nodes, kept with the graph; none where there are none."""
        if part.data.x is None:
            return None

        def make() -> Features:
            x: Tensor = part.data.x
            if self.row_normalise:
                x = x / x.abs().sum(1, keepdim=True).clamp(min=1e-12)
            return compact(x) if device == "cpu" else x.to(device)

        found: Features = _graphs.get(part.data, ("x", self.row_normalise, device), make)
        return found

    def graph(self, A: sp.csr_array, part: Part, device: str, training: bool) -> tuple[Any, ...]:
        """What the encoder reads of a pattern [n, n] beside the features."""
        if isinstance(self.encoder, str):
            return (smoother(A, "sum" if self.encoder == "puresum" else "symmetric", self.edge_dropout if training else 0.0),)
        # its own preparation of a graph, with a stand-in for the features, which do not change from step to step
        rows = np.repeat(np.arange(A.shape[0], dtype=np.int64), np.diff(A.indptr))
        edges = torch.from_numpy(np.stack([A.indices.astype(np.int64), rows]))
        data = Data(x=torch.zeros(A.shape[0], 1), edge_index=edges, edge_weight=None, num_nodes=A.shape[0])
        data.directed = False
        encoder: Any = self.encoder
        return tuple(encoder.inputs(part._replace(data=data), device)[1:])

    # -- training ------------------------------------------------------------------------------------------------------
    def fit(self, train: Part, valid: Part | None, run: Run) -> NCNModel:
        schema = dict(train.schema)
        A, device = pattern_of(train.data), run.device
        positives = np.asarray(train.query.pairs)
        if not positives.shape[1]:
            raise UserError("there is no link to learn from")
        net = LinkNet(self, schema).to(device)
        x = self.features(train, device)
        encoder = [p for name, p in net.named_parameters() if not name.startswith("predictor.")]
        optimiser = torch.optim.Adam(
            [{"params": encoder, "lr": self.lr}, {"params": list(net.predictor.parameters()), "lr": self.predictor_lr}]
        )

        size = self.links_of_a_step(positives.shape[1])
        if size < self.batch:
            run.notes.append(f"steps of {size} links instead of {self.batch}: two thirds of the graph must be left without them")

        def step(epoch: int) -> float:
            batches = [b.numpy() for b in minibatches(positives.shape[1], size, run.generator(f"order {epoch}"))]
            if len(batches) > 1 and len(batches[-1]) < size:
                batches.pop()
            negatives = non_links(A, sum(map(len, batches)), run.rng(f"negatives {epoch}"))
            total, used = 0.0, 0
            for batch in batches:
                optimiser.zero_grad(set_to_none=True)
                value = self.loss(net, A, positives[:, batch], negatives[:, used : used + len(batch)], train, x, device)
                value.backward()
                optimiser.step()
                total, used = total + float(value.detach()) * len(batch), used + len(batch)
            return total / used

        def look() -> Watch:
            assert valid is not None
            return watched(NCNModel(self, schema, net), valid, run)

        epoch = train_net(net, step, run, epochs=self.epochs, optimiser=optimiser, watch=None if valid is None else look)
        if valid is not None:
            run.notes.append(f"weights of epoch {epoch + 1}, chosen on validation {run.metric.name}")
        return NCNModel(self, schema, net.cpu())

    def links_of_a_step(self, links: int) -> int:
        """`batch`, but of a small graph no more than a third of its links where a step takes its own out: else nothing is left."""
        return min(self.batch, max(1, links // 3)) if self.remove_targets else self.batch

    def loss(
        self, net: LinkNet, A: sp.csr_array, links: Array, others: Array, part: Part, x: Features | None, device: str
    ) -> Tensor:
        """Of one step: links [2, b] and as many non-links; the links are out of the graph, if `remove_targets`."""
        seen = without(A, links) if self.remove_targets else A
        h = net(x, self.graph(seen, part, device, net.training))
        logits = net.predictor(h, seen, np.concatenate([links, others], axis=1))
        b = links.shape[1]
        return F.softplus(-logits[:b]).mean() + F.softplus(logits[b:]).mean()
