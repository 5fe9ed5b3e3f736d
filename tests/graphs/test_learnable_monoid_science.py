"""The learnable monoid: laws of the operator, the tree against a recursive fold, independence of the batch, PyG's class, depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.nn import GATConv, SAGEConv
from torch_geometric.nn.aggr import LCMAggregation

from latticework.graphs.learnable_monoid import (
    BinaryGRU,
    BinaryMLP,
    LearnableMonoid,
    RecurrentAggregation,
    aggregation_of,
    associativity_loss,
    consistency_loss,
    identity_loss,
)
from latticework.graphs.learnable_monoid.aggregation import canonical, drawn_once, ordering, penalty_in, shuffled, tree_of


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def recursive(rows: Tensor, op: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The fold as it is defined: pairs of each level, an unpaired last one moved up."""
    while len(rows) > 1:
        pairs = [op(rows[i][None], rows[i + 1][None])[0] for i in range(0, len(rows) - 1, 2)]
        rows = torch.stack(pairs + ([rows[-1]] if len(rows) % 2 else []))
    return rows[0]


def monoid(width: int, dtype: torch.dtype = torch.float32, **words: Any) -> LearnableMonoid:
    return LearnableMonoid(width, width, project=False, **{"order": "given", **words}).to(dtype)


# -- the operator --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [BinaryGRU, BinaryMLP])
@pytest.mark.parametrize("n", [1, 2, 7, 64, 501])
def test_the_operator_commutes_bit_for_bit(make: Callable[[int], nn.Module], n: int) -> None:
    op, x, y = make(16), torch.randn(n, 16), torch.randn(n, 16)
    assert torch.equal(op(x, y), op(y, x))


def test_the_operator_is_the_mean_of_the_gru_written_out() -> None:
    op = BinaryGRU(5).double()
    x, y = torch.randn(2, 7, 5, dtype=torch.float64)
    W_r, W_z, W_c = op.cell.weight_ih.chunk(3)
    U_r, U_z, U_c = op.cell.weight_hh.chunk(3)
    b_r, b_z, b_c = op.cell.bias_ih.chunk(3)
    d_r, d_z, d_c = op.cell.bias_hh.chunk(3)

    def f(x: Tensor, y: Tensor) -> Tensor:
        r = torch.sigmoid(x @ W_r.T + y @ U_r.T + b_r + d_r)
        z = torch.sigmoid(x @ W_z.T + y @ U_z.T + b_z + d_z)
        c = torch.tanh(x @ W_c.T + b_c + r * (y @ U_c.T + d_c))
        return (1 - z) * c + z * y

    torch.testing.assert_close(op(x, y), (f(x, y) + f(y, x)) / 2, atol=1e-14, rtol=0)


def test_a_set_of_two_does_not_depend_on_its_order() -> None:
    fold, x = monoid(8), torch.randn(2, 8)
    zero = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(fold(x, zero), fold(x.flip(0), zero))


# -- the tree ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_the_tree_is_the_recursive_fold(dtype: torch.dtype, atol: float) -> None:
    fold = monoid(6, dtype)
    sizes = list(range(1, 34))
    x = torch.randn(sum(sizes), 6, dtype=dtype)
    index = torch.arange(33).repeat_interleave(torch.tensor(sizes))
    found = fold(x, index)
    for i, rows in enumerate(x.split(sizes)):
        torch.testing.assert_close(found[i], recursive(rows, fold.op), atol=atol, rtol=0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 2**31))
