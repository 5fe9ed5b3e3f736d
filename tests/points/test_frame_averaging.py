"""Frame Averaging as a recipe: batteries on every task, late samples, notes and findings, refusals, the commands, real data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from latticework.common.graph_batches import Packed
from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.core.run import Run, fitted
from latticework.data.points import write_clouds
from latticework.points.frame_averaging.graphs import repeated
from latticework.points.frame_averaging.method import FramedModel
from latticework.testing import check_method, check_value

FINGERPRINTS = Path(__file__).parent / "fingerprints_frame_averaging.json"
SOLIDS = "solids(clouds=12; points=40)"
CHARGES = "charged-particles(systems=20; frames=5; every=5)"
RINGS = "rings-and-cliques(graphs=40)"
POINTNET = "pointnet(widths=8,8,16; head=8; dropout=0.0; epochs=2)"
GIN = "gin(width=8; layers=2; dropout=0.0; epochs=2)"
CASES = {
    "normals": (f"frame-averaging(backbone={POINTNET})", SOLIDS, "normal-estimation(poses=I/I,I/SO3; points=0)"),
    "local": (f"frame-averaging(backbone={POINTNET}; group=SE3; local=6; vectors=4)", SOLIDS, "normal-estimation(points=0)"),
    "classes": (f"frame-averaging(backbone={POINTNET}; group=SO3; train_samples=1; samples=2)", SOLIDS, "point-classification"),
    "dgcnn": ("frame-averaging(backbone=dgcnn(widths=8,8; whole=8; head=8; k=5; dropout=0.0; epochs=2); train_samples=1)", SOLIDS,
              "point-classification"),
    "particles": ("frame-averaging(backbone=particle-gnn(width=12; layers=2; epochs=2))", CHARGES, "n-body(start=1; horizon=2)"),
    "layerwise": ("frame-averaging(backbone=particle-gnn(width=12; layers=2; epochs=2); layerwise=true; group=SE3)", CHARGES,
                  "n-body(start=1; horizon=2)"),
    "graphs": (f"frame-averaging(backbone={GIN}; group=Sn)", RINGS, "graph-classification"),
    "drawn": (f"frame-averaging(backbone={GIN}; group=Sn; uniform=true; samples=2; train_samples=all; draws=2)", RINGS,
              "graph-classification"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_battery(case: str) -> None:
    entry, data, task = CASES[case]
    check_method(entry_of(entry), data, task, fingerprints=FINGERPRINTS)


def fit_of(case: str, **changes: Any) -> tuple[FramedModel, Any, Any, Run]:
    """(model, fold, task, run) of one of the cases, with other fields."""
    entry, data, name = CASES[case]
    given = open_data(data)
    task = task_of(name).for_data(given)
    fold = task.fold(given, task.plan(given, 1)[0][0])
    method = entry_of(entry)
    run = Run(task=task, digest=given.digest(), fold="a")
    with run.seeded():
        model: Any = fitted(method.with_settings(changes) if changes else method, fold.train, fold.valid, run)
    return model, fold, task, run


def test_fields() -> None:
    check_value(entry_of("frame-averaging"))
    for preset in ("local", "dgcnn", "small", "n-body", "gin-id", "untrained"):
        check_value(entry_of(f"frame-averaging:{preset}"))
    for settings, says in (
        ("group=E9", "1 to 8"), ("group=Q3", "no group is called"), ("local=1", "2 to 1024"), ("samples=0", "at least 1"),
        ("train_samples=-1", "at least 1"), ("output=scalar", "invariant"), ("backbone=nothing", "nothing"), ("draws=0", "draws"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            entry_of(f"frame-averaging({settings})")


@pytest.mark.parametrize(
    ("entry", "task", "says"),
    [
        ("frame-averaging", "graph-classification", "use group=Sn and backbone=gin"),
        ("frame-averaging(group=Sn)", "normal-estimation", "group=E3, SE3, O3 or SO3"),
        ("frame-averaging(group=E3*Sn)", "normal-estimation", "leave Sn out"),
        ("frame-averaging(backbone=gin)", "normal-estimation", "no socket for points"),
        ("frame-averaging(backbone=gcn)", "normal-estimation", "no socket for points"),
        ("frame-averaging(backbone=pointnet; group=Sn)", "graph-classification", r"no socket for \(A, x\)"),
        ("frame-averaging(backbone=particle-gnn)", "normal-estimation", "made for n-body"),
        ("frame-averaging(backbone=gin; group=Sn; local=20)", "graph-classification", "leave local out"),
        ("frame-averaging(backbone=spen; group=Sn)", "graph-classification", "computes equal graphs once"),
        ("frame-averaging(backbone=ign; group=Sn)", "graph-classification", "computes equal graphs once"),
        ("frame-averaging(output=invariant)", "normal-estimation", "asks for an answer that is equivariant"),
        ("frame-averaging(output=equivariant)", "point-classification", "asks for an answer that is invariant"),
        ("frame-averaging(layerwise=true)", "normal-estimation", "layerwise frames are those"),
        ("frame-averaging(backbone=particle-gnn; layerwise=true; group=SO3)", "n-body", "layerwise frames are those"),
    ],
)
def test_what_does_not_go_together_is_refused(entry: str, task: str, says: str) -> None:
    reason = entry_of(entry).refuses(task_of(task), {})
    assert reason is not None and __import__("re").search(says, reason), reason


def test_nothing_else_is_refused() -> None:
    for entry, data, task in CASES.values():
        given = open_data(data)
        assert entry_of(entry).refuses(task_of(task), given.facts()) is None
    assert (
        entry_of("frame-averaging(output=equivariant)").refuses(task_of("normal-estimation"), open_data(SOLIDS).facts()) is None
    )


@pytest.mark.parametrize("backbone", ["k-path", "graph-mamba", "gps", "pna"])
def test_copies_of_a_graph_carry_what_a_backbone_adds_to_it(backbone: str) -> None:
    """Tables of indices, counts and lists of tokens as well, each copy its own."""
    given = open_data(RINGS)
    task = task_of("graph-classification").for_data(given)
    train = task.fold(given, task.plan(given, 1)[0][0]).train
    method: Any = entry_of(f"frame-averaging(backbone={backbone}; group=Sn)").inner()
    made = method.prepare(train.data[:3], method.settled(train))
    batch = Packed(made).batch(torch.tensor([2, 0, 1]))
    many, owner = repeated(batch, torch.tensor([2, 3, 1]))
    wanted = Batch.from_data_list([made[(2, 0, 1)[i]] for i in owner.tolist()])
    assert set(many.keys()) == set(wanted.keys()) and len(wanted.keys()) > 6
    for key in wanted.keys():  # noqa: SIM118  (a Batch is no mapping)
        assert torch.equal(torch.as_tensor(many[key]), torch.as_tensor(wanted[key])), key


def test_networks_without_the_parts_are_named() -> None:
    with pytest.raises(UserError, match=r"EGNN lacks .*: use backbone=particle-gnn"):
        fit_of("layerwise", backbone="egnn")
    with pytest.raises(UserError, match="a multiple of 3"):
        fit_of("layerwise", **{"backbone.width": 10})


# -- what a model does -------------------------------------------------------------------------------------------------------
def test_turned_clouds_get_the_same_answer_and_the_bare_network_gives_another() -> None:
    model, fold, task, run = fit_of("normals")
    found = {
        s.at["pose"]: s.value
        for s in task.score(task.answer(model, fold.test.blind(), run), fold.test, run)
        if s.metric == "1-cos2" and s.at
    }
    assert abs(found["I/I"] - found["I/SO3"]) < 1e-3 and np.isfinite(found["I/I"])
    bare = model.method.backbone
    other = Run(task=task, digest="", fold="a")
    with other.seeded():
        plain: Any = bare.fit(fold.train, fold.valid, other)
    scores = {
        s.at["pose"]: s.value
        for s in task.score(task.answer(plain, fold.test.blind(), other), fold.test, other)
        if s.metric == "1-cos2" and s.at
    }
    assert abs(scores["I/I"] - scores["I/SO3"]) > 1e-3


def test_samples_change_after_the_fit() -> None:
    model, fold, _, _ = fit_of("classes")
    test = fold.test.blind()
    every, one = model.at(samples="all").predict(test), model.at(samples=1).predict(test)
    assert model.method.samples == 2 and not np.array_equal(every, one) and not np.array_equal(every, model.predict(test))
    assert np.array_equal(one, model.at(samples=1).predict(test)) and np.array_equal(every, model.at(samples=4).predict(test))
    with pytest.raises(UserError, match="cannot change after the fit"):
        model.at(group="E3")


@pytest.mark.parametrize("case", ["classes", "drawn"])
def test_drawn_answers_do_not_hang_on_the_company(case: str) -> None:
    model, fold, _, _ = fit_of(case)
    part = fold.test.blind()
    together = model.predict(part)

    def asked(places: list[int]) -> Any:
        ids = tuple(part.query.ids[int(part.query.rows[i])] for i in places)
        data = [part.data[int(part.query.rows[i])] for i in places]
        return model.predict(part._replace(data=data, query=type(part.query)(np.arange(len(places)), ids)))

    every = list(range(len(together)))
    assert np.abs(asked(every[::-1])[::-1] - together).max() < 1e-6
    for i in every[:4]:
        assert np.abs(asked([i])[0] - together[i]).max() < 1e-6
    state = torch.get_rng_state()
    model.predict(part)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_on_one_drawn_element_is_another_fit() -> None:
    curves = [fit_of("normals", train_samples=k)[3].curve["loss"] for k in ("all", 1, 8)]
    assert curves[0] != curves[1] and curves[0] == curves[2]


def test_what_it_says_of_itself() -> None:
    for case in ("normals", "local", "particles", "layerwise", "classes"):
        model, fold, _, run = fit_of(case)
        assert any(note.startswith("smallest frame gap in the fit") for note in run.notes) or run.notes == [], case
        found = model.explain(fold.test.blind())
        assert 0 < found.scalars["smallest frame gap"] < 1 and found.scalars["equivariance error"] < 1e-2, (case, found.scalars)
        assert len(found.tables["frames"]) >= len(fold.test.query.rows) > 0
    model, fold, _, _ = fit_of("graphs")
    found = model.explain(fold.test.blind())
    assert found.scalars["frames listed whole"] > 0 and found.scalars["log10 of orderings, largest"] >= 0
    listed = [row["framed graphs listed"] for row in found.tables["frames"]]
    assert len(listed) == len(fold.test.data)


def test_a_degenerate_cloud_is_noted() -> None:
    from torch_geometric.data import Data

    model, fold, task, _ = fit_of("classes")
    square = torch.tensor([[1.0, 1, 0], [1, -1, 0], [-1, 1, 0], [-1, -1, 0]]).repeat(10, 1)
    train = fold.train._replace(data=[Data(pos=square) if i == 0 else d for i, d in enumerate(fold.train.data)])
    run = Run(task=task, digest="", fold="a")
    with run.seeded():
        model.method.fit(train, fold.valid, run)
    assert any("gap below 1e-06" in note for note in run.notes), run.notes


def test_graphs_of_any_form_are_answered() -> None:
    """One node, no edge, larger than any train graph, and an edge list without reverses."""
    from torch_geometric.data import Data

    model, fold, _, _ = fit_of("graphs")
    width = fold.test.data[0].x.shape[1] if fold.test.data[0].get("x") is not None else 0

    def graph(n: int, edges: list[list[int]]) -> Data:
        x = {"x": torch.eye(width)[torch.arange(n) % width]} if width else {}
        return Data(edge_index=torch.tensor(edges, dtype=torch.long).reshape(2, -1), num_nodes=n, **x)

    ring = [list(range(60)), [(i + 1) % 60 for i in range(60)]]
    odd = [graph(1, [[], []]), graph(5, [[], []]), graph(60, ring)]
    part = fold.test.blind()._replace(data=odd, query=fold.test.query._replace(rows=np.arange(3), ids=("a", "b", "c")))
    found = model.predict(part)
    assert found.shape == (3, 2) and np.isfinite(found).all() and np.allclose(found.sum(1), 1)


# -- the commands --------------------------------------------------------------------------------------------------------------
def test_as_typed(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    write_clouds(open_data(SOLIDS).read(), tmp_path / "parts")
    small = ["-s", "backbone.widths=8,8,16", "-s", "backbone.head=8", "-s", "backbone.epochs=2"]
    words = ["-s", "task=normal-estimation", "-s", "group=SO3", *small, "-o", tmp_path / "model"]
    status, out, err = command("fit", "frame-averaging", tmp_path / "parts", *words)
    assert status == 0, out + err
    status, out, err = command("predict", tmp_path / "model", tmp_path / "parts", "-o", tmp_path / "normals")
    assert status == 0, out + err
    words = ["-m", "frame-averaging(group=Q3)", "-s", "task=normal-estimation"]
    status, out, err = command("compare", tmp_path / "parts", *words)
    assert status == 2 and "no group is called" in out + err and "Traceback" not in out + err
    status, out, err = command("fit", "frame-averaging", tmp_path / "parts", "-s", "group=Sn", "-o", tmp_path / "none")
    assert status == 2 and "group=E3" in out + err and "Traceback" not in out + err, out + err


# -- real data -----------------------------------------------------------------------------------------------------------------
def test_normals_of_turned_shapes(mirror: Callable[[str], Path]) -> None:
    mirror("cad-shapes")
    data = open_data("cad-shapes")
    task = task_of("normal-estimation(held_out=samples; points=256; clouds=2; poses=I/I,I/SO3)").for_data(data)
    fold = task.fold(data, task.plan(data, 1)[0][0])
    method = entry_of("frame-averaging:small").with_settings({"backbone.epochs": 20, "backbone.batch": 4, "backbone.lr": 3e-3})
    run = Run(task=task, digest="", fold="a")
    with run.seeded():
        model: Any = method.fit(fold.train, None, run)
    scores = task.score(task.answer(model, fold.test.blind(), run), fold.test, run)
    found = {s.at["pose"]: s.value for s in scores if s.metric == "1-cos2" and set(s.at) == {"pose"}}
    assert abs(found["I/I"] - found["I/SO3"]) < 1e-3 and found["I/I"] < 0.6  # a random direction has 2/3


def test_pairs_that_weisfeiler_leman_cannot_tell_apart(mirror: Callable[[str], Path]) -> None:
    """One epoch on EXP: frames are there for every graph, too large to list, and answers are probabilities."""
    mirror("graph-separation")
    data = open_data("graph-separation:exp")
    task = task_of("graph-classification(protocol=order)").for_data(data)
    fold = task.fold(data, task.plan(data, 1)[0][0])
    cut = [
        part._replace(data=part.data[:60], query=part.query._replace(rows=part.query.rows[:60], ids=part.query.ids[:60]))
        for part in (fold.test.blind(),)
    ]
    method = entry_of("frame-averaging:gin-id").with_settings({"backbone.epochs": 1})
    run = Run(task=task, digest="", fold="a")
    train = fold.train._replace(
        data=fold.train.data[:100], query=fold.train.query._replace(rows=fold.train.query.rows[:100], ids=fold.train.query.ids[:100]),
        truth=fold.train.truth._replace(y=fold.train.truth.y[:100]),
    )  # fmt: skip
    with run.seeded():
        model: Any = method.fit(train, None, run)
    found = model.predict(cut[0])
    assert found.shape == (60, 2) and np.allclose(found.sum(1), 1)
    told = model.explain(cut[0])
    assert told.scalars["frames listed whole"] == 0 and told.scalars["log10 of orderings, median"] > 8
