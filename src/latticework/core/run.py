"""The context of a fit: named random streams, device, threads, progress and curves, checkpoints, time, other models."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import registry, store
from .errors import Cancelled, Damaged, OutOfTime, UserError
from .ledger import Ledger, passed_over
from .method import Backbone, Method, Model, Ref
from .result import Cost, Metric
from .task import Part, Task
from .value import digest_of

if TYPE_CHECKING:
    import numpy as np
    import torch

CURVE_POINTS = 400


class Run:
    """What a method gets to work with. It holds no data set and no test part."""

    def __init__(
        self,
        *,
        task: Task | None,
        digest: str = "",
        fold: str = "",
        seed: int = 0,
        ledger: Ledger | None = None,
        device: str = "cpu",
        precision: str = "float32",
        threads: int = 1,
        deadline: float | None = None,
        on_log: Callable[[str, int, Mapping[str, float]], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        nets: Mapping[str, str] | None = None,
        label: str = "",
        folder: Path | None = None,
    ) -> None:
        self.task, self.digest, self.fold, self.seed = task, digest, fold, seed
        self.ledger = ledger or Ledger()
        self.device, self.precision, self.threads = device, precision, threads
        self.deadline, self.on_log, self.cancelled = deadline, on_log, cancelled
        self.nets = dict(nets or {})
        self.label = label
        self.folder = folder  # where a probe may write the files that its findings name; none: it writes none
        self.curve: dict[str, list[tuple[int, float]]] = {}
        self.refs_s = 0.0
        self.waited_s = 0.0
        self.stopped = False
        self.notes: list[str] = []
        self.facts: dict[str, Any] = {}  # of the fit, once there is one
        self.fit_key = ""
        self._valid: Part | None = None
        self._parts: tuple[Part, Part | None] | None = None
        self._last_keep = time.monotonic()

    # -- randomness --------------------------------------------------------------------------------------------
    def _entropy(self, stream: str) -> list[int]:
        return [self.seed, int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")]

    def rng(self, stream: str) -> np.random.Generator:
        """A generator of its own for each name: independent of the order of calls."""
        import numpy as np

        return np.random.default_rng(np.random.SeedSequence(self._entropy(stream)))

    def generator(self, stream: str) -> torch.Generator:
        """The same for torch (on the CPU, so that draws do not depend on the device)."""
        import torch

        return torch.Generator().manual_seed(int(self.rng(stream).integers(2**62)))

    # -- what a fit may ask ------------------------------------------------------------------------------------
    def validate(self, model: Model) -> float:
        """The task's headline on the valid part; NaN where the task has none there."""
        if self.task is None or self._valid is None:
            raise UserError("this fit has no validation part to choose on; give one, or use a method that needs none")
        return self.judge(model, self._valid)

    def judge(self, model: Model, valid: Part) -> float:
        """The task's headline on a part that validates; NaN where the task has none there."""
        assert self.task is not None
        value = self.task.value(self.task.answer(model, valid.blind(), self), valid, self)
        return math.nan if value is None else value

    @property
    def metric(self) -> Metric:
        """The headline's metric (its direction tells which validation score is better)."""
        assert self.task is not None
        return self.task.metric(self.task.headline_metric)

    def log(self, step: int, **values: float) -> None:
        """Add to the curves, show progress; raises when cancelled or out of time."""
        for name, value in values.items():
            self.curve.setdefault(name, []).append((step, float(value)))
        if self.on_log is not None:
            self.on_log(self.label, step, values)
        if self.cancelled is not None and self.cancelled():
            raise Cancelled(self.label)
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise OutOfTime(self.label)

    def keep(self, step: int, state: Mapping[str, Any], every_s: float = 30.0) -> None:
        """Checkpoint, at most every `every_s` seconds; the newest comes back from `last`."""
        if not self.fit_key or time.monotonic() - self._last_keep < every_s:
            return
        store.write_tree(self.ledger.work_folder(self.fit_key), {"step": step, "state": dict(state), "curve": self.curve})
        self._last_keep = time.monotonic()

    def last(self) -> tuple[int, Mapping[str, Any]] | None:
        """The newest checkpoint of this fit, if an earlier process left one."""
        folder = self.ledger.work_folder(self.fit_key)
        if not self.fit_key or not (folder / "state.json").exists():
            return None
        try:
            tree = store.read_tree(folder)
        except Damaged as error:
            passed_over(error, "the fit starts anew")
            return None
        self.curve = {name: [tuple(p) for p in points] for name, points in tree["curve"].items()}
        return int(tree["step"]), tree["state"]

    def model(self, ref: Ref | Method, train: Part, valid: Part | None = None) -> Any:
        """Another trained thing: from the ledger, or fitted into it. Its seconds count as `refs_s`."""
        ref = ref if isinstance(ref, Ref) else Ref(method=ref)
        if ref.saved is not None:
            return store.load_model(ref.saved, self.nets)
        if ref.net is not None:
            return user_net(self.nets.get(ref.net, ref.net))
        if ref.method is None:
            raise UserError("a ref needs one of: method, saved, net")
        child = self._child_of(ref)
        if ref.data is not None:
            if ref.task is not None:
                fold = ref.task.fold(ref.data, child.fold)
                train, valid = fold.train, fold.valid
            else:
                train, valid = ref.data.whole(), None
        elif self._parts is None or train is not self._parts[0]:
            child.fold = f"{self.fold}/{part_digest(train)[:16]}"  # other data than the fold's own train part
        if not ref.trained:
            if not isinstance(ref.method, Backbone):
                raise UserError(f"{ref.method.name} cannot be left untrained: it builds no network")
            with child.seeded("untrained"):
                return ref.method.build(train, child)
        before = time.perf_counter()
        model = fitted(ref.method, train, valid, child)
        # what it cost to fit counts, also where it came from the ledger; what was waited here is no part of this fit
        self.refs_s += child.facts["fit_s"] + child.facts["refs_s"]
        self.waited_s += time.perf_counter() - before
        self.stopped |= child.stopped  # a fit on a part that was cut short is cut short
        said = [f"{ref.method.name}: {note}" for note in child.notes]
        self.notes += [note for note in dict.fromkeys(said) if note not in self.notes]
        return model

    def _child_of(self, ref: Ref) -> Run:
        """The run that a ref's fit has; of a ref with data of its own, on the first fold of its task or on all of it."""
        assert ref.method is not None
        child = self.child(ref.seed, f"{self.label} > {ref.method.name}")
        if ref.data is not None:
            child.digest, child.task = ref.data.digest(), ref.task or self.task
            child.fold = ref.task.plan(ref.data, 1)[0][0] if ref.task is not None else "all"
        return child

    def key_of(self, ref: Ref) -> str:
        """The key of the fit of a ref with data of its own."""
        assert ref.method is not None and ref.data is not None
        return self._child_of(ref).identity(ref.method)

    def chosen(self, ref: Ref, train: Part, valid: Part | None = None) -> Method:
        """The method that a ref's fit ends with: as `model`, but a record of what was found is enough."""
        facts = self.ledger.choice(self.key_of(ref))
        if facts is None:
            found: Method = self.model(ref, train, valid).method
            return found
        self.refs_s += facts["fit_s"] + facts["refs_s"]
        known: Method = registry.class_value("method", facts["chosen"])
        return known

    def child(self, seed: int | None = None, label: str = "") -> Run:
        """A run for a fit inside this one: same context, its own streams and curves."""
        return Run(
            task=self.task, digest=self.digest, fold=self.fold, seed=self.seed if seed is None else seed,
            ledger=self.ledger, device=self.device, precision=self.precision, threads=self.threads,
            deadline=self.deadline, on_log=self.on_log, cancelled=self.cancelled, nets=self.nets,
            label=label or self.label,
        )  # fmt: skip

    @contextlib.contextmanager
    def seeded(self, stream: str = "torch") -> Iterator[None]:
        """Torch's global generator seeded for dropout and initialisers, and put back afterwards."""
        import torch

        devices = [] if self.device == "cpu" or not torch.cuda.is_available() else list(range(torch.cuda.device_count()))
        before = torch.get_num_threads()
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(self.rng(stream).integers(2**62)))
            torch.set_num_threads(self.threads)
            try:
                yield
            finally:
                torch.set_num_threads(before)

    def identity(self, method: Method) -> str:
        """The fit's key: task, data digest, fold, method without its outermost late fields, seed, precision."""
        return digest_of(
            {
                "task": self.task.identity() if self.task else None,
                "data": self.digest,
                "fold": self.fold,
                "method": method.identity(late=False),
                "seed": self.seed if method.chance else 0,
                "precision": self.precision,
            }
        )[:32]


