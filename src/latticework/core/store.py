"""Model files: safetensors beside JSON. Reading one executes nothing.

A tree of tensors, numbers and texts (a checkpoint, an optimiser's state) becomes flat tensors and a JSON skeleton.
Estimators of scikit-learn travel through skops, whose loader builds only the types named here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry
from .errors import Damaged, UserError
from .ledger import read_json, write_folder, write_json

if TYPE_CHECKING:
    from .method import Model

FORMAT = 1
_SAFE_TYPES = ("sklearn.", "numpy.", "scipy.sparse.")


def flatten(tree: Any) -> tuple[Any, dict[str, Any]]:
    """(JSON skeleton, tensors) of a tree of mappings, lists, tensors and plain values."""
    tensors: dict[str, Any] = {}

    def walk(node: Any) -> Any:
        if hasattr(node, "detach"):
            name = f"t{len(tensors)}"
            tensors[name] = node.detach().cpu().contiguous().clone()
            return {"tensor": name}
        if isinstance(node, Mapping):
            return {"map": [[walk(k), walk(v)] for k, v in node.items()]}
        if isinstance(node, list | tuple):
            return {"tuple" if isinstance(node, tuple) else "list": [walk(v) for v in node]}
        if node is None or isinstance(node, bool | int | float | str):
            return {"plain": node}
        raise TypeError(f"a checkpoint holds tensors and plain values, not {type(node).__name__}")

    return walk(tree), tensors


def unflatten(skeleton: Any, tensors: Mapping[str, Any]) -> Any:
    """The inverse of `flatten`."""
    ((kind, body),) = skeleton.items()
    if kind == "tensor":
        return tensors[body]
    if kind == "map":
        return {unflatten(k, tensors): unflatten(v, tensors) for k, v in body}
    if kind == "list":
        return [unflatten(v, tensors) for v in body]
    if kind == "tuple":
        return tuple(unflatten(v, tensors) for v in body)
    return body


def write_tree(folder: Path, tree: Any) -> None:
    """A checkpoint as two files that appear together."""
    from safetensors.torch import save_file

    skeleton, tensors = flatten(tree)

    def fill(draft: Path) -> None:
        save_file(tensors, draft / "state.safetensors")
        write_json(draft / "state.json", skeleton)

    write_folder(folder, fill)


def read_tree(folder: Path) -> Any:
    """What `write_tree` wrote; `Damaged` where one of its files is."""
    skeleton = read_json(folder / "state.json")
    tensors = _tensors(folder / "state.safetensors")
    try:
        return unflatten(skeleton, tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{folder} is no checkpoint ({type(error).__name__}: {error})") from None


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Any] = load_file(path)
        return found
    except (SafetensorError, FileNotFoundError) as error:
        raise Damaged(f"{path} is damaged: {error}") from None


def fill_model(model: Model, folder: Path, provenance: Mapping[str, Any]) -> None:
    """Write a model's files into an existing, empty folder."""
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    estimators: dict[str, Any] = {}
    for name, item in model.state().items():
        (tensors if hasattr(item, "detach") else estimators)[name] = item
    # save_file refuses tensors that share memory: each is written by itself
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, folder / "weights.safetensors")
    files = {"weights.safetensors": _sha(folder / "weights.safetensors")}
    for name, estimator in estimators.items():
        import skops.io

        path = folder / f"{name}.skops"
        path.write_bytes(skops.io.dumps(estimator))
        files[path.name] = _sha(path)
    head = {
        "format": FORMAT,
        "method": model.method.plain(),
        "schema": dict(model.schema),
        "scope": model.scope,
        "files": files,
        "provenance": dict(provenance),
    }
    write_json(folder / "model.json", head)


def save_model(model: Model, to: Path, provenance: Mapping[str, Any] | None = None) -> None:
    """A model as a folder that appears whole."""
    write_folder(to, lambda folder: fill_model(model, folder, provenance or {}))


def read_head(folder: Path) -> dict[str, Any]:
    """The JSON of a saved model, checked."""
    path = folder / "model.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a saved model: it has no model.json; give the folder that `fit -o` wrote")
    try:
        head: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(head["format"])
        for name, kind in (("method", dict), ("schema", dict), ("files", dict)):
            if not isinstance(head[name], kind):
                raise TypeError(f"{name} is {type(head[name]).__name__}")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{path} is cut short or not a model's JSON ({error}); fit the model again") from None
    if version > FORMAT:
        raise UserError(
            f"{folder} was written by a newer version (format {version}, this one reads {FORMAT}); upgrade latticework"
        )
    return head


def own_form(path: Path) -> registry.Entry | None:
    """The method whose models have a file form of their own with this ending (``clip.hnerv``), or none."""
    for entry in registry.entries("method"):
        if path.suffix and entry.facts.get("suffix") == path.suffix.lower():
            return entry
    return None


def load_model(folder: Path | str, nets: Mapping[str, str] | None = None) -> Model:
    """A saved model. Every file's SHA-256 must be the recorded one.

    `nets` says again where a user's own nets are (name in the model -> module:function); a model file names no code.
    """
    folder = Path(folder)
    entry = own_form(folder) if folder.is_file() else None
    if entry is not None:
        return entry.load().model.read(folder)  # type: ignore[no-any-return]
    head = read_head(folder)
    state: dict[str, Any] = {}
    for name, expected in head["files"].items():
        path = folder / Path(name).name
        if not path.is_file():
            raise Damaged(f"{folder}: {name} is missing; copy the whole folder")
        if _sha(path) != expected:
            raise Damaged(f"{path} is not the file that was saved (its SHA-256 differs): cut short or changed; fit again")
        if path.suffix == ".skops":
            state[path.stem] = _read_estimator(path)
        else:
            state |= _tensors(path)
    try:
        method = registry.class_value("method", head["method"])
    except UserError as error:
        raise UserError(f"{folder / 'model.json'}: {error}; it is of another version, or was changed: fit again") from None
    schema = head["schema"] | ({"nets": dict(nets)} if nets else {})
    model: Model = method.model.restore(method, schema, state)
    return model


def _read_estimator(path: Path) -> Any:
    import skops.io

    unknown = skops.io.get_untrusted_types(file=path)
    refused = [t for t in unknown if not t.startswith(_SAFE_TYPES)]
    if refused:
        raise UserError(f"{path} names code outside scikit-learn ({', '.join(refused)}); it was not loaded")
    return skops.io.load(path, trusted=unknown)


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
