"""Claims: a paper's sentence, its figure and where it stands, and one of seven checks that says whether it holds here.

Claims stand in ``evidence/<slug>.toml``; what was measured stands beside them in ``evidence/<slug>.json``, written by
``latticework reproduce SLUG --record`` alone.
"""

from __future__ import annotations

import importlib
import json
import math
import platform
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from . import registry
from .errors import Failure, UserError
from .evaluate import Options
from .grid import Cell, Grid, run_grid
from .ledger import write_whole
from .result import Result
from .value import Value, setting

MET, MISSED, UNTRIED = "met", "not met", "could not be tried here"
Pairs = Sequence[tuple[Cell, Result]]


class Outcome(NamedTuple):
    """What a check found: the figure that it looks at, in words, and whether the claim holds."""

    verdict: str
    measured: float | None
    says: str
    low: float | None = None
    high: float | None = None


class Seen(NamedTuple):
    """What a check may look at."""

    grid: Grid | None
    pairs: Pairs
    bench: Callable[[str], list[dict[str, Any]]]
    probe: Callable[[str, str], Mapping[str, Any]]


class Check(Value):
    """A check of a claim's grid, of a benchmark's rows, or of a probe's scalars. `at` picks scores by their coordinates."""

    noun: ClassVar[str] = "check"
    entry: str = setting("", "an entry of the grid, or a benchmark's row")
    over: str = setting("", "the entry that it is compared with")
    metric: str = setting("", "left out: the headline")
    at: tuple[tuple[str, Any], ...] = setting((), "coordinates of the scores looked at")
    bench: str = setting("", "a file of benchmarks/ instead of a grid")
    probe: str = setting("", "a probe on the grid's first data set instead of its methods")

    @abstractmethod
    def judge(self, seen: Seen) -> Outcome: ...

    def values(self, seen: Seen, entry: str, point: Mapping[str, Any] | None = None) -> dict[tuple[str, str, int], float]:
        """(data, fold, seed) -> the score looked at."""
        found = {}
        for cell, result in cells_of(seen, entry, point):
            value = score_of(result, self.metric, dict(self.at))
            if value is not None:
                found[(json.dumps(cell.data, sort_keys=True), cell.fold, cell.seed)] = value
        return found

    def rows(self, seen: Seen) -> list[dict[str, Any]]:
        return [row for row in seen.bench(self.bench) if not self.entry or row["name"].startswith(self.entry)]


def cells_of(seen: Seen, entry: str, point: Mapping[str, Any] | None = None) -> list[tuple[Cell, Result]]:
    """The cells of an entry (by its label, or by its method, tuned as the grid tunes), at a point of the sweep."""
    assert seen.grid is not None
    labels = {cell.entry for cell, _ in seen.pairs}
    wanted: list[Any] = []
    if entry not in labels or point:
        of_method = {k: v for k, v in [*seen.grid.settings, *(point or {}).items()] if not k.startswith(("task.", "data."))}
        of_task = {k[5:]: v for k, v in (point or {}).items() if k.startswith("task.")}
        for case in seen.grid.cases():
            if case.task == (case.task.with_settings(of_task) if of_task else case.task):
                wanted.append((case.task.plain(), seen.grid.entry(case.task, case.data, entry, of_method).plain()))
    found = [(c, r) for c, r in seen.pairs if ((c.task, c.method) in wanted if wanted else c.entry == entry)]
    if not found:
        raise UserError(f"the claim's grid has no entry {entry!r}; it has {', '.join(sorted(labels))}")
    failed = [r.error for _, r in found if r.status != "done"]
    if failed:
        raise Failure(f"{entry}: {len(failed)} of {len(found)} cells did not finish ({failed[0]})")
    return found


def score_of(result: Result, metric: str, at: Mapping[str, Any]) -> float | None:
    """The headline, or the mean of the scores of a metric whose coordinates include `at` (never a slice unless asked)."""
    if not metric and not at:
        return result.headline
    values = [
        s.value
        for s in result.scores
        if s.metric == metric
        and s.value is not None
        and all(s.at.get(k) == v for k, v in at.items())
        and ("slice" in at or "slice" not in s.at)
    ]
    return sum(values) / len(values) if values else None


