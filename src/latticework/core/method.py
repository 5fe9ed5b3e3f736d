"""Methods, the models that they fit, and the roles that a task may ask of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, runtime_checkable

from .dataset import Dataset
from .errors import UserError
from .result import Findings
from .task import Part, Task
from .value import Value, setting

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from .run import Run

Facts = Mapping[str, Any]


@runtime_checkable
class Predictor(Protocol):
    def predict(self, part: Part) -> Any: ...


@runtime_checkable
class Encoder(Protocol):
    def embed(self, part: Part) -> Any: ...


@runtime_checkable
class Stream(Predictor, Protocol):
    def observe(self, new: Any) -> None: ...


@runtime_checkable
class Generator(Protocol):
    def sample(self, query: Any, rng: np.random.Generator) -> Any: ...


@runtime_checkable
class Codec(Protocol):
    def stored(self) -> bytes: ...
    def decode(self, frames: range) -> Iterator[Any]: ...


class Method(Value):
    """A recipe: ``fit(train, valid, run) -> Model``. It never sees the test part."""

    noun: ClassVar[str] = "method"
    tasks: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[tuple[type[Any], ...]] = ()
    reads_features: ClassVar[bool] = True  # False: the structure alone is read, so later data may lack them or bring others
    chance: ClassVar[bool] = True  # False: the seed changes nothing, so it counts once a fold

    def refuses(self, task: Task, facts: Facts) -> str | None:
        """Why this method cannot be used here, before any training."""
        return None

    @abstractmethod
    def fit(self, train: Part, valid: Part | None, run: Run) -> Model: ...

    def row(self) -> str:
        """How a leaderboard names it."""
        return self.label


class Backbone(Method):
    """A method that also builds its bare network, for wrappers."""

    @abstractmethod
    def build(self, train: Part, run: Run) -> nn.Module: ...


class Ref(Value):
    """Another trained thing as a field. data none: the train part at hand; data without task: all of it."""

    noun: ClassVar[str] = "ref"
    name: ClassVar[str] = "ref"
    method: Method | None = setting(None, "a method fitted here, or on `data`")
    task: Task | None = setting(None, "the task under which it is fitted on `data`")
    data: Dataset | None = setting(None, "other data to fit on")
    trained: bool = setting(True, "false: freshly initialised")
    seed: int | None = setting(None, "none: the run's")
    saved: Path | None = setting(None, "a saved model")
    net: str | None = setting(None, "a user's net as module:function; never stored in a model file")


class Model(ABC):
    """A fitted method. `predict` never changes it, only `observe` does."""

    method: Method
    schema: Facts
    scope: Literal["fitted data", "new data"] = "new data"

    def at(self, **late: Any) -> Self:
        """The same weights under other late fields."""
        import copy

        allowed = self.method.late_fields()
        for key in late:
            if key not in allowed:
                raise UserError(f"{self.method.name}: {key!r} cannot change after the fit; late fields: {allowed or 'none'}")
        if not late:
            return self
        other = copy.copy(self)
        other.method = self.method.but(**late)
        return other

    def points(self) -> Sequence[Facts]:
        """Late settings worth scoring."""
        return ({},)

    @abstractmethod
    def state(self) -> Mapping[str, Any]:
        """Tensors (and scikit-learn estimators) that `restore` needs."""

    @classmethod
    @abstractmethod
    def restore(cls, method: Any, schema: Facts, state: Mapping[str, Any]) -> Self: ...

    def explain(self, part: Part) -> Findings:
        """What the model can say about itself on this part."""
        return Findings()

    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(int(v.numel()) for v in self.state().values() if hasattr(v, "numel"))
