"""The kind *events*: who met whom, when. Container, reader of users' files, check, writer.

A user's file is ``events.csv`` (source,target,time[,sign][,weight][,features...]), alone or in a folder; also read: parquet,
a PyG ``TemporalData``. Times are numbers in any unit from 0 on, or ISO dates (then UNIX seconds; a date without a zone is
taken as UTC). Reading is lossless and says what it did: events that stand out of order are sorted, stably, and each such act
is a sentence in `Events.notes`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.task import Part
from latticework.core.value import digest_of, setting

from .files import Stamp, arrays_digest, bytes_digest, stamps
from .graph import coded, fact_lines
from .table import column_named, find_table, header, line_of, need, numbers, read_table, some

if TYPE_CHECKING:
    import polars as pl

Array = np.ndarray[Any, Any]
SORTED = "all were sorted by time, ties in the file's order"
SOURCE, TARGET, TIME = ("source", "src", "from"), ("target", "dst", "to"), ("time", "t", "timestamp")


@dataclass(frozen=True)
class Events:
    """Events in order of time.

    src, dst int64 [m]; t float64 [m], never falling. Nodes are numbered by first appearance (the source before the target),
    so the first events of a log use the first numbers. weight float32 [m] or none; where `signed`, it is never 0 and its
    sign says friend or foe. x float32 [m, F] or none.
    """

    ids: tuple[str, ...]
    src: Array
    dst: Array
    t: Array
    weight: Array | None = None
    x: Array | None = None
    features: tuple[str, ...] = ()
    signed: bool = False
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.src)

    @property
    def nodes(self) -> int:
        return len(self.ids)

    @property
    def known(self) -> Array:
        """int64 [m + 1]: how many nodes the first k events know."""
        if "known" not in self._cache:
            top = np.maximum.accumulate(np.maximum(self.src, self.dst)) + 1 if len(self) else np.zeros(0, np.int64)
            self._cache["known"] = np.concatenate([[0], top])
        return np.asarray(self._cache["known"])

    def rows(self, start: int, stop: int) -> Events:
        """Events `start` to `stop` (not included) and the nodes known by then: no node of later events is in it."""
        part = self._of(slice(start, stop), self.ids[: int(self.known[stop])])
        part._cache["known"] = self.known[start : stop + 1]  # what came before a slice is known within it
        return part

    def only(self, keep: Array) -> Events:
        """The events of a mask bool [m], numbered as they were."""
        return self._of(keep, self.ids)

    def _of(self, keep: Any, ids: tuple[str, ...]) -> Events:
        return Events(
            ids, self.src[keep], self.dst[keep], self.t[keep], None if self.weight is None else self.weight[keep],
            None if self.x is None else self.x[keep], self.features, self.signed,
        )  # fmt: skip


def schema_of(events: Events) -> dict[str, Any]:
    """What a model keeps of the events it was fitted on."""
    return {
        "nodes": list(events.ids), "features": list(events.features), "signed": events.signed,
        "weighted": events.weight is not None,
    }  # fmt: skip


# -- making --------------------------------------------------------------------------------------------------------------
def check_numbers(events: Events) -> None:
    """`UserError` that names the first event whose time, weight or feature is not finite."""
    columns: list[tuple[str, Any]] = [("time", events.t)]
    columns += [] if events.weight is None else [("weight", events.weight)]
    columns += [] if events.x is None else [(name, events.x[:, i]) for i, name in enumerate(events.features)]
    for name, values in columns:
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            u, v = events.ids[int(events.src[bad[0]])], events.ids[int(events.dst[bad[0]])]
            raise UserError(
                f"the {name} of event {int(bad[0])}, {u!r} to {v!r}, is {values[bad[0]]:g} ({len(bad)} such): not finite"
            )


def in_order(events: Events) -> Events:
    """Sorted by time, stably, and numbered by first appearance; nodes that no event names are dropped. Says what it did."""
    notes = list(events.notes)
    late = int((np.diff(events.t) < 0).sum())
    if late:
        order = np.argsort(events.t, kind="stable")
        events = events._of(order, events.ids)
        notes.append(f"{late} events stood before an earlier one; {SORTED}")
    ends = np.stack([events.src, events.dst], 1).ravel()
    first = np.full(events.nodes, len(ends), np.int64)
    first[ends[::-1]] = np.arange(len(ends))[::-1]  # the last write is the first appearance
    order = np.argsort(first, kind="stable")
    order = order[first[order] < len(ends)]
    place = np.full(events.nodes, -1, np.int64)
    place[order] = np.arange(len(order))
    ids = tuple(events.ids[i] for i in order.tolist())
    return replace(events, ids=ids, src=place[events.src], dst=place[events.dst], notes=tuple(notes), _cache={})


def matched(events: Events, ids: list[str]) -> Events:
    """The same events numbered as `ids` are, with nodes that are not among them after these, by first appearance."""
    known = {name: i for i, name in enumerate(ids)}
    new = [name for name in events.ids if name not in known]
    known |= {name: len(ids) + i for i, name in enumerate(new)}
    place = np.array([known[name] for name in events.ids], np.int64)
    return replace(events, ids=(*ids, *new), src=place[events.src], dst=place[events.dst], _cache={})


def match_schema(events: Events, schema: Mapping[str, Any]) -> Events:
    """Events of a user's as a fitted model knows them: nodes by name, features by name. `UserError` where they differ."""
    wanted = list(schema["features"])
    missing = [f for f in wanted if f not in events.features]
    if missing:
        raise UserError(f"the model was fitted with the event column {missing[0]!r}, and the events have none of that name")
    more = [f for f in events.features if f not in wanted]
    if more:
        warnings.warn(f"{len(more)} columns of the events are none of the model's and left out: {some(more)}", stacklevel=3)
    if wanted and events.x is not None:
        place = [events.features.index(f) for f in wanted]
        events = replace(events, x=events.x[:, place], features=tuple(wanted), _cache={})
    elif not wanted:
        events = replace(events, x=None, features=(), _cache={})
    if schema["signed"] and not events.signed and events.weight is not None and (events.weight > 0).all():
        events = replace(events, signed=True, _cache={})  # a short stretch of a signed log may hold positive ones alone
    if schema["signed"] and not events.signed:
        raise UserError("the model was fitted on signed events; these have no column 'sign' and no negative weight")
    return matched(events, list(schema["nodes"]))


