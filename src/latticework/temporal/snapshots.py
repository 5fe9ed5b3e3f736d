"""Snapshot prediction: a log of events is cut into windows of time, and each window is asked before it is revealed.

Three things may be asked of the next window: which pairs will be linked (among all pairs), which class the links of the
window have, and which class its nodes have. The window belongs to the task, so every method sees the same snapshots.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numba
import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Model
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query
from latticework.core.value import Value, setting
from latticework.data.events import Events, match_schema, matched, weights_of
from latticework.data.table import is_number

from .stream import StreamTask, read_pairs, schema_at, told_of

Array = NDArray[Any]
BLOCK = 1 << 20  # scores of a block: 4 MiB of them
LARGEST_CLASS = 1 << 24  # of a column in single precision: whole numbers are exact up to here
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
PAST = ("snapshot", "map", "map of recency", "mrr", "mrr of recency")  # columns of what is said of past windows
LINKS, EDGES, NODES = "next-links", "edge-class", "node-class"


def seconds_of(text: Any) -> Any:
    """A span of time as a number: ``2d``, ``6h``, ``30m``, ``90s``, ``1w``, or a number in the log's own unit."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", text) if isinstance(text, str) else None
    return float(found[1]) * UNITS[found[2]] if found else text


Span = Annotated[float | Literal["auto"], BeforeValidator(seconds_of)]


# -- cutting -------------------------------------------------------------------------------------------------------------
def windows_of(t: Array, origin: float, window: float) -> Array:
    """int64: the window of each time, ``floor((t - origin) / window)``. ``ValueError`` for a time before the origin."""
    if not window > 0:
        raise ValueError(f"a window must be > 0, is {window}")
    found = np.floor((np.asarray(t, np.float64) - origin) / window).astype(np.int64)
    if len(found) and found.min() < 0:
        raise ValueError(f"a time {float(np.min(t)):.17g} lies before the first window, which begins at {origin:.17g}")
    return found


@dataclass(frozen=True)
class Windows:
    """What the task walks: `before` is revealed first; then `events`, window after window.

    `windows` int64 [k] are the numbers of the asked windows and `ends` int64 [k] how many of the events they end after; a
    window without events ends where the one before does. `rows` int64 [k]: how many rows of the answer each window has.
    """

    before: Events
    events: Events
    windows: Array
    ends: Array
    rows: Array
    close: Array  # float64 [k]: when each window ends
    known: Array  # int64 [k]: how many nodes are known by its end
    revealed: bool = True  # False: a user's events, whose classes are not told

    @property
    def times(self) -> Array:
        """float64: for each row of the answer, the end of its window: all that it rests on lies before."""
        return np.repeat(self.close, self.rows)


class LinkBlock(NamedTuple):
    """Asked: how likely is each of `src` int64 [b] linked to each of nodes 0 .. nodes - 1 in a window? -> float [b, nodes]."""

    window: int
    src: Array
    nodes: int


class ClassQuery(NamedTuple):
    """Asked: the class of some links or nodes of a window whose links are seen, and their classes are not -> float [q, C].

    `src`, `dst` int64 [e]: the ends of all events of the window. `rows` int64 [2, q] (pairs) or [q] (nodes).
    """

    window: int
    src: Array
    dst: Array
    rows: Array


class Truth(NamedTuple):
    """`pairs` int64 [2, q] or nodes int64 [q]; `y` int64 [q], their classes (1 for links); `window` int64 [q]."""

    rows: Array
    y: Array
    window: Array


class SnapshotQuery(Query):
    """How many of the likeliest links are written; a file of pairs is scored pair by pair."""

    name: ClassVar[str] = "snapshot"
    top: int = setting(100, "how many links of the next window, the likeliest first", ge=1)


class Wanted(NamedTuple):
    """What a user asks of the next window: the `top` links, or the pairs int64 [2, q] of a file."""

    window: int
    nodes: int
    top: int
    pairs: Array | None
    ids: tuple[str, ...]


