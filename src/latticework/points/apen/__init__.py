"""APEN: point networks that stay equivariant when the parts of a scene or a body move by themselves (ICLR 2024).

`partition`: seeds to parts, by EM; `network`: layers frame-averaged inside parts; `recipe`: the method; `probe`: the bound, measured.
"""

from .network import APEN, PiecewiseLayer
from .partition import em, partition

__all__ = ["APEN", "PiecewiseLayer", "em", "partition"]
