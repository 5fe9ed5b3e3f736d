"""What a recommender must beat: popularity, item-kNN, matrix factorisation, LightGCN, NGCF; and what those that learn share.

The pairwise recipe (sampling, loss, choice of the epoch, the saved model) stands here once: every method that learns vectors
of users and items trains by it, so a comparison is one of propagations alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import LGConv

from latticework.core.errors import UserError
from latticework.core.method import Backbone, Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.training import Patience, Watch, train
from latticework.core.value import setting
from latticework.layers.sparse_product import csr, symmetric_product

from .recommendation import Interactions

Array = NDArray[Any]


# -- pairwise learning ---------------------------------------------------------------------------------------------------
class Pairs(NamedTuple):
    """Interactions as tensors: user, item int64 [m], sorted by user, then item, each pair once."""

    user: Tensor
    item: Tensor
    users: int
    items: int

    @classmethod
    def of(cls, shown: Interactions) -> Pairs:
        return cls(torch.from_numpy(shown.user), torch.from_numpy(shown.item), shown.users, shown.items)

    def edges(self) -> Tensor:
        """int64 [2, m] of the graph of users and items, items numbered after the users."""
        return torch.stack([self.user, self.item + self.users])


class PairSampler:
    """Draws (user, positive, negative) triples.

    A draw of B takes B users (without repetition where there are as many), for each one of its items and one item that is not
    among them, both uniform. The negative is exact, without rejection: the k-th of the user's missing items is found by a
    binary search in ``p_j - j`` of its sorted items p. Users who have every item are never drawn. ``ValueError`` where a user
    has no item, or nobody lacks one.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.count = torch.bincount(pairs.user, minlength=pairs.users)
        if bool((self.count == 0).any()):
            raise ValueError(f"user {int((self.count == 0).nonzero()[0])} has no interaction")
        self.start = self.count.cumsum(0) - self.count
        self.able = (self.count < pairs.items).nonzero()[:, 0]
        if not len(self.able):
            raise ValueError("every user has every item: there is no negative to draw")
        rank = torch.arange(len(pairs.item)) - self.start[pairs.user]
        self.key = pairs.user * pairs.items + pairs.item - rank

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Three int64 [batch]: users, positive items, negative items."""
        n = len(self.able)
        if n >= batch:
            user = self.able[torch.randperm(n, generator=generator)[:batch]]
        else:
            user = self.able[torch.randint(n, (batch,), generator=generator)]
        count, start = self.count[user], self.start[user]
        at = torch.rand(2, batch, generator=generator, dtype=torch.float64)
        positive = self.pairs.item[start + (at[0] * count).long()]
        k = (at[1] * (self.pairs.items - count)).long()
        negative = k + torch.searchsorted(self.key, user * self.pairs.items + k, right=True) - start
        return user, positive, negative


def bpr_loss(positive: Tensor, negative: Tensor) -> Tensor:
    """Bayesian personalised ranking: the mean of ``softplus(negative - positive)``, that is of ``-log sigmoid`` of the lead.

    Source: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback" (UAI 2009), section 4.
    """
    return F.softplus(negative - positive).mean()


class Vectors(nn.Module):
    """Vectors of users, then items, normal(0, 0.1); ``forward()`` gives those that are multiplied, here as they are.

    A score is the inner product of the user's and the item's. Subclasses propagate them along the graph.
    """

    def __init__(self, pairs: Pairs, width: int) -> None:
        super().__init__()
        self.X = nn.Parameter(0.1 * torch.randn(pairs.users + pairs.items, width))

    def forward(self) -> Tensor:
        return self.X


class VectorModel(Model):
    """Final vectors float32 [U, K] of users and [I, K] of items; a score is their inner product."""

    scope: ClassVar[Any] = "fitted data"

    def __init__(self, method: Method, schema: Mapping[str, Any], users: Tensor, items: Tensor, learned: int) -> None:
        self.method, self.schema, self.users, self.items, self.learned = method, schema, users, items, learned

    def predict(self, part: Part) -> Any:
        """Scores float32 [q, I] of the asked users."""
        return (self.users[torch.from_numpy(part.query.rows)] @ self.items.T).numpy()

    def scores_are_finite(self) -> bool:
        """Whether no vector, and no product of two, can be other than a finite number."""
        longest = [side.norm(dim=1).max() for side in (self.users, self.items)]
        return bool(torch.isfinite(longest[0] * longest[1]))

    def parameters(self) -> int:
        """Numbers that were learned: the final vectors are computed from them."""
        return self.learned

    def state(self) -> Mapping[str, Any]:
        return {"users": self.users, "items": self.items, "learned": torch.tensor(self.learned)}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["users"], state["items"], int(state["learned"]))


class GraphRecommender(Backbone):
    """Fields and fit of what learns vectors of users and items by BPR; subclasses give `module`."""

    tasks: ClassVar[tuple[str, ...]] = ("recommendation",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[VectorModel]] = VectorModel

    width: int = setting(64, "length of the vectors", ge=1, le=4096)
    lr: float = setting(1e-3, "learning rate of Adam", gt=0, le=1, search=(1e-3, 3e-2, "log"))
    reg: float = setting(1e-4, "weight of the squared initial vectors", ge=0, le=100, search=(1e-5, 1.0, "log"))
    batch: int = setting(
        1024, "users a step; an epoch has as many steps as its batches fit into the interactions", ge=1, le=1_000_000
    )
    epochs: int = setting(100, "at most", ge=1, le=100_000)
    patience: int = setting(100, "epochs without a better validation headline before the fit stops", ge=1)

    def module(self, pairs: Pairs) -> Vectors:
        """The network of a train part."""
        raise NotImplementedError

    def build(self, train: Part, run: Run) -> nn.Module:
        return self.module(Pairs.of(train.data))

    def fit(self, train: Part, valid: Part | None, run: Run) -> VectorModel:
        return fit_vectors(self, train, valid, run)


def fit_vectors(method: GraphRecommender, part: Part, valid: Part | None, run: Run) -> VectorModel:
    """BPR on triples of the train part, one forward of all vectors a step; the epoch with the best validation headline is kept.

    The penalty of a step is ``reg / 2 (|X_u|^2 + |X_p|^2 + |X_n|^2) / B`` on the initial vectors of its triples.
    """
    pairs = Pairs.of(part.data)
    net: Any = method.module(pairs).to(run.device)
    learned = sum(p.numel() for p in net.parameters())
    optimiser = torch.optim.Adam(net.parameters(), lr=method.lr)
    try:
        sampler = PairSampler(pairs)
    except ValueError as reason:
        raise UserError(
            f"{method.name} cannot learn from this train part: {reason}; use popularity, or bring more items"
        ) from None
    steps = max(len(pairs.user) // method.batch, 1)

    def step(epoch: int) -> float:
        generator, total = run.generator(f"pairs of epoch {epoch}"), 0.0
        for _ in range(steps):
            user, positive, negative = sampler.draw(method.batch, generator)
            rows = torch.stack([user, positive + pairs.users, negative + pairs.users]).to(run.device)
            optimiser.zero_grad(set_to_none=True)
            out, initial = net()[rows], net.X[rows]
            loss = bpr_loss((out[0] * out[1]).sum(1), (out[0] * out[2]).sum(1))
            loss = loss + method.reg * 0.5 * initial.square().sum() / method.batch
            loss.backward()
            optimiser.step()
            total += float(loss.detach())
        return total / steps

    def finished() -> VectorModel:
        with torch.no_grad():
            out = net().detach().cpu()
        # a copy: what is judged now must not move with the next step
        return VectorModel(method, dict(part.schema), out[: pairs.users].clone(), out[pairs.users :].clone(), learned)

    def look() -> Watch:
        model = finished()
        if not model.scores_are_finite():
            return Watch(float("inf"), {"valid": 0.0})
        assert run.task is not None and valid is not None
        value = run.task.value(run.task.answer(model, valid.blind(), run), valid, run) or 0.0
        return Watch(-value, {"valid": value})

    epoch = train(
        net, step, run, epochs=method.epochs, optimiser=optimiser, watch=look if valid is not None else None,
        patience=Patience(epochs=method.patience),
    )  # fmt: skip
    if valid is not None:
        run.notes.append(f"weights of epoch {epoch + 1}, chosen on the validation headline")
    model = finished()
    if not model.scores_are_finite():
        raise UserError(f"{method.name} diverged: its vectors are not finite or too long to multiply; lower its lr={method.lr:g}")
    return model


class BPRMF(GraphRecommender):
    """Matrix factorisation trained by BPR: a vector for each user and item, their inner product as score, no graph.

    Source: Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback" (UAI 2009).
    """

    name: ClassVar[str] = "bpr-mf"

    def module(self, pairs: Pairs) -> Vectors:
        return Vectors(pairs, self.width)


# -- propagation ---------------------------------------------------------------------------------------------------------
def normalised(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """CSR (start, column, values) of ``D^-1/2 A D^-1/2`` of the graph of users and items, without self-loops."""
    a, b = pairs.edges()
    n = pairs.users + pairs.items
    key = torch.sort(torch.cat([a * n + b, b * n + a])).values
    row, column = key // n, key % n
    degree = torch.bincount(row, minlength=n)
    root = degree.clamp(min=1).float().rsqrt()
    return torch.cat([degree.new_zeros(1), degree.cumsum(0)]), column, root[row] * root[column]


class SymmetricLGConv(LGConv):
    """PyG's `LGConv` on a symmetric matrix that is normalised already: the same sum, without a transpose for the gradient."""

    def __init__(self) -> None:
        super().__init__(normalize=False)

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        return symmetric_product(adj_t.values(), x, adj_t.crow_indices(), adj_t.col_indices())


