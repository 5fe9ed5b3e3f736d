"""Walking a stream: what all tasks on events share. The task asks a batch from the state before it, then reveals it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.method import Stream
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, setting
from latticework.data.events import SORTED, Events, match_schema, moment, schema_of
from latticework.data.table import is_number

Array = NDArray[Any]


@dataclass(frozen=True)
class Walk:
    """What a task walks: `before` is revealed first; then `events`, in batches that end at `ends`, asked before each.

    A method gets a batch's query alone. `asked` holds what the queries are made of, row by row of `events`.
    """

    before: Events
    events: Events
    ends: Array
    asked: Mapping[str, Array] = field(default_factory=dict)

    @property
    def times(self) -> Array:
        """float64: when each row of the answer is asked."""
        return self.events.t


def cut_by_time(events: Events, shares: Sequence[float]) -> list[int]:
    """Where the parts end, as numbers of events: shares of the events, moved back so that equal times are never cut apart."""
    m = len(events)
    ends, at = [], 0.0
    for share in shares[:-1]:
        at += share
        row = min(round(at * m), m - 1)
        ends.append(int(np.searchsorted(events.t, events.t[row])))
    ends.append(m)
    sizes = np.diff([0, *ends])
    if (sizes <= 0).any():
        raise UserError(
            f"{m} events at {len(np.unique(events.t))} different times cannot be cut by time into parts of "
            f"{', '.join(f'{s:.0%}' for s in shares)}: one would be empty; more events or more times are needed"
        )
    return ends


def batch_ends(t: Array, ask: int) -> Array:
    """int64: where batches of about `ask` events end; events of one time stay in one batch, so none sees its contemporaries."""
    m = len(t)
    if not m:
        return np.zeros(0, np.int64)
    changes = np.append(np.flatnonzero(np.diff(t) > 0) + 1, m)
    ends, at = [], 0
    while at < m:
        at = int(changes[np.searchsorted(changes, min(at + ask, m))])
        ends.append(at)
    return np.array(ends, np.int64)


class TimeQuery(Query):
    """When the pairs of a user's file are asked."""

    name: ClassVar[str] = "time"
    at: float | None = setting(
        None,
        "the time that is asked about, a number or an ISO date as in the log; left out: the file's column 'time', or right "
        "after the last event",
    )

    @field_validator("at", mode="before")
    @classmethod
    def _date(cls, given: Any) -> Any:
        try:
            return moment(given)[0] if isinstance(given, str) and not is_number(given) else given
        except ValueError:
            raise ValueError(f"{given!r} is neither a number nor an ISO date (2024-03-01T12:00:00+01:00)") from None


