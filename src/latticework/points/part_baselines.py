"""What must be beaten on parts of clouds: the part that most points are of. PointNet, DeepSets and DGCNN answer parts as they are."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from latticework.common.majority import MajorityModel, shares_of
from latticework.core.method import Method, Predictor
from latticework.core.run import Run
from latticework.core.task import Part

from .tasks import sizes_of


class MostFrequentPartModel(MajorityModel):
    """The shares of the parts among the train points, for every point."""

    def predict(self, part: Part) -> np.ndarray[Any, Any]:
        """float64 [N, P]."""
        return np.asarray(self.shares.double().expand(int(sizes_of(part).sum()), -1).numpy())


class MostFrequentPart(Method):
    """Answers every point with the shares of the parts among the train points."""

    name: ClassVar[str] = "most-frequent-part"
    tasks: ClassVar[tuple[str, ...]] = ("part-segmentation",)
    gives: ClassVar[tuple[type[Any], ...]] = (Predictor,)
    chance: ClassVar[bool] = False
    model: ClassVar[type[MostFrequentPartModel]] = MostFrequentPartModel

    def fit(self, train: Part, valid: Part | None, run: Run) -> MostFrequentPartModel:
        y = train.truth.y[train.truth.y >= 0]
        return MostFrequentPartModel(self, dict(train.schema), shares_of(y, len(train.schema["parts"])))
