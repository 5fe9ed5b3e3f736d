"""Leaderboards: what a grid's cells say, under honest statistics, as JSON, CSV, Markdown, LaTeX, text and a report.

A row is one entry on one case (data set x task). Its mean is over repeats with a 95 % interval, and it is compared, pair
by pair, with the best of the baselines that came unasked. All rows of a case share Holm's correction.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import statistics
from .errors import UserError
from .grid import Case, Cell, Grid
from .ledger import Ledger, write_whole
from .method import Method
from .result import Result

MARGIN = 0.01  # of the best baseline's mean: what counts as no difference, unless a margin is given
CURVE_REPEATS = 1
COSTS = ("fit_s", "refs_s", "predict_s", "peak_bytes", "parameters")

Found = list[tuple[Cell, Result]]


class Row(NamedTuple):
    """One entry on one case."""

    label: str
    name: str
    unasked: bool
    baseline: bool  # the best of those unasked, which the others are compared with
    chance: bool
    planned: int
    n: int
    mean: float | None
    low: float | None
    high: float | None
    sd: float | None
    values: dict[str, float]  # "fold/seed" -> headline
    rank: int | None  # none where fits were stopped
    among: tuple[int, int] | None  # the ranks it may have, as far as pairwise tests tell rows apart
    verdict: str  # baseline, better, worse, tied, unsure, stopped, failed, none
    sentence: str
    difference: float | None  # to the best baseline; positive is better
    difference_low: float | None
    difference_high: float | None
    pairs: int
    p: float | None
    p_holm: float | None
    detectable: float | None
    more: int | None
    metrics: dict[str, float]
    costs: dict[str, float]
    alone: bool  # nothing else ran beside any of its cells, so its seconds are its own
    failures: list[dict[str, Any]]
    stopped: int
    missing: int
    points: list[dict[str, Any]]
    slices: list[dict[str, Any]]
    curves: dict[str, list[list[float]]]
    cells: list[str]
    notes: list[str]
    chosen: list[str]
    withheld: list[str]  # scores that are none, and why


class CaseBoard(NamedTuple):
    """One data set under one task."""

    label: str
    data: dict[str, Any]
    task: dict[str, Any]
    metric: str
    unit: str
    better: Literal["higher", "lower"]
    overlap: float | None
    margin: float | None
    baseline: str | None
    absent: list[str]  # baselines that give no evidence here: stopped, failed or not run yet
    repeats: int
    rows: list[Row]
    provenance: dict[str, list[Any]]


class Overall(NamedTuple):
    """Several data sets under one task."""

    task: str
    metric: str
    cases: list[str]
    ranks: statistics.Ranks
    left_out: list[str]


class Board(NamedTuple):
    """A leaderboard. `findings` is what models said about themselves: case -> row label -> findings of the first repeat."""

    command: str
    grid: dict[str, Any]
    cases: list[CaseBoard]
    overall: list[Overall]
    findings: dict[str, dict[str, dict[str, Any]]]

    @classmethod
    def of(
        cls,
        grid: Grid,
        pairs: Iterable[tuple[Cell, Result]],
        ledger: Ledger,
        command: str = "",
        *,
        cases: Sequence[Case] | None = None,
        margin: float | None = None,
    ) -> Board:
        """Gather the cells of a grid; `margin` is what counts as no difference, in the headline's unit."""
        if margin is not None and not (margin >= 0 and math.isfinite(margin)):
            raise UserError(f"the margin is {margin}; give a number of the headline's unit, zero or above")
        by_case: dict[str, Found] = {}
        for cell, result in pairs:
            by_case.setdefault(_case_key(cell.data, cell.task), []).append((cell, result))
        boards: list[CaseBoard] = []
        findings: dict[str, dict[str, dict[str, Any]]] = {}
        for case in grid.cases() if cases is None else cases:
            found = by_case.get(_case_key(case.data.plain(), case.task.plain()), [])
            board = _case_board(case, found, margin)
            boards.append(board)
            said = {}
            for row in board.rows:
                first = next((what for what in (ledger.findings(cell) for cell in row.cells) if what), None)
                if first:
                    said[row.label] = first
            if said:
                findings[board.label] = said
        return cls(command, grid.plain(), boards, _overall(boards), findings)

    # -- forms -----------------------------------------------------------------------------------------------------
    def plain(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "command": self.command,
            "grid": self.grid,
            "cases": [{**case._asdict(), "rows": [row._asdict() for row in case.rows]} for case in self.cases],
            "overall": [{**item._asdict(), "ranks": item.ranks._asdict()} for item in self.overall],
            "findings": self.findings,
        }

    def json(self) -> str:
        return json.dumps(self.plain(), indent=1, allow_nan=False, ensure_ascii=False)

    def csv(self) -> str:
        """One line a row and repeat-free: the means, the comparison and the costs."""
        out = io.StringIO()
        metrics = sorted({m for case in self.cases for row in case.rows for m in row.metrics})
        writer = csv.writer(out, lineterminator="\n")
        plain = (
            "rank", "label", "name", "unasked", "baseline", "n", "planned", "mean", "low", "high", "sd", "difference",
            "difference_low", "difference_high", "p", "p_holm", "detectable", "verdict", "sentence", "stopped", "missing",
        )  # fmt: skip
        writer.writerow(["case", "metric", "unit", *plain, "failed", *COSTS, *(f"metric:{m}" for m in metrics)])
        for case in self.cases:
            for row in case.rows:
                fields = row._asdict()
                writer.writerow(
                    [
                        case.label, case.metric, case.unit, *(_cell(fields[k]) for k in plain), len(row.failures),
                        *(_cell(row.costs.get(k)) for k in COSTS), *(_cell(row.metrics.get(m)) for m in metrics),
                    ]
                )  # fmt: skip
        return out.getvalue()

    def markdown(self) -> str:
        parts = []
        for case in self.cases:
            head, rows = _display(case)
            parts += [f"### {_markdown(case.label)}", "", "| " + " | ".join(map(_markdown, head)) + " |"]
            parts.append("|" + "|".join("---" if i in (1, len(head) - 1) else "--:" for i in range(len(head))) + "|")
            parts += ["| " + " | ".join(map(_markdown, row)) + " |" for row in rows]
            parts += ["", _markdown(reading(case)), ""]
        for item in self.overall:
            parts += [
                f"### {_markdown(item.task)} over {item.ranks.sets} data sets",
                "",
                "| method | average rank |",
                "|---|--:|",
            ]
            parts += [f"| {_markdown(name)} | {rank:.2f} |" for name, rank in _ranked(item.ranks)]
            parts += ["", _markdown(reading_ranks(item)), ""]
        if self.command:
            fence = "`" * 3
            parts += [fence, self.command, fence, ""]
        return "\n".join(parts)

    def latex(self) -> str:
        r"""Tables for ``\usepackage{booktabs}``."""
        parts = [r"% needs \usepackage{booktabs}"]
        for case in self.cases:
            head, rows = _display(case)
            columns = "".join("l" if i in (1, len(head) - 1) else "r" for i in range(len(head)))
            parts += [
                r"\begin{table}", r"\centering", rf"\caption{{{_latex(case.label)}. {_latex(reading(case))}}}",
                rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(_latex, head)) + r" \\", r"\midrule",
                *(" & ".join(map(_latex, row)) + r" \\" for row in rows), r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
            ]  # fmt: skip
        for item in self.overall:
            parts += [
                r"\begin{table}", r"\centering",
                rf"\caption{{{_latex(item.task)} over {item.ranks.sets} data sets. {_latex(reading_ranks(item))}}}",
                r"\begin{tabular}{lr}", r"\toprule", r"method & average rank \\", r"\midrule",
                *(rf"{_latex(name)} & {rank:.2f} \\" for name, rank in _ranked(item.ranks)),
                r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
            ]  # fmt: skip
        return "\n".join(parts)

    def text(self) -> str:
        """Plain aligned rows."""
        lines = []
        for case in self.cases:
            head, rows = _display(case)
            widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
            left = (1, len(head) - 1)
            lines.append(case.label)
            for row in [head, *rows]:
                cells = (t.ljust(w) if i in left else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True)))
                lines.append(("  " + "  ".join(cells)).rstrip())
            lines += [reading(case), ""]
        for item in self.overall:
            lines.append(f"{item.task}: average ranks over {item.ranks.sets} data sets")
            lines += [f"  {rank:5.2f}  {name}" for name, rank in _ranked(item.ranks)]
            lines += [reading_ranks(item), ""]
        return "\n".join(lines).rstrip() + "\n"

    def table(self) -> Any:
        """What a terminal shows: a `rich.table.Table` for one case, a group of tables for several."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        tables = []
        for case in self.cases:
            head, rows = _display(case)
            table = Table(title=Text(case.label), caption=Text(reading(case)), title_justify="left", caption_justify="left")
            for i, name in enumerate(head):
                table.add_column(Text(name), justify="left" if i in (1, len(head) - 1) else "right")
            for shown, row in zip(rows, case.rows, strict=True):
                style = {"better": "green", "worse": "red", "failed": "red"}.get(row.verdict, "")
                table.add_row(*map(Text, shown[:-1]), Text(shown[-1], style=style))
            tables.append(table)
        for item in self.overall:
            caption = Text(reading_ranks(item))
            table = Table("method", "average rank", title=Text(f"{item.task} over {item.ranks.sets} data sets"), caption=caption)
            for name, rank in _ranked(item.ranks):
                table.add_row(Text(name), f"{rank:.2f}")
            tables.append(table)
        return tables[0] if len(tables) == 1 else Group(*tables)

    def html(self) -> str:
        from .report import html

        return html(self)

    def report(self, path: str | Path) -> Path:
        """Write the HTML report."""
        write_whole(Path(path), self.html())
        return Path(path)

    def write(self, path: str | Path) -> Path:
        """Write in the form that the ending names: .html, .json, .csv, .md, .tex or .txt."""
        forms = {
            ".html": self.html, ".json": self.json, ".csv": self.csv, ".md": self.markdown, ".tex": self.latex,
            ".txt": self.text,
        }  # fmt: skip
        form = forms.get(Path(path).suffix.lower())
        if form is None:
            raise UserError(f"{path}: a board is written as {', '.join(forms)}; choose one of these endings")
        write_whole(Path(path), form())
        return Path(path)


# -- gathering -----------------------------------------------------------------------------------------------------------
def _case_key(data: Mapping[str, Any], task: Mapping[str, Any]) -> str:
    return json.dumps([data, task], sort_keys=True)


def _case_board(case: Case, found: Found, margin: float | None) -> CaseBoard:
    task = case.task
    metric = task.metric(task.headline_metric)
    overlap = task.overlap(case.data)
    of_entry: dict[str, Found] = {}
    for cell, result in found:
        of_entry.setdefault(cell.entry, []).append((cell, result))
    entries = {label: (method, unasked) for label, method, unasked in case.entries}
    values = {label: _values(of_entry.get(label, []), stopped=True) for label in entries}
    evidence = {label: _values(of_entry.get(label, []), stopped=False) for label in entries}
    whole = {label: bool(evidence[label]) and len(evidence[label]) == len(values[label]) for label in entries}
    spans = {label: statistics.interval(list(values[label].values()), overlap) for label in entries}
    turn = 1.0 if metric.better == "higher" else -1.0

    baselines = _baselines(case, entries)
    standing = [label for label in baselines if whole[label]]
    absent = [label for label in baselines if not whole[label]]
    best = max(standing, key=lambda label: turn * _known(spans[label].mean), default=None)
    if margin is None and best is not None:
        margin = MARGIN * abs(_known(spans[best].mean)) or None

    others = [label for label in entries if label != best and whole[label] and best is not None]
    compared = {label: _compare(label, str(best), entries, evidence, metric.better, overlap) for label in others}
    corrected = dict(zip(others, statistics.holm([compared[label].p for label in others]), strict=True))
    tested = sum(found.p is not None for found in compared.values())
    among = _among([label for label in entries if whole[label]], entries, evidence, metric.better, overlap)
    position = _positions({label: turn * _known(span.mean) for label, span in spans.items() if whole[label]})

    rows = []
    for label, (method, unasked) in entries.items():
        cells = of_entry.get(label, [])
        span = spans[label]
        planned = len({(fold, seed if method.chance else 0) for fold, seed in case.pairs})
        failures = [
            {
                "fold": c.fold,
                "seed": c.seed,
                "why": r.error or "no reason was recorded",
                "traceback": r.provenance.get("traceback", ""),
            }
            for c, r in cells
            if r.status == "failed"
        ]
        usable = [(c, r) for c, r in cells if r.status != "failed"]
        stopped = sum(r.status == "stopped" for _, r in cells)
        pair = compared.get(label)
        said = _say(
            label, best, pair, corrected.get(label), margin or 0.0, overlap, tested, entries, metric.unit,
            stopped=stopped, values=len(values[label]), failures=len(failures),
            finished=len(usable),
            absent=absent,
        )  # fmt: skip
        late = set(method.late_fields())
        rows.append(
            Row(
                label=label, name=next((r.facts["row"] for _, r in usable if r.facts.get("row")), label), unasked=unasked,
                baseline=label == best, chance=method.chance, planned=planned, n=span.n, mean=span.mean, low=span.low,
                high=span.high, sd=span.sd, values={f"{f}/{s}": v for (f, s), v in values[label].items()},
                rank=position.get(label), among=among.get(label), verdict=said[0], sentence=said[1],
                difference=pair.mean if pair else None, difference_low=pair.low if pair else None,
                difference_high=pair.high if pair else None, pairs=pair.n if pair else 0, p=pair.p if pair else None,
                p_holm=corrected.get(label),
                detectable=statistics.detectable(pair.sd, pair.n, overlap, statistics.ALPHA / max(tested, 1)) if pair else None,
                more=said[2], metrics=_metrics(usable, task.headline_metric), costs=_costs(usable),
                alone=all(r.cost.alone for _, r in usable), failures=failures, stopped=stopped,
                missing=max(planned - len(cells), 0), points=_points(usable), slices=_slices(usable, late),
                curves=_curves(usable), cells=[r.cell for _, r in usable], notes=_notes(usable), chosen=_chosen(usable, method),
                withheld=sorted({f"{s.metric}: {s.why}" for _, r in usable for s in r.scores if s.value is None and s.why}),
            )
        )  # fmt: skip
    rows.sort(key=lambda row: (row.mean is None, -turn * (row.mean or 0.0), row.label))
    return CaseBoard(
        case.label, case.data.plain(), task.plain(), metric.name, metric.unit, metric.better, overlap, margin, best, absent,
        len(case.pairs), rows, _provenance(found),
    )  # fmt: skip


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _values(found: Found, stopped: bool) -> dict[statistics.Key, float]:
    """(fold, seed) -> headline, of what is done (and, where asked, of what the clock cut short)."""
    wanted = ("done", "stopped") if stopped else ("done",)
    return {(c.fold, c.seed): r.headline for c, r in found if r.status in wanted and r.headline is not None}


def _baselines(case: Case, entries: Mapping[str, tuple[Method, bool]]) -> list[str]:
    """What came unasked; where the user asked for the task's baselines by name, those."""
    unasked = [label for label, (_, is_unasked) in entries.items() if is_unasked]
    if unasked:
        return unasked
    names = case.task.baselines(case.data.facts())
    return [label for label, (method, _) in entries.items() if _innermost(method).name in names]


