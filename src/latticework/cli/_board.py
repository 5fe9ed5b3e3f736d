"""`compare` and `report`: the cost beforehand, progress, the leaderboard, the files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_and_show(face: Any, *, out: list[Path], **options: Any) -> None:
    """Run a comparison with a progress bar and show its board."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    grid = face.grid_of(
        **{k: options[k] for k in ("data", "methods", "task", "repeats", "tune", "tune_once", "baselines", "classic", "settings")}
    )
    say_cost(console, grid, options["runs"], retry=options["retry"])
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("comparing")

        def on_done(cell: Any, result: Any, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=cell.entry)
            if result.status == "failed" and console.is_terminal:
                bar.console.print(f"failed: {cell.entry} ({cell.fold}, seed {cell.seed}): {result.error}")

        board = face.compare_grid(
            grid, on_done=on_done,
            **{k: options[k] for k in ("jobs", "cluster", "time", "runs", "device", "threads", "retry", "nets", "command")},
        )  # fmt: skip
    show_board(board, out)


def say_cost(console: Any, grid: Any, runs: Path, told: Mapping[tuple[str, str], float] = {}, retry: bool = False) -> None:
    """How many cells, how many are done, and how long the rest will take by recorded costs (`told`: those recorded elsewhere)."""
    from latticework.core.board import seconds
    from latticework.core.grid import forecast

    cost = forecast(grid, str(runs), told=told, retry=retry)
    text = f"{cost['cells']} cells, {cost['cells'] - cost['left']} finished before"
    if cost["left"]:
        known = cost["left"] - cost["unknown"]
        text += f"; {known} of the rest are known to take about {seconds(cost['seconds'])}" if known else ""
        text += f"; {cost['unknown']} have no recorded cost yet" if cost["unknown"] else ""
    console.print(text)


def show_board(board: Any, out: list[Path]) -> None:
    """The leaderboard on the terminal, and in the files asked for."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(board.table())
    else:
        print(board.text())
    for case in board.cases:
        for row in case.rows:
            for why in dict.fromkeys(failure["why"] for failure in row.failures):
                print(f"failed on {case.label}: {row.name}: {why}")
    for path in out:
        board.write(path)
        print(f"wrote {path}")
