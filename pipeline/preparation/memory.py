"""The memory at hand: of the GPU for training where there is one, and of this job."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.preparation.plan import Memory
from pipeline.records import Case

_CGROUPS, _MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Per voxel of a case's largest grid, estimated: a volume as stored, its body and labels while
# they are made; then, for each modality, what becomes of it.
_FIXED_BYTES, _MODALITY_BYTES = 5, 2
_PROCESS_BYTES = 200 * 2**20


def training_memory(gib: float | None) -> Memory:
    """Return what is set, else the first GPU's memory, else this job's RAM; whole tenths of a GiB."""
    if gib is not None:
        return Memory(gib, "set")
    import torch

    if torch.cuda.is_available():
        return Memory(_tenths(torch.cuda.get_device_properties(0).total_memory), "GPU")
    return Memory(_tenths(job_bytes()), "RAM")


def job_bytes() -> int:
    """Return the RAM that this job may use: the machine's, or what its control group (SLURM, a container) allows."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits()])


def _limits() -> Iterator[int]:
    """Yield the limits of this process's control group and of those around it, of either version."""
    lines = _MINE.read_text().splitlines() if _MINE.is_file() else []  # not on macOS
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            root, name = (_CGROUPS, "memory.max") if not controllers else (_CGROUPS / "memory", "memory.limit_in_bytes")
            group = root / path.lstrip("/")
            for folder in (group, *group.parents[: len(group.relative_to(root).parts)]):
                # Not there in a container, which sees its own group as the root; 'max' where there is no limit.
                with contextlib.suppress(OSError, ValueError):
                    yield int((folder / name).read_text())


def worker_bytes(voxels: int, modalities: int) -> int:
    """Return how much memory a worker needs for a case of so many voxels (of its largest grid, stored or native)."""
    return _PROCESS_BYTES + voxels * (_FIXED_BYTES + _MODALITY_BYTES * modalities)


def case_voxels(case: Case, film_voxels: int) -> int:
    """Return the voxels of a case's largest grid."""
    grids = [file.grid.shape for file in case.volumes.values()]
    return max(film_voxels, *(a * b * c for a, b, c in grids))


def _tenths(count: int) -> float:
    return int(count / 2**30 * 10) / 10
