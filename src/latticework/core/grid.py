"""Grids: cases x entries x repeats. What `compare`, `reproduce` and the tables run.

A grid goes seed by seed, so a partial board is a board. Several processes on one folder share its cells through the
ledger's locks; a cell held elsewhere is left for later.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from typing import Any, ClassVar, NamedTuple

from . import registry
from .dataset import Dataset, open_data
from .errors import Held, UserError
from .evaluate import Options, cell_key, evaluate, suited
from .ledger import Ledger
from .method import Method
from .result import Result
from .task import Task
from .tuning import Tuned, TunedOnce
from .value import Value, digest_of, setting

POLL_S = 0.2


class Cell(NamedTuple):
    """One cell as plain JSON: what a worker is told."""

    entry: str
    data: dict[str, Any]
    task: dict[str, Any]
    method: dict[str, Any]
    fold: str
    seed: int


class Case(NamedTuple):
    """One data set under one task, with the entries that run on it."""

    label: str
    data: Dataset
    task: Task
    entries: tuple[tuple[str, Method, bool], ...]  # label, method, came unasked
    pairs: tuple[tuple[str, int], ...]

    def cells(self) -> list[tuple[int, Cell]]:
        """(repeat, cell) of all its cells; a method without chance counts once a fold."""
        found: dict[Any, tuple[int, Cell]] = {}
        for repeat, (fold, seed) in enumerate(self.pairs):
            for label, method, _ in self.entries:
                own = seed if method.chance else 0
                if (label, fold, own) not in found:
                    cell = Cell(label, self.data.plain(), self.task.plain(), method.plain(), fold, own)
                    found[label, fold, own] = (repeat, cell)
        return list(found.values())


class Grid(Value):
    """Cases x entries x repeats, with sweeps of fields. Entries are ``name``, ``name:preset``, ``name(field=value,...)``."""

    noun: ClassVar[str] = "grid"
    name: ClassVar[str] = "grid"
    data: tuple[str, ...] = setting(..., "names or paths of data sets")
    tasks: tuple[str, ...] = setting((), "task names; left out, the first that fits the kind")
    entries: tuple[str, ...] = setting((), "methods")
    repeats: int = setting(5, "folds, splits or seeds, as the task's plan says", ge=1, le=1000)
    tune: int = setting(0, "trials of tuning for every method; 0: as given", ge=0, le=10_000)
    tune_once: bool = setting(False, "tune on the first fold alone and keep what it finds for the rest", later=True)
    classic: int = setting(5, "trials for the unasked classic baseline when nothing else is tuned", ge=0, le=1000)
    baselines: bool = setting(True, "add the task's trivial and classic baseline")
    sweep: tuple[tuple[str, tuple[Any, ...]], ...] = setting(
        (), "field -> values, applied to every entry that has it; task.x: a case for each value"
    )
    settings: tuple[tuple[str, Any], ...] = setting((), "task.x, data.x or a field of every asked entry")

    def cases(self) -> list[Case]:
        """Everything resolved, before anything runs."""
        found = []
        given = dict(self.settings)
        of_task = {k[5:]: v for k, v in given.items() if k.startswith("task.")}
        of_data = {k[5:]: v for k, v in given.items() if k.startswith("data.")}
        of_method = {k: v for k, v in given.items() if not k.startswith(("task.", "data."))}
        for name in self.data:
            data = open_data(name, of_data)
            asked = [task_of(t) for t in self.tasks] or [default_task(data, self.entries)]
            tasks = [
                task.with_settings(of_task | point) if of_task | point else task for task in asked for point in self.task_points()
            ]
            for task in tasks:
                if data.kind not in task.kinds:
                    raise UserError(f"{task.name} is for {', '.join(task.kinds)}, and {name} holds {data.kind}")
                task = task.for_data(data)
                entries = list(_apart(self._entries(task, data, of_method)))
                plan = tuple(task.plan(data, self.repeats))
                found.append(Case(f"{name} · {task.label}" if len(tasks) > 1 else name, data, task, tuple(entries), plan))
        return found

    def task_points(self) -> list[dict[str, Any]]:
        """The settings of the task at each point of the sweep; one without settings where no field of the task is swept."""
        swept = [(k[5:], v) for k, v in self.sweep if k.startswith("task.")]
        return [dict(zip((k for k, _ in swept), values, strict=True)) for values in itertools.product(*(v for _, v in swept))]

    def _entries(self, task: Task, data: Dataset, settings: Mapping[str, Any]) -> Iterator[tuple[str, Method, bool]]:
        of_entries = dict(settings)
        seen = set()
        fields = {text: type(entry_of(text)).model_fields for text in self.entries}
        swept = [(k, v) for k, v in self.sweep if not k.startswith("task.")]
        for key, given in [*of_entries.items(), *((k, values[0]) for k, values in swept if values)] if fields else ():
            if not any(key.split(".")[0] in known for known in fields.values()):
                entry_of(self.entries[0]).with_settings({key: given})  # raises, naming the nearest field
        for text in self.entries:
            for values in itertools.product(*(v for _, v in swept)):
                point = {k: v for (k, _), v in zip(swept, values, strict=True)}
                wrapped = self.entry(task, data, text, {**of_entries, **point})
                if wrapped.key() not in seen:
                    seen.add(wrapped.key())
                    yield wrapped.row(), wrapped, False
        if not self.baselines:
            return
        trivial, classic = task.baselines(data.facts())
        for name, trials in ((trivial, 0), (classic, self.tune or self.classic)):
            wrapped = self._tuned(suited(task, entry_of(name)), trials, (), task, data)
            if wrapped.key() not in seen:
                seen.add(wrapped.key())
                yield wrapped.row(), wrapped, True

    def _tuned(self, method: Method, trials: int, keep: Sequence[str], task: Task, data: Dataset) -> Method:
        found = tuned(method, trials, keep)
        if not self.tune_once or not isinstance(found, Tuned):
            return found
        return TunedOnce(method=method, trials=found.trials, keep=found.keep, data=data, task=task)

    def entry(self, task: Task, data: Dataset, text: str, settings: Mapping[str, Any]) -> Method:
        """What an entry means here: with those of the settings that it has, its read-out, and tuning of all that was left open."""
        method = entry_of(text)
        mine = {k: v for k, v in settings.items() if k.split(".")[0] in type(method).model_fields}
        keep = sorted(registry.set_by_hand(registry.settings_of(text) | mine))
        return self._tuned(suited(task, method.with_settings(mine) if mine else method), self.tune, keep, task, data)

    def cells(self) -> list[Cell]:
        """All cells, seed by seed; a method without chance counts once a fold."""
        cells = [pair for case in self.cases() for pair in case.cells()]
        return [cell for _, cell in sorted(cells, key=lambda pair: pair[0])]


def _apart(entries: Iterator[tuple[str, Method, bool]]) -> Iterator[tuple[str, Method, bool]]:
    """Labels are what rows are told apart by: a second method of the same label is numbered."""
    seen: dict[str, int] = {}
    for label, method, unasked in entries:
        seen[label] = seen.get(label, 0) + 1
        yield label if seen[label] == 1 else f"{label} #{seen[label]}", method, unasked


def tuned(method: Method, trials: int, keep: Sequence[str] = ()) -> Method:
    """The method with its search fields chosen on validation; `keep` names the fields that were set by hand."""
    wrapped = Tuned(method=method, trials=max(trials, 1), keep=tuple(keep))
    return wrapped if trials and wrapped.space() else method


def task_of(text: str) -> Task:
    """A task by name, or the nearest names."""
    value = registry.value_of("task", text)
    assert isinstance(value, Task)
    return value


def entry_of(text: str) -> Method:
    """A method written ``name``, ``name:preset`` or ``name(field=value; field=value)``."""
    value = registry.value_of("method", text)
    assert isinstance(value, Method)
    return value


def task_for(method: Method, data: Dataset) -> Task | None:
    """The method's first task that fits the kind of the data, or none."""
    return next((task for task in map(task_of, method.tasks) if data.kind in task.kinds), None)


