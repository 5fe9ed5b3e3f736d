"""How a network with the node-memory socket learns signed links: losses for the four targets, and answers to them.

``sign``: mean BCE over the positives plus mean BCE over the negatives of a batch, each class averaged by itself. ``existence``: the
same over links and as many random non-links. ``sign-or-none``: the mean of three per-class negative log-likelihoods over the
same pairs. ``weight``: mean square error, in units of the heaviest train weight. A class that a batch has not adds nothing.

Source: Sharma et al., "Representation Learning in Continuous-Time Dynamic Signed Networks" (CIKM 2023), section 4, in the form
of its official code's losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latticework.core.errors import UserError

from .memory import EventBatch
from .memory_baselines import TGN, Clock, MemoryMethod, TGNMethod, drawn_without
from .tasks import Pairs

ASKED = 4000  # pairs scored at a time: a bound on memory
OUTPUTS = {"sign": 1, "existence": 1, "sign-or-none": 3, "weight": 1}


def class_means(logits: Tensor, positive: Tensor) -> Tensor:
    """BCE of logits [q] against bool [q], averaged within each class and added; an empty class adds 0."""
    loss = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
    parts = [loss[mask].mean() for mask in (positive, ~positive) if bool(mask.any())]
    return torch.stack(parts).sum() if parts else logits.sum() * 0


def signed_loss(target: str, logits: Tensor, weight: Tensor, false: Tensor | None = None, heaviest: float = 1.0) -> Tensor:
    """The loss of links with logits [b, k] and signed weights [b], and of non-links [f, k] where the target asks for them.

    k is 1, of ``sign-or-none`` 3 (negative, positive, none). ``ValueError`` where non-links are missing.
    """
    if target == "sign":
        return class_means(logits[:, 0], weight > 0)
    if target == "weight":
        return F.mse_loss(logits[:, 0], weight / heaviest)
    if false is None:
        raise ValueError(f"target {target} is learned against pairs that are not linked, and none are given")
    if target == "existence":
        both = torch.cat([logits[:, 0], false[:, 0]])
        return class_means(both, torch.arange(len(both), device=both.device) < len(logits))
    label = torch.cat([(weight > 0).long(), torch.full((len(false),), 2, device=weight.device)])
    loss = F.cross_entropy(torch.cat([logits, false]), label, reduction="none")
    return torch.stack([loss[label == k].mean() for k in range(3) if bool((label == k).any())]).mean()


class SignedMemoryMethod(MemoryMethod):
    """A memory method whose network scores pairs by ``pairs(src, dst, t) -> [q, k]`` for its `target`.

    The target is that of the task, read from the schema of its train part; any other task on events asks for existence.
    """

    tasks: ClassVar[tuple[str, ...]] = ("signed-links", "temporal-link-prediction")

    def observed(self) -> int:
        return self.batch

    def scored(self, net: Any, batch: EventBatch, asked: list[Tensor]) -> Tensor:
        """[c b, k]: the scores of a training batch's sources with each of the targets asked, from the state before the batch."""
        c = len(asked)
        found: Tensor = net.pairs(batch.src.repeat(c), torch.cat(asked), batch.t.repeat(c))
        return found

    def loss(self, net: Any, batch: EventBatch, targets: Tensor, rng: np.random.Generator) -> Tensor:
        asked, b = [batch.dst], len(batch.src)
        if net.target in ("existence", "sign-or-none"):
            asked.append(drawn_without(targets, batch.dst, rng))
        logits = self.scored(net, batch, asked)
        return signed_loss(net.target, logits[:b], batch.weight, logits[b:] if len(asked) > 1 else None, float(net.heaviest))

    def answer(self, net: Any, query: Pairs) -> Tensor:
        """Of each pair asked for a logit [b, c], three logits [b, c, 3], or a weight [b, c]."""
        b, c = query.dst.shape
        k = OUTPUTS[net.target]
        device = net.memory.device
        src, t = (torch.from_numpy(np.repeat(v, c)).to(device) for v in (query.src, query.t))
        dst = torch.from_numpy(np.ascontiguousarray(query.dst).ravel()).to(device)
        parts = [net.pairs(*(column[a : a + ASKED] for column in (src, dst, t))) for a in range(0, b * c, ASKED)]
        found = torch.cat(parts) if parts else net.memory.new_zeros(0, k)
        if net.target == "weight":
            found = found * net.heaviest
        return found.view(b, c, 3) if k == 3 else found.view(b, c)


class SignedTGN(TGN):
    """A TGN whose messages and neighbours carry the signed weight, with a score of k numbers for each pair."""

    def __init__(self, nodes: int, width: int, clock: Clock, *, target: str = "existence", **rest: Any) -> None:
        super().__init__(nodes, width, clock, **rest)
        self.target = target
        self.pair[2] = nn.Linear(width, OUTPUTS[target])
        nn.init.xavier_normal_(self.pair[2].weight)

    def pairs(self, src: Tensor, dst: Tensor, t: Tensor) -> Tensor:
        """[q, k]: scores of pairs at times."""
        z = self.embed(torch.cat([src, dst]), t.repeat(2))
        found: Tensor = self.pair(torch.cat([z[: len(src)], z[len(src) :]], 1))
        return found


class SignedTGNMethod(SignedMemoryMethod, TGNMethod):
    """TGN on signed links: its network, with the signed weight as an event's number, under the losses of signed links."""

    name: ClassVar[str] = "signed-tgn"
    tasks: ClassVar[tuple[str, ...]] = ("signed-links",)

    def module(self, nodes: int, clock: Clock, schema: Mapping[str, Any]) -> SignedTGN:
        try:
            return SignedTGN(
                nodes, self.width, clock, target=schema["target"], time=self.time, neighbours=self.neighbours, heads=self.heads,
                dropout=self.dropout, aggregate=self.aggregate,
            )  # fmt: skip
        except ValueError as reason:
            raise UserError(f"signed-tgn: {reason}") from None
