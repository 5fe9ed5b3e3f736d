"""Published ratings, by name, and drawn ones."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from latticework.core.errors import UserError
from latticework.core.value import digest_of, setting

from .graph import coded
from .mirror import locate
from .ratings import Ratings, RatingSet, read_ratings

# name -> file, SHA-256
_FILES = {
    "ml-100k": ("u.data", "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"),
    "facebook-items": ("ratings.csv", "5f76acb429f2e39cbf980ed3a444ed7cab79a764834fa33471c12b848841da64"),
}


class MirroredRatings(RatingSet):
    """Published ratings under ``LATTICEWORK_DATA``, by the name they have in the catalogue.

    MovieLens 100K is for research alone and may not be passed on: bring your own copy (``ml-100k/u.data``).
    """

    name: ClassVar[str] = "mirrored-ratings"
    file: str = setting(..., "the catalogue name, as in facebook-items")

    def _entry(self) -> tuple[str, str]:
        if self.file not in _FILES:
            raise UserError(f"no ratings of the catalogue are called {self.file!r}; known: {', '.join(_FILES)}")
        return _FILES[self.file]

    def digest(self) -> str:
        return digest_of([self._entry()[1], self.revision])

    def read(self) -> Ratings:
        file, sha = self._entry()
        return _read(locate(self.file, file, sha))


@lru_cache(maxsize=2)
def _read(path: Path) -> Ratings:
    if path.suffix == ".csv":
        return read_ratings(path)
    import polars as pl

    names = ["user", "item", "rating", "time"]
    frame = pl.read_csv(path, separator="\t", has_header=False, new_columns=names, infer_schema=False)
    users, (user,) = coded([frame["user"]])
    items, (item,) = coded([frame["item"]])
    rating, time = (frame[name].cast(pl.Float64).to_numpy() for name in names[2:])
    return Ratings(tuple(users.to_list()), tuple(items.to_list()), user, item, rating.astype(np.float32), time)


class TasteGroups(RatingSet):
    """Users and items in groups: a user takes items of the own group more often than others, popular ones most; by seed.

    Each user has a rating from 1 to 5 (high within the group) and a time for every item taken.
    """

    name: ClassVar[str] = "taste-groups"
    users: int = setting(60, "how many users", ge=2, le=1_000_000)
    items: int = setting(40, "how many items", ge=2, le=1_000_000)
    groups: int = setting(3, "groups of taste", ge=1, le=1000)
    each: int = setting(12, "items that a user takes, at most", ge=1, le=10_000)
    seed: int = setting(0, "of the draw", ge=0)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> Ratings:
        return _groups(self)


@lru_cache(maxsize=4)
def _groups(of: TasteGroups) -> Ratings:
    rng = np.random.default_rng([of.seed, 0x7461])
    fame = 1.0 / (1.0 + np.arange(of.items) // of.groups)
    taken = np.empty((of.users, of.each), np.int64)
    for group in range(of.groups):
        weight = fame * np.where(np.arange(of.items) % of.groups == group, 8.0, 1.0)
        mine = np.arange(group, of.users, of.groups)
        taken[mine] = rng.choice(of.items, (len(mine), of.each), p=weight / weight.sum())
    user, item = np.divmod(np.unique(np.arange(of.users)[:, None] * of.items + taken), of.items)
    liked = (user - item) % of.groups == 0
    rating = np.clip(np.round(np.where(liked, 4.3, 2.7) + rng.normal(0, 0.7, len(user))), 1, 5)
    return Ratings(
        tuple(f"u{i}" for i in range(of.users)), tuple(f"i{i}" for i in range(of.items)), user, item,
        rating.astype(np.float32), rng.permutation(len(user)).astype(np.float64),
    )  # fmt: skip
