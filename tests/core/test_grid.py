"""Grids: killed and restarted, shared by processes and by Ray, tuned with an equal budget, with failures recorded."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from latticework import _face as face
from latticework.cli.verbs import app
from latticework.core import registry, store
from latticework.core.board import Board
from latticework.core.errors import UserError
from latticework.core.evaluate import Options, evaluate
from latticework.core.grid import Grid, Pool, finished, forecast, run_grid, tuned
from latticework.core.grid import entry_of as method_of
from latticework.core.ledger import Ledger
from latticework.core.run import Run
from latticework.core.tables import cells_path, condensed, gains, page, record_table, recorded_costs, resume
from latticework.core.task import Part
from latticework.core.tuning import Tuned, search_space
from latticework.nodes.baselines import Majority

DRIVER = Path(__file__).parent / "kill_driver.py"
SMALL = {"data": ["karate"], "entries": ["mlp(epochs=5)", "svd(dim=4)", "majority"], "repeats": 3, "baselines": False}


def cells_of(root: Path) -> dict[str, Any]:
    """Cell -> what must repeat bit for bit."""
    found = {}
    for folder in sorted((root / "cells").iterdir()):
        plain = json.loads((folder / "result.json").read_text())
        found[folder.name] = (plain["status"], plain["headline"], json.dumps(plain["scores"], sort_keys=True))
    return found


def nothing_half_written(root: Path) -> None:
    for folder in (root / "fits").iterdir():
        store.load_model(folder)  # every hash is checked
        assert (folder / "fit.json").exists()
    assert all((folder / "result.json").exists() for folder in (root / "cells").iterdir())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("whole") / "runs"
    subprocess.run([sys.executable, str(DRIVER), str(root), "0", "0"], check=True, capture_output=True)
    return cells_of(root)


def test_a_grid_killed_at_random_moments_ends_with_the_same_bits(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    done = subprocess.run([sys.executable, str(DRIVER), str(root), "10", "7"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "killed 10 times" in done.stdout, done.stdout
    assert cells_of(root) == undisturbed
    nothing_half_written(root)


def test_three_processes_share_the_cells(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    workers = [subprocess.Popen([sys.executable, str(DRIVER), str(root), "0", "0"], stderr=subprocess.PIPE) for _ in range(3)]
    for worker in workers:
        assert worker.wait(timeout=300) == 0, worker.stderr and worker.stderr.read()
    assert cells_of(root) == undisturbed
    nothing_half_written(root)


def test_two_jobs_give_the_same_bits_as_one(tmp_path: Path) -> None:
    grid = Grid.make(SMALL)
    run_grid(grid, str(tmp_path / "one"))
    run_grid(grid, str(tmp_path / "two"), jobs=2)
    assert cells_of(tmp_path / "one") == cells_of(tmp_path / "two")


def test_ray_runs_the_cells_and_survives_a_killed_worker(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    grid = Grid.make(SMALL | {"entries": ["mlp(epochs=400)", "gcn(epochs=400)", "svd(dim=4)", "majority"]})
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    killed: list[int] = []

    def kill_one(cell: Any, result: Any, done: int, total: int) -> None:
        if killed:
            return
        import psutil

        busy = [p for p in psutil.process_iter() if _name(p).startswith("ray::run_cell")]
        if busy:
            busy[0].kill()
            killed.append(busy[0].pid)

    try:
        run_grid(grid, str(tmp_path / "ray"), jobs=2, cluster="ray", on_done=kill_one)
    finally:
        ray.shutdown()
    assert killed, "no worker was caught at work"
    run_grid(grid, str(tmp_path / "here"))
    assert cells_of(tmp_path / "ray") == cells_of(tmp_path / "here")


def _name(process: Any) -> str:
    try:
        return " ".join(process.cmdline())
    except Exception:
        return ""


def test_it_goes_seed_by_seed_and_a_method_without_chance_counts_once() -> None:
    cells = Grid.make(SMALL | {"data": ["digits-knn"], "settings": [["task.protocol", "random"]]}).cells()
    assert [c.fold for c in cells] == [f"random-{i}" for i in range(3) for _ in range(3)]
    assert {c.seed for c in cells if c.entry == "majority"} == {0}


def test_every_method_is_tuned_with_the_same_budget() -> None:
    grid = Grid.make({"data": ["karate"], "entries": ["mlp", "gcn(layers=3)", "majority"], "tune": 7})
    methods = {label: method for label, method, _ in grid.cases()[0].entries}
    mine = [m for m in methods.values() if isinstance(m, Tuned)]
    assert {m.trials for m in mine} == {7} and len(mine) == 3  # mlp, gcn, and the classic baseline
    assert not isinstance(methods["majority"], Tuned)
    assert "layers" not in tuned(method_of("gcn(layers=3)"), 7, ["layers"]).space()  # type: ignore[attr-defined]


def test_what_is_set_by_hand_within_brackets_is_not_tuned() -> None:
    """A wrapper's backbone keeps what the backbone alone would keep, however it was written; the rest of both stays open."""
    plain, bare = "gcn(layers=3; hidden=8)", method_of("gcn")
    texts = ["lagnn", f"lagnn(backbone={plain})", "lagnn(backbone=gcn)", f"lagnn(copies=2; backbone={plain})", plain]
    grid = Grid.make({"data": ["karate"], "tasks": ["node-classification"], "entries": texts, "tune": 3, "baselines": False})
    spaces = [set(method.space()) for _, method, _ in grid.cases()[0].entries if isinstance(method, Tuned)]
    free, held, named, both, alone = spaces
    inside = {name.partition(".")[2] for name in free if "." in name}
    assert inside == set(search_space(bare)) and named == free
    assert held == free - {"backbone.layers", "backbone.hidden"} and both == held - {"copies"}
    assert {name.partition(".")[2] for name in held if "." in name} == alone
    assert registry.set_by_hand({"a": "b(c=d(e=1; f=2,3); g=x)", "h": {"is": "i", "k": 1}, "l": 0.1, "m.n": 2}) == [
        "a", "a.c", "a.c.e", "a.c.f", "a.g", "h", "h.is", "h.k", "l", "m.n",
    ]  # fmt: skip


