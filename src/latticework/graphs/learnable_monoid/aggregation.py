"""Learned aggregators whose result depends on the order of what they fold: a balanced tree, and a recurrent cell.

A learnable commutative monoid folds the messages ``m_1 .. m_d`` of a neighbourhood in a balanced binary tree with one learned
operator, exactly commutative by construction, ``x (+) y = (f(x, y) + f(y, x)) / 2`` with f a GRU cell, and associative only as far
as it is trained to be. The depth is ``ceil(log2 d)`` where the recurrent aggregator, a GRU along the sequence, needs d steps.

Source: Ong and Velickovic, "Learnable Commutative Monoids for Graph Neural Networks" (LoG 2022, arXiv 2212.08541), sections 3
and 4; the regulariser of the order is adapted from Cohen-Karlik et al., "Regularizing Towards Permutation Invariance in
Recurrent Models" (NeurIPS 2020). PyG's ``LCMAggregation`` pads every neighbourhood with zeros to the largest of the batch and
folds the zeros, too, so what it gives a node depends on the other nodes; here nothing is padded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch_geometric.nn import aggr

Order = Literal["random", "canonical", "given"]
Operator = Callable[[Tensor, Tensor], Tensor]


# -- operators -----------------------------------------------------------------------------------------------------------
class BinaryGRU(nn.Module):
    """``x (+) y = (f(x, y) + f(y, x)) / 2`` with one GRU cell f (input, state) for both -> [n, H] from two of [n, H].

    ``r = sigmoid(W_r x + U_r y)``, ``z = sigmoid(W_z x + U_z y)``, ``c = tanh(W_c x + r * (U_c y))``, ``f = (1 - z) * c + z * y``;
    biases as in `torch.nn.GRUCell`, whose parameters these are. Swapping the arguments swaps two terms of a sum of two.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        f: Tensor = self.cell(torch.cat([x, y]), torch.cat([y, x]))  # both orders in one call
        return (f[: len(x)] + f[len(x) :]) / 2


