"""MetaImage: one file (``.mha``), or a header beside its voxels (``.mhd``, read only)."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import DataError
from pipeline.geometry import Grid, Volume
from pipeline.io import _itk
from pipeline.io.limits import check_file, not_readable

_KIND = "MetaImage"
_ITK = "MetaImageIO"
_HEADER_BYTES = 65536


def read_grid(path: Path) -> Grid:
    """Read the header: shape and affine to mm in RAS+."""
    payload, compressed = _payload(path)
    return _itk.read_grid(path, _ITK, _KIND, payload=payload, compressed=compressed)


def read_volume(path: Path) -> Volume:
    """Read header and voxels."""
    payload, compressed = _payload(path)
    return _itk.read_volume(path, _ITK, _KIND, payload=payload, compressed=compressed)


def write_volume(path: Path, volume: Volume) -> None:
    """Write one compressed file; DataError for ``.mhd``, whose two files cannot appear at once."""
    if path.suffix.lower() == ".mhd":
        raise DataError("MetaImage is written as one file", value="the suffix .mhd", allowed=".mha")
    _itk.write_volume(path, volume, _ITK, _KIND)


def _payload(path: Path) -> tuple[int, bool]:
    """Return the bytes that can hold voxels and whether they are compressed; refuse voxels in another folder."""
    with path.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
    fields: dict[str, str] = {}
    length = 0
    for line in start.splitlines(keepends=True):
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            break
        length += len(line)
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            break
    where = fields.get("elementdatafile")
    if where is None or "dimsize" not in fields:
        raise not_readable(path, _KIND)
    compressed = fields.get("compresseddata", "").lower() in ("true", "1")
    if where.upper() == "LOCAL":
        return path.stat().st_size - length, compressed
    # A header may point to any file of the machine, or to a list of them.
    if where != Path(where).name or where.upper().startswith("LIST") or "%" in where or "\\" in where:
        raise DataError(
            "A MetaImage header points to voxels outside its own folder or to several files",
            remedy="Convert the volume to one .mha file",
        )
    return check_file(path.with_name(where)).stat().st_size, compressed
