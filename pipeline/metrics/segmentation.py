"""Agreement of segmentations: Dice and the 95 % Hausdorff distance, one label at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import metric


@metric(
    title="Dice",
    unit="",
    better="higher",
    definition=(
        "2 |P and R| / (|P| + |R|) of one label; the mean is over the labels that the reference holds (Dice 1945; "
        "SynthRAD2025 without its 0 where no label is there)"
    ),
    needs="labels",
    taken="volume",
)
def dice(pair: Pair) -> float:
    """Dice's coefficient of one label, between 0 and 1; the volumes of the pair are Boolean.

    Source: Dice 1945. Where the reference lacks the label there is no value (SynthRAD2025's code: 0).

    Raises:
        Undefined: The reference does not hold the label.
    """
    prediction, reference = _masks(pair)
    return 2 * float((prediction & reference).sum()) / float(prediction.sum() + reference.sum())


@metric(
    title="HD95",
    unit="mm",
    better="lower",
    definition=(
        "the larger of the two 95 % percentiles of distances between the surfaces of one label, in mm, as MONAI "
        "computes it; undefined where prediction or reference lacks the label, and so is then the mean over labels"
    ),
    needs="labels",
    taken="volume",
)
def hd95(pair: Pair) -> float:
    """95 % Hausdorff distance of one label in mm; the volumes of the pair are Boolean.

    A surface is what an erosion by the six neighbours takes away, at the edge of the volume too. Source: Huttenlocher
    1993, percentiles as in MONAI's ``HausdorffDistanceMetric``. A label that the prediction lacks has no distance
    (SynthRAD2025's code leaves it out of the mean).

    Raises:
        Undefined: The reference or the prediction does not hold the label.
    """
    prediction, reference = _masks(pair)
    if not prediction.any():
        raise Undefined("the prediction does not hold the label")
    box = tuple(
        slice(int(hit[0]), int(hit[-1]) + 1)
        for axis in range(3)
        for hit in [np.flatnonzero((prediction | reference).any(axis=tuple(a for a in range(3) if a != axis)))]
    )
    surfaces = [_surface(mask[box]) for mask in (prediction, reference)]
    to_reference, to_prediction = (distance_transform_edt(~s, sampling=pair.spacing_mm) for s in surfaces[::-1])
    there, back = to_reference[surfaces[0]], to_prediction[surfaces[1]]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _masks(pair: Pair) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    prediction, reference = (np.asarray(v, bool) for v in (pair.prediction, pair.reference))
    if not reference.any():
        raise Undefined("the reference does not hold the label")
    return prediction, reference


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~binary_erosion(mask)
