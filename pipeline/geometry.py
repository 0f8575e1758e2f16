"""Volumes in patient space: arrays with an affine, orientation, and comparison of grids.

Affines map voxel indices to millimetres in RAS+ (nibabel's convention). *Film order* is the one that all
processing uses: axis 0 runs from inferior to superior, axis 1 (rows) to posterior, axis 2 (columns) to the
patient's left: axis codes ``SPL``. An axial slice ``array[k]`` is then what a radiologist sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GeometryError

FILM_AXES = "SPL"
_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


@dataclass(frozen=True)
class Grid:
    """A voxel grid: ``shape`` (3 counts) and ``affine`` (4x4, index to mm in RAS+)."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each array axis, in mm."""
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(a), float(b), float(c)

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Position of voxel (0, 0, 0) in RAS+ mm."""
        x, y, z = self.affine[:3, 3]
        return float(x), float(y), float(z)

    @property
    def axes(self) -> str:
        """Anatomical direction towards which each array axis runs, for example ``SPL``."""
        return axis_codes(self.affine)

    def describe(self) -> str:
        """One line for messages: size, spacing, origin, orientation."""
        spacing = ", ".join(f"{s:.4g}" for s in self.spacing_mm)
        origin = ", ".join(f"{o:.4g}" for o in self.origin_mm)
        return f"size {self.shape}, spacing ({spacing}) mm, origin ({origin}) mm, axes {self.axes}"


@dataclass(frozen=True)
class Volume:
    """A scalar volume: ``array`` (3 axes), ``affine`` (4x4, index to mm in RAS+), ``unit`` ('HU' or 'a.u.')."""

    array: NDArray
    affine: NDArray[np.float64]
    unit: str = "HU"

    def __post_init__(self) -> None:
        if self.array.ndim != 3:
            raise GeometryError("A volume has three axes", value=f"an array of shape {self.array.shape}")

    @property
    def grid(self) -> Grid:
        """The grid that the array lies on."""
        return Grid(tuple(int(n) for n in self.array.shape), self.affine)  # type: ignore[arg-type]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each array axis, in mm."""
        return self.grid.spacing_mm

    def with_array(self, array: NDArray, unit: str | None = None) -> Volume:
        """Return the same grid with other voxels."""
        return Volume(array, self.affine, self.unit if unit is None else unit)


def axis_codes(affine: NDArray[np.float64]) -> str:
    """Return the anatomical letter towards which each array axis runs (R L A P S I), the nearest for oblique ones."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    codes: list[tuple[int, str]] = []
    free = [0, 1, 2]
    # The axis that is surest picks first, so that an oblique grid never gives a letter twice.
    for column in np.argsort(-np.abs(directions).max(axis=0)):
        world = max(free, key=lambda w, c=column: abs(directions[w, c]))  # type: ignore[misc]
        free.remove(world)
        codes.append((int(column), "RAS"[world] if directions[world, column] > 0 else "LPI"[world]))
    return "".join(letter for _, letter in sorted(codes))


def reorder(volume: Volume, axes: str = FILM_AXES) -> Volume:
    """Permute and flip the array so that its axes run towards ``axes``; no resampling, exactly invertible."""
    have = axis_codes(volume.affine)
    array, affine = volume.array, volume.affine.copy()
    order = []
    for letter in axes:
        where = have.find(letter) if letter in have else have.find(_OPPOSITE[letter])
        order.append(where)
    flips = [have[where] != letter for where, letter in zip(order, axes, strict=True)]
    array = np.transpose(array, order)
    affine[:3, :3] = affine[:3, :3][:, order]
    for axis, flip in enumerate(flips):
        if flip:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
    return Volume(array, affine, volume.unit)


def grid_difference(a: Grid, b: Grid, *, tolerance_mm: float = 0.01, tolerance_degrees: float = 0.05) -> str:
    """Say how two grids differ (size, direction, spacing, origin), or return '' when they are the same.

    Tolerances are physical: ``tolerance_mm`` bounds how far any corner voxel may be displaced.
    """
    if a.shape != b.shape:
        return f"size {a.shape} and {b.shape}"
    unit_a = a.affine[:3, :3] / np.asarray(a.spacing_mm)
    unit_b = b.affine[:3, :3] / np.asarray(b.spacing_mm)
    angles = np.degrees(np.arccos(np.clip((unit_a * unit_b).sum(axis=0), -1, 1)))
    if angles.max() > tolerance_degrees:
        return f"direction (axes {a.axes} and {b.axes}, up to {angles.max():.2f} degrees apart)"
    if not np.allclose(a.spacing_mm, b.spacing_mm, atol=tolerance_mm / max(a.shape), rtol=0):
        return f"spacing {_rounded(a.spacing_mm)} and {_rounded(b.spacing_mm)} mm"
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in a.shape])).reshape(3, -1)
    shift = (a.affine[:3, :3] - b.affine[:3, :3]) @ corners + (a.affine[:3, 3] - b.affine[:3, 3])[:, None]
    if np.linalg.norm(shift, axis=0).max() > tolerance_mm:
        if np.linalg.norm(np.subtract(a.origin_mm, b.origin_mm)) <= tolerance_mm:
            return f"direction (up to {angles.max():.4f} degrees apart)"
        return f"origin {_rounded(a.origin_mm)} and {_rounded(b.origin_mm)} mm"
    return ""


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(v, 6) for v in values)