def test_tuning_is_nested_and_its_first_trial_is_the_method_as_given(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    from latticework.core.dataset import open_data
    from latticework.nodes.tasks import NodeClassification

    data = open_data("karate")
    task = NodeClassification().for_data(data)
    once = evaluate(task, data, method_of("tuned(method=mlp(epochs=5); trials=1)"), "random-0", 0, ledger)
    plain = evaluate(task, data, method_of("mlp(epochs=5)"), "random-0", 0, ledger)
    assert once.headline == plain.headline
    many = evaluate(task, data, method_of("tuned(method=mlp(epochs=5); trials=4)"), "random-0", 0, ledger)
    assert "chosen of 4 trials on validation" in " ".join(many.facts["notes"]) and len(many.curve["valid"]) == 4


class Failing(Majority):
    """Fails as long as a file is there."""

    name: ClassVar[str] = "failing"
    flag: ClassVar[Path]

    def fit(self, train: Part, valid: Part | None, run: Run) -> Any:
        if self.flag.exists():
            raise ZeroDivisionError("the flag is up")
        return super().fit(train, valid, run)


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Failing]]:
    monkeypatch.setattr(Failing, "flag", tmp_path / "flag", raising=False)
    entry = registry.Entry("method", "failing", "", "fails", "tests", Path(), {"tasks": ["node-classification"]})
    monkeypatch.setattr(
        registry.Entry, "load", lambda self, old=registry.Entry.load: Failing if self.name == "failing" else old(self)
    )
    known = dict(registry._entries()) | {("method", "failing"): (entry,)}
    monkeypatch.setattr(registry, "_entries", lambda: known)
    yield Failing


