"""DAGNN: a node classifier whose class scores are smoothed over 0..K hops, each node weighing its hops by a gate.

An MLP makes class scores from a node's own features; the graph then smooths the scores, which adds no parameters, and a
gate shared by all nodes and hops says how much of each hop is kept. Features and propagation are thus not entangled, so the
number of hops can grow without the network growing. What repeated smoothing tends to is known exactly, and can be measured
on a graph alone: see :func:`over_smoothing`.

Source: "Towards Deeper Graph Neural Networks" (KDD 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.layers.propagation import SparseOperator, hop_stack, normalise
from latticework.layers.sparse_features import FeatureLinear, SparseFeatures, feature_dropout

Gate = Literal["sigmoid", "mean", "last"]
Operator = SparseOperator | Tensor

# Below this many nodes a component's eigenvalues are computed densely, and S^k is formed whole.
_DENSE = 600


class GatedPropagation(nn.Module):
    """Smooths node scores over 0..K hops and sums the hops, each weighted by a gate of its own content.

    ``P_0 = Z, P_k = S P_(k-1)``; ``O_i = sum_(k=0..K) s_ik P_ik``. The gate is ``s_ik = sigmoid(w . P_ik + b)``, one ``w``
    [channels] and one ``b`` for all nodes and hops; its values lie in (0, 1) and need not sum to 1. ``gate="mean"`` takes
    ``s = 1 / (K + 1)`` and ``gate="last"`` keeps ``P_K`` alone; neither has parameters.

    Shapes: ``forward(Z, S)``: ``Z`` floating [n, channels], ``S`` [n, n], an operator or a torch tensor (sparse or dense)
    -> [n, channels] of the dtype of Z. The sum is taken while propagating, so without gradients only two hops are ever
    held; with them autograd keeps the K + 1 hops.
    Errors: ``ValueError`` for hops < 0, channels < 1, an unknown gate, shapes that don't fit.
    Source: KDD 2020, adaptive adjustment; the sigmoid (not softmax) as in the published code.
    """

    def __init__(self, channels: int, hops: int = 10, gate: Gate = "sigmoid") -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be >= 1, is {channels}")
        if hops < 0:
            raise ValueError(f"hops must be >= 0, is {hops}")
        if gate not in ("sigmoid", "mean", "last"):
            raise ValueError(f"gate must be 'sigmoid', 'mean' or 'last', not {gate!r}")
        self.channels, self.hops, self.gate = channels, hops, gate
        self.score = nn.Linear(channels, 1) if gate == "sigmoid" else None

    def forward(self, Z: Tensor, S: Operator) -> Tensor:
        stack = self._stack(Z, S)
        if self.score is None:
            if self.gate == "last":
                for last in stack:
                    Z = last
                return Z
            return sum(stack, torch.zeros_like(Z)) / (self.hops + 1)
        out: Tensor | None = None
        for P in stack:
            weight = torch.sigmoid(self.score(P))  # [n, 1]: broadcasts also where n = 1 or C = 1
            out = weight * P if out is None else torch.addcmul(out, weight, P)
        assert out is not None
        return out

    def gates(self, Z: Tensor, S: Operator) -> Tensor:
        """``s`` [n, K + 1]: how much of each hop a node keeps."""
        if self.score is not None:
            return torch.cat([torch.sigmoid(self.score(P)) for P in self._stack(Z, S)], dim=1)
        self._stack(Z, S)
        weights = Z.new_zeros(Z.shape[0], self.hops + 1)
        if self.gate == "mean":
            return weights + 1.0 / (self.hops + 1)
        weights[:, -1] = 1.0
        return weights

    def _stack(self, Z: Tensor, S: Operator) -> Iterator[Tensor]:
        if Z.ndim != 2 or Z.shape[1] != self.channels:
            raise ValueError(f"Z must be [n, {self.channels}], is {list(Z.shape)}")
        return hop_stack(S, Z, self.hops)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, hops={self.hops}, gate={self.gate!r}"


class DAGNN(nn.Module):
    """MLP to class scores, then gated propagation of the scores.

    ``H = ReLU(dropout(x) W1 + b1)``, ``Z = dropout(H) W2 + b2``, logits :class:`GatedPropagation` of Z along S.
    Parameters: ``F h + h + h C + C`` and, for the sigmoid gate, ``C + 1``; the number of hops adds none. With
    ``batch_norm`` (the ogbn-arxiv variant) a BatchNorm stands after W1 and the input gets no dropout.

    Shapes: ``forward(x, S)``: ``x`` floating [n, features] or ``SparseFeatures``, ``S`` [n, n], an operator or a torch
    tensor -> logits [n, classes]. S is the symmetric normalisation with self-loops in the paper, but any operator will do.
    The linear maps have torch's own initialisation. Training and evaluation differ by dropout (and BatchNorm) only.
    Errors: ``ValueError`` for sizes < 1, fewer than two classes, hops < 0, a dropout outside [0, 1), an unknown gate; in
    ``forward`` for another number of features or nodes, and for NaN in x (the first row is named).
    Source: KDD 2020, equations of DAGNN; sizes and dropout places as in the published code.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: int = 64,
        hops: int = 10,
        dropout: float = 0.8,
        gate: Gate = "sigmoid",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if features < 1 or hidden < 1:
            raise ValueError(f"features and hidden must be >= 1, are {features} and {hidden}")
        if classes < 2:
            raise ValueError(f"classes must be >= 2, is {classes}: there is nothing to tell apart")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), is {dropout}")
        self.features, self.dropout = features, dropout
        self.first = FeatureLinear(features, hidden)
        self.norm: nn.Module | None = nn.BatchNorm1d(hidden) if batch_norm else None
        self.head = nn.Linear(hidden, classes)
        self.propagate = GatedPropagation(classes, hops, gate)

    def forward(self, x: Tensor | SparseFeatures, S: Operator) -> Tensor:
        return self.propagate(self.scores(x, S), S)

    def encode(self, x: Tensor | SparseFeatures) -> Tensor:
        """H [n, hidden], which ``head`` turns into class scores; the graph isn't read."""
        if x.shape[-1] != self.features:
            raise ValueError(f"x has {x.shape[-1]} features, the model {self.features}")
        h: Any = x if self.norm is not None else feature_dropout(x, self.dropout, self.training)
        h = self.first(h)
        return F.relu(h if self.norm is None else self.norm(h))

    def scores(self, x: Tensor | SparseFeatures, S: Operator) -> Tensor:
        """Z [n, classes], the scores before any smoothing."""
        if x.shape[0] != S.shape[0] or S.shape[0] != S.shape[1]:
            raise ValueError(f"x has {x.shape[0]} rows, the operator is {tuple(S.shape)}")
        Z = self.head(F.dropout(self.encode(x), self.dropout, self.training))
        # NaN passes through every map above, so the small Z tells whether the large x need be searched.
        if not bool(torch.isfinite(Z.detach()).all()):
            _refuse_nan(x)
        return Z

    def gates(self, x: Tensor | SparseFeatures, S: Operator) -> Tensor:
        """[n, K + 1]: how much of each hop a node keeps; call it in evaluation mode, or dropout stirs it."""
        return self.propagate.gates(self.scores(x, S), S)


