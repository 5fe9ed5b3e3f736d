"""The face: what `import latticework as lw` offers. Each verb of the command line is one function here."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latticework.core import registry, store
from latticework.core.dataset import Dataset, open_data
from latticework.core.errors import UserError
from latticework.core.evaluate import Options, ask, suited
from latticework.core.evaluate import fit as fit_model
from latticework.core.grid import Cell, Grid, entry_of, run_grid, task_for, task_of, tuned
from latticework.core.ledger import Ledger
from latticework.core.method import Encoder, Method, Model
from latticework.core.result import Findings, Result, Score
from latticework.core.run import Run, generator_kept, pick_device
from latticework.core.task import Part, Task

if TYPE_CHECKING:
    from latticework.core.board import Board

OnLog = Callable[[str, int, Mapping[str, float]], None]


class Answers(NamedTuple):
    """What a model answered: `values` as its task defines them, and the part that was asked."""

    values: Any
    part: Part
    task: Task

    def write(self, to: str | Path) -> None:
        """A file of the form that the task's users expect (a CSV keyed by their ids, a clip)."""
        self.task.write(self.values, self.part, Path(to))


class Fitted:
    """A fitted model with what is needed to use it: the task it answers and the data it was fitted on."""

    def __init__(self, model: Model, task: Task, data: Dataset | None, run: Run | None = None, facts: Any = None) -> None:
        self.model, self.task, self.data, self.run = model, task, data, run
        self.facts: Mapping[str, Any] = facts or {}

    @property
    def method(self) -> Method:
        return self.model.method

    def predict(self, data: Any = None, **query: Any) -> Answers:
        """Answers for data (left out: the data it was fitted on); `query` are the task's questions."""
        given = self.data if data is None else open_data(data)
        if given is None and self.task.needs_data:
            raise UserError("this model was loaded from a file: name the data to predict")
        if given is not None:
            _expect(self.task, given, self.task.asks)
        values, part = ask(self.model, self.task, given, query)
        return Answers(values, part, self.task)

    def update(self, data: Any) -> str:
        """Feed a model that keeps a memory with new data, in place; says what was taken in."""
        given = open_data(data)
        _expect(self.task, given)
        return self.task.reveal(self.model, given)

    def at(self, **late: Any) -> Fitted:
        """The same weights under other late fields."""
        return Fitted(self.model.at(**late), self.task, self.data, self.run, self.facts)

    def explain(self, data: Any = None) -> Findings:
        """What the model says about itself."""
        return self.model.explain(self.predict(data).part)

    def save(self, to: str | Path) -> Path:
        """A folder that `load` reads back; or one file, where the name has the ending of the method's own form."""
        path = Path(to)
        entry = store.own_form(path)
        if entry is not None and isinstance(self.method, entry.load()):
            self.model.write(path)  # type: ignore[attr-defined]
        else:
            store.save_model(self.model, path, self.provenance())
        return path

    def provenance(self) -> dict[str, Any]:
        """Where the model comes from."""
        from latticework import __version__

        run = self.run
        return dict(self.facts) | {
            "task": self.task.plain(),
            "version": __version__,
            **({"data": self.data.plain(), "digest": self.data.digest(), "checked": self.data.check()} if self.data else {}),
            **({"seed": run.seed, "fold": run.fold, "notes": run.notes, "stopped": run.stopped} if run else {}),
        }


def dataset(what: Any, **settings: Any) -> Dataset:
    """A data set: a catalogue name, a path to a user's files, or an object of the kind's own library."""
    return open_data(what, settings)


def methods(task: str | None = None, search: str | None = None) -> list[registry.Entry]:
    """What can be fitted, for a task or by a word in the name or description. Imports none of it."""
    return registry.search(task, search)


def datasets() -> list[registry.Entry]:
    """Data sets that have a name of their own."""
    return list(registry.entries("data"))


