"""One slice of one modality as bytes: a 24-byte header that describes itself, then lz4 or raw voxels."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from pipeline.errors import ArtifactError

EXTENSION = "slice"
MASK = "mask"
HEADER = struct.Struct("<4sBBHHHIII")  # magic, dtype, codec, rows, columns, 0, payload bytes, voxel bytes, CRC-32
_CRC_AT = HEADER.size - 4  # the checksum covers what stands before it, and the payload
_MAGIC = b"CVX1"
_DTYPES: dict[int, np.dtype] = {1: np.dtype("<i2"), 2: np.dtype("u1")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_CODECS = {"none": 0, "lz4": 1}

# blosc's own threads would fight with the reader's; single-threaded calls release the GIL and give stable bytes.
blosc.use_threads = False


def encode(image: NDArray, codec: str = "lz4") -> bytes:
    """Encode a (rows, columns) image of int16 or uint8."""
    image = np.ascontiguousarray(image)
    if image.dtype not in _CODES or image.ndim != 2:
        raise ValueError(f"a slice is a 2D image of int16 or uint8, not {image.dtype} of shape {image.shape}")
    payload = blosc.compress(image, b"lz4", 5, blosc.SHUFFLE) if codec == "lz4" else image.tobytes()
    rows, columns = image.shape
    fields = (_MAGIC, _CODES[image.dtype], _CODECS[codec], rows, columns, 0, len(payload), image.nbytes)
    head = HEADER.pack(*fields, 0)[:_CRC_AT]
    return b"".join([head, zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "little"), payload])


def checksum(member: memoryview | bytes) -> int:
    """Return the checksum that a member states (0 for one without a whole header); decoding compares it."""
    return int.from_bytes(member[_CRC_AT : HEADER.size], "little")


def decode_into(member: memoryview | bytes, out: NDArray, where: str) -> None:
    """Decode a member into ``out`` (its shape and dtype), checking header and CRC-32.

    Args:
        member: Header and payload.
        out: Contiguous (rows, columns) array.
        where: Shard and member, for messages.

    Raises:
        ArtifactError: Anything about the bytes is not as it was written.
    """
    view = memoryview(member)
    dtype, codec, rows, columns, payload = _open(view, where)
    if (rows, columns) != out.shape or dtype != out.dtype:
        raise ArtifactError(f"{where} holds another image", value=f"{rows} x {columns} {dtype}", allowed=out.shape)
    if codec == 1:
        try:
            blosc.decompress(payload, out)
        except (RuntimeError, ValueError):
            raise ArtifactError(f"{where} cannot be decompressed", remedy=_REMEDY) from None
    else:
        out[...] = np.frombuffer(payload, dtype).reshape(rows, columns)


_REMEDY = "The shard is damaged: copy it again, or delete it and run 'cinevox preprocess' again"


def _open(view: memoryview, where: str) -> tuple[np.dtype, int, int, int, memoryview]:
    if len(view) < HEADER.size:
        raise ArtifactError(f"{where} is too short", value=f"{len(view)} bytes", remedy=_REMEDY)
    magic, code, codec, rows, columns, zero, stored, raw, crc = HEADER.unpack(view[: HEADER.size])
    payload = view[HEADER.size : HEADER.size + stored]
    sound = (
        magic == _MAGIC
        and code in _DTYPES
        and codec in _CODECS.values()
        and zero == 0
        and len(payload) == stored == len(view) - HEADER.size
        and raw == rows * columns * _DTYPES[code].itemsize
        and (codec == 0 or (stored >= 16 and blosc_size(payload) == raw))
        and (codec == 1 or stored == raw)
    )
    if not sound or zlib.crc32(payload, zlib.crc32(view[:_CRC_AT])) != crc:
        raise ArtifactError(f"{where} does not match its checksum or header", remedy=_REMEDY)
    return _DTYPES[code], codec, rows, columns, payload


def blosc_size(payload: memoryview) -> int:
    """Return the decoded size that a blosc buffer announces (bytes 4 to 8), checked before allocation."""
    return int.from_bytes(payload[4:8], "little")


def webdataset_decoder(sample: dict[str, Any]) -> dict[str, Any]:
    """Restore the arrays of a WebDataset sample: ``dataset.map(webdataset_decoder)``.

    ``CASE_00012`` with ``ct.slice`` and ``mask.slice`` becomes ``case_id``, ``slice_index``, ``ct`` (int16, stored
    units: multiply by the index's scale for MR), ``mask`` (uint8), both (rows, columns). Other members are kept out.
    """
    key = sample["__key__"]
    case_id, _, slice_index = key.rpartition("_")
    out: dict[str, Any] = {"__key__": key, "case_id": case_id, "slice_index": int(slice_index)}
    for name, value in sample.items():
        modality, dot, extension = name.partition(".")
        if dot and extension == EXTENSION:
            dtype, _, rows, columns, _ = _open(memoryview(value), f"'{key}.{name}'")
            out[modality] = np.empty((rows, columns), dtype)
            decode_into(value, out[modality], f"'{key}.{name}'")
    return out
