"""Which class has each cloud, how the surface stands at each point, and where particles will be.

A part holds its own clouds only: ``data`` a list of PyG `Data` (``pos`` float32 [n, 3]; ``normal`` or ``velocity`` [n, 3] and
``x`` [n, F] where they may be seen), ``query`` the positions in that list and a name each, ``truth`` what is true of them.

`poses` is how clouds stand, before and behind a slash: in training and in testing. ``I`` is as they are given, ``SO3`` is turned at
random. ``poses=I/I,I/SO3`` scores one fit under both; what precedes the slash is the same for all, and the first ranks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import field_validator
from torch_geometric.data import Data

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_folder, write_whole
from latticework.core.method import Predictor
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part, Query, Task
from latticework.core.value import Value, setting
from latticework.data.particles import Particles
from latticework.data.point_sets import rotations, sample_clouds
from latticework.data.points import SUFFIXES, Asked, Clouds, encode, group_of, read_one

Array = NDArray[Any]
TRAIN, VALID, TEST = 0, 1, 2
POSES = ("I/I", "I/SO3", "SO3/SO3", "SO3/I")
_SEED = 0  # of the draws on a user's meshes


class Truth(NamedTuple):
    """`y` int64 [q], or a row a point of the asked clouds, one cloud after another; `sizes` int64 [q], points of each (1 a cloud
    where clouds are asked); `pose` int64 [q], number in the task's `poses`; `groups`, the group of each cloud."""

    y: Array
    sizes: Array
    pose: Array
    groups: tuple[str, ...] = ()


# -- cutting -------------------------------------------------------------------------------------------------------------
def cut_groups(groups: Sequence[str], strata: Array, shares: tuple[float, float], number: int, stream: int) -> Array:
    """int8 [B], 0 train, 1 valid, 2 test: a draw of whole groups by stratum, of shares (valid, test); number `number` of the draws.

    A group counts for the stratum that most of its clouds have. Each stratum with two groups or more keeps one to train on; over
    all there are one valid and one test group at least, where there are three or more.
    """
    names = sorted(set(groups))
    code = {name: g for g, name in enumerate(names)}
    of = np.array([code[g] for g in groups], np.int64)
    most = np.array([np.bincount(strata[of == g]).argmax() for g in range(len(names))])
    rng = np.random.default_rng([number, stream])
    part = np.full(len(names), TRAIN, np.int8)
    spare: list[int] = []
    for stratum in np.unique(most):
        order = rng.permutation(np.flatnonzero(most == stratum))
        tests, valids = round(shares[1] * len(order)), round(shares[0] * len(order))
        while tests + valids >= len(order) and tests + valids:
            tests, valids = (tests, valids - 1) if valids >= tests else (tests - 1, valids)
        part[order[:tests]] = TEST
        part[order[tests : tests + valids]] = VALID
        spare += order[tests + valids + 1 :].tolist()
    for share, role, other in ((shares[1], TEST, VALID), (shares[0], VALID, TEST)):
        if not share or (part == role).any():
            continue
        taken = np.flatnonzero(part == other)  # small strata may all have given a group to one role and none to the other
        if spare:
            part[spare.pop(int(rng.integers(len(spare))))] = role
        elif len(taken) > 1:
            part[taken[int(rng.integers(len(taken)))]] = role
    return part[of]


def fold_groups(groups: Sequence[str], strata: Array, folds: int, valid: float, number: int, stream: int) -> Array:
    """int8 [B]: fold `number` modulo `folds` tests, whole groups by stratum; each further round of folds is another draw."""
    from sklearn.model_selection import StratifiedGroupKFold

    draw, place = divmod(number, folds)
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=draw)
    names = np.array(groups)
    rest, _ = list(cut.split(np.zeros(len(names)), strata, names))[place]
    part = np.full(len(names), TEST, np.int8)
    part[rest] = cut_groups([groups[i] for i in rest], strata[rest], (valid, 0.0), number, stream)
    return part


class PointQuery(Query):
    """How a user's clouds are answered."""

    name: ClassVar[str] = "points"
    sample: int = setting(0, "points sampled on each mesh (0: as many as in training); clouds are taken as they are", ge=0)


