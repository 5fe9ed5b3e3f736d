"""The method: a link predictor whose message passing is re-weighted by its own scores while it trains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from latticework.core import registry
from latticework.core.method import Backbone, Method, Predictor
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting
from latticework.layers.propagation import SparseOperator, WeakCache

from ..baselines import Features, GCNLinks, LinkNet, LinkNetModel, LinkNetwork, pattern_of
from .reweight import edge_scores, reweighted

_operators = WeakCache()


class ReweightedNet(nn.Module):
    """An encoder and decoder of links (`LinkNet`) whose operator on the fitted graph is the re-weighted one.

    ``encode(x, S)`` on that graph sums with the weights that the last update left (buffer `weights` [nnz], so they are kept,
    chosen and saved with the parameters); on another graph, with weights made for it in one step from S. ``update`` makes
    them anew: from S, with the states under the weights so far, in eval mode and without gradient.
    """

    weights: Tensor
    mark: Tensor
    epoch: Tensor

    def __init__(self, link: LinkNet, alpha: float, warm_up: int, interval: int, transposed: bool, size: int = 0) -> None:
        super().__init__()
        self.link, self.alpha, self.warm_up, self.interval, self.transposed = link, alpha, warm_up, interval, transposed
        self.register_buffer("weights", torch.zeros(size))
        self.register_buffer("mark", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self._given: tuple[Features | None, SparseOperator] | None = None
        self._current: tuple[int, SparseOperator] | None = None

    @property
    def table(self) -> nn.Embedding | None:
        return self.link.table

    def begin(self, x: Features | None, S: Any) -> Self:
        """The graph that is fitted: its features and its operator, whose own weights come first."""
        S = operator_of(S)
        self._given = (x, S)
        self.weights = torch.from_numpy(S.values.copy()).to(self.weights.device)
        self.mark.fill_(mark_of(S))
        return self

    def train(self, mode: bool = True) -> Self:
        """As ever; and, since the trainer turns to train mode once at the start of each epoch, the place of the updates."""
        super().train(mode)
        if mode and self._given is not None:
            late = int(self.epoch) - self.warm_up
            if late >= 0 and late % self.interval == 0:
                self.update()
            self.epoch += 1
        return self

    @torch.no_grad()
    def update(self) -> None:
        assert self._given is not None
        x, S = self._given
        super().train(False)
        self.weights.copy_(torch.from_numpy(self._reweighted(S, self.encode(x, S)).values))
        super().train(True)

    def _reweighted(self, S: SparseOperator, h: Tensor) -> SparseOperator:
        def score(a: Tensor, b: Tensor) -> Tensor:
            place = torch.arange(len(a), device=a.device)
            return self.link.decode(torch.cat([a, b]), torch.stack([place, place + len(a)]))

        return reweighted(S, edge_scores(S, h, score), self.alpha, self.transposed)

    def operator(self, x: Features | None, S: Any) -> SparseOperator:
        """The re-weighted operator of a graph with features x and operator S."""
        S = operator_of(S)
        if S.nnz == len(self.weights) and mark_of(S) == int(self.mark):
            version = self.weights._version
            if self._current is None or self._current[0] != version:
                self._current = version, S.with_values(self.weights.cpu().numpy().copy())
            return self._current[1]
        return self._reweighted(S, self.link.encode(x, S))

    def encode(self, x: Features | None, S: Any) -> Tensor:
        return self.link.encode(x, self.operator(x, S))

    def decode(self, h: Tensor, pairs: Tensor) -> Tensor:
        return self.link.decode(h, pairs)

    def forward(self, x: Features | None, S: Any, pairs: Tensor) -> Tensor:
        return self.decode(self.encode(x, S), pairs)

    def halves(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        return self.link.halves()


def operator_of(S: Any) -> SparseOperator:
    """An operator as a `SparseOperator`, which multiplies on every device; a torch CSR tensor is read once."""
    if isinstance(S, SparseOperator):
        return S

    def make() -> SparseOperator:
        crow, column, values = (part.cpu().numpy() for part in (S.crow_indices(), S.col_indices(), S.values()))
        return SparseOperator(crow, column, values, tuple(S.shape))

    found: SparseOperator = _operators.get(S, "operator", make)
    return found


def mark_of(S: SparseOperator) -> int:
    """A number that names an operator's pattern and values; kept with it."""

    def make() -> int:
        sha = hashlib.sha256()
        for array in (S.indptr, S.indices, S.values):
            sha.update(np.ascontiguousarray(array).tobytes())
        return int.from_bytes(sha.digest()[:7], "little")

    found: int = _operators.get(S, "mark", make)
    return found


