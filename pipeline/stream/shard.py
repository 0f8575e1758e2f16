"""What tar and zarr shards share: films, the order of their parts, the table beside a shard, patient reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import atomic_path, file_sha256
from pipeline.errors import ArtifactError
from pipeline.records import ShardFile
from pipeline.stream.codec import MASK

REMEDY = "Copy the shard folder again, or delete this shard and run 'cinevox preprocess' again"
RETRY_SECONDS = (0.1, 1.0)


@dataclass(frozen=True)
class Film:
    """What is stored of one case: ``frames[modality]`` int16 (slices, rows, columns) and ``mask`` uint8."""

    case_id: str
    frames: dict[str, NDArray[np.int16]]
    mask: NDArray[np.uint8]


def parts(modalities: Sequence[str]) -> list[str]:
    """Return the parts of one slice, in their order in the shard."""
    return [*sorted(modalities), MASK]


def write_table(path: Path, rows: list[Any], dtype: np.dtype) -> None:
    """Write the table that stands beside a shard: where its slices lie."""
    with atomic_path(path) as partial, partial.open("wb") as stream:
        np.save(stream, np.array(rows, dtype), allow_pickle=False)


def read_table(folder: Path, record: ShardFile, *, members: int, rows: int, dtype: np.dtype) -> NDArray:
    """Read a shard's table of ``rows``; ``members`` is how many the shard's cases need.

    Raises:
        ArtifactError: It is missing, not the one that the index speaks of, or too short.
    """
    path = folder / record.table
    if not path.is_file():
        raise ArtifactError(f"Shard file '{record.table}' is missing", remedy=REMEDY)
    if file_sha256(path) != record.table_sha256:
        raise ArtifactError(f"The table of shard '{record.file}' does not match the index", remedy=REMEDY)
    try:
        table = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ArtifactError(f"The table of shard '{record.file}' is none", value=type(error).__name__) from None
    if table.dtype != dtype or table.shape != (rows,) or record.members != members:
        raise ArtifactError(
            f"Shard '{record.file}' lacks members: its cases need {members}",
            value=f"{record.members} members, {len(table)} rows in its table",
            remedy=REMEDY,
        )
    return table


def patiently(read: Callable[[], bytes], name: str, *, again: Callable[[], object] = lambda: None) -> bytes:
    """Read; after a network file system's hiccup wait, call ``again`` and read once more, a few times.

    Raises:
        ArtifactError: It did not get better.
    """
    failures = 0
    while True:
        try:
            if failures:
                again()
            return read()
        except OSError as error:
            if failures == len(RETRY_SECONDS):
                raise ArtifactError(f"Shard '{name}' cannot be read", value=error.strerror, remedy=REMEDY) from None
            time.sleep(RETRY_SECONDS[failures])
            failures += 1
