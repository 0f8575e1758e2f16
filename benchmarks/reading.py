"""How fast random clips are read: a table of readers, beside the floor that the machine sets.

    CINEVOX_DATA=... python benchmarks/reading.py [--quick] [--peers-python PATH]

Real data: the torso CT (256 x 256 x 296) and, as its partner, the same with noise of 20 HU; further patients are this
pair, rolled. Readers run in processes of their own and take turns, round by round, so that a busy moment meets all.
Peers need an environment of their own (litdata asks for torchvision, which must not meet this project's torch):

    python -m venv /tmp/peers && /tmp/peers/bin/pip install --no-deps -r benchmarks/peers.txt
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import numpy as np
import xxhash
from numcodecs import blosc
from readers import CLIP, PAIR

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.geometry import Grid
from pipeline.imaging.film import grid_record
from pipeline.io import read_volume
from pipeline.records import ShardCase, ShardIndex, ShardModality
from pipeline.stream.shard import Film
from pipeline.stream.store import write_shard

OURS = ("memmap", "tar_lz4", "tar_none", "zarr_lz4")
PEERS = ("zarrs", "litdata_slices", "litdata_clips", "webdataset")
NAMES = {
    "memmap": "memory-mapped raw arrays",
    "tar_lz4": "Cinevox tar, lz4, checksums",
    "tar_none": "Cinevox tar, no compression, checksums",
    "zarr_lz4": "Cinevox zarr, lz4, checksums",
    "zarrs": "zarr with zarrs, lz4 (2)",
    "litdata_slices": "litdata, raw, an item per slice pair",
    "litdata_clips": "litdata, raw, clips cut beforehand (1)",
    "webdataset": "webdataset, raw, clips cut beforehand, in order (1)",
}


def films(patients, slices):
    """Yield each patient's film: the torso, rolled, and a noisy partner."""
    path = Path(os.environ["CINEVOX_DATA"]) / "ct" / "torso.nii.gz"
    ct = np.maximum(np.ascontiguousarray(read_volume(path).array.astype(np.int16).T[:slices]), -1024)
    noise = np.random.default_rng(0).normal(0, 20, ct.shape).astype(np.int16)
    for p in range(patients):
        rolled = np.roll(ct, (17 * p, 3 * p, 5 * p), (0, 1, 2))
        noisy = np.clip(rolled + np.roll(noise, p, 0), -1024, 3071).astype(np.int16)
        yield Film(f"p{p}", {"ct": rolled, "cbct": noisy}, (rolled > -300).astype(np.uint8))


def prepare(root, patients, slices):
    """Write the raw arrays and every kind of shards."""
    (root / "raw").mkdir()
    everything = list(films(patients, slices))
    for p, film in enumerate(everything):
        for name, frames in film.frames.items():
            np.save(root / "raw" / f"{p}_{name}.npy", frames)
    shape = everything[0].mask.shape
    for kind, codec in (("tar", "lz4"), ("tar", "none"), ("zarr", "lz4")):
        folder = root / f"{kind}_{codec}"
        shards = [write_shard(folder, f"shard-{p:05d}", iter([f]), codec, kind) for p, f in enumerate(everything)]
        write_index(folder, shards, everything, codec)
    (root / "meta.json").write_text(json.dumps({"patients": patients, "shape": shape}))
    return everything


def write_index(folder, shards, everything, codec):
    """Write the index over shards of one patient each."""
    grid = grid_record(Grid(everything[0].mask.shape, np.eye(4)))
    cases = [
        ShardCase(
            case_id=film.case_id, patient=film.case_id, split="train", shard=number, slices=len(film.mask),
            film_grid=grid, source_grids=dict.fromkeys(PAIR, grid),
        )
        for number, film in enumerate(everything)
    ]  # fmt: skip
    ShardIndex(
        schema=2, config_hash="", cohort="", cohort_hash="", codec=codec, axes="SPL", spacing_mm=(2.5, 1.87, 1.87),
        size=everything[0].mask.shape[1:], cases=cases, shards=shards, preprocess={},
        modalities={name: ShardModality(unit="HU", dtype="int16", padding=-1024.0) for name in PAIR},
    ).save(folder)  # fmt: skip


