"""What two connected ranks do together; prints one JSON line per rank. Started by test_ranks.py."""

import json
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import pytorch_lightning as pl
import torch
import torch._dynamo.utils
from miniatures import MINIATURE
from model_making import draw_head, make_batch, make_method, weights_of

from pipeline.errors import ConfigError
from pipeline.training.arithmetic import hold_threads
from pipeline.training.compilation import trained_networks
from pipeline.training.preemption import Preemption, Warned
from pipeline.training.ranks import decided_by_the_first, first_ranks_number, joined, strategy_for, summed


def train(method, batches, **settings):
    trainer = pl.Trainer(
        accelerator="cpu",
        **({"devices": 2, "strategy": strategy_for(here)} | settings),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(method, torch.utils.data.DataLoader(batches, batch_size=None))


def fingerprint(method):
    return {name: float(value.double().abs().sum()) for name, value in weights_of(method).items()}


def damaged_on_one_rank(name):
    """The second rank's first batch is not finite: both skip it, both take the next, and stay equal."""
    method = make_method(name)
    bad = make_batch(3, seed=here.rank)
    if here.rank == 1:
        bad["target"][:] = float("nan")
    before = fingerprint(method)
    train(method, [bad])
    kept, skipped = fingerprint(method) == before, method.skipped_steps
    train(method, [make_batch(3, seed=5 + here.rank)])
    return {"kept": kept, "skipped": skipped, "moved": fingerprint(method) != before, "weights": fingerprint(method)}


def gradients(method):
    """What Adam has kept of the first step's gradients; the weights would show random signs of vanishing ones."""
    return [v["exp_avg"] for o in method.trainer.optimizers for v in o.state.values()]


def unlike_one_rank(name, accumulate):
    """The largest difference of the gradients of a step on two ranks from those of one with the whole batch."""
    # One window, so one step. A long walk through random networks multiplies the rounding of other batch sizes.
    frames = 7 if accumulate == 1 else 3
    settings = [f"frames_per_step={frames}", "generator.flow_scale=1"] if name.startswith("vid2vid") else []
    whole, shared = make_method(name, *settings), make_method(name, *settings)
    shared.accumulate = accumulate
    if name == "regression":
        for method in (whole, shared):
            torch.manual_seed(0)
            draw_head(method)
    batch = make_batch(frames, batch=4)
    batch["mask"][0, ..., 5:] = 0  # masks of other sizes
    train(whole, [batch], strategy="auto", devices=1)
    own = slice(2 * here.rank, 2 * here.rank + 2)
    tensors = ("source", "target", "mask", "sample_index")
    train(shared, [{**batch, **{key: batch[key][own].contiguous() for key in tensors}}])
    pairs = list(zip(gradients(whole), gradients(shared), strict=True))
    largest = max(float(one.abs().max()) for one, _ in pairs)
    return max(float((one - other).abs().max()) for one, other in pairs) / largest


def compiled_unlike_plain(backend):
    """The largest difference of a step's gradients with compiled networks from those without, on these two ranks."""
    plain, compiled = make_method("regression"), make_method("regression")
    for method in (plain, compiled):
        torch.manual_seed(0)
        draw_head(method)
    for network in trained_networks(compiled):
        network.compile(backend=backend)
    batch = make_batch(3, seed=1 + here.rank, batch=2)
    for method in (plain, compiled):
        train(method, [batch])
    pairs = list(zip(gradients(plain), gradients(compiled), strict=True))
    ran = sum(torch._dynamo.utils.counters["stats"].values()) > 0
    largest = max(float(one.abs().max()) for one, _ in pairs)
    return {"unlike": max(float((a - b).abs().max()) for a, b in pairs) / largest, "compiled": ran, "seen": largest > 0}


def pools_unlike_one_rank():
    """The largest difference of the image pools from those of one rank, which has all samples in their order."""
    pools = []
    alone, shared = slice(0, 4), slice(2 * here.rank, 2 * here.rank + 2)
    for own, settings in ((alone, {"strategy": "auto", "devices": 1}), (shared, {})):
        method, batch = make_method("cyclegan", "pool=8", "ema_decay=0"), make_batch(2, batch=4)
        tensors = ("source", "target", "mask", "sample_index")
        train(method, [{**batch, **{key: batch[key][own].contiguous() for key in tensors}}], **settings)
        pools.append(torch.stack(method.pools[1].images))
    return float((pools[0] - pools[1]).abs().max())


def told_on_one_rank():
    """The second rank alone is told to stop: both stop at the end of the same step."""
    told, trainer = Warned(), SimpleNamespace(should_stop=False)
    told.signal = signal.SIGUSR1 if here.rank == 1 else None
    saved = []
    preemption = Preemption(told, SimpleNamespace(share=0.5, step=3), SimpleNamespace(save=saved.append))
    preemption.on_train_batch_end(trainer)
    return preemption.stopped and trainer.should_stop and len(saved) == 1


def threads_of_a_fit():
    """Lightning has a number of its own for DDP: cores / ranks."""
    hold_threads(here, 3)
    train(make_method("regression"), [make_batch(3)])
    return torch.get_num_threads()


def refuse():
    raise ConfigError("The first rank says no")


if len(sys.argv) > 1:  # the compiler alone, which takes long
    with joined(torch.device("cpu"), 300) as here:
        hold_threads(here, 1)
        sys.stdout.write(json.dumps(compiled_unlike_plain(sys.argv[1])) + "\n")
    sys.exit()
with joined(torch.device("cpu"), 60) as here:
    threads = threads_of_a_fit()
    hold_threads(here, 1)
    found = {
        "threads": threads,
        "rank": here.rank,
        "decided": decided_by_the_first(lambda: f"rank {here.rank}"),
        "first": first_ranks_number(float(here.rank + 7)),
        "sum": summed([1.0, float(here.rank)]),
        "told": told_on_one_rank(),
        "vid2vid": damaged_on_one_rank("vid2vid"),
        "pools": pools_unlike_one_rank(),
        "unlike": {f"{n} {a}": unlike_one_rank(n, a) for n in MINIATURE if n != "identity" for a in (1, 2)},
        "compiled": compiled_unlike_plain("aot_eager"),
    }
    try:
        decided_by_the_first(refuse)
    except ConfigError:
        found["refused"] = "with the reason"
    except SystemExit as error:
        found["refused"] = error.code
    sys.stdout.write(json.dumps(found) + "\n")
