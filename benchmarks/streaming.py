"""Shards from a server against the same on a disk: bytes and clips per second of processor time, one rank.

CINEVOX_DATA=... python benchmarks/streaming.py [--patients 4] [--slices 100] [--rounds 5]

The server is Python's own, on loopback, in a process of its own, and processor time is what other work on the machine
changes least; so the figures are those of Cinevox and of no network: fetching with its comparison (cold), reading
through webdataset out of the cache (warm), and random access.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reading import films, write_index

from pipeline.config import compose
from pipeline.stream.datamodule import ClipDataModule
from pipeline.stream.remote import RemoteStore
from pipeline.stream.store import SliceStore, write_shard

SERVER = """
import functools, http.server, sys
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass
handler = functools.partial(Quiet, directory=sys.argv[1])
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def clips_per_second(store: SliceStore, stride: int) -> float:
    """Read one epoch as a training does and return its speed."""
    words = ["stream.clip_length=5", "stream.clip_growth=1", "stream.threads=1", "stream.augment.flip=0"]
    still = [f"stream.augment.{name}=0" for name in ("rotate_degrees", "scale", "shift_pixels")]
    data = ClipDataModule(store, compose([*words, *still, f"stream.clip_stride={stride}"]))
    began, count = time.process_time(), 0
    for batch in data.train_dataloader():
        count += len(batch["case_id"])
    return count / (time.process_time() - began)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    settings = compose([]).stream.remote
    fetched: list[float] = []
    speeds: dict[tuple[str, int], list[float]] = {(k, s): [] for k in ("server", "disk") for s in (1, 5)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "shards"
        everything = list(films(options.patients, options.slices))
        shards = [write_shard(folder, f"shard-{n:05d}", iter([film]), "lz4") for n, film in enumerate(everything)]
        write_index(folder, shards, everything, "lz4")
        size = sum(shard.bytes for shard in shards)
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            for turn in range(options.rounds):
                with RemoteStore(url, settings, cache=Path(place) / f"cache-{turn}") as store:
                    began = time.process_time()
                    for number in range(len(shards)):
                        store.open_shard(number).close()
                    fetched.append(size / 1e6 / (time.process_time() - began))
                    for stride in (1, 5):
                        speeds["server", stride].append(clips_per_second(store, stride))
                with SliceStore(folder) as local:
                    for stride in (1, 5):
                        speeds["disk", stride].append(clips_per_second(local, stride))
        finally:
            server.kill()
            server.wait()
    print(f"{options.patients} shards, {size / 1e6:.0f} MB, load {os.getloadavg()[0]:.1f}, one reading thread")
    print(f"fetched and compared: {spread(fetched)} MB per second of processor time\n")
    print("| clips of 5 slice pairs | streamed out of the cache | at random from a disk |\n|---|---|---|")
    for stride, name in ((1, "that overlap (stride 1)"), (5, "side by side (stride 5)")):
        cells = [spread(speeds[kind, stride]) for kind in ("server", "disk")]
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    """Return median, lowest and highest."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    main()
