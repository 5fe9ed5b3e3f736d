"""The loss that asks several stochastic forwards to agree on every node, labelled or not.

Source: Liu et al., "Local Augmentation for Graph Neural Networks" (ICML 2022), section 3; as in GRAND (Feng et al., NeurIPS
2020).
"""

from __future__ import annotations

import torch
from torch import Tensor


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """``p^(1/T) / sum p^(1/T)`` along the last axis, without gradient; T -> 0 gives the largest entry all of it.

    p [..., C] >= 0 with sum 1. ``ValueError`` for T <= 0.
    """
    if temperature <= 0:
        raise ValueError(f"the temperature must be > 0, is {temperature}")
    return torch.softmax(p.detach().log() / temperature, -1)


def consistency(p: Tensor, temperature: float = 0.5) -> Tensor:
    """``1/s sum_k mean_i || p_k,i - p^_i ||^2`` with ``p^ = sharpen(mean_k p_k)``, which carries no gradient.

    p [s, n, C], the class probabilities of s forwards. A scalar. ``ValueError`` for s < 1, T <= 0, or other shapes.
    """
    if p.ndim != 3 or not len(p):
        raise ValueError(f"p must be [s, n, C] with s >= 1, is {list(p.shape)}")
    target = sharpen(p.mean(0), temperature)
    return ((p - target) ** 2).sum(-1).mean()
