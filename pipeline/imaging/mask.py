"""The body: what is patient, without couch, head rest and surrounding air."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.geometry import FILM_AXES, Volume, axis_codes, reorder
from pipeline.imaging.histogram import percentiles

# Couch tops and masks are thinner than this; the neck, the thinnest part of a body, is far thicker.
_OPENING_MM = 7.0


def body_mask(volume: Volume, threshold_hu: float) -> NDArray[np.bool_]:
    """Return where the patient is, on the volume's own axes.

    Voxels above ``threshold_hu``, opened slice by slice (couch and skin folds fall off), the largest connected
    part, closed, with everything that a slice's outline encloses (lungs, bowel gas) filled in.

    Returns:
        Boolean array of the volume's shape; all false where nothing is above the threshold.
    """
    film = reorder(volume, FILM_AXES)
    _, row_mm, column_mm = film.spacing_mm
    opening, closing = (_ellipse(mm, row_mm, column_mm) for mm in (_OPENING_MM, 2 * _OPENING_MM))
    body = np.zeros(film.array.shape, bool)
    parts = [_parts(_morphology(_above(image, threshold_hu), cv2.MORPH_OPEN, opening)) for image in film.array]
    for image, labels, kept in zip(body, parts, _largest(parts), strict=True):
        if kept.any():
            image[:] = _fill(_morphology(kept[labels], cv2.MORPH_CLOSE, closing))
    return reorder(Volume(body, film.affine), axis_codes(volume.affine)).array


def foreground_mask(volume: Volume) -> NDArray[np.bool_]:
    """Return where the patient is in a volume of arbitrary intensity (MR): above a tenth of its 99th percentile."""
    if volume.array.dtype in (np.int16, np.uint16):
        high = percentiles(reorder(volume, FILM_AXES).array, [99])[0]
    else:
        high = float(np.percentile(volume.array, 99))
    return body_mask(volume, 0.1 * high)


def _ellipse(diameter_mm: float, row_mm: float, column_mm: float) -> NDArray[np.uint8]:
    # At least 3 voxels, else the operation would do nothing on a coarse grid.
    size = [max(3, round(diameter_mm / mm) | 1) for mm in (column_mm, row_mm)]
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, size).astype(np.uint8)


def _morphology(image: NDArray[np.uint8], operation: int, kernel: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.morphologyEx(image, operation, kernel).astype(np.uint8, copy=False)


def _above(image: NDArray, threshold: float) -> NDArray[np.uint8]:
    # NaN compares as outside; a threshold on the raw dtype avoids a float copy.
    return np.ascontiguousarray(image > threshold).view(np.uint8)


def _parts(image: NDArray[np.uint8]) -> NDArray:
    """Label a slice's parts; those of less than 1/20 of its largest (rails of a couch that touch the body) are 0."""
    count, labels = cv2.connectedComponents(image, connectivity=4)
    # Labels of all slices are held at once, and hardly any slice has so many parts.
    kind = np.dtype(np.uint8 if count <= 256 else np.int32)
    labels = labels.astype(kind)
    if count > 2:
        area = _counts(labels, count)
        area[0] = 0  # the background
        large = area >= area.max() / 20
        labels = np.where(large, np.cumsum(large), 0).astype(kind)[labels]
    return labels


def _largest(parts: list[NDArray]) -> list[NDArray[np.uint8]]:
    """Return for each slice which of its labels (0: background) belong to the largest part of the volume.

    Parts of neighbouring slices are one where they lie above each other.
    """
    counts = [int(labels.max(initial=0)) + 1 for labels in parts]
    area = np.concatenate([_counts(labels, count) for labels, count in zip(parts, counts, strict=True)])
    first = np.cumsum([0, *counts])
    links = [np.zeros((2, 0), np.intp)]
    for k, (below, above) in enumerate(pairwise(parts)):
        pairs = counts[k] * counts[k + 1]
        codes = below.astype(np.uint8 if pairs <= 256 else np.intp) * counts[k + 1] + above
        one, other = np.divmod(np.flatnonzero(_counts(codes, pairs)), counts[k + 1])
        both = (one > 0) & (other > 0)
        links.append(np.stack([one[both] + first[k], other[both] + first[k + 1]]))
    one, other = np.concatenate(links, axis=1)
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(area), len(area)))
    _, group = connected_components(graph, directed=False)
    area[first[:-1]] = 0  # the backgrounds
    inside = (group == np.argmax(np.bincount(group, area))) & (area > 0)
    return [part.astype(np.uint8) for part in np.split(inside, first[1:-1])]


def _counts(labels: NDArray, count: int) -> NDArray[np.int64]:
    """Count how often each of ``count`` labels occurs."""
    if labels.dtype == np.uint8:  # many times as fast as bincount, which works on 8 bytes
        return cv2.calcHist([labels], [0], None, [count], [0, count]).ravel().astype(np.int64)
    return np.bincount(labels.ravel(), minlength=count)


def _fill(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Fill everything that does not touch the slice's border."""
    padded = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    cv2.floodFill(padded, None, (0, 0), 2)
    return np.asarray(padded[1:-1, 1:-1] != 2)
