"""Recommendation: which items a user will take next, as a list of N without those the user has already.

Ratings from `positive` on (all lines, where nothing is rated) are the interactions. A model is shown those of the train part
and gives a score for each user and item; the task masks what was seen, cuts the lists and judges them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.method import Predictor
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, setting
from latticework.data.ratings import Ratings, merged, read_pairs, read_ratings
from latticework.data.table import column_named, line_of, numbers

Array = NDArray[Any]
TRAIN, VALID, TEST = 0, 1, 2
CELLS = 4_000_000  # scores that are held at a time


@dataclass(frozen=True)
class Interactions:
    """What a method sees: user, item int64 [m], sorted by user, then item, each pair once; rating, time [m] or none.

    Numbers run over the `users` and `items` of the train part alone, each of which has an interaction; the names are
    ``schema["users"]`` and ``schema["items"]``.
    """

    user: Array
    item: Array
    users: int
    items: int
    rating: Array | None = None
    time: Array | None = None
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def matrix(self) -> sp.csr_array:
        """float32 [users, items]: 1 where there is an interaction."""
        if "matrix" not in self._cache:
            ones = np.ones(len(self.user), np.float32)
            self._cache["matrix"] = sp.csr_array((ones, self.item, starts(self.user, self.users)), shape=(self.users, self.items))
        found: sp.csr_array = self._cache["matrix"]
        return found


class Asked(NamedTuple):
    """Whose lists are asked for: `rows` int64 [q], users by number, -1 for one that the train part lacks; `names` of them.

    What user k has already is ``seen[1][seen[0][k] : seen[0][k + 1]]`` (numbers of items); `top` is the length of the lists.
    """

    rows: Array
    names: tuple[str, ...]
    seen: tuple[Array, Array]
    top: int


class Truth(NamedTuple):
    """Items int64 [t] that user k of those asked took, ``items[start[k] : start[k + 1]]``, sorted.

    `judged` is the share of the part's interactions whose user and item the train part has: the rest cannot be judged.
    `slices` name -> (group int64 [q] of each user asked, names of the groups).
    """

    start: Array
    items: Array
    judged: float = 1.0
    slices: Mapping[str, tuple[Array, tuple[str, ...]]] = {}


class Lists(NamedTuple):
    """`items` int64 [q, N], best first, -1 where fewer are left; `scores` float32 [q, N]; `known` bool [q]: the model's own."""

    items: Array
    scores: Array
    known: Array


class ListQuery(Query):
    """How long the lists are."""

    name: ClassVar[str] = "lists"
    top: int = setting(10, "items a user", ge=1, le=10_000)


# -- lists and their measures --------------------------------------------------------------------------------------------
def starts(user: Array, users: int) -> Array:
    """int64 [users + 1]: where each user's lines begin, of lines sorted by user."""
    return np.concatenate([[0], np.cumsum(np.bincount(user, minlength=users))])


def best(scores: Array, top: int) -> tuple[Array, Array]:
    """The `top` largest of each row, largest first, equal ones in the order of their columns; -inf is never among them.

    scores [q, I] -> columns int64 [q, top] (-1 where too few are left) and their scores [q, top].
    """
    rows, width = scores.shape
    n = min(top, width)
    columns, values = np.full((rows, top), -1, np.int64), np.full((rows, top), -np.inf, scores.dtype)
    if n and rows:
        least = np.partition(scores, width - n, axis=1)[:, width - n, None]
        keep = scores > least
        tied = scores == least  # of those at the threshold the first columns fill what is left
        keep |= tied & (np.cumsum(tied, 1) <= n - keep.sum(1, keepdims=True))
        found = np.nonzero(keep)[1].reshape(rows, n)
        order = np.argsort(-np.take_along_axis(scores, found, 1), axis=1, kind="stable")
        columns[:, :n] = np.take_along_axis(found, order, 1)
        values[:, :n] = np.take_along_axis(scores, columns[:, :n], 1)
        columns[values == -np.inf] = -1
    return columns, values


