"""NAT: links in a stream from the joint neighbourhood of two nodes, read off small hashed dictionaries.

Every node u keeps a dictionary of neighbours a at hops k = 0, 1, 2: ``Z_u^k[a] = (time, z)``, at most M_k of them, one slot a
key, ``hash_k(a)``; a colliding neighbour takes the slot with chance alpha. A pair (u, v) is scored from the union of both
dictionaries' keys: where a key occurs in either makes its code, ``sum of 2^k + 2^(k+3)``, so common neighbours and repeats are
seen at once, in time that does not grow with the degree. An event writes each end into the other's first hop, and the other's
first hop into its second.

Source: Luo and Li, "Neighborhood-aware Scalable Temporal Network Representation Learning" (LoG 2022, arXiv 2209.01084),
section 4. What the paper leaves open (sizes, initial values, the order of a step) follows the official code,
Graph-COM/Neighborhood-Aware-Temporal-Network. Where that departs from the paper, both forms exist: it sums the joint rows where
the paper attends over them (`attention`), and codes the time of a meeting where the paper codes time elapsed (`elapsed`). Its
slips are not taken over: node 0, event 0 and time 0 are valid here, ids and times keep their precision, and of several writes
to one slot the latest event's stands.
"""

from .cache import NCache, Slots, mixing_hash, official_hash
from .network import NAT, Pool, Rows, join
from .recipe import NATMethod, NATModel

__all__ = ["NAT", "NATMethod", "NATModel", "NCache", "Pool", "Rows", "Slots", "join", "mixing_hash", "official_hash"]
