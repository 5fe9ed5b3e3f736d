"""NAT's recipe: the batteries, what a fit keeps, streaming, explanations, refusals, the command line, a small real run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import evaluate
from latticework.core.grid import entry_of, task_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run, fitted
from latticework.data.events import Events, GivenEvents, write_events
from latticework.temporal.nat import NATMethod, NATModel
from latticework.temporal.nat.recipe import better
from latticework.temporal.tasks import Pairs, TemporalLinkPrediction
from latticework.testing import check_method
from latticework.testing.streams import check_no_future_leak, check_restart

FINGERPRINTS = Path(__file__).parent / "fingerprints_nat.json"
TASK = TemporalLinkPrediction(ask_at_once=30)
TINY: dict[str, Any] = {
    "slots": (1, 8, 4), "state_width": 8, "code_width": 4, "pool_width": 8, "batch": 20, "lr": 5e-3, "epochs": 2
}  # fmt: skip


def tiny(**fields: Any) -> NATMethod:
    return NATMethod.make({**TINY, **fields})


def fit(method: NATMethod, data: Any, task: Any = TASK, seed: int = 0, **run: Any) -> tuple[NATModel, Any, Run]:
    parts = task.fold(data, "by-time-0")
    context = Run(task=task, digest=data.digest(), fold="by-time-0", seed=seed, **run)
    with context.seeded():
        model: Any = fitted(method, parts.train, parts.valid, context)
    return model, parts, context


def with_features(data: GivenEvents, width: int = 2) -> GivenEvents:
    events = data.read()
    x = np.random.default_rng(0).normal(size=(len(events), width)).astype(np.float32)
    return GivenEvents.hold(
        Events(events.ids, events.src, events.dst, events.t, x=x, features=tuple(f"f{i}" for i in range(width)))
    )


# -- batteries ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"replace": 0.5, "elapsed": True, "time_width": 4, "join": False},
        {"attention": True, "slots": (1, 8), "hash": "official"},
    ],
)
def test_batteries(fields: dict[str, Any], meetings: GivenEvents) -> None:
    method = tiny(**fields)
    check_method(method, meetings, TASK, fingerprints=FINGERPRINTS if not fields else None)
    check_no_future_leak(method, meetings, TASK)
    check_restart(method, meetings, TASK)


def test_event_features_are_read(meetings: GivenEvents) -> None:
    data = with_features(meetings)
    check_no_future_leak(tiny(), data, TASK)
    check_restart(tiny(), data, TASK)
    model, parts, _ = fit(tiny(), data)
    assert model.net.latest_x.shape[1] == 2
    turned = copy.deepcopy(model)
    walk = parts.test.data
    query = TASK.query_of(parts.test.blind(), 0, int(walk.ends[0]))
    model.observe(walk.before)
    turned.observe(Events(**{**vars(walk.before), "x": -walk.before.x, "_cache": {}}))
    one, other = (m.predict(parts.test._replace(query=query)) for m in (model, turned))
    assert np.abs(one - other).max() > 1e-6


# -- what a fit keeps ----------------------------------------------------------------------------------------------------
def test_best_epoch_means_weights_and_caches_together(meetings: GivenEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    """With validation values set by hand, what is given back is the state at the end of that epoch's walk, to the bit."""

    values = [0.5, 0.7, 0.7004, 0.6, 0.69, 0.9]
    ends: list[dict[str, Any]] = []

    def judge(run: Run, model: Any, valid: Any) -> float:
        ends.append(copy.deepcopy(model.net.state_dict()))
        return values[len(ends) - 1]

    monkeypatch.setattr(Run, "judge", judge)
    model, parts, run = fit(tiny(epochs=6), meetings)
    # .7004 is no improvement by a thousandth, so the third epoch without one is the fifth, and .9 is never reached
    assert len(ends) == 5 and run.notes == ["weights and caches of epoch 2, chosen on validation"]
    assert all(torch.equal(v, ends[1][k]) for k, v in model.net.state_dict().items())
    assert not torch.equal(ends[1]["cache.z"], ends[4]["cache.z"])
    events = parts.train.data
    assert int(model.net.cache.events) == len(events) and float(model.net.now) == events.t[-1]


def test_improvement_is_relative() -> None:
    assert better(0.5, []) and better(0.5006, [0.5]) and not better(0.5004, [0.5])
    # small steps do not add up against values that did not count, and do against the best that did
    assert not better(0.5004, [0.5, 0.5003]) and better(0.5006, [0.5, 0.5004])


