"""The task on snapshots and its baselines: counts against dense oracles, the walk, empty windows, errors, the commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.data.drifting_sbm import DriftingSBM
from latticework.data.events import Events, GivenEvents
from latticework.temporal.snapshot_baselines import RecencyDecay, RecencyModel
from latticework.temporal.snapshots import (
    LinkBlock,
    SnapshotPrediction,
    average_precision,
    mean_reciprocal_rank,
    rank_all,
    windows_of,
)
from latticework.testing import check_data, check_method, check_task
from latticework.testing.streams import check_no_future_leak, check_restart

FINGERPRINTS = Path(__file__).parent / "fingerprints_evolvegcn.json"
Array = np.ndarray[Any, Any]


def log(m: int = 600, n: int = 20, seed: int = 0, signed: bool = False, labelled: bool = False) -> GivenEvents:
    """Pairs that meet again and again, over 60 units of time; signs go with the target's number, labels with the source's."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.random(m) * 60)
    src, dst = rng.integers(0, n, m), rng.integers(0, n, m)
    again = rng.random(m) < 0.6
    for i in np.flatnonzero(again):
        if i > 20:
            k = int(rng.integers(max(i - 60, 0), i))
            src[i], dst[i] = src[k], dst[k]
    weight = np.where((dst % 4 == 0) ^ (rng.random(m) < 0.1), -2.0, 1.0).astype(np.float32) if signed else None
    x = ((src % 3 == 0) ^ (rng.random(m) < 0.05)).astype(np.float32)[:, None] if labelled else None
    ids = tuple(f"n{i}" for i in range(n))
    return GivenEvents.hold(Events(ids, src, dst, t, weight, x, ("label",) if labelled else (), signed))


@pytest.fixture(scope="module")
def meets() -> GivenEvents:
    return log()


LINKS = SnapshotPrediction(window=2.0, history=4)
SIGNS = SnapshotPrediction(window=2.0, history=4, target="edge-class")
NODES = SnapshotPrediction(window=2.0, history=4, target="node-class")


# -- cutting -------------------------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(1e-2, 1e5))
def test_windows_hold_their_times(times: list[float], window: float) -> None:
    t = np.sort(np.array(times))
    number = windows_of(t, float(t[0]), window)
    assert number[0] == 0 and (np.diff(number) >= 0).all()
    place = (t - t[0]) / window
    assert (number <= place + 1e-9 * (1 + place)).all() and (place - number < 1 + 1e-9 * (1 + place)).all()


@pytest.mark.parametrize(
    ("text", "seconds"), [("2d", 172800.0), ("6h", 21600.0), ("90s", 90.0), ("30m", 1800.0), ("1w", 604800.0), (7, 7.0)]
)
def test_spans_of_time(text: Any, seconds: float) -> None:
    assert SnapshotPrediction.make({"window": text}).window == seconds


def test_parts_are_consecutive_windows(meets: GivenEvents) -> None:
    fold = LINKS.fold(meets, "by-time-0")
    events = meets.read()
    number = windows_of(events.t, float(events.t[0]), 2.0)
    last = int(number[-1])
    cuts = [int(last * 0.71), int(last * 0.81)]
    assert windows_of(fold.train.data.t, float(events.t[0]), 2.0)[-1] == cuts[0] == fold.train.schema["windows"] - 1
    assert fold.valid is not None
    assert fold.valid.data.windows.tolist() == list(range(cuts[0] + 1, cuts[1] + 1))
    assert fold.test.data.windows.tolist() == list(range(cuts[1] + 1, last + 1))
    assert len(fold.valid.data.before) == 0 and len(fold.test.data.before) == len(fold.valid.data.events)
    assert len(fold.train.data) + len(fold.valid.data.events) + len(fold.test.data.events) == len(events)
    assert len(fold.test.data.times) == len(fold.test.truth.y)


