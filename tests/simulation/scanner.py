"""A small, fast scanner and simple objects for the tests of the simulation."""

from pathlib import Path

import numpy as np
import yaml

from pipeline.geometry import Volume
from pipeline.settings import SimulateSettings

CONF = Path(__file__).parents[2] / "conf" / "simulate"


def settings(preset="demo", **changes):
    data = yaml.safe_load((CONF / f"{preset}.yaml").read_text())
    small = {"angles": 90, "detector_size_mm": [397, 150], "spacing_mm": [6.0, 6.0, 6.0]} if preset == "demo" else {}
    return SimulateSettings.model_validate({**data, **small, **changes})


def affine(spacing):
    slice_mm, row_mm, column_mm = spacing
    return np.array([[0, 0, -column_mm, 0], [0, -row_mm, 0, 0], [slice_mm, 0, 0, 0], [0, 0, 0, 1.0]])


def ellipsoid(shape, radii, inside=0.0, centre=None, spacing=6.0):
    """An ellipsoid in air (HU), with its mask; ``radii`` in voxels, along (slices, rows, columns)."""
    centre = [(n - 1) / 2 for n in shape] if centre is None else centre
    index = np.indices(shape)
    r2 = sum(((i - c) / r) ** 2 for i, c, r in zip(index, centre, radii, strict=True))
    array = np.where(r2 <= 1, inside, -1000.0).astype(np.float32)
    return Volume(array, affine((spacing,) * 3)), r2 <= 1
