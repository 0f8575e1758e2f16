"""A 256 x 256 x 100 volume through the regression's U-Net: Cinevox's ``translate`` against MONAI's ``SliceInferer``.

python benchmarks/translating.py [--quick] [--threads N] [--rounds N] [--slices N] [--no-compile]

All ways have the same weights and the same normalised volume in memory. Times are medians of interleaved rounds, on
the clock and of the processor (the latter also hold where other programs run); every way has a process of its own.
MONAI's takes its best batch, with glibc's heap as it is and ("heap") with the setting that Cinevox makes.
CINEVOX_DATA=DIR takes slices of a real CT (else a
phantom). Errors are against fp32, in HU of a window of 3072 HU, for a head of random weights (a fresh head is zero).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.inferers import SliceInferer
from monai.networks.nets import UNet
from torch import nn

from pipeline.config import build, compose
from pipeline.models.regression import Regression
from pipeline.networks.cpu_layers import lay_out
from pipeline.networks.padding import pad_to_multiple
from pipeline.training.compilation import compile_for_inference
from pipeline.training.heap import keep_freed_memory
from pipeline.training.precision import autocast, round_weights

CPU = torch.device("cpu")
HU_PER_UNIT = 1536.0
MONAI_BATCHES = (1, 4, 8)
Way = Callable[[torch.Tensor], torch.Tensor]


class MonaiNetwork(nn.Module):
    """The same U-Net with MONAI's and PyTorch's own layers, as somebody who has only MONAI would write it."""

    def __init__(self, widths: list[int], residual_units: int) -> None:
        super().__init__()
        strides = [2] * (len(widths) - 1)
        sizes = {"channels": widths, "strides": strides, "num_res_units": residual_units, "norm": "instance"}
        self.body = UNet(spatial_dims=2, in_channels=1, out_channels=widths[0], **sizes)
        self.head = nn.Sequential(nn.PReLU(), nn.Conv2d(widths[0], 1, 3, padding=1))
        self.multiple = 2 ** len(strides)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (batch, 1, height, width) to the same shape."""
        height, width = images.shape[-2:]
        features = self.body(pad_to_multiple(images, self.multiple))
        with torch.autocast("cpu", enabled=False):
            return self.head(features.float())[..., :height, :width]


def make_method(quick: bool) -> tuple[Regression, dict]:
    """Return the regression of conf/model/regression.yaml with random weights everywhere, and its network's sizes."""
    sizes = ["model.module.network.widths=[8,16,32]"] if quick else []
    node = compose(["model=regression", "model.module.ema_decay=0", *sizes]).model.module
    torch.manual_seed(0)
    method = build(node).eval()
    nn.init.normal_(method.network.head[-1].weight, std=0.02)
    return method, node["network"]


def make_volume(quick: bool, slices: int) -> torch.Tensor:
    """Return (slices, 1, rows, columns) in [-1, 1]: slices of a torso, real or phantom."""
    slices, size = (12, 64) if quick else (slices, 256)
    if os.environ.get("CINEVOX_DATA"):
        from pipeline.geometry import reorder
        from pipeline.io import read_volume

        hu = reorder(read_volume(Path(os.environ["CINEVOX_DATA"]) / "ct" / "torso.nii.gz")).array
        middle = (len(hu) - slices) // 2
        step = 256 // size
        hu = hu[middle : middle + slices, ::step, ::step]
    else:
        from pipeline.cohorts.phantom import make_patient

        spacing = f"cohort.spacing_mm=[2.5,{480 / size},{480 / size}]"
        settings = compose(["cohort=phantom", "cohort.anatomy=torso", f"cohort.size=[{slices},{size},{size}]", spacing])
        hu = make_patient(settings.cohort, 0, 0)["ct"].array
    images = np.clip((hu.astype(np.float32) + 1024) / HU_PER_UNIT - 1, -1, 1)
    return torch.from_numpy(images)[:, None].contiguous()


def with_slice_inferer(network: nn.Module, batch: int, precision: str) -> Way:
    """Return MONAI's way: a window that is a whole slice; the residual and the clamp are added as ours does."""

    def translate(film: torch.Tensor) -> torch.Tensor:
        volume = film.permute(1, 2, 3, 0)[None]
        inferer = SliceInferer(roi_size=film.shape[-2:], sw_batch_size=batch, spatial_dim=2)
        with torch.inference_mode(), autocast(precision, CPU):
            return (volume + inferer(volume, network)).clamp(-1, 1)[0].permute(3, 0, 1, 2)

    return translate


