"""The HTML report of a board: one file that opens offline, in light and dark, on a wide screen and on a phone.

Here stands what is shown and where (positions in per cent of a chart's width, so charts stretch while their text does
not); how it looks stands in ``report.html.j2``. Everything is escaped. Figures that models bring are put in as images, in
which nothing executes, and the page's content policy lets nothing load and only its own script run.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .board import (
    Board,
    CaseBoard,
    Overall,
    Row,
    amount,
    chance_of,
    decimals,
    marks,
    number,
    place,
    reading,
    reading_ranks,
    seconds,
    written,
)  # fmt: skip

CLIP = 3.0  # an axis leaves out a trivial baseline that would make it this many times as long
HEIGHT = 300  # of a plot, in px
COLOURS = 8
LABEL = 26  # letters of a name beside a point

SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector('button');
    if (!button) return;
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending';
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const key = row => row.cells[column].dataset.v;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === '' || y === '') return (x === '') - (y === '');
        const numeric = head.dataset.type === 'number';
        const order = numeric ? Number(x) - Number(y) : x.localeCompare(y);
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
"""


def html(board: Board) -> str:
    """The report as text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    labels = [case.label for case in board.cases]
    return str(
        template.render(
            title=", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "") if labels else "no data",
            command=board.command,
            cases=[_case(case, i, board.findings.get(case.label, {})) for i, case in enumerate(board.cases)],
            overall=[_overall(item, i) for i, item in enumerate(board.overall)],
            grid=[(name, _cell(value)) for name, value in board.grid.items() if name != "is" and value not in ([], (), None)],
            script=SCRIPT,
            script_digest=digest,
        )
    )


# -- one case ------------------------------------------------------------------------------------------------------------
def _case(case: CaseBoard, index: int, findings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    span = _span(case)
    return {
        "id": f"case-{index}",
        "label": case.label,
        "task": written(case.task),
        "data": written(case.data),
        "lede": lede(case),
        "reading": reading(case),
        "order": "descending" if case.better == "higher" else "ascending",
        "columns": _columns(case),
        "rows": [_row(case, row) for row in case.rows],
        "forest": _forest(case, span),
        "scatter": _scatter(case, span),
        "curves": _curves(case),
        "rate": _rate(case),
        "slices": _slices(case),
        "points": _points(case),
        "repeats": _repeats(case),
        "findings": [(label, _finding(found)) for label, found in findings.items()],
        "failures": _failures(case),
        "remarks": [(row.name, _remarks(row)) for row in case.rows if _remarks(row)],
        "provenance": [(_PROVENANCE[name], _listed(values)) for name, values in case.provenance.items() if values],
    }


_PROVENANCE = {
    "version": "latticework", "torch": "torch", "python": "Python", "machine": "machine", "device": "device",
    "precision": "precision", "threads": "threads", "digest": "SHA-256 of the data", "fold": "folds", "seed": "seeds",
}  # fmt: skip


def _failures(case: CaseBoard) -> list[dict[str, Any]]:
    """Failures of one method for one reason stand together, with the first traceback."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in case.rows:
        for failure in row.failures:
            item = found.setdefault(
                (row.name, failure["why"]),
                {"name": row.name, "why": failure["why"], "traceback": failure["traceback"], "at": []},
            )
            item["at"].append(f"fold {failure['fold']}, seed {failure['seed']}")
    return [{**item, "where": "; ".join(item["at"]), "count": len(item["at"])} for item in found.values()]


def _listed(values: Sequence[Any]) -> str:
    shown = [str(v) for v in values]
    return ", ".join(shown) if len(shown) <= 24 else f"{', '.join(shown[:20])} … {shown[-1]} ({len(shown)} in all)"


def _remarks(row: Row) -> list[str]:
    found = [f"tuning chose {text}" for text in row.chosen] + row.notes + [f"no value: {text}" for text in row.withheld]
    if row.stopped:
        found.append(f"{row.stopped} of {row.planned} repeats stopped by the time limit: shown, no evidence")
    if not row.alone:
        found.append("other work ran beside it, so its seconds are too many")
    return found


