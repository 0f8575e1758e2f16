"""Resampling onto another grid, without the aliasing, truncation and half-voxel shifts of common tools.

Planes of the target are made one after another, so that a volume of any length needs the memory of a few planes.
Sums are formed tap by tap in one order, never by BLAS: the number of threads changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from pipeline.geometry import Grid, Volume

Order = Literal["linear", "nearest"]
# Off-axis terms below this many voxels over the whole volume count as header noise.
_STRAIGHT_VOXELS = 0.02
# Planes converted or rotated together: a volume stored along another axis is then not crossed once per plane.
_SLAB = 16
_GAUSSIAN_REACH = 4.0  # standard deviations


def resample(volume: Volume, grid: Grid, *, outside: float, order: Order = "linear") -> Volume:
    """Resample a volume onto ``grid``.

    Linear interpolation; where the target is coarser, the triangle widens to the target's spacing (antialiased,
    as in PIL). Grids that share their axes are resampled axis by axis; others by one affine interpolation.

    Args:
        volume: Any dtype.
        grid: The target; positions more than half a voxel outside the volume become ``outside``.
        outside: Value in the volume's unit.
        order: ``nearest`` keeps labels and the dtype.

    Returns:
        Float32 voxels (the volume's dtype for ``nearest``), not rounded.
    """
    out = np.empty(grid.shape, volume.array.dtype if order == "nearest" else np.float32)
    for k, plane in enumerate(planes(volume, grid, outside=outside, order=order)):
        out[k] = plane
    return Volume(out, grid.affine.copy(), volume.unit)


def planes(
    volume: Volume, grid: Grid, *, outside: float, order: Order = "linear", floor: float | None = None
) -> Iterator[NDArray]:
    """Yield what ``resample`` returns, plane by plane along the grid's first axis, each in memory of its own.

    Args:
        volume: As in ``resample``; no copy of it is made.
        grid: As in ``resample``.
        outside: As in ``resample``.
        order: As in ``resample``.
        floor: Values below it are raised to it before they are interpolated.
    """
    to_source = np.linalg.inv(volume.affine) @ grid.affine
    axes = _shared_axes(to_source, grid.shape)
    if axes is None:
        return _oblique_planes(volume.array, grid.shape, to_source, outside, order, floor)
    # Source axis i belongs to target axis axes[i].
    array = np.transpose(volume.array, np.argsort(axes))
    positions = [
        to_source[source, target] * np.arange(grid.shape[target]) + to_source[source, 3]
        for target, source in enumerate(np.argsort(axes))
    ]
    make = _nearest_planes if order == "nearest" else _linear_planes
    return _edged(make(array, positions, floor), array, positions, outside)


def _shared_axes(to_source: NDArray[np.float64], shape: tuple[int, int, int]) -> list[int] | None:
    """Return for each source axis the target axis that runs along it, or None for rotated grids."""
    linear = to_source[:3, :3]
    axes = [int(a) for a in np.abs(linear).argmax(axis=1)]
    if sorted(axes) != [0, 1, 2]:
        return None
    off_axis = linear.copy()
    off_axis[[0, 1, 2], axes] = 0
    drift = np.abs(off_axis) @ (np.asarray(shape) - 1)
    return axes if drift.max() < _STRAIGHT_VOXELS else None


def _inside(positions: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    return (positions > -0.5 - 1e-6) & (positions < count - 0.5 + 1e-6)


def _edged(
    made: Iterator[NDArray], array: NDArray, positions: list[NDArray[np.float64]], outside: float
) -> Iterator[NDArray]:
    """Put ``outside`` where a plane reaches beyond the volume."""
    slices, rows, columns = (_inside(p, n) for p, n in zip(positions, array.shape, strict=True))
    for inside, plane in zip(slices, made, strict=True):
        if inside:
            plane[~rows] = outside
            plane[:, ~columns] = outside
        else:
            plane[...] = outside
        yield plane


# --- Grids that share their axes ---------------------------------------------------------------------------------


def _nearest_planes(array: NDArray, positions: list[NDArray[np.float64]], floor: float | None) -> Iterator[NDArray]:
    # Halfway, the lower index: rounding to even would take some voxels twice and others never.
    index = [
        np.clip(np.ceil(p - 0.5 - 1e-6), 0, n - 1).astype(int) for p, n in zip(positions, array.shape, strict=True)
    ]
    for k in index[0]:
        plane = array[k].take(index[1], axis=0).take(index[2], axis=1)
        yield plane if floor is None else np.maximum(plane, plane.dtype.type(floor))


def _linear_planes(
    array: NDArray, positions: list[NDArray[np.float64]], floor: float | None
) -> Iterator[NDArray[np.float32]]:
    slices, rows, columns = (_weights(p, n) for p, n in zip(positions, array.shape, strict=True))
    along_rows, along_columns = _along_rows(rows), _along_rows(columns)
    slabs: dict[int, NDArray[np.float32]] = {}
    for k in range(slices.shape[0]):
        taps = slice(*slices.indptr[k : k + 2])
        needed = slices.indices[taps].tolist()
        wanted = {i // _SLAB for i in needed}
        slabs = {n: slab for n, slab in slabs.items() if n in wanted}
        for n in wanted - set(slabs):
            slabs[n] = np.array(array[n * _SLAB : (n + 1) * _SLAB], np.float32, order="C")
            if floor is not None:
                np.maximum(slabs[n], np.float32(floor), out=slabs[n])
        plane = np.zeros(array.shape[1:], np.float32)
        for i, weight in zip(needed, slices.data[taps], strict=True):
            plane += slabs[i // _SLAB][i % _SLAB] * weight
        yield _transposed(along_columns(_transposed(along_rows(plane))))


def _transposed(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    # Several times as fast as a copy of numpy's transposed view.
    return np.asarray(cv2.transpose(plane), np.float32)


def _along_rows(weights: sparse.csr_array) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return the interpolation of a plane's first axis; voxels that keep their place are moved bit by bit."""
    if weights.nnz == weights.shape[0]:
        return lambda plane: plane.take(weights.indices, axis=0)
    return lambda plane: np.asarray(weights @ plane)


def _weights(positions: NDArray[np.float64], count: int) -> sparse.csr_array:
    """Return the (positions, voxels) weights of a (widened) triangle at fractional indices, float32, rows sum to 1."""
    rounded = np.round(positions)
    step = abs(positions[1] - positions[0]) if len(positions) > 1 else 1.0
    if np.abs(positions - rounded).max(initial=0) < 1e-6 and step <= 1 + 1e-6:
        # On voxels exactly: a shift, a crop or a flip loses nothing.
        index = np.clip(rounded, 0, count - 1).astype(int)
        ones = np.ones(len(index), np.float32)
        return sparse.csr_array((ones, index, np.arange(len(index) + 1)), shape=(len(index), count))
    width = max(1.0, step)
    reach = math.ceil(width)
    places = np.clip(positions, 0, count - 1)[:, None]
    # Only voxels within the triangle's reach: of a long volume most weights are zero.
    index = np.floor(places).astype(int) + np.arange(-reach, reach + 1)
    offset = index - places
    weights = np.where((index >= 0) & (index < count), np.clip(1 - np.abs(offset) / width, 0, None), 0)
    if width > 1:
        # A widened triangle that falls unevenly on the voxels is off balance, by up to 0.1 voxel: put it right, so
        # that nothing is shifted and a ramp stays the ramp that it was.
        balance = (weights * offset).sum(axis=1) / (weights * offset**2).sum(axis=1)
        weights *= np.clip(1 - balance[:, None] * offset, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    ends = np.arange(len(index) + 1) * index.shape[1]
    entries = (weights.ravel().astype(np.float32), np.clip(index, 0, count - 1).ravel(), ends)
    banded = sparse.csr_array(entries, shape=(len(index), count))
    banded.eliminate_zeros()
    return banded


# --- Rotated grids -----------------------------------------------------------------------------------------------


def _oblique_planes(
    array: NDArray,
    shape: tuple[int, int, int],
    to_source: NDArray[np.float64],
    outside: float,
    order: Order,
    floor: float | None,
) -> Iterator[NDArray]:
    """Interpolate on a rotated grid; a Gaussian of the spacing ratio comes first where the target is coarser."""
    linear = to_source[:3, :3]
    sigma = np.sqrt(np.clip(np.linalg.norm(linear, axis=1) ** 2 - 1, 0, None)) * 0.5
    smooth = order == "linear" and sigma.max() > 0.05
    margin = [math.ceil(_GAUSSIAN_REACH * s) + 2 if smooth else 2 for s in sigma]
    rows, columns = np.arange(shape[1])[:, None], np.arange(shape[2])[None, :]
    for start in range(0, shape[0], _SLAB):
        count = min(_SLAB, shape[0] - start)
        offset = linear[:, 0] * start + to_source[:3, 3]
        box = _box(linear, offset, (count, *shape[1:]), array.shape, margin)
        part = array[box]
        if order == "linear":
            part = part.astype(np.float32)
        if floor is not None:
            part = np.maximum(part, part.dtype.type(floor))
        if smooth:
            part = ndimage.gaussian_filter(part, sigma, mode="nearest", truncate=_GAUSSIAN_REACH)
        slab = ndimage.affine_transform(
            part,
            linear,
            offset - [b.start for b in box],
            output_shape=(count, *shape[1:]),
            order=1 if order == "linear" else 0,
            mode="nearest",
        )
        for k, plane in enumerate(slab):
            for axis, size in enumerate(array.shape):
                row = linear[axis]
                positions = row[0] * k + row[1] * rows + row[2] * columns + offset[axis]
                plane[~_inside(positions, size)] = outside
            yield plane


def _box(
    linear: NDArray[np.float64],
    offset: NDArray[np.float64],
    shape: tuple[int, ...],
    source: tuple[int, ...],
    margin: list[int],
) -> tuple[slice, ...]:
    """Return the part of the source that a slab of the target touches, never empty."""
    corners = linear @ np.array(np.meshgrid(*[[0, n - 1] for n in shape])).reshape(3, -1) + offset[:, None]
    box = []
    for low, high, count, more in zip(corners.min(axis=1), corners.max(axis=1), source, margin, strict=True):
        start = min(max(math.floor(low) - more, 0), count - 1)
        box.append(slice(start, max(start + 1, min(math.ceil(high) + more + 1, count))))
    return tuple(box)
