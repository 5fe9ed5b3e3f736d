"""The task on streams and its baselines through the batteries; what must not happen is planted, and seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from latticework.core.dataset import open_data
from latticework.core.grid import entry_of
from latticework.core.task import Part
from latticework.data.events import Events, GivenEvents
from latticework.temporal.baselines import Recency, SeenPairs
from latticework.temporal.tasks import TemporalLinkPrediction
from latticework.testing import check_method, check_task
from latticework.testing.streams import check_no_future_leak, check_restart

FINGERPRINTS = Path(__file__).parent / "fingerprints.json"


@pytest.mark.parametrize("name", ["edgebank", "edgebank(window=0.1)", "recency", "recency(unseen=alike)"])
def test_baselines(name: str, meetings: GivenEvents) -> None:
    task = TemporalLinkPrediction(ask_at_once=30)
    check_method(entry_of(name), meetings, task, fingerprints=None if "(" in name else FINGERPRINTS)
    check_no_future_leak(name, meetings, task)
    check_restart(name, meetings, task)


@pytest.mark.parametrize("negatives", ["random", "historical", "inductive"])
def test_task(negatives: Any, meetings: GivenEvents) -> None:
    check_task(TemporalLinkPrediction(negatives=negatives), meetings)


class Prophet(Recency):
    """It reads from the log, which it holds back, who meets whom later."""

    name: ClassVar[str] = "recency"
    log: ClassVar[Events]

    def fit(self, train: Part, valid: Part | None, run: Any) -> SeenPairs:
        model = super().fit(train, valid, run)
        model.span = float(type(self).log.dst[-1])  # a number from the last event
        return model


def test_a_planted_leak_is_caught(meetings: GivenEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    from latticework.core import dataset
    from latticework.testing import streams

    seen = streams._answers

    def watched(method: Any, data: dataset.Dataset, *rest: Any) -> Any:
        Prophet.log = data.read()
        return seen(method, data, *rest)

    monkeypatch.setattr(streams, "_answers", watched)
    # the score of a pair that met falls with its age over that number
    monkeypatch.setattr(Prophet, "scores", lambda self, age, met, span: np.nan_to_num(age) * 0 + span)
    with pytest.raises(AssertionError, match="the future leaks"):
        check_no_future_leak(Prophet(), meetings, TemporalLinkPrediction())


@pytest.mark.parametrize("negatives", ["random", "historical", "inductive"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_leak_is_seen_where_there_is_none(negatives: Any, seed: int) -> None:
    """New targets keep coming: what is drawn for a batch and the draws after it depend on the log's rest, and no method does."""
    check_no_future_leak("edgebank", growing(seed), TemporalLinkPrediction(negatives=negatives, ask_at_once=30))


