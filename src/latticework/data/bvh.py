"""Biovision motion capture (.bvh): a reader of skeleton and channels, and forward kinematics.

A file is a hierarchy (each joint's offset from its parent, and its channels) and a table of channel values, a line a frame. Joint
j stands in the world by

    R_j = R_parent(j) L_j,   p_j = p_parent(j) + R_parent(j) (o_j + t_j)

L_j the product of its rotations in the order in which its channels are written (angles in degrees), o_j its offset, t_j its position
channels where it has some. Units are the file's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latticework.core.errors import UserError

Array = np.ndarray[Any, Any]
CHANNELS = ("Xposition", "Yposition", "Zposition", "Xrotation", "Yrotation", "Zrotation")


@dataclass(frozen=True, eq=False)
class Motion:
    """Joints in the file's order, every parent before its children; ends of chains are joints without channels, called ``NAME.end``.

    names [J]; parents int64 [J], -1 of the root; offsets float64 [J, 3]; channels: of each joint, names of its columns in
    their order; frames float64 [T, columns]; step: seconds a frame.
    """

    names: tuple[str, ...]
    parents: Array
    offsets: Array
    channels: tuple[tuple[str, ...], ...]
    frames: Array
    step: float

    def __len__(self) -> int:
        return len(self.frames)

    def rest(self) -> Array:
        """float64 [J, 3]: where the joints are with all channels at 0."""
        places = np.zeros_like(self.offsets)
        for j, parent in enumerate(self.parents):
            places[j] = self.offsets[j] + (places[parent] if parent >= 0 else 0)
        return places

    def world(self, frames: Array | None = None) -> tuple[Array, Array]:
        """Rotations float64 [T, J, 3, 3] and positions float64 [T, J, 3] of the joints in some frames (all, left out)."""
        values = self.frames if frames is None else self.frames[frames]
        T, J = len(values), len(self.names)
        R, p = np.zeros((T, J, 3, 3)), np.zeros((T, J, 3))
        column = 0
        for j, parent in enumerate(self.parents):
            local, shift = np.tile(np.eye(3), (T, 1, 1)), np.tile(self.offsets[j], (T, 1))
            for channel in self.channels[j]:
                axis = "XYZ".index(channel[0])
                if channel.endswith("position"):
                    shift[:, axis] += values[:, column]
                else:
                    local = local @ turn(axis, np.radians(values[:, column]))
                column += 1
            if parent < 0:
                R[:, j], p[:, j] = local, shift
            else:
                R[:, j] = R[:, parent] @ local
                p[:, j] = p[:, parent] + np.einsum("tij,tj->ti", R[:, parent], shift)
        return R, p


def turn(axis: int, angle: Array) -> Array:
    """Rotations float64 [T, 3, 3] about the x, y or z axis (0, 1, 2) by angles in radians [T]."""
    found = np.zeros((len(angle), 3, 3))
    a, b = (axis + 1) % 3, (axis + 2) % 3
    found[:, axis, axis] = 1
    found[:, a, a] = found[:, b, b] = np.cos(angle)
    found[:, b, a] = np.sin(angle)
    found[:, a, b] = -np.sin(angle)
    return found


def read_bvh(path: Path) -> Motion:
    """A .bvh file. `UserError` names file and line: what was expected there and what was found."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    words = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    if not words or words[0][1][0].upper() != "HIERARCHY":
        raise UserError(f"{path}: the first line is not HIERARCHY; this is no .bvh file")
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float] | None] = []
    channels: list[tuple[str, ...]] = []
    stack: list[int] = []
    opened = -1
    motion = len(words)
    for at, (number, line) in enumerate(words[1:], 1):
        head = line[0].upper()
        if head == "MOTION":
            motion = at
            break
        if head in ("ROOT", "JOINT") or (head == "END" and len(line) == 2 and line[1].upper() == "SITE"):
            if opened >= 0:
                raise UserError(f"{path}, line {number}: expected {{ after {names[opened]!r}, found {' '.join(line)!r}")
            if (head == "ROOT") != (not names):
                raise UserError(f"{path}, line {number}: a skeleton has one ROOT, and it comes first; found {' '.join(line)!r}")
            if head != "END" and len(line) < 2:
                raise UserError(f"{path}, line {number}: {line[0]} without a name")
            if head != "ROOT" and not stack:
                raise UserError(f"{path}, line {number}: {' '.join(line)!r} stands outside the skeleton")
            names.append(f"{names[stack[-1]]}.end" if head == "END" else " ".join(line[1:]))
            parents.append(stack[-1] if stack else -1)
            offsets.append(None)
            channels.append(())
            opened = len(names) - 1
        elif line == ["{"]:
            if opened < 0:
                raise UserError(f"{path}, line {number}: {{ without a joint before it")
            stack.append(opened)
            opened = -1
        elif line == ["}"]:
            if not stack:
                raise UserError(f"{path}, line {number}: }} without a {{ before it")
            if offsets[stack[-1]] is None:
                raise UserError(f"{path}, line {number}: the joint {names[stack[-1]]!r} has no OFFSET")
            stack.pop()
        elif head == "OFFSET" and stack:
            offsets[stack[-1]] = _numbers(path, number, line[1:], 3, "OFFSET")
        elif head == "CHANNELS" and stack:
            channels[stack[-1]] = _channels(path, number, line[1:])
        else:
            raise UserError(
                f"{path}, line {number}: found {' '.join(line)[:60]!r} where ROOT, JOINT, OFFSET, CHANNELS or }} is expected"
            )
    if motion == len(words):
        raise UserError(f"{path} ends without MOTION: the skeleton is there and its frames are not")
    if not names or stack or opened >= 0:
        raise UserError(f"{path}, line {words[motion][0]}: MOTION before the skeleton is closed ({len(stack)} open)")
    width = sum(len(c) for c in channels)
    frames, step = _frames(path, words[motion + 1 :], width, words[motion][0])
    return Motion(
        _distinct(names), np.array(parents, np.int64), np.array(offsets, np.float64).reshape(-1, 3), tuple(channels), frames, step
    )


