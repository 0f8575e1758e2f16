"""What decides how a run's sums are rounded, beside its settings: its threads are held to, and what changed is said."""

from __future__ import annotations

import os

import torch

from pipeline.progress import say
from pipeline.training.ranks import Ranks, this_rank

Arithmetic = dict[str, str | int]


def hold_threads(here: Ranks, wanted: int) -> None:
    """Compute with ``wanted`` threads; 0: with torch's own choice, divided among the ranks of this node."""
    torch.set_num_threads(wanted or max(1, torch.get_num_threads() // here.local_count))
    if here.count > 1:
        # Lightning's launcher of ranks would set cores / ranks of the node instead, unless this is set: another number
        # under srun (a rank per node) than without, and with it other sums.
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())


def arithmetic(device: torch.device) -> Arithmetic:
    """Return what the rounding of sums depends on: ranks, hardware, torch and, on CPUs, threads."""
    found: Arithmetic = {"ranks": this_rank().count, "torch": str(torch.__version__)}
    if device.type == "cuda":
        return {**found, "hardware": torch.cuda.get_device_name(device)}
    # Which instructions torch chooses, and with them how many numbers it adds up at once.
    return {
        **found,
        "hardware": f"CPU with {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
    }


def tell_changes(before: Arithmetic, now: Arithmetic) -> None:
    """Say when a run goes on otherwise than it was saved: the samples stay the same, the last bits do not."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if names:
        changes = ", ".join(f"{name} {before.get(name, '-')} -> {now.get(name, '-')}" for name in names)
        say(f"Sums are rounded in another order from here ({changes}): the same samples, not the same bits")
