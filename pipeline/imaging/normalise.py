"""Intensities to [-1, 1] and back: a fixed window (CT in HU) or a case's own percentiles (MR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def window_for(
    modality: str,
    windows: Mapping[str, Sequence[float]],
    percentiles: Mapping[str, Sequence[float]],
) -> tuple[float, float]:
    """Return the physical values that become -1 and 1: the configured window, else the case's percentiles."""
    low, high = windows[modality] if modality in windows else percentiles[modality]
    # A constant MR film would divide by zero; checks refuse it earlier, a mask of a few voxels may still be flat.
    return float(low), float(high) if high > low else float(low) + 1.0


def normalise(
    physical: NDArray, window: tuple[float, float], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Map ``window`` to [-1, 1], clipped; float32, into ``out`` where it is given."""
    low, high = window
    out = np.subtract(physical, np.float32(low), out=out, dtype=np.float32, casting="same_kind")
    out *= np.float32(2.0 / (high - low))
    out -= np.float32(1.0)
    return np.clip(out, -1.0, 1.0, out=out)


def restore(normalised: NDArray, window: tuple[float, float]) -> NDArray[np.float32]:
    """Map [-1, 1] back to physical values; the inverse of normalise inside the window."""
    low, high = window
    return ((normalised.astype(np.float32) + 1.0) * np.float32((high - low) / 2) + np.float32(low)).astype(np.float32)
