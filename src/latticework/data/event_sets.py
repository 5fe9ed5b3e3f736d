"""Published logs of events, by name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .events import Events, EventSet, in_order
from .graph import coded
from .mirror import locate
from .table import numbers, read_table

# name -> folder, file, SHA-256, column of a signed weight
_FILES = {
    "college-msg": (
        "events.csv", "85cfd3f00c9df720d5fd9ad9de803f63af7c17120f9e9af16a367049a8fd18dc", None,
    ),
    "enron-temporal": (
        "events.csv", "fc81c70287427a52a435ca8d88519cdc1f8acbaf7a86849b76bccc1e7d539aae", None,
    ),
    "wikipedia-temporal": (
        "events.csv", "f82e93db791096ef8304a1ea9e9225f97efaaf46aa1ef403f716cceea341190c", None,
    ),
    "bitcoin-otc": (
        "ratings.csv", "9a40cd759c44b5be1bc875d236e00fbc816ccf1fa8a792f951c388ec12b4f66d", "rating",
    ),
    "bitcoin-alpha": (
        "ratings.csv", "13cbe50da3f9620a9d6b65d253db42512236f7f485d5fd969a6af387b6cec575", "rating",
    ),
}  # fmt: skip


class MirroredEvents(EventSet):
    """A published log of events under ``LATTICEWORK_DATA``, by the name it has in the catalogue."""

    name: ClassVar[str] = "mirrored-events"
    file: str = setting(..., "the catalogue name, as in college-msg")

    def _entry(self) -> tuple[str, str, str | None]:
        if self.file not in _FILES:
            raise UserError(f"no log of the catalogue is called {self.file!r}; known: {', '.join(_FILES)}")
        return _FILES[self.file]

    def digest(self) -> str:
        return digest_of([self._entry()[1], self.revision])

    def read(self) -> Events:
        file, sha, rating = self._entry()
        return _read(locate(self.file, file, sha), rating)


@lru_cache(maxsize=4)
def _read(path: Path, rating: str | None) -> Events:
    frame = read_table(path)
    ids, (src, dst) = coded([frame["src"], frame["dst"]])
    weight = None if rating is None else numbers(path, frame[rating]).to_numpy().astype("float32")
    return in_order(
        Events(tuple(ids.to_list()), src, dst, numbers(path, frame["t"]).to_numpy(), weight, signed=rating is not None)
    )
