"""What the docs say runs; what is generated is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.S)


def test_the_code_of_add_a_method_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from latticework.core import registry

    names: dict[str, object] = {"__name__": "my_vote"}
    first, second = blocks("add-a-method.md")
    module = type(sys)("my_vote")
    monkeypatch.setitem(sys.modules, "my_vote", module)
    exec(compile(first, "add-a-method.md", "exec"), module.__dict__)
    entry = registry.Entry(
        "method", "neighbour-vote", "my_vote:NeighbourVote", "votes", "docs", Path(), {"tasks": ["node-classification"]}
    )
    known = dict(registry._entries()) | {("method", "neighbour-vote"): (entry,)}
    monkeypatch.setattr(registry, "_entries", lambda: known)
    names |= module.__dict__
    exec(compile(second, "add-a-method.md", "exec"), names)


def test_the_table_in_the_readme_is_the_generated_one() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, "run `make docs`: the README's table is not what the evidence says"


def test_all_papers_are_listed_and_those_to_come_say_so() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate
    finally:
        sys.path.pop(0)
    page = generate.all_papers()
    assert page.count("\n| ") - 1 == 59 and "not yet" in page
    assert "[here](papers/dagnn.md)" in page


def test_the_readme_names_only_commands_that_exist() -> None:
    from latticework.core import registry

    text = (ROOT / "README.md").read_text(encoding="utf-8") + (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    for names in re.findall(r"-m ([a-z0-9:,-]+)", text):
        for name in names.split(","):
            if name != "my-method":
                registry.value_of("method", name)
    verbs = {
        "data",
        "compare",
        "fit",
        "predict",
        "probe",
        "video",
        "reproduce",
        "methods",
        "show",
        "embed",
        "score",
        "report",
        "federate",
    }
    assert set(re.findall(r"^latticework (\w+)", text, re.M)) <= verbs