def lede(case: CaseBoard) -> str:
    """What the case says, in a sentence or two."""
    places = decimals(case)
    unit = f" {case.unit}" if case.unit else ""
    ranked = [row for row in case.rows if row.mean is not None]
    if not ranked:
        return "Nothing has a score yet."
    top = next((row for row in ranked if row.verdict != "stopped"), ranked[0])
    above = [row.name for row in ranked[: ranked.index(top)]]
    base = next((row for row in case.rows if row.baseline), None)
    text = f"{top.name} has the best mean{' of what finished' if above else ''}, {number(top.mean, places)}{unit}"
    if top.low is not None:
        text += f" ({number(top.low, places)} to {number(top.high, places)})"
    if base is None:
        return text + ". No baseline finished, so nothing can be said to be better than one."
    unfinished = f" {', '.join(case.absent)} did not finish and gives no evidence." if case.absent else ""
    others = [name for name in above if name not in case.absent]
    if others:
        unfinished += f" {', '.join(others)} has a better mean, but was stopped by the time limit."
    if top.baseline:
        text += ", and is the best baseline."
        untold = [row for row in ranked if row.verdict in ("tied", "unsure")]
        if untold:
            text += f" Not told apart from it: {', '.join(row.name for row in untold)}."
        return text + unfinished
    text += f". Against the best baseline{' that finished' if case.absent else ''}, {base.name} at {number(base.mean, places)}{unit}: "
    if top.verdict in ("better", "worse") and top.difference is not None and top.difference_low is not None:
        low, high = number(top.difference_low, places), number(top.difference_high, places)
        text += f"{top.verdict}, by {number(abs(top.difference), places)} ({low} to {high}; p {chance_of(top.p_holm)})."
    else:
        text += top.sentence + "."
    return text + unfinished


def _columns(case: CaseBoard) -> list[dict[str, str]]:
    unit = f", {case.unit}" if case.unit else ""
    found = [
        ("rank", "number", "by mean; in brackets the ranks that pairwise tests leave open"),
        ("method", "text", ""),
        (case.metric + unit, "number", f"mean over repeats; {case.better} is better"),
        ("95 % interval", "number", "t interval of the mean"),
        ("verdict", "text", "against the best baseline"),
        ("difference", "number", "to the best baseline, paired; positive is better"),
        ("p", "number", "paired t test after Holm's correction"),
        ("detectable", "number", "smallest difference that this many repeats see with power 0.8"),
        ("n", "number", "repeats with a value, of those planned"),
        *((name, "number", "mean over repeats") for name in _other_metrics(case)),
        ("fit", "number", "mean seconds of one fit"),
        ("+ refs", "number", "seconds of the trained things that it needs"),
        ("predict", "number", "seconds to answer the test part"),
        ("peak memory", "number", "while fitting"),
        ("parameters", "number", "numbers that the model holds"),
    ]
    return [{"name": name, "type": kind, "says": says} for name, kind, says in found]


def _other_metrics(case: CaseBoard) -> list[str]:
    return list(dict.fromkeys(name for row in case.rows for name in row.metrics))


def _row(case: CaseBoard, row: Row) -> dict[str, Any]:
    places = decimals(case)
    half = "–" if row.low is None else f"{number(row.low, places)} to {number(row.high, places)}"
    width = None if row.low is None or row.high is None else row.high - row.low
    signed = number(row.difference, places)
    if row.difference is not None and float(f"{row.difference:.{places}f}") > 0:
        signed = "+" + signed
    costs = row.costs
    cells = [
        (place(row), row.rank),
        (row.name, row.name),
        (number(row.mean, places), row.mean),
        (half, width),
        (row.sentence, row.sentence),
        (signed, row.difference),
        (chance_of(row.p_holm), row.p_holm),
        (number(row.detectable, places), row.detectable),
        (f"{row.n}" if row.n == row.planned else f"{row.n} of {row.planned}", row.n),
        *((number(row.metrics.get(name)), row.metrics.get(name)) for name in _other_metrics(case)),
        (seconds(costs.get("fit_s")), costs.get("fit_s")),
        (seconds(costs["refs_s"]) if costs.get("refs_s") else "–", costs.get("refs_s")),
        (seconds(costs.get("predict_s")), costs.get("predict_s")),
        (amount(costs["peak_bytes"], "B") if costs.get("peak_bytes") else "–", costs.get("peak_bytes") or None),
        (amount(costs.get("parameters")), costs.get("parameters")),
    ]
    return {
        "cells": [{"text": text, "v": "" if v is None else v} for text, v in cells],
        "marks": marks(row),
        "verdict": row.verdict,
        "baseline": row.baseline,
    }