def _innermost(method: Method) -> Method:
    """The method inside a tuning, which keeps its field's name `method`."""
    inner = getattr(method, "method", None)
    return _innermost(inner) if isinstance(inner, Method) else method


def _compare(
    a: str,
    b: str,
    entries: Mapping[str, tuple[Method, bool]],
    values: Mapping[str, Mapping[statistics.Key, float]],
    better: Literal["higher", "lower"],
    overlap: float | None,
) -> statistics.Paired:
    left, right = statistics.pair(values[a], values[b], entries[a][0].chance, entries[b][0].chance)
    return statistics.paired(left, right, better, overlap)


def _among(
    labels: Sequence[str],
    entries: Mapping[str, tuple[Method, bool]],
    values: Mapping[str, Mapping[statistics.Key, float]],
    better: Literal["higher", "lower"],
    overlap: float | None,
) -> dict[str, tuple[int, int]]:
    """The ranks that each row may have: rows that a Holm-corrected paired test does not tell apart may stand either way."""
    duels = [(a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]]
    found = [_compare(a, b, entries, values, better, overlap) for a, b in duels]
    ahead = dict.fromkeys(labels, 0)
    behind = dict.fromkeys(labels, 0)
    for (a, b), pair, p in zip(duels, found, statistics.holm([f.p for f in found]), strict=True):
        if p is not None and p < statistics.ALPHA and pair.mean:
            winner, loser = (a, b) if pair.mean > 0 else (b, a)
            ahead[loser] += 1
            behind[winner] += 1
    return {label: (1 + ahead[label], len(labels) - behind[label]) for label in labels}


