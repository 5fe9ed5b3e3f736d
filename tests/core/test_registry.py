"""Names to classes without imports; two packages of one name."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from latticework.core import registry
from latticework.core.errors import UserError


def test_everything_registered_can_be_loaded_and_is_what_it_says() -> None:
    for noun in ("method", "task", "probe", "data", "kind"):
        for entry in registry.entries(noun):
            value = entry.load()
            assert entry.says, entry.name
            if noun in ("method", "task", "probe"):
                assert value.noun == noun and value.name == entry.name, entry.name
            if noun == "method" and entry.name not in ("tuned", "tuned-once"):
                assert tuple(entry.facts["tasks"]) == tuple(value.tasks), entry.name
            if noun == "task":
                assert tuple(entry.facts["kinds"]) == value.kinds
            for preset, fields in entry.facts.get("presets", {}).items():
                value.make({**entry.facts.get("fields", {}), **fields}), preset


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="no method is called 'gnc'; did you mean 'gcn'"):
        registry.find("method", "gnc")
    with pytest.raises(UserError, match="has no preset"):
        registry.value_of("method", "gcn:huge")


def test_two_packages_with_one_name_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "twice"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "wing.toml").write_text('[[provides]]\nnoun = "method"\nname = "gcn"\nclass = "twice:GCN"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "packages", lambda: ("latticework", "twice"))
    registry.refresh()
    try:
        with pytest.raises(UserError, match=r"provided twice, by latticework .* and twice .*uninstall one"):
            registry.find("method", "gcn")
    finally:
        monkeypatch.undo()
        registry.refresh()


def test_broken_toml_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "broken"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "wing.toml").write_text("[[provides]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "packages", lambda: ("broken",))
    registry.refresh()
    try:
        with pytest.raises(UserError, match=r"broken: wing.toml is not valid TOML"):
            list(registry.entries("method"))
    finally:
        monkeypatch.undo()
        registry.refresh()


@pytest.mark.parametrize("words", [["--help"], ["methods"], ["data", "list"], ["fit", "--help"]])
def test_listing_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom latticework.cli import run\n"
        f"status = run({words!r})\n"
        "heavy = sorted({'torch', 'scipy', 'polars', 'numpy', 'sklearn', 'torch_geometric', 'optuna'} & set(sys.modules))\n"
        "assert status == 0 and not heavy, (status, heavy)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_label_is_read_back_as_what_it_stands_for() -> None:
    """What a board shows may be typed as an entry: presets, and each field of each method by itself."""
    from latticework.core.grid import entry_of
    from latticework.testing import another

    for entry in registry.entries("method"):
        kind = entry.load()
        if any(field.is_required() for field in kind.model_fields.values()):
            continue
        base = kind.make({})
        values = [base, *(value for _, value in registry.named_values(kind))]
        for name, field in kind.model_fields.items():
            other = another(field, getattr(base, name))
            with contextlib.suppress(UserError):  # fields that hang on other fields
                values += [] if other is None else [base.but(**{name: other})]
        for value in values:
            assert entry_of(value.label) == value, value.label
