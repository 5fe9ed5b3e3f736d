"""Which part each point is of: bodies, scenes and scans with part labels.

The train part shows clouds with the part of each point; test clouds come as they are (``stress=none``) or with every true part turned
freely about its own centre (``part-rotations``), drawn after the cut, so that no fit sees it. Where clouds are frames of recordings (groups
of several), a fold trains on frames of one recording; the rest of it (``clip=same``) and all other recordings (``clip=other``) test.
"""

from __future__ import annotations

import colorsys
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import field_validator
from torch_geometric.data import Data

from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.ledger import write_folder, write_whole
from latticework.core.result import Metric, Score
from latticework.core.run import Run
from latticework.core.task import Fold, Part
from latticework.core.value import setting
from latticework.data.point_sets import rotations
from latticework.data.points import LABELS, SUFFIXES, UNKNOWN, Asked, Clouds, group_of, read_one

from .tasks import TEST, TRAIN, VALID, Array, PointTask, _clouds_by_name, answered, sizes_of, write_answers

STRESSES = ("none", "part-rotations")
PARTITION = "partition"  # the column that shows the true partition, where it is given
CLIPS = ("same", "other")


class PartTruth(NamedTuple):
    """`y` int64 [N], part of each point, -1 unknown, one asked cloud after another; `sizes` int64 [q], points of each; of each cloud
    [q]: `pose` and `stress`, numbers in the task's fields; `clip`, 0 of the train recording, 1 of another, -1 where there are none."""

    y: Array
    sizes: Array
    pose: Array
    stress: Array
    clip: Array


def turned_parts(xyz: Array, normals: Array | None, parts: Array, turns: Array) -> tuple[Array, Array | None]:
    """Each part about the mean of its points, by its own rotation [P, 3, 3]; points of no part (-1) stay. float64."""
    found = xyz.astype(np.float64)
    faced = None if normals is None else normals.astype(np.float64)
    for part in np.unique(parts[parts >= 0]):
        rows = parts == part
        centre = found[rows].mean(0)
        found[rows] = (found[rows] - centre) @ turns[part].T + centre
        if faced is not None:
            faced[rows] = faced[rows] @ turns[part].T
    return found, faced


