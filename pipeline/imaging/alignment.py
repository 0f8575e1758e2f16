"""How far two images of one body lie apart, whatever their contrasts: by the directions of their edges.

At every voxel the gradient is divided by its length, softened by the image's mean gradient (normalised gradient field,
Haber and Modersitzki, MICCAI 2006, doi:10.1007/11866763_90). Two edges agree by the squared cosine of the angle
between them, so that dark-to-bright in one image matches bright-to-dark in the other. The sum over all voxels is, for
every shift at once, a cross-correlation of the six products of the field's components: a few FFTs and no optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

REACH_MM = 40.0  # the largest shift that is looked for along each axis
_BLOCK_MM, _BLOCK_VOXELS = 50.0, 16  # at least
_BLOCKS = 4  # along an axis, at most
_BLOCK_REACH_MM = 15.0  # around the shift of the whole
_CHANCE = 1 / 3  # mean squared cosine between directions that have nothing to do with each other
_DEPTH = 2.0  # voxels below the skin: its outline agrees between any two bodies
_FEWEST = 500  # voxels
_PRODUCTS = ((0, 0, 1), (1, 1, 1), (2, 2, 1), (0, 1, 2), (0, 2, 2), (1, 2, 2))


@dataclass(frozen=True)
class Displacement:
    """Where a source lies relative to its target.

    ``shift_mm`` is along the array's axes: moving the source by its opposite puts it right. ``local_mm`` is what is
    left then, as the median over blocks of some 50 mm: it sees rotations, deformations and unlike bodies.
    ``agreement`` is the mean squared cosine between edges at the best shift: 1 all agree, 1/3 chance.
    """

    shift_mm: tuple[float, float, float]
    local_mm: float
    agreement: float

    @property
    def length_mm(self) -> float:
        """Length of the shift."""
        return float(np.linalg.norm(self.shift_mm))


def displacement(
    source: NDArray[np.float32],
    target: NDArray[np.float32],
    source_body: NDArray[np.bool_],
    target_body: NDArray[np.bool_],
    spacing_mm: float,
) -> Displacement | None:
    """Estimate the shift of ``source`` against ``target``, to a small part of a voxel.

    Args:
        source: On one isotropic grid with the target; NaN where it is unknown.
        target: The same.
        source_body: Where the body is; only edges well inside it count.
        target_body: The same.
        spacing_mm: Of the grid, along all axes.

    Returns:
        None where there are too few voxels inside a body, or no edges.
    """
    fields = []
    for image, body in ((source, source_body), (target, target_body)):
        field = edge_field(image, body)
        if field is None:
            return None
        fields.append(field)
    moved, still = fields
    best, agreement = _best_shift(moved, still, round(REACH_MM / spacing_mm))
    lengths = [np.linalg.norm(shift - best) for shift in _block_shifts(moved, still, best, spacing_mm)]
    if not lengths or not agreement:
        return None
    a, b, c = (best * spacing_mm).tolist()
    return Displacement((a, b, c), float(np.median(lengths)) * spacing_mm, agreement)


def edge_field(image: NDArray[np.float32], body: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """Return the normalised gradient field (3, ...) well inside a body, zero elsewhere; None where there is too little.

    Args:
        image: NaN where it is unknown.
        body: Where the body is.
    """
    known = np.isfinite(image)
    # Padded, so that the body's depth counts from the image's faces, too: there gradients are of half a neighbourhood.
    depth = ndimage.distance_transform_edt(np.pad(body & known, 1))[1:-1, 1:-1, 1:-1]
    inside = np.asarray(depth) > _DEPTH
    if inside.sum() < _FEWEST:
        return None
    low, high = np.percentile(image[inside], (0.5, 99.5))
    smooth = np.where(known, np.clip(image, low, high), low).astype(np.float32)
    field = np.stack([ndimage.gaussian_filter(smooth, 1, order=np.eye(3, dtype=int)[axis]) for axis in range(3)])
    length = np.sqrt((field**2).sum(axis=0))
    soft = float(length[inside].mean())
    if soft <= 0:
        return None
    field *= inside / np.sqrt(length**2 + soft**2)
    return np.asarray(field, np.float32)


def _best_shift(
    moved: NDArray[np.float32], still: NDArray[np.float32], reach: int
) -> tuple[NDArray[np.float64], float]:
    """Return the shift (voxels) of ``moved`` at which edges agree most beyond chance, and how much they agree there."""
    shape = [fft.next_fast_len(n + reach, real=True) for n in moved.shape[1:]]
    window = np.ix_(*[np.arange(-reach, reach + 1) % n for n in shape])

    def correlate(a: NDArray, b: NDArray) -> NDArray:
        return np.asarray(fft.rfftn(a, shape) * np.conj(fft.rfftn(b, shape)))

    agreeing = sum(w * correlate(moved[i] * moved[j], still[i] * still[j]) for i, j, w in _PRODUCTS)
    meeting = correlate((moved**2).sum(axis=0), (still**2).sum(axis=0))
    agreeing, meeting = (fft.irfftn(spectrum, shape)[window] for spectrum in (agreeing, meeting))
    # Without the part of chance, the shift at which most edges meet would win, agreeing or not.
    score = agreeing - _CHANCE * meeting
    peak = np.unravel_index(np.argmax(score), score.shape)
    share = float(agreeing[peak] / meeting[peak]) if meeting[peak] > 0 else 0.0
    return np.array([p + _vertex(score, peak, axis) for axis, p in enumerate(peak)]) - reach, share


def _vertex(score: NDArray, peak: tuple[np.intp, ...], axis: int) -> float:
    """Return where the parabola through the peak and its neighbours is highest, relative to the peak."""
    line = score[tuple(slice(None) if a == axis else p for a, p in enumerate(peak))]
    place = int(peak[axis])
    if not 0 < place < len(line) - 1:
        return 0.0
    before, top, after = (float(v) for v in line[place - 1 : place + 2])
    bend = before - 2 * top + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0


def _block_shifts(
    moved: NDArray[np.float32], still: NDArray[np.float32], best: NDArray[np.float64], spacing_mm: float
) -> Iterator[NDArray[np.float64]]:
    """Yield the shift (voxels) of each block of ``still`` that has its share of edges."""
    reach = round(_BLOCK_REACH_MM / spacing_mm)
    weight = (still**2).sum(axis=0)
    whole = np.rint(best).astype(int)
    blocks = list(product(*[_cuts(weight, axis, spacing_mm) for axis in range(3)]))
    for block in blocks:
        if weight[block].sum() < 0.25 * weight.sum() / len(blocks):
            continue
        wide = [(part.start - reach, part.stop + reach) for part in block]
        at_home = np.zeros((3, *(b - a for a, b in wide)), np.float32)
        inner = tuple(slice(reach, reach + part.stop - part.start) for part in block)
        at_home[(slice(None), *inner)] = still[(slice(None), *block)]
        around = _window(moved, [(a + s, b + s) for (a, b), s in zip(wide, whole, strict=True)])
        shift, agreement = _best_shift(around, at_home, reach)
        if agreement:
            yield shift + whole


def _cuts(weight: NDArray[np.float32], axis: int, spacing_mm: float) -> list[slice]:
    hit = np.flatnonzero(weight.any(axis=tuple(a for a in range(3) if a != axis)))
    voxels = max(_BLOCK_MM / spacing_mm, _BLOCK_VOXELS)
    count = int(np.clip(round((hit[-1] + 1 - hit[0]) / voxels), 1, _BLOCKS))
    ends = np.linspace(hit[0], hit[-1] + 1, count + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def _window(field: NDArray[np.float32], ranges: list[tuple[int, int]]) -> NDArray[np.float32]:
    """Return a part of a field that may reach beyond it: zero there."""
    out = np.zeros((3, *(b - a for a, b in ranges)), np.float32)
    have = [(max(a, 0), min(b, n)) for (a, b), n in zip(ranges, field.shape[1:], strict=True)]
    if all(a < b for a, b in have):
        to = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(have, ranges, strict=True))
        out[(slice(None), *to)] = field[(slice(None), *(slice(a, b) for a, b in have))]
    return out
