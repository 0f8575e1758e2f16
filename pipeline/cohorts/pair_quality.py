"""How well the volumes of a case fit together, measured on one coarse grid."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cohorts.checks import dice, mutual_information
from pipeline.cohorts.pair_picture import draw
from pipeline.cohorts.plausibility import HU_MODALITIES
from pipeline.errors import CinevoxError, DataError
from pipeline.geometry import Grid, Volume, reorder
from pipeline.imaging.alignment import REACH_MM, displacement
from pipeline.imaging.film import bounding_box
from pipeline.imaging.mask import body_mask, foreground_mask
from pipeline.imaging.resample import resample
from pipeline.io import read_volume
from pipeline.records import Case, Cohort, Excluded, PairQuality, VolumeFile

METHOD = (
    "The volumes of a case are resampled to 2.5 mm (coarser where they are, or where the field is large). "
    f"Shift: of all shifts up to {REACH_MM:g} mm along each axis, the one at which the directions of inner edges agree "
    "best beyond chance (normalised gradient fields, correlated by FFT), refined between voxels by parabolas. "
    "Local: what is left without the shift, as the median over blocks of some 50 mm: rotations, deformations. "
    "Overlap: Dice of the bodies inside the field that both show. Edges: mean squared cosine at the best shift. "
    "Mutual information: 2 I(A, B) / (H(A) + H(B)) inside either body."
)
_FINEST_MM = 2.5
_VOXELS = 4_000_000  # of a whole torso at 3.5 mm: the fields take some 0.4 GB
_LOWEST_HU = -1024.0
PICTURES = "pair_quality"


def pairs_of(modalities: list[str], source: str, target: str) -> Iterator[tuple[str, str]]:
    """Yield all pairs of modalities, as (source, target); the configured target is the target of its pairs."""
    yield from combinations(sorted(modalities, key=lambda m: (m == target, m != source, m)), 2)


def check_case_pairs(
    case: Case, cohort: Cohort, folder: Path, source: str, target: str, body_threshold_hu: float
) -> list[PairQuality] | Excluded:
    """Measure every pair of a case and draw it; a case that cannot be read comes back with its reason.

    Args:
        case: With two modalities at least.
        cohort: Says where the files are.
        folder: Pictures go into its ``pair_quality/``.
        source: Configured source and target, which say how round pairs are taken.
        target: See ``source``.
        body_threshold_hu: Of CT and CBCT.
    """
    try:
        seen = _Seen(case, cohort, target, body_threshold_hu)
        found = []
        for one, other in pairs_of(list(case.volumes), source, target):
            quality = seen.quality(one, other)
            if seen.known(one, other).any():
                quality.picture = f"{PICTURES}/{case.case_id}-{one}-{other}.png"
                first, second = (seen.shown(modality, one, other) for modality in (one, other))
                draw(folder / quality.picture, first, second, (one, other))
            found.append(quality)
        return found
    except (CinevoxError, OSError, MemoryError) as error:
        words = str(error) if isinstance(error, CinevoxError) else f"cannot be read ({type(error).__name__})"
        return Excluded(case_id=case.case_id, reason=words)


class _Seen:
    """A case's volumes, bodies and field of view on one coarse grid; each file is read once and let go."""

    def __init__(self, case: Case, cohort: Cohort, target: str, body_threshold_hu: float) -> None:
        self.case = case
        reference = target if target in case.volumes else min(case.volumes)
        order = sorted(case.volumes, key=lambda m: m != reference)
        self.grid: Grid | None = None
        self.images: dict[str, NDArray[np.float32]] = {}
        self.bodies: dict[str, NDArray[np.bool_]] = {}
        spacings = [tuple(np.linalg.norm(np.array(v.grid.affine)[:, :3], axis=0)) for v in case.volumes.values()]
        for modality in order:
            volume = self._read(cohort, case.volumes[modality], modality)
            if self.grid is None:
                self.grid = isotropic_grid(volume.grid, max(_FINEST_MM, *(min(s) for s in spacings)))
            image = resample(volume, self.grid, outside=np.nan).array
            if modality in HU_MODALITIES:
                np.maximum(image, _LOWEST_HU, out=image)
            self.images[modality] = image
            self.bodies[modality] = self._body(image, modality, body_threshold_hu)
        assert self.grid is not None
        self.spacing_mm = self.grid.spacing_mm[0]
        self.field = np.ones(self.grid.shape, bool)  # where the source sees anything
        if "field_of_view" in case.masks:
            mask = self._read(cohort, case.masks["field_of_view"], "field_of_view")
            self.field = resample(mask, self.grid, outside=0, order="nearest").array > 0

    def _read(self, cohort: Cohort, file: VolumeFile, name: str) -> Volume:
        digest = hashlib.sha256()
        volume = reorder(read_volume(cohort.path(file), file.unit, digest=digest))
        if digest.hexdigest() != file.sha256:
            raise DataError(
                f"'{name}' of case '{self.case.case_id}' is not the file that the cohort record speaks of",
                remedy="Run 'cinevox cohort' again",
            )
        return volume

    def _body(self, image: NDArray[np.float32], modality: str, threshold_hu: float) -> NDArray[np.bool_]:
        assert self.grid is not None
        known = np.isfinite(image)
        if not known.any():
            return known
        filled = Volume(np.where(known, image, np.nanmin(image)), self.grid.affine)
        body = body_mask(filled, threshold_hu) if modality in HU_MODALITIES else foreground_mask(filled)
        return body & known

    def known(self, one: str, other: str) -> NDArray[np.bool_]:
        """Return where both modalities have voxels."""
        return np.isfinite(self.images[one]) & np.isfinite(self.images[other]) & self.field

    def quality(self, source: str, target: str) -> PairQuality:
        """Measure one pair."""
        known = self.known(source, target)
        bodies = self.bodies[source] & known, self.bodies[target] & known
        quality = PairQuality(
            case_id=self.case.case_id,
            patient=self.case.patient,
            source=source,
            target=target,
            grid_mm=round(self.spacing_mm, 3),
        )
        box = _box(bodies[0] | bodies[1])
        if box is None or not all(body.any() for body in bodies):
            quality.reason = "no body in the field that both volumes show" if known.any() else "their fields lie apart"
            return quality
        moved, still = (np.where(known[box], self.images[m][box], np.float32(np.nan)) for m in (source, target))
        inside = (bodies[0] | bodies[1])[box]
        quality.mutual_information = round(mutual_information(moved[inside], still[inside]), 4)
        quality.overlap = round(dice(*bodies), 4)
        found = displacement(moved, still, bodies[0][box], bodies[1][box], self.spacing_mm)
        if found is None:
            quality.reason = f"too small for a shift: it is measured on voxels of {self.spacing_mm:.3g} mm"
            return quality
        assert self.grid is not None
        x, y, z = (self.grid.affine[:3, :3] / self.spacing_mm @ found.shift_mm).tolist()
        quality.shift_mm = (round(x, 2), round(y, 2), round(z, 2))
        quality.local_mm = round(found.local_mm, 2)
        quality.edge_agreement = round(found.agreement, 4)
        return quality

    def shown(self, modality: str, one: str, other: str) -> NDArray[np.float32]:
        """Return what a picture shows of a modality: the box of both bodies, grey from 0 to 1."""
        known = self.known(one, other)
        box = _box((self.bodies[one] | self.bodies[other]) & known) or (slice(None),) * 3
        image, inside = self.images[modality][box], self.bodies[modality][box]
        values = image[inside] if inside.any() else image[np.isfinite(image)]
        low, high = (-300.0, 400.0) if modality in HU_MODALITIES else np.percentile(values, (0, 99)).tolist()
        return np.nan_to_num(np.clip((image - low) / max(high - low, 1e-6), 0, 1))


def worker_bytes(case: Case) -> int:
    """Return how much memory checking a case needs, at most: the fields, and its largest volume while it is read."""
    voxels = max(math.prod(file.grid.shape) for file in case.volumes.values())
    return 700 * 2**20 + 8 * voxels


def isotropic_grid(grid: Grid, spacing_mm: float) -> Grid:
    """Return a grid of cubes over the extent of ``grid``, coarser than ``spacing_mm`` where they would be too many."""
    extent = np.asarray(grid.shape) * grid.spacing_mm
    spacing = max(spacing_mm, float(math.prod(extent) / _VOXELS) ** (1 / 3))
    shape = np.maximum(1, np.floor(extent / spacing + 1e-6)).astype(int)
    directions = grid.affine[:3, :3] / grid.spacing_mm
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    middle = grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def _box(mask: NDArray[np.bool_], margin: int = 3) -> tuple[slice, ...] | None:
    box = bounding_box(mask)
    if box is None:
        return None
    return tuple(slice(max(part.start - margin, 0), part.stop + margin) for part in box)
