"""The kind *ratings*: who liked, bought, watched or rated what. Container, reader of users' files, check, writer.

A user's file is ``ratings.csv`` (user,item[,rating][,time]), alone or in a folder; also read: parquet. Without a column
`rating` every line is a sign of interest (a like, a purchase). Times are numbers from 0 on, or ISO dates. Reading is lossless:
a pair that stands twice is counted here and merged (`merged`) only where a task cuts the data. Beside it stands the kind
*users*, a file with a column `user` alone: whom a fitted model is asked about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.task import Part
from latticework.core.value import digest_of, setting

from .events import time_column, times_of
from .files import Stamp, arrays_digest, bytes_digest, stamps
from .graph import coded, fact_lines
from .table import column_named, find_table, header, line_of, need, numbers, read_table

Array = np.ndarray[Any, Any]
USER, ITEM = ("user", "user_id", "userid"), ("item", "item_id", "itemid")
RATING, TIME = ("rating", "stars", "score"), ("time", "t", "timestamp")
FORM = "ratings.csv (user,item[,rating][,time])"


@dataclass(frozen=True)
class Ratings:
    """Ratings (or signs of interest) as they were written.

    user, item int64 [m], numbers of `users` and `items`; rating float32 [m] or none; time float64 [m] or none.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: Array
    item: Array
    rating: Array | None = None
    time: Array | None = None
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.user)

    def only(self, keep: Array) -> Ratings:
        """Some of the lines (a mask bool [m], or numbers of lines in the order wanted), numbered as they were."""
        return replace(
            self, user=self.user[keep], item=self.item[keep], rating=None if self.rating is None else self.rating[keep],
            time=None if self.time is None else self.time[keep], _cache={},
        )  # fmt: skip


def id_order(ids: Sequence[str]) -> Array:
    """int64 [n]: the numbers of the ids in order: by value where all are whole numbers, else as text."""
    if all(name.isdecimal() and name.isascii() for name in ids):
        bare = [name.lstrip("0") for name in ids]  # by length, then digits: ids may have more of them than a number may
        order = sorted(range(len(ids)), key=lambda i: (len(bare[i]), bare[i], ids[i]))
    else:
        order = sorted(range(len(ids)), key=lambda i: ids[i])
    return np.array(order, np.int64)


def merged(ratings: Ratings) -> Ratings:
    """Each pair of user and item once, users and items numbered in the order of their ids, lines sorted by user and item.

    Of lines that name the same pair the latest counts (by time; without times, and at equal ones, the last line). Users and
    items without any line are dropped. The outcome does not depend on the order of distinct lines.
    """
    place = []
    for ids, code in ((ratings.users, ratings.user), (ratings.items, ratings.item)):
        order = id_order(ids)
        order = order[np.isin(order, code)]
        to = np.full(len(ids), -1, np.int64)
        to[order] = np.arange(len(order))
        place.append((order, to))
    (user_order, to_user), (item_order, to_item) = place
    named = replace(
        ratings, users=tuple(ratings.users[i] for i in user_order.tolist()),
        items=tuple(ratings.items[i] for i in item_order.tolist()), user=to_user[ratings.user], item=to_item[ratings.item],
        _cache={},
    )  # fmt: skip
    late = np.arange(len(ratings)) if ratings.time is None else ratings.time
    order = np.lexsort((np.arange(len(ratings)), late, named.item, named.user))
    key = (named.user * max(len(named.items), 1) + named.item)[order]
    last = np.append(key[1:] != key[:-1], True) if len(key) else np.zeros(0, bool)
    return named.only(order[last])


# -- reading -------------------------------------------------------------------------------------------------------------
def read_ratings(path: Path) -> Ratings:
    """A user's ``ratings.csv`` (or parquet). `UserError` names the file, the line and the column."""
    table = find_table(path, "ratings") if path.is_dir() else path
    if table is None:
        raise UserError(f"{path} holds no {FORM}")
    frame, user, item = read_pairs(table)
    notes: list[str] = []
    rating, time = column_named(frame, *RATING), column_named(frame, *TIME)
    values = None if rating is None else numbers(table, frame[rating]).to_numpy().astype(np.float32)
    times = None if time is None else times_of(table, frame[time], notes)
    users, (of_user,) = coded([frame[user]])
    items, (of_item,) = coded([frame[item]])
    unused = [c for c in frame.columns if c not in (user, item, rating, time)]
    if unused:
        notes.append(f"columns that nothing reads: {', '.join(unused)}")
    return Ratings(tuple(users.to_list()), tuple(items.to_list()), of_user, of_item, values, times, tuple(notes))