def _positions(turned: Mapping[str, float]) -> dict[str, int]:
    """Ranks by mean, equal means (to rounding) sharing the better one."""
    if not turned:
        return {}
    from scipy.stats import rankdata

    ranks = rankdata([-float(f"{value:.12g}") for value in turned.values()], method="min")
    return {label: int(rank) for label, rank in zip(turned, ranks, strict=True)}


def _say(
    label: str,
    best: str | None,
    pair: statistics.Paired | None,
    p: float | None,
    margin: float,
    overlap: float | None,
    tested: int,
    entries: Mapping[str, tuple[Method, bool]],
    unit: str,
    *,
    stopped: int,
    values: int,
    failures: int,
    finished: int,
    absent: Sequence[str],
) -> tuple[str, str, int | None]:
    """Verdict, sentence and how many more repeats."""
    if not values:
        if failures:
            return "failed", "failed", None
        return "none", "finished, but without a score" if finished else "no result yet", None
    if label == best:
        return "baseline", "the best baseline", None
    if stopped:
        return "stopped", "stopped by the time limit: shown, no evidence", None
    if best is None:
        return "none", "no finished baseline to compare with", None
    assert pair is not None
    if not pair.n:
        return "unsure", f"cannot tell yet: no repeat in common with {best}", None
    repeatable = entries[label][0].chance or entries[best][0].chance
    said = statistics.verdict(
        pair, margin, p=p, ratio=overlap, comparisons=max(tested, 1), repeatable=repeatable, unit=unit
    )  # fmt: skip
    beside = f" (against {best} alone: {', '.join(absent)} did not finish)" if absent else ""
    return said.word, said.sentence + beside, said.more


