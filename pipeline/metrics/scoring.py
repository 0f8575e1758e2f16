"""Scoring one case: every method, every region, every metric, one volume of each kind in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CinevoxError
from pipeline.geometry import FILM_AXES, Grid, Volume, grid_difference
from pipeline.metrics.comparison import CaseFiles, Target, on_grid, read_film, read_target
from pipeline.metrics.pair import Pair
from pipeline.metrics.plausibility import check_unit
from pipeline.metrics.profile import normalised
from pipeline.metrics.registry import METRICS, compute
from pipeline.records import Score, unique
from pipeline.settings import MetricsSettings

SOURCE = "source"


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
    """Scores of one case, remarks for the reader, and what could not be scored, each with the case's name."""

    scores: list[Score] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)


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
            result.scores += _scores(job, files, method, prediction, target)
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
    result.scores += _scores(job, files, SOURCE, source, target)


def _lowest(settings: MetricsSettings, target: Target) -> float:
    return settings.clip[0] if settings.clip is not None else float(np.nanmin(target.volume.array))


def _scores(job: CaseJob, files: CaseFiles, method: str, prediction: Volume, target: Target) -> list[Score]:
    assert prediction.grid.axes == FILM_AXES
    settings = job.metrics
    volumes: tuple[NDArray, NDArray] = (prediction.array, target.volume.array)
    if settings.normalisation == "percentile":
        volumes = normalised(*volumes)
    scores = []
    for name in unique(settings.regions):
        region = target.regions.get(name)
        if region is None:
            continue
        pair = Pair(*volumes, region.mask, prediction.spacing_mm)
        for metric in (METRICS[metric_name] for metric_name in settings.names):
            value, reason = (None, region.reason) if region.reason else compute(metric.name, pair, settings)
            scores.append(
                Score(
                    case=job.case,
                    patient=files.patient,
                    cohort=files.cohort,
                    method=method,
                    region=name,
                    metric=metric.name,
                    value=value,
                    unit=metric.unit_for(settings.scored_unit),
                    better=metric.better,
                    reason=reason,
                )
            )
    return scores
