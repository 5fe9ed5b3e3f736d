"""LAGNN: features of likely neighbours, drawn from a conditional VAE, beside the real ones.

Source: Liu et al., "Local Augmentation for Graph Neural Networks" (ICML 2022, arXiv 2109.03856).
"""

from .consistency import consistency, sharpen
from .cvae import NeighbourCVAE, ReferenceGCN, acquisition, cvae_loss, neighbour_pairs, receptive_field
from .generator import NeighbourCVAEMethod, NeighbourCVAEModel, Sampler
from .method import LAGNNMethod, LAGNNModel

__all__ = [
    "LAGNNMethod", "LAGNNModel", "NeighbourCVAE", "NeighbourCVAEMethod", "NeighbourCVAEModel", "ReferenceGCN", "Sampler",
    "acquisition", "consistency", "cvae_loss", "neighbour_pairs", "receptive_field", "sharpen",
]  # fmt: skip
