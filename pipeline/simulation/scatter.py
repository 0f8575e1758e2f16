"""Scatter: a broad Gaussian of what the object removes from the beam."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.settings import SimulateSettings
from pipeline.simulation.gantry import detector_positions


def scatter(primary: NDArray[np.float32], coefficient: float, settings: SimulateSettings) -> NDArray[np.float32]:
    """Return the scattered signal on the detector, relative to the open beam.

    The source term of each ray is ``primary x (-ln primary)``: the radiation that still gets through, times the
    expected number of interactions on the way (the first-order kernel superposition of Ohnesorge et al. 1999 and
    Sun and Star-Lack 2010, here with one Gaussian kernel of ``scatter_width_mm`` on the detector). The kernel is
    renormalised near the detector's border, as though the field went on there: a kernel that loses its outer half
    leaves a bright seam along the rotation axis of a half fan, whose views meet there.

    Args:
        primary: (views, rows, columns), 1 in the open beam.
        coefficient: Strength, from the calibration.
        settings: Pixel size and kernel width.
    """
    if coefficient == 0:
        return np.zeros_like(primary)
    source = primary * -np.log(np.clip(primary, 1e-9, 1.0))
    along, across = detector_positions(settings)
    kernel_rows = _kernel(along, settings.scatter_width_mm)
    kernel_columns = _kernel(across, settings.scatter_width_mm)
    return np.asarray(coefficient * (kernel_rows @ source @ kernel_columns.T), np.float32)


def _kernel(positions: NDArray[np.float64], width_mm: float) -> NDArray[np.float32]:
    """Return weights (to, from), each row summing to 1."""
    distance = (positions[:, None] - positions[None, :]) / width_mm
    weights = np.exp(-0.5 * distance**2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
