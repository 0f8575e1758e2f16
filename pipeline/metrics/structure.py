"""Similarity of local structure: SSIM, and MS-SSIM over five scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import metric
from pipeline.metrics.windows import Box, Planes, bounds, inner, prepared, similarity, window_for

# Wang 2003, section 3.2: exponents of the five scales, the finest first.
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST = 97  # voxels per axis, so that the coarsest scale still holds a window


@metric(
    title="SSIM",
    unit="",
    better="higher",
    definition=(
        "mean structural similarity over the region's voxels at least half a window from every side: K1 0.01, K2 0.03; "
        "volumes clipped to the profile's range and shifted to begin at 0; window and what it sees outside the region "
        "as the profile says (Wang 2004; SynthRAD2023: uniform, the lowest value)"
    ),
)
def ssim(
    pair: Pair,
    *,
    clip: tuple[float, float] | None,
    data_range: float,
    outside: str,
    window: Literal["uniform", "gaussian"],
    dimension: Literal["2d", "3d"],
) -> float:
    """Mean structural similarity over the region, between -1 and 1.

    Both volumes are clipped and shifted so that ``clip[0]`` becomes 0, and ``outside`` 'lowest' sets them to it outside
    the mask; the map is averaged over the region's voxels whose window lies inside the volume. Source: Wang 2004;
    'uniform' as skimage's ``structural_similarity`` and SynthRAD2023's masking (metrics repository 3200007).

    Raises:
        Undefined: An axis is shorter than the window, or no voxel of the region is left after the crop.
    """
    shape = window_for(window, flat=dimension == "2d")
    if any(n < size for n, size in zip(pair.reference.shape, shape.size, strict=True)):
        raise Undefined(f"size {pair.reference.shape} is smaller than the window of {max(shape.size)} voxels")
    kept = inner(pair.mask, pair.reference.shape, shape)
    if not kept.any():
        raise Undefined(f"no voxel of the region is {max(shape.size) // 2} voxels away from every side")
    box = bounds(kept, shape)
    films = prepared(pair, box, clip, outside)
    totals = ((float(light @ form), light.size) for light, form in similarity(films, kept[box], shape, data_range))
    total, count = np.sum(list(totals), axis=0)
    return float(total / count)


@metric(
    title="MS-SSIM",
    unit="",
    better="higher",
    definition=(
        "product over five scales of the mean over the region of (luminance x contrast x structure)^w, each mean "
        "clipped to [0, 1]: 3D, 7x7x7 uniform window, sample covariance, w as in Wang 2003 but, as in SynthRAD2025's "
        "code (17cac47), on the luminance at every scale and voxel by voxel; axes below 97 voxels padded by their edge"
    ),
    taken="volume",
)
def ms_ssim(pair: Pair, *, clip: tuple[float, float], data_range: float) -> float:
    """Masked multi-scale structural similarity as SynthRAD2025 reports it, between 0 and 1.

    Volumes are clipped, ``clip[0]`` outside the mask, and shifted to begin at 0. Every scale halves the volumes by
    means of 2 x 2 x 2 voxels ending at each second one (zeros before the first) and the mask by each second voxel.
    Source: SynthRAD2025 evaluation code (17cac47), whose luminance enters at all five scales instead of the last.

    Raises:
        Undefined: The region is empty, or so thin that a scale has no voxel of it 3 voxels from every side.
    """
    factors = []
    for weight, values in zip(SCALES, _scales(pair, clip, data_range), strict=True):
        parts = [(float((np.maximum(light * form, 0) ** weight).sum()), light.size) for light, form in values]
        factors.append(_mean(parts))
    return math.prod(min(1.0, max(0.0, factor)) for factor in factors)


@metric(
    title="MS-SSIM (Wang)",
    unit="",
    better="higher",
    definition=(
        "product over five scales of the region's mean of contrast x structure to the power w, with the luminance at "
        "the coarsest scale only (Wang 2003); windows, masking and halving as in SynthRAD2025's MS-SSIM"
    ),
    taken="volume",
)
def ms_ssim_wang(pair: Pair, *, clip: tuple[float, float], data_range: float) -> float:
    """Multi-scale structural similarity with the luminance at the coarsest scale only and means before exponents.

    Volumes are treated as in `ms_ssim`; a negative mean counts as 0. Source: Wang 2003, equation 7.

    Raises:
        Undefined: As in `ms_ssim`.
    """
    product = 1.0
    for level, (weight, values) in enumerate(zip(SCALES, _scales(pair, clip, data_range), strict=True), start=1):
        last = level == len(SCALES)
        parts = [(float(light @ form) if last else float(form.sum()), light.size) for light, form in values]
        product *= max(0.0, _mean(parts)) ** weight
    return product


def _mean(parts: list[tuple[float, int]]) -> float:
    return math.fsum(total for total, _ in parts) / sum(count for _, count in parts)


def _scales(pair: Pair, clip: tuple[float, float], data_range: float) -> Iterator[Iterator[Planes]]:
    """Yield, for each scale, luminance and contrast times structure at the region's voxels, slice by slice.

    A scale's values have to be taken up before the next scale: they make its volumes on the way.
    """
    pair = _padded(pair)
    window = window_for("uniform", flat=False)
    region = np.ones(pair.reference.shape, bool) if pair.mask is None else pair.mask
    halves = None
    for level in range(len(SCALES)):
        kept = inner(region, region.shape, window)
        if not kept.any():
            raise Undefined(f"at scale {level + 1} no voxel of the region is 3 voxels away from every side")
        if halves is None:
            # Outside the region all is 0, so only the box around it counts; later scales are small anyway.
            box = bounds(region, window, even=True)
            films: Iterable[Planes] = prepared(pair, box, clip, "lowest")
        else:
            box = (slice(0, region.shape[0]), slice(0, region.shape[1]), slice(0, region.shape[2]))
            films = zip(*halves, strict=True)
        halves = np.zeros((2, *(-(-n // 2) for n in region.shape)))
        yield similarity(_halved(films, halves, box), kept[box], window, data_range)
        region = region[::2, ::2, ::2]


def _padded(pair: Pair) -> Pair:
    """Repeat the edge of short axes, half on either side, up to the smallest size."""
    short = [max(SMALLEST - n, 0) for n in pair.reference.shape]
    if not any(short):
        return pair
    pads = [(n // 2, n - n // 2) for n in short]
    mask = None if pair.mask is None else np.pad(pair.mask, pads, mode="edge")
    prediction, reference = (np.pad(volume, pads, mode="edge") for volume in (pair.prediction, pair.reference))
    return Pair(prediction, reference, mask, pair.spacing_mm)


def _halved(films: Iterable[Planes], halves: NDArray[np.float64], box: Box) -> Iterator[Planes]:
    """Pass the films on, and add each plane to the volumes of half the size: h[j] = (v[2j - 1] + v[2j]) / 2."""
    rows, columns = (slice(side.start // 2, -(-side.stop // 2)) for side in box[1:])
    for k, planes in enumerate(films, start=box[0].start):
        target = -(-k // 2)
        if target < halves.shape[1]:
            for half, plane in zip(halves, planes, strict=True):
                wide = plane[::2].copy()
                wide[1:] += plane[1 : 2 * len(wide) - 1 : 2]
                small = wide[:, ::2].copy()
                small[:, 1:] += wide[:, 1 : 2 * small.shape[1] - 1 : 2]
                small /= 8
                half[target, rows, columns] += small
        yield planes