def _refuse_nan(x: Tensor | SparseFeatures) -> None:
    if isinstance(x, SparseFeatures):
        csr = x.scipy()
        row = np.repeat(np.arange(x.shape[0]), np.diff(csr.indptr))
        bad = row[~np.isfinite(csr.data)]
    else:
        bad = torch.nonzero(~torch.isfinite(x.detach()).all(dim=1)).flatten().cpu().numpy()
    if len(bad):
        raise ValueError(f"x holds NaN or infinite values, first in row {int(bad[0])}")


def row_normalise(x: Tensor) -> Tensor:
    """Each row of ``x`` [n, F] divided by its sum; a row whose sum is 0, as one of zeros, stays as it is.

    Errors: ``ValueError`` for another number of dimensions or for integers. Source: published code.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be floating [n, F], is {x.dtype} {list(x.shape)}")
    sums = x.sum(dim=1, keepdim=True)
    return x / torch.where(sums == 0, torch.ones_like(sums), sums)


# -- what repeated smoothing tends to --------------------------------------------------------------------------------


class OverSmoothing(NamedTuple):
    """What :func:`over_smoothing` found.

    ``lambda2`` the largest modulus among eigenvalues that are not a component's leading 1; ``component`` int64 [n], the
    number of each node's component; ``component_lambda2`` float64 [components]; ``distance`` float64 [hops + 1],
    ``max_ij |S^k - S^inf|_ij`` over the columns looked at; ``bound`` float64 [hops + 1], ``lambda2^k``, which is the exact
    distance in the spectral norm and bounds every entry; ``columns`` how many columns were looked at: all n, or a random
    sample, whose distance is then a lower bound of the full one; ``exact`` says which; ``converged`` False where the
    iteration for an eigenvalue ended early: lambda2 is then a lower bound.
    """

    lambda2: float
    component: NDArray[np.int64]
    component_lambda2: NDArray[np.float64]
    distance: NDArray[np.float64]
    bound: NDArray[np.float64]
    columns: int
    exact: bool
    converged: bool


def with_loops(A: Any) -> sp.csr_array:
    """``A~``: a loop of weight 1 added to every node that stores none; sparse [n, n] -> CSR float64.

    Errors: ``ValueError`` for a matrix that isn't square or has negative or NaN weights.
    """
    matrix = sp.csr_array(A.to_scipy() if isinstance(A, SparseOperator) else A, dtype=np.float64)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the adjacency must be square, is {matrix.shape}")
    if matrix.nnz and not (np.isfinite(matrix.data).all() and matrix.data.min() >= 0):
        raise ValueError("the adjacency must have finite weights >= 0")
    coo = matrix.tocoo()
    missing = np.ones(matrix.shape[0])
    missing[coo.row[coo.row == coo.col]] = 0.0
    return sp.csr_array(matrix + sp.diags_array(missing))


def smoothing_limit(A: Any, walk: bool = False) -> NDArray[np.float64]:
    """The limit of ``S^k``, dense [n, n], for the adjacency ``A`` (as it is: loops are the caller's, see with_loops).

    Inside a connected component ``sqrt(d_i d_j) / sum d``, and 0 between components; with ``walk`` the limit of
    ``(D^-1 A)^k``, ``d_j / sum d``. It is reached where no component is bipartite, which loops assure. A node with d = 0
    has zeros.

    Errors: ``ValueError`` for a matrix that isn't square and symmetric or has negative or NaN weights.
    Source: KDD 2020, theorems on the limits of the two propagations.
    """
    matrix = _undirected(A)
    degrees, component, totals = _degrees(matrix)
    share = np.divide(degrees, totals[component], out=np.zeros_like(degrees), where=totals[component] > 0)
    same = component[:, None] == component[None, :]
    if walk:
        # A node without edges can't be left or entered.
        return np.where(same & (degrees > 0)[:, None], share[None, :], 0.0)
    root = np.sqrt(share)
    return np.where(same, root[:, None] * root[None, :], 0.0)


def over_smoothing(
    A: Any, hops: int = 200, *, self_loops: bool = True, columns: int = 32, seed: int = 0, dense: int = _DENSE
) -> OverSmoothing:
    """How fast the smoothing ``S = D~^-1/2 A~ D~^-1/2`` of a graph forgets where a score came from.

    Per connected component, S has the eigenvalue 1 once (eigenvector sqrt(d)); the others bound the distance to the limit:
    ``max |S^k - S^inf| <= |lambda_2|^k``. Components of up to ``dense`` nodes get all eigenvalues, larger ones the second
    by Lanczos iteration on the operator without its leading part. The distance is over all entries where the graph has at
    most ``dense`` nodes; otherwise over ``columns`` columns drawn by ``seed`` from the largest component.

    Shapes: ``A`` sparse [n, n] or SparseOperator, symmetric, weights >= 0; missing loops of weight 1 are added
    (``self_loops``). Time O(columns hops nnz) and the eigenvalues; memory O(n columns).
    Errors: ``ValueError`` for hops < 0, columns < 1, no nodes, a matrix that isn't square and symmetric or has negative
    or NaN weights.
    Source: KDD 2020, analysis of deep propagation.
    """
    if hops < 0 or columns < 1:
        raise ValueError(f"hops must be >= 0 and columns >= 1, are {hops} and {columns}")
    matrix = _undirected(with_loops(A) if self_loops else A)
    n = matrix.shape[0]
    if n == 0:
        raise ValueError("the graph has no nodes")
    S = normalise(matrix)
    degrees, component, totals = _degrees(matrix)
    root = np.sqrt(np.divide(degrees, totals[component], out=np.zeros_like(degrees), where=totals[component] > 0))
    rng = np.random.default_rng(seed)
    seconds, converged = _second_eigenvalues(S, root, component, dense, rng)

    sizes = np.bincount(component)
    if n <= dense:
        chosen = np.arange(n)
    else:
        members = np.flatnonzero(component == int(np.argmax(sizes)))
        chosen = np.sort(rng.choice(members, size=min(columns, len(members)), replace=False))
    state = np.zeros((n, len(chosen)))
    state[chosen, np.arange(len(chosen))] = 1.0
    limit = np.where(component[:, None] == component[chosen][None, :], root[:, None] * root[chosen][None, :], 0.0)
    operator = SparseOperator.from_scipy(S)
    distance = np.empty(hops + 1)
    for k in range(hops + 1):
        if k:
            state = operator.multiply(state)
        distance[k] = np.abs(state - limit).max()
    top = float(seconds.max())
    return OverSmoothing(
        lambda2=top,
        component=component,
        component_lambda2=seconds,
        distance=distance,
        bound=top ** np.arange(hops + 1, dtype=np.float64),
        columns=len(chosen),
        exact=len(chosen) == n,
        converged=converged,
    )


def _undirected(A: Any) -> sp.csr_array:
    matrix = sp.csr_array(A.to_scipy() if isinstance(A, SparseOperator) else A, dtype=np.float64)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"the adjacency must be square, is {matrix.shape}")
    if matrix.nnz and not (np.isfinite(matrix.data).all() and matrix.data.min() >= 0):
        raise ValueError("the adjacency must have finite weights >= 0")
    if matrix.nnz and abs(matrix - matrix.T).max() > 1e-12 * matrix.data.max():
        raise ValueError("the adjacency must be symmetric: symmetrise a directed graph first")
    return matrix


def _degrees(matrix: sp.csr_array) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    degrees = np.asarray(matrix.sum(axis=1)).ravel()
    positive = sp.csr_array(matrix)
    if positive.nnz and (positive.data == 0).any():
        positive = positive.copy()
        positive.eliminate_zeros()  # an edge of weight 0 joins nothing
    component = connected_components(positive, directed=False)[1].astype(np.int64)
    return degrees, component, np.bincount(component, weights=degrees)


def _second_eigenvalues(
    S: sp.csr_array, root: NDArray[np.float64], component: NDArray[np.int64], dense: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], bool]:
    """The largest modulus per component once the leading eigenvector ``root`` is taken out; whether all converged."""
    order = np.argsort(component, kind="stable")
    ends = np.cumsum(np.bincount(component))
    seconds, converged = np.zeros(len(ends)), True
    for c, end in enumerate(ends):
        nodes = order[(ends[c - 1] if c else 0) : end]
        if len(nodes) == 1:
            continue
        part, lead = S[nodes][:, nodes], root[nodes]
        if len(nodes) <= max(dense, 3):
            left = np.linalg.eigvalsh(part.toarray() - lead[:, None] * lead[None, :])
            seconds[c] = np.abs(left).max()
            continue

        def deflated(v: NDArray[np.float64], part: Any = part, lead: Any = lead) -> NDArray[np.float64]:
            v = v.ravel()
            return part @ v - lead * (lead @ v)

        size = len(nodes)
        linear = LinearOperator((size, size), matvec=deflated, dtype=np.float64)
        try:
            found = eigsh(linear, k=1, which="LM", ncv=min(size, 64), v0=rng.standard_normal(size), return_eigenvectors=False)
        except ArpackNoConvergence:
            converged = False
            seconds[c] = _power(deflated, rng.standard_normal(size))
        else:
            seconds[c] = abs(float(found[0]))
    return np.minimum(seconds, 1.0), converged


def _power(apply: Any, v: NDArray[np.float64], steps: int = 200) -> float:
    """A lower bound of the largest modulus: ``|M v| / |v|`` after power steps."""
    value = 0.0
    for _ in range(steps):
        v = v / math.sqrt(float(v @ v))
        v = apply(v)
        value = math.sqrt(float(v @ v))
        if value == 0:
            break
    return value
