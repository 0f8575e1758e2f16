"""Shards to another kind of shards: tar to zarr, zarr to tar, without loss.

Reads   input=SHARDS      a folder of 'cinevox preprocess' or 'cinevox convert'
Writes  output=SHARDS     the same index over shard-NNNNN.zarr (zarr v3) or shard-NNNNN.tar (a plain WebDataset)

Main options
  convert.store=zarr|tar  the kind to write
  workers=N               shards at a time

Voxels, order and index stay as they are: a training goes on with the other kind, and tar to zarr to tar gives the
same bytes. Killed and started again it redoes only unfinished shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from pipeline.artifacts import check_free_space, claim_output, read_json, write_json
from pipeline.errors import ArtifactError
from pipeline.progress import say, track
from pipeline.records import ShardFile, ShardIndex
from pipeline.settings import Config
from pipeline.stream.codec import MASK
from pipeline.stream.shard import Film
from pipeline.stream.store import SliceStore, is_whole, write_shard

_GROWTH = 1.2  # tar pads small members to whole blocks, zarr has a few small files per case


def run(config: Config) -> None:
    """Convert a folder of shards."""
    folder, output, kind = config.input[0], config.output, config.convert.store
    assert output is not None
    with SliceStore(folder) as store:
        index = store.index
        size = _estimate(index.shards)
        say(f"{len(index.cases)} cases in {len(index.shards)} shards to {kind}, at most {size / 1e6:.0f} MB")
        if config.dry_run:
            return
        claim = claim_output(output, "convert", {"store": kind, "shards": index.sealed().seal})
        whole = (output / ShardIndex.FILE).is_file() and all(_done(output, s, quick=True) for s in index.shards)
        if claim.finished and whole:
            say(f"'{output}' is finished already; nothing to do")
            return
        with ThreadPoolExecutor(config.workers, thread_name_prefix="convert") as pool:
            shards = list(pool.map(lambda shard: _done(output, shard), index.shards))
            todo = [number for number, shard in enumerate(shards) if shard is None]
            check_free_space(output, _estimate([index.shards[number] for number in todo]))
            jobs = pool.map(lambda number: _convert(store, index.shards[number], output, kind), todo)
            for number, shard in zip(todo, track(jobs, "convert", total=len(todo)), strict=True):
                shards[number] = shard
        index.model_copy(update={"shards": shards}).save(output)
        claim.finish(shards=len(shards))
    say(f"Shards of {len(index.cases)} cases in '{output}'")


def _convert(store: SliceStore, source: ShardFile, output: Path, kind: str) -> ShardFile:
    """Write one shard and, last, the note that it is complete."""
    name = Path(source.file).stem

    def films() -> Iterator[Film]:
        for case_id in source.cases:
            frames = store.film(case_id, *store.parts[case_id])
            yield Film(case_id, {n: a for n, a in frames.items() if n != MASK}, frames[MASK])

    shard = write_shard(output, name, films(), store.index.codec, kind)
    write_json(output / f"{name}.json", {"shard": shard.model_dump()})
    return shard


def _estimate(shards: list[ShardFile]) -> int:
    return int(_GROWTH * sum(shard.bytes for shard in shards)) + 10_000_000


def _done(output: Path, source: ShardFile, *, quick: bool = False) -> ShardFile | None:
    """Return what a shard became, where that is whole; ``quick`` compares sizes only."""
    try:
        note = read_json(output / f"{Path(source.file).stem}.json", what="shard note")
        shard = ShardFile.model_validate(note["shard"])
    except (ArtifactError, ValidationError, LookupError, TypeError):
        return None
    return shard if is_whole(output, shard, quick=quick) else None
