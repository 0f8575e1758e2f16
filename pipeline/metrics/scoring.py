"""Scoring one case: every method, every region, every metric, one volume of each kind in memory at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CinevoxError, GeometryError
from pipeline.geometry import FILM_AXES, Grid, Volume, grid_difference
from pipeline.metrics.comparison import CaseFiles, Target, on_grid, read_film, read_target
from pipeline.metrics.frechet import frechet_distance, network_images
from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.plausibility import check_unit
from pipeline.metrics.profile import normalised
from pipeline.metrics.registry import METRICS, Metric, compute, range_of
from pipeline.records import Score, SetScore, unique
from pipeline.settings import MetricsSettings

SOURCE = "source"
LABELS = "labels"  # the region of a mean over labels


@dataclass(frozen=True)
class CaseJob:
    """One case to score: its files per method, and whether the untranslated source is scored too."""

    case: str
    methods: dict[str, CaseFiles]
    metrics: MetricsSettings
    body_threshold_hu: float
    score_source: bool
    may_resample: bool


@dataclass
class CaseResult:
    """Scores of one case, remarks for the reader, and what could not be scored, each with the case's name.

    ``features`` of prediction and reference, by method, region and metric of sets, wait for the other cases.
    """

    scores: list[Score] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    features: dict[tuple[str, str, str], tuple[NDArray, NDArray]] = field(default_factory=dict)


def score_case(job: CaseJob) -> CaseResult:
    """Score all methods of one case; a method that cannot be scored is named in ``excluded`` and the others go on."""
    result = CaseResult()
    last: tuple[Grid, CaseFiles, Target] | None = None
    source_open = job.score_source
    for method, files in job.methods.items():
        who = f"case '{job.case}' ({method})"
        try:
            prediction = read_film(files.prediction, "prediction", job.metrics.unit)
            result.notes += [f"{who}: {doubt}" for doubt in check_unit(prediction, "prediction")]
            if last is None or grid_difference(last[0], prediction.grid) or not _same_target(last[1], files):
                target = read_target(
                    files,
                    prediction.grid,
                    unit=job.metrics.unit,
                    body_threshold_hu=job.body_threshold_hu,
                    may_resample=job.may_resample,
                )
                result.notes += [f"{who}: {note}" for note in target.notes]
                last = (prediction.grid, files, target)
            target = last[2]
            if source_open and files.source is not None:
                source_open = False
                _score_source(job, files, target, result)
            _score(job, files, method, prediction, target, result)
            result.scores += _label_scores(job, files, method)
        except CinevoxError as error:
            result.excluded.append(f"{who}: {error}")
        except (OSError, MemoryError, ValueError) as error:
            # Not the message: it may hold a path, and a path may hold a name.
            result.excluded.append(f"{who}: {type(error).__name__} while it was read or scored")
    return result


def _same_target(a: CaseFiles, b: CaseFiles) -> bool:
    return (a.reference, a.mask, a.mask_kind) == (b.reference, b.mask, b.mask_kind)


def _score_source(job: CaseJob, files: CaseFiles, target: Target, result: CaseResult) -> None:
    assert files.source is not None
    who = f"case '{job.case}' ({SOURCE})"
    try:
        source = read_film(files.source, "source", job.metrics.unit)
        result.notes += [f"{who}: {doubt}" for doubt in check_unit(source, "source")]
        # Where the source shows nothing it has air, the lowest value.
        source, difference = on_grid(source, target.volume.grid, outside=_lowest(job.metrics, target))
    except CinevoxError as error:
        result.excluded.append(f"{who}: {error}")
        return
    if difference:
        result.notes.append(f"{who}: the source was resampled onto the prediction's grid ({difference})")
    _score(job, files, SOURCE, source, target, result)


def _lowest(settings: MetricsSettings, target: Target) -> float:
    return settings.clip[0] if settings.clip is not None else float(np.nanmin(target.volume.array))


def _score(job: CaseJob, files: CaseFiles, method: str, prediction: Volume, target: Target, result: CaseResult) -> None:
    assert prediction.grid.axes == FILM_AXES
    settings = job.metrics
    volumes: tuple[NDArray, NDArray] = (prediction.array, target.volume.array)
    if settings.normalisation == "percentile":
        volumes = normalised(*volumes)
    for name in unique(settings.regions):
        region = target.regions.get(name)
        if region is None:
            continue
        pair = Pair(*volumes, region.mask, prediction.spacing_mm)
        for metric in (METRICS[metric_name] for metric_name in settings.names):
            if metric.needs == "volumes":
                found = (None, region.reason) if region.reason else compute(metric.name, pair, settings)
                result.scores.append(_row(job, files, method, name, metric, found))
            elif metric.needs == "sets":
                _add_features(job, method, name, metric, pair, region.reason or pair.obstacle, target, result)


def _row(
    job: CaseJob, files: CaseFiles, method: str, region: str, metric: Metric, found: tuple[float | None, str]
) -> Score:
    return Score(
        case=job.case,
        patient=files.patient,
        cohort=files.cohort,
        method=method,
        region=region,
        metric=metric.name,
        value=found[0],
        unit=metric.unit_for(job.metrics.scored_unit),
        better=metric.better,
        reason=found[1],
    )


def _add_features(
    job: CaseJob,
    method: str,
    region: str,
    metric: Metric,
    pair: Pair,
    obstacle: str,
    target: Target,
    result: CaseResult,
) -> None:
    if obstacle:
        result.notes.append(f"case '{job.case}' ({method}) has no part in {metric.title}, region {region}: {obstacle}")
        return
    options = {"weights": job.metrics.weights.get(metric.name, "")} if "weights" in metric.parameters else {}
    predicted, real = network_images(pair, job.metrics.clip, range_of(pair, job.metrics), job.metrics.outside)
    if (region, metric.name) not in target.features:
        target.features[region, metric.name] = metric.function(real, **options)
    features = metric.function(predicted, **options)
    result.features[method, region, metric.name] = (features, target.features[region, metric.name])


def _label_scores(job: CaseJob, files: CaseFiles, method: str) -> list[Score]:
    """Score each label under its own name, and their mean as region 'labels'."""
    if files.prediction_labels is None or files.reference_labels is None:
        return []
    prediction = read_film(files.prediction_labels, "label volume of the prediction", "")
    reference = read_film(files.reference_labels, "label volume of the reference", "")
    if difference := grid_difference(prediction.grid, reference.grid):
        raise GeometryError(
            f"The label volumes of prediction and reference differ in grid: {difference}",
            value=f"prediction: {prediction.grid.describe()}; reference: {reference.grid.describe()}",
            remedy="Segment both volumes on one grid",
        )
    labels = job.metrics.labels or {f"label_{n}": int(n) for n in np.unique(reference.array) if n > 0}
    rows: list[Score] = []
    for metric in (METRICS[name] for name in job.metrics.names if METRICS[name].needs == "labels"):
        found: list[tuple[float | None, str]] = []
        for name, number in labels.items():
            pair = Pair(prediction.array == number, reference.array == number, None, prediction.spacing_mm)
            value = compute(metric.name, pair, job.metrics)
            if pair.reference.any():
                found.append(value)
            rows.append(_row(job, files, method, name, metric, value))
        rows.append(_row(job, files, method, LABELS, metric, _mean(found)))
    return rows


def _mean(found: list[tuple[float | None, str]]) -> tuple[float | None, str]:
    """Return the mean over the labels of the reference, which has a value only if each of them has one."""
    values = [value for value, _ in found if value is not None]
    if not found:
        return None, "the reference holds none of the labels"
    if len(values) < len(found):
        return None, f"{len(found) - len(values)} of {len(found)} labels have no value"
    return math.fsum(values) / len(values), ""


def score_sets(results: list[CaseResult], settings: MetricsSettings) -> list[SetScore]:
    """Compare the features of all slices of all cases, by method, region and metric of sets."""
    rows = []
    for method, region, name in dict.fromkeys(key for result in results for key in result.features):
        parts = [r.features[method, region, name] for r in results if (method, region, name) in r.features]
        predicted, real = (np.concatenate(side) for side in zip(*parts, strict=True))
        value: float | None
        try:
            value, reason = frechet_distance(predicted, real), ""
        except Undefined as undefined:
            value, reason = None, str(undefined)
        rows.append(
            SetScore(
                method=method,
                region=region,
                metric=name,
                value=value,
                n=len(predicted),
                unit=METRICS[name].unit_for(settings.scored_unit),
                better=METRICS[name].better,
                reason=reason,
            )
        )
    return rows
