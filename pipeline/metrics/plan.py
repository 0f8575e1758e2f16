"""What is scored: translations joined into methods, or files of any tool paired by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigError, GeometryError
from pipeline.geometry import Grid, Volume, grid_difference, reorder
from pipeline.io import read_grid
from pipeline.metrics.comparison import CaseFiles
from pipeline.metrics.pairing import Places, cohort_reader, pair_cases
from pipeline.metrics.scoring import SOURCE
from pipeline.records import TranslatedCase, Translation
from pipeline.settings import Config

_HU_MODALITIES = ("ct", "cbct")


@dataclass
class Plan:
    """What will be scored: files per method, where figures find the volumes, and what is missing already."""

    methods: dict[str, list[CaseFiles]] = field(default_factory=dict)
    score_source: bool = False
    translations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    pairs: bool = False


def plan_translations(config: Config) -> Plan:
    """Join the translations in ``config.input`` into methods: one of each label, or the folds of a cross-validation.

    Raises:
        ConfigError: Two inputs are one method without being its folds or on other cohorts, or a unit does not fit.
    """
    plan = Plan()
    folds: dict[tuple[str, str], dict[int, set[str]]] = {}  # method and cohort: fold: patients
    cohort_of = cohort_reader(config.evaluate.cohort_pattern)
    for folder in config.input:
        record = Translation.load(folder)
        base = folder if folder.is_dir() else folder.parent
        method = record.label or record.method
        if method == SOURCE:
            raise ConfigError("A method cannot be called 'source'", remedy="Translate with another translate.label")
        if record.unit != config.metrics.unit:
            raise ConfigError(
                f"The metrics '{config.metrics.profile}' are for volumes in {config.metrics.unit}",
                value=f"'{method}' is in {record.unit}",
                remedy="Choose another group: metrics=NAME",
            )
        _join(folds.setdefault((method, record.cohort), {}), record, method)
        # Arbitrary units of two MR contrasts are not one unit, so only HU sources can be compared.
        hu = record.unit == "HU" and record.source_modality in _HU_MODALITIES
        plan.score_source = plan.score_source or (config.evaluate.source and hu)
        plan.methods.setdefault(method, []).extend(
            CaseFiles.of(case, base.resolve(), cohort_of(case.case_id) or record.cohort) for case in record.cases
        )
        plan.translations.append(str(folder.resolve()))
        plan.notes += [f"Case '{e.case_id}' ({method}) was not translated: {e.reason}" for e in record.excluded]
    _check_patients(folds)
    for (method, _), tested in folds.items():
        if any(tested):
            plan.notes.append(
                f"'{method}' is a cross-validation: folds {', '.join(map(str, sorted(tested)))}, a run each."
            )
    _check_cases(plan)
    return plan


def _join(tested: dict[int, set[str]], record: Translation, method: str) -> None:
    """Add a translation to those of its method and cohort: they are one result only as different folds."""
    patients = {case.patient for case in record.cases}
    if tested and (0 in tested or record.fold == 0 or record.fold in tested):
        raise ConfigError(f"Two inputs have the label '{method}'", remedy="Translate with another translate.label")
    for fold, others in tested.items():
        if common := patients & others:
            raise ConfigError(
                f"Folds {fold} and {record.fold} of '{method}' were both tested on the same patients",
                value=f"{len(common)} in common",
                allowed="every patient in one fold: translations of the runs of one cohort",
            )
    tested[record.fold] = patients


def _check_patients(folds: Mapping[tuple[str, str], Mapping[int, set[str]]]) -> None:
    """Refuse patients of one name in two cohorts: they would count as one."""
    cohorts: dict[str, set[str]] = {}
    for (_, cohort), tested in folds.items():
        if cohort:
            cohorts.setdefault(cohort, set()).update(*tested.values())
    for (one, first), (other, second) in combinations(cohorts.items(), 2):
        if common := first & second:
            raise ConfigError(
                f"Cohorts '{one}' and '{other}' have patients of the same names",
                value=f"{len(common)} in common",
                remedy="Evaluate the cohorts apart, or make one of them again with other names",
            )


def _check_cases(plan: Plan) -> None:
    cohort_of: dict[str, str] = {}
    for files in (files for cases in plan.methods.values() for files in cases if files.cohort):
        if cohort_of.setdefault(files.case, files.cohort) != files.cohort:
            raise ConfigError(
                f"Case '{files.case}' is in two cohorts, '{cohort_of[files.case]}' and '{files.cohort}'",
                remedy="Evaluate them apart, or give the cases of one cohort other names",
            )


def plan_pairs(config: Config) -> Plan:
    """Pair the files in ``config.prediction`` with those in ``config.reference`` by the case's name.

    Raises:
        ConfigError: Methods have no names of their own, or places do not go together.
        DataError: A place holds nothing, or no names agree.
        GeometryError: A single pair of files lies on two grids.
    """
    assert config.reference is not None
    methods = _labels(config)
    places = Places(
        predictions=dict(zip(methods, config.prediction, strict=True)),
        reference=config.reference,
        mask=config.mask,
        prediction_labels=dict(zip(methods, config.prediction_labels, strict=False)),
        reference_labels=config.reference_labels,
        patient=config.evaluate.patient_pattern,
        cohort=config.evaluate.cohort_pattern,
    )
    cases, excluded = pair_cases(places)
    if config.reference.is_file():
        for files in (files for (files,) in cases.values()):
            _check_single(config, files.prediction, config.reference)
    assert config.output is not None
    records = [str((config.output / _volumes_file(rank)).resolve()) for rank in range(len(cases))]
    return Plan(cases, translations=records, excluded=excluded, pairs=True)


def _labels(config: Config) -> list[str]:
    """Return the name of the method of every prediction."""
    names = config.evaluate.labels
    if not names and len(config.prediction) == 1:
        names = [config.label or "prediction"]
    names = names or [_folder(place).resolve().name for place in config.prediction]
    if len(names) != len(config.prediction) or len(set(names)) < len(names) or SOURCE in names:
        raise ConfigError(
            "Every prediction needs a name of its own, other than 'source'",
            value=", ".join(names),
            remedy=f"Set evaluate.labels to a list of {len(config.prediction)}",
        )
    return names


def _folder(place: Path) -> Path:
    """Return the folder that holds a method's volumes: of a pattern, the one above the case's name."""
    if "*" in str(place):
        return next(parent for parent in place.parents if "*" not in str(parent))
    return place if place.is_dir() else place.parent


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


def _volumes_file(rank: int) -> str:
    return f"volumes_{rank + 1}.json" if rank else "volumes.json"


def volume_records(config: Config, plan: Plan) -> dict[str, Translation]:
    """Return, by file name and for every method of pairs, what a translation record would say: figures read it."""
    return {
        _volumes_file(rank): Translation(
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
                    case_id=files.case,
                    patient=files.patient,
                    prediction=str(files.prediction),
                    reference=str(files.reference),
                    mask=str(files.mask or ""),
                    mask_kind=files.mask_kind if files.mask else "",
                )
                for files in cases
            ],
        )
        for rank, (method, cases) in enumerate(plan.methods.items())
    }
