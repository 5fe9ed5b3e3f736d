"""What an evaluation gives: scores, costs, findings, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

Facts = Mapping[str, Any]
NOTHING: Facts = {}


class Metric(NamedTuple):
    """A metric's name, unit and direction."""

    name: str
    unit: str
    better: Literal["higher", "lower"]


class Score(NamedTuple):
    """A metric's value at coordinates (operating point, slice, class, horizon, client), or none with the reason."""

    metric: str
    value: float | None
    at: Facts = NOTHING
    why: str = ""


class Cost(NamedTuple):
    """What a cell cost; never a score, since it does not repeat."""

    fit_s: float = 0.0
    refs_s: float = 0.0
    predict_s: float = 0.0
    peak_bytes: int = 0
    parameters: int = 0
    flops: float | None = None
    alone: bool = True


class Result(NamedTuple):
    """One finished cell of a grid."""

    cell: str
    status: Literal["done", "failed", "stopped"]
    scores: Sequence[Score]
    headline: float | None
    cost: Cost
    error: str | None
    provenance: Facts
    curve: Facts = NOTHING
    facts: Facts = NOTHING

    def plain(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "scores": [s._asdict() for s in self.scores],
            "cost": self.cost._asdict(),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Result:
        scores = tuple(Score(**s) for s in plain["scores"])
        return cls(**{**plain, "scores": scores, "cost": Cost(**plain["cost"])})


class Findings(NamedTuple):
    """What a probe measures or a model explains: numbers, tables, figures (name -> SVG text or PNG bytes), files."""

    scalars: Facts = NOTHING
    tables: Facts = NOTHING
    figures: Facts = NOTHING
    files: Sequence[Path] = ()