def test_the_official_cut_of_the_messages(mirror: Callable[[str], Path]) -> None:
    mirror("college-msg")
    data = open_data("college-msg")
    fold = SnapshotPrediction(window=190_080.0).fold(data, "by-time-0")
    assert fold.valid is not None
    assert fold.train.schema["windows"] == 63 and len(fold.valid.data.windows) == 9
    assert fold.test.data.windows.tolist() == list(range(72, 89))


# -- counting ------------------------------------------------------------------------------------------------------------
class Fixed:
    """A model whose scores are a given matrix."""

    method = RecencyDecay()

    def __init__(self, scores: Array) -> None:
        self.scores = scores
        self.asked: list[int] = []

    def predict(self, part: Part) -> Array:
        self.asked += part.query.src.tolist()
        return self.scores[part.query.src, : part.query.nodes]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 14), st.integers(1, 30), st.integers(1, 6), st.integers(0, 10_000))
def test_ranks_among_all_pairs_equal_a_dense_oracle(n: int, links: int, levels: int, seed: int) -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (n, n)).astype(np.float32)
    off = np.argwhere(~np.eye(n, dtype=bool))
    pairs = off[rng.choice(len(off), min(links, len(off)), replace=False)].T
    model = Fixed(scores)
    from latticework.temporal import snapshots

    whole, snapshots.BLOCK = snapshots.BLOCK, 2 * n  # two sources a block
    try:
        found = rank_all(model, 0, pairs, n, {})
    finally:
        snapshots.BLOCK = whole
    values = scores[off[:, 0], off[:, 1]]
    own = scores[pairs[0], pairs[1]]
    assert (found[:, 0] == own).all()
    assert (found[:, 1] == (values > own[:, None]).sum(1)).all() and (found[:, 2] == (values == own[:, None]).sum(1)).all()
    row = scores[pairs[0]].copy()
    row[np.arange(len(own)), pairs[0]] = np.nan
    assert (found[:, 3] == (row > own[:, None]).sum(1)).all() and (found[:, 4] == (row == own[:, None]).sum(1)).all()
    y = np.zeros((n, n), bool)
    y[pairs[0], pairs[1]] = True
    wanted = average_precision_score(y[off[:, 0], off[:, 1]], values)
    assert average_precision(found[:, 1], found[:, 2]) == pytest.approx(wanted, abs=1e-12)


def test_reciprocal_ranks_by_hand() -> None:
    # source 0: ranks 1 and (1 above, 2 level) 2.5; source 3: rank 4
    value = mean_reciprocal_rank(np.array([0, 0, 3]), np.array([0, 1, 3]), np.array([1, 2, 1]))
    assert value == pytest.approx(((1 + 1 / 2.5) / 2 + 1 / 4) / 2)


def test_no_block_is_larger_than_said_and_sources_without_links_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from latticework.temporal import snapshots

    monkeypatch.setattr(snapshots, "BLOCK", 50)
    model = Fixed(np.random.default_rng(0).random((40, 40)).astype(np.float32))
    sizes: list[int] = []
    inner = model.predict
    monkeypatch.setattr(model, "predict", lambda part: sizes.append(inner(part).size) or inner(part))
    rank_all(model, 0, np.array([[7, 9], [1, 2]]), 40, {})
    assert max(sizes) <= 50 and len(sizes) == 42


def test_repeat_and_recency_equal_dense_sums(meets: GivenEvents) -> None:
    fold = LINKS.fold(meets, "by-time-0")
    events = fold.train.data
    number = windows_of(events.t, fold.train.schema["origin"], 2.0)
    w, n = int(number[-1]) + 1, events.nodes

    def met(k: int) -> Array:
        A = np.zeros((n, n))
        rows = number == k
        np.add.at(A, (events.src[rows], events.dst[rows]), 1)
        return A + A.T

    asked = Part(None, LinkBlock(w, np.arange(n), n), None, fold.train.schema)
    run = Run(task=LINKS, digest="", fold="")
    last: Any = entry_of("repeat-last").fit(fold.train, None, run)
    np.testing.assert_allclose(last.predict(asked), met(w - 1))
    decay: Any = entry_of("recency-decay(decay=0.5; of=presence)").fit(fold.train, None, run)
    np.testing.assert_allclose(decay.predict(asked), sum(0.5**k * (met(w - 1 - k) > 0) for k in range(5)), rtol=1e-6)


