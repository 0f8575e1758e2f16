"""The checks of a cohort: of each case by itself, then of the cases against one another.

A *problem* leaves a case out; a *flag* is a suspicion that stays beside the case. Neither ever holds an original name.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cohorts.folder import FoundCase
from pipeline.cohorts.overlay import write_overlay
from pipeline.cohorts.plausibility import HU_MODALITIES, check_couch, check_hu, check_values
from pipeline.errors import CinevoxError, DataError
from pipeline.geometry import Grid, Volume, grid_difference, reorder
from pipeline.imaging.mask import body_mask
from pipeline.imaging.resample import resample
from pipeline.io import read_volume
from pipeline.records import GridRecord, VolumeFile

_COARSE = (16, 32, 32)
_BINS = 24
_RIVALS = 8  # how many other cases a source is compared with
_NEAR_DUPLICATE = 0.9999


@dataclass(frozen=True)
class CheckSettings:
    """What the checks need to know: the pair, the body's threshold, where pictures go, and whether to compare pairs."""

    source: str
    target: str
    body_threshold_hu: float
    similarity: bool
    pictures: Path


@dataclass
class CaseReport:
    """What was found in one case; ``problem`` is empty when it can be used."""

    case_id: str
    patient: str
    volumes: dict[str, VolumeFile] = field(default_factory=dict)
    masks: dict[str, VolumeFile] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    problem: str = ""
    coarse: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # on the reference's grid, for comparisons
    bodies: dict[str, NDArray[np.bool_]] = field(default_factory=dict)  # the same, body masks


def unit_of(modality: str) -> str:
    """Return the unit that a modality's values have."""
    return "HU" if modality in HU_MODALITIES else "a.u."


def check_case(case: FoundCase, root: Path, settings: CheckSettings) -> CaseReport:
    """Read and check all volumes of a case; a fault becomes its ``problem``, so that other cases go on.

    Args:
        case: Identifiers and files.
        root: Folder to which the recorded paths are relative.
        settings: See CheckSettings.
    """
    report = CaseReport(case.case_id, case.patient, problem=case.problem)
    if report.problem:
        return report
    films: dict[str, Volume] = {}
    for modality, path in sorted(case.volumes.items()):
        try:
            films[modality], report.volumes[modality] = _read(path, root, unit_of(modality))
            report.flags += [f"{modality}: {flag}" for flag in check_values(films[modality])]
            if modality in HU_MODALITIES:
                report.flags += [f"{modality}: {flag}" for flag in check_hu(films[modality])]
        except (CinevoxError, OSError, MemoryError) as error:
            report.problem = f"{modality}: {_words(error)}"
            return report
    try:
        _check_together(report, films, settings)
        for name, path in sorted(case.masks.items()):
            report.masks[name] = _read_mask(name, path, root, films, report)
    except (CinevoxError, OSError, MemoryError) as error:
        report.problem = _words(error)
    return report


def _read(path: Path, root: Path, unit: str) -> tuple[Volume, VolumeFile]:
    digest = hashlib.sha256()
    volume = read_volume(path, unit, digest=digest)
    film = reorder(volume)
    film = film.with_array(np.ascontiguousarray(film.array))
    record = VolumeFile(
        path=path.relative_to(root).as_posix(),
        unit=unit,
        grid=grid_record(volume.grid),
        sha256=digest.hexdigest(),
        voxel_hash=voxel_hash(film),
    )
    return film, record


def _words(error: BaseException) -> str:
    """Return an error without what the system adds to it: file names may hold a patient's."""
    if isinstance(error, CinevoxError):
        return str(error)
    if isinstance(error, MemoryError):
        return "The volume does not fit into memory. Set workers=1, or crop the volume."
    return f"The file cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})."


def grid_record(grid: Grid) -> GridRecord:
    """Return a grid as plain data."""
    rows = [tuple(float(v) for v in row) for row in grid.affine[:3]]
    return GridRecord(shape=grid.shape, affine=tuple(rows))  # type: ignore[arg-type]


