"""EvolveGCN: a graph convolution whose weights are rewritten at every snapshot by a recurrent cell.

Time lives in the parameters, not in node vectors: ``W_t = EVOLVE(W_{t-1}, .)`` and ``H_t = act(S_t H_t W_t)`` for every
layer, with ``S_t = D^-1/2 (A_t + I) D^-1/2``. So nothing is kept of a node from one snapshot to the next, and the node sets of
two snapshots may differ in all. In the O version the cell sees the weights alone; in the H version a summary of the layer's
input, its top rows, steers it.

Source: Pareja et al., "EvolveGCN: Evolving Graph Convolutional Networks for Dynamic Graphs" (AAAI 2020, arXiv 1902.10191),
section 3; algorithms of sections 3.3 and 3.4. The published figures are those of the official code, which uses the GRU in both
versions (the paper writes an LSTM for O), RReLU as activation, and one-hot degrees where there are no features; so does this.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from latticework.core.errors import UserError
from latticework.core.result import Findings
from latticework.core.task import Part
from latticework.core.value import setting

from .snapshot_network import Snapshot, SnapshotNetModel, SnapshotNetwork, rows_of_features

Variant = Literal["O", "H"]


class MatrixGRU(nn.Module):
    """A GRU whose state is a matrix [in, out], gated column by column; its biases are full matrices.

    ``Z = sigmoid(W_z P + U_z Q + B_z)``, ``R = sigmoid(W_r P + U_r Q + B_r)``, ``C = tanh(W_c P + U_c (R * Q) + B_c)``,
    ``Q' = (1 - Z) * Q + Z * C``; W and U [in, in] start at U(-1/sqrt(in), 1/sqrt(in)), B [in, out] at 0. Input P and state Q
    [in, out]. Parameters: ``6 in^2 + 3 in out``. (`torch.nn.GRUCell` has a bias for each gate and row alone.)
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(rows)
        for gate in "zrc":
            for name in (f"W_{gate}", f"U_{gate}"):
                self.register_parameter(name, nn.Parameter(torch.empty(rows, rows).uniform_(-bound, bound)))
            self.register_parameter(f"B_{gate}", nn.Parameter(torch.zeros(rows, columns)))

    W_z: Tensor
    U_z: Tensor
    B_z: Tensor
    W_r: Tensor
    U_r: Tensor
    B_r: Tensor
    W_c: Tensor
    U_c: Tensor
    B_c: Tensor

    def forward(self, P: Tensor, Q: Tensor) -> Tensor:
        if P is Q:  # one product instead of two
            Z = torch.sigmoid((self.W_z + self.U_z) @ Q + self.B_z)
            R = torch.sigmoid((self.W_r + self.U_r) @ Q + self.B_r)
        else:
            Z = torch.sigmoid(self.W_z @ P + self.U_z @ Q + self.B_z)
            R = torch.sigmoid(self.W_r @ P + self.U_r @ Q + self.B_r)
        C = torch.tanh(self.W_c @ P + self.U_c @ (R * Q) + self.B_c)
        return (1 - Z) * Q + Z * C


def summarise(X: Any, p: Tensor, k: int, active: Tensor | None = None) -> Tensor | None:
    """The k rows of X [n, in] that a learned direction p [in, 1] ranks highest, each times the tanh of its score -> [in, k].

    ``y = X p / ||p||``; rows out of `active` bool [n] are never taken. Ties go to the lower row. Where fewer than k rows are
    active the last one taken is repeated; where none is, there is no summary (None). The gradient reaches p and X through
    tanh(y) and the rows, not through the choice.
    """
    y = (X @ p).squeeze(1) / p.norm()
    scores = y.detach()
    count = len(y)
    if active is not None:
        scores = scores.masked_fill(~active, -math.inf)
        count = int(active.sum())
    if count == 0:
        return None
    best = torch.sort(scores, descending=True, stable=True).indices[: min(k, count)]
    if len(best) < k:
        best = torch.cat([best, best[-1:].expand(k - len(best))])
    return (rows_of_features(X, best) * torch.tanh(y[best])[:, None]).T


