"""The same patient as other bodies: few patients show few sizes and few contrast phases.

CBCT's HU errors follow the body's size, and the HU of muscle and organs follow the contrast agent: where one training
patient alone has a torso, a network takes his muscle's HU for everyone's.
"""

from __future__ import annotations

import numpy as np

from pipeline.geometry import FILM_AXES, Grid, Volume

# Corners of a trapezoid over HU: fat and air stay, muscle and organs move, bone stays.
_FAT, _MUSCLE, _ORGAN, _BONE = -60.0, 0.0, 100.0, 300.0


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


def with_soft_tissue(ct: Volume, shift_hu: float) -> Volume:
    """Return the CT with ``shift_hu`` added to soft tissue (0 to 100 HU), less towards -60 and 300 HU.

    The order of any two HU is kept below 60 HU of shift. float32 unless the shift is 0.
    """
    if shift_hu == 0:
        return ct
    hu = ct.array.astype(np.float32)
    share = np.interp(hu, (_FAT, _MUSCLE, _ORGAN, _BONE), (0, 1, 1, 0)).astype(np.float32)
    return ct.with_array(hu + np.float32(shift_hu) * share)
