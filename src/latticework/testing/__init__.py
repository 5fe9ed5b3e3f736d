"""Batteries that every method, task, data set and probe must pass, ours and other packages' alike.

    from latticework.testing import check_method
    def test_mine():
        check_method("mine", data="karate")

Each raises ``AssertionError`` with what was expected, what was found, and (for a forgotten `revision`) what to do.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from latticework.core import registry, store
from latticework.core.dataset import Dataset, open_data
from latticework.core.errors import Cancelled, UserError
from latticework.core.evaluate import Options, evaluate, suited
from latticework.core.grid import entry_of, task_for, task_of
from latticework.core.ledger import Ledger
from latticework.core.method import Method
from latticework.core.registry import class_value
from latticework.core.result import Result
from latticework.core.run import Run, fitted, part_digest
from latticework.core.task import Fold, Part, Task
from latticework.core.value import Value

RECORD = "LATTICEWORK_RECORD"
TOLERANCE = 2e-3


# -- values ------------------------------------------------------------------------------------------------------------------
def check_value(value: Value) -> None:
    """Round trip through JSON at depth, a key that every field changes, bounds with a message, late fields left out."""
    plain = json.loads(json.dumps(value.plain(), allow_nan=False))
    again = class_value(value.noun, plain)
    assert again.plain() == value.plain() and again.key() == value.key(), (
        f"{value.name} is not the same after JSON: {again} != {value}"
    )
    for name, field in type(value).model_fields.items():
        for bound, beyond in _beyond(field):
            try:
                value.but(**{name: beyond})
            except UserError as error:
                assert name in str(error), f"{value.name}.{name}: the message does not name the field: {error}"
            else:
                raise AssertionError(f"{value.name}.{name} = {beyond} passes its bound {bound}")
        other = another(field, getattr(value, name))
        if other is None:
            continue
        try:
            changed = value.but(**{name: other})
        except UserError:
            continue  # fields may bind one another
        assert changed.key() != value.key(), f"{value.name}.{name} is not part of the key"
        late = name in value.late_fields()
        same = changed.key(late=False) == value.key(late=False)
        assert same == late, f"{value.name}.{name}: {'late, but' if late else 'not late, yet not'} part of the fit's identity"


def _beyond(field: Any) -> Iterator[tuple[str, Any]]:
    for item in field.metadata:
        kind = type(item).__name__
        if kind == "Ge":
            yield f">= {item.ge}", item.ge - 1
        elif kind == "Gt":
            yield f"> {item.gt}", item.gt
        elif kind == "Le":
            yield f"<= {item.le}", item.le + 1
        elif kind == "Lt":
            yield f"< {item.lt}", item.lt


def another(field: Any, now: Any) -> Any:
    """A different value of the same type, or none where that is not plain."""
    if isinstance(now, bool):
        return not now
    if isinstance(now, int | float):
        low = next(
            (getattr(m, "ge", getattr(m, "gt", None)) for m in field.metadata if hasattr(m, "ge") or hasattr(m, "gt")), None
        )
        for other in (now + 1, now - 1, now / 2 if isinstance(now, float) else now // 2, (low or 0) + 1):
            if other != now and not any(_outside(m, other) for m in field.metadata):
                return other
    return None


def _outside(bound: Any, value: float) -> bool:
    return (
        (hasattr(bound, "ge") and value < bound.ge)
        or (hasattr(bound, "gt") and value <= bound.gt)
        or (hasattr(bound, "le") and value > bound.le)
        or (hasattr(bound, "lt") and value >= bound.lt)
    )


# -- methods -----------------------------------------------------------------------------------------------------------------
def check_method(
    method: str | Method, data: Any = "karate", task: str | Task | None = None, *, fingerprints: Path | None = None
) -> Result:
    """The whole battery on a small fit; `fingerprints` is a JSON file of stored scores that catches a forgotten `revision`."""
    value, given, chosen = _asked(method, data, task)
    check_value(value)
    with TemporaryDirectory() as folder:
        first = _result(chosen, given, value, folder + "/a")
        again = _result(chosen, given, value, folder + "/b")
        assert first.scores == again.scores, f"{value.name}: the same seed gives other scores"
        assert first.headline is None or math.isfinite(first.headline)
        if not value.chance:
            other = _result(chosen, given, value, folder + "/c", seed=1)
            assert other.scores == first.scores, f"{value.name} says chance = False, but the seed changes its scores"
    _check_purity(suited(chosen, value), given, chosen)
    _check_stops(suited(chosen, value), given, chosen)
    _check_devices(value, given, chosen, first)
    if fingerprints is not None:
        check_revision(value, given, chosen, first, fingerprints)
    return first


def first_fit(
    method: str | Method,
    data: Any,
    task: str | Task | None = None,
    fold: str | None = None,
    *,
    seed: int = 0,
    validate: bool = True,
) -> tuple[Any, Fold, Run]:
    """(model, fold, run) of a fit on one fold of the data, the first unless one is named, without a ledger."""
    value, given, chosen = _asked(method, data, task)
    name = fold or chosen.plan(given, 1)[0][0]
    parts = chosen.fold(given, name)
    run = Run(task=chosen, digest=given.digest(), fold=name, seed=seed)
    return fitted(suited(chosen, value), parts.train, parts.valid if validate else None, run), parts, run


def _asked(method: str | Method, data: Any, task: str | Task | None) -> tuple[Method, Dataset, Task]:
    value = entry_of(method) if isinstance(method, str) else method
    given = open_data(data)
    chosen = task if isinstance(task, Task) else task_of(task) if task else task_for(value, given)
    assert chosen is not None, f"{value.name} has no task for data of kind {given.kind}"
    return value, given, chosen.for_data(given)


def _result(task: Task, data: Dataset, method: Method, root: str, seed: int = 0, device: str = "cpu") -> Result:
    fold, _ = task.plan(data, 1)[0]
    result = evaluate(task, data, method, fold, seed, Ledger(root), Options(device=device, debug=True))
    assert result.status == "done", result.error
    return result


def _check_purity(method: Method, data: Dataset, task: Task) -> None:
    """Save, load and predict give the same bits; nothing that is given is changed; global generators are left alone."""
    import torch

    fold = task.fold(data, task.plan(data, 1)[0][0])
    test = fold.test.blind()
    parts = [p for p in (fold.train, fold.valid, test) if p is not None]
    before = [part_digest(p) for p in parts]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    run = Run(task=task, digest=data.digest(), fold="battery", label=method.name)
    run._valid = fold.valid
    with run.seeded():
        model = method.fit(fold.train, fold.valid, run)
    point = dict(model.points()[0])
    with run.seeded("answer"):
        answer = task.answer(model.at(**point), test, run)
    assert torch.equal(torch_state, torch.get_rng_state()), f"{method.name}: torch's global generator is not as it was"
    assert (numpy_state == np.random.get_state()[1]).all(), f"{method.name} draws from numpy's global generator"  # type: ignore[index]
    assert [part_digest(p) for p in parts] == before, f"{method.name} changes what it is given"
    state = {k: np.array(v) for k, v in model.state().items() if hasattr(v, "detach")}
    with run.seeded("answer"):
        task.answer(model.at(**point), test, run)
    after = {k: np.array(v) for k, v in model.state().items() if hasattr(v, "detach")}
    assert all(np.array_equal(state[k], after[k], equal_nan=True) for k in state), f"{method.name}: predicting changes the model"
    with TemporaryDirectory() as folder:
        store.save_model(model, Path(folder) / "model")
        loaded = store.load_model(Path(folder) / "model")
        with run.seeded("answer"):
            once_more = task.answer(loaded.at(**point), test, run)
    a, b = [np.asarray(x) for x in arrays_in(answer)], [np.asarray(x) for x in arrays_in(once_more)]
    same = len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))
    assert same, f"{method.name}: a saved and loaded model answers otherwise"


def _check_stops(method: Method, data: Dataset, task: Task) -> None:
    """A cancelled fit raises `Cancelled`; a fit without time left stops soon. A fit that logs no step has nowhere to stop."""
    fold = task.fold(data, task.plan(data, 1)[0][0])
    steps = 0

    def count(label: str, step: int, values: Mapping[str, float]) -> None:
        nonlocal steps
        steps += 1

    run = Run(task=task, digest=data.digest(), fold="battery", on_log=count, label=method.name)
    with run.seeded():
        fitted(method, fold.train, fold.valid, run)
    if steps < 2:
        return
    asked = Run(task=task, digest=data.digest(), fold="battery", cancelled=lambda: True, label=method.name)
    try:
        with asked.seeded():
            fitted(method, fold.train, fold.valid, asked)
    except Cancelled:
        pass
    else:
        raise AssertionError(f"{method.name} goes on after it was cancelled")
    late = Run(task=task, digest=data.digest(), fold="battery", deadline=time.monotonic() - 1, label=method.name)
    with late.seeded():
        fitted(method, fold.train, fold.valid, late)
    assert late.stopped or len(next(iter(late.curve.values()))) < steps, f"{method.name} goes on when its time is up"


def _check_devices(method: Method, data: Dataset, task: Task, on_cpu: Result) -> None:
    import torch

    if not torch.cuda.is_available():
        return
    with TemporaryDirectory() as folder:
        there = _result(task, data, method, folder, device="cuda")
    if there.headline is not None and on_cpu.headline is not None:
        assert abs(there.headline - on_cpu.headline) < 0.1, (
            f"{method.name}: {on_cpu.headline} on the CPU, {there.headline} on a GPU"
        )


def check_revision(method: Method, data: Dataset, task: Task, result: Result, path: Path) -> None:
    """Equal identity, equal numbers: stored scores of a tiny fit, by key. Set LATTICEWORK_RECORD=1 to store new ones.

    Kinds of CPU round otherwise, and a fit may carry that further than the tolerance: LATTICEWORK_RECORD=KIND stores what this
    one gives beside the rest (``key @KIND``), once it is known that the code is not what changed. Any of them will do.
    """
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    key = f"{method.name} {method.key()[:16]} {task.key()[:8]} {data.digest()[:8]}"
    found = {s.metric: s.value for s in result.scores if not s.at and s.value is not None}
    if not found:  # all scores stand somewhere (an operating point, a stress)
        assert result.headline is not None, f"{method.name} has no headline on {task.name}: nothing would be held"
        found = {"headline": result.headline}
    kind = os.environ.get(RECORD, "")
    if key not in stored:
        if not kind:
            raise AssertionError(
                f"no stored score of {method.name} as it is now; where its numbers were meant to change, raise `revision`, and "
                f"run the test once with {RECORD}=1"
            )
        path.write_text(json.dumps(stored | {key: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    held = [scores for name, scores in stored.items() if name == key or name.startswith(f"{key} @")]
    off = [_first_off(found, scores) for scores in held]
    if None in off:
        return
    if kind not in ("", "1"):
        path.write_text(json.dumps(stored | {f"{key} @{kind}": found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return
    raise AssertionError(
        f"{method.name} gives {off[0]} is stored for the same identity: raise its `revision` ({type(method).revision} now), then run "
        f"the test once with {RECORD}=1"
    )


def _first_off(found: Mapping[str, float], held: Mapping[str, float]) -> str | None:
    """The first of the held scores that a fit misses, in words."""
    for metric, value in held.items():
        if not abs(found.get(metric, math.inf) - value) <= TOLERANCE:
            return f"{metric} {found.get(metric)} where {value}"
    return None


# -- tasks -------------------------------------------------------------------------------------------------------------------
def check_task(task: str | Task, data: Any, repeats: int = 3) -> None:
    """Round trip, a plan without repeats, folds that are the same each time, and no truth within a method's reach."""
    given = open_data(data)
    value = (task_of(task) if isinstance(task, str) else task).for_data(given)
    check_value(value)
    assert value.headline_metric in {m.name for m in value.metrics}
    plan = value.plan(given, repeats)
    assert len(plan) == repeats and len(set(plan)) == repeats, f"{value.name}: the plan for {repeats} repeats is {plan}"
    assert value.plan(given, repeats + 1)[:repeats] == plan, f"{value.name}: more repeats change the first ones"
    for role in value.readouts.values():
        registry.find("method", role)
    for name in {fold for fold, _ in plan}:
        first, again = value.fold(given, name), value.fold(given, name)
        assert part_digest(first.test) == part_digest(again.test), f"{value.name}: fold {name} is not the same twice"
        assert first.test.blind().truth is None
        seen = [first.train, first.valid, first.test.blind()]
        leak = find_leak([p for p in seen if p is not None], value.hidden(first.test), first.test)
        assert leak is None, f"{value.name}, fold {name}: the truth of the test part can be read: {leak}"


