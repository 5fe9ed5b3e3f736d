"""Boards from cells: what is compared with what, what counts as evidence, and the written forms."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import stats

from latticework.core import board as board_module
from latticework.core.board import Board, CaseBoard, Row
from latticework.core.dataset import Dataset
from latticework.core.errors import UserError
from latticework.core.grid import Case, Cell, Grid
from latticework.core.ledger import Ledger
from latticework.core.method import Method, Predictor
from latticework.core.result import Cost, Metric, Result, Score
from latticework.core.task import Fold, Part, Task
from latticework.core.value import setting


class Toy(Dataset):
    name: ClassVar[str] = "toy"
    kind: ClassVar[str] = "toys"
    which: str = setting("a", "which one")

    def read(self) -> Any:
        return None

    def digest(self) -> str:
        return self.key()


class ToyTask(Task):
    name: ClassVar[str] = "toy-task"
    kinds: ClassVar[tuple[str, ...]] = ("toys",)
    role: ClassVar[type[Any]] = Predictor
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("accuracy", "", "higher"), Metric("error", "m", "lower"), Metric("psnr", "dB", "higher"), Metric("bpp", "", "lower"),
    )  # fmt: skip
    rank_by: str = setting("accuracy", "the headline")
    ratio: float = setting(0.0, "test over train size where folds overlap; 0: they do not")

    @property
    def headline_metric(self) -> str:  # type: ignore[override]
        return self.rank_by

    def baselines(self, facts: Mapping[str, Any]) -> tuple[str, ...]:
        return ("constant", "classic")

    def plan(self, data: Dataset, repeats: int) -> list[tuple[str, int]]:
        return [("fixed", seed) for seed in range(repeats)]

    def overlap(self, data: Dataset) -> float | None:
        return self.ratio or None

    def fold(self, data: Dataset, name: str) -> Fold:
        raise NotImplementedError

    def ask(self, data: Dataset, query: Any, schema: Any) -> Part:
        raise NotImplementedError

    def answer(self, model: Any, part: Part, run: Any) -> Any:
        raise NotImplementedError

    def score(self, answer: Any, part: Part, run: Any) -> list[Score]:
        raise NotImplementedError

    def write(self, answer: Any, part: Part, to: Path) -> None:
        raise NotImplementedError


class ToyMethod(Method):
    name: ClassVar[str] = "toy-method"
    tasks: ClassVar[tuple[str, ...]] = ("toy-task",)
    title: str = setting("toy", "its name on the board")
    bits: int = setting(8, "bits kept", late=True)

    def row(self) -> str:
        return self.title

    def fit(self, train: Part, valid: Part | None, run: Any) -> Any:
        raise NotImplementedError


class Fixed(ToyMethod):
    name: ClassVar[str] = "constant"
    chance: ClassVar[bool] = False


class Classic(ToyMethod):
    name: ClassVar[str] = "classic"


def result(
    cell: str, value: float | None, status: Any = "done", *, metric: str = "accuracy", more: Sequence[Score] = (), fit_s: float = 1.0,
    error: str | None = None, **rest: Any,
) -> Result:  # fmt: skip
    where = {
        "version": "0.1.0", "torch": "2.4.0", "python": "3.11.9", "machine": "Linux x86_64", "device": "cpu",
        "precision": "float32", "threads": 1, "digest": "ab" * 32, "fold": "fixed", "seed": 0,
    }  # fmt: skip
    where.update(rest.pop("provenance", {}))
    scores = () if status == "failed" else (Score(metric, value), *more)
    cost = Cost() if status == "failed" else Cost(fit_s, 0.0, 0.01, 2_000_000, 1234)
    return Result(cell, status, scores, value if status != "failed" else None, cost, error, where, **rest)


Spec = tuple[str, Method, bool, Sequence[float | None]]


def case_of(
    specs: Sequence[Spec], label: str = "toys", *, task: ToyTask | None = None, folds: Sequence[tuple[str, int]] | None = None
) -> tuple[Case, list[tuple[Cell, Result]]]:
    """A case and its cells; a value of none is a cell that is missing."""
    task = task or ToyTask()
    data = Toy(which=label)
    pairs = tuple(folds or [("fixed", i) for i in range(max(len(s[3]) for s in specs))])
    case = Case(label, data, task, tuple((name, method, unasked) for name, method, unasked, _ in specs), pairs)
    cells = []
    for name, method, _, values in specs:
        for (fold, seed), value in zip(pairs, values, strict=False):
            if value is not None:
                cell = Cell(name, data.plain(), task.plain(), method.plain(), fold, seed if method.chance else 0)
                cells.append((cell, result(f"{label}-{name}-{fold}-{seed}", value, metric=task.rank_by)))
    return case, cells


def board_of(*cases: tuple[Case, list[tuple[Cell, Result]]], ledger: Ledger | None = None, **more: Any) -> Board:
    grid = Grid(data=tuple(case.label for case, _ in cases))
    cells = [pair for _, pairs in cases for pair in pairs]
    return Board.of(grid, cells, ledger or Ledger(), "latticework compare toys", cases=[case for case, _ in cases], **more)


def row_of(case: CaseBoard, label: str) -> Row:
    return next(row for row in case.rows if row.label == label)


GOOD = [0.90, 0.91, 0.92, 0.90, 0.93, 0.91]
PLAIN = [0.80, 0.82, 0.81, 0.80, 0.83, 0.80]
SPECS: list[Spec] = [
    ("new", ToyMethod(title="new"), False, GOOD),
    ("twin", ToyMethod(title="twin"), False, [v + d for v, d in zip(PLAIN, (0.001, -0.001, 0.0005, -0.0005, 0.001, -0.001), strict=True)]),
    ("constant", Fixed(title="constant"), True, [0.5]),
    ("classic", Classic(title="classic"), True, PLAIN),
]  # fmt: skip


def test_the_best_unasked_baseline_is_what_rows_are_compared_with() -> None:
    case = board_of(case_of(SPECS)).cases[0]
    assert [row.label for row in case.rows] == ["new", "twin", "classic", "constant"] or case.rows[0].label == "new"
    assert case.baseline == "classic"
    new, twin, constant = (row_of(case, label) for label in ("new", "twin", "constant"))
    assert (new.verdict, twin.verdict, constant.verdict) == ("better", "tied", "worse")
    assert row_of(case, "classic").verdict == "baseline"
    # scipy's paired test, then Holm over the three comparisons
    raw = {row.label: stats.ttest_rel(list(row.values.values()), PLAIN).pvalue for row in (new, twin)}
    raw["constant"] = stats.ttest_1samp(PLAIN, 0.5).pvalue
    assert new.p == pytest.approx(raw["new"], rel=1e-9)
    assert constant.p == pytest.approx(raw["constant"], rel=1e-9)
    order = sorted(raw.values())
    expected = np.maximum.accumulate([min(p * (3 - i), 1) for i, p in enumerate(order)])
    assert sorted(row.p_holm for row in (new, twin, constant)) == pytest.approx(list(expected), rel=1e-9)


def test_a_method_without_chance_counts_once_and_is_paired_with_every_seed() -> None:
    constant = row_of(board_of(case_of(SPECS)).cases[0], "constant")
    assert (constant.n, constant.planned, constant.missing) == (1, 1, 0)
    assert constant.low is None and constant.pairs == len(PLAIN)
    assert constant.values == {"fixed/0": 0.5}


def test_lower_is_better_turns_ranks_and_differences() -> None:
    task = ToyTask(rank_by="error")
    case = board_of(case_of(SPECS, task=task)).cases[0]
    assert case.rows[0].label == "constant" and case.baseline == "constant" and case.unit == "m"
    assert row_of(case, "new").verdict == "worse" and (row_of(case, "new").difference or 0) < 0


def test_ranks_say_what_tests_leave_open() -> None:
    case = board_of(case_of(SPECS)).cases[0]
    assert row_of(case, "new").among == (1, 1)
    assert row_of(case, "twin").among == (2, 3) and row_of(case, "classic").among == (2, 3)
    assert row_of(case, "constant").among == (4, 4)
    same = board_of(case_of([("a", ToyMethod(title="a"), False, PLAIN), ("b", Classic(title="b"), True, PLAIN)])).cases[0]
    assert [row.rank for row in same.rows] == [1, 1]
    assert row_of(same, "a").sentence.startswith("tied (the same value")


def test_stopped_cells_are_shown_and_no_evidence() -> None:
    case, cells = case_of(SPECS)
    cut = [(c, r._replace(status="stopped") if c.entry == "new" and c.seed == 0 else r) for c, r in cells]
    row = row_of(board_of((case, cut)).cases[0], "new")
    assert row.verdict == "stopped" and row.stopped == 1 and row.p is None and row.n == len(GOOD) and row.rank is None
    assert row_of(board_of((case, cut)).cases[0], "classic").rank in (1, 2)  # what was stopped takes no place
    assert board_of((case, cut), case_of(SPECS, "other")).overall[0].left_out == ["new"]
    cut = [(c, r._replace(status="stopped") if c.entry == "classic" else r) for c, r in cells]
    found = board_of((case, cut)).cases[0]
    assert found.baseline == "constant" and found.absent == ["classic"]  # the next best whose fits ran to their end
    assert row_of(found, "new").sentence == "better (against constant alone: classic did not finish)"
    assert "best baseline that finished, constant" in board_module.reading(found)


def test_failures_and_missing_cells_are_counted_and_named() -> None:
    case, cells = case_of(SPECS)
    failed = [
        (c, result(r.cell, None, "failed", error="the matrix is singular", provenance={"traceback": "Traceback …"}) if c.entry == "twin" else r)
        for c, r in cells if not (c.entry == "new" and c.seed > 2)
    ]  # fmt: skip
    found = board_of((case, failed)).cases[0]
    twin, new = row_of(found, "twin"), row_of(found, "new")
    assert twin.verdict == "failed" and len(twin.failures) == 6 and twin.mean is None and twin.rank is None
    assert twin.failures[0]["why"] == "the matrix is singular" and found.rows[-1].label == "twin"
    assert new.missing == 3 and new.n == 3 and new.pairs == 3


def test_nothing_finished_and_one_repeat() -> None:
    case, cells = case_of(SPECS)
    empty = board_of((case, [])).cases[0]
    assert empty.baseline is None and all(row.verdict == "none" for row in empty.rows)
    first = board_of((case, [(c, r) for c, r in cells if c.seed == 0])).cases[0]
    new = row_of(first, "new")
    assert new.verdict == "unsure" and new.sentence == "cannot tell yet: run 4 more" and new.more == 4
    for form in (board_of((case, [])), board_of((case, cells[:1]))):
        assert form.text() and form.markdown() and form.latex() and form.csv() and json.loads(form.json())


def test_no_baseline_is_said() -> None:
    case = board_of(case_of([("a", ToyMethod(title="a"), False, PLAIN)])).cases[0]
    assert case.rows[0].sentence == "no finished baseline to compare with"
    asked = board_of(case_of([("a", ToyMethod(title="a"), False, PLAIN), ("classic", Classic(title="c"), False, PLAIN)])).cases[0]
    assert asked.baseline == "classic"  # asked for by name, so it did not come unasked


def test_overlapping_folds_widen_the_interval() -> None:
    plain = row_of(board_of(case_of(SPECS)).cases[0], "new")
    wide = row_of(board_of(case_of(SPECS, task=ToyTask(ratio=0.25))).cases[0], "new")
    assert plain.high and plain.mean and wide.high and wide.mean
    assert (wide.high - wide.mean) / (plain.high - plain.mean) == pytest.approx(np.sqrt(1 + 6 * 0.25), rel=1e-9)
    assert (wide.p or 0) > (plain.p or 0)


def test_margin_is_the_users_or_a_hundredth_of_the_baseline() -> None:
    given = case_of(SPECS)
    assert board_of(given).cases[0].margin == pytest.approx(0.01 * np.mean(PLAIN))
    assert row_of(board_of(given, margin=1e-5).cases[0], "twin").verdict == "unsure"
    with pytest.raises(UserError, match="margin"):
        board_of(given, margin=-1.0)


def test_metrics_slices_points_and_curves_are_averaged() -> None:
    case, cells = case_of([("a", ToyMethod(title="a"), False, [0.5, 0.7]), ("classic", Classic(title="c"), True, [0.4, 0.5])])
    full = []
    for i, (cell, found) in enumerate(cells):
        more = (
            Score("psnr", 30.0 + i), Score("bpp", None, why="nothing is stored"),
            Score("accuracy", 0.1 * i, {"slice": "degree", "range": "0 to 2", "nodes": 10 + i}),
            Score("accuracy", 0.9, {"bits": 4}), Score("psnr", 20.0, {"bits": 4}),
        )  # fmt: skip
        full.append((cell, result(found.cell, found.headline, more=more, curve={"loss": [[0, 1.0], [1, 0.5]]}, facts={"row": cell.entry, "notes": ["seen"], "chosen": {"is": "toy-method", "bits": 4}})))  # fmt: skip
    row = row_of(board_of((case, full)).cases[0], "a")
    assert row.metrics == {"psnr": 30.5}  # the first score of each metric; the headline has its own column
    assert row.slices == [
        {"at": {"slice": "degree", "range": "0 to 2"}, "metrics": {"accuracy": 0.05}, "counts": {"nodes": 10.5}}
    ]
    assert [p["at"] for p in row.points] == [{}, {"bits": 4}] and row.points[0]["metrics"]["accuracy"] == pytest.approx(0.6)
    assert row.curves == {"loss": [[0.0, 1.0], [1.0, 0.5]]} and row.withheld == ["bpp: nothing is stored"]
    assert row.notes == ["seen (2 of 2 repeats)"] and row.chosen == ["toy-method(bits=4) (2 of 2)"]
    assert row.costs["peak_bytes"] == 2_000_000


def test_several_data_sets_get_average_ranks() -> None:
    cases = [case_of(SPECS, label) for label in ("first", "second", "third")]
    board = board_of(*cases)
    assert len(board.overall) == 1
    ranks = board.overall[0].ranks
    means = np.array([[row_of(case, label).mean for label in ranks.names] for case in board.cases])
    expected = stats.rankdata(-means, axis=1).mean(axis=0)
    assert ranks.average == pytest.approx(tuple(expected)) and ranks.sets == 3
    assert ranks.critical is not None and "Nemenyi" in board.text()
    assert not board_of(cases[0]).overall
    short = board_of(cases[0], case_of(SPECS[:3], "second"))
    assert short.overall[0].left_out == ["classic"]


def test_forms_agree_and_escape(tmp_path: Path) -> None:
    specs = [("a|b_<i>", ToyMethod(title="a|b_<i>"), False, GOOD), *SPECS[2:]]
    board = board_of(case_of(specs))
    plain = json.loads(board.json())
    assert plain["cases"][0]["rows"][0]["values"]["fixed/4"] == 0.93
    lines = list(csv.DictReader(io.StringIO(board.csv())))
    assert float(lines[0]["mean"]) == plain["cases"][0]["rows"][0]["mean"] and lines[0]["label"] == "a|b_<i>"
    assert r"a\|b\_\<i\>" in board.markdown() and "--:" in board.markdown()
    assert r"a|b\_\textless{}i\textgreater{}" in board.latex() and r"\toprule" in board.latex()
    assert "a|b_<i>" in board.text() and "better" in board.text()
    for ending in (".csv", ".json", ".md", ".tex", ".txt", ".html"):
        assert board.write(tmp_path / f"out{ending}").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"\.pdf: a board is written as"):
        board.write(tmp_path / "out.pdf")


def test_the_terminal_table_takes_no_markup_from_names() -> None:
    from rich.console import Console

    board = board_of(case_of([("[red]x[/red]", ToyMethod(title="[red]x[/red]"), False, GOOD), *SPECS[2:]]))
    out = io.StringIO()
    Console(file=out, width=220).print(board.table())
    assert "[red]x[/red]" in out.getvalue() and "the best baseline" in out.getvalue()
    out = io.StringIO()
    Console(file=out, width=220).print(board_of(case_of(SPECS, "p"), case_of(SPECS, "q")).table())
    assert "average rank" in out.getvalue()


@pytest.mark.parametrize(
    ("value", "places", "text"), [(0.81234, 3, "0.812"), (-0.0001, 3, "0.000"), (-1.5, 1, "−1.5"), (None, 2, "–"), (123456.0, None, "1.235e+05")]
)  # fmt: skip
def test_numbers_for_people(value: float | None, places: int | None, text: str) -> None:
    assert board_module.number(value, places) == text


def test_seconds_and_amounts() -> None:
    assert [board_module.seconds(v) for v in (0.0, 0.0004, 0.25, 89, 200, 7200)] == [
        "0 s",
        "0.4 ms",
        "0.25 s",
        "89 s",
        "3.3 min",
        "2.0 h",
    ]
    assert [board_module.amount(v) for v in (12, 1234, 5e6)] == ["12", "1.23 k", "5 M"] and board_module.amount(
        2e6, "B"
    ) == "2 MB"