def test_ragged_groups_in_any_arrangement(sizes: list[int], seed: int) -> None:
    """Groups of any sizes, unsorted, some empty: each is its own recursive fold, in the order in which its elements come."""
    g = torch.Generator().manual_seed(seed)
    index = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    index = index[torch.randperm(len(index), generator=g)]
    x = torch.randn(len(index), 4, generator=g, dtype=torch.float64)
    fold = monoid(4, torch.float64)
    fold.e = torch.arange(4.0, dtype=torch.float64)
    found = fold(x, index, dim_size=len(sizes))
    for i, size in enumerate(sizes):
        wanted = recursive(x[index == i], fold.op) if size else fold.e
        torch.testing.assert_close(found[i], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", ["given", "random", "canonical"])
@pytest.mark.parametrize(("op", "fold"), [("add", Tensor.sum), ("max", Tensor.amax), ("min", Tensor.amin)])
def test_plain_operators_give_sum_max_and_min(op: str, fold: Callable[..., Tensor], order: str) -> None:
    """Whole numbers, so that a sum is exact in any order."""
    sizes = torch.arange(1, 34)
    index = torch.arange(33).repeat_interleave(sizes)
    x = torch.randint(-50, 50, (int(sizes.sum()), 3)).float()
    tree = LearnableMonoid(3, 3, op=op, project=False, order=order, draws=1)  # type: ignore[arg-type]
    wanted = torch.stack([fold(rows, 0) for rows in x.split(sizes.tolist())])
    for training in (True, False):
        assert torch.equal(tree.train(training)(x, index), wanted)


def test_an_operator_of_ones_own() -> None:
    x, index = torch.rand(40, 2, dtype=torch.float64), torch.arange(40) % 3
    tree = LearnableMonoid(2, 2, op=torch.logaddexp, project=False)
    wanted = torch.stack([x[index == i].logsumexp(0) for i in range(3)])
    torch.testing.assert_close(tree(x, index), wanted, atol=1e-12, rtol=0)


def test_a_gate_that_is_shut_gives_the_hierarchical_mean() -> None:
    """z = 1: f(x, y) = y, so x (+) y is their mean, and a fold of 2^k elements is the mean of all."""
    fold = monoid(3, torch.float64)
    assert isinstance(fold.op, BinaryGRU)
    with torch.no_grad():
        fold.op.cell.bias_ih[3:6] = 1e3
    x = torch.randn(13, 3, dtype=torch.float64)
    torch.testing.assert_close(fold(x), recursive(x, lambda a, b: (a + b) / 2)[None], atol=1e-12, rtol=0)
    torch.testing.assert_close(fold(x[:8]), x[:8].mean(0, keepdim=True), atol=1e-12, rtol=0)


@pytest.mark.parametrize("largest", [1, 2, 3, 4, 5, 8, 9, 31, 32, 33, 100])
def test_depth_and_work(largest: int) -> None:
    """ceil(log2 of the largest degree) calls of the operator one after another, d - 1 pairs a destination."""
    fold = monoid(4)
    sizes = torch.tensor([largest, 0, 1, max(largest // 2, 1), 3 if largest > 3 else 1])
    calls: list[int] = []
    fold.op.register_forward_hook(lambda _, given, out: calls.append(len(out)))
    fold(torch.randn(int(sizes.sum()), 4), torch.arange(5).repeat_interleave(sizes), dim_size=5)
    assert len(calls) == math.ceil(math.log2(largest))
    assert sum(calls) == int((sizes - 1).clamp(min=0).sum())


def test_empty_and_single() -> None:
    fold = monoid(4, learn_identity=True)
    x = torch.randn(1, 4)
    assert isinstance(fold.e, nn.Parameter)
    with torch.no_grad():
        fold.e += 3
    found = fold(x, torch.tensor([1]), dim_size=3)
    assert torch.equal(found[1], x[0]) and torch.equal(found[0], fold.e) and torch.equal(found[2], fold.e)
    nothing = fold(x[:0], torch.zeros(0, dtype=torch.int64), dim_size=2)  # no edge at all
    assert torch.equal(nothing, fold.e.expand(2, 4))
    found[0].sum().backward()
    assert torch.equal(fold.e.grad, torch.ones(4))
    assert fold(x[:0], torch.zeros(0, dtype=torch.int64), dim_size=0).shape == (0, 4)
    assert monoid(4)(x[:0], torch.zeros(0, dtype=torch.int64), dim_size=2).abs().sum() == 0
    with pytest.raises(ValueError):  # PyG's class takes the logarithm of 0
        LCMAggregation(4, 4, project=False)(x[:0], torch.zeros(0, dtype=torch.int64), dim_size=2)


def test_parameters_are_reset_to_a_fresh_start() -> None:
    for fold in (LearnableMonoid(3, 4, learn_identity=True), LearnableMonoid(3, 4, op="mlp"), RecurrentAggregation(3, 4)):
        before = [p.detach().clone() for p in fold.parameters()]
        with torch.no_grad():
            for p in fold.parameters():
                p.fill_(7.0)
        fold.reset_parameters()
        for p, old in zip(fold.parameters(), before, strict=True):
            assert not bool((p == 7).any()) and float(p.detach().abs().max()) <= 1.5 * float(old.abs().max())
    assert float(LearnableMonoid(3, 4, learn_identity=True).e.detach().abs().max()) == 0


def test_the_gradient_of_a_large_set_is_finite() -> None:
    fold = LearnableMonoid(8, 16)
    x = torch.randn(1024, 8, requires_grad=True)
    fold(x).square().sum().backward()
    grads = [x.grad, *(p.grad for p in fold.parameters())]
    assert all(g is not None and bool(torch.isfinite(g).all()) and float(g.abs().sum()) > 0 for g in grads)


def test_gradients_are_the_derivatives() -> None:
    fold = monoid(2, torch.float64)
    index = torch.tensor([1, 0, 1, 1, 3, 0, 1, 1])
    x = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fold(x, index, dim_size=4), (x,))


# -- the batch -----------------------------------------------------------------------------------------------------------
def test_a_hub_elsewhere_changes_nothing_here_and_does_in_pyg() -> None:
    """The output of a node when a hub of 40 messages is added to the batch: the same here; PyG folds its zeros into it."""
    fold, theirs = monoid(8), LCMAggregation(8, 8, project=False)
    gru = RecurrentAggregation(8, 8, project=False, order="given")
    assert isinstance(fold.op, BinaryGRU)
    theirs.gru_cell.load_state_dict(fold.op.cell.state_dict())
    x, hub = torch.randn(5, 8), torch.randn(40, 8)
    index = torch.tensor([0, 0, 0, 1, 1])
    both, with_hub = torch.cat([x, hub]), torch.cat([index, torch.full((40,), 2)])
    for ours in (fold, gru):
        torch.testing.assert_close(ours(both, with_hub)[:2], ours(x, index), atol=1e-6, rtol=0)
    assert (theirs(both, with_hub)[:2] - theirs(x, index)).abs().max() > 1e-2


@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("order", ["random", "canonical", "given"])
@pytest.mark.parametrize("make", [LearnableMonoid, RecurrentAggregation])
def test_what_else_is_in_the_batch_changes_nothing(make: Any, order: Any, draws: int) -> None:
    """In evaluation, in every order: groups before and after, of any size and mixed in, leave a group's result as it is."""
    fold = make(4, 4, order=order, draws=draws).double().eval()
    x, index = torch.randn(9, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 0])
    alone = fold(x, index)
    others = torch.randn(50, 4, dtype=torch.float64)
    owner = torch.tensor([3] * 40 + [4] * 3 + [6] * 7)
    places = torch.cat([index + 1, torch.where(owner == 3, 0, owner)])
    kept = torch.cat([torch.arange(9), 9 + torch.randperm(50)])  # the groups' own order stays
    torch.testing.assert_close(fold(torch.cat([x, others])[kept], places[kept])[1:4], alone, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        fold(x[:5], index[:5]), fold(torch.cat([x[:5], others]), torch.cat([index[:5], owner]))[:1], atol=1e-12, rtol=0
    )


def test_orders_drawn_once_are_those_of_each_group() -> None:
    """Every order of a group of 3 comes up over the seeds; a draw repeats; draws differ."""
    index, counts = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([2, 3])
    found = {tuple(drawn_once(index, counts, seed).tolist()[2:]) for seed in range(60)}
    assert found == {(a, b, c) for a in (0, 2, 4) for b in (0, 2, 4) for c in (0, 2, 4) if len({a, b, c}) == 3}
    assert torch.equal(drawn_once(index, counts, 5), drawn_once(index, counts, 5))
    assert len({tuple(drawn_once(index, counts, 5, draw).tolist()) for draw in range(20)}) > 3
    order = drawn_once(index, counts, 0)
    assert sorted(order.tolist()) == list(range(5)) and torch.equal(index[order], index.sort().values)


def test_a_copy_can_be_made_after_a_call_with_regularisers() -> None:
    import copy

    fold = LearnableMonoid(4, 4, associativity=0.1).train()
    fold(torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1]))
    other = copy.deepcopy(fold).eval()
    x, index = torch.randn(6, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    torch.testing.assert_close(other(x, index), fold.eval()(x, index))


@pytest.mark.parametrize("degree", [1, 2, 4, 5, 7, 16])
def test_equal_degrees_give_what_pyg_gives(degree: int) -> None:
    """Where all degrees are the same, PyG pads nothing: the same tree with the same weights."""
    ours, theirs = LearnableMonoid(5, 8, order="given").double(), LCMAggregation(5, 8).double()
    assert isinstance(ours.op, BinaryGRU) and ours.lin is not None
    theirs.gru_cell.load_state_dict(ours.op.cell.state_dict())
    theirs.lin.load_state_dict(ours.lin.state_dict())
    x, index = torch.randn(6 * degree, 5, dtype=torch.float64), torch.arange(6).repeat_interleave(degree)
    torch.testing.assert_close(ours(x, index), theirs(x, index), atol=1e-12, rtol=0)
    ptr = torch.arange(7) * degree
    torch.testing.assert_close(ours(x, ptr=ptr), theirs(x, index), atol=1e-12, rtol=0)


@pytest.mark.parametrize("counts", [[3, 3, 3], [1, 0, 9, 2, 2], [40, 1, 1, 1, 0]])
def test_the_recurrent_fold_is_the_cell_along_the_sequence(counts: list[int]) -> None:
    """In a block where little is padded, packed elsewhere."""
    gru = RecurrentAggregation(4, 4, project=False, order="given").double()
    cell = nn.GRUCell(4, 4).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in gru.gru.state_dict().items()})
    x = torch.randn(sum(counts), 4, dtype=torch.float64)
    found = gru(x, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), dim_size=len(counts))
    for i, rows in enumerate(x.split(counts)):
        h = torch.zeros(1, 4, dtype=torch.float64)
        for row in rows:
            h = cell(row[None], h)
        torch.testing.assert_close(found[i], h[0], atol=1e-12, rtol=0)


