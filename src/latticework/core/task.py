"""Tasks: what counts. A task cuts a data set into folds of three parts and judges answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from .dataset import Dataset
from .result import NOTHING, Metric, Score
from .value import Value

if TYPE_CHECKING:
    from .run import Run

Facts = Mapping[str, Any]


class Part(NamedTuple):
    """What may be seen, what is asked, and (for the judge alone) what is true."""

    data: Any
    query: Any
    truth: Any = None
    schema: Facts = NOTHING

    def blind(self) -> Part:
        """The same part without the truth."""
        return self._replace(truth=None)


class Fold(NamedTuple):
    train: Part
    valid: Part | None
    test: Part


class Query(Value):
    """What a user may ask when predicting; the commands take their flags from its fields."""

    noun: ClassVar[str] = "query"
    name: ClassVar[str] = "query"


class Task(Value):
    """What counts: kinds of data, role of the model, metrics, folds, scoring."""

    noun: ClassVar[str] = "task"
    kinds: ClassVar[tuple[str, ...]]
    asks: ClassVar[tuple[str, ...]] = ()  # further kinds that a fitted model may be asked about
    role: ClassVar[type[Any]]
    metrics: ClassVar[tuple[Metric, ...]]
    headline_metric: ClassVar[str]
    readouts: ClassVar[Mapping[str, str]] = {}  # role -> method name that stands between
    Query: ClassVar[type[Value]] = Query
    typed: ClassVar[str] = ""  # what is typed after a model's name to ask it, where that is not the data it was fitted on
    needs_data: ClassVar[bool] = True  # False: a model answers from itself (a decoder does)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Its own name and those of the tasks that it refines, whose methods it takes too."""
        return tuple(dict.fromkeys(k.name for k in cls.__mro__ if issubclass(k, Task) and k.name))

    def for_data(self, data: Dataset) -> Self:
        """The same task with fields left open ("auto") decided by the data, so that its identity is concrete."""
        return self

    @abstractmethod
    def baselines(self, facts: Facts) -> tuple[str, ...]:
        """Registry names: the trivial one, the classic one."""

    @abstractmethod
    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        """(fold, seed) pairs to run."""

    def hidden(self, test: Part) -> list[Any]:
        """Arrays of the test part's truth that nothing within a method's reach may hold; `check_task` looks for them."""
        return [test.truth]

    def reads(self, data: Dataset) -> list[str]:
        """What of the data it reads otherwise than it is written, or not at all; `data check` says it, and the record of a fit."""
        return []

    def settle(self, model: Any, fold: Fold) -> None:
        """What a model for use still takes in after its fit (a stream's last events); a judged one is left as it is."""
        return None

    def reveal(self, model: Any, data: Dataset) -> str:
        """Feed a model that keeps a memory with new data; says what was taken in."""
        from .errors import UserError

        raise UserError(f"{model.method.name} keeps no memory to update; fit it again on the new data")

    def final(self, data: Dataset) -> str:
        """The fold of a model that is for use, not for judging: it may train on all that has a truth."""
        return self.plan(data, 1)[0][0]

    @abstractmethod
    def fold(self, data: Dataset, name: str) -> Fold: ...

    @abstractmethod
    def ask(self, data: Dataset | None, query: Value, schema: Facts) -> Part:
        """A user's files as a part without truth."""

    @abstractmethod
    def answer(self, model: Any, part: Part, run: Run) -> Any:
        """Drive the model; the truth is not in the part."""

    @abstractmethod
    def score(self, answer: Any, part: Part, run: Run) -> list[Score]: ...

    @abstractmethod
    def write(self, answer: Any, part: Part, to: Path) -> None:
        """Answers as a file of the user's."""

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """Scores of predictions made elsewhere."""
        from .errors import UserError

        raise UserError(f"{self.name} cannot score a file yet")

    def overlap(self, data: Dataset) -> float | None:
        """Test size over train size where the train parts of the folds overlap (Nadeau-Bengio), else none."""
        return None

    def headline(self, scores: Sequence[Score]) -> float | None:
        """The one number that ranks and selects: the first score of the headline metric without a slice."""
        for score in scores:
            if score.metric == self.headline_metric and not score.at.get("slice"):
                return score.value
        return None

    def value(self, answer: Any, part: Part, run: Run) -> float | None:
        """The headline of an answer; a task whose other metrics are slow, and asked at every epoch, gives it alone."""
        return self.headline(self.score(answer, part, run))

    def metric(self, name: str) -> Metric:
        return next(m for m in self.metrics if m.name == name)
