"""One case: its volumes on disk to a film on the cohort's grid.

Volumes are read one after another and resampled plane by plane: a case of any length needs one volume, its mask and
what becomes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, GeometryError
from pipeline.geometry import Grid, Volume, grid_difference
from pipeline.imaging.film import film_grid, grid_record, to_stored
from pipeline.imaging.histogram import percentiles
from pipeline.imaging.mask import body_mask, foreground_mask
from pipeline.imaging.resample import planes, resample
from pipeline.io import read_grid, read_volume
from pipeline.records import Case, Cohort, Plan, VolumeFile
from pipeline.settings import PreprocessSettings
from pipeline.stream.shard import Film


class TooShortError(DataError):
    """A film below preprocess.minimum_slices."""


def prepare_film(
    cohort: Cohort,
    case: Case,
    plan: Plan,
    settings: PreprocessSettings,
    modalities: Sequence[str],
    reference: str,
) -> tuple[Film, dict[str, Any]]:
    """Turn a case's volumes into a film on the cohort's grid.

    Returns:
        The film, and what the index says of it (grids, scales, percentiles).

    Raises:
        GeometryError: Modalities on different grids (unless ``resample``), or a body that does not fit.
        DataError: A damaged volume, an empty mask, or too few slices.
    """
    native = {name: read_grid(cohort.path(case.volumes[name])) for name in modalities}
    if not settings.resample:
        _check_grids(case, native, reference)
    volume = read_case_volume(cohort, case, reference)
    grid, inside = _film_space(cohort, case, volume, plan, settings)
    frames, scale, ends = {}, {}, {}
    for name in sorted(modalities, key=lambda n: n != reference):
        if name != reference:
            volume = read_case_volume(cohort, case, name)
        frames[name], scale[name] = to_stored(volume, grid)
        low, high = percentiles((f[m] for f, m in zip(frames[name], inside, strict=True)), (0.5, 99.5))
        ends[name] = (low * scale[name], high * scale[name])
    facts = {
        "slices": grid.shape[0],
        "film_grid": grid_record(grid),
        "source_grids": {name: grid_record(native[name]) for name in modalities},
        "scale": {name: scale[name] for name in modalities},
        "percentiles": {name: ends[name] for name in modalities},
    }
    return Film(case.case_id, frames, inside.view(np.uint8)), facts


def read_case_volume(cohort: Cohort, case: Case, modality: str) -> Volume:
    """Read a volume and compare its file with the cohort record; DataError also for values that are not finite."""
    volume = _read_recorded(cohort, case, modality, case.volumes[modality])
    if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
        bad = np.argwhere(~np.isfinite(volume.array))
        raise DataError(
            f"'{modality}' of case '{case.case_id}' holds {len(bad)} voxels that are NaN or infinite",
            value=f"the first at index {tuple(bad[0].tolist())}",
        )
    return volume


def _read_recorded(cohort: Cohort, case: Case, name: str, file: VolumeFile) -> Volume:
    digest = hashlib.sha256()
    volume = read_volume(cohort.path(file), file.unit, digest=digest)
    if digest.hexdigest() != file.sha256:
        raise DataError(
            f"'{name}' of case '{case.case_id}' is not the file that the cohort record speaks of",
            remedy="Run 'cinevox cohort' again",
        )
    return volume


def case_body(cohort: Cohort, case: Case, volume: Volume, threshold_hu: float) -> NDArray[np.bool_]:
    """Return a case's body on the volume's axes: the stored mask where there is one, else what can be seen."""
    for name in ("body", "mask"):
        if name in case.masks:
            given = _read_recorded(cohort, case, name, case.masks[name])
            return resample(given, volume.grid, outside=0, order="nearest").array > 0
    if volume.unit == "HU":
        return body_mask(volume, threshold_hu)
    return foreground_mask(volume)


def _check_grids(case: Case, native: dict[str, Grid], reference: str) -> None:
    anchor = native[reference]
    for name, grid in native.items():
        if difference := grid_difference(anchor, grid):
            raise GeometryError(
                f"'{reference}' and '{name}' of case '{case.case_id}' differ in {difference}. "
                f"{reference}: {anchor.describe()}; {name}: {grid.describe()}",
                remedy="Register them, or set preprocess.resample=true if they share one frame of reference",
            )


def _film_space(
    cohort: Cohort, case: Case, volume: Volume, plan: Plan, settings: PreprocessSettings
) -> tuple[Grid, NDArray[np.bool_]]:
    """Return the film's grid, and where on it the body (and the field of view) is."""
    body = case_body(cohort, case, volume, settings.body_threshold_hu)
    grid = film_grid(volume, body, plan.spacing_mm, plan.size, case.case_id)
    inside = _onto(volume.with_array(body.view(np.uint8)), grid)
    if "field_of_view" in case.masks:
        inside &= _onto(_read_recorded(cohort, case, "field_of_view", case.masks["field_of_view"]), grid)
    if not inside.any():
        raise DataError(f"The mask of case '{case.case_id}' (body and field of view) is empty")
    if grid.shape[0] < settings.minimum_slices:
        raise TooShortError(
            f"Case '{case.case_id}' has {grid.shape[0]} slices at {plan.spacing_mm[0]:g} mm",
            allowed=f"at least preprocess.minimum_slices={settings.minimum_slices}",
            remedy="Set preprocess.short_cases=skip to leave such cases out",
        )
    return grid, inside


def _onto(mask: Volume, grid: Grid) -> NDArray[np.bool_]:
    inside = np.empty(grid.shape, bool)
    for k, plane in enumerate(planes(mask, grid, outside=0, order="nearest")):
        inside[k] = plane > 0
    return inside
