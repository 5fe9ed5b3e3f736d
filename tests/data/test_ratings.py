"""Ratings: reading, merging, lists of users, writing, and the published sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.data.ratings import GivenRatings, RatingFiles, Ratings, UserList, id_order, merged, read_ratings, write_ratings
from latticework.testing import check_data


def written(folder: Path, text: str, name: str = "ratings.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def rows(of: Ratings) -> list[tuple[object, ...]]:
    """(user, item, rating, time) by name, in the order held."""
    rating = [None] * len(of) if of.rating is None else of.rating.tolist()
    time = [None] * len(of) if of.time is None else of.time.tolist()
    return [(of.users[u], of.items[i], r, t) for u, i, r, t in zip(of.user, of.item, rating, time, strict=True)]


def test_reading(tmp_path: Path) -> None:
    path = written(tmp_path, "time;Rating;item;user\r\n3;4.5;x;a\r\n1;2;y;a\r\n")
    assert rows(read_ratings(path)) == [("a", "x", 4.5, 3.0), ("a", "y", 2.0, 1.0)]
    path = written(
        tmp_path, "user_id,item_id,stars,timestamp,shop\n7,1,5,2024-01-01T00:00:00+00:00,s\n7,2,1,2024-01-02T00:00:00+00:00,s\n"
    )
    of = read_ratings(path)
    assert rows(of) == [("7", "1", 5.0, 1704067200.0), ("7", "2", 1.0, 1704153600.0)]
    assert any("nothing reads: shop" in note for note in of.notes)
    assert rows(read_ratings(written(tmp_path, "user,item\na,x\n"))) == [("a", "x", None, None)]


def test_recognised_by_header(tmp_path: Path) -> None:
    assert isinstance(open_data(written(tmp_path, "user,item\na,x\n")), RatingFiles)
    assert isinstance(open_data(tmp_path), RatingFiles)
    assert isinstance(open_data(written(tmp_path, "user\na\n", "users.csv")), UserList)
    assert open_data(written(tmp_path, "source,target\na,b\n", "edges.csv")).kind == "graph"
    assert open_data(written(tmp_path, "source,target,time\na,b,1\n", "log.csv")).kind == "events"


def test_users_alone(tmp_path: Path) -> None:
    data = open_data(written(tmp_path, "user,note\nb,1\na,2\nb,3\n", "users.csv"))
    assert data.read().users == ("b", "a") and data.facts() == {"users": 2}
    with pytest.raises(UserError, match="line 3, column 'user': no user is named"):
        open_data(written(tmp_path, "user,note\nb,1\n,2\n", "users.csv")).read()


def test_the_latest_of_a_pair_counts(tmp_path: Path) -> None:
    timed = read_ratings(written(tmp_path, "user,item,rating,time\na,x,5,9\na,x,1,3\nb,x,2,1\nb,x,4,1\n"))
    assert rows(merged(timed)) == [("a", "x", 5.0, 9.0), ("b", "x", 4.0, 1.0)]
    plain = read_ratings(written(tmp_path, "user,item,rating\na,x,5\na,x,1\nb,x,2\n"))
    assert rows(merged(plain)) == [("a", "x", 1.0, None), ("b", "x", 2.0, None)]
    lines = open_data(tmp_path / "ratings.csv").check()
    assert "duplicates: 1" in lines and any(
        "1 lines name a pair that stands elsewhere, too; the last of each" in x for x in lines
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_merging_needs_no_order_of_lines(pairs: list[tuple[int, int]], seed: int) -> None:
    user, item = np.array(pairs).T
    time = np.random.default_rng(seed).permutation(len(pairs)).astype(float)
    ids = tuple(str(k) for k in range(6))
    of = Ratings(ids, ids, user, item, (user + item + time).astype(np.float32), time)
    order = np.random.default_rng(seed).permutation(len(pairs))
    once, again = merged(of), merged(of.only(order))
    assert rows(once) == rows(again) and len(once) == len(set(pairs))
    assert rows(merged(once)) == rows(once)
    assert set(once.users) == {str(u) for u in user} and np.array_equal(np.unique(once.item), np.arange(len(once.items)))
    best = {(str(u), str(i)): float(t) for t, u, i in sorted(zip(time, user, item, strict=True))}
    assert {(u, i): t for u, i, _, t in rows(once)} == best


def test_ids_are_ordered_by_value_where_all_are_numbers() -> None:
    assert [("10", "9", "100")[k] for k in id_order(("10", "9", "100"))] == ["9", "10", "100"]
    assert [("10", "9", "x")[k] for k in id_order(("10", "9", "x"))] == ["10", "9", "x"]
    assert id_order(()).tolist() == []


def test_export_reads_back_as_the_same(tmp_path: Path) -> None:
    for name in ("taste-groups", "taste-groups(users=7; items=5; each=3)"):
        of = open_data(name).read()
        write_ratings(of, tmp_path / "out")
        assert rows(read_ratings(tmp_path / "out")) == rows(of)
    odd = Ratings(
        ("a, b", 'c"'), ("x",), np.array([0, 1]), np.array([0, 0]), np.array([0.1, 2.5], np.float32), np.array([0.5, 1e9])
    )
    write_ratings(odd, tmp_path / "odd.csv")
    assert rows(read_ratings(tmp_path / "odd.csv")) == rows(odd)


def test_identity(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one, two = written(tmp_path / "a", "user,item\na,x\n"), written(tmp_path / "b", "user,item\na,x\n")
    assert open_data(one).digest() == open_data(two).digest()
    written(tmp_path / "b", "user,item\na,y\n")
    assert open_data(one).digest() != open_data(two).digest()
    check_data(one)


@pytest.mark.parametrize("name", ["taste-groups", "taste-groups(seed=1; groups=2)"])
def test_data(name: str) -> None:
    check_data(name)
    assert open_data("taste-groups").digest() != open_data("taste-groups(seed=1)").digest()


def test_ratings_made_in_python() -> None:
    good = Ratings(("a", "b", "c"), ("x",), np.array([0, 1]), np.array([0, 0]))
    data = open_data(good)
    assert isinstance(data, GivenRatings) and data.read() is good
    check_data(data)
    assert any("1 users have no line" in line for line in data.check())
    none = np.zeros(0, np.int64)
    for bad, says in (
        (Ratings(("a",), ("x",), np.array([1]), np.array([0])), "a user has a number outside 0 to 0"),
        (Ratings(("a", "a"), ("x",), np.array([1]), np.array([0])), "two users have the same id"),
        (Ratings(("a",), ("x",), np.array([0]), np.array([0]), np.array([np.nan])), "a rating is not finite"),
        (Ratings(("a",), ("x",), np.array([0]), np.array([0]), None, np.array([np.inf])), "a time is not finite"),
    ):
        with pytest.raises(UserError, match=says):
            GivenRatings.hold(bad)
    with pytest.raises(UserError, match="there are no ratings"):
        GivenRatings.hold(Ratings((), (), none, none)).check()


def test_movielens(mirror: Callable[[str], Path]) -> None:
    mirror("ml-100k")
    data = open_data("ml-100k")
    facts = data.facts()
    assert (facts["lines"], facts["users"], facts["items"], facts["duplicates"]) == (100_000, 943, 1682, 0)
    of = data.read()
    assert {int(u) for u in of.users} == set(range(1, 944)) and {int(i) for i in of.items} == set(range(1, 1683))
    assert int((of.rating >= 3).sum()) == 82_520
    assert rows(of)[0] == ("196", "242", 3.0, 881250949.0)
    check_data("ml-100k")


def test_facebook(mirror: Callable[[str], Path]) -> None:
    mirror("facebook-items")
    facts = open_data("facebook-items").facts()
    assert (facts["lines"], facts["users"], facts["items"], facts["rated"]) == (17_626, 1398, 2726, False)


def test_another_file_is_no_movielens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k" / "u.data").write_text("0\t50\t5\t881250949\n")  # a copy with a made-up user
    monkeypatch.setenv("LATTICEWORK_DATA", str(tmp_path))
    with pytest.raises(UserError, match="is not the file of the catalogue"):
        open_data("ml-100k").read()
