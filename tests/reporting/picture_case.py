"""A small synthetic case for the tests of pictures and films."""

import numpy as np

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
