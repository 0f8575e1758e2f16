"""Progress that fits its reader: a bar on a terminal, plain lines with the time left in a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

T = TypeVar("T")
_LINE_EVERY_S = 15.0
_shown: list[Bar] = []  # the bar on the terminal, if there is one: lines must be printed above it
_silent = False


def silence() -> None:
    """Say nothing from now on: of several ranks one speaks."""
    global _silent
    _silent = True


def say(message: str) -> None:
    """Print one line for the user, to stderr (stdout is for results)."""
    if _silent:
        return
    if _shown:
        _shown[-1].console.print(message, markup=False, highlight=False, soft_wrap=True)
        return
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


@contextmanager
def _bar(*columns: ProgressColumn) -> Iterator[Bar]:
    with Bar(TextColumn("{task.description}"), BarColumn(), *columns, console=Console(stderr=True)) as bar:
        _shown.append(bar)
        try:
            yield bar
        finally:
            _shown.remove(bar)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield items while showing progress: a bar on a terminal, else a line every 15 s and one at the end."""
    if total is None:
        items = list(items)
        total = len(items)
    if sys.stderr.isatty():
        with _bar(MofNCompleteColumn(), TimeRemainingColumn()) as bar:
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


@contextmanager
def share_bar(label: str) -> Iterator[Callable[[float], None]]:
    """Yield a function that takes the share done, 0 to 1: it moves a bar on a terminal, and is silent in a log."""
    if _silent or not sys.stderr.isatty():
        yield lambda share: None
        return
    with _bar(TaskProgressColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def duration(seconds: float) -> str:
    """Format seconds as ``42 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
