"""Resampling onto another grid, without the aliasing, truncation and half-voxel shifts of common tools."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.geometry import Grid, Volume

# Off-axis terms below this many voxels over the whole volume count as header noise.
_STRAIGHT_VOXELS = 0.02


def resample(volume: Volume, grid: Grid, *, outside: float, order: Literal["linear", "nearest"] = "linear") -> Volume:
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
    to_source = np.linalg.inv(volume.affine) @ grid.affine
    axes = _shared_axes(to_source, grid.shape)
    if axes is None:
        return _resample_oblique(volume, grid, to_source, outside, order)
    positions = [
        to_source[source, target] * np.arange(grid.shape[target]) + to_source[source, 3]
        for source, target in enumerate(axes)
    ]
    array = volume.array
    inside = [_inside(p, n) for p, n in zip(positions, array.shape, strict=True)]
    if order == "nearest":
        # Halfway, the lower index: rounding to even would take some voxels twice and others never.
        index = [
            np.clip(np.ceil(p - 0.5 - 1e-6), 0, n - 1).astype(int) for p, n in zip(positions, array.shape, strict=True)
        ]
        out = array[np.ix_(*index)]
    else:
        out = array if array.dtype == np.float32 else array.astype(np.float32)
        # The axis that shrinks most goes first: less is left for the others.
        for axis in np.argsort([len(p) / n for p, n in zip(positions, array.shape, strict=True)]):
            out = _interpolate(out, positions[axis], int(axis))
    out = np.ascontiguousarray(out) if out.base is not None or not out.flags.owndata else out
    if not all(i.all() for i in inside):
        out = np.where(_outer_and(inside), out, np.asarray(outside, out.dtype))
    # Source axis i belongs to target axis axes[i].
    out = np.ascontiguousarray(np.transpose(out, np.argsort(axes)))
    return Volume(out, grid.affine.copy(), volume.unit)


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


def _outer_and(parts: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    a, b, c = parts
    return a[:, None, None] & b[None, :, None] & c[None, None, :]


def _interpolate(array: NDArray[np.float32], positions: NDArray[np.float64], axis: int) -> NDArray[np.float32]:
    """Interpolate one axis at fractional indices with a (widened) triangle kernel."""
    count = array.shape[axis]
    rounded = np.round(positions)
    if np.abs(positions - rounded).max(initial=0) < 1e-6 and (len(positions) < 2 or _step(positions) <= 1 + 1e-6):
        # On voxels exactly: a shift, a crop or a flip loses nothing.
        return np.take(array, np.clip(rounded, 0, count - 1).astype(int), axis=axis)
    width = max(1.0, _step(positions)) if len(positions) > 1 else 1.0
    offset = np.arange(count)[None, :] - np.clip(positions, 0, count - 1)[:, None]
    weights = np.clip(1 - np.abs(offset) / width, 0, None)
    if width > 1:
        # A widened triangle that falls unevenly on the voxels is off balance, by up to 0.1 voxel: put it right, so
        # that nothing is shifted and a ramp stays the ramp that it was.
        balance = (weights * offset).sum(axis=1) / (weights * offset**2).sum(axis=1)
        weights *= np.clip(1 - balance[:, None] * offset, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    moved = np.tensordot(weights.astype(np.float32), array, axes=(1, axis))
    return np.moveaxis(moved, 0, axis)


def _step(positions: NDArray[np.float64]) -> float:
    return float(abs(positions[1] - positions[0]))


def _resample_oblique(volume: Volume, grid: Grid, to_source: NDArray[np.float64], outside: float, order: str) -> Volume:
    """Interpolate on a rotated grid; a Gaussian of the spacing ratio comes first where the target is coarser."""
    array = volume.array
    if order == "linear":
        array = array.astype(np.float32)
        ratio = np.linalg.norm(to_source[:3, :3], axis=1)
        sigma = np.sqrt(np.clip(ratio**2 - 1, 0, None)) * 0.5
        if sigma.max() > 0.05:
            array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    out = ndimage.affine_transform(
        array,
        to_source[:3, :3],
        to_source[:3, 3],
        output_shape=grid.shape,
        order=1 if order == "linear" else 0,
        mode="nearest",
    )
    a, b, c = (np.arange(n) for n in grid.shape)
    for k in a:  # slice by slice: positions of all voxels at once would be larger than the volume
        for axis, count in enumerate(array.shape):
            row = to_source[axis]
            positions = row[0] * k + row[1] * b[:, None] + row[2] * c[None, :] + row[3]
            out[k][~_inside(positions, count)] = outside
    return Volume(out, grid.affine.copy(), volume.unit)
