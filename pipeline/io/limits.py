"""What is checked before a byte of voxels is allocated: the file itself, and the size that its header announces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, GeometryError

MAXIMUM_BYTES = 8 * 2**30
_DEFLATE_RATIO = 1032  # no deflate stream grows more than this
ORTHOGONAL_DEGREES = 0.05
COPY_AGAIN = "Copy or download the file again, or leave the case out with cohort.exclude"


def check_file(path: Path) -> Path:
    """Return ``path`` when it is a file with content; raise DataError otherwise."""
    if not path.is_file():
        raise DataError("A volume's file does not exist or is not a file", remedy="Check the path")
    if path.stat().st_size == 0:
        raise DataError("A volume's file is empty", value="0 bytes", remedy=COPY_AGAIN)
    return path


def update(digest: Any, path: Path) -> None:
    """Tell a digest of hashlib (or None) a file's bytes."""
    if digest is not None:
        with path.open("rb") as stream:
            while data := stream.read(1 << 20):
                digest.update(data)


def looks_like_text(path: Path) -> bool:
    """Say whether the file begins like a web page, as failed downloads do."""
    with path.open("rb") as stream:
        start = stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head"))


def not_readable(path: Path, kind: str) -> DataError:
    """Return the error for a file that is not of the format that its suffix says."""
    if looks_like_text(path):
        return DataError(f"A web page was saved under the suffix of a {kind} file", remedy=COPY_AGAIN)
    return DataError(f"A file with the suffix of {kind} is not one, or its header is damaged", remedy=COPY_AGAIN)


def truncated(kind: str) -> DataError:
    """Return the error for a file whose voxels are cut off or damaged."""
    return DataError(f"The voxels of a {kind} file are cut off or damaged", remedy=COPY_AGAIN)


def check_size(shape: Sequence[int], item_bytes: int, payload_bytes: int, *, compressed: bool, kind: str) -> int:
    """Return the announced bytes of voxels.

    Args:
        shape: Announced counts along the axes.
        item_bytes: Bytes of one voxel.
        payload_bytes: Bytes on disk that can hold voxels.
        compressed: Whether deflate may make more of them.
        kind: The format's name, for the message.

    Raises:
        DataError: Not three axes, an empty axis, more than ``MAXIMUM_BYTES``, or more than the file can hold.
    """
    if len(shape) != 3:
        raise DataError(
            f"A {kind} file does not hold one volume of three axes",
            value=f"{len(shape)} axes",
            remedy="Split phases or channels into one file each",
        )
    # Python's integers do not overflow, numpy's would.
    announced = math.prod(int(n) for n in shape) * item_bytes
    if announced <= 0:
        raise DataError(f"The header of a {kind} file announces no voxels", remedy=COPY_AGAIN)
    if announced > MAXIMUM_BYTES:
        raise DataError(
            f"The header of a {kind} file announces too many voxels",
            value=f"{announced / 2**30:.1f} GiB",
            allowed=f"at most {MAXIMUM_BYTES / 2**30:.0f} GiB",
            remedy="Crop or resample the volume, or repair its header",
        )
    if announced > payload_bytes * (_DEFLATE_RATIO if compressed else 1):
        raise DataError(
            f"A {kind} file is cut off: its header announces more voxels than the file can hold",
            value=f"{payload_bytes} bytes on disk for {announced} bytes of voxels",
            remedy=COPY_AGAIN,
        )
    return announced


def shear_degrees(affine: NDArray[np.float64]) -> float:
    """Return how far the axes are from being at right angles, in degrees; infinity for a degenerate affine."""
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or (lengths < 1e-6).any():
        return math.inf
    unit = columns / lengths
    cosines = (unit.T @ unit)[np.triu_indices(3, 1)]
    return float(np.degrees(np.arcsin(np.clip(np.abs(cosines).max(), 0, 1))))


def check_affine(affine: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Return the affine when its axes are finite, not empty and at right angles; raise GeometryError otherwise."""
    shear = shear_degrees(affine)
    if math.isinf(shear):
        raise GeometryError(
            f"The geometry in the header of a {kind} file is unusable",
            value="a spacing or direction that is zero or not a number",
            remedy="Export the volume again with its spacing and orientation",
        )
    if shear > ORTHOGONAL_DEGREES:
        raise GeometryError(
            f"The axes of a {kind} file are not at right angles (gantry tilt or shear)",
            value=f"{shear:.2f} degrees off",
            allowed=f"at most {ORTHOGONAL_DEGREES} degrees",
            remedy="Resample the volume onto an orthogonal grid first",
        )
    return affine
