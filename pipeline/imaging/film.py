"""The film's grid: one spacing and one in-plane size, centred on the body, slices from inferior to superior."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import GeometryError
from pipeline.geometry import FILM_AXES, Grid, Volume, reorder
from pipeline.imaging.resample import planes
from pipeline.records import GridRecord

PADDING_HU = -1024.0
_INT16 = np.iinfo(np.int16)


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice, slice] | None:
    """Return the smallest box that holds a mask, or None for an empty one."""
    if not mask.any():
        return None
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return box[0], box[1], box[2]


def film_grid(
    volume: Volume,
    body: NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    size: tuple[int, int],
    case_id: str,
) -> Grid:
    """Return the grid on which a case becomes a film.

    The volume's own directions are kept (no rotation). Slices start at its most inferior one; in the plane the
    grid is centred on the body's box. Where the spacing is the volume's own, voxels stay where they are.

    Args:
        volume: The case's reference volume.
        body: Its body mask, on the same axes.
        spacing_mm: Slice, row, column.
        size: Rows and columns.
        case_id: Named in errors.

    Raises:
        GeometryError: The body does not fit, or the mask is empty.
    """
    film = reorder(volume, FILM_AXES)
    film_body = reorder(Volume(body, volume.affine), FILM_AXES).array
    box = bounding_box(film_body)
    if box is None:
        raise GeometryError(
            f"No body was found in case '{case_id}'",
            allowed="a body above preprocess.body_threshold_hu, or a stored mask 'body'",
            remedy="Look at the volume, or lower preprocess.body_threshold_hu",
        )
    have = film.spacing_mm
    # Spacings that agree but for float32 headers are the same: voxels stay where they are to the last bit.
    step = [h if math.isclose(s, h, rel_tol=1e-5) else s for s, h in zip(spacing_mm, have, strict=True)]
    extent_mm = [(s.stop - s.start) * mm for s, mm in zip(box, have, strict=True)]
    needed = [pixels_needed(extent_mm[a], step[a]) for a in (1, 2)]
    if needed[0] > size[0] or needed[1] > size[1]:
        # Never smaller than now: the other cases must go on fitting.
        fits = [have if need <= have else _round_up(need) for need, have in zip(needed, size, strict=True)]
        raise GeometryError(
            f"The body of case '{case_id}' does not fit into preprocess.size at "
            f"{spacing_mm[1]:g} x {spacing_mm[2]:g} mm",
            value=f"a body of {needed[0]} x {needed[1]} pixels",
            allowed=f"at most {size[0]} x {size[1]}",
            remedy=f"Set preprocess.size=[{fits[0]},{fits[1]}] or a coarser preprocess.spacing_mm",
        )
    slices = max(1, math.floor((film.array.shape[0] - 1) * have[0] / step[0] + 1e-6) + 1)
    shape = (slices, size[0], size[1])
    # Index (in the reference) of the new grid's first voxel.
    first = np.zeros(3)
    for axis in (1, 2):
        centre = (box[axis].start + box[axis].stop - 1) / 2
        first[axis] = centre - (size[axis - 1] - 1) / 2 * step[axis] / have[axis]
        if step[axis] == have[axis]:
            first[axis] = math.floor(first[axis] + 0.5)
    affine = film.affine.copy()
    affine[:3, 3] = film.affine[:3, :3] @ first + film.affine[:3, 3]
    affine[:3, :3] = film.affine[:3, :3] * (np.asarray(step) / np.asarray(have))
    return Grid(shape, affine)


def pixels_needed(extent_mm: float, spacing_mm: float) -> int:
    """Return how many pixels hold a body of this extent."""
    return math.ceil(extent_mm / spacing_mm - 1e-6)


def to_stored(volume: Volume, grid: Grid) -> tuple[NDArray[np.int16], float]:
    """Resample a volume onto the film's grid and round it to int16, plane by plane.

    Returns:
        Stored integers and their scale: stored x scale = physical value (1 for HU).
    """
    hu = volume.unit == "HU"
    outside, scale = (PADDING_HU, 1.0) if hu else (0.0, _scale(volume.array))
    stored = np.empty(grid.shape, np.int16)
    # Padding below air (-2000, -3024) must not bleed into the skin.
    for k, plane in enumerate(planes(volume, grid, outside=outside, floor=PADDING_HU if hu else None)):
        if not hu:
            plane /= np.float32(scale)
        np.rint(plane, out=plane)
        # The lowest integer stays free: zarr stores mark with it what was never written.
        stored[k] = np.clip(plane, _INT16.min + 1, _INT16.max, out=plane)
    return stored, scale


def _scale(array: NDArray) -> float:
    """Return the step with which values are stored; interpolation never leaves their range."""
    largest = max(abs(float(array.min(initial=0))), abs(float(array.max(initial=0))))
    scale = largest / 32000
    return scale if scale > np.finfo(np.float32).tiny else 1.0


def grid_record(grid: Grid) -> GridRecord:
    """Return a grid as plain data."""
    rows = tuple(tuple(float(v) for v in row) for row in grid.affine[:3])
    return GridRecord(shape=grid.shape, affine=rows)  # type: ignore[arg-type]


def grid_from(record: GridRecord) -> Grid:
    """Return the grid that plain data describes."""
    return Grid(record.shape, np.vstack([np.array(record.affine, float), [0.0, 0.0, 0.0, 1.0]]))


def _round_up(count: int, step: int = 16) -> int:
    return -(-count // step) * step
