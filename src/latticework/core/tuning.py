"""Tuning inside the fit: selection sees train and valid only, so it is nested by construction."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from .dataset import Dataset
from .errors import OutOfTime, UserError
from .method import Method, Model, Ref
from .result import Facts
from .run import Run, fitted
from .task import Part, Task
from .value import setting


class Tuned(Method):
    """Another method with its search fields chosen on the valid part.

    The first trial is the method as given (the paper's settings), the rest are drawn by Optuna's TPE from the run's
    stream; every method gets the same number of trials. Each trial is a fit of the ledger, so tuning resumes.
    """

    name: ClassVar[str] = "tuned"
    method: Method = setting(..., "the method whose search fields are chosen")
    trials: int = setting(20, "how many settings are tried", ge=1, le=10_000)
    keep: tuple[str, ...] = setting((), "search fields that stay as they are, since they were set by hand")

    def space(self) -> dict[str, Any]:
        """Dotted field -> where tuning looks."""
        found = search_space(self.method)
        return {path: where for path, where in found.items() if not any(path == k or path.endswith(f".{k}") for k in self.keep)}

    @property
    def tasks(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.method.tasks

    @property
    def gives(self) -> tuple[type[Any], ...]:  # type: ignore[override]
        return self.method.gives

    @property
    def chance(self) -> bool:  # type: ignore[override]
        return True  # the search draws

    def row(self) -> str:
        return f"{self.method.row()}, tuned"

    def refuses(self, task: Task, facts: Facts) -> str | None:
        return self.method.refuses(task, facts)

    def fit(self, train: Part, valid: Part | None, run: Run) -> Model:
        if valid is None:
            raise UserError("tuning needs a validation part, and this task has none; leave --tune out")
        space = self.space()
        if not space:
            child = run.child()
            model = fitted(self.method, train, valid, child)
            run.stopped = child.stopped
            run.notes += child.notes
            return model
        try:
            import optuna
        except ImportError:
            raise UserError("tuning needs optuna: pip install 'latticework[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sign = 1.0 if run.metric.better == "higher" else -1.0
        sampler = optuna.samplers.TPESampler(seed=int(run.rng("tuning").integers(2**31)), n_startup_trials=min(10, self.trials))
        study = optuna.create_study(direction="maximize", sampler=sampler)
        best: tuple[float, Model, list[str]] | None = None
        refused: list[str] = []
        for trial in range(self.trials):
            asked = study.ask(_distributions(optuna, space))
            candidate = self.method if trial == 0 else self.method.with_settings(asked.params)
            child = run.child(label=f"{run.label} {trial + 1}/{self.trials}")
            try:
                model = fitted(candidate, train, valid, child)
            except UserError as error:  # settings that do not go together: no trial, but no reason to lose the others
                if trial == 0:
                    raise
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
                refused.append(str(error))
                continue
            run._valid = valid
            value = run.validate(model)
            if child.stopped:
                run.stopped = True
            score = sign * value if math.isfinite(value) else -math.inf
            if trial > 0:
                study.tell(asked, score if math.isfinite(score) else -1e9)
            if best is None or score > best[0]:
                best = (score, model, child.notes)
            try:
                run.log(trial, valid=value)
            except OutOfTime:
                run.stopped = True
            if run.stopped:
                break
        assert best is not None
        run.notes += [f"chosen of {self.trials} trials on validation: {best[1].method.label}", *best[2]]
        if refused:
            run.notes.append(f"{len(refused)} of the trials could not be used: {refused[0]}")
        return best[1]


class TunedOnce(Tuned):
    """Tuned on the first fold of a data set; the settings found there are kept for the other folds.

    What a table over many splits can afford. The first fold's train and valid nodes may be another fold's test nodes, so the
    choice of settings (a handful of numbers) has seen some of their labels; no weight has.
    """

    name: ClassVar[str] = "tuned-once"
    data: Dataset = setting(..., "the data set whose first fold is tuned on")
    task: Task = setting(..., "the task that cuts it")

    def search(self) -> Ref:
        """The tuned fit on the first fold, which all folds share."""
        return Ref(method=Tuned(method=self.method, trials=self.trials, keep=self.keep), data=self.data, task=self.task, seed=0)

    def search_key(self, precision: str) -> str:
        """The key of that fit."""
        return Run(task=self.task, precision=precision).key_of(self.search())

    def fit(self, train: Part, valid: Part | None, run: Run) -> Model:
        own = list(run.notes)
        chosen = run.chosen(self.search(), train, valid)
        child = run.child()
        model = fitted(chosen, train, valid, child)
        run.stopped |= child.stopped
        run.notes = [*own, f"chosen of {self.trials} trials on the first fold: {chosen.label}", *child.notes]
        return model


def search_space(method: Method) -> dict[str, Any]:
    """Dotted field -> where tuning looks, through nested methods (a wrapper's backbone, a read-out's encoder)."""
    space = dict(type(method).search_space())
    for name in type(method).model_fields:
        inner = getattr(method, name)
        if isinstance(inner, Method):
            space |= {f"{name}.{key}": where for key, where in search_space(inner).items()}
    return space


def _distributions(optuna: Any, space: dict[str, Any]) -> dict[str, Any]:
    made = {}
    for name, where in space.items():
        if isinstance(where, list):
            made[name] = optuna.distributions.CategoricalDistribution(where)
            continue
        low, high, log = where[0], where[1], "log" in where[2:]
        if isinstance(low, int) and isinstance(high, int):
            made[name] = optuna.distributions.IntDistribution(low, high, log=log)
        else:
            made[name] = optuna.distributions.FloatDistribution(low, high, log=log)
    return made