class LightGCN(Vectors):
    """``X^k+1 = D^-1/2 A D^-1/2 X^k``, the mean of k = 0 .. K: [n, D]."""

    def __init__(self, pairs: Pairs, width: int, layers: int) -> None:
        super().__init__(pairs, width)
        self.layers, self.convolution = layers, SymmetricLGConv()
        self.start, self.column, self.values = normalised(pairs)

    def forward(self) -> Tensor:
        A = csr(*(t.to(self.X.device) for t in (self.start, self.column, self.values)))
        X = total = self.X
        for _ in range(self.layers):
            X = self.convolution(X, A)
            total = total + X
        return total / (self.layers + 1)


class LightGCNMethod(GraphRecommender):
    """LightGCN: vectors smoothed along the user-item graph without weights, the mean of all hops.

    Source: He et al., "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation" (SIGIR 2020),
    equations 7 and 8; the convolution is PyG's.
    """

    name: ClassVar[str] = "lightgcn"
    layers: int = setting(3, "hops", ge=1, le=16, search=(1, 4))

    def module(self, pairs: Pairs) -> Vectors:
        return LightGCN(pairs, self.width, self.layers)


class NGCF(Vectors):
    """``X^k+1 = LeakyReLU((S + I) X^k W1 + (S X^k * X^k) W2)`` with ``S = D^-1/2 A D^-1/2``; rows of unit length, side by side.

    [n, (K + 1) D]; the first D columns are the initial vectors. Dropout on each layer's output.
    """

    def __init__(self, pairs: Pairs, width: int, layers: int, dropout: float) -> None:
        super().__init__(pairs, width)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.dropout = dropout
        self.start, self.column, self.values = normalised(pairs)

    def forward(self) -> Tensor:
        start, column, values = (t.to(self.X.device) for t in (self.start, self.column, self.values))
        X = self.X
        found = [X]
        for own, both in zip(self.first, self.second, strict=True):
            near = symmetric_product(values, X, start, column)
            X = F.dropout(F.leaky_relu(own(near + X) + both(near * X), 0.2), self.dropout, self.training)
            found.append(F.normalize(X, dim=1))
        return torch.cat(found, 1)