def _at(at: Mapping[str, Any]) -> str:
    return json.dumps(dict(at), sort_keys=True, default=str)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _metrics(found: Found, headline: str) -> dict[str, float]:
    """Means of each metric's first score without a slice; the headline's own stands in the row."""
    gathered: dict[str, list[float]] = {}
    for _, result in found:
        seen = set()
        for score in result.scores:
            if score.metric == headline or score.metric in seen or score.at.get("slice") or score.value is None:
                continue
            seen.add(score.metric)
            gathered.setdefault(score.metric, []).append(score.value)
    return {name: _mean(values) for name, values in gathered.items()}


def _costs(found: Found) -> dict[str, float]:
    if not found:
        return {}
    return {name: _mean([float(getattr(r.cost, name)) for _, r in found]) for name in COSTS}


def _points(found: Found) -> list[dict[str, Any]]:
    """Scores at operating points and other coordinates that are no slices: at -> metric -> mean; nothing where there is one."""
    gathered: dict[str, tuple[dict[str, Any], dict[str, list[float]]]] = {}
    for _, result in found:
        for score in result.scores:
            if not score.at.get("slice") and score.value is not None:
                _, metrics = gathered.setdefault(_at(score.at), (dict(score.at), {}))
                metrics.setdefault(score.metric, []).append(score.value)
    if len(gathered) < 2:
        return []
    return [{"at": at, "metrics": {m: _mean(v) for m, v in metrics.items()}} for at, metrics in gathered.values()]


