"""The one interface to a shard folder: which cases, and slices of a case into the caller's buffers."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import file_sha256
from pipeline.errors import ArtifactError
from pipeline.records import ShardCase, ShardIndex
from pipeline.stream.codec import MASK, decode_into
from pipeline.stream.tar import TarShard, parts


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
        if sorted(listed) != sorted(slices):
            raise ArtifactError("The index lists cases that its shards do not hold", value=folder)
        self._shards = [TarShard(folder, record, slices, len(self.parts)) for record in self.index.shards]

    def read(self, case_id: str, start: int, count: int, out: dict[str, NDArray]) -> None:
        """Read slices into ``out[modality]`` (int16) and ``out['mask']`` (uint8), each (count, rows, columns)."""
        case = self.cases[case_id]
        shard = self._shards[case.shard]
        members = shard.read(case_id, start, count)
        for k in range(count):
            for p, part in enumerate(self.parts):
                if part in out:
                    where = f"Slice {start + k} ('{part}') of case '{case_id}' in shard '{shard.name}'"
                    decode_into(members[k * len(self.parts) + p], out[part][k], where)

    def film(self, case_id: str, *names: str) -> dict[str, NDArray]:
        """Read a whole film: ``names`` are modalities or 'mask'; stored values, (slices, rows, columns)."""
        shape = (self.cases[case_id].slices, *self.index.size)
        out: dict[str, NDArray] = {name: np.empty(shape, np.uint8 if name == MASK else np.int16) for name in names}
        self.read(case_id, 0, shape[0], out)
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