class Reader:
    """A process that reads when it is told to."""

    def __init__(self, kind, root, threads, python):
        command = [str(python), str(Path(__file__).parent / "readers.py"), kind, str(root), str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.kind, self.results = kind, []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def answer(self):
        """Return the process's next answer."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"The reader '{self.kind}' failed: its error stands above.")
        return json.loads(line)

    def round(self, seed, seconds):
        """Read for some seconds."""
        print(seed, seconds, file=self.process.stdin, flush=True)
        self.results.append(self.answer())

    def median(self, key):
        """Return the median over the rounds."""
        return statistics.median(result[key] for result in self.results)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()


def rate(work, amount):
    """Return amount per second of processor time, the best of seven."""
    best = 0.0
    for _ in range(7):
        began = time.thread_time()
        work()
        best = max(best, amount / (time.thread_time() - began))
    return best


def floor(everything, root):
    """Return microseconds of processor time that a clip of lz4 costs without any Python around it, by operation."""
    blosc.use_threads = False
    order = np.random.default_rng(0).permutation(len(everything[0].mask))
    images = [film.frames[name][k] for film in everything for name in PAIR for k in order]
    packed = [blosc.compress(image, b"lz4hc", 3, blosc.SHUFFLE) for image in images]
    raw, stored = images[0].nbytes, sum(map(len, packed)) / len(packed)
    path = next(iter(sorted((root / "tar_lz4").glob("*.tar"))))
    with path.open("rb", buffering=0) as stream:
        size, length = path.stat().st_size, int(CLIP * len(PAIR) * stored)
        begins = np.random.default_rng(1).integers(0, size - length, 200).tolist()
        buffer = [bytearray(length)]
        read = rate(lambda: [os.preadv(stream.fileno(), buffer, begin) for begin in begins], length * len(begins))
    out = np.empty_like(images[0])
    total = len(packed)
    decode = rate(lambda: [blosc.decompress(chunk, out) for chunk in packed], raw * total)
    digest = rate(lambda: [xxhash.xxh3_64_intdigest(chunk) for chunk in packed], stored * total)
    copy = rate(lambda: [np.copyto(out, image) for image in images], raw * total)
    slices = CLIP * len(PAIR)
    print(
        f"A clip: {slices * raw / 1e6:.2f} MB of voxels, {slices * stored / 1e6:.2f} MB in lz4 ({raw / stored:.2f} : 1)"
    )
    print("Floor per clip, one thread, processor time:")
    costs = {"copy of raw voxels": (raw, copy), "read from page cache": (stored, read)}
    costs |= {"XXH3": (stored, digest), "lz4 and unshuffle": (raw, decode)}
    micros = {name: slices * amount / speed * 1e6 for name, (amount, speed) in costs.items()}
    for name, (_, speed) in costs.items():
        print(f"  {name:22s} {speed / 1e9:6.1f} GB/s {micros[name]:7.1f} us")
    lowest = sum(us for name, us in micros.items() if name != "copy of raw voxels")
    print(f"  lz4 shards, in all {'':11s} {lowest:7.1f} us")
    return lowest


def main():
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two patients of 64 slices, short rounds")
    parser.add_argument("--peers-python", type=Path, help="Python of the environment of benchmarks/peers.txt")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if "CINEVOX_DATA" not in os.environ:
        sys.exit("CINEVOX_DATA does not point to the real volumes")
    patients, slices, rounds, seconds = (2, 64, 3, 0.2) if options.quick else (6, 296, 11, 0.5)
    load = os.getloadavg()[0]
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before the start")
    print(f"{patients} patients of {slices} slice pairs at 256 x 256, clips of {CLIP}, {options.threads} threads")
    with tempfile.TemporaryDirectory(prefix="reading-") as folder, ExitStack() as stack:
        root = Path(folder)
        lowest = floor(prepare(root, patients, slices), root)
        pythons = dict.fromkeys(OURS, sys.executable)
        if options.peers_python:
            pythons |= dict.fromkeys(PEERS, options.peers_python)
        readers = [stack.enter_context(Reader(kind, root, options.threads, p)) for kind, p in pythons.items()]
        for reader in readers:
            reader.answer()
            reader.round(0, seconds)  # warms up
            reader.results.clear()
        for number in range(1, rounds + 1):
            for reader in readers:
                reader.round(number, seconds)
        report(readers, lowest)
    if not options.peers_python:
        print("SKIPPED: " + ", ".join(NAMES[kind] for kind in PEERS) + " (no --peers-python)")


def report(readers, lowest):
    """Print what was measured."""
    base = readers[0]
    print(f"\n{'clips/s':>9} {'(lowest to highest)':>20} {'ratio':>6} {'us/clip':>8} {'own MB':>7}  reader")
    for reader in readers:
        rates = [result["clips_per_s"] for result in reader.results]
        ratio = statistics.median(
            r["clips_per_s"] / b["clips_per_s"] for r, b in zip(reader.results, base.results, strict=True)
        )
        spread = f"({min(rates):.0f} to {max(rates):.0f})"
        print(
            f"{reader.median('clips_per_s'):9.0f} {spread:>20} {ratio:6.2f} {reader.median('cpu_us'):8.0f} "
            f"{reader.median('memory_mb'):7.1f}  {NAMES[reader.kind]}"
        )
    ours = next(reader for reader in readers if reader.kind == "tar_lz4")
    print(
        f"Gap of Cinevox tar, lz4, to its floor: {ours.median('cpu_us') - lowest:.0f} of {ours.median('cpu_us'):.0f} us"
    )
    print("(1) not any clip: each slice is in one clip only. Neither litdata nor webdataset compares a checksum.")
    print("(2) reading part of a shard, zarrs 0.2.3 does not compare the crc32c either.")


if __name__ == "__main__":
    main()
