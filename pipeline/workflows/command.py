"""One command of a workflow: a process of its own, its log, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

TO_BE_CONTINUED = os.EX_TEMPFAIL  # 75, as of pipeline/training/ranks.py, which would load torch
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
_SHOWN = 300  # characters of a reason


def start(words: Sequence[str], log: Path) -> int:
    """Run a command in a process of its own, whose end is not ours; return its exit code, negative for a signal.

    What it says goes to the end of ``log``. A signal that asks us to stop is passed on to it; a command that does not
    turn it into code 75 by itself is to be continued all the same.
    """
    with log.open("ab") as stream, _passed_on() as (received, running):
        process = subprocess.Popen(  # noqa: S603 - a list, no shell
            [sys.executable, "-m", "pipeline", *words], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
        )
        running(process)
        code = _wait(process)
    return TO_BE_CONTINUED if received and code else code


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:  # which the process has got too
        process.wait()
        raise


@contextmanager
def _passed_on() -> Iterator[tuple[list[int], Callable[[subprocess.Popen[bytes]], None]]]:
    """Yield the signals received, and what to call with the process that they are for, as soon as it is there.

    One that comes while it is being started would else end us, and leave it alone.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process is not None:
            process.send_signal(number)

    def running(started: subprocess.Popen[bytes]) -> None:
        nonlocal process
        process = started
        for number in received.copy():
            process.send_signal(number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # held until here: it holds them too, until it listens

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    held = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        yield received, running
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for number, handler in before.items():
            signal.signal(number, handler)


def ended(code: int, log: Path, before: int) -> str:
    """Return how a command failed: its own words, if it had any."""
    with log.open("rb") as stream:
        stream.seek(before)
        lines = stream.read().decode("utf-8", "replace").splitlines()
    said = [line for line in lines if line.startswith(("Error: ", "Internal error"))]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"{how}: {said[-1][:_SHOWN]}" if said else f"{how}; see {log.parent.name}/{log.name}"
