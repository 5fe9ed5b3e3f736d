"""The kind *particles*: systems of particles over time. Container, reader of users' files, check, and charged particles.

A user's file is an ``.npz`` with ``positions`` [S, T, n, 3] (S systems, T saved frames, n particles), ``velocities`` of the same
shape, and, where there are some, ``charges`` [S, n] and ``times`` [T].
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numba
import numpy as np

from latticework.core.dataset import Dataset, Given
from latticework.core.errors import UserError
from latticework.core.ledger import write_whole
from latticework.core.task import Part
from latticework.core.value import digest_of, setting

from .files import Stamp, arrays_digest, bytes_digest, stamps
from .mirror import read_arrays

Array = np.ndarray[Any, Any]
FORM = ".npz with positions [S,T,n,3], velocities and, if any, charges [S,n] and times [T]"


@dataclass(frozen=True, eq=False)
class Particles:
    """positions, velocities float32 [S, T, n, 3]; charges float32 [S, n] or none; times float64 [T], or none: 0, 1, 2 …"""

    ids: tuple[str, ...]
    positions: Array
    velocities: Array
    charges: Array | None = None
    times: Array | None = None
    notes: tuple[str, ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def span(self, start: int, horizon: int) -> float:
        """The time from a saved frame to the one `horizon` frames later."""
        if self.times is None:
            return float(horizon)
        return float(self.times[start + horizon] - self.times[start])


class ParticleSet(Dataset):
    """What all particles share: facts, check, writer."""

    kind: ClassVar[str] = "particles"

    def read(self) -> Particles:
        raise NotImplementedError

    def facts(self) -> Mapping[str, Any]:
        held = self.read()
        systems, frames, n, _ = held.positions.shape
        flat = held.positions.reshape(systems, -1)
        charges = None if held.charges is None else np.unique(held.charges)
        return {
            "systems": systems,
            "frames": frames,
            "particles": n,
            "charges": charges is not None,
            "charge values": [] if charges is None or len(charges) > 8 else [float(c) for c in charges],
            "low": [float(v) for v in held.positions.reshape(-1, 3).min(0)],
            "high": [float(v) for v in held.positions.reshape(-1, 3).max(0)],
            "speed": float(np.linalg.norm(held.velocities[:, 0].astype(np.float64), axis=-1).mean()),
            "duplicates": systems - len({row.tobytes() for row in flat}),
            "step": held.span(0, 1) if frames > 1 else 0.0,
        }

    def check(self) -> list[str]:
        f = self.facts()
        lines = [f"{f['systems']} systems of {f['particles']} particles over {f['frames']} frames, {f['step']:g} apart"]
        axes = ", ".join(f"{a} {lo:g} to {hi:g}" for a, lo, hi in zip("xyz", f["low"], f["high"], strict=True))
        lines.append(f"coordinates: {axes}; mean speed in the first frame {f['speed']:g}")
        values = ", ".join(f"{c:g}" for c in f["charge values"])
        lines.append(f"charges: {values or 'yes'}" if f["charges"] else "no charges")
        if f["duplicates"]:
            lines.append(f"{f['duplicates']} systems move exactly as an earlier one does; all are kept")
        return lines + list(self.read().notes)

    def write(self, to: Path) -> None:
        write_particles(self.read(), to)

    def whole(self) -> Part:
        return Part(self.read(), None, None, {})

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        return GivenParticles.hold(given) if isinstance(given, Particles) else None


def checked(arrays: Mapping[str, Any], where: str) -> Particles:
    """Arrays as a container. `UserError` says which array of `where` is wrong, and how."""
    lacking = [name for name in ("positions", "velocities") if name not in arrays]
    if lacking:
        raise UserError(f"{where} has no array {lacking[0]!r}; found {', '.join(arrays) or 'none'}")
    positions = arrays["positions"]
    if positions.ndim != 4 or positions.shape[-1] != 3 or 0 in positions.shape:
        raise UserError(
            f"{where}: positions is {list(positions.shape)}; expected [systems, frames, particles, 3], none of them 0"
        )
    s, t, n, _ = positions.shape
    shapes = {"positions": (s, t, n, 3), "velocities": (s, t, n, 3), "charges": (s, n), "times": (t,)}
    for name, values in arrays.items():
        if name not in shapes:
            raise UserError(f"{where} has an array {name!r}; expected {FORM}")
        if values.shape != shapes[name] or values.dtype.kind not in "fiu":
            raise UserError(f"{where}: {name} is {values.dtype} {list(values.shape)}; expected numbers {list(shapes[name])}")
        bad = np.argwhere(~np.isfinite(values.astype(np.float64)))
        if len(bad):
            at = ", ".join(str(i) for i in bad[0])
            raise UserError(
                f"{where}: {name}[{at}] is {values[tuple(bad[0])]}; expected a finite number ({len(bad)} such values)"
            )
    times = arrays.get("times")
    if times is not None and not (np.diff(times) > 0).all():
        raise UserError(f"{where}: times do not rise from frame to frame")
    width = len(str(s - 1))
    charges = arrays.get("charges")
    return Particles(
        tuple(f"{i:0{width}d}" for i in range(s)), positions.astype(np.float32), arrays["velocities"].astype(np.float32),
        None if charges is None else charges.astype(np.float32), None if times is None else times.astype(np.float64),
    )  # fmt: skip


def write_particles(held: Particles, to: Path) -> None:
    """An .npz that `ParticleFiles` reads back: `to` itself, or ``particles.npz`` in a folder."""
    import io

    out = io.BytesIO()
    arrays = {"positions": held.positions, "velocities": held.velocities, "charges": held.charges, "times": held.times}
    np.savez_compressed(out, allow_pickle=False, **{k: v for k, v in arrays.items() if v is not None})
    write_whole(to if to.suffix == ".npz" else to / "particles.npz", out.getvalue())


class ParticleFiles(ParticleSet):
    """A user's particles, by path; their identity is the bytes of the file."""

    name: ClassVar[str] = "particle-files"
    path: Path = setting(..., "an .npz, or a folder that holds particles.npz")

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By header: an .npz with an array positions."""
        file = path / "particles.npz" if path.is_dir() else path
        if file.suffix != ".npz" or not file.is_file():
            return False
        try:
            with zipfile.ZipFile(file) as held:
                return "positions.npy" in held.namelist()
        except (OSError, zipfile.BadZipFile):
            return False

    def _file(self) -> Path:
        file = self.path / "particles.npz" if self.path.is_dir() else self.path
        if not file.is_file():
            raise UserError(f"{self.path} holds no {FORM}")
        return file

    def read(self) -> Particles:
        file = self._file()
        return _read_cached(file, stamps([file], file))

    def digest(self) -> str:
        file = self._file()
        return digest_of([self.name, bytes_digest(stamps([file], file))])


@lru_cache(maxsize=2)
def _read_cached(path: Path, stamp: tuple[Stamp, ...]) -> Particles:
    try:
        arrays = read_arrays(path)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}; write plain arrays with numpy.savez") from None
    return checked(arrays, str(path))


class GivenParticles(Given, ParticleSet):
    """Particles made in Python; they live as long as the process and are named by their content."""

    name: ClassVar[str] = "given-particles"

    @classmethod
    def hold(cls, held: Particles) -> GivenParticles:
        arrays = {"positions": held.positions, "velocities": held.velocities, "charges": held.charges, "times": held.times}
        checked({k: v for k, v in arrays.items() if v is not None}, "particles")
        if len(set(held.ids)) != len(held.positions):
            raise UserError(f"ids are {len(held.positions)} different texts, one a system")
        digest = arrays_digest(arrays.values(), held.ids)
        cls._held[digest] = held
        return cls(content=digest)


# -- charged particles ---------------------------------------------------------------------------------------------------
def forces(x: Array, q: Array, limit: float = 100.0) -> Array:
    """Coulomb forces of unit strength, F_i = sum_j q_i q_j (x_i - x_j) / r^3, each component clipped to +-`limit`.

    x float64 [S, n, 3], q float64 [S, n] -> [S, n, 3]. Equal signs repel. `limit` inf: Newton's third law holds exactly.
    """
    total = np.zeros_like(x)
    n = x.shape[1]
    for i in range(n):  # pairs once: each force acts on both, with opposite sign
        for j in range(i + 1, n):
            apart = x[:, i] - x[:, j]
            pull = (q[:, i] * q[:, j] / np.maximum(np.einsum("sk,sk->s", apart, apart), 1e-300) ** 1.5)[:, None] * apart
            total[:, i] += pull
            total[:, j] -= pull
    return np.clip(total, -limit, limit)


def simulate(
    x: Array, v: Array, q: Array, frames: int, every: int = 100, dt: float = 1e-3, limit: float = 100.0
) -> tuple[Array, Array]:
    """Leapfrog under `forces`, the velocity half a step ahead: positions and velocities float64 [S, frames, n, 3], unit masses.

    Frame f is saved at step (f + 1) `every`, frame 30 at step 3,100 (as the data of "Neural Relational Inference" and of Frame
    Averaging's code, without their box). x, v float64 [S, n, 3], q float64 [S, n]; saved every `every` steps of `dt`.
    """
    saved = np.empty((2, len(x), frames, *x.shape[1:]))
    _leapfrog(x.astype(np.float64), v.astype(np.float64), q.astype(np.float64), every, dt, limit, saved)
    return saved[0], saved[1]


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _leapfrog(x: Array, v: Array, q: Array, every: int, dt: float, limit: float, saved: Array) -> None:
    systems, n, _ = x.shape
    frames = saved.shape[2]
    force = np.zeros((n, 3))
    for s in range(systems):
        for step in range(frames * every):
            force[:] = 0.0
            for i in range(n):
                for j in range(i + 1, n):
                    a, b, c = x[s, i, 0] - x[s, j, 0], x[s, i, 1] - x[s, j, 1], x[s, i, 2] - x[s, j, 2]
                    squared = a * a + b * b + c * c
                    pull = q[s, i] * q[s, j] / max(squared * np.sqrt(squared), 1e-300)
                    force[i, 0] += pull * a
                    force[i, 1] += pull * b
                    force[i, 2] += pull * c
                    force[j, 0] -= pull * a
                    force[j, 1] -= pull * b
                    force[j, 2] -= pull * c
            kick = 0.5 * dt if step == 0 else dt
            for i in range(n):
                for k in range(3):
                    v[s, i, k] += kick * min(max(force[i, k], -limit), limit)
                    x[s, i, k] += dt * v[s, i, k]
            # x has now made step + 1 steps; the velocity saved with it is the one that made the last of them
            if (step + 1) % every == 0:
                f = (step + 1) // every - 1
                for i in range(n):
                    for k in range(3):
                        saved[0, s, f, i, k] = x[s, i, k]
                        saved[1, s, f, i, k] = v[s, i, k]


class ChargedParticles(ParticleSet):
    """Particles that attract and repel by their charges +-1: x ~ N(0, I), speed 0.5 in a random direction, no walls.

    Forces are clipped to +-100 a component, as in the data of the field, which makes close encounters slightly anisotropic.
    Saved every 100 steps of 1e-3, so frames lie 0.1 apart.
    """

    name: ClassVar[str] = "charged-particles"
    systems: int = setting(7000, "how many", ge=1, le=1_000_000)
    particles: int = setting(5, "of each system", ge=1, le=1000)
    frames: int = setting(41, "saved frames", ge=2, le=100_000)
    every: int = setting(100, "steps from one saved frame to the next", ge=1, le=100_000)
    clip: float = setting(100.0, "largest component of a force; 0: no limit", ge=0)
    seed: int = setting(0, "of the draw", ge=0)

    def digest(self) -> str:
        return digest_of(self.identity())

    def read(self) -> Particles:
        return _charged(self)


@lru_cache(maxsize=4)
def _charged(of: ChargedParticles) -> Particles:
    rng = np.random.default_rng([of.seed, 0x63686172])
    shape = (of.systems, of.particles)
    x = rng.standard_normal((*shape, 3))
    v = rng.standard_normal((*shape, 3))
    v *= 0.5 / np.linalg.norm(v, axis=-1, keepdims=True)
    q = rng.choice((-1.0, 1.0), shape)
    dt = 1e-3
    positions, velocities = simulate(x, v, q, of.frames, of.every, dt, of.clip or np.inf)
    width = len(str(of.systems - 1))
    times = dt * of.every * np.arange(1, of.frames + 1)
    return Particles(
        tuple(f"{i:0{width}d}" for i in range(of.systems)), positions.astype(np.float32), velocities.astype(np.float32),
        q.astype(np.float32), times,
    )  # fmt: skip
