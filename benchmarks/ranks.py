"""Slices per second of one rank on one core, and of several ranks on as many: what DDP costs.

python benchmarks/ranks.py SHARDS [--ranks 2] [--rounds 3] [--steps 20] [KEY=VALUE ...]

Each run is one `cinevox train` of one thread per rank, held to as many cores (Linux), with the same global batch (a
clip per rank); the runs take turns. Efficiency is the speed of N ranks over N times the speed of one. KEY=VALUE goes
to every run, for example experiment=[cbct_ct,small_regression].
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def slices_per_second(shards: str, folder: Path, ranks: int, arguments: argparse.Namespace) -> float:
    """Train for so many steps and return the speed of the epoch so far, as the run itself logs it."""
    words = [
        "tracking=none",
        f"tracking.log_every={arguments.steps}",
        "trainer.threads=1",
        "trainer.budget.minutes=0",
        f"trainer.budget.steps={arguments.steps}",
        "trainer.validations=1",
        "trainer.panels=false",
        "trainer.checkpoint_steps=0",
        "stream.clip_growth=1",
        f"stream.clips_per_epoch={arguments.ranks * arguments.steps}",
        f"stream.global_batch={arguments.ranks}",
        f"trainer.devices={ranks}",
        *arguments.overrides,
    ]
    command = [sys.executable, "-m", "pipeline", "train", f"input={shards}", f"output={folder}", *words]
    cores = set(sorted(os.sched_getaffinity(0))[:ranks])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    with (folder / "metrics.csv").open(newline="") as stream:
        speeds = [row["speed/slices_per_s"] for row in csv.DictReader(stream)]
    return float([speed for speed in speeds if speed][-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_intermixed_args()
    speeds: dict[int, list[float]] = {1: [], arguments.ranks: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for ranks, found in speeds.items():
                found.append(slices_per_second(arguments.shards, Path(folder) / f"{turn}-{ranks}", ranks, arguments))
    one = statistics.median(speeds[1])
    print("| ranks | slices/s | lowest to highest | efficiency |\n|---|---|---|---|")
    for ranks, found in speeds.items():
        middle = statistics.median(found)
        print(
            f"| {ranks} | {middle:.1f} | {min(found):.1f} to {max(found):.1f} | {middle / (ranks * one):.2f} |",
        )


if __name__ == "__main__":
    main()
