"""Score predictions against references: scores.json, scores.csv and a table on the screen.

With a cohort:    cinevox evaluate input=TRANSLATION [input=ANOTHER ...] output=SCORES
Without a cohort: cinevox evaluate prediction=FILE|FOLDER reference=FILE|FOLDER [mask=FILE|FOLDER] output=SCORES

Translations of one label are one method where they are different folds of a cross-validation, else an error.
Reads translation.json and the volumes that it names, or pairs of files with the same name. The metrics, their range
and the regions come from the group 'metrics'. A reference on another grid is resampled onto the prediction's grid
(with a cohort; the scores say so) or refused (without one, unless evaluate.resample=true).

Writes scores.json (every score, with the profile that defines it) and scores.csv.

Main options: metrics=NAME, evaluate.source=false (do not score the untranslated source), evaluate.resample, label
(the method's name without a cohort), workers, --dry-run.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipeline.artifacts import claim_output, content_hash, file_sha256, write_json
from pipeline.errors import ConfigError, DataError, GeometryError, nearest
from pipeline.geometry import Grid, Volume, grid_difference, reorder
from pipeline.io import read_grid, stem, suffix
from pipeline.metrics import METRICS, check_metrics, compare, summarise
from pipeline.metrics.comparison import REGIONS, CaseFiles
from pipeline.metrics.scoring import SOURCE, CaseJob, CaseResult, score_case
from pipeline.progress import say, track
from pipeline.records import CASE_ID, Scores, TranslatedCase, Translation, unique
from pipeline.reporting.tables import print_summary, write_scores_csv
from pipeline.settings import Config

_HU_MODALITIES = ("ct", "cbct")
VOLUMES_FILE = "volumes.json"  # of a comparison without a cohort: what a translation record would say


@dataclass
class Plan:
    """What will be scored: files per method, where figures find the volumes, and what is missing already."""

    methods: dict[str, list[CaseFiles]] = field(default_factory=dict)
    score_source: bool = False
    translations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    pairs: bool = False


def run(config: Config) -> None:
    """Score what ``config.input``, or ``config.prediction`` and ``config.reference``, name.

    Raises:
        ConfigError: Inputs do not fit together, or a metric or region is unknown.
        GeometryError: A single pair of files lies on two grids.
        DataError: Cases were left out; everything else has been written by then.
    """
    _check(config)
    assert config.output is not None
    plan = _plan_pairs(config) if config.prediction else _plan_translations(config)
    jobs = _jobs(config, plan)
    if config.dry_run:
        for method, cases in plan.methods.items():
            say(f"Would score {len(cases)} cases of '{method}': {', '.join(c.case for c in cases)}")
        for line in [*plan.notes, *(f"Left out: {reason}" for reason in plan.excluded)]:
            say(line)
        say(
            f"Metrics {', '.join(config.metrics.metrics)}; "
            f"regions {', '.join(config.metrics.regions)}; nothing written."
        )
        return
    if not jobs:
        raise DataError("There is nothing to score: " + "; ".join(plan.excluded or ["no case is listed"]))
    claim = claim_output(config.output, "evaluate", _settings(config, plan))
    if claim.finished:
        say(f"'{config.output}' is finished already; nothing to do.")
        scores, left_out = Scores.load(config.output), int(claim.record["results"]["excluded"])
    else:
        results = list(track(_score(jobs, config.workers), "Scoring", len(jobs)))
        scores, left_out = _collect(config, plan, results)
        if plan.pairs:
            write_json(config.output / VOLUMES_FILE, _volumes_record(config, plan))
        scores.save(config.output)
        write_scores_csv(config.output / "scores.csv", scores.scores)
        claim.finish(excluded=left_out)
    print_summary(Console(file=sys.stdout), scores)
    if left_out:
        listed = "; ".join(note for note in scores.notes if note.startswith("Left out: "))
        raise DataError(
            f"{left_out} comparisons could not be scored. {listed}",
            remedy=f"The others are in '{config.output}'; mend or remove these and score again into a new folder",
        )


def _check(config: Config) -> None:
    if config.output is None:
        raise ConfigError("evaluate needs an output folder", remedy="Add output=FOLDER")
    if bool(config.input) == bool(config.prediction):
        raise ConfigError(
            "evaluate compares either translations or pairs of files",
            value="both" if config.input else "neither",
            allowed="input=TRANSLATION, or prediction=... reference=...",
        )
    if config.prediction and not config.reference:
        raise ConfigError("prediction=... needs reference=...")
    if config.input and (config.reference or config.mask):
        raise ConfigError("reference=... and mask=... belong to prediction=...; a translation record names its own")
    check_metrics(config.metrics.metrics)
    if config.metrics.unit != "HU" and "within_50_hu" in config.metrics.metrics:
        raise ConfigError("Metric 'within_50_hu' needs volumes in HU", value=f"metrics.unit is {config.metrics.unit}")
    for region in config.metrics.regions:
        if region not in REGIONS:
            raise ConfigError(
                f"Unknown region '{region}' in metrics.regions",
                allowed=", ".join(REGIONS),
                remedy=nearest(region, REGIONS),
            )


def _plan_translations(config: Config) -> Plan:
    plan = Plan()
    folds: dict[str, list[int]] = {}
    for folder in config.input:
        record = Translation.load(folder)
        base = folder if folder.is_dir() else folder.parent
        method = record.label or record.method
        cases = [CaseFiles.of(case, base.resolve()) for case in record.cases]
        # Two folds of a cross-validation have no case in common.
        others = {case.case for case in plan.methods.get(method, [])}
        joins = record.fold and 0 not in folds.get(method, []) and others.isdisjoint(case.case for case in cases)
        if method == SOURCE or (method in plan.methods and not joins):
            raise ConfigError(
                f"Two inputs have the label '{method}'" if method != SOURCE else "A method cannot be called 'source'",
                remedy="Translate with another translate.label",
            )
        if record.unit != config.metrics.unit:
            raise ConfigError(
                f"The metrics '{config.metrics.profile}' are for volumes in {config.metrics.unit}",
                value=f"'{method}' is in {record.unit}",
                remedy="Choose another group: metrics=NAME",
            )
        # Arbitrary units of two MR contrasts are not one unit, so only HU sources can be compared.
        hu = record.unit == "HU" and record.source_modality in _HU_MODALITIES
        plan.score_source = plan.score_source or (config.evaluate.source and hu)
        folds.setdefault(method, []).append(record.fold)
        plan.methods.setdefault(method, []).extend(cases)
        plan.translations.append(str(folder.resolve()))
        plan.notes += [f"Case '{e.case_id}' ({method}) was not translated: {e.reason}" for e in record.excluded]
    for method, tested in folds.items():
        if any(tested):
            plan.notes.append(
                f"'{method}' is a cross-validation: folds {', '.join(map(str, sorted(tested)))}, a run each."
            )
    return plan


def _plan_pairs(config: Config) -> Plan:
    assert config.prediction is not None
    assert config.reference is not None
    method = config.label or "prediction"
    if method == SOURCE:
        raise ConfigError("A method cannot be called 'source'", remedy="Set another label")
    predictions, references = _volumes(config.prediction, "prediction"), _volumes(config.reference, "reference")
    masks = _volumes(config.mask, "mask") if config.mask else {}
    if config.prediction.is_dir() != config.reference.is_dir():
        raise ConfigError("prediction and reference are two files or two folders", value="a file and a folder")
    if not config.prediction.is_dir():
        # A single pair fits by intention, whatever the files are called.
        name = next(iter(predictions))
        references = {name: next(iter(references.values()))}
        masks = dict(zip([name], masks.values(), strict=False))
        _check_single(config, predictions[name], references[name])
    plan = Plan(translations=[str((config.output / VOLUMES_FILE).resolve())] if config.output else [], pairs=True)
    cases = []
    for name in sorted({*predictions, *references}):
        case = safe_case(name)
        if name not in predictions or name not in references:
            plan.excluded.append(f"case '{case}': no {'reference' if name in predictions else 'prediction'}")
        elif masks and name not in masks:
            plan.excluded.append(f"case '{case}': no mask")
        else:
            cases.append(CaseFiles(case, case, predictions[name], references[name], mask=masks.get(name)))
    plan.methods[method] = cases
    return plan


def _check_single(config: Config, prediction: Path, reference: Path) -> None:
    a, b = _film_header(prediction), _film_header(reference)
    if not config.evaluate.resample and (difference := grid_difference(a, b)):
        raise GeometryError(
            f"Prediction and reference differ in grid: {difference}",
            value=f"prediction: {a.describe()}; reference: {b.describe()}",
            remedy="Set evaluate.resample=true to put the reference onto the prediction's grid",
        )


def _film_header(path: Path) -> Grid:
    grid = read_grid(path)
    # One voxel seen as many: reordering needs an array, not its memory.
    return reorder(Volume(np.broadcast_to(np.int8(0), grid.shape), grid.affine)).grid


def _volumes(place: Path, what: str) -> dict[str, Path]:
    if not place.exists():
        raise DataError(f"No {what} at '{place}'")
    files = [place] if place.is_file() else sorted(p for p in place.iterdir() if p.is_file() and suffix(p))
    found: dict[str, Path] = {}
    for path in files:
        if stem(path) in found:
            raise DataError(f"Folder '{place}' holds '{stem(path)}' in two formats")
        found[stem(path)] = path.resolve()
    if not found:
        raise DataError(f"Folder '{place}' of the {what}s holds no volume")
    return found


def safe_case(name: str) -> str:
    """Return a file's stem where it is a safe case name, else a pseudonym that is always the same for it."""
    return name if CASE_ID.fullmatch(name) else "case_" + hashlib.sha256(name.encode()).hexdigest()[:10]


