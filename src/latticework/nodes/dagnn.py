"""DAGNN: class scores smoothed over 0 .. K hops and mixed by a gate for each node and hop.

An MLP maps features to class scores ``Z``; then ``O_i = sum_k sigmoid(w . P_ik + b) P_ik`` with ``P_k = S^k Z`` and
``S = D~^-1/2 (A + I) D~^-1/2``. Transformation and propagation are apart, so the receptive field grows without parameters,
and the gate, which is no softmax, lets each node choose how far it looks.

Source: Liu, Gao, Ji, "Towards Deeper Graph Neural Networks" (KDD 2020, arXiv 2007.09296), equations 7 to 9. The bound of
over-smoothing is its Theorem 1. Published figures are those of the official code, which propagates class scores (not
hidden states), as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.method import Predictor
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import bars, lines
from latticework.core.task import Part
from latticework.core.training import Patience
from latticework.core.value import setting
from latticework.layers.propagation import SparseOperator, hop_stack
from latticework.layers.sparse_features import FeatureLinear, SparseFeatures, feature_dropout

from .network import EncodeHead, Features, NodeModel, NodeNetwork, features_of, operator_of

Array = NDArray[Any]


class GatedPropagation(nn.Module):
    """Mixes hops 0 .. K of smoothed states: ``O_i = sum_k s_ik P_ik``, ``P_k = S^k Z``.

    ``gate="sigmoid"``: ``s_ik = sigmoid(w . P_ik + b)`` with w [C] and b shared by all nodes and hops (equation 8; not a
    softmax, so gates need not sum to 1); ``"mean"``: ``s_ik = 1 / (K + 1)``; ``"last"``: the K-th hop alone. The two last
    have no parameters and are the controls. The sum is accumulated while propagating: memory does not grow with K.

    Shapes: ``Z`` [n, C], ``S`` [n, n] (a `SparseOperator` or a torch tensor) -> [n, C]. ``ValueError`` for K < 0, an unknown
    gate, or shapes that do not fit.
    """

    def __init__(self, channels: int, hops: int, gate: Literal["sigmoid", "mean", "last"] = "sigmoid") -> None:
        super().__init__()
        if hops < 0:
            raise ValueError(f"hops must be >= 0, is {hops}")
        if gate not in ("sigmoid", "mean", "last"):
            raise ValueError(f"gate must be sigmoid, mean or last, not {gate!r}")
        self.hops, self.gate = hops, gate
        self.score = nn.Linear(channels, 1) if gate == "sigmoid" else None

    def forward(self, Z: Tensor, S: SparseOperator | Tensor) -> Tensor:
        out: Tensor | None = None
        P = Z
        for P in hop_stack(S, Z, self.hops):
            if self.score is not None:
                term = torch.sigmoid(self.score(P)) * P
                out = term if out is None else out + term
            elif self.gate == "mean":
                out = P if out is None else out + P
        if out is None:
            return P
        return out / (self.hops + 1) if self.gate == "mean" else out

    def gates(self, Z: Tensor, S: SparseOperator | Tensor) -> Tensor:
        """``s`` [n, K + 1]."""
        if self.score is None:
            weights = torch.zeros(self.hops + 1, dtype=Z.dtype, device=Z.device)
            weights[-1] = 1
            weights = torch.full_like(weights, 1 / (self.hops + 1)) if self.gate == "mean" else weights
            return weights.expand(Z.shape[0], -1)
        return torch.cat([torch.sigmoid(self.score(P)) for P in hop_stack(S, Z, self.hops)], dim=1)


class DAGNN(EncodeHead):
    """Deep adaptive graph neural network: dropout, linear, ReLU, dropout, linear, then `GatedPropagation`.

    Parameters: ``F h + h + h C + C`` and ``C + 1`` of the gate, whatever the number of hops. `batch_norm` puts a
    BatchNorm after the first map and leaves out the dropout of the input (the official variant for ogbn-arxiv).

    Shapes: ``x`` [n, F] (a tensor, or `SparseFeatures`), ``S`` [n, n] symmetric normalised -> logits [n, C].
    ``ValueError`` for K < 0, fewer than two classes, x with another number of rows than S, NaN in x (with the first such
    row).
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: int = 64,
        hops: int = 10,
        dropout: float = 0.8,
        gate: Literal["sigmoid", "mean", "last"] = "sigmoid",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be >= 2, is {classes}: there is nothing to tell apart")
        self.first, self.second = FeatureLinear(features, hidden), nn.Linear(hidden, classes)
        self.norm = nn.BatchNorm1d(hidden) if batch_norm else None
        self.propagation = GatedPropagation(classes, hops, gate)
        self.dropout = dropout

    def hidden(self, x: Features) -> Tensor:
        """The hidden layer [n, h], without the graph."""
        h = self.first(x if self.norm is not None else feature_dropout(x, self.dropout, self.training))
        h = F.relu(h if self.norm is None else self.norm(h))
        # NaN passes through the map (ReLU keeps it), so the small h tells whether the large x need be searched
        if not bool(torch.isfinite(h.detach()).all()):
            _refuse_nan(x)
        return h

    def scores(self, x: Features) -> Tensor:
        """``Z = MLP(x)`` [n, C], without the graph."""
        return self._scores(self.hidden(x))

    def _scores(self, h: Tensor) -> Tensor:
        return self.second(F.dropout(h, self.dropout, self.training))

    def encode(self, x: Features, S: SparseOperator | Tensor) -> Tensor:
        if x.shape[0] != S.shape[0]:
            raise ValueError(f"x has {x.shape[0]} rows, the graph {S.shape[0]} nodes")
        return self.hidden(x)

    def head(self, h: Tensor, S: SparseOperator | Tensor) -> Tensor:
        return self.propagation(self._scores(h), S)

    @torch.no_grad()
    def gates(self, x: Features, S: SparseOperator | Tensor) -> Tensor:
        """The gate of each node and hop, [n, K + 1]."""
        return self.propagation.gates(self.scores(x), S)