def measures(lists: Array, start: Array, items: Array, top: int) -> dict[str, float]:
    """Of the first `top` places of lists int64 [q, >= top], against the items that each user took (at least one each).

    precision = hits / N, recall = hits / taken, each a mean over users; f1 of these two means; ndcg with the gains 1 / log2(1 +
    place) over those of a perfect list; mrr 1 / place of the first hit, or 0; hits: the share of users with any hit.
    """
    found = lists[:, :top]
    users = len(found)
    width = max(int(found.max(initial=-1)), int(items.max(initial=-1))) + 1
    taken = np.diff(start)
    known = np.repeat(np.arange(users), taken) * width + items
    hit = np.isin(np.arange(users)[:, None] * width + found, known) & (found >= 0)
    hits = hit.sum(1)
    precision, recall = float((hits / top).mean()), float((hits / taken).mean())
    gain = 1 / np.log2(np.arange(top) + 2)
    ideal = np.cumsum(gain)[np.minimum(taken, top) - 1]
    first = np.where(hits > 0, 1 / (hit.argmax(1) + 1), 0.0)
    return {
        "f1": 2 * precision * recall / (precision + recall) if hits.any() else 0.0,
        "precision": precision,
        "recall": recall,
        "ndcg": float((hit @ gain / ideal).mean()),
        "mrr": float(first.mean()),
        "hits": float((hits > 0).mean()),
    }


