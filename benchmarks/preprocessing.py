"""Preprocessing speed, memory and rounding: one chest from .nii.gz to an int16 film, here and in other libraries.

  python benchmarks/preprocessing.py [--peers-python PATH] [--rounds 5]

The chain is the same for all: read, body mask, resample to 2.5 x 2 x 2 mm, crop and pad to 256 x 256 around the body,
int16. The volume is the upper 144 slices of CINEVOX_DATA/ct/torso.nii.gz (256 x 256), else a phantom of that size.
Every program runs in a process of its own with one thread; rounds are interleaved, medians are shown; 'two workers'
are two such processes at once. The floor is reading the file: unpacking alone, with the fastest library there is here.
TorchIO and MONAI come from an environment of their own (torch, monai, torchio, nibabel, SimpleITK): --peers-python.

'rounding' resamples an int16 volume by half a voxel in every direction: mean distance from the exact value, HU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.cohorts.phantom import make_patient
from pipeline.config import compose
from pipeline.geometry import Volume, reorder
from pipeline.io import read_volume, write_volume

HERE = Path(__file__).parent
SLICES = 144
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "MKL_NUM_THREADS"), "1")


def chest() -> tuple[Volume, str]:
    """Return 144 slices of 256 x 256 in HU, axes LPS as scanners write them, and what they are."""
    path = Path(os.environ.get("CINEVOX_DATA", "/nonexistent")) / "ct" / "torso.nii.gz"
    if path.is_file():
        film = reorder(read_volume(path))
        affine = film.affine.copy()
        affine[:3, 3] += affine[:3, 0] * (len(film.array) - SLICES)
        return reorder(Volume(film.array[-SLICES:], affine), "LPS"), "a CT"
    settings = compose(
        ["cohort=phantom", f"cohort.size=[{SLICES},256,256]", "cohort.spacing_mm=[2.5,1.87,1.87]"]
    ).cohort
    return reorder(make_patient(settings, 0, 0)["ct"], "LPS"), "a phantom"


def measure(python: str, program: str, path: Path, at_once: int = 1) -> list[dict[str, float]]:
    """Run one chain in so many processes at once; each returns its seconds, memory and rounding error."""
    command = [python, str(HERE / "preprocessing_chains.py"), program, str(path)]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(HERE.parent)}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
        for _ in range(at_once)
    ]
    results = []
    for process in running:
        out, error = process.communicate()
        if process.returncode:
            raise SystemExit(f"{program} failed:\n{error}")
        results.append(json.loads(out.splitlines()[-1]))
    return results


def main() -> None:
    """Measure and print one table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peers-python", default="", help="a Python with torchio and monai; else they are left out")
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    programs = [("floor", sys.executable), ("cinevox", sys.executable), ("simpleitk", sys.executable)]
    if chosen.peers_python:
        programs += [("torchio", chosen.peers_python), ("monai", chosen.peers_python)]
    else:
        print("TorchIO and MONAI are left out: no --peers-python")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chest.nii.gz"
        volume, what = chest()
        write_volume(path, volume)
        small = volume.affine @ np.diag([8.0, 8.0, 8.0, 1.0])
        write_volume(path.with_name(f"small_{path.name}"), Volume(volume.array[::8, ::8, ::8], small))
        print(f"{what}, {' x '.join(map(str, volume.array.shape))} int16, {path.stat().st_size / 1e6:.1f} MB")
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name, _ in programs}
        pairs: dict[str, list[float]] = {name: [] for name, _ in programs}
        for _ in range(chosen.rounds):
            for name, python in programs:
                rounds[name] += measure(python, name, path)
                both = measure(python, name, path, at_once=2)
                pairs[name].append(max(result["seconds"] for result in both))
    size = volume.array.nbytes
    print(f"{'':12}{'seconds':>9}{'cases/min':>11}{'two workers':>13}{'times':>7}{'memory':>9}{'rounding':>10}")
    base = statistics.median(r["seconds"] for r in rounds["simpleitk"])
    for name, _ in programs:
        seconds = statistics.median(r["seconds"] for r in rounds[name])
        memory = statistics.median(r["peak_bytes"] for r in rounds[name]) / size
        rounding = np.median([r["rounding"] for r in rounds[name]])
        print(
            f"{name:12}{seconds:9.3f}{60 / seconds:11.0f}{120 / statistics.median(pairs[name]):13.0f}"
            f"{base / seconds:7.1f}{memory:9.1f}{rounding:10.2f}"
        )
    print("memory: growth of the process's peak, in volumes of int16; times: as fast as SimpleITK")


if __name__ == "__main__":
    main()
