"""SEMBA: two memories for each node, one of friends and one of foes, moved by balance theory at every signed event.

An event (i, j, t, w) says to i's memories ``m_i^+ = [s_i^+, s_j^(sign w), |w|, T(t - l_i)]`` and
``m_i^- = [s_i^-, s_j^(-sign w), |w|, T(t - l_i)]``: of a friend its friends and its foes, of a foe its foes and its friends; and
likewise to j's. The mean of a batch's messages moves each memory, ``s^+ <- GRU_+(mean m^+, s^+)``, ``s^- <- GRU_-(mean m^-, s^-)``,
and one layer of attention over a node's latest links gives ``z_i = W_1 x_i + sum_j alpha_ij (W_v x_j + W_e e_ij)`` with
``x_i = [s_i^+, s_i^-]``, ``e_ij = [T(l_j - t_ij), |w_ij|]``, ``alpha = softmax_j((W_q x_i)^T (W_k x_j + W_e e_ij) / sqrt(d_h))``. A linear
head on ``[z_i, z_j]`` scores the pair.

Source: Sharma, Raghavendra, Kumar et al., "Representation Learning in Continuous-Time Dynamic Signed Networks" (CIKM 2023,
arXiv 2207.03408), section 3. The official code feeds the hostile memory from hostile events alone, paired with the other's hostile
memory (`routing` "official" here), and enters a batch's links into the attention before it scores them: that is a leak, and
nothing here does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.result import Findings
from latticework.core.task import Part
from latticework.core.value import setting
from latticework.layers.time_code import TimeCode

from .memory import EventBatch, MemoryTable, Messages, Pending, latest_of, mean_of
from .memory_baselines import Clock, MemoryModel
from .signed_counts import NAMES, SignedCounts
from .signed_memory import OUTPUTS, SignedMemoryMethod
from .tasks import Pairs

Array = NDArray[Any]
Routing = Literal["balance", "one-sided", "own-sign", "official"]

# (own memory, sign of the event) -> the other's memory that is read; a pair that is not there says nothing
ROUTES: Mapping[str, Mapping[tuple[str, str], str]] = {
    "balance": {("+", "+"): "+", ("+", "-"): "-", ("-", "+"): "-", ("-", "-"): "+"},
    "one-sided": {("+", "+"): "+", ("+", "-"): "+", ("-", "+"): "+", ("-", "-"): "+"},
    "own-sign": {("+", "+"): "+", ("-", "-"): "+"},
    "official": {("+", "+"): "+", ("+", "-"): "-", ("-", "-"): "-"},
}


def routed(own: Tensor, other_plus: Tensor, other_minus: Tensor, positive: Tensor, memory: str, routing: str) -> Tensor:
    """The memories part of messages to one memory: [k, 2 d], own beside the other's, under a routing of `ROUTES`.

    own, other_plus, other_minus [k, d]; positive bool [k]. Rows that the routing does not reach hold the other's friendly one.
    """
    read = {sign: ROUTES[routing].get((memory, sign), "+") for sign in "+-"}
    sides = {"+": other_plus, "-": other_minus}
    return torch.cat([own, torch.where(positive[:, None], sides[read["+"]], sides[read["-"]])], 1)


def reached(positive: Tensor, memory: str, routing: str) -> Tensor:
    """bool [k]: which messages move a memory."""
    table = ROUTES[routing]
    return (positive & ((memory, "+") in table)) | (~positive & ((memory, "-") in table))


class SEMBA(MemoryTable):
    """Signed memory and attention for n nodes; meets the node-memory socket. A row is ``[s^+, s^-]``, 2 `memory` wide.

    `routing`: a key of `ROUTES`; "single": one memory, whose messages and links carry the signed weight (a TGN with this
    embedding). `tied`: one GRU for both memories. `propagate` false: z is the row. `both_directions` false: a node looks at
    links that point to it alone (ids must stay below 2^24). `counts`: the head also sees the 14 running counts of the pair.
    ``pairs(src, dst, t) -> [q, k]`` scores pairs (k as in `signed_memory.OUTPUTS`). z does not depend on the time of asking.

    ``ValueError`` where `heads` does not divide `width`, for an unknown routing or target.
    """

    def __init__(
        self, nodes: int, clock: Clock, *, memory: int = 64, width: int = 64, time: int = 32, neighbours: int = 10, heads: int = 8,
        dropout: float = 0.5, routing: str = "balance", tied: bool = False, propagate: bool = True, both_directions: bool = True,
        aggregate: Literal["mean", "last"] = "mean", counts: bool = False, target: str = "sign",
    ) -> None:  # fmt: skip
        if heads < 1 or width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        if routing != "single" and routing not in ROUTES:
            raise ValueError(f"routing is single or one of {', '.join(ROUTES)}, not {routing!r}")
        if target not in OUTPUTS:
            raise ValueError(f"target is one of {', '.join(OUTPUTS)}, not {target!r}")
        features = len(clock.mean)
        self.sides = ("+",) if routing == "single" else ("+", "-")
        super().__init__(nodes, memory * len(self.sides), features, neighbours if propagate else 0, payload=2 + features)
        self.routing, self.target, self.propagate, self.both_directions = routing, target, propagate, both_directions
        self.aggregate = aggregate
        for name, value in clock._asdict().items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32 if name in ("mean", "spread") else torch.float64))
        # when each memory was last moved: the two differ where an event moves one of them alone
        self.register_buffer("moved", torch.full((nodes, len(self.sides)), -math.inf, dtype=torch.float64))
        self.code = TimeCode(time)
        said = 2 * memory + 1 + features + time
        self.plus = nn.GRUCell(said, memory)
        if routing != "single":
            self.minus = self.plus if tied else nn.GRUCell(said, memory)
        if propagate:
            from torch_geometric.nn import TransformerConv

            self.conv = TransformerConv(
                self.memory.shape[1], width // heads, heads, dropout=dropout, edge_dim=time + 1 + features
            )
        self.counts = SignedCounts(nodes) if counts else None
        if counts:
            self.scale_counts = nn.BatchNorm1d(len(NAMES), affine=False)
        out = width if propagate else self.memory.shape[1]
        self.head = nn.Linear(2 * out + (len(NAMES) if counts else 0), OUTPUTS[target])

    # -- memory ----------------------------------------------------------------------------------------------------------
    def carried(self, batch: EventBatch) -> Tensor:
        """Signed weight, the source's number (for one direction alone), features."""
        return torch.cat([batch.weight[:, None], batch.src.to(batch.weight.dtype)[:, None], batch.x], 1)

    def edge(self, weight: Tensor, x: Tensor) -> Tensor:
        """[..., 1 + De]: \\|weight\\| over the heaviest (signed where there is one memory), features over their spread."""
        shown = weight if self.routing == "single" else weight.abs()
        return torch.cat([(shown / self.heaviest).to(x.dtype)[..., None], (x - self.mean) / self.spread], -1)

    def elapsed_of(self, side: int, nodes: Tensor, t: Tensor) -> Tensor:
        """float64 [q], in mean gaps: since a memory was last moved; 0 for one that never was."""
        inside, unseen = self._inside(nodes)
        since = self.moved[inside, side]
        known = torch.isfinite(since) if unseen is None else torch.isfinite(since) & ~unseen
        return torch.where(known, t - since, torch.zeros_like(t)) / self.unit

    def messages(self, nodes: Tensor, m: Messages, side: str) -> Tensor:
        """[k, 2 memory + 1 + De + time]: what the events say to one of the memories."""
        own, other = self.rows(nodes), self.rows(m.other)
        d = own.shape[1] // len(self.sides)
        if self.routing == "single":
            pair = torch.cat([own[m.to], other], 1)
        else:
            mine = own[:, :d] if side == "+" else own[:, d:]
            pair = routed(mine[m.to], other[:, :d], other[:, d:], m.weight > 0, side, self.routing)
        passed = self.code(self.elapsed_of(self.sides.index(side), nodes[m.to], m.t))
        return torch.cat([pair, self.edge(m.weight, m.x), passed], 1)

    def updated(self, nodes: Tensor, messages: Messages) -> Tensor:
        own = self.rows(nodes)
        d = own.shape[1] // len(self.sides)
        found = []
        for side in self.sides:
            cell = self.plus if side == "+" else self.minus
            mine = own[:, :d] if side == "+" else own[:, d:]
            keep = self._reached(messages, side)
            some = messages if keep is None else Messages(*(column[keep] for column in messages))
            if self.aggregate == "last" and len(some.to):
                there, to = torch.unique(some.to, return_inverse=True)
                some = Messages(*(column[latest_of(to, len(there))] for column in some))
            mean = mean_of(self.messages(nodes, some, side), some.to, len(nodes))
            moved = cell(mean, mine)
            if keep is not None:  # a memory that no message reaches stays as it is
                hit = torch.zeros(len(nodes), dtype=torch.bool, device=own.device).index_fill(0, some.to, True)
                moved = torch.where(hit[:, None], moved, mine)
            found.append(moved)
        return torch.cat(found, 1)

    def _reached(self, messages: Messages, side: str) -> Tensor | None:
        """Which messages move a memory; none where all do."""
        if self.routing == "single" or all((side, sign) in ROUTES[self.routing] for sign in "+-"):
            return None
        return reached(messages.weight > 0, side, self.routing)

    # -- embedding and score -----------------------------------------------------------------------------------------------
    def _links(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The neighbourhood with the places masked that do not flow to their node."""
        other, when, kept, there = self.neighbourhood(nodes)
        if not self.both_directions:
            there = there & (kept[..., 1].to(torch.int64) == other)
        return other, when, kept, there

    def attend(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z [q, width] of distinct nodes, and the attention [e] of the places bool [q, s] that hold a link, averaged over heads."""
        other, when, kept, there = self._links(nodes)
        row = there.nonzero()[:, 0]
        seen, place = torch.unique(other[there], return_inverse=True)
        since = self.times(other[there]) - when[there]
        # a neighbour whose latest events are not consumed yet: its link is newer than its memory
        passed = self.code(torch.where(torch.isfinite(since), since, torch.zeros_like(since)) / self.unit)
        attributes = torch.cat([passed, self.edge(kept[there][:, 0], kept[there][:, 2:])], 1)
        x = self.rows(nodes), self.rows(seen)
        z, (_, alpha) = self.conv((x[1], x[0]), torch.stack([place, row]), attributes, return_attention_weights=True)
        return z, alpha.mean(1), there

    def embed(self, nodes: Tensor, t: Tensor) -> Tensor:
        if not self.propagate:
            return self.rows(nodes)
        distinct, inverse = torch.unique(nodes, return_inverse=True)
        return self.attend(distinct)[0][inverse]

    def score(self, source: Tensor, target: Tensor, counts: Tensor | None = None) -> Tensor:
        """[q, k] of vectors [q, d] and, where the head sees them, counts [q, 14]."""
        parts = [source, target]
        if self.counts is not None:
            empty = source.new_zeros(len(source), len(NAMES))
            shown, norm = empty if counts is None else counts, self.scale_counts
            # one row alone has no spread of its own: it is read on the scale of those before
            parts.append(F.batch_norm(shown, norm.running_mean, norm.running_var) if len(shown) == 1 else norm(shown))
        found: Tensor = self.head(torch.cat(parts, 1))
        return found

    def pairs(self, src: Tensor, dst: Tensor, t: Tensor, counts: Tensor | None = None) -> Tensor:
        """[q, k]: scores of pairs, from what happened before. `counts` [q, 14]: fresher ones than the batches so far give."""
        z = self.embed(torch.cat([src, dst]), t.repeat(2))
        if self.counts is not None and counts is None:
            counts = torch.from_numpy(self.counts.of(src.cpu().numpy(), dst.cpu().numpy())).to(z)
        return self.score(z[: len(src)], z[len(src) :], counts)

    def link(self, source: Tensor, target: Tensor) -> Tensor:
        found = self.score(source, target)
        return torch.logsumexp(found[:, :2], 1) - found[:, 2] if found.shape[1] == 3 else found[:, 0]

    # -- the socket's tables -------------------------------------------------------------------------------------------------
    def reset(self) -> None:
        super().reset()
        self.moved.fill_(-math.inf)
        if self.counts is not None:
            self.counts = SignedCounts(self.nodes)

    def grow(self, nodes: int) -> None:
        more = nodes - len(self.moved)
        super().grow(nodes)
        if more > 0:
            self.moved = torch.cat([self.moved, self.moved.new_full((more, self.moved.shape[1]), -math.inf)])

    def hold(self, batch: EventBatch) -> None:
        super().hold(batch)
        if self.counts is not None and len(batch.src):
            self.counts.insert(*(column.cpu().numpy() for column in (batch.src, batch.dst, batch.weight)))

    def write(self, nodes: Tensor, rows: Tensor, t: Tensor) -> None:
        found = self.pending()
        if found is not None:
            self._note(found)
        super().write(nodes, rows, t)

    def _note(self, found: Pending) -> None:
        """The time of the latest message to each memory."""
        for k, side in enumerate(self.sides):
            keep = self._reached(found.messages, side)
            to, t = found.messages.to, found.messages.t
            if keep is not None:
                to, t = to[keep], t[keep]
            if len(to):
                there, place = torch.unique(to, return_inverse=True)
                self.moved[found.nodes[there], k] = t[latest_of(place, len(there))]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        found = super()._apply(fn, recurse)
        self.moved = self.moved.to(torch.float64)
        return found

    def get_extra_state(self) -> dict[str, Any]:
        state = super().get_extra_state()
        if self.counts is not None:
            state |= {f"counts-{name}": torch.from_numpy(np.array(value)) for name, value in self.counts.arrays().items()}
        return state

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
        if self.counts is not None:
            kept = {k.removeprefix("counts-"): v.cpu().numpy() for k, v in state.items() if k.startswith("counts-")}
            self.counts.load(kept)


# -- the recipe ------------------------------------------------------------------------------------------------------------
class SEMBAModel(MemoryModel):
    """A fitted SEMBA: weights, and memories that have seen the train events.

    `observe` takes events in by batches of the method's `batch` (fewer where it is given fewer): the events of such a piece do
    not see each other, and the mean of their messages moves a memory. A node never seen has memories 0 and no links.
    """

    def behind(self, query: Pairs) -> Array | None:
        """float64 [b, 2, 4]: for each pair (of the first target) the two past links with the most attention, of either end: the
        end (0 source, 1 target), the node at the other end of the link (-1: there is none), its weight, its attention."""
        net: SEMBA = self.whole.net
        if not net.propagate:
            return None
        b = len(query.src)
        ends = torch.from_numpy(np.stack([query.src, query.dst[:, 0]])).to(net.memory.device)
        nodes, inverse = torch.unique(ends, return_inverse=True)
        with torch.no_grad():
            _, alpha, there = net.attend(nodes)
            other, _, kept, _ = net._links(nodes)
        share = torch.full(there.shape, -1.0, device=alpha.device)
        share[there] = alpha
        both = torch.cat([share[inverse[0]], share[inverse[1]]], 1)  # [b, 2 s]
        best, place = both.topk(min(2, both.shape[1]), 1)
        found = np.zeros((b, 2, 4))
        found[:, :, 1] = -1
        s = there.shape[1]
        end = (place >= s).long()
        row = torch.gather(inverse.T, 1, end)
        column = place % s
        for k, values in enumerate((end, other[row, column], kept[row, column][..., 0], best)):
            found[:, : best.shape[1], k] = values.cpu().numpy()
        found[found[:, :, 3] < 0] = (0, -1, 0, 0)
        return found

    def explain(self, part: Part) -> Findings:
        """How far the two memories are from each other, and how many nodes each one knows."""
        net: SEMBA = self.whole.net
        rows = net.memory
        scalars: dict[str, Any] = {"nodes with a memory": int((rows != 0).any(1).sum())}
        if len(net.sides) == 2:
            plus, minus = rows.chunk(2, 1)
            there = (rows != 0).any(1)
            cosine = torch.cosine_similarity(plus[there], minus[there], dim=1)
            scalars["mean cosine of the friendly and the hostile memory"] = float(cosine.mean()) if len(cosine) else 0.0
            scalars["nodes with a hostile memory"] = int((minus != 0).any(1).sum())
        return Findings(scalars)


class SEMBAMethod(SignedMemoryMethod):
    """SEMBA as a stream model: memories of friends and of foes for each node, moved by balance theory, and attention over its
    latest links (CIKM 2023). For the sign, the existence or the weight of links to come.

    Each batch is scored from the state that the batches before have left, and moves it after. The epoch with the best headline on
    the valid part is kept, its memory with it. Without features of nodes the two memories start alike for everybody: camps
    that differ in nothing but who befriends whom are not told apart.

    `form`: ``two`` memories, each event moving both; ``single``: one memory that is told the signed weight; ``own-sign``: an
    event moves the memory of its sign alone; ``official``: the released code's routing. Times count in mean gaps between train
    events.
    """

    name: ClassVar[str] = "semba"
    model: ClassVar[type[SEMBAModel]] = SEMBAModel

    width: int = setting(64, "numbers of a node's vector", ge=1, le=4096)
    memory: int = setting(64, "numbers of each of a node's memories", ge=1, le=4096)
    time: int = setting(32, "width of the code of time", ge=1, le=4096)
    neighbours: int = setting(10, "latest links that a node looks at", ge=1, le=10_000)
    heads: int = setting(8, "of the attention; they divide width", ge=1, le=64)
    dropout: float = setting(0.5, "of the attention", ge=0, lt=1, search=(0.0, 0.5))
    form: Literal["two", "single", "own-sign", "official"] = setting("two", "which memories there are, and what moves them")
    balance: bool = setting(True, "messages follow balance theory; false: both memories read the other's friendly one")
    propagate: bool = setting(True, "attention over past links; false: a node's vector is its memories")
    both_directions: bool = setting(True, "a node looks at the links that it gave and got; false: at those it got")
    counts: bool = setting(False, "the head sees the 14 running counts of the pair, too (not in the paper)")
    aggregate: Literal["mean", "last"] = setting("mean", "of a node's events in a batch: their mean moves it, or the last one")
    batch: int = setting(1000, "events of a step, in training and after", ge=1)
    epochs: int = setting(15, "at most", ge=1, le=100_000)
    patience: int = setting(15, "epochs without a better validation value before the fit stops", ge=1)
    lr: float = setting(0.01, "learning rate of Adam", gt=0, le=1, search=(1e-3, 1e-2, "log"))

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} do not divide width = {self.width}")
        if not self.balance and self.form != "two":
            raise ValueError(f"balance = false is a choice for form = two, not for {self.form}")
        return self

    def scored(self, net: Any, batch: EventBatch, asked: list[Tensor]) -> Tensor:
        """As for all; a train event's counts are those right before it, as the logistic regression on them learns."""
        if net.counts is None:
            return super().scored(net, batch, asked)
        src, dst, weight = (column.cpu().numpy() for column in (batch.src, batch.dst, batch.weight))
        rows = np.concatenate([net.counts.copy().walk(src, dst, weight, v.cpu().numpy()) for v in asked])
        c = len(asked)
        counts = torch.from_numpy(rows).to(net.memory)
        found: Tensor = net.pairs(batch.src.repeat(c), torch.cat(asked), batch.t.repeat(c), counts)
        return found

    def module(self, nodes: int, clock: Clock, schema: Mapping[str, Any]) -> SEMBA:
        routing = {"two": "balance" if self.balance else "one-sided"}.get(self.form, self.form)
        return SEMBA(
            nodes, clock, memory=self.memory, width=self.width, time=self.time, neighbours=self.neighbours, heads=self.heads,
            dropout=self.dropout, routing=routing, propagate=self.propagate, both_directions=self.both_directions,
            aggregate=self.aggregate, counts=self.counts, target=schema.get("target", "existence"),
        )  # fmt: skip
