"""Values: what Dataset, Task, Method, Probe, Ref and Grid are.

A value is frozen, bounded and named. It is written as ``{"is": name, ...}`` at every depth, so two backbones that
differ only in class never share a hash, and it is read back by name through the registry.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from .errors import UserError, nearest

V = TypeVar("V", bound="Value")


def setting(
    default: Any = ...,
    says: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    search: Any = None,
    late: bool = False,
    later: bool = False,
) -> Any:
    """A field of a value: its default, its meaning, its bounds, whether it may change after the fit, and where tuning looks.

    `search` is ``(low, high)``, ``(low, high, "log")`` or a list of choices. `later` marks a field that was added to a value
    already in use, with a default that changes nothing: at its default it stands in no key, so finished work stays found.
    """
    extra: dict[str, Any] = {"late": late, "later": later}
    if search is not None:
        numbers = isinstance(search, tuple) and len(search) >= 2 and all(type(v) in (int, float) for v in search[:2])
        if not isinstance(search, list) and not (numbers and search[2:] in ((), ("log",))):
            raise TypeError(f"search={search!r}: (low, high), (low, high, 'log') or a list of choices")
        extra["search"] = search
    bounds: dict[str, Any] = {k: v for k, v in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if v is not None}
    return Field(default, description=says, json_schema_extra=extra, **bounds)


class Value(BaseModel):
    """Frozen and named; tuples only; no NaN, no infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=False, validate_default=True
    )

    noun: ClassVar[str] = ""
    name: ClassVar[str] = ""
    revision: ClassVar[int] = 1

    # -- reading ---------------------------------------------------------------------------------------------
    @model_validator(mode="wrap")
    @classmethod
    def _by_name(cls, given: Any, handler: Any) -> Any:
        if isinstance(given, str):
            from .registry import value_of

            return _expect(value_of(cls.noun, given), cls)
        if isinstance(given, Mapping) and "is" in given:
            rest = {k: v for k, v in given.items() if k != "is"}
            if given["is"] == cls.name and cls.name:
                return handler(cls._without(rest))
            from .registry import class_of

            return _expect(class_of(cls.noun, str(given["is"])).model_validate(rest), cls)
        return handler(cls._without(given) if isinstance(given, Mapping) else given)

    @classmethod
    def _without(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The word "none" as no value, in the fields that may have none (a choice may also be called none)."""
        found = dict(fields)
        for key, value in fields.items():
            if value == "none" and key in cls.model_fields and type(None) in get_args(cls.model_fields[key].annotation):
                found[key] = None
        return found

    @classmethod
    def make(cls, fields: Mapping[str, Any] | None = None) -> Self:
        """Build from fields, with an error that names the field, its bounds and the nearest known name."""
        fields = dict(fields or {})
        for key in fields:
            if key not in cls.model_fields:
                raise UserError(f"{cls.name} has no field {key!r}; {nearest(key, cls.model_fields)}")
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise UserError(_explain(cls.name, error)) from None

    def but(self, **fields: Any) -> Self:
        """The same value with some fields changed, checked again; ``a__b`` reaches into nested values."""
        return self.with_settings({key.replace("__", "."): value for key, value in fields.items()})

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """Set fields by dotted path (``backbone.hidden``, ``anchors.0.net``); texts are read as JSON where they parse."""
        plain = self.plain()
        for path, given in sorted(settings.items(), key=lambda item: item[0].count(".")):
            if any(path.startswith(f"{outer}.") for outer in settings):  # a name set just now has fields of its own
                plain = self._made(plain).plain()
            _set(plain, path.split("."), given, self)
        return self._made(plain)

    def _made(self, plain: Mapping[str, Any]) -> Self:
        return type(self).make({k: v for k, v in plain.items() if k != "is"})

    # -- writing ---------------------------------------------------------------------------------------------
    @model_serializer(mode="plain")
    def _write(self) -> dict[str, Any]:
        return self.plain()

    def plain(self) -> dict[str, Any]:
        """JSON-able form with the class's name at every depth."""
        return {"is": self.name, **{k: _plain(getattr(self, k)) for k in type(self).model_fields}}

    def key(self, late: bool = True) -> str:
        """SHA-256 of the value; ``late=False`` leaves out the late fields of the outermost value only."""
        return digest_of(self.identity(late=late))

    def identity(self, late: bool = True) -> dict[str, Any]:
        """What the key hashes: names, fields and revisions at every depth."""
        left_out = set() if late else set(self.late_fields())
        for key, field in type(self).model_fields.items():
            if _extra(field).get("later") and getattr(self, key) == field.get_default(call_default_factory=True):
                left_out.add(key)
        fields = {k: _identity(getattr(self, k)) for k in type(self).model_fields if k not in left_out}
        return {"is": self.name, "revision": self.revision, **fields}

    @classmethod
    def late_fields(cls) -> tuple[str, ...]:
        return tuple(k for k, f in cls.model_fields.items() if _extra(f).get("late"))

    @classmethod
    def search_space(cls) -> dict[str, Any]:
        """Field name -> where tuning looks."""
        return {k: _extra(f)["search"] for k, f in cls.model_fields.items() if "search" in _extra(f)}

    @property
    def label(self) -> str:
        """Short text that a leaderboard shows, as one types it: the name or preset that is nearest, and what differs from it."""
        from . import registry

        fields = type(self).model_fields
        starts = [(self.name, _usual(type(self)))]
        starts += [(head, {k: getattr(value, k) for k in fields}) for head, value in registry.named_values(type(self))]
        heads = [(head, [k for k in fields if k not in start or getattr(self, k) != start[k]]) for head, start in starts]
        head, changed = min(heads, key=lambda found: len(found[1]))
        return head + (f"({'; '.join(f'{k}={_short(getattr(self, k))}' for k in changed)})" if changed else "")


@cache
def _usual(kind: type[Value]) -> dict[str, Any]:
    """The defaults of a class; what is written by name is a value where nothing has to be given."""
    fields = {k: f for k, f in kind.model_fields.items() if not f.is_required()}
    if len(fields) < len(kind.model_fields):
        return {k: f.get_default(call_default_factory=True) for k, f in fields.items()}
    value = kind.make({})
    return {k: getattr(value, k) for k in fields}


def digest_of(plain: Any) -> str:
    """SHA-256 of canonical JSON."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _extra(field: Any) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def _expect(value: Any, kind: type[V]) -> V:
    if not isinstance(value, kind):
        from .registry import entries

        known = [e.name for e in entries(kind.noun) if issubclass(e.load(), kind)]
        what = f"what can: {', '.join(known)}" if len(known) <= 24 else f"a {kind.__name__} is needed"
        raise ValueError(f"{getattr(value, 'name', value)!r} cannot stand here; {what}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Value):
        return value.plain()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a value holds no NaN or infinity")
    return value


def _identity(value: Any) -> Any:
    if isinstance(value, Value):
        return value.identity()
    if isinstance(value, tuple | list):
        return [_identity(v) for v in value]
    return _plain(value)


def _short(value: Any) -> str:
    if isinstance(value, Value):
        return value.label
    if isinstance(value, tuple):
        return ",".join(_short(v) for v in value)
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _set(plain: Any, path: list[str], given: Any, owner: Value) -> None:
    head, rest = path[0], path[1:]
    if isinstance(plain, list):
        if not head.isdigit() or int(head) >= len(plain):
            raise UserError(f"{owner.name}: no item {head!r} in a list of {len(plain)}")
        if rest:
            _set(plain[int(head)], rest, given, owner)
        else:
            plain[int(head)] = read_text(given)
        return
    if not isinstance(plain, dict):
        raise UserError(f"{owner.name}: cannot set {'.'.join(path)!r}: there are no fields inside {plain!r}")
    if head not in plain:
        raise UserError(f"{owner.name} has no field {head!r}; {nearest(head, [k for k in plain if k != 'is'])}")
    if rest:
        _set(plain[head], rest, given, owner)
    else:
        plain[head] = read_text(given)


def read_text(given: Any) -> Any:
    """Texts from a command line as numbers, booleans and lists where they are; a comma makes a list."""
    if not isinstance(given, str):
        return _plain(given)
    try:
        return json.loads(given)
    except json.JSONDecodeError:
        pass
    if "," in given and not given.startswith("{"):
        from .registry import split_outside

        parts = split_outside(given, ",")  # commas within brackets belong to what is named there
        return [read_text(part) for part in parts] if len(parts) > 1 or given.rstrip().endswith(",") else given
    return {"true": True, "false": False}.get(given.lower(), given)


def _explain(name: str, error: ValidationError) -> str:
    """What is wrong with each field, in words; of a field that takes several forms, what each of them wants."""
    found: dict[str, list[str]] = {}
    given: dict[str, Any] = {}
    for item in error.errors(include_url=False):
        # a form's own name (literal[…], function-wrap[…]) is the checker's word, not the user's
        where = ".".join(str(part) for part in item["loc"] if not re.search(r"[\[(]", str(part))) or "value"
        message = item["msg"].removeprefix("Value error, ")
        found.setdefault(where, []).append(message[0].lower() + message[1:])
        given[where] = item.get("input")
    lines = []
    for where, messages in found.items():
        text = "; or ".join(dict.fromkeys(messages))
        told = isinstance(given[where], Mapping) or repr(given[where]) in text
        lines.append(f"{name}.{where}: {text}" + ("" if told else f", not {given[where]!r}"))
    return "; ".join(lines)


def names(values: Iterable[Value]) -> tuple[str, ...]:
    return tuple(v.name for v in values)