# -- the task ------------------------------------------------------------------------------------------------------------
class SnapshotPrediction(StreamTask):
    """What the next window of a log holds, asked before it is revealed. Snapshots are cut by the task.

    The log is cut into windows ``floor((t - first) / window)``. `target`:

    - ``next-links``: the pairs that meet in the next window, among ALL pairs of nodes known by its end (a node's pair with
      itself left out), both directions unless `directed`. The headline is MAP, the mean over windows of the average
      precision; MRR is the mean reciprocal rank of a source's links in its row, averaged over sources, then windows. Ties
      count as one threshold (AP) or take their mean rank (MRR). All pairs go by in blocks; none is kept but the counts.
    - ``edge-class``: whether more of a pair's ratings in the window are positive than negative (signed events); the links of
      the window are seen, their signs are not. The headline is F1 of the class that is rarer in training.
    - ``node-class``: the class of each source in the window, which the event column `class_column` says (its last event counts).

    The first `train` of the windows train, the next `valid` validate, the rest tests. A window without events is asked (a
    model must bear it) and not judged. Scores stand at snapshot and class too.
    """

    name: ClassVar[str] = "snapshot-prediction"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("map", "", "higher"),
        Metric("mrr", "", "higher"),
        Metric("minority-f1", "", "higher"),
        Metric("class-f1", "", "higher"),
        Metric("accuracy", "", "higher"),
    )
    Query: ClassVar[type[Value]] = SnapshotQuery

    target: Literal["next-links", "edge-class", "node-class"] = setting(LINKS, "what is asked of the next window")
    window: Span = setting("auto", "length of a window: 2d, 6h, or a number in the log's unit; auto: a 90th of the log")
    history: int = setting(10, "snapshots that a method may look at, besides the latest", ge=0, le=1000)
    train: float = setting(0.71, "share of the windows that trains", gt=0, lt=1)
    valid: float = setting(0.10, "share that validates; the rest tests", gt=0, lt=1)
    directed: bool = setting(False, "next-links: a pair has a direction")
    class_column: str = setting("label", "node-class: the event column that says the class of the event's source")

    @property
    def headline_metric(self) -> str:  # type: ignore[override]
        return "map" if self.target == LINKS else "minority-f1"

    def shares(self) -> tuple[float, ...]:
        return self.train, self.valid, 1 - self.train - self.valid

    def for_data(self, data: Dataset) -> Self:
        if self.train + self.valid >= 1:
            raise UserError(f"train {self.train:g} and valid {self.valid:g} leave no windows to test; together they must be < 1")
        if self.window != "auto":
            if self.window <= 0:  # type: ignore[operator]
                raise UserError(f"task.window must be above 0, is {self.window:g}; write 2d, 6h, 90s or a number")
            return self
        facts = data.facts()
        span = float(facts["last time"]) - float(facts["first time"])
        if not span > 0:
            raise UserError("all events have one time: there are no snapshots to cut")
        return self.but(window=float(f"{span / 89.5:.4g}"))

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return ("repeat-last", "recency-decay") if self.target == LINKS else ("snapshot-majority", "snapshot-logistic")

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.rows, test.truth.window] if self.target == LINKS else [test.truth.y]

    # -- folds -------------------------------------------------------------------------------------------------------------
    def fold(self, data: Dataset, name: str) -> Fold:
        task = self.for_data(data)
        events: Events = data.read()
        assert isinstance(task.window, float)
        origin = float(events.t[0])
        number = windows_of(events.t, origin, task.window)
        count = int(number[-1]) + 1
        if count < self.history + 3:
            raise UserError(
                f"windows of {task.window:g} cut the log into {count} snapshots; a history of {self.history} needs at least "
                f"{self.history + 3}: use a shorter task.window or a smaller task.history"
            )
        last = count - 1
        if name == "all":  # a model for use: the last windows only choose the epoch
            cuts = [max(math.floor(last * (1 - self.valid)), 0), last, last]
        else:
            cuts = [math.floor(last * self.train), math.floor(last * (self.train + self.valid) + 1e-9), last]
        if cuts[0] < self.history + 1 or cuts[1] <= cuts[0] or (name != "all" and cuts[2] <= cuts[1]):
            raise UserError(
                f"{count} snapshots give {cuts[0] + 1} to train, {cuts[1] - cuts[0]} to validate, {cuts[2] - cuts[1]} to test; a "
                f"history of {self.history} needs {self.history + 2} to train and one each: use a shorter task.window"
            )
        ends = np.searchsorted(number, np.arange(count), side="right")
        trained = events.rows(0, int(ends[cuts[0]]))
        schema = {**schema_at(trained), **task.facts_of(trained, number[: len(trained)])}
        schema |= {"origin": origin, "window": task.window, "history": self.history, "target": self.target,
                   "directed": self.directed, "class_column": self.class_column, "windows": cuts[0] + 1}  # fmt: skip
        valid = task.part(events, number, ends, cuts[0] + 1, cuts[1] + 1, cuts[0] + 1, schema)
        test = task.part(events, number, ends, cuts[1] + 1, cuts[2] + 1, cuts[0] + 1, schema)
        return Fold(Part(trained, None, None, schema), valid, test)

    def facts_of(self, train: Events, number: Array) -> dict[str, Any]:
        """Classes and the rarest of them, from the train windows."""
        if self.target == LINKS:
            return {"classes": [], "minority": 0}
        if self.target == EDGES:
            if not train.signed:
                raise UserError("edge-class asks for the sign of links, and these events have none; give a column 'sign'")
            classes = ["negative", "positive"]
        else:
            classes = [class_name(c) for c in np.unique(_label_column(train, self.class_column))]
        schema = {"target": self.target, "class_column": self.class_column, "classes": classes}
        y = np.concatenate([truth_of(train.rows(a, b), schema)[1] for a, b in runs_of(number)])
        counts = np.bincount(y, minlength=len(classes))
        if (counts == 0).any() or len(classes) < 2:
            missing = [c for c, k in zip(classes, counts, strict=True) if not k]
            found = f"no {missing[0]} one" if missing else f"one class only ({classes[0]!r})"
            raise UserError(
                f"the train windows have {found} among {len(y)} labels; at least two classes must be seen in training"
            )
        return {"classes": classes, "minority": int(counts.argmin())}

    def part(
        self, events: Events, number: Array, ends: Array, first: int, stop: int, seen: int, schema: Mapping[str, Any]
    ) -> Part:
        """Windows `first` to `stop`, asked by a walk from the end of window `seen` - 1."""
        begin, start = int(ends[seen - 1]), int(ends[first - 1])
        rows, y, at = [], [], []
        for w in range(first, stop):
            found, labels = truth_of(events.rows(int(ends[w - 1]), int(ends[w])), schema)
            rows.append(found)
            y.append(labels)
            at.append(len(labels))
        truth = Truth(
            np.concatenate(rows, axis=-1) if rows else np.zeros((2, 0), np.int64),
            np.concatenate(y) if y else np.zeros(0, np.int64),
            np.repeat(np.arange(first, stop), at),
        )
        walk = Windows(
            events.rows(begin, start), events.rows(start, int(ends[stop - 1])), np.arange(first, stop), ends[first:stop] - start,
            np.array(at, np.int64), schema["origin"] + (np.arange(first, stop) + 1) * schema["window"],
            events.known[ends[first:stop]],
        )  # fmt: skip
        return Part(walk, None, truth, schema)

    # -- asking ------------------------------------------------------------------------------------------------------------
    def query_of(self, part: Part, start: int, stop: int) -> Any:
        """The question about the window of event `start`; of links, a block of all sources."""
        walk: Windows = part.data
        k = int(np.searchsorted(walk.ends, start, side="right"))
        return self._asked(walk, k, part.schema, None)

    def _asked(self, walk: Windows, k: int, schema: Mapping[str, Any], src: Array | None) -> Any:
        window, stop = int(walk.windows[k]), int(walk.ends[k])
        start = int(walk.ends[k - 1]) if k else 0
        if self.target == LINKS:
            nodes = int(walk.known[k])
            return LinkBlock(window, np.arange(nodes) if src is None else src, nodes)
        events = walk.events.rows(start, stop)
        return ClassQuery(window, events.src, events.dst, rows_of(events, schema))

    def answer(self, model: Any, part: Part, run: Run) -> Array:
        """Links: for each true link its score, and how many pairs stand above it and level with it, among all and in its row
        (float64 [q, 5]); classes: probabilities [q, C]. A user's question: (source, target, score), or scores."""
        walk: Windows = part.data
        walker = copy.deepcopy(model)
        if len(walk.before):
            walker.observe(walk.before)
        if isinstance(part.query, Wanted):
            return _wanted(walker, part.query, self.directed)
        found, start = [], 0
        for k, stop in enumerate(walk.ends.tolist()):
            events = walk.events.rows(start, stop)
            if self.target == LINKS:
                found.append(
                    rank_all(walker, int(walk.windows[k]), truth_of(events, part.schema)[0], int(walk.known[k]), part.schema)
                )
            else:
                query = self._asked(walk, k, part.schema, None)
                asked = Part(None, query, None, part.schema)
                found.append(_chances(walker.predict(asked), query, model, part.schema))
            if walk.revealed and len(events) and k + 1 < len(walk.ends):
                walker.observe(events)
            start = stop
        width = 5 if self.target == LINKS else len(part.schema["classes"])
        return np.concatenate(found) if found else np.zeros((0, width))

    def ask(self, data: Dataset | None, query: Any, schema: Mapping[str, Any]) -> Part:
        assert data is not None
        nodes = list(schema["nodes"])
        empty = Events(tuple(nodes), *(np.zeros(0, np.int64),) * 2, np.zeros(0))
        pairs: Array | None = None
        latest = float(schema["latest"])
        if data.kind == "graph":
            graph = data.read()
            asked = matched(Events(graph.ids, *graph.edge_index, np.zeros(graph.edge_index.shape[1])), nodes)
            if self.target != LINKS:
                raise UserError(f"{self.target} is asked of events: give source, target and time of the links in question")
            new, pairs, ids = empty, np.stack([asked.src, asked.dst]), asked.ids
        elif self.target == LINKS:
            new = match_schema(data.read(), schema)
            new = new.only(new.t > latest)  # the log of the fit may be given again: what is known is left out
            ids = new.ids
        else:
            asked = matched(data.read(), nodes)
            asked = asked.only(asked.t > latest)
            if not len(asked):
                raise UserError(f"all events of the file were seen by the model (up to {latest:.17g}); give those that are asked")
            number = windows_of(asked.t, schema["origin"], schema["window"])
            windows, counts = np.unique(number, return_counts=True)
            ends = np.cumsum(counts)
            starts = ends - counts
            rows = np.array([rows_of(asked.rows(a, b), schema).shape[-1] for a, b in zip(starts, ends, strict=True)], np.int64)
            close = schema["origin"] + (windows + 1) * schema["window"]
            return Part(Windows(empty, asked, windows, ends, rows, close, asked.known[ends], False), None, None, schema)
        last = float(new.t[-1]) if len(new) else latest
        window = int(windows_of(np.array([last]), schema["origin"], schema["window"])[0]) + 1
        none = np.zeros(0, np.int64)
        wanted = Wanted(window, len(ids), query.top, pairs, tuple(ids))
        return Part(Windows(new, empty, none, none, none, np.zeros(0), none), wanted, None, schema)

    # -- judging -----------------------------------------------------------------------------------------------------------
    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        truth: Truth = part.truth
        if self.target == LINKS:
            return _link_scores(answer, truth)
        return _class_scores(answer, truth, part.schema)

    def write(self, answer: Any, part: Part, to: Path) -> None:
        """CSV. Links: source, target, score (and, beside it, how past windows were scored, with the recency baseline's).
        Classes: source, target, time of the window, prediction, and ``p(class)`` each."""
        import polars as pl

        if isinstance(part.query, Wanted):
            ids = np.array(part.query.ids, object)
            u, v = part.query.pairs if part.query.pairs is not None else answer[:, :2].astype(np.int64).T
            score = answer if part.query.pairs is not None else answer[:, 2]
            frame = pl.DataFrame({"source": ids[u].tolist(), "target": ids[v].tolist(), "score": score})
            write_whole(to, frame.write_csv())
            if part.schema.get("past"):
                write_whole(
                    to.with_name(f"{to.stem}-past-windows.csv"), pl.DataFrame(part.schema["past"]).select(PAST).write_csv()
                )
            return
        walk: Windows = part.data
        names = np.array(walk.events.ids, object)
        starts = np.concatenate([[0], walk.ends[:-1]])
        asked = [rows_of(walk.events.rows(a, b), part.schema) for a, b in zip(starts, walk.ends, strict=True)]
        rows = np.concatenate(asked, axis=-1)
        classes = part.schema["classes"]
        columns: dict[str, Any] = {}
        if self.target == EDGES:
            columns |= {"source": names[rows[0]].tolist(), "target": names[rows[1]].tolist()}
        else:
            columns |= {"id": names[rows].tolist()}
        columns["window begins"] = np.repeat(walk.close - part.schema["window"], walk.rows)
        columns["prediction"] = [classes[c] for c in answer.argmax(1)]
        columns |= {f"p({name})": answer[:, c] for c, name in enumerate(classes)}
        write_whole(to, pl.DataFrame(columns).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """Links: scored pairs against the pairs that met; a pair that met and was not scored is missed. Classes: column
        'prediction' against column 'label' (or 'sign') of the same pairs."""
        from latticework.data.table import column_named, need, numbers

        (keys, frame), (wanted, told) = (
            _rows_of(path) if self.target == NODES else read_pairs(path) for path in (answers, truth)
        )
        if self.target != LINKS or column_named(frame, "prediction"):
            from sklearn.metrics import accuracy_score, f1_score

            label = column_named(told, "label")
            if label is not None:
                words = told[label].to_list()
            else:
                need(truth, told, "sign", "weight")
                words = ["negative" if sign < 0 else "positive" for sign in weights_of(truth, told)[0].tolist()]  # type: ignore[union-attr]
            said = frame[need(answers, frame, "prediction")].to_list()
            if all(is_number(word) and math.isfinite(float(word)) for word in (*said, *words)):  # 1 and 1.0 are one class
                said, words = ([class_name(float(word)) for word in column] for column in (said, words))
            true = told_of(answers, truth, [k[:2] for k in keys], [k[:2] for k in wanted], words)
            rarest = min(sorted(set(true)), key=true.count)
            f1 = f1_score(true, said, labels=[rarest], average="macro", zero_division=0)
            return [Score("minority-f1", float(f1)), Score("accuracy", float(accuracy_score(true, said)))]
        met = {k[:2] for k in wanted if k[0] != k[1]}  # a node's pair with itself is never asked
        if not self.directed:
            met |= {(v, u) for u, v in met}
        score = numbers(answers, frame[need(answers, frame, "score")]).to_numpy()
        hit = np.array([k[:2] in met for k in keys])
        if not hit.any():
            return [Score("map", 0.0)]
        at = score[hit]
        reached = np.searchsorted(np.sort(-score), -at, side="right")
        found = np.searchsorted(np.sort(-at), -at, side="right")
        missing = len(met) // (1 if self.directed else 2)
        return [Score("map", float((found / reached).sum() / max(missing, int(hit.sum()))))]


def _rows_of(path: Path) -> Any:
    """A table of answers or truths about nodes, keyed by id: (keys, frame)."""
    from latticework.data.table import need, read_table

    frame = read_table(path)
    return [(name,) for name in frame[need(path, frame, "id", "node")].to_list()], frame


def runs_of(number: Array) -> Iterator[tuple[int, int]]:
    """(start, stop) of the events of each window that has any."""
    bounds = np.flatnonzero(np.diff(number)) + 1
    yield from zip([0, *bounds.tolist()], [*bounds.tolist(), len(number)], strict=True)


def _label_column(events: Events, label: str) -> Array:
    if label not in events.features:
        known = ", ".join(events.features) or "none"
        raise UserError(f"node-class needs an event column {label!r} with the source's class; the events' columns are: {known}")
    assert events.x is not None
    found = events.x[:, events.features.index(label)]
    if np.abs(found).max(initial=0) > LARGEST_CLASS:
        raise UserError(
            f"column {label!r} has the class {class_name(found[np.abs(found).argmax()])}; codes of classes go up to {LARGEST_CLASS}, "
            "beyond which neighbours would be one: number the classes from 0"
        )
    return found


def class_name(value: Any) -> str:
    """A class as text: the shortest number that reads back as the same float32."""
    return f"{value:.0f}" if value == round(value) else str(np.float32(value))


def rows_of(events: Events, schema: Mapping[str, Any]) -> Array:
    """What is asked of a window's events: distinct pairs int64 [2, q], or distinct sources int64 [q]; a link of a node with
    itself is not asked. Links are asked in both directions unless they have one."""
    if schema["target"] == NODES:
        return np.unique(events.src)
    u, v = events.src, events.dst
    if schema["target"] == LINKS and not schema["directed"]:
        u, v = np.concatenate([u, v]), np.concatenate([v, u])
    return distinct_pairs(u, v)


def distinct_pairs(u: Array, v: Array) -> Array:
    """int64 [2, q]: the pairs of two different nodes, each once, in order."""
    keep = u != v
    n = int(max(u.max(initial=0), v.max(initial=0))) + 1
    return np.stack(np.divmod(np.unique(u[keep] * n + v[keep]), n))


def truth_of(events: Events, schema: Mapping[str, Any]) -> tuple[Array, Array]:
    """(what is asked, its classes int64 [q]) of one window's events."""
    rows = rows_of(events, schema)
    if schema["target"] == LINKS:
        return rows, np.ones(rows.shape[1], np.int64)
    if schema["target"] == NODES:
        label = _label_column(events, schema["class_column"])
        known = np.array([float(c) for c in schema["classes"]], np.float32)
        last = dict(zip(events.src.tolist(), label.tolist(), strict=True))  # the last event of each source
        value = np.array([last[u] for u in rows.tolist()], np.float32)
        y = np.searchsorted(known, value).clip(max=len(known) - 1)
        strange = np.flatnonzero(known[y] != value) if len(value) else []
        if len(strange):
            raise UserError(
                f"node {events.ids[rows[strange[0]]]!r} has class {class_name(value[strange[0]])}, which no train window has "
                f"({', '.join(schema['classes'])}); give a larger task.train, or leave it out"
            )
        return rows, y.astype(np.int64)
    return rows, (_balance(events, rows) > 0).astype(np.int64)


def _balance(events: Events, pairs: Array) -> Array:
    """Positive minus negative ratings of each of the sorted distinct pairs."""
    assert events.weight is not None
    keep = events.src != events.dst
    code = events.src[keep] * events.nodes + events.dst[keep]
    place = np.searchsorted(pairs[0] * events.nodes + pairs[1], code)
    return np.bincount(place, np.sign(events.weight[keep]), minlength=pairs.shape[1])


# -- all pairs -----------------------------------------------------------------------------------------------------------
@numba.njit(cache=True)
def _count(block: Array, src: Array, levels: Array, above: Array, level: Array) -> None:  # pragma: no cover - compiled
    """Adds to above[k], level[k] how many scores of a block lie between levels k - 1 and k (not at k - 1) and at level k.

    above[k]: scores s with levels[k - 1] < s < levels[k]; above[K]: beyond the last. A node's pair with itself is left out.
    """
    K = levels.shape[0]
    for i in range(block.shape[0]):
        own = src[i]
        for j in range(block.shape[1]):
            if j == own:
                continue
            s = block[i, j]
            if s < levels[0]:
                above[0] += 1
                continue
            low, high = 0, K
            while low < high:
                middle = (low + high) // 2
                if levels[middle] < s:
                    low = middle + 1
                else:
                    high = middle
            if low < K and levels[low] == s:
                level[low] += 1
            else:
                above[low] += 1


def _blocks(sources: Array, nodes: int) -> Iterator[Array]:
    size = max(BLOCK // max(nodes, 1), 1)
    for a in range(0, len(sources), size):
        yield sources[a : a + size]


def _block(model: Any, window: int, src: Array, nodes: int, schema: Mapping[str, Any]) -> Array:
    found = np.asarray(model.predict(Part(None, LinkBlock(window, src, nodes), None, schema)), dtype=np.float32)
    if found.shape != (len(src), nodes):
        raise UserError(f"{model.method.name} gave scores {list(found.shape)} for {len(src)} sources and {nodes} targets")
    if not np.isfinite(found).all():
        raise UserError(f"{model.method.name} gave a score that is not finite for window {window}")
    return np.ascontiguousarray(found)


def rank_all(model: Any, window: int, pairs: Array, nodes: int, schema: Mapping[str, Any]) -> Array:
    """float64 [q, 5] for the true pairs int64 [2, q]: score, pairs above, pairs level (itself too), and both in its row.

    All pairs of nodes 0 .. nodes - 1 go by in blocks of sources, twice where a source has a true link: first to learn the
    true scores, then to count. The same block is asked both times, so that a score has the same bits.
    """
    out = np.zeros((pairs.shape[1], 5))
    has = np.zeros(nodes, bool)
    has[pairs[0]] = True
    # sources with a true link come first, so that few blocks are asked twice
    blocks = list(_blocks(np.argsort(~has, kind="stable"), nodes))
    if not pairs.shape[1]:
        if len(blocks):
            _block(model, window, blocks[0], nodes, schema)  # an empty window must be borne, and has nothing to count
        return out
    by_source = np.argsort(pairs[0], kind="stable")
    starts = np.searchsorted(pairs[0][by_source], np.arange(nodes + 1))
    for src in blocks:
        if not has[src].any():
            break
        block = _block(model, window, src, nodes, schema)
        for i, u in enumerate(src.tolist()):
            mine = by_source[starts[u] : starts[u + 1]]
            if len(mine):
                row, own = block[i], block[i, pairs[1][mine]]
                beyond = row[:, None] > own
                same = row[:, None] == own
                out[mine, 0] = own
                out[mine, 3] = beyond.sum(0) - (row[u] > own)
                out[mine, 4] = same.sum(0) - (row[u] == own)
    levels, place = np.unique(out[:, 0].astype(np.float32), return_inverse=True)
    above, level = np.zeros(len(levels) + 1, np.int64), np.zeros(len(levels), np.int64)
    for src in blocks:
        _count(_block(model, window, src, nodes, schema), src, levels, above, level)
    beyond = (np.cumsum(above[::-1])[::-1][1:]) + np.append(np.cumsum(level[::-1])[::-1][1:], 0)
    out[:, 1], out[:, 2] = beyond[place], level[place]
    return out


def average_precision(above: Array, level: Array) -> float:
    """AP of one ranking from counts alone: for each true item, how many of all stand above it and level with it.

    The precision at a true item's threshold is (true ones at or above it) / (all at or above it); ties are one threshold, as
    scikit-learn's ``average_precision_score`` has it.
    """
    reached = above + level
    order = np.sort(reached)
    return float((np.searchsorted(order, reached, side="right") / reached).mean())


def mean_reciprocal_rank(source: Array, above: Array, level: Array) -> float:
    """Mean over sources of the mean of 1 / rank of its true links; ties take the mean of their ranks."""
    _, at = np.unique(source, return_inverse=True)
    inverse = 1 / (1 + above + (level - 1) / 2)
    return float((np.bincount(at, inverse) / np.bincount(at)).mean())


def _link_scores(answer: Array, truth: Truth) -> list[Score]:
    windows = np.unique(truth.window)
    if not len(windows):
        why = "no window has a link"
        return [Score("map", None, why=why), Score("mrr", None, why=why)]
    each = []
    for w in windows.tolist():
        rows = truth.window == w
        found = answer[rows]
        ap = average_precision(found[:, 1], found[:, 2])
        rr = mean_reciprocal_rank(truth.rows[0][rows], found[:, 3], found[:, 4])
        each.append((w, int(rows.sum()), ap, rr))
    scores = [
        Score("map", float(np.mean([e[2] for e in each]))),
        Score("mrr", float(np.mean([e[3] for e in each]))),
    ]
    for w, links, ap, rr in each:
        at = {"slice": "snapshot", "snapshot": w, "links": links}
        scores += [Score("map", ap, at), Score("mrr", rr, at)]
    return scores


def _class_scores(answer: Array, truth: Truth, schema: Mapping[str, Any]) -> list[Score]:
    from sklearn.metrics import accuracy_score, f1_score

    classes, rare = schema["classes"], int(schema["minority"])
    if not len(truth.y):
        return [Score("minority-f1", None, why="no window has a label")]
    said = answer.argmax(1)
    each = f1_score(truth.y, said, labels=range(len(classes)), average=None, zero_division=0)
    scores = [Score("minority-f1", float(each[rare])), Score("accuracy", float(accuracy_score(truth.y, said)))]
    for c, name in enumerate(classes):
        scores.append(Score("class-f1", float(each[c]), {"class": name, "share": float((truth.y == c).mean())}))
    for w in np.unique(truth.window).tolist():
        rows = truth.window == w
        at = {"slice": "snapshot", "snapshot": w, "class": classes[rare], "of the class": int((truth.y[rows] == rare).sum())}
        if (truth.y[rows] == rare).any() or (said[rows] == rare).any():
            value = f1_score(truth.y[rows], said[rows], labels=[rare], average="macro", zero_division=0)
            scores.append(Score("minority-f1", float(value), at))
    return scores


def _chances(found: Any, query: ClassQuery, model: Any, schema: Mapping[str, Any]) -> Array:
    chances = np.asarray(found, dtype=np.float64)
    expected = (query.rows.shape[-1], len(schema["classes"]))
    if chances.shape != expected:
        raise UserError(f"{model.method.name} gave {list(chances.shape)} instead of class probabilities {list(expected)}")
    if not np.isfinite(chances).all():
        raise UserError(f"{model.method.name} gave a value that is not finite for window {query.window}")
    return chances


def _wanted(model: Any, wanted: Wanted, directed: bool) -> Array:
    """The top links (source, target, score) float64 [N, 3], the likeliest first; or the scores [q] of given pairs."""
    if wanted.pairs is not None:
        scores = np.zeros(wanted.pairs.shape[1])
        sources, at = np.unique(wanted.pairs[0], return_inverse=True)
        for src in _blocks(sources, wanted.nodes):
            block = _block(model, wanted.window, src, wanted.nodes, model.schema)
            rows = np.flatnonzero((at >= np.searchsorted(sources, src[0])) & (at <= np.searchsorted(sources, src[-1])))
            scores[rows] = block[at[rows] - np.searchsorted(sources, src[0]), wanted.pairs[1][rows]]
        return scores
    best = np.zeros((0, 3))
    for src in _blocks(np.arange(wanted.nodes), wanted.nodes):
        block = _block(model, wanted.window, src, wanted.nodes, model.schema)
        block[np.arange(len(src)), src] = -np.inf
        keep = min(2 * wanted.top, block.size)  # both directions of a pair may be among them
        flat = np.argpartition(-block.ravel(), keep - 1)[:keep]
        found = np.stack([src[flat // wanted.nodes], flat % wanted.nodes, block.ravel()[flat]], 1)
        if not directed:
            found[:, :2].sort(axis=1)
        best = np.concatenate([best, found[np.isfinite(found[:, 2])]])
        best = best[np.lexsort((best[:, 1], best[:, 0], -best[:, 2]))]
        if not directed:
            _, first = np.unique(best[:, :2], axis=0, return_index=True)
            best = best[np.sort(first)]
        best = best[: wanted.top]
    return best


# -- what models of snapshots share --------------------------------------------------------------------------------------
class SnapshotModel(Model):
    """A model that keeps the events of the latest ``history + 1`` windows; older ones are let go. How events are cut into
    chunks does not matter. Subclasses give `link_scores` and, or, `class_scores`; neither may change anything that counts.
    """

    def __init__(self, method: Any, schema: Mapping[str, Any]) -> None:
        self.method, self.schema = method, schema
        self.kept = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64))
        self._cache: dict[Any, Any] = {}

    def observe(self, new: Events) -> None:
        if not len(new):
            return
        number = windows_of(new.t, self.schema["origin"], self.schema["window"])
        columns = [np.concatenate([a, b]) for a, b in zip(self.kept, (number, new.src, new.dst), strict=True)]
        keep = columns[0] >= columns[0][-1] - self.schema["history"]
        self.kept = (columns[0][keep], columns[1][keep], columns[2][keep])
        self._cache = {}

    def links(self, window: int) -> tuple[Array, Array]:
        """The ends (source, target) of a kept window's events; empty where there are none."""
        a, b = np.searchsorted(self.kept[0], [window, window + 1])
        return self.kept[1][a:b], self.kept[2][a:b]

    def cached(self, key: Any, make: Any) -> Any:
        """What `make` computes, kept until something is observed."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def predict(self, part: Part) -> Array:
        if isinstance(part.query, LinkBlock):
            return self.link_scores(part.query)
        return self.class_scores(part.query)

    def link_scores(self, query: LinkBlock) -> Array:
        raise UserError(f"{self.method.name} predicts no links; use it with task.target=edge-class or node-class")

    def class_scores(self, query: ClassQuery) -> Array:
        raise UserError(f"{self.method.name} predicts links alone; use it with task.target=next-links")

    def __deepcopy__(self, memo: Any) -> Self:
        """What a walk may change is copied; weights are shared, for predicting changes none."""
        other = copy.copy(self)
        other._cache = {}
        other.schema = dict(self.schema)
        return other

    def state(self) -> Mapping[str, Any]:
        import torch

        return {f"kept.{name}": torch.from_numpy(v) for name, v in zip(("window", "src", "dst"), self.kept, strict=True)}

    def restored(self, state: Mapping[str, Any]) -> Self:
        """Takes the kept events from a state."""
        self.kept = tuple(state[f"kept.{name}"].numpy().astype(np.int64) for name in ("window", "src", "dst"))  # type: ignore[assignment]
        return self

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema).restored(state)