# -- reading -------------------------------------------------------------------------------------------------------------
def read_events(path: Path) -> Events:
    """A user's ``events.csv`` (or parquet). `UserError` names the file, the line and the column."""
    table = find_table(path, "events") if path.is_dir() else path
    if table is None:
        raise UserError(f"{path} holds no events.csv (source,target,time[,sign][,weight][,features…])")
    frame = read_table(table)
    names = [need(table, frame, *words) for words in (SOURCE, TARGET, TIME)]
    for name in names[:2]:
        empty = (frame[name] == "").arg_true()
        if len(empty):
            raise UserError(f"{table}, line {line_of(empty[0])}, column {name!r}: no node is named")
    notes: list[str] = []
    time = times_of(table, frame[names[2]], notes)
    ids, (src, dst) = coded([frame[names[0]], frame[names[1]]])
    weight, signed, used = weights_of(table, frame)
    x, features = _features(table, frame, {*names, *used})
    events = in_order(Events(tuple(ids.to_list()), src, dst, time, weight, x, features, signed, tuple(notes)))
    return replace(events, notes=(*events.notes, *_remarks(events)))


def moment(text: str) -> tuple[float, bool]:
    """An ISO date as UNIX seconds, and whether it names its zone (else it is in UTC). ``ValueError`` for other text."""
    when = datetime.fromisoformat(text)
    zoned = when.tzinfo is not None
    return (when if zoned else when.replace(tzinfo=UTC)).timestamp(), zoned


