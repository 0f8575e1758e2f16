"""Is a volume in the unit that its scores would be given in?"""

from __future__ import annotations

import numpy as np

from pipeline.errors import DataError
from pipeline.geometry import Volume

_NORMALISED = 1.05  # a network's range [0, 1] or [-1, 1], with what interpolation overshoots


def check_unit(volume: Volume, what: str) -> list[str]:
    """Return doubts about the unit of a volume that is said to be in HU, as remarks for the reader.

    A constant volume raises no doubt: it has no range.

    Raises:
        DataError: The values span a network's range and cannot be HU.
    """
    if volume.unit != "HU":
        return []
    low, high = np.fmin.reduce(volume.array, axis=None), np.fmax.reduce(volume.array, axis=None)
    if not low < high:
        return []
    if low >= -_NORMALISED and high <= _NORMALISED:
        raise DataError(
            f"The {what} is normalised, and HU are expected",
            value=f"values from {low:g} to {high:g}",
            allowed="HU: air is -1000, water 0",
            remedy=f"Map the {what} back to HU with the window that it was trained with, or choose a profile for "
            "volumes in arbitrary units: metrics=NAME",
        )
    if low >= 0:
        return [f"the {what} has no value below 0 HU ({low:g} to {high:g}): perhaps an offset or another unit"]
    return []
