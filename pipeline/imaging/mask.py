"""The body: what is patient, without couch, head rest and surrounding air."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.geometry import FILM_AXES, Volume, axis_codes, reorder

# Couch tops and masks are thinner than this; the neck, the thinnest part of a body, is far thicker.
_OPENING_MM = 7.0


def body_mask(volume: Volume, threshold_hu: float) -> NDArray[np.bool_]:
    """Return where the patient is, on the volume's own axes.

    Voxels above ``threshold_hu``, opened slice by slice (couch and skin folds fall off), the largest connected
    part, closed, with everything that a slice's outline encloses (lungs, bowel gas) filled in.

    Returns:
        Boolean array of the volume's shape; empty where nothing is above the threshold.
    """
    film = reorder(volume, FILM_AXES)
    _, row_mm, column_mm = film.spacing_mm
    kernel = _ellipse(_OPENING_MM, row_mm, column_mm)
    closing = _ellipse(2 * _OPENING_MM, row_mm, column_mm)
    # NaN compares as outside; a threshold on the raw dtype avoids a float copy.
    opened = np.stack(
        [_drop_small(_morphology((s > threshold_hu).astype(np.uint8), cv2.MORPH_OPEN, kernel)) for s in film.array]
    )
    labels, count = ndimage.label(opened)
    if count == 0:
        return np.zeros(volume.array.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    body = (labels == largest).astype(np.uint8)
    filled = np.stack([_fill(_morphology(s, cv2.MORPH_CLOSE, closing)) for s in body])
    back = reorder(Volume(filled, film.affine), axis_codes(volume.affine))
    return np.ascontiguousarray(back.array.astype(bool))


def foreground_mask(volume: Volume) -> NDArray[np.bool_]:
    """Return where the patient is in a volume of arbitrary intensity (MR): above a tenth of its 99th percentile."""
    return body_mask(volume, 0.1 * float(np.percentile(volume.array, 99)))


def _ellipse(diameter_mm: float, row_mm: float, column_mm: float) -> NDArray[np.uint8]:
    # At least 3 voxels, else the operation would do nothing on a coarse grid.
    size = [max(3, round(diameter_mm / mm) | 1) for mm in (column_mm, row_mm)]
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, size).astype(np.uint8)


def _morphology(image: NDArray[np.uint8], operation: int, kernel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.morphologyEx(image, operation, kernel).astype(np.uint8, copy=False)


def _drop_small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Drop a slice's parts of less than 1/20 of its largest: rails of a couch that touch the body elsewhere."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(image, connectivity=4)
    if count <= 2:
        return image
    area = stats[:, cv2.CC_STAT_AREA].copy()
    area[0] = 0  # the background
    return (area >= area.max() / 20).astype(np.uint8)[labels] & image


def _fill(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fill everything that does not touch the slice's border."""
    padded = np.pad(image, 1)
    _, labels = cv2.connectedComponents(1 - padded, connectivity=4)
    return (labels != labels[0, 0]).astype(np.uint8)[1:-1, 1:-1] | image