def test_tuning_once_keeps_what_the_first_split_chose(tmp_path: Path) -> None:
    grid = Grid.make(
        {"data": ["karate"], "entries": ["mlp(epochs=5)"], "repeats": 3, "tune": 4, "tune_once": True, "baselines": False}
    )
    results = [result for _, result in run_grid(grid, str(tmp_path))]
    chosen = [r.facts["chosen"] for r in results]
    assert all(r.status == "done" for r in results), results
    assert chosen[0] == chosen[1] == chosen[2] and results[0].headline != results[1].headline
    each = grid.but(tune_once=False)
    first = run_grid(each, str(tmp_path))[0][1]
    assert first.headline == results[0].headline and first.facts["chosen"] == chosen[0]
    assert "chosen of 4 trials on the first fold" in " ".join(results[1].facts["notes"])
    assert len(list(Ledger(tmp_path).results())) == 6


def test_what_a_user_draws_next_is_theirs(tmp_path: Path) -> None:
    """Neither a fit, nor a comparison, nor a saved model that is read moves torch's generator."""
    import torch

    import latticework as lw

    torch.manual_seed(0)
    wanted = torch.rand(1)
    lw.fit("mlp(epochs=2)", "karate").save(tmp_path / "model")
    for work in (
        lambda: lw.fit("mlp(epochs=2)", "karate"),
        lambda: lw.load(tmp_path / "model"),
        lambda: lw.compare("karate", ["mlp(epochs=2)"], repeats=1, baselines=False),
    ):
        torch.manual_seed(0)
        work()
        assert torch.equal(torch.rand(1), wanted)


def test_a_setting_that_no_entry_has_is_an_error() -> None:
    known = Grid.make({"data": ["karate"], "entries": ["mlp", "gcn"], "settings": [["layers", 3]]})
    assert len(known.cases()) == 1
    for entries in (["mlp"], ["mlp", "gcn"]):
        with pytest.raises(UserError, match="mlp has no field 'mlp'"):
            Grid.make({"data": ["karate"], "entries": entries, "settings": [["mlp.layers", 3]]}).cases()


def test_a_field_added_later_keeps_old_keys() -> None:
    grid = Grid.make({"data": ["karate"]})
    assert "tune_once" not in grid.identity() and grid.but(tune_once=True).key() != grid.key()


@pytest.fixture
def table(tmp_path: Path) -> registry.Table:
    grid = {
        "data": ["karate", "digits-knn"],
        "entries": ["majority", "mlp(epochs=5)"],
        "repeats": 2,
        "tune": 2,
        "tune_once": True,
    }
    plain = {k: v for k, v in Grid.make({**grid, "baselines": False}).plain().items() if k != "is"}
    return registry.Table("small", "Two data sets.", plain, tmp_path / "evidence" / "tables" / "small.json")


def board_of(table: registry.Table, ledger: Ledger) -> Board:
    grid = Grid.make(table.grid)
    return Board.of(grid, finished(grid, ledger), ledger)


def test_a_partial_table_is_recorded_as_partial(table: registry.Table, tmp_path: Path) -> None:
    grid = Grid.make(table.grid)
    assert "Not run yet" in page(table) and recorded_costs(table) == {}
    ledger = Ledger(tmp_path / "runs")
    run_grid(grid.but(repeats=1), str(ledger.root))
    record_table(table, board_of(table, ledger), ledger)
    assert "**Partial: 4 of 8 cells are finished.**" in page(table) and "| majority | 0." in page(table)
    assert forecast(grid, str(tmp_path / "elsewhere"), told=recorded_costs(table))["unknown"] == 0
    run_grid(grid, str(ledger.root))
    record_table(table, board_of(table, ledger), ledger)
    assert "Partial" not in page(table)