class EvolvingLayer(nn.Module):
    """One evolving graph convolution [n, in] -> [n, out]: no bias, no dropout, no normalisation.

    ``W_0`` [in, out] is learned, U(-1/sqrt(out), 1/sqrt(out)). O: ``W_t = MatrixGRU(W_{t-1}, W_{t-1})``; H:
    ``W_t = MatrixGRU(summarise(X_t), W_{t-1})``, and W stays as it is where no node is active. Then
    ``H_t = act(S_t (X_t W_t))``. Parameters: ``6 in^2 + 4 in out``, and in for p in the H version.
    ``ValueError`` for another variant.
    """

    def __init__(
        self, features: int, width: int, variant: Variant = "O", activation: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        if variant not in ("O", "H"):
            raise ValueError(f"the variant is O or H, not {variant!r}")
        self.variant, self.features, self.width = variant, features, width
        bound = 1 / math.sqrt(width)
        self.W_0 = nn.Parameter(torch.empty(features, width).uniform_(-bound, bound))
        self.cell = MatrixGRU(features, width)
        bound = 1 / math.sqrt(features)
        self.p = nn.Parameter(torch.empty(features, 1).uniform_(-bound, bound)) if variant == "H" else None
        self.activation = nn.RReLU() if activation is None else activation

    def evolve(self, W: Tensor, X: Any = None, active: Tensor | None = None) -> Tensor:
        """``W_t`` from ``W_{t-1}`` [in, out]; the H version looks at the layer's input X_t [n, in] and who is active."""
        if self.p is None:
            found: Tensor = self.cell(W, W)
            return found
        summary = summarise(X, self.p, self.width, active)
        return W if summary is None else self.cell(summary, W)

    def convolve(self, A: Any, X: Any, W: Tensor) -> Tensor:
        """``act(A (X W))``."""
        found: Tensor = self.activation(A @ (X @ W))
        return found

    def forward(self, A: Sequence[Any], X: Sequence[Any], active: Sequence[Tensor | None]) -> list[Tensor]:
        """``H_1 .. H_T``, each [n_t, out]."""
        W, found = self.W_0, []
        for A_t, X_t, active_t in zip(A, X, active, strict=True):
            W = self.evolve(W, X_t, active_t)
            found.append(self.convolve(A_t, X_t, W))
        return found


class EvolveGCN(nn.Module):
    """Evolving layers one upon another: snapshots 1 .. T -> the vectors of the last one's nodes.

    Layer l + 1 reads the whole sequence of layer l, and ``H_T`` of the last layer is given; with `skip_features` X_T stands
    beside it. Each call starts at W_0: nothing is kept between calls. Only what H_T rests on is computed: in the O version
    the weights alone run through time, so one graph convolution a layer is enough.

    Shapes: A_t [n_t, n_t] normalised (a tensor, dense or sparse, or a `SparseOperator`), X_t [n_t, F] (a tensor, or one-hot
    rows), active_t bool [n_t] or none for all -> [n_T, d] (and F more). ``ValueError`` for no snapshot, lists of unequal length,
    a snapshot whose A, X and active do not fit, or features that change in number.
    """

    def __init__(
        self, features: int, layers: Sequence[int] = (100, 100), variant: Variant = "O", skip_features: bool = False,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = [features, *layers]
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"features and layers must be 1 or more, are {features} and {list(layers)}")
        self.layers = nn.ModuleList(EvolvingLayer(a, b, variant, activation) for a, b in itertools.pairwise(sizes))
        self.features, self.variant, self.skip_features = features, variant, skip_features
        self.width = sizes[-1] + (features if skip_features else 0)

    def forward(self, A: Sequence[Any], X: Sequence[Any], active: Sequence[Tensor | None] | None = None) -> Tensor:
        mask: Sequence[Tensor | None] = [None] * len(A) if active is None else active
        self._check(A, X, mask)
        sequence = list(X)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, EvolvingLayer)
            W, found = layer.W_0, []
            last = number == len(self.layers) - 1
            for t, (A_t, X_t) in enumerate(zip(A, sequence, strict=True)):
                W = layer.evolve(W, X_t, mask[t])
                needed = t == len(A) - 1 or (self.variant == "H" and not last)
                found.append(layer.convolve(A_t, X_t, W) if needed else None)
            sequence = found
        H: Tensor = sequence[-1]
        return torch.cat([H, rows_of_features(X[-1], torch.arange(len(H), device=H.device))], 1) if self.skip_features else H

    def weights(self, X: Sequence[Any], A: Sequence[Any], active: Sequence[Tensor | None] | None = None) -> list[list[Tensor]]:
        """``W_0 .. W_T`` of every layer."""
        mask: Sequence[Tensor | None] = [None] * len(A) if active is None else active
        sequence, found = list(X), []
        for layer in self.layers:
            assert isinstance(layer, EvolvingLayer)
            mine = [layer.W_0]
            for X_t, active_t in zip(sequence, mask, strict=True):
                mine.append(layer.evolve(mine[-1], X_t, active_t))
            sequence = [layer.convolve(A_t, X_t, W) for A_t, X_t, W in zip(A, sequence, mine[1:], strict=True)]
            found.append(mine)
        return found

    def _check(self, A: Sequence[Any], X: Sequence[Any], active: Sequence[Tensor | None]) -> None:
        if not len(A) or not len(A) == len(X) == len(active):
            raise ValueError(
                f"{len(A)} graphs, {len(X)} feature matrices and {len(active)} masks: one of each a snapshot, and at least one"
            )
        for t, (A_t, X_t, active_t) in enumerate(zip(A, X, active, strict=True)):
            if X_t.shape[1] != self.features:
                raise ValueError(
                    f"snapshot {t} has {X_t.shape[1]} features, the network reads {self.features}: they may not change"
                )
            n = int(X_t.shape[0])
            if tuple(A_t.shape) != (n, n) or (active_t is not None and tuple(active_t.shape) != (n,)):
                raise ValueError(f"snapshot {t}: {n} rows of features, a graph {list(A_t.shape)}")