def voxel_hash(film: Volume) -> str:
    """Return a SHA-256 over film-ordered voxels: equal for the same values in any file format and integer type."""
    array = film.array
    if array.dtype.kind == "f" and np.array_equal(array, np.rint(array)) and np.abs(array).max(initial=0) < 2**31:
        array = array.astype(np.int64)
    array = array.astype("<i8" if array.dtype.kind in "iu" else "<f8", copy=False)
    digest = hashlib.sha256(repr(film.array.shape).encode())
    for image in array:
        digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _check_together(report: CaseReport, films: dict[str, Volume], settings: CheckSettings) -> None:
    """Compare the grids of a case's volumes, look at its couch, and keep what comparisons between cases need."""
    reference = settings.target if settings.target in films else min(films)
    bodies = {m: film.with_array(_body(film, m, settings)) for m, film in films.items()}
    for modality, film in films.items():
        difference = grid_difference(film.grid, films[reference].grid)
        if not difference:
            continue
        report.flags.append(
            f"{modality} and {reference} lie on different grids: {difference}. {modality}: {film.grid.describe()}; "
            f"{reference}: {films[reference].grid.describe()}. See checks/{report.case_id}.png; "
            "'cinevox preprocess' needs preprocess.resample=true."
        )
        pair = {reference: bodies[reference], modality: bodies[modality]}
        write_overlay(settings.pictures / f"{report.case_id}.png", pair, report.case_id)
    for modality in sorted(set(films) & {"ct"}):
        report.flags += [f"{modality}: {flag}" for flag in check_couch(films[modality], bodies[modality].array)]
    hashes = sorted((volume.voxel_hash, modality) for modality, volume in report.volumes.items())
    for (one, first), (other, second) in pairwise(hashes):
        if one == other:
            raise DataError(f"{first} and {second} hold the same voxels", remedy="Check which file is which modality")
    grid = coarse_grid(films[reference].grid)
    for modality, film in films.items():
        report.coarse[modality] = resample(film, grid, outside=float(film.array.min())).array.astype(np.float32)
        inside = bodies[modality].with_array(bodies[modality].array.astype(np.float32))
        report.bodies[modality] = resample(inside, grid, outside=0).array > 0.5


def _body(film: Volume, modality: str, settings: CheckSettings) -> NDArray[np.bool_]:
    if modality in HU_MODALITIES:
        return body_mask(film, settings.body_threshold_hu)
    low, high = np.percentile(film.array[::2, ::2, ::2], [1, 99])
    return body_mask(film, float(low + 0.1 * (high - low)))


def coarse_grid(grid: Grid) -> Grid:
    """Return a grid of at most 16 x 32 x 32 voxels over the same extent."""
    shape = tuple(min(n, limit) for n, limit in zip(grid.shape, _COARSE, strict=True))
    ratio = np.asarray(grid.shape) / np.asarray(shape)
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ ((ratio - 1) / 2)
    affine[:3, :3] = grid.affine[:3, :3] * ratio
    return Grid(shape, affine)  # type: ignore[arg-type]


def _read_mask(name: str, path: Path, root: Path, films: dict[str, Volume], report: CaseReport) -> VolumeFile:
    try:
        mask, record = _read(path, root, "1")
    except DataError as error:
        raise DataError(f"Mask '{name}': {error}") from None
    if not (mask.array > 0).any():
        raise DataError(f"Mask '{name}' is empty", remedy="Remove the file, or write the mask again")
    if all(grid_difference(mask.grid, film.grid) for film in films.values()):
        report.flags.append(f"mask '{name}' lies on the grid of no modality: {mask.grid.describe()}")
    return record


def check_complete(reports: list[CaseReport]) -> dict[str, int]:
    """Leave out cases that lack a modality which most cases have; returns how many lack each.

    Cases that could not be read count too: what they should have is in their folder.
    """
    counts = Counter(modality for report in reports for modality in report.volumes if not report.problem)
    usable = sum(not report.problem for report in reports)
    needed = sorted(modality for modality, count in counts.items() if count * 2 > usable)
    lacking: Counter[str] = Counter()
    for report in reports:
        missing = [m for m in needed if m not in report.volumes]
        if missing and not report.problem:
            lacking.update(missing)
            report.problem = (
                "The case lacks " + ", ".join(f"'{m}' ({counts[m]} of {usable} cases have it)" for m in missing) + "."
            )
    return dict(lacking)