# -- batteries -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["repeat-last", "recency-decay", "recency-decay(of=presence)"])
def test_baselines_of_links(name: str, meets: GivenEvents) -> None:
    check_method(entry_of(name), meets, LINKS, fingerprints=None if "presence" in name else FINGERPRINTS)
    check_no_future_leak(name, meets, LINKS)
    check_restart(name, meets, LINKS)


@pytest.mark.parametrize("name", ["snapshot-majority", "snapshot-logistic"])
@pytest.mark.parametrize("target", ["edge-class", "node-class"])
def test_baselines_of_classes(name: str, target: str) -> None:
    data, task = (log(signed=True), SIGNS) if target == "edge-class" else (log(labelled=True), NODES)
    result = check_method(entry_of(name), data, task, fingerprints=FINGERPRINTS)
    check_restart(name, data, task)
    check_no_future_leak(name, data, task)
    value = {s.metric: s.value for s in result.scores if not s.at}
    assert value["minority-f1"] == 0 if name == "snapshot-majority" else value["minority-f1"] > 0.7  # type: ignore[operator]
    assert any(s.metric == "class-f1" and "class" in s.at for s in result.scores)
    assert any(s.at.get("slice") == "snapshot" for s in result.scores)


def test_tasks(meets: GivenEvents) -> None:
    check_task(LINKS, meets)
    check_task(SnapshotPrediction(history=4, directed=True), meets)
    check_task(SIGNS, log(signed=True))
    check_task(NODES, log(labelled=True))


def test_generator() -> None:
    small = DriftingSBM(nodes=40, steps=8, within=0.4, between=0.02, fewest=2, most=4)
    check_data(small)
    events = small.read()
    number = windows_of(events.t, 0.0, 1.0)
    assert set(number) == set(range(8))
    label = events.x[:, 0]  # type: ignore[index]
    share = [float((label[number == k] >= 0).mean()) for k in range(8)]
    assert share == [1.0] * 8
    kept = DriftingSBM(nodes=40, steps=8, within=0.4, between=0.02, fewest=0, most=0, fresh=False).read()
    pairs = [
        {frozenset(p) for p in zip(kept.src[w].tolist(), kept.dst[w].tolist(), strict=True)}
        for w in (windows_of(kept.t, 0.0, 1.0) == k for k in range(8))
    ]
    assert all(p == pairs[0] for p in pairs)  # no one moves and nothing is drawn anew: the same links at every step
    with pytest.raises(UserError, match="fewest 5"):
        DriftingSBM(fewest=5, most=2).read()


# -- the walk ------------------------------------------------------------------------------------------------------------
class Watching(RecencyModel):
    """Notes what it was asked and told, in order."""

    diary: list[tuple[str, Any]]

    def observe(self, new: Events) -> None:
        getattr(self, "diary", []).append(("told", float(new.t[-1])))
        super().observe(new)

    def predict(self, part: Part) -> Any:
        self.diary.append(("asked", part.query.window))
        return super().predict(part)


def test_a_window_is_asked_before_it_is_revealed_and_an_empty_one_too() -> None:
    events = log().read()
    origin = float(events.t[0])
    gone = windows_of(events.t, origin, 2.0) == 27
    data = GivenEvents.hold(events.only(~gone))
    fold = LINKS.fold(data, "by-time-0")
    model = Watching(RecencyDecay(), dict(fold.train.schema))
    model.diary = []
    model.observe(fold.train.data)
    answer = LINKS.answer(model, fold.test.blind(), Run(task=LINKS, digest="", fold=""))
    told = origin
    asked = []
    for what, value in model.diary:
        if what == "told":
            told = value
        else:
            assert told < origin + 2.0 * value
            asked.append(value)
    assert sorted(set(asked)) == fold.test.data.windows.tolist() and 27 in asked
    scores = LINKS.score(answer, fold.test, None)
    judged = {s.at["snapshot"] for s in scores if s.at and s.metric == "map"}
    assert judged == set(asked) - {27}
    assert scores[0].value == pytest.approx(np.mean([s.value for s in scores if s.metric == "map" and s.at]))