def _slices(found: Found, late: set[str]) -> list[dict[str, Any]]:
    """Scores of slices, averaged over repeats. Counts in `at` (how many nodes) differ by repeat and are averaged too."""
    gathered: dict[str, tuple[dict[str, Any], dict[str, list[float]], dict[str, list[float]]]] = {}
    for _, result in found:
        for score in result.scores:
            if not score.at.get("slice") or score.value is None:
                continue
            counts = {k: v for k, v in score.at.items() if k not in late and isinstance(v, int) and not isinstance(v, bool)}
            where = {k: v for k, v in score.at.items() if k not in counts}
            _, metrics, sizes = gathered.setdefault(_at(where), (where, {}, {}))
            metrics.setdefault(score.metric, []).append(score.value)
            for key, count in counts.items():
                sizes.setdefault(key, []).append(float(count))
    return [
        {"at": where, "metrics": {m: _mean(v) for m, v in metrics.items()}, "counts": {k: _mean(v) for k, v in sizes.items()}}
        for where, metrics, sizes in gathered.values()
    ]


def _curves(found: Found) -> dict[str, list[list[float]]]:
    """The first repeat's curves."""
    for _, result in found[:CURVE_REPEATS]:
        return {name: [[float(s), float(v)] for s, v in points] for name, points in result.curve.items() if points}
    return {}