class ReweightedLinksModel(LinkNetModel):
    """A link predictor with the edge weights that it was left with."""

    method: Any
    net: Any

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        net = method.wrapped(method.link.module(schema), len(state["weights"]))
        net.load_state_dict(dict(state))
        return cls(method, schema, net)

    def explain(self, part: Part) -> Findings:
        """How the weight moved: its share on edges within triangles, and on loops, before and after."""
        device = str(next(self.net.parameters()).device)
        x, S = self.method.features(part, device), operator_of(self.method.operator(part, device))
        with torch.no_grad():
            after = self.net.operator(x, S)
        A = pattern_of(part)
        rows = np.repeat(np.arange(S.shape[0]), np.diff(S.indptr))
        common = np.asarray((A @ A)[rows, S.indices]).ravel()
        loops = rows == S.indices
        within = (common > 0) & ~loops
        scalars: dict[str, Any] = {"weight after over before": float(after.values.sum() / S.values.sum())}
        for word, chosen in (("edges within triangles", within), ("loops", loops)):
            for when, values in (("before", S.values), ("after", after.values)):
                scalars[f"share of the weight on {word}, {when}"] = float(values[chosen].sum() / values.sum())
        return Findings(scalars)


class TCReweight(Method):
    """A link predictor that puts more weight on the edges along which it expects links itself, while it trains.

    From epoch `warm_up` on, every `interval` epochs, the decoder scores each edge j -> i of the encoder's operator S, ``q_ij =
    sigmoid(f(a_i * h_j))`` with ``a = S h``, and the encoder goes on with ``S_ij + alpha u_i softmax_j(q_ij)``, where u_i is i's
    total weight in S. So neighbourhoods concentrate on neighbours that are like the rest of them, where the paper finds link
    prediction easier. No gradient flows through the weights, validation and test links have no part in them, and they start
    from S every time. Of the epochs the best on the validation part is kept, with its weights.

    `link` is any link predictor of the library that trains an encoder with an operator (gcn-links, sage-links); the default is
    the paper's: a decoder of two layers, no dropout, batches of 1152 links, 1000 epochs. The paper's alpha: 2 for GCN on Cora and
    CiteSeer (there with warm_up=5), 0.2 to 0.5 with interval=2 on PubMed, 0.2 for SAGE. Gradients are clipped at 2, which is the official
    1 for its loss, half of ours. The official code normalises weights by the destination but applies them by the source:
    ``transposed=true`` does the latter as it does. The paper reports no gain on PubMed, and says itself that new neighbours limit what it can do.
    """

    name: ClassVar[str] = "tc-reweight"
    tasks: ClassVar[tuple[str, ...]] = ("link-prediction",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[ReweightedLinksModel]] = ReweightedLinksModel

    link: Backbone = setting(
        GCNLinks(decoder="mlp", dropout=0.0, lr=1e-3, batch=1152, epochs=1000, patience=1000, row_normalise=True, clip=2.0),
        "the link predictor: gcn-links or sage-links; its fields by link.NAME",
    )
    alpha: float = setting(2.0, "weight added to a node's edges, in terms of what they have; 0: the bare predictor",
                           ge=0, le=100, search=(0.01, 3.0, "log"))  # fmt: skip
    warm_up: int = setting(1, "epochs before the first re-weighting", ge=0, search=[1, 5])
    interval: int = setting(1, "epochs from one re-weighting to the next", ge=1, search=[1, 2])
    transposed: bool = setting(False, "the added weight of j -> i goes to i -> j, as in the official code")

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        if not isinstance(self.link, LinkNetwork) or type(self.link).operator is LinkNetwork.operator:
            able = [e.name for e in registry.entries("method") if _weighable(e)]
            return f"{self.link.name} has no encoder whose edges can be weighted; use {' or '.join(able)}"
        return self.link.refuses(task, facts)

    def wrapped(self, net: LinkNet, size: int = 0) -> ReweightedNet:
        return ReweightedNet(net, self.alpha, self.warm_up, self.interval, self.transposed, size)

    def features(self, part: Part, device: str) -> Any:
        link: Any = self.link
        return link.features(part, device)

    def operator(self, part: Part, device: str) -> Any:
        link: Any = self.link
        return link.operator(part, device)

    def fit(self, train: Part, valid: Part | None, run: Run) -> ReweightedLinksModel:
        link: Any = self.link
        net: Any = self.wrapped(link.build(train, run)).to(run.device)
        net.begin(self.features(train, run.device), self.operator(train, run.device))
        fitted = link.trained(net, train, valid, run)
        return ReweightedLinksModel(self, fitted.schema, fitted.net)


def _weighable(entry: Any) -> bool:
    if "link-prediction" not in entry.facts.get("tasks", ()):
        return False
    method = entry.load()
    return issubclass(method, LinkNetwork) and method.operator is not LinkNetwork.operator
