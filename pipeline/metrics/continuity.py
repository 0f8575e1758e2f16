"""Steadiness from slice to slice: does a prediction's error jump along the axis of the film?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.registry import INTENSITY, Undefined, metric


@metric(
    title="slice continuity",
    unit=INTENSITY,
    better="lower",
    definition=(
        "mean absolute change of the error (prediction - reference) from one slice to the next, over voxels that lie "
        "in the region on both slices; 0 for a perfect or a constant error, high for flicker"
    ),
)
def slice_continuity(
    prediction: NDArray,
    reference: NDArray,
    mask: NDArray[np.bool_] | None,
    spacing_mm: tuple[float, float, float],
    *,
    clip: tuple[float, float],
    data_range: float,
) -> float:
    """Mean of ``|e[k+1] - e[k]|`` with ``e = prediction - reference``, over voxels in the region on both slices.

    Volumes are (slices, rows, columns); the result is in their unit. It depends on the distance between slices, so
    compare it on one grid only. Source: this project; the error's change, because anatomy itself changes between
    slices and a difference of predictions alone would reward blur.

    Raises:
        Undefined: Fewer than two slices, or no voxel lies in the region on two neighbouring slices.
    """
    total, count = 0.0, 0
    before: NDArray[np.float64] | None = None
    for k in range(reference.shape[0]):
        error = prediction[k].astype(np.float64) - reference[k]
        if before is not None:
            both = np.ones(error.shape, bool) if mask is None else mask[k] & mask[k - 1]
            total += float(np.abs(error - before)[both].sum())
            count += int(both.sum())
        before = error
    if count == 0:
        raise Undefined("no voxel of the region lies on two neighbouring slices")
    return total / count
