"""A 256 x 256 x 100 volume through the regression's U-Net: Cinevox's ``translate`` against MONAI's ``SliceInferer``.

python benchmarks/translating.py [--quick] [--threads N] [--rounds N] [--slices N] [--no-compile]

All ways have the same weights and the same normalised volume in memory. Times are medians of interleaved rounds, on
the clock and of the processor (the latter also hold where other programs run); the
peak of the memory is that of a process which does nothing else. CINEVOX_DATA=DIR takes slices of a real CT (else a
phantom). Errors are against fp32, in HU of a window of 3072 HU, for a head of random weights (a fresh head is zero).
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import subprocess
import sys
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
    keep_freed_memory(CPU)
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
    if library == "cinevox":
        return with_cinevox(method, precision, "compile" in more)
    published = MonaiNetwork(sizes["widths"], sizes["residual_units"]).eval()
    published.load_state_dict(method.network.state_dict())
    return with_slice_inferer(published if library == "monai" else method.network, int(more[0]), precision)


def own_peak_mb() -> float:
    """Return this program's peak; ``ru_maxrss`` would begin with that of the program that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def peak_mb(name: str, options: argparse.Namespace) -> float:
    """Return the peak memory of a process that translates twice this way."""
    command = [sys.executable, __file__, "--only", name, f"--threads={options.threads}", f"--slices={options.slices}"]
    result = subprocess.run(command + ["--quick"] * options.quick, capture_output=True, text=True, check=True)
    return float(result.stdout.split()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and volume, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        film = torch.rand(
            options.slices, 1, *[64 if options.quick else 256] * 2
        )  # reading a file has a peak of its own
        way = make_way(options.only, options.quick)
        for _ in range(2):
            way(film)
        print(own_peak_mb())
        return

    film = make_volume(options.quick, options.slices)
    names = ["cinevox fp32", "cinevox bf16-mixed", "cinevox bf16"]
    names += [] if options.no_compile else ["cinevox bf16 compile"]
    names += [f"{library} bf16-mixed {batch}" for library in ("monai", "monai-ours") for batch in MONAI_BATCHES]
    ways, first, results = {name: make_way(name, options.quick) for name in names}, {}, {}
    for name, way in ways.items():
        start = time.perf_counter()
        results[name] = way(film)
        first[name] = time.perf_counter() - start
    exact = results["cinevox fp32"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(1 if options.quick else options.rounds):
        for name, way in ways.items():
            gc.collect()
            start, used = time.perf_counter(), time.process_time()
            way(film)
            seconds[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - used)
    busy = {name: statistics.median(values) for name, values in processor.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = {
        lib: min((n for n in names if n.split()[0] == lib), key=busy.__getitem__) for lib in ("monai", "monai-ours")
    }
    shown = [*(n for n in names if n.startswith("cinevox")), *best.values()]
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} thread(s), ",
        end="",
    )
    print(f"film {tuple(film.shape)}, residual of {HU_PER_UNIT * float((exact - film).std()):.0f} HU")
    print("| way | median s | ratio | processor s | ratio | first s | peak MB | HU error mean | HU error max |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in shown:
        error = HU_PER_UNIT * (results[name] - exact).abs()
        print(
            f"| {name} | {medians[name]:.2f} | {medians[best['monai']] / medians[name]:.2f} "
            f"| {busy[name]:.2f} | {busy[best['monai']] / busy[name]:.2f} | {first[name]:.1f} "
            f"| {peak_mb(name, options):.0f} "
            f"| {float(error.mean()):.2f} | {float(error.max()):.1f} |"
        )
    print(
        "ratio: how many times faster than monai, which is SliceInferer on MONAI's own U-Net, best batch of",
        MONAI_BATCHES,
        "; monai-ours: on Cinevox's layers",
    )


if __name__ == "__main__":
    main()