# -- the task ------------------------------------------------------------------------------------------------------------
class Recommendation(Task):
    """Lists of N items for each user, judged by what the user took in the test part.

    `split`: ``random`` keeps a share of all interactions for the test, drawn by a seed (repeats are splits); ``leave-last``
    each user's last one for the test and the one before for validation, where there are three or more (repeats are seeds);
    ``by-time`` the latest ones of all (repeats are seeds; equal times stay together). Lines that name the same pair are merged
    before the split. Users and items that the train part lacks are dropped from the other parts, and `judged` says what share
    is left. Items of the user's train part are masked by the task, ties are broken by item id.

    The headline is F1 at `top`, from the mean precision and the mean recall (not a mean of each user's F1); all metrics are
    given at `top` and at twice that. A fitted model answers for any list of users: those it does not know get the most
    popular items that they have not had, and a line of the written file says which answer is whose.
    """

    name: ClassVar[str] = "recommendation"
    kinds: ClassVar[tuple[str, ...]] = ("ratings",)
    asks: ClassVar[tuple[str, ...]] = ("users",)
    role: ClassVar[type[Any]] = Predictor
    Query: ClassVar[type[Value]] = ListQuery
    headline_metric: ClassVar[str] = "f1"
    metrics: ClassVar[tuple[Metric, ...]] = (
        *(Metric(name, "", "higher") for name in ("f1", "precision", "recall", "ndcg", "mrr", "hits")),
        Metric("judged", "", "higher"),
    )

    top: int = setting(10, "length of the lists; the metrics are given at twice that, too", ge=1, le=1000)
    positive: float | None = setting(3.0, "ratings from here on count as interest; none: all lines")
    split: Literal["random", "leave-last", "by-time"] = setting("random", "what is kept for the test")
    train: float = setting(0.8, "share that trains (random, by-time)", gt=0, lt=1)
    valid: float = setting(0.1, "share that validates (random, by-time); the rest tests", ge=0, lt=1)

    def for_data(self, data: Dataset) -> Recommendation:
        facts = data.facts()
        if self.train + self.valid >= 1:
            raise UserError(f"task.train + task.valid is {self.train + self.valid:g}, so nothing is left to test on")
        if self.split != "random" and not facts["timed"]:
            raise UserError(f"split={self.split} needs a column 'time', and the ratings have none; use -s task.split=random")
        return self._threshold(facts["rated"])

    def _threshold(self, rated: bool) -> Recommendation:
        """The task with no threshold where there are no ratings; `UserError` where one was asked for."""
        if rated or self.positive is None:
            return self
        if self.positive != type(self).model_fields["positive"].default:
            raise UserError(
                f"positive={self.positive:g} needs a column 'rating', and there is none; leave it out: every line counts"
            )
        return self.but(positive=None)

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return ("popularity", "bpr-mf")

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [(f"random-{i}" if self.split == "random" else self.split, i) for i in range(repeats)]

    def overlap(self, data: Dataset) -> float | None:
        return (1 - self.train - self.valid) / self.train if self.split == "random" else None

    def final(self, data: Dataset) -> str:
        return "all-0"

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.items]

    # -- folds ---------------------------------------------------------------------------------------------------
    def interactions(self, ratings: Ratings) -> Ratings:
        """Each pair once, from the threshold on. `UserError` where nothing is left."""
        once = merged(ratings)
        if self.positive is None or once.rating is None:
            return once
        keep = once.rating >= self.positive
        if not keep.any():
            highest = f"the highest is {once.rating.max():g}" if len(once) else "there are none"
            raise UserError(f"no rating is {self.positive:g} or more ({highest}); lower it: -s task.positive=…")
        return merged(once.only(keep))  # again: users and items without any left go

    def cut(self, of: Ratings, fold: str) -> Array:
        """int8 [m]: 0 train, 1 valid, 2 test."""
        m, kind = len(of), fold.partition("-")[0]
        train = 1 - self.valid if kind == "all" else self.train  # a model for use keeps back no more than what chooses the epoch
        part = np.zeros(m, np.int8)
        if self.split == "leave-last":
            assert of.time is not None
            order = np.lexsort((of.item, of.time, of.user))
            count = np.diff(starts(of.user, len(of.users)))
            left = np.repeat(count, count) - (np.arange(m) - np.repeat(np.cumsum(count) - count, count))  # 1 for the last
            enough = np.repeat(count, count) >= 3
            last, before = (VALID, TRAIN) if kind == "all" else (TEST, VALID)
            part[order[enough & (left == 1)]] = last
            part[order[enough & (left == 2)]] = before
        else:
            if self.split == "by-time":
                assert of.time is not None
                order = np.lexsort((of.item, of.user, of.time))
                times = of.time[order]
                # a cut between equal times moves to where they begin
                ends = [
                    m if s > 1 - 1e-9 else int(np.searchsorted(times, times[min(round(s * m), m - 1)]))
                    for s in (train, train + self.valid)
                ]
            else:
                order = np.random.default_rng([int(fold.rpartition("-")[2]), 0x72656373]).permutation(m)
                first = max(round(train * m), 1)
                ends = [first, max(round((train + self.valid) * m), first)]
            part[order[ends[0] :]] = VALID
            part[order[ends[1] :]] = TEST
        if kind == "all":  # and no user or item
            for code in (of.user, of.item):
                part[~np.isin(code, code[part == TRAIN])] = TRAIN
        return part

    def fold(self, data: Dataset, name: str) -> Fold:
        task = self.for_data(data)
        raw: Ratings = data.read()
        if not len(raw):
            raise UserError("there are no ratings")
        of = task.interactions(raw)
        part = task.cut(of, name)
        if not (part == TRAIN).any():
            why = f"{len(of)} interactions are too few"
            if self.split == "by-time":
                why = f"the first {self.train:g} of {len(of)} interactions ends among those of the earliest time, which are never cut apart; use -s task.split=random"
            raise UserError(f"the train part of split {name} is empty: {why}")
        train = part == TRAIN
        users, user = np.unique(of.user[train], return_inverse=True)
        items, item = np.unique(of.item[train], return_inverse=True)
        shown = Interactions(
            user, item, len(users), len(items), None if of.rating is None else of.rating[train],
            None if of.time is None else of.time[train],
        )  # fmt: skip
        schema: dict[str, Any] = {
            "users": [of.users[i] for i in users.tolist()], "items": [of.items[i] for i in items.tolist()],
            "counts": np.bincount(item, minlength=len(items)).tolist(),
        }  # fmt: skip
        if name.startswith("all"):  # who is unknown gets what most took, of all that there is
            schema["counts"] = np.bincount(of.item, minlength=len(of.items))[items].tolist()
        # of a model for use also what was rated low is known, and not recommended
        schema["seen"] = seen_by_name(raw, schema["items"]) if name.startswith("all") else seen_of(shown, schema["users"])
        to_user, to_item = (np.full(len(ids), -1, np.int64) for ids in (of.users, of.items))
        to_user[users], to_item[items] = np.arange(len(users)), np.arange(len(items))
        parts = []
        for code in (VALID, TEST):
            held = part == code
            u, i = to_user[of.user[held]], to_item[of.item[held]]
            fits = (u >= 0) & (i >= 0)
            if code == TEST and not fits.any() and not name.startswith("all"):
                why = f"{len(of)} interactions in all are too few"
                if len(u):
                    why = (
                        f"{len(u)} interactions were kept for it and the train part ({len(user)} interactions) lacks the user "
                        "or the item of all of them; bring more data, or other shares of task.train and task.valid"
                    )
                raise UserError(f"the test part of split {name} is empty: {why}")
            parts.append(self._judged(shown, schema, u[fits], i[fits], float(fits.mean()) if len(fits) else 1.0))
        whole = Asked(np.arange(len(users)), tuple(schema["users"]), (starts(user, len(users)), item), 2 * self.top)
        valid = parts[0] if len(parts[0].query.rows) else None
        return Fold(Part(shown, whole, None, schema), valid, parts[1])

    def _judged(self, shown: Interactions, schema: Mapping[str, Any], user: Array, item: Array, share: float) -> Part:
        """Lists are asked for the users who took something in the part."""
        order = np.lexsort((item, user))
        rows, where = np.unique(user[order], return_inverse=True)
        matrix = shown.matrix()[rows]
        names = tuple(schema["users"][i] for i in rows.tolist())
        asked = Asked(rows, names, (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)), 2 * self.top)
        truth = Truth(starts(where, len(rows)), item[order], share, histories(np.diff(matrix.indptr)))
        return Part(shown, asked, truth, schema)

    def settle(self, model: Any, fold: Fold) -> None:
        """A model for use that chooses nothing on the validation part takes it in, too."""
        if fold.valid is not None and not len(fold.test.query.rows) and hasattr(model, "take"):
            rows, truth = fold.valid.query.rows, fold.valid.truth
            model.take(np.repeat(rows, np.diff(truth.start)), truth.items)

    # -- answers -------------------------------------------------------------------------------------------------
    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        """The users that the data name; what these data say of them counts as seen, beside what the model was fitted on."""
        assert isinstance(query, ListQuery) and data is not None
        ratings: Ratings = data.read()
        if not ratings.users:
            raise UserError("the data name no user")
        number = {name: i for i, name in enumerate(schema["users"])}
        new = seen_by_name(ratings, schema["items"])
        seen = [sorted({*schema["seen"].get(name, ()), *new.get(name, ())}) for name in ratings.users]
        start = np.concatenate([[0], np.cumsum([len(s) for s in seen])]).astype(np.int64)
        rows = np.array([number.get(name, -1) for name in ratings.users], np.int64)
        return Part(
            None,
            Asked(rows, ratings.users, (start, np.array([*chain.from_iterable(seen)], np.int64)), query.top),
            None,
            dict(schema),
        )

    def answer(self, model: Any, part: Part, run: Run) -> Lists:
        asked: Asked = part.query
        width = len(part.schema["items"])
        counts = np.asarray(part.schema["counts"], np.float32)
        items, scores = (
            np.full((len(asked.rows), asked.top), -1, np.int64),
            np.full((len(asked.rows), asked.top), -np.inf, np.float32),
        )
        known = asked.rows >= 0
        for places in chunks(known, max(CELLS // max(width, 1), 1)):
            if known[places[0]]:
                block = np.array(model.predict(part._replace(query=of_users(asked, places))), np.float32)
                check_scores(block, (len(places), width), model.method.name, [asked.names[p] for p in places.tolist()])
            else:
                block = np.repeat(counts[None], len(places), 0)
            row, item = seen_pairs(asked, places)
            block[row, item] = -np.inf
            items[places], scores[places] = best(block, asked.top)
        return Lists(items, scores, known)

    def score(self, answer: Lists, part: Part, run: Run | None) -> list[Score]:
        truth: Truth = part.truth
        scores = list_scores(answer.items, truth.start, truth.items, (self.top, 2 * self.top))
        scores.append(Score("judged", truth.judged))
        for kind, (group, names) in truth.slices.items():
            for code, words in enumerate(names):
                rows = np.flatnonzero(group == code)
                if len(rows):
                    value = measures(answer.items[rows], *picked(truth.start, truth.items, rows), self.top)["f1"]
                    at = {"slice": kind, "range": words, "users": len(rows), "top": self.top}
                    scores.append(Score("f1", value, at))
        return scores

    def value(self, answer: Lists, part: Part, run: Run) -> float | None:
        return measures(answer.items, part.truth.start, part.truth.items, self.top)["f1"]

    def write(self, answer: Lists, part: Part, to: Path) -> None:
        """CSV: user, rank, item, score, and whose answer it is: the model's, or the popularity that unknown users get."""
        import polars as pl

        row, place = np.nonzero(answer.items >= 0)
        lengths = np.bincount(row, minlength=len(answer.items))
        if (lengths == 0).any():
            warnings.warn(f"{(lengths == 0).sum()} of {len(lengths)} users have had every item and get none", stacklevel=2)
        short = int(((lengths > 0) & (lengths < answer.items.shape[1])).sum())
        if short:
            warnings.warn(
                f"{short} of {len(lengths)} lists are shorter than {answer.items.shape[1]}: no more items are left", stacklevel=2
            )
        whose = np.where(answer.known, "model", "popularity")[row]
        items = np.array(part.schema["items"], object)[answer.items[row, place]]
        names = np.array(part.query.names, object)[row]
        frame = pl.DataFrame(
            {
                "user": names.tolist(), "rank": place + 1, "item": items.tolist(), "score": answer.scores[row, place],
                "from": whose.tolist(),
            }
        )  # fmt: skip
        write_whole(to, frame.write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """Lists made elsewhere (user,item[,rank][,score]) against ``ratings.csv`` of what the users took; a user of it
        without a list got no hit, and lists of users who took nothing do not count."""
        known = read_ratings(truth)
        taken = self._threshold(known.rating is not None).interactions(known)
        users, items, lists = read_lists(answers)
        number, place = ({name: i for i, name in enumerate(ids)} for ids in (taken.users, taken.items))
        found = np.full((len(taken.users), 2 * self.top), -1, np.int64)
        other = len(place)
        for name, mine in zip(users, lists, strict=True):
            if name in number:
                first = [place.get(items[i], other) for i in mine[: found.shape[1]]]
                found[number[name], : len(first)] = first
        if not (found >= 0).any():
            raise UserError(f"{answers} has a list of none of the {len(number)} users of {truth}")
        found[found == other] = -1  # an item that nobody took hits nothing, and its place stays taken
        return list_scores(found, starts(taken.user, len(taken.users)), taken.item, (self.top, 2 * self.top))


def list_scores(lists: Array, start: Array, items: Array, tops: Sequence[int]) -> list[Score]:
    """All measures at the lengths of interest; the first F1 is the headline."""
    return [Score(name, value, {"top": top}) for top in tops for name, value in measures(lists, start, items, top).items()]


def read_lists(path: Path) -> tuple[list[str], list[str], list[list[int]]]:
    """Users, names of items, and each user's list of item numbers: by `rank` where there is one, else by `score`, else as written."""
    frame, user, item = read_pairs(path)
    names, things = frame[user].to_list(), frame[item].to_list()
    rank, score = column_named(frame, "rank"), column_named(frame, "score")
    place = np.arange(len(names), dtype=float)
    if rank is not None:
        place = numbers(path, frame[rank]).to_numpy()
    elif score is not None:
        place = -numbers(path, frame[score]).to_numpy()
    seen: dict[tuple[str, str], int] = {}
    for line, pair in enumerate(zip(names, things, strict=True)):
        if pair in seen:
            raise UserError(
                f"{path}, line {line_of(line)}: user {pair[0]!r} has item {pair[1]!r} on line {line_of(seen[pair])}, too; "
                "an item stands once in a list"
            )
        seen[pair] = line
    code = {name: i for i, name in enumerate(dict.fromkeys(things))}
    lists: dict[str, list[int]] = {name: [] for name in names}
    for line in np.argsort(place, kind="stable").tolist():
        lists[names[line]].append(code[things[line]])
    return list(lists), list(code), list(lists.values())


def seen_of(shown: Interactions, users: Sequence[str]) -> dict[str, list[int]]:
    """User -> numbers of the items in the train part."""
    start = starts(shown.user, shown.users)
    return {name: shown.item[start[k] : start[k + 1]].tolist() for k, name in enumerate(users)}


def seen_by_name(ratings: Ratings, items: Sequence[str]) -> dict[str, list[int]]:
    """User -> numbers, in a list of items, of those that any line names with the user; other items are left out."""
    number = {name: i for i, name in enumerate(items)}
    place = np.array([number.get(name, -1) for name in ratings.items] or [0], np.int64)
    found: dict[str, list[int]] = {}
    item = place[ratings.item] if len(ratings) else ratings.item
    for u, i in zip(ratings.user.tolist(), item.tolist(), strict=True):
        if i >= 0:
            found.setdefault(ratings.users[u], []).append(i)
    return {name: sorted(set(mine)) for name, mine in found.items()}


def picked(start: Array, items: Array, rows: Array) -> tuple[Array, Array]:
    """The lists of some users, of lists that stand one after the other."""
    count = np.diff(start)[rows]
    begin = np.concatenate([[0], np.cumsum(count)])
    return begin, items[np.repeat(start[rows] - begin[:-1], count) + np.arange(begin[-1])]


def seen_pairs(asked: Asked, places: Array) -> tuple[Array, Array]:
    """(place in the chunk, item) of all that the users of a chunk have seen."""
    begin, items = picked(*asked.seen, places)
    return np.repeat(np.arange(len(places)), np.diff(begin)), items


def of_users(asked: Asked, places: Array) -> Asked:
    """The same question for some of the users."""
    return Asked(asked.rows[places], tuple(asked.names[p] for p in places.tolist()), picked(*asked.seen, places), asked.top)


def chunks(known: Array, size: int) -> Iterator[Array]:
    """Places of the known users, then of the others, `size` at a time."""
    for places in (np.flatnonzero(known), np.flatnonzero(~known)):
        for a in range(0, len(places), size):
            yield places[a : a + size]


def check_scores(scores: Array, expected: tuple[int, int], name: str, users: Sequence[str]) -> None:
    """`UserError` where a model's answer has another shape, or holds what is not finite (masking is the task's)."""
    if scores.shape != expected:
        raise UserError(f"{name} gave {list(scores.shape)} instead of scores {list(expected)} (users x items)")
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(1))[0])
        raise UserError(f"{name} gave a score that is not finite for user {users[row]!r}")


def histories(count: Array) -> dict[str, tuple[Array, tuple[str, ...]]]:
    """Users by how many train interactions they have (quartiles)."""
    if not len(count):
        return {}
    edges = np.unique(np.quantile(count, [0.25, 0.5, 0.75], method="higher"))
    edges = edges[edges < count.max()]
    low = [int(count.min()), *(int(e) + 1 for e in edges)]
    high = [*(int(e) for e in edges), int(count.max())]
    names = tuple(f"{a}" if a == b else f"{a}–{b}" for a, b in zip(low, high, strict=True))
    return {"history": (np.searchsorted(edges, count, side="left"), names)}