# -- the recipe ----------------------------------------------------------------------------------------------------------
class EvolvingBody(nn.Module):
    """An EvolveGCN as the body of a snapshot network: the vectors of the last snapshot's nodes."""

    def __init__(self, net: EvolveGCN) -> None:
        super().__init__()
        self.net, self.width = net, net.width

    def forward(self, history: Sequence[Snapshot]) -> tuple[Any, Tensor]:
        return history[-1].nodes, self.net([s.A for s in history], [s.X for s in history], [s.active for s in history])


class EvolveGCNModel(SnapshotNetModel):
    """A trained EvolveGCN, which can say how far its weights move."""

    def explain(self, part: Part) -> Findings:
        """Beside the past windows: how far each layer's weights are from W_0 after each snapshot of the history."""
        from latticework.core.svg import lines

        found = super().explain(part)
        history = self.history_before(self.latest_window() + 1)
        net = self.net.body.net
        assert isinstance(net, EvolveGCN)
        with torch.no_grad():
            weights = net.weights([s.X for s in history], [s.A for s in history], [s.active for s in history])
            moved = [[float((W - mine[0]).norm() / mine[0].norm()) for W in mine] for mine in weights]
        rows = [{"snapshot": t} | {f"layer {i + 1}": mine[t] for i, mine in enumerate(moved)} for t in range(len(history) + 1)]
        figure = lines(
            {f"layer {i + 1}": [(float(t), v) for t, v in enumerate(mine)] for i, mine in enumerate(moved)},
            "how far the weights move: |W_t - W_0| / |W_0|", "snapshot of the history",
        )  # fmt: skip
        tables = {**found.tables, "drift of the weights": rows}
        return Findings(found.scalars, tables, {**found.figures, "drift of the weights": figure})


class EvolveGCNMethod(SnapshotNetwork):
    """A graph convolution whose weights a recurrent cell rewrites from snapshot to snapshot.

    From the latest ``history + 1`` snapshots the weights are evolved from W_0, each time anew, and the last snapshot's node
    vectors are scored by a small head. A node needs no past: features are its degree in each snapshot (one-hot, capped at the
    largest of the train part), and node sets may change. Adam, one step for each predicted window, on its links against
    `negatives` times as many pairs that did not meet; the epoch with the best validation headline is kept.

    On nearly every log, links of the next window are mostly links of the last ones, and a recency score alone beats this and
    the other learned models by far: look at the baselines. `memory` adds the logarithm of that score to the logit, by one
    learned scale; it is an extension, not the paper's.

    The cell's cost is quadratic in the width of the degree code. Defaults are the official settings for the messages of UC
    Irvine; ``evolvegcn:small`` is a few epochs of half the width.
    """

    name: ClassVar[str] = "evolvegcn"
    model: ClassVar[type[SnapshotNetModel]] = EvolveGCNModel

    variant: Variant = setting("O", "O: the weights evolve from themselves; H: a summary of the nodes steers them")
    skip_features: bool = setting(False, "the last snapshot's features stand beside its vectors")
    memory: bool = setting(False, "an extension: the log of the recency score is added to the logit")

    def body(self, features: int, schema: Mapping[str, Any]) -> nn.Module:
        try:
            return EvolvingBody(EvolveGCN(features, self.layers, self.variant, self.skip_features))
        except ValueError as reason:
            raise UserError(f"evolvegcn: {reason}") from None