class NGCFMethod(GraphRecommender):
    """Neural graph collaborative filtering: messages weighed by how alike user and item are, all layers side by side.

    Source: Wang et al., "Neural Graph Collaborative Filtering" (SIGIR 2019), equations 7 and 8.
    """

    name: ClassVar[str] = "ngcf"
    layers: int = setting(3, "hops", ge=1, le=16, search=(1, 4))
    dropout: float = setting(0.1, "on each layer's output", ge=0, lt=1)

    def module(self, pairs: Pairs) -> Vectors:
        return NGCF(pairs, self.width, self.layers, self.dropout)


# -- without vectors -----------------------------------------------------------------------------------------------------
class PopularityModel(Model):
    """How many train interactions each item has, float32 [I]."""

    scope: ClassVar[Any] = "fitted data"

    def __init__(self, method: Method, schema: Mapping[str, Any], counts: Tensor) -> None:
        self.method, self.schema, self.counts = method, schema, counts

    def take(self, user: Array, item: Array) -> None:
        """Count further interactions int64 [m] of known users and items."""
        self.counts = self.counts + torch.from_numpy(np.bincount(item, minlength=len(self.counts)).astype(np.float32))

    def predict(self, part: Part) -> Any:
        return self.counts.expand(len(part.query.rows), -1).numpy()

    def state(self) -> Mapping[str, Any]:
        return {"counts": self.counts}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["counts"])