def test_padded_sets_with_a_mask() -> None:
    fold = monoid(3)
    x, sizes = torch.randn(4, 6, 3), [6, 0, 1, 4]
    mask = torch.arange(6) < torch.tensor(sizes)[:, None]
    found = fold.sets(torch.where(mask[..., None], x, torch.nan), mask)  # what is masked out is never looked at
    for i, size in enumerate(sizes):
        torch.testing.assert_close(found[i], recursive(x[i, :size], fold.op) if size else fold.e)


# -- orders --------------------------------------------------------------------------------------------------------------
def test_each_destination_is_shuffled_on_its_own() -> None:
    index = torch.arange(200).repeat_interleave(5)
    torch.manual_seed(0)
    order = shuffled(index)
    assert torch.equal(index[order], index) and torch.equal(order.sort().values, torch.arange(1000))
    places = (order % 5).view(200, 5)
    assert len(torch.unique(places, dim=0)) > 60  # of 120 orders; one order for all would be 1
    assert (places.float().mean(0) - 2).abs().max() < 0.4


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_the_canonical_order_makes_it_invariant_bit_for_bit(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 3, (30, 2), generator=g).float()  # many ties
    index = torch.randint(0, 4, (30,), generator=g)
    fold = LearnableMonoid(2, 5, order="canonical").eval()
    moved = torch.randperm(30, generator=g)
    assert torch.equal(fold(x, index, dim_size=4), fold(x[moved], index[moved], dim_size=4))
    assert torch.equal(x[canonical(index, x)], x[moved][canonical(index[moved], x[moved])])


