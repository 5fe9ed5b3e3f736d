"""Signed links in time: will the next link be friendly or hostile, will there be one, how strong is it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Facts, Fold, Part
from latticework.core.value import setting
from latticework.data.events import Events, time_column, weights_of

from .stream import StreamTask, Walk, batch_ends, read_pairs, schema_at, told_of
from .tasks import Pairs

Array = NDArray[Any]
Target = Literal["sign", "existence", "sign-or-none", "weight"]
CLASSES: Mapping[str, tuple[str, ...]] = {
    "sign": ("negative", "positive"), "existence": ("link", "none"), "sign-or-none": ("negative", "positive", "none"),
    "weight": ("negative", "positive"),
}  # fmt: skip


class SignedTruth(NamedTuple):
    """`label` int64 [m, c]: the class of each asked pair, as numbered in `CLASSES`; `weight` float64 [m]: of the events.

    `place` int64 [m]: the column of the true target (0 where one pair is asked); `new` bool [m]: whether an end of the event
    is in no train event.
    """

    label: Array
    weight: Array
    place: Array
    new: Array


@dataclass(frozen=True)
class SignedWalk(Walk):
    """A walk whose first part is asked, too: `rehearsal` walks the events of `before`, and what comes of it sets the cut."""

    rehearsal: Walk | None = None


class SignedLinks(StreamTask):
    """Signed links to come, each asked from the state before its batch. The headline is AUC (of `target=weight`: MSE).

    The log is cut by time, 70/15/15 of the events; equal times are never cut apart. The task walks it in batches of about
    `ask_at_once` events: a batch is asked from what came before it, then its links and signs are revealed. Methods that learn
    from every single event live by that number: counts that are brought up to date after each event know more than after a
    thousand.

    `target`: ``sign``: is the link, which is given, positive? ``existence``: which of two pairs is linked, the true one or one with
    a random target that is known by then (at a random place). ``sign-or-none``: the same pairs, each negative, positive or no
    link. ``weight``: the signed weight of the link, which is given.

    A model is asked with `Pairs` (src [b], dst [b, c], t [b]; c = 2 where non-links are asked, else 1) and gives logits [b, c] (of
    ``sign-or-none`` [b, c, 3]: negative, positive, none; of ``weight`` weights). Its schema holds the `target`.

    Scores: AUC (of three classes: the mean of one against the rest), average precision and F1 at each class, the negative first;
    and the same at nodes seen in training and new, all from one and the same state. Cuts between classes are those with the
    best macro-F1 on the validation events, which the task asks before it reveals them, of every method alike; on validation
    itself the cut is at even odds.
    """

    name: ClassVar[str] = "signed-links"
    typed: ClassVar[str] = "pairs.csv --at TIME"
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("auc", "", "higher"),
        Metric("average-precision", "", "higher"),
        Metric("f1", "", "higher"),
        Metric("macro-f1", "", "higher"),
        Metric("mse", "", "lower"),
        Metric("confusion", "", "higher"),
    )

    target: Target = setting("sign", "what is asked about a link")
    ask_at_once: int = setting(1000, "events asked at a time", ge=1)

    @property
    def headline_metric(self) -> str:  # type: ignore[override]
        return "mse" if self.target == "weight" else "auc"

    def baselines(self, facts: Facts) -> tuple[str, ...]:
        return "sign-majority", "signed-counts"

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.label]

    # -- folds -------------------------------------------------------------------------------------------------------------
    def for_data(self, data: Dataset) -> Self:
        if data.kind in self.kinds and not data.read().signed:
            raise UserError(
                "signed links need signs: a column 'sign' of 1 and -1, or a column 'weight' with negative ones, and these events "
                "have neither"
            )
        return self

    def fold(self, data: Dataset, name: str) -> Fold:
        self.for_data(data)
        events: Events = data.read()
        assert events.weight is not None
        bad = np.flatnonzero(~np.isfinite(events.weight) | (events.weight == 0))
        if len(bad):
            row = int(bad[0])
            raise UserError(f"event {row} (time {events.t[row]:g}) has the weight {events.weight[row]:g}, which has no sign")
        train_end, valid_end, test_end = self.ends_of(events, name)
        train = events.rows(0, train_end)
        if self.target in ("sign", "sign-or-none") and len(np.unique(train.weight > 0)) < 2:  # type: ignore[operator]
            which = "positive" if float(train.weight[0]) > 0 else "negative"  # type: ignore[index]
            raise UserError(
                f"all {len(train)} train events are {which}: nothing can be learned about the other sign; use "
                "-s task.target=existence, or a longer log"
            )
        final = name == "all"
        rng = np.random.default_rng([0 if final else int(name.rpartition("-")[2]), 0x7369676E])
        seen = np.zeros(events.nodes, bool)
        seen[train.src] = seen[train.dst] = True
        schema = {**schema_at(train), "target": self.target}
        targets = np.zeros(events.nodes, bool)
        targets[train.dst] = True
        valid, valid_truth = self._walk(events.rows(train_end, valid_end), events.rows(0, 0), targets, seen, rng)
        test, test_truth = self._walk(events.rows(valid_end, test_end), valid.events, targets, seen, rng, valid)
        return Fold(Part(train, None, None, schema), Part(valid, None, valid_truth, schema), Part(test, None, test_truth, schema))

    def _walk(
        self, events: Events, before: Events, targets: Array, seen: Array, rng: Any, rehearsal: Walk | None = None
    ) -> tuple[SignedWalk, SignedTruth]:
        """The walk over events, and the truth. `targets` bool [n]: who was a target so far; goes on."""
        ends, m = batch_ends(events.t, self.ask_at_once), len(events)
        assert events.weight is not None
        positive = (events.weight > 0).astype(np.int64)
        new = ~(seen[events.src] & seen[events.dst])
        if self.target in ("sign", "weight"):
            dst, place, label = events.dst[:, None], np.zeros(m, np.int64), positive[:, None]
        else:
            place = rng.integers(2, size=m)
            false = np.empty(m, np.int64)
            start = 0
            for stop in ends.tolist():
                targets[events.dst[start:stop]] = True
                false[start:stop] = other_targets(events.dst[start:stop], np.flatnonzero(targets), rng)
                start = stop
            dst = np.where(place[:, None] == np.arange(2), events.dst[:, None], false[:, None])
            link = dst == events.dst[:, None]
            if self.target == "existence":
                label = np.where(link, 0, 1)
            else:
                label = np.where(link, positive[:, None], 2)
        walk = SignedWalk(before, events, ends, {"dst": dst}, rehearsal)
        return walk, SignedTruth(label, events.weight.astype(np.float64), place, new)

    # -- asking ------------------------------------------------------------------------------------------------------------
    def query_of(self, part: Part, start: int, stop: int) -> Pairs:
        return self._query(part.data, start, stop)

    def _query(self, walk: Walk, start: int, stop: int) -> Pairs:
        events = walk.events
        dst = walk.asked["dst"][start:stop] if "dst" in walk.asked else events.dst[start:stop, None]
        return Pairs(events.src[start:stop], dst, events.t[start:stop])

    def checked(self, found: Any, part: Part, start: int, stop: int, model: Any) -> Array:
        """float64 [b, c] (or [b, c, 3]), finite."""
        scores = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found, dtype=np.float64)
        asked = part.data.asked
        wanted: tuple[int, ...] = (stop - start, asked["dst"].shape[1] if "dst" in asked else 1)
        if self.target == "sign-or-none":
            wanted = (*wanted, 3)
        if scores.shape != wanted:
            raise UserError(f"{model.method.name} gave scores {list(scores.shape)} where {list(wanted)} were asked for")
        if not np.isfinite(scores).all():
            raise UserError(f"{model.method.name} gave a score that is not finite for an event at {part.data.events.t[start]:g}")
        return scores

    def answer(self, model: Any, part: Part, run: Run) -> Array:
        """float64 [m, k + 1]: the scores of a row's k asked numbers, and the cut that validation chose (the same in all rows).

        Of a user's pairs [m, k], and [m, k + 8] where the model can say which two past links weigh most (`behind`).
        """
        walk: Walk = part.data
        found = super().answer(model, part, run)
        found = found.reshape(len(found), -1) if len(found) else np.zeros((0, 1))
        if not isinstance(walk, SignedWalk):
            behind = getattr(model, "behind", None)
            links = None if behind is None else behind(self._query(walk, 0, len(walk.events)))
            return found if links is None else np.column_stack([found, links.reshape(len(found), -1)])
        cut = 0.0
        if walk.rehearsal is not None and len(walk.rehearsal.events):
            cut = self._cut(super().answer(model, part._replace(data=walk.rehearsal), run), walk.rehearsal)
        return np.column_stack([found, np.full(len(found), cut)])

    def _cut(self, scores: Array, walk: Walk) -> float:
        """The cut (of three classes: what the negative logit gains) with the best macro-F1 on events that are then revealed."""
        events = walk.events
        assert events.weight is not None
        positive = (events.weight > 0).astype(np.int64)
        link = walk.asked["dst"] == events.dst[:, None]
        if self.target == "weight":
            return 0.0
        if self.target == "sign":
            return _best_cut(scores.ravel(), positive == 1)
        if self.target == "existence":
            return _best_cut(scores.ravel(), link.ravel())
        label = np.where(link, positive[:, None], 2).ravel()
        flat = scores.reshape(-1, 3)
        lead = flat[:, 1:].max(1) - flat[:, 0]  # negative wins once it gains more than that
        order = np.unique(np.quantile(lead, np.linspace(0, 1, 101)))
        values = [_macro_f1(label, self._decided(flat, gain), 3) for gain in order]
        return float(order[int(np.argmax(values))])

    def _decided(self, flat: Array, cut: float) -> Array:
        """Class numbers of scores [q] (of three classes [q, 3]) under a cut."""
        if self.target == "sign-or-none":
            return np.argmax(flat + np.array([cut, 0.0, 0.0]), 1)
        if self.target == "existence":
            return np.where(flat >= cut, 0, 1)
        return (flat >= cut).astype(np.int64)

    # -- judging -----------------------------------------------------------------------------------------------------------
    def value(self, answer: Any, part: Part, run: Run) -> float | None:
        return self._main(answer, part.truth, np.ones(len(answer), bool), {})[0].value

    def score(self, answer: Any, part: Part, run: Run | None) -> list[Score]:
        truth: SignedTruth = part.truth
        scores = self._scores(answer, truth, np.ones(len(answer), bool), {})
        if self.target != "weight":
            scores += self._confusion(answer, truth)
        for words, rows in (("seen", ~truth.new), ("new", truth.new)):
            scores += self._scores(answer, truth, rows, {"slice": "nodes", "nodes": words, "events": int(rows.sum())})
        return scores

    def _shaped(self, answer: Array) -> tuple[Array, float]:
        """Scores [m, c(, 3)] and the cut."""
        scores = answer[:, :-1]
        if self.target == "sign-or-none":
            scores = scores.reshape(len(scores), -1, 3)
        return scores, float(answer[0, -1]) if len(answer) else 0.0

    def _main(self, answer: Array, truth: SignedTruth, rows: Array, at: Mapping[str, Any]) -> list[Score]:
        from sklearn.metrics import roc_auc_score

        if not rows.any():
            return [Score(self.headline_metric, None, at, "no event of this kind")]
        scores, _ = self._shaped(answer)
        if self.target == "weight":
            return [Score("mse", float(((scores[rows, 0] - truth.weight[rows]) ** 2).mean()), at)]
        label = truth.label[rows].ravel()
        flat = scores[rows].reshape(len(label), -1)
        per_class = []
        for k, probability in self._class_scores(flat):
            if (label == k).any() and (label != k).any():
                per_class.append(float(roc_auc_score(label == k, probability)))
        if not per_class:
            return [Score("auc", None, at, f"all {len(label)} are of one class")]
        return [Score("auc", sum(per_class) / len(per_class), at)]

    def _class_scores(self, flat: Array) -> list[tuple[int, Array]]:
        """(class, how much each pair looks like it) for every class that counts."""
        if self.target == "sign-or-none":
            from scipy.special import log_softmax

            logs = log_softmax(flat, 1)
            return [(k, logs[:, k]) for k in range(3)]
        score = flat[:, 0]
        return [(0, score)] if self.target == "existence" else [(0, -score), (1, score)]

    def _scores(self, answer: Array, truth: SignedTruth, rows: Array, at: Mapping[str, Any]) -> list[Score]:
        from sklearn.metrics import average_precision_score

        found = self._main(answer, truth, rows, at)
        if not rows.any():
            return found
        scores, cut = self._shaped(answer)
        names = CLASSES[self.target]
        if self.target == "weight":
            for k, sign in ((0, truth.weight < 0), (1, truth.weight > 0)):
                some, where = rows & sign, {**at, "class": names[k]}
                if some.any():
                    found.append(Score("mse", float(((scores[some, 0] - truth.weight[some]) ** 2).mean()), where))
                else:
                    found.append(Score("mse", None, where, f"no {names[k]} link"))
            return found
        label = truth.label[rows].ravel()
        flat = scores[rows].reshape(len(label), -1)
        decided = self._decided(flat if self.target == "sign-or-none" else flat[:, 0], cut)
        for k, score in self._class_scores(flat):
            where = {**at, "class": names[k]}
            if not (label == k).any():
                found += [Score(metric, None, where, f"no pair is {names[k]}") for metric in ("average-precision", "f1")]
                continue
            found.append(Score("average-precision", float(average_precision_score(label == k, score)), where))
            found.append(Score("f1", _f1(label, decided, k), where))
        found.append(Score("macro-f1", _macro_f1(label, decided, len(names)), at))
        return found

    def _confusion(self, answer: Array, truth: SignedTruth) -> list[Score]:
        """The confusion table, cell by cell: how many pairs of a class were taken for another, the negative class first."""
        scores, cut = self._shaped(answer)
        label = truth.label.ravel()
        flat = scores.reshape(len(label), -1)
        decided = self._decided(flat if self.target == "sign-or-none" else flat[:, 0], cut)
        names = CLASSES[self.target]
        return [
            Score("confusion", float(((label == i) & (decided == j)).sum()), {"slice": "table", "true": a, "said": b})
            for i, a in enumerate(names)
            for j, b in enumerate(names)
        ]

    # -- users' files ------------------------------------------------------------------------------------------------------
    def ask(self, data: Dataset | None, query: Any, schema: Facts) -> Part:
        part = super().ask(data, query, schema)
        unknown = part.data.events.nodes - len(schema["nodes"])
        if unknown:
            warnings.warn(
                f"{unknown} nodes are asked about that the model has never seen ({', '.join(part.data.events.ids[-unknown:][:3])}"
                "...): it knows nothing of them", stacklevel=2,
            )  # fmt: skip
        return part

    def write(self, answer: Any, part: Part, to: Path) -> None:
        """CSV: source, target, time and what was asked: probabilities of conflict and support (of the three classes; of a link),
        or the weight. Scores that are no logits stay as `score`. Of a model that can tell, the two past links that weigh most."""
        import polars as pl
        from scipy.special import expit, softmax

        walk: Walk = part.data
        events = walk.events
        names = np.array(events.ids, object)
        links: Array | None = None
        if isinstance(walk, SignedWalk):
            place = np.argmax(walk.asked["dst"] == events.dst[:, None], 1)
            mine = self._shaped(answer)[0][np.arange(len(events)), place]
        else:
            k = 3 if self.target == "sign-or-none" else 1
            mine, links = answer[:, :k], answer[:, k:].reshape(len(answer), (answer.shape[1] - k) // 4, 4)
            mine = mine if k == 3 else mine[:, 0]
        columns: dict[str, Any] = {
            "source": names[events.src].tolist(), "target": names[events.dst].tolist(), "time": time_column(events.t),
        }  # fmt: skip
        if self.target == "weight":
            columns["weight"] = mine
        elif not part.schema.get("logits", True):
            columns["score"] = mine
        elif self.target == "sign-or-none":
            shares = softmax(mine, 1)
            columns |= {"conflict": shares[:, 0], "support": shares[:, 1], "none": shares[:, 2]}
        elif self.target == "sign":
            columns |= {"conflict": expit(-mine), "support": expit(mine)}
        else:
            columns["link"] = expit(mine)
        if links is not None:
            for number, word in enumerate(("strongest", "second")[: links.shape[1]]):
                columns[f"{word} past link"] = [
                    _in_words(row[number], (u, v), names) for row, u, v in zip(links, events.src, events.dst, strict=True)
                ]
        write_whole(to, pl.DataFrame(columns).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """A file of answers (source,target[,time] and support or score, or weight) against one of truths (…,sign or weight)."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        from latticework.data.table import need, numbers

        if self.target not in ("sign", "weight"):
            raise UserError(f"a file can be judged for target=sign and target=weight, not for {self.target}: non-links are drawn")
        keys, frame = read_pairs(answers)
        wanted, told = read_pairs(truth)
        need(truth, told, *(("weight", "sign") if self.target == "weight" else ("sign", "weight")))
        weights, _, _ = weights_of(truth, told)
        assert weights is not None
        y = np.array(told_of(answers, truth, keys, wanted, weights.tolist()))
        words = ("weight",) if self.target == "weight" else ("support", "score", "probability")
        score = numbers(answers, frame[need(answers, frame, *words)]).to_numpy()
        if self.target == "weight":
            return [Score("mse", float(((score - y) ** 2).mean()))]
        if (y == 0).any() or len(np.unique(y > 0)) < 2:
            raise UserError(f"{truth} needs both signs among the answered pairs, in a column 'sign' or 'weight', and no 0")
        return [
            Score("auc", float(roc_auc_score(y > 0, score))),
            Score("average-precision", float(average_precision_score(y < 0, -score)), {"class": "negative"}),
            Score("average-precision", float(average_precision_score(y > 0, score)), {"class": "positive"}),
        ]


