"""Datasets: recipes for data of one kind, and their identity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from . import registry
from .errors import UserError, nearest
from .value import Value, digest_of, setting

if TYPE_CHECKING:
    from .task import Part

Facts = Mapping[str, Any]


class Dataset(Value):
    """A recipe for data of one kind. Subclasses read; the digest is over bytes and fields."""

    noun: ClassVar[str] = "data"
    kind: ClassVar[str]

    @abstractmethod
    def read(self) -> Any:
        """The kind's container."""

    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of what `read` gives: equal digests mean equal data."""

    def facts(self) -> Facts:
        """What ``data check`` prints and what `Method.refuses` looks at."""
        return {}

    def check(self) -> list[str]:
        """What was understood, as lines for people."""
        return [f"{key}: {value}" for key, value in self.facts().items()]

    def write(self, to: Path) -> None:
        """The data as a folder or file of the form that users bring."""
        raise UserError(f"{self.name} cannot be exported")

    def whole(self) -> Part:
        """All of it as one part without truth, for methods that need none."""
        from .task import Part

        return Part(self.read(), None, None, {})

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a path holds this kind, by looking at headers."""
        return False

    @classmethod
    def from_object(cls, given: Any) -> Dataset | None:
        """A Python object of this kind as a data set, or none."""
        return None


class Given(Dataset):
    """Data made in Python: they live as long as the process, and are named by their content."""

    content: str = setting(..., "SHA-256 of the content")
    _held: ClassVar[dict[str, Any]] = {}  # one for all kinds: a SHA-256 names one content

    def digest(self) -> str:
        return digest_of([self.name, self.content])

    def read(self) -> Any:
        if self.content not in self._held:
            raise UserError("these data were made in another process; write them with `latticework data export`, give the path")
        return self._held[self.content]


def _meant(path: Path) -> str:
    """What somebody who typed a path or name that is not there may want to read."""
    beside = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    names = [] if path.parent.name else [e.name for e in registry.entries("data")]  # no name has a folder before it
    if not names and not beside:
        return f"the folder {path.parent} {'is empty' if path.parent.is_dir() else 'is not there either'}"
    if registry.knows("method", str(path)):
        return f"{path} is a method (methods stand after -m, data before)"
    return nearest(str(path), [*names, *beside], "latticework data list" if names else f"ls {path.parent}")


def open_data(what: Any, settings: Mapping[str, Any] | None = None) -> Dataset:
    """A catalogue name, a path to a user's files, or a Dataset; `settings` are its fields.

    Which kind a path holds is asked of every registered kind, by looking at headers, never at the name alone.
    """
    if isinstance(what, Dataset):
        return what.with_settings(settings) if settings else what
    if not isinstance(what, str | Path):
        for entry in registry.entries("kind"):
            made = entry.load().from_object(what)
            if made is not None:
                return made  # type: ignore[no-any-return]
        raise UserError(f"cannot use a {type(what).__name__} as data; give a name, a path, or one of the kinds' containers")
    text = str(what)
    if registry.knows("data", text.partition("(")[0].strip()) and not Path(text).exists():
        value = registry.value_of("data", text)
    else:
        path = Path(text)
        if not path.exists():
            raise UserError(f"{text!r} is neither a file or folder here nor a known data set; {_meant(path)}")
        value = _from_path(path)
    if not isinstance(value, Dataset):
        raise UserError(f"{text!r} is not a data set")
    return value.with_settings(settings) if settings else value


def _from_path(path: Path) -> Value:
    looked = []
    for entry in registry.entries("kind"):
        reader = entry.load()
        if reader.recognises(path):
            return reader.make({"path": str(path)})  # type: ignore[no-any-return]
        looked.append(f"\n  {entry.name}: {entry.says}")
    found = f" ({', '.join(sorted(p.name for p in path.iterdir())[:8]) or 'it is empty'})" if path.is_dir() else ""
    raise UserError(f"cannot tell what {path} holds{found}; what can be read is{''.join(looked)}")