def test_a_table_goes_on_from_its_recorded_cells(table: registry.Table, tmp_path: Path) -> None:
    """Elsewhere, nothing that is recorded is fitted again (the search neither), and the board is that of an unbroken run."""
    grid = Grid.make(table.grid)
    first, second = Ledger(tmp_path / "first"), Ledger(tmp_path / "second")
    run_grid(grid.but(repeats=1), str(first.root))
    record_table(table, board_of(table, first), first)
    recorded = cells_path(table).read_text()
    assert resume(table, second) == (4, 0) and resume(table, second) == (4, 0)
    assert not list((second.root / "fits").iterdir())
    record_table(table, board_of(table, second), second)
    assert cells_path(table).read_text() == recorded
    run_grid(grid, str(first.root))
    run_grid(grid, str(second.root))
    methods = [second.fit_facts(fit.name)["method"]["is"] for fit in (second.root / "fits").iterdir()]
    assert sorted(methods) == sorted(["majority"] * 2 + ["mlp", "tuned-once"] * 2)  # and no trial
    whole, continued = (condensed(board_of(table, ledger))["cases"] for ledger in (first, second))
    for ours, theirs in zip(whole, continued, strict=True):
        for row, other in zip(ours["rows"], theirs["rows"], strict=True):
            same = ("name", "n", "planned", "mean", "low", "high", "rank", "verdict", "difference", "chosen")
            assert {k: row[k] for k in same} == {k: other[k] for k in same}
    with pytest.raises(UserError, match=r"recorded with 4 finished cells, and here are 0: not written; .* --resume"):
        record_table(table, board_of(table, Ledger(tmp_path / "empty")), Ledger(tmp_path / "empty"))
    other = table._replace(grid={**table.grid, "repeats": 3})
    with pytest.raises(UserError, match="here are 0: not written"):  # another definition loses them no less
        record_table(other, board_of(other, Ledger(tmp_path / "empty")), Ledger(tmp_path / "empty"))


