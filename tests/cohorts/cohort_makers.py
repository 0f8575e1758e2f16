"""Small cohorts for tests: cheap bodies with CT and MR values, in the folder structure that users have."""

import numpy as np
from scipy import ndimage

from pipeline.geometry import Volume
from pipeline.io import write_volume
from pipeline.settings import CohortSettings

SPLIT = {
    "fractions": {"train": 0.7, "validation": 0.1, "test": 0.2},
    "folds": 0,
    "train": [],
    "validation": [],
    "test": [],
}


def settings(**changes):
    plain = {
        "layout": "folder",
        "split": SPLIT,
        "include": [],
        "exclude": [],
        "modality": None,
        "patient_pattern": None,
        "similarity_check": True,
        "check": False,
        "pair_limits": {"shift_mm": 3.0, "overlap": 0.85, "edge_agreement": 0.6},
        "patients": 2,
        "anatomy": "torso",
        "size": (10, 40, 40),
        "spacing_mm": (10.0, 10.0, 10.0),
        "modalities": ["ct"],
    }
    return CohortSettings(**{**plain, **changes})


def ct(seed=0, shape=(12, 32, 32), spacing=(5.0, 8.0, 8.0)):
    """Return a film-ordered cylinder in HU (int16): fat, tissue, lungs, a spine, noise."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    x, y = x - rng.uniform(-0.05, 0.05), y - rng.uniform(-0.05, 0.05)
    radius = np.hypot(x / rng.uniform(0.7, 0.85), y / rng.uniform(0.55, 0.7))
    hu = np.full(shape, -1000.0)
    hu[radius < 1] = -100
    hu[radius < 0.85] = 45
    lump = ndimage.gaussian_filter(rng.standard_normal(shape), 2.5)
    hu[(radius < 0.85) & (lump > lump.std())] = 75
    hu[(np.hypot(np.abs(x) - 0.35, y) < rng.uniform(0.16, 0.24)) & (z > rng.uniform(-0.6, 0.4))] = -820
    hu[np.hypot(x, y - 0.4) < 0.09] = 600
    hu += rng.normal(0, 8, shape)
    affine = np.eye(4)
    for axis, (direction, mm) in enumerate(zip(((0, 0, 1), (0, -1, 0), (-1, 0, 0)), spacing, strict=True)):
        affine[:3, axis] = np.asarray(direction) * mm
    return Volume(np.clip(hu, -1024, 3071).astype(np.int16), affine)


def mr(volume, seed=0):
    """Return another contrast of the same anatomy."""
    hu = volume.array.astype(float)
    values = np.interp(hu, [-1000, -820, -100, 45, 75, 600], [0, 40, 800, 350, 500, 60])
    noise = np.random.default_rng([seed, 1]).normal(0, 6, hu.shape)
    return Volume(np.abs(values + noise).astype(np.int16), volume.affine, "a.u.")


def write_cohort(root, count=3, modalities=("ct",), suffix=".nii.gz"):
    """Write ``root/case_N/MODALITY``; returns the case folders."""
    folders = []
    for index in range(count):
        volumes = {"ct": ct(index)}
        volumes |= {"t1n": mr(volumes["ct"], index)}
        folder = root / f"case_{index}"
        for modality in modalities:
            write_volume(folder / f"{modality}{suffix}", volumes[modality])
        folders.append(folder)
    return folders
