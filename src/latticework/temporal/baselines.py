"""What must be beaten on streams: pairs that were seen before, and how lately. Neither trains anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from latticework.core.method import Method, Model, Stream
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.core.value import setting
from latticework.data.events import Events

from .tasks import Pairs

Array = NDArray[Any]


class SeenPairs(Model):
    """The last time of every pair that met, and how often each target was met. The score is its method's to say."""

    def __init__(self, method: SeenPairsMethod, schema: Mapping[str, Any]) -> None:
        self.method: SeenPairsMethod = method
        self.schema = schema
        self.last: dict[tuple[int, int], float] = {}
        self.met: dict[int, int] = {}
        self.span = 0.0  # of the train events

    def observe(self, new: Events) -> None:
        """Take events in; how they are cut into chunks does not matter."""
        self.last.update(zip(zip(new.src.tolist(), new.dst.tolist(), strict=True), new.t.tolist(), strict=True))
        for target, count in zip(*np.unique(new.dst, return_counts=True), strict=True):
            self.met[int(target)] = self.met.get(int(target), 0) + int(count)

    def __deepcopy__(self, memo: Any) -> Self:
        other = type(self)(self.method, self.schema)
        other.last, other.met, other.span = dict(self.last), dict(self.met), self.span
        return other

    def predict(self, part: Part) -> Array:
        asked: Pairs = part.query
        b, c = asked.dst.shape
        sources = np.repeat(asked.src, c).tolist()
        targets = asked.dst.ravel().tolist()
        get = self.last.get
        last = np.array([get(pair, np.nan) for pair in zip(sources, targets, strict=True)]).reshape(b, c)
        counts = np.array([self.met.get(v, 0) for v in targets], np.float64).reshape(b, c)
        return self.method.scores(asked.t[:, None] - last, counts, self.span)

    def state(self) -> Mapping[str, Any]:
        import torch

        pairs = np.array(list(self.last), np.int64).reshape(-1, 2)
        return {
            "pairs": torch.from_numpy(pairs), "last": torch.tensor(list(self.last.values()), dtype=torch.float64),
            "targets": torch.tensor(list(self.met), dtype=torch.int64),
            "met": torch.tensor(list(self.met.values()), dtype=torch.int64),
            "span": torch.tensor(self.span, dtype=torch.float64),
        }  # fmt: skip

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        model = cls(method, schema)
        pairs = state["pairs"].tolist()
        model.last = {(u, v): t for (u, v), t in zip(pairs, state["last"].tolist(), strict=True)}
        model.met = dict(zip(state["targets"].tolist(), state["met"].tolist(), strict=True))
        model.span = float(state["span"])
        return model


class SeenPairsMethod(Method):
    """A score from the pair's age and the target's count alone."""

    tasks: ClassVar[tuple[str, ...]] = ("temporal-link-prediction",)
    gives: ClassVar[tuple[type[Any], ...]] = (Stream,)
    model: ClassVar[type[Any]] = SeenPairs
    chance: ClassVar[bool] = False

    def scores(self, age: Array, met: Array, span: float) -> Array:
        """float64 of the shape of `age` (NaN: the pair never met) and `met`, the events that each target had."""
        raise NotImplementedError

    def fit(self, train: Part, valid: Part | None, run: Run) -> SeenPairs:
        events: Events = train.data
        model = SeenPairs(self, {**train.schema, "logits": False})
        model.span = float(events.t[-1] - events.t[0])
        model.observe(events)
        run.log(1)
        return model


class EdgeBank(SeenPairsMethod):
    """EdgeBank (Poursafaei et al., NeurIPS 2022): 1 where the pair was seen before, else 0.

    `window` below 1 forgets: a pair counts where it was seen within that share of the train events' span.
    """

    name: ClassVar[str] = "edgebank"
    window: float = setting(1.0, "how far back a meeting counts, as a share of the train span; 1: always", gt=0, le=1)

    def scores(self, age: Array, met: Array, span: float) -> Array:
        seen = np.isfinite(age)
        return (seen if self.window == 1 else seen & (np.nan_to_num(age, nan=np.inf) <= self.window * span)).astype(np.float64)


class Recency(SeenPairsMethod):
    """Pairs that met, the latest first; then those that never met, by `unseen`: all alike, or the most met target first.

    Score: 1 + 1/(1 + age/scale) for a pair that met, with the train events' span as scale; met/(1 + met) in [0, 1) for the
    rest under ``popularity``, else 0.
    """

    name: ClassVar[str] = "recency"
    unseen: Literal["alike", "popularity"] = setting(
        "popularity", "how pairs that never met are ranked", search=["alike", "popularity"]
    )

    def scores(self, age: Array, met: Array, span: float) -> Array:
        rest = met / (1 + met) if self.unseen == "popularity" else np.zeros_like(met)
        return np.where(np.isfinite(age), 1 + 1 / (1 + np.nan_to_num(age) / max(span, 1e-12)), rest)
