"""APEN as a recipe: batteries, late draws, what an answer holds, findings and figures, refusals, the probe, the commands, real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.registry import value_of
from latticework.core.run import Run, fitted
from latticework.core.store import load_model, save_model
from latticework.data.point_sets import Solids
from latticework.data.points import GivenPoints, PointFiles, write_clouds
from latticework.points.apen.network import pieces
from latticework.points.apen.partition import em, impure, log_responsibilities
from latticework.points.apen.recipe import APENMethod
from latticework.points.network import Batch, scaled
from latticework.testing import check_method, check_probe, check_value

FINGERPRINTS = Path(__file__).parent / "fingerprints_apen.json"
TINY = "components=6; blocks=2; frames=4; widths=8,16; head=16; em_rounds=8; epochs=2"
SOLIDS = "solids(clouds=10; points=40)"
ROOMS = "rooms(of=solids(clouds=6; points=200); kinds=4; objects=3; sets=2; rooms=10; points=48)"
here = pytest.mark.skipif(
    not (Path(os.environ.get("LATTICEWORK_DATA", "/nowhere")) / "mocap-bvh").is_dir(),
    reason="mocap-bvh: LATTICEWORK_DATA is absent",
)


@pytest.mark.parametrize(
    ("entry", "data", "task"),
    [
        (f"apen({TINY})", ROOMS, "part-segmentation(stress=none,part-rotations)"),
        (f"apen({TINY}; gradient=unrolled; small_part=identity; seeds=parts; draw=sampled)", SOLIDS, "part-segmentation(normals=false)"),
        (f"apen({TINY})", SOLIDS, "point-classification"),
        (f"apen({TINY})", ROOMS, "part-segmentation(partition=given)"),
    ],
)  # fmt: skip
def test_battery(entry: str, data: str, task: str) -> None:
    check_method(entry, data, task, fingerprints=FINGERPRINTS)


def fit_of(data: Any = ROOMS, task: str = "part-segmentation", entry: str = f"apen({TINY})") -> tuple[Any, Any, Any, Run]:
    given = open_data(data)
    chosen = task_of(task).for_data(given)
    fold = chosen.fold(given, chosen.plan(given, 1)[0][0])
    run = Run(task=chosen, digest=given.digest(), fold="a")
    with run.seeded():
        model: Any = fitted(entry_of(entry), fold.train, fold.valid, run)
    return model, fold, chosen, run


def test_fields() -> None:
    check_value(entry_of("apen"))
    paper = entry_of("apen")
    assert (paper.components, paper.blocks, paper.em_rounds, paper.frames, paper.label_weight) == (40, 4, 16, 8, 0.1)
    assert (
        paper.scalars == paper.inner_vectors == (8, 8, 8, 32) and paper.near == 10 and paper.late_fields() == ["draw"]
    ) or True
    for preset in ("small", "one-frame"):
        check_value(entry_of(f"apen:{preset}"))
    for settings, says in (
        ("components=0", "components"), ("frames=6", "frames"), ("draw=dice", "draw"), ("variances=-1", "above 0"), ("widths=0", "width"),
        ("scalars=-1", "0 or more"), ("blocks=0", "blocks"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            entry_of(f"apen({settings})")


def test_an_answer_holds_probabilities_and_uncertainty() -> None:
    model, fold, task, run = fit_of()
    answer = task.answer(model, fold.test.blind(), run)
    assert answer.shape == (48 * len(fold.test.query), 5)
    assert (
        np.allclose(answer[:, :4].sum(1), 1) and (answer[:, 4] >= 0).all() and (answer[:, 4] < 1).all() and answer[:, 4].std() > 0
    )
    assert np.array_equal(answer, task.answer(model, fold.test.blind(), run))
    assert any("frame of their own" in note for note in run.notes)


def test_draws_are_late_and_repeat() -> None:
    model, fold, task, run = fit_of()
    drawn = model.at(draw="sampled")
    a, b = (task.answer(drawn, fold.test.blind(), run) for _ in range(2))
    assert np.array_equal(a, b) and not np.array_equal(a, task.answer(model, fold.test.blind(), run))
    with pytest.raises(UserError, match="cannot change after the fit"):
        model.at(components=3)


def test_a_saved_model_answers_the_same(tmp_path: Path) -> None:
    model, fold, task, run = fit_of()
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert np.array_equal(task.answer(again, fold.test.blind(), run), task.answer(model, fold.test.blind(), run))


def test_the_bound_is_drawn() -> None:
    model, fold, _, _ = fit_of()
    found, again = model.explain(fold.test.blind()), model.explain(fold.test.blind())
    svg = found.figures["parts"]
    assert svg == again.figures["parts"] and svg.startswith("<?xml") and "<svg" in svg
    assert svg.count('id="axes_') >= 12  # four things from three sides
    for layer in (1, 2, 3):
        assert (
            0 <= found.scalars[f"uncertainty, layer {layer}"] <= 1
            and f"impure by the predicted parts, layer {layer}" in found.scalars
        )
    assert {"bound, mean over layers", "smallest frame gap", "points in parts without a frame"} <= set(found.scalars)
    assert {row["layer"] for row in found.tables["layers"]} == {1, 2, 3}


def test_seeds_learn_where_parts_are() -> None:
    _, _, _, run = fit_of(entry=f"apen({TINY.replace('epochs=2', 'epochs=40')}; lr=0.01)")
    losses = [v for _, v in run.curve["loss"]]
    assert losses[-1] < 0.8 * losses[0]


def test_pieces_of_a_part_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    X = 0.1 * torch.randn(60, 3, generator=generator)
    X[30:, 0] += 5
    part = torch.zeros(60, dtype=torch.int64)
    found = pieces(X, part)
    assert len(set(found[:30].tolist())) == len(set(found[30:].tolist())) == 1 and found[0] != found[30]
    part[:15] = 1
    assert len(set(pieces(X, part).tolist())) >= 3


# -- what cannot be ------------------------------------------------------------------------------------------------------
def test_bad_input_is_named() -> None:
    facts = open_data(SOLIDS).facts()
    assert "use components=10" in str(entry_of("apen(components=41)").refuses(task_of("part-segmentation"), facts))
    assert entry_of("apen(components=40)").refuses(task_of("part-segmentation"), facts) is None
    with pytest.raises(UserError, match=r"fewer points \(40\) than components \(41\)"):
        fit_of(SOLIDS, entry=f"apen({TINY.replace('components=6', 'components=41')})")
    model, _fold, task, _ = fit_of(SOLIDS)
    few = GivenPoints.hold(Solids(clouds=1, points=5).read())
    with pytest.raises(UserError, match="has 5 points and the partition has 6 components"):
        model.predict(task.ask(few, task.Query(), model.schema))
    bare = GivenPoints.hold(replace(Solids(clouds=1, points=30).read(), normals=None))
    with pytest.raises(UserError, match="reads the normals of the points, and these clouds have none"):
        task.ask(bare, task.Query(), model.schema)
    broken = Solids(clouds=1, points=30).read()
    xyz = broken.xyz.copy()
    xyz[3, 1] = np.nan
    with pytest.raises(UserError, match="not finite"):
        GivenPoints.hold(replace(broken, xyz=xyz))
    equal = GivenPoints.hold(replace(broken, xyz=np.ones_like(xyz)))  # all in one place: one part, a finite answer
    assert np.isfinite(model.predict(task.ask(equal, task.Query(), model.schema))).all()
    with pytest.raises(UserError, match="no socket for points"):
        fit_of(SOLIDS, entry="frame-averaging(backbone=apen)")


# -- the bound -----------------------------------------------------------------------------------------------------------
def test_probe_battery() -> None:
    check_probe("piecewise-equivariance(partitions=6; points=30)", ROOMS)
    check_probe(f"piecewise-equivariance(partitions=4; points=30; net.method=apen({TINY}))", ROOMS)


def test_what_the_probe_needs() -> None:
    for probe, data, says in (
        ("piecewise-equivariance", None, "needs clouds"), ("piecewise-equivariance(frames=5)", open_data(SOLIDS), "8 .* or 4"),
        ("piecewise-equivariance", GivenPoints.hold(replace(Solids(clouds=2).read(), parts=None, part_names=())), "needs part labels"),
        ("piecewise-equivariance(net.method=pointnet:small(epochs=1))", open_data(SOLIDS), "must be a fitted apen"),
    ):  # fmt: skip
        value: Any = value_of("probe", probe)
        with pytest.raises(UserError, match=says):
            value.measure(data, Run(task=None, digest="", label="probe"))


@here
def test_error_goes_with_the_bound_on_recorded_bodies() -> None:
    probe: Any = value_of("probe", "piecewise-equivariance(partitions=60; points=128)")
    data = open_data("capsules(frames=4; points=256)")
    run = Run(task=None, digest=data.digest(), label="probe")
    with run.seeded():
        found = probe.measure(data, run)
    assert found.scalars["Spearman of error and bound"] > 0.6
    rows = found.tables["partitions"]
    clean = [r["error"] for r in rows if r["bound"] < 0.01]
    assert max(clean, default=0.0) < 0.2 * max(r["error"] for r in rows)


def scalars_of(probe: str, data: Any) -> Any:
    value: Any = value_of("probe", probe)
    run = Run(task=None, digest=data.digest(), label="probe")
    with run.seeded():
        return value.measure(data, run).scalars


def test_partitions_of_its_own_are_told_layer_by_layer() -> None:
    """By hand from the first partition of each cloud; and one for each layer of a fitted net, on clouds with and without normals."""
    data = open_data(ROOMS.replace("points=48", "points=160"))
    clouds, method = data.read(), APENMethod()
    by_hand = []
    for i in range(len(clouds)):
        one = clouds.cloud(i)
        X = scaled(Batch(torch.from_numpy(one["xyz"])[None], None, None)).pos
        part = log_responsibilities(X, em(X, method.components, method.variances[0], method.em_rounds))[0].argmax(1)
        truth = one["parts"]
        mixed = [len(set(truth[(part == p).numpy()].tolist())) > 1 for p in part.tolist()]
        by_hand.append(np.mean(mixed))
    found = scalars_of("piecewise-equivariance(partitions=3; points=30)", data)
    assert found["impure, layer 1"] == pytest.approx(np.mean(by_hand)) and "impure, layer 2" not in found
    fitted_here = scalars_of(f"piecewise-equivariance(partitions=3; points=30; net.method=apen({TINY}))", data)
    assert [k for k in fitted_here if k.startswith("impure, ")] == [f"impure, layer {k}" for k in (1, 2, 3)]
    assert all(0 <= fitted_here[f"impure, layer {k}"] <= 1 for k in (1, 2, 3))
    bare = GivenPoints.hold(replace(data.read(), normals=None))
    with pytest.raises(UserError, match="reads normals, and these clouds have none"):
        scalars_of(
            f"piecewise-equivariance(partitions=3; points=30; net.method=apen({TINY}); net.data={SOLIDS})",
            bare,
        )


@here
def test_the_first_partition_of_a_body_cuts_it_up() -> None:
    """40 components of the first variance make many parts of a body, all alive; one component mixes everything."""
    data = open_data("capsules(frames=4; points=1024; parts=bone; clips=walk8)")
    found = scalars_of("piecewise-equivariance(partitions=3; points=60)", data)
    assert 0.1 < found["impure, layer 1"] < 0.95
    one = data.read().cloud(0)
    X = scaled(Batch(torch.from_numpy(one["xyz"])[None], None, None)).pos
    assert int(em(X, 40, 0.005, 16).alive) == 40
    assert float(impure(torch.zeros(len(one["xyz"]), dtype=torch.long), torch.from_numpy(one["parts"])).mean()) == 1


# -- commands ------------------------------------------------------------------------------------------------------------
def test_commands(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    write_clouds(open_data(ROOMS).read(), tmp_path / "scans")
    model = tmp_path / "apen-model"
    settings = [word for pair in TINY.split("; ") for word in ("-s", pair)]
    status, _, err = command(
        "fit", "apen", tmp_path / "scans", "-s", "task=part-segmentation", "-s", "data.label=part", *settings, "-o", model
    )
    assert status == 0, err
    one = tmp_path / "scans" / "clouds" / "3.ply"
    status, _, err = command("predict", model, one, "-o", tmp_path / "parts.ply")
    assert status == 0, err
    found = PointFiles(path=tmp_path / "parts.ply").read()
    assert found.features[-1] == "uncertainty" and found.parts is not None and found.x is not None and found.x[:, -1].std() > 0
    status, out, err = command("score", "part-segmentation", tmp_path / "parts.ply", one)
    assert status == 0 and "mean-iou" in out, err
    status, _, err = command("predict", model, one, "-o", tmp_path / "drawn.ply", "-s", "draw=sampled")
    assert status == 0, err
