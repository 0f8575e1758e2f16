"""HU from a simulated water cylinder, imaged with the same spectrum, geometry, scatter and corrections as a patient."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.settings import SimulateSettings
from pipeline.simulation.detector import Detector, count
from pipeline.simulation.gantry import detector_positions, view_angles
from pipeline.simulation.reconstruction import reconstruct
from pipeline.simulation.scatter import scatter

_SLICES = 3
# Regions, in units of the cylinder's radius.
_CENTRE, _EDGE, _AIR = 0.25, (0.8, 0.92), (1.12, 1.28)
_MIDDLE_ROWS = 12
_CALIBRATION_STREAM = 0x57A7E2


@dataclass(frozen=True)
class Calibration:
    """What turns a reconstruction into HU, and how well it does so on the cylinder, with noise.

    Attributes:
        scatter_coefficient: Strength of the scatter model that gives ``scatter_to_primary`` behind the centre.
        scale, offset: HU = 1000 (scale x reconstruction + offset) - 1000.
        water_centre_hu, air_hu: Means in the cylinder's middle and in the air around it.
        cupping_hu: Mean near the cylinder's edge minus mean in its middle.
        noise_hu: Standard deviation in the cylinder's middle.
        uncorrected_centre_hu: The middle before the calibration: what a hand-set constant would leave.
    """

    scatter_coefficient: float
    scale: float
    offset: float
    water_centre_hu: float
    air_hu: float
    cupping_hu: float
    noise_hu: float
    uncorrected_centre_hu: float

    def hu(self, reconstruction: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return HU of a reconstruction in units of water."""
        return 1000 * (np.float32(self.scale) * reconstruction + np.float32(self.offset)) - 1000

    def exact(self) -> dict[str, float]:
        """Return the numbers unrounded, from which ``Calibration(**numbers)`` is the same again."""
        return {name: float(value) for name, value in asdict(self).items()}

    def record(self) -> dict[str, float]:
        """Return plain numbers for the cohort's record."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def acquire(
    lines: NDArray[np.float32],
    detector: Detector,
    scatter_coefficient: float,
    settings: SimulateSettings,
    random: np.random.Generator | None,
) -> NDArray[np.float32]:
    """Return what a scanner makes of line integrals: the length of water in mm along each ray.

    Polychromatic primary, scatter, quantum noise of both, subtraction of ``scatter_correction`` of the expected
    scatter (its noise stays), logarithm and water beam-hardening correction.

    Args:
        lines: (views, rows, columns, 2): water in mm, bone in g/cm3 times mm.
        detector: Tables.
        scatter_coefficient: From the calibration.
        settings: Photons, scatter kernel and correction.
        random: Source of noise; None: none.
    """
    primary, gain = detector.primary(lines[..., 0], lines[..., 1] / np.float32(10))
    scattered = scatter(primary, scatter_coefficient, settings)
    photons = settings.photons_per_mm2 * settings.detector_pixel_mm**2
    measured = count(primary + scattered, gain, photons, random)
    # Where the estimate exceeds the measurement, real corrections keep a remainder of the signal (soft cut-off).
    corrected = np.maximum(measured - settings.scatter_correction * scattered, 0.05 * measured)
    return detector.water_length(corrected)


def calibrate(detector: Detector, settings: SimulateSettings, seed: int) -> Calibration:
    """Scan a long water cylinder on the axis and fix scatter strength and HU scale with it.

    Its line integrals are analytic and the same from every side, so one view serves all; the scale is taken
    without noise, the reported figures with it.

    Raises:
        ConfigError: So much scatter or so little signal that nothing is left to calibrate on.
    """
    radius = settings.calibration_diameter_mm / 2
    lines = _cylinder(radius, settings)
    primary, _ = detector.primary(lines[..., 0], lines[..., 1] / np.float32(10))
    along, across = detector_positions(settings)
    centre = (0, int(np.abs(along).argmin()), int(np.abs(across).argmin()))
    unit = scatter(primary, 1.0, settings)[centre]
    coefficient = settings.scatter_to_primary * float(primary[centre]) / float(unit)

    clean = acquire(lines, detector, coefficient, settings, None)
    image, distance = _image_cylinder(np.repeat(clean, settings.angles, axis=0), radius, settings)
    water = float(image[:, distance < _CENTRE * radius].mean())
    air = float(image[:, _ring(distance, _AIR, radius)].mean())
    if not (math.isfinite(water) and water - air > 0.05):
        raise ConfigError(
            "The water cylinder cannot be told from air with these settings of the group 'simulate'",
            value=f"water {water:.3g}, air {air:.3g} of 1 and 0 expected",
            remedy="Lower simulate.scatter_to_primary or raise simulate.photons_per_mm2",
        )
    scale = 1 / (water - air)
    offset = -air * scale

    random = np.random.default_rng([seed, _CALIBRATION_STREAM])
    noisy = np.concatenate(
        [_middle(acquire(lines, detector, coefficient, settings, random)) for _ in range(settings.angles)]
    )
    image, distance = _image_cylinder(noisy, radius, settings)
    hu = 1000 * (scale * image + offset) - 1000
    middle = hu[:, distance < _CENTRE * radius]
    return Calibration(
        scatter_coefficient=coefficient,
        scale=scale,
        offset=offset,
        water_centre_hu=float(middle.mean()),
        air_hu=float(hu[:, _ring(distance, _AIR, radius)].mean()),
        cupping_hu=float(hu[:, _ring(distance, _EDGE, radius)].mean() - middle.mean()),
        noise_hu=float(middle.std()),
        uncorrected_centre_hu=1000 * water - 1000,
    )


def _cylinder(radius: float, settings: SimulateSettings) -> NDArray[np.float32]:
    """Return the analytic lengths in mm through an endless cylinder on the axis: (1 view, rows, columns, 2)."""
    along, across = detector_positions(settings)
    v, u = np.meshgrid(along, across, indexing="ij")
    in_plane = np.hypot(settings.source_detector_mm, u)
    distance = settings.source_axis_mm * np.abs(u) / in_plane
    chord = 2 * np.sqrt(np.clip(radius**2 - distance**2, 0, None))
    lines = np.zeros((1, *u.shape, 2), np.float32)
    lines[0, ..., 0] = chord * np.hypot(in_plane, v) / in_plane
    return lines


def _middle(projections: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the middle rows: the few slices that are reconstructed need no others."""
    rows = projections.shape[1]
    cut = max(0, (rows - _MIDDLE_ROWS) // 2)
    return projections[:, cut : rows - cut]


def _image_cylinder(
    projections: NDArray[np.float32], radius: float, settings: SimulateSettings
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a few slices through the cylinder and the pixels' distance from the axis in mm."""
    _, row_mm, column_mm = settings.spacing_mm
    rows, columns = (math.ceil(2 * _AIR[1] * radius / mm) + 2 for mm in (row_mm, column_mm))
    shape = (_SLICES, rows, columns)
    isocentre = ((_SLICES - 1) / 2, (rows - 1) / 2, (columns - 1) / 2)
    image = reconstruct(_middle(projections), shape, settings.spacing_mm, isocentre, view_angles(settings), settings)
    distance = np.hypot(
        ((np.arange(rows) - isocentre[1]) * row_mm)[:, None], ((np.arange(columns) - isocentre[2]) * column_mm)[None]
    )
    return image, distance


def _ring(distance: NDArray[np.float64], limits: tuple[float, float], radius: float) -> NDArray[np.bool_]:
    return np.asarray((distance >= limits[0] * radius) & (distance < limits[1] * radius), bool)