@contextlib.contextmanager
def generator_kept() -> Iterator[None]:
    """Torch's global generator is afterwards as it was: a net that is built to be loaded draws its first weights from it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        yield


def fitted(method: Method, train: Part, valid: Part | None, run: Run) -> Model:
    """The model of a fit: read from the ledger, or fitted and written there."""
    key = run.identity(method)
    run.fit_key = key
    run.label = run.label or method.name
    found = _stored(run)
    if found is None:
        with run.ledger.hold(f"fit-{key}", wait=True):
            found = _stored(run)  # another process may have finished it meanwhile
            if found is None:
                return _fit(method, train, valid, run)
    facts, model = found
    run.facts = facts
    run.curve = {name: [tuple(p) for p in points] for name, points in facts["curve"].items()}
    run.refs_s, run.stopped, run.notes = facts["refs_s"], facts["stopped"], list(facts["notes"])
    late = {k: getattr(method, k) for k in method.late_fields() if k in model.method.late_fields()}
    return model.at(**late) if late else model


def _stored(run: Run) -> tuple[dict[str, Any], Model] | None:
    """What is kept of this fit, with its model; none where its files are damaged: it is made again."""
    folder = run.ledger.fit_folder(run.fit_key)
    if folder is None:
        return None
    try:
        return run.ledger.fit_facts(run.fit_key), store.load_model(folder, run.nets)
    except Damaged as error:
        passed_over(error, "what was kept of this fit is made again")
        return None


def _fit(method: Method, train: Part, valid: Part | None, run: Run) -> Model:
    run._valid, run._parts = valid, (train, valid)
    reset_peak()
    before = time.perf_counter()
    with run.seeded():
        model = method.fit(train, valid, run)
    fit_s = time.perf_counter() - before - run.waited_s
    run.facts = facts = {
        "method": method.plain(),
        "chosen": model.method.plain(),
        "fit_s": max(fit_s, 0.0),
        "refs_s": run.refs_s,
        "peak_bytes": peak_bytes(),
        "parameters": model.parameters(),
        "stopped": run.stopped,
        "notes": run.notes,
        "curve": {name: thin(points) for name, points in run.curve.items()},
    }
    if not run.stopped:  # a fit cut by the clock is usable but never evidence, so it is not kept for others
        run.ledger.put_fit(run.fit_key, lambda folder: store.fill_model(model, folder, {}), facts)
        # what is judged is what was stored: a model that does not survive its own file is found at once
        folder = run.ledger.fit_folder(run.fit_key)
        assert folder is not None
        return store.load_model(folder, run.nets)
    return model


def cost_of(method: Method, run: Run, predict_s: float) -> Cost:
    """The recorded cost of the fit behind a run."""
    facts = run.facts
    return Cost(
        fit_s=facts["fit_s"], refs_s=facts["refs_s"], predict_s=predict_s,
        peak_bytes=facts["peak_bytes"], parameters=facts["parameters"],
    )  # fmt: skip


def thin(points: list[tuple[int, float]], most: int = CURVE_POINTS) -> list[tuple[int, float]]:
    """At most `most` points of a curve, the last one kept; non-finite ones dropped (JSON has none)."""
    points = [(s, v) for s, v in points if math.isfinite(v)]
    if len(points) <= most:
        return points
    stride = math.ceil(len(points) / most)
    return points[::stride] + ([] if (len(points) - 1) % stride == 0 else [points[-1]])


def user_net(spec: str) -> Any:
    """A user's own network: ``module:function`` is imported and called."""
    import importlib
    import sys

    module, _, function = spec.partition(":")
    if not function:
        raise UserError(f"a net is given as module:function, not {spec!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        build = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot import {spec!r}: {error}; run where {module}.py lies, or install it") from None
    from torch import nn

    net = build()
    if not isinstance(net, nn.Module):
        raise UserError(f"{spec} returned {type(net).__name__}, not a torch.nn.Module")
    return net


