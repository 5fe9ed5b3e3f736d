"""Probes: measurements of data or nets that train nothing to be ranked."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from .dataset import Dataset
from .result import Findings
from .value import Value

if TYPE_CHECKING:
    from .run import Run


class Probe(Value):
    """``measure(data or none, run) -> Findings``. `kinds` empty: it needs no data."""

    noun: ClassVar[str] = "probe"
    kinds: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def measure(self, data: Dataset | None, run: Run) -> Findings: ...
