"""A guard for backward passes that hold what they use as constants."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def first_order(instead: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For a ``backward`` without a derivative of its own: `RuntimeError` that says what to do `instead` where one would be taken.

    torch's ``once_differentiable`` raises only where the gradient that comes in has a derivative; where the saved inputs alone
    have one it lets it pass as 0. It is enough for maps that are linear in their inputs.
    """

    def guarded(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def once(ctx: Any, *upstream: Any) -> Any:
            if torch.is_grad_enabled():
                raise RuntimeError(f"first derivatives alone are given here, and create_graph asks for second ones; {instead}")
            return backward(ctx, *upstream)

        return once

    return guarded
