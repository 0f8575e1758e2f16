"""How a volume that is longer than one cone-beam scan becomes several, and what may not be cut sideways."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# A case is refused above this fraction of a lateral face, and flagged above the other.
REFUSE_FRACTION = 0.25
FLAG_FRACTION = 0.002
_FACES = ("anterior", "posterior", "right", "left")


def scan_extents(slices: int, spacing_mm: float, length_mm: float, mode: Literal["split", "crop"]) -> list[slice]:
    """Return the slices of each scan, from inferior to superior.

    Scans are as long as the axial field of view and evenly distributed, so that they overlap where the volume is
    no multiple of it: none is a sliver, and every slice lies in at least one. ``crop`` keeps one scan of the middle.

    Args:
        slices: Of the volume.
        spacing_mm: Between them.
        length_mm: Axial field of view, between the centres of its first and last slice.
        mode: ``split`` or ``crop``.
    """
    longest = max(1, math.floor(length_mm / spacing_mm + 1e-6) + 1)
    if slices <= longest:
        return [slice(0, slices)]
    if mode == "crop":
        start = (slices - longest) // 2
        return [slice(start, start + longest)]
    scans = math.ceil(slices / longest)
    starts = np.round(np.linspace(0, slices - longest, scans)).astype(int)
    return [slice(int(start), int(start) + longest) for start in starts]


def lateral_cuts(body: NDArray[np.bool_]) -> dict[str, float]:
    """Return which fraction of each lateral face of a film-ordered volume is body, by the face's direction."""
    faces = (body[:, 0, :], body[:, -1, :], body[:, :, 0], body[:, :, -1])
    return {name: float(face.mean()) for name, face in zip(_FACES, faces, strict=True)}


def worst_cut(body: NDArray[np.bool_]) -> tuple[str, float]:
    """Return the lateral face that cuts the most body, and which fraction of it is body."""
    cuts = lateral_cuts(body)
    name = max(cuts, key=lambda face: cuts[face])
    return name, cuts[name]
