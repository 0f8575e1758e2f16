"""Progress that fits its reader: a bar on a terminal, plain lines with the time left in a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

T = TypeVar("T")
_LINE_EVERY_S = 15.0


def say(message: str) -> None:
    """Print one line for the user, to stderr (stdout is for results)."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield items while showing progress: a bar on a terminal, else a line every 15 s and one at the end."""
    if total is None:
        items = list(items)
        total = len(items)
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True), transient=False) as bar:
            task = bar.add_task(label, total=total)
            for item in items:
                yield item
                bar.advance(task)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last > _LINE_EVERY_S or done == total:
            left = (now - start) / done * (total - done)
            say(f"{label}: {done}/{total}, {duration(now - start)} used, {duration(left)} left")
            last = now


def duration(seconds: float) -> str:
    """Format seconds as ``42 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
