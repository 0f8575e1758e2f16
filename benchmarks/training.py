"""A training step of a method: seconds in fp32, bf16 and compiled, and what stands beside its networks.

python benchmarks/training.py [KEY=VALUE ...] [--quick] [--methods NAME ...] [--threads N] [--rounds N] [--compile]
                              [--precisions fp32 bf16-mixed] [--run]

Bare means: the calls of the networks that one step makes, recorded and run again with the same inputs, and a backward
pass from ones through each; no losses, optical flow, optimiser, guard or logging. --run also trains on phantoms with
`cinevox train` and shows its epoch line (the loader's share of a step).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import build, compose
from pipeline.models.translator import Translator
from pipeline.networks.cpu_layers import lay_out
from pipeline.training.compilation import compile_networks, trained_networks
from pipeline.training.heap import keep_freed_memory
from pipeline.training.precision import autocast, has_native_bf16

CPU = torch.device("cpu")
METHODS = {
    "cyclegan": ["model.module.generator.width=32", "model.module.discriminator.width=32"],
    "pix2pix": [],
    "regression": [],
    "vid2vid": [
        "model.module.generator.width=16",
        "model.module.image_discriminator.width=16",
        "model.module.temporal_discriminator.width=16",
    ],
}
QUICK = {
    "cyclegan": [
        "model.module.generator.width=4",
        "model.module.generator.blocks=1",
        "model.module.discriminator.width=4",
    ],
    "pix2pix": ["model.module.generator.width=4", "model.module.discriminator.width=4"],
    "regression": ["model.module.network.widths=[4,8]"],
    "vid2vid": [part.replace("=16", "=4") for part in METHODS["vid2vid"]],
}


def make_method(name: str, quick: bool, own: Sequence[str] = ()) -> Translator:
    """Return a method that can take steps without a trainer; ``own`` settings come last."""
    overrides = [*METHODS[name], *(QUICK[name] if quick else []), *own]
    torch.manual_seed(0)
    method = lay_out(build(compose([f"model={name}", *overrides]).model.module), CPU)
    optimizers = method.configure_optimizers()
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    method.optimizers = lambda: optimizers
    method.manual_backward = lambda loss: loss.backward()
    method.log_dict = lambda *_, **__: None
    return method


def make_batch(size: int, frames: int = 4) -> dict[str, Any]:
    """Return one clip of a smooth film that drifts by a pixel per frame."""
    noise = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(1))
    still = torch.tanh(2 * torch.nn.functional.avg_pool2d(noise, 5, 1, 2))
    film = torch.stack([still.roll(frame, -1) for frame in range(frames)], 1)
    batch = {"source": film, "target": 0.8 * film + 0.1, "mask": torch.ones_like(film)}
    return {**batch, "sample_index": torch.arange(1)}


class Calls:
    """The calls of a method's networks during one step, to be made again."""

    def __init__(self, method: Translator, step: Callable[[], None]) -> None:
        self.calls: list[tuple[nn.Module, bool, bool, tuple, dict]] = []
        hooks = [n.register_forward_pre_hook(self._record, with_kwargs=True) for n in trained_networks(method)]
        step()
        for hook in hooks:
            hook.remove()

    def _record(self, network: nn.Module, args: tuple, kwargs: dict) -> None:
        kept = tuple(a.detach().clone().requires_grad_(a.requires_grad) if torch.is_tensor(a) else a for a in args)
        frozen = not any(p.requires_grad for p in network.parameters())
        self.calls.append((network, frozen, torch.is_grad_enabled(), kept, kwargs))

    def repeat(self) -> None:
        """Make the calls, and a backward pass from ones through each."""
        for network, frozen, learning, args, kwargs in self.calls:
            changed = [p for p in network.parameters() if frozen and p.requires_grad]
            for parameter in changed:
                parameter.requires_grad_(False)
            with torch.set_grad_enabled(learning):
                ends = [end for end in _tensors(network(*args, **kwargs)) if end.requires_grad]
            if ends:
                torch.autograd.backward(ends, [torch.ones_like(end) for end in ends])
            for parameter in changed:
                parameter.requires_grad_(True)
            network.zero_grad()


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(result):
        yield result
    elif isinstance(result, (list, tuple)):
        for part in result:
            yield from _tensors(part)


