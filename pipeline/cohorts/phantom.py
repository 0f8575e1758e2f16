"""Random, anatomically plausible patients from seeds: a torso or a head, co-registered in CT and MR contrasts.

No patient's data is involved. A phantom's numbers say how a program behaves, never how well it would do on patients.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.cohorts import phantom_head, phantom_torso
from pipeline.cohorts.phantom_canvas import MODALITIES, Canvas
from pipeline.errors import ConfigError, nearest
from pipeline.geometry import FILM_AXES, Volume, reorder
from pipeline.io import write_volume
from pipeline.settings import CohortSettings

Anatomy = Literal["torso", "head"]
_BEND_MM = 3.0
_AIR_VOXELS = 3
# Both are common on disk, so that a reader that ignores orientation is found out.
_FILE_AXES = ("RAS", "LPS")


def case_name(index: int) -> str:
    """Return the name of a patient and of its only case: ``phantom_000``."""
    return f"phantom_{index:03d}"


def check_settings(settings: CohortSettings) -> None:
    """Raise ConfigError when a modality cannot be made."""
    for modality in settings.modalities:
        if modality not in MODALITIES:
            raise ConfigError(
                "A phantom has no such modality in cohort.modalities",
                value=modality,
                allowed=", ".join(MODALITIES),
                remedy=nearest(modality, MODALITIES) or "CBCT is made from CT by 'cinevox simulate'",
            )
    if not settings.modalities or len(set(settings.modalities)) != len(settings.modalities):
        raise ConfigError("cohort.modalities is empty or names a modality twice", value=settings.modalities)


def make_patient(settings: CohortSettings, seed: int, index: int) -> dict[str, Volume]:
    """Return the volumes of one patient, a pure function of (settings, seed, index).

    Returns:
        One int16 volume per modality, all on one grid whose axes are RAS or LPS; 'ct' in HU, others in a.u. The
        body leaves at least two voxels of air at the lateral, anterior and posterior borders.
    """
    check_settings(settings)
    # The painting draws the same random numbers for any choice of modalities: the patient stays the same.
    rng = np.random.default_rng([seed, index])
    anatomy = _anatomy(settings, rng)
    canvas = _canvas(settings, rng, anatomy)
    couch = bool(rng.random() < 0.7)
    if anatomy == "torso":
        phantom_torso.paint_torso(canvas, couch=couch)
    else:
        phantom_head.paint_head(canvas, couch=couch)
    affine = _film_affine(settings)
    volumes = {}
    for number, modality in enumerate(MODALITIES):
        canvas.rng = np.random.default_rng([seed, index, number])
        if modality in settings.modalities:
            unit = "HU" if modality == "ct" else "a.u."
            film = Volume(canvas.develop(modality), affine, unit)
            volumes[modality] = reorder(film, _FILE_AXES[index % 2])
    return volumes


def write_patient(settings: CohortSettings, seed: int, index: int, root: Path) -> dict[str, Path]:
    """Make a patient and write ``root/CASE/MODALITY.nii.gz``; returns the files by modality.

    Files appear only when they are complete, so a patient that is there already is not made again.
    """
    files = {modality: root / case_name(index) / f"{modality}.nii.gz" for modality in settings.modalities}
    if not all(path.exists() for path in files.values()):
        for modality, volume in make_patient(settings, seed, index).items():
            write_volume(files[modality], volume)
    return files


def _anatomy(settings: CohortSettings, rng: np.random.Generator) -> Anatomy:
    choice: Anatomy = "torso" if rng.random() < 0.5 else "head"
    return choice if settings.anatomy == "mixed" else settings.anatomy


def _canvas(settings: CohortSettings, rng: np.random.Generator, anatomy: Anatomy) -> Canvas:
    module = phantom_torso if anatomy == "torso" else phantom_head
    size, spacing = settings.size, settings.spacing_mm
    half_mm = [((n - 1) / 2 - _AIR_VOXELS) * mm for n, mm in zip(size[1:], spacing[1:], strict=True)]
    reach = 2.5 * _BEND_MM + 4
    fit = min(half_mm[0] / (module.HALF_DEPTH + reach), half_mm[1] / (module.HALF_WIDTH + reach))
    if fit <= 0.1:
        raise ConfigError(
            "cohort.size and cohort.spacing_mm leave no room for a body and the air around it",
            value=f"{size[1]} x {size[2]} pixels of {spacing[1]:g} x {spacing[2]:g} mm",
            allowed="at least 16 x 16 pixels",
        )
    scale = min(float(rng.uniform(0.94, 1.06)), fit)
    free = max(0.0, min(6.0, (fit - scale) * module.HALF_WIDTH))
    extent = size[0] * spacing[0] / scale
    # A scan shorter than the anatomy shows its middle, shifted a little from patient to patient.
    middle, play = (0.0, 0.1 * min(extent, 300.0)) if anatomy == "torso" else (0.0, 0.06 * min(extent, 200.0))
    centre = (
        float(rng.uniform(-free, free)),
        float(rng.uniform(-free, free)) * 0.5,
        middle + float(rng.uniform(-play, play)),
    )
    return Canvas(size, spacing, rng, scale=scale, centre=centre, bend_mm=_BEND_MM, modalities=settings.modalities)


def _film_affine(settings: CohortSettings) -> np.ndarray:
    """Return the affine of the film-ordered grid, centred on the scanner's zero."""
    affine = np.eye(4)
    directions = {"S": (0, 0, 1), "P": (0, -1, 0), "L": (-1, 0, 0)}
    for axis, (letter, mm) in enumerate(zip(FILM_AXES, settings.spacing_mm, strict=True)):
        affine[:3, axis] = np.asarray(directions[letter]) * mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(settings.size) - 1) / 2)
    return affine
