"""Claims: run, recorded beside what they say, shown with what they cost; through the command, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latticework.core import registry
from latticework.core.claim import Claim, evidence_rows, levels, measure, record

Command = Callable[..., tuple[int, str, str]]
CLAIM: dict[str, Any] = {
    "id": "over-the-majority", "level": "E1", "says": "Words tell digits apart.", "mark": "ours",
    "grid": {
        "data": ["digits-knn"], "tasks": ["node-classification"], "entries": ["logistic-regression", "majority"],
        "repeats": 2, "baselines": False,
    },
    "check": {"is": "beats", "entry": "logistic-regression", "over": "majority", "by": 0.1},
}  # fmt: skip


def paper_of(folder: Path, *claims: dict[str, Any]) -> registry.Paper:
    return registry.Paper("ours", folder / "ours.toml", "latticework", {"title": "A paper", "claims": claims})


def test_a_record_stands_for_what_was_claimed(tmp_path: Path) -> None:
    paper = paper_of(tmp_path, CLAIM)
    assert [(r["verdict"], r["measured"]) for r in evidence_rows(paper)] == [("not run yet", "not run yet")]
    record(paper, {CLAIM["id"]: measure(Claim.make(CLAIM), str(tmp_path / "runs"))})
    (row,) = evidence_rows(paper)
    assert row["verdict"] == "met" and levels(paper) == {"E1": (1, 1)}
    (costly,) = evidence_rows(paper_of(tmp_path, {**CLAIM, "hours": 3}))
    assert costly["verdict"] == "met"  # what it costs is no part of the claim
    (other,) = evidence_rows(paper_of(tmp_path, {**CLAIM, "check": {**CLAIM["check"], "by": 0.9}}))
    assert other["verdict"] == "not run yet"  # another claim under the same name


def test_what_was_not_run_says_why(tmp_path: Path) -> None:
    blocked = {k: v for k, v in CLAIM.items() if k not in ("grid", "check")} | {"id": "far", "blocked": "no such data"}
    rows = evidence_rows(paper_of(tmp_path, {**CLAIM, "hours": 12.5}, blocked))
    assert [r["measured"] for r in rows] == ["not run: takes about 12.5 h on one core", "no such data"]
    assert rows[0]["verdict"] == "not run yet" and rows[1]["verdict"] != rows[0]["verdict"]


def test_the_command(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "papers", lambda: (paper_of(tmp_path, {**CLAIM, "hours": 0.5}),))
    code, out, err = command("reproduce", "ours", "--record", "--device", "cpu", "--runs", tmp_path / "runs")
    assert code == 0, err
    assert "Words tell digits apart. (about 0.5 h on one core)" in out and "met" in out
    found = json.loads((tmp_path / "ours.json").read_text())[CLAIM["id"]]
    assert found["provenance"]["device"] == ["cpu"] and found["cells"] == 4
    code, _, err = command("reproduce", "ours", "--device", "abacus", "--runs", tmp_path / "other")
    assert code == 2 and "no device 'abacus' is here; there is cpu" in err
    code, _, err = command("reproduce", "ours", "--claim", "over", "--runs", tmp_path / "other")
    assert code == 2 and "over-the-majority" in err
