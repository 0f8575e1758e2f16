"""What is compared with what: a case's volumes on the prediction's grid in film order, and the regions of scoring."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CinevoxError, DataError, GeometryError
from pipeline.geometry import Grid, Volume, grid_difference, reorder
from pipeline.imaging.mask import body_mask
from pipeline.imaging.resample import resample
from pipeline.io import read_volume
from pipeline.metrics.plausibility import check_unit
from pipeline.records import TranslatedCase

FIELD_OF_VIEW = "field_of_view"
REGIONS = {
    "mask": "the given or stored mask; a stored field of view (CBCT) is combined with the body",
    "body": "the patient's body, computed from the reference without couch and surrounding air",
    "whole": "every voxel of the volume",
}


@dataclass(frozen=True)
class CaseFiles:
    """Where the volumes of one case and one method lie; None where there is none."""

    case: str
    patient: str
    prediction: Path
    reference: Path | None
    source: Path | None = None
    mask: Path | None = None
    mask_kind: str = "given"
    prediction_labels: Path | None = None
    reference_labels: Path | None = None
    cohort: str = ""

    @classmethod
    def of(cls, case: TranslatedCase, folder: Path, cohort: str = "") -> CaseFiles:
        """Take the paths from a translation record that lies in ``folder``."""

        def path(name: str) -> Path | None:
            return folder / name if name else None

        return cls(
            case=case.case_id,
            patient=case.patient,
            prediction=folder / case.prediction,
            reference=path(case.reference),
            source=path(case.source),
            mask=path(case.mask),
            mask_kind=case.mask_kind,
            cohort=cohort,
        )


@dataclass(frozen=True)
class Region:
    """Where a score is taken: ``mask`` (Boolean, film order; None: everywhere), or why it is empty."""

    mask: NDArray[np.bool_] | None
    reason: str = ""


@dataclass(frozen=True)
class Target:
    """A case's reference on one grid, in film order, with its regions; NaN where the reference has no voxels."""

    volume: Volume
    regions: dict[str, Region]
    notes: list[str] = field(default_factory=list)
    # Of the reference by region and metric of sets: several methods share them.
    features: dict[tuple[str, str], NDArray] = field(default_factory=dict)


def read_film(path: Path, what: str, unit: str) -> Volume:
    """Read a volume in film order; an error names ``what`` it is, never its path."""
    try:
        return reorder(read_volume(path, unit))
    except DataError as error:
        raise DataError(f"The {what} cannot be read: {error.what}", value=error.value, allowed=error.allowed) from None


def on_grid(volume: Volume, grid: Grid, *, outside: float) -> tuple[Volume, str]:
    """Return the volume on ``grid`` and how its own differed ('' when nothing had to be done)."""
    difference = grid_difference(grid, volume.grid)
    if not difference:
        return volume, ""
    return resample(volume, grid, outside=outside), difference


def read_target(files: CaseFiles, grid: Grid, *, unit: str, body_threshold_hu: float, may_resample: bool) -> Target:
    """Read the reference and the mask of a case onto the prediction's ``grid`` and find the regions.

    Args:
        files: Of the case.
        grid: In film order.
        unit: Of the reference; a body is computed for 'HU' only.
        body_threshold_hu: What lies above belongs to the body.
        may_resample: Put a reference or mask on another grid onto ``grid``; else that is an error.

    Raises:
        DataError: There is no reference, a file cannot be read, or its values cannot be in ``unit``.
        GeometryError: Grids differ and ``may_resample`` is false.
    """
    if files.reference is None:
        raise DataError("There is no reference")
    reference = read_film(files.reference, "reference", unit)
    doubts, notes = check_unit(reference, "reference"), []
    if difference := grid_difference(grid, reference.grid):
        _refuse(not may_resample, "reference", difference, grid, reference.grid)
        # NaN, not air: what the reference never showed must not count as an error of the prediction.
        reference = resample(reference, grid, outside=np.nan)
        notes.append(f"the reference was resampled onto the prediction's grid ({difference})")
    covered = np.isfinite(reference.array)
    known = None if covered.all() else covered
    if known is not None:
        share = f"{100 * covered.mean():.1f} % of the prediction"
        notes.append(f"the reference {'covers' if notes else 'is finite in'} {share}; the rest is not scored")
    regions: dict[str, Region] = {}
    body = None
    if unit == "HU":
        body = _body(reference, body_threshold_hu)
    if files.mask is not None:
        mask = read_film(files.mask, "mask", "")
        if difference := grid_difference(grid, mask.grid):
            _refuse(not may_resample, "mask", difference, grid, mask.grid)
            mask = resample(mask, grid, outside=0, order="nearest")
            notes.append(f"the mask was resampled onto the prediction's grid ({difference})")
        regions["mask"] = _masked(mask.array > 0, files.mask_kind, body, known)
    if body is not None:
        regions["body"] = body
    regions["whole"] = Region(known)
    return Target(reference, regions, [*doubts, *notes])


def _body(reference: Volume, threshold_hu: float) -> Region:
    try:
        body = body_mask(reference, threshold_hu)
    except CinevoxError as error:
        return Region(np.zeros(reference.array.shape, bool), f"no body was found: {error.what}")
    return Region(body, "" if body.any() else f"no body was found above {threshold_hu:g} HU in the reference")


def _masked(mask: NDArray[np.bool_], kind: str, body: Region | None, known: NDArray[np.bool_] | None) -> Region:
    if not mask.any():
        return Region(mask, "the mask is empty")
    if kind == FIELD_OF_VIEW and body is not None and body.mask is not None:
        if body.reason:
            return body
        mask = mask & body.mask
    if known is not None:
        mask = mask & known
    return Region(mask, "" if mask.any() else "mask, body and reference have no voxel in common")


def _refuse(refused: bool, what: str, difference: str, grid: Grid, other: Grid) -> None:
    if refused:
        raise GeometryError(
            f"Prediction and {what} differ in grid: {difference}",
            value=f"prediction: {grid.describe()}; {what}: {other.describe()}",
            remedy=f"Set evaluate.resample=true to put the {what} onto the prediction's grid",
        )