class PointTask(Task):
    """What tasks on clouds share: poses, protocols, sampling of meshes, and what a method may see.

    `protocol`: ``given`` is the data's own split (folders train, valid, test, or a column of clouds.csv; repeats are seeds),
    ``random`` a draw of whole groups by class, ``folds`` a cross-validation over groups; ``auto`` is given where the data have it.
    """

    kinds: ClassVar[tuple[str, ...]] = ("points", "meshes")
    role: ClassVar[type[Any]] = Predictor
    Query: ClassVar[type[Value]] = PointQuery

    poses: tuple[str, ...] = setting(
        ("I/I",), "training/testing: I as given, SO3 turned at random; several are scored of one fit"
    )
    protocol: Literal["auto", "given", "random", "folds"] = setting("auto", "which splits")
    folds: int = setting(5, "protocol=folds: into how many", ge=2, le=100)
    valid: float = setting(0.15, "share of the groups that validates; 0: there is no validation part", ge=0, lt=1)
    test: float = setting(0.25, "protocol=random: share of the groups that tests", gt=0, lt=1)

    @field_validator("poses", mode="before")
    @classmethod
    def _one(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("poses")
    @classmethod
    def _known(cls, poses: tuple[str, ...]) -> tuple[str, ...]:
        strange = [p for p in poses if p not in POSES]
        if strange or not poses or len(set(poses)) < len(poses):
            raise ValueError(f"poses are some of {', '.join(POSES)}, each once")
        if len({p.split("/")[0] for p in poses}) > 1:
            raise ValueError("poses that train differently are different fits; ask them one by one")
        return poses

    # -- what the subclasses say -------------------------------------------------------------------------------------
    stream: ClassVar[int]  # of the draws
    points: int  # a field of each
    clouds: int

    @abstractmethod
    def need(self, facts: Mapping[str, Any]) -> None:
        """`UserError` where the data have not what is asked."""

    @abstractmethod
    def schema_for(self, clouds: Clouds) -> dict[str, Any]: ...

    @abstractmethod
    def strata(self, clouds: Clouds) -> Array: ...

    @abstractmethod
    def truth_of(self, clouds: Clouds, turns: Array | None) -> Array:
        """What is true of clouds that were turned by `turns` float64 [B, 3, 3] (none: they were not)."""

    # -- folds -------------------------------------------------------------------------------------------------------
    def for_data(self, data: Dataset) -> Any:
        facts = data.facts()
        self.need(facts)
        if self.protocol == "given" and facts["split"] == "none":
            raise UserError("the data bring no split of their own; use -s task.protocol=random")
        if self.protocol == "folds" and facts["groups"] < self.folds:
            raise UserError(
                f"{facts['groups']} groups cannot make {self.folds} folds; use fewer (-s task.folds=2), or more shapes"
            )
        if self.protocol == "auto":
            return self.but(protocol="random" if facts["split"] == "none" else "given")
        return self

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        task = self.for_data(data)
        if task.protocol == "given":
            return [("given", seed) for seed in range(repeats)]
        return [(f"{task.protocol}-{i}", i) for i in range(repeats)]

    def final(self, data: Dataset) -> str:
        return "all"

    def overlap(self, data: Dataset) -> float | None:
        task = self.for_data(data)
        if task.protocol == "given":
            return None
        split = task.split(data.read(), task.plan(data, 1)[0][0])
        return float((split == TEST).sum() / max((split == TRAIN).sum(), 1))

    def usable(self, clouds: Clouds) -> Array:
        """bool [B]: which clouds have a truth."""
        return np.ones(len(clouds), bool)

    def split(self, clouds: Clouds, fold: str) -> Array:
        """int8 [B]: 0 train, 1 valid, 2 test, -1 neither. ``all`` trains on what would test, too."""
        kind, _, number = fold.partition("-")
        usable = np.flatnonzero(self.usable(clouds))
        split = np.full(len(clouds), -1, np.int8)
        groups = [group_of(clouds)[i] for i in usable]
        strata = self.strata(clouds)[usable]
        if kind == "folds":
            split[usable] = fold_groups(groups, strata, self.folds, self.valid, int(number), self.stream)
        elif clouds.splits is not None and kind in ("given", "all"):
            split[usable] = clouds.splits[usable]
            if kind == "all":
                split[split == TEST] = TRAIN
            if self.valid and not (split == VALID).any():
                rows = np.flatnonzero(split == TRAIN)
                held = cut_groups(
                    [group_of(clouds)[i] for i in rows], self.strata(clouds)[rows], (self.valid, 0.0), 0, self.stream
                )
                split[rows] = held
        else:
            shares = (self.valid, 0.0 if kind == "all" else self.test)
            split[usable] = cut_groups(groups, strata, shares, int(number or 0), self.stream)
        return split

    def drawn(self, clouds: Clouds, rows: Array, seed: int) -> Clouds:
        """Some of the data's clouds as a method sees them: meshes, and clouds that are larger, give some of their points."""
        chosen = clouds.take(rows)
        if chosen.faces is None and not self.points:
            return chosen
        return sample_clouds(chosen, self.points or 1024, self.clouds, seed)

    def fold(self, data: Dataset, name: str) -> Fold:
        clouds: Clouds = data.read()
        task = self.for_data(data)
        split = task.split(clouds, name)
        schema = task.schema_for(clouds)
        parts = []
        for code, word in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test")):
            rows = np.flatnonzero(split == code)
            if not len(rows) and code != VALID and not (code == TEST and name == "all"):
                raise UserError(
                    f"the split leaves no {word} cloud: there are {len(set(group_of(clouds)))} groups; bring more shapes, or change "
                    "-s task.valid and -s task.test"
                )
            seed = int.from_bytes(word.encode(), "little")
            poses = [p.split("/")[1] for p in task.poses] if code == TEST else [task.poses[0].split("/")[0]]
            parts.append(task.part(task.drawn(clouds, rows, seed), schema, poses) if len(rows) else None)
        task.check_train(parts[0])
        empty = Part([], Asked(np.zeros(0, np.int64), ()), None, schema)
        return Fold(parts[0], parts[1], parts[2] or empty)  # type: ignore[arg-type]

    def check_train(self, train: Part | None) -> None:
        """`UserError` where the train part teaches nothing."""

    def part(self, clouds: Clouds, schema: Mapping[str, Any], poses: Sequence[str]) -> Part:
        """Clouds under each of some poses, one pose after another."""
        data: list[Data] = []
        y, pose = [], []
        for number, word in enumerate(poses):
            turns = rotations(len(clouds), _SEED, number + 1) if word == "SO3" else None
            data += self.seen(clouds, schema, turns)
            y.append(self.truth_of(clouds, turns))
            pose.append(np.full(len(clouds), number))
        many = len(poses)
        ids = tuple(clouds.ids) if many == 1 else tuple(f"{i} ({p})" for p in poses for i in clouds.ids)
        one_each = len(y[0]) == len(clouds)
        sizes = np.ones(len(clouds), np.int64) if one_each else clouds.sizes
        truth = Truth(np.concatenate(y), np.tile(sizes, many), np.concatenate(pose), group_of(clouds) * many)
        return Part(data, Asked(np.arange(len(data)), ids), truth, dict(schema))

    def seen(self, clouds: Clouds, schema: Mapping[str, Any], turns: Array | None = None) -> list[Data]:
        """Clouds as PyG `Data`, turned about the origin."""
        found = []
        for i in range(len(clouds)):
            one = clouds.cloud(i)
            held = {"pos": one["xyz"]} | ({"normal": one["normals"]} if "normal" in schema["vectors"] else {})
            if turns is not None:
                held = {key: (values.astype(np.float64) @ turns[i].T).astype(np.float32) for key, values in held.items()}
            if schema["features"]:
                held["x"] = one["x"][:, [clouds.features.index(name) for name in schema["features"]]]
            found.append(Data(**{key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in held.items()}))
        return found

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert isinstance(query, PointQuery) and data is not None
        clouds: Clouds = data.read()
        missing = [name for name in schema["features"] if name not in clouds.features]
        if missing and clouds.faces is None:
            raise UserError(
                f"the model reads the columns {', '.join(schema['features'])} of a point, and these clouds have no {missing[0]!r}"
            )
        if clouds.faces is not None:
            clouds = sample_clouds(clouds, query.sample or schema["points"] or 1024, 1, _SEED)
        if "normal" in schema["vectors"] and clouds.normals is None:
            raise UserError("the model reads the normals of the points, and these clouds have none; add columns nx ny nz")
        clouds = self.asked(clouds, schema)
        return Part(self.seen(clouds, schema), Asked(np.arange(len(clouds)), clouds.ids), None, dict(schema))

    def asked(self, clouds: Clouds, schema: Mapping[str, Any]) -> Clouds:
        return clouds

    # -- judging -----------------------------------------------------------------------------------------------------
    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.y]

    def answer(self, model: Any, part: Part, run: Run) -> Array:
        found = np.asarray(model.predict(part), np.float64)
        wanted = self.shape(part)
        if found.shape != wanted:
            raise UserError(f"{model.method.name} gave {list(found.shape)} where {list(wanted)} is asked ({self.asks_for})")
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
            owner = row if len(part.query) == len(found) else int(np.searchsorted(np.cumsum(sizes_of(part)), row, side="right"))
            raise UserError(f"{model.method.name} gave a value that is not finite for {part.query.ids[owner]!r}")
        return found

    asks_for: ClassVar[str]

    @abstractmethod
    def shape(self, part: Part) -> tuple[int, int]: ...

    def at(self, pose: int) -> dict[str, Any]:
        """Coordinates of a score: the pose, where several are asked."""
        return {"pose": self.poses[pose]} if len(self.poses) > 1 else {}


