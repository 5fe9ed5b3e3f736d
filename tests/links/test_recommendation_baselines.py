"""What recommenders share (sampler, loss, products) and the baselines, against PyG, brute force and their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.nn import functional as F

from latticework.core.dataset import open_data
from latticework.core.errors import Cancelled
from latticework.core.grid import entry_of
from latticework.core.ledger import Ledger
from latticework.core.method import Method
from latticework.core.run import Run
from latticework.links.recommendation import Recommendation
from latticework.links.recommendation_baselines import (
    NGCF,
    LightGCN,
    Pairs,
    PairSampler,
    Vectors,
    bpr_loss,
    item_similarities,
    normalised,
)
from latticework.testing import check_method, check_revision

FINGERPRINTS = Path(__file__).parent / "fingerprints_recommendation.json"


def some_pairs(users: int = 8, items: int = 6, seed: int = 0) -> Pairs:
    rng = np.random.default_rng(seed)
    held = rng.random((users, items)) < 0.4
    held[np.arange(users), np.arange(users) % items] = True
    held[np.arange(items), np.arange(items)] = True
    user, item = np.nonzero(held)
    return Pairs(torch.from_numpy(user), torch.from_numpy(item), users, items)


@pytest.mark.parametrize("name", ["popularity", "item-knn", "bpr-mf(epochs=4)", "lightgcn(epochs=4)", "ngcf(epochs=4)"])
def test_method(name: str) -> None:
    check_stored(entry_of(name))


def check_stored(method: Method) -> None:
    """The battery, and the stored scores at both lengths: `check_revision` looks at scores without coordinates alone."""
    result = check_method(method, "taste-groups")
    data = open_data("taste-groups")
    named = [s._replace(metric=f"{s.metric}@{s.at['top']}", at={}) for s in result.scores if set(s.at) == {"top"}]
    check_revision(method, data, Recommendation().for_data(data), result._replace(scores=named), FINGERPRINTS)


# -- pairs -----------------------------------------------------------------------------------------------------------------
def test_loss_by_hand() -> None:
    positive, negative = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 3.0])
    wanted = np.mean([np.log1p(np.exp(-1)), np.log(2), np.log1p(np.exp(4))])
    assert float(bpr_loss(positive, negative)) == pytest.approx(wanted, rel=1e-6)


def test_triples_are_true_and_uniform() -> None:
    pairs = some_pairs()
    taken = set(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True))
    sampler, generator = PairSampler(pairs), torch.Generator().manual_seed(0)
    seen: dict[int, list[list[int]]] = {u: [[0] * 6, [0] * 6] for u in range(8)}
    for _ in range(4000):
        user, positive, negative = (t.tolist() for t in sampler.draw(8, generator))
        assert sorted(user) == list(range(8)), "as many users as the batch: each once"
        for u, p, q in zip(user, positive, negative, strict=True):
            assert (u, p) in taken and (u, q) not in taken
            seen[u][0][p] += 1
            seen[u][1][q] += 1
    for u, counts in seen.items():
        mine = {i for v, i in taken if v == u}
        for count, among in zip(counts, (mine, set(range(6)) - mine), strict=True):
            expected = 4000 / len(among)
            assert all(abs(count[i] - expected) < 5 * np.sqrt(expected) for i in among)
    user, _, _ = sampler.draw(100, generator)
    assert len(user) == 100 and set(user.tolist()) <= set(range(8))


def test_users_who_have_all_are_left_out_and_none_is_refused() -> None:
    pairs = Pairs(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), 2, 2)
    user, positive, negative = PairSampler(pairs).draw(50, torch.Generator().manual_seed(0))
    assert set(user.tolist()) == {1} and set(positive.tolist()) == {0} and set(negative.tolist()) == {1}
    with pytest.raises(ValueError, match="every user has every item"):
        PairSampler(Pairs(torch.tensor([0, 1]), torch.tensor([0, 0]), 2, 1))
    with pytest.raises(ValueError, match="user 1 has no interaction"):
        PairSampler(Pairs(torch.tensor([0, 2]), torch.tensor([0, 1]), 3, 2))


# -- propagation -----------------------------------------------------------------------------------------------------------
def dense_operator(pairs: Pairs) -> torch.Tensor:
    n = pairs.users + pairs.items
    A = torch.zeros(n, n)
    a, b = pairs.edges()
    A[a, b] = A[b, a] = 1
    root = A.sum(1).clamp(min=1).rsqrt()
    return root[:, None] * A * root


def test_lightgcn_equals_pyg() -> None:
    from torch_geometric.nn.models import LightGCN as Theirs

    pairs = some_pairs(20, 15, 3)
    ours = LightGCN(pairs, 8, 3)
    theirs = Theirs(35, 8, 3)
    with torch.no_grad():
        theirs.embedding.weight.copy_(ours.X)
    edges = pairs.edges()
    both = torch.cat([edges, edges.flip(0)], 1)
    assert torch.allclose(ours(), theirs.get_embedding(both), atol=1e-6)
    weight = torch.randn(35, 8)
    (ours() * weight).sum().backward()
    (theirs.get_embedding(both) * weight).sum().backward()
    assert torch.allclose(ours.X.grad, theirs.embedding.weight.grad, atol=1e-6)  # type: ignore[arg-type]


def test_ngcf_equals_dense_products() -> None:
    pairs = some_pairs()
    net = NGCF(pairs, 4, 2, 0.1).eval()
    S, X, wanted = dense_operator(pairs), net.X, [net.X]
    for first, second in zip(net.first, net.second, strict=True):
        X = F.leaky_relu((S + torch.eye(14)) @ X @ first.weight.T + first.bias + second((S @ X) * X), 0.2)
        wanted.append(X / X.norm(dim=1, keepdim=True))
    assert torch.allclose(net(), torch.cat(wanted, 1), atol=1e-6)
    start, column, values = normalised(pairs)
    matrix = sp.csr_array((values.numpy(), column.numpy(), start.numpy()), shape=(14, 14)).toarray()
    assert np.allclose(matrix, S.numpy(), atol=1e-7)


def test_vectors_alone_are_the_factorisation() -> None:
    torch.manual_seed(0)
    net = Vectors(some_pairs(400, 300), 64)
    assert net() is net.X and float(net.X.detach().std()) == pytest.approx(0.1, rel=0.02)


def test_item_similarities_by_brute_force() -> None:
    taken = (np.random.default_rng(0).random((30, 12)) < 0.3).astype(np.float32)
    taken[:, 5] = 0
    taken[0, 5] = 1
    found = item_similarities(sp.csr_array(taken), 4, 2.0).toarray()
    for i in range(12):
        weight = np.array(
            [
                0.0 if i == j else (taken[:, i] * taken[:, j]).sum() / (np.sqrt(taken[:, i].sum() * taken[:, j].sum()) + 2)
                for j in range(12)
            ]
        )
        kept = sorted(np.flatnonzero(weight), key=lambda j: (-weight[j], j))[:4]
        wanted = np.zeros(12)
        wanted[kept] = weight[kept]
        assert np.allclose(found[:, i], wanted, atol=1e-6)


def test_popularity_counts_the_train_part_alone() -> None:
    fold = Recommendation().fold(open_data("taste-groups"), "random-0")
    model = entry_of("popularity").fit(fold.train, None, Run(task=Recommendation()))
    scores = model.predict(fold.test.blind())  # type: ignore[attr-defined]
    assert (scores == fold.train.data.matrix().sum(0)).all() and len(scores) == len(fold.test.query.rows)


# -- the fit ---------------------------------------------------------------------------------------------------------------
def test_learning_beats_what_is_popular_where_tastes_differ() -> None:
    from latticework.core.evaluate import evaluate

    task, data = Recommendation(), open_data("taste-groups(users=300; items=90; each=20)")
    found = {
        name: evaluate(task, data, entry_of(name), "random-0", 0, Ledger()).headline
        for name in ("popularity", "item-knn", "lightgcn(lr=0.01; epochs=40; width=32; batch=256)")
    }
    popular, *others = found.values()
    assert popular is not None and all(value is not None and value > 1.2 * popular for value in others), found


def test_a_fit_cut_in_two_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """The second process finds the checkpoint and draws what the first would have drawn."""
    from latticework.core.run import fitted

    task, data = Recommendation(), open_data("taste-groups")
    fold = task.fold(data, "random-0")
    method = entry_of("ngcf(epochs=6)")  # with dropout: the global generator counts, too

    def run(root: Path, stop: int) -> Run:
        made = Run(task=task, digest=data.digest(), fold="random-0", ledger=Ledger(root))
        keep = made.keep
        made.keep = lambda step, state, every_s=30.0: keep(step, state, 0.0)  # type: ignore[method-assign]
        made.cancelled = lambda: bool(made.curve.get("loss")) and made.curve["loss"][-1][0] >= stop
        return made

    whole = fitted(method, fold.train, fold.valid, run(tmp_path / "whole", 99))
    with pytest.raises(Cancelled):
        fitted(method, fold.train, fold.valid, run(tmp_path / "cut", 3))
    rest = fitted(method, fold.train, fold.valid, run(tmp_path / "cut", 99))
    for name, value in whole.state().items():
        assert torch.equal(value, rest.state()[name]), name
