"""Clips out of a stream of shards: webdataset reads each shard in order, a thread per stream ahead of the training.

Webdataset is handed an open file and asked for members: its own opener, which runs shells, and its decoders, which
unpickle, are never called (``WDS_SECURE`` switches them off as well).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ArtifactError
from pipeline.stream.codec import EXTENSION, MASK, decode_into, member_name
from pipeline.stream.loader import ClipLoader
from pipeline.stream.remote import RemoteStore
from pipeline.stream.shard import REMEDY
from pipeline.stream.shard_order import ShardStream, StreamedSequence

Slice = dict[str, NDArray]  # part -> (rows, columns)


def members(stream: BinaryIO, shard: str) -> Iterator[dict[str, Any]]:
    """Yield the samples of an open tar in order, as webdataset groups them: ``__key__`` and bytes by extension.

    Raises:
        ArtifactError: It is no tar, or was cut.
    """
    os.environ["WDS_SECURE"] = "1"
    import webdataset.utils
    from webdataset.tariterators import group_by_keys, tar_file_expander

    webdataset.utils.enforce_security = True  # where it was imported before
    try:
        yield from group_by_keys(tar_file_expander([{"url": shard, "stream": stream}]))
    except ArtifactError:
        raise
    except Exception as error:  # tarfile's and webdataset's own
        raise ArtifactError(f"Shard '{shard}' cannot be read", value=type(error).__name__, remedy=REMEDY) from None


def slices_of(
    stream: BinaryIO, store: RemoteStore, number: int, wanted: Callable[[str, int], bool], names: tuple[str, ...]
) -> Iterator[tuple[str, int, Slice]]:
    """Yield (case, slice index, parts) of a shard in order, for the slices that are wanted.

    Every member is compared with what the index says must come next: a sample that lacks one, has another one (a
    pickle) or is somewhere else is an error, never passed over.
    """
    record, size = store.index.shards[number], store.index.size
    samples = members(stream, record.file)
    for case_id in record.cases:
        expected = {f"{part}.{EXTENSION}" for part in store.parts[case_id]}
        for k in range(store.cases[case_id].slices):
            sample = next(samples, None)
            key = member_name(case_id, k, "").partition(".")[0]
            if sample is None or sample["__key__"] != key or {n for n in sample if n[:2] != "__"} != expected:
                raise ArtifactError(
                    f"Shard '{record.file}' does not hold slice {k} of case '{case_id}' where it belongs", remedy=REMEDY
                )
            if not wanted(case_id, k):
                continue
            decoded: Slice = {}
            for part in names:
                decoded[part] = np.empty(size, np.uint8 if part == MASK else np.int16)
                decode_into(sample[f"{part}.{EXTENSION}"], decoded[part], member_name(case_id, k, part), record.file)
            yield case_id, k, decoded
    if next(samples, None) is not None:
        raise ArtifactError(f"Shard '{record.file}' holds more than its cases", remedy=REMEDY)


class ClipFeed:
    """Reads one stream from ``first_sample`` on in a thread of its own; ``take`` hands out clips by their sample.

    In memory are the clips of the shuffle buffer and ``ahead`` more; clips that overlap share their slices.
    """

    def __init__(
        self,
        store: RemoteStore,
        stream: ShardStream,
        length: int,
        first_sample: int,
        names: tuple[str, ...],
        ahead: int,
    ) -> None:
        self.store, self.stream, self.length, self.names, self.ahead = store, stream, length, names, ahead
        self.samples = np.where(stream.samples >= first_sample, stream.samples, -1)
        self._order = np.sort(self.samples[self.samples >= 0])  # in which they leave
        self._ready: dict[int, list[Slice]] = {}
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self._stopped = self._ended = False
        self._thread = threading.Thread(target=self._run, name="shard-stream", daemon=True)
        self._thread.start()

    def take(self, sample: int) -> list[Slice]:
        """Return the slices of a sample's clip, once; wait for them.

        Raises:
            ArtifactError: What ended the stream.
        """
        with self._change:
            self._change.wait_for(lambda: sample in self._ready or self._ended or self._stopped)
            if sample in self._ready:
                clip = self._ready.pop(sample)
                self._change.notify_all()
                return clip
            raise self._error or RuntimeError("the stream of shards has ended")

    def finish(self) -> None:
        """Wait until the last shard was compared to its end.

        Raises:
            ArtifactError: It holds what it should not.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let the thread end, and whoever waits for a clip."""
        with self._change:
            self._stopped = True
            self._change.notify_all()

    def _run(self) -> None:
        try:
            for sample, clip in self._shuffled():
                with self._change:
                    self._change.wait_for(lambda: len(self._ready) < self.ahead or self._stopped)
                    if self._stopped:
                        return
                    self._ready[sample] = clip
                    self._change.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()

    def _shuffled(self) -> Iterator[tuple[int, list[Slice]]]:
        """Yield (sample, clip) in the order of the samples; what comes out of the shards before its turn is held."""
        held: dict[int, list[Slice]] = {}
        turn = 0
        for sample, clip in self._arriving():
            held[sample] = clip
            while turn < len(self._order) and (next_one := int(self._order[turn])) in held:
                yield next_one, held.pop(next_one)
                turn += 1

    def _arriving(self) -> Iterator[tuple[int, list[Slice]]]:
        """Yield (sample, clip) as they come out of the shards, without those that are left out."""
        by_start: dict[str, dict[int, int]] = {}
        kept = zip(self.stream.case_ids, self.stream.starts.tolist(), self.samples.tolist(), strict=True)
        for case_id, start, sample in kept:
            if sample >= 0:
                by_start.setdefault(case_id, {})[start] = sample
        needed = {case: {s + k for s in starts for k in range(self.length)} for case, starts in by_start.items()}
        numbers = [n for n in self.stream.shards if any(c in by_start for c in self.store.index.shards[n].cases)]
        coming = [_fetched(self.store, n) for n in numbers[:1]]
        try:
            for place, number in enumerate(numbers):
                opened = coming.pop(0).result()
                coming += [_fetched(self.store, n) for n in numbers[place + 1 : place + 2]]  # while this one is read
                with opened:
                    film: dict[int, Slice] = {}  # the last slices of the case
                    for case_id, k, parts in slices_of(
                        opened, self.store, number, lambda c, k: k in needed.get(c, ()), self.names
                    ):
                        film = {i: s for i, s in film.items() if k - self.length < i < k} | {k: parts}
                        start = k - self.length + 1
                        if (sample := by_start[case_id].get(start)) is not None:
                            yield sample, [film[i] for i in range(start, k + 1)]
        finally:
            for future in coming:
                future.add_done_callback(lambda late: late.exception() or late.result().close())


def _fetched(store: RemoteStore, number: int) -> Future[BinaryIO]:
    """Open a shard in a thread that holds up nobody's end, however slow the server is."""
    future: Future[BinaryIO] = Future()

    def fetch() -> None:
        try:
            future.set_result(store.open_shard(number))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=fetch, name="shard-fetch", daemon=True).start()
    return future


