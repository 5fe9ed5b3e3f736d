"""Blocks used by two wings or more; torch, numpy, scipy and numba only."""
