"""The task of signed links and its baselines: batteries, planted truths, cuts from validation, files, bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from latticework.cli._listing import fitting
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run, fitted
from latticework.core.task import Part
from latticework.data.events import Events, GivenEvents, write_events
from latticework.temporal.camps import Camps
from latticework.temporal.signed_tasks import CLASSES, SignedLinks, SignedTruth, _best_cut, _macro_f1
from latticework.temporal.tasks import Pairs
from latticework.testing import check_data, check_method, check_task
from latticework.testing.streams import check_no_future_leak, check_restart

FINGERPRINTS = Path(__file__).parent / "fingerprints_semba.json"
TARGETS = ("sign", "existence", "sign-or-none", "weight")


@pytest.fixture(scope="session")
def votes() -> GivenEvents:
    """500 signed events between 30 nodes; some nodes are disliked, and who likes whom repeats. Weights from 1 to 3."""
    rng = np.random.default_rng(11)
    src = rng.integers(30, size=500)
    dst = (src + rng.integers(1, 30, size=500)) % 30
    bad = (dst % 5 == 0) ^ (rng.random(500) < 0.15)
    weight = np.where(bad, -1.0, 1.0) * rng.integers(1, 4, size=500)
    t = np.cumsum(rng.integers(0, 4, 500)).astype(np.float64)
    ids = tuple(f"n{i}" for i in range(30))
    return GivenEvents.hold(Events(ids, src, dst, t, weight.astype(np.float32), signed=True))


def part_scores(task: SignedLinks, answer: Any, truth: SignedTruth) -> dict[tuple[str, str], float | None]:
    part = Part(None, None, truth, {"target": task.target})
    return {(s.metric, str(s.at.get("class", ""))): s.value for s in task.score(answer, part, None) if "slice" not in s.at}


# -- batteries ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", TARGETS)
def test_task(target: Any, votes: GivenEvents) -> None:
    check_task(SignedLinks(target=target, ask_at_once=40), votes)


def test_data() -> None:
    check_data(Camps(nodes=12, events=80))


@pytest.mark.parametrize(
    "name", ["sign-majority", "signed-counts", "last-sign", "balance-triads", "signed-gcn(epochs=3; width=8)"]
)
def test_baselines(name: str, votes: GivenEvents) -> None:
    task = SignedLinks(ask_at_once=40)
    check_method(entry_of(name), votes, task, fingerprints=FINGERPRINTS)
    check_no_future_leak(name, votes, task)
    check_restart(name, votes, task)


@pytest.mark.parametrize("target", ["existence", "sign-or-none", "weight"])
@pytest.mark.parametrize("name", ["sign-majority", "signed-counts", "signed-gcn(epochs=2; width=8)"])
def test_baselines_of_other_targets(name: str, target: Any, votes: GivenEvents) -> None:
    task = SignedLinks(target=target, ask_at_once=40)
    check_no_future_leak(name, votes, task)
    check_restart(name, votes, task)


def test_signs_alone_are_refused_elsewhere(votes: GivenEvents) -> None:
    for name in ("last-sign", "balance-triads"):
        said = entry_of(name).refuses(SignedLinks(target="weight"), votes.facts())
        assert said is not None and "signs alone" in said and entry_of(name).refuses(SignedLinks(), votes.facts()) is None


def test_the_classic_beats_the_trivial(votes: GivenEvents) -> None:
    import latticework as lw

    board = {}
    for name in ("sign-majority", "signed-counts"):
        fold = SignedLinks(ask_at_once=40).fold(votes, "by-time-0")
        task, method = SignedLinks(ask_at_once=40), entry_of(name)
        run = Run(task=task, digest=votes.digest(), fold="by-time-0", label=name)
        model = method.fit(fold.train, fold.valid, run)
        board[name] = task.value(task.answer(model, fold.test.blind(), run), fold.test, run)
    assert board["sign-majority"] == 0.5 and board["signed-counts"] > 0.75
    assert lw.__name__ == "latticework"


# -- what is asked -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", ["existence", "sign-or-none"])
def test_non_links_are_known_targets_at_a_random_place(target: Any, votes: GivenEvents) -> None:
    fold = SignedLinks(target=target, ask_at_once=40).fold(votes, "by-time-0")
    walk, truth = fold.test.data, fold.test.truth
    true = walk.asked["dst"] == walk.events.dst[:, None]
    assert (true.sum(1) == 1).all() and (true[np.arange(len(true)), truth.place]).all()
    assert 0.3 < truth.place.mean() < 0.7
    if target == "existence":
        assert ((truth.label == 0) == true).all()
    else:
        positive = (walk.events.weight > 0).astype(int)
        assert (truth.label[true] == positive).all() and (truth.label[~true] == 2).all()
    known = set(fold.train.data.dst) | set(walk.before.dst)
    for start, stop in zip([0, *walk.ends[:-1]], walk.ends, strict=True):
        known |= set(walk.events.dst[start:stop])
        assert set(walk.asked["dst"][start:stop].ravel()) <= known


def test_seen_and_new_nodes_are_scored_from_one_answer(votes: GivenEvents) -> None:
    task = SignedLinks(ask_at_once=40)
    fold = task.fold(votes, "by-time-0")
    truth = fold.test.truth
    new = np.arange(len(truth.new)) % 3 == 0
    truth = truth._replace(new=new)
    rng = np.random.default_rng(0)
    answer = np.column_stack([rng.normal(size=len(new)), np.zeros(len(new))])
    scores = task.score(answer, Part(None, None, truth, fold.test.schema), None)
    for words, rows in (("seen", ~new), ("new", new)):
        mine = next(s for s in scores if s.at.get("nodes") == words and s.metric == "auc")
        from sklearn.metrics import roc_auc_score

        assert (
            mine.value == pytest.approx(roc_auc_score(truth.label[rows, 0], answer[rows, 0])) and mine.at["events"] == rows.sum()
        )


def test_the_negative_class_comes_first() -> None:
    truth = SignedTruth(np.array([[0], [1], [1], [0], [1]]), np.zeros(5), np.zeros(5, int), np.zeros(5, bool))
    answer = np.column_stack([[-2.0, 1.0, 0.5, 0.7, -1.0], np.zeros(5)])
    scores = [
        s for s in SignedLinks().score(answer, Part(None, None, truth, {}), None) if s.metric == "f1" and "slice" not in s.at
    ]
    assert [s.at["class"] for s in scores] == ["negative", "positive"]
    # said negative: rows 0 and 4; truly negative: 0 and 3
    assert scores[0].value == pytest.approx(0.5) and scores[1].value == pytest.approx(2 * 2 / 6)


def test_scores_by_hand() -> None:
    truth = SignedTruth(np.array([[0], [1], [1]]), np.array([-2.0, 1.0, 3.0]), np.zeros(3, int), np.zeros(3, bool))
    found = part_scores(SignedLinks(), np.array([[0.1, 0.2], [0.3, 0.2], [0.0, 0.2]]), truth)
    assert found["auc", ""] == pytest.approx(0.5)  # one of the two positives lies above the negative
    assert found["average-precision", "negative"] == pytest.approx(0.5)  # ranked second of three by -score
    weights = part_scores(SignedLinks(target="weight"), np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), truth)
    assert weights["mse", ""] == pytest.approx((4 + 0 + 4) / 3) and weights["mse", "negative"] == 4
    label = np.array([[0, 2], [1, 2]])
    three = SignedTruth(label, np.array([-1.0, 1.0]), np.zeros(2, int), np.zeros(2, bool))
    logits = np.array([[3.0, 0, 0, 0, 0, 3], [0, 3, 0, 0, 0, 3]])
    found = part_scores(SignedLinks(target="sign-or-none"), np.column_stack([logits, np.zeros(2)]), three)
    assert found["auc", ""] == 1 and found["macro-f1", ""] == 1
    # a gain for the negative class turns decisions, not ranks
    found = part_scores(SignedLinks(target="sign-or-none"), np.column_stack([logits, np.full(2, 9.0)]), three)
    assert found["auc", ""] == 1 and found["f1", "positive"] == 0


def test_the_best_cut_is_the_best() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        score, positive = rng.integers(6, size=30).astype(float), rng.random(30) < 0.7
        label = positive.astype(int)
        tried = {c: _macro_f1(label, (score >= c).astype(int), 2) for c in np.arange(0.5, 5)}
        cut = _best_cut(score, positive)
        assert _macro_f1(label, (score >= cut).astype(int), 2) == pytest.approx(max(tried.values()))
    assert _best_cut(np.ones(4), np.array([True, False, True, True])) == 0
    assert _best_cut(np.arange(4.0), np.ones(4, bool)) == 0


def test_the_cut_comes_from_validation_alone(votes: GivenEvents) -> None:
    task, method = SignedLinks(ask_at_once=40), entry_of("signed-counts")
    events = votes.read()
    fold = task.fold(votes, "by-time-0")
    start = len(fold.train.data) + len(fold.valid.data.events)  # type: ignore[union-attr]
    weight = events.weight.copy()  # type: ignore[union-attr]
    weight[start + 1 :] *= -1
    other = GivenEvents.hold(replace(events, weight=weight, _cache={}))
    cuts = []
    for data in (votes, other):
        fold = task.fold(data, "by-time-0")
        run = Run(task=task, digest=data.digest(), label="x")
        answer = task.answer(method.fit(fold.train, fold.valid, run), fold.test.blind(), run)
        assert (answer[:, -1] == answer[0, -1]).all()
        cuts.append(answer[0, -1])
        valid = task.answer(method.fit(fold.train, fold.valid, run), fold.valid.blind(), run)  # type: ignore[union-attr]
        assert (valid[:, -1] == 0).all()
    assert cuts[0] == cuts[1] != 0


def test_rules_by_hand() -> None:
    """Links 0 -> 2 (+), 1 -> 2 (-), 3 -> 0 (-), then 4 -> 1 (+) to be told apart."""
    from latticework.temporal.signed_baselines import BalanceTriads, LastSign

    events = Events(
        tuple("abcde"), np.array([0, 1, 3]), np.array([2, 2, 0]), np.arange(3.0), np.array([1.0, -2, -1], np.float32), signed=True
    )
    part = Part(events, None, None, {"target": "sign", "nodes": list("abcde")})
    run = Run(task=SignedLinks(), label="x")
    asked = Part(None, Pairs(np.array([0, 2, 4, 4]), np.array([[1], [0], [2], [0]]), np.full(4, 9.0)), None, {})
    triads = BalanceTriads().fit(part, None, run).predict(asked)
    assert triads[:, 0].tolist() == [-1, 0, 0, 0]  # 0 - 2 - 1 is + and -: foes
    last = LastSign().fit(part, None, run).predict(asked)
    # nothing between 0 and 1 and 1 got nothing; the way back of 0 -> 2; 2 got - last; 0 got -
    assert last[:, 0].tolist() == [0, 2, -1, -1]


def test_two_path_score_sees_the_camps() -> None:
    """Balance tells hidden camps apart where no record of any node can: AUC near 1 - flips."""
    task, data = SignedLinks(), Camps()
    found = {}
    for name in ("balance-triads", "last-sign"):
        fold = task.fold(data, "by-time-0")
        run = Run(task=task, digest=data.digest(), label=name)
        model = entry_of(name).fit(fold.train, fold.valid, run)
        found[name] = task.value(task.answer(model, fold.test.blind(), run), fold.test, run)
    assert found["balance-triads"] > 0.88  # type: ignore[operator]
    assert found["last-sign"] < 0.7  # type: ignore[operator]


# -- bad input ---------------------------------------------------------------------------------------------------------------
def test_what_is_no_signed_log_is_refused(votes: GivenEvents) -> None:
    events = votes.read()
    unsigned = GivenEvents.hold(replace(events, weight=None, signed=False, _cache={}))
    for look in (lambda: SignedLinks().fold(unsigned, "by-time-0"), lambda: SignedLinks().for_data(unsigned)):
        with pytest.raises(UserError, match="need signs"):
            look()
    assert any("task signed-links does not fit: signed links need signs" in line for line in fitting(unsigned))
    good = GivenEvents.hold(replace(events, weight=np.abs(events.weight), _cache={}))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="all 349 train events are positive"):
        SignedLinks().fold(good, "by-time-0")
    assert len(SignedLinks(target="existence").fold(good, "by-time-0").train.data) == 349
    for wrong, says in (
        (0.0, r"event 7 \(time \d+\) has the weight 0, which has no sign"),
        (np.nan, "event 7, 'n\\d+' to 'n\\d+', is"),
    ):
        weight = events.weight.copy()  # type: ignore[union-attr]
        weight[7] = wrong
        with pytest.raises(UserError, match=says):
            SignedLinks().fold(GivenEvents.hold(replace(events, weight=weight, _cache={})), "by-time-0")


def test_users_files(tmp_path: Path, votes: GivenEvents, command: Callable[..., tuple[int, str, str]]) -> None:
    log = tmp_path / "events.csv"
    votes.write(log)
    assert command("fit", "signed-counts", log, "-s", "task.target=sign", "-o", tmp_path / "model")[0] == 0
    (tmp_path / "pairs.csv").write_text("source,target\nn1,n5\nn2,n3\n")
    status, out, err = command("predict", tmp_path / "model", tmp_path / "pairs.csv", "--at", "1e6", "-o", tmp_path / "signs.csv")
    assert status == 0, out + err
    answers = pl.read_csv(tmp_path / "signs.csv")
    assert answers.columns == ["source", "target", "time", "conflict", "support"]
    assert answers["conflict"][0] > 0.5 > answers["conflict"][1]  # n5 is disliked, n3 is not
    assert (answers["conflict"] + answers["support"]).to_list() == pytest.approx([1, 1])
    (tmp_path / "pairs.csv").write_text("source,target\nn1,stranger\n")
    status, _, err = command("predict", tmp_path / "model", tmp_path / "pairs.csv", "--at", "1e6", "-o", tmp_path / "s.csv")
    assert status == 0 and "note: 1 nodes are asked about that the model has never seen (stranger" in err
    status, out, err = command("predict", tmp_path / "model", tmp_path / "pairs.csv", "--at", "3", "-o", tmp_path / "s.csv")
    assert status == 2 and "later times only" in out + err
    (tmp_path / "bad.csv").write_text("source,target,time,sign\na,b,1,1\nb,c,2,0\n")
    status, out, err = command("fit", "signed-counts", tmp_path / "bad.csv", "-o", tmp_path / "m")
    assert status == 2 and "line 3" in out + err and "sign" in out + err


def test_predictions_made_elsewhere_are_judged(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    (tmp_path / "truth.csv").write_text("source,target,time,sign\na,b,1,1\na,c,1,-1\nb,c,2,1\nb,d,2,-1\n")
    (tmp_path / "answers.csv").write_text("source,target,time,support\na,b,1,.9\na,c,1,.2\nb,c,2,.8\nb,d,2,.1\n")
    status, out, err = command("score", "signed-links", tmp_path / "answers.csv", tmp_path / "truth.csv")
    assert status == 0 and "1.0" in out, out + err
    (tmp_path / "answers.csv").write_text("source,target,time,support\na,z,1,.9\n")
    status, out, err = command("score", "signed-links", tmp_path / "answers.csv", tmp_path / "truth.csv")
    assert status == 2 and "is not in" in out + err


def test_a_truth_says_its_signs_as_a_log_does(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    said, truth = tmp_path / "said.csv", tmp_path / "truth.csv"
    said.write_text("source,target,support,weight\na,b,.9,3\nb,c,.2,2\n")
    for text in ("source,target,sign\na,b,+\nb,c,-\n", "source,target,weight,sign\na,b,3,1\nb,c,2,-1\n"):
        truth.write_text(text)
        status, out, err = command("score", "signed-links", said, truth)
        assert status == 0 and out.count("1.0000") == 3, out + err
    # +2 was said of a link of weight 2 and sign -1: off by 4
    status, out, err = command("score", "signed-links", said, truth, "-s", "target=weight")
    assert status == 0 and "8.0000" in out, out + err


def test_a_stream_is_answered_judged_and_fed_as_it_comes(
    tmp_path: Path, votes: GivenEvents, command: Callable[..., tuple[int, str, str]]
) -> None:
    """What `predict` writes `score` reads, with whole times or none in the truth; a stretch of positive votes is signed, too."""
    write_events(votes.read(), tmp_path / "votes.csv")
    rows = [("n1", "n2", 1), ("n3", "n5", -1), ("n4", "n10", -1), ("n6", "n7", 1)]
    (tmp_path / "pairs.csv").write_text("source,target\n" + "".join(f"{u},{v}\n" for u, v, _ in rows))
    (tmp_path / "with.csv").write_text("source,target,time,sign\n" + "".join(f"{u},{v},20001,{s}\n" for u, v, s in rows))
    (tmp_path / "without.csv").write_text("source,target,sign\n" + "".join(f"{u},{v},{s}\n" for u, v, s in rows))
    status, out, err = command("fit", "signed-counts", tmp_path / "votes.csv", "-o", tmp_path / "M")
    assert status == 0 and "pairs.csv --at TIME" in out, out + err
    assert command("predict", tmp_path / "M", tmp_path / "pairs.csv", "--at", "20001", "-o", tmp_path / "said.csv")[0] == 0
    found = [command("score", "signed-links", tmp_path / "said.csv", tmp_path / f"{word}.csv") for word in ("with", "without")]
    assert found[0] == found[1] and found[0][0] == 0, found
    (tmp_path / "twice.csv").write_text("source,target,sign\nn1,n2,1\nn1,n2,-1\nn3,n5,-1\n")
    status, _, err = command("score", "signed-links", tmp_path / "said.csv", tmp_path / "twice.csv")
    assert status == 2 and "of n1, n2" in " ".join(err.split())
    for name, text, says in (
        ("up", "source,target,time,weight\nn1,qq,20005,2\n", "1 events taken in, 1 new nodes"),
        ("bare", "source,target,time\nn1,qq,20006\n", "these have none"),
    ):
        (tmp_path / f"{name}.csv").write_text(text)
        status, out, err = command("update", tmp_path / "M", tmp_path / f"{name}.csv")
        assert (status == 0) == (name == "up") and says in " ".join((out + err).split()), out + err


@pytest.mark.parametrize("batch", [1, 349])
def test_one_row_in_a_batch_is_no_error(votes: GivenEvents, batch: int) -> None:
    task = SignedLinks().for_data(votes)
    fold = task.fold(votes, task.plan(votes, 1)[0][0])
    assert len(fold.train.data) % batch in (0, 1)
    run = Run(task=task, digest=votes.digest(), fold="by-time-0")
    model = fitted(entry_of(f"semba(counts=true; batch={batch}; epochs=1)"), fold.train, fold.valid, run)
    assert all(bool(torch.isfinite(v).all()) for v in model.state().values() if v.is_floating_point())  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", TARGETS)
def test_headlines_and_classes(target: Any) -> None:
    task = task_of(f"signed-links(target={target})")
    assert task.headline_metric == ("mse" if target == "weight" else "auc")
    assert target == "existence" or CLASSES[target][0] == "negative"
    assert open_data("camps(nodes=20; events=100)").facts()["negative share"] > 0.3
