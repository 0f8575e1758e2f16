"""One slice of one modality as bytes: a 24-byte header that describes itself, then lz4 or raw voxels.

The checksum is XXH3 (64 bits), seeded by the member's name: a sound slice at another's place does not pass for it.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import xxhash
from numcodecs import blosc
from numpy.typing import NDArray

from pipeline.errors import ArtifactError

EXTENSION = "slice"
MASK = "mask"
HEADER = struct.Struct(
    "<Q4sBBHHHI"
)  # checksum of all that follows, magic, dtype, codec, rows, columns, 0, payload bytes
_CHECKSUM = struct.Struct("<Q")
_MAGIC = b"CVX2"
_DTYPES: dict[int, np.dtype] = {1: np.dtype("<i2"), 2: np.dtype("u1")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_CODECS = {"none": 0, "lz4": 1}
_BLOSC = struct.Struct("<4xI4xI")  # of blosc's own header: decoded bytes, stored bytes
_LZ4_AT_MOST = 256  # times smaller: what claims more is no lz4
_REMEDY = "The shard is damaged: copy it again, or delete it and run 'cinevox preprocess' again"

# blosc's own threads would fight with the reader's; single-threaded calls release the GIL and give stable bytes.
blosc.use_threads = False


def member_name(case_id: str, slice_index: int, part: str) -> str:
    """Return the name of a member (a modality or the mask of one slice) in a shard."""
    return f"{case_id}_{slice_index:05d}.{part}.{EXTENSION}"


def encode(image: NDArray, name: str, codec: str = "lz4") -> bytes:
    """Encode a (rows, columns) image of int16 or uint8 as the member ``name``."""
    image = np.ascontiguousarray(image)
    if image.dtype not in _CODES or image.ndim != 2:
        raise ValueError(f"a slice is a 2D image of int16 or uint8, not {image.dtype} of shape {image.shape}")
    # The thorough encoder writes the same format: smaller, and faster to decode (docs/performance.md).
    payload = blosc.compress(image, b"lz4hc", 3, blosc.SHUFFLE) if codec == "lz4" else image.tobytes()
    fields = (_MAGIC, _CODES[image.dtype], _CODECS[codec], *image.shape, 0, len(payload))
    body = HEADER.pack(0, *fields)[_CHECKSUM.size :] + payload
    return _CHECKSUM.pack(_checksum(body, name)) + body


def _checksum(body: memoryview | bytes, name: str) -> int:
    return xxhash.xxh3_64_intdigest(body, xxhash.xxh3_64_intdigest(name.encode()))


def stated(view: memoryview | bytes, at: int, name: str, shard: str = "") -> tuple[int, int]:
    """Return the size, header included, and the checksum that the member at ``at`` states; decoding proves them."""
    if len(view) - at < HEADER.size:
        raise ArtifactError(f"{_where(name, shard)} is too short", value=f"{len(view) - at} bytes", remedy=_REMEDY)
    checksum, *_, stored = HEADER.unpack_from(view, at)
    return HEADER.size + stored, checksum


def decode_into(member: memoryview | bytes, out: NDArray, name: str, shard: str = "") -> None:
    """Decode the member ``name`` into ``out`` (its shape and dtype), checking header and checksum.

    Args:
        member: Header and payload.
        out: Contiguous (rows, columns) array.
        name: Of the member, as it was encoded.
        shard: Where it was found, for messages.

    Raises:
        ArtifactError: Anything about the bytes is not as it was written under this name.
    """
    dtype, codec, shape, payload = _open(memoryview(member), name, shard)
    if shape != out.shape or dtype != out.dtype:
        raise ArtifactError(f"{_where(name, shard)} holds another image", value=f"{dtype} {shape}", allowed=out.shape)
    if codec == 1:
        try:
            blosc.decompress(payload, out)
        except (RuntimeError, ValueError):
            raise ArtifactError(f"{_where(name, shard)} cannot be decompressed", remedy=_REMEDY) from None
    else:
        out[...] = np.frombuffer(payload, dtype).reshape(shape)


def _where(name: str, shard: str) -> str:
    return f"'{name}' in shard '{shard}'" if shard else f"'{name}'"


def _open(view: memoryview, name: str, shard: str) -> tuple[np.dtype, int, tuple[int, int], memoryview]:
    """Return dtype, codec, shape and payload of a member that is what it says, and not a bomb."""
    if len(view) < HEADER.size:
        raise ArtifactError(f"{_where(name, shard)} is too short", value=f"{len(view)} bytes", remedy=_REMEDY)
    stated, magic, code, codec, rows, columns, zero, stored = HEADER.unpack_from(view)
    payload = view[HEADER.size :]
    if magic != _MAGIC:
        raise ArtifactError(
            f"{_where(name, shard)} is damaged, or of another version of Cinevox",
            value=magic,
            allowed=_MAGIC,
            remedy="Run 'cinevox preprocess' again",
        )
    if _checksum(view[_CHECKSUM.size :], name) != stated or stored != len(payload):
        raise ArtifactError(f"{_where(name, shard)} does not match its checksum", remedy=_REMEDY)
    dtype = _DTYPES.get(code)
    raw = rows * columns * dtype.itemsize if dtype else -1
    if codec == 1:
        sound = stored >= 16 and blosc_sizes(payload) == (raw, stored) and raw <= stored * _LZ4_AT_MOST
    else:
        sound = codec == 0 and stored == raw
    if dtype is None or zero or not sound:
        raise ArtifactError(f"{_where(name, shard)} contradicts its header", remedy=_REMEDY)
    return dtype, codec, (rows, columns), payload


def blosc_sizes(payload: memoryview) -> tuple[int, int]:
    """Return the decoded and the stored size that a blosc buffer announces, to compare before blosc believes it."""
    decoded, stored = _BLOSC.unpack_from(payload)
    return decoded, stored


def webdataset_decoder(sample: dict[str, Any]) -> dict[str, Any]:
    """Restore the arrays of a WebDataset sample: ``dataset.map(webdataset_decoder)``.

    ``CASE_00012`` with ``ct.slice`` and ``mask.slice`` becomes ``case_id``, ``slice_index``, ``ct`` (int16, stored
    units: multiply by the index's scale for MR), ``mask`` (uint8), both (rows, columns). Other members are kept out.
    """
    key = sample["__key__"]
    case_id, _, slice_index = key.rpartition("_")
    out: dict[str, Any] = {"__key__": key, "case_id": case_id, "slice_index": int(slice_index)}
    for name, value in sample.items():
        part, dot, extension = name.partition(".")
        if dot and extension == EXTENSION:
            member = f"{key}.{name}"
            dtype, _, shape, _ = _open(memoryview(value), member, "")
            out[part] = np.empty(shape, dtype)
            decode_into(value, out[part], member)
    return out
