"""The trivial answer to any classification: the shares of the classes among what was labelled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from latticework.core.method import Method, Model
from latticework.core.task import Part


class MajorityModel(Model):
    """The same probabilities float32 [C] for everything that is asked."""

    def __init__(self, method: Method, schema: Mapping[str, Any], shares: Tensor) -> None:
        self.method, self.schema, self.shares = method, schema, shares

    def predict(self, part: Part) -> np.ndarray[Any, Any]:
        """float64 [q, C]."""
        asked = getattr(part.query, "rows", part.query)
        return self.shares.double().expand(len(asked), -1).numpy()

    def state(self) -> Mapping[str, Any]:
        return {"shares": self.shares}

    @classmethod
    def restore(cls, method: Any, schema: Mapping[str, Any], state: Mapping[str, Any]) -> Self:
        return cls(method, schema, state["shares"])


def shares_of(y: np.ndarray[Any, Any], classes: int) -> Tensor:
    """Shares float32 [C] of labels int64 [k], or of several labels a thing, bool [k, C]."""
    shares = y.mean(0) if y.ndim == 2 else np.bincount(y, minlength=classes) / len(y)
    return torch.from_numpy(shares.astype(np.float32))