def growing(seed: int) -> GivenEvents:
    """300 events, with ever more nodes."""
    rng = np.random.default_rng(seed)
    src, dst = (np.array([rng.integers(5 + k // 3) for k in range(300)]) for _ in range(2))
    t = np.cumsum(rng.integers(0, 20, 300)).astype(np.float64)
    return GivenEvents.hold(Events(tuple(f"n{i}" for i in range(110)), src, dst, t))


@pytest.mark.parametrize("seed", [0, 1])
def test_company_in_a_batch_is_no_leak_and_a_look_at_it_is(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of matrices rounds a row otherwise in other company; who counts the batch's targets sees what comes later."""
    task = TemporalLinkPrediction(ask_at_once=17)
    check_no_future_leak("semba(width=8;memory=8;heads=2;epochs=1;batch=64)", growing(seed), task)

    def counted(self: SeenPairs, part: Part) -> Any:
        dst = part.query.dst
        return (dst[..., None] == dst.ravel()).sum(-1).astype(np.float64)

    monkeypatch.setattr(SeenPairs, "predict", counted)
    with pytest.raises(AssertionError, match="the future leaks"):
        check_no_future_leak("edgebank", growing(seed), task)


def test_true_targets_stand_anywhere_and_false_ones_are_false(meetings: GivenEvents) -> None:
    fold = TemporalLinkPrediction(against=4).fold(meetings, "by-time-0")
    walk, truth = fold.test.data, fold.test.truth
    dst = walk.asked["dst"]
    assert (np.take_along_axis(dst, truth.place[:, None], 1)[:, 0] == walk.events.dst).all()
    assert ((dst == walk.events.dst[:, None]).sum(1) == 1).all()
    assert np.bincount(truth.place, minlength=5).min() > 0
    # no candidate is a target that nobody has met by the end of its batch
    for start, stop in zip([0, *walk.ends[:-1]], walk.ends, strict=True):
        known = set(fold.train.data.dst) | set(walk.before.dst) | set(walk.events.dst[:stop])
        assert set(dst[start:stop].ravel()) <= known


def test_historical_negatives_met_before_and_do_not_meet_now(meetings: GivenEvents) -> None:
    fold = TemporalLinkPrediction(negatives="historical", ask_at_once=20).fold(meetings, "by-time-0")
    walk, truth = fold.test.data, fold.test.truth
    met = set(zip(fold.train.data.src, fold.train.data.dst, strict=True)) | set(
        zip(walk.before.src, walk.before.dst, strict=True)
    )
    start = checked = 0
    for stop in walk.ends:
        now = set(zip(walk.events.src[start:stop], walk.events.dst[start:stop], strict=True))
        for row in range(start, stop):
            false = np.delete(walk.asked["dst"][row], truth.place[row])
            for w, stood_in in zip(false, walk.asked["stood in"][row], strict=True):
                if not stood_in:
                    checked += 1
                    assert (walk.events.src[row], w) in met and (walk.events.src[row], w) not in now
        met |= now
        start = stop
    assert checked > 50


def test_hidden_nodes_are_in_no_train_or_valid_event(meetings: GivenEvents) -> None:
    fold = TemporalLinkPrediction(hidden_nodes=0.3).fold(meetings, "by-time-1")
    train = {*fold.train.data.src, *fold.train.data.dst}
    valid, test = fold.valid.data.events, fold.test.data.events  # type: ignore[union-attr]
    gone = ({*test.src, *test.dst}) - train
    assert gone and fold.test.truth.new.any() and not fold.test.truth.new.all()
    hidden = gone & {*meetings.read().src[:200], *meetings.read().dst[:200]}
    assert hidden and not hidden & {*valid.src, *valid.dst}


def test_equal_times_are_asked_together() -> None:
    t = np.repeat(np.arange(20.0), 10)
    rng = np.random.default_rng(0)
    given = GivenEvents.hold(Events(tuple("abcdefgh"), rng.integers(4, size=200), 4 + rng.integers(4, size=200), t))
    fold = TemporalLinkPrediction(ask_at_once=3, hidden_nodes=0).fold(given, "by-time-0")
    times = fold.test.data.events.t
    assert all(times[e - 1] < times[e] for e in fold.test.data.ends[:-1])
    assert fold.train.data.t[-1] < fold.valid.data.events.t[0]  # type: ignore[union-attr]


def test_ranks_and_precision_by_hand() -> None:
    from latticework.temporal.tasks import Truth, _scores

    answer = np.array([[0.9, 0.5, 0.1], [0.2, 0.2, 0.7], [0.3, 0.6, 0.6]])
    truth = Truth(np.array([0, 1, 2]), np.array([1, 0, 0]), np.zeros(3, bool))
    found = {s.metric: s.value for s in _scores(answer, truth, np.ones(3, bool), {})}
    # ranks 1; 2.5 (one above, one equal); 1.5
    assert found["mrr"] == pytest.approx((1 + 1 / 2.5 + 1 / 1.5) / 3)
    # true .9 .2 .6 against the first false .5 .2 .3
    assert found["auc"] == pytest.approx((3 + 0.5 + 3) / 9)


def test_a_log_that_cannot_be_cut_says_so() -> None:
    one = Events(("a", "b"), np.array([0]), np.array([1]), np.array([3.0]))
    with pytest.raises(Exception, match="cannot be cut by time"):
        TemporalLinkPrediction().fold(GivenEvents.hold(one), "by-time-0")
    same = Events(("a", "b"), np.zeros(40, int), np.ones(40, int), np.arange(40.0))
    with pytest.raises(Exception, match="one target"):
        TemporalLinkPrediction(hidden_nodes=0).fold(GivenEvents.hold(same), "by-time-0")


def test_fit_predict_update_as_typed(meetings: GivenEvents, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    import polars as pl

    log, later = tmp_path / "events.csv", tmp_path / "later.csv"
    open_data(meetings).write(log)
    frame = pl.read_csv(log)
    frame[:250].write_csv(log)
    frame[250:].write_csv(later)
    status, out, err = command("fit", "recency", log, "-o", tmp_path / "model")
    assert status == 0, out + err
    status, out, err = command("predict", tmp_path / "model", later, "-o", tmp_path / "scores.csv")
    assert status == 0, out + err
    scores = pl.read_csv(tmp_path / "scores.csv")
    assert scores.columns == ["source", "target", "time", "score"] and len(scores) == 50
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("years")
    status, out, err = command("update", tmp_path / "model", later, "-o", tmp_path / "theirs")
    assert status == 2 and "theirs exists; choose another name" in err and (tmp_path / "theirs" / "thesis.txt").exists()
    status, out, err = command("update", tmp_path / "model", later, "-o", tmp_path / "longer")
    assert status == 0 and "50 events taken in" in out, out + err
    status, out, err = command("update", tmp_path / "longer", log)
    assert status == 2 and "goes forward only" in out + err
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("source,target\nn1,n2\nn1,nobody\n")
    status, out, err = command("predict", tmp_path / "longer", pairs, "-o", tmp_path / "a.csv", "--at", "1e6")
    assert status == 0, out + err
    answers = pl.read_csv(tmp_path / "a.csv")
    assert answers["target"].to_list() == ["n2", "nobody"] and answers["time"].to_list() == [1e6, 1e6]
    status, out, err = command("predict", tmp_path / "longer", pairs, "-o", tmp_path / "b.csv", "--at", "1")
    assert status == 2 and "answers for later times only" in out + err
    # an unbroken fit on all of it answers the same
    frame.write_csv(log)
    assert command("fit", "recency", log, "-o", tmp_path / "whole")[0] == 0
    assert command("predict", tmp_path / "whole", pairs, "-o", tmp_path / "c.csv", "--at", "1e6")[0] == 0
    both = pl.read_csv(tmp_path / "c.csv")
    assert (both["score"] > 1).to_list() == (answers["score"] > 1).to_list()


def test_update_reads_standard_input(meetings: GivenEvents, tmp_path: Path) -> None:
    import subprocess
    import sys

    import latticework as lw

    fitted = lw.fit("edgebank", meetings)
    fitted.save(tmp_path / "model")
    said = subprocess.run(
        [sys.executable, "-m", "latticework", "update", str(tmp_path / "model"), "-"],
        input=b"source,target,time\nn1,somebody,5000\n", capture_output=True, check=True,
    )  # fmt: skip
    assert b"1 events taken in, 1 new nodes" in said.stdout
    (tmp_path / "pairs.csv").write_text("source,target\nn1,somebody\n")
    again = lw.load(tmp_path / "model").predict(tmp_path / "pairs.csv", at=6000.0)
    assert again.values.tolist() == [[1.0]]
    broken = subprocess.run(
        [sys.executable, "-m", "latticework", "update", str(tmp_path / "model"), "-"], input=b"source,target\na,b\n",
        capture_output=True,
    )  # fmt: skip
    assert broken.returncode == 2 and b"Traceback" not in broken.stderr
    empty = subprocess.run(
        [sys.executable, "-m", "latticework", "update", str(tmp_path / "model"), "-"], input=b" \n", capture_output=True
    )
    assert empty.returncode == 2 and b"standard input is empty" in empty.stderr


def test_a_question_names_its_time_as_the_log_does(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    log, pairs = tmp_path / "events.csv", tmp_path / "pairs.csv"
    import polars as pl

    names = ["ab", "bc", "ca", "ab", "bc", "ac", "ba", "cb", "ab", "bc", "ca"]
    log.write_text("source,target,time\n" + "".join(f"{a},{b},2024-01-{day + 1:02d}\n" for day, (a, b) in enumerate(names)))
    pairs.write_text("source,target\na,b\n")
    assert command("fit", "recency", log, "-s", "task.hidden_nodes=0", "-o", tmp_path / "model")[0] == 0
    for at in ("2024-01-12", "2024-01-12T01:00:00+01:00", "1705017600"):
        out = tmp_path / f"{len(at)}.csv"
        assert command("predict", tmp_path / "model", pairs, "--at", at, "-o", out)[0] == 0
        assert pl.read_csv(out)["time"].to_list() == [1705017600.0]
    for at, says in (("2024-13-01", "neither a number nor an ISO date"), ("2023-01-01", "later times only"), ("nan", "finite")):
        status, _, err = command("predict", tmp_path / "model", pairs, "--at", at, "-o", tmp_path / "none.csv")
        assert status == 2 and says in err


def test_what_a_file_out_of_order_comes_to_is_told(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    import polars as pl

    log, later = tmp_path / "events.csv", tmp_path / "later.csv"
    log.write_text("source,target,time\n" + "".join(f"n{k % 3},m{k % 4},{k}\n" for k in range(40)))
    later.write_text("source,target,time\nn0,m1,60\nn1,m2,50\n")
    assert command("fit", "recency", log, "-s", "task.hidden_nodes=0", "-o", tmp_path / "model")[0] == 0
    status, out, err = command("predict", tmp_path / "model", later, "-o", tmp_path / "scores.csv")
    assert status == 0 and "1 events stood before an earlier one" in err and "stand in that order" in err
    assert pl.read_csv(tmp_path / "scores.csv")["time"].to_list() == [50, 60]
    status, out, err = command("update", tmp_path / "model", later)
    assert status == 0 and "1 events stood before an earlier one" in out


def test_answers_about_times_before_1970_can_be_judged(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    log, asked = tmp_path / "events.csv", tmp_path / "asked.csv"
    log.write_text("source,target,time\n" + "".join(f"n{k % 3},m{k % 4},1950-01-{k % 28 + 1:02d}\n" for k in range(56)))
    asked.write_text("source,target,time,label\nn0,m0,1950-02-01,1\nn1,nobody,1950-02-01T12:00:00.25,0\n")
    (tmp_path / "pairs.csv").write_text("source,target,time\nn0,m0,1950-02-01\nn1,nobody,1950-02-01T12:00:00.25\n")
    assert command("fit", "recency", log, "-s", "task.hidden_nodes=0", "-o", tmp_path / "model")[0] == 0
    assert command("predict", tmp_path / "model", tmp_path / "pairs.csv", "-o", tmp_path / "answers.csv")[0] == 0
    status, out, err = command("score", "temporal-link-prediction", tmp_path / "answers.csv", asked)
    assert status == 0 and "1.0000" in out, out + err


def test_predictions_made_elsewhere_are_judged(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "truth.csv").write_text("source,target,time,label\na,b,1,1\na,c,1,0\nb,c,2,1\nb,d,2,0\n")
    (tmp_path / "answers.csv").write_text("source,target,time,score\na,b,1,.9\na,c,1,.2\nb,c,2,.8\nb,d,2,.1\n")
    status, out, err = command("score", "temporal-link-prediction", tmp_path / "answers.csv", tmp_path / "truth.csv")
    assert status == 0 and "1.0" in out, out + err
    (tmp_path / "answers.csv").write_text("source,target,time,score\na,z,1,.9\n")
    status, out, err = command("score", "temporal-link-prediction", tmp_path / "answers.csv", tmp_path / "truth.csv")
    assert status == 2 and "is not in" in out + err


def test_a_model_for_use_has_seen_the_whole_log_and_a_judged_one_has_not(meetings: GivenEvents) -> None:
    import latticework as lw

    log = meetings.read()
    assert lw.fit("edgebank", meetings).model.schema["latest"] == log.t[-1]
    judged = lw.fit("edgebank", meetings, fold="by-time-0").model
    assert judged.schema["latest"] < log.t[int(0.71 * len(log))]
