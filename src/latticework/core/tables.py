"""Boards that are kept: what a named grid measured, beside the evidence of the papers, and as a page for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .board import MARGIN, Board, CaseBoard, reading_ranks
from .errors import UserError, nearest
from .evaluate import Options
from .grid import Cell, Grid, finished, key_of, once_tuned
from .ledger import Ledger, write_whole
from .registry import Table
from .result import Cost, Result, Score
from .statistics import holm, pair, paired, verdict
from .tuning import TunedOnce

FATES = {"better": "survives", "tied": "gone", "worse": "fails", "unsure": "not told yet"}
# Of a result's provenance what its cell does not tell.
WHERE = ("version", "torch", "python", "machine", "device", "precision", "threads")


def record_table(table: Table, board: Board, ledger: Ledger, options: Options = Options(), void: int = 0) -> Path:
    """Write what a board says, and beside it the finished cells that it rests on, for `resume`; a partial board says so.

    A board of fewer scored cells than the recorded one is refused, of another definition, too: its hours would be lost. `void`
    are recorded cells that do not count any more, since `resume` left them aside.
    """
    plain = condensed(board) | {"gains": gains(table, board)}
    if table.record.exists():
        before = json.loads(table.record.read_text(encoding="utf-8"))
        recorded, here = (sum(row["n"] for case in found["cases"] for row in case["rows"]) for found in (before, plain))
        if recorded - void > here:
            raise UserError(
                f"{table.name} is recorded with {recorded} finished cells, and here are {here}: not written; go on from what is "
                f"recorded with --resume, or delete {table.record} first"
            )
    write_whole(cells_path(table), _lines(kept_cells(Grid.make(table.grid), ledger, options)))
    write_whole(table.record, json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return table.record


def part_of(table: Table, on: Sequence[str] = (), entries: Sequence[str] = (), repeats: int | None = None) -> Grid:
    """A table's grid on some of its data sets, of some of its entries, on its first folds; its cells are the table's own.

    Baselines that come unasked are left out where entries are named.
    """
    grid = Grid.make(table.grid)
    for what, given, known in (("data set", on, grid.data), ("entry", entries, grid.entries)):
        for name in given:
            if name not in known:
                raise UserError(f"the table {table.name} has no {what} {name!r}; {nearest(name, known)}")
    return grid.but(
        data=tuple(dict.fromkeys(on)) or grid.data,
        entries=tuple(dict.fromkeys(entries)) or grid.entries,
        repeats=min(repeats or grid.repeats, grid.repeats),
        baselines=grid.baselines and not entries,
    )


def cells_path(table: Table) -> Path:
    """Where a recorded board keeps its cells."""
    return table.record.with_suffix(".cells.json")


def kept_cells(grid: Grid, ledger: Ledger, options: Options = Options()) -> list[dict[str, Any]]:
    """The finished cells of a grid, an item for each entry on each data set: what its search found, and each cell's
    headline, scores over all test items, and cost. Curves, slices and findings are left out, and cells that failed."""
    of_entry: dict[tuple[str, str, str], list[tuple[Cell, Result]]] = {}
    for cell, result in finished(grid, ledger, options):
        if result.status == "done":
            of_entry.setdefault((json.dumps(cell.data), json.dumps(cell.task), cell.entry), []).append((cell, result))
    items = []
    for case in grid.cases():
        for entry, method, _ in case.entries:
            found = of_entry.get((json.dumps(case.data.plain()), json.dumps(case.task.plain()), entry), [])
            search = None
            if isinstance(method, TunedOnce):
                key = method.search_key(options.precision)
                facts = ledger.choice(key)
                search = facts and {"key": key, **facts}
            if not found and search is None:
                continue
            item: dict[str, Any] = {"case": case.label, "entry": entry, "search": search, "cells": []}
            if search is None:
                item["chosen"] = found[0][1].facts.get("chosen")
            chosen = _chosen(item)
            if found:
                item["row"] = found[0][1].facts.get("row")
                item["where"] = {name: found[0][1].provenance.get(name) for name in WHERE}
            for cell, result in found:
                one: dict[str, Any] = {
                    "key": result.cell, "fold": cell.fold, "seed": cell.seed, "headline": result.headline,
                    "scores": [_lean(s) for s in result.scores if not s.at.get("slice")], "cost": _lean(result.cost),
                }  # fmt: skip
                where = {name: result.provenance.get(name) for name in WHERE}
                one |= {} if where == item["where"] else {"where": where}
                one |= {} if result.facts.get("chosen") == chosen else {"chosen": result.facts.get("chosen")}
                item["cells"].append(one)
            items.append(item)
    return items


def _chosen(item: Mapping[str, Any]) -> Any:
    """The method that an item's cells were fitted with, unless they say another."""
    return item["search"]["chosen"] if item["search"] else item["chosen"]


