"""NIfTI-1 and NIfTI-2 in one file, plain or gzip-compressed.

The sform decides where it is set and its axes are at right angles; otherwise the qform; a file with neither says
nothing about left and right and is refused. SimpleITK returns garbage for files whose ``scl_slope`` is not a number,
so headers are read with nibabel.
"""

from __future__ import annotations

import gzip
import io
import logging
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from pipeline.errors import DataError, GeometryError
from pipeline.geometry import Grid, Volume
from pipeline.io.limits import (
    ORTHOGONAL_DEGREES,
    check_affine,
    check_size,
    not_readable,
    shear_degrees,
    truncated,
    update,
)

_KIND = "NIfTI"
_GZIP_LEVEL = 3
_IsalError: type[Exception] = isal_zlib.error  # type: ignore[assignment]
_CHUNK = 1 << 20
_MAPPED_BYTES = 1 << 28  # above, the voxels of an uncompressed file stay on disk until they are looked at
_MM = {"meter": 1000.0, "micron": 0.001}
# nibabel logs header repairs to stderr by itself.
logging.getLogger("nibabel.global").addHandler(logging.NullHandler())


def read_grid(path: Path) -> Grid:
    """Read the header: shape and affine to mm in RAS+."""
    header = _inspect(path).header
    return Grid(_shape(header), _affine(header))


def read_volume(path: Path, digest: Any = None) -> Volume:
    """Read voxels with the file's scaling applied; a scale that is 0 or not a number means unscaled.

    ``digest`` (of hashlib) is updated with the file's bytes while they are read.
    """
    image = _inspect(path)
    header = image.header
    shape, dtype, affine = _shape(header), header.get_data_dtype(), _affine(header)
    # nibabel has turned a slope of 0 or NaN into 1 and 0 by now.
    offset, slope, intercept = int(image.dataobj.offset), float(image.dataobj.slope), float(image.dataobj.inter)
    if not _is_compressed(path) and math.prod(shape) * dtype.itemsize > _MAPPED_BYTES:
        update(digest, path)
        raw: NDArray = np.memmap(path, dtype, "c", offset, shape, "F")
    else:
        raw = np.empty(shape, dtype, "F")
        _fill(raw, path, offset, digest)
    if not dtype.isnative:
        raw = raw.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return Volume(raw if (slope, intercept) == (1, 0) else _scaled(raw, slope, intercept), affine)


def write_volume(path: Path, volume: Volume) -> None:
    """Write NIfTI-1 with the same affine as sform and qform and no scaling."""
    array = volume.array
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.kind not in "iuf" or max(array.shape) > 32767:
        raise DataError("A volume cannot be written as NIfTI", value=f"{array.dtype} of shape {array.shape}")
    image = nib.Nifti1Image(array, volume.affine, dtype=array.dtype)
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    # gzip would otherwise store the time of writing.
    compressed = _is_compressed(path)
    path.write_bytes(gzip.compress(data, _GZIP_LEVEL, mtime=0) if compressed else data)


def _inspect(path: Path) -> Any:
    """Return nibabel's image with a checked header; its voxels are not read.

    The header of a loaded image has lost offset and scaling: its ``dataobj`` keeps what the file says.
    """
    compressed = _is_compressed(path)
    try:
        image: Any = nib.load(path)
        header = image.header
        if not isinstance(header, nib.Nifti1Header):
            raise not_readable(path, _KIND)
        header.get_data_dtype(), header.get_data_shape()
    except DataError:
        raise
    # nibabel's messages hold the path, so none is passed on.
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError, KeyError, OverflowError):
        raise (truncated(_KIND) if compressed and _is_gzip(path) else not_readable(path, _KIND)) from None
    except (OSError, EOFError, zlib.error):
        raise truncated(_KIND) from None
    payload = path.stat().st_size - (0 if compressed else int(image.dataobj.offset))
    if header.get_data_dtype().kind not in "iuf":
        raise DataError("A NIfTI file does not hold one number per voxel", remedy="Convert it to a scalar volume")
    check_size(_shape(header), header.get_data_dtype().itemsize, payload, compressed=compressed, kind=_KIND)
    return image


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _shape(header: nib.Nifti1Header) -> tuple[int, int, int]:
    shape = [int(n) for n in header.get_data_shape()]
    # A fourth axis of one entry is a habit of some writers, not a series.
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    return tuple(shape)  # type: ignore[return-value]


def _affine(header: nib.Nifti1Header) -> NDArray[np.float64]:
    scale = _MM.get(header.get_xyzt_units()[0], 1.0)
    try:
        candidates = [header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]]
    except (HeaderDataError, ValueError):
        # A quaternion that is none; the sform may still be good.
        candidates = [header.get_sform(coded=True)[0]]
    stated = [np.asarray(a, np.float64) for a in candidates if a is not None]
    if not stated:
        raise GeometryError(
            "A NIfTI file states no orientation (sform and qform are both unset), so left and right are unknown",
            remedy="Convert it again from its source, or set the orientation with a tool that knows it",
        )
    best = next((a for a in stated if shear_degrees(a) <= ORTHOGONAL_DEGREES), stated[0]).copy()
    best[:3] *= scale
    return check_affine(best, _KIND)


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


class _Noted(io.FileIO):
    """A file that tells a digest what is read from it."""

    def __init__(self, path: Path, digest: Any) -> None:
        super().__init__(path)
        self._digest = digest

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer)
        self._digest.update(memoryview(buffer)[:count])
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._digest.update(data)
        return data


def _fill(array: NDArray, path: Path, offset: int, digest: Any) -> None:
    """Read voxels into an F-ordered array, without a second copy of them in memory."""
    target = memoryview(array.reshape(-1, order="F").view(np.uint8))  # type: ignore[arg-type]
    try:
        with path.open("rb") if digest is None else _Noted(path, digest) as file:
            if _is_compressed(path):
                with igzip.GzipFile(fileobj=file) as unpacked:
                    unpacked.seek(offset)
                    filled = _read_into(target, unpacked)
                    # Reading past the voxels makes gzip compare its checksum; a bomb behind them is not unpacked.
                    unpacked.read(65536)
            else:
                file.read(offset)
                filled = _read_into(target, file)
            while digest is not None and file.read(_CHUNK):
                pass
    except (OSError, EOFError, _IsalError):
        raise truncated(_KIND) from None
    if filled < len(target):
        raise truncated(_KIND)


def _read_into(target: memoryview, stream: Any) -> int:
    filled = 0
    while filled < len(target) and (data := stream.read(min(_CHUNK, len(target) - filled))):
        target[filled : filled + len(data)] = data
        filled += len(data)
    return filled


def _scaled(array: NDArray, slope: float, intercept: float) -> NDArray:
    if array.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        low, high = int(array.min()) * slope + intercept, int(array.max()) * slope + intercept
        for dtype in (np.int16, np.int32):
            limits = np.iinfo(dtype)
            if min(low, high) >= limits.min and max(low, high) <= limits.max:
                return _each(array, dtype, lambda image: image.astype(np.int64) * int(slope) + int(intercept))
    wide = np.float64 if array.dtype.itemsize > 4 else np.float32
    return _each(array, wide, lambda image: image.astype(np.float64) * slope + intercept)


def _each(array: NDArray, dtype: type, change: Callable[[NDArray], NDArray]) -> NDArray:
    """Change an F-ordered volume image by image: its intermediates are 8 bytes a voxel."""
    out: NDArray = np.empty(array.shape, dtype, "F")
    for k in range(array.shape[2]):
        out[..., k] = change(array[..., k])
    return out
