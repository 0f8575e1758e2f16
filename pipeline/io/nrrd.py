"""NRRD with its voxels in the same file (``.nrrd``)."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import DataError
from pipeline.geometry import Grid, Volume
from pipeline.io import _itk
from pipeline.io.limits import not_readable

_KIND = "NRRD"
_ITK = "NrrdImageIO"
_HEADER_BYTES = 1 << 20


def read_grid(path: Path) -> Grid:
    """Read the header: shape and affine to mm in RAS+."""
    payload, compressed = _payload(path)
    return _itk.read_grid(path, _ITK, _KIND, payload=payload, compressed=compressed)


def read_volume(path: Path) -> Volume:
    """Read header and voxels."""
    payload, compressed = _payload(path)
    return _itk.read_volume(path, _ITK, _KIND, payload=payload, compressed=compressed)


def write_volume(path: Path, volume: Volume) -> None:
    """Write one compressed file."""
    _itk.write_volume(path, volume, _ITK, _KIND)


def _payload(path: Path) -> tuple[int, bool]:
    """Return the bytes that can hold voxels and whether they are compressed; refuse a header without voxels."""
    with path.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
    if not start.startswith(b"NRRD000"):
        raise not_readable(path, _KIND)
    header = start.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    fields: dict[str, str] = {}
    for line in header.decode("latin-1").split("\n"):
        key, colon, value = line.partition(":")
        if colon:
            fields[key.strip().lower().replace(" ", "")] = value.strip().lower()
    if "datafile" in fields:
        # Such a header may point to any file of the machine.
        raise DataError("An NRRD header keeps its voxels in another file", remedy="Convert it to one .nrrd file")
    if "sizes" not in fields:
        raise not_readable(path, _KIND)
    encoding = fields.get("encoding", "raw")
    # Text needs at least two bytes per voxel of one byte, so counting it as compressed only loosens the bound.
    return path.stat().st_size - len(header), encoding != "raw"