def test_every_epoch_starts_from_empty_caches(meetings: GivenEvents) -> None:
    """At learning rate almost 0 the epochs' caches are one and the same."""
    one, _, _ = fit(tiny(lr=1e-30, epochs=1), meetings)
    three, _, _ = fit(tiny(lr=1e-30, epochs=3), meetings)
    assert all(torch.equal(a, b) for a, b in zip(one.net.state_dict().values(), three.net.state_dict().values(), strict=True))


def test_without_time_it_has_still_seen_all_of_train(meetings: GivenEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that is cut within its first epoch reads the rest without learning."""
    from latticework.temporal.nat import recipe

    monkeypatch.setattr(recipe, "LOOK", 2)
    model, parts, run = fit(tiny(epochs=50), meetings, deadline=time.monotonic() - 1)
    assert run.stopped and int(model.net.cache.events) == len(parts.train.data)
    # two batches have moved the weights, the rest has not
    start = fit(tiny(lr=1e-30, epochs=1), meetings)[0]
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(model.net.parameters(), start.net.parameters(), strict=True))
    assert 0 < moved < 3 * TINY["lr"]


def test_equal_times_in_one_large_batch(meetings: GivenEvents) -> None:
    """All of train at two times: the fit scores it in pieces, from caches that have not seen it."""
    events = meetings.read()
    t = np.repeat([0.0, 1.0, 2.0, 3.0], [150, 60, 45, 45])
    data = GivenEvents.hold(Events(events.ids, events.src, events.dst, t))
    model, parts, _ = fit(tiny(batch=1), data, TemporalLinkPrediction(hidden_nodes=0))
    assert int(model.net.cache.events) == len(parts.train.data) == 210
    check_restart(tiny(batch=1), data, TemporalLinkPrediction(hidden_nodes=0))


def test_a_learnt_model_beats_an_unlearnt_one(meetings: GivenEvents) -> None:
    task = TemporalLinkPrediction(ask_at_once=30, hidden_nodes=0)
    scores = []
    for method in (tiny(lr=1e-30, epochs=1), tiny(epochs=12, lr=2e-2)):
        model, parts, run = fit(method, meetings, task)
        scores.append(task.value(task.answer(model, parts.test.blind(), run), parts.test, run))
    assert scores[1] > scores[0] + 0.05, scores


# -- streaming -----------------------------------------------------------------------------------------------------------
def test_new_nodes_and_many_candidates(meetings: GivenEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    from latticework.temporal.nat import recipe

    model, parts, _ = fit(tiny(), meetings)
    known, last = model.net.nodes, float(model.net.now)
    query = Pairs(np.array([0, known + 3]), np.array([[1, known, known + 9], [2, 3, known]]), np.array([last + 1, last + 1]))
    before = model.predict(parts.test._replace(query=query))
    assert before.shape == (2, 3) and np.isfinite(before).all() and model.net.nodes == known
    monkeypatch.setattr(recipe, "PAIRS_AT_ONCE", 1)
    assert np.allclose(model.predict(parts.test._replace(query=query)), before, atol=1e-6)
    ids = tuple(f"n{i}" for i in range(known + 10))
    twin = copy.deepcopy(model)
    twin.observe(Events(ids, np.array([0, known + 9]), np.array([known + 9, known + 3]), np.array([last, last + 1])))
    assert twin.net.nodes == known + 10 and model.net.nodes == known
    after = twin.predict(parts.test._replace(query=query))
    assert np.abs(after - before)[0, 2] > 1e-6 and np.abs(after - before)[1, 2] > 1e-6


def test_chunks_of_whole_batches_change_nothing(meetings: GivenEvents) -> None:
    from latticework.temporal.stream import batch_ends

    model, parts, _ = fit(tiny(), meetings)
    walk = parts.test.data
    one, other = copy.deepcopy(model), copy.deepcopy(model)
    one.observe(walk.before)
    start = 0
    for stop in batch_ends(walk.before.t, model.method.batch).tolist():
        other.observe(walk.before.rows(start, stop))
        start = stop
    assert all(torch.equal(a, b) for a, b in zip(one.state().values(), other.state().values(), strict=True))


def test_parameters_do_not_count_caches(meetings: GivenEvents) -> None:
    model, _, _ = fit(tiny(), meetings)
    assert model.parameters() == sum(p.numel() for p in model.net.parameters()) < sum(v.numel() for v in model.state().values())


# -- explanations --------------------------------------------------------------------------------------------------------
def test_explanations_name_repeats_and_common_neighbours() -> None:
    """u and v both meet a and b; u has met a before: its pair is a repeat, and (u, v) share a and b."""
    names = ("u", "a", "v", "b", "w", "c")
    meetings = [(0, 1), (2, 1), (0, 3), (2, 3), (4, 5)] * 8
    src, dst = (np.array(column) for column in zip(*meetings, strict=True))
    data = GivenEvents.hold(Events(names, src, dst, np.arange(40.0)))
    model, parts, run = fit(tiny(slots=(1, 64, 64), replace=1.0), data, TemporalLinkPrediction(hidden_nodes=0))
    asked = Events(names, np.array([0, 0, 0]), np.array([2, 1, 4]), np.array([99.0, 99.0, 99.0]))
    part = TASK.ask(GivenEvents(content=_held(asked)), TASK.Query(), {**model.schema, "nodes": list(names)})
    found = model.explain(part)
    rows = {(r["source"], r["target"]): r for r in found.tables["why"]}
    assert rows["u", "v"]["first of them"] == "a, b" and not rows["u", "v"]["met before, by the caches"]
    assert rows["u", "a"]["met before, by the caches"] and not rows["u", "a"]["common neighbours in the caches"]
    assert not rows["u", "w"]["met before, by the caches"] and not rows["u", "w"]["common neighbours in the caches"]
    probability = 1 / (1 + np.exp(-TASK.answer(model, part, run)))
    assert np.allclose(probability[:, 0], [r["probability"] for r in found.tables["why"]], atol=1e-6)
    assert found.scalars["mean common neighbours in the caches"] == pytest.approx(2 / 3)
    assert not model.explain(parts.train).tables


def _held(events: Events) -> str:
    """Events kept as they are numbered, for a question."""
    GivenEvents._held["asked"] = events
    return "asked"


# -- refusals ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slots", [(1, 0, 4), (2, 4), (1,), (1, 2, 3, 4)])
def test_slots_that_are_none(slots: tuple[int, ...], meetings: GivenEvents) -> None:
    with pytest.raises(UserError, match="nat: slots are"):
        fit(tiny(slots=slots), meetings)


# -- as a user -----------------------------------------------------------------------------------------------------------
def test_command_line(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, meetings: GivenEvents, monkeypatch: Any
) -> None:
    """Fit, ask, update with new events, ask again: the saved caches go on."""
    import polars as pl

    monkeypatch.chdir(tmp_path)
    events = meetings.read()
    write_events(events.rows(0, 260), tmp_path / "events.csv")
    write_events(events.only(np.arange(300) >= 260), tmp_path / "new.csv")
    pl.DataFrame({"source": ["n1", "n2"], "target": ["n3", "stranger"]}).write_csv(tmp_path / "pairs.csv")
    settings = [word for k, v in TINY.items() for word in ("-s", f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}")]
    status, out, err = command("fit", "nat", "events.csv", *settings, "-o", "model")
    assert status == 0, out + err
    for name in ("before", "after"):
        status, out, err = command("predict", "model", "pairs.csv", "--at", "99999", "-o", f"{name}.csv")
        assert status == 0, out + err
        if name == "before":
            status, out, err = command("update", "model", "new.csv")
            assert status == 0 and "40 events" in out, out + err
    before, after = (pl.read_csv(tmp_path / f"{name}.csv") for name in ("before", "after"))
    assert before.columns == ["source", "target", "time", "score", "probability"]
    assert before["target"].to_list() == ["n3", "stranger"]
    assert (before["score"] != after["score"]).any()


# -- real data -----------------------------------------------------------------------------------------------------------
def test_college_messages_in_one_epoch(mirror: Any, tmp_path: Path) -> None:
    """The first fifth of the log: one epoch is far above the trivial baseline."""
    mirror("college-msg")
    data = GivenEvents.hold(open_data("college-msg").read().rows(0, 12_000))
    task = task_of("temporal-link-prediction(hidden_nodes=0; ask_at_once=32; against=1)")
    scores = {}
    for name in ("nat:small(epochs=1)", "edgebank"):
        result = evaluate(task, data, entry_of(name), "by-time-0", 0, Ledger(tmp_path))
        assert result.status == "done", result.error
        scores[name] = result.headline
    assert scores["nat:small(epochs=1)"] > scores["edgebank"] + 0.03, scores
