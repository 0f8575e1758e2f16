"""Volumes of any tool: find them by file, folder or pattern, and pair them by the case's name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ConfigError, DataError
from pipeline.io import stem, suffix
from pipeline.metrics.comparison import CaseFiles
from pipeline.records import CASE_ID

Files = dict[str, Path]  # case's name as the files have it -> file


@dataclass(frozen=True)
class Places:
    """Where volumes lie: predictions (and label volumes) by method, what they are compared with, and how names read.

    ``patient`` and ``cohort`` are regular expressions on a case's name with one group; None: every case is a
    patient of its own, and no cohort is known.
    """

    predictions: Mapping[str, Path]
    reference: Path
    mask: Path | None = None
    prediction_labels: Mapping[str, Path] = field(default_factory=dict)
    reference_labels: Path | None = None
    patient: str | None = None
    cohort: str | None = None


def find_volumes(place: Path, key: str) -> Files:
    """Return the volumes at a place by the name of their case.

    Args:
        place: A file; a folder of files (``CASE.nii.gz``) or of folders with one volume each (``CASE/x.nii.gz``); or
            a path with one ``*``, which stands for the case's name (``DIR/*/ct.nii.gz``, ``DIR/sct_*.mha``).
        key: The setting that names the place, for messages.

    Raises:
        DataError: Nothing is there, or a case has two volumes.
    """
    what = key.replace("_", " ")
    if place.is_file():
        return {stem(place): place.resolve()}
    if place.is_dir():
        found = _in_folder(place, what) or _in_folders(place, key)
    elif "*" in str(place):
        found = _by_pattern(place)
    else:
        raise DataError(f"No {what} at '{place}'")
    if not found:
        raise DataError(f"There is no volume of the {what} at '{place}'")
    return dict(sorted(found.items()))


def _in_folder(folder: Path, what: str) -> Files:
    found: Files = {}
    for path in _visible(folder):
        if not (path.is_file() and suffix(path)):
            continue
        if stem(path) in found:
            raise DataError(f"The folder of the {what} holds case '{safe_case(stem(path))}' in two formats")
        found[stem(path)] = path.resolve()
    return found


def _in_folders(folder: Path, key: str) -> Files:
    found: Files = {}
    for inner in _visible(folder):
        volumes = [path for path in _visible(inner) if path.is_file() and suffix(path)] if inner.is_dir() else []
        if len(volumes) > 1:
            raise DataError(
                f"Case '{safe_case(inner.name)}' has several volumes in its folder of the {key.replace('_', ' ')}",
                value=len(volumes),
                remedy=f"Say which, with * for the case's name: {key}='{folder}/*/NAME{suffix(volumes[0])}'",
            )
        if volumes:
            found[inner.name] = volumes[0].resolve()
    return found


def _by_pattern(pattern: Path) -> Files:
    parts = pattern.parts
    starred = [number for number, part in enumerate(parts) if "*" in part]
    if len(starred) > 1 or parts[starred[0]].count("*") > 1:
        raise DataError("A pattern has one '*', which stands for the case's name", value=str(pattern))
    at = starred[0]
    folder, (before, after), rest = Path(*parts[:at]), parts[at].split("*"), parts[at + 1 :]
    if not folder.is_dir():
        raise DataError(f"There is no folder '{folder}'")
    found: Files = {}
    for inner in _visible(folder):
        name, path = inner.name, inner.joinpath(*rest)
        fits = len(name) > len(before + after) and name.startswith(before) and name.endswith(after)
        if fits and path.is_file():
            found[name[len(before) : len(name) - len(after)]] = path.resolve()
    return found


def _visible(folder: Path) -> list[Path]:
    # '._x.nii.gz' is what a Mac leaves beside 'x.nii.gz'.
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def pair_cases(places: Places) -> tuple[dict[str, list[CaseFiles]], list[str]]:
    """Return the cases of every method, and what was left out because it lacks a partner.

    A single prediction and a single reference are a pair whatever their names.

    Raises:
        ConfigError: Files and folders are mixed, or an expression does not fit.
        DataError: A place holds nothing, or predictions and references have no name in common.
    """
    predictions = {method: find_volumes(place, "prediction") for method, place in places.predictions.items()}
    labels = {method: find_volumes(place, "prediction_labels") for method, place in places.prediction_labels.items()}
    references = find_volumes(places.reference, "reference")
    masks = find_volumes(places.mask, "mask") if places.mask else {}
    true_labels = find_volumes(places.reference_labels, "reference_labels") if places.reference_labels else {}
    single = [place.is_file() for place in (places.reference, *places.predictions.values())]
    if any(single) and not all(single):
        raise ConfigError("prediction and reference are two files or two folders", value="a file and a folder")
    if all(single):
        name = next(iter(next(iter(predictions.values()))))
        for files in (*predictions.values(), *labels.values(), references, masks, true_labels):
            _rename(files, name)
    for method, files in predictions.items():
        _check_names(method, files, references)
    patient, cohort = _reader("evaluate.patient_pattern", places.patient), cohort_reader(places.cohort)
    methods: dict[str, list[CaseFiles]] = {method: [] for method in predictions}
    excluded = []
    for name in sorted({*references, *(name for files in predictions.values() for name in files)}):
        case = safe_case(name)
        having = [method for method, files in predictions.items() if name in files]
        if name not in references:
            excluded.append(f"case '{case}': no reference")
            continue
        excluded += [f"case '{case}': no prediction by '{m}'" for m in predictions if m not in having]
        if masks and name not in masks:
            excluded += [f"case '{case}': no mask"] * bool(having)
            continue
        for method in having:
            methods[method].append(
                CaseFiles(
                    case=case,
                    patient=patient(name) or case,
                    cohort=cohort(name),
                    prediction=predictions[method][name],
                    reference=references[name],
                    mask=masks.get(name),
                    prediction_labels=labels.get(method, {}).get(name),
                    reference_labels=true_labels.get(name),
                )
            )
    return methods, excluded


def _rename(files: Files, name: str) -> None:
    if len(files) > 1:
        raise ConfigError("A single prediction goes with single files", value=f"{len(files)} files")
    for path in list(files.values()):
        files.clear()
        files[name] = path


def _check_names(method: str, predictions: Files, references: Files) -> None:
    if predictions.keys() & references.keys():
        return
    shown = [f"{len(files)}, such as '{safe_case(next(iter(files)))}'" for files in (predictions, references)]
    raise DataError(
        f"No prediction of '{method}' has the name of a reference",
        value=f"predictions: {shown[0]}; references: {shown[1]}",
        remedy="Say with * where the case's name stands: prediction='DIR/sct_*.mha' reference='DIR/*/ct.nii.gz'",
    )


def cohort_reader(pattern: str | None) -> Callable[[str], str]:
    """Return what reads the cohort out of a case's name; without a pattern it is ''."""
    return _reader("evaluate.cohort_pattern", pattern)


def _reader(key: str, pattern: str | None) -> Callable[[str], str]:
    if pattern is None:
        return lambda name: ""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{key} is not a regular expression", value=str(error)) from None
    if compiled.groups != 1:
        raise ConfigError(f"{key} needs one group", value=pattern, allowed="for example '^([0-9]+)_'")

    def read(name: str) -> str:
        match = compiled.search(name)
        if match is None or not match.group(1):
            raise ConfigError(
                f"{key} does not fit the name of case '{safe_case(name)}'",
                remedy="Its group must be found in every case's name",
            )
        return safe_case(match.group(1))

    return read


def safe_case(name: str) -> str:
    """Return a file's stem where it is a safe case name, else a pseudonym that is always the same for it."""
    return name if CASE_ID.fullmatch(name) else "case_" + hashlib.sha256(name.encode()).hexdigest()[:10]