def times_of(path: Path, column: pl.Series, notes: list[str]) -> Array:
    """A column of times as float64: numbers from 0 on, or ISO dates as UNIX seconds, which `notes` then says."""
    import polars as pl

    empty = (column == "").arg_true()
    if len(empty):
        raise UserError(f"{path}, line {line_of(empty[0])}, column {column.name!r}: the time is missing")
    values = column.cast(pl.Float64, strict=False)
    if values.null_count() < len(values):  # numbers, unless all are something else
        values = numbers(path, column)
        if (values < 0).any():  # type: ignore[operator]
            row = int((values < 0).arg_true()[0])
            raise UserError(f"{path}, line {line_of(row)}, column {column.name!r}: {column[row]} is negative; times start at 0")
        found = np.asarray(values.to_numpy(), np.float64)
        if found.max(initial=0) > 2**53:
            step = float(np.spacing(found.max()))
            notes.append(f"times reach {found.max():.17g}, where double precision keeps steps of {step:g}: nearer ones are tied")
        return found
    seconds, zones = np.empty(len(column)), set[bool]()
    for row, text in enumerate(column):
        try:
            seconds[row], zoned = moment(text)
        except ValueError:
            raise UserError(
                f"{path}, line {line_of(row)}, column {column.name!r}: {text!r} is neither a number nor an ISO date "
                "(2024-03-01T12:00:00+01:00)"
            ) from None
        zones.add(zoned)
        if len(zones) > 1:
            raise UserError(
                f"{path}, line {line_of(row)}, column {column.name!r}: some dates have a zone and some have none; give all one"
            )
    notes.append("times are dates: read as UNIX seconds" + ("" if True in zones else ", in UTC, as no zone is given"))
    finer = int(column.str.contains(r"[.,]\d{6}\d*[1-9]").sum())
    if finer:
        notes.append(f"{finer} dates name less than a millionth of a second; what is beyond it is left out")
    return seconds


def _single(path: Path, column: pl.Series, keep_sign: bool = False) -> Array:
    """A column of numbers as float32; `UserError` for one beyond its range, or (`keep_sign`) so small that it would be 0."""
    values = numbers(path, column).to_numpy()
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(found) | (keep_sign & (found == 0) & (values != 0)))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"{path}, line {line_of(row)}, column {column.name!r}: {column[row]} is too {'large' if found[row] else 'small'} for "
            "single precision (up to 3.4e38; a signed weight from 1e-45 on); give the column in another unit"
        )
    return found


def weights_of(path: Path, frame: pl.DataFrame) -> tuple[Array | None, bool, set[str]]:
    """A table's weights float32 (where it has a column 'sign', with that sign), whether they are signed, and the columns read."""
    sign, weight = column_named(frame, "sign"), column_named(frame, "weight")
    used = {c for c in (sign, weight) if c is not None}
    values = None if weight is None else numbers(path, frame[weight]).to_numpy()
    if sign is None:
        if weight is None or values is None:
            return None, False, used
        signed = bool((values < 0).any())
        if signed and (values == 0).any():
            row = int(np.flatnonzero(values == 0)[0])
            raise UserError(f"{path}, line {line_of(row)}, column {weight!r}: 0 has no sign, and other weights are negative")
        return _single(path, frame[weight], signed), signed, used
    words = {"+": "1", "-": "-1"}
    given = numbers(path, frame[sign].replace(words)).to_numpy()
    wrong = np.flatnonzero(~np.isin(given, (1, -1)))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(f"{path}, line {line_of(row)}, column {sign!r}: {frame[sign][row]!r}; a sign is 1 or -1 (+ or -)")
    if weight is not None and values is not None:
        wrong = np.flatnonzero(values <= 0)
        if len(wrong):
            row = int(wrong[0])
            raise UserError(f"{path}, line {line_of(row)}, column {weight!r}: beside a column 'sign' a weight is above 0")
        given = given * _single(path, frame[weight], True)
    return given.astype(np.float32), True, used