def find_leak(seen: list[Part], hidden: list[Any], test: Part) -> str | None:
    """Where an array within reach equals a hidden one, as it stands or at the places that are asked; none where none does."""
    rows = getattr(test.query, "rows", None)
    for truth in (np.asarray(h) for h in hidden):
        if truth.size < 4 or (truth == truth.flat[0]).all():
            continue  # a constant says nothing
        for part in seen:
            for array in arrays_in((part.data, part.query, part.truth, dict(part.schema))):
                if _holds(array, truth, rows):
                    return f"an array {array.dtype} {list(array.shape)} holds it"
    return None


def _holds(array: Any, truth: Any, rows: Any) -> bool:
    array = np.asarray(array)
    if array.dtype.kind not in "biuf" or array.size < truth.size:
        return False
    candidates = [array]
    if rows is not None and array.ndim and array.shape[0] > int(rows.max(initial=-1)):
        candidates.append(array[rows])
    if array.ndim > truth.ndim and array.shape[1:] == truth.shape:
        candidates += list(array)
    return any(c.shape == truth.shape and np.array_equal(c, truth) for c in candidates)


def arrays_in(node: Any, depth: int = 0) -> Iterator[Any]:
    """All arrays within reach: through mappings, sequences, containers of graphs and plain objects."""
    if depth > 8 or node is None or isinstance(node, str | bytes | int | float | bool):
        return
    if hasattr(node, "detach") and hasattr(node, "dtype"):
        yield node.detach().cpu().numpy()
    elif isinstance(node, np.ndarray):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from arrays_in(value, depth + 1)
    elif isinstance(node, list | tuple):
        if node and all(isinstance(v, int | float | bool) for v in node):
            yield np.asarray(node)
        for value in node:
            yield from arrays_in(value, depth + 1)
    elif hasattr(node, "to_dict"):
        yield from arrays_in(node.to_dict(), depth + 1)
    elif hasattr(node, "__dict__"):
        yield from arrays_in({k: v for k, v in vars(node).items() if k != "_cache"}, depth + 1)  # what is computed once