class PartSegmentation(PointTask):
    """Probabilities over parts for every point. The mean over parts of intersection over union ranks, pooled over the test points.

    `protocol`: ``clips`` trains on frames of one recording (a group of several clouds) and tests on its rest and on all others; else as in
    other tasks on clouds. ``auto`` is given where the data have a split, clips where recordings have several clouds, else random.
    `partition=given` shows every method the true partition without its names, as a column of numbers drawn anew for each
    cloud: what remains is naming the parts, the ceiling of a method that estimates them.
    """

    name: ClassVar[str] = "part-segmentation"
    kinds: ClassVar[tuple[str, ...]] = ("points",)
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("mean-iou", "", "higher"), Metric("accuracy", "", "higher"))
    headline_metric: ClassVar[str] = "mean-iou"
    stream: ClassVar[int] = 0x706172
    asks_for: ClassVar[str] = "points x parts"

    stress: tuple[str, ...] = setting(
        ("none",), "test clouds: none, as they are; part-rotations, each part turned freely; several are scored of one fit"
    )
    points: int = setting(1024, "points of a cloud that are seen, drawn at random; smaller clouds are seen whole; 0: all", ge=0)
    clouds: int = setting(1, "draws of each cloud", ge=1, le=10_000)
    normals: bool = setting(True, "whether the clouds' normals may be seen, where they have some")
    protocol: Literal["auto", "given", "random", "folds", "clips"] = setting("auto", "which splits")  # type: ignore[assignment]
    partition: Literal["hidden", "given"] = setting(
        "hidden", "given: the true partition, without names, is a column of the clouds"
    )

    @field_validator("stress", mode="before")
    @classmethod
    def _one_stress(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @field_validator("stress")
    @classmethod
    def _known_stress(cls, stress: tuple[str, ...]) -> tuple[str, ...]:
        if not stress or len(set(stress)) < len(stress) or set(stress) - set(STRESSES):
            raise ValueError(f"stress is some of {', '.join(STRESSES)}, each once")
        return stress

    # -- folds -------------------------------------------------------------------------------------------------------
    def need(self, facts: Mapping[str, Any]) -> None:
        if not facts["parts"]:
            raise UserError(
                "no point has a part label; add a column 'part' (or say which it is: -s data.label=NAME), or choose another task"
            )
        if facts["parts"] < 2:
            raise UserError(f"all points are of one part ({next(iter(facts['part sizes']))!r}); two are needed")

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return "most-frequent-part", "pointnet"

    def for_data(self, data: Dataset) -> Any:
        facts = data.facts()
        self.need(facts)
        frames = facts["groups"] < facts["clouds"]
        if self.protocol == "clips" and not frames:
            raise UserError(
                "protocol=clips needs recordings: groups of several clouds (a column 'group' in clouds.csv); use random"
            )
        if self.protocol == "auto" and frames and facts["split"] == "none":
            return self.but(protocol="clips")
        return super().for_data(data)

    def usable(self, clouds: Clouds) -> Array:
        assert clouds.parts is not None
        return np.maximum.reduceat(clouds.parts, clouds.ptr[:-1]) >= 0

    def strata(self, clouds: Clouds) -> Array:
        return np.zeros(len(clouds), np.int64) if clouds.y is None else clouds.y

    def overlap(self, data: Dataset) -> float | None:
        task = self.for_data(data)
        return None if task.protocol == "clips" else super().overlap(data)

    def split(self, clouds: Clouds, fold: str) -> Array:
        kind, _, number = fold.partition("-")
        if kind != "clips":
            return super().split(clouds, fold)
        usable = np.flatnonzero(self.usable(clouds))
        groups = np.array(group_of(clouds), object)[usable]
        names = [g for g in dict.fromkeys(groups.tolist()) if (groups == g).sum() > 1]
        draw, place = divmod(int(number), len(names))
        mine = np.flatnonzero(groups == names[place])
        order = np.random.default_rng([draw, place, self.stream]).permutation(mine)
        tests, valids = max(round(self.test * len(mine)), 1), round(self.valid * len(mine))
        valids = min(valids, len(mine) - tests - 1)
        found = np.full(len(usable), TEST, np.int8)
        found[order[tests:]] = TRAIN
        found[order[tests : tests + valids]] = VALID
        split = np.full(len(clouds), -1, np.int8)
        split[usable] = found
        return split

    def fold(self, data: Dataset, name: str) -> Fold:
        clouds: Clouds = data.read()
        task = self.for_data(data)
        split = task.split(clouds, name)
        schema = task.schema_for(clouds)
        parts: list[Part | None] = []
        groups = np.array(group_of(clouds), object)
        for code, word in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test")):
            rows = np.flatnonzero(split == code)
            if not len(rows) and code != VALID and not (code == TEST and name == "all"):
                raise UserError(
                    f"the split leaves no {word} cloud: there are {len(set(group_of(clouds)))} groups; bring more clouds, or change "
                    "-s task.valid and -s task.test"
                )
            if not len(rows):
                parts.append(None)
                continue
            chosen = task.drawn(clouds, rows, int.from_bytes(word.encode(), "little"))
            testing = code == TEST
            poses = [p.split("/")[1] for p in task.poses] if testing else [task.poses[0].split("/")[0]]
            clip = np.full(len(chosen), -1)
            if name.startswith("clips"):
                train = groups[split == TRAIN][0]
                clip = np.array([CLIPS.index("same" if g == train else "other") for g in group_of(chosen)])
            parts.append(task.made(chosen, schema, poses, task.stress if testing else ("none",), clip))
        task.check_train(parts[0])
        empty = Part([], Asked(np.zeros(0, np.int64), ()), None, schema)
        return Fold(parts[0], parts[1], parts[2] or empty)  # type: ignore[arg-type]

    def made(self, clouds: Clouds, schema: Mapping[str, Any], poses: Sequence[str], stresses: Sequence[str], clip: Array) -> Part:
        """Clouds under each stress and pose, one after another."""
        data: list[Data] = []
        ids: list[str] = []
        pose, stress = [], []
        many = len(poses) * len(stresses)
        for s, word in enumerate(stresses):
            stood = clouds if word == "none" else self.stressed(clouds)
            for p, how in enumerate(poses):
                data += self.seen(stood, schema, rotations(len(clouds), 0, p + 1) if how == "SO3" else None)
                said = ", ".join(v for v, several in ((how, len(poses) > 1), (word, len(stresses) > 1)) if several)
                ids += [f"{i} ({said})" if said else i for i in clouds.ids]
                pose.append(np.full(len(clouds), p))
                stress.append(np.full(len(clouds), s))
        assert clouds.parts is not None
        truth = PartTruth(
            np.tile(clouds.parts, many),
            np.tile(clouds.sizes, many),
            np.concatenate(pose),
            np.concatenate(stress),
            np.tile(clip, many),
        )
        return Part(data, Asked(np.arange(len(data)), tuple(ids)), truth, dict(schema))

    def stressed(self, clouds: Clouds) -> Clouds:
        """Each part of each cloud turned about its centre by a rotation of its own."""
        from dataclasses import replace

        assert clouds.parts is not None
        xyz = clouds.xyz.astype(np.float64)
        normals = None if clouds.normals is None else clouds.normals.astype(np.float64)
        ptr = clouds.ptr
        for i, (a, b) in enumerate(itertools.pairwise(ptr)):
            turns = rotations(len(clouds.part_names), self.stream, i + 1)
            xyz[a:b], faced = turned_parts(xyz[a:b], None if normals is None else normals[a:b], clouds.parts[a:b], turns)
            if normals is not None:
                normals[a:b] = faced
        return replace(clouds, xyz=xyz.astype(np.float32), normals=None if normals is None else normals.astype(np.float32))

    def schema_for(self, clouds: Clouds) -> dict[str, Any]:
        features = [*clouds.features, *([PARTITION] if self.partition == "given" else [])]
        return {
            "output": "part", "classes": [], "parts": list(clouds.part_names), "features": features,
            "vectors": ["normal"] if self.normals and clouds.normals is not None else [], "points": self.points,
            "turned": self.poses[0].startswith("SO3"),
        }  # fmt: skip

    def truth_of(self, clouds: Clouds, turns: Array | None) -> Array:
        assert clouds.parts is not None
        return clouds.parts

    def seen(self, clouds: Clouds, schema: Mapping[str, Any], turns: Array | None = None) -> list[Data]:
        shown = [name for name in schema["features"] if name != PARTITION or PARTITION in clouds.features]
        found = super().seen(clouds, {**schema, "features": shown}, turns)
        if len(shown) == len(schema["features"]):
            return found
        assert clouds.parts is not None
        for i, data in enumerate(found):
            order = np.random.default_rng([i, len(clouds), self.stream]).permutation(len(clouds.part_names) + 1)
            number = torch.from_numpy(order[clouds.cloud(i)["parts"] + 1].astype(np.float32))[:, None]
            data.x = number if data.get("x") is None else torch.cat([data.x, number], 1)
        return found

    def check_train(self, train: Part | None) -> None:
        assert train is not None
        known = np.unique(train.truth.y[train.truth.y >= 0])
        if len(known) < 2:
            one = train.schema["parts"][int(known[0])] if len(known) else "unknown"
            raise UserError(f"the train points are all of part {one!r}; two are needed")

    # -- judging -----------------------------------------------------------------------------------------------------
    def shape(self, part: Part) -> tuple[int, int]:
        return int(sizes_of(part).sum()), len(part.schema["parts"])

    def answer(self, model: Any, part: Part, run: Run) -> Array:
        """float64 [N, P]: probabilities; or [N, P + 1], where the model says its uncertainty in a last column."""
        found = np.asarray(model.predict(part), np.float64)
        rows, parts = self.shape(part)
        if found.shape not in ((rows, parts), (rows, parts + 1)):
            raise UserError(
                f"{model.method.name} gave {list(found.shape)} where {[rows, parts]} is asked ({self.asks_for}, and a column of "
                "uncertainty where it has one)"
            )
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
            owner = int(np.searchsorted(np.cumsum(sizes_of(part)), row, side="right"))
            raise UserError(f"{model.method.name} gave a value that is not finite for {part.query.ids[owner]!r}")
        return found

    def score(self, answer: Array, part: Part, run: Run | None) -> list[Score]:
        truth: PartTruth = part.truth
        names = part.schema["parts"]
        said = answer[:, : len(names)].argmax(1)
        owner = np.repeat(np.arange(len(truth.sizes)), truth.sizes)
        several = len(np.unique(truth.clip)) > 1 or (truth.clip == CLIPS.index("other")).any()
        found: list[Score] = []
        for stress in np.unique(truth.stress):
            for pose in np.unique(truth.pose):
                for clip in np.unique(truth.clip)[::-1]:  # other recordings rank
                    rows = ((truth.stress == stress) & (truth.pose == pose) & (truth.clip == clip))[owner] & (truth.y >= 0)
                    if not rows.any():
                        continue
                    at = self.at(int(pose)) | ({"clip": CLIPS[clip]} if several and clip >= 0 else {})
                    at |= {"stress": self.stress[stress]} if len(self.stress) > 1 else {}
                    found += part_scores(truth.y[rows], said[rows], names, at)
        return found

    # -- files -------------------------------------------------------------------------------------------------------
    def write(self, answer: Array, part: Part, to: Path) -> None:
        """The clouds with part, colours, probabilities and, where the model has it, uncertainty: one file for one cloud, else a folder."""
        names = part.schema["parts"]
        sizes = sizes_of(part)
        ends = np.cumsum(sizes)
        xyz = np.concatenate([part.data[i].pos.numpy() for i in part.query.rows])
        if to.suffix.lower() in SUFFIXES and to.suffix.lower() != ".ply":
            columns = {f"p{k}": answer[:, k] for k in range(len(names))}
            if answer.shape[1] > len(names):
                columns["uncertainty"] = answer[:, -1]
            clouds = answered(
                part, parts=answer[:, : len(names)].argmax(1), x=np.stack(list(columns.values()), 1).astype(np.float32)
            )
            from dataclasses import replace

            write_answers(replace(clouds, features=tuple(columns), part_names=tuple(names)), to)
            return
        made = [part_ply(xyz[e - n : e], answer[e - n : e], names) for n, e in zip(sizes, ends, strict=True)]
        if to.suffix.lower() == ".ply":
            if len(made) > 1:
                raise UserError(f"{to} is one file, and {len(made)} clouds were asked; name a folder")
            write_whole(to, made[0])
            return

        def fill(folder: Path) -> None:
            for name, content in zip(part.query.ids, made, strict=True):
                place = folder / Path(name).with_suffix(".ply")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)

        write_folder(to, fill)

    def judge(self, answers: Path, truth: Path) -> list[Score]:
        """Scores of clouds with parts against the same clouds with true ones, point by point; files or folders."""
        said, known = _clouds_by_name(answers), _clouds_by_name(truth)
        if len(said) == len(known) == 1:
            known = dict(zip(said, known.values(), strict=True))
        pairs: list[tuple[list[str], list[str]]] = []
        for name, path in said.items():
            if name not in known:
                raise UserError(f"{answers}: cloud {name!r} is not in {truth}")
            (a, words), (b, true) = _points_and_parts(path), _points_and_parts(known[name])
            if a.shape != b.shape or np.abs(a - b).max() > 1e-4 * max(float(np.abs(b).max()), 1e-30):
                raise UserError(f"{path} and {known[name]} have not the same points in the same order")
            pairs.append((words, true))
        unknown = {"", UNKNOWN}
        names = sorted({w for words, true in pairs for w in (*words, *true)} - unknown)
        code = {name: i for i, name in enumerate(names)} | dict.fromkeys(unknown, -1)
        told, wanted = (np.array([code[w] for pair in pairs for w in pair[k]], np.int64) for k in range(2))
        rows = wanted >= 0
        if not rows.any():
            raise UserError(f"{truth}: no point has a part label")
        for file, words, others in ((answers, told, wanted), (truth, wanted, told)):
            here, there = ({names[v] for v in np.unique(w[w >= 0])} for w in (words, others))
            if here and there and all(w.isdecimal() for w in here) and not any(w.isdecimal() for w in there):
                raise UserError(
                    f"{file} has numbers for parts ({', '.join(sorted(here)[:4])}), and the other file names "
                    f"({', '.join(sorted(there)[:4])}); write the names, as .ply does in comments 'part 0 NAME'"
                )
        return part_scores(wanted[rows], told[rows], names, {})