def fit(
    method: str | Method, data: Any, *, task: str | Task | None = None, seed: int = 0, time: float | None = None,
    device: str = "auto", threads: int = 1, precision: str = "float32", tune: int = 0, fold: str | None = None,
    runs: str | Path | None = None, nets: Mapping[str, str] | None = None, settings: Mapping[str, Any] | None = None,
    on_log: OnLog | None = None, debug: bool = False, **fields: Any,
) -> Fitted:  # fmt: skip
    """Fit a method to data for use. `fields` are the method's; `settings` may also name ``task.x`` and ``data.x``.

    `time` in seconds stops the fit there and keeps what it has; `runs` is a ledger folder, where a fit cut short resumes.
    """
    of_method, of_task, of_data = split_settings({**(settings or {}), **fields})
    given = open_data(data, of_data)
    value = method if isinstance(method, Method) else entry_of(method)
    value = value.with_settings(of_method) if of_method else value
    chosen = task if isinstance(task, Task) else task_of(task) if task else _task_for(value, given)
    _expect(chosen, given)
    chosen = (chosen.with_settings(of_task) if of_task else chosen).for_data(given)
    if tune:
        written = registry.settings_of(method) if isinstance(method, str) else {}
        value = tuned(suited(chosen, value), tune, registry.set_by_hand(written | of_method))
    options = Options(pick_device(device), precision, threads, time, debug, dict(nets or {}))
    model, run = fit_model(
        value, given, chosen, fold=fold, seed=seed, ledger=Ledger(runs), options=options, on_log=on_log
    )  # fmt: skip
    return Fitted(model, chosen, given, run, {k: run.facts[k] for k in ("fit_s", "refs_s", "peak_bytes", "parameters")})


def _expect(task: Task, data: Dataset, also: Sequence[str] = ()) -> None:
    """`UserError` for data of a kind that a task is not for."""
    kinds = (*task.kinds, *also)
    if data.kind not in kinds:
        raise UserError(f"{task.name} is for {', '.join(kinds)}, and this is {data.kind}")


def _task_for(method: Method, data: Dataset) -> Task:
    task = task_for(method, data)
    if task is None:
        wanted = sorted({k for name in method.tasks for k in task_of(name).kinds})
        raise UserError(f"{method.name} is for {', '.join(wanted) or 'no data'}, and this is {data.kind}")
    return task


@generator_kept()
def load(path: str | Path, nets: Mapping[str, str] | None = None) -> Fitted:
    """A saved model. Nothing in the files is executed."""
    if Path(path).is_file() and store.own_form(Path(path)) is not None:
        model = store.load_model(path)
        return Fitted(model, task_of(model.method.tasks[0]), None, None, {})
    head = store.read_head(Path(path))
    facts = head["provenance"]
    if "task" not in facts:
        raise UserError(f"{path} was saved without its task; fit again")
    return Fitted(store.load_model(path, nets), registry.class_value("task", facts["task"]), None, None, facts)


def embed(
    method: str | Path | Method, data: Any, *, seed: int = 0, device: str = "auto", threads: int = 1,
    settings: Mapping[str, Any] | None = None, on_log: OnLog | None = None, **fields: Any,
) -> tuple[Any, Part, Model]:  # fmt: skip
    """Vectors of all that the data hold, by an Encoder that needs no labels: (array, part with the ids, model).

    `method` may be the folder of a saved model that gives vectors, or reads those of an encoder inside it. Where nodes have types,
    ``settings={"task.target": TYPE}`` says which are meant.
    """
    of_method, of_task, of_data = split_settings({**(settings or {}), **fields})
    if isinstance(method, str | Path) and Path(method).is_dir() and not registry.knows("method", str(method)):
        return _embed_saved(Path(method), open_data(data, of_data), {**of_method, **of_task})
    value = method if isinstance(method, Method) else entry_of(str(method))
    value = value.with_settings(of_method) if of_method else value
    if Encoder not in value.gives:
        gives = {e.name: e.load().gives for e in methods()}  # a property where it depends on the method inside
        known = ", ".join(name for name, roles in gives.items() if isinstance(roles, tuple) and Encoder in roles)
        raise UserError(f"{value.name} gives no vectors; methods that do: {known}")
    given = open_data(data, of_data)
    choices = set(inspect.signature(given.whole).parameters)
    if set(of_task) - choices:
        known = "; ".join(f"of {given.kind} data only -s task.{name}" for name in sorted(choices)) or "leave out -s task.…"
        raise UserError(f"embed has no task; {known}")
    part = given.whole(**of_task)
    run = Run(task=None, digest=given.digest(), fold="all", seed=seed, device=pick_device(device), threads=threads, on_log=on_log)
    # the vectors are the result: a copy of them in a ledger would only cost time
    with run.seeded():
        model = value.fit(part, None, run)
    encoder: Any = model
    return encoder.embed(part), part, model