def sizes_of(part: Part) -> Array:
    """int64 [q]: points of each asked cloud."""
    return np.array([len(part.data[i].pos) for i in part.query.rows], np.int64)


# -- classes -------------------------------------------------------------------------------------------------------------
class PointClassification(PointTask):
    """Probabilities over classes for clouds. A fold draws whole groups by class; a cloud without a class is left out."""

    name: ClassVar[str] = "point-classification"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("accuracy", "", "higher"), Metric("macro-f1", "", "higher"))
    headline_metric: ClassVar[str] = "accuracy"
    stream: ClassVar[int] = 0x706C73
    asks_for: ClassVar[str] = "clouds x classes"

    points: int = setting(1024, "points of a cloud that are seen, drawn at random; smaller clouds are seen whole; 0: all", ge=0)
    clouds: int = setting(1, "draws of each shape", ge=1, le=10_000)
    normals: bool = setting(False, "whether the clouds' normals may be seen")

    def need(self, facts: Mapping[str, Any]) -> None:
        if not facts["labelled"]:
            raise UserError(
                "no cloud has a class; put each file into a folder named after its class, write clouds.csv (file,label), or choose "
                "another task (--task normal-estimation)"
            )
        if facts["classes"] < 2:
            raise UserError(f"all clouds have one class ({next(iter(facts['class sizes']))!r}); two are needed")
        if self.normals and not facts["normals"] and not facts["faces"]:
            raise UserError("the clouds have no normals; leave out -s task.normals=true, or add columns nx ny nz")

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "majority-points", "pointnet"

    def usable(self, clouds: Clouds) -> Array:
        assert clouds.y is not None
        return np.asarray(clouds.y >= 0)

    def strata(self, clouds: Clouds) -> Array:
        assert clouds.y is not None
        return clouds.y

    def schema_for(self, clouds: Clouds) -> dict[str, Any]:
        return {
            "output": "class", "classes": list(clouds.classes), "parts": [],
            "features": [] if clouds.faces is not None else list(clouds.features), "vectors": ["normal"] if self.normals else [],
            "points": self.points or (1024 if clouds.faces is not None else 0), "turned": self.poses[0].startswith("SO3"),
        }  # fmt: skip

    def truth_of(self, clouds: Clouds, turns: Array | None) -> Array:
        assert clouds.y is not None
        return clouds.y

    def check_train(self, train: Part | None) -> None:
        assert train is not None
        seen = np.unique(train.truth.y)
        if len(seen) < 2:
            raise UserError(
                f"the train clouds are all of class {train.schema['classes'][int(seen[0])]!r}; two classes are needed"
            )

    def asked(self, clouds: Clouds, schema: Mapping[str, Any]) -> Clouds:
        if not schema["points"] or clouds.sizes.max() <= schema["points"]:
            return clouds
        return sample_clouds(clouds, schema["points"], 1, _SEED)

    def shape(self, part: Part) -> tuple[int, int]:
        return len(part.query), len(part.schema["classes"])

    def score(self, answer: Array, part: Part, run: Run | None) -> list[Score]:
        scores = []
        truth: Truth = part.truth
        said = answer.argmax(1)
        for pose in np.unique(truth.pose):
            rows, at = truth.pose == pose, self.at(int(pose))
            scores += [s._replace(at=at) for s in _class_scores(truth.y[rows], said[rows])]
            for c, name in enumerate(part.schema["classes"]):
                mine = rows & (truth.y == c)
                if mine.any():
                    value = float((said[mine] == c).mean())
                    scores.append(Score("accuracy", value, {**at, "slice": "class", "range": name, "clouds": int(mine.sum())}))
        return scores

    def write(self, answer: Array, part: Part, to: Path) -> None:
        """CSV: file, prediction, and a column ``p(class)`` each."""
        import polars as pl

        classes = part.schema["classes"]
        columns: dict[str, Any] = {"file": list(part.query.ids), "prediction": [classes[c] for c in answer.argmax(1)]}
        columns |= {f"p({name})": answer[:, c] for c, name in enumerate(classes)}
        write_whole(to, pl.DataFrame(columns).write_csv())

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """Scores of a CSV (file,prediction) against a CSV (file,label) or a folder of clouds in class folders."""
        from latticework.data.points import list_files

        said = _named(answers, ("prediction", "label"))
        if truth.is_file():
            known = _named(truth, ("label",))
        else:
            listed = list_files(truth)
            known = dict(zip(listed.ids, listed.labels, strict=True))
        strange = [name for name in said if not known.get(name)]
        if strange:
            raise UserError(f"{answers}: cloud {strange[0]!r} has no class in {truth} ({len(strange)} such)")
        classes = sorted({*(known[name] for name in said), *said.values()})
        code = {name: i for i, name in enumerate(classes)}
        return _class_scores(np.array([code[known[n]] for n in said]), np.array([code[w] for w in said.values()]))


