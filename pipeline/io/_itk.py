"""What MetaImage and NRRD share: reading and writing with SimpleITK, whose coordinates are LPS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import Grid, Volume
from pipeline.io.limits import check_affine, check_size, not_readable, truncated

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_WRITABLE = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
_BYTES = {
    sitk.sitkUInt8: 1,
    sitk.sitkInt8: 1,
    sitk.sitkUInt16: 2,
    sitk.sitkInt16: 2,
    sitk.sitkUInt32: 4,
    sitk.sitkInt32: 4,
    sitk.sitkUInt64: 8,
    sitk.sitkInt64: 8,
    sitk.sitkFloat32: 4,
    sitk.sitkFloat64: 8,
}
# ITK's warnings hold file names.
sitk.ProcessObject.SetGlobalWarningDisplay(False)


def read_grid(path: Path, reader_name: str, kind: str, *, payload: int, compressed: bool) -> Grid:
    """Read the header with the named ITK reader; ``payload`` are the bytes on disk that can hold voxels."""
    return _inspect(path, reader_name, kind, payload, compressed)[1]


def read_volume(path: Path, reader_name: str, kind: str, *, payload: int, compressed: bool) -> Volume:
    """Read header and voxels; the array's axes are ITK's index axes (x, y, z)."""
    reader, grid = _inspect(path, reader_name, kind, payload, compressed)
    try:
        image = reader.Execute()
    except RuntimeError:
        raise truncated(kind) from None
    array = np.transpose(sitk.GetArrayFromImage(image), (2, 1, 0))
    return Volume(array, grid.affine)


def write_volume(path: Path, volume: Volume, writer_name: str, kind: str) -> None:
    """Write compressed voxels and the geometry in LPS."""
    array = volume.array
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.str[1:] not in _WRITABLE:
        raise DataError(f"A volume cannot be written as {kind}", value=str(array.dtype))
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(array, (2, 1, 0))))
    lps = _LPS_TO_RAS @ check_affine(volume.affine, kind)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    writer = sitk.ImageFileWriter()
    writer.SetImageIO(writer_name)
    writer.UseCompressionOn()
    writer.SetFileName(str(path))
    writer.Execute(image)


def _inspect(
    path: Path, reader_name: str, kind: str, payload: int, compressed: bool
) -> tuple[sitk.ImageFileReader, Grid]:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(reader_name)
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        # ITK's message holds the path.
        raise not_readable(path, kind) from None
    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() not in _BYTES:
        raise DataError(f"A {kind} file does not hold one number per voxel", remedy="Convert it to a scalar volume")
    size = reader.GetSize()
    check_size(size, _BYTES[reader.GetPixelID()], payload, compressed=compressed, kind=kind)
    return reader, Grid((int(size[0]), int(size[1]), int(size[2])), _affine(reader, kind))


def _affine(reader: sitk.ImageFileReader, kind: str) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * np.asarray(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    return check_affine(_LPS_TO_RAS @ affine, kind)