def _notes(found: Found) -> list[str]:
    notes: dict[str, int] = {}
    for _, result in found:
        for note in result.facts.get("notes") or ():
            notes[str(note)] = notes.get(str(note), 0) + 1
    return [
        note if count == 1 or len(found) == 1 else f"{note} ({count} of {len(found)} repeats)" for note, count in notes.items()
    ]


def _chosen(found: Found, method: Method) -> list[str]:
    """Settings that tuning chose, where the fitted method is not the entry itself."""
    kept: dict[str, int] = {}
    for _, result in found:
        chosen = result.facts.get("chosen")
        if isinstance(chosen, Mapping) and dict(chosen) != method.plain():
            text = written(chosen)
            kept[text] = kept.get(text, 0) + 1
    return [f"{text} ({count} of {len(found)})" for text, count in kept.items()]


def written(value: Any) -> str:
    """A value's plain form on one line, as entries are written: ``name(field=value, …)``."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{k}={written(v)}" for k, v in value.items() if k != "is")
        return (f"{value['is']}({inner})" if inner else str(value["is"])) if "is" in value else f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _provenance(found: Found) -> dict[str, list[Any]]:
    """The distinct values of what stands beside the scores."""
    names = ("version", "torch", "python", "machine", "device", "precision", "threads", "digest", "fold", "seed")
    return {
        name: sorted(
            {r.provenance[name] for _, r in found if r.provenance.get(name) is not None}, key=lambda v: (str(type(v)), v)
        )
        for name in names
    }


def _overall(boards: Sequence[CaseBoard]) -> list[Overall]:
    """Average ranks for each task that has two data sets or more."""
    groups: dict[str, list[CaseBoard]] = {}
    for board in boards:
        groups.setdefault(json.dumps([board.task["is"], board.metric, board.better]), []).append(board)
    found = []
    for members in groups.values():
        sets = {json.dumps(board.data, sort_keys=True) for board in members}
        if len(sets) < 2 or len(sets) < len(members):  # a data set that stands here twice would count twice
            continue
        labels = list(dict.fromkeys(row.label for board in members for row in board.rows))
        means = [{row.label: None if row.stopped else row.mean for row in board.rows} for board in members]
        kept = [label for label in labels if all(m.get(label) is not None for m in means)]
        table = {label: [m[label] for m in means] for label in kept}
        if len(kept) < 2:
            continue
        ranks = statistics.ranks(table, members[0].better)
        left_out = [label for label in labels if label not in kept]
        found.append(Overall(str(members[0].task["is"]), members[0].metric, [b.label for b in members], ranks, left_out))
    return found


# -- words and numbers for people ----------------------------------------------------------------------------------------
def decimals(case: CaseBoard) -> int:
    """Decimals for a case's headline: two digits of the narrowest interval that has a width, at most six."""
    widths = [
        (row.high - row.low) / 2 for row in case.rows if row.low is not None and row.high is not None and row.high > row.low
    ]
    means = [abs(row.mean) for row in case.rows if row.mean]
    if widths:
        return min(max(1 - math.floor(math.log10(min(widths))), 0), 6)
    return min(max(3 - math.floor(math.log10(max(means))), 0), 6) if means else 3


def number(value: float | None, places: int | None = None) -> str:
    if value is None:
        return "–"
    text = f"{value:.{places}f}" if places is not None else f"{value:.4g}"
    return text.replace("-", "−") if float(text) != 0 else text.lstrip("-")


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    if value >= 90:
        return f"{value / 60:.1f} min"
    return f"{value:.3g} s" if value >= 0.001 or value == 0 else f"{value * 1000:.2g} ms"