def _named(path: Path, columns: tuple[str, ...]) -> dict[str, str]:
    """file -> the word in the first of some columns."""
    from latticework.data.table import line_of, need, read_table

    frame = read_table(path)
    names, words = (frame[need(path, frame, *wanted)].to_list() for wanted in (("file", "id"), columns))
    seen: dict[str, str] = {}
    for row, (name, word) in enumerate(zip(names, words, strict=True)):
        if name in seen:
            raise UserError(f"{path}, line {line_of(row)}: {name!r} stands more than once; one line a cloud")
        if not word:
            raise UserError(f"{path}, line {line_of(row)}: {name!r} has no class")
        seen[name] = word
    return seen


def _class_scores(truth: Array, said: Array) -> list[Score]:
    from sklearn.metrics import accuracy_score, f1_score

    return [
        Score("accuracy", float(accuracy_score(truth, said))),
        Score("macro-f1", float(f1_score(truth, said, average="macro", zero_division=0))),
    ]


# -- normals -------------------------------------------------------------------------------------------------------------
class NormalEstimation(PointTask):
    """The direction of the surface at each point, unoriented: 1 - cos^2 of the angle to the true normal, the mean over points.

    Truth is the normal that a cloud brings, or on a mesh that of the sampled face. `held_out`: whole ``shapes`` (groups) are held
    out; or ``samples``, where every shape gives train, valid and test clouds of points drawn anew, which asks how well known shapes
    are read, not new ones. Meshes, and clouds with more points, give `clouds` draws of `points` points each.
    """

    name: ClassVar[str] = "normal-estimation"
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("1-cos2", "", "lower"), Metric("angle", "degrees", "lower"))
    headline_metric: ClassVar[str] = "1-cos2"
    stream: ClassVar[int] = 0x6E6F72
    asks_for: ClassVar[str] = "points x 3"

    points: int = setting(512, "points of a cloud, drawn at random; smaller clouds are seen whole; 0: all", ge=0)
    clouds: int = setting(16, "draws of each shape", ge=1, le=10_000)
    held_out: Literal["shapes", "samples"] = setting("shapes", "whole shapes, or new samples of the same ones")

    def need(self, facts: Mapping[str, Any]) -> None:
        if not facts["normals"] and not facts["faces"]:
            raise UserError(
                "the clouds have no normals to learn from; add columns nx ny nz, or bring meshes, whose faces have normals"
            )
        if self.held_out == "shapes" and facts["groups"] < 3 and facts["split"] == "none":
            raise UserError(
                f"{facts['groups']} shapes cannot be cut into train, valid and test; bring three or more, or hold out new samples of "
                "the same ones: -s task.held_out=samples"
            )

    def for_data(self, data: Dataset) -> Any:
        facts = data.facts()
        if self.held_out == "samples":
            self.need(facts)
            if not facts["faces"] and not (self.points and facts["smallest"] > self.points):
                raise UserError(
                    "held_out=samples draws points anew: it needs meshes, or clouds of more than -s task.points points"
                )
            return self if self.protocol == "random" else self.but(protocol="random")
        return super().for_data(data)

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "constant-normal", "pca-normals"

    def strata(self, clouds: Clouds) -> Array:
        return np.zeros(len(clouds), np.int64)

    def schema_for(self, clouds: Clouds) -> dict[str, Any]:
        return {
            "output": "normal", "classes": [], "parts": [], "features": [] if clouds.faces is not None else list(clouds.features),
            "vectors": [], "points": self.points or (1024 if clouds.faces is not None else 0),
            "turned": self.poses[0].startswith("SO3"),
        }  # fmt: skip

    def overlap(self, data: Dataset) -> float | None:
        return None if self.held_out == "samples" else super().overlap(data)

    def fold(self, data: Dataset, name: str) -> Fold:
        if self.held_out == "shapes":
            return super().fold(data, name)
        task = self.for_data(data)
        clouds: Clouds = data.read()
        number = int(name.partition("-")[2] or 0)
        rows, schema = np.arange(len(clouds)), task.schema_for(clouds)
        poses = [p.split("/")[1] for p in task.poses]
        train, valid, test = (
            task.part(task.drawn(clouds, rows, 3 * number + k), schema, poses if k == 2 else [task.poses[0].split("/")[0]])
            for k in range(3)
        )
        return Fold(train, valid, test)

    def truth_of(self, clouds: Clouds, turns: Array | None) -> Array:
        assert clouds.normals is not None
        normals = clouds.normals.astype(np.float64)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        if not (length > 0).all():
            row = int(np.flatnonzero(length[:, 0] <= 0)[0])
            owner = int(np.searchsorted(np.cumsum(clouds.sizes), row, side="right"))
            raise UserError(
                f"the cloud {clouds.ids[owner]!r} has a normal of length 0; give each point the direction of its surface"
            )
        normals /= length
        if turns is not None:
            ptr = clouds.ptr
            for turn, a, b in zip(turns, ptr, ptr[1:], strict=False):
                normals[a:b] = normals[a:b] @ turn.T
        return normals.astype(np.float32)

    def part(self, clouds: Clouds, schema: Mapping[str, Any], poses: Sequence[str]) -> Part:
        found = super().part(clouds, schema, poses)
        return found._replace(truth=found.truth._replace(sizes=np.tile(clouds.sizes, len(poses))))

    def shape(self, part: Part) -> tuple[int, int]:
        return int(sizes_of(part).sum()), 3

    def score(self, answer: Array, part: Part, run: Run | None) -> list[Score]:
        truth: Truth = part.truth
        values, angles = _normal_errors(answer, truth.y)
        owner = np.repeat(np.arange(len(truth.sizes)), truth.sizes)
        scores = []
        for pose in np.unique(truth.pose):
            rows, at = truth.pose[owner] == pose, self.at(int(pose))
            scores.append(Score("1-cos2", float(values[rows].mean()), at))
            scores.append(Score("angle", float(angles[rows].mean()), at))
            groups = np.array(truth.groups, object)[owner]
            for name in sorted(set(truth.groups)):
                mine = rows & (groups == name)
                if mine.any():
                    where = {**at, "slice": "shape", "range": name, "points": int(mine.sum())}
                    scores.append(Score("1-cos2", float(values[mine].mean()), where))
        return scores

    def write(self, answer: Array, part: Part, to: Path) -> None:
        """The clouds with their normals: one file (.ply, .xyz, .npz) for one cloud, else a folder with a .ply each."""
        clouds = answered(part, normals=(answer / np.maximum(np.linalg.norm(answer, axis=1, keepdims=True), 1e-300)))
        write_answers(clouds, to)

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """Scores of clouds with normals against the same clouds with true ones, point by point; files or folders."""
        said, known = _clouds_by_name(answers), _clouds_by_name(truth)
        if len(said) == len(known) == 1:
            known = dict(zip(said, known.values(), strict=True))
        values, angles = [], []
        for name, path in said.items():
            if name not in known:
                raise UserError(f"{answers}: cloud {name!r} is not in {truth}")
            a, b = (_points_and_normals(p) for p in (path, known[name]))
            if a[0].shape != b[0].shape or np.abs(a[0] - b[0]).max() > 1e-4 * max(float(np.abs(b[0]).max()), 1e-30):
                raise UserError(f"{path} and {known[name]} have not the same points in the same order")
            found = _normal_errors(a[1], b[1])
            values.append(found[0])
            angles.append(found[1])
        return [Score("1-cos2", float(np.concatenate(values).mean())), Score("angle", float(np.concatenate(angles).mean()))]


