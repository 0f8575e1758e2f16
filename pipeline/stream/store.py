"""The one interface to a shard folder: which cases, and slices of a case into the caller's buffers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import file_sha256
from pipeline.errors import ArtifactError
from pipeline.locks import lock
from pipeline.records import ShardCase, ShardFile, ShardIndex
from pipeline.stream import tar, zarr
from pipeline.stream.codec import MASK
from pipeline.stream.pool import pooled
from pipeline.stream.shard import Film, parts

_SLICES_AT_ONCE = 64  # a whole film in one read would be in memory twice


class Shard(Protocol):
    """One shard, open for reading from several threads."""

    def read_into(self, case_id: str, start: int, count: int, out: dict[str, NDArray]) -> None:
        """Decode slices into ``out[part]``, each (count, rows, columns)."""

    def close(self) -> None:
        """Let go of what is open."""


def write_shard(folder: Path, name: str, films: Iterator[Film], codec: str, store: str = "tar") -> ShardFile:
    """Write one shard atomically, as the only process that does; the same films give the same bytes.

    Raises:
        ArtifactError: Another process writes this shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = lock(folder / f".{name}.lock", f"Shard '{name}'")
    try:
        return {"tar": tar.write_shard, "zarr": zarr.write_shard}[store](folder, name, films, codec)
    finally:
        held.release()


def is_whole(folder: Path, record: ShardFile, *, quick: bool = False) -> bool:
    """Whether a shard's files are those that its record speaks of; ``quick`` compares nothing but their sizes."""
    try:
        if not (folder / record.table).is_file() or any(
            (folder / path).stat().st_size != size for path, (size, _) in record.contents().items()
        ):
            return False
        return quick or not _altered(folder, record)
    except OSError:
        return False


def _altered(folder: Path, record: ShardFile) -> list[str]:
    """Return the files of a shard that differ from their SHA-256 (reads everything)."""
    expected = {record.table: record.table_sha256, **{path: sha for path, (_, sha) in record.contents().items()}}
    return [path for path, sha256 in expected.items() if file_sha256(folder / path) != sha256]


def _allow_open_files(count: int) -> None:
    """Raise this process's limit on open files (often 1024) where a cohort has more shards."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + 512
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class SliceStore:
    """Random access to the films in shard folders; safe to use from several threads."""

    def __init__(self, *folders: Path) -> None:
        """Open every shard of one folder, or of several as one, and check it against its index.

        Raises:
            ArtifactError: No index, a shard that does not match it, or folders that do not go together.
        """
        for folder in folders:
            if not (folder / ShardIndex.FILE).is_file():
                raise ArtifactError(
                    f"No finished shards at '{folder}' (no {ShardIndex.FILE})", remedy="Run 'cinevox preprocess' first"
                )
        self.folders = [folder.absolute() for folder in folders]  # found also after a change of the working directory
        self._take([ShardIndex.load(folder) for folder in folders])
        slices = {case.case_id: case.slices for case in self.index.cases}
        _allow_open_files(len(self.index.shards))
        self._shards: list[Shard] = []
        try:
            for folder, index in zip(self.folders, self.indices, strict=True):
                for record in index.shards:
                    self._shards.append(self._open(folder, index, record, slices))
        except ArtifactError:
            self.close()  # those before the one that is not sound
            raise

    def _take(self, indices: list[ShardIndex]) -> None:
        """Note what the indices say.

        Raises:
            ArtifactError: Its cases and its shards contradict one another.
        """
        self.indices, self.index = indices, pooled(indices)
        index = self.index
        self.cases: dict[str, ShardCase] = {case.case_id: case for case in index.cases}
        shared = {names: parts(names) for names in {case.modalities for case in index.cases}}
        self.parts = {case.case_id: shared[case.modalities] for case in index.cases}
        listed = [case for shard in index.shards for case in shard.cases]
        misplaced = any(
            not 0 <= case.shard < len(index.shards) or case.case_id not in index.shards[case.shard].cases
            for case in index.cases
        )
        if misplaced or sorted(listed) != sorted(case.case_id for case in index.cases):
            raise ArtifactError("The index lists cases that its shards do not hold", remedy="Copy it again")

    def _open(self, folder: Path, index: ShardIndex, record: ShardFile, slices: dict[str, int]) -> Shard:
        if record.file.endswith(".tar"):
            return tar.TarShard(folder, record, slices, self.parts)
        how: dict[str, Any] = {"codec": index.codec, "size": index.size}
        return zarr.ZarrShard(folder, record, slices, self.parts, **how)

    def spacing_mm(self, modality: str) -> tuple[float, float, float]:
        """Return the spacing (slice, row, column) of a modality's films: one in each folder."""
        return next(index.spacing_mm for index in self.indices if modality in index.modalities)

    @property
    def slice_folders(self) -> list[Path]:
        """Return the folders of slices: these, or those that latents were made from."""
        return [
            Path(index.latents.folder) if index.latents else folder
            for folder, index in zip(self.folders, self.indices, strict=True)
        ]

    def read(self, case_id: str, start: int, count: int, out: dict[str, NDArray]) -> None:
        """Read slices into ``out[modality]`` (int16) and ``out['mask']`` (uint8), each (count, rows, columns).

        Raises:
            ArtifactError: The shards hold no such modality of the case, or what they hold is damaged.
            IndexError: Outside the film.
        """
        if unknown := set(out).difference(self.parts[case_id]):
            raise ArtifactError(
                f"The shards hold no '{sorted(unknown)[0]}' of case '{case_id}'",
                allowed=", ".join(self.parts[case_id]),
                remedy="Choose one of these",
            )
        self._read_shard(self.cases[case_id].shard, case_id, start, count, out)

    def _read_shard(self, number: int, case_id: str, start: int, count: int, out: dict[str, NDArray]) -> None:
        self._shards[number].read_into(case_id, start, count, out)

    def film(self, case_id: str, *names: str) -> dict[str, NDArray]:
        """Read a whole film: ``names`` are modalities or 'mask'; stored values, (slices, rows, columns)."""
        shape = (self.cases[case_id].slices, *self.index.size)
        out: dict[str, NDArray] = {name: np.empty(shape, np.uint8 if name == MASK else np.int16) for name in names}
        for start in range(0, shape[0], _SLICES_AT_ONCE):
            stop = min(start + _SLICES_AT_ONCE, shape[0])
            self.read(case_id, start, stop - start, {name: array[start:stop] for name, array in out.items()})
        return out

    def verify(self) -> None:
        """Compare every shard's SHA-256 with the index (reads everything).

        Raises:
            ArtifactError: Naming the first shard that differs.
        """
        for folder, index in zip(self.folders, self.indices, strict=True):
            for record in index.shards:
                for path in _altered(folder, record):
                    raise ArtifactError(f"Shard file '{path}' does not match its SHA-256", remedy="Copy it again")

    def close(self) -> None:
        """Close all shards."""
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> SliceStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