class Popularity(Method):
    """Scores an item by how many users took it: the same list for everyone, but for what each has had."""

    name: ClassVar[str] = "popularity"
    tasks: ClassVar[tuple[str, ...]] = ("recommendation",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[PopularityModel]] = PopularityModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> PopularityModel:
        counts = np.bincount(train.data.item, minlength=train.data.items).astype(np.float32)
        return PopularityModel(self, dict(train.schema), torch.from_numpy(counts))


class ItemKNNModel(Model):
    """Interactions [U, I] and similarities [I, I], both sparse."""

    scope: ClassVar[Any] = "fitted data"

    def __init__(self, method: Method, schema: Mapping[str, Any], taken: sp.csr_array, alike: sp.csr_array) -> None:
        self.method, self.schema, self.taken, self.alike = method, schema, taken, alike

    def take(self, user: Array, item: Array) -> None:
        """Learn from further interactions int64 [m] of known users and items, none of which it had."""
        more = sp.csr_array((np.ones(len(item), np.float32), (user, item)), shape=self.taken.shape)
        self.taken = sp.csr_array(self.taken + more)
        self.alike = item_similarities(self.taken, self.method.neighbours, self.method.shrink)

    def predict(self, part: Part) -> Any:
        return (self.taken[part.query.rows] @ self.alike).toarray().astype(np.float32)

    def parameters(self) -> int:
        return int(self.alike.nnz)

    def state(self) -> Mapping[str, Any]:
        found = {}
        for name, matrix in (("taken", self.taken), ("alike", self.alike)):
            found |= {
                f"{name}.start": torch.from_numpy(matrix.indptr.astype(np.int64)),
                f"{name}.column": torch.from_numpy(matrix.indices.astype(np.int64)),
                f"{name}.values": torch.from_numpy(matrix.data.astype(np.float32)),
            }
        return found

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        items = len(schema["items"])
        matrices = []
        for name in ("taken", "alike"):
            start, column, values = (state[f"{name}.{key}"].numpy() for key in ("start", "column", "values"))
            matrices.append(sp.csr_array((values, column, start), shape=(len(start) - 1, items)))
        return cls(method, schema, *matrices)


def item_similarities(taken: sp.csr_array, neighbours: int, shrink: float) -> sp.csr_array:
    """float32 [I, I] sparse: ``c_ij / (sqrt(c_i c_j) + shrink)`` with c_ij users in common, c_i those of i; 0 on the diagonal.

    Column i keeps its `neighbours` largest entries (ties: the lower item), the items by which i is scored. taken: 0/1 [U, I].
    """
    common = (taken.T @ taken).tocsc()
    counts = np.asarray(taken.sum(0), np.float64).reshape(-1)
    start, rows, values = [0], [], []
    for i in range(common.shape[1]):
        near = common.indices[common.indptr[i] : common.indptr[i + 1]]
        weight = common.data[common.indptr[i] : common.indptr[i + 1]] / (np.sqrt(counts[near] * counts[i]) + shrink)
        near, weight = near[near != i], weight[near != i]
        order = np.lexsort((near, -weight))[:neighbours]
        order = order[np.argsort(near[order])]
        rows.append(near[order])
        values.append(weight[order])
        start.append(start[-1] + len(order))
    parts = (np.concatenate(values).astype(np.float32), np.concatenate(rows), np.array(start))
    return sp.csc_array(parts, shape=common.shape).tocsr()


class ItemKNN(Method):
    """Scores an item by how alike it is, in the users it shares, to the items that a user has: shrunk cosine, nearest only.

    Source: Sarwar et al., "Item-based Collaborative Filtering Recommendation Algorithms" (WWW 2001), section 3.
    """

    name: ClassVar[str] = "item-knn"
    tasks: ClassVar[tuple[str, ...]] = ("recommendation",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[ItemKNNModel]] = ItemKNNModel
    neighbours: int = setting(100, "items that an item is scored by", ge=1, le=1_000_000, search=(5, 500, "log"))
    shrink: float = setting(
        10.0, "added to the denominator: few users in common count for less", ge=0, search=(0.1, 100.0, "log")
    )

    def fit(self, train: Part, valid: Part | None, run: Run) -> ItemKNNModel:
        taken = train.data.matrix()
        return ItemKNNModel(self, dict(train.schema), taken, item_similarities(taken, self.neighbours, self.shrink))
