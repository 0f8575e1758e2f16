"""The list of metrics: one decorator enters a function with its unit, its better direction and its source."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from pipeline.errors import ConfigError, nearest
from pipeline.metrics.pair import Pair, Undefined
from pipeline.settings import MetricsSettings

Better = Literal["lower", "higher", "zero"]
Needs = Literal["volumes", "labels", "sets"]
Function = TypeVar("Function", bound=Callable[..., Any])
INTENSITY = "intensity"  # stands for the unit of the volumes that are compared
INTENSITY_SQUARED = "intensity squared"


@dataclass(frozen=True)
class Metric:
    """A metric: what computes it, its unit, which direction is better, what it compares, and its definition.

    ``function(pair, *, ...)`` takes a `Pair` (of label volumes where ``needs`` is 'labels') and, by keyword, those
    settings of the profile that its signature names; it returns a float or raises `Undefined`. What ``needs`` 'sets' is
    described in `pipeline.metrics.frechet`. ``unit`` may be `INTENSITY`. ``volume`` marks what is always taken over
    the whole volume; a profile of dimension '2d' takes all others slice by slice.
    """

    name: str
    title: str
    function: Callable[..., Any]
    unit: str
    better: Better
    needs: Needs
    definition: str
    volume: bool
    hu: bool

    @property
    def parameters(self) -> tuple[str, ...]:
        """The settings of the profile that decide its value."""
        found = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in found if p.kind is p.KEYWORD_ONLY and p.default is p.empty)

    def unit_for(self, volume_unit: str) -> str:
        """Return the unit of this metric for volumes in ``volume_unit``."""
        if self.unit == INTENSITY_SQUARED:
            return f"{volume_unit}²" if volume_unit else ""
        return volume_unit if self.unit == INTENSITY else self.unit


METRICS: dict[str, Metric] = {}


def metric(
    *,
    title: str,
    unit: str,
    better: Better,
    definition: str,
    name: str = "",
    needs: Needs = "volumes",
    volume: bool = False,
    hu: bool = False,
) -> Callable[[Function], Function]:
    """Enter the decorated function into `METRICS`, under its own name unless one is given.

    Args:
        title: For a reader.
        unit: Of the value.
        better: Which direction is.
        definition: In a sentence, with the source.
        name: In profiles and records.
        needs: What is compared: two volumes, two label volumes, or two sets of slices.
        volume: Has no meaning for a single slice.
        hu: Has a meaning for volumes in HU only.
    """

    def enter(function: Function) -> Function:
        key = name or function.__name__
        if key in METRICS:
            raise ValueError(f"metric '{key}' is registered twice")
        METRICS[key] = Metric(key, title, function, unit, better, needs, definition, volume, hu)
        return function

    return enter


def check_metrics(settings: MetricsSettings) -> None:
    """Raise ConfigError for what is no metric, or for one that has no meaning in the profile's unit."""
    for name in settings.names:
        if name not in METRICS:
            raise ConfigError(
                f"Unknown metric '{name}' in metrics.metrics",
                allowed=", ".join(METRICS),
                remedy=nearest(name, METRICS),
            )
        if METRICS[name].hu and settings.scored_unit != "HU":
            raise ConfigError(f"Metric '{name}' needs volumes in HU", value=f"metrics.unit is {settings.unit}")


def compute(name: str, pair: Pair, settings: MetricsSettings) -> tuple[float | None, str]:
    """Compute one metric as the profile defines it, and keep 'no value' apart from any number.

    Returns:
        The value and an empty reason, or None and the reason why there is no value.
    """
    if pair.obstacle:
        return None, pair.obstacle
    entry = METRICS[name]
    try:
        if settings.dimension == "2d" and not entry.volume:
            value = _over_slices(entry, pair, settings)
        else:
            value = float(entry.function(pair, **_arguments(entry, pair, settings)))
    except Undefined as reason:
        return None, str(reason)
    return (value, "") if math.isfinite(value) else (None, f"the value is {value}")


def _over_slices(entry: Metric, pair: Pair, settings: MetricsSettings) -> float:
    values, reason = [], "the region is empty"
    for one in pair.slices():
        try:
            values.append(float(entry.function(one, **_arguments(entry, one, settings))))
        except Undefined as undefined:
            reason = str(undefined)
    if not values:
        raise Undefined(f"no slice has a value: {reason}")
    return math.fsum(values) / len(values)


def _arguments(entry: Metric, pair: Pair, settings: MetricsSettings) -> dict[str, Any]:
    chosen: dict[str, Any] = {name: getattr(settings, name) for name in entry.parameters if name != "weights"}
    if "weights" in entry.parameters:
        chosen["weights"] = settings.weights.get(entry.name, "")
    if chosen.get("data_range") == "reference_maximum":
        highest = float(np.nanmax(pair.reference))
        if not highest > 0:
            raise Undefined(f"the reference's maximum {highest:g} is no range")
        chosen["data_range"] = highest
    return chosen