def default_task(data: Dataset, entries: Sequence[str] = ()) -> Task:
    """The first entry's first task that fits the kind, else the kind's first task."""
    for text in entries:
        task = task_for(entry_of(text), data)
        if task is not None:
            return task
    for entry in registry.entries("task"):
        if data.kind in entry.facts.get("kinds", ()):
            return task_of(entry.name)
    raise UserError(f"no task is for data of kind {data.kind}")


def run_cell(cell: Cell, root: str, options: Options, retry: bool = False) -> str:
    """Run one cell in this process: its key, or "" where another process holds it."""
    data = registry.class_value("data", cell.data)
    task = registry.class_value("task", cell.task)
    method = registry.class_value("method", cell.method)
    try:
        return evaluate(task, data, method, cell.fold, cell.seed, Ledger(root), options, retry=retry).cell
    except Held:
        return ""


def key_of(cell: Cell, options: Options, digests: dict[str, str]) -> str:
    data = registry.class_value("data", cell.data)
    text = repr(cell.data)
    if text not in digests:
        digests[text] = data.digest()
    method = registry.class_value("method", cell.method)
    return cell_key(registry.class_value("task", cell.task), digests[text], method, cell.fold, cell.seed, options.precision)


def run_grid(
    grid: Grid,
    root: str,
    options: Options = Options(),
    *,
    jobs: int = 1,
    cluster: str | None = None,
    retry: bool = False,
    on_done: Callable[[Cell, Result, int, int], None] | None = None,
    workers: Pool | None = None,
) -> list[tuple[Cell, Result]]:
    """Run every cell that is not finished; cells held by another process are waited for last.

    `jobs` processes are started for this grid, or `workers` that run already are used.
    """
    ledger = Ledger(root)
    digests: dict[str, str] = {}
    cells = grid.cells()
    keys = {i: key_of(c, options, digests) for i, c in enumerate(cells)}
    results: dict[int, Result] = {}

    def note(i: int) -> bool:
        found = ledger.result(keys[i])
        if found is None or (retry and i not in tried and found.status != "done"):
            return False
        results[i] = found
        if on_done is not None:
            on_done(cells[i], found, len(results), len(cells))
        return True

    def stream(todo: list[int]) -> Iterator[tuple[int, str]]:
        if cluster == "ray":
            from .cluster import ray_map

            return ray_map(todo, cells, root, options, retry, jobs)
        if crew is not None:
            return crew.run(todo, cells, root, options, retry)
        return ((i, run_cell(cells[i], root, options, retry)) for i in todo)

    tried: set[int] = set()
    todo = [i for i in range(len(cells)) if not note(i)]
    own = Pool(min(jobs, len(todo))) if jobs > 1 and len(todo) > 1 and workers is None and cluster is None else None
    crew = workers or own
    with own or contextlib.nullcontext():
        while todo:
            later = []
            for i, _ in stream(todo):
                tried.add(i)
                if not note(i):
                    later.append(i)
            if later and len(later) == len(todo):
                time.sleep(POLL_S)  # all that is left is held elsewhere
            todo = later
    return [(cells[i], results[i]) for i in range(len(cells))]


