"""Particles over time: the physics of the generator, the protocol of the field, and what a user's file may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run
from latticework.data.particles import ChargedParticles, GivenParticles, ParticleFiles, Particles, checked, forces, simulate
from latticework.points.tasks import NBody

Array = np.ndarray[Any, Any]


def start(systems: int = 6, n: int = 5, seed: int = 0) -> tuple[Array, Array, Array]:
    """Positions, velocities and charges, with no two particles close to each other."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), -1).reshape(-1, 3)
    x = np.stack([place[rng.choice(27, n, replace=False)] for _ in range(systems)]) + 0.1 * rng.normal(size=(systems, n, 3))
    return x, 0.3 * rng.normal(size=(systems, n, 3)), rng.choice((-1.0, 1.0), (systems, n))


def energy(x: Array, v: Array, q: Array) -> Array:
    """Kinetic and potential, [S]: ``sum v^2 / 2 + sum_{i<j} q_i q_j / r_ij``."""
    i, j = np.triu_indices(x.shape[1], 1)
    apart = np.linalg.norm(x[:, i] - x[:, j], axis=-1)
    found: Array = (v**2).sum((1, 2)) / 2 + (q[:, i] * q[:, j] / apart).sum(1)
    return found


# -- physics -----------------------------------------------------------------------------------------------------------------
def test_momentum_is_kept_without_clipping_and_lost_with_it() -> None:
    """Newton's third law pair by pair; a clipped component acts on one of the two alone."""
    x, v, q = start()
    _, free = simulate(x, v, q, 10, 50, 1e-3, np.inf)
    assert np.abs(free.sum(2) - v.sum(1)[:, None]).max() < 1e-11
    near = x.copy()
    near[:, 1] = near[:, 0] + np.array([0.01, 0.01, 0.0])
    near[:, 2] = near[:, 0] + np.array([0.05, 0.0, 0.02])
    _, kept = simulate(near, v, q, 1, 5, 1e-3, np.inf)
    _, lost = simulate(near, v, q, 1, 5, 1e-3, 100.0)
    assert np.abs(kept.sum(2) - v.sum(1)[:, None]).max() < 1e-8 < 1e-3 < np.abs(lost.sum(2) - v.sum(1)[:, None]).max()


def test_clipping_is_by_component_and_so_not_isotropic() -> None:
    x, q = np.array([[[0.0, 0, 0], [0.03, 0.02, 0.01]]]), np.array([[1.0, 1.0]])
    whole, cut = forces(x, q, np.inf), forces(x, q, 100.0)
    assert np.array_equal(cut, np.clip(whole, -100, 100)) and np.allclose(whole[:, 0], -whole[:, 1])
    turn = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1.0]])
    assert np.allclose(forces(x @ turn.T, q, np.inf), whole @ turn.T)
    assert not np.allclose(forces(x @ turn.T, q, 100.0), cut @ turn.T)


def test_energy_is_kept_to_second_order() -> None:
    """The saved velocity is half a step behind its position, which a half kick makes up for; twice the step, four times the error."""
    x, v, q = start()
    drift = []
    for dt in (2e-3, 1e-3):
        xs, vs = simulate(x, v, q, 1, round(0.4 / dt), dt, np.inf)
        level = vs[:, 0] + 0.5 * dt * forces(xs[:, 0], q, np.inf)
        drift.append(np.abs(energy(xs[:, 0], level, q) - energy(x, v, q)))
    assert drift[1].max() < 1e-4 and 3.0 < np.median(drift[0] / drift[1]) < 5.0


