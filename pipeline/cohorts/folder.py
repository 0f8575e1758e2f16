"""Cases in folders: ``ROOT/CASE/MODALITY.SUFFIX``, or a flat folder in which each file is a case of one modality.

``ROOT/cases.csv`` (columns case, patient and, optionally, split) or ``cohort.patient_pattern`` say which cases are of
one patient. Names that may identify a patient are replaced; the original ones go nowhere but ``case_names.csv``.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from pipeline.artifacts import atomic_path
from pipeline.errors import ConfigError, DataError, nearest
from pipeline.io import stem, suffix
from pipeline.records import CASE_ID, MODALITY, Split
from pipeline.settings import CohortSettings

CASES_CSV = "cases.csv"
NAMES_CSV = "case_names.csv"
# 'mask' is how several public data sets call the body.
MASKS = {"mask": "body", "body": "body", "field_of_view": "field_of_view"}
_SPLIT_WORDS = {**{s: s for s in get_args(Split)}, "val": "validation", "valid": "validation", "training": "train"}
_CSV_BYTES = 64 * 2**20


@dataclass
class FoundCase:
    """A case before its checks: safe identifiers, original names, and its files by modality and by mask."""

    case_id: str
    name: str
    patient: str = ""
    patient_name: str = ""
    split: Split | None = None
    volumes: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    problem: str = ""  # what already stops the case, in words that name nobody


@dataclass
class Discovery:
    """What a folder holds: ``cases`` in order of their names, and how many files were not understood."""

    cases: list[FoundCase]
    ignored: int = 0


def discover(root: Path, settings: CohortSettings) -> Discovery:
    """List the cases below ``root`` without reading any volume.

    Raises:
        ConfigError: The folder is missing or empty, a setting names an unknown case, or a pattern does not fit.
        DataError: ``cases.csv`` cannot be used.
    """
    if not root.is_dir():
        raise ConfigError("The input of 'cinevox cohort' is not a folder", remedy="Set input=FOLDER")
    modality = settings.modality
    if modality is not None and not MODALITY.fullmatch(modality):
        raise ConfigError("cohort.modality is not a modality's name", value=modality, allowed=MODALITY.pattern)
    found = _flat(root, modality) if modality else _nested(root)
    if not found.cases:
        loose = any(suffix(path) for path in root.iterdir() if path.is_file())
        raise ConfigError(
            "No case was found below the input",
            allowed="ROOT/CASE/MODALITY.nii.gz (or .nii, .mha, .mhd, .nrrd)",
            remedy="For a folder of volumes without case folders set cohort.modality" if loose else "Check input",
        )
    _name_cases(found.cases)
    found.cases = _select(found.cases, settings)
    _assign_patients(root, found.cases, settings)
    return found


def pseudonym(prefix: str, name: str) -> str:
    """Return a stable safe name that does not show the original one."""
    return f"{prefix}_{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"


def safe(prefix: str, name: str) -> str:
    """Return the name itself where it is a safe identifier, else a pseudonym."""
    return name if CASE_ID.fullmatch(name) else pseudonym(prefix, name)


def write_names(folder: Path, cases: Iterable[FoundCase]) -> bool:
    """Write ``case_names.csv`` when a name was replaced; returns whether it was."""
    rows = [c for c in cases if c.case_id != c.name or c.patient != c.patient_name]
    if not rows:
        return False
    with atomic_path(folder / NAMES_CSV) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "original_case", "patient", "original_patient"])
        for case in rows:
            writer.writerow([cell(v) for v in (case.case_id, case.name, case.patient, case.patient_name)])
    return True


def cell(text: str) -> str:
    """Keep a spreadsheet from running a name as a formula; undecodable bytes are shown as escapes."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _flat(root: Path, modality: str) -> Discovery:
    cases, ignored = [], 0
    for path in _entries(root):
        if path.is_file() and suffix(path):
            cases.append(FoundCase("", stem(path), volumes={modality: path}))
        else:
            ignored += path.name not in (CASES_CSV, NAMES_CSV)
    twice = {c.name for c in cases if sum(other.name == c.name for other in cases) > 1}
    for case in cases:
        if case.name in twice:
            case.problem = f"the same name stands before two suffixes (modality '{modality}')"
            # Two files must not end under one identifier.
            case.name += suffix(case.volumes[modality])
    return Discovery(cases, ignored)


def _nested(root: Path) -> Discovery:
    cases, ignored = [], 0
    for folder in _entries(root):
        if not folder.is_dir():
            ignored += folder.name not in (CASES_CSV, NAMES_CSV)
            continue
        case = FoundCase("", folder.name)
        for path in _entries(folder):
            word = stem(path).lower()
            if not path.is_file() or not suffix(path):
                ignored += 1
            elif word in MASKS:
                _add(case, case.masks, MASKS[word], path)
            elif MODALITY.fullmatch(word):
                _add(case, case.volumes, word, path)
            else:
                ignored += 1
        if case.volumes:
            cases.append(case)
    return Discovery(cases, ignored)


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _add(case: FoundCase, files: dict[str, Path], key: str, path: Path) -> None:
    if key in files:
        case.problem = f"'{key}' is there twice, under different suffixes or names"
    files[key] = path


