"""W&B's offline files, one for each start of a run: read them, and drop what a resumed run logs again.

A file is a log in LevelDB's format (7 bytes of header, blocks of 32 KiB, fragments with a CRC-32) whose records are
W&B's own protocol buffers. A killed run's file ends anywhere; what follows the last whole record is no loss.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import atomic_path

STEP = "step"  # the key of our own step, which all curves are drawn over
_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
_FRAGMENT = struct.Struct("<IHB")  # CRC-32, length, kind
_BLOCK = 32768
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def offline_files(folder: Path) -> list[Path]:
    """Return the offline files of the run in ``folder``, in the order of its starts."""
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records of an offline file (``wandb.proto.wandb_internal_pb2.Record``) up to its last whole one."""
    from wandb.proto import wandb_internal_pb2 as protocol

    for content in _contents(path.read_bytes()):
        yield protocol.Record.FromString(content)  # type: ignore[attr-defined]


def logged(record: Any) -> dict[str, str]:
    """Return the row that a record logs, key to JSON; empty where the record is of another kind."""
    if record.WhichOneof("record_type") != "history":
        return {}
    return {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}


def forget_after(folder: Path, step: int) -> int:
    """Drop the rows beyond ``step`` from what was not sent yet, and return how many they were.

    A resumed run logs them again. What ``wandb sync`` has sent, or begun to send, stays as it is.
    """
    dropped = 0
    for path in offline_files(folder):
        if any(path.with_suffix(f".wandb.{mark}").exists() for mark in ("synced", "syncstate")):
            continue
        records = list(read_records(path))
        kept = [record for record in records if float(logged(record).get(STEP, "0")) <= step]
        if len(kept) < len(records):
            dropped += len(records) - len(kept)
            with atomic_path(path) as partial:
                partial.write_bytes(_packed(record.SerializeToString() for record in kept))
    return dropped


def _checksum(kind: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(bytes([kind])))


def _contents(data: bytes) -> Iterator[bytes]:
    if data[: len(_HEADER)] != _HEADER:
        return
    place, parts = len(_HEADER), b""
    while place + _FRAGMENT.size <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _FRAGMENT.size:  # too little for another fragment: zeros
            place += left
            continue
        checksum, length, kind = _FRAGMENT.unpack_from(data, place)
        content = data[place + _FRAGMENT.size : place + _FRAGMENT.size + length]
        if (
            kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST)
            or len(content) < length
            or _checksum(kind, content) != checksum
        ):
            return
        place += _FRAGMENT.size + length
        parts = content if kind in (_WHOLE, _FIRST) else parts + content
        if kind in (_WHOLE, _LAST):
            yield parts


def _packed(contents: Iterable[bytes]) -> bytes:
    out = bytearray(_HEADER)
    for content in contents:
        start, first = 0, True
        while first or start < len(content):
            left = _BLOCK - len(out) % _BLOCK
            if left < _FRAGMENT.size:
                out += bytes(left)
                continue
            part = content[start : start + left - _FRAGMENT.size]
            start += len(part)
            last = start == len(content)
            kind = (_WHOLE if last else _FIRST) if first else (_LAST if last else _MIDDLE)
            out += _FRAGMENT.pack(_checksum(kind, part), len(part), kind) + part
            first = False
    return bytes(out)
