"""One cone-beam scan of one CT volume, from HU to HU."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.geometry import Grid, Volume, reorder
from pipeline.imaging.resample import resample
from pipeline.settings import SimulateSettings
from pipeline.simulation.axial import scan_extents
from pipeline.simulation.calibration import Calibration, acquire, calibrate
from pipeline.simulation.detector import make_detector
from pipeline.simulation.gantry import axial_length_mm, field_of_view, reach_mm, view_angles
from pipeline.simulation.materials import decompose
from pipeline.simulation.motion import displace, phases
from pipeline.simulation.reconstruction import project, reconstruct, use_threads
from pipeline.simulation.spectrum import tube_spectrum

LOWEST_HU, HIGHEST_HU = -1024, 3071
OUTSIDE_HU = -1000
# Below this nothing attenuates enough to be worth a ray's time.
_AIR_HU = -990.0


@dataclass(frozen=True)
class Scan:
    """A simulated scan: ``cbct`` and ``ct`` (int16 HU) and ``field_of_view`` (uint8), all on one film-ordered grid."""

    cbct: Volume
    ct: Volume
    field_of_view: Volume


def film_grid(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """Return the film-ordered grid of ``spacing_mm`` that covers ``grid`` (its directions kept, centred on it)."""
    # A view of one element with the grid's strides: reordering needs no voxels.
    film = reorder(Volume(np.broadcast_to(np.zeros(1, np.uint8), grid.shape), grid.affine)).grid
    counts = [
        max(1, round(n * have / want)) for n, have, want in zip(film.shape, film.spacing_mm, spacing_mm, strict=True)
    ]
    directions = film.affine[:3, :3] / np.asarray(film.spacing_mm)
    centre = film.affine[:3, :3] @ ((np.asarray(film.shape) - 1) / 2) + film.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing_mm)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(counts) - 1) / 2)
    return Grid((counts[0], counts[1], counts[2]), affine)


def to_film(ct: Volume, spacing_mm: tuple[float, float, float]) -> Volume:
    """Resample a CT to the simulation's spacing: float32 HU in film order, within the 12 bits of a CT."""
    hu = np.clip(np.nan_to_num(np.asarray(ct.array, np.float32), nan=LOWEST_HU), LOWEST_HU, HIGHEST_HU)
    film = film_grid(ct.grid, spacing_mm)
    return resample(Volume(hu, ct.affine, ct.unit), film, outside=OUTSIDE_HU)


def scans_of(grid: Grid, settings: SimulateSettings) -> list[slice]:
    """Return the film slices of each scan of a CT on ``grid``."""
    slices = film_grid(grid, settings.spacing_mm).shape[0]
    return scan_extents(slices, settings.spacing_mm[0], axial_length_mm(settings), settings.axial)


class Simulator:
    """A calibrated scanner; making one loads RTK and scans the water cylinder.

    Args:
        settings: Physics and geometry.
        seed: Of all noise.
        threads: Of RTK.
        calibration: One made earlier with the same settings and seed; None: make it.
    """

    def __init__(
        self, settings: SimulateSettings, seed: int, threads: int = 2, calibration: Calibration | None = None
    ) -> None:
        use_threads(threads)
        self.settings, self.seed = settings, seed
        self.spectrum = tube_spectrum(settings.tube_kv, settings.filtration_mm)
        self.detector = make_detector(self.spectrum)
        self.calibration = calibrate(self.detector, settings, seed) if calibration is None else calibration

    def scan(self, film: Volume, body: NDArray[np.bool_], extent: slice, case_id: str, number: int) -> Scan:
        """Simulate one scan of a film-ordered CT.

        The anatomy beyond the scan's ends is projected too: real slices as far as they go, then the last one
        repeated. The rotation centre lies in the middle of the body's box (in the plane) and of the extent.

        Args:
            film: As ``to_film`` makes it.
            body: Mask of the patient on the same grid.
            extent: Slices to reconstruct.
            case_id: Of the CT; with ``number`` it keys the noise.
            number: Of the scan within the case.
        """
        settings, spacing = self.settings, film.spacing_mm
        middle = _body_centre(body[extent])
        radius = math.hypot(*(n * mm for n, mm in zip(film.array.shape[1:], spacing[1:], strict=True))) / 2
        needed = math.ceil(reach_mm(settings, radius) / spacing[0]) + math.ceil(settings.motion_mm / spacing[0]) + 1
        first = math.floor((extent.start + extent.stop - 1) / 2 - needed)
        last = math.ceil((extent.start + extent.stop - 1) / 2 + needed)
        index = np.clip(np.arange(first, last + 1), 0, film.array.shape[0] - 1)
        neighbourhood = film.array[index]

        isocentre = ((extent.start + extent.stop - 1) / 2 - first, *middle)
        lines = self._lines(neighbourhood, spacing, isocentre)
        key = int.from_bytes(hashlib.sha256(f"{case_id}:{number}".encode()).digest()[:8], "little")
        random = np.random.default_rng([self.seed, key])
        lengths = acquire(lines, self.detector, self.calibration.scatter_coefficient, settings, random)

        reference = film.array[extent]
        shape = (reference.shape[0], reference.shape[1], reference.shape[2])
        centre = ((shape[0] - 1) / 2, *middle)
        image = reconstruct(lengths, shape, spacing, centre, view_angles(settings), settings)
        seen = field_of_view(shape, spacing, centre, settings)
        hu = np.where(seen, self.calibration.hu(image), OUTSIDE_HU)
        affine = film.affine.copy()
        affine[:3, 3] += affine[:3, 0] * extent.start
        return Scan(
            Volume(_integers(hu), affine),
            Volume(_integers(reference), affine),
            Volume(seen.astype(np.uint8), affine, "a.u."),
        )

    def _lines(
        self,
        hu: NDArray[np.float32],
        spacing: tuple[float, float, float],
        isocentre: tuple[float, float, float],
    ) -> NDArray[np.float32]:
        """Project the object, phase by phase where it moves: (views, rows, columns, 2)."""
        angles = view_angles(self.settings)
        solid = np.any(hu > _AIR_HU, axis=0)
        rows, columns = np.flatnonzero(np.any(solid, axis=1)), np.flatnonzero(np.any(solid, axis=0))
        if rows.size:  # rays skip the air around the object
            hu = hu[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            isocentre = (isocentre[0], isocentre[1] - rows[0], isocentre[2] - columns[0])
        parts: NDArray[np.float32] | None = None
        for displacement, views in phases(self.settings):
            densities = decompose(displace(hu, displacement, spacing[0]))
            found = project(densities, spacing, isocentre, angles[views], self.settings)
            if parts is None:
                parts = np.empty((len(angles), *found.shape[1:]), np.float32)
            parts[views] = found
        assert parts is not None
        return parts


def _body_centre(body: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the middle of the body's box in rows and columns; of the grid where there is no body."""
    flat = np.any(body, axis=0)
    rows, columns = np.flatnonzero(np.any(flat, axis=1)), np.flatnonzero(np.any(flat, axis=0))
    if rows.size == 0:
        return (body.shape[1] - 1) / 2, (body.shape[2] - 1) / 2
    return float(rows[0] + rows[-1]) / 2, float(columns[0] + columns[-1]) / 2


def _integers(hu: NDArray[np.floating]) -> NDArray[np.int16]:
    return np.clip(np.rint(hu), LOWEST_HU, HIGHEST_HU).astype(np.int16)