class Tests(Check):
    """Identities: the tests that prove them."""

    __test__: ClassVar[bool] = False
    name: ClassVar[str] = "tests"
    ids: tuple[str, ...] = setting(..., "pytest ids, from the project's root")

    def judge(self, seen: Seen) -> Outcome:
        root = project()
        if root is None:
            return Outcome(UNTRIED, None, "the tests are not beside this installation; run from the project's folder")
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-o",
                "addopts=--import-mode=importlib -q",
                "-p",
                "no:cacheprovider",
                "-rs",
                *self.ids,
            ],
            cwd=root,
            capture_output=True,
            text=True,
        )
        tail = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1]
        skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
        if done.returncode == 0 and skipped:
            return Outcome(UNTRIED, None, f"skipped: {skipped[0].partition(': ')[2] or skipped[0]}")
        return Outcome(MET if done.returncode == 0 else MISSED, None, tail.strip("= "))


class Figure(Check):
    """A mean between bounds; with `over`, as percent of that entry's mean."""

    name: ClassVar[str] = "figure"
    low: float | None = setting(None, "at least")
    high: float | None = setting(None, "at most")

    def judge(self, seen: Seen) -> Outcome:
        from . import statistics

        low = high = None
        if self.probe:
            assert seen.grid is not None
            value = float(seen.probe(self.probe, seen.grid.data[0])[self.metric])
        elif self.bench:
            found = self.rows(seen)
            if not found:
                return Outcome(UNTRIED, None, f"benchmark {self.bench} gave no row {self.entry!r}")
            value = float(found[0][self.metric or "ratio"])
        else:
            values = list(self.values(seen, self.entry).values())
            if not values:
                return Outcome(MISSED, None, "no score of that kind")
            span = statistics.interval(values, overlap_of(seen))
            assert span.mean is not None
            value, low, high = span.mean, span.low, span.high
            if self.over:
                other = list(self.values(seen, self.over).values())
                base = sum(other) / len(other)
                value, low, high = 100 * value / base, None, None
        held = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        bounds = " and ".join(
            ([f"at least {self.low:g}"] if self.low is not None else [])
            + ([f"at most {self.high:g}"] if self.high is not None else [])
        )
        return Outcome(MET if held else MISSED, value, f"{value:.4g} (wanted: {bounds or 'no bound'})", low, high)


class Beats(Check):
    """Paired: the lower end of the interval of the difference is at least `by` (of the other's mean, where relative)."""

    name: ClassVar[str] = "beats"
    by: float = setting(0.0, "how much better, in the metric's unit; negative: not worse by more")
    relative: bool = setting(False, "`by` is a share of the other's mean")

    def judge(self, seen: Seen) -> Outcome:
        found, base = difference(self, seen)
        if found.mean is None or found.low is None:
            return Outcome(MISSED, found.mean, f"difference {found.mean} from {found.n} pairs: no interval")
        wanted = self.by * abs(base) if self.relative else self.by
        says = f"{found.mean:+.4g} (95 % {found.low:+.4g} to {found.high:+.4g}, {found.n} pairs; wanted at least {wanted:+.4g})"
        return Outcome(MET if found.low >= wanted else MISSED, found.mean, says, found.low, found.high)


class Same(Check):
    """Equivalence: the difference lies within a margin (two one-sided tests at 0.05)."""

    name: ClassVar[str] = "same"
    within: float = setting(..., "margin in the metric's unit", gt=0)

    def judge(self, seen: Seen) -> Outcome:
        from . import statistics

        found, _ = difference(self, seen)
        p = statistics.equivalence(found, self.within, overlap_of(seen))
        if found.mean is None or p is None:
            return Outcome(MISSED, found.mean, f"{found.n} pairs: equivalence cannot be tested")
        says = f"{found.mean:+.4g} from {found.n} pairs, equivalence within ±{self.within:g}: p = {p:.3g}"
        return Outcome(MET if p < statistics.ALPHA else MISSED, found.mean, says, found.low, found.high)