def _refuse_nan(x: Features) -> None:
    if isinstance(x, SparseFeatures):
        csr = x.scipy()
        bad = np.repeat(np.arange(x.shape[0]), np.diff(csr.indptr))[~np.isfinite(csr.data)]
    else:
        bad = torch.nonzero(~torch.isfinite(x.detach()).all(dim=1)).flatten().cpu().numpy()
    if len(bad):
        raise ValueError(f"x holds NaN or infinite values, first in row {int(bad[0])}")


class DAGNNModel(NodeModel):
    """A trained DAGNN, which can say how far it looks."""

    def explain(self, part: Part) -> Findings:
        """The mean gate per hop: which radius the model really uses."""
        net = self.net
        assert isinstance(net, DAGNN)
        gates = net.gates(*self.method.inputs(part, "cpu"))
        mean, low, high = gates.mean(0), gates.quantile(0.1, 0), gates.quantile(0.9, 0)
        rows = [
            {"hop": k, "mean gate": float(mean[k]), "10 % of nodes below": float(low[k]), "90 % below": float(high[k])}
            for k in range(gates.shape[1])
        ]
        figure = bars([str(k) for k in range(len(rows))], [r["mean gate"] for r in rows], "mean gate per hop", "hop")
        return Findings({}, {"gate per hop": rows}, {"mean gate per hop": figure})


