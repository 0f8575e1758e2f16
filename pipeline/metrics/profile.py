"""What a profile fixes, in words and numbers: the part of ``scores.json`` that says what every number means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import file_sha256
from pipeline.errors import DataError
from pipeline.metrics.comparison import REGIONS
from pipeline.metrics.registry import METRICS, Metric
from pipeline.settings import MetricsSettings

PERCENTILES = (0.5, 99.5)
_NORMALISATION = {
    "none": "none: values are compared in their own unit",
    "percentile": (
        "the reference's percentiles 0.5 (at least 0) and 99.5 over the whole volume become 0 and 1, for prediction "
        "and reference alike, and both are clipped to them (as in the BraTS inpainting challenge)"
    ),
}
_WINDOW = {
    "uniform": "uniform, 7 voxels a side, sample covariance (scikit-image, SynthRAD)",
    "gaussian": "Gaussian, 11 taps, sigma 1.5, population covariance (Wang 2004)",
}
_OUTSIDE = {
    "lowest": "voxel metrics count the region only; windows see the lower end of the range outside it, in both volumes",
    "keep": "voxel metrics count the region only; windows see the volumes as they are outside it",
}
_TAKEN = {
    "3d": "over the volume",
    "volume": "over the volume",
    "2d": "slice by slice, then the mean over the slices that have a value",
    "slice": "slice by slice, then the mean over the slices that have a value",
}


def describe(settings: MetricsSettings, body_threshold_hu: float) -> dict[str, Any]:
    """Return the profile as plain data for `pipeline.records.Scores` and its readers."""
    # A range in other units than the volumes' would mislead who draws them.
    clip = list(settings.clip) if settings.clip is not None and settings.normalisation == "none" else None
    return {
        "name": settings.profile,
        "title": settings.title,
        "note": settings.note,
        "comparable": settings.comparable,
        "unit": settings.unit,
        **({"clip": clip} if clip else {}),
        "data_range": "maximum of the reference" if isinstance(settings.data_range, str) else settings.data_range,
        "dimension": f"{settings.dimension}: {_TAKEN[settings.dimension]}",
        "normalisation": _NORMALISATION[settings.normalisation],
        "mask": _OUTSIDE[settings.outside],
        "window": _WINDOW[settings.window],
        "body_threshold_hu": body_threshold_hu,
        "regions": {name: REGIONS[name] for name in settings.regions},
        "metrics": {name: _metric(METRICS[name], settings) for name in settings.names},
    }


def _metric(metric: Metric, settings: MetricsSettings) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for name in metric.parameters:
        value = getattr(settings, name)
        if name == "weights":
            parameters[name] = _weights(value.get(metric.name, ""))
        else:
            parameters[name] = list(value) if isinstance(value, tuple) else value
    return {
        "title": metric.title,
        "unit": metric.unit_for(settings.scored_unit),
        "better": metric.better,
        "needs": metric.needs,
        "definition": metric.definition,
        "taken": _TAKEN[settings.dimension if metric.taken == "profile" else metric.taken],
        "parameters": parameters,
        "origin": "profile" if metric.name in settings.metrics else "Cinevox",
    }


def _weights(file: str) -> dict[str, str]:
    """Name the weights by file and content, never by where they lie."""
    return {"file": Path(file).name, "sha256": file_sha256(Path(file))} if file else {"file": "packaged"}


def normalised(prediction: NDArray, reference: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Map both volumes so that the reference's percentiles 0.5 (at least 0) and 99.5 become 0 and 1, and clip them.

    Source: BraTS inpainting challenge 2023, evaluation code.

    Raises:
        DataError: The reference has no spread to normalise by.
    """
    low, high = np.percentile(reference[np.isfinite(reference)].astype(np.float32), PERCENTILES)
    low = max(float(low), 0.0)
    if not high > low:
        raise DataError("The reference's percentiles 0.5 and 99.5 are equal", value=f"{low:g}")
    a, b = (np.clip((v.astype(np.float32) - low) / (high - low), 0, 1) for v in (prediction, reference))
    return a, b