def _normal_errors(said: Array, truth: Array) -> tuple[Array, Array]:
    """1 - cos^2 and the angle in degrees (0 to 90) between directions float [N, 3]; a zero vector says nothing: 1 and 90."""
    a, b = (np.asarray(v, np.float64) for v in (said, truth))
    length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.abs((a * b).sum(1)) / np.where(length > 0, length, 1.0)
    cosine = np.minimum(cosine, 1.0)
    return 1 - cosine**2, np.degrees(np.arccos(cosine))


def _clouds_by_name(path: Path) -> dict[str, Path]:
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file():
        return {path.stem: path}
    found = {p.relative_to(path).with_suffix("").as_posix(): p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES}
    if not found:
        raise UserError(f"{path} holds no .ply, .xyz or .npz file")
    return found


def _points_and_normals(path: Path) -> tuple[Array, Array]:
    columns = read_one(path).columns
    if not all(name in columns for name in ("nx", "ny", "nz")):
        raise UserError(f"{path} has no normals (columns nx ny nz); found {', '.join(columns)}")
    xyz, normals = (np.stack([columns[n].astype(np.float64) for n in names], 1) for names in ("xyz", ("nx", "ny", "nz")))
    if not np.isfinite(normals).all():
        raise UserError(f"{path} has a normal that is not finite")
    return xyz, normals


