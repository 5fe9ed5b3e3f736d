"""Temporal link prediction: whom does a node meet at a time, given all that happened before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part
from latticework.core.value import setting
from latticework.data.events import Events, time_column

from .stream import StreamTask, Walk, batch_ends, read_pairs, schema_at, told_of

Array = NDArray[Any]


class Pairs(NamedTuple):
    """What is asked of a stream model: src int64 [b]; dst int64 [b, c], candidates for each; t float64 [b]."""

    src: Array
    dst: Array
    t: Array


class Truth(NamedTuple):
    """`place` int64 [m]: the column of the true target; `first` int64 [m]: that of the one false target that AP and AUC use.

    `new` bool [m]: whether an end of the event is in no train event.
    """

    place: Array
    first: Array
    new: Array


class TemporalLinkPrediction(StreamTask):
    """Scores for candidate targets of each event, asked before the event is revealed. The headline is average precision.

    The log is cut by time, 70/15/15 of the events; equal times are never cut apart. The task walks it in batches of about
    `ask_at_once` events: a batch is asked from what came before it and then revealed. Each true target stands among false ones at a
    random place: one false target for average precision and AUC (global, over the whole part), `against` for MRR (ties take
    the mean rank).

    `negatives`: ``random`` draws targets among those known by the end of the batch; ``historical`` among the source's earlier
    partners that it does not meet in this batch; ``inductive`` among such partners that it never met in training; where a
    source has none, random ones stand in, and their share is a score of its own. `hidden`: this share of the nodes that
    occur after the training time is taken out of training and validation, so that there are unseen nodes to judge; scores
    stand at nodes seen and new. What hidden nodes did while training lasted is never shown.
    """

    name: ClassVar[str] = "temporal-link-prediction"
    typed: ClassVar[str] = "pairs.csv --at TIME"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("average-precision", "", "higher"),
        Metric("mrr", "", "higher"),
        Metric("auc", "", "higher"),
        Metric("stand-ins", "", "lower"),
    )
    headline_metric: ClassVar[str] = "average-precision"

    negatives: Literal["random", "historical", "inductive"] = setting("random", "among whom the true target must be found")
    hidden_nodes: float = setting(0.1, "share of later nodes kept out of training and validation", ge=0, lt=1)
    ask_at_once: int = setting(200, "events asked at a time", ge=1)
    against: int = setting(10, "false targets beside the true one, for MRR", ge=1, le=10_000)

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "edgebank", "recency"

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.place]

    # -- folds -------------------------------------------------------------------------------------------------------------
    def fold(self, data: Dataset, name: str) -> Fold:
        events: Events = data.read()
        train_end, valid_end, test_end = self.ends_of(events, name)
        final = name == "all"
        rng = np.random.default_rng([0 if final else int(name.rpartition("-")[2]), 0x6C696E6B])
        hidden = np.zeros(events.nodes, bool)
        if self.hidden_nodes and not final:
            later = np.unique(np.concatenate([events.src[train_end:], events.dst[train_end:]]))
            hidden[rng.choice(later, int(self.hidden_nodes * len(later)), replace=False)] = True
        touched = hidden[events.src] | hidden[events.dst]
        train = events.rows(0, train_end)
        train = train.only(~touched[:train_end])
        if not len(train):
            raise UserError("no train event is left once the hidden nodes are out; use -s task.hidden_nodes=0")
        seen = np.zeros(events.nodes, bool)
        seen[train.src] = seen[train.dst] = True
        schema = schema_at(train)
        valid = events.rows(train_end, valid_end).only(~touched[train_end:valid_end])
        return Fold(
            Part(train, None, None, schema),
            self._part(events, valid, events.rows(0, 0), train, seen, 1, rng, schema),
            self._part(events, events.rows(valid_end, test_end), events.rows(train_end, valid_end), train, seen, self.against, rng, schema),
        )  # fmt: skip

    def _part(
        self, whole: Events, events: Events, before: Events, train: Events, seen: Array, against: int, rng: Any, schema: Any
    ) -> Part:
        ends = batch_ends(events.t, self.ask_at_once)
        false, stood_in = self._false(whole, events, ends, train, before, against, rng)
        m, c = len(events), against + 1
        place = rng.integers(c, size=m)
        # the true target goes to its place, the false ones fill the rest in order
        columns = np.broadcast_to(np.arange(c), (m, c))
        dst = np.empty((m, c), np.int64)
        is_true = columns == place[:, None]
        dst[is_true] = events.dst
        dst[~is_true] = false.ravel()
        first = np.where(place == 0, 1, 0)
        truth = Truth(place, first, ~(seen[events.src] & seen[events.dst]))
        return Part(Walk(before, events, ends, {"dst": dst, "stood in": stood_in}), None, truth, schema)

    def _false(
        self, whole: Events, events: Events, ends: Array, train: Events, before: Events, against: int, rng: Any
    ) -> tuple[Array, Array]:
        """(false targets int64 [m, against], bool [m, against]: whether a random one stands in)."""
        m = len(events)
        stood_in = np.zeros((m, against), bool)
        if not m:
            return np.empty((0, against), np.int64), stood_in
        # targets in the order in which they were first met: those known by the end of a batch are the first of them
        earlier = np.concatenate([train.dst, before.dst])
        met = np.concatenate([earlier, events.dst])
        first = np.full(whole.nodes, len(met), np.int64)
        first[met[::-1]] = np.arange(len(met))[::-1]
        order = np.argsort(first, kind="stable")
        place = np.empty(whole.nodes, np.int64)
        place[order] = np.arange(whole.nodes)
        sizes = np.searchsorted(first[order], len(earlier) + ends)  # met before the batch ends
        pool = np.repeat(sizes, np.diff(ends, prepend=0))[:, None]
        if sizes[0] < 2:
            raise UserError("all events go to one target: there is no false one to tell it from")
        # uniform over the pool without the true target: the draw skips its place
        drawn = rng.integers(pool - 1, size=(m, against))
        drawn += drawn >= place[events.dst][:, None]
        false = order[drawn]
        if self.negatives != "random":
            self._partners(events, ends, train, before, false, stood_in, rng)
        return false, stood_in

    def _partners(
        self, events: Events, ends: Array, train: Events, before: Events, false: Array, stood_in: Array, rng: Any
    ) -> None:
        """Put a source's earlier partners in place of random targets, where it has any that it does not meet now."""
        past: dict[int, dict[int, None]] = {}  # source -> partners, in order of first meeting
        trained = set(_pairs_of(train)) if self.negatives == "inductive" else set()

        def tell(pairs: list[tuple[int, int]]) -> None:
            for pair in pairs:
                if pair not in trained:
                    past.setdefault(pair[0], {})[pair[1]] = None

        for part in (train, before):
            tell(_pairs_of(part))
        every, start = _pairs_of(events), 0
        for stop in ends.tolist():
            active = set(every[start:stop])
            for row in range(start, stop):
                source = every[row][0]
                partners = [w for w in past.get(source, ()) if (source, w) not in active]
                if partners:
                    false[row] = np.array(partners)[rng.integers(len(partners), size=false.shape[1])]
                else:
                    stood_in[row] = True
            tell(every[start:stop])
            start = stop

    # -- asking ------------------------------------------------------------------------------------------------------------
    def query_of(self, part: Part, start: int, stop: int) -> Pairs:
        walk: Walk = part.data
        events = walk.events
        dst = walk.asked["dst"][start:stop] if "dst" in walk.asked else events.dst[start:stop, None]
        return Pairs(events.src[start:stop], dst, events.t[start:stop])

    def checked(self, found: Any, part: Part, start: int, stop: int, model: Any) -> Array:
        scores = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found, dtype=np.float64)
        columns = part.data.asked["dst"].shape[1] if "dst" in part.data.asked else 1
        if scores.shape != (stop - start, columns):
            raise UserError(
                f"{model.method.name} gave scores {list(scores.shape)} for {stop - start} events with {columns} candidates each"
            )
        if not np.isfinite(scores).all():
            raise UserError(f"{model.method.name} gave a score that is not finite for an event at {part.data.events.t[start]:g}")
        return scores

    # -- judging -----------------------------------------------------------------------------------------------------------
    def value(self, answer: Any, part: Part, run: Run) -> float | None:
        return _pair_scores(answer, part.truth, np.ones(len(answer), bool), {})[0].value

    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        truth: Truth = part.truth
        scores = _scores(answer, truth, np.ones(len(answer), bool), {})
        for words, rows in (("seen", ~truth.new), ("new", truth.new)):
            scores += _scores(answer, truth, rows, {"slice": "nodes", "nodes": words, "events": int(rows.sum())})
        if self.negatives != "random":
            scores.append(Score("stand-ins", float(part.data.asked["stood in"].mean())))
        return scores

    def write(self, answer: Any, part: Part, to: Path) -> None:
        """CSV: source, target, time, score and, where the score is a logit, probability."""
        import polars as pl

        events: Events = part.data.events
        names = np.array(events.ids, object)
        score = answer[:, 0] if "dst" not in part.data.asked else np.take_along_axis(answer, part.truth.place[:, None], 1)[:, 0]
        columns: dict[str, Any] = {
            "source": names[events.src].tolist(), "target": names[events.dst].tolist(), "time": time_column(events.t), "score": score,
        }  # fmt: skip
        if part.schema.get("logits", True):
            from scipy.special import expit

            columns["probability"] = expit(score)
        write_whole(to, pl.DataFrame(columns).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """A file of scores (source,target[,time],score) against one of truths (source,target[,time],label of 0 or 1)."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        from latticework.data.table import need, numbers

        keys, frame = read_pairs(answers)
        wanted, told = read_pairs(truth)
        y = np.array(told_of(answers, truth, keys, wanted, numbers(truth, told[need(truth, told, "label")]).to_list()))
        if not np.isin(y, (0, 1)).all() or len(np.unique(y)) < 2:
            raise UserError(f"{truth}: column 'label' needs both 1 (it happened) and 0 (it did not) among the answered pairs")
        score = numbers(answers, frame[need(answers, frame, "score", "probability")]).to_numpy()
        return [
            Score("average-precision", float(average_precision_score(y, score))),
            Score("auc", float(roc_auc_score(y, score))),
        ]


def _pairs_of(events: Events) -> list[tuple[int, int]]:
    return list(zip(events.src.tolist(), events.dst.tolist(), strict=True))


def _pair_scores(answer: Array, truth: Truth, rows: Array, at: Mapping[str, Any]) -> list[Score]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    if not rows.any():
        why = "no event of this kind"
        return [Score("average-precision", None, at, why), Score("auc", None, at, why)]
    at_row = np.flatnonzero(rows)
    true, false = answer[at_row, truth.place[at_row]], answer[at_row, truth.first[at_row]]
    y = np.repeat([1, 0], len(at_row))
    both = np.concatenate([true, false])
    return [
        Score("average-precision", float(average_precision_score(y, both)), at),
        Score("auc", float(roc_auc_score(y, both)), at),
    ]


def _scores(answer: Array, truth: Truth, rows: Array, at: Mapping[str, Any]) -> list[Score]:
    found = _pair_scores(answer, truth, rows, at)
    if rows.any():
        at_row = np.flatnonzero(rows)
        true = answer[at_row, truth.place[at_row]][:, None]
        above, equal = (answer[at_row] > true).sum(1), (answer[at_row] == true).sum(1) - 1
        found.insert(1, Score("mrr", float((1 / (1 + above + equal / 2)).mean()), at))
    return found