def _jobs(config: Config, plan: Plan) -> list[CaseJob]:
    by_case: dict[str, dict[str, CaseFiles]] = {}
    for method, cases in plan.methods.items():
        for files in cases:
            by_case.setdefault(files.case, {})[method] = files
    return [
        CaseJob(
            case=case,
            methods=methods,
            metrics=config.metrics,
            body_threshold_hu=config.preprocess.body_threshold_hu,
            score_source=plan.score_source,
            may_resample=config.evaluate.resample or not plan.pairs,
        )
        for case, methods in by_case.items()
    ]


def _settings(config: Config, plan: Plan) -> dict[str, Any]:
    files = {
        f"{method}/{case.case}": content_hash([_fingerprint(p) for p in _paths(case)])
        for method, cases in plan.methods.items()
        for case in cases
    }
    return {
        "metrics": config.metrics.model_dump(mode="json"),
        "evaluate": config.evaluate.model_dump(mode="json"),
        "body_threshold_hu": config.preprocess.body_threshold_hu,
        "inputs": files,
        "excluded": plan.excluded,
    }


def _paths(case: CaseFiles) -> list[Path | None]:
    return [case.prediction, case.reference, case.source, case.mask]


def _fingerprint(path: Path | None) -> str:
    if path is None:
        return ""
    # A missing file is met again, with its reason, when the case is scored.
    if not path.is_file():
        return "missing"
    # A MetaImage header may keep its voxels in a file beside it.
    beside = [p for p in (path.with_suffix(".raw"), path.with_suffix(".zraw")) if p.is_file()] * (path.suffix == ".mhd")
    return "".join(file_sha256(p) for p in (path, *beside))


