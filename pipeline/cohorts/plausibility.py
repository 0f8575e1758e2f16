"""Is a volume what it says it is: finite, not constant, in Hounsfield units, patient on the couch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.errors import DataError
from pipeline.geometry import Volume

HU_MODALITIES = ("ct", "cbct")
_SAMPLES = 2_000_000
_LOWEST_HU, _HIGHEST_HU = -1024, 3071


def check_values(film: Volume) -> list[str]:
    """Check a film-ordered volume's voxels; returns flags.

    Raises:
        DataError: NaN or infinite voxels (naming the first slice), or one value everywhere.
    """
    array = film.array
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array)
        if bad.any():
            slices = np.flatnonzero(bad.any(axis=(1, 2)))
            raise DataError(
                f"Voxels are not finite in {len(slices)} slices, the first is slice {slices[0]}",
                value=f"{int(bad.sum())} voxels that are NaN or infinite",
                remedy="Export the volume again, or leave the case out with cohort.exclude",
            )
    low, high = array.min(axis=(1, 2)), array.max(axis=(1, 2))
    if low.min() == high.max():
        raise DataError(
            f"All slices (0 to {len(array) - 1}) are constant",
            value=f"{low[0]:g} everywhere",
            remedy="The decoder of the original images probably failed: export the volume again",
        )
    varied = np.flatnonzero(low != high)
    inner = np.arange(varied[0], varied[-1] + 1)
    empty = np.setdiff1d(inner, varied)
    # At the ends empty slices are usual; between others they are a gap.
    if len(empty):
        return [f"{len(empty)} slices between others are constant, the first is slice {empty[0]}"]
    return []


def check_hu(film: Volume) -> list[str]:
    """Check that values can be Hounsfield units; returns flags about padding and metal.

    Air must lie near -1000 and soft tissue near 0. Where the whole histogram is moved by 1024, both readings are named.

    Raises:
        DataError: The values cannot be HU.
    """
    array = film.array
    step = max(1, round((array.size / _SAMPLES) ** (1 / 3)))
    values = array[::step, ::step, ::step].ravel().astype(np.float32)
    # Padding lies below what a scanner can measure and says nothing about the scale.
    valid = values[values >= -1300] if (values >= -1300).mean() > 0.02 else values
    air = _share(valid, -1300, -700)
    tissue = valid[valid > -700]
    soft = _share(tissue, -200, 200)
    if air >= 0.002 and soft >= 0.15 and abs(_soft_mode(tissue)) <= 150:
        return _outliers(array)
    for offset in (1024.0, -1024.0):
        moved = valid - offset if offset > 0 else values - offset
        moved_tissue = moved[moved > -700]
        enough = len(moved_tissue) > 0.02 * len(moved)
        peak = abs(_soft_mode(moved_tissue)) <= 150
        if enough and peak and _share(moved, -1300, -700) >= 0.02 and _share(moved_tissue, -200, 200) >= 0.25:
            raise DataError(
                "Values are not Hounsfield units: air and soft tissue are not near -1000 and 0",
                value=(
                    f"lowest {float(array.min()):g}, highest {float(array.max()):g}. Either they are HU as they stand, "
                    f"then air is missing or misplaced; or they are HU {offset:+.0f}, then air lies near -1000 and "
                    f"soft tissue near {_soft_mode(moved_tissue):.0f}"
                ),
                remedy=f"The second is likely: add {-offset:.0f} to the volume and write it again",
            )
    # A crop inside the body has no air at all, but no background of one value either.
    background = float(np.unique(values, return_counts=True)[1].max() / len(values))
    if air < 0.002 and soft >= 0.6 and background < 0.05 and values.min() < -20:
        return ["no air was found: the volume seems to be cropped inside the body", *_outliers(array)]
    raise DataError(
        "Values are not Hounsfield units: air and soft tissue are not near -1000 and 0",
        value=f"lowest {float(array.min()):g}, highest {float(array.max()):g}, {air:.1%} of voxels like air",
        remedy="Convert the volume to HU (rescale slope and intercept), or name it by another modality",
    )


def _share(values: NDArray[np.float32], low: float, high: float) -> float:
    return float(((values >= low) & (values <= high)).mean()) if len(values) else 0.0


def _soft_mode(values: NDArray[np.float32]) -> float:
    """Return the most frequent value of what is denser than lung and softer than bone, in steps of 20 HU."""
    counts, edges = np.histogram(values, bins=np.arange(-410, 411, 20))
    best = int(np.argmax(np.convolve(counts, [1, 1, 1], "same")))
    return float(edges[best] + 10)


def _outliers(array: NDArray) -> list[str]:
    flags = []
    below, above = int((array < _LOWEST_HU).sum()), int((array > _HIGHEST_HU).sum())
    if below:
        flags.append(f"{below} voxels ({below / array.size:.1%}) lie below {_LOWEST_HU} HU: padding outside the scan")
    if above:
        flags.append(f"{above} voxels lie above {_HIGHEST_HU} HU: metal")
    return flags


def check_couch(film: Volume, body: NDArray[np.bool_]) -> list[str]:
    """Flag a CT whose couch lies in front of the body: prone, or flipped front to back.

    Args:
        film: A film-ordered volume in HU.
        body: Its body mask on the same axes.
    """
    if not body.any():
        return ["no body was found above -400 HU"]
    near = ndimage.binary_dilation(body, iterations=2)
    outside = (film.array > -500) & ~near
    rows = np.arange(body.shape[1])
    centre = np.average(rows, weights=body.sum(axis=(0, 2)))
    front, back = outside[:, rows < centre].sum(), outside[:, rows >= centre].sum()
    # Arms and cables count a little; a couch runs below the whole body.
    if front > 0.01 * body.sum() and front > 4 * back:
        return ["what looks like the couch lies in front of the body: prone, or flipped front to back"]
    return []
