"""The same patient, slimmer or larger: CBCT's HU errors follow the body's size, and few patients show few sizes."""

from __future__ import annotations

import numpy as np

from pipeline.geometry import FILM_AXES, Grid, Volume


def resized_grid(grid: Grid, size: float) -> Grid:
    """Return the grid with its in-plane spacing times ``size``; what lies along the patient's axis is kept."""
    affine = grid.affine.copy()
    along = int(np.argmax(np.abs(affine[2, :3])))
    for axis in range(len(FILM_AXES)):
        if axis != along:
            affine[:3, axis] *= size
    return Grid(grid.shape, affine)


def resized(volume: Volume, size: float) -> Volume:
    """Return the volume on its resized grid; the voxels are shared."""
    return volume if size == 1 else Volume(volume.array, resized_grid(volume.grid, size).affine, volume.unit)