class DAGNNMethod(NodeNetwork):
    """Class scores smoothed over 0 .. hops neighbourhoods, mixed by a gate for each node and hop.

    Adam for at most `epochs` full batches; the weights of the lowest validation loss are kept. After half of the epochs
    the fit stops when a validation loss exceeds the mean of the `patience` before it (the official rule). Directed graphs
    are symmetrised. Weight decay is on all parameters, the gate's too: tune it for each gate by itself, since the ungated
    forms have far smaller logits and collapse under DAGNN's own.
    """

    name: ClassVar[str] = "dagnn"
    encode_head: ClassVar[bool] = True
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[NodeModel]] = DAGNNModel

    hops: int = setting(10, "K, the largest neighbourhood", ge=0, le=1000, search=[5, 10, 20])
    gate: Literal["sigmoid", "mean", "last"] = setting("sigmoid", "how hops are mixed; mean and last are controls")
    dropout: float = setting(0.8, "dropout on features and hidden layer", ge=0, lt=1, search=(0.0, 0.8))
    weight_decay: float = setting(5e-3, "on all parameters, the gate's too", ge=0, le=1, search=(1e-5, 5e-2, "log"))
    epochs: int = setting(1000, "at most", ge=1, le=100_000)
    patience: int = setting(100, "window of validation losses whose mean stops the fit", ge=1)
    batch_norm: bool = setting(False, "BatchNorm after the first map and no dropout of the input (ogbn-arxiv)")

    def module(self, features: int, classes: int, schema: Mapping[str, Any], inputs: int = 1) -> nn.Module:
        return DAGNN(features, classes, self.hidden, self.hops, self.dropout, self.gate, self.batch_norm)

    def inputs(self, part: Part, device: str) -> tuple[Any, ...]:
        S = operator_of(part)
        return features_of(part, device, self.row_normalise), S if device == "cpu" else S.to_torch(device)

    def patience_of(self) -> Patience:
        return Patience(mean_of=self.patience, after=0.5)


# -- over-smoothing ------------------------------------------------------------------------------------------------------
class Smoothing(NamedTuple):
    """What `over_smoothing` found: `rate` |lambda_2| per component, `distance` [K + 1] over the hops, `exact` or sampled."""

    rate: Array
    sizes: Array
    distance: Array
    exact: bool


def smoothing_limit(A: sp.sparray) -> tuple[Array, Array]:
    """``lim S^k`` of ``S = D~^-1/2 (A + I) D~^-1/2`` in factors: the limit's entry ij is ``f_i f_j`` in one component, else 0.

    ``f_i = sqrt(d~_i / sum of d~ in the component)``. A [n, n] symmetric, non-negative -> f float64 [n], component int [n].
    """
    degree = np.asarray(A.sum(axis=1)).ravel() + (np.asarray(A.diagonal()) == 0)
    component = sp.csgraph.connected_components(A, directed=False)[1]
    total = np.bincount(component, degree)
    return np.sqrt(degree / total[component]), component


def over_smoothing(A: sp.sparray, hops: int = 200, columns: int = 64, rng: np.random.Generator | None = None) -> Smoothing:
    """How fast repeated smoothing forgets: ``max |S^k - limit| <= |lambda_2|^k``, per component (Theorem 1).

    A [n, n] symmetric, non-negative. The distance is exact to n = 1,500 and the largest over `columns` random columns above
    (`rng` needed). ``ValueError`` for hops < 0 or a matrix that is not symmetric.
    """
    from latticework.layers.propagation import normalise

    A = sp.csr_array(A, dtype=np.float64, copy=True)
    A.eliminate_zeros()  # an edge of weight 0 joins nothing
    if hops < 0:
        raise ValueError(f"hops must be >= 0, is {hops}")
    if A.shape[0] == 0:
        raise ValueError("the graph has no nodes")
    if not (A.data >= 0).all():
        raise ValueError("the adjacency must have weights >= 0, without NaN")
    if abs(A - A.T).max() > 1e-12:
        raise ValueError("the adjacency must be symmetric; take max(A, A^T)")
    factor, component = smoothing_limit(A)
    S = normalise(A + sp.diags_array((A.diagonal() == 0).astype(np.float64)), "symmetric")
    sizes = np.bincount(component)
    members = np.split(np.argsort(component, kind="stable"), np.cumsum(sizes)[:-1])
    rates = np.array([_second(S[own][:, own], factor[own]) if len(own) > 1 else 0.0 for own in members])
    n = A.shape[0]
    exact = n <= 1500
    if exact:
        chosen = np.arange(n)
    else:
        if rng is None:
            raise ValueError("a graph of more than 1,500 nodes is sampled: give a generator")
        chosen = np.sort(rng.choice(n, min(columns, n), replace=False))
    limit = np.where(component[:, None] == component[chosen][None], factor[:, None] * factor[chosen][None], 0.0)
    state = np.zeros((n, len(chosen)))
    state[chosen, np.arange(len(chosen))] = 1.0
    distance = [np.abs(state - limit).max()]
    for _ in range(hops):
        state = S @ state
        distance.append(np.abs(state - limit).max())
    return Smoothing(rates, sizes, np.array(distance), exact)


