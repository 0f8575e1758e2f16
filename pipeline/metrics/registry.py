"""The list of metrics: one decorator enters a function with its unit, its better direction and its source."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from pipeline.errors import ArtifactError, ConfigError, nearest
from pipeline.metrics.pair import Pair, Undefined
from pipeline.settings import MetricsSettings

Better = Literal["lower", "higher", "zero"]
Needs = Literal["volumes", "labels", "sets"]
Taken = Literal["profile", "slice", "volume"]
Function = TypeVar("Function", bound=Callable[..., Any])
INTENSITY = "intensity"  # stands for the unit of the volumes that are compared
INTENSITY_SQUARED = "intensity squared"


@dataclass(frozen=True)
class Metric:
    """A metric: what computes it, its unit, which direction is better, what it compares, and its definition.

    ``function(pair, *, ...)`` takes a `Pair` (Boolean, of one label, where ``needs`` is 'labels') and, by keyword,
    those settings of the profile that its signature names; it returns a float or raises `Undefined`. Where ``needs``
    is 'sets' it turns slices into features, see `pipeline.metrics.frechet`. ``unit`` may be `INTENSITY`. ``taken`` says
    over what: slice by slice (then the mean), over the volume, or as the profile's dimension has it. ``own_weights``:
    a file with weights must be given.
    """

    name: str
    title: str
    function: Callable[..., Any]
    unit: str
    better: Better
    needs: Needs
    definition: str
    taken: Taken
    hu: bool
    own_weights: bool

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
    taken: Taken = "profile",
    hu: bool = False,
    own_weights: bool = False,
) -> Callable[[Function], Function]:
    """Enter the decorated function into `METRICS`, under its own name unless one is given.

    Args:
        title: For a reader.
        unit: Of the value.
        better: Which direction is.
        definition: In a sentence, with the source.
        name: In profiles and records.
        needs: What is compared: two volumes, two label volumes, or two sets of slices.
        taken: Over slices or the volume, or as the profile says.
        hu: Has a meaning for volumes in HU only.
        own_weights: No package ships its network's weights.
    """

    def enter(function: Function) -> Function:
        key = name or function.__name__
        if key in METRICS:
            raise ValueError(f"metric '{key}' is registered twice")
        METRICS[key] = Metric(key, title, function, unit, better, needs, definition, taken, hu, own_weights)
        return function

    return enter


def check_metrics(settings: MetricsSettings, *, labels: bool = False) -> None:
    """Refuse a profile that cannot be computed.

    Args:
        settings: The profile.
        labels: Whether label volumes are given.

    Raises:
        ConfigError: A name is no metric, or a metric does not fit the profile or what is given.
        ArtifactError: A file with weights does not exist.
    """
    for name in settings.names:
        if name not in METRICS:
            raise ConfigError(
                f"Unknown metric '{name}' in metrics.metrics",
                allowed=", ".join(METRICS),
                remedy=nearest(name, METRICS),
            )
        entry, file = METRICS[name], settings.weights.get(name, "")
        if entry.hu and settings.scored_unit != "HU":
            raise ConfigError(f"Metric '{name}' needs volumes in HU", value=f"metrics.unit is {settings.unit}")
        if entry.needs == "sets" and settings.clip is None:
            raise ConfigError(f"Metric '{name}' needs metrics.clip: networks see that range")
        if entry.own_weights and not file:
            raise ConfigError(
                f"Metric '{name}' needs the weights of its network, which no package ships",
                remedy=f"Add +metrics.weights.{name}=FILE, or leave the metric out",
            )
        if file and not Path(file).is_file():
            raise ArtifactError(f"The weights of metric '{name}' do not exist", value=Path(file).name)
    if labels and not any(METRICS[name].needs == "labels" for name in settings.names):
        raise ConfigError(
            "Label volumes are given, but the profile has no metric of labels",
            value=", ".join(settings.names),
            remedy="Add dice and hd95 to metrics.extra",
        )


def compute(name: str, pair: Pair, settings: MetricsSettings) -> tuple[float | None, str]:
    """Compute one metric as the profile defines it, and keep 'no value' apart from any number.

    Returns:
        The value and an empty reason, or None and the reason why there is no value.
    """
    if pair.obstacle:
        return None, pair.obstacle
    entry = METRICS[name]
    try:
        if entry.taken == "slice" or (entry.taken == "profile" and settings.dimension == "2d"):
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
    if "data_range" in chosen:
        chosen["data_range"] = range_of(pair, settings)
    return chosen


def range_of(pair: Pair, settings: MetricsSettings) -> float:
    """Return the range R of a profile for one pair.

    Raises:
        Undefined: It is the reference's maximum, which is not above 0.
    """
    if not isinstance(settings.data_range, str):
        return settings.data_range
    highest = float(np.nanmax(pair.reference))
    if not highest > 0:
        raise Undefined(f"the reference's maximum {highest:g} is no range")
    return highest