def _embed_saved(folder: Path, data: Dataset, changed: Mapping[str, Any]) -> tuple[Any, Part, Model]:
    if changed:
        raise UserError(f"{folder} is fitted already; leave out -s {next(iter(changed))}")
    fitted = load(folder)
    model = getattr(fitted.model, "encoder", fitted.model)
    if not hasattr(model, "embed"):
        raise UserError(f"{folder} holds {fitted.method.name}, which gives no vectors")
    _expect(fitted.task, data)
    query = {"nodes": "all"} if "nodes" in fitted.task.Query.model_fields else {}
    part = fitted.task.ask(data, fitted.task.Query.make(query), fitted.model.schema)
    return model.embed(part), part, model


def probe(
    name: str, data: Any = None, *, settings: Mapping[str, Any] | None = None, seed: int = 0, threads: int = 1,
    folder: str | Path | None = None, on_log: OnLog | None = None, **fields: Any,
) -> Findings:  # fmt: skip
    """Measure data or nets; nothing is trained to be ranked. Files that a probe makes go to `folder`; left out, none are made."""
    of_probe, _, of_data = split_settings({**(settings or {}), **fields}, task_too=False)
    value: Any = registry.value_of("probe", name)
    value = value.with_settings(of_probe) if of_probe else value
    if data is None and value.kinds:
        raise UserError(f"probe {name} needs data of kind {' or '.join(value.kinds)}")
    given = None if data is None else open_data(data, of_data)
    if given is not None and given.kind not in value.kinds:
        raise UserError(f"probe {name} is for {', '.join(value.kinds)}, and this is {given.kind}")
    run = Run(
        task=None, digest=given.digest() if given else "", seed=seed, label=name, threads=threads, on_log=on_log,
        folder=None if folder is None else Path(folder),
    )  # fmt: skip
    with run.seeded():
        found: Findings = value.measure(given, run)
    return found


def score(task: str | Task, answers: str | Path, truth: str | Path, settings: Mapping[str, Any] | None = None) -> list[Score]:
    """Judge predictions made elsewhere."""
    chosen = task if isinstance(task, Task) else task_of(task)
    if settings:
        chosen = chosen.with_settings({k.removeprefix("task."): v for k, v in settings.items()})
    for path in (answers, truth):
        if not Path(path).exists():
            raise UserError(f"{path} does not exist")
    return chosen.judge(Path(answers), Path(truth))


def compare(
    data: Any, methods: Sequence[str] | str = (), *, task: str | None = None, repeats: int = 5, tune: int = 0,
    tune_once: bool = False, jobs: int = 1,
    cluster: str | None = None, runs: str | Path | None = None, time: float | None = None, device: str = "auto",
    threads: int = 1, precision: str = "float32", baselines: bool = True, classic: int = 5, retry: bool = False, sweep: Any = (),
    settings: Mapping[str, Any] | None = None, nets: Mapping[str, str] | None = None, debug: bool = False,
    on_done: Callable[[Cell, Result, int, int], None] | None = None,
) -> Board:  # fmt: skip
    """A leaderboard of methods on data under one protocol, with the task's baselines beside them.

    Every cell is kept in `runs` (left out: a temporary folder), so a comparison that was cut short goes on where it
    stopped, and several processes on one folder share the work.
    """
    grid = grid_of(
        data, methods, task=task, repeats=repeats, tune=tune, tune_once=tune_once, baselines=baselines, classic=classic,
        sweep=sweep, settings=settings,
    )  # fmt: skip
    return compare_grid(
        grid, jobs=jobs, cluster=cluster, runs=runs, time=time, device=device, threads=threads, precision=precision,
        retry=retry, nets=nets, debug=debug, on_done=on_done,
    )  # fmt: skip


def grid_of(
    data: Any, methods: Sequence[str] | str = (), *, task: str | None = None, repeats: int = 5, tune: int = 0,
    tune_once: bool = False, baselines: bool = True, classic: int = 5, sweep: Any = (), settings: Mapping[str, Any] | None = None,
) -> Grid:  # fmt: skip
    """The cells that a comparison means, as a value."""
    sets = list(data) if _are_several(data) else [data]
    entries = registry.split_outside(methods, ",") if isinstance(methods, str) else list(methods)
    return Grid.make(
        {
            "data": [_named(d) for d in sets], "entries": [e for e in entries if e], "tasks": [task] if task else [],
            "repeats": repeats, "tune": tune, "tune_once": tune_once, "baselines": baselines, "classic": classic, "sweep": sweep,
            "settings": sorted((settings or {}).items()),
        }
    )  # fmt: skip