class Trend(Check):
    """Slope, exponent or rank correlation of the score (with `over`: of the gain over it) along a sweep or a coordinate."""

    name: ClassVar[str] = "trend"
    along: str = setting(..., "a swept field, a coordinate of the scores, or a column of the benchmark")
    stat: Literal["slope", "exponent", "spearman"] = setting(..., "what is measured")
    low: float | None = setting(None, "at least")
    high: float | None = setting(None, "at most")

    def judge(self, seen: Seen) -> Outcome:
        from . import statistics

        x, y = self._points(seen)
        if len(x) < 3:
            return Outcome(MISSED, None, f"{len(x)} points: too few for a trend")
        found = statistics.exponent(x, y) if self.stat == "exponent" else statistics.trend(x, y)
        value = found.rho if self.stat == "spearman" else found.slope
        if value is None:
            return Outcome(MISSED, None, "no trend: x or y does not vary")
        held = (self.low is None or value >= self.low) and (self.high is None or value <= self.high)
        shown = ", ".join(f"{a:g}: {b:.4g}" for a, b in zip(x[:8], y[:8], strict=True))
        return Outcome(MET if held else MISSED, value, f"{self.stat} {value:.3g} over {len(x)} points ({shown})")

    def _points(self, seen: Seen) -> tuple[list[float], list[float]]:
        if self.bench:
            rows = [r for r in self.rows(seen) if self.along in r]
            return [float(r[self.along]) for r in rows], [float(r[self.metric]) for r in rows]
        assert seen.grid is not None
        swept = dict(seen.grid.sweep)
        if self.along in swept:
            x, y = [], []
            for at in swept[self.along]:
                mine = self.values(seen, self.entry, {self.along: at})
                mean = sum(mine.values()) / len(mine)
                if self.over:
                    other = self.values(seen, self.over, {self.along: at})
                    mean -= sum(other.values()) / len(other)
                x.append(float(at))
                y.append(mean)
            return x, y
        points: dict[float, list[float]] = {}
        for _, result in cells_of(seen, self.entry):
            for score in result.scores:
                if score.metric == self.metric and score.value is not None and self.along in score.at:
                    points.setdefault(float(score.at[self.along]), []).append(score.value)
        return list(points), [sum(v) / len(v) for v in points.values()]


class Sooner(Check):
    """Steps to a level (a number, or another entry's final value): at most 1 / `times` of the other's."""

    name: ClassVar[str] = "sooner"
    level: float | str = setting(..., "a number, or the entry whose final value it is")
    unit: Literal["step", "evaluation"] = setting("step", "what is counted")
    times: float = setting(..., "how many times sooner", gt=0)
    rising: bool = setting(True, "the curve rises towards the level")

    def judge(self, seen: Seen) -> Outcome:
        other = self.over or (self.level if isinstance(self.level, str) else "")
        ratios = []
        mine, theirs = cells_of(seen, self.entry), {(c.fold, c.seed): r for c, r in cells_of(seen, other)}
        for cell, result in mine:
            rival = theirs.get((cell.fold, cell.seed))
            if rival is None or self.metric not in result.curve or self.metric not in rival.curve:
                continue
            goal = float(self.level) if not isinstance(self.level, str) else rival.curve[self.metric][-1][1]
            last = rival.curve[self.metric][-1][0] + 1
            sign = 1 if self.rising else -1
            reached = next((s + 1 for s, v in result.curve[self.metric] if sign * v >= sign * goal), math.inf)
            ratios.append(last / reached)
        if not ratios:
            return Outcome(MISSED, None, f"no curve {self.metric!r} of both entries")
        worst = min(ratios)
        says = f"{', '.join(f'{r:.2f}' for r in ratios)} times sooner (wanted at least {self.times:g}; the worst counts)"
        return Outcome(MET if worst >= self.times else MISSED, worst, says)


