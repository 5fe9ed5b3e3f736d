"""Streams: the future never leaks, and a restart goes on as if there had been none."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticework.core import store
from latticework.core.dataset import Dataset, open_data
from latticework.core.evaluate import suited
from latticework.core.grid import entry_of, task_of
from latticework.core.method import Method
from latticework.core.run import Run, fitted
from latticework.core.task import Part, Task

Array = NDArray[Any]


def check_no_future_leak(method: Method | str, data: Any, task: Task | str) -> None:
    """Events after a time are changed, and no score that is asked at or before that time moves by a bit. (In the one batch that
    the time cuts in two, rows have other company than before: there a score may move by a rounding.)

    The time is in the middle of the test part, so what a fit takes from the whole log (a scale, a width, a count) shows as
    well as what an answer takes from the future. Ends, weights and features after it are others; times stay, so that the
    log is cut at the same places. What the task draws for a row (its false targets) stays as it was up to then: the question
    is the task's, and the answer to it is what is judged. The task's test part says with `times` when each row of its answer is
    asked.
    """
    given = open_data(data)
    value = entry_of(method) if isinstance(method, str) else method
    chosen = (task_of(task) if isinstance(task, str) else task).for_data(given)
    if "hidden_nodes" in type(chosen).model_fields:  # they are drawn among nodes of the test part, on purpose
        chosen = chosen.but(hidden_nodes=0.0)
    fold, seed = chosen.plan(given, 1)[0]
    test = chosen.fold(given, fold).test.data
    times = np.asarray(test.times)
    until = float(times[len(times) // 2])
    before = times <= until
    asked = {name: (before, values) for name, values in getattr(test, "asked", {}).items()}
    coded = str(getattr(chosen, "class_column", ""))  # of classes no other than those of the log may come
    other = _changed(given, until, coded)
    first, second = (_answers(suited(chosen, value), d, chosen, fold, seed, asked) for d in (given, other))
    assert before.any() and not before.all(), "the test part has one time only: nothing can be changed after it"
    count = int(before.sum())  # times never fall
    whole = int(test.ends[test.ends <= count].max(initial=0)) if asked else count
    same = np.array_equal(first[:whole], second[:whole], equal_nan=True) and np.allclose(
        first[whole:count], second[whole:count], rtol=1e-5, atol=1e-5, equal_nan=True
    )
    assert same, f"{value.name}: scores asked at or before {until:g} change with events after it: the future leaks"


def _answers(method: Method, data: Dataset, task: Task, fold: str, seed: int, asked: Mapping[str, tuple[Array, Array]]) -> Array:
    """What a fit on the data answers. `asked`: rows bool [m] of the walk's question by name, and what is asked in these rows."""
    parts = task.fold(data, fold)
    test, walk = parts.test.blind(), parts.test.data
    if asked:
        own = {name: np.array(values) for name, values in walk.asked.items()}
        for name, (rows, values) in asked.items():
            own[name][rows] = values[rows]
        test = test._replace(data=replace(walk, asked=own))
    run = Run(task=task, digest=data.digest(), fold=fold, seed=seed, label=method.name)
    with run.seeded():
        model = fitted(method, parts.train, parts.valid, run)
    with run.seeded("answer"):
        return np.asarray(task.answer(model, test, run))


def _changed(data: Dataset, until: float, coded: str = "") -> Dataset:
    """The same log with other events after a time: targets dealt anew, weights and features turned round (a column of codes is
    dealt anew)."""
    events = data.read()
    later = np.flatnonzero(events.t > until)
    order = np.random.default_rng(0).permutation(later)
    src, dst = events.src.copy(), events.dst.copy()
    dst[later] = dst[order]
    src[later[::2]] = src[later[::2]][::-1]
    changes: dict[str, Any] = {"src": src, "dst": dst, "notes": (), "_cache": {}}
    if events.weight is not None:
        weight = events.weight.copy()
        weight[later] = -weight[order] if events.signed else weight[order]
        changes["weight"] = weight
    if events.x is not None:
        x = events.x.copy()
        x[later] = x[order] * np.where([name == coded for name in events.features], 1, -1).astype(x.dtype)
        changes["x"] = x
    return open_data(replace(events, **changes))


def check_restart(method: Method | str, data: Any, task: Task | str, chunks: int = 4) -> None:
    """A model that is saved and loaded between any two chunks of the stream answers as an unbroken one, bit for bit."""
    given = open_data(data)
    value = entry_of(method) if isinstance(method, str) else method
    chosen: Any = (task_of(task) if isinstance(task, str) else task).for_data(given)
    fold, seed = chosen.plan(given, 1)[0]
    parts = chosen.fold(given, fold)
    run = Run(task=chosen, digest=given.digest(), fold=fold, seed=seed, label=value.name)
    with run.seeded():
        whole = fitted(suited(chosen, value), parts.train, parts.valid, run)
    broken = copy.deepcopy(whole)
    walk = parts.test.data
    cuts = np.linspace(0, len(walk.ends), chunks + 1).astype(int)[1:]
    ends = [int(walk.ends[c - 1]) for c in cuts if c]
    events, start = walk.events, 0
    for model in (whole, broken):
        if len(walk.before):
            model.observe(walk.before)
    for stop in dict.fromkeys(ends):
        query: Part = Part(None, chosen.query_of(parts.test.blind(), start, stop), None, parts.test.schema)
        with TemporaryDirectory() as folder:
            store.save_model(broken, Path(folder) / "model")
            broken = store.load_model(Path(folder) / "model")
        with run.seeded("answer"):
            one = np.asarray(whole.predict(query))  # type: ignore[attr-defined]
        with run.seeded("answer"):
            other = np.asarray(broken.predict(query))  # type: ignore[attr-defined]
        assert np.array_equal(one, other), f"{value.name}: a saved and loaded memory answers otherwise from event {start} on"
        for model in (whole, broken):
            model.observe(events.rows(start, stop))
        start = stop