class StreamedClipLoader(ClipLoader):
    """The loader over streamed shards: the same batches and augmentation, of samples in the order of the shards."""

    sequence: StreamedSequence
    store: RemoteStore

    def __iter__(self) -> Iterator[dict[str, Any]]:
        share = len(self.sequence.streams) // self.ranks
        own = self.sequence.streams[self.rank * share : (self.rank + 1) * share]
        self._per_stream = self.batch // share
        names = (*dict.fromkeys((self.source, self.target)), MASK)
        ahead = self._per_stream * (self.settings.prefetch + 1)
        self._feeds = [ClipFeed(self.store, s, self.sequence.clip_length, self.first_sample, names, ahead) for s in own]
        batches = super().__iter__()
        try:
            for batch in batches:  # noqa: UP028 - 'yield from' would close the reader before the feeds are stopped
                yield batch
            for feed in self._feeds:
                feed.finish()
        finally:
            for feed in self._feeds:
                feed.stop()  # first: threads that wait for clips hold up the end of the reader
            batches.close()  # type: ignore[attr-defined]

    def _stored(self, case_id: str, start: int, index: int, out: dict[str, NDArray]) -> None:
        place = (index - self.first_sample) % self.samples_per_step - self.rank * self.batch
        clip = self._feeds[place // self._per_stream].take(index)
        for part, frames in out.items():
            for frame, parts in zip(frames, clip, strict=True):
                np.copyto(frame, parts[part])
