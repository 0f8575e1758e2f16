"""What a cohort is like before anything is decided about it: grids, bodies and intensities of its cases."""

from __future__ import annotations

import numpy as np

from pipeline.errors import GeometryError
from pipeline.geometry import FILM_AXES, Volume, reorder
from pipeline.imaging.film import bounding_box
from pipeline.imaging.histogram import percentiles
from pipeline.preparation.case import case_body, read_case_volume
from pipeline.records import Case, CaseFingerprint, Cohort

PERCENTS = (0.5, 50.0, 99.5)


def fingerprint_case(cohort: Cohort, case: Case, reference: str, threshold_hu: float) -> CaseFingerprint:
    """Look at the reference volume of a case.

    Returns:
        Shape, spacing and the body's extent in film order, and percentiles of the intensity inside the body.

    Raises:
        DataError: The volume is damaged, or holds no body.
    """
    volume = read_case_volume(cohort, case, reference)
    film = reorder(volume, FILM_AXES)
    body = reorder(Volume(case_body(cohort, case, volume, threshold_hu), volume.affine), FILM_AXES).array
    box = bounding_box(body)
    if box is None:
        raise GeometryError(f"No body was found in case '{case.case_id}'")
    values = (image[inside] for image, inside in zip(film.array, body, strict=True))
    if film.array.dtype in (np.int16, np.uint16):
        found = percentiles(values, PERCENTS)
    else:
        found = [float(value) for value in np.percentile(np.concatenate(list(values)), PERCENTS)]
    a, b, c = ((side.stop - side.start) * mm for side, mm in zip(box, film.spacing_mm, strict=True))
    return CaseFingerprint(
        case_id=case.case_id,
        shape=film.grid.shape,
        spacing_mm=film.spacing_mm,
        body_mm=(a, b, c),
        percentiles=(found[0], found[1], found[2]),
    )
