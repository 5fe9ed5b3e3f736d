"""Names to classes, without importing what is not used.

Each package that joins has one entry point in the group ``latticework.packages``; it names the package, whose TOML
files (``wing.toml`` and ``evidence/*.toml``) say in their heads what it provides:

    [[provides]]
    noun = "method"                      # data, task, method, probe, check, kind
    name = "dagnn"
    class = "latticework.nodes.dagnn:DAGNNMethod"
    says = "Adaptive mix of hops"
    tasks = ["node-classification"]
    presets.citeseer = { weight_decay = 2e-2, dropout = 0.5 }

Listing reads the TOML alone; a class is imported when its name is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import UserError, nearest

if TYPE_CHECKING:
    from .value import Value

GROUP = "latticework.packages"
OWN = "latticework"


class Entry(NamedTuple):
    """One thing that a package provides."""

    noun: str
    name: str
    target: str
    says: str
    package: str
    head: Path
    facts: Mapping[str, Any]

    def load(self) -> Any:
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


class Paper(NamedTuple):
    """The head of one evidence file."""

    slug: str
    path: Path
    package: str
    facts: Mapping[str, Any]


def packages() -> tuple[str, ...]:
    """Names of the packages that take part; the library's own comes first."""
    found = [OWN]
    for point in entry_points(group=GROUP):
        if point.value not in found:
            found.append(point.value)
    return tuple(found)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"package {package!r} is named by an entry point but has no folder; reinstall or remove it")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _heads() -> tuple[tuple[str, Path, Mapping[str, Any]], ...]:
    heads = []
    for package in packages():
        folder = _folder(package)
        for path in sorted([*folder.rglob("wing.toml"), *folder.glob("**/evidence/*.toml")]):
            try:
                heads.append((package, path, tomllib.loads(path.read_text(encoding="utf-8"))))
            except tomllib.TOMLDecodeError as error:
                raise UserError(f"{package}: {path.name} is not valid TOML: {error}") from None
    return tuple(heads)


@cache
def _entries() -> Mapping[tuple[str, str], tuple[Entry, ...]]:
    found: dict[tuple[str, str], list[Entry]] = {}
    for package, path, head in _heads():
        for item in head.get("provides", ()):
            try:
                entry = Entry(item["noun"], item["name"], item["class"], item.get("says", ""), package, path, item)
            except KeyError as missing:
                raise UserError(f"{package}: {path.name}: a [[provides]] lacks {missing}") from None
            found.setdefault((entry.noun, entry.name), []).append(entry)
    return {key: tuple(items) for key, items in found.items()}


def refresh() -> None:
    """Forget what was read (after a package was installed in this process)."""
    _heads.cache_clear()
    _entries.cache_clear()
    named_values.cache_clear()


def entries(noun: str) -> Iterator[Entry]:
    """All things of a noun, by name."""
    for key in sorted(k for k in _entries() if k[0] == noun):
        yield find(*key)


def search(task: str | None = None, words: str | None = None) -> list[Entry]:
    """Methods for a task whose name, description or paper has all of the words."""
    wanted = (words or "").lower().split()
    heads = {p.path: p.facts for p in papers()}
    found = []
    for entry in entries("method"):
        paper = heads.get(entry.head, {})
        text = f"{entry.name} {entry.says} {paper.get('title', '')} {paper.get('summary', '')} {paper.get('when', '')}".lower()
        if (task is None or task in entry.facts.get("tasks", ())) and all(word in text for word in wanted):
            found.append(entry)
    return found


def find(noun: str, name: str) -> Entry:
    """The entry of a name; an unknown name suggests the nearest, a name from two packages names both."""
    items = _entries().get((noun, name))
    if not items:
        known = [n for kind, n in _entries() if kind == noun]
        listed = {"method": "latticework methods", "data": "latticework data list"}.get(noun, "")
        raise UserError(f"no {noun} is called {name!r}; {nearest(name, known, listed)}")
    if len(items) > 1:
        owners = " and ".join(sorted(f"{e.package} ({e.target})" for e in items))
        raise UserError(f"{noun} {name!r} is provided twice, by {owners}; uninstall one or rename it")
    return items[0]


def knows(noun: str, name: str) -> bool:
    return (noun, name) in _entries()


def class_of(noun: str, name: str) -> Any:
    """The class of a named value."""
    return find(noun, name).load()


@cache
def named_values(kind: type[Value]) -> tuple[tuple[str, Value], ...]:
    """What the entries of a class call ``name`` (where it stands for fields) and ``name:preset``, as values."""
    target = f"{kind.__module__}:{kind.__qualname__}"
    found = []
    for entry in (e for items in _entries().values() for e in items):
        if entry.target != target and (entry.name != kind.name or entry.load() is not kind):
            continue
        fields = entry.facts.get("fields", {})
        if fields:
            found.append((entry.name, kind.make(fields)))
        found += [
            (f"{entry.name}:{word}", kind.make({**fields, **more})) for word, more in entry.facts.get("presets", {}).items()
        ]
    return tuple(found)


