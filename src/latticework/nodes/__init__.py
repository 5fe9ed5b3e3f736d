"""Learning on the nodes of a graph."""
