"""Percentiles of 16-bit integers by counting: exact, and without a sorted copy of a volume."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray


def percentiles(parts: Iterable[NDArray], percents: Sequence[float]) -> list[float]:
    """Return percentiles of all values together, between neighbours interpolated as numpy does.

    Args:
        parts: Arrays of int16 or uint16 (all of one kind), in any shape, handed over one after another.
        percents: Each from 0 to 100.

    Raises:
        ValueError: There is no value.
    """
    counts, lowest = np.zeros(1 << 16, np.int64), 0
    for part in parts:
        if part.size:
            lowest = int(np.iinfo(part.dtype).min)
            seen = np.bincount(part.ravel().astype(np.intp) - lowest)
            counts[: len(seen)] += seen
    below = np.cumsum(counts)
    if not below[-1]:
        raise ValueError("percentiles of nothing")
    found = []
    for percent in percents:
        place = percent / 100 * (int(below[-1]) - 1)
        share = place - math.floor(place)
        low, high = (int(np.searchsorted(below, r, side="right")) for r in (math.floor(place), math.ceil(place)))
        # From the nearer neighbour, as numpy does it.
        value = low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)
        found.append(float(value + lowest))
    return found
