"""Encoders of nodes and the read-out that judges them: logistic regression on the vectors, the same for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
from torch import Tensor

from latticework.common.readout import ReadoutModel
from latticework.core.errors import UserError
from latticework.core.method import Encoder, Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part, Task
from latticework.core.value import setting

from .network import FEATURE_TASKS


class EmbeddingModel(Model):
    """Vectors float32 [n, dim] of the fitted graph's nodes."""

    scope: Literal["fitted data", "new data"] = "fitted data"

    def __init__(self, method: Method, schema: Mapping[str, Any], vectors: Tensor) -> None:
        self.method, self.schema, self.vectors = method, schema, vectors

    def embed(self, part: Part) -> Any:
        """float32 [n, dim] of all nodes."""
        from .baselines import same_graph

        same_graph(self, part)
        return self.vectors.numpy()

    def state(self) -> Mapping[str, Any]:
        return {"vectors": self.vectors}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["vectors"])


class EmbeddingMethod(Method):
    """A method whose model is the vectors of one graph's nodes."""

    tasks: ClassVar[tuple[str, ...]] = ("node-classification", "link-prediction")
    gives: ClassVar[tuple[type[Any], ...]] = (Encoder,)
    reads_features: ClassVar[bool] = False
    model: ClassVar[type[EmbeddingModel]] = EmbeddingModel


class LogisticReadoutModel(ReadoutModel):
    """An encoder's model and a classifier of its vectors."""

    def predict(self, part: Part) -> Any:
        from .baselines import full_chances

        vectors = np.asarray(self.encoder.embed(part))[part.query.rows]
        return full_chances(self.estimator, vectors, len(self.schema["classes"]), self.schema["multi"])


class LogisticReadout(Method):
    """The task's read-out: logistic regression on an encoder's vectors (one against the rest with several labels a node)."""

    name: ClassVar[str] = "logistic-readout"
    tasks: ClassVar[tuple[str, ...]] = FEATURE_TASKS
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    model: ClassVar[type[LogisticReadoutModel]] = LogisticReadoutModel
    encoder: Method = setting(..., "the method whose vectors are read")
    c: float = setting(0.1, "inverse of the L2 penalty, the same for all encoders", gt=0, le=1e6)
    choose_c: bool = setting(False, "choose c among 0.01, 0.1, 1, 10 on the validation part instead")

    @property
    def chance(self) -> bool:  # type: ignore[override]
        return self.encoder.chance

    @property
    def reads_features(self) -> bool:  # type: ignore[override]
        return self.encoder.reads_features

    def row(self) -> str:
        tail = "" if self.c == 0.1 and not self.choose_c else " (C chosen)" if self.choose_c else f" (C = {self.c:g})"
        return f"{self.encoder.row()} + logistic regression{tail}"

    def refuses(self, task: Task, facts: Mapping[str, Any]) -> str | None:
        return self.encoder.refuses(task, facts)

    def fit(self, train: Part, valid: Part | None, run: Run) -> LogisticReadoutModel:
        from .baselines import fit_logistic

        encoder = run.model(self.encoder, train, valid)
        vectors = np.asarray(encoder.embed(train))
        x = vectors[train.query.rows]
        schema = {**train.schema, "encoder": dict(encoder.schema)}
        if not self.choose_c:
            return LogisticReadoutModel(self, schema, encoder, fit_logistic(x, train.truth.y, self.c))
        if valid is None:
            raise UserError("logistic-readout.choose_c needs a validation part, and this split has none")
        best: tuple[float, LogisticReadoutModel] | None = None
        for step, c in enumerate((0.01, 0.1, 1.0, 10.0)):
            model = LogisticReadoutModel(self.but(c=c), schema, encoder, fit_logistic(x, train.truth.y, c))
            value = run.validate(model)
            run.log(step, valid=value)
            if best is None or value > best[0]:
                best = (value, model)
        assert best is not None
        run.notes.append(f"C = {best[1].method.c:g}, chosen on validation")
        return best[1]
