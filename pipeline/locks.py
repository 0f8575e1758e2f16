"""One writer at a time: locks that the system lets go of when their holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import socket
import threading
import weakref
from pathlib import Path

from pipeline.errors import ArtifactError

try:
    import fcntl
except ImportError:  # not on Windows: there nothing is locked
    fcntl = None  # type: ignore[assignment]

# flock, not a file that is created and removed: what a killed job or a rebooted node held is free at once. On NFS
# the client turns it into a lock of the server, which keeps jobs on several nodes apart.
_BUSY = (errno.EAGAIN, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class Lock:
    """A lock that is held until ``release``, until nothing refers to it, or until the process ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._let_go = weakref.finalize(self, _let_go, path, descriptor, os.getpid())

    def release(self) -> None:
        """Remove the lock's file and let go; a second call does nothing."""
        self._let_go()

    @property
    def held(self) -> bool:
        """Whether it has not been released."""
        return self._let_go.alive


_held: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()
_registry = threading.Lock()


def lock(path: Path, what: str, *, wait: bool = False) -> Lock:
    """Lock a file, which is created for it; within one process those who ask for it share it.

    Args:
        path: The lock's file; its folder must exist.
        what: What is locked, for the message.
        wait: Until whoever holds it lets go, however long.

    Raises:
        ArtifactError: Another process holds it.
        OSError: The file cannot be created.
    """
    path = path.resolve()
    with _registry:
        mine = _held.get(path)
        if mine is None or not mine.held:
            mine = _held[path] = Lock(path, _acquire(path, what, wait=wait))
        return mine


def _acquire(path: Path, what: str, *, wait: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _same_file(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return descriptor
            os.close(descriptor)  # its holder removed it between our opening and our locking it
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return descriptor  # a file system without locks: better to work than to refuse
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            if error.errno not in _BUSY:
                raise
            raise ArtifactError(
                f"{what} is being written by another process",
                value=holder or None,
                remedy="Wait until it has ended or stop it, then start again; one that was killed leaves no lock",
            ) from None


def _same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _let_go(path: Path, descriptor: int, holder: int) -> None:
    with contextlib.suppress(OSError):
        if os.getpid() == holder:  # and not a fork of it
            path.unlink()  # while it is still locked: whoever waits for it finds that its file is gone, and opens anew
    os.close(descriptor)


def die_with_parent() -> None:
    """Make a worker process end when the process that started it is gone.

    A pool's workers survive a killed parent; its locks are free by then, and a rerun would write beside them.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