# -- axes ----------------------------------------------------------------------------------------------------------------
def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) within an axis."""
    if not high > low:
        return [low]
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within an axis (low and high are logarithms); with fewer than three of them, 2 and 5 times as well."""
    whole = range(math.floor(low), math.ceil(high) + 1)
    tens = [float(e) for e in whole if low <= e <= high]
    if len(tens) >= 3:
        stride = math.ceil(len(tens) / 6)
        return tens[::stride]
    return [t for e in whole for t in (e, e + math.log10(2), e + math.log10(5)) if low <= t <= high]


def _padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - pad, high + pad


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 3)


def _short(value: float) -> str:
    return number(value).replace("+", "") if abs(value) < 1e4 else amount(value)


def _extent(row: Row) -> list[float]:
    return [v for v in (row.mean, row.low, row.high) if v is not None]


def _span(case: CaseBoard) -> tuple[float, float] | None:
    """The headline's axis. A baseline that would make it several times as long is left to stand at its edge."""
    everything = [v for row in case.rows for v in _extent(row)]
    if not everything:
        return None
    core = [row for row in case.rows if row.mean is not None and (row.baseline or not row.unasked)]
    kept = [v for row in core for v in _extent(row)]
    if len(core) > 1 and max(kept) > min(kept) and max(everything) - min(everything) > CLIP * (max(kept) - min(kept)):
        return _padded(kept)
    return _padded(everything)


# -- charts --------------------------------------------------------------------------------------------------------------
def _forest(case: CaseBoard, span: tuple[float, float] | None) -> dict[str, Any] | None:
    if span is None:
        return None
    low, high = span
    places = decimals(case)
    base = next((row for row in case.rows if row.baseline), None)
    rows = []
    for row in case.rows:
        if row.mean is None:
            continue
        shown = f"{number(row.mean, places)}"
        if row.low is not None:
            says = f"{row.name}: {shown}, {number(row.low, places)} to {number(row.high, places)}; {row.sentence}"
        else:
            says = f"{row.name}: {shown}, one value; {row.sentence}"
        beyond = "left" if row.mean < low else "right" if row.mean > high else ""
        rows.append(
            {
                "name": row.name, "marks": marks(row), "text": shown, "verdict": row.verdict, "says": says, "beyond": beyond,
                "at": _percent(min(max(row.mean, low), high), low, high),
                "low": None if row.low is None or beyond else max(_percent(row.low, low, high), 0.0),
                "high": None if row.high is None or beyond else min(_percent(row.high, low, high), 100.0),
                "dots": [_percent(v, low, high) for v in row.values.values() if low <= v <= high] if row.n > 1 else [],
            }
        )  # fmt: skip
    band = None
    if base is not None and base.mean is not None and case.margin:
        left, right = (min(max(_percent(base.mean + s * case.margin, low, high), 0), 100) for s in (-1, 1))
        band = {"x": left, "width": round(right - left, 3)}
    outside = [row["name"] for row in rows if row["beyond"]]
    return {
        "rows": rows,
        "base": None if base is None or base.mean is None else _percent(base.mean, low, high),
        "base_name": "" if base is None else base.name,
        "band": band,
        "margin": None if not case.margin else f"{case.margin:.3g}{' ' + case.unit if case.unit else ''}",
        "ticks": [{"at": _percent(t, low, high), "text": _short(t)} for t in ticks(low, high, 4)],
        "outside": outside,
        "unit": case.unit,
    }