class StreamTask(Task):
    """A task on events in order of time: one fold, cut by time; repeats are seeds. It walks a copy of the model.

    Train parts hold `Events`; valid and test parts a `Walk`, which is the task's own. Subclasses say what is asked
    (`query_of`, a `Part.query` for rows a to b of a walk) and what the answer to it looks like (`checked`).
    """

    kinds: ClassVar[tuple[str, ...]] = ("events",)
    asks: ClassVar[tuple[str, ...]] = ("graph",)
    role: ClassVar[type[Any]] = Stream
    Query: ClassVar[type[Value]] = TimeQuery

    def shares(self) -> tuple[float, ...]:
        return 0.70, 0.15, 0.15

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [(f"by-time-{seed}", seed) for seed in range(repeats)]

    def final(self, data: Dataset) -> str:
        return "all"

    def ends_of(self, events: Events, fold: str) -> list[int]:
        """Where train, valid and test end. The final fold tests nothing: its last events validate."""
        train, valid, test = self.shares()
        if fold == "all":
            return [*cut_by_time(events, (1 - valid, valid)), len(events)]
        return cut_by_time(events, (train, valid, test))

    def settle(self, model: Any, fold: Fold) -> None:
        """A model of the final fold goes on to the end of the log: what validated is revealed, too."""
        if fold.valid is not None and not len(fold.test.data.events):
            walk: Walk = fold.valid.data
            for events in (walk.before, walk.events):
                if len(events):
                    _observe(model, events)

    def reveal(self, model: Any, data: Dataset) -> str:
        """New events for a fitted model, which keeps them; `UserError` where they are older than what it has seen."""
        given = data.read()
        weighted = model.schema.get("weighted")
        if weighted is True and given.weight is None:
            raise UserError("the events that the model was fitted on were weighted, and these have none; add a column 'weight'")
        if weighted is False and given.weight is not None:
            raise UserError("the events that the model was fitted on were not weighted, and these are; leave the column out")
        events = match_schema(given, model.schema)
        latest = float(model.schema["latest"])
        if events.t[0] < latest:
            raise UserError(
                f"the events begin at {events.t[0]:.17g}, before the last one that the model has seen ({latest:.17g}); a stream "
                "goes forward only: leave out what it knows"
            )
        new = events.nodes - len(model.schema["nodes"])
        _observe(model, events)
        return "\n  ".join([f"{len(events)} events taken in, {new} new nodes", *events.notes])

    def ask(self, data: Dataset | None, query: Any, schema: Mapping[str, Any]) -> Part:
        assert data is not None
        names: tuple[str, ...]
        if data.kind == "events":
            events: Events = data.read()
            names, src, dst, t = events.ids, events.src, events.dst, events.t
            for note in events.notes:
                if note.endswith(SORTED):
                    warnings.warn(f"{note}; the answers stand in that order", stacklevel=2)
        else:
            graph = data.read()
            names, (src, dst) = graph.ids, graph.edge_index
            t = np.full(len(src), schema["latest"])
        known = {name: i for i, name in enumerate(schema["nodes"])}
        new = [name for name in names if name not in known]
        known |= {name: len(known) + i for i, name in enumerate(new)}
        place = np.array([known[name] for name in names], np.int64)
        if query.at is not None:
            t = np.full(len(src), query.at)
        if len(t) and t.min() < schema["latest"]:
            raise UserError(
                f"time {t.min():.17g} is asked about, and the model has seen events up to {schema['latest']:.17g}; "
                "it answers for later times only: --at TIME"
            )
        order = np.argsort(t, kind="stable")
        asked = Events((*schema["nodes"], *new), place[src][order], place[dst][order], t[order])
        return Part(Walk(asked.rows(0, 0), asked, np.array([len(asked)])), None, None, schema)

    # -- walking -----------------------------------------------------------------------------------------------------------
    def query_of(self, part: Part, start: int, stop: int) -> Any:
        raise NotImplementedError

    def checked(self, found: Any, part: Part, start: int, stop: int, model: Any) -> Array:
        raise NotImplementedError

    def answer(self, model: Any, part: Part, run: Run) -> Array:
        walk: Walk = part.data
        walker = copy.deepcopy(model)
        if len(walk.before):
            walker.observe(walk.before)
        found, start = [], 0
        for stop in walk.ends.tolist():
            asked = Part(None, self.query_of(part, start, stop), None, part.schema)
            found.append(self.checked(walker.predict(asked), part, start, stop, model))
            if stop < len(walk.events):
                walker.observe(walk.events.rows(start, stop))
            start = stop
        return np.concatenate(found) if found else np.zeros(0)


def schema_at(events: Events) -> dict[str, Any]:
    """`schema_of` with the time of the last event that a model has seen."""
    return {**schema_of(events), "latest": float(events.t[-1]) if len(events) else 0.0}


def _observe(model: Any, events: Events) -> None:
    model.observe(events)
    model.schema = {**model.schema, "nodes": list(events.ids), "latest": float(events.t[-1])}


def read_pairs(path: Path) -> Any:
    """A table of answers or truths, keyed by source, target and time (a number, where there is one): (keys, frame)."""
    from latticework.data.events import SOURCE, TARGET, TIME, times_of
    from latticework.data.table import column_named, need, read_table

    frame = read_table(path)
    names = [need(path, frame, *SOURCE), need(path, frame, *TARGET)]
    time = column_named(frame, *TIME)
    columns = [frame[n].to_list() for n in names] + ([times_of(path, frame[time], []).tolist()] if time else [])
    return list(zip(*columns, strict=True)), frame


def told_of(answers: Path, truth: Path, keys: Sequence[Any], wanted: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """What the truth says of each answered key; times count where both files have them. `UserError` for keys that it lacks or contradicts."""
    if keys and wanted and len(keys[0]) != len(wanted[0]):
        keys, wanted = [k[:2] for k in keys], [k[:2] for k in wanted]
    known: dict[Any, Any] = {}
    for key, value in zip(wanted, values, strict=True):
        if known.setdefault(key, value) != value:
            raise UserError(
                f"{truth} says {known[key]} and {value} of {', '.join(map(str, key))}; give the times, or one line each"
            )
    strange = [k for k in keys if k not in known]
    if strange:
        raise UserError(f"{answers}: {', '.join(map(str, strange[0]))} is not in {truth} ({len(strange)} such)")
    return [known[k] for k in keys]
