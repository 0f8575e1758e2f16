"""The interface of a shard folder over one on a server: whole shards come through the cache when they are asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from numpy.typing import NDArray

from pipeline.errors import ArtifactError, ConfigError
from pipeline.records import ShardFile
from pipeline.settings import Config
from pipeline.stream import tar
from pipeline.stream.remote_files import RemoteFolder
from pipeline.stream.shard import REMEDY
from pipeline.stream.shard_cache import ShardCache
from pipeline.stream.store import SliceStore
from pipeline.stream_settings import RemoteSettings

_OPEN_AT_ONCE = 4  # shards of the latest cases: what is read case by case needs one
_TRIES = 3  # another rank may make room between the fetching and the opening of a shard


def open_shards(config: Config) -> SliceStore:
    """Open the shards that a command reads: a folder's, or those at an address."""
    if config.shards_url:
        return RemoteStore(config.shards_url, config.stream.remote)
    return SliceStore(*config.input)


class RemoteStore(SliceStore):
    """Shards at an address. Reading by case fetches a whole shard; training streams them (``streaming.py``)."""

    def __init__(self, url: str, settings: RemoteSettings, *, cache: Path | None = None) -> None:
        """Fetch the index, once, and check that what it speaks of can be served.

        Raises:
            ArtifactError: No index at the address, or one that contradicts itself.
            ConfigError: Shards that are no tar files, or larger than the cache.
        """
        self.folders = []
        self.settings, self._remote = settings, RemoteFolder(url, settings)
        self._take([self._remote.index()])
        other = next((shard.file for shard in self.index.shards if not shard.file.endswith(".tar")), None)
        if other is not None:
            raise ConfigError(
                "Only tar shards are read from a server", value=other, remedy="Run 'cinevox convert convert.store=tar'"
            )
        for shard in self.index.shards:
            members = sum(self.cases[case].slices * len(self.parts[case]) for case in shard.cases)
            if members != shard.members:
                raise ArtifactError(
                    f"Shard '{shard.file}' lacks members: its cases need {members}", value=shard.members, remedy=REMEDY
                )
        limit, largest = int(settings.cache_gib * 2**30), max((shard.bytes for shard in self.index.shards), default=0)
        if largest > limit:
            raise ConfigError(
                "stream.remote.cache_gib is smaller than the largest shard",
                value=settings.cache_gib,
                allowed=f"at least {largest / 2**30:.3g}, better twice that for each rank of a machine",
            )
        self.cache = ShardCache(self._remote, limit, cache)
        self._slices = {case.case_id: case.slices for case in self.index.cases}
        self._opened: OrderedDict[int, tar.TarShard] = OrderedDict()
        self._lock = threading.Lock()

    def open_shard(self, number: int) -> BinaryIO:
        """Return a whole, compared shard, open for reading in order."""
        record = self.index.shards[number]
        return self.cache.open(record.file, record.sha256, record.bytes)

    def _read_shard(self, number: int, case_id: str, start: int, count: int, out: dict[str, NDArray]) -> None:
        with self._lock:
            if number not in self._opened:
                self._opened[number] = self._random_access(self.index.shards[number])
                if len(self._opened) > _OPEN_AT_ONCE:
                    self._opened.popitem(last=False)[1].close()
            self._opened.move_to_end(number)
            self._opened[number].read_into(case_id, start, count, out)

    def _random_access(self, record: ShardFile) -> tar.TarShard:
        kept = record.model_copy(
            update={
                "file": self.cache.path(record.file, record.sha256).name,
                "table": self.cache.path(record.table, record.table_sha256).name,
            }
        )
        for attempt in range(_TRIES):
            with self.cache.open(record.file, record.sha256, record.bytes):
                pass
            with self.cache.open(record.table, record.table_sha256):
                pass
            try:
                shard = tar.TarShard(self.cache.folder, kept, self._slices, self.parts)
            except ArtifactError:
                if attempt == _TRIES - 1:
                    raise
            else:
                shard.name = record.file
                return shard
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close what is open; the cache stays."""
        with self._lock:
            while self._opened:
                self._opened.popitem()[1].close()