def _scatter(case: CaseBoard, span: tuple[float, float] | None) -> dict[str, Any] | None:
    """Headline against seconds of fitting, Refs included; filled where nothing is both better and cheaper."""
    rows = [row for row in case.rows if row.mean is not None and row.costs]
    if span is None or len(rows) < 2:
        return None
    low, high = span
    spent = {row.label: row.costs["fit_s"] + row.costs["refs_s"] for row in rows}
    floor = max(min((s for s in spent.values() if s > 0), default=1e-3), 1e-4)
    logs = {label: math.log10(max(s, floor)) for label, s in spent.items()}
    left, right = _padded(list(logs.values()), 0.08)
    if right - left < 1:
        middle = (left + right) / 2
        left, right = middle - 0.5, middle + 0.5
    turn = 1 if case.better == "higher" else -1
    dots = []
    for row in rows:
        mean = row.mean or 0.0
        front = not any(
            turn * ((other.mean or 0.0) - mean) >= 0 and spent[other.label] <= spent[row.label] and
            (other.mean != row.mean or spent[other.label] != spent[row.label])
            for other in rows
        )  # fmt: skip
        x, y = _percent(logs[row.label], left, right), HEIGHT * (1 - _percent(min(max(mean, low), high), low, high) / 100)
        beyond = "" if low <= mean <= high else "up" if mean > high else "down"
        reach = None
        if row.low is not None and row.high is not None and not beyond:
            reach = [
                round(HEIGHT * (1 - _percent(min(max(v, low), high), low, high) / 100), 2) for v in (row.low, row.high)
            ]  # fmt: skip
        says = f"{row.name}: {number(mean, decimals(case))} after {seconds(spent[row.label])}"
        dots.append({
            "x": x, "y": round(y, 2), "reach": reach, "front": front, "beyond": beyond, "verdict": row.verdict,
            "label": _clipped(row.name), "says": says, "baseline": row.baseline,
        })  # fmt: skip
    _place_labels(dots)
    return {
        "height": HEIGHT, "dots": dots, "series": [],
        "yticks": [_ytick(t, low, high) for t in ticks(low, high)],
        "xticks": [{"at": _percent(t, left, right), "text": seconds(10**t)} for t in log_ticks(left, right)],
        "xlabel": "seconds to fit, trained references included (log scale)", "ylabel": _axis_name(case.metric, case.unit),
        "says": f"{case.metric} against seconds to fit for {len(rows)} methods",
    }  # fmt: skip


def _axis_name(metric: str, unit: str) -> str:
    return f"{metric} ({unit})" if unit else metric


def _ytick(t: float, low: float, high: float) -> dict[str, Any]:
    return {"at": round(HEIGHT * (1 - _percent(t, low, high) / 100), 2), "text": _short(t)}


def _clipped(name: str) -> str:
    return name if len(name) <= LABEL else name[: LABEL - 1] + "…"


def _place_labels(dots: list[dict[str, Any]]) -> None:
    """Put names beside points so that none lies on another, on a chart as narrow as a phone's."""
    narrow = 300.0
    taken: list[tuple[float, float, float, float]] = [
        (d["x"] / 100 * narrow - 6, d["y"] - 6, d["x"] / 100 * narrow + 6, d["y"] + 6) for d in dots
    ]  # fmt: skip
    for dot in sorted(dots, key=lambda d: d["y"]):
        long = 6.6 * len(dot["label"])
        x = dot["x"] / 100 * narrow
        best: tuple[float, tuple[float, float, float, float], str, float] | None = None
        for step, shift in enumerate((0, -14, 14, -26, 26, -38, 38, -50, 50)):
            for anchor in ("start", "end") if dot["x"] < 55 else ("end", "start"):
                left = x + 9 if anchor == "start" else x - 9 - long
                top = dot["y"] + shift - 8
                box = (left, top, left + long, top + 15)
                hits = sum(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in taken)
                out = max(-left, 0) + max(box[2] - narrow, 0) + max(-top, 0) + max(top + 15 - HEIGHT, 0)
                badness = 100.0 * hits + out + step * 2
                if best is None or badness < best[0]:
                    best = (badness, box, anchor, dot["y"] + shift)
        assert best is not None
        taken.append(best[1])
        dot["anchor"], dot["label_y"] = best[2], round(best[3] + 4, 2)


def _line_chart(
    case: CaseBoard,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    xlabel: str,
    ylabel: str,
    says: str,
    dotted: bool = False,
) -> dict[str, Any]:
    """Lines of methods; a method has one colour in all charts of a case."""
    drawn_rows = [row.name for row in case.rows if row.curves or row.points]
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    left, right = (min(xs), max(xs)) if not dotted and max(xs) > min(xs) else _padded(xs)
    low, high = _padded(ys)
    lines, dots = [], []
    for name, points in series:
        i = drawn_rows.index(name)
        drawn = [(_percent(x, left, right) * 10, 1000 - _percent(y, low, high) * 10) for x, y in points]
        lines.append({
            "name": name, "colour": i % COLOURS + 1, "dash": i // COLOURS % 3,
            "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn),
        })  # fmt: skip
        if dotted or len(points) == 1:
            dots += [
                {"x": round(x / 10, 2), "y": round(y / 1000 * HEIGHT, 2), "colour": i % COLOURS + 1, "says": f"{name}: {_short(b)} at {_short(a)}"}
                for (x, y), (a, b) in zip(drawn, points, strict=True)
            ]  # fmt: skip
    return {
        "height": HEIGHT, "series": lines, "marks": dots, "dots": [],
        "yticks": [_ytick(t, low, high) for t in ticks(low, high)],
        "xticks": [{"at": _percent(t, left, right), "text": _short(t)} for t in ticks(left, right, 4)],
        "xlabel": xlabel, "ylabel": ylabel, "says": says,
    }  # fmt: skip