def finished(grid: Grid, ledger: Ledger, options: Options = Options()) -> list[tuple[Cell, Result]]:
    """The cells of a grid that are done, without running any."""
    digests: dict[str, str] = {}
    found = ((cell, ledger.result(key_of(cell, options, digests))) for cell in grid.cells())
    return [(cell, result) for cell, result in found if result is not None]


class Pool:
    """Worker processes that import nothing of the parent's state; they may serve several grids."""

    def __init__(self, jobs: int) -> None:
        import multiprocessing

        self.jobs = jobs
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.workers: Executor = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.workers.shutdown(cancel_futures=True)

    def run(
        self, todo: Sequence[int], cells: Sequence[Cell], root: str, options: Options, retry: bool
    ) -> Iterator[tuple[int, str]]:
        """Cells in order, `jobs` at a time; yields each as it ends."""
        waiting: dict[Future[str], int] = {}
        queue = list(reversed(todo))
        while queue or waiting:
            while queue and len(waiting) < self.jobs:
                i = queue.pop()
                waiting[self.workers.submit(run_cell, cells[i], root, options, retry)] = i
            done, _ = wait(waiting, return_when="FIRST_COMPLETED")
            for future in done:
                yield waiting.pop(future), future.result()


def once_tuned(fit_s: float, refs_s: float, trials: int) -> float:
    """Seconds of a further fold of what was tuned on the first one: its own fit, which on the first fold was one of the trials."""
    return max(fit_s, refs_s / max(trials, 1))


def forecast(
    grid: Grid, root: str, options: Options = Options(), told: Mapping[tuple[str, str], float] = {}, retry: bool = False
) -> dict[str, Any]:
    """What is to run and what it will cost, by what the same method cost on the same data in this ledger.

    `told`: seconds of a cell by (case, entry) that were measured elsewhere, for what this ledger does not know.
    """
    ledger = Ledger(root)
    known: dict[str, list[float]] = {}
    for result in ledger.results():
        method = result.provenance.get("method")
        if result.status == "done" and method:
            fit_s, refs_s = result.cost.fit_s, result.cost.refs_s
            spent = once_tuned(fit_s, refs_s, method["trials"]) if method["is"] == TunedOnce.name else fit_s + refs_s
            known.setdefault(digest_of([method, result.provenance.get("digest")]), []).append(spent + result.cost.predict_s)
    digests: dict[str, str] = {}
    every, left, seconds, unknown = 0, 0, 0.0, 0
    for case in grid.cases():
        for _, cell in case.cells():
            every += 1
            done = ledger.result(key_of(cell, options, digests))
            if done is not None and not (retry and done.status != "done"):
                continue
            left += 1
            found = known.get(digest_of([cell.method, digests[repr(cell.data)]]))
            cost = sum(found) / len(found) if found else told.get((case.label, cell.entry))
            seconds += cost or 0.0
            unknown += cost is None
    return {"cells": every, "left": left, "seconds": seconds, "unknown": unknown}
