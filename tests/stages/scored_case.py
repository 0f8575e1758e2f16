"""Small synthetic translations for the tests of evaluate and report."""

from functools import lru_cache

import numpy as np

from pipeline.config import compose
from pipeline.geometry import Volume
from pipeline.io import write_volume
from pipeline.records import TranslatedCase, Translation

SHAPE = (10, 32, 36)
SPACING = (4.0, 6.0, 6.0)


@lru_cache
def _composed(*overrides):
    return compose(["workers=1", *overrides])


def settings(*overrides, dry_run=False, **paths):
    """The configuration of one command; composed once for the same overrides."""
    config = _composed(*overrides)
    return type(config).model_validate({**config.model_dump(), **paths, "dry_run": dry_run})


def affine(spacing=SPACING, origin=(100.0, 90.0, -20.0)):
    """Film order: slices to superior, rows to posterior, columns to the patient's left."""
    matrix = np.zeros((4, 4))
    matrix[2, 0], matrix[1, 1], matrix[0, 2] = spacing[0], -spacing[1], -spacing[2]
    matrix[:3, 3], matrix[3, 3] = origin, 1
    return matrix


def ellipse(shape=SHAPE, size=0.8):
    _, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    return (x / size) ** 2 + (y / size) ** 2 < 1


def make_translation(
    folder, label="vid2vid", cases=("case_1", "case_2"), error=20.0, fov=True, reference_grid=None, empty=()
):
    """Write one translation; its error is `error` HU everywhere in the body, the source's 60 HU."""
    folder.mkdir(parents=True)
    entries = []
    for place, case in enumerate(cases):
        rng = np.random.default_rng(place)
        body = ellipse()
        ct = np.where(body, 40 + rng.normal(0, 30, SHAPE), -1000).round()
        if case in empty:
            ct[:] = -1000
        files = {"prediction": ct + error * body, "source": ct - 60 * body, "reference": ct}
        if fov:
            files["mask"] = ellipse(size=0.5).astype(np.uint8)
        for name, array in files.items():
            matrix, dtype = affine(), np.uint8 if name == "mask" else np.int16
            if name == "reference" and reference_grid is not None:
                array, matrix = reference_grid(array)
            write_volume(folder / f"{case}_{name}.nii.gz", Volume(array.astype(dtype), matrix))
        paths = {name: f"{case}_{name}.nii.gz" for name in files}
        kind = "field_of_view" if fov else ""
        entries.append(TranslatedCase(case_id=case, patient=f"p{place}", mask_kind=kind, **paths))
    Translation(
        schema=1, method="vid2vid", label=label, run="run", checkpoint_sha256="0", source_modality="cbct",
        target_modality="ct", unit="HU", cases=entries,
    ).save(folder)  # fmt: skip
    return folder
