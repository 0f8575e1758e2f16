"""Windows that slide through a film plane by plane: local means, and the similarity made of them.

A volume's worth of float64 is never held: a ring of planes goes through the film, and sums run along with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pair import Pair

K1, K2 = 0.01, 0.03
_BLOCK = 1 << 13  # voxels at a time, so that what is computed of them stays in the processor's cache
Planes = tuple[NDArray[np.float64], NDArray[np.float64]]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Window:
    """A separable window of equal sides, over slices too unless it is flat.

    Args:
        taps: Weights along a side, summing to 1.
        flat: Covers one slice.
        sample: Variances are those of a sample, n/(n - 1), instead of the population's.
    """

    taps: tuple[float, ...]
    flat: bool
    sample: bool

    @property
    def depth(self) -> int:
        """Number of slices."""
        return 1 if self.flat else len(self.taps)

    @property
    def size(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        return self.depth, len(self.taps), len(self.taps)

    @property
    def correction(self) -> float:
        """Factor from the population's to the wanted variance."""
        n = self.depth * len(self.taps) ** 2
        return n / (n - 1) if self.sample else 1.0

    @property
    def uniform(self) -> bool:
        """Whether all weights are equal, so that sums can run."""
        return min(self.taps) == max(self.taps)

    @property
    def missing(self) -> float:
        """What sums over slices have to be divided by: running sums of uniform windows are not weighted yet."""
        return float(self.depth) if self.uniform else 1.0

    def in_plane(self, field: NDArray[np.float64], out: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average (rows, columns) in the plane into ``out``; what lies within the border depends on padding."""
        if self.uniform:
            cv2.boxFilter(field, -1, (len(self.taps),) * 2, dst=out)
        else:
            weights = np.array(self.taps)
            cv2.sepFilter2D(field, -1, weights, weights, dst=out)
        return out


def window_for(kind: Literal["uniform", "gaussian"], *, flat: bool) -> Window:
    """Return SSIM's window: uniform of 7 with sample variance (skimage), or Wang's Gaussian (11 taps, sigma 1.5)."""
    if kind == "uniform":
        return Window((1 / 7,) * 7, flat, sample=True)
    bell = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    return Window(tuple(bell / bell.sum()), flat, sample=False)


def whole(pair: Pair) -> Box:
    """Return the box of all voxels."""
    slices, rows, columns = pair.reference.shape
    return slice(0, slices), slice(0, rows), slice(0, columns)


def prepared(pair: Pair, box: Box, clip: tuple[float, float] | None, outside: str) -> Iterator[Planes]:
    """Yield prediction and reference of each slice of ``box`` in float64.

    They are clipped and shifted so that the range begins at 0 (``clip`` None: as they are); ``outside`` 'lowest' sets
    what lies outside the mask to that 0. They are valid until the next: fresh memory for every plane would take as
    long as the arithmetic.
    """
    planes = np.empty((2, box[1].stop - box[1].start, box[2].stop - box[2].start))
    for k in range(box[0].start, box[0].stop):
        without = None
        if pair.mask is not None and outside == "lowest":
            without = ~pair.mask[k, box[1], box[2]]
        for volume, plane in zip((pair.prediction, pair.reference), planes, strict=True):
            np.subtract(volume[k, box[1], box[2]], clip[0] if clip else 0, out=plane, dtype=np.float64)
            if clip is not None:
                np.clip(plane, 0, clip[1] - clip[0], out=plane)
            if without is not None:
                np.copyto(plane, 0, where=without)
        yield planes[0], planes[1]


def similarity(
    films: Iterable[Planes], kept: NDArray[np.bool_], window: Window, data_range: float
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield SSIM's luminance and its contrast times structure at the kept voxels, slice by slice.

    Args:
        films: Prediction and reference of each slice, in order.
        kept: As large as the films; at least half a window away from every side.
        window: Over which means and variances are taken.
        data_range: R in C1 = (0.01 R)² and C2 = (0.03 R)².
    """
    # Fields are `depth` times the means; constants are scaled to that instead of every voxel's values.
    depth = window.missing
    c1 = (K1 * data_range * depth) ** 2
    c2 = (K2 * data_range * depth) ** 2 / window.correction
    averaged = None
    for k, fields in enumerate(_along_slices(films, window), start=window.depth // 2):
        chosen = np.flatnonzero(kept[k])
        if not chosen.size:
            continue
        if averaged is None:
            averaged = np.empty_like(fields)
        local = [window.in_plane(*planes).ravel() for planes in zip(fields, averaged, strict=True)]
        for start in range(0, chosen.size, _BLOCK):
            mean_p, mean_r, squares, product = (field.take(chosen[start : start + _BLOCK]) for field in local)
            both = mean_p * mean_r
            mean_squares = mean_p * mean_p + mean_r * mean_r
            covariance = depth * product - both
            variances = depth * squares - mean_squares
            yield (2 * both + c1) / (mean_squares + c1), (2 * covariance + c2) / (variances + c2)


def _along_slices(films: Iterable[Planes], window: Window) -> Iterator[NDArray[np.float64]]:
    """Yield `Window.missing` times the means over the window's slices of p, r, p² + r² and p r, as (4, rows, columns).

    They are valid until the next. Uniform windows take differences of sums that run through the film, of which those
    of whole numbers are exact; others weigh a ring of planes.
    """
    depth = window.depth
    ring = mean = None
    for k, (p, r) in enumerate(films):
        if ring is None or mean is None:
            ring, mean = np.zeros((depth + 1, 4, *p.shape)), np.empty((4, *p.shape))
            squares, product = np.empty((2, *p.shape))
        np.multiply(p, p, out=squares)
        squares += np.multiply(r, r, out=product)
        np.multiply(p, r, out=product)
        place, before = ring[k % (depth + 1)], ring[(k - 1) % (depth + 1)]
        # The oldest plane of sums makes room for the newest once it has been subtracted; at first it is 0.
        for field, values in enumerate((p, r, squares, product)):
            if window.uniform:
                np.add(before[field], values, out=place[field])
            else:
                place[field] = values
        if k < depth - 1:
            continue
        if window.uniform:
            yield np.subtract(place, ring[(k + 1) % (depth + 1)], out=mean)
        else:
            newest_last = np.roll([0.0, *((1.0,) if window.flat else window.taps)], (k + 1) % (depth + 1))
            yield np.einsum("d,dfrc->frc", newest_last, ring, out=mean)


def inner(mask: NDArray[np.bool_] | None, shape: tuple[int, ...], window: Window) -> NDArray[np.bool_]:
    """Return the region's voxels around which the whole window lies inside the volume."""
    kept = np.zeros(shape, bool)
    place = tuple(slice(size // 2, n - size // 2) for size, n in zip(window.size, shape, strict=True))
    kept[place] = True if mask is None else mask[place]
    return kept


def bounds(kept: NDArray[np.bool_], window: Window, *, even: bool = False) -> Box:
    """Return the box that holds all windows around ``kept``; with ``even`` it begins at even indices."""
    box = []
    for axis, size in enumerate(window.size):
        hit = np.flatnonzero(kept.any(axis=tuple(a for a in range(3) if a != axis)))
        start = max(int(hit[0]) - size // 2, 0)
        stop = min(int(hit[-1]) + size // 2 + 1, kept.shape[axis])
        box.append(slice(start - start % 2 if even else start, stop))
    return box[0], box[1], box[2]