def part_scores(truth: Array, said: Array, names: Sequence[str], at: Mapping[str, Any]) -> list[Score]:
    """Mean IoU over the parts that are there in truth, accuracy, and the IoU of each part (a slice). int64 [N]; said below 0: nothing."""
    values = {}
    for part in np.unique(truth):
        mine, told = truth == part, said == part
        values[int(part)] = (float((mine & told).sum() / (mine | told).sum()), int(mine.sum()))
    scores = [
        Score("mean-iou", float(np.mean([v for v, _ in values.values()])), dict(at)),
        Score("accuracy", float((truth == said).mean()), dict(at)),
    ]
    for part, (value, points) in values.items():
        scores.append(Score("mean-iou", value, {**at, "slice": "part", "range": names[part], "points": points}))
    return scores


def part_colours(parts: int) -> Array:
    """uint8 [parts, 3]: hues a golden section apart."""
    hues = (np.arange(parts) * 0.618033988749895) % 1.0
    return np.array([[round(255 * v) for v in colorsys.hsv_to_rgb(h, 0.65, 0.95)] for h in hues], np.uint8).reshape(parts, 3)


def part_ply(xyz: Array, answer: Array, names: Sequence[str]) -> bytes:
    """A .ply of one cloud: x y z, part, red green blue, p0 p1 … and uncertainty where there is one; comments name the parts."""
    from latticework.data.points import _plyfile

    plyfile = _plyfile()
    many = len(names)
    part = answer[:, :many].argmax(1)
    columns: dict[str, Array] = {axis: xyz[:, k].astype(np.float32) for k, axis in enumerate("xyz")}
    columns["part"] = part.astype(np.int32)
    columns |= {word: part_colours(many)[part, k] for k, word in enumerate(("red", "green", "blue"))}
    columns |= {f"p{k}": answer[:, k].astype(np.float32) for k in range(many)}
    if answer.shape[1] > many:
        columns["uncertainty"] = answer[:, -1].astype(np.float32)
    vertex = np.empty(len(xyz), [(name, values.dtype.str) for name, values in columns.items()])
    for name, values in columns.items():
        vertex[name] = values
    out = io.BytesIO()
    comments = [f"part {k} {name}" for k, name in enumerate(names)]
    plyfile.PlyData([plyfile.PlyElement.describe(vertex, "vertex")], byte_order="<", comments=comments).write(out)
    return out.getvalue()


def _points_and_parts(path: Path) -> tuple[Array, list[str]]:
    """Coordinates float64 [n, 3] and the name of each point's part ("-1" or empty: unknown)."""
    one = read_one(path)
    column = next((name for name in LABELS if name in one.columns), None)
    if column is None:
        raise UserError(f"{path} has no part labels (a column part or label); found {', '.join(one.columns)}")
    xyz = np.stack([one.columns[n].astype(np.float64) for n in "xyz"], 1)
    values = one.columns[column]
    if values.dtype.kind == "U":
        return xyz, values.tolist()
    if not np.array_equal(values, np.round(values)):
        raise UserError(f"{path}, column {column!r}: labels are whole numbers or names, -1 where unknown")
    return xyz, [one.names.get(int(v), str(int(v))) for v in values]