def _distinct(names: list[str]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return tuple(found)


def _numbers(path: Path, number: int, words: list[str], many: int, what: str) -> list[float]:
    try:
        values = [float(w) for w in words]
    except ValueError:
        raise UserError(f"{path}, line {number}: {what} is {' '.join(words)[:60]!r}; expected {many} numbers") from None
    if len(values) != many:
        raise UserError(f"{path}, line {number}: {len(values)} numbers where {what} has {many}")
    if not np.isfinite(values).all():
        raise UserError(f"{path}, line {number}: a value that is not finite")
    return values


def _channels(path: Path, number: int, words: list[str]) -> tuple[str, ...]:
    if not words or not words[0].isdigit() or int(words[0]) != len(words) - 1:
        raise UserError(
            f"{path}, line {number}: CHANNELS says {' '.join(words[:1]) or 'no number'} and names {max(len(words) - 1, 0)}"
        )
    known = {c.lower(): c for c in CHANNELS}
    for word in words[1:]:
        if word.lower() not in known:
            raise UserError(f"{path}, line {number}: no channel is called {word!r}; known: {', '.join(CHANNELS)}")
    return tuple(known[w.lower()] for w in words[1:])


def _frames(path: Path, words: list[tuple[int, list[str]]], width: int, line: int) -> tuple[Array, float]:
    if len(words) < 2 or words[0][1][0].lower() != "frames:" or words[1][1][:2] != ["Frame", "Time:"]:
        raise UserError(f"{path}, line {line}: expected 'Frames: N' and 'Frame Time: s' after MOTION")
    many = _numbers(path, words[0][0], words[0][1][1:], 1, "Frames")[0]
    step = _numbers(path, words[1][0], words[1][1][2:], 1, "Frame Time")[0]
    if many < 1 or many != int(many) or step <= 0:
        raise UserError(f"{path}, line {words[0][0]}: {many:g} frames of {step:g} s; expected 1 or more, of more than 0 s")
    rows = [_numbers(path, number, row, width, "a frame of this skeleton") for number, row in words[2:]]
    if len(rows) != int(many):
        raise UserError(f"{path}: {len(rows)} frames where {int(many)} are announced (line {words[0][0]})")
    return np.array(rows, np.float64).reshape(len(rows), width), step
