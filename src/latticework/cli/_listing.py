"""Texts for `methods`, `show`, `data check`, `probe` and `embed`."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from latticework.core import registry
from latticework.core.errors import UserError, nearest


def describe(name: str) -> str:
    """What `show` prints: every noun that has this name."""
    parts = []
    for noun in ("method", "probe", "task", "data"):
        if registry.knows(noun, name):
            parts.append(_entry_text(registry.find(noun, name)))
    slugs = {p.slug: p for p in registry.papers()}
    heads = {p.path: p for p in registry.papers()}
    shown = set()
    if name in slugs:
        parts.append(paper_text(slugs[name]))
        shown.add(name)
    for noun in ("method", "probe"):
        if registry.knows(noun, name):
            paper = heads.get(registry.find(noun, name).head)
            if paper is not None and paper.slug not in shown:
                parts.append(paper_text(paper))
                shown.add(paper.slug)
    if not parts:
        known = {e.name for noun in ("method", "probe", "task", "data") for e in registry.entries(noun)} | set(slugs)
        raise UserError(f"nothing is called {name!r}; {nearest(name, known, 'latticework methods')}")
    return "\n\n".join(parts)


def _entry_text(entry: registry.Entry) -> str:
    value = entry.load()
    lines = [f"{entry.name} ({entry.noun}, from {entry.package}): {entry.says}", ""]
    if value.__doc__:
        lines += [inspect.cleandoc(value.__doc__), ""]
    fields = value.model_fields
    if fields:
        lines.append("fields (-s name=value):")
        width = max(len(k) for k in fields)
        lines += [f"  {k.ljust(width)}  {field_text(f)}" for k, f in fields.items()]
    if presets := entry.facts.get("presets"):
        lines.append("presets:")
        lines += [f"  {entry.name}:{k}  {', '.join(f'{a}={b}' for a, b in v.items())}" for k, v in presets.items()]
    return "\n".join(lines).rstrip()


def field_text(field: Any) -> str:
    """A field's default, meaning, bounds and search range on one line."""
    default = "required" if field.is_required() else f"= {field.get_default(call_default_factory=True)}"
    bounds = [str(m).split("(")[-1].rstrip(")") for m in field.metadata if type(m).__name__ in ("Ge", "Gt", "Le", "Lt")]
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    tail = [", ".join(bounds)] if bounds else []
    if "search" in extra:
        tail.append(f"tuned in {extra['search']}")
    if extra.get("late"):
        tail.append("may change after the fit")
    return f"{default}: {field.description}" + (f" [{'; '.join(tail)}]" if tail else "")


def paper_text(paper: registry.Paper) -> str:
    """A paper with its claims and what was measured."""
    facts = paper.facts
    lines = [f"{facts['title']} ({facts.get('venue', 'venue not given')})", "", facts.get("summary", "").strip()]
    if facts.get("when"):
        lines += ["", f"When to use it: {facts['when'].strip()}"]
    from latticework.core.claim import evidence_rows

    rows = evidence_rows(paper)
    if rows:
        lines += ["", "Evidence:"]
        for row in rows:
            lines.append(f"  [{row['level']}] {row['id']}: {row['says']}")
            lines.append(f"      paper {row['paper']} · here {row['measured']} · {row['verdict']}")
    return "\n".join(lines)


def fitting(data: Any) -> list[str]:
    """Which tasks and methods fit the data, and why others do not."""
    from latticework.core.grid import task_of

    lines = []
    facts = data.facts()
    for entry in registry.entries("task"):
        if data.kind not in entry.facts.get("kinds", ()):
            continue
        try:
            task = task_of(entry.name).for_data(data)
        except UserError as error:
            lines.append(f"task {entry.name} does not fit: {error}")
            continue
        fit, unfit = [], []
        for method in registry.entries("method"):
            if entry.name not in method.facts.get("tasks", ()):
                continue
            value = method.load()
            if any(f.is_required() for f in value.model_fields.values()):
                continue
            reason = value.make().refuses(task, facts)
            (unfit if reason else fit).append(method.name if not reason else f"{method.name} ({reason})")
        lines.append(f"task {entry.name} fits; methods: {', '.join(fit) or 'none'}")
        lines += [f"  how it reads: {text}" for text in task.reads(data)]
        lines += [f"  not here: {text}" for text in unfit]
    if lines:
        return lines
    asked = [entry.name for entry in registry.entries("task") if data.kind in entry.load().asks]
    return [
        f"to be given to `predict` with a model of {', '.join(asked)}"
        if asked
        else f"no task is for data of kind {data.kind} yet"
    ]


def findings_text(found: Any) -> str:
    """Scalars and tables as text."""
    lines = [f"{key}: {value:.4f}" if isinstance(value, float) else f"{key}: {value}" for key, value in found.scalars.items()]
    for name, table in found.tables.items():
        rows = table if isinstance(table, list) else [table]
        if not rows:
            continue
        columns = list(rows[0])
        cells = [[_cell(row.get(c)) for c in columns] for row in rows]
        widths = [max(len(c), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
        lines += ["", name, "  ".join(c.ljust(w) for c, w in zip(columns, widths, strict=True))]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    if found.figures:
        lines += ["", f"figures: {', '.join(found.figures)} (written with -o)"]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def write_findings(found: Any, out: Path) -> None:
    """JSON with everything; figures as files beside it."""
    from latticework.core.ledger import write_whole

    write_whole(out, json.dumps({"scalars": dict(found.scalars), "tables": dict(found.tables)}, indent=1))
    for name, svg in found.figures.items():
        write_whole(out.with_name(f"{out.stem}-{name.replace(' ', '-')}.svg"), svg)


def write_vectors(vectors: Any, ids: Any, out: Path) -> list[Path]:
    """Vectors as .npy with the ids beside it, or one table."""
    import io

    import numpy as np
    import polars as pl

    from latticework.core.ledger import write_whole

    if out.suffix == ".npy":
        beside = out.with_suffix(".ids.csv")
        _stream(out, lambda file: np.save(file, vectors))
        write_whole(beside, pl.DataFrame({"id": list(ids)}).write_csv())
        return [out, beside]
    frame = pl.DataFrame({"id": list(ids)}).hstack(pl.DataFrame(vectors, schema=[f"v{i}" for i in range(vectors.shape[1])]))
    buffer = io.BytesIO()
    frame.write_parquet(buffer) if out.suffix == ".parquet" else frame.write_csv(buffer)
    write_whole(out, buffer.getvalue())
    return [out]


def _stream(out: Path, write: Any) -> None:
    """Write a large file beside its place, then rename it."""
    import os

    from latticework.core.ledger import disk_errors

    draft = out.with_name(f".{out.name}.{os.getpid()}")
    with disk_errors(out):
        try:
            with draft.open("wb") as file:
                write(file)
            os.replace(draft, out)
        finally:
            draft.unlink(missing_ok=True)
