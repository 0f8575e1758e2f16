"""Latent mapping: tokens a second and memory, what latents made before save, and where translating spends its time.

python benchmarks/latent_mapping.py [--rounds N] [--threads N] [--sizes N ...] [--frames N ...] [--slices N] [WORD ...]

Two tables: a step of stage 2 (forward and backward) for every slice size and T, from latents and encoded on the fly;
and a volume of 256 x 256 through stage 2's translate beside the regression's, for N slices, written as 100. Times are
medians of the processor's time; memory is what autograd keeps. Words are settings of model=latent_translator.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from training_memory import Kept

from pipeline.config import build, compose
from pipeline.models.latents import encode_slices
from pipeline.networks.cpu_layers import lay_out

CPU = torch.device("cpu")
VOLUME = 100  # slices of the volume that is spoken of
PAIR = {"source_modality": "cbct", "target_modality": "ct"}


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median of the processor's time, after one round that is not counted."""
    work()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def make(overrides: list[str], size: int, frames: int) -> torch.nn.Module:
    """Return stage 2 with random weights, its grid as large as the slices need."""
    node = compose(["model=latent_translator", "model.module.ema_decay=0", *overrides]).model.module
    side = -(-size // (2 ** (len(node["autoencoder"]["multipliers"]) - 1) * node["transformer"]["patch"]))
    node["transformer"] |= {"grid": [side, side], "frames": frames}
    torch.manual_seed(0)
    return lay_out(build(node), CPU)


def step_row(overrides: list[str], size: int, frames: int, rounds: int) -> list[str]:
    """Return a row of the first table."""
    method = make(overrides, size, frames)
    slices = torch.rand(2 * frames, 1, size, size) * 2 - 1  # source and target
    latents = encode_slices(method.autoencoder, slices[:1])
    clip = latents.expand(frames, -1, -1, -1)[None].clone()
    rows, columns = method.transformer.grid
    tokens = frames * rows * columns
    names = [method.transformer.indices([name]) for name in PAIR.values()]
    kept = Kept({p.untyped_storage().data_ptr() for p in method.parameters()})

    def learn() -> None:
        (method.transformer(clip, *names) - clip).abs().mean().backward()
        method.zero_grad(set_to_none=True)

    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda holder: holder.tensor):
        learn()
    step = seconds(learn, rounds)
    encoding = seconds(lambda: encode_slices(method.autoencoder, slices), rounds)
    cells = [f"{size} x {size}", f"{frames}", f"{tokens}", f"{tokens / step:.0f}", f"{kept.highest / 1e6:.0f}"]
    return [*cells, f"{step:.2f}", f"{step + encoding:.2f}", f"{(step + encoding) / step:.1f}"]


def volume_rows(overrides: list[str], size: int, frames: int, slices: int, rounds: int) -> list[list[str]]:
    """Return rows of the second table: encoding, mapping, decoding, all of them, and the regression."""
    method, film = make(overrides, size, frames).eval(), torch.rand(slices, 1, size, size) * 2 - 1
    regression = lay_out(build(compose(["model=regression", "model.module.ema_decay=0"]).model.module), CPU).eval()
    with torch.inference_mode():
        latents = encode_slices(method.autoencoder, film)
        all_of_it = seconds(lambda: method.translate(film, **PAIR), rounds)
        encoding = seconds(lambda: encode_slices(method.autoencoder, film), rounds)
        decoding = seconds(lambda: method.autoencoder.decode(latents[:1]), rounds) * slices
        plain = seconds(lambda: regression.translate(film, **PAIR), rounds)
    parts = {
        "encoding": encoding,
        "mapping": max(all_of_it - encoding - decoding, 0.0),
        "decoding": decoding,
        "latent mapping": all_of_it,
        "regression": plain,
    }
    return [[name, f"{value / slices * VOLUME:.0f}", f"{value / all_of_it:.0%}"] for name, value in parts.items()]


def show(head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(cells) + " |")


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(given.threads)
    head = ["slices", "T", "tokens", "tokens/s", "kept (MB)", "from latents (s)", "on the fly (s)", "ratio"]
    rows = [step_row(given.overrides, size, t, given.rounds) for size in given.sizes for t in given.frames]
    show(head, rows)
    print()
    largest = given.sizes[-1]
    volume = volume_rows(given.overrides, largest, given.frames[0], given.slices, given.rounds)
    show([f"{largest} x {largest} x {VOLUME}", "processor time (s)", "share"], volume)


if __name__ == "__main__":
    main()
