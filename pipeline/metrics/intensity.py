"""Differences of intensity voxel by voxel: MAE, PSNR and the share of voxels within 50 HU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.registry import INTENSITY, Undefined, inside_mask, metric

NEAR_HU = 50.0


@metric(
    title="MAE",
    unit=INTENSITY,
    better="lower",
    definition="mean absolute difference over the region, neither volume clipped (SynthRAD2023 and 2025)",
)
def mae(
    prediction: NDArray,
    reference: NDArray,
    mask: NDArray[np.bool_] | None,
    spacing_mm: tuple[float, float, float],
    *,
    clip: tuple[float, float],
    data_range: float,
) -> float:
    """Mean absolute error: ``sum |p - r| m / sum m``.

    Volumes are (slices, rows, columns); the result is in their unit. Nothing is clipped, so an outlier of the
    prediction counts in full. Source: SynthRAD2025 evaluation code (17cac47), identical in SynthRAD2023.

    Raises:
        Undefined: The region is empty.
    """
    p, r = inside_mask(prediction, reference, mask)
    return float(np.abs(p - r).mean())


@metric(
    title="PSNR",
    unit="dB",
    better="higher",
    definition="10 log10(R² / MSE), both volumes clipped to the range, R its width, MSE over the region (SynthRAD2025)",
)
def psnr(
    prediction: NDArray,
    reference: NDArray,
    mask: NDArray[np.bool_] | None,
    spacing_mm: tuple[float, float, float],
    *,
    clip: tuple[float, float],
    data_range: float,
) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(R^2 / MSE)`` with ``R = data_range``.

    Volumes are (slices, rows, columns) in the unit of ``clip``; both are clipped first and the MSE is taken over the
    region. Source: SynthRAD2025 evaluation code (17cac47): clip [-1024, 3071], R = 4095.

    Raises:
        Undefined: The region is empty, or the volumes are equal there (infinite).
    """
    p, r = inside_mask(prediction, reference, mask)
    mse = float(np.square(np.clip(p, *clip) - np.clip(r, *clip)).mean())
    if mse == 0:
        raise Undefined("the volumes are equal in the region, so the ratio is infinite")
    return float(10 * np.log10(data_range**2 / mse))


@metric(
    title="within 50 HU",
    unit="%",
    better="higher",
    definition="share of the region's voxels whose difference is at most 50 HU in either direction",
)
def within_50_hu(
    prediction: NDArray,
    reference: NDArray,
    mask: NDArray[np.bool_] | None,
    spacing_mm: tuple[float, float, float],
    *,
    clip: tuple[float, float],
    data_range: float,
) -> float:
    """Share of voxels with ``|p - r| <= 50 HU``, in percent.

    Volumes are (slices, rows, columns) in HU, not clipped; the limit itself counts as within.
    Source: this project; an absolute count that a few large errors cannot dominate, as they do the MAE.

    Raises:
        Undefined: The region is empty.
    """
    p, r = inside_mask(prediction, reference, mask)
    return float(100 * np.mean(np.abs(p - r) <= NEAR_HU))
