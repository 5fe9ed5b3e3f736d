"""One evaluation, the same for every method of every wing."""

from __future__ import annotations

import math
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from . import registry
from .dataset import Dataset
from .errors import Cancelled, Held, UserError
from .ledger import Ledger
from .method import Method, Model
from .result import Cost, Findings, Result, Score
from .run import Run, cost_of, fitted, generator_kept, thin
from .task import Part, Task
from .value import digest_of


class Options(NamedTuple):
    """What a cell runs under; provenance, not identity (but for `precision`)."""

    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    time_s: float | None = None
    debug: bool = False
    nets: Mapping[str, str] = {}


def suited(task: Task, method: Method) -> Method:
    """The method itself, or the task's read-out around it where its role is not the task's."""
    if not set(task.names()) & set(method.tasks):
        able = registry.search(task.name)
        twins = [e.name for e in able if e.name.endswith(f"-{method.name}") or e.name.startswith(f"{method.name}-")]
        hint = f"; use {' or '.join(twins)}" if twins else ""
        raise UserError(f"{method.name} is for {', '.join(method.tasks) or 'no task'}, not for {task.name}{hint}")
    if task.role in method.gives:
        return method
    for role in method.gives:
        if role.__name__ in task.readouts:
            wrapped = registry.class_of("method", task.readouts[role.__name__]).make({"encoder": method.plain()})
            return wrapped  # type: ignore[no-any-return]
    raise UserError(f"{method.name} gives {[r.__name__ for r in method.gives]}, but {task.name} wants {task.role.__name__}")


def cell_key(task: Task, digest: str, method: Method, fold: str, seed: int, precision: str) -> str:
    """The identity of a judged cell: the fit's, with the late fields."""
    return digest_of(
        {
            "task": task.identity(), "data": digest, "fold": fold, "method": method.identity(),
            "seed": seed if method.chance else 0, "precision": precision,
        }
    )[:32]  # fmt: skip


def evaluate(
    task: Task,
    data: Dataset,
    method: Method,
    fold: str,
    seed: int,
    ledger: Ledger,
    options: Options = Options(),
    on_log: Callable[[str, int, Mapping[str, float]], None] | None = None,
    retry: bool = False,
) -> Result:
    """Fit (or find) and judge one cell; a failure is a result too. Raises `Held` when another process is at it."""
    method = suited(task, method)
    key = cell_key(task, data.digest(), method, fold, seed, options.precision)
    done = ledger.result(key)
    if done is not None and not (retry and done.status != "done"):
        return done
    with ledger.hold(f"cell-{key}", wait=False):
        done = ledger.result(key)
        if done is not None and not (retry and done.status != "done"):
            return done
        result, findings = _judge(key, task, data, method, fold, seed, ledger, options, on_log)
        ledger.put_result(result, findings)
        return result


@generator_kept()
def _judge(
    key: str,
    task: Task,
    data: Dataset,
    method: Method,
    fold: str,
    seed: int,
    ledger: Ledger,
    options: Options,
    on_log: Callable[[str, int, Mapping[str, float]], None] | None,
) -> tuple[Result, dict[str, Any]]:
    deadline = None if options.time_s is None else time.monotonic() + options.time_s
    run = Run(
        task=task, digest=data.digest(), fold=fold, seed=seed if method.chance else 0, ledger=ledger,
        device=options.device, precision=options.precision, threads=options.threads, deadline=deadline,
        on_log=on_log, nets=options.nets, label=method.name,
    )  # fmt: skip
    where = provenance(task, data, method, fold, seed, options)
    try:
        refusal = method.refuses(task, data.facts())
        if refusal:
            raise UserError(f"{method.name} cannot be used here: {refusal}")
        parts = task.fold(data, fold)
        model = fitted(method, parts.train, parts.valid, run)
        before = time.perf_counter()
        scores: list[Score] = []
        with run.seeded("answer"):
            for point in model.points():
                answer = task.answer(model.at(**point), parts.test.blind(), run)
                judged = task.score(answer, parts.test, run)
                scores += [clean(s._replace(at={**point, **s.at})) for s in judged]
        cost = cost_of(method, run, time.perf_counter() - before)
        found = plain_findings(model.explain(parts.test.blind()))
    except (Cancelled, Held, KeyboardInterrupt):
        raise
    except Exception as error:  # a failed cell is recorded, shown and retried on request
        if options.debug:
            raise
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        where["traceback"] = "" if isinstance(error, UserError) else traceback.format_exc(limit=-6)
        return Result(key, "failed", (), None, Cost(), text, where), {}
    status: Literal["done", "stopped"] = "stopped" if run.stopped else "done"
    facts = {"chosen": model.method.plain(), "notes": run.notes, "row": method.row()}
    return Result(key, status, tuple(scores), task.headline(scores), cost, None, where, _curve(run), facts), found


def _curve(run: Run) -> dict[str, Any]:
    return {name: [list(p) for p in thin(points, 120)] for name, points in run.curve.items()}


def clean(score: Score) -> Score:
    """JSON has no NaN: a score that is none says why."""
    if score.value is not None and not math.isfinite(score.value):
        return score._replace(value=None, why=score.why or f"the value is {score.value}")
    return score


def plain_findings(found: Findings) -> dict[str, Any]:
    if not (found.scalars or found.tables or found.figures):
        return {}
    return {"scalars": dict(found.scalars), "tables": dict(found.tables), "figures": dict(found.figures)}


def provenance(task: Task | None, data: Dataset | None, method: Any, fold: str, seed: int, options: Options) -> dict[str, Any]:
    """What stands beside a score so that it can be run again."""
    import torch

    from latticework import __version__

    return {
        "task": task.plain() if task else None,
        "data": data.plain() if data else None,
        "digest": data.digest() if data else None,
        "method": method.plain(),
        "fold": fold,
        "seed": seed,
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": options.device,
        "precision": options.precision,
        "threads": options.threads,
    }


@generator_kept()
def fit(
    method: Method, data: Dataset, task: Task, *, fold: str | None = None, seed: int = 0,
    ledger: Ledger | None = None, options: Options = Options(),
    on_log: Callable[[str, int, Mapping[str, float]], None] | None = None,
) -> tuple[Model, Run]:  # fmt: skip
    """A model for use, with the run that fitted it: the same path as a judged cell, without the judging."""
    method = suited(task, method)
    refusal = method.refuses(task, data.facts())
    if refusal:
        raise UserError(f"{method.name} cannot be used here: {refusal}")
    fold = fold or task.final(data)
    deadline = None if options.time_s is None else time.monotonic() + options.time_s
    run = Run(
        task=task, digest=data.digest(), fold=fold, seed=seed, ledger=ledger, device=options.device,
        precision=options.precision, threads=options.threads, deadline=deadline, on_log=on_log,
        nets=options.nets, label=method.name,
    )  # fmt: skip
    parts = task.fold(data, fold)
    run.notes += task.reads(data)
    model = fitted(method, parts.train, parts.valid, run)
    task.settle(model, parts)
    return model, run


def ask(
    model: Model, task: Task, data: Dataset | None, query: Mapping[str, Any] | None = None, run: Run | None = None
) -> tuple[Any, Part]:
    """Answers for a user's files."""
    schema = {**model.schema, "reads_features": model.method.reads_features}
    part = task.ask(data, task.Query.make(query or {}), schema)
    run = run or Run(task=task, digest=data.digest() if data else "", fold="ask")
    with run.seeded("answer"):
        return task.answer(model, part, run), part