def amount(value: float | None, unit: str = "") -> str:
    """A count with its prefix: 1.2 M; for bytes 1.2 MB."""
    if value is None:
        return "–"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g}{' ' + unit if unit else ''}"


def chance_of(p: float | None) -> str:
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def place(row: Row) -> str:
    """A rank that says its ties: 1, or 1 (1–3) where tests cannot tell it from the second and third."""
    if row.rank is None:
        return "–"
    if row.among is None or row.among[0] == row.among[1]:
        return str(row.rank)
    return f"{row.rank} ({row.among[0]}–{row.among[1]})"


def marks(row: Row) -> list[str]:
    """What must be said beside a name."""
    found = ["unasked"] if row.unasked else []
    if row.stopped:
        found.append(f"{row.stopped} stopped")
    if row.failures:
        found.append(f"{len(row.failures)} failed")
    if row.missing:
        found.append(f"{row.missing} missing")
    return found


def _display(case: CaseBoard) -> tuple[list[str], list[list[str]]]:
    places = decimals(case)
    unit = f" ({case.unit})" if case.unit else ""
    head = ["rank", "method", case.metric + unit, "95 % interval", "n", "vs baseline", "p (Holm)", "fit", "verdict"]
    rows = []
    for row in case.rows:
        beside = marks(row)
        span = f"{number(row.low, places)} to {number(row.high, places)}" if row.low is not None else "–"
        difference = number(row.difference, places)
        if row.difference is not None and row.difference > 0 and difference.strip("0.") != "":
            difference = "+" + difference
        rows.append(
            [
                place(row), row.name + (f" [{', '.join(beside)}]" if beside else ""), number(row.mean, places), span,
                str(row.n), difference, chance_of(row.p_holm), seconds(row.costs.get("fit_s")), row.sentence,
            ]
        )  # fmt: skip
    return head, rows


def reading(case: CaseBoard) -> str:
    """How the numbers of a case are to be read."""
    parts = [f"{case.metric}, {case.better} is better; mean over repeats with 95 % t interval"]
    if case.overlap:
        parts.append(f"variance corrected for overlapping folds (Nadeau-Bengio, test/train {case.overlap:.3g})")
    if case.baseline is not None:
        which = "best baseline that finished" if case.absent else "best baseline"
        parts.append(f"paired against the {which}, {case.baseline}; positive differences are better; Holm's correction")
        if case.margin:
            parts.append(f"tied means within ±{case.margin:.3g}{' ' + case.unit if case.unit else ''}")
        seen = [row.detectable for row in case.rows if row.detectable is not None]
        if seen:
            parts.append(f"smallest difference seen with power 0.8: {min(seen):.3g} to {max(seen):.3g}")
    return "; ".join(parts) + "."


def reading_ranks(item: Overall) -> str:
    ranks = item.ranks
    parts = [f"average rank by {item.metric}, 1 is best"]
    if ranks.p is not None:
        parts.append(f"Friedman p {chance_of(ranks.p)}")
    if ranks.critical is not None:
        parts.append(f"ranks nearer than {ranks.critical:.2f} are not told apart (Nemenyi, 0.05)")
    if item.left_out:
        parts.append(f"left out, not finished on every data set: {', '.join(item.left_out)}")
    return "; ".join(parts) + "."


def _ranked(ranks: statistics.Ranks) -> list[tuple[str, float]]:
    return sorted(zip(ranks.names, ranks.average, strict=True), key=lambda pair: pair[1]) if ranks.average else []


def _cell(value: Any) -> Any:
    return "" if value is None else repr(value) if isinstance(value, float) else value


def _markdown(text: str) -> str:
    for sign in ("\\", "|", "*", "_", "`", "<", ">", "[", "]"):
        text = text.replace(sign, "\\" + sign)
    return text.replace("\n", " ")


def _latex(text: str) -> str:
    table = {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
        "−": "$-$", "–": "--", "·": r"$\cdot$", "×": r"$\times$", "\n": " ",
    }  # fmt: skip
    return "".join(table.get(sign, sign) for sign in text)