def _all_named(path: Path, frame: Any, columns: Mapping[str, str]) -> None:
    """`UserError` for the first empty cell of columns, each with what it names."""
    for name, what in columns.items():
        empty = (frame[name] == "").arg_true()
        if len(empty):
            raise UserError(f"{path}, line {line_of(empty[0])}, column {name!r}: no {what} is named")


def read_pairs(path: Path) -> tuple[Any, str, str]:
    """A table with a user and an item in each line, and the names of the two columns. `UserError` for an empty cell, with its line."""
    frame = read_table(path)
    user, item = need(path, frame, *USER), need(path, frame, *ITEM)
    _all_named(path, frame, {user: "user", item: "item"})
    return frame, user, item


def read_users(path: Path) -> Ratings:
    """A list of users, without a single line about an item; each once, in the order of the file."""
    frame = read_table(path)
    user = need(path, frame, *USER)
    _all_named(path, frame, {user: "user"})
    users, none, notes = frame[user].unique(maintain_order=True).to_list(), np.zeros(0, np.int64), []
    if len(users) < len(frame):
        notes.append(f"{len(frame) - len(users)} lines name a user who stands above, too; each counts once")
    unused = [c for c in frame.columns if c != user]
    if unused:
        notes.append(f"columns that nothing reads: {', '.join(unused)}")
    return Ratings(tuple(users), (), none, none, notes=tuple(notes))


# -- what ratings are like -----------------------------------------------------------------------------------------------
def facts(ratings: Ratings) -> dict[str, Any]:
    """Counts and shapes; computed once."""
    if "facts" not in ratings._cache:
        ratings._cache["facts"] = _facts(ratings)
    found: dict[str, Any] = ratings._cache["facts"]
    return found


def _facts(ratings: Ratings) -> dict[str, Any]:
    m, users, items = len(ratings), len(ratings.users), len(ratings.items)
    if not m:
        raise UserError("there are no ratings")
    distinct = len(np.unique(ratings.user * items + ratings.item))
    of_user = np.bincount(ratings.user, minlength=users)
    found: dict[str, Any] = {
        "lines": m,
        "users": users,
        "items": items,
        "distinct pairs": distinct,
        "duplicates": m - distinct,
        "density": distinct / (users * items),
        "lines a user, median": float(np.median(of_user)),
        "users with one line": int((of_user == 1).sum()),
        "rated": ratings.rating is not None,
        "timed": ratings.time is not None,
    }
    if ratings.rating is not None:
        found["lowest rating"], found["highest rating"] = float(ratings.rating.min()), float(ratings.rating.max())
    return found


def remarks(ratings: Ratings) -> list[str]:
    """What `data check` says beside the facts."""
    found = facts(ratings)
    lines = list(ratings.notes)
    if found["duplicates"]:
        which = "latest" if found["timed"] else "last"
        lines.append(f"{found['duplicates']} lines name a pair that stands elsewhere, too; the {which} of each counts")
    if not found["rated"]:
        lines.append("no column 'rating': every line is taken for a sign of interest")
    silent = len(ratings.users) - len(np.unique(ratings.user))
    if silent:
        lines.append(f"{silent} users have no line: nothing is learnt about them")
    return lines


# -- the data sets -------------------------------------------------------------------------------------------------------
class RatingSet(Dataset):
    """What data sets of ratings share: facts, check, writer and the whole as a part."""

    kind: ClassVar[str] = "ratings"

    def facts(self) -> Mapping[str, Any]:
        return facts(self.read())

    def check(self) -> list[str]:
        ratings: Ratings = self.read()
        return fact_lines(facts(ratings)) + remarks(ratings)

    def write(self, to: Path) -> None:
        write_ratings(self.read(), to)

    def whole(self) -> Part:
        ratings: Ratings = self.read()
        return Part(ratings, None, None, {"users": list(ratings.users), "items": list(ratings.items)})


def write_ratings(ratings: Ratings, to: Path) -> None:
    """``ratings.csv`` in a folder (or the file itself, where `to` ends in .csv) that `read_ratings` reads back as the same."""
    import polars as pl

    columns: dict[str, Any] = {
        "user": np.array(ratings.users, object)[ratings.user].tolist(),
        "item": np.array(ratings.items, object)[ratings.item].tolist(),
    }
    if ratings.rating is not None:  # whole numbers stay whole; polars writes the shortest text that reads back as the same
        whole = np.array_equal(ratings.rating, np.floor(ratings.rating))
        columns["rating"] = ratings.rating.astype(np.int64) if whole else ratings.rating
    if ratings.time is not None:
        columns["time"] = time_column(ratings.time)
    write_whole(to if to.suffix == ".csv" else to / "ratings.csv", pl.DataFrame(columns).write_csv())