def test_the_order_at_test_is_fixed_and_training_draws_anew() -> None:
    fold, x = LearnableMonoid(4, 4), torch.randn(9, 4)
    fold.eval()
    state = torch.get_rng_state()
    assert torch.equal(fold(x), fold(x)) and torch.equal(torch.get_rng_state(), state)
    with ordering(fold, "random", 1, shift=1):
        moved = fold(x)
    assert not torch.equal(moved, fold(x))
    with ordering(fold, "random", 400):
        mean = fold(x)
    singles = []
    for shift in range(400):
        with ordering(fold, "random", 1, shift=7 * shift):
            singles.append(fold(x))
    drawn = torch.stack(singles).detach()
    assert float((mean.detach() - drawn.mean(0)).abs().max()) < 0.2 * float(drawn.std(0).max())
    fold.train()
    assert not torch.equal(fold(x), fold(x))
    again = LearnableMonoid(4, 4)
    again.load_state_dict(fold.state_dict())
    assert torch.equal(again.eval()(x), fold.eval()(x))  # the seed is saved with the weights


# -- the laws ------------------------------------------------------------------------------------------------------------
def test_the_losses_are_zero_for_a_monoid_and_are_as_written() -> None:
    x, y, z = torch.randn(3, 20, 4, dtype=torch.float64)
    assert associativity_loss(torch.maximum, x, y, z) == 0
    assert associativity_loss(torch.add, x, y, z) < 1e-28 and identity_loss(torch.add, x, torch.zeros(4)) == 0
    op = BinaryGRU(4).double()
    wanted = (op(op(x, y), z) - op(x, op(y, z))).square().sum(1).mean()
    torch.testing.assert_close(associativity_loss(op, x, y, z), wanted)
    e = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(identity_loss(op, x, e), (op(x, e.expand(20, 4)) - x).square().sum(1).mean())
    torch.testing.assert_close(consistency_loss(x, y), (x - y).square().sum(1).mean())


