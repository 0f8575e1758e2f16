"""Compare every byte of shards with the checksums in their index, after a copy or a long rest.

Reads   input=SHARDS      a folder of 'cinevox preprocess' or 'cinevox convert'
Writes  nothing

A training checks sizes when it opens shards and a checksum of every slice that it reads; this reads all there is.
"""

from __future__ import annotations

from pipeline.progress import say
from pipeline.settings import Config
from pipeline.stream.store import SliceStore


def run(config: Config) -> None:
    """Verify a folder of shards.

    Raises:
        ArtifactError: Naming the first file that is not as it was written.
    """
    with SliceStore(config.input[0]) as store:
        size = sum(shard.bytes for shard in store.index.shards)
        if config.dry_run:
            say(f"Would read {size / 1e6:.0f} MB in {len(store.index.shards)} shards")
            return
        store.verify()
        say(f"{len(store.index.shards)} shards of {len(store.cases)} cases are as they were written")