def test_models_do_not_mind_how_a_stream_is_cut() -> None:
    events = log().read()
    fold = LINKS.fold(log(), "by-time-0")
    one, other = (RecencyModel(RecencyDecay(), dict(fold.train.schema)) for _ in range(2))
    one.observe(events)
    for a in range(0, len(events), 7):
        other.observe(events.rows(a, min(a + 7, len(events))))
    asked = Part(None, LinkBlock(30, np.arange(20), 20), None, {})
    assert np.array_equal(one.predict(asked), other.predict(asked))


def test_signs_are_the_balance_of_a_pairs_ratings() -> None:
    from latticework.temporal.snapshots import truth_of

    events = Events(
        ("a", "b", "c"), np.array([0, 0, 0, 1, 2, 2]), np.array([1, 1, 1, 0, 1, 2]), np.arange(6.0),
        np.array([9, -1, -1, -3, 1, 1], np.float32), None, (), True,
    )  # fmt: skip
    rows, y = truth_of(events, {"target": "edge-class"})
    assert rows.T.tolist() == [[0, 1], [1, 0], [2, 1]] and y.tolist() == [0, 0, 1]


# -- errors --------------------------------------------------------------------------------------------------------------
def test_mistakes_are_named(meets: GivenEvents) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        SnapshotPrediction(window=0.0).for_data(meets)
    with pytest.raises(UserError, match="into 6 snapshots; a history of 10 needs at least 13"):
        SnapshotPrediction(window=10.0).fold(meets, "by-time-0")
    with pytest.raises(UserError, match="to train"):
        SnapshotPrediction(window=4.0, history=11).fold(meets, "by-time-0")
    with pytest.raises(UserError, match="leave no windows to test"):
        SnapshotPrediction(train=0.9, valid=0.2).for_data(meets)
    with pytest.raises(UserError, match="window"):
        SnapshotPrediction.make({"window": "soon"})
    with pytest.raises(UserError, match="have none"):
        SIGNS.fold(meets, "by-time-0")
    with pytest.raises(UserError, match="'label'"):
        NODES.fold(meets, "by-time-0")
    one = Events(("a", "b"), np.zeros(30, int), np.ones(30, int), np.arange(30.0), np.ones(30, np.float32), None, (), True)
    with pytest.raises(UserError, match="no negative one"):
        SIGNS.but(window=1.0).fold(GivenEvents.hold(one), "by-time-0")
    with pytest.raises(UserError, match="one time"):
        SnapshotPrediction().for_data(GivenEvents.hold(Events(("a", "b"), np.array([0]), np.array([1]), np.array([3.0]))))
    with pytest.raises(ValueError, match="before the first window"):
        windows_of(np.array([1.0]), 2.0, 1.0)
    assert "predicts links" in str(entry_of("repeat-last").refuses(SIGNS, {}))
    assert "classes" in str(entry_of("snapshot-majority").refuses(LINKS, {}))


def test_a_class_that_training_never_saw_is_named() -> None:
    events = log(labelled=True).read()
    x = np.array(events.x)
    x[-5:] = 7.0
    late = GivenEvents.hold(Events(events.ids, events.src, events.dst, events.t, None, x, ("label",)))
    with pytest.raises(UserError, match="class 7, which no train window has"):
        NODES.fold(late, "by-time-0")