def test_training_to_associate_reduces_the_gap_tenfold_without_collapse() -> None:
    """500 steps with the laws alone, on random triples from (-1, 1)^16; the states that the operator makes keep their spread."""
    op, e = BinaryGRU(16), nn.Parameter(torch.zeros(16))
    optimiser = torch.optim.Adam([*op.parameters(), e], lr=1e-2)

    def triples(count: int, seed: int | None = None) -> Tensor:
        g = None if seed is None else torch.Generator().manual_seed(seed)
        return 2 * torch.rand(3, count, 16, generator=g) - 1

    def gap() -> float:
        x, y, z = triples(2000, 1)
        with torch.no_grad():
            return float((op(op(x, y), z) - op(x, op(y, z))).abs().mean())

    before = gap()
    for _ in range(500):
        x, y, z = triples(128)
        loss = associativity_loss(op, x, y, z) + 0.1 * identity_loss(op, x, e)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x, y, _ = triples(2000, 2)
    with torch.no_grad():
        spread = float(op(x, y).std(0).mean())
    assert gap() <= before / 10 and spread >= 0.1, (before, gap(), spread)


def test_the_penalty_of_a_call() -> None:
    x, index = torch.randn(30, 4), torch.arange(30) % 4
    plain = LearnableMonoid(4, 4)
    plain(x, index)
    assert plain.penalty is None and penalty_in(plain) is None
    for law in ("associativity", "identity_law", "consistency"):
        held = LearnableMonoid(4, 4, learn_identity=True, **{law: 0.5})
        held(x, index).sum()
        penalty = penalty_in(nn.ModuleList([held]))
        assert penalty is not None and float(penalty) > 0
        penalty.backward()
        assert held.op.cell.weight_hh.grad is not None  # type: ignore[union-attr]
        # triples are cut from the graph: the messages are not drawn together
        assert (held.lin.weight.grad is None) == (law != "consistency")  # type: ignore[union-attr]
        held.eval()(x, index)
        assert held.penalty is None
    both = LearnableMonoid(4, 4, op="add", project=False, associativity=1.0, consistency=1.0)
    both(x, index)
    assert both.penalty is not None and float(both.penalty) < 1e-9