def _in_words(link: Array, ends: tuple[int, int], names: Array) -> str:
    """A past link as text: whose it is, with whom, its weight, its share of the attention; empty where there is none."""
    at, other, weight, share = link.tolist()
    return "" if other < 0 else f"{names[ends[int(at)]]} with {names[int(other)]}: weight {weight:+g}, attention {share:.2f}"


def other_targets(true: Array, pool: Array, rng: Any) -> Array:
    """int64 [b]: uniform over an ascending pool that holds `true`, without each row's own."""
    if len(pool) < 2:
        raise UserError("all events go to one target: there is no other that could stand for a link that is not there")
    drawn = rng.integers(len(pool) - 1, size=len(true))
    drawn += drawn >= np.searchsorted(pool, true)
    return np.asarray(pool[drawn])


def _f1(label: Array, decided: Array, k: int) -> float:
    """F1 of class k; 0 where it is neither there nor said."""
    both = 2 * ((label == k) & (decided == k)).sum()
    total = (label == k).sum() + (decided == k).sum()
    return float(both / total) if total else 0.0


def _macro_f1(label: Array, decided: Array, classes: int) -> float:
    return sum(_f1(label, decided, k) for k in range(classes)) / classes


def _best_cut(score: Array, positive: Array) -> float:
    """The cut with the best mean of both classes' F1, `score >= cut` meaning positive; between two scores; even odds (0)
    where one class is missing."""
    if positive.all() or not positive.any():
        return 0.0
    order = np.argsort(score, kind="stable")
    s, p = score[order], positive[order]
    below = np.cumsum(p)  # positives among the k + 1 lowest
    k = np.arange(1, len(s) + 1)
    total, m = p.sum(), len(s)
    f1_positive = 2 * (total - below) / (total + m - k)
    f1_negative = 2 * (k - below) / (m - total + k)
    possible = np.append(np.diff(s) > 0, False)  # equal scores are not to be cut apart
    if not possible.any():
        return 0.0
    best = int(np.argmax(np.where(possible, f1_positive + f1_negative, -1.0)))
    return float((s[best] + s[best + 1]) / 2)
