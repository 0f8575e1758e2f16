"""A small synthetic case for the tests of pictures and films."""

import numpy as np

from pipeline.config import compose
from pipeline.records import Score, Scores
from pipeline.reporting.gallery import Gallery
from pipeline.reporting.page import CasePage, Pictures, render
from pipeline.reporting.pictures import PictureCase

SHAPE = (8, 20, 24)


def film_affine(spacing_mm, origin=(0.0, 0.0, 0.0)):
    """Index to mm in RAS+ for film order: slices upwards, rows to posterior, columns to the left."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2] = spacing_mm[0], -spacing_mm[1], -spacing_mm[2]
    matrix[:3, 3], matrix[3, 3] = origin, 1
    return matrix


def picture(region=None, **changes):
    rng = np.random.default_rng(0)
    target = rng.normal(0, 100, SHAPE).astype(np.float32)
    if region is None:
        region = np.zeros(SHAPE, bool)
        region[2:7, 5:15, 6:18] = True
    data = {
        "case": "c1",
        "patient": "p1",
        "volumes": {"source": target + 50, "a": target - 10},
        "target": target,
        "region": region,
        "frame": region,
        "region_name": "mask",
        "affine": film_affine((3.0, 1.0, 2.0)),
        "unit": "HU",
    }
    return PictureCase(**{**data, **changes})


def film_gallery(case, folder, *overrides):
    """A gallery of the case's methods; nothing is read or drawn."""
    common = {"case": "c1", "patient": "p1", "region": "mask", "metric": "mae", "unit": case.unit, "better": "lower"}
    rows = [Score(method=method, value=1.0, **common) for method in case.volumes]
    profile = {"name": "ct", "unit": case.unit, "clip": [-1024, 3071], "regions": {}}
    return Gallery(Scores(schema=1, profile=profile, scores=rows, summary=[]), compose(list(overrides)).report, folder)


def film_page(gallery, case):
    """A page with one film and nothing else."""
    pictures = Pictures(cases=[CasePage(case.case, case.patient, "", [], [], gallery.film(case, 10**7))])
    return render(gallery.scores, pictures, title="A report", notes=gallery.notes, settings={})