def with_cinevox(method: Regression, precision: str, compiled: bool) -> Way:
    """Return what ``cinevox translate`` runs on a film."""
    lay_out(method, CPU)
    if precision == "bf16":
        round_weights(method)
    if compiled:
        compile_for_inference(method)

    def translate(film: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), autocast(precision, CPU):
            return method.translate(film, source_modality="cbct", target_modality="ct")

    return translate


def make_way(name: str, quick: bool) -> Way:
    """Build a way by its name in the table: LIBRARY PRECISION [BATCH|compile]."""
    library, precision, *more = name.split()
    method, sizes = make_method(quick)
    if library == "cinevox" or "heap" in more:
        keep_freed_memory(CPU)
    if library == "cinevox":
        return with_cinevox(method, precision, "compile" in more)
    published = MonaiNetwork(sizes["widths"], sizes["residual_units"]).eval()
    published.load_state_dict(method.network.state_dict())
    return with_slice_inferer(published, int(more[0]), precision)


def work(name: str, film: torch.Tensor, quick: bool, folder: Path) -> None:
    """Translate once per line on the standard input, and answer with seconds, processor seconds and peak MB."""
    way = make_way(name, quick)
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        result = way(film)
        print(time.perf_counter() - start, time.process_time() - used, own_peak_mb(), flush=True)
    np.save(folder / f"{name}.npy", result.numpy())


def own_peak_mb() -> float:
    """Return this program's peak; ``ru_maxrss`` would begin with that of the program that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


class Worker:
    """A process that knows one way only, so that neither its heap nor its memory are another's."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path) -> None:
        command = [sys.executable, __file__, "--only", name, f"--threads={options.threads}", f"--folder={folder}"]
        command += ["--quick"] * options.quick
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds: list[float] = []
        self.busy: list[float] = []
        self.first = self.ask()
        self.seconds.clear()
        self.busy.clear()

    def ask(self) -> float:
        """Translate once; returns the seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        seconds, busy, self.peak = (float(word) for word in self.process.stdout.readline().split())
        self.seconds.append(seconds)
        self.busy.append(busy)
        return seconds

    def finish(self) -> None:
        """Let the process save its last result and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.wait():
            raise SystemExit("a worker failed")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and volume, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        film = torch.from_numpy(np.load(options.folder / "film.npy"))
        work(options.only, film, options.quick, options.folder)
        return

    names = ["cinevox fp32", "cinevox bf16-mixed", "cinevox bf16"]
    names += [] if options.no_compile else ["cinevox bf16 compile"]
    names += [f"monai bf16-mixed {batch}{heap}" for heap in ("", " heap") for batch in MONAI_BATCHES]
    film = make_volume(options.quick, options.slices)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        np.save(folder / "film.npy", film.numpy())
        workers = {name: Worker(name, options, folder) for name in names}
        for _ in range(1 if options.quick else options.rounds):
            for worker in workers.values():
                worker.ask()
        for worker in workers.values():
            worker.finish()
        results = {name: np.load(folder / f"{name}.npy") for name in names}
    clock = {name: statistics.median(worker.seconds) for name, worker in workers.items()}
    busy = {name: statistics.median(worker.busy) for name, worker in workers.items()}
    plain = min((n for n in names if n[0] == "m" and "heap" not in n), key=busy.__getitem__)
    tuned = min((n for n in names if "heap" in n), key=busy.__getitem__)
    exact = results["cinevox fp32"]
    spread = HU_PER_UNIT * float((exact - film.numpy()).std())
    print(f"{platform.machine()}, torch {torch.__version__}, {options.threads} thread(s), ", end="")
    print(f"film {tuple(film.shape)}, residual of {spread:.0f} HU (standard deviation)")
    print("| way | median s | ratio | processor s | ratio | first s | peak MB | HU error mean | HU error max |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in [n for n in names if n.startswith("cinevox")] + [plain, tuned]:
        error = HU_PER_UNIT * np.abs(results[name] - exact)
        print(
            f"| {name} | {clock[name]:.2f} | {clock[plain] / clock[name]:.2f} "
            f"| {busy[name]:.2f} | {busy[plain] / busy[name]:.2f} | {workers[name].first:.1f} "
            f"| {workers[name].peak:.0f} | {error.mean():.2f} | {error.max():.1f} |"
        )
    print(f"ratio: how many times faster than '{plain}', MONAI's best batch of {MONAI_BATCHES}")


if __name__ == "__main__":
    main()
