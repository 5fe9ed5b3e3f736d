"""`reproduce`: a paper's claims run, its figure beside ours; or a named grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latticework.core import registry
from latticework.core.errors import UserError, nearest


def reproduce_papers(
    papers: list[str], claims: list[str], record: bool, runs: Path, jobs: int, device: str, resume: bool = False
) -> None:
    """Run the claims of papers (or some of them), or the grids of these names."""
    grids = registry.tables()
    slugs = {p.slug: p for p in registry.papers()}
    for name in papers:
        if name not in slugs and name not in grids:
            raise UserError(f"no paper and no grid is called {name!r}; {nearest(name, [*slugs, *grids])}")
        if resume and name in slugs:
            raise UserError(f"{name} is a paper; --resume is for tables: {', '.join(grids)}")
    for name in papers:
        if name in slugs:
            _paper(slugs[name], claims, record, runs, jobs, device)
        else:
            _grid(grids[name], record, runs, jobs, device, resume)


def _paper(paper: registry.Paper, wanted: list[str], record: bool, runs: Path, jobs: int, device: str) -> None:
    from latticework.core import claim as claims
    from latticework.core.evaluate import Options
    from latticework.core.run import pick_device

    found = claims.claims_of(paper)
    if wanted:
        known = [c.id for c in found]
        for name in wanted:
            if name not in known:
                raise UserError(f"{paper.slug} has no claim {name!r}; {nearest(name, known)}")
        found = [c for c in found if c.id in wanted]
    options = Options(pick_device(device), threads=1)
    print(f"{paper.facts['title']} ({paper.facts.get('venue', '')})", flush=True)
    for item in found:
        hours = f" (about {item.hours:g} hours on one core)" if item.hours else ""
        print(f"\n[{item.level}] {item.id}: {item.says}{hours}", flush=True)
        with _bar(item.id) as on_done:
            measured = claims.measure(item, str(runs), options, jobs=jobs, on_done=on_done)
        figure = "–" if item.paper is None else f"{item.paper:g} [{item.mark}]"
        print(f"  paper {figure} · here {measured['says']} · {measured['verdict']} ({measured['seconds']} s)", flush=True)
        if record:
            claims.record(paper, {item.id: measured})
    if record:
        print(f"\nwrote {paper.path.with_suffix('.json')}")


def _grid(table: registry.Table, record: bool, runs: Path, jobs: int, device: str, resume: bool) -> None:
    """Run a named grid and show its board. Stopped with Ctrl-C it shows, and records as partial, what is finished."""
    from rich.console import Console

    from latticework import _face as face
    from latticework.core import tables
    from latticework.core.board import Board
    from latticework.core.grid import Grid, finished
    from latticework.core.ledger import Ledger

    from ._board import say_cost, show_board

    grid = Grid.make(table.grid)
    ledger = Ledger(runs)
    print(f"{table.name}: {table.says}", flush=True)
    if resume:
        taken, other = tables.resume(table, ledger)
        changed = f"; {other} recorded ones are of data or settings that changed since and are left aside" if other else ""
        print(f"{taken} recorded cells taken over{changed}", flush=True)
    say_cost(Console(stderr=True), grid, runs, tables.recorded_costs(table))
    try:
        with _bar(table.name) as on_done:
            board = face.compare_grid(grid, runs=runs, jobs=jobs, device=device, on_done=on_done)
    except KeyboardInterrupt:
        print("stopped; what is finished:", flush=True)
        board = Board.of(grid, finished(grid, ledger), ledger, face.command_of(grid))
    show_board(board, [])
    if record:
        print(f"\nwrote {tables.record_table(table, board, ledger)}")


def _bar(what: str) -> Any:
    import contextlib
    from collections.abc import Iterator

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextlib.contextmanager
    def shown() -> Iterator[Any]:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task(what)
            yield lambda cell, result, done, total: bar.update(task, completed=done, total=total, description=cell.entry)

    return shown()