def _lean(value: Score | Cost) -> dict[str, Any]:
    """The fields that are not at their defaults."""
    return {
        name: held
        for name, held in value._asdict().items()
        if name not in value._field_defaults or held != value._field_defaults[name]
    }


def _lines(items: list[dict[str, Any]]) -> str:
    """JSON with an item a line."""
    return "[\n" + ",\n".join(json.dumps(item, sort_keys=True, allow_nan=False) for item in items) + "\n]\n"


def resume(table: Table, ledger: Ledger, options: Options = Options()) -> tuple[int, int]:
    """Put the recorded cells of a table, and what its searches found, into a ledger that lacks them.

    Returns how many cells were taken and how many of the recorded ones are of no cell that the table has now (data, settings,
    folds or a method's `revision` changed since). A method whose code changed without it keeps its cells.
    """
    path = cells_path(table)
    if not path.exists():
        return 0, 0
    grid, digests = Grid.make(table.grid), dict[str, str]()
    cells = {key_of(cell, options, digests): cell for cell in grid.cells()}
    methods = [method for case in grid.cases() for _, method, _ in case.entries]
    searches = {method.search_key(options.precision) for method in methods if isinstance(method, TunedOnce)}
    results, choices, other = [], {}, 0
    try:
        for item in json.loads(path.read_text(encoding="utf-8")):
            if item["search"] and item["search"]["key"] in searches:
                choices[item["search"]["key"]] = {name: item["search"][name] for name in ("chosen", "fit_s", "refs_s")}
            for one in item["cells"]:
                cell = cells.get(one["key"])
                if cell is None:
                    other += 1
                    continue
                where = {"digest": digests[repr(cell.data)], **one.get("where", item["where"])}
                provenance = {"task": cell.task, "data": cell.data, "method": cell.method, "fold": cell.fold, "seed": cell.seed}
                facts = {"chosen": one.get("chosen", _chosen(item)), "notes": [], "row": item["row"]}
                scores, cost = tuple(Score(**score) for score in one["scores"]), Cost(**one["cost"])
                results.append(Result(one["key"], "done", scores, one["headline"], cost, None, provenance | where, {}, facts))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); restore it, or delete it to begin anew") from None
    for key, facts in choices.items():
        if ledger.choice(key) is None:
            ledger.put_choice(key, facts)
    for result in results:
        if ledger.result(result.cell) is None:
            ledger.put_result(result)
    return len(results), other


def condensed(board: Board) -> dict[str, Any]:
    """The numbers of a board without its curves, answers and findings."""
    planned = sum(row.planned for case in board.cases for row in case.rows)
    missing = sum(row.missing for case in board.cases for row in case.rows)
    return {
        "command": board.command,
        "grid": board.grid,
        "cells": {"planned": planned, "finished": planned - missing},
        "cases": [_case(case) for case in board.cases],
        "ranks": [
            {
                "of": list(item.ranks.names),
                "average": list(item.ranks.average or ()),
                "on": item.cases,
                "says": reading_ranks(item),
            }
            for item in board.overall
        ],
    }


