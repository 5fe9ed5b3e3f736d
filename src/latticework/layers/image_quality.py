"""How near a picture is to its original: PSNR a frame, and multi-scale SSIM.

PSNR is taken in RGB with a peak of 1, a frame at a time, and averaged over frames in decibel; papers on codecs often
average squared errors first, or judge luma alone, and then give other numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MS_SSIM_SIDE = 160  # an 11 x 11 window at the fifth scale needs (11 - 1) * 2^4 < side


def psnr_frames(x: np.ndarray, y: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """PSNR in dB of each frame: ``-10 log10(mean squared error)``, float64 [T]; infinite where frames are equal.

    x, y: [T, H, W, 3], uint8 (taken as 0..255) or float (0..1); mask bool [H, W]: the pixels that count.
    """
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"two clips of one shape [T, H, W, 3] are needed, not {list(x.shape)} and {list(y.shape)}")
    if mask is not None and (mask.shape != x.shape[1:3] or not mask.any()):
        raise ValueError(f"the mask must be [H, W] = {list(x.shape[1:3])} and hold a pixel, not {list(mask.shape)}")
    out = np.empty(len(x))
    for i, (a, b) in enumerate(zip(x, y, strict=True)):
        error = (_unit(a) - _unit(b)) ** 2
        mean = float((error if mask is None else error[mask]).mean())
        out[i] = -10 * np.log10(mean) if mean > 0 else np.inf
    return out


def psnr(x: np.ndarray, y: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean over frames of `psnr_frames`, in dB."""
    return float(psnr_frames(x, y, mask).mean())


def _unit(frame: np.ndarray) -> np.ndarray:
    return frame.astype(np.float64) / 255 if frame.dtype == np.uint8 else frame.astype(np.float64)


def ms_ssim(x: np.ndarray, y: np.ndarray, batch: int = 4) -> tuple[float | None, str]:
    """Mean multi-scale SSIM over frames (five scales, Gaussian 11 x 11 window, Wang et al. 2003), or none with the reason.

    x, y: [T, H, W, 3], uint8 or float in 0..1. A side of 160 px or less leaves nothing of the window at the fifth scale.
    """
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"two clips of one shape [T, H, W, 3] are needed, not {list(x.shape)} and {list(y.shape)}")
    if min(x.shape[1:3]) <= MS_SSIM_SIDE:
        return None, f"MS-SSIM needs sides above {MS_SSIM_SIDE} px, the frames are {x.shape[2]}x{x.shape[1]}"
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    total = 0.0
    for i in range(0, len(x), batch):
        a, b = (_planes(v[i : i + batch]) for v in (x, y))
        total += float(measure(a, b, data_range=1.0, reduction="sum"))
    return total / len(x), ""


def _planes(frames: np.ndarray) -> Tensor:
    planes = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    return planes.float() / 255 if frames.dtype == np.uint8 else planes.float()