def test_cells_of_an_earlier_revision_make_way(table: registry.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that was mended is measured anew, also where that leaves the board with fewer cells for now."""
    old, new = Ledger(tmp_path / "old"), Ledger(tmp_path / "new")
    run_grid(Grid.make(table.grid), str(old.root))
    record_table(table, board_of(table, old), old)
    monkeypatch.setattr(registry.find("method", "mlp").load(), "revision", 2, raising=False)
    taken, void = resume(table, new)
    assert (taken, void) == (4, 4)
    with pytest.raises(UserError, match="recorded with 8 finished cells, and here are 4"):
        record_table(table, board_of(table, new), new)
    record_table(table, board_of(table, new), new, void=void)
    assert "**Partial: 4 of 8 cells are finished.**" in page(table) and resume(table, Ledger(tmp_path / "third")) == (4, 0)


def test_a_page_lists_methods_as_they_are_ranked(table: registry.Table, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    run_grid(Grid.make(table.grid), str(ledger.root))
    record_table(table, board_of(table, ledger), ledger)
    found = json.loads(table.record.read_text())
    for case in found["cases"]:  # as where lower is better
        case["rows"].reverse()
    table.record.write_text(json.dumps(found))
    lines = page(table).split(f"## {found['cases'][0]['label']}")[1].splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ") and "method" not in line]
    assert names[: len(found["cases"][0]["rows"])] == [row["name"] for row in found["cases"][0]["rows"]]


def test_the_command_line_goes_on_from_recorded_cells(
    table: registry.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(tmp_path / "runs")
    run_grid(Grid.make(table.grid).but(repeats=1), str(ledger.root))
    record_table(table, board_of(table, ledger), ledger)
    monkeypatch.setattr(registry, "tables", lambda: {"small": table})
    with pytest.raises(UserError, match="dagnn is a paper; --resume is for tables: small"):
        app(["reproduce", "dagnn", "--resume"], standalone_mode=False)
    app(["reproduce", "small", "--resume", "--record", "--runs", str(tmp_path / "elsewhere")], standalone_mode=False)
    said = capsys.readouterr()
    assert "4 recorded cells taken over" in said.out and "8 cells, 4 finished before" in said.err
    assert "Partial" not in page(table)


def test_a_search_is_forecast_once_a_data_set(table: registry.Table, tmp_path: Path) -> None:
    """The first fold's cell cost the search (100 s, two trials); each further fold is about a trial, and not the search again."""
    ledger = Ledger(tmp_path / "runs")
    grid = Grid.make({**table.grid, "data": ["karate"], "entries": ["mlp(epochs=5)"], "repeats": 5})
    run_grid(grid.but(repeats=1), str(ledger.root))
    for result in list(ledger.results()):
        ledger.put_result(result._replace(cost=result.cost._replace(fit_s=0.01, refs_s=100.0, predict_s=0.0)))
    assert forecast(grid, str(ledger.root))["seconds"] == pytest.approx(4 * 50.0)
    small = table._replace(grid={k: v for k, v in grid.plain().items() if k != "is"})
    record_table(small, board_of(small, ledger), ledger)
    assert forecast(grid, str(tmp_path / "fresh"), told=recorded_costs(small))["seconds"] == pytest.approx(100.0 + 4 * 50.0)


def test_a_part_of_a_table_is_run_first(
    table: registry.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "tables", lambda: {"small": table})
    words = ["reproduce", "small", "--record", "--runs", str(tmp_path / "runs")]
    app([*words, "--on", "karate", "--repeats", "1"], standalone_mode=False)
    assert "**Partial: 2 of 8 cells are finished.**" in page(table)
    app([*words, "-m", "majority"], standalone_mode=False)
    assert "**Partial: 5 of 8 cells are finished.**" in page(table)
    assert "4 cells, 1 finished before" in capsys.readouterr().err
    app([*words, "--on", "karate,digits-knn", "--on", "karate", "-m", "majority,mlp(epochs=5)"], standalone_mode=False)
    assert "8 cells, 5 finished before" in capsys.readouterr().err
    for option, name in (("--on", "cora"), ("-m", "mlp")):
        with pytest.raises(UserError, match=f"the table small has no .* '{name}'"):
            app([*words, option, name], standalone_mode=False)
    with pytest.raises(UserError, match="small is a table and makes no claims"):
        app([*words, "--claim", "any"], standalone_mode=False)


def test_published_gains_are_put_to_the_test(table: registry.Table, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    entries = ("logistic-regression", "majority")
    gain = {"says": "features over none", "entry": entries[0], "over": entries[1], "on": ["digits-knn"]}
    back = {"says": "none over features", "entry": entries[1], "over": entries[0], "on": ["digits-knn"]}
    asked = {**gain, "says": "by far too much", "by": 1.0}
    grid = {**table.grid, "entries": entries, "repeats": 5, "tune": 0, "tune_once": False}
    small = table._replace(grid=grid, gains=(gain, back, asked))
    run_grid(Grid.make(grid), str(ledger.root))
    board = board_of(small, ledger)
    found = {item["says"]: item for item in gains(small, board)}
    assert len(found) == 3 and {item["on"] for item in found.values()} == {"digits-knn"}
    assert [found[what["says"]]["fate"] for what in (gain, back, asked)] == ["survives", "fails", "fails"]
    means = {row.label: row.mean for row in board.cases[1].rows}
    by_hand = means[entries[0]] - means[entries[1]]  # type: ignore[operator]
    assert found[gain["says"]]["difference"] == pytest.approx(by_hand) and by_hand > 0.3
    assert found[back["says"]]["difference"] == pytest.approx(-by_hand)
    assert found[asked["says"]]["difference"] == pytest.approx(by_hand - 1.0)
    record_table(small, board, ledger)
    assert f"| features over none | digits-knn ({by_hand:+.3f}, 5 pairs) | – | – | – |" in page(small)
    one = gains(small._replace(grid={**grid, "repeats": 1}), board_of(small._replace(grid={**grid, "repeats": 1}), ledger))
    assert {item["fate"] for item in one} == {"not told yet"}


def test_the_named_tables_ask_for_gains_that_they_can_tell() -> None:
    for name, table in registry.tables().items():
        for gain in table.gains:
            assert {gain["entry"], gain["over"]} <= set(table.grid["entries"]), (name, gain)
            assert set(gain.get("on", ())) <= set(table.grid["data"]), (name, gain)


def test_recorded_cells_of_other_settings_are_left_aside(table: registry.Table, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "runs")
    run_grid(Grid.make(table.grid), str(ledger.root))
    record_table(table, board_of(table, ledger), ledger)
    changed = table._replace(grid={**table.grid, "entries": ("majority", "mlp(epochs=6)")})
    assert resume(changed, Ledger(tmp_path / "elsewhere")) == (4, 4)
    for damage in ("[{", '[{"search": null}]', "[1]", '{"a": 1}'):
        cells_path(table).write_text(damage)
        with pytest.raises(UserError, match=r"small\.cells\.json is damaged .* restore it"):
            resume(table, Ledger(tmp_path / "untouched"))
    assert not list((tmp_path / "untouched" / "cells").iterdir())
    cells_path(table).unlink()
    assert resume(table, ledger) == (0, 0)


def test_a_failed_cell_is_recorded_and_retried_on_request(failing: type[Failing], tmp_path: Path) -> None:
    failing.flag.touch()
    grid = Grid.make({"data": ["karate"], "entries": ["failing", "majority"], "repeats": 2, "baselines": False})
    found = run_grid(grid, str(tmp_path / "r"))
    bad = [r for c, r in found if c.entry == "failing"]
    assert {r.status for r in bad} == {"failed"} and bad[0].error == "ZeroDivisionError: the flag is up"
    assert "the flag is up" in bad[0].provenance["traceback"]
    failing.flag.unlink()
    assert {r.status for c, r in run_grid(grid, str(tmp_path / "r")) if c.entry == "failing"} == {"failed"}
    assert {r.status for c, r in run_grid(grid, str(tmp_path / "r"), retry=True) if c.entry == "failing"} == {"done"}


def test_a_time_budget_stops_a_cell_and_it_is_no_evidence(tmp_path: Path) -> None:
    grid = Grid.make({"data": ["karate"], "entries": ["gcn(epochs=100000; patience=100000)"], "repeats": 1, "baselines": False})
    ((_, result),) = run_grid(grid, str(tmp_path), Options(time_s=0.3))
    assert result.status == "stopped" and result.headline is not None
    assert not list((tmp_path / "fits").iterdir())  # others must not take it for the whole fit


def test_a_fit_that_is_cut_short_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """Checkpoints: the same weights whether or not the process died in the middle."""
    from latticework.core.dataset import open_data
    from latticework.core.run import fitted
    from latticework.nodes.tasks import NodeClassification

    data = open_data("karate")
    task = NodeClassification().for_data(data)
    fold = task.fold(data, "random-0")
    method = method_of("gcn(epochs=30)")

    class Died(BaseException):
        pass

    def run_with(root: Path, die_at: int | None, resume: bool = False) -> dict[str, Any]:
        def on_log(label: str, step: int, values: Mapping[str, float]) -> None:
            if die_at is not None and step == die_at:
                raise Died

        run = Run(task=task, digest=data.digest(), fold="random-0", ledger=Ledger(root), on_log=on_log)
        keep = run.keep
        run.keep = lambda step, state: keep(step, state, every_s=0.0)  # type: ignore[method-assign]
        with run.seeded():
            return dict(fitted(method, fold.train, fold.valid, run).state())

    whole = run_with(tmp_path / "whole", None)
    with pytest.raises(Died):
        run_with(tmp_path / "cut", 17)
    assert list((tmp_path / "cut" / "work").iterdir())
    resumed = run_with(tmp_path / "cut", None)
    assert all((whole[k] == resumed[k]).all() for k in whole) and not list((tmp_path / "cut" / "work").iterdir())


def test_the_cost_is_said_beforehand(tmp_path: Path) -> None:
    grid = Grid.make(SMALL)
    assert forecast(grid, str(tmp_path))["unknown"] == 9
    run_grid(Grid.make(SMALL | {"repeats": 1}), str(tmp_path))
    known = forecast(grid, str(tmp_path))
    assert known["left"] == 6 and known["unknown"] == 0 and known["seconds"] > 0
    assert len(finished(grid, Ledger(tmp_path))) == 3
    (case,) = grid.cases()
    entry = case.entries[0][0]
    elsewhere = forecast(grid, str(tmp_path / "new"), told={(case.label, entry): 100.0})
    of_entry = sum(cell.entry == entry for cell in grid.cells())
    assert elsewhere["seconds"] == 100 * of_entry and elsewhere["unknown"] == 9 - of_entry
    assert forecast(grid, str(tmp_path), told={(case.label, entry): 1e6})["seconds"] < 1e6  # what was seen here counts


def test_failed_cells_that_run_again_are_foreseen(tmp_path: Path) -> None:
    grid, ledger = Grid.make(SMALL | {"entries": ["majority"]}), Ledger(tmp_path)
    run_grid(grid, str(tmp_path))
    first = next(iter(ledger.results()))
    ledger.put_result(first._replace(status="failed"))
    assert forecast(grid, str(tmp_path))["left"] == 0 and forecast(grid, str(tmp_path), retry=True)["left"] == 1


def test_the_command_of_a_grid_runs_the_same_grid(graph_folder: Path) -> None:
    asked: list[Any] = []

    def again(data: Any, methods: Any, **how: Any) -> None:
        asked.append(
            face.grid_of(data, methods, **{k: v for k, v in how.items() if k in inspect.signature(face.grid_of).parameters})
        )

    made = face.grid_of(
        str(graph_folder),
        "mlp(epochs=5),svd",
        repeats=2,
        classic=2,
        settings={"task.train": 0.5, "dim": 4},
    )
    given = face.command_of(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "latticework.cli._board.run_and_show", lambda face, **how: again(how.pop("data"), how.pop("methods"), **how)
        )
        app(shlex.split(given)[1:], standalone_mode=False)
    assert asked[0].cases()[0].entries == made.cases()[0].entries and asked[0].plain() | {"settings": []} == made.plain() | {
        "settings": []
    }

    swept = face.grid_of(str(graph_folder), "mlp", sweep=[("dropout", [0.1, 0.5])], task="node-classification", baselines=False)
    text = face.command_of(swept, "float64")
    assert "precision='float64'" in text
    eval(text, {"latticework": SimpleNamespace(compare=again)})
    assert asked[1] == swept


def test_no_overhead_worth_a_word(tmp_path: Path) -> None:
    """The lattice's own work on a cell, counted in files: a fit, a cell, nothing else."""
    run_grid(Grid.make(SMALL | {"entries": ["majority"], "repeats": 1}), str(tmp_path))
    kept = sorted(str(p.relative_to(tmp_path)).split(os.sep)[0] for p in tmp_path.rglob("*") if p.is_file())
    assert set(kept) == {"cells", "fits", "locks"}


def test_workers_are_started_once(tmp_path: Path) -> None:
    with Pool(2) as pool:
        first = run_grid(Grid.make(SMALL | {"repeats": 1}), str(tmp_path / "a"), workers=pool)
        again = run_grid(Grid.make(SMALL | {"repeats": 1}), str(tmp_path / "b"), workers=pool)
    assert [r.headline for _, r in first] == [r.headline for _, r in again]


def test_a_checkpoint_without_a_validation_part_holds_no_infinity(tmp_path: Path) -> None:
    """JSON has none: the best value before the first look must travel some other way."""
    import torch

    from latticework.core.training import train

    def a_run() -> Run:
        run = Run(task=None, ledger=Ledger(tmp_path))
        run.fit_key = "k"
        keep = run.keep
        run.keep = lambda step, state: keep(step, state, every_s=0.0)  # type: ignore[method-assign]
        return run

    net = torch.nn.Linear(1, 1)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    train(net, lambda epoch: 1.0, a_run(), epochs=2, optimiser=optimiser)
    again = a_run().last()
    assert again is not None and again[0] == 2 and float(again[1]["best"]) == float("inf")


def test_a_first_look_that_is_no_number_is_not_the_best(tmp_path: Path) -> None:
    import torch

    from latticework.core.training import Watch, train

    net = torch.nn.Linear(1, 1)
    looks = iter([float("nan"), 0.5, 0.1, 0.2])
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    run = Run(task=None, ledger=Ledger(tmp_path))
    assert train(net, lambda epoch: 1.0, run, epochs=4, optimiser=optimiser, watch=lambda: Watch(next(looks))) == 2


def test_tuning_that_is_cut_short_is_no_evidence(tmp_path: Path) -> None:
    """Tuning whose trials are cut is cut itself: nothing of it is kept as evidence."""
    from latticework.core.dataset import open_data
    from latticework.nodes.tasks import NodeClassification

    data = open_data("karate")
    task = NodeClassification().for_data(data)
    method = method_of("tuned(method=gcn(epochs=100000; patience=100000); trials=3)")
    result = evaluate(task, data, method, "random-0", 0, Ledger(tmp_path), Options(time_s=0.3))
    assert result.status == "stopped" and not list((tmp_path / "fits").iterdir())


def test_settings_that_do_not_go_together_cost_a_trial_not_the_fit() -> None:
    """A GCN of one layer cannot bring LAGNN's feature matrices together, and tuning may ask for one."""
    import latticework as lw

    small = method_of("lagnn").with_settings(
        {"backbone.epochs": 3, "backbone.hidden": 4, "generator.method.epochs": 1, "generator.method.selection": "none"}
    )
    fitted = lw.fit(Tuned(method=small, trials=8), "karate")
    assert fitted.run is not None
    notes = " ".join(fitted.run.notes)
    assert "could not be used: several feature matrices need two layers" in notes
    assert fitted.method.backbone.layers >= 2  # type: ignore[attr-defined]


def test_a_sweep_of_the_task_makes_a_case_for_each_value(tmp_path: Path) -> None:
    """Each value has cells of its own, and a trend along it reads those alone; an unknown field of a sweep is refused."""
    from latticework.core.claim import Seen, Trend
    from latticework.core.claim import cells_of as of_entry

    given: Any = SMALL | {"entries": ["mlp(epochs=5)", "majority"], "tasks": ["node-classification(protocol=random)"]}
    grid = Grid(**given, sweep=[["task.train", [0.3, 0.4, 0.5]], ["hidden", [4, 8]]])
    assert [case.task.train for case in grid.cases()] == [0.3, 0.4, 0.5]
    assert len({case.label for case in grid.cases()}) == 3
    cells = run_grid(grid, str(tmp_path))
    seen = Seen(grid, cells, lambda name: [], lambda text, data: {})
    found = [of_entry(seen, "mlp(epochs=5)", {"task.train": n, "hidden": 8}) for n in (0.3, 0.4, 0.5)]
    assert [len(rows) for rows in found] == [3, 3, 3]
    assert [{c.task["train"] for c, _ in rows} for rows in found] == [{0.3}, {0.4}, {0.5}]
    plain = Grid(**given, sweep=[["task.train", [0.3, 0.4, 0.5]]])
    seen = Seen(plain, run_grid(plain, str(tmp_path)), lambda name: [], lambda text, data: {})
    check: Any = Trend(entry="mlp(epochs=5)", over="majority", along="task.train", stat="slope")
    assert len(of_entry(seen, "majority", {"task.train": 0.4})) == 3 and "over 3 points" in check.judge(seen).says
    with pytest.raises(TypeError):  # a folder is asked: anything else would become one by its name
        run_grid(plain, Ledger(tmp_path))  # type: ignore[arg-type]
    for wrong in ("task.trian", "hiddn"):
        with pytest.raises(UserError):
            Grid(**given, sweep=[[wrong, [1, 2]]]).cases()