def _case(case: CaseBoard) -> dict[str, Any]:
    rows = [
        {
            "label": row.label, "name": row.name, "unasked": row.unasked, "n": row.n, "planned": row.planned, "mean": row.mean, "low": row.low,
            "high": row.high, "rank": row.rank, "verdict": row.verdict, "says": row.sentence, "difference": row.difference,
            "fit_s": row.costs.get("fit_s"), "refs_s": row.costs.get("refs_s"), "parameters": row.costs.get("parameters"),
            "failures": sorted({failure["why"] for failure in row.failures}), "chosen": row.chosen,
        }
        for row in case.rows
    ]  # fmt: skip
    return {"label": case.label, "metric": case.metric, "baseline": case.baseline, "rows": rows, "provenance": case.provenance}


def gains(table: Table, board: Board) -> list[dict[str, Any]]:
    """What the table's published gains come to, each on each of its data sets: survives, fails, is gone (tied) or is not told yet.

    A gain is the paired difference less `by`; its p value is Holm's over all gains of the table, and the margin of a tie is
    1 % of the opponent's mean, as on every board.
    """
    grid = Grid.make(table.grid)
    cases, tried = grid.cases(), []
    for gain in table.gains:
        for case, judged in zip(cases, board.cases, strict=True):
            if gain.get("on") and case.label.split(" · ")[0] not in gain["on"]:
                continue
            rows = {row.label: row for row in judged.rows}
            ours, theirs = (rows[grid.entry(case.task, case.data, gain[side], {}).row()] for side in ("entry", "over"))
            by = gain.get("by", 0.0) if judged.better == "higher" else -gain.get("by", 0.0)
            mine, other = ({_fold_and_seed(key): value for key, value in row.values.items()} for row in (ours, theirs))
            left, right = pair(mine, other, ours.chance, theirs.chance)
            found = paired(left, [value + by for value in right], judged.better, judged.overlap)
            tried.append((gain, judged, theirs, found))
    corrected = holm([found.p for *_, found in tried])
    said = []
    for (gain, judged, theirs, found), p in zip(tried, corrected, strict=True):
        told = verdict(
            found, MARGIN * abs(theirs.mean or 0.0), p=p, ratio=judged.overlap, comparisons=max(len(tried), 1), unit=judged.unit
        )
        fate = FATES[told.word]
        said.append(
            {
                "says": gain["says"], "entry": gain["entry"], "over": gain["over"], "by": gain.get("by", 0.0), "on": judged.label,
                "fate": fate, "difference": found.mean, "low": found.low, "high": found.high, "pairs": found.n, "sentence": told.sentence,
            }
        )  # fmt: skip
    return said


def _fold_and_seed(key: str) -> tuple[str, int]:
    fold, _, seed = key.rpartition("/")
    return fold, int(seed)


def recorded_costs(table: Table) -> dict[tuple[str, str], float]:
    """Seconds of a cell by (data set, method), as the recorded board has them."""
    if not table.record.exists():
        return {}
    found = json.loads(table.record.read_text(encoding="utf-8"))
    costs = {}
    for case in found["cases"]:
        for row in case["rows"]:
            if row["fit_s"] is not None:
                label = row.get("label", row["name"])
                fit_s, refs_s = row["fit_s"], row["refs_s"] or 0.0
                if found["grid"]["tune_once"]:  # a search is paid for once a data set
                    further = once_tuned(fit_s, refs_s, found["grid"]["tune"])
                    costs[case["label"], label] = (refs_s + (row["planned"] - 1) * further) / row["planned"]
                else:
                    costs[case["label"], label] = fit_s + refs_s
    return costs


