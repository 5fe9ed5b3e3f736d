"""Learnable commutative monoids: an aggregation for any message-passing layer, and networks for sets and for graphs with it."""

from .aggregation import (
    BinaryGRU,
    BinaryMLP,
    LearnableMonoid,
    RecurrentAggregation,
    aggregation_of,
    associativity_loss,
    consistency_loss,
    identity_loss,
)

__all__ = [
    "BinaryGRU",
    "BinaryMLP",
    "LearnableMonoid",
    "RecurrentAggregation",
    "aggregation_of",
    "associativity_loss",
    "consistency_loss",
    "identity_loss",
]