class Race(Check):
    """Seconds or bytes, both sides in one process: a ratio of a benchmark."""

    name: ClassVar[str] = "race"
    times: float = setting(..., "ratio of the peer's to ours, at least", gt=0)

    def judge(self, seen: Seen) -> Outcome:
        found = self.rows(seen)
        if not found:
            return Outcome(UNTRIED, None, f"benchmark {self.bench} gave no row {self.entry!r}")
        row = found[0]
        ratio = float(row["ratio"])
        says = f"{ratio:.3g} times against {row.get('peer', 'its peer')} (wanted at least {self.times:g})"
        return Outcome(MET if ratio >= self.times else MISSED, ratio, says)


class Claim(Value):
    """A sentence, the paper's figure and where it stands, and the check that says whether it holds here."""

    noun: ClassVar[str] = "claim"
    name: ClassVar[str] = "claim"
    id: str = setting(..., "unique within the paper")
    level: Literal["E0", "E1", "E2", "E3"] = setting(..., "the evidence level that it shows when met")
    says: str = setting(..., "the sentence")
    where: str = setting("", "where it stands in the paper")
    mark: Literal["abs", "paper", "repo", "recall", "ours"] = setting(..., "how sure the figure is")
    paper: float | None = setting(None, "the paper's figure, in the metric's unit")
    grid: Grid | None = setting(None, "what is run")
    check: Check | None = setting(None, "what is looked at")
    blocked: str = setting("", "why it cannot be tried where the project runs")
    hours: float = setting(0.0, "about how many hours it takes on one core, where it is hours", ge=0, late=True)

    @property
    def long(self) -> str:
        """How long it takes, where that is hours."""
        return f"about {self.hours:g} h on one core" if self.hours else ""

    @property
    def unrun(self) -> str:
        """What stands in the place of a figure before there is one."""
        return self.blocked or (f"not run: takes {self.long}" if self.long else "not run yet")


def claims_of(paper: registry.Paper) -> list[Claim]:
    """The claims of a paper, checked; their ids are unique."""
    found = [Claim.make(item) for item in paper.facts.get("claims", ())]
    ids = [c.id for c in found]
    if len(set(ids)) < len(ids):
        raise UserError(f"{paper.path}: a claim's id stands twice")
    for claim in found:
        if claim.check is None and not claim.blocked:
            raise UserError(f"{paper.path}: claim {claim.id} has neither a check nor a reason why it cannot be tried")
    return found


