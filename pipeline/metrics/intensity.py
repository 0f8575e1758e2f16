"""Differences of intensity voxel by voxel: MAE, MSE, ME, PSNR and the share of voxels within 50 HU."""

from __future__ import annotations

import math

import numpy as np

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import INTENSITY, INTENSITY_SQUARED, metric

NEAR_HU = 50.0


@metric(
    title="MAE",
    unit=INTENSITY,
    better="lower",
    definition="mean absolute difference over the region, neither volume clipped (SynthRAD2023 and 2025)",
)
def mae(pair: Pair) -> float:
    """Mean absolute error: ``sum |p - r| m / sum m``, in the volumes' unit.

    Nothing is clipped, so an outlier of the prediction counts in full. Source: SynthRAD2025 evaluation code
    (17cac47), identical in SynthRAD2023.

    Raises:
        Undefined: The region is empty.
    """
    return math.fsum(float(np.abs(p - r).sum()) for p, r in pair.chunks()) / pair.count


@metric(
    title="MSE",
    unit=INTENSITY_SQUARED,
    better="lower",
    definition="mean squared difference over the region, neither volume clipped",
)
def mse(pair: Pair) -> float:
    """Mean squared error ``sum (p - r)^2 m / sum m``, in the square of the volumes' unit; nothing is clipped.

    Raises:
        Undefined: The region is empty.
    """
    return math.fsum(float(np.square(p - r).sum()) for p, r in pair.chunks()) / pair.count


@metric(
    title="ME",
    unit=INTENSITY,
    better="zero",
    definition="mean of prediction minus reference over the region (bias), neither volume clipped",
)
def me(pair: Pair) -> float:
    """Mean error ``sum (p - r) m / sum m``, in the volumes' unit: above 0 where the prediction is too bright.

    Raises:
        Undefined: The region is empty.
    """
    return math.fsum(float((p - r).sum()) for p, r in pair.chunks()) / pair.count


@metric(
    title="PSNR",
    unit="dB",
    better="higher",
    definition="10 log10(R² / MSE), both volumes clipped to the profile's range if it has one, MSE over the region",
)
def psnr(pair: Pair, *, clip: tuple[float, float] | None, data_range: float) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(R^2 / MSE)`` with ``R = data_range``.

    Both volumes are clipped first (``clip`` in their unit; None: not at all). Source: SynthRAD2025 evaluation code
    (17cac47): clip [-1024, 3071], R = 4095.

    Raises:
        Undefined: The region is empty, or the volumes are equal there (infinite).
    """
    low, high = clip or (-math.inf, math.inf)
    squares = (float(np.square(np.clip(p, low, high) - np.clip(r, low, high)).sum()) for p, r in pair.chunks())
    error = math.fsum(squares) / pair.count
    if error == 0:
        raise Undefined("the volumes are equal in the region, so the ratio is infinite")
    return 10 * math.log10(data_range**2 / error)


@metric(
    title="within 50 HU",
    unit="%",
    better="higher",
    definition="share of the region's voxels whose difference is at most 50 HU in either direction",
    hu=True,
)
def within_50_hu(pair: Pair) -> float:
    """Share of voxels with ``|p - r| <= 50 HU``, in percent; not clipped, the limit itself counts as within.

    Source: Fan et al. 2022 say that most differences lie within 50 HU; an absolute count, which a few large errors
    cannot dominate as they do the MAE.

    Raises:
        Undefined: The region is empty.
    """
    return 100 * sum(int((np.abs(p - r) <= NEAR_HU).sum()) for p, r in pair.chunks()) / pair.count
