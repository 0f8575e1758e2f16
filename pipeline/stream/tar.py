"""Tar shards: a plain WebDataset, and beside it a table of where each slice begins, for random access.

Members lie slice by slice, all modalities and the mask of a slice together, so that one read serves a clip.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import atomic_path, file_sha256
from pipeline.errors import ArtifactError
from pipeline.records import ShardFile
from pipeline.stream.codec import MASK, decode_into, encode, member_name, stated
from pipeline.stream.shard import REMEDY, Film, parts, patiently, read_table, write_table

# Where each slice begins, in blocks of the tar (a last row: where all end), and the sum of its members' checksums:
# the sound slice of another volume at the same place, from a folder copied by half, has another sum.
TABLE = np.dtype([("block", "<u4"), ("sum", "<u4")])
_BLOCK = 512
_SUM_BITS = 0xFFFFFFFF


def write_shard(folder: Path, name: str, films: Iterator[Film], codec: str) -> ShardFile:
    """Write ``NAME.tar`` and ``NAME.npy`` (the table) atomically; the same films give the same bytes."""
    rows: list[tuple[int, int]] = []
    cases: list[str] = []
    members = 0
    tar_path, table_path = folder / f"{name}.tar", folder / f"{name}.npy"
    with atomic_path(tar_path) as partial, partial.open("wb") as stream:
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for film in films:
                cases.append(film.case_id)
                for k in range(len(film.mask)):
                    begin, total = tar.offset // _BLOCK, 0
                    for part in parts(tuple(film.frames)):
                        info = tarfile.TarInfo(member_name(film.case_id, k, part))
                        data = encode(film.mask[k] if part == MASK else film.frames[part][k], info.name, codec)
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                        total += stated(data, 0, info.name)[1]
                        members += 1
                    rows.append((begin, total & _SUM_BITS))
            rows.append((tar.offset // _BLOCK, 0))
        stream.flush()
    write_table(table_path, rows, TABLE)
    return ShardFile(
        file=tar_path.name,
        sha256=file_sha256(tar_path),
        bytes=tar_path.stat().st_size,
        table=table_path.name,
        table_sha256=file_sha256(table_path),
        members=members,
        cases=cases,
    )


class TarShard:
    """Random access to one shard: reads clips by offset; the same object serves several threads."""

    def __init__(
        self, folder: Path, record: ShardFile, slices: dict[str, int], parts: Mapping[str, Sequence[str]]
    ) -> None:
        """Open a shard and check it against its record; ``slices`` and ``parts`` are per case.

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
        count = sum(slices[case] for case in record.cases)
        members = sum(slices[case] * len(parts[case]) for case in record.cases)
        table = read_table(folder, record, members=members, rows=count + 1, dtype=TABLE)
        blocks = table["block"]
        if np.any(blocks[1:] <= blocks[:-1]) or (int(blocks[-1]) + 2) * _BLOCK > record.bytes:
            raise ArtifactError(f"The table of shard '{path.name}' leads out of it", remedy=REMEDY)
        self._table = table  # eight bytes a slice: all that an open shard keeps of its members
        self._parts = parts
        first = np.cumsum([0, *(slices[case] for case in record.cases)]).tolist()
        self._films = {case: (at, slices[case]) for case, at in zip(record.cases, first, strict=False)}
        self._file = os.open(path, os.O_RDONLY)

    def read_into(self, case_id: str, start: int, count: int, out: dict[str, NDArray]) -> None:
        """Decode ``count`` slices from ``start`` into ``out[part]``, each (count, rows, columns), in one read.

        Raises:
            IndexError: Outside the film.
            ArtifactError: A read failed or came back short, or a member is not the one that belongs there.
        """
        first, slices = self._films[case_id]
        if start < 0 or count < 1 or start + count > slices:
            raise IndexError(f"slices {start} to {start + count - 1} of a film of {slices}")
        rows = self._table[first + start : first + start + count + 1]
        blocks: list[int] = rows["block"].tolist()
        sums: list[int] = rows["sum"].tolist()
        begin = blocks[0] * _BLOCK
        length = blocks[-1] * _BLOCK - begin
        view = memoryview(self._pread(length, begin))
        if len(view) != length:
            raise ArtifactError(f"Shard '{self.name}' ended while being read", remedy=REMEDY)
        for k in range(count):
            at, total = blocks[k] * _BLOCK - begin, 0
            for part in self._parts[case_id]:
                name = member_name(case_id, start + k, part)
                at += _BLOCK  # the tar's own header
                size, checksum = stated(view, at, name, self.name)
                total += checksum
                if part in out:
                    decode_into(view[at : at + size], out[part][k], name, self.name)
                at += -(-size // _BLOCK) * _BLOCK
            if total & _SUM_BITS != sums[k]:
                raise ArtifactError(
                    f"Slice {start + k} of case '{case_id}' in shard '{self.name}' is not the one of the table",
                    remedy=REMEDY,
                )

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