def _features(path: Path, frame: pl.DataFrame, used: set[str]) -> tuple[Array | None, tuple[str, ...]]:
    import polars as pl

    columns = [c for c in frame.columns if c not in used]
    blocks = []
    for name in columns:
        column = frame[name]
        if column.cast(pl.Float64, strict=False).null_count() == len(column):
            raise UserError(
                f"{path}, column {name!r}: an event's features are numbers, and these are texts ({column[0]!r}); remove or code it"
            )
        blocks.append(_single(path, column))
    return (np.stack(blocks, 1), tuple(columns)) if blocks else (None, ())


def _remarks(events: Events) -> list[str]:
    loops, tied = int((events.src == events.dst).sum()), int((np.diff(events.t) == 0).sum())
    found = []
    if loops:
        found.append(f"{loops} events join a node to itself; they are kept")
    if tied:
        found.append(f"{tied} events share the time of the one before; no task lets them see each other")
    return found


def from_pyg(data: Any) -> Events:
    """A PyG ``TemporalData``: src, dst, t; msg becomes features (none where it has no column)."""
    src, dst, t = (np.asarray(getattr(data, name)) for name in ("src", "dst", "t"))
    if not len(src) == len(dst) == len(t):
        raise UserError(
            f"the TemporalData has {len(src)} sources, {len(dst)} targets and {len(t)} times; one each an event is needed"
        )
    msg = getattr(data, "msg", None)
    x = None if msg is None else np.asarray(msg, np.float32)
    x = None if x is None or not x.size else x.reshape(len(x), -1)
    if x is not None and len(x) != len(t):
        raise UserError(f"the TemporalData has {len(x)} rows of msg for {len(t)} events; one row each is needed")
    known, ends = np.unique(np.concatenate([src, dst]).astype(np.int64), return_inverse=True)
    if len(known) and known[0] < 0:
        raise UserError(f"the TemporalData names node {known[0]}; nodes are numbered from 0")
    features = () if x is None else tuple(f"x{i}" for i in range(x.shape[1]))
    ids = tuple(str(i) for i in known.tolist())
    given = Events(ids, ends[: len(src)], ends[len(src) :], t.astype(np.float64), None, x, features)
    check_numbers(given)
    events = in_order(given)
    return replace(events, notes=(*events.notes, *_remarks(events)))


# -- what events are like ------------------------------------------------------------------------------------------------
def facts(events: Events) -> dict[str, Any]:
    """Counts and shapes; computed once a log."""
    if "facts" not in events._cache:
        events._cache["facts"] = _facts(events)
    found: dict[str, Any] = events._cache["facts"]
    return found


def _facts(events: Events) -> dict[str, Any]:
    m = len(events)
    if not m:
        raise UserError("there are no events")
    import polars as pl

    pairs = pl.Series(events.src * events.nodes + events.dst).n_unique()
    sources, targets = (np.bincount(ends, minlength=events.nodes) > 0 for ends in (events.src, events.dst))
    span = float(events.t[-1] - events.t[0])
    found: dict[str, Any] = {
        "events": m,
        "nodes": events.nodes,
        "sources": int(sources.sum()),
        "targets": int(targets.sum()),
        "bipartite": not bool((sources & targets).any()),
        "distinct pairs": pairs,
        "first time": float(events.t[0]),
        "last time": float(events.t[-1]),
        "distinct times": int((np.diff(events.t) > 0).sum()) + 1,
        "mean gap": span / max(m - 1, 1),
        "self-loops": int((events.src == events.dst).sum()),
        "features": len(events.features),
        "weighted": events.weight is not None,
        "signed": events.signed,
    }
    if events.signed and events.weight is not None:
        found["negative share"] = float((events.weight < 0).mean())
    return found