def _curves(case: CaseBoard) -> list[dict[str, Any]]:
    """One chart for each thing logged, one line a method: its first repeat."""
    names = list(dict.fromkeys(name for row in case.rows for name in row.curves))
    found = []
    for name in names:
        series = [(row.name, [(x, y) for x, y in row.curves[name]]) for row in case.rows if row.curves.get(name)]
        chart = _line_chart(
            case, series, "step", name, f"{name} over training steps for {len(series)} methods, first repeat of each"
        )
        found.append({"name": name, **chart})
    return found


def _rate(case: CaseBoard) -> list[dict[str, Any]]:
    """Rate against distortion where bits per pixel and a quality are scored at several points."""
    found = []
    for quality, unit in (("psnr", "dB"), ("ms-ssim", "")):
        series = []
        for row in case.rows:
            # a rate holds for every coordinate that it does not name: one file, seen and held-out frames
            rates = [(p["at"], p["metrics"]["bpp"]) for p in row.points if "bpp" in p["metrics"]]
            points = [
                (next(rate for at, rate in rates if at.items() <= p["at"].items()), p["metrics"][quality])
                for p in row.points
                if quality in p["metrics"] and any(at.items() <= p["at"].items() for at, _ in rates)
            ]
            if points:
                series.append((row.name, sorted(points)))
        if any(len(points) > 1 for _, points in series):
            says = f"{quality} against bits per pixel for {len(series)} methods"
            found.append(_line_chart(case, series, "bits per pixel", _axis_name(quality, unit), says, dotted=True))
    return found


def _overall(item: Overall, index: int) -> dict[str, Any]:
    ranks = item.ranks
    order = sorted(zip(ranks.names, ranks.average, strict=True), key=lambda pair: pair[1]) if ranks.average else []
    return {
        "id": f"overall-{index}",
        "task": item.task,
        "cases": item.cases,
        "reading": reading_ranks(item),
        "order": [(name, f"{rank:.2f}") for name, rank in order],
        "diagram": _critical(order, ranks.critical, ranks.cliques) if order and ranks.critical is not None else None,
    }


