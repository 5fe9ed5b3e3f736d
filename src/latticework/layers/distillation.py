"""What distillation into a smaller net needs: soft targets, the KL term, entropies, perturbed features.

Source: the soft-target term is Hinton et al., "Distilling the Knowledge in a Neural Network" (2015). The form in which a KL
of logarithms is fed probabilities is that of published code; it is here so that both can be compared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def entropy(p: Tensor) -> Tensor:
    """``-sum_c p_c log p_c`` of each row, with ``0 log 0 = 0``. p [..., C] -> [...]."""
    return torch.special.entr(p).sum(-1)


def soften(p: Tensor, tau: float = 1.0) -> Tensor:
    """``softmax(logits / tau)`` from ``p = softmax(logits)``: ``p^(1/tau)``, scaled to sum to 1. p [..., C] -> [..., C].

    ``ValueError`` for tau <= 0.
    """
    if tau <= 0:
        raise ValueError(f"tau must be > 0, is {tau}")
    if tau == 1:
        return p
    powers = p ** (1 / tau)
    return powers / powers.sum(-1, keepdim=True)


def kl_divergence(target: Tensor, log_p: Tensor) -> Tensor:
    """``KL(t || p) = sum_c t_c (log t_c - log p_c)`` of each row, with ``0 log 0 = 0``. [..., C], [..., C] -> [...]."""
    return -entropy(target) - torch.where(target > 0, target * log_p, torch.zeros_like(log_p)).sum(-1)


def kl_of_probabilities(target: Tensor, log_p: Tensor) -> Tensor:
    """``sum_c exp(t_c) (t_c - log p_c)``: torch's ``kl_div(log_target=True)`` where t holds probabilities, not logarithms.

    Its minimiser is ``p`` proportional to ``exp(t)``, nearly uniform, with the target's order. [..., C], [..., C] -> [...].
    """
    return (target.exp() * (target - log_p)).sum(-1)


def perturb(x: Any, noise: float, generator: torch.Generator) -> Tensor:
    """``x * (1 + g) * noise`` with g standard normal for each entry: zeros stay zero. A tensor of x's shape.

    ``ValueError`` for noise <= 0, which leaves nothing of x.
    """
    if noise <= 0:
        raise ValueError(f"noise must be > 0, is {noise}: at 0 the perturbed features are all zero")
    drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x * (1 + drawn.to(x.device)) * noise