def page(table: Table) -> str:
    """The recorded board as Markdown: a table a data set, average ranks, and how each method stands against the baselines."""
    lines = [f"# {table.name}", "", table.says, "", "```", f"latticework reproduce {table.name} --record", "```", ""]
    if not table.record.exists():
        return "\n".join([*lines, "Not run yet.", ""])
    found = json.loads(table.record.read_text(encoding="utf-8"))
    done, planned = found["cells"]["finished"], found["cells"]["planned"]
    if done < planned:
        lines += [f"**Partial: {done} of {planned} cells are finished.** Rows say how many repeats they rest on.", ""]
    lines += _fates(found.get("gains", []))
    lines += _standing(found["cases"])
    for item in found["ranks"]:
        ranked = sorted(zip(item["of"], item["average"], strict=True), key=lambda pair: pair[1])
        lines += ["## Average ranks", "", item["says"], "", "| method | average rank |", "|---|---|"]
        lines += [f"| {name} | {rank:.2f} |" for name, rank in ranked]
        lines += ["", f"Over {', '.join(item['on'])}.", ""]
    within = "search, s (once a data set)" if found["grid"]["tune_once"] else "fits within, s"
    for case in found["cases"]:
        head = ("method", case["metric"], "95 % interval", "repeats", f"against {case['baseline']}", "fit, s", within)
        lines += [f"## {case['label']}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in case["rows"]:  # as ranked
            if row["mean"] is None:
                why = row["failures"][0] if row["failures"] else "not run yet"
                lines.append(f"| {row['name']} | – | – | {row['n']} of {row['planned']} | {why} | – | – |")
                continue
            interval = "–" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
            fit, refs = ("–" if row[cost] is None else f"{row[cost]:.1f}" for cost in ("fit_s", "refs_s"))
            lines.append(
                f"| {row['name']} | {row['mean']:.3f} | {interval} | {row['n']} of {row['planned']} | {row['verdict']} | {fit} | {refs} |"
            )
        lines.append("")
    return "\n".join(lines)


def summary(table: Table) -> tuple[int, int, dict[str, int]]:
    """Of the recorded board: finished cells, planned cells, and how many published gains met each fate (gain x data set)."""
    if not table.record.exists():
        return 0, 0, {}
    found = json.loads(table.record.read_text(encoding="utf-8"))
    fates = [item["fate"] for item in found.get("gains", [])]
    return (
        found["cells"]["finished"],
        found["cells"]["planned"],
        {fate: fates.count(fate) for fate in FATES.values() if fate in fates},
    )


def _fates(said: list[dict[str, Any]]) -> list[str]:
    """Published gains and where they survive equal tuning on these folds."""
    if not said:
        return []
    lines = ["## Published gains", "", "| gain | survives | gone (tied) | fails | not told yet |", "|---|---|---|---|---|"]
    for gain in dict.fromkeys(item["says"] for item in said):
        mine = [item for item in said if item["says"] == gain]
        cells = []
        for fate in FATES.values():
            shown = []
            for item in mine:
                if item["fate"] == fate:
                    number = "" if item["difference"] is None else f" ({item['difference']:+.3f}, {item['pairs']} pairs)"
                    shown.append(item["on"] + number)
            cells.append(", ".join(shown) or "–")
        lines.append(f"| {gain} | " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "Paired differences less the gain that is asked for; p values are Holm's over all lines of this table.",
        "",
    ]


def _standing(cases: list[dict[str, Any]]) -> list[str]:
    """For each method: on how many data sets it is better than, tied with or worse than the best baseline."""
    counts: dict[str, dict[str, list[str]]] = {}
    for case in cases:
        for row in case["rows"]:
            if row["verdict"] in ("better", "worse", "tied", "unsure"):
                counts.setdefault(row["name"], {}).setdefault(row["verdict"], []).append(case["label"])
    if not counts:
        return []
    words = ("better", "tied", "unsure", "worse")
    lines = [
        "## Against the best tuned baseline",
        "",
        "| method | better | tied | cannot tell yet | worse |",
        "|---|---|---|---|---|",
    ]
    for name, told in sorted(counts.items(), key=lambda pair: (-len(pair[1].get("better", ())), pair[0])):
        lines.append(f"| {name} | " + " | ".join(", ".join(told.get(w, ())) or "–" for w in words) + " |")
    return [*lines, ""]