def test_two_equal_charges_meet_the_closed_form() -> None:
    """Released at rest r0 apart: ``w^2 = 4 (1/r0 - 1/r)`` for the speed w of separation."""
    x = np.array([[[0.0, 0, 0], [1.0, 0, 0]]])
    for sign in (1.0, -1.0):
        q = np.array([[1.0, sign]])
        xs, vs = simulate(x, np.zeros_like(x), q, 1, 300, 1e-3, np.inf)
        level = vs[:, 0] + 0.5e-3 * forces(xs[:, 0], q, np.inf)
        r, w = np.linalg.norm(xs[0, 0, 1] - xs[0, 0, 0]), np.linalg.norm(level[0, 1] - level[0, 0])
        assert (r > 1) == (sign > 0) and w**2 == pytest.approx(abs(4 * (1 - 1 / r)), rel=1e-4)


def test_motion_turns_and_shifts_with_its_start() -> None:
    x, v, q = start()
    turn, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
    xs, vs = simulate(x, v, q, 3, 100, 1e-3, np.inf)
    turned, fast = simulate(x @ turn.T + 2.0, v @ turn.T, q, 3, 100, 1e-3, np.inf)
    assert np.abs(turned - (xs @ turn.T + 2.0)).max() < 1e-9 and np.abs(fast - vs @ turn.T).max() < 1e-9


# -- the protocol ------------------------------------------------------------------------------------------------------------
def test_the_generator_follows_the_protocol_of_the_field() -> None:
    first = ChargedParticles(systems=400, frames=2, every=1, clip=0, seed=3).read()
    x0 = first.positions[:, 0].astype(np.float64) - 1e-3 * first.velocities[:, 0]  # one step back: the start
    assert abs(x0.mean()) < 0.03 and abs(x0.std() - 1) < 0.03
    speed = np.linalg.norm(first.velocities[:, 0].astype(np.float64), axis=-1)
    assert np.median(np.abs(speed - 0.5)) < 1e-3
    assert set(np.unique(first.charges).tolist()) == {-1.0, 1.0} and abs(float(first.charges.mean())) < 0.1
    held = ChargedParticles(systems=2).read()
    assert held.positions.shape == (2, 41, 5, 3)
    # frame 30 is step 3,100 of 1e-3 and frame 40 step 4,100
    assert (
        held.times[30] == pytest.approx(3.1) and held.times[40] == pytest.approx(4.1) and held.span(30, 10) == pytest.approx(1.0)
    )


def test_seeds_are_other_systems_and_the_same_seed_the_same() -> None:
    a, again, other = (ChargedParticles(systems=3, frames=2, every=2, seed=s) for s in (0, 0, 1))
    assert a.digest() == again.digest() != other.digest()
    assert np.array_equal(a.read().positions, again.read().positions)
    assert not np.array_equal(a.read().positions, other.read().positions)


def test_standing_still_and_constant_velocity_on_the_protocol() -> None:
    """Frame 30 to 40: y = x gives .27 and y = x + v gives .11 in mean squared error, on systems enough."""
    data = open_data("charged-particles(systems=1200; seed=5)")
    held = data.read()
    x, v, y = held.positions[:, 30].astype(np.float64), held.velocities[:, 30], held.positions[:, 40]
    still, moving = float(((x - y) ** 2).mean()), float(((x + v - y) ** 2).mean())
    assert 0.22 < still < 0.33 and 0.08 < moving < 0.15 and moving < 0.5 * still
    task = task_of("n-body").for_data(data)
    assert (task.start, task.horizon) == (30, 10)
    fold = task.fold(data, task.plan(data, 1)[0][0])
    run = Run(task=task, digest="", fold="a")
    model: Any = entry_of("constant-velocity").fit(fold.train, None, run)
    mse = next(s.value for s in task.score(task.answer(model, fold.test.blind(), run), fold.test, run) if s.metric == "mse")
    assert abs(mse - moving) < 0.05 and isinstance(task, NBody)


# -- users' files ------------------------------------------------------------------------------------------------------------
def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    good = {
        "positions": rng.normal(size=(2, 3, 4, 3)), "velocities": rng.normal(size=(2, 3, 4, 3)), "charges": np.ones((2, 4)),
        "times": np.array([0.0, 0.5, 2.0]),
    }  # fmt: skip
    return {k: v for k, v in (good | changes).items() if v is not None}


