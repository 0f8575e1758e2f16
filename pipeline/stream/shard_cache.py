"""Shards of a server on this machine's disk: whole and compared before use, the least recently used make room.

Files are named by their SHA-256, so that runs, ranks and addresses share them. One process fetches a file, the others
wait for it; a killed one's lock is free at once. What is removed while another rank reads it stays readable to it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.artifacts import check_free_space
from pipeline.errors import ArtifactError
from pipeline.stream.remote_files import RemoteFolder

try:
    import fcntl
except ImportError:  # not on Windows: there each process fetches for itself
    fcntl = None  # type: ignore[assignment]

VARIABLE = "CINEVOX_CACHE"
_BUSY = (BlockingIOError, PermissionError)
_GRACE_SECONDS = 30.0
_LOOK_SECONDS = 0.05
_FILE = re.compile(r"(?:\.partial\.(?P<size>\d+)\.\w+\.)?(?P<name>[0-9a-f]{64}\.(?:tar|npy))")


def cache_folder() -> Path:
    """Return where shards are kept: $CINEVOX_CACHE, else below $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get(VARIABLE):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cinevox" / "shards"


class ShardCache:
    """A folder of at most ``limit`` bytes; safe between threads, processes and jobs on one machine."""

    def __init__(self, remote: RemoteFolder, limit: int, folder: Path | None = None) -> None:
        self.remote, self.limit = remote, limit
        self.folder = (folder or cache_folder()).absolute()
        self._compared: set[str] = set()  # by this process

    def path(self, name: str, sha256: str) -> Path:
        """Return where a file is kept."""
        return self.folder / f"{sha256}{Path(name).suffix}"

    def open(self, name: str, sha256: str, size: int | None = None) -> BinaryIO:
        """Return the file ``name`` of the remote folder, open for reading; fetch it if it is not here.

        Raises:
            ArtifactError: It cannot be fetched, or the disk is too full for it.
        """
        path = self.path(name, sha256)
        if (found := self._here(path, sha256)) is not None:
            return found
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(path.name, self.remote.longest(size or 0) + _GRACE_SECONDS):
            # The one that held the lock before may have brought it.
            return self._here(path, sha256) or self._fetch(name, path, sha256, size)

    def _here(self, path: Path, sha256: str) -> BinaryIO | None:
        """Return the file if it is here and sound; one that is not sound is removed."""
        try:
            opened = path.open("rb")
        except FileNotFoundError:
            return None
        if path.name not in self._compared:
            if hashlib.file_digest(opened, "sha256").hexdigest() != sha256:  # of what is open, whatever its name is now
                opened.close()
                path.unlink(missing_ok=True)
                return None
            opened.seek(0)
        self._compared.add(path.name)
        with contextlib.suppress(FileNotFoundError):  # removed since: what is open stays
            os.utime(path)  # used now
        return opened

    def _fetch(self, name: str, path: Path, sha256: str, size: int | None) -> BinaryIO:
        partial = path.with_name(f".partial.{size or 0}.{uuid.uuid4().hex}.{path.name}")
        try:
            self._make_room(partial, size or 0)
            check_free_space(self.folder, size or 0)
            self.remote.fetch(name, partial, size=size, sha256=sha256)
            opened = partial.open("rb")  # before others can remove it
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(path)
        self._compared.add(path.name)
        return opened

    def _make_room(self, partial: Path, size: int) -> None:
        """Remove the least recently used until ``size`` more bytes fit; what is on its way counts as a whole."""
        with self._locked("room", _GRACE_SECONDS):
            kept = []
            for place in self.folder.iterdir():
                if match := _FILE.fullmatch(place.name):
                    with contextlib.suppress(FileNotFoundError):
                        facts = place.stat()
                        on_its_way = match["size"] is not None and self._is_locked(match["name"])
                        whole = int(match["size"]) if on_its_way else facts.st_size
                        kept.append((facts.st_mtime_ns, place, whole, on_its_way))
            excess = sum(whole for _, _, whole, _ in kept) + size - self.limit
            for _, place, whole, on_its_way in sorted(kept):
                of_a_killed_process = place.name.startswith(".") and not on_its_way
                if of_a_killed_process or (excess > 0 and not on_its_way):
                    place.unlink(missing_ok=True)
                    excess -= whole
            partial.touch()  # others count it from now on

    def _is_locked(self, name: str) -> bool:
        try:
            with self._locked(name, 0):
                return False
        except ArtifactError:
            return True

    @contextmanager
    def _locked(self, name: str, seconds: float) -> Iterator[None]:
        """Hold a lock of the cache; each of a process's threads has to wait like a process of its own."""
        descriptor = os.open(self.folder / f".{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + seconds
        try:
            while not _lock(descriptor):
                if time.monotonic() >= deadline:
                    raise ArtifactError(
                        "Another process has been fetching a shard for longer than it may",
                        value=f"{seconds:.0f} s",
                        remedy="Look for a training that hangs, or set another folder in CINEVOX_CACHE",
                    )
                time.sleep(_LOOK_SECONDS)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock an open file; a file system without locks keeps nobody apart: what is written has a name of its own."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except _BUSY:
        return False
    except OSError:
        return True
    return True