def _name_cases(cases: list[FoundCase]) -> None:
    """Give every case an identifier that is safe and differs from all others even without regard to case."""
    taken: set[str] = set()
    for case in cases:
        case.case_id = safe("case", case.name)
        if case.case_id.lower() in taken:
            # Case1 and case1 would overwrite each other on many file systems.
            case.case_id = f"{case.case_id[:52]}_{pseudonym('', case.name)[1:]}"
        taken.add(case.case_id.lower())


def _select(cases: list[FoundCase], settings: CohortSettings) -> list[FoundCase]:
    known = {key for case in cases for key in (case.case_id, case.name)}
    for key in ("include", "exclude"):
        for entry in getattr(settings, key):
            if entry not in known:
                raise ConfigError(
                    f"cohort.{key} names a case that is not there",
                    value=entry if CASE_ID.fullmatch(entry) else "a name with characters that are not shown",
                    allowed=f"one of {len(cases)} cases",
                    remedy=nearest(entry, [case.case_id for case in cases]) or "Look at the folder's names",
                )
    include, exclude = set(settings.include), set(settings.exclude)
    taken = [c for c in cases if not include or c.case_id in include or c.name in include]
    taken = [c for c in taken if c.case_id not in exclude and c.name not in exclude]
    if not taken:
        raise ConfigError("cohort.include and cohort.exclude leave no case")
    return taken


def _assign_patients(root: Path, cases: list[FoundCase], settings: CohortSettings) -> None:
    table = _read_table(root / CASES_CSV) if (root / CASES_CSV).exists() else None
    pattern = _compiled(settings.patient_pattern)
    for case in cases:
        case.patient_name = case.name
        if table is not None:
            row = table.get(case.name) or table.get(case.case_id)
            if row is None:
                raise DataError(
                    f"{CASES_CSV} does not list case '{case.case_id}'",
                    remedy="Add it, so that no patient can be in two splits, or leave the case out with cohort.exclude",
                )
            case.patient_name, case.split = row
        elif pattern is not None:
            match = pattern.search(case.name)
            if match is None or not match.group(1):
                raise ConfigError(
                    f"cohort.patient_pattern does not fit the name of case '{case.case_id}'",
                    remedy="Its first group must be the patient in every case's name",
                )
            case.patient_name = match.group(1)
        if case.patient_name == case.name:
            case.patient = case.case_id
        else:
            case.patient = safe("patient", case.patient_name)
    split_of: dict[str, FoundCase] = {}
    for case in cases:
        first = split_of.setdefault(case.patient, case)
        if first.split != case.split:
            raise DataError(
                f"{CASES_CSV} puts one patient into two splits: cases '{first.case_id}' and '{case.case_id}'",
                value=f"{first.split or 'none'} and {case.split or 'none'}",
                remedy="Give all cases of a patient the same split",
            )


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError("cohort.patient_pattern is not a regular expression", value=str(error)) from None
    if compiled.groups < 1:
        raise ConfigError("cohort.patient_pattern has no group", allowed="for example '^([0-9]+)_'")
    return compiled


def _read_table(path: Path) -> dict[str, tuple[str, Split | None]]:
    """Return patient and split by case; spreadsheets' habits (BOM, semicolons, cp1252) are accepted."""
    if path.stat().st_size > _CSV_BYTES:
        raise DataError(f"{CASES_CSV} is too large", allowed=f"at most {_CSV_BYTES // 2**20} MiB")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "replace")
    lines = text.splitlines()
    first = lines[0] if lines else ""
    delimiter = max(",;\t", key=first.count)
    reader = csv.DictReader(lines, delimiter=delimiter, restval="")
    columns = {(name or "").strip().lower(): name for name in reader.fieldnames or []}
    if "case" not in columns or "patient" not in columns:
        raise DataError(f"{CASES_CSV} lacks a column", allowed="case, patient and, optionally, split")
    table: dict[str, tuple[str, Split | None]] = {}
    for number, row in enumerate(reader, start=2):
        case, patient = ((row[columns[key]] or "").strip() for key in ("case", "patient"))
        if not case and not patient:
            continue
        word = (row[columns["split"]] or "").strip().lower() if "split" in columns else ""
        if not case or not patient or (word and word not in _SPLIT_WORDS):
            raise DataError(
                f"Line {number} of {CASES_CSV} cannot be used",
                allowed="a case, a patient, and train, validation, test or nothing",
            )
        entry = (patient, _SPLIT_WORDS.get(word))
        if table.setdefault(case, entry) != entry:
            raise DataError(f"Line {number} of {CASES_CSV} contradicts an earlier line of the same case")
    return table