class RatingFiles(RatingSet):
    """A user's ratings, by path; their identity is the bytes of the file, not where it lies."""

    name: ClassVar[str] = "rating-files"
    path: Path = setting(..., "ratings.csv, or a folder that holds it")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By header: a line names a user and an item, or rates something (that no column is named for an item is said when it is read)."""
        table = find_table(path, "ratings") if path.is_dir() else path
        if table is None or table.suffix not in (".csv", ".parquet"):
            return False
        names = set(header(table))
        return bool(names & set(USER) and names & {*ITEM, *RATING})

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        """`Ratings` made in Python."""
        return GivenRatings.hold(given) if isinstance(given, Ratings) else None

    def _file(self) -> Path:
        file = find_table(self.path, "ratings") if self.path.is_dir() else self.path
        if file is None or not file.is_file():
            raise UserError(f"{self.path} holds no {FORM}")
        return file

    def read(self) -> Ratings:
        file = self._file()
        return _read_cached(file, stamps([file], file))

    def digest(self) -> str:
        file = self._file()
        return digest_of([self.name, bytes_digest(stamps([file], file))])


@lru_cache(maxsize=4)
def _read_cached(path: Path, stamp: tuple[Stamp, ...]) -> Ratings:
    return read_ratings(path)


class UserList(Dataset):
    """A list of users, by path: a CSV with a column `user` and none of items."""

    name: ClassVar[str] = "user-list"
    kind: ClassVar[str] = "users"
    path: Path = setting(..., "users.csv")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if path.is_dir() or path.suffix not in (".csv", ".parquet"):
            return False
        names = set(header(path))
        return bool(names & set(USER)) and not names & {*ITEM, *RATING}

    def read(self) -> Ratings:
        return read_users(self.path)

    def facts(self) -> Mapping[str, Any]:
        return {"users": len(self.read().users)}

    def check(self) -> list[str]:
        return [*super().check(), *self.read().notes]

    def digest(self) -> str:
        return digest_of([self.name, bytes_digest(stamps([self.path], self.path))])


def _as_arrays(ratings: Ratings) -> Ratings:
    """The columns as arrays of one length, the ids as texts; `UserError` where they cannot be."""
    columns = {what: value if value is None else np.asarray(value) for what, value in (
        ("user", ratings.user), ("item", ratings.item), ("rating", ratings.rating), ("time", ratings.time)
    )}  # fmt: skip
    for what, value in columns.items():
        if value is None:
            continue
        if value.ndim != 1 or len(value) != len(ratings.user):
            raise UserError(
                f"{what} has shape {list(value.shape)} where there are {len(ratings.user)} lines; one value a line is needed"
            )
        if value.dtype.kind not in ("iu" if what in ("user", "item") else "iuf") and len(value):
            kind = "whole numbers of ids" if what in ("user", "item") else "numbers"
            raise UserError(f"{what} is {value.dtype}; {kind} are needed")
    for what, ids in (("user", ratings.users), ("item", ratings.items)):
        strange = next((name for name in ids if not isinstance(name, str)), None)
        if strange is not None:
            raise UserError(f"the id {strange!r} of a {what} is {type(strange).__name__}; ids are texts")
    for what in ("user", "item"):
        columns[what] = columns[what].astype(np.int64, copy=False)  # type: ignore[union-attr]
    same = all(value is getattr(ratings, what) for what, value in columns.items())
    return ratings if same else replace(ratings, **columns, _cache={})  # type: ignore[arg-type]


def content_digest(ratings: Ratings) -> str:
    """SHA-256 of all that ratings hold."""
    return arrays_digest((ratings.user, ratings.item, ratings.rating, ratings.time), (ratings.users, ratings.items))


class GivenRatings(Given, RatingSet):
    """Ratings made in Python; they live as long as the process and are named by their content."""

    name: ClassVar[str] = "given-ratings"

    @classmethod
    def hold(cls, ratings: Ratings) -> GivenRatings:
        ratings = _as_arrays(ratings)
        for what, code, ids in (("user", ratings.user, ratings.users), ("item", ratings.item, ratings.items)):
            if len(code) and not (code.min() >= 0 and code.max() < len(ids)):
                raise UserError(f"a {what} has a number outside 0 to {len(ids) - 1}")
            if len(set(ids)) < len(ids):
                raise UserError(f"two {what}s have the same id")
        for what, values in (("rating", ratings.rating), ("time", ratings.time)):
            if values is not None and not np.isfinite(values).all():
                raise UserError(f"a {what} is not finite")
        digest = content_digest(ratings)
        cls._held[digest] = ratings
        return cls(content=digest)
