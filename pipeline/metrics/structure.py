"""Similarity of local structure: SSIM in three dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from pipeline.metrics.registry import Undefined, metric

WINDOW = 7
BORDER = WINDOW // 2
K1, K2 = 0.01, 0.03
_SLAB = 32  # slices at a time: five float64 maps of a whole 512 x 512 volume would take gigabytes


@metric(
    title="SSIM",
    unit="",
    better="higher",
    definition=(
        "mean structural similarity over the region: 3D, 7×7×7 uniform window, sample covariance, K1 0.01, K2 0.03, "
        "volumes clipped to the range and set to its lower end outside the region, 3 voxels cropped per side "
        "(SynthRAD2023)"
    ),
)
def ssim(
    prediction: NDArray,
    reference: NDArray,
    mask: NDArray[np.bool_] | None,
    spacing_mm: tuple[float, float, float],
    *,
    clip: tuple[float, float],
    data_range: float,
) -> float:
    """Mean structural similarity over the region, between -1 and 1.

    Volumes are (slices, rows, columns) in the unit of ``clip``. Both are clipped, set to ``clip[0]`` outside the mask
    and shifted so that ``clip[0]`` becomes 0; the map is averaged over the region's voxels that lie at least 3 voxels
    from every side. Source: Wang 2004 as in skimage's ``structural_similarity`` (uniform window, sample covariance)
    and SynthRAD2023's masking (metrics repository 3200007).

    Raises:
        Undefined: An axis is shorter than the window, or no voxel of the region is left after the crop.
    """
    if min(reference.shape) < WINDOW:
        raise Undefined(f"size {reference.shape} is smaller than the window of {WINDOW} voxels")
    inner = tuple(slice(BORDER, n - BORDER) for n in reference.shape)
    region = np.ones(reference.shape, bool) if mask is None else mask
    kept = np.zeros(reference.shape, bool)
    kept[inner] = region[inner]
    if not kept.any():
        raise Undefined(f"no voxel of the region is {BORDER} voxels away from every side")
    # Only the region's bounding box and its windows matter; the box stays inside the volume by construction.
    box = tuple(_span(kept, axis) for axis in range(3))
    total, count = 0.0, 0
    for start in range(box[0].start, box[0].stop, _SLAB):
        stop = min(start + _SLAB, box[0].stop)
        part = (slice(start, stop), box[1], box[2])
        wide = tuple(slice(s.start - BORDER, s.stop + BORDER) for s in part)
        within = region[wide]
        p, r = (
            np.where(within, np.clip(v[wide].astype(np.float64), *clip) - clip[0], 0.0) for v in (prediction, reference)
        )
        values = _map(p, r, data_range)[(slice(BORDER, -BORDER),) * 3][kept[part]]
        total += float(values.sum())
        count += values.size
    return total / count


def _span(mask: NDArray[np.bool_], axis: int) -> slice:
    others = tuple(a for a in range(mask.ndim) if a != axis)
    hit = np.flatnonzero(mask.any(axis=others))
    return slice(int(hit[0]), int(hit[-1]) + 1)


def _map(p: NDArray[np.float64], r: NDArray[np.float64], data_range: float) -> NDArray[np.float64]:
    """Return the similarity at each voxel; values within `BORDER` of a side depend on padding and are not used."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    sample = WINDOW**3 / (WINDOW**3 - 1)
    mean_p, mean_r = uniform_filter(p, WINDOW), uniform_filter(r, WINDOW)
    var_p = sample * (uniform_filter(p * p, WINDOW) - mean_p**2)
    var_r = sample * (uniform_filter(r * r, WINDOW) - mean_r**2)
    covariance = sample * (uniform_filter(p * r, WINDOW) - mean_p * mean_r)
    luminance = (2 * mean_p * mean_r + c1) / (mean_p**2 + mean_r**2 + c1)
    return luminance * (2 * covariance + c2) / (var_p + var_r + c2)
