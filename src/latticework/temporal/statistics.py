"""What a log of events is like, before any model: how often pairs repeat, how much of the test part is new, how time passes.

Pairs seen before are what the trivial baselines live on: with e the pairs of a part, ``surprise = |e_test - e_train| / |e_test|``,
``reoccurrence = |e_test and e_train| / |e_train|`` and ``novelty = mean over times t of |e_t - e_before t| / |e_t|``. Where
surprise is low, who remembers pairs ranks well; where it is high, only structure helps. Gaps are told by their burstiness
``B = (s - m) / (s + m)`` (s their deviation, m their mean: -1 a clock, 0 a Poisson process, 1 bursts) and by the correlation of
a gap with the next.

Sources: Poursafaei et al., "Towards Better Evaluation for Dynamic Link Prediction" (NeurIPS 2022), section 4; Goh and Barabási,
"Burstiness and memory in complex systems" (EPL 2008), equations 1 and 2.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.probe import Probe
from latticework.core.result import Findings
from latticework.core.run import Run
from latticework.core.svg import lines
from latticework.core.value import setting
from latticework.data.events import Events

from .stream import cut_by_time

Array = NDArray[Any]
POINTS = 40  # of the curve of gaps


def pair_codes(src: Array, dst: Array, directed: bool = True) -> Array:
    """int64 [m]: a number for each event's pair, equal for equal pairs; undirected: whichever end is the source."""
    low, high = (src, dst) if directed else (np.minimum(src, dst), np.maximum(src, dst))
    span = int(max(src.max(initial=0), dst.max(initial=0))) + 1
    return np.unique(low * span + high, return_inverse=True)[1].reshape(-1)


def first_times(code: Array, t: Array) -> Array:
    """float64 [m]: when each event's code occurred first. t never falls."""
    first = np.full(int(code.max(initial=-1)) + 1, np.inf)
    np.minimum.at(first, code, t)
    return first[code]


def repeats(src: Array, dst: Array, t: Array, directed: bool = True) -> Array:
    """bool [m]: whether the pair met at an earlier time. Events of one time do not see each other."""
    return first_times(pair_codes(src, dst, directed), t) < t


class Surprise(NamedTuple):
    """`surprise`: share of the test pairs that are in no train event; `events`: the same of the test events; `reoccurrence`: share
    of the train pairs that occur in test."""

    surprise: float
    events: float
    reoccurrence: float


def surprise(code: Array, train: Array, test: Array) -> Surprise:
    """code int64 [m] of the pairs, train and test bool [m]. ``ValueError`` where a part has no event."""
    if not (train.any() and test.any()):
        raise ValueError("both parts need an event")
    known, asked = np.unique(code[train]), np.unique(code[test])
    both = len(np.intersect1d(known, asked, assume_unique=True))
    return Surprise(1 - both / len(asked), float((~np.isin(code[test], known)).mean()), both / len(known))


def novelty(code: Array, t: Array) -> float:
    """Mean over the times of the share of a time's distinct pairs that did not occur at an earlier one."""
    if not len(t):
        return float("nan")
    moment = np.unique(t, return_inverse=True)[1].reshape(-1)
    pairs, place = np.unique(moment * (int(code.max()) + 1) + code, return_index=True)  # distinct pairs of each time
    new = first_times(code, t)[place] == t[place]
    at = moment[place]
    return float((np.bincount(at, new) / np.bincount(at)).mean()) if len(pairs) else float("nan")


class Gaps(NamedTuple):
    """Times between an owner's consecutive events: `gap` float64 [g], the owner's first `pairs` of consecutive gaps [2, h]."""

    gap: Array
    pairs: Array

    @property
    def burstiness(self) -> float:
        """(s - m) / (s + m) in -1 .. 1; NaN without a gap above 0."""
        if not len(self.gap) or not self.gap.any():
            return float("nan")
        m, s = self.gap.mean(), self.gap.std()
        return float((s - m) / (s + m))

    @property
    def memory(self) -> float:
        """Correlation of a gap with the owner's next; NaN where either does not vary."""
        if self.pairs.shape[1] < 2 or not np.ptp(self.pairs[0]) or not np.ptp(self.pairs[1]):
            return float("nan")
        return float(np.corrcoef(self.pairs)[0, 1])


