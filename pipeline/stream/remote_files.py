"""Files of a shard folder on a server (HTTP, S3): fetched whole through fsspec, patiently, and in bounded time."""

from __future__ import annotations

import json
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback

from pipeline.artifacts import FULL, file_sha256
from pipeline.errors import ArtifactError, ConfigError
from pipeline.records import ShardIndex
from pipeline.stream_settings import RemoteSettings

PAUSE_SECONDS = 1.0  # after the first failure; then twice as long, and so on
_LONGEST_PAUSE_SECONDS = 30.0
_INDEX_AT_MOST = 1 << 30  # bytes
_TRY_AGAIN = (408, 425, 429)  # of the 4xx: the others stay as they are
_OURS = (TypeError, AttributeError, NameError)  # faults of a program, not of a server
_NOT_THERE = (FileNotFoundError, IsADirectoryError, PermissionError)


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    """What came is not the file; ``args[0]`` says why."""


class _Watch(Callback):
    """Ends a transfer that brings too much or takes too long."""

    def __init__(self, most: int, deadline: float) -> None:
        super().__init__()
        self.most, self.deadline = most, deadline

    def relative_update(self, inc: int = 1) -> None:
        """Count the bytes that came."""
        super().relative_update(inc)
        if self.value > self.most:
            raise _Refused(f"more than {self.most} bytes")
        if time.monotonic() > self.deadline:
            raise _Refused(f"only {self.value} bytes until the time was up")


class RemoteFolder:
    """A shard folder at ``url``: each file is fetched whole and compared before anybody sees it.

    Nothing here goes through a shell: an address has a scheme that fsspec knows, and names come from the index, whose
    schema allows plain ones only. Credentials are what fsspec finds in the environment or ``~/.netrc``.
    """

    def __init__(self, url: str, settings: RemoteSettings) -> None:
        """Make the file system of the address; nothing is fetched yet.

        Raises:
            ConfigError: S3 without its package.
        """
        self.url, self.settings = url, settings
        scheme = url.partition("://")[0]
        options: dict[str, Any] = {}
        if scheme in ("http", "https"):
            import aiohttp  # slow to import

            wait: Any = aiohttp.ClientTimeout(total=None, sock_connect=settings.timeout_s, sock_read=settings.timeout_s)
            options = {"client_kwargs": {"trust_env": True, "timeout": wait}}
        elif scheme == "s3":
            if find_spec("s3fs") is None:
                raise ConfigError("Shards in S3 need s3fs", value="none", remedy="Run: pip install 'cinevox[remote]'")
            wait = {"connect_timeout": settings.timeout_s, "read_timeout": settings.timeout_s}
            options = {"config_kwargs": {**wait, "retries": {"max_attempts": 1}}}
            options |= {"endpoint_url": settings.endpoint_url} if settings.endpoint_url else {}
            options |= {"anon": True} if settings.anonymous else {}
        self._files = fsspec.filesystem(scheme, skip_instance_cache=scheme != "memory", **options)

    def seconds(self, size: int) -> float:
        """Return the longest that one attempt at a file of ``size`` bytes may take."""
        return self.settings.timeout_s + size / (self.settings.slowest_mb_s * 1e6)

    def longest(self, size: int) -> float:
        """Return the longest that ``fetch`` may take, with all attempts and pauses."""
        pauses = sum(_pause(failures) for failures in range(1, self.settings.attempts))
        return self.settings.attempts * self.seconds(size) + pauses

    def fetch(self, name: str, path: Path, *, size: int | None = None, sha256: str | None = None) -> None:
        """Fetch ``name`` into ``path`` and compare it with its size and SHA-256, where they are known.

        Raises:
            ArtifactError: It is not there, or no attempt brought what the index speaks of.
        """
        failures = 0
        while True:
            try:
                self._attempt(name, path, size, sha256)
                return
            except Exception as error:
                path.unlink(missing_ok=True)
                if isinstance(error, _OURS) or (isinstance(error, OSError) and error.errno in FULL):
                    raise
                failures += 1
                reason, for_good = _reason(error)
                if for_good or failures >= self.settings.attempts:
                    attempts = "" if for_good else f", after {failures} attempt(s)"
                    raise ArtifactError(
                        f"'{name}' cannot be fetched from '{self.url}'",
                        value=f"{reason}{attempts}",
                        remedy="Check the address, the server and the credentials; the same command continues",
                    ) from None
            time.sleep(_pause(failures))

    def _attempt(self, name: str, path: Path, size: int | None, sha256: str | None) -> None:
        most = _INDEX_AT_MOST if size is None else size
        seconds = self.seconds(size or 0)
        how = {"timeout": seconds} if self._files.async_impl else {}  # fsspec's own, over all of the transfer
        watch = _Watch(most, time.monotonic() + seconds)
        self._files.get_file(f"{self.url}/{name}", str(path), callback=watch, **how)
        found = path.stat().st_size
        if size is not None and found != size:
            raise _Refused(f"{found} of {size} bytes")
        if sha256 is not None and file_sha256(path) != sha256:
            raise _Refused("another SHA-256 than the index says")

    def index(self) -> ShardIndex:
        """Fetch the index of the folder and compare it with its seal.

        Raises:
            ArtifactError: There is none, or what came is something else (a login page, a listing).
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ShardIndex.FILE
            self.fetch(ShardIndex.FILE, path)
            try:
                data = json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                beginning = path.read_bytes()[:15]
                raise ArtifactError(
                    f"What '{self.url}/{ShardIndex.FILE}' gives is no shard index",
                    value=f"it begins with {beginning!r}",
                    remedy="Give the folder that holds index.json; a server that asks for a login answers with a page",
                ) from None
        return ShardIndex.parse(data, f"{self.url}/{ShardIndex.FILE}")


def _pause(failures: int) -> float:
    return min(PAUSE_SECONDS * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS)


def _reason(error: Exception) -> tuple[str, bool]:
    """Return what a failure is in a few words without an address or a name, and whether trying again is useless."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP {status}", 400 <= status < 500 and status not in _TRY_AGAIN
    if isinstance(error, _Refused):
        return str(error.args[0]), False
    if isinstance(error, _NOT_THERE):
        return "not there" if isinstance(error, FileNotFoundError) else "no permission", True
    if isinstance(error, TimeoutError):
        return "no answer in time", False
    return type(error).__name__, "Credential" in type(error).__name__