def value_of(noun: str, text: str) -> Value:
    """The value written as ``name``, ``name:preset`` or ``name(field=value; field=value)``, brackets nesting.

    For data sets the whole ``folder:file`` may itself be a name.
    """
    head, bracket, rest = text.partition("(")
    kind, fields = _named(noun, head.strip())
    if not bracket:
        return kind.make(fields)  # type: ignore[no-any-return]
    if not rest.rstrip().endswith(")"):
        raise UserError(f"{text!r}: a bracket is not closed; write name(field=value; field=value)")
    given = _settings(text, rest.rstrip()[:-1])
    if all("." not in key for key in given):
        return kind.make(fields | given)  # type: ignore[no-any-return]
    return kind.make(fields).with_settings(given)  # type: ignore[no-any-return]


def class_value(noun: str, plain: Mapping[str, Any]) -> Any:
    """A value back from its plain form."""
    return class_of(noun, plain["is"]).make({k: v for k, v in plain.items() if k != "is"})


def settings_of(text: str) -> dict[str, Any]:
    """The settings that a text in brackets names (``dagnn(hops=50)``: hops), none where it has no brackets."""
    _, bracket, rest = text.partition("(")
    return _settings(text, rest.rstrip()[:-1]) if bracket else {}


def set_by_hand(settings: Mapping[str, Any]) -> list[str]:
    """The dotted fields that settings name, those within brackets too: ``backbone=gin(width=8)`` names backbone, backbone.width."""
    found = []
    for key, given in settings.items():
        inner = settings_of(given) if isinstance(given, str) and given.rstrip().endswith(")") else given
        found += [key, *(f"{key}.{name}" for name in set_by_hand(inner))] if isinstance(inner, Mapping) else [key]
    return found


def _settings(text: str, body: str) -> dict[str, Any]:
    """``field=value; field=value`` cut at the semicolons outside of brackets."""
    from .value import read_text

    settings = {}
    for part in split_outside(body, ";"):
        key, equals, given = part.partition("=")
        if not equals:
            raise UserError(f"{text!r}: write settings as name(field=value; field=value)")
        settings[key.strip()] = read_text(given.strip())
    return settings


def split_outside(text: str, mark: str) -> list[str]:
    """The pieces of a text between marks that stand outside of brackets; empty ones are left out."""
    found, depth, part = [], 0, ""
    for sign in text + mark:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == mark and not depth:
            found.append(part.strip())
            part = ""
        else:
            part += sign
    return [piece for piece in found if piece]


def _named(noun: str, text: str) -> tuple[Any, dict[str, Any]]:
    """The class of ``name`` or ``name:preset``, and the fields that the name stands for."""
    if knows(noun, text):
        entry, preset = find(noun, text), ""
    else:
        name, _, preset = text.partition(":")
        entry = find(noun, name)
    fields = dict(entry.facts.get("fields", {}))
    if preset:
        presets = entry.facts.get("presets", {})
        if preset not in presets:
            raise UserError(f"{noun} {entry.name!r} has no preset {preset!r}; {nearest(preset, presets)}")
        fields |= presets[preset]
    return entry.load(), fields


def papers() -> tuple[Paper, ...]:
    """Every paper with an evidence file."""
    return tuple(Paper(path.stem, path, package, head) for package, path, head in _heads() if path.parent.name == "evidence")


def paper(slug: str) -> Paper:
    for found in papers():
        if found.slug == slug:
            return found
    raise UserError(f"no paper is called {slug!r}; {nearest(slug, [p.slug for p in papers()])}")


class Table(NamedTuple):
    """A grid named in a wing's TOML; `record` is where its board is kept.

    `gains` are published gains that the table puts to the test: `entry` over `over`, both entries of the grid, by more than `by`
    (0 where it is left out) on the data sets `on` (all of them where it is left out), as `says` says.
    """

    name: str
    says: str
    grid: Mapping[str, Any]
    record: Path
    gains: Sequence[Mapping[str, Any]] = ()


def tables() -> dict[str, Table]:
    """The named grids (``[grids.NAME]`` with a line `says`)."""
    found = {}
    for _, path, head in _heads():
        for name, facts in head.get("grids", {}).items() if path.name == "wing.toml" else ():
            grid = {key: value for key, value in facts.items() if key not in ("says", "gains")}
            record = path.parent / "evidence" / "tables" / f"{name}.json"
            found[name] = Table(name, facts.get("says", ""), grid, record, tuple(facts.get("gains", ())))
    return found


def wing_facts(key: str) -> dict[str, Any]:
    """The tables called `key` of all wing.toml files, merged (``aliases``)."""
    merged: dict[str, Any] = {}
    for _, path, head in _heads():
        if path.name == "wing.toml":
            merged |= head.get(key, {})
    return merged
