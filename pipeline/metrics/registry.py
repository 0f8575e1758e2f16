"""The list of metrics: one decorator enters a function with its unit, its better direction and its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, nearest

Better = Literal["lower", "higher", "zero"]
Needs = Literal["volumes", "labels", "sets"]
INTENSITY = "intensity"  # stands for the unit of the volumes that are compared


class Undefined(Exception):  # noqa: N818 - not a mistake of anyone: the definition gives no number here
    """A metric has no value for this input; the message says why."""


class PairFunction(Protocol):
    """A metric of two volumes; see `Metric`."""

    def __call__(
        self,
        prediction: NDArray,
        reference: NDArray,
        mask: NDArray[np.bool_] | None,
        spacing_mm: tuple[float, float, float],
        *,
        clip: tuple[float, float],
        data_range: float,
    ) -> float:
        """Return the metric's value or raise `Undefined`."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric: what computes it, its unit, which direction is better, what it compares, and its definition.

    ``function(prediction, reference, mask, spacing_mm, *, clip, data_range)`` takes arrays in film order
    (slices, rows, columns), a Boolean mask of the same shape (None: everywhere) and the spacing in the same order;
    it returns a float or raises `Undefined`. ``unit`` is `INTENSITY` for metrics in the volumes' own unit.
    """

    name: str
    title: str
    function: PairFunction
    unit: str
    better: Better
    needs: Needs
    definition: str

    def unit_for(self, volume_unit: str) -> str:
        """Return the unit of this metric for volumes in ``volume_unit``."""
        return volume_unit if self.unit == INTENSITY else self.unit


METRICS: dict[str, Metric] = {}


def metric(
    *, title: str, unit: str, better: Better, definition: str, needs: Needs = "volumes"
) -> Callable[[PairFunction], PairFunction]:
    """Enter the decorated function into `METRICS` under its own name."""

    def enter(function: PairFunction) -> PairFunction:
        name: str = function.__name__  # type: ignore[attr-defined]
        if name in METRICS:
            raise ValueError(f"metric '{name}' is registered twice")
        METRICS[name] = Metric(name, title, function, unit, better, needs, definition)
        return function

    return enter


def check_metrics(names: Iterable[str]) -> None:
    """Raise ConfigError for a name that is not a metric, with the nearest one that is."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(
                f"Unknown metric '{name}' in metrics.metrics",
                allowed=", ".join(METRICS),
                remedy=nearest(name, METRICS),
            )


def compute(
    name: str,
    prediction: NDArray,
    reference: NDArray,
    mask: NDArray[np.bool_] | None,
    spacing_mm: tuple[float, float, float],
    *,
    clip: tuple[float, float],
    data_range: float,
) -> tuple[float | None, str]:
    """Compute one metric and keep 'no value' apart from any number.

    Returns:
        The value and an empty reason, or None and the reason why there is no value.
    """
    if prediction.shape != reference.shape or (mask is not None and mask.shape != reference.shape):
        raise ValueError(
            f"shapes differ: {prediction.shape}, {reference.shape}, {None if mask is None else mask.shape}"
        )
    if mask is not None and not mask.any():
        return None, "the region is empty"
    for what, array in (("prediction", prediction), ("reference", reference)):
        inside = array if mask is None else array[mask]
        if not np.isfinite(inside).all():
            return None, f"the {what} holds {int((~np.isfinite(inside)).sum())} voxels that are not finite"
    try:
        value = METRICS[name].function(prediction, reference, mask, spacing_mm, clip=clip, data_range=data_range)
    except Undefined as reason:
        return None, str(reason)
    return (float(value), "") if np.isfinite(value) else (None, f"the value is {value}")


def inside_mask(
    prediction: NDArray, reference: NDArray, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the voxels of the region from both volumes as two vectors in float64.

    Raises:
        Undefined: The region holds no voxel.
    """
    a = (prediction.ravel() if mask is None else prediction[mask]).astype(np.float64)
    b = (reference.ravel() if mask is None else reference[mask]).astype(np.float64)
    if a.size == 0:
        raise Undefined("the region is empty")
    return a, b
