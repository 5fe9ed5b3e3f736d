"""Graph Mamba: every node as a short sequence of random-walk neighbourhoods, read by a bidirectional selective scan.

For node v and each length r = 0 .. m, M random walks of r steps start at v; the token is the sub-graph induced by all that they
visit, and ``repeats`` fresh tokens stand for each r >= 1, the farthest first and v itself last. A local encoder maps tokens to
vectors, Mamba blocks read the s m + 1 of them, and the last state is the node's. Then (with m = 0: at once) the nodes of a graph,
ordered by importance, are one sequence for further blocks, with message passing beside. Positional codes may be joined to the
features. All steps are fields of one recipe.

Source: Behrouz and Hashemi, "Graph Mamba: Towards Learning on Graphs with State Space Models" (KDD 2024, arXiv 2402.08678),
sections 4.1 (the five steps) and 4.2. No code was published; what the paper leaves open is marked in `network` and `tokens`.
"""

from __future__ import annotations

from .method import GraphMambaMethod, GraphMambaModel
from .network import GraphMamba, NodeLayer
from .tokens import Tokens, csr_of, importance, orders, tokenise, with_sequences

__all__ = [
    "GraphMamba",
    "GraphMambaMethod",
    "GraphMambaModel",
    "NodeLayer",
    "Tokens",
    "csr_of",
    "importance",
    "orders",
    "tokenise",
    "with_sequences",
]
