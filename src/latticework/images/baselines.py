"""What must be beaten without looking at a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from latticework.common.small_cnn import Operating
from latticework.core.method import Method, Model, Predictor
from latticework.core.run import Run
from latticework.core.task import Part


class MajorityImagesModel(Model):
    """The shares of the classes among the train images, for every picture."""

    def __init__(self, method: Method, schema: Mapping[str, Any], shares: Tensor) -> None:
        self.method, self.schema, self.shares = method, schema, shares

    def predict(self, part: Part) -> np.ndarray:
        return self.shares.double().expand(len(part.query), -1).numpy()

    def operating(self) -> Operating:
        return Operating(0.0)

    def state(self) -> Mapping[str, Any]:
        return {"shares": self.shares}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["shares"])


class MajorityImages(Method):
    """Answers every picture with the shares of the classes among the train images."""

    name: ClassVar[str] = "majority-images"
    tasks: ClassVar[tuple[str, ...]] = ("image-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[MajorityImagesModel]] = MajorityImagesModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> MajorityImagesModel:
        counts = np.bincount(train.truth, minlength=len(train.schema["classes"]))
        return MajorityImagesModel(self, dict(train.schema), torch.from_numpy((counts / counts.sum()).astype(np.float32)))
