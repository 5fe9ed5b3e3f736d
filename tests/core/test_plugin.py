"""Somebody else's package takes part in everything through its one entry point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1] / "plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has the package installed (into a folder of its own)."""
    target = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", target, PLUGIN],
        check=True, capture_output=True,
    )  # fmt: skip
    return {**os.environ, "PYTHONPATH": str(target), "COLUMNS": "200"}


def latticework(installed: dict[str, str], *words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "latticework", *map(str, words)], env=installed, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed_shown_compared_and_probed(installed: dict[str, str], tmp_path: Path) -> None:
    assert "nearest-neighbour" in latticework(installed, "methods")
    assert "from lattice_example" in latticework(installed, "show", "nearest-neighbour")
    assert "nodes: 40" in latticework(installed, "data", "check", "two-rings")
    assert "triangles: 0" in latticework(installed, "probe", "triangles", "two-rings")
    said = latticework(
        installed, "compare", "two-rings", "karate", "-m", "nearest-neighbour(scale=2)", "--task", "node-guessing",
        "--repeats", 2, "--runs", tmp_path / "runs", "-o", tmp_path / "b.json", "-s", "task.per_class=2", "-s", "task.valid_per_class=1",
    )  # fmt: skip
    assert "macro-f1" in said and "majority [unasked]" in said
    board = json.loads((tmp_path / "b.json").read_text())
    assert {row["name"] for row in board["cases"][0]["rows"]} == {"nearest-neighbour(scale=2.0)", "nearest-neighbour", "majority"}
    assert board["overall"], "two data sets give ranks"


def test_it_passes_the_batteries(installed: dict[str, str]) -> None:
    code = (
        "from latticework.testing import check_data, check_method, check_probe, check_task\n"
        "check_method('nearest-neighbour', 'two-rings', 'node-classification')\n"
        "check_method('nearest-neighbour', 'two-rings', 'node-guessing')\n"
        "check_task('node-guessing', 'two-rings')\ncheck_data('two-rings')\ncheck_probe('triangles', 'two-rings')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=installed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
