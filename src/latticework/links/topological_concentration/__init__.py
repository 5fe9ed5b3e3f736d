"""Topological Concentration: how much of its neighbourhood a node shares with its neighbours, and what that says of links.

``TC_i = mean_j I_ij / Z_i`` over a node's neighbours j, where ``I_ij`` counts the walks from i that end where walks from j do,
up to K hops in the train graph, a hop weighing 1 / mean degree less than the one before. K = 1 over train edges is the local
clustering coefficient. Measured over held-out neighbours it says at which nodes a link predictor will do well, better than
degree does; ATC approximates its order from a random projection; `tc-reweight` puts weight on the edges that concentrate.

Source: Wang et al., "A Topological Perspective on Demystifying GNN-Based Link Prediction Performance" (ICLR 2024).
"""

from .concentration import (
    Approximation,
    Concentration,
    approximate,
    atc_embedding,
    atc_limit,
    mean_degree_inverse,
    subgraph_density,
    topological_concentration,
)  # fmt: skip
from .per_node import binned, per_node, rank_correlation
from .reweight import edge_scores, reweighted, row_softmax

__all__ = [
    "Approximation", "Concentration", "approximate", "atc_embedding", "atc_limit", "binned", "edge_scores",
    "mean_degree_inverse", "per_node", "rank_correlation", "reweighted", "row_softmax", "subgraph_density",
    "topological_concentration",
]  # fmt: skip