def _score(jobs: list[CaseJob], workers: int) -> Iterator[CaseResult]:
    if workers == 1 or len(jobs) == 1:
        yield from map(score_case, jobs)
        return
    # Spawned, not forked: the parent may hold threads (numerics, progress bar).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        futures: list[Future[CaseResult]] = [pool.submit(score_case, job) for job in jobs]
        for job, future in zip(jobs, futures, strict=True):
            try:
                yield future.result()
            except BrokenProcessPool:
                reason = "a worker process was killed (perhaps out of memory; try workers=1)"
                yield CaseResult(excluded=[f"case '{job.case}' ({m}): {reason}" for m in job.methods])


def _collect(config: Config, plan: Plan, results: list[CaseResult]) -> tuple[Scores, int]:
    order = {method: rank for rank, method in enumerate([SOURCE, *plan.methods])}
    scores = sorted(
        (s for r in results for s in r.scores), key=lambda s: order[s.method]
    )  # stable: cases stay in order
    excluded = [*plan.excluded, *(e for r in results for e in r.excluded)]
    notes = plan.notes + [note[0].upper() + note[1:] for r in results for note in r.notes]
    notes += [f"Left out: {reason}" for reason in excluded]
    cases_of = {m: {s.case for s in scores if s.method == m} for m in unique(s.method for s in scores)}
    if len({frozenset(c) for c in cases_of.values()}) > 1:
        counts = ", ".join(f"{method} {len(cases)}" for method, cases in cases_of.items())
        notes.append(f"The methods were scored on different cases ({counts}); their means are not comparable.")
    record = Scores(
        schema=1,
        profile=_profile(config),
        scores=scores,
        summary=summarise(scores),
        comparisons=compare(scores),
        translations=plan.translations,
        notes=notes,
    )
    return record, len(excluded)


def _profile(config: Config) -> dict[str, Any]:
    settings = config.metrics
    metrics = {
        name: {
            "title": METRICS[name].title,
            "unit": METRICS[name].unit_for(settings.unit),
            "better": METRICS[name].better,
            "definition": METRICS[name].definition,
        }
        for name in settings.metrics
    }
    return {
        "name": settings.profile,
        "unit": settings.unit,
        "clip": list(settings.clip),
        "data_range": settings.data_range,
        "body_threshold_hu": config.preprocess.body_threshold_hu,
        "regions": {name: REGIONS[name] for name in settings.regions},
        "metrics": metrics,
    }


def _volumes_record(config: Config, plan: Plan) -> Translation:
    ((method, cases),) = plan.methods.items()
    return Translation(
        schema=1,
        method=method,
        label=method,
        run="",
        checkpoint_sha256="",
        source_modality="",
        target_modality="",
        unit=config.metrics.unit,
        cases=[
            TranslatedCase(
                case_id=c.case,
                patient=c.patient,
                prediction=str(c.prediction),
                reference=str(c.reference),
                mask=str(c.mask) if c.mask else "",
                mask_kind="given" if c.mask else "",
            )
            for c in cases
        ],
    )