def part_digest(part: Part) -> str:
    """SHA-256 of a part's content, for parts that are not a fold's own."""
    sha = hashlib.sha256()

    def walk(node: Any) -> None:
        if hasattr(node, "detach") and hasattr(node, "dtype"):
            node = node.detach().cpu().numpy()
        if hasattr(node, "tobytes"):
            sha.update(str((node.dtype, node.shape)).encode() + node.tobytes())
        elif isinstance(node, Mapping):
            for key in sorted(node, key=str):
                sha.update(str(key).encode())
                walk(node[key])
        elif isinstance(node, list | tuple):
            sha.update(str(len(node)).encode())
            for item in node:
                walk(item)
        elif hasattr(node, "to_dict"):
            walk(node.to_dict())
        elif hasattr(node, "__dict__"):
            walk({k: v for k, v in vars(node).items() if k != "_cache"})  # what is computed once is no content
        else:
            sha.update(repr(node).encode())

    walk(tuple(part))
    return sha.hexdigest()


def reset_peak() -> None:
    """Start the peak of resident memory anew, where the system lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak resident memory since `reset_peak` (of the process's life where that has no effect)."""
    with contextlib.suppress(OSError, StopIteration):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def pick_device(wanted: str) -> str:
    """``auto`` takes an accelerator where there is one. `UserError` for a device that is not here."""
    if wanted == "cpu":
        return wanted
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.empty(0, device=wanted).device.type
    except (RuntimeError, AssertionError):  # torch's words for a name that it does not know, or was not built for
        found = "none"
    if found in ("none", "meta"):
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UserError(f"no device {wanted!r} is here; there is {', '.join(here)}, and auto takes the best")
    return wanted