def measure(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Return (first seconds, median seconds, median seconds of the processor) of each way, in interleaved rounds."""
    first, clock, busy = {}, {name: [] for name in ways}, {name: [] for name in ways}
    for name, way in ways.items():
        start = time.perf_counter()
        way()
        first[name] = time.perf_counter() - start
    for _ in range(rounds):
        for name, way in ways.items():
            start, used = time.perf_counter(), time.process_time()
            way()
            clock[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - used)
    return {n: (first[n], statistics.median(clock[n]), statistics.median(busy[n])) for n in ways}


def in_precision(way: Callable[[], None], precision: str) -> Callable[[], None]:
    """Return the way under fp32 or autocast."""

    def run() -> None:
        with autocast(precision, CPU):
            way()

    return run


def compare(name: str, options: argparse.Namespace) -> None:
    """Print the rows of one method."""
    batch = make_batch(32 if options.quick else 128)
    ways: dict[str, Callable[[], None]] = {}
    for precision in options.precisions:
        method = make_method(name, options.quick, options.settings)
        step = in_precision(lambda method=method: method.training_step(batch, 0), precision)
        ways[f"{precision} step"] = step
        ways[f"{precision} bare"] = in_precision(Calls(copy.copy(method), step).repeat, precision)
        if options.compile:
            compiled = make_method(name, options.quick, options.settings)
            compile_networks(compiled)
            ways[f"{precision} compile"] = in_precision(lambda m=compiled: m.training_step(batch, 0), precision)
    found = measure(ways, 1 if options.quick else options.rounds)
    for way, (first, clock, busy) in found.items():
        base = found[f"{way.split()[0]} bare"] if way.endswith("step") else found[f"{options.precisions[0]} step"]
        what = "of bare" if way.endswith("step") else f"of {options.precisions[0]} step"
        print(f"| {name} {way} | {first:.2f} | {clock:.3f} | {busy:.3f} | {busy / base[2]:.2f} {what} |")
    if len(options.precisions) < 2:
        return
    print(
        f"| {name} bf16 against fp32 | | | | {found['fp32 step'][2] / found['bf16-mixed step'][2]:.2f} times faster |"
    )


def train_on_phantoms() -> None:
    """Train the regression on phantom shards with the command and show where its time went."""
    common = ["cohort=phantom", "cohort.anatomy=head", "cohort.modalities=[t1n,ct]", "source=t1n", "workers=1"]
    common += ["cohort.patients=4", "cohort.size=[24,128,128]", "cohort.spacing_mm=[6,2,2]"]
    common += ["preprocess.spacing_mm=[6,2,2]", "preprocess.size=[128,128]"]
    common += ["cohort.split.fractions={train: 0.5, validation: 0.25, test: 0.25}"]
    budget = ["trainer.budget.minutes=0", "trainer.budget.steps=60", "trainer.validations=1", "trainer.threads=1"]
    with tempfile.TemporaryDirectory() as folder:
        places = [str(Path(folder, name)) for name in ("cohort", "shards", "run")]
        commands = [["cohort", *common, f"output={places[0]}"]]
        commands += [["preprocess", *common, f"input={places[0]}", f"output={places[1]}"]]
        training = ["train", "model=regression", "source=t1n", "tracking=none", "stream.clip_growth=1", *budget]
        commands += [[*training, f"input={places[1]}", f"output={places[2]}"]]
        for command in commands:
            result = subprocess.run([sys.executable, "-m", "pipeline", *command], check=True, capture_output=True)
        print("\n".join(line for line in result.stderr.decode().splitlines() if line.startswith("epoch ")))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the methods")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    both = ["fp32", "bf16-mixed"]
    parser.add_argument("--precisions", nargs="+", choices=both, default=both)
    parser.add_argument("--compile", action="store_true", help="also compiled steps; minutes")
    parser.add_argument("--run", action="store_true", help="also a run of `cinevox train` on phantoms")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory(CPU)
    print(f"torch {torch.__version__}, {options.threads} thread(s), bf16 in hardware: {has_native_bf16(CPU)}")
    print("| method, precision, way | first s | median s | processor s | ratio (processor) |\n|---|---|---|---|---|")
    for name in options.methods:
        compare(name, options)
    if options.run:
        train_on_phantoms()


if __name__ == "__main__":
    main()
