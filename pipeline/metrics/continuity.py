"""Steadiness from slice to slice: does a prediction's error jump along the axis of the film?"""

from __future__ import annotations

import math
import statistics

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import INTENSITY, metric


@metric(
    title="slice continuity",
    unit=INTENSITY,
    better="lower",
    definition=(
        "mean absolute change of the error (prediction - reference) from one slice to the next, over voxels that lie "
        "in the region on both slices; 0 for a perfect or a constant error, high for flicker"
    ),
    taken="volume",
)
def slice_continuity(pair: Pair) -> float:
    """Mean of ``|e[k+1] - e[k]|`` with ``e = prediction - reference``, over voxels in the region on both slices.

    The result is in the volumes' unit. It depends on the distance between slices, so compare it on one grid only.
    Source: this project; the error's change, because anatomy itself changes between slices and a difference of
    predictions alone would reward blur.

    Raises:
        Undefined: Fewer than two slices, or no voxel lies in the region on two neighbouring slices.
    """
    steps = _steps(pair)
    return math.fsum(total for total, _ in steps) / sum(count for _, count in steps)


@metric(
    title="seam index",
    unit="",
    better="lower",
    definition=(
        "the largest step of the error between neighbouring slices over the median step (a step: mean absolute change "
        "over voxels in the region on both slices); near 1 without seams, high where windows of slices were joined "
        "visibly (this project)"
    ),
    taken="volume",
)
def seam_index(pair: Pair) -> float:
    """Largest over median step of the error along the film: one seam stands out, steady flicker does not.

    Steps with fewer voxels than a tenth of the fullest are left out: a region's tip of a few voxels is all noise.
    Source: this project.

    Raises:
        Undefined: Fewer than three steps, or the median step is 0.
    """
    steps = _steps(pair)
    fullest = max(count for _, count in steps)
    means = [total / count for total, count in steps if count >= fullest / 10]
    if len(means) < 3:
        raise Undefined(f"{len(means)} steps between slices are too few for a median")
    middle = statistics.median(means)
    if middle == 0:
        raise Undefined("the error does not change between most slices, so nothing can stand out")
    return max(means) / middle


def _steps(pair: Pair) -> list[tuple[float, int]]:
    """Return the summed absolute change of the error and its voxels, for each pair of slices that shares any."""
    steps: list[tuple[float, int]] = []
    before: NDArray[np.float64] | None = None
    for k in range(pair.reference.shape[0]):
        error = pair.prediction[k].astype(np.float64) - pair.reference[k]
        if before is not None:
            change = np.abs(error - before).ravel()
            if pair.mask is not None:
                change = change[np.flatnonzero(pair.mask[k] & pair.mask[k - 1])]
            if change.size:
                steps.append((float(change.sum()), change.size))
        before = error
    if not steps:
        raise Undefined("no voxel of the region lies on two neighbouring slices")
    return steps
