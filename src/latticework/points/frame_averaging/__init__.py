"""Frame Averaging: exact invariance and equivariance for any network, from a few views of its input.

Source: Puny, Atzmon, Ben-Hamu, Misra, Grover, Smith, Lipman, "Frame Averaging for Invariant and Equivariant Network Design"
(ICLR 2022, arXiv 2110.03336).
"""

from latticework.layers.frames import E3, O3, SE, SE3, SO, SO3, E, Finite, O, Scale, Sn, Translations, cyclic, group_of

from .wrapper import FrameAveraging, FrameWarning, LayerwiseFrameAveraging, LocalVectors

__all__ = [
    "E3",
    "O3",
    "SE",
    "SE3",
    "SO",
    "SO3",
    "E",
    "Finite",
    "FrameAveraging",
    "FrameWarning",
    "LayerwiseFrameAveraging",
    "LocalVectors",
    "O",
    "Scale",
    "Sn",
    "Translations",
    "cyclic",
    "group_of",
]  # fmt: skip