# -- data and probes ---------------------------------------------------------------------------------------------------------
def check_data(data: Any) -> None:
    """Round trip, the same digest and content each time, facts that JSON can hold, an export that reads back."""
    given = open_data(data)
    if "path" not in type(given).model_fields:  # a path that is changed names nothing
        check_value(given)
    assert given.digest() == given.digest() and len(given.digest()) >= 16
    once, again = list(arrays_in(given.read())), list(arrays_in(given.read()))
    assert len(once) == len(again) and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(once, again, strict=True)
    )
    json.dumps(given.facts(), allow_nan=False)
    assert all(isinstance(line, str) for line in given.check())
    assert registry.knows("data", given.name), f"{given.name} is not registered"


def check_probe(probe: str | Value, data: Any = None) -> None:
    """Round trip, the same findings each time, findings that JSON can hold, data and generators left alone."""
    import torch

    value: Any = registry.value_of("probe", probe) if isinstance(probe, str) else probe
    check_value(value)
    given = None if data is None else open_data(data)
    # what is held now; a measurement may add to the data's caches
    held = list(arrays_in(given.read())) if given else []
    before = [a.copy() for a in held]
    torch_state = torch.get_rng_state()

    def measure() -> Any:
        run = Run(task=None, digest=given.digest() if given else "", label=value.name)
        with run.seeded():
            return value.measure(given, run)

    first, again = measure(), measure()
    assert dict(first.scalars) == dict(again.scalars), f"{value.name}: the same seed finds other scalars"
    json.dumps({"scalars": dict(first.scalars), "tables": dict(first.tables)}, allow_nan=False)
    assert all(isinstance(f, str) and "<svg" in f for f in first.figures.values()), f"{value.name}: figures are SVG texts"
    assert torch.equal(torch_state, torch.get_rng_state())
    same = all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(before, held, strict=True))
    assert same, f"{value.name} changes the data"
