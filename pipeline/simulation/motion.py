"""Breathing: the front of the body moves along the axis, the spine stays."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import SimulateSettings
from pipeline.simulation.gantry import view_times

# So many positions stand for the continuous movement.
_PHASES = 8


def phases(settings: SimulateSettings) -> list[tuple[float, NDArray[np.intp]]]:
    """Return the displacement in mm and the views of each breathing phase; one phase of 0 mm without motion.

    The displacement is ``motion_mm x sin(2 pi t / motion_period_s)``; the views are interleaved by time.
    """
    if settings.motion_mm == 0:
        return [(0.0, np.arange(settings.angles))]
    position = np.sin(2 * math.pi * view_times(settings) / settings.motion_period_s)
    phase = np.clip(((position + 1) / 2 * _PHASES).astype(int), 0, _PHASES - 1)
    found = []
    for number in np.unique(phase):
        views = np.flatnonzero(phase == number)
        found.append((float(position[views].mean()) * settings.motion_mm, views))
    return found


def displace(hu: NDArray[np.float32], displacement_mm: float, slice_mm: float) -> NDArray[np.float32]:
    """Move a film-ordered volume (slices, rows, columns) towards superior, its front by the whole displacement.

    The displacement falls linearly from the first row (anterior) to none at the last (posterior); linear
    interpolation along the axis, the ends repeated.
    """
    if displacement_mm == 0:
        return hu
    slices, rows, _ = hu.shape
    weight = 1 - np.arange(rows) / max(1, rows - 1)
    out = np.empty_like(hu)
    for row in range(rows):
        where = np.clip(np.arange(slices) - displacement_mm * weight[row] / slice_mm, 0, slices - 1)
        low = np.floor(where).astype(int)
        high = np.minimum(low + 1, slices - 1)
        part = (where - low).astype(np.float32)[:, None]
        out[:, row] = (1 - part) * hu[low, row] + part * hu[high, row]
    return out
