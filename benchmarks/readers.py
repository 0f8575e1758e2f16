"""One reader in a process of its own: 'readers.py KIND ROOT THREADS' reads random clips whenever it is told to.

A line 'SEED SECONDS' on standard input starts a round. A line of JSON answers with clips per second, processor time per
clip in microseconds, and the memory that the reader has taken for itself since it began (file pages, which the system
can take back, are not counted). All readers copy into a ring of clips, as a loader's slots would be.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

CLIP, RING = 5, 3
PAIR = ("cbct", "ct")


class Memmap:
    """Raw int16 arrays in .npy files, mapped into memory."""

    def __init__(self, root, meta):
        paths = [[root / "raw" / f"{p}_{name}.npy" for name in PAIR] for p in range(meta["patients"])]
        self.films = [[np.load(path, mmap_mode="r") for path in pair] for pair in paths]

    def read(self, patient, start, out):
        """Copy one clip."""
        for film, frames in zip(self.films[patient], out, strict=True):
            frames[...] = film[start : start + CLIP]


class Cinevox:
    """Shards of this package, from the folder of this kind's name."""

    folder = "tar_lz4"

    def __init__(self, root, meta):
        sys.path.insert(0, str(Path(__file__).parent.parent))
        from pipeline.stream.store import SliceStore

        self.store = SliceStore(root / self.folder)

    def read(self, patient, start, out):
        """Decode one clip."""
        self.store.read(f"p{patient}", start, CLIP, dict(zip(PAIR, out, strict=True)))


class CinevoxNone(Cinevox):
    """Tar shards without compression."""

    folder = "tar_none"


class CinevoxZarr(Cinevox):
    """Zarr shards, read without the library."""

    folder = "zarr_lz4"


class Zarrs:
    """Zarr v3, one film per shard and one slice per inner chunk (blosc lz4 with shuffle, crc32c), read by zarrs."""

    def __init__(self, root, meta):
        import zarr
        import zarrs  # noqa: F401

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1})
        folder = root / "zarr_lz4"
        self.films = []
        for p in range(meta["patients"]):
            case = next(folder.glob(f"*.zarr/p{p}"))
            self.films.append([zarr.open_array(case / name, mode="r") for name in PAIR])

    def read(self, patient, start, out):
        """Decode one clip."""
        for film, frames in zip(self.films[patient], out, strict=True):
            frames[...] = film[start : start + CLIP]


class LitdataSlices:
    """litdata, raw int16, an item per slice pair: any clip can be asked for."""

    name, length = "litdata_slices", 1

    def __init__(self, root, meta):
        from litdata.streaming.writer import BinaryWriter

        self.folder, self.slices = root / self.name, meta["shape"][0]
        self.own, self.kept = threading.local(), {}
        if not self.folder.exists():
            writer, n = BinaryWriter(str(self.folder), chunk_bytes="64MB"), 0
            for p in range(meta["patients"]):
                films = [np.load(root / "raw" / f"{p}_{name}.npy", mmap_mode="r") for name in PAIR]
                for start in range(0, self.slices - self.length + 1, self.length):
                    writer[n] = np.stack([film[start : start + self.length] for film in films])
                    n += 1
            writer.done()
            writer.merge()

    def before(self, thread):
        """Open the data set once per thread."""
        if thread not in self.kept:
            import litdata

            # Otherwise a random item decodes up to 64 neighbours with it (litdata 0.2.76).
            self.kept[thread] = litdata.StreamingDataset(str(self.folder), shuffle=False, batch_decode=0)
            self.kept[thread][0]
        self.own.items = self.kept[thread]

    def read(self, patient, start, out):
        """Gather the slices of one clip."""
        for k in range(CLIP):
            pair = self.own.items[patient * self.slices + start + k]
            out[0][k], out[1][k] = pair[0, 0], pair[1, 0]


