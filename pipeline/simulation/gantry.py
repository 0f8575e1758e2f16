"""The scanner's geometry: detector, views, and what one scan sees."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import SimulateSettings


def detector_shape(settings: SimulateSettings) -> tuple[int, int]:
    """Return the detector's pixels (rows along the axis, columns across)."""
    across, along = settings.detector_size_mm
    return max(4, round(along / settings.detector_pixel_mm)), max(4, round(across / settings.detector_pixel_mm))


def detector_positions(settings: SimulateSettings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pixels' positions in mm from the central ray: along the axis (rows), across (columns)."""
    rows, columns = detector_shape(settings)
    pitch = settings.detector_pixel_mm
    along = (np.arange(rows, dtype=np.float64) - (rows - 1) / 2) * pitch
    across = (np.arange(columns, dtype=np.float64) - (columns - 1) / 2) * pitch + settings.detector_offset_mm
    return along, across


def view_angles(settings: SimulateSettings) -> NDArray[np.float64]:
    """Return the gantry angles in degrees: evenly over the arc; the last view of a short arc is its end."""
    closed = settings.arc_degrees == 360
    return np.linspace(0.0, settings.arc_degrees, settings.angles, endpoint=not closed)


def view_times(settings: SimulateSettings) -> NDArray[np.float64]:
    """Return the time of each view in seconds since the first."""
    return view_angles(settings) / 360.0 * settings.rotation_s


def axial_length_mm(settings: SimulateSettings) -> float:
    """Return the length on the rotation axis that every view sees."""
    rows, _ = detector_shape(settings)
    return (rows - 1) * settings.detector_pixel_mm * settings.source_axis_mm / settings.source_detector_mm


def radius_mm(settings: SimulateSettings) -> float:
    """Return the radius around the axis within which every line is measured (from one side for a half fan)."""
    _, across = detector_positions(settings)
    return settings.source_axis_mm * math.sin(math.atan(float(across[-1]) / settings.source_detector_mm))


def reach_mm(settings: SimulateSettings, radius: float) -> float:
    """Return how far from the central plane a ray gets that leaves a body of ``radius`` mm on the far side."""
    return axial_length_mm(settings) / 2 * (1 + radius / settings.source_axis_mm)


def field_of_view(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    isocentre: tuple[float, float, float],
    settings: SimulateSettings,
) -> NDArray[np.bool_]:
    """Return which voxels all views see: a cylinder around the axis with a cone cut off at either end.

    At distance r from the axis, the side nearest to the source sees only half the axial length times
    (1 - r / source_axis_mm).

    Args:
        shape: Of the film-ordered grid (slices, rows, columns).
        spacing_mm: Of the grid.
        isocentre: Its position in voxels.
        settings: Detector and distances.
    """
    slices, rows, columns = ((np.arange(n) - c) * mm for n, c, mm in zip(shape, isocentre, spacing_mm, strict=True))
    distance = np.hypot(rows[:, None], columns[None, :])
    seen = axial_length_mm(settings) / 2 * (1 - distance / settings.source_axis_mm)
    # A slice on the axis's very end still counts: rounding must not cost it.
    inside = np.abs(slices)[:, None, None] <= seen[None] + 1e-6
    return np.asarray(inside & (distance <= radius_mm(settings))[None], bool)
