"""The corpus of bad input: the message, the exit status, no traceback, nothing left behind."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CORPUS = tomllib.loads((Path(__file__).parent / "graphs.toml").read_text(encoding="utf-8"))


def lay_out(case: dict[str, Any], folder: Path) -> None:
    """Write the case's files."""
    folder.mkdir()
    files: dict[str, bytes] = {name: text.encode() for name, text in CORPUS["good"].items()}
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
            (folder / name).write_bytes(data)


def test_the_corpus_is_large() -> None:
    assert len(CORPUS["case"]) >= 40
    assert len({c["name"] for c in CORPUS["case"]}) == len(CORPUS["case"])


@pytest.mark.parametrize("case", CORPUS["case"], ids=lambda c: c["name"])
def test_bad_input(case: dict[str, Any], tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    folder = tmp_path / "g"
    lay_out(case, folder)
    before = sorted(p.name for p in folder.iterdir())
    status, out, err = command(*(w.replace("{d}", str(folder)) for w in case["command"].split()))
    said = " ".join((out + err).split())
    assert status == case.get("status", 2), said
    assert "Traceback" not in said
    for text in case["says"]:
        assert text in said, said
    after = sorted(p.name for p in folder.iterdir() if p.name != "runs")
    assert after == before, "something was left behind"