def measure(
    claim: Claim, runs: str, options: Options = Options(), *, jobs: int = 1,
    on_done: Callable[[Cell, Result, int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a claim and say whether it holds, with what is needed to run it again."""
    started = time.monotonic()
    cells: Pairs = ()
    if claim.blocked or claim.check is None:
        outcome = Outcome(UNTRIED, None, claim.blocked)
    else:
        try:
            if claim.grid is not None and not claim.check.probe and not claim.check.bench:
                cells = run_grid(claim.grid, runs, options, jobs=jobs, on_done=on_done)
            outcome = claim.check.judge(Seen(claim.grid, cells, benchmark, _probe))
        except Failure as reason:  # cells that did not finish show nothing
            outcome = Outcome(MISSED, None, str(reason))
        except UserError as reason:
            if "LATTICEWORK_DATA" not in str(reason):
                raise
            outcome = Outcome(UNTRIED, None, str(reason))
    from latticework import __version__

    return {
        **outcome._asdict(),
        "claim": claim.key(late=False),
        "seconds": round(time.monotonic() - started, 1),
        "fit seconds": round(sum(r.cost.fit_s + r.cost.refs_s for _, r in cells), 1),
        "cells": len(cells),
        "provenance": {
            "version": __version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            **{
                key: sorted({str(r.provenance[key]) for _, r in cells})
                for key in ("torch", "digest", "device", "threads", "seed")
            },
        },
    }


def record(paper: registry.Paper, measured: Mapping[str, Any]) -> Path:
    """Write what was measured beside the claims; other claims' records stay."""
    path = paper.path.with_suffix(".json")
    kept = recorded(paper) | dict(measured)
    known = {c.id for c in claims_of(paper)}
    kept = {key: value for key, value in kept.items() if key in known}
    write_whole(path, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    return path


def recorded(paper: registry.Paper) -> dict[str, Any]:
    path = paper.path.with_suffix(".json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def evidence_rows(paper: registry.Paper) -> list[dict[str, Any]]:
    """Claims with what was measured: the paper's figure beside ours. A record of another claim of the same id does not count."""
    found = recorded(paper)
    rows = []
    for claim in claims_of(paper):
        item = found.get(claim.id)
        if item is not None and item["claim"] != claim.key(late=False):
            item = None
        rows.append(
            {
                "id": claim.id, "level": claim.level, "says": claim.says, "where": claim.where, "mark": claim.mark,
                "paper": "–" if claim.paper is None else f"{claim.paper:g} [{claim.mark}]",
                "measured": claim.unrun if item is None else item["says"],
                "verdict": (UNTRIED if claim.blocked else "not run yet") if item is None else item["verdict"],
            }
        )  # fmt: skip
    return rows


def levels(paper: registry.Paper) -> dict[str, tuple[int, int]]:
    """Level -> (claims met, claims in all), by the records."""
    counts: dict[str, tuple[int, int]] = {}
    for row in evidence_rows(paper):
        met, total = counts.get(row["level"], (0, 0))
        counts[row["level"]] = (met + (row["verdict"] == MET), total + 1)
    return counts


def difference(check: Check, seen: Seen) -> tuple[Any, float]:
    """The paired difference entry - over, positive is better, and the other's mean."""
    from . import statistics

    assert seen.grid is not None
    mine, theirs = check.values(seen, check.entry), check.values(seen, check.over)
    pairs: list[tuple[float, float]] = []
    for place in dict.fromkeys(k[:2] for k in mine):
        ours = {k[2]: v for k, v in mine.items() if k[:2] == place}
        others = {k[2]: v for k, v in theirs.items() if k[:2] == place}
        if len(ours) == 1 or len(others) == 1:  # a method without chance stands for all seeds of its fold
            pairs += [(x, y) for x in ours.values() for y in others.values()]
        else:
            pairs += [(ours[seed], others[seed]) for seed in ours if seed in others]
    case = seen.grid.cases()[0]
    better = case.task.metric(check.metric or case.task.headline_metric).better
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    return statistics.paired(a, b, better, overlap_of(seen)), sum(b) / max(len(b), 1)


def overlap_of(seen: Seen) -> float | None:
    """Test over train size where folds overlap, for the corrected variance."""
    assert seen.grid is not None
    case = seen.grid.cases()[0]
    return case.task.overlap(case.data)


def project() -> Path | None:
    """The project's folder, where this is a checkout."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "tests").is_dir() and (root / "benchmarks").is_dir() else None


_ran: dict[str, list[dict[str, Any]]] = {}


def benchmark(name: str) -> list[dict[str, Any]]:
    """The rows of ``benchmarks/<name>.py``, run once in a process."""
    root = project()
    if root is None or not (root / "benchmarks" / f"{name}.py").is_file():
        return []
    if name not in _ran:
        folder = str(root / "benchmarks")
        sys.path.insert(0, folder)  # they share blocks, and their processes find them by name
        try:
            _ran[name] = importlib.import_module(name).run()
        finally:
            sys.path.remove(folder)
    return _ran[name]


def _probe(text: str, data: str) -> Mapping[str, Any]:
    from .dataset import open_data
    from .run import Run

    given = open_data(data)
    value: Any = registry.value_of("probe", text)
    run = Run(task=None, digest=given.digest(), label=text)
    with run.seeded():
        scalars: Mapping[str, Any] = value.measure(given, run).scalars
    return scalars
