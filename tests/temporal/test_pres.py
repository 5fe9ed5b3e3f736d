"""TGN, JODIE, PRES and the probe through the batteries; batch=auto; what is refused; the command line; real logs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of
from latticework.core.registry import value_of
from latticework.core.run import Run
from latticework.core.task import Part
from latticework.data.events import Events, GivenEvents
from latticework.temporal.memory_baselines import MemoryMethod
from latticework.temporal.pres import PRESMethod
from latticework.temporal.stream import schema_at
from latticework.temporal.tasks import Pairs, TemporalLinkPrediction
from latticework.testing import check_method, check_probe
from latticework.testing.streams import check_no_future_leak, check_restart

FINGERPRINTS = Path(__file__).parent / "fingerprints_pres.json"
TASK = TemporalLinkPrediction(ask_at_once=30)
TINY = "width=8; time=6; epochs=2; batch=30"
SMALL = {
    "tgn": f"tgn({TINY}; neighbours=4)", "jodie": f"jodie({TINY})", "pres": f"pres(base=tgn({TINY}; neighbours=4); batch=60)",
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_battery(name: str, meetings: GivenEvents) -> None:
    check_method(entry_of(SMALL[name]), meetings, TASK, fingerprints=FINGERPRINTS)
    check_no_future_leak(SMALL[name], meetings, TASK)
    check_restart(SMALL[name], meetings, TASK)


@pytest.mark.parametrize(
    "entry", ["tgn(aggregate=mean)", "pres(base=jodie; with_dt=false; track=0.25; gate=0.9)", "pres(base=jodie; batch=auto)"]
)
def test_other_forms_restart(entry: str, meetings: GivenEvents) -> None:
    method = entry_of(entry)
    prefix = "base." if method.name == "pres" else ""
    method = method.with_settings({f"{prefix}{k}": v for k, v in {"width": 8, "time": 6, "epochs": 1, "batch": 30}.items()})
    check_no_future_leak(method, meetings, TASK)
    check_restart(method, meetings, TASK)


def test_probe(meetings: GivenEvents) -> None:
    check_probe("pending-events", meetings)
    check_probe("pending-events(batch=7)", meetings)
    probe: Any = value_of("probe", "pending-events(batch=1)")
    found = probe.measure(meetings, Run(task=None))
    assert found.scalars["pending share"] == 0 and found.scalars["dropped messages"] == 0


def fitted(entry: Any, data: Any, task: Any = TASK) -> tuple[Any, Run]:
    method = entry_of(entry) if isinstance(entry, str) else entry
    fold = task.fold(data, "by-time-0")
    run = Run(task=task, digest=data.digest(), fold="by-time-0")
    run._valid = fold.valid
    with run.seeded():
        return method.fit(fold.train, fold.valid, run), run


@pytest.mark.parametrize("base", [SMALL["tgn"], SMALL["jodie"], f"semba({TINY}; memory=4; heads=2)"])
def test_gate_one_without_penalty_is_the_base_bit_for_bit(base: str, meetings: GivenEvents) -> None:
    """The whole fit, its choice of the epoch and the answers to the test part."""
    plain, run = fitted(base, meetings)
    wrapped, other = fitted(f"pres(base={base}; batch=30; gate=1; beta=0)", meetings)
    assert run.curve == other.curve and len(run.curve["valid"]) == 2
    mine = wrapped.state()
    assert all(torch.equal(v, mine[k]) for k, v in plain.state().items())
    test = TASK.fold(meetings, "by-time-0").test.blind()
    assert np.array_equal(TASK.answer(plain, test, run), TASK.answer(wrapped, test, run))
    # and is not, once the filter works
    filtered, _ = fitted(f"pres(base={base}; batch=30)", meetings)
    assert not np.array_equal(TASK.answer(plain, test, run), TASK.answer(filtered, test, run))


def test_semba_is_wrapped_too(meetings: GivenEvents) -> None:
    model, run = fitted("pres(base=semba(width=8; memory=4; time=6; epochs=1; heads=2); batch=60)", meetings)
    assert model.method.observed() == model.method.base.observed() == 1000 and PRESMethod().observed() == 200  # as the bases do
    assert model.whole.correct.xi.shape == (24, 8)  # both memories are one row
    assert bool(model.whole.correct.n.any()) and np.isfinite(run.curve["valid"][0][1])


def test_anchors_are_the_busiest_nodes(meetings: GivenEvents) -> None:
    model, _ = fitted(f"pres(base=jodie({TINY}); track=0.25)", meetings)
    train = TASK.fold(meetings, "by-time-0").train
    degree = np.bincount(np.concatenate([train.data.src, train.data.dst]), minlength=len(train.schema["nodes"]))
    tracked = torch.nonzero(model.whole.correct.slot >= 0).ravel().numpy()
    assert len(tracked) == round(0.25 * len(degree)) and degree[tracked].min() >= np.sort(degree)[-len(tracked)]


# -- batch=auto -------------------------------------------------------------------------------------------------------


def test_auto_takes_the_largest_batch_within_the_tolerance(meetings: GivenEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {20: 0.80, 40: 0.82, 80: 0.795, 160: 0.70}
    monkeypatch.setattr(Run, "judge", lambda run, model, valid: values[model.method.batch])
    entry = f"pres(base=jodie({TINY}); batch=auto; tolerance=0.01)"
    method = entry_of(entry).with_settings({"base.batch": 20})
    model, run = fitted(method, meetings)
    assert model.method.batch == 80
    assert [row["batch"] for row in model.schema["tried"]] == [20, 40, 80, 160]
    assert run.curve["valid by batch"] == list(values.items())
    shares = [row["pending"] for row in model.schema["tried"]]
    assert all(a < b for a, b in itertools.pairwise(shares)) and min(s for _, s in run.curve["seconds an epoch by batch"]) > 0
    # none within a tolerance of 0 but the base's batch and what is better
    assert fitted(method.but(tolerance=0.0), meetings)[0].method.batch == 40
    assert fitted(method.but(tolerance=0.5), meetings)[0].method.batch == 160
    found = model.explain(Part(None, None))
    assert len(found.tables["batches tried"]) == 4 and all("<svg" in f for f in found.figures.values())


def test_auto_gives_the_fit_of_the_batch_that_it_took(meetings: GivenEvents) -> None:
    model, _ = fitted(f"pres(base=jodie({TINY}); batch=auto; trial_epochs=1)", meetings)
    same, _ = fitted(f"pres(base=jodie({TINY}); batch={model.method.batch})", meetings)
    mine = model.state()
    assert all(torch.equal(v, mine[k]) for k, v in same.state().items())


def test_auto_needs_a_validation_part(meetings: GivenEvents) -> None:
    fold = TASK.fold(meetings, "by-time-0")
    with pytest.raises(UserError, match="validation part"):
        entry_of(f"pres(base=jodie({TINY}); batch=auto)").fit(fold.train, None, Run(task=TASK))


def test_a_batch_larger_than_the_log_says_so(meetings: GivenEvents) -> None:
    _, run = fitted(f"pres(base=jodie({TINY}); batch=5000)", meetings)
    assert any("one step an epoch" in note for note in run.notes)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("batch", 0, "at least 1"), ("batch", -3, "at least 1"), ("beta", -0.1, "greater than or equal to 0"),
        ("gate", 1.5, r"\[0, 1\]"), ("gate", -0.1, r"\[0, 1\]"), ("track", 0, r"\(0, 1\]"), ("track", 1.2, r"\(0, 1\]"),
        ("tolerance", -1, "greater than or equal to 0"), ("batch", "most", "batch"),
    ],
)  # fmt: skip
def test_fields_out_of_bounds(field: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        PRESMethod.make({field: value})


class Forgetful(MemoryMethod):
    """A method whose network keeps no memory."""

    name: ClassVar[str] = "tgn"

    def build(self, train: Part, run: Run) -> torch.nn.Module:
        return torch.nn.Linear(2, 2)


def test_a_base_without_memory_is_refused_by_name(meetings: GivenEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="lacks memory, reset"):
        fitted(PRESMethod.model_construct(base=Forgetful(), **_rest()), meetings)
    from latticework.temporal.memory_baselines import RecurrentMemory

    monkeypatch.delattr(RecurrentMemory, "link")
    with pytest.raises(UserError, match="its network lacks link;"):
        fitted(f"pres(base=tgn({TINY}))", meetings)
    reason = entry_of("pres(base=gcn)").refuses(TASK, meetings.facts())
    assert reason is not None and "gcn has no node memory" in reason and "answer" in reason
    reason = entry_of("pres(base=signed-tgn)").refuses(TASK, meetings.facts())
    assert reason is not None and "made for signed-links" in reason


def _rest() -> dict[str, Any]:
    return {k: f.get_default() for k, f in PRESMethod.model_fields.items() if k != "base"}


def test_heads_that_do_not_divide_are_named(meetings: GivenEvents) -> None:
    with pytest.raises(UserError, match="3 heads do not divide"):
        fitted("tgn(width=8; time=6; heads=3)", meetings)


# -- data -------------------------------------------------------------------------------------------------------------


def test_one_event_is_enough_to_build_and_predict() -> None:
    events = Events(("a", "b"), np.array([0]), np.array([1]), np.array([3.0]))
    part = Part(events, None, None, schema_at(events))
    for entry in (f"tgn({TINY})", f"pres(base=jodie({TINY}))"):
        run = Run(task=None)
        with run.seeded():
            model = entry_of(entry).fit(part, None, run)
        scores = model.predict(Part(None, Pairs(np.array([0, 5]), np.array([[1, 7], [0, 1]]), np.array([4.0, 4.0]))))
        assert scores.shape == (2, 2) and np.isfinite(scores).all()


# -- the command line -------------------------------------------------------------------------------------------------


def test_as_typed(meetings: GivenEvents, tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    import polars as pl

    log, later, whole = tmp_path / "events.csv", tmp_path / "later.csv", tmp_path / "whole.csv"
    open_data(meetings).write(whole)
    frame = pl.read_csv(whole)
    frame[:250].write_csv(log)
    frame[250:].write_csv(later)
    small = ["-s", "base=jodie", "-s", "base.width=8", "-s", "base.time=6", "-s", "base.epochs=2", "-s", "base.batch=20"]
    status, out, err = command("fit", "pres", log, *small, "-s", "batch=auto", "-o", tmp_path / "model")
    assert status == 0, out + err
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("source,target\nn1,n3\nn1,nobody\n")
    status, out, err = command("update", tmp_path / "model", later, "-o", tmp_path / "longer")
    assert status == 0 and "50 events taken in" in out, out + err
    status, out, err = command("predict", tmp_path / "longer", pairs, "--at", "1e5", "-o", tmp_path / "scores.csv")
    assert status == 0, out + err
    scores = pl.read_csv(tmp_path / "scores.csv")
    assert scores["target"].to_list() == ["n3", "nobody"] and scores["probability"].is_between(0, 1).all()
    status, out, err = command("probe", "pending-events", log, "-s", "batch=800")
    assert status == 0 and "pending share" in out, out + err
    for words, says in (
        (["-s", "batch=0"], "at least 1"), (["-s", "gate=2"], "[0, 1]"), (["-s", "beta=-1"], "beta"), (["-s", "base=gcn"], "gcn"),
    ):  # fmt: skip
        status, out, err = command("fit", "pres", log, *words, "-o", tmp_path / "none")
        assert status == 2 and says in out + err and "Traceback" not in out + err, out + err


# -- real logs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("college-msg", {100: 0.763, 200: 0.828, 400: 0.883, 1600: 0.955}),
        ("wikipedia-temporal", {100: 0.598, 200: 0.682, 400: 0.750, 1600: 0.855}),
    ],
)
def test_pending_shares_of_real_logs(name: str, shares: dict[int, float], mirror: Any) -> None:
    from latticework.temporal.pres import pending_events

    mirror(name)
    events = open_data(name).read()
    for batch, share in shares.items():
        assert pending_events(events.src, events.dst, batch).mean() == pytest.approx(share, abs=6e-4)


def test_wikipedia_is_learned(mirror: Any) -> None:
    """The first 20,000 events, two epochs of JODIE and of PRES around it at four times the batch: well above chance."""
    mirror("wikipedia-temporal")
    data = GivenEvents.hold(open_data("wikipedia-temporal").read().rows(0, 20_000))
    task = TemporalLinkPrediction(against=1)
    for entry in ("jodie:small(epochs=2)", "pres(base=jodie:small; base.epochs=2; base.scale_lr=true)"):
        model, run = fitted(entry, data, task)
        fold = task.fold(data, "by-time-0")
        value = task.value(task.answer(model, fold.test.blind(), run), fold.test, run)
        assert value is not None and value > 0.7, entry