# -- the data sets -------------------------------------------------------------------------------------------------------
class EventSet(Dataset):
    """What data sets of events share: facts, check, writer and the whole as a part."""

    kind: ClassVar[str] = "events"

    def facts(self) -> Mapping[str, Any]:
        return facts(self.read())

    def check(self) -> list[str]:
        events: Events = self.read()
        return fact_lines(facts(events)) + list(events.notes)

    def write(self, to: Path) -> None:
        write_events(self.read(), to)

    def whole(self) -> Part:
        events: Events = self.read()
        return Part(events, None, None, schema_of(events))


def time_column(t: Array) -> Any:
    """Times as a file holds them: numbers; ISO dates (to the microsecond) where some are before 1970, whose numbers are refused."""
    if len(t) and t.min() < 0:
        return [f"{when}+00:00" for when in np.round(t * 1e6).astype("datetime64[us]").astype(str)]
    # whole seconds stay whole; polars writes the shortest text that reads back as the same number
    return t.astype(np.int64) if np.array_equal(t, np.floor(t)) else t


def write_events(events: Events, to: Path) -> None:
    """``events.csv`` in a folder (or the file itself, where `to` ends in .csv) that `read_events` reads back as the same."""
    import polars as pl

    names = np.array(events.ids, object)
    columns: dict[str, Any] = {"source": names[events.src].tolist(), "target": names[events.dst].tolist()}
    columns["time"] = time_column(events.t)
    if events.weight is not None:
        if events.signed and not (events.weight < 0).any():  # nothing but the column's name would say that it is signed
            columns["sign"] = np.sign(events.weight).astype(np.int64)
            columns["weight"] = np.abs(events.weight)
        else:
            columns["weight"] = events.weight
    if events.x is not None:
        columns |= {name: events.x[:, i] for i, name in enumerate(events.features)}
    write_whole(to if to.suffix == ".csv" else to / "events.csv", pl.DataFrame(columns).write_csv())


class EventFiles(EventSet):
    """A user's log of events, by path; its identity is the bytes of the file, not where it lies."""

    name: ClassVar[str] = "event-files"
    path: Path = setting(..., "events.csv, or a folder that holds it")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By header: an event has a source, a target and a time."""
        table = find_table(path, "events") if path.is_dir() else path
        if table is None or table.suffix not in (".csv", ".parquet"):
            return False
        names = set(header(table))
        return all(names & set(words) for words in (SOURCE, TARGET, TIME))

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        """A PyG ``TemporalData`` or `Events` made in Python."""
        if isinstance(given, Events):
            return GivenEvents.hold(given)
        temporal = type(given).__name__ == "TemporalData" and all(hasattr(given, name) for name in ("src", "dst", "t"))
        return GivenEvents.hold(from_pyg(given)) if temporal else None

    def _file(self) -> Path:
        return (find_table(self.path, "events") or self.path) if self.path.is_dir() else self.path

    def read(self) -> Events:
        if not self._file().is_file():
            raise UserError(f"{self.path} holds no events.csv (source,target,time[,sign][,weight][,features…])")
        return _read_cached(self._file(), stamps([self._file()], self._file()))

    def digest(self) -> str:
        return digest_of([self.name, bytes_digest(stamps([self._file()], self._file()))])


@lru_cache(maxsize=4)
def _read_cached(path: Path, stamp: tuple[Stamp, ...]) -> Events:
    return read_events(path)


def content_digest(events: Events) -> str:
    """SHA-256 of all that a log holds."""
    arrays = (events.src, events.dst, events.t, events.weight, events.x)
    return arrays_digest(arrays, (events.ids, events.features, events.signed))


class GivenEvents(Given, EventSet):
    """Events made in Python; they live as long as the process and are named by their content."""

    name: ClassVar[str] = "given-events"

    @classmethod
    def hold(cls, events: Events) -> GivenEvents:
        check_numbers(events)
        events = in_order(events)
        digest = content_digest(events)
        cls._held[digest] = events
        return cls(content=digest)
