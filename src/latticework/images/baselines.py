"""What must be beaten without looking at a picture."""

from __future__ import annotations

from typing import Any, ClassVar

from latticework.common.majority import MajorityModel, shares_of
from latticework.common.small_cnn import Operating
from latticework.core.method import Method, Predictor
from latticework.core.run import Run
from latticework.core.task import Part


class MajorityImagesModel(MajorityModel):
    """The shares of the classes among the train images, for every picture; free of FLOPs."""

    def operating(self) -> Operating:
        return Operating(0.0)


class MajorityImages(Method):
    """Answers every picture with the shares of the classes among the train images."""

    name: ClassVar[str] = "majority-images"
    tasks: ClassVar[tuple[str, ...]] = ("image-classification",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[MajorityImagesModel]] = MajorityImagesModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> MajorityImagesModel:
        return MajorityImagesModel(self, dict(train.schema), shares_of(train.truth, len(train.schema["classes"])))
