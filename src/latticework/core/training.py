"""The one training loop: epochs, validation, early stopping, the best weights, checkpoints, the clock."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .errors import OutOfTime
from .run import Run

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .method import Model
    from .task import Part


class Watch(NamedTuple):
    """What one look at the valid part found: `value` chooses (lower is better), the rest is drawn."""

    value: float
    curves: dict[str, float] = {}  # noqa: RUF012  (never written)


def watched(model: Model, valid: Part, run: Run) -> Watch:
    """A look at the task's headline on the valid part; where it has none, the look is the worst there is."""
    value = run.judge(model, valid)
    if math.isnan(value):
        return Watch(math.inf)
    return Watch(-value if run.metric.better == "higher" else value, {"valid": value})


class Patience(NamedTuple):
    """Stop after `epochs` without a better value; or, with `mean_of`, when a value exceeds the mean of the last ones.

    `after` is the share of all epochs before which nothing stops.
    """

    epochs: int = 0
    mean_of: int = 0
    after: float = 0.0


def train(
    net: nn.Module,
    step: Callable[[int], float],
    run: Run,
    *,
    epochs: int,
    optimiser: torch.optim.Optimizer,
    schedule: Callable[[int], float] | None = None,
    watch: Callable[[], Watch] | None = None,
    patience: Patience | None = None,
) -> int:
    """Train `net` in place and leave it with the best watched weights (the last, without `watch`), in eval mode.

    `step(epoch)` does one epoch's updates with `optimiser` and returns the loss; `schedule(epoch)` is the factor on
    each group's initial learning rate. Returns the epoch whose weights are kept. A fit that is out of time keeps what
    it has and marks the run as stopped.
    """
    base = [group["lr"] for group in optimiser.param_groups]
    best, best_epoch, best_state, seen = math.inf, -1, None, []
    start = 0
    resumed = run.last()
    if resumed is not None:
        start, state = resumed
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        # as tensors: JSON has no infinity, and the best value is one before the first look
        best, best_epoch, best_state = float(state["best"]), state["best_epoch"], state["best_state"]
        seen = state["seen"].tolist()
        _set_generator(state["generator"])
    for epoch in range(start, epochs):
        if schedule is not None:
            for group, lr in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = lr * schedule(epoch)
        net.train()
        loss = step(epoch)
        curves = {"loss": loss}
        stop = False
        if watch is not None:
            net.eval()
            look = watch()
            curves |= look.curves or {"valid": look.value}
            if best_state is None or look.value < best or math.isnan(best):  # no number is below NaN
                best, best_epoch, best_state = look.value, epoch, copy.deepcopy(net.state_dict())
            stop = _stops(patience, look.value, epoch, best_epoch, seen, epochs)
            seen.append(look.value)
        try:
            run.log(epoch, **curves)
        except OutOfTime:
            run.stopped = True
            break
        if stop:
            break
        run.keep(
            epoch + 1,
            {
                "net": net.state_dict(), "optimiser": optimiser.state_dict(), "best": _number(best),
                "best_epoch": best_epoch, "best_state": best_state, "seen": _number(seen), "generator": _generator(),
            },
        )  # fmt: skip
    if best_state is not None:
        net.load_state_dict(best_state)
    net.eval()
    return best_epoch


def _stops(patience: Patience | None, value: float, epoch: int, best_epoch: int, seen: list[float], epochs: int) -> bool:
    if patience is None or epoch < patience.after * epochs:
        return False
    if patience.mean_of and len(seen) >= patience.mean_of:
        recent = seen[-patience.mean_of :]  # the current value is not among them
        return value > sum(recent) / len(recent)
    return bool(patience.epochs) and epoch - best_epoch >= patience.epochs


def _number(value: float | list[float]) -> torch.Tensor:
    import torch

    return torch.tensor(value, dtype=torch.float64)


def _generator() -> torch.Tensor:
    import torch

    return torch.get_rng_state()


def _set_generator(state: torch.Tensor) -> None:
    import torch

    torch.set_rng_state(state)


def minibatches(n: int, size: int, generator: torch.Generator) -> list[torch.Tensor]:
    """A shuffled cut of ``range(n)`` into batches; the last may be smaller."""
    import torch

    order = torch.randperm(n, generator=generator)
    return [order[i : i + size] for i in range(0, n, size)]
