"""EvolveGCN and the other snapshot networks as recipes: batteries, no look-ahead, changing nodes, memory, the commands."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latticework as lw
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.data.events import Events, GivenEvents
from latticework.temporal.snapshots import LinkBlock, SnapshotPrediction, windows_of
from latticework.testing import check_method
from latticework.testing.streams import check_no_future_leak, check_restart

FINGERPRINTS = Path(__file__).parent / "fingerprints_evolvegcn.json"
LINKS = SnapshotPrediction(window=2.0, history=4)
SIGNS = LINKS.but(target="edge-class")
NODES = LINKS.but(target="node-class")
SMALL = "layers=8,8; head=8; epochs=2; negatives=5"


def log(m: int = 500, n: int = 20, seed: int = 0) -> GivenEvents:
    """Two camps that keep to themselves; a rating's sign goes with the target, a label with the source."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.random(m) * 60)
    src = rng.integers(0, n, m)
    dst = (src + 2 * rng.integers(1, n // 2, m)) % n
    weight = np.where((dst % 4 == 0) ^ (rng.random(m) < 0.1), -2.0, 1.0).astype(np.float32)
    x = (src % 3 == 0).astype(np.float32)[:, None]
    return GivenEvents.hold(Events(tuple(f"n{i}" for i in range(n)), src, dst, t, weight, x, ("label",), True))


@pytest.fixture(scope="module")
def meets() -> GivenEvents:
    return log()


def fitted(name: str, data: GivenEvents, task: SnapshotPrediction = LINKS) -> tuple[Any, Any, Run]:
    """(model, fold, run) of a fit on a fold."""
    from latticework.core.run import fitted as fit

    fold = task.fold(data, "by-time-0")
    run = Run(task=task, digest=data.digest(), fold="by-time-0")
    with run.seeded():
        return fit(entry_of(name), fold.train, fold.valid, run), fold, run


def kept(name: str) -> Path | None:
    """Stored scores are one a method, task and data: those of the first form."""
    return None if "variant" in name or "memory" in name else FINGERPRINTS


# -- batteries -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name",
    [
        "snapshot-gcn({})",
        "gcn-gru({})",
        "evolvegcn({})",
        "evolvegcn({}; variant=H; skip_features=true)",
        "evolvegcn({}; memory=true)",
    ],
)
def test_links(name: str, meets: GivenEvents) -> None:
    name = name.format(SMALL)
    check_method(entry_of(name), meets, LINKS, fingerprints=kept(name))
    check_no_future_leak(name, meets, LINKS)
    check_restart(name, meets, LINKS)


@pytest.mark.parametrize("task", [SIGNS, NODES], ids=["edge-class", "node-class"])
@pytest.mark.parametrize("name", ["gcn-gru({})", "evolvegcn({})", "evolvegcn({}; variant=H)"])
def test_classes(name: str, task: SnapshotPrediction, meets: GivenEvents) -> None:
    name = name.format(SMALL)
    check_method(entry_of(name), meets, task, fingerprints=kept(name))
    check_restart(name, meets, task)


# -- what must hold of the answers ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", ["O", "H"])
def test_no_score_of_a_window_moves_with_its_own_or_later_events(variant: str, meets: GivenEvents) -> None:
    model, fold, _ = fitted(f"evolvegcn({SMALL}; variant={variant})", meets)
    walk = fold.test.data
    n, asked = int(walk.known[-1]), []
    for turned in (False, True):
        walker = copy.deepcopy(model)
        walker.observe(walk.before)
        start, found = 0, []
        for k, stop in enumerate(walk.ends.tolist()):
            found.append(walker.predict(Part(None, LinkBlock(int(walk.windows[k]), np.arange(n), n), None, {})))
            events = walk.events.rows(start, stop)
            if turned and k >= 2:
                events = Events(events.ids, events.dst, events.src[::-1].copy(), events.t)
            walker.observe(events)
            start = stop
        asked.append(found)
    same = [np.array_equal(a, b) for a, b in zip(*asked, strict=True)]
    assert same[:3] == [True] * 3 and not all(same[3:])


def test_each_answer_starts_at_w_0_and_rests_on_the_last_windows_alone(meets: GivenEvents) -> None:
    model, fold, _ = fitted(f"evolvegcn({SMALL}; variant=H)", meets)
    w = int(fold.train.schema["windows"])
    query = Part(None, LinkBlock(w, np.arange(20), 20), None, {})
    first = model.predict(query)
    assert np.array_equal(model.predict(query), first)
    fresh = type(model)(model.method, model.schema, model.net)
    events = fold.train.data
    number = windows_of(events.t, fold.train.schema["origin"], 2.0)
    fresh.observe(events.rows(int(np.searchsorted(number, w - 5)), len(events)))
    assert np.array_equal(fresh.predict(query), first)
    fresh = type(model)(model.method, model.schema, model.net)
    fresh.observe(events.rows(int(np.searchsorted(number, w - 4)), len(events)))
    assert not np.array_equal(fresh.predict(query), first)


def test_the_degree_code_is_as_wide_as_the_train_part_says() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(300) / 5
    src, dst = rng.integers(0, 10, 300), 10 + rng.integers(0, 10, 300)
    late = t > 50  # a hub that no train window knows
    src[late], dst[late] = 0, 10 + np.arange(int(late.sum())) % 60
    data = GivenEvents.hold(Events(tuple(f"n{i}" for i in range(80)), src, dst, t))
    model, fold, run = fitted(f"evolvegcn({SMALL})", data)
    number = windows_of(fold.train.data.t, 0.0, 2.0)
    partners: dict[tuple[int, int], set[int]] = {}
    for w, u, v in zip(number.tolist(), fold.train.data.src.tolist(), fold.train.data.dst.tolist(), strict=True):
        partners.setdefault((w, u), set()).add(v)
        partners.setdefault((w, v), set()).add(u)
    assert model.schema["width"] == max(map(len, partners.values())) + 1
    assert np.isfinite(LINKS.answer(model, fold.test.blind(), run)).all()
    assert fitted(f"evolvegcn({SMALL}; degree_cap=3)", data)[0].schema["width"] == 4


def test_nodes_that_come_and_go() -> None:
    """Every window has nodes of its own: no node of a window is in another one. Hubs draw the links all the same."""
    rng = np.random.default_rng(0)
    src, dst, t = [], [], []
    for w in range(40):
        own = 12 * w
        for k in range(30):
            src.append(own + int(rng.integers(0, 2)))
            dst.append(own + int(rng.integers(2, 12)))
            t.append(w + k / 30)
    data = GivenEvents.hold(Events(tuple(f"n{i}" for i in range(480)), np.array(src), np.array(dst), np.array(t)))
    task = SnapshotPrediction(window=1.0, history=3)
    for variant in "OH":
        model, fold, run = fitted(f"evolvegcn({SMALL}; variant={variant})", data, task)
        answer = task.answer(model, fold.test.blind(), run)
        # a pair of new nodes stands with all pairs of lone nodes
        assert (answer[:, 2] > 50 * 49).all()


def test_an_empty_log_of_recent_windows_is_borne(meets: GivenEvents) -> None:
    for variant in "OH":
        model, fold, _ = fitted(f"evolvegcn({SMALL}; variant={variant})", meets)
        far = int(fold.train.schema["windows"]) + 50
        found = model.predict(Part(None, LinkBlock(far, np.arange(20), 20), None, {}))
        assert np.isfinite(found).all() and len(np.unique(found)) == 1


def test_it_learns_who_is_active(meets: GivenEvents) -> None:
    """Half of the nodes have nearly all the links, and others every time by chance: the learned score finds the first."""
    rng = np.random.default_rng(1)
    m = 1500
    src, dst = np.where(rng.random((2, m)) < 0.95, rng.integers(0, 8, (2, m)), rng.integers(8, 60, (2, m)))
    t = np.sort(rng.random(m) * 30)
    data = GivenEvents.hold(Events(tuple(f"n{i}" for i in range(60)), src, dst, t))
    task = SnapshotPrediction(window=1.0, history=4)
    chance = []
    for variant in "OH":
        model, fold, run = fitted(f"evolvegcn(layers=8,8; head=8; epochs=6; lr=0.01; negatives=5; variant={variant})", data, task)
        scores = task.score(task.answer(model, fold.test.blind(), run), fold.test, run)
        links = [s.at["links"] for s in scores if s.at and s.metric == "map"]
        chance.append((scores[0].value, np.mean(links) / (60 * 59)))
    assert all(value > 8 * base for value, base in chance), chance  # type: ignore[operator]


def test_memory_starts_at_the_recency_order_and_has_one_more_number(meets: GivenEvents) -> None:
    model, fold, run = fitted(f"evolvegcn({SMALL}; memory=true)", meets)
    plain = fitted(f"evolvegcn({SMALL})", meets)[0]
    assert model.parameters() == plain.parameters() + 1
    fresh = type(model)(model.method, model.schema, model.method.module(model.schema).eval())
    fresh.observe(fold.train.data)
    recency: Any = entry_of("recency-decay(of=presence)").fit(fold.train, None, run)
    query = Part(None, LinkBlock(int(fold.train.schema["windows"]), np.arange(20), 20), None, {})
    ours, theirs = fresh.predict(query), recency.predict(query)
    np.testing.assert_allclose(ours, np.log(theirs + 1e-3), atol=1e-4)


def test_training_and_answering_score_a_pair_alike(meets: GivenEvents) -> None:
    from latticework.temporal.snapshot_network import logits_of

    model, fold, _ = fitted(f"evolvegcn({SMALL})", meets)
    w = int(fold.train.schema["windows"])
    rows = np.stack(np.divmod(np.arange(400), 20))
    with torch.no_grad():
        logits = logits_of(model.net, model.history_before(w), rows)
    found = model.predict(Part(None, LinkBlock(w, np.arange(20), 20), None, {}))
    np.testing.assert_allclose(found.ravel(), (logits[:, 1] - logits[:, 0]).numpy(), atol=1e-5)


def test_false_pairs_are_false_and_of_the_history(meets: GivenEvents) -> None:
    from latticework.temporal.snapshot_network import cases_of, false_pairs

    model, fold, _ = fitted(f"evolvegcn({SMALL})", meets)
    cases = cases_of(model, fold.train.data)
    assert [c.window for c in cases] == list(range(5, fold.train.schema["windows"]))
    for case in cases:
        found = false_pairs(case, 4, np.random.default_rng(0))
        true = set(zip(*case.rows.tolist(), strict=True))
        assert found.shape[1] > 0 and not true & set(zip(*found.tolist(), strict=True)) and (found[0] != found[1]).all()
        assert set(found[0].tolist()) <= set(case.rows[0].tolist())
        assert set(found[1].tolist()) <= {int(v) for s in case.history for v in s.nodes}


# -- errors --------------------------------------------------------------------------------------------------------------
def test_mistakes_are_named(meets: GivenEvents) -> None:
    for name, task, words in (
        ("evolvegcn(layers=8,0)", LINKS, "layers are one width or more"),
        ("evolvegcn(class_weights=1,2,3)", LINKS, "class_weights are 2 numbers"),
        ("evolvegcn(memory=true)", SIGNS, "memory=true is for"),
    ):
        with pytest.raises(UserError, match=words):
            fitted(name, meets, task)
    for cap in (0, -1):
        with pytest.raises(UserError, match=r"degree_cap.*1 or more"):
            entry_of(f"evolvegcn(degree_cap={cap})")
    with pytest.raises(UserError, match="variant"):
        entry_of("evolvegcn(variant=G)")


# -- the commands --------------------------------------------------------------------------------------------------------
def test_as_typed(tmp_path: Path, command: Callable[..., tuple[int, str, str]], meets: GivenEvents) -> None:
    import polars as pl

    meets.write(tmp_path / "all.csv")
    frame = pl.read_csv(tmp_path / "all.csv")
    frame[:450].write_csv(tmp_path / "events.csv")
    frame[450:].write_csv(tmp_path / "new-events.csv")
    status, out, err = command(
        "fit", "evolvegcn", tmp_path / "events.csv", "-s", "task=snapshot-prediction", "-s", "task.target=next-links", "-s", "task.window=2s",
        "-s", "task.history=4", "-s", "variant=O", "-s", "layers=8,8", "-s", "head=8", "-s", "epochs=2", "-o", tmp_path / "MODEL",
    )  # fmt: skip
    assert status == 0 and "the recency baseline has" in out, out + err
    status, out, err = command(
        "predict", tmp_path / "MODEL", tmp_path / "events.csv", "--top", "100", "-o", tmp_path / "links.csv"
    )
    assert status == 0, out + err
    found = pl.read_csv(tmp_path / "links.csv")
    assert len(found) == 100 and found["score"].is_sorted(descending=True)
    past = pl.read_csv(tmp_path / "links-past-windows.csv")
    assert past.columns == ["snapshot", "map", "map of recency", "mrr", "mrr of recency"] and len(past) >= 2
    status, out, err = command("update", tmp_path / "MODEL", tmp_path / "new-events.csv")
    assert status == 0 and "50 events taken in" in out, out + err
    assert command("predict", tmp_path / "MODEL", tmp_path / "all.csv", "--top", "100", "-o", tmp_path / "later.csv")[0] == 0
    assert (tmp_path / "later.csv").read_text() != (tmp_path / "links.csv").read_text()
    # a log out of order is sorted and said; negative times are an error with their line
    frame[:450].sample(fraction=1.0, shuffle=True, seed=0).write_csv(tmp_path / "mixed.csv")
    status, out, err = command("data", "check", tmp_path / "mixed.csv")
    assert status == 0 and "sorted by time" in out and "snapshot-prediction" in out, out + err
    (tmp_path / "early.csv").write_text("source,target,time\na,b,-1\n")
    status, out, err = command("fit", "evolvegcn", tmp_path / "early.csv", "-o", tmp_path / "x")
    assert status == 2 and "line 2" in out + err and "negative" in out + err


def test_what_it_says_of_itself(meets: GivenEvents) -> None:
    model, fold, _ = fitted(f"evolvegcn({SMALL}; variant=H)", meets)
    found = model.explain(fold.test.blind())
    assert len(found.tables["past windows"]) == len(fold.valid.data.windows)
    drift = found.tables["drift of the weights"]
    assert len(drift) == 6 and drift[0]["layer 1"] == 0.0 and drift[-1]["layer 2"] > 0
    assert all("<svg" in figure for figure in found.figures.values())
    assert "H: a summary" in str(type(model.method).model_fields["variant"].description)


# -- real ----------------------------------------------------------------------------------------------------------------
def test_one_epoch_on_the_messages(mirror: Callable[[str], Path]) -> None:
    mirror("college-msg")
    data, task = open_data("college-msg"), SnapshotPrediction(window=190_080.0)
    model, fold, run = fitted("evolvegcn(layers=32,32; head=32; lr=0.003; epochs=1; negatives=10; memory=true)", data, task)  # type: ignore[arg-type]
    scores = task.score(task.answer(model, fold.test.blind(), run), fold.test, run)
    assert model.schema["width"] == 167 and scores[0].value > 0.12  # type: ignore[operator]


def test_signs_of_traders_are_told_by_counts(mirror: Callable[[str], Path]) -> None:
    mirror("bitcoin-alpha")
    task = SnapshotPrediction(window=1_200_000.0, target="edge-class", train=0.7)
    data = lw.dataset("bitcoin-alpha")
    assert len(task.fold(data, "by-time-0").test.data.windows) > 20
    model, fold, run = fitted("snapshot-logistic", data, task)
    found = {s.metric: s.value for s in task.score(task.answer(model, fold.test.blind(), run), fold.test, run) if not s.at}
    assert found["minority-f1"] > 0.2
