"""SIGUSR1 warns of a time limit, and kills whoever does not listen yet: it is held back until somebody does."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warnings_held() -> Iterator[None]:
    """Hold SIGUSR1 back in this process, and in those that it starts, until ``release_warnings`` or the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        if signal.SIGUSR1 in signal.sigpending():
            signal.sigwait({signal.SIGUSR1})  # it came to nothing: there is nothing left to save
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_warnings() -> None:
    """Let SIGUSR1 come, also one that was held back."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
