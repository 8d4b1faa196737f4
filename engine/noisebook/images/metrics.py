"""How near a decoded picture is to its original."""

import math

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray) -> float | None:
    """Peak signal-to-noise ratio in dB over all values of two uint8 pictures; None where they are equal (infinite)."""
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return 10 * math.log10(255**2 / error) if error > 0 else None


def ssim(a: np.ndarray, b: np.ndarray) -> float | None:
    """Mean structural similarity (Wang et al. 2004, 7 x 7 windows, scikit-image); None below 7 pixels a side."""
    from skimage.metrics import structural_similarity

    if min(a.shape[:2]) < 7:
        return None
    return float(structural_similarity(a, b, channel_axis=2, data_range=255))  # pyright: ignore[reportArgumentType]
