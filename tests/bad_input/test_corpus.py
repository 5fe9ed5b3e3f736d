"""The corpora of bad input: the message, the exit status, no traceback, nothing left behind.

Each ``*.toml`` of this folder is one corpus: `good` files, and cases that replace, add (``folder/file`` makes the folder) or
`remove` some of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CORPORA = {p.stem: tomllib.loads(p.read_text(encoding="utf-8")) for p in sorted(Path(__file__).parent.glob("*.toml"))}
CASES = [pytest.param(name, case, id=f"{name}: {case['name']}") for name, c in CORPORA.items() for case in c["case"]]


def lay_out(good: dict[str, str], case: dict[str, Any], folder: Path) -> None:
    """Write the case's files."""
    folder.mkdir()
    files: dict[str, bytes] = {name: text.encode() for name, text in good.items()}
    files |= {name: text.encode() for name, text in case.items() if "." in name and isinstance(text, str)}
    files |= {name: bytes.fromhex(text) for name, text in case.get("hex", {}).items()}
    if n := case.get("many_labels"):
        files["nodes.csv"] = ("id,label\n" + "".join(f"{i},c{i}\n" for i in range(n))).encode()
        files["edges.csv"] = b"source,target\n0,1\n"
    if n := case.get("many_texts"):
        files["nodes.csv"] = ("id,label,f\n" + "".join(f"{i},c{i % 2},text {i}\n" for i in range(n))).encode()
        files["edges.csv"] = b"source,target\n0,1\n"
    for name, data in files.items():
        if name not in case.get("remove", ()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)


def listing(folder: Path) -> list[str]:
    """All that lies in a folder, but for the runs that a fit may leave."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.relative_to(folder).parts[0] != "runs")


def test_the_corpora_are_large() -> None:
    assert len(CORPORA["graphs"]["case"]) >= 40
    for name, corpus in CORPORA.items():
        assert len(corpus["case"]) >= 15, name
        assert len({c["name"] for c in corpus["case"]}) == len(corpus["case"]), name


@pytest.mark.parametrize(("corpus", "case"), CASES)
def test_bad_input(corpus: str, case: dict[str, Any], tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    folder = tmp_path / "g"
    lay_out(CORPORA[corpus]["good"], case, folder)
    before = listing(folder)
    status, out, err = command(*(w.replace("{d}", str(folder)) for w in case["command"].split()))
    said = " ".join((out + err).split())
    assert status == case.get("status", 2), said
    assert "Traceback" not in said
    for text in case["says"]:
        assert text in said, said
    assert listing(folder) == before, "something was left behind"
