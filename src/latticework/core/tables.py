"""Boards that are kept: what a named grid measured, beside the evidence of the papers, and as a page for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .board import Board, CaseBoard, reading_ranks
from .ledger import write_whole
from .registry import Table


def record_table(table: Table, board: Board) -> Path:
    """Write what a board says, cell by cell finished; a partial board says so."""
    table.record.parent.mkdir(parents=True, exist_ok=True)
    write_whole(table.record, json.dumps(condensed(board), indent=1, sort_keys=True, allow_nan=False) + "\n")
    return table.record


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
            "name": row.name, "unasked": row.unasked, "n": row.n, "planned": row.planned, "mean": row.mean, "low": row.low,
            "high": row.high, "rank": row.rank, "verdict": row.verdict, "says": row.sentence, "difference": row.difference,
            "fit_s": row.costs.get("fit_s"), "refs_s": row.costs.get("refs_s"), "parameters": row.costs.get("parameters"),
            "failures": sorted({failure["why"] for failure in row.failures}), "chosen": row.chosen,
        }
        for row in case.rows
    ]  # fmt: skip
    return {"label": case.label, "metric": case.metric, "baseline": case.baseline, "rows": rows, "provenance": case.provenance}


def recorded_costs(table: Table) -> dict[tuple[str, str], float]:
    """Seconds of a cell by (data set, method), as the recorded board has them."""
    if not table.record.exists():
        return {}
    found = json.loads(table.record.read_text(encoding="utf-8"))
    costs = {}
    for case in found["cases"]:
        for row in case["rows"]:
            if row["fit_s"] is not None:
                once = row["n"] / row["planned"] if found["grid"]["tune_once"] else 1.0  # a search is paid for once a data set
                costs[case["label"], row["name"]] = row["fit_s"] + once * (row["refs_s"] or 0.0)
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
    lines += _standing(found["cases"])
    for item in found["ranks"]:
        ranked = sorted(zip(item["of"], item["average"], strict=True), key=lambda pair: pair[1])
        lines += ["## Average ranks", "", item["says"], "", "| method | average rank |", "|---|---|"]
        lines += [f"| {name} | {rank:.2f} |" for name, rank in ranked]
        lines += ["", f"Over {', '.join(item['on'])}.", ""]
    for case in found["cases"]:
        lines += [
            f"## {case['label']}",
            "",
            f"| method | {case['metric']} | 95 % interval | repeats | against {case['baseline']} | fit, s |",
        ]
        lines.append("|---|---|---|---|---|---|")
        for row in sorted(case["rows"], key=lambda r: -(r["mean"] if r["mean"] is not None else -1)):
            if row["mean"] is None:
                why = row["failures"][0] if row["failures"] else "not run yet"
                lines.append(f"| {row['name']} | – | – | {row['n']} of {row['planned']} | {why} | – |")
                continue
            interval = "–" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
            fit = "–" if row["fit_s"] is None else f"{row['fit_s']:.1f}"
            lines.append(
                f"| {row['name']} | {row['mean']:.3f} | {interval} | {row['n']} of {row['planned']} | {row['verdict']} | {fit} |"
            )
        lines.append("")
    return "\n".join(lines)


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