# -- as an aggregation ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["lcm", "gru", "sum", "mean", "max", "std", "pna"])
def test_it_drops_into_a_layer_of_pyg(name: str) -> None:
    """Unsorted edges, a node without neighbours; the same as the aggregator called by hand."""
    aggr = aggregation_of(name, 6)
    conv = SAGEConv(6, 3, aggr=aggr, root_weight=False).eval()
    edges = torch.tensor([[0, 3, 1, 2, 0, 4], [2, 1, 2, 0, 1, 2]])
    x = torch.randn(6, 6)
    by_hand = conv.lin_l(aggr(x[edges[0]], edges[1], dim_size=6))
    torch.testing.assert_close(conv(x, edges), by_hand)
    if name in ("lcm", "gru"):
        torch.testing.assert_close(conv(x, edges)[5], conv.lin_l.bias)


@pytest.mark.parametrize("make", [LearnableMonoid, RecurrentAggregation])
def test_heads_are_folded_one_by_one(make: Any) -> None:
    torch.manual_seed(0)
    fold = make(3, 4).eval()
    x, index = torch.randn(9, 2, 3), torch.tensor([0, 3, 1, 2, 0, 4, 1, 1, 3])
    found = fold(x, index, dim=0, dim_size=6)
    by_hand = torch.stack([fold(x[:, head], index, dim_size=6) for head in range(2)], 1)
    torch.testing.assert_close(found, by_hand)
    ptr = torch.tensor([0, 4, 4, 9])  # an empty group between, and one at the end that the elements do not show
    torch.testing.assert_close(fold(x[:, 0], ptr=ptr), fold(x[:, 0], torch.repeat_interleave(torch.arange(3), ptr.diff())))
    assert fold(x[:, 0], ptr=torch.tensor([0, 4, 9, 9])).shape == (3, 4)
    conv = GATConv(6, 3, heads=2, aggr=make(3, 3)).eval()
    edges = torch.tensor([[0, 3, 1, 2, 0, 4], [2, 1, 2, 0, 1, 2]])
    assert conv(torch.randn(6, 6), edges).shape == (6, 6)


def test_the_trees_of_a_graph_are_built_once() -> None:
    fold, index = monoid(3), torch.arange(20) % 3
    counts = torch.bincount(index)
    kept = fold.tree(counts)
    fold(torch.randn(20, 3), index)
    assert fold.tree(counts) is kept and fold.tree(counts + 1) is not kept
    assert len(tree_of(torch.zeros(0, dtype=torch.int64)).levels) == 0


# -- errors --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [LearnableMonoid, RecurrentAggregation])
def test_mistakes_are_named(make: Any) -> None:
    with pytest.raises(ValueError, match="without a projection they must be equal"):
        make(3, 4, project=False)
    with pytest.raises(ValueError, match="random, canonical or given"):
        make(3, 4, order="sorted")
    for wrong in ({"draws": 2.5}, {"draws": 0}):
        with pytest.raises(ValueError, match="1 draw or more"):
            make(3, 4, **wrong)
    with pytest.raises(ValueError, match="widths are 1 or more"):
        make(3, 0)
    fold = make(3, 4)
    x, index = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    for bad, where, words in (
        (x, torch.tensor([0, 1, -1, 0]), "element 2 has the negative destination -1"),
        (x[:, :2], index, "elements of width 3"),
        (x, index[:3], "4 elements and 3 destinations"),
        (torch.where(torch.arange(4)[:, None] == 3, torch.nan, x), index, "element 3 has a value that is not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            fold(bad, where, dim_size=2)
    with pytest.raises(ValueError, match="destination 1 where there are 1"):
        fold(x, index, dim_size=1)
    with pytest.raises(ValueError, match="two-dimensional"):
        fold(x[None], index, dim=1)
    with pytest.raises(ValueError, match="element 2 has destination 1 where there are 1"):
        fold(torch.randn(4, 2, 3), torch.tensor([0, 0, 1, 0]), dim=0, dim_size=1)
    if make is LearnableMonoid:
        with pytest.raises(ValueError, match="weights of the laws are 0 or more"):
            make(3, 4, associativity=-1.0)
        with pytest.raises(ValueError, match="the operator is gru, mlp"):
            make(3, 4, op="mean")
    with pytest.raises(ValueError, match="aggregations are lcm, gru"):
        aggregation_of("median", 3)
