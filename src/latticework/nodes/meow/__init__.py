"""MEOW and AdaMEOW: vectors of one node type of a heterogeneous graph, learned without labels by contrasting two views.

A coarse view says which target nodes meta-paths join, a fine one through which nodes they do; one shared encoder makes both,
``Z_c`` and ``Z_f``, and ``L = -mean_i log( e^(c_i.f_i/tau) / sum_j w_ij e^(c_i.f_j/tau) )`` contrasts their projections. The
weight of a negative is ``w_ij = T - #{clusterings with i and j in one cluster}`` (MEOW, with a prototype term beside) or a
small network's ``sigmoid(MLP(f_i + c_j))`` (AdaMEOW), since ``dL/d(c_i.f_j) = w_ij e^(s_ij/tau) / (tau sum_l w_il e^(s_il/tau))``
pushes hardest, where w is 1, the negatives that are near, false ones above all.

Source: Yu and Li, "Heterogeneous Graph Contrastive Learning with Meta-path Contexts and Weighted Negative Samples" (SDM 2023)
and its extension "... Adaptively Weighted Negative Samples" (TKDE 2024). What the papers leave open (the norm over the whole
matrix, dropout, the initial values, the cut's order) follows the official code, jianxiangyu/MEOW; where that departs from its
own intention, the class that does it otherwise says so.
"""

from .losses import SoftWeights, cluster_weights, concentration, prototype_loss, spherical_kmeans
from .network import MEOW, SharedGCN, ViewAttention
from .probe import NegativePush, push
from .recipe import AdaMEOWMethod, MEOWMethod
from .views import Views, masked_features, masked_graph, nearest, path_graph, pathsim, reached

__all__ = [
    "MEOW",
    "AdaMEOWMethod",
    "MEOWMethod",
    "NegativePush",
    "SharedGCN",
    "SoftWeights",
    "ViewAttention",
    "Views",
    "cluster_weights",
    "concentration",
    "masked_features",
    "masked_graph",
    "nearest",
    "path_graph",
    "pathsim",
    "prototype_loss",
    "push",
    "reached",
    "spherical_kmeans",
]
