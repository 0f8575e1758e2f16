"""Tar shards: a plain WebDataset, and beside it a table of offsets for random access.

Members lie slice by slice, all modalities and the mask of a slice together, so that one read serves a clip.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import atomic_path, file_sha256
from pipeline.errors import ArtifactError
from pipeline.records import ShardFile
from pipeline.stream.codec import EXTENSION, MASK, checksum, decode_into, encode
from pipeline.stream.shard import REMEDY, Film, parts, patiently, read_table, write_table

_BLOCK = 512


def write_shard(folder: Path, name: str, films: Iterator[Film], codec: str) -> ShardFile:
    """Write ``NAME.tar`` and ``NAME.npy`` (the table) atomically; the same films give the same bytes."""
    rows: list[tuple[int, int, int, int, int, int]] = []
    cases: list[str] = []
    tar_path, table_path = folder / f"{name}.tar", folder / f"{name}.npy"
    with atomic_path(tar_path) as partial, partial.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, film in enumerate(films):
                cases.append(film.case_id)
                for k in range(len(film.mask)):
                    for p, part in enumerate(parts(tuple(film.frames))):
                        data = encode(film.mask[k] if part == MASK else film.frames[part][k], codec)
                        info = tarfile.TarInfo(f"{film.case_id}_{k:05d}.{part}.{EXTENSION}")
                        info.size = len(data)
                        rows.append((number, k, p, tar.offset + _BLOCK, len(data), checksum(data)))
                        tar.addfile(info, io.BytesIO(data))
        stream.flush()
    write_table(table_path, rows)
    return ShardFile(
        file=tar_path.name,
        sha256=file_sha256(tar_path),
        bytes=tar_path.stat().st_size,
        table=table_path.name,
        table_sha256=file_sha256(table_path),
        members=len(rows),
        cases=cases,
    )


class TarShard:
    """Random access to one shard: reads clips by offset; the same object serves several threads."""

    def __init__(self, folder: Path, record: ShardFile, slices: dict[str, int], parts: Sequence[str]) -> None:
        """Open a shard and check it against its record.

        Raises:
            ArtifactError: The file or its table is missing, cut, or not the one that the index speaks of.
        """
        self.name = record.file
        self._path = path = folder / record.file
        if not path.is_file():
            raise ArtifactError(f"Shard file '{path.name}' is missing", remedy=REMEDY)
        if path.stat().st_size != record.bytes or not _ends_properly(path):
            raise ArtifactError(
                f"Shard '{path.name}' is truncated or altered: the index says {record.members} members, "
                f"found {_count_members(path)}",
                value=f"{path.stat().st_size} bytes",
                allowed=f"{record.bytes} bytes",
                remedy=REMEDY,
            )
        self._table = read_table(folder, record, slices, parts)
        self._parts = list(parts)
        starts = np.cumsum([0, *(slices[case] * len(parts) for case in record.cases)])
        self._first = dict(zip(record.cases, (int(s) for s in starts[:-1]), strict=True))
        self._slices = {case: slices[case] for case in record.cases}
        self._file = os.open(path, os.O_RDONLY)

    def read_into(self, case_id: str, start: int, count: int, out: dict[str, NDArray]) -> None:
        """Decode ``count`` slices from ``start`` into ``out[part]``, each (count, rows, columns), in one read.

        Raises:
            IndexError: Outside the film.
            ArtifactError: A read failed or came back short, or a member is not the one that the table speaks of.
        """
        members = iter(self._members(case_id, start, count))
        for k in range(count):
            for part, member in zip(self._parts, members, strict=False):
                if part in out:
                    where = f"Slice {start + k} ('{part}') of case '{case_id}' in shard '{self.name}'"
                    decode_into(member, out[part][k], where)

    def _members(self, case_id: str, start: int, count: int) -> list[memoryview]:
        if start < 0 or count < 1 or start + count > self._slices[case_id]:
            raise IndexError(f"slices {start} to {start + count - 1} of a film of {self._slices[case_id]}")
        first = self._first[case_id] + start * len(self._parts)
        rows = self._table[first : first + count * len(self._parts)]
        begin = int(rows["offset"][0])
        length = int(rows["offset"][-1]) + int(rows["size"][-1]) - begin
        view = memoryview(self._pread(length, begin))
        if len(view) != length:
            raise ArtifactError(f"Shard '{self.name}' ended while being read", remedy=REMEDY)
        offsets = (rows["offset"] - begin).tolist()
        members = [view[o : o + s] for o, s in zip(offsets, rows["size"].tolist(), strict=True)]
        # A sound member at the wrong place (another slice, after one was lost) has another checksum.
        if any(checksum(m) != crc for m, crc in zip(members, rows["crc"].tolist(), strict=True)):
            raise ArtifactError(
                f"Shard '{self.name}' does not match its table "
                f"(case '{case_id}', slices {start} to {start + count - 1})",
                remedy=REMEDY,
            )
        return members

    def _pread(self, length: int, begin: int) -> bytes:
        return patiently(lambda: os.pread(self._file, length, begin), self.name, again=self._reopen)

    def _reopen(self) -> None:
        """Open the file anew under its old number, which other threads may be reading from (a stale NFS handle)."""
        fresh = os.open(self._path, os.O_RDONLY)
        try:
            os.dup2(fresh, self._file, inheritable=False)
        finally:
            os.close(fresh)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def _ends_properly(path: Path) -> bool:
    """Whether the tar ends with its two zero blocks (a cut at a member's edge does not)."""
    with path.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) < 2 * _BLOCK:
            return False
        stream.seek(-2 * _BLOCK, os.SEEK_END)
        return not any(stream.read())


def _count_members(path: Path) -> int:
    count = 0
    try:
        with tarfile.open(path) as tar:
            for _ in tar:
                count += 1
    except (tarfile.TarError, OSError):
        pass  # what was found up to here
    return count