def gaps(owner: Array, t: Array) -> Gaps:
    """Gaps of each owner int64 [k] between its consecutive times float64 [k], in any order."""
    order = np.lexsort((t, owner))
    owner, t = owner[order], t[order]
    same = owner[1:] == owner[:-1]
    gap = t[1:] - t[:-1]
    both = same[1:] & same[:-1]
    return Gaps(gap[same], np.stack([gap[:-1][both], gap[1:][both]]))


class TemporalStatistics(Probe):
    """How often pairs repeat, how much of the test part is new, how signs and times drift: what to expect of a stream.

    The parts are the tasks' own, cut by time by shares of the events. A high share of repeats and a low surprise say that
    EdgeBank and recency will be hard to beat; many new nodes say that embeddings by node will not do; a large share of ties
    says that the order within a time is the file's, not the world's. For signed events it says how the share of negative
    ones moves, and how often a pair changes its sign.
    """

    name: ClassVar[str] = "temporal-statistics"
    kinds: ClassVar[tuple[str, ...]] = ("events",)
    train: float = setting(0.70, "share of the events that train", gt=0, lt=1)
    valid: float = setting(0.15, "share of the events that validate; the rest tests", ge=0, lt=1)
    directed: bool = setting(True, "(a, b) and (b, a) are two pairs")
    windows: int = setting(20, "pieces of equal length in events for the curves", ge=1, le=10_000)

    def measure(self, data: Dataset | None, run: Run) -> Findings:
        if data is None:
            raise UserError("temporal-statistics needs events")
        if self.train + self.valid >= 1:
            raise UserError(f"train = {self.train:g} and valid = {self.valid:g} leave nothing to test; together they are below 1")
        events: Events = data.read()
        if not len(events):
            raise UserError("there are no events")
        code = pair_codes(events.src, events.dst, self.directed)
        repeated = first_times(code, events.t) < events.t
        ends = np.stack([events.src, events.dst], 1)
        begun = first_times(ends.ravel(), np.repeat(events.t, 2)).reshape(-1, 2)
        fresh = (begun == events.t[:, None]).any(1)
        scalars: dict[str, Any] = {
            "events": len(events),
            "nodes": events.nodes,
            "distinct pairs": int(code.max()) + 1,
            "repeat rate": float(repeated.mean()),
            "novelty": novelty(code, events.t),
            "reciprocity": self._reciprocity(events),
            "self-loops": float((events.src == events.dst).mean()),
            "share of events with a new node": float(fresh.mean()),
        }
        scalars |= _ties(events.t)
        tables: dict[str, Any] = {"gaps": self._gap_rows(events, code)}
        figures = {
            "along the stream": self._curves(
                {"repeats": repeated, "with a new node": fresh, **({"negative": events.weight < 0} if _signed(events) else {})}
            ),
            "gaps": _gap_figure(events, code),
        }
        for row in tables["gaps"][:2]:
            scalars[f"burstiness {row['of']}"] = row["burstiness"]
        scalars |= self._parts(events, code, tables)
        return Findings(scalars, tables, figures)

    def _reciprocity(self, events: Events) -> float | None:
        """Share of events between two nodes whose reverse took place at an earlier time."""
        loop = events.src == events.dst
        if loop.all():
            return None
        span = events.nodes
        both = np.concatenate([events.src * span + events.dst, events.dst * span + events.src])
        code = np.unique(both, return_inverse=True)[1].reshape(2, -1)
        first = np.full(int(code.max()) + 1, np.inf)
        np.minimum.at(first, code[0], events.t)
        return float((first[code[1]] < events.t)[~loop].mean())

    def _gap_rows(self, events: Events, code: Array) -> list[dict[str, Any]]:
        rows = []
        for name, found in _gaps(events, code).items():
            gap = found.gap
            deciles = [float(q) for q in np.quantile(gap, (0.1, 0.5, 0.9))] if len(gap) else [None] * 3
            rows.append(
                {
                    "of": name, "gaps": len(gap), "share of 0": _number(float((gap == 0).mean()) if len(gap) else np.nan),
                    "10 % below": deciles[0], "median": deciles[1], "90 % below": deciles[2],
                    "mean": _number(gap.mean() if len(gap) else np.nan), "burstiness": _number(found.burstiness),
                    "correlation with the next": _number(found.memory),
                }
            )  # fmt: skip
        return rows

    def _curves(self, marks: dict[str, Array]) -> str:
        series = {}
        for name, mark in marks.items():
            pieces = [p for p in np.array_split(np.arange(len(mark)), self.windows) if len(p)]
            series[name] = [(float(p.mean()), float(mark[p].mean())) for p in pieces]
        return lines(series, "share of the events, along the stream", "event", dots=True)

    def _parts(self, events: Events, code: Array, tables: dict[str, Any]) -> dict[str, Any]:
        shares = [self.train, self.valid, 1 - self.train - self.valid]
        names = ["train", "valid", "test"]
        if not self.valid:
            shares, names = [shares[0], shares[2]], ["train", "test"]
        try:
            ends = cut_by_time(events, shares)
        except UserError as reason:  # the rest can be told of any log
            return {"parts": str(reason)}
        of = np.repeat(np.arange(len(names)), np.diff([0, *ends]))
        train, test = of == 0, of == len(names) - 1
        against = surprise(code, train, test)
        known = np.zeros(events.nodes, bool)
        known[events.src[train]] = known[events.dst[train]] = True
        there = np.unique(np.concatenate([events.src[test], events.dst[test]]))
        found: dict[str, Any] = {
            "surprise": against.surprise,
            "surprise, of events": against.events,
            "surprise against all before test": surprise(code, ~test, test).surprise,
            "reoccurrence": against.reoccurrence,
            "new nodes in test": int((~known[there]).sum()),
            "share of test nodes that are new": float((~known[there]).mean()),
            "share of test events with a node new in test": float((~(known[events.src] & known[events.dst]))[test].mean()),
            "share of test events between two such nodes": float((~(known[events.src] | known[events.dst]))[test].mean()),
        }
        tables["parts"] = [
            {
                "part": name, "events": int((of == k).sum()), "from": float(events.t[of == k][0]), "to": float(events.t[of == k][-1]),
                "pairs": len(np.unique(code[of == k])),
                "nodes": len(np.unique(np.concatenate([events.src[of == k], events.dst[of == k]]))),
                **({"negative": float((events.weight[of == k] < 0).mean())} if _signed(events) else {}),
            }
            for k, name in enumerate(names)
        ]  # fmt: skip
        return found | (self._signs(events, code, train, test) if _signed(events) else {})

    def _signs(self, events: Events, code: Array, train: Array, test: Array) -> dict[str, Any]:
        from scipy.stats import ks_2samp

        assert events.weight is not None
        negative = events.weight < 0
        order = np.lexsort((np.arange(len(code)), code))  # the events of a pair together, in order
        again = code[order][1:] == code[order][:-1]
        turned = (negative[order][1:] != negative[order][:-1])[again]
        drift = float(negative[test].mean() - negative[train].mean())
        return {
            "negative share": float(negative.mean()),
            "negative share in train": float(negative[train].mean()),
            "negative share in test": float(negative[test].mean()),
            "sign drift": drift,
            "distance of weights, train to test (Kolmogorov-Smirnov)": float(
                ks_2samp(events.weight[train], events.weight[test]).statistic
            ),
            "share of repeats with another sign than before": _number(turned.mean() if len(turned) else np.nan),
        }


def _signed(events: Events) -> bool:
    return events.signed and events.weight is not None


def _ties(t: Array) -> dict[str, Any]:
    counts = np.unique(t, return_counts=True)[1]
    return {
        "distinct times": len(counts),
        "share of events with a tied time": float(counts[counts > 1].sum() / len(t)),
        "most events at one time": int(counts.max()),
    }


def _gaps(events: Events, code: Array) -> dict[str, Gaps]:
    loop = events.src == events.dst
    owners = np.concatenate([events.src, events.dst[~loop]])  # a self-loop is one event of its node
    times = np.concatenate([events.t, events.t[~loop]])
    return {
        "of the stream": gaps(np.zeros(len(events), np.int64), events.t),
        "of a node": gaps(owners, times),
        "of a pair": gaps(code, events.t),
    }


def _gap_figure(events: Events, code: Array) -> str:
    series = {}
    for name, found in _gaps(events, code).items():
        gap = np.sort(found.gap[found.gap > 0])
        if len(gap):
            rank = np.unique(np.linspace(0, len(gap) - 1, POINTS).astype(int))
            series[name] = [(float(gap[r]), float(1 - r / len(gap))) for r in rank]
    return lines(series, "share of gaps at least so long", "gap", log=True)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