def _second(S: sp.sparray, lead: Array) -> float:
    """The second largest modulus among the eigenvalues of a component's symmetric S, whose leading eigenvector is known."""
    n = S.shape[0]
    if n <= 500:
        return float(np.abs(np.linalg.eigvalsh(S.toarray() - np.outer(lead, lead))).max())

    def rest(v: Array) -> Array:
        # without the leading part: the iteration need not part two eigenvalues that nearly meet
        v = v.ravel()
        return S @ v - lead * (lead @ v)

    start = np.random.default_rng(0).standard_normal(n)  # ARPACK's own start is not repeatable
    linear = LinearOperator((n, n), matvec=rest, dtype=np.float64)
    try:
        found = float(abs(eigsh(linear, k=1, which="LM", ncv=64, v0=start, return_eigenvectors=False)[0]))
    except ArpackNoConvergence:
        found = 0.0
        for _ in range(1000):  # a lower bound, close where the top is crowded (long chains)
            start = rest(start / np.linalg.norm(start))
            found = float(np.linalg.norm(start))
    return min(found, 1.0)


class OverSmoothing(Probe):
    """How fast the graph's smoothing forgets where it started: |lambda_2| and the distance to the limit per hop.

    A small |lambda_2| means that a few hops blur everything, so a large `hops` needs a gate; near 1 it takes long.
    """

    name: ClassVar[str] = "over-smoothing"
    kinds: ClassVar[tuple[str, ...]] = ("graph",)
    hops: int = setting(200, "how far", ge=1, le=10_000)
    columns: int = setting(64, "columns sampled on graphs of more than 1,500 nodes", ge=1, le=10_000)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        from latticework.layers.propagation import adjacency

        if data is None:
            raise UserError("over-smoothing needs a graph")
        graph = data.read()
        A = adjacency(graph.edge_index, graph.nodes, graph.weight, undirected=True)
        found = over_smoothing(A, self.hops, self.columns, run.rng("columns"))
        large = int(found.sizes.argmax())
        distance = found.distance
        half = np.flatnonzero(distance <= distance[0] / 2)
        shown = sorted({0, 1, 2, 3, 5, 10, 20, 50, 100, 200, self.hops} & set(range(self.hops + 1)))
        scalars = {
            "|lambda_2| of the largest component": float(found.rate[large]),
            "largest |lambda_2| of any component": float(found.rate.max()),
            "components": len(found.sizes),
            "nodes of the largest component": int(found.sizes[large]),
            "hops to half the distance": int(half[0]) if len(half) else None,
            "distance": "exact" if found.exact else f"largest over {min(self.columns, graph.nodes)} sampled columns",
        }
        rows = [{"hop": k, "distance to the limit": float(distance[k]), "bound": float(found.rate.max() ** k)} for k in shown]
        figure = lines(
            {"distance": list(enumerate(distance.tolist())), "bound": [(k, float(found.rate.max() ** k)) for k in range(len(distance))]},
            "distance to the limit", "hop",
        )  # fmt: skip
        return Findings(scalars, {"distance per hop": rows}, {"distance to the limit": figure})
