"""What a metric of two volumes is given: both volumes in one region, with what several metrics need computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Spacing = tuple[float, float, float]
_CHUNK = 1 << 16  # voxels in float64 at a time: they stay in the processor's cache, and a volume's worth is never held


class Undefined(Exception):  # noqa: N818 - not a mistake of anyone: the definition gives no number here
    """A metric has no value for this input; the message says why."""


@dataclass(frozen=True)
class Pair:
    """A prediction beside its reference in one region.

    Args:
        prediction: (slices, rows, columns) in film order.
        reference: On the same grid, in the same unit.
        mask: Boolean, what counts; None: everywhere.
        spacing_mm: Slice, row, column.
    """

    prediction: NDArray
    reference: NDArray
    mask: NDArray[np.bool_] | None
    spacing_mm: Spacing

    def __post_init__(self) -> None:
        shapes = (self.prediction.shape, self.reference.shape, self.reference.shape if self.mask is None else None)
        if shapes[0] != shapes[1] or (self.mask is not None and self.mask.shape != shapes[1]):
            raise ValueError(f"shapes differ: {shapes[0]}, {shapes[1]}, {getattr(self.mask, 'shape', None)}")

    @cached_property
    def inside(self) -> tuple[NDArray, NDArray]:
        """The region's voxels of prediction and reference as two vectors, in the volumes' own types."""
        if self.mask is None:
            return self.prediction.ravel(), self.reference.ravel()
        return self.prediction[self.mask], self.reference[self.mask]

    def chunks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Yield the region's voxels of both in float64, part by part.

        Raises:
            Undefined: The region holds no voxel.
        """
        prediction, reference = self.inside
        if not reference.size:
            raise Undefined("the region is empty")
        for start in range(0, reference.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            yield prediction[part].astype(np.float64), reference[part].astype(np.float64)

    @property
    def count(self) -> int:
        """Number of voxels in the region."""
        return self.inside[1].size

    @cached_property
    def obstacle(self) -> str:
        """Why no metric has a value here; empty when nothing is in the way."""
        for what, values in zip(("prediction", "reference"), self.inside, strict=True):
            if not values.size:
                return "the region is empty"
            if values.dtype.kind == "f" and (wrong := values.size - int(np.isfinite(values).sum())):
                return f"the {what} holds {wrong} voxels that are not finite"
        return ""

    def slices(self) -> Iterator[Pair]:
        """Yield every slice on which the region has a voxel, as a volume of one slice."""
        for k in range(self.reference.shape[0]):
            part = slice(k, k + 1)
            mask = None if self.mask is None else self.mask[part]
            if mask is None or mask.any():
                yield Pair(self.prediction[part], self.reference[part], mask, self.spacing_mm)
