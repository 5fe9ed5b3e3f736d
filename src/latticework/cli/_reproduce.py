"""`reproduce`: a paper's claims run, its figure beside ours; or a named grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from latticework.core import registry
from latticework.core.errors import UserError, nearest


class Wanted(NamedTuple):
    """What of a paper or a table is run, and how."""

    claims: Sequence[str] = ()
    on: Sequence[str] = ()
    methods: Sequence[str] = ()
    repeats: int | None = None
    resume: bool = False
    record: bool = False
    runs: Path = Path("runs/evidence")
    jobs: int = 1
    device: str = "cpu"

    @property
    def of_tables(self) -> list[str]:
        """The options given that are for tables alone."""
        given = {"--on": self.on, "--method": self.methods, "--repeats": self.repeats, "--resume": self.resume}
        return [name for name, value in given.items() if value]


def reproduce_papers(names: Sequence[str], wanted: Wanted) -> None:
    """Run the claims of papers (or some of them), or the grids of these names."""
    grids = registry.tables()
    slugs = {p.slug: p for p in registry.papers()}
    for name in names:
        if name not in slugs and name not in grids:
            raise UserError(f"no paper and no grid is called {name!r}; {nearest(name, [*slugs, *grids])}")
        if name in slugs and wanted.of_tables:
            raise UserError(f"{name} is a paper; {wanted.of_tables[0]} is for tables: {', '.join(grids)}")
        if name in grids and wanted.claims:
            raise UserError(f"{name} is a table and makes no claims; leave --claim out")
    for name in names:
        if name in slugs:
            _paper(slugs[name], wanted)
        else:
            _grid(grids[name], wanted)


def _paper(paper: registry.Paper, wanted: Wanted) -> None:
    from latticework.core import claim as claims
    from latticework.core.evaluate import Options
    from latticework.core.run import pick_device

    found = claims.claims_of(paper)
    if wanted.claims:
        known = [c.id for c in found]
        for name in wanted.claims:
            if name not in known:
                raise UserError(f"{paper.slug} has no claim {name!r}; {nearest(name, known)}")
        found = [c for c in found if c.id in wanted.claims]
    options = Options(pick_device(wanted.device), threads=1)
    print(f"{paper.facts['title']} ({paper.facts.get('venue', '')})", flush=True)
    for item in found:
        long = f" ({item.long})" if item.long else ""
        print(f"\n[{item.level}] {item.id}: {item.says}{long}", flush=True)
        with _bar(item.id) as on_done:
            measured = claims.measure(item, str(wanted.runs), options, jobs=wanted.jobs, on_done=on_done)
        figure = "–" if item.paper is None else f"{item.paper:g} [{item.mark}]"
        print(f"  paper {figure} · here {measured['says']} · {measured['verdict']} ({measured['seconds']} s)", flush=True)
        if wanted.record:
            claims.record(paper, {item.id: measured})
    if wanted.record:
        print(f"\nwrote {paper.path.with_suffix('.json')}")


def _grid(table: registry.Table, wanted: Wanted) -> None:
    """Run a named grid, or a part of it, and show its board; all of the grid that is finished is recorded. Ctrl-C stops it early."""
    from rich.console import Console

    from latticework import _face as face
    from latticework.core import tables
    from latticework.core.board import Board
    from latticework.core.grid import Grid, finished
    from latticework.core.ledger import Ledger

    from ._board import say_cost, show_board

    grid = Grid.make(table.grid)
    part = tables.part_of(table, wanted.on, wanted.methods, wanted.repeats)
    ledger = Ledger(wanted.runs)
    print(f"{table.name}: {table.says}", flush=True)
    other = 0
    if wanted.resume:
        taken, other = tables.resume(table, ledger)
        changed = (
            f"; {other} recorded ones are of data, settings or methods that changed since and are left aside" if other else ""
        )
        print(f"{taken} recorded cells taken over{changed}", flush=True)
    say_cost(Console(stderr=True), part, wanted.runs, tables.recorded_costs(table))
    try:
        with _bar(table.name) as on_done:
            board = face.compare_grid(part, runs=wanted.runs, jobs=wanted.jobs, device=wanted.device, on_done=on_done)
    except KeyboardInterrupt:
        print("stopped; what is finished:", flush=True)
        board = Board.of(part, finished(part, ledger), ledger, face.command_of(part))
    show_board(board, [])
    if wanted.record:
        whole = Board.of(grid, finished(grid, ledger), ledger, face.command_of(grid))
        print(f"\nwrote {tables.record_table(table, whole, ledger, void=other)}")


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