def _critical(order: Sequence[tuple[str, float]], critical: float, cliques: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Demsar's diagram: names hang from their average ranks, bars join those that are not told apart."""
    k = len(order)
    width, left, right = 860.0, 260.0, 600.0
    worst = max(k, 2)

    def at(rank: float) -> float:
        return round(left + (right - left) * (rank - 1) / (worst - 1), 1)

    bars_top = 74.0
    shown = dict(order)
    bars = [
        {"x1": at(min(shown[n] for n in group)) - 4, "x2": at(max(shown[n] for n in group)) + 4, "y": bars_top + 10 * i}
        for i, group in enumerate(cliques)
    ]
    first = bars_top + 10 * len(bars) + 18
    half = math.ceil(k / 2)
    names = []
    for i, (name, rank) in enumerate(order):
        near = i < half
        row = i if near else k - 1 - i
        names.append({
            "name": _clipped(name), "full": name, "rank": f"{rank:.2f}", "x": at(rank), "y": first + 22 * row,
            "end": left - 14 if near else right + 14, "anchor": "end" if near else "start",
        })  # fmt: skip
    length = (right - left) * critical / (worst - 1)
    return {
        "width": width, "height": first + 22 * half + 6, "axis": 60.0, "left": left, "right": right,
        "ticks": [{"x": at(t), "text": f"{t:g}"} for t in ticks(1, worst, min(worst - 1, 8))],
        "names": names, "bars": bars, "cd": f"{critical:.2f}", "cd_x2": round(min(left + length, width - 20), 1),
        "cd_cut": left + length > width - 20,
    }  # fmt: skip


# -- tables --------------------------------------------------------------------------------------------------------------
def _slices(case: CaseBoard) -> list[dict[str, Any]]:
    """One table for each way of slicing and metric: slices down, methods across."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    for row in case.rows:
        for part in row.slices:
            kind = str(part["at"]["slice"])
            rest = {k: v for k, v in part["at"].items() if k != "slice"}
            name = ", ".join(_cell(v) if k in ("range", "value", "name") else f"{k} {_cell(v)}" for k, v in rest.items()) or kind
            for metric, value in part["metrics"].items():
                table = tables.setdefault((kind, metric), {"kind": kind, "metric": metric, "lines": {}, "methods": {}})
                line = table["lines"].setdefault(name, {"values": {}, "counts": part["counts"]})
                line["values"][row.name] = value
                table["methods"][row.name] = None
    better = {case.metric: case.better}
    found = []
    for (_, metric), table in sorted(tables.items(), key=lambda item: item[0][1] != case.metric):
        counts = list(dict.fromkeys(name for line in table["lines"].values() for name in line["counts"]))
        lines = []
        for name, line in table["lines"].items():
            values = line["values"]
            best = None
            if metric in better and values:
                best = (max if better[metric] == "higher" else min)(values.values())
            lines.append({
                "name": name, "counts": [amount(line["counts"].get(c)) for c in counts],
                "values": [{"text": number(values.get(m)), "best": best is not None and values.get(m) == best} for m in table["methods"]],
            })  # fmt: skip
        found.append(
            {"kind": table["kind"], "metric": metric, "methods": list(table["methods"]), "counts": counts, "lines": lines}
        )
    return found


def _points(case: CaseBoard) -> dict[str, Any] | None:
    metrics = list(dict.fromkeys(m for row in case.rows for p in row.points for m in p["metrics"]))
    lines = [
        {
            "name": row.name,
            "at": ", ".join(f"{k} {_cell(v)}" for k, v in point["at"].items()) or "as given",
            "values": [number(point["metrics"].get(m)) for m in metrics],
        }
        for row in case.rows
        for point in row.points
    ]
    return {"metrics": metrics, "lines": lines} if lines else None


def _repeats(case: CaseBoard) -> dict[str, Any] | None:
    keys = list(dict.fromkeys(key for row in case.rows for key in row.values))
    if not keys:
        return None
    places = max(decimals(case), 4)
    return {
        "keys": keys,
        "lines": [(row.name, [number(row.values.get(key), places) for key in keys]) for row in case.rows if row.values],
    }


def _finding(found: Mapping[str, Any]) -> dict[str, Any]:
    figures = ((name, picture(what)) for name, what in (found.get("figures") or {}).items())
    return {
        "scalars": [(name, _cell(value)) for name, value in (found.get("scalars") or {}).items()],
        "tables": [(name, *grid_of(what)) for name, what in (found.get("tables") or {}).items()],
        "figures": [(name, source) for name, source in figures if source],
    }


def grid_of(what: Any) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a finding's table: a list of records or of rows, a dict of columns, of records, or of numbers."""
    if isinstance(what, Mapping):
        values = list(what.values())
        if values and all(isinstance(v, list | tuple) for v in values):
            length = max(len(v) for v in values)
            return [str(k) for k in what], [[_cell(v[i]) if i < len(v) else "" for v in values] for i in range(length)]
        if values and all(isinstance(v, Mapping) for v in values):
            head = list(dict.fromkeys(k for v in values for k in v))
            return ["", *map(str, head)], [[str(k), *(_cell(v.get(h, "")) for h in head)] for k, v in what.items()]
        return ["", "value"], [[str(k), _cell(v)] for k, v in what.items()]
    if isinstance(what, list | tuple) and what and all(isinstance(v, Mapping) for v in what):
        head = list(dict.fromkeys(k for v in what for k in v))
        return [str(h) for h in head], [[_cell(v.get(h, "")) for h in head] for v in what]
    if isinstance(what, list | tuple):
        rows = [[_cell(v) for v in row] if isinstance(row, list | tuple) else [_cell(row)] for row in what]
        return [""] * max((len(r) for r in rows), default=0), rows
    return ["value"], [[_cell(what)]]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value).replace("-", "−")
    if isinstance(value, float):
        return number(value) if math.isfinite(value) else str(value)
    if value is None:
        return "–"
    return value if isinstance(value, str) else written(value)


def picture(what: Any) -> str | None:
    """A figure (SVG text, PNG bytes, or PNG as base64 text) as a data address for an image; none for anything else."""
    if isinstance(what, bytes):
        return "data:image/png;base64," + base64.b64encode(what).decode() if what.startswith(b"\x89PNG") else None
    if not isinstance(what, str):
        return None
    if what.startswith("iVBORw0KGgo"):
        return "data:image/png;base64," + "".join(what.split())
    if "<svg" not in what:
        return None
    if "xmlns=" not in what.split("<svg", 1)[1].split(">", 1)[0]:
        what = what.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return "data:image/svg+xml;base64," + base64.b64encode(what.encode()).decode()