def check_duplicates(reports: list[CaseReport]) -> None:
    """Leave out cases with the same voxels as another; flag nearly equal cases of different patients."""
    first: dict[str, tuple[CaseReport, str]] = {}
    for report in reports:
        if report.problem and not report.volumes:
            continue
        for modality, volume in report.volumes.items():
            other, other_modality = first.setdefault(volume.voxel_hash, (report, modality))
            if other is report:
                continue
            text = (
                f"Cases '{other.case_id}' ({other_modality}) and '{report.case_id}' ({modality}) hold the same voxels."
            )
            remedy = " Leave one of them out with cohort.exclude."
            other.problem = other.problem or text + remedy
            report.problem = report.problem or text + remedy
    good = [report for report in reports if not report.problem]
    groups: dict[tuple[str, tuple[int, ...]], list[CaseReport]] = {}
    for report in good:
        for modality, volume in report.volumes.items():
            groups.setdefault((modality, volume.grid.shape), []).append(report)
    for (modality, _), group in groups.items():
        _flag_near_duplicates(modality, group)


def _flag_near_duplicates(modality: str, group: list[CaseReport]) -> None:
    by_size: dict[int, list[CaseReport]] = {}
    for report in group:
        by_size.setdefault(report.coarse[modality].size, []).append(report)
    for members in by_size.values():
        flat = np.stack([report.coarse[modality].ravel() for report in members])
        flat -= flat.mean(axis=1, keepdims=True)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12
        close = np.triu(flat @ flat.T > _NEAR_DUPLICATE, 1)
        for a, b in np.argwhere(close):
            one, other = members[a], members[b]
            if one.patient != other.patient:
                one.flags.append(f"{modality}: nearly the same image as case '{other.case_id}' of another patient")
                other.flags.append(f"{modality}: nearly the same image as case '{one.case_id}' of another patient")


def flag_similarity(reports: list[CaseReport], source: str, target: str) -> None:
    """Flag a case whose source resembles another patient's target more than its own, and pairs that fit badly.

    Similarity is the normalised mutual information of coarse images on the target's grid.
    """
    pairs = [r for r in reports if not r.problem and source in r.coarse and target in r.coarse]
    own = {r.case_id: mutual_information(r.coarse[source], r.coarse[target]) for r in pairs}
    for report in pairs:
        shape = report.coarse[source].shape
        others = [r for r in pairs if r.patient != report.patient and r.coarse[target].shape == shape]
        others.sort(key=lambda r, mine=report.bodies[source]: -dice(mine, r.bodies[target]))  # type: ignore[misc]
        for rival in others[:_RIVALS]:
            value = mutual_information(report.coarse[source], rival.coarse[target])
            if value > own[report.case_id] * 1.05:
                report.flags.append(
                    f"{source} resembles {target} of case '{rival.case_id}' ({value:.3f}) more than its own "
                    f"({own[report.case_id]:.3f}): the pair may be swapped"
                )
                break
    if len(pairs) >= 5:
        values = np.array(list(own.values()))
        spread = 1.4826 * float(np.median(np.abs(values - np.median(values))))
        for report in pairs:
            if own[report.case_id] < np.median(values) - max(6 * spread, 0.2 * float(np.median(values))):
                report.flags.append(
                    f"{source} and {target} resemble each other far less than in other cases: registration? See --check"
                )


def mutual_information(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return the normalised mutual information of two images of one shape: 0 independent, 1 the same.

    Source: 2 I(A, B) / (H(A) + H(B)), over histograms between the 1st and 99th percentile.
    """
    digits = []
    for image in (a.ravel(), b.ravel()):
        low, high = np.percentile(image, [1, 99])
        digits.append(np.clip((image - low) / max(float(high - low), 1e-6) * _BINS, 0, _BINS - 1).astype(np.int64))
    joint = np.bincount(digits[0] * _BINS + digits[1], minlength=_BINS**2).reshape(_BINS, _BINS) / a.size
    total = _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))
    return 2 * (total - _entropy(joint.ravel())) / total if total > 0 else 0.0


def _entropy(p: NDArray[np.float64]) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the overlap of two masks, 2 |A and B| / (|A| + |B|): 0 apart or empty, 1 the same."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 0.0
