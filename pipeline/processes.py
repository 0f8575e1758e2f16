"""The same work for every case, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from pipeline.errors import DataError
from pipeline.locks import die_with_parent
from pipeline.progress import track

Job = TypeVar("Job")
Result = TypeVar("Result")


def parallel(function: Callable[[Job], Result], jobs: list[Job], workers: int, label: str) -> Iterator[Result]:
    """Yield results in the order of the jobs; one worker means this process."""
    if min(workers, len(jobs)) <= 1:
        yield from track(map(function, jobs), label, total=len(jobs))
        return
    # Forking a process that has threads (OpenCV, ITK) may hang.
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=die_with_parent
    ) as pool:
        try:
            yield from track(pool.map(function, jobs), label, total=len(jobs))
        except BrokenProcessPool:
            raise DataError(
                "A worker process was killed, probably because memory ran out",
                value=f"workers={workers}",
                remedy="Set a smaller number of workers; the same command continues",
            ) from None
