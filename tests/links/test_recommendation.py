"""The task recommendation: measures by hand, lists, splits, what is masked and known, errors, and the commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import latticework as lw
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import evaluate
from latticework.core.grid import entry_of
from latticework.core.ledger import Ledger
from latticework.core.method import Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Fold, Part
from latticework.data.ratings import GivenRatings, Ratings
from latticework.links.recommendation import Interactions, Recommendation, best, measures
from latticework.testing import check_task


def ratings(lines: str, **more: Any) -> Ratings:
    """Ratings from ``user item [rating [time]]`` separated by commas."""
    rows = [line.split() for line in lines.split(",")]
    users, items = (tuple(dict.fromkeys(r[k] for r in rows)) for k in (0, 1))
    columns = [[float(r[k]) for r in rows] if len(rows[0]) > k else None for k in (2, 3)]
    return Ratings(
        users, items, np.array([users.index(r[0]) for r in rows]), np.array([items.index(r[1]) for r in rows]),
        None if columns[0] is None else np.array(columns[0], np.float32), None if columns[1] is None else np.array(columns[1]),
        **more,
    )  # fmt: skip


def pairs_of(part: Any, schema: Any) -> set[tuple[str, str]]:
    """(user, item) by name, of the interactions shown or of a truth."""
    if isinstance(part, Interactions):
        return {(schema["users"][u], schema["items"][i]) for u, i in zip(part.user, part.item, strict=True)}
    names, truth = part.query.names, part.truth
    return {
        (names[k], schema["items"][i])
        for k in range(len(names))
        for i in truth.items[truth.start[k] : truth.start[k + 1]].tolist()
    }


def everything(fold: Fold) -> tuple[set[Any], set[Any], set[Any]]:
    schema = fold.train.schema
    valid = pairs_of(fold.valid, schema) if fold.valid else set()
    return pairs_of(fold.train.data, schema), valid, pairs_of(fold.test, schema)


# -- measures and lists ----------------------------------------------------------------------------------------------------
def test_measures_of_a_toy_by_hand() -> None:
    """Three users, four items: lists of two; the users took {1}, {0, 3} and {2}."""
    lists = np.array([[1, 2], [3, 1], [0, 1]])
    found = measures(lists, np.array([0, 1, 3, 4]), np.array([1, 0, 3, 2]), 2)
    log3 = np.log2(3)
    assert found["precision"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert found["recall"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["f1"] == pytest.approx(2 * (1 / 3) * 0.5 / (1 / 3 + 0.5))
    assert found["ndcg"] == pytest.approx((1 + 1 / (1 + 1 / log3) + 0) / 3)
    assert found["mrr"] == pytest.approx(2 / 3) and found["hits"] == pytest.approx(2 / 3)
    one = measures(np.array([[2, 1], [1, 3], [0, 1]]), np.array([0, 1, 3, 4]), np.array([1, 0, 3, 2]), 2)
    assert one["mrr"] == pytest.approx((1 / 2 + 1 / 2) / 3)


def test_the_headline_is_no_mean_of_the_users_f1() -> None:
    start, items = np.array([0, 1, 5]), np.array([0, 0, 1, 2, 3])
    found = measures(np.array([[0, 1], [0, 1]]), start, items, 2)
    of_users = [measures(np.array([[0, 1]]), np.array([0, n]), items[:n] if n == 1 else items[1:], 2)["f1"] for n in (1, 4)]
    assert found["f1"] != pytest.approx(np.mean(of_users))
    assert found["f1"] == pytest.approx(2 * 0.75 * 0.75 / 1.5)


def test_no_hit_is_zero_and_empty_places_hit_nothing() -> None:
    found = measures(np.array([[-1, -1], [2, -1]]), np.array([0, 1, 2]), np.array([0, 1]), 2)
    assert set(found.values()) == {0.0}


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_best_equals_a_full_stable_sort(rows: int, width: int, top: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (rows, width)).astype(np.float32)  # many ties
    scores[rng.random((rows, width)) < 0.3] = -np.inf
    columns, values = best(scores, top)
    for r in range(rows):
        order = [c for c in np.argsort(-scores[r], kind="stable") if scores[r, c] > -np.inf][:top]
        assert columns[r].tolist() == order + [-1] * (top - len(order))
        assert values[r, : len(order)].tolist() == scores[r, order].tolist()


# -- what a method sees ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", ["random", "leave-last", "by-time"])
def test_task(split: str) -> None:
    check_task(Recommendation(split=split), "taste-groups")  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["random", "leave-last", "by-time"])
def test_parts_are_disjoint_and_known(split: str) -> None:
    task, data = Recommendation(split=split), open_data("taste-groups")  # type: ignore[arg-type]
    fold = task.fold(data, task.plan(data, 1)[0][0])
    train, valid, test = everything(fold)
    assert train and valid and test
    assert not train & valid and not train & test and not valid & test
    for part in (fold.train.data, fold.valid.data, fold.test.data):  # type: ignore[union-attr]
        assert pairs_of(part, fold.train.schema) == train, "a part shows more than the train part"
    seen = {(user, fold.train.schema["items"][i]) for user, mine in fold.train.schema["seen"].items() for i in mine}
    assert seen == train
    assert np.bincount(fold.train.data.user).min() >= 1 and np.bincount(fold.train.data.item).min() >= 1


class Leaky(Recommendation):
    """A task whose shown interactions bring the test items along."""

    name: ClassVar[str] = "recommendation"

    def fold(self, data: Any, name: str) -> Fold:
        fold = super().fold(data, name)
        return fold._replace(train=fold.train._replace(schema={**fold.train.schema, "also": fold.test.truth.items.tolist()}))


def test_a_planted_leak_is_caught() -> None:
    with pytest.raises(AssertionError, match="the truth of the test part can be read"):
        check_task(Leaky(), "taste-groups")


def test_random_split_has_the_shares_and_needs_no_order_of_lines() -> None:
    task, data = Recommendation(positive=None), open_data("taste-groups(users=200; items=30)")
    given: Ratings = data.read()
    fold = task.fold(data, "random-1")
    train, valid, test = everything(fold)
    m = len(given)
    assert abs(len(train) - 0.8 * m) <= 1 and abs(len(valid) + len(test) - 0.2 * m) <= 8  # a few may be dropped
    order = np.random.default_rng(0).permutation(m)
    mixed = GivenRatings.hold(given.only(order))
    assert everything(task.fold(mixed, "random-1")) == (train, valid, test)
    assert everything(task.fold(data, "random-2")) != (train, valid, test)


@pytest.mark.parametrize("split", ["random", "by-time"])
def test_a_model_for_use_keeps_back_what_chooses_and_no_more(split: str) -> None:
    data = open_data("taste-groups(users=200; items=30)")
    for train, valid in ((0.8, 0.1), (0.5, 0.1), (0.5, 0.3), (0.8, 0.0)):
        task: Any = Recommendation(positive=None, train=train, valid=valid, split=split)
        part = task.cut(task.interactions(data.read()), "all-0")
        held = (part == 1).mean()
        # users and items that would be left out stay, and equal times stay together
        assert held <= valid + 0.01 and held >= 0.7 * valid and not (part == 2).any()


def test_leave_last_keeps_the_last_two_of_three_or_more() -> None:
    text = "a x 5 1,a y 5 2,a z 5 3,b x 5 9,b z 5 8,c z 5 1,c y 5 5,c x 5 3"
    train, valid, test = everything(Recommendation(split="leave-last").fold(GivenRatings.hold(ratings(text)), "leave-last"))
    assert train == {("a", "x"), ("b", "x"), ("b", "z"), ("c", "z")}
    # y has no train line: what was held out of it cannot be judged
    assert valid == {("c", "x")} and test == {("a", "z")}


def test_by_time_keeps_equal_times_together() -> None:
    text = ",".join(f"u{k % 3} i{k % 8} 5 {min(k, 15)}" for k in range(24))
    task = Recommendation(split="by-time", train=0.5, valid=0.2)
    of = task.interactions(ratings(text))
    part = task.cut(of, "by-time")
    assert of.time is not None
    # the cut at 0.7 falls among the lines 15 to 23, which share a time: all of them test
    assert sorted(of.time[part == 0]) == list(range(12)) and sorted(of.time[part == 1]) == [12, 13, 14]
    assert of.time[part == 2].tolist() == [15.0] * 9
    fold = task.fold(GivenRatings.hold(ratings(text)), "by-time")
    assert fold.train.data.time is not None and fold.train.data.time.max() == 11


def test_cold_users_and_items_are_dropped_and_said() -> None:
    lines = ",".join(f"u{k % 5} i{k % 4} 5 {k}" for k in range(20)) + ",new i0 5 90,u0 fresh 5 91,u1 i0 5 92,u9 i9 5 93"
    task = Recommendation(split="by-time", train=0.75, valid=0.1)
    fold = task.fold(GivenRatings.hold(ratings(lines)), "by-time")
    assert "new" not in fold.train.schema["users"] and "fresh" not in fold.train.schema["items"]
    assert 0 < fold.test.truth.judged < 1
    result = evaluate(task, GivenRatings.hold(ratings(lines)), entry_of("popularity"), "by-time", 0, Ledger())
    assert {s.metric: s.value for s in result.scores}["judged"] == fold.test.truth.judged


def test_duplicates_are_merged_before_the_split_and_the_latest_counts() -> None:
    of = Recommendation().interactions(ratings("a x 5 1,a x 1 9,a y 1 4,a y 4 5,b x 3 1"))
    found = {(of.users[u], of.items[i]) for u, i in zip(of.user, of.item, strict=True)}
    assert found == {("a", "y"), ("b", "x")}, "a x was rated 1 in the end"
    lines = ",".join(f"u{k % 6} i{k % 7} 5" for k in range(42))
    once, twice = ratings(lines), ratings(lines + "," + lines)
    task = Recommendation()
    assert everything(task.fold(GivenRatings.hold(once), "random-0")) == everything(
        task.fold(GivenRatings.hold(twice), "random-0")
    )


# -- answers ---------------------------------------------------------------------------------------------------------------
class SeenLover(Method):
    """Scores what a user has seen above all else: the task must mask it."""

    name: ClassVar[str] = "seen-lover"
    tasks: ClassVar[tuple[str, ...]] = ("recommendation",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)

    def fit(self, train: Part, valid: Part | None, run: Run) -> Model:
        return SeenLoverModel(self, dict(train.schema), train.data.matrix().toarray())


class SeenLoverModel(Model):
    def __init__(self, method: Any, schema: Any, taken: Any) -> None:
        self.method, self.schema, self.taken = method, schema, taken

    def predict(self, part: Part) -> Any:
        return self.taken[part.query.rows] - 100  # negative throughout: masking by a product would put seen items first

    def state(self) -> Any:
        return {}

    @classmethod
    def restore(cls, method: Any, schema: Any, state: Any) -> Any:
        raise NotImplementedError


def test_seen_items_never_appear_and_ties_go_by_id() -> None:
    task, data = Recommendation(), open_data("taste-groups(items=12)")
    fold = task.fold(data, "random-0")
    run = Run(task=task)
    model = SeenLover().fit(fold.train, None, run)
    answer = task.answer(model, fold.test.blind(), run)
    taken = fold.train.data.matrix().toarray()[fold.test.query.rows] > 0
    for k, row in enumerate(answer.items):
        shown = row[row >= 0]
        assert not taken[k, shown].any()
        assert shown.tolist() == np.flatnonzero(~taken[k])[:20].tolist(), "all unseen are equal: the order is that of the ids"
    assert fold.train.schema["items"] == sorted(fold.train.schema["items"])


def test_whole_number_ids_are_ordered_as_numbers() -> None:
    of = Recommendation().interactions(ratings("10 100 5,9 20 5,10 3 5"))
    assert of.users == ("9", "10") and of.items == ("3", "20", "100")


def test_answers_of_the_wrong_form_are_refused() -> None:
    task, data = Recommendation(), open_data("taste-groups")
    fold = task.fold(data, "random-0")
    run = Run(task=task)
    model: Any = SeenLover().fit(fold.train, None, run)
    model.taken = model.taken[:, :-1]
    with pytest.raises(UserError, match=r"seen-lover gave \[\d+, \d+\] instead of scores \[\d+, \d+\] \(users x items\)"):
        task.answer(model, fold.test.blind(), run)
    model.taken = np.full((fold.train.data.users, fold.train.data.items), -np.inf)
    with pytest.raises(UserError, match="a score that is not finite for user"):
        task.answer(model, fold.test.blind(), run)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task, data = Recommendation(), open_data("taste-groups")
    fold, run = task.fold(data, "random-0"), Run(task=task)
    model = entry_of("item-knn").fit(fold.train, None, run)
    whole = task.answer(model, fold.test.blind(), run)
    monkeypatch.setattr("latticework.links.recommendation.CELLS", 100)
    pieces = task.answer(model, fold.test.blind(), run)
    assert np.array_equal(whole.items, pieces.items) and np.array_equal(whole.scores, pieces.scores)


def test_a_model_for_use_knows_all_users_and_leaves_out_what_was_rated_low() -> None:
    lines = ",".join(f"u{k % 8} i{k % 9} {5 if k % 4 else 1}" for k in range(60)) + ",low i0 1,low i1 2"
    data = GivenRatings.hold(ratings(lines))
    fitted = lw.fit("popularity", data)
    of = Recommendation().interactions(data.read())
    assert fitted.model.schema["users"] == list(of.users) and fitted.model.schema["items"] == list(of.items)
    answers = fitted.predict(data, top=20)
    seen = {(f"u{k % 8}", f"i{k % 9}") for k in range(60)} | {("low", "i0"), ("low", "i1")}
    for name, row in zip(answers.part.query.names, answers.values.items, strict=True):
        listed = [fitted.model.schema["items"][i] for i in row if i >= 0]
        assert not {(name, i) for i in listed} & seen
        assert len(listed) == len(of.items) - len({i for u, i in seen if u == name and i in of.items})
    low = answers.part.query.names.index("low")
    assert not answers.values.known[low], "nothing that the user liked: the popularity answer"


def test_unknown_users_get_what_is_popular() -> None:
    fitted = lw.fit("item-knn", "taste-groups")
    new = ratings("stranger i0 5,u3 i1 5,stranger nowhere 5")
    answers = fitted.predict(GivenRatings.hold(new), top=5)
    items, counts = fitted.model.schema["items"], fitted.model.schema["counts"]
    wanted = sorted((i for i in items if i != "i0"), key=lambda i: (-counts[items.index(i)], i))[:5]
    assert [items[i] for i in answers.values.items[0]] == wanted
    assert answers.values.known.tolist() == [False, True]


# -- errors ----------------------------------------------------------------------------------------------------------------
def test_errors_before_any_training() -> None:
    plain = GivenRatings.hold(ratings("a x,a y,b x,b y,c x,c z"))
    with pytest.raises(UserError, match="split=leave-last needs a column 'time'"):
        Recommendation(split="leave-last").for_data(plain)
    with pytest.raises(UserError, match="positive=4 needs a column 'rating', and there is none"):
        Recommendation(positive=4).for_data(plain)
    assert Recommendation().for_data(plain).positive is None
    with pytest.raises(UserError, match="nothing is left to test on"):
        Recommendation(train=0.9).for_data(plain)
    low = GivenRatings.hold(ratings("a x 1,a y 2,b x 2"))
    with pytest.raises(UserError, match=r"no rating is 3 or more \(the highest is 2\); lower it"):
        Recommendation().fold(low, "random-0")
    lonely = GivenRatings.hold(ratings(",".join(f"u{k} i{k} 5" for k in range(20))))
    with pytest.raises(UserError, match="the test part of split random-0 is empty: 2 interactions were kept for it"):
        Recommendation().fold(lonely, "random-0")
    for text in ("a x 5", "a x 5,b y 5"):
        with pytest.raises(UserError, match="the test part of split random-0 is empty"):
            Recommendation().fold(GivenRatings.hold(ratings(text)), "random-0")
    with pytest.raises(UserError, match="there are no ratings"):
        none = np.zeros(0, np.int64)
        Recommendation().fold(GivenRatings.hold(Ratings((), (), none, none)), "random-0")


def test_scores_at_both_lengths_and_by_history() -> None:
    task, data = Recommendation(top=5).for_data(open_data("taste-groups")), open_data("taste-groups")
    result = evaluate(task, data, entry_of("popularity"), "random-0", 0, Ledger())
    plain = [s for s in result.scores if "slice" not in s.at]
    assert [s.at["top"] for s in plain if s.metric == "f1"] == [5, 10]
    assert result.headline == plain[0].value and plain[0].metric == "f1"
    at = {(s.metric, s.at.get("top")): s.value for s in plain}
    assert at["recall", 10] >= at["recall", 5] and at["hits", 10] >= at["hits", 5] and at["mrr", 10] >= at["mrr", 5]  # type: ignore[operator]
    slices = [s for s in result.scores if s.at.get("slice") == "history"]
    fold = task.fold(data, "random-0")
    assert len(slices) >= 2 and sum(s.at["users"] for s in slices) == len(fold.test.query.rows)


# -- a user's day ----------------------------------------------------------------------------------------------------------
def test_commands(tmp_path: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("data", "export", "taste-groups", "mine")[0] == 0
    status, out, _ = command("data", "check", "mine/ratings.csv")
    assert status == 0 and "task recommendation fits" in out and "lightgcn" in out
    status, out, err = command("fit", "sheaf", "mine/ratings.csv", "-o", "MODEL", "-s", "epochs=2")
    assert status == 0, err
    Path("users.csv").write_text("user\nu3\nnobody\n")
    assert command("predict", "MODEL", "users.csv", "--top", "4", "-o", "top.csv")[0] == 0
    lines = [line.split(",") for line in Path("top.csv").read_text().splitlines()]
    assert lines[0] == ["user", "rank", "item", "score", "from"]
    assert [line[:2] for line in lines[1:]] == [[u, str(k)] for u in ("u3", "nobody") for k in range(1, 5)]
    assert [line[4] for line in lines[1:]] == ["model"] * 4 + ["popularity"] * 4
    had = {line.split(",")[1] for line in Path("mine/ratings.csv").read_text().splitlines() if line.startswith("u3,")}
    assert not had & {line[2] for line in lines[1:5]}
    status, out, err = command("compare", "mine", "-m", "lightgcn,item-knn", "-s", "epochs=2", "--repeats", "2", "--classic", "1")
    assert status == 0 and "popularity [unasked]" in out and "bpr-mf" in out, err


def test_lists_made_elsewhere(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    truth, made = tmp_path / "ratings.csv", tmp_path / "top.csv"
    truth.write_text("user,item,rating\na,1,5\nb,0,4\nb,3,3\nc,2,5\nc,1,1\nd,7,1\n")
    made.write_text("user,item,score\na,2,0.5\na,1,0.9\nb,1,1\nb,3,2\nc,0,1\nc,1,0.5\nz,1,1\n")
    at = {(s.metric, s.at["top"]): s.value for s in Recommendation(top=2).judge(made, truth)}
    assert at["f1", 2] == pytest.approx(0.4) and at["ndcg", 2] == pytest.approx((1 + 1 / (1 + 1 / np.log2(3))) / 3)
    made.write_text("user,item,rank\na,1,2\na,2,1\n")  # b and c have no list: no hit
    at = {(s.metric, s.at["top"]): s.value for s in Recommendation(top=2).judge(made, truth)}
    assert at["mrr", 2] == pytest.approx(1 / 6)
    assert command("score", "recommendation", made, truth)[0] == 0
    made.write_text("user,item\na,1\na,2\na,1\n")
    with pytest.raises(UserError, match="line 4: user 'a' has item '1' on line 2, too"):
        Recommendation().judge(made, truth)
    made.write_text("user,item\nx,1\n")
    with pytest.raises(UserError, match="has a list of none of the 3 users"):
        Recommendation().judge(made, truth)


def test_a_model_that_chooses_nothing_learns_from_all() -> None:
    """For use; judged ones, and what tuning compares, know the train part alone."""
    given = open_data("taste-groups")
    of = Recommendation().interactions(given.read())
    counts = np.bincount(of.item, minlength=len(of.items)).tolist()
    popular, alike = lw.fit("popularity", given), lw.fit("item-knn", given)
    assert popular.model.counts.tolist() == counts == popular.model.schema["counts"]
    assert alike.model.taken.nnz == len(of)
    every = lw.fit("item-knn", given, settings={"task.valid": 0})
    assert (abs(every.model.taken - alike.model.taken)).nnz == 0 and (abs(every.model.alike - alike.model.alike)).max() == 0
    fold = Recommendation().fold(given, "random-0")
    judged = lw.fit("popularity", given, fold="random-0")
    assert judged.model.counts.sum() == len(fold.train.data.user)


def test_users_without_a_list_and_short_lists_are_said(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "ratings.csv").write_text("user,item\n" + "".join(f"u{k},i{j}\n" for k in range(8) for j in range(k % 4 + 1)))
    assert command("fit", "popularity", tmp_path / "ratings.csv", "-o", tmp_path / "M")[0] == 0
    status, out, err = command("predict", tmp_path / "M", tmp_path / "ratings.csv", "--top", "9", "-o", tmp_path / "top.csv")
    said = " ".join((out + err).split())
    assert status == 0 and "2 of 8 users have had every item and get none" in said and "6 of 8 lists are shorter than 9" in said
    (tmp_path / "users.csv").write_text("user,age\na,1\na,2\n")
    status, out, _ = command("data", "check", tmp_path / "users.csv")
    assert status == 0 and "1 lines name a user who stands above" in out and "columns that nothing reads: age" in out
    assert "to be given to `predict` with a model of recommendation" in out


def test_a_fit_that_diverged_is_no_model() -> None:
    with pytest.raises(UserError, match=r"sheaf diverged.*lower its lr"):
        lw.fit("sheaf", "taste-groups", settings={"task.valid": 0}, lr=1.0, step=10, layers=16, epochs=3, width=8)


def test_splits_of_few_interactions() -> None:
    given = open_data("taste-groups")
    fold = Recommendation(train=0.0001, valid=0.0)
    assert (fold.cut(fold.interactions(given.read()), "random-0") == 0).sum() == 1
    tied = ratings("a x 5 1,a y 5 1,b x 5 1,b y 5 1,c x 5 1")
    with pytest.raises(UserError, match=r"earliest time, which are never cut apart; use -s task\.split=random"):
        Recommendation(split="by-time").fold(GivenRatings.hold(tied), "by-time")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"user": np.array([0, 1, 0])}, "item has shape .2. where there are 3 lines"),
        ({"rating": np.array([1.0])}, "rating has shape .1. where there are 2 lines"),
        ({"user": np.array([0.0, 1.0])}, "user is float64; whole numbers"),
        ({"users": (1, 2)}, "the id 1 of a user is int; ids are texts"),
    ],
)
def test_columns_that_do_not_fit(change: dict[str, Any], says: str) -> None:
    good = {"users": ("a", "b"), "items": ("x",), "user": [0, 1], "item": [0, 0]}  # lists will do
    assert len(GivenRatings.hold(Ratings(**good)).read().user) == 2  # type: ignore[arg-type]
    with pytest.raises(UserError, match=says):
        GivenRatings.hold(Ratings(**good | change))  # type: ignore[arg-type]


def test_ids_of_thousands_of_digits_are_ordered(tmp_path: Path) -> None:
    long = "1" * 5000
    (tmp_path / "ratings.csv").write_text(f"user,item\n{long},1\n2,10\n010,9\n")
    assert Recommendation().interactions(open_data(tmp_path / "ratings.csv").read()).users == ("2", "010", long)


def test_who_has_everything_has_nothing_to_learn_from(tmp_path: Path, command: Callable[..., Any]) -> None:
    (tmp_path / "ratings.csv").write_text("user,item\n" + "a,x\n")
    for method in ("bpr-mf", "lightgcn", "sheaf"):
        status, _, err = command("fit", method, tmp_path / "ratings.csv", "-s", "epochs=1", "-o", tmp_path / method)
        assert status == 2 and "use popularity" in " ".join(err.split()), err


def test_times_before_1970_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("user,item,time\na,x,1965-01-01\na,y,1999-12-31T23:59:59.25\nb,x,1970-01-02\n")
    first = open_data(tmp_path / "ratings.csv")
    first.write(tmp_path / "again")
    assert np.array_equal(open_data(tmp_path / "again").read().time, first.read().time) and first.read().time.min() < 0