def compare_grid(
    grid: Grid, *, runs: str | Path | None = None, device: str = "auto", threads: int = 1, precision: str = "float32",
    time: float | None = None, debug: bool = False, nets: Mapping[str, str] | None = None, command: str = "", **how: Any,
) -> Board:  # fmt: skip
    """Run a grid in a ledger folder and gather its board; `how` goes to `run_grid` (jobs, cluster, retry, on_done)."""
    from latticework.core.board import Board

    for case in grid.cases():  # what is wrong with the data is said once, before anything runs
        case.task.fold(case.data, case.pairs[0][0])
    ledger = Ledger(runs)
    options = Options(pick_device(device), precision, threads, time, debug, dict(nets or {}))
    command = command or command_of(grid, precision)
    ledger.put_grid(grid.plain(), command)
    return Board.of(grid, run_grid(grid, str(ledger.root), options, **how), ledger, command)


def report(runs: str | Path) -> Board:
    """The newest board of a ledger folder, from what is finished."""
    from latticework.core.board import Board
    from latticework.core.grid import finished

    if not (Path(runs) / "cells").is_dir():
        raise UserError(f"{runs} is no folder of runs; name the one that `compare --runs` wrote")
    ledger = Ledger(runs)
    found = ledger.last_grid()
    if found is None:
        raise UserError(f"{runs} holds no comparison yet; run `latticework compare … --runs {runs}`")
    grid = Grid.make({k: v for k, v in found["grid"].items() if k != "is"})
    return Board.of(grid, finished(grid, ledger), ledger, found["command"])


def _are_several(data: Any) -> bool:
    """Whether a list is one of data sets; a list that is a data set itself (graphs of PyG) is one."""
    if isinstance(data, str | Path | Dataset) or not isinstance(data, Sequence):
        return False
    if any(isinstance(one, str | Path | Dataset) for one in data):
        return True
    return all(entry.load().from_object(data) is None for entry in registry.entries("kind"))


def _named(what: Any) -> str:
    """Data as text that a grid can hold."""
    if isinstance(what, str | Path):
        return str(what)
    value = open_data(what)
    plain = value.plain()
    inner = "; ".join(f"{k}={v}" for k, v in plain.items() if k != "is" and v is not None)
    return f"{value.name}({inner})" if inner else value.name


def command_of(grid: Grid, precision: str = "float32") -> str:
    """The command line that runs a grid; a call in Python where the command line has no option for a part of it."""
    if grid.sweep or precision != "float32":
        other = [k for k in Grid.model_fields if k not in ("data", "entries", "tasks", "settings")]
        given = {k: getattr(grid, k) for k in other if getattr(grid, k) != Grid.model_fields[k].default}
        given |= {"task": grid.tasks[0]} if grid.tasks else {}
        given |= {"settings": dict(grid.settings)} if grid.settings else {}
        given |= {"precision": precision} if precision != "float32" else {}
        named = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"latticework.compare({list(grid.data)!r}, {list(grid.entries)!r}{named})"
    words = ["latticework", "compare", *grid.data]
    if grid.entries:
        words += ["-m", ",".join(grid.entries)]
    for task in grid.tasks:
        words += ["--task", task]
    words += ["--repeats", str(grid.repeats)]
    if grid.tune:
        words += ["--tune", str(grid.tune), *(["--tune-once"] if grid.tune_once else [])]
    elif grid.classic != 5:
        words += ["--classic", str(grid.classic)]
    if not grid.baselines:
        words.append("--no-baselines")
    for key, value in grid.plain()["settings"]:
        words += ["-s", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def split_settings(settings: Mapping[str, Any], task_too: bool = True) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(method's, task's, data's) settings; ``task.x`` and ``data.x`` name theirs."""
    parts: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = ({}, {}, {})
    for key, value in settings.items():
        if key.startswith("task.") and task_too:
            parts[1][key[5:]] = value
        elif key.startswith("data."):
            parts[2][key[5:]] = value
        else:
            parts[0][key] = value
    return parts


def __getattr__(name: str) -> Any:
    if name == "Board":
        from latticework.core.board import Board

        return Board
    raise AttributeError(name)


__all__ = [
    "Answers", "Fitted", "compare", "dataset", "datasets", "embed", "fit", "load", "methods", "probe", "report",
    "score",
]  # fmt: skip
