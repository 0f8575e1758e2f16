"""The one interface to a shard folder: which cases, and slices of a case into the caller's buffers."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import file_sha256
from pipeline.errors import ArtifactError
from pipeline.records import ShardCase, ShardIndex
from pipeline.stream.codec import MASK
from pipeline.stream.tar import TarShard, parts

_SLICES_AT_ONCE = 64  # a whole film in one read would be in memory twice


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
    """Random access to the films in a shard folder; safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Open every shard and check it against the index.

        Raises:
            ArtifactError: No index, or a shard that does not match it.
        """
        if not (folder / ShardIndex.FILE).is_file():
            raise ArtifactError(
                f"No finished shards at '{folder}' (no {ShardIndex.FILE})", remedy="Run 'cinevox preprocess' first"
            )
        self.folder = folder
        self.index = ShardIndex.load(folder)
        self.cases: dict[str, ShardCase] = {case.case_id: case for case in self.index.cases}
        self.parts = parts(tuple(self.index.modalities))
        slices = {case.case_id: case.slices for case in self.index.cases}
        listed = [case for shard in self.index.shards for case in shard.cases]
        misplaced = any(
            not 0 <= case.shard < len(self.index.shards) or case.case_id not in self.index.shards[case.shard].cases
            for case in self.index.cases
        )
        if misplaced or sorted(listed) != sorted(case.case_id for case in self.index.cases):
            raise ArtifactError("The index lists cases that its shards do not hold", value=folder)
        _allow_open_files(len(self.index.shards))
        self._shards = [TarShard(folder, record, slices, self.parts) for record in self.index.shards]

    def read(self, case_id: str, start: int, count: int, out: dict[str, NDArray]) -> None:
        """Read slices into ``out[modality]`` (int16) and ``out['mask']`` (uint8), each (count, rows, columns).

        Raises:
            ArtifactError: The shards hold no such modality, or what they hold is damaged.
            IndexError: Outside the film.
        """
        if unknown := set(out).difference(self.parts):
            raise ArtifactError(
                f"The shards hold no '{sorted(unknown)[0]}'",
                allowed=", ".join(self.parts),
                remedy="Choose one of these",
            )
        self._shards[self.cases[case_id].shard].read_into(case_id, start, count, out)

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
        for record in self.index.shards:
            if file_sha256(self.folder / record.file) != record.sha256:
                raise ArtifactError(f"Shard '{record.file}' does not match its SHA-256", remedy="Copy it again")

    def close(self) -> None:
        """Close all shards."""
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> SliceStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
