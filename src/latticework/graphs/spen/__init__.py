"""SPEN: permutation-equivariant maps inside ego networks (arXiv 2111.11840), and the global network of the same maps beside it."""

from .egos import EgoGraph, Egos, alike, classes_of, edge_channels, egos_of, in_order, pairs_of, union_of, whole_graphs, with_egos
from .method import IGNMethod, SPENMethod, SPENModel
from .network import SPEN, LocalLayer, LocalMaps, LocalReadOut, plan_of, weight_size

__all__ = [
    "SPEN", "EgoGraph", "Egos", "IGNMethod", "LocalLayer", "LocalMaps", "LocalReadOut", "SPENMethod", "SPENModel", "alike", "classes_of", "edge_channels",
    "egos_of", "in_order", "pairs_of", "plan_of", "union_of", "weight_size", "whole_graphs", "with_egos",
]  # fmt: skip
