"""What N ranks would do, on paper: step time, exchange, shard bandwidth and steps per epoch, as a table per method.

python benchmarks/scaling.py [--gpu-tflops N] [--node-gb-s N] [--network-gb-s N] [--latency-us N] [--per-node N]
                             [--size N] [--methods NAME ...]

Counted: parameters that learn, and the FLOPs of a real training step, both of the full-size configuration (the step at
64 x 64, scaled by pixels: all of it is convolutions). Measured: bytes of a slice pair in lz4 shards
(benchmarks/reading.py). Assumed: everything that is an option, and that exchange and computation do not overlap,
which DDP does in part. No cluster was asked: these are bounds to plan by, not results.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass

import torch
from training import make_batch, make_method

NETWORKS = ("generator", "image_discriminator", "temporal_discriminator")
METHODS = {
    "regression": {"clip": 6, "own": []},
    "vid2vid": {
        "clip": 7,
        "own": [
            f"model.module.{part}.width=64" for part in ("generator", "image_discriminator", "temporal_discriminator")
        ],
    },
}
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
COUNTED_AT = 64  # pixels
SLICE_PAIR_MB = 0.63 / 5  # 256 x 256, int16, lz4: docs/performance.md, Reading
SLICES = 100  # of a film
STEPS_PER_EPOCH = 50  # fewer, and a larger global batch makes an epoch of few, large steps


@dataclass(frozen=True)
class Machine:
    """What is assumed of the hardware."""

    flops: float  # per second of a GPU, sustained
    inside: float  # bytes per second of a rank to the others of its node
    network: float  # and to those of other nodes
    latency: float  # seconds per hop
    per_node: int  # ranks


@dataclass(frozen=True)
class Method:
    """What a rank does for one clip: FLOPs, parameters that are exchanged, exchanges, frames."""

    flops: float
    parameters: int
    exchanges: int
    frames: int


def exchanged_bytes(parameters: int, ranks: int) -> float:
    """Return what a rank sends in one ring all-reduce of float32 gradients: 2 (N - 1) / N of them."""
    return 2 * (ranks - 1) / ranks * 4 * parameters


def exchange_seconds(method: Method, ranks: int, machine: Machine) -> float:
    """Return how long the exchanges of a clip take: 2 (N - 1) hops each, and the bytes."""
    speed = machine.inside if ranks <= machine.per_node else machine.network
    each = exchanged_bytes(method.parameters, ranks) / speed + 2 * (ranks - 1) * machine.latency
    return method.exchanges * each


def efficiency(method: Method, ranks: int, machine: Machine) -> float:
    """Return the share of a step that is computation, one clip per rank."""
    compute = method.flops / machine.flops
    return compute / (compute + exchange_seconds(method, ranks, machine))


def steps_per_epoch(patients: int, frames: int, ranks: int) -> int:
    """Return optimiser batches per epoch of clips that share no slice, one clip per rank."""
    return patients * (SLICES // frames) // ranks


def knee(patients: int, frames: int) -> int:
    """Return the most ranks that leave STEPS_PER_EPOCH steps to an epoch."""
    return patients * (SLICES // frames) // STEPS_PER_EPOCH


def shard_bytes_per_second(method: Method, ranks: int, machine: Machine, size: int) -> float:
    """Return what all ranks read together if each clip is read once and nothing is in a cache."""
    clip = method.frames * SLICE_PAIR_MB * 1e6 * (size / 256) ** 2
    return ranks * clip / (method.flops / machine.flops + exchange_seconds(method, ranks, machine))


def count(name: str, size: int) -> Method:
    """Count a training step of the full-size method on one clip."""
    from torch.utils.flop_counter import FlopCounterMode

    frames = METHODS[name]["clip"]
    method = make_method(name, quick=False, own=METHODS[name]["own"])
    steps: Counter[int] = Counter()
    for optimizer in method.optimizers():
        optimizer.register_step_post_hook(lambda own, *_: steps.update([id(own)]))
    with FlopCounterMode(display=False) as counter:
        method.training_step(make_batch(COUNTED_AT, frames), 0)
    learning = sum(p.numel() for p in method.parameters() if p.requires_grad)
    # A step has one backward pass over all networks, so one exchange; some discriminators wake in later frames only.
    return Method(counter.get_total_flops() * (size / COUNTED_AT) ** 2, learning, max(steps.values()), frames)


def table(name: str, method: Method, machine: Machine, size: int) -> str:
    """Return the rows of a method."""
    lines = [
        f"{name}: {method.parameters / 1e6:.1f} M parameters learn, {method.flops / 1e12:.2f} TFLOP for a clip of "
        f"{method.frames} x {size} x {size}, {method.exchanges} exchange(s) per clip",
        "",
        "| ranks | nodes | step s | exchange s | MB sent | efficiency | shards MB/s | steps (100) | steps (1000) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for ranks in RANKS:
        exchange = exchange_seconds(method, ranks, machine)
        sent = method.exchanges * exchanged_bytes(method.parameters, ranks) / 1e6
        cells = [
            f"{ranks}",
            f"{-(-ranks // machine.per_node)}",
            f"{method.flops / machine.flops + exchange:.3f}",
            f"{exchange:.3f}",
            f"{sent:.0f}",
            f"{efficiency(method, ranks, machine):.2f}",
            f"{shard_bytes_per_second(method, ranks, machine, size) / 1e6:.0f}",
            *(f"{steps_per_epoch(patients, method.frames, ranks)}" for patients in (100, 1000)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    knees = [f"{knee(patients, method.frames)} ranks for {patients} patients" for patients in (100, 1000)]
    lines += ["", f"Knee ({STEPS_PER_EPOCH} steps per epoch, a clip per rank): {', '.join(knees)}."]
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    """Count both methods and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-tflops", type=float, default=60, help="sustained in bf16 convolutions, not the peak")
    parser.add_argument("--node-gb-s", type=float, default=150, help="per rank inside a node (NVLink), bytes")
    parser.add_argument("--network-gb-s", type=float, default=12.5, help="per rank between nodes, bytes")
    parser.add_argument("--latency-us", type=float, default=20)
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    chosen = parser.parse_args(words)
    torch.set_num_threads(1)
    machine = Machine(
        chosen.gpu_tflops * 1e12,
        chosen.node_gb_s * 1e9,
        chosen.network_gb_s * 1e9,
        chosen.latency_us * 1e-6,
        chosen.per_node,
    )
    for name in chosen.methods:
        print(table(name, count(name, chosen.size), machine, chosen.size), end="\n\n")


if __name__ == "__main__":
    main()