def answered(part: Part, **columns: Array) -> Clouds:
    """The asked clouds with what was answered (normals, parts, x, …), for writing."""
    xyz = np.concatenate([part.data[i].pos.numpy() for i in part.query.rows])
    held = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in columns.items()}
    return Clouds(part.query.ids, sizes_of(part), xyz, **held)


def write_answers(clouds: Clouds, to: Path) -> None:
    """One file by its suffix for one cloud; else a folder with one .ply of the same name for each."""
    if to.suffix.lower() in SUFFIXES:
        if len(clouds) > 1:
            raise UserError(f"{to} is one file, and {len(clouds)} clouds were asked; name a folder")
        write_whole(to, encode(clouds, 0, to.suffix.lower()))
        return

    def fill(folder: Path) -> None:
        for i, name in enumerate(clouds.ids):
            place = folder / Path(name).with_suffix(".ply")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encode(clouds, i, ".ply"))

    write_folder(to, fill)


# -- particles -----------------------------------------------------------------------------------------------------------
class Motion(NamedTuple):
    """`y` float32 [q n, 3]: where the particles of each system are, one system after another; `sizes` int64 [q]."""

    y: Array
    sizes: Array


class NBody(Task):
    """Where particles will be `horizon` saved frames after the frame `start`, from their positions, velocities and charges there.

    `train`, `valid` and `test` are numbers of systems, drawn from the data by repeat; where they ask for more than there are, all are
    scaled down alike. A fold is another draw; a generator's own seed is a field of the data. The error is the mean over coordinates
    and particles of the squared distance.
    """

    name: ClassVar[str] = "n-body"
    kinds: ClassVar[tuple[str, ...]] = ("particles",)
    role: ClassVar[type[Any]] = Predictor
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("mse", "", "lower"),)
    headline_metric: ClassVar[str] = "mse"

    start: int = setting(30, "the saved frame that is seen", ge=0)
    horizon: int = setting(10, "saved frames from there to the asked one", ge=1)
    train: int = setting(3000, "systems to train on", ge=1)
    valid: int = setting(2000, "systems that validate", ge=0)
    test: int = setting(2000, "systems that test", ge=1)

    def for_data(self, data: Dataset) -> NBody:
        facts = data.facts()
        if facts["frames"] <= self.start + self.horizon:
            raise UserError(
                f"the data have {facts['frames']} frames, and frame {self.start + self.horizon} is asked (start {self.start}, horizon "
                f"{self.horizon}); use -s task.start=0 -s task.horizon={max(facts['frames'] - 1, 1)}"
            )
        if facts["systems"] < (3 if self.valid else 2):
            raise UserError(f"{facts['systems']} systems cannot be cut into train, valid and test; bring three or more")
        total = self.train + self.valid + self.test
        if total <= facts["systems"]:
            return self
        share = facts["systems"] / total
        valid, test = (max(int(n * share), 1) if n else 0 for n in (self.valid, self.test))
        return self.but(train=facts["systems"] - valid - test, valid=valid, test=test)

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "constant-velocity", "particle-gnn:small"

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [(f"random-{i}", i) for i in range(repeats)]

    def overlap(self, data: Dataset) -> float | None:
        task = self.for_data(data)
        return task.test / task.train

    def final(self, data: Dataset) -> str:
        return "all-0"

    def fold(self, data: Dataset, name: str) -> Fold:
        task = self.for_data(data)
        held: Particles = data.read()
        kind, _, number = name.partition("-")
        order = np.random.default_rng([int(number), 0x6E626F]).permutation(len(held))
        ends = np.cumsum([task.train, task.valid, task.test])
        if kind == "all":
            ends = np.array([len(order) - task.valid, len(order), len(order)])
        cuts = [order[a:b] for a, b in zip((0, *ends[:2]), ends, strict=True)]
        train, valid, test = (task.part(held, rows) for rows in cuts)
        return Fold(train, valid if len(cuts[1]) else None, test)

    def part(self, held: Particles, rows: Array) -> Part:
        schema = {
            "output": "position", "classes": [], "parts": [], "features": ["charge"] if held.charges is not None else [],
            "vectors": ["velocity"], "points": held.positions.shape[2], "turned": False, "span": held.span(self.start, self.horizon),
        }  # fmt: skip
        y = held.positions[rows, self.start + self.horizon].reshape(-1, 3)
        sizes = np.full(len(rows), held.positions.shape[2], np.int64)
        ids = tuple(held.ids[i] for i in rows)
        return Part(_systems(held, rows, self.start), Asked(np.arange(len(rows)), ids), Motion(y, sizes), schema)

    def ask(self, data: Dataset | None, query: Value, schema: Mapping[str, Any]) -> Part:
        assert data is not None
        held: Particles = data.read()
        if schema["features"] and held.charges is None:
            raise UserError("the model reads charges, and these particles have none; add an array 'charges'")
        rows = np.arange(len(held))
        last = held.positions.shape[1] - 1  # from the newest frame on
        return Part(_systems(held, rows, last), Asked(rows, held.ids), None, dict(schema))

    def hidden(self, test: Part) -> list[Any]:
        return [test.truth.y]

    def answer(self, model: Any, part: Part, run: Run) -> Array:
        found = np.asarray(model.predict(part), np.float64)
        wanted = (int(sizes_of(part).sum()), 3)
        if found.shape != wanted:
            raise UserError(f"{model.method.name} gave {list(found.shape)} where {list(wanted)} is asked (particles x 3)")
        if not np.isfinite(found).all():
            raise UserError(f"{model.method.name} gave a position that is not finite")
        return found

    def score(self, answer: Array, part: Part, run: Run | None) -> list[Score]:
        return [Score("mse", float(((answer - part.truth.y) ** 2).mean()))]

    def write(self, answer: Array, part: Part, to: Path) -> None:
        """CSV: system, particle, x, y, z; or .npz with `positions` [S, n, 3], where all systems have n particles."""
        import io

        import polars as pl

        sizes = sizes_of(part)
        if to.suffix == ".npz":
            out = io.BytesIO()
            np.savez_compressed(out, positions=answer.reshape(len(sizes), -1, 3).astype(np.float32))
            write_whole(to, out.getvalue())
            return
        owner = np.repeat(np.arange(len(sizes)), sizes)
        particle = np.concatenate([np.arange(n) for n in sizes])
        columns = {"system": [part.query.ids[i] for i in owner], "particle": particle, **dict(zip("xyz", answer.T, strict=True))}
        write_whole(to, pl.DataFrame(columns).write_csv())


def _systems(held: Particles, rows: Array, frame: int) -> list[Data]:
    pos = torch.from_numpy(np.ascontiguousarray(held.positions[rows, frame]))
    velocity = torch.from_numpy(np.ascontiguousarray(held.velocities[rows, frame]))
    if held.charges is None:
        return [Data(pos=p, velocity=v) for p, v in zip(pos, velocity, strict=True)]
    charge = torch.from_numpy(np.ascontiguousarray(held.charges[rows]))[..., None]
    return [Data(pos=p, velocity=v, x=q) for p, v, q in zip(pos, velocity, charge, strict=True)]