class LitdataClips(LitdataSlices):
    """litdata, raw int16, an item per clip that was cut beforehand: each slice is in one clip only."""

    name, length = "litdata_clips", CLIP

    def read(self, patient, start, out):
        """Copy the clip at about this place."""
        films = self.slices // CLIP
        out[0][...], out[1][...] = self.own.items[patient * films + min(start // CLIP, films - 1)]


class Webdataset:
    """webdataset, raw int16, clips cut beforehand, streamed in order: it has no random access."""

    def __init__(self, root, meta):
        import webdataset

        self.root, self.own = root / "webdataset", threading.local()
        if not self.root.exists():
            self.root.mkdir()
            for p in range(meta["patients"]):
                films = [np.load(root / "raw" / f"{p}_{name}.npy", mmap_mode="r") for name in PAIR]
                with webdataset.TarWriter(str(self.root / f"{p}.tar")) as writer:
                    for start in range(0, meta["shape"][0] - CLIP + 1, CLIP):
                        clip = {
                            name: film[start : start + CLIP].tobytes() for name, film in zip(PAIR, films, strict=True)
                        }
                        writer.write({"__key__": f"p{p}_{start:05d}", **clip})

    def before(self, thread):
        """Open the stream of one thread."""
        import webdataset

        urls = sorted(str(path) for path in self.root.glob("*.tar"))
        self.own.stream = iter(webdataset.WebDataset(urls[thread:] + urls[:thread], shardshuffle=False).repeat())

    def read(self, patient, start, out):
        """Copy the next clip of the stream."""
        sample = next(self.own.stream)
        for name, frames in zip(PAIR, out, strict=True):
            frames[...] = np.frombuffer(sample[name], np.int16).reshape(frames.shape)


KINDS = {
    "memmap": Memmap,
    "tar_lz4": Cinevox,
    "tar_none": CinevoxNone,
    "zarr_lz4": CinevoxZarr,
    "zarrs": Zarrs,
    "litdata_slices": LitdataSlices,
    "litdata_clips": LitdataClips,
    "webdataset": Webdataset,
}


def own_memory():
    """Resident megabytes that belong to no file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def measure(reader, rings, seed, seconds, meta):
    """Read random clips for some seconds, one thread per ring."""
    threads = len(rings)
    counts, errors, began = [0] * threads, [], []
    gate = threading.Barrier(threads, lambda: began.append(time.process_time()))

    def work(thread):
        try:
            rng = np.random.default_rng([seed, thread])
            starts = rng.integers(0, meta["shape"][0] - CLIP + 1, 4096).tolist()
            chosen = list(zip(rng.integers(0, meta["patients"], 4096).tolist(), starts, strict=True))
            if hasattr(reader, "before"):
                reader.before(thread)
            gate.wait()
            deadline, count = time.perf_counter() + seconds, 0
            while time.perf_counter() < deadline:
                reader.read(*chosen[count % len(chosen)], rings[thread][count % RING])
                count += 1
            counts[thread] = count
        except Exception as error:
            gate.abort()
            errors.append(error)

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    # The whole process's time: a library's own threads work too.
    spent = time.process_time() - began[-1]
    return {"clips_per_s": sum(counts) / seconds, "cpu_us": spent / sum(counts) * 1e6}


def main():
    """Serve rounds until standard input ends."""
    kind, root, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # what a library prints is no answer
    os.dup2(2, 1)
    meta = json.loads((root / "meta.json").read_text())
    shape = (CLIP, *meta["shape"][1:])
    rings = [[[np.full(shape, 1, np.int16) for _ in PAIR] for _ in range(RING)] for _ in range(threads)]
    before = own_memory()
    reader = KINDS[kind](root, meta)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        seed, seconds = line.split()
        result = measure(reader, rings, int(seed), float(seconds), meta)
        print(json.dumps({**result, "memory_mb": own_memory() - before}), file=answers, flush=True)


if __name__ == "__main__":
    main()
