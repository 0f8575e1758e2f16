"""Volumes on disk: one file per format, chosen by the file's suffix.

Messages never hold a path or a header's content, because both may name a patient: the caller adds the case.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.artifacts import atomic_path
from pipeline.errors import DataError
from pipeline.geometry import Grid, Volume
from pipeline.io import metaimage, nifti, nrrd
from pipeline.io.limits import check_file, update

__all__ = ["SUFFIXES", "read_grid", "read_volume", "stem", "suffix", "write_volume"]

_FORMATS: dict[str, ModuleType] = {
    ".nii.gz": nifti,
    ".nii": nifti,
    ".mha": metaimage,
    ".mhd": metaimage,
    ".nrrd": nrrd,
}
SUFFIXES = tuple(_FORMATS)


def suffix(path: Path) -> str:
    """Return the suffix that chooses the format, in lower case, or '' when no format is known by it."""
    name = path.name.lower()
    return next((known for known in SUFFIXES if name.endswith(known)), "")


def stem(path: Path) -> str:
    """Return the file's name without the suffix that chooses its format (``ct.nii.gz`` -> ``ct``)."""
    return path.name[: len(path.name) - len(suffix(path))]


def read_volume(path: Path, unit: str = "HU", *, digest: Any = None) -> Volume:
    """Read voxels and grid.

    Args:
        path: A file with one of ``SUFFIXES``.
        unit: Of the values, which no format states: 'HU' or 'a.u.'.
        digest: A hash of hashlib, updated with the file's bytes (for NIfTI in the same reading).

    Returns:
        The volume in the file's own axis order, affine to mm in RAS+; integers stay integers where the
        file's scaling allows it.

    Raises:
        DataError: The file is missing, empty, cut off, not what its suffix says, not one scalar volume of three
            axes, larger than allowed, or its geometry is unusable.
    """
    module = _format(path)
    check_file(path)
    if module is nifti:
        volume = nifti.read_volume(path, digest)
    else:
        volume = module.read_volume(path)
        update(digest, path)
    return Volume(volume.array, volume.affine, unit)


def read_grid(path: Path) -> Grid:
    """Read the header only; raises DataError as ``read_volume`` does, without having looked at the voxels."""
    grid: Grid = _format(path).read_grid(check_file(path))
    return grid


def write_volume(path: Path, volume: Volume) -> None:
    """Write atomically in the array's own axis order; the same volume always gives the same bytes.

    The dtype is kept where the format has it (bool becomes uint8, float16 becomes float32).

    Raises:
        DataError: The suffix or the dtype cannot be written.
    """
    module = _format(path)
    with atomic_path(path) as partial:
        module.write_volume(partial, volume)


def _format(path: Path) -> ModuleType:
    found = suffix(path)
    if not found:
        raise DataError("The suffix of a volume's file is not known", allowed=", ".join(SUFFIXES))
    return _FORMATS[found]