def spoilt(value: float) -> Array:
    x = np.zeros((2, 3, 4, 3))
    x[1, 2, 0, 1] = value
    return x


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"velocities": None}, r"has no array 'velocities'; found positions, charges, times"),
        ({"positions": np.zeros((2, 4, 3))}, r"positions is \[2, 4, 3\]; expected \[systems, frames, particles, 3\]"),
        ({"positions": np.zeros((2, 3, 4, 2))}, r"positions is \[2, 3, 4, 2\]"),
        ({"positions": np.zeros((0, 3, 4, 3))}, r"none of them 0"),
        ({"velocities": np.zeros((2, 3, 5, 3))}, r"velocities is float64 \[2, 3, 5, 3\]; expected numbers \[2, 3, 4, 3\]"),
        ({"charges": np.ones(4)}, r"charges is float64 \[4\]; expected numbers \[2, 4\]"),
        ({"charges": np.full((2, 4), "plus")}, r"charges is <U4 \[2, 4\]; expected numbers"),
        ({"positions": spoilt(np.nan)}, r"positions\[1, 2, 0, 1\] is nan; expected a finite number \(1 such values\)"),
        ({"velocities": spoilt(-np.inf)}, r"velocities\[1, 2, 0, 1\] is -inf"),
        ({"times": np.array([0.0, 2.0, 1.0])}, r"times do not rise from frame to frame"),
        ({"masses": np.ones((2, 4))}, r"has an array 'masses'; expected \.npz with positions"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        checked(arrays(**changes), "file.npz")
    np.savez(tmp_path / "particles.npz", **arrays(**changes))
    with pytest.raises(UserError, match=says):
        ParticleFiles(path=tmp_path).read()


def test_a_file_without_charges_and_times() -> None:
    held = checked(arrays(charges=None, times=None), "x")
    assert held.charges is None and held.span(0, 2) == 2.0 and held.ids == ("0", "1") and held.positions.dtype == np.float32
    assert checked(arrays(), "x").span(0, 2) == 2.0 and checked(arrays(), "x").span(1, 1) == 1.5


def test_files_that_are_none(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    with pytest.raises(UserError, match=r"holds no \.npz with positions"):
        ParticleFiles(path=tmp_path).read()
    np.savez(tmp_path / "objects.npz", positions=np.array([{"a": 1}], object), velocities=np.zeros(1))
    with pytest.raises(UserError, match=r"cannot be read: .*; write plain arrays with numpy"):
        ParticleFiles(path=tmp_path / "objects.npz").read()
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04" + bytes(range(40)))
    assert not ParticleFiles.recognises(tmp_path / "junk.npz") and not ParticleFiles.recognises(tmp_path / "none.npz")
    np.savez(tmp_path / "bad.npz", **arrays(positions=spoilt(np.nan)))
    status, out, err = command("data", "check", tmp_path / "bad.npz")
    assert status == 2 and "positions[1, 2, 0, 1] is nan" in out + err and "Traceback" not in out + err
    np.savez(tmp_path / "short.npz", **arrays())
    for wrong in ("start=2", "start=7"):
        words = ("-m", "constant-velocity", "-s", f"task.{wrong}", "-s", "task.horizon=1", "--runs", tmp_path / "runs")
        status, out, err = command("compare", tmp_path / "short.npz", *words)
        assert status == 2 and "frames" in out + err and "Traceback" not in out + err, out + err


def test_given_particles_are_checked() -> None:
    held = checked(arrays(), "x")
    assert GivenParticles.hold(held).read() is held
    with pytest.raises(UserError, match="different texts, one a system"):
        GivenParticles.hold(Particles(("a", "a"), held.positions, held.velocities))
    with pytest.raises(UserError, match="different texts, one a system"):
        GivenParticles.hold(Particles(("a",), held.positions, held.velocities))