class BinaryMLP(nn.Module):
    """``x (+) y = (f(x, y) + f(y, x)) / 2`` with a network of one hidden layer on both, side by side -> [n, H]."""

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(2 * width, hidden or 2 * width), nn.ReLU(), nn.Linear(hidden or 2 * width, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        f: Tensor = self.f(torch.cat([torch.cat([x, y], 1), torch.cat([y, x], 1)]))
        return (f[: len(x)] + f[len(x) :]) / 2


class Plain(nn.Module):
    """A function of two tensors [n, H] as an operator without parameters."""

    def __init__(self, of: Operator) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.of(x, y)


PLAIN: dict[str, Operator] = {"add": torch.add, "max": torch.maximum, "min": torch.minimum}


def operator_of(op: str | nn.Module | Operator, width: int) -> nn.Module:
    """``gru``, ``mlp``, ``add``, ``max``, ``min``, a module or a function of two tensors. `ValueError` for another word."""
    if isinstance(op, nn.Module):
        return op
    if callable(op):
        return Plain(op)
    if op in PLAIN:
        return Plain(PLAIN[op])
    if op not in ("gru", "mlp"):
        raise ValueError(f"the operator is gru, mlp, {', '.join(PLAIN)} or a function of two tensors, not {op!r}")
    return BinaryGRU(width) if op == "gru" else BinaryMLP(width)


# -- the ragged tree -----------------------------------------------------------------------------------------------------
class Level(NamedTuple):
    """One level of all trees: places in the buffer of `left` and `right` partners [p], and of those that `go_on` alone [q].

    The next buffer is the p results followed by the q others; `done` [r] are places in it of finished trees, `of` [r] whose.
    """

    left: Tensor
    right: Tensor
    go_on: Tensor
    done: Tensor
    of: Tensor


class Tree(NamedTuple):
    """The trees over ragged groups, by their sizes alone: `single` groups of one element (their slots, whose), the levels."""

    counts: Tensor
    single: Tensor
    of_single: Tensor
    levels: tuple[Level, ...]


def tree_of(counts: Tensor) -> Tree:
    """The balanced trees over groups of `counts` int64 [n] elements that lie one group after another.

    A level pairs slots (0, 1), (2, 3), ... of each group; an unpaired last one moves up as it is. ``ceil(log2 max)`` levels and
    ``sum of (count - 1)`` pairs in all; nothing is padded.
    """
    ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    group = torch.arange(len(counts), device=counts.device)
    alone = counts == 1
    single, of_single = ptr[:-1][alone], group[alone]
    live = counts > 1
    group, c, start = group[live], counts[live], ptr[:-1][live]
    place = torch.arange(int(ptr[-1]), device=counts.device)  # slot -> place in the buffer
    levels = []
    while len(group):
        pairs, odd = c // 2, c % 2 == 1
        before = pairs.cumsum(0) - pairs
        total = int(pairs.sum())
        slot = (start - 2 * before).repeat_interleave(pairs) + 2 * torch.arange(total, device=counts.device)
        left, right, go_on = place[slot], place[slot + 1], place[(start + c - 1)[odd]]
        # the next buffer's slots, group by group: its pairs, then its odd one
        c = pairs + odd
        start = c.cumsum(0) - c
        place = torch.empty(int(c.sum()), dtype=torch.int64, device=counts.device)
        place[(start - before).repeat_interleave(pairs) + torch.arange(total, device=counts.device)] = torch.arange(
            total, device=counts.device
        )
        place[(start + c - 1)[odd]] = total + torch.arange(len(go_on), device=counts.device)
        ended = c == 1
        levels.append(Level(left, right, go_on, place[start[ended]], group[ended]))
        group, c, start = group[~ended], c[~ended], start[~ended]
    return Tree(counts, single, of_single, tuple(levels))


def fold(x: Tensor, order: Tensor, tree: Tree, op: Operator, empty: Tensor, states: list[Tensor] | None = None) -> Tensor:
    """All groups folded by `op` along their trees, one call of `op` a level -> [n, H].

    x [E, H]; `order` int64 [E] lists the rows of x group by group, as the tree's counts say; a group without elements gives `empty`
    [H], one with a single element that element. `states` is filled with the results of each level.
    """
    out = [x.index_select(0, order[tree.single])]
    owners = [tree.of_single]
    buffer = x
    for number, level in enumerate(tree.levels):
        left, right, go_on = level.left, level.right, level.go_on
        if number == 0:
            left, right, go_on = order[left], order[right], order[go_on]
        result = op(buffer.index_select(0, left), buffer.index_select(0, right))
        if states is not None:
            states.append(result)
        buffer = torch.cat([result, buffer.index_select(0, go_on)])
        out.append(buffer.index_select(0, level.done))
        owners.append(level.of)
    found = empty.to(x.dtype).expand(len(tree.counts), -1).clone()
    return found.index_copy(0, torch.cat(owners), torch.cat(out))


# -- orders --------------------------------------------------------------------------------------------------------------
def shuffled(index: Tensor) -> Tensor:
    """The elements grouped by `index` int64 [E], each group in a random order of its own -> int64 [E].

    Drawn on the CPU from torch's global generator, so that draws do not depend on the device.
    """
    perm = torch.randperm(len(index)).to(index.device)
    return perm[torch.argsort(index[perm], stable=True)]


def drawn_once(index: Tensor, counts: Tensor, seed: int, draw: int = 0) -> Tensor:
    """The elements grouped by `index` int64 [E], each group in a random order that the seed, the draw and its own size alone decide.

    What else is in the batch changes nothing: the place of the i-th element of a group is that of the i-th number of one stream.
    `counts` int64 [n]: elements of each group -> int64 [E].
    """
    if not len(index):
        return torch.arange(0, device=index.device)
    grouped = torch.argsort(index, stable=True)
    owner = index[grouped]
    slot = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[owner]
    numbers = torch.from_numpy(np.random.default_rng([seed, draw]).random(int(counts.max()))).to(index.device)
    by_number = torch.argsort(numbers[slot], stable=True)
    return grouped[by_number[torch.argsort(owner[by_number], stable=True)]]


def canonical(index: Tensor, x: Tensor) -> Tensor:
    """The elements grouped by `index` and sorted within each group by their values, first column first -> int64 [E].

    A function of each group's multiset of rows of x [E, F]: any order of the elements gives the same sequence of rows.
    """
    if not len(x):
        return torch.arange(0, device=x.device)
    distinct, rank = torch.unique(x.detach(), dim=0, return_inverse=True)
    return torch.argsort(index * len(distinct) + rank, stable=True)


# -- the regularisers ----------------------------------------------------------------------------------------------------
def associativity_loss(op: Operator, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """``mean over triples of || (x (+) y) (+) z - x (+) (y (+) z) ||^2``; x, y, z [k, H], four operator applications.

    Alone it is least for an operator that gives a constant: use it beside a task's loss, or beside `identity_loss`.
    """
    inner = op(torch.cat([x, y]), torch.cat([y, z]))
    outer = op(torch.cat([inner[: len(x)], x]), torch.cat([z, inner[len(x) :]]))
    return (outer[: len(x)] - outer[len(x) :]).square().sum(1).mean()


def identity_loss(op: Operator, x: Tensor, e: Tensor) -> Tensor:
    """``mean of || x (+) e - x ||^2``; x [k, H], e [H]."""
    return (op(x, e.to(x.dtype).expand_as(x)) - x).square().sum(1).mean()


def consistency_loss(a: Tensor, b: Tensor) -> Tensor:
    """``mean of || fold(pi) - fold(pi') ||^2`` of two results [n, H] under different orders."""
    return (a - b).square().sum(1).mean()


# -- the aggregators -----------------------------------------------------------------------------------------------------
class OrderedAggregation(aggr.Aggregation):  # type: ignore[misc]
    """What aggregators share whose result depends on the order of the elements: projection, orders, errors.

    While training every call draws a fresh random order for every group, from torch's global generator, as dropout does. In
    evaluation the order follows `order`: *random*, drawn from the stored `seed` (a buffer drawn at construction) for each group by
    itself, so that what else is in the batch changes nothing, and averaged over `draws` orders; *canonical*, elements sorted by their
    values (`canonical`), so exactly invariant; *given*, as they come. In training *given* is kept, too, and canonical is random.

    Forward: x [E, F] with `index` int64 [E] (in any order) or `ptr` int64 [n + 1] -> [n, H]; it meets PyG's `Aggregation`, so it is
    given to any message passing by ``aggr=``. Messages of several heads, [E, K, F] with ``dim=0``, are folded head by head
    -> [n, K, H]. `ValueError` for F other than H without projection, wrong widths, a negative index, and
    values that are not finite.
    """

    def __init__(
        self, in_channels: int, out_channels: int, project: bool = True, order: Order = "random", draws: int = 1
    ) -> None:
        super().__init__()
        if in_channels != out_channels and not project:
            raise ValueError(
                f"{in_channels} features are folded in width {out_channels}: without a projection they must be equal"
            )
        if min(in_channels, out_channels) < 1:
            raise ValueError(f"widths are 1 or more: {in_channels} and {out_channels} were given")
        if order not in ("random", "canonical", "given") or draws < 1 or draws != int(draws):
            raise ValueError(f"the order is random, canonical or given, with 1 draw or more; not {order!r} with {draws}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.order, self.draws = order, draws
        self.lin = nn.Linear(in_channels, out_channels) if project else None
        self.seed: Tensor
        self.register_buffer("seed", torch.randint(2**31, ()))

    def reset_parameters(self) -> None:
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def folded(self, m: Tensor, order: Tensor, index: Tensor, counts: Tensor) -> Tensor:
        """The groups of messages m [E, H], listed by `order`, folded -> [n, H]."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, dim_size: int | None = None, dim: int = -2,
        max_num_elements: int | None = None,
    ) -> Tensor:  # fmt: skip
        if index is None:
            assert ptr is not None
            index = torch.arange(len(ptr) - 1, device=x.device).repeat_interleave(ptr.diff())
            dim_size = len(ptr) - 1 if dim_size is None else dim_size
        several = x.dim() == 3 and dim in (0, -3)
        if not several:
            self.assert_two_dimensional_input(x, dim)
        if x.size(-1) != self.in_channels:
            raise ValueError(f"elements of width {self.in_channels} are folded, these are {x.size(-1)} wide")
        if len(index) != len(x):
            raise ValueError(f"{len(x)} elements and {len(index)} destinations")
        n = int(index.max()) + 1 if dim_size is None and len(index) else dim_size or 0
        if len(index) and int(index.min()) < 0:
            raise ValueError(f"element {int(index.argmin())} has the negative destination {int(index.min())}")
        if len(index) and int(index.max()) >= n:
            raise ValueError(f"element {int(index.argmax())} has destination {int(index.max())} where there are {n}")
        if not bool(torch.isfinite(x).all()):
            row = int((~torch.isfinite(x)).flatten(1).any(1).nonzero()[0])
            raise ValueError(f"element {row} has a value that is not finite")
        if several:  # each head of each destination is a group of its own
            heads = x.size(1)
            own = (index[:, None] * heads + torch.arange(heads, device=x.device)).flatten()
            return self._folded(x.reshape(-1, x.size(2)), own, n * heads).view(n, heads, -1)
        return self._folded(x, index, n)

    def _folded(self, x: Tensor, index: Tensor, n: int) -> Tensor:
        """Checked elements [E, F] of n groups -> [n, H]."""
        m = x if self.lin is None else self.lin(x).relu()
        counts = torch.bincount(index, minlength=n)
        return self._ordered(m, x, index, counts)

    def _ordered(self, m: Tensor, x: Tensor, index: Tensor, counts: Tensor) -> Tensor:
        if self.order == "given":
            return self.folded(m, torch.argsort(index, stable=True), index, counts)
        if self.training:
            return self.folded(m, shuffled(index), index, counts)
        if self.order == "canonical":
            return self.folded(m, canonical(index, x), index, counts)
        seed = int(self.seed)
        total: Tensor = sum(self.folded(m, drawn_once(index, counts, seed, draw), index, counts) for draw in range(self.draws))  # type: ignore[assignment]
        return total / self.draws

    def sets(self, x: Tensor, mask: Tensor) -> Tensor:
        """Sets as a padded block: x [B, N, F] with mask bool [B, N] (false: padding, never looked at) -> [B, H]."""
        found: Tensor = self(x[mask], index=mask.nonzero()[:, 0], dim_size=len(x))
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, order={self.order}, draws={self.draws})"


class LearnableMonoid(OrderedAggregation):
    """Messages folded by a learned commutative operator in a balanced tree: ``m_j = ReLU(W x_j + b)``, then ``m_1 (+) .. (+) m_d``.

    `op`: ``gru`` (`BinaryGRU`), ``mlp`` (`BinaryMLP`), ``add``, ``max``, ``min``, or a module or function of two tensors [p, H]; it is
    called once a level, ``ceil(log2 d)`` times for the largest degree d, on all pairs of all destinations. Cost: d - 1 pairs a
    destination. An empty neighbourhood gives the identity `e` [H], zero, or learned with `learn_identity`; a single message is given
    back as it is. `project` adds W and b (needed where F is not H).

    Weights `associativity`, `identity_law`, `consistency` of the regularisers: where one is above 0, every forward call in training
    leaves their weighted sum in `penalty`, to be added to the loss. Triples are drawn among the messages and inner states of the
    call, cut from the graph, so that only the operator (and e) is held to the laws and states are not drawn together.

        conv = SAGEConv(16, 32, aggr=LearnableMonoid(16, 16))

    It is not invariant to the order until it has learnt to be; ``order="canonical"`` makes it so in evaluation.
    """

    TRIPLES = 256  # states that a regulariser looks at in a call

    def __init__(
        self, in_channels: int, out_channels: int, op: str | nn.Module | Operator = "gru", project: bool = True,
        order: Order = "random", draws: int = 1, learn_identity: bool = False, associativity: float = 0.0, identity_law: float = 0.0,
        consistency: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, project, order, draws)
        if min(associativity, identity_law, consistency) < 0:
            raise ValueError(
                f"weights of the laws are 0 or more: associativity {associativity}, identity_law {identity_law}, consistency {consistency}"
            )
        self.op = operator_of(op, out_channels)
        self.e: Tensor
        if learn_identity:
            self.e = nn.Parameter(torch.zeros(out_channels))
        else:
            self.register_buffer("e", torch.zeros(out_channels))
        self.associativity, self.identity_law, self.consistency = associativity, identity_law, consistency
        self.penalty: Tensor | None = None
        self._tree: Tree | None = None

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            self.e.zero_()

    def __getstate__(self) -> dict[str, Any]:
        """For copies: without what the last call left."""
        return {**super().__getstate__(), "penalty": None, "_tree": None}

    def tree(self, counts: Tensor) -> Tree:
        """The trees of these counts; those of the last ones are kept, as a graph is seen again and again."""
        kept = self._tree
        if kept is None or kept.counts.device != counts.device or not torch.equal(kept.counts, counts):
            self._tree = kept = tree_of(counts)
        return kept

    def folded(self, m: Tensor, order: Tensor, index: Tensor, counts: Tensor) -> Tensor:
        tree = self.tree(counts)
        if not self.training or not (self.associativity or self.identity_law or self.consistency):
            self.penalty = None
            return fold(m, order, tree, self.op, self.e)
        states: list[Tensor] = [m]
        out = fold(m, order, tree, self.op, self.e, states)
        self.penalty = self._penalty(torch.cat(states).detach(), m)
        if self.consistency:
            other = fold(m, shuffled(index), tree, self.op, self.e)
            self.penalty = self.penalty + self.consistency * consistency_loss(out, other)
        return out

    def _penalty(self, states: Tensor, m: Tensor) -> Tensor:
        total = m.new_zeros(())
        if not len(states):
            return total
        x, y, z = states[torch.randint(len(states), (3, self.TRIPLES), device="cpu").to(states.device)]
        if self.associativity:
            total = total + self.associativity * associativity_loss(self.op, x, y, z)
        if self.identity_law:
            total = total + self.identity_law * identity_loss(self.op, x, self.e)
        return total


class RecurrentAggregation(OrderedAggregation):
    """Messages folded one after another by a GRU: ``h_0 = 0``, ``h_t = GRU(m_t, h_{t-1})`` -> ``h_d`` [n, H].

    The baseline with the depth of the largest degree. No padding enters a result: neighbourhoods of very different sizes are packed
    (`torch.nn.utils.rnn.PackedSequence`), others stand in a block and are read where they end. An empty one gives 0. `project` adds ``m_j = ReLU(W x_j + b)``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, project: bool = True, order: Order = "random", draws: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, project, order, draws)
        self.gru = nn.GRU(out_channels, out_channels)

    def folded(self, m: Tensor, order: Tensor, index: Tensor, counts: Tensor) -> Tensor:
        out = m.new_zeros(len(counts), self.out_channels)
        longest = torch.argsort(counts, descending=True, stable=True)
        longest = longest[: int((counts > 0).sum())]
        if not len(longest):
            return out
        rank = torch.empty_like(counts)
        rank[longest] = torch.arange(len(longest), device=m.device)
        grouped = index[order]
        step = torch.arange(len(order), device=m.device) - (counts.cumsum(0) - counts)[grouped]
        steps = int(counts.max())
        if steps * len(longest) <= 2 * len(order):
            # little to pad: a plain block is quicker; the state at a message does not know what follows it
            block = m.new_zeros(steps, len(longest), m.size(1)).index_put((step, rank[grouped]), m.index_select(0, order))
            last = self.gru(block)[0][counts[longest] - 1, torch.arange(len(longest), device=m.device)]
        else:
            # step t of the packed sequence: the t-th message of every destination that has one, the longest first
            place = torch.argsort(step * len(counts) + rank[grouped])
            last = self.gru(PackedSequence(m.index_select(0, order[place]), torch.bincount(step).cpu()))[1][0]
        return out.index_copy(0, longest, last)


# -- by name -------------------------------------------------------------------------------------------------------------
Name = Literal["lcm", "gru", "sum", "mean", "max", "std", "pna"]
_PNA = (["mean", "min", "max", "std"], ["identity", "amplification", "attenuation"])


class PNA(aggr.Aggregation):  # type: ignore[misc]
    """Principal neighbourhood aggregation: mean, min, max and std, each scaled by ``log(d + 1)`` up, down and not, then a map to H.

    `histogram` int64 [k]: how many neighbourhoods of the train part have each size, whose mean logarithm normalises the scalers.
    """

    def __init__(self, width: int, histogram: Tensor | None = None) -> None:
        super().__init__()
        if histogram is None or not int(histogram[1:].sum()):
            histogram = torch.ones(2, dtype=torch.int64)
        self.several = aggr.DegreeScalerAggregation(*_PNA, deg=histogram)
        self.join = nn.Linear(len(_PNA[0]) * len(_PNA[1]) * width, width)

    def forward(
        self, x: Tensor, index: Tensor | None = None, ptr: Tensor | None = None, dim_size: int | None = None, dim: int = -2,
    ) -> Tensor:  # fmt: skip
        found: Tensor = self.join(self.several(x, index, ptr, dim_size, dim))
        return found


def aggregation_of(name: str, width: int, histogram: Tensor | None = None, **monoid: Any) -> nn.Module:
    """An aggregator [E, H] -> [n, H] by its name, without a projection.

    `histogram`: of the sizes of train neighbourhoods, for pna; `monoid`: further words for `LearnableMonoid`.
    """
    if name == "lcm":
        return LearnableMonoid(width, width, project=False, **monoid)
    if name == "gru":
        return RecurrentAggregation(width, width, project=False)
    if name == "pna":
        return PNA(width, histogram)
    plain = {"sum": aggr.SumAggregation, "mean": aggr.MeanAggregation, "max": aggr.MaxAggregation, "std": aggr.StdAggregation}
    if name not in plain:
        raise ValueError(f"aggregations are lcm, gru, pna, {', '.join(plain)}, not {name!r}")
    found: nn.Module = plain[name]()
    return found


def ordered_in(net: nn.Module) -> list[OrderedAggregation]:
    """The aggregators of a network whose result depends on an order."""
    return [module for module in net.modules() if isinstance(module, OrderedAggregation)]


@contextlib.contextmanager
def ordering(net: nn.Module, order: Order, draws: int = 1, shift: int = 0) -> Iterator[None]:
    """Another order in evaluation for a while; `shift` moves the seed, for another draw of it."""
    found = ordered_in(net)
    before = [(module.order, module.draws) for module in found]
    for module in found:
        module.order, module.draws = order, draws
        module.seed += shift
    try:
        yield
    finally:
        for module, (old, drawn) in zip(found, before, strict=True):
            module.order, module.draws = old, drawn
            module.seed -= shift


def penalty_in(net: nn.Module) -> Tensor | None:
    """The sum of the regularisers that the last forward call left in a network; none where it has none."""
    found = [m.penalty for m in net.modules() if isinstance(m, LearnableMonoid) and m.penalty is not None]
    return torch.stack(found).sum() if found else None