# -- the commands --------------------------------------------------------------------------------------------------------
def test_fit_predict_update_as_typed(meets: GivenEvents, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    import polars as pl

    whole, early, late = (tmp_path / f"{name}.csv" for name in ("events", "early", "late"))
    meets.write(whole)
    frame = pl.read_csv(whole)
    frame[:500].write_csv(early)
    frame[500:].write_csv(late)
    task = ("-s", "task=snapshot-prediction", "-s", "task.window=2", "-s", "task.history=4")
    assert command("fit", "recency-decay", early, *task, "-o", tmp_path / "model")[0] == 0
    status, out, err = command("predict", tmp_path / "model", early, "-o", tmp_path / "links.csv", "--top", "7")
    assert status == 0, out + err
    found = pl.read_csv(tmp_path / "links.csv")
    assert found.columns == ["source", "target", "score"] and len(found) == 7
    assert found["score"].is_sorted(descending=True)
    assert len({frozenset(p) for p in found.select("source", "target").rows()}) == 7
    # asked with the later events, or told of them first: the same links
    assert command("predict", tmp_path / "model", whole, "-o", tmp_path / "a.csv", "--top", "7")[0] == 0
    status, out, err = command("update", tmp_path / "model", late)
    assert status == 0 and "100 events taken in" in out, out + err
    assert command("predict", tmp_path / "model", whole, "-o", tmp_path / "b.csv", "--top", "7")[0] == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text() != (tmp_path / "links.csv").read_text()
    # a list of pairs
    (tmp_path / "pairs.csv").write_text(
        "source,target\n" + "".join(f"{u},{v}\n" for u, v, _ in pl.read_csv(tmp_path / "b.csv").rows()) + "n1,new\n"
    )
    status, out, err = command("predict", tmp_path / "model", tmp_path / "pairs.csv", "-o", tmp_path / "c.csv")
    assert status == 0, out + err
    assert pl.read_csv(tmp_path / "c.csv")["score"].to_list() == [*pl.read_csv(tmp_path / "b.csv")["score"], 0.0]
    # judged
    (tmp_path / "truth.csv").write_text("source,target\nn1,n2\n")
    (tmp_path / "said.csv").write_text("source,target,score\nn3,n4,.9\nn2,n1,.5\n")
    status, out, err = command("score", "snapshot-prediction", tmp_path / "said.csv", tmp_path / "truth.csv")
    assert status == 0 and "0.5" in out, out + err
    # who meets itself is asked of nobody
    (tmp_path / "truth.csv").write_text("source,target\nn1,n2\nn7,n7\nn8,n8\n")
    assert command("score", "snapshot-prediction", tmp_path / "said.csv", tmp_path / "truth.csv")[1] == out


def test_classes_as_typed(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    import polars as pl

    log(signed=True).write(tmp_path / "all.csv")
    frame = pl.read_csv(tmp_path / "all.csv")
    frame[:500].write_csv(tmp_path / "early.csv")
    frame[500:].drop("weight").write_csv(tmp_path / "late.csv")
    words = ("-s", "task=snapshot-prediction", "-s", "task.target=edge-class", "-s", "task.window=2", "-s", "task.history=4")
    status, out, err = command("fit", "snapshot-logistic", tmp_path / "early.csv", *words, "-o", tmp_path / "model")
    assert status == 0, out + err
    status, out, err = command("predict", tmp_path / "model", tmp_path / "late.csv", "-o", tmp_path / "signs.csv")
    assert status == 0, out + err
    found = pl.read_csv(tmp_path / "signs.csv")
    said, target = found["prediction"] == "negative", found["target"].str.slice(1).cast(pl.Int64) % 4 == 0
    assert (said == target).mean() > 0.85
    status, out, err = command("predict", tmp_path / "model", tmp_path / "early.csv", "-o", tmp_path / "b.csv")
    assert status == 2 and "seen by the model" in out + err
    status, out, err = command("fit", "snapshot-logistic", tmp_path / "early.csv", *words[:2], "-o", tmp_path / "c")
    assert status == 2 and "repeat-last" in out + err


# -- real ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "low"), [("repeat-last", 0.0862), ("recency-decay", 0.1068), ("recency-decay(of=presence)", 0.1330)]
)
def test_what_recency_reaches_on_the_messages(name: str, low: float, mirror: Callable[[str], Path]) -> None:
    mirror("college-msg")
    data, task = open_data("college-msg"), SnapshotPrediction(window=190_080.0)
    fold = task.fold(data, "by-time-0")
    run = Run(task=task, digest="", fold="")
    model = entry_of(name).fit(fold.train, None, run)
    scores = task.score(task.answer(model, fold.test.blind(), run), fold.test, run)
    assert scores[0].metric == "map" and scores[0].value == pytest.approx(low, abs=1e-3)


def test_answers_about_classes_are_judged_by_signs_and_by_ids(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "said.csv").write_text("source,target,window begins,prediction\na,b,0,negative\na,c,0,positive\nb,c,0,positive\n")
    (tmp_path / "signs.csv").write_text("source,target,sign\na,b,-1\na,c,1\nb,c,1\n")
    status, out, err = command(
        "score", "snapshot-prediction", tmp_path / "said.csv", tmp_path / "signs.csv", "-s", "target=edge-class"
    )
    assert status == 0 and out.count("1.0000") == 2, out + err
    (tmp_path / "nodes.csv").write_text("id,window begins,prediction\na,0,x\nb,0,y\n")
    (tmp_path / "labels.csv").write_text("id,label\na,x\nb,y\n")
    status, out, err = command(
        "score", "snapshot-prediction", tmp_path / "nodes.csv", tmp_path / "labels.csv", "-s", "target=node-class"
    )
    assert status == 0 and out.count("1.0000") == 2, out + err
    (tmp_path / "nodes.csv").write_text("id,window begins,prediction\na,0,1\nb,0,0\n")
    (tmp_path / "labels.csv").write_text("id,label\na,1.0\nb,0.0\n")
    status, out, err = command(
        "score", "snapshot-prediction", tmp_path / "nodes.csv", tmp_path / "labels.csv", "-s", "target=node-class"
    )
    assert status == 0 and out.count("1.0000") == 2, out + err
    (tmp_path / "signs.csv").write_text("source,target,sign\na,b,-\na,c,+\nb,c,+\n")
    status, out, err = command(
        "score", "snapshot-prediction", tmp_path / "said.csv", tmp_path / "signs.csv", "-s", "target=edge-class"
    )
    assert status == 0 and out.count("1.0000") == 2, out + err


def classed(codes: tuple[float, ...]) -> GivenEvents:
    """400 events between 10 nodes, whose class is one of the codes, each node's own."""
    rng = np.random.default_rng(0)
    src, dst = rng.integers(10, size=(2, 400))
    x = np.array(codes, np.float32)[src % len(codes)][:, None]
    return GivenEvents.hold(Events(tuple(map(str, range(10))), src, dst, np.arange(400.0), x=x, features=("label",)))


@pytest.mark.parametrize(
    ("codes", "names"),
    [((0, 1), ["0", "1"]), ((0.1, 0.25), ["0.1", "0.25"]), ((100000, 100001), ["100000", "100001"]),
     ((1000001, 1000002), ["1000001", "1000002"])],
)  # fmt: skip
def test_classes_of_nodes_keep_their_names(codes: tuple[float, ...], names: list[str]) -> None:
    task = SnapshotPrediction(window=10.0, history=2, target="node-class")
    fold = task.fold(classed(codes), "by-time-0")
    assert fold.train.schema["classes"] == names
    events, truth = classed(codes).read(), fold.test.truth
    own = dict(zip(events.src.tolist(), events.x[:, 0].tolist(), strict=True))  # type: ignore[index]
    assert [np.float32(names[y]) for y in truth.y] == [np.float32(own[u]) for u in truth.rows.tolist()]


def test_a_class_that_training_has_not_is_refused_however_near() -> None:
    task = SnapshotPrediction(window=10.0, history=2, target="node-class")
    events = classed((100000, 100001)).read()
    x = events.x.copy()  # type: ignore[union-attr]
    x[350:][x[350:] == 100001] = 100002
    with pytest.raises(UserError, match="has class 100002, which no train window has"):
        task.fold(GivenEvents.hold(dataclasses.replace(events, x=x, _cache={})), "by-time-0")
    with pytest.raises(UserError, match="codes of classes go up to 16777216"):
        task.fold(classed((20240101, 20240103)), "by-time-0")
