"""Shards to a trained run.

Reads   input=SHARDS      a folder of 'cinevox preprocess' or 'cinevox encode'; repeated: several, read as one
        input=URL         the same on a server (https://, s3://): docs/how-to/train-from-remote-shards.md
Writes  output=RUN        config.json, checkpoints/, metrics.csv, panels/, W&B files (offline unless told otherwise)

Main options
  model=vid2vid|cyclegan|pix2pix|regression|...       or experiment=NAME, which sets any group
  model.init=NAME|FILE|RUN                            of cyclegan: begin with pretrained generators ('cinevox weights')
  trainer.budget.minutes=N  trainer.budget.steps=N    learning rate and clip length follow the share used
  trainer.precision=auto|fp32|bf16-mixed|fp16-mixed   auto: bf16 where the hardware has it; fp16 on a GPU only
  trainer.devices=N  trainer.nodes=N                  ranks of DDP; several nodes are started by srun or torchrun
  stream.global_batch=N  stream.accumulate=N          clips per step over all ranks; in so many backward passes
  trainer.recompute=true                              less memory: activations are computed again going backward
  trainer.compile=true                                torch.compile: a slow first step, faster ones after it
  stream.pairing=unpaired                             targets of other patients, for methods that learn from them
  stream.pairing=every_pair                           one network for all ordered pairs of the modalities at hand
  stream.clip_length  stream.clip_growth              frames of a clip, and how often it doubles
  fold=K                                              cross-validation: leave fold K for the test, the next to validate
  tracking=offline|online|none                        W&B; see docs/how-to/dashboards.md

SIGUSR1 and SIGTERM end it at the end of a step, saved, with exit code 75: the same command goes on.
The same command continues an unfinished run at exactly the next sample, also on another number of ranks;
trainer.resume=true insists that there is one. Changed settings are refused with their difference; trainer.force=true
takes them and records it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from pipeline.artifacts import Claim, atomic_path, check_free_space, claim_output, write_json
from pipeline.config import build, public
from pipeline.errors import ArtifactError, CheckpointError
from pipeline.networks.cpu_layers import lay_out
from pipeline.progress import duration, say, share_bar, silence
from pipeline.settings import Config
from pipeline.stream.datamodule import ClipDataModule, as_encoded, as_planned, clip_length_at
from pipeline.stream.remote import RemoteStore, open_shards
from pipeline.stream.sampler import micro_batch
from pipeline.stream.store import SliceStore
from pipeline.tracking.table import TableLogger
from pipeline.tracking.wandb_run import tracks
from pipeline.training.arithmetic import arithmetic, hold_threads, tell_changes
from pipeline.training.attempts import count_attempt
from pipeline.training.budget import Budget
from pipeline.training.checkpoint import (
    FOLDER,
    LAST,
    Checkpoints,
    checkpoint_bytes,
    copies_to_come,
    describe,
    newest_valid,
    to_go_on_from,
)
from pipeline.training.compilation import check_compiler, compile_networks
from pipeline.training.epoch_line import EpochLine
from pipeline.training.heap import keep_freed_memory
from pipeline.training.memory import recompute_activations, telling_what_to_lower
from pipeline.training.precision import (
    Precision,
    check_devices,
    device_for,
    has_native_bf16,
    lightning_plugin,
    resolve_precision,
)
from pipeline.training.preemption import Preemption, Warned, keep_signals_from, leave, warned
from pipeline.training.ranks import (
    StartedRanks,
    decided_by_the_first,
    has_launcher,
    joined,
    launch,
    must_launch,
    strategy_for,
    this_rank,
)
from pipeline.training.sharding import check_sharding, sharded_precision
from pipeline.training.validation import Validation

# Settings that change neither what is learnt nor in which order: a run may go on with others.
_FREE = {
    "workers",
    "tracking",
    "label",
    "cohort",
    "simulate",
    "preprocess",
    "convert",
    "metrics",
    "translate",
    "evaluate",
    "report",
}
_REPEATED_MODEL = {"init", "init_reverse", "weights"}  # short words for what stands in model.module
_FREE_TRAINER = {
    "resume",
    "force",
    "panels",
    "allow_packages",
    "keep_every",
    "checkpoint_steps",
    "devices",
    "nodes",
    "recompute",
    "attempts",
    "rank_timeout_s",
}
_FREE_STREAM = {"threads", "prefetch", "accumulate", "remote"}


def run(config: Config) -> None:
    """Train a method, or continue training it."""
    output, trainer = config.output, config.trainer
    assert output is not None
    if config.stream.pairing == "modalities":  # what is validated is its own source, too
        config = config.model_copy(update={"source": config.target})
    launching = must_launch(trainer.devices, trainer.nodes)
    device = device_for(trainer.accelerator)
    precision = resolve_precision(trainer.precision, device)
    check_devices(device, trainer.devices)
    with open_shards(config) as read, _slices(read) as store:
        config = as_planned(as_encoded(config, read.index), read.index)
        data = ClipDataModule(read, config)
        micro_batch(
            config.stream.global_batch, ranks=trainer.devices * trainer.nodes, accumulate=config.stream.accumulate
        )
        pl.seed_everything(config.seed, verbose=False)
        method = build(config.model.module, trainer.allow_packages)
        method.check_pairing(config.stream.pairing)
        if trainer.strategy == "fsdp":
            check_sharding(method, device, precision, trainer.devices * trainer.nodes)
        if trainer.compile:
            check_compiler(device)
        longest = max(clip_length_at(config.stream, share) for share in (0.0, 1.0))
        method.check_stream(config.stream.clip_length, longest)
        method.accumulate = config.stream.accumulate
        if read.index.latents is not None:
            method.learn_from_latents(read.index.latents.std, read.index.latents.encoder)
        if trainer.recompute:
            recompute_activations(method)
        # A run that goes on needs no file any more; a new one is refused before it has a folder.
        start = {} if to_go_on_from(output) else method.begin()
        if this_rank().first and not has_launcher():
            size = sum(p.numel() for p in method.parameters() if p.requires_grad)  # averages are not trained
            say(f"{config.model.name}: {size / 1e6:.2f} M parameters to train; {len(data.slices)} training films")
            for what, origin in start.items():
                say(f"  {what}: {origin}")
        if config.dry_run:
            needed = _bytes(config, store, method, output) / 1e6
            kept = f" and {checkpoint_bytes(method) / 1e6:.0f} MB every {trainer.keep_every} steps"
            say(f"Would train into '{output}', at most {needed:.0f} MB on disk{kept if trainer.keep_every else ''}")
            return
        if not launching:
            with joined(device, trainer.rank_timeout_s) as here:
                if not here.first:
                    silence()
                _claim_and_fit(config, store, data, method, output, device, precision)
            return
    launch(trainer.devices, config.command)


def _slices(read: SliceStore) -> AbstractContextManager[SliceStore]:
    """Return the slices for validation: those that are read, or those that the latents were made from."""
    return nullcontext(read) if read.index.latents is None else SliceStore(*read.slice_folders)


def _claim_and_fit(
    config: Config,
    store: SliceStore,
    data: ClipDataModule,
    method: pl.LightningModule,
    output: Path,
    device: torch.device,
    precision: Precision,
) -> None:
    """Claim the output folder (the first rank does), train what is left, and mark the run as finished."""
    claims: list[Claim] = []

    def decide() -> dict[str, Any]:
        claim = claim_output(output, "train", _deciding(config, data.store), force=config.trainer.force)
        claims.append(claim)
        if claim.finished:
            say(f"'{output}' is finished already; nothing to do")
            return {"finished": True}
        check_free_space(output, _bytes(config, store, method, output))
        found = newest_valid(output)
        if config.trainer.resume and found is None:
            raise CheckpointError(
                f"No checkpoint to resume in '{output}'", remedy="Leave out trainer.resume to start from the beginning"
            )
        progress = found[1]["progress"] if found else None
        count_attempt(output, progress["step"] if progress else 0, config.trainer)
        write_json(output / "config.json", public(config))
        before = found[1].get("arithmetic") if found else None
        resume = str(found[0]) if found else None
        common = {"finished": False, "seal": data.store.index.seal}
        return {**common, "resume": resume, "progress": progress, "before": before}

    decided = decided_by_the_first(decide)
    if decided["finished"]:
        return
    if decided["seal"] != data.store.index.seal:
        raise ArtifactError("The shards changed while the ranks started", remedy="Start the same command again")
    with share_bar("train") as show, warned() as told:
        _fit(config, store, data, method, output, decided, show, device, precision, told)
    for claim in claims:
        claim.finish()
    say(f"Run finished: '{output}'")


def _bytes(config: Config, store: SliceStore, method: pl.LightningModule, output: Path) -> int:
    """Return the most that a run will add to its folder: checkpoints, numbers, panels and their copies for W&B."""
    rows, columns = store.index.size
    film = 4 * rows * columns * config.trainer.validation_slices
    films = 2 * film * config.trainer.validations if config.trainer.panels else 0
    kept = method.kept_bytes(rows * columns)  # type: ignore[operator]
    return (checkpoint_bytes(method) + kept) * copies_to_come(output) + films + 50_000_000


def _deciding(config: Config, store: SliceStore) -> dict[str, Any]:
    """Return the settings and the data that decide what is learnt.

    A choice that is not made leaves no trace, so that runs from before there was one go on.
    """
    settings = {key: value for key, value in public(config).items() if key not in _FREE}
    settings["model"] = {k: v for k, v in settings["model"].items() if k not in _REPEATED_MODEL}
    settings["trainer"] = {k: v for k, v in settings["trainer"].items() if k not in _FREE_TRAINER}
    if config.trainer.strategy == "ddp":
        settings["trainer"].pop("strategy")
    settings["stream"] = {k: v for k, v in settings["stream"].items() if k not in _FREE_STREAM}
    if not config.stream.pairs:
        settings["stream"].pop("pairs")
    if isinstance(store, RemoteStore):  # its order is another one than that of the same shards in a folder
        settings["stream"]["remote_shuffle"] = config.stream.remote.shuffle
    return {**settings, "shards": store.index.config_hash}


def _fit(
    config: Config,
    store: SliceStore,
    data: ClipDataModule,
    method: pl.LightningModule,
    run: Path,
    decided: dict[str, Any],
    show: Callable[[float], None],
    device: torch.device,
    precision: Precision,
    told: Warned,
) -> None:
    settings, here = config.trainer, this_rank()
    if precision == "bf16-mixed" and not has_native_bf16(device):
        say("This hardware has no bf16 products: bf16-mixed will be many times slower than fp32")
    hold_threads(here, settings.threads)
    ranks = f"{here.count} ranks, each " if here.count > 1 else ""
    say(f"Training on {ranks}{device.type} in {precision}, {torch.get_num_threads()} threads")
    pairs = list(data.pairs) or [(config.source, config.target)]
    if method.both_ways:
        pairs += [(target, source) for source, target in pairs]
    record = describe(config, store, sorted(set(pairs)), data.store.index.config_hash)
    if not any(p.requires_grad for p in method.parameters()):
        # Nothing to learn: the checkpoint still says how inputs are to be prepared.
        if here.first:
            with atomic_path(run / FOLDER / LAST) as partial:
                torch.save({"cinevox": record, "state_dict": method.state_dict()}, partial)
        return
    keep_freed_memory(device)
    lay_out(method, device)
    if settings.compile:
        compile_networks(method)
    budget = Budget(settings.budget, settings.nan_limit, show)
    checkpoints = Checkpoints(run, record, budget, every=settings.checkpoint_steps, keep_every=settings.keep_every)
    validation = Validation(store, config, run, budget, checkpoints)
    preemption = Preemption(told, budget, checkpoints)
    if decided["progress"] is not None:
        budget.restore(decided["progress"])
        say(f"Continuing at step {budget.step}, {duration(budget.seconds)} of training so far")
        if decided["before"] is not None:
            tell_changes(decided["before"], arithmetic(device))
        if budget.share >= 1:
            return  # killed after its last step: another one would be beyond the budget
    # Lightning's hints on hardware and other products are noise in a job's log.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    loggers = _loggers(config, store, run, budget) if here.first else []
    with warnings.catch_warnings():
        # Lightning's advice on worker processes and steps per epoch does not apply to this loader.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*")
        # Nor that on srun, which repeats the command line, paths and all; see ranks.py.
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=strategy_for(here, settings.strategy),
            plugins=[
                sharded_precision(precision) if settings.strategy == "fsdp" else lightning_plugin(precision, device),
                StartedRanks(here),
            ],
            logger=loggers,
            callbacks=[
                budget,
                EpochLine(budget, validation, config.tracking.log_every),
                validation,
                checkpoints,
                preemption,
            ],
            max_epochs=-1,
            log_every_n_steps=config.tracking.log_every,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            reload_dataloaders_every_n_epochs=1,
            # On a GPU the backward passes of warping and padding have no deterministic kernel: told, not fatal.
            deterministic="warn" if settings.deterministic else False,
        )
        keep_signals_from(trainer)
        try:
            with telling_what_to_lower():
                trainer.fit(method, datamodule=data, ckpt_path=decided["resume"], weights_only=True)
        except SystemExit:
            # Lightning's way out of Ctrl-C.
            if not trainer.interrupted:
                raise
    if trainer.interrupted:
        raise KeyboardInterrupt
    if preemption.stopped:
        leave()


def _loggers(config: Config, store: SliceStore, run: Path, budget: Budget) -> list[Any]:
    table = TableLogger(run, lambda: budget.step)
    table.forget_after(budget.step)
    loggers: list[Any] = [table]
    if tracks(config):
        from pipeline.tracking.wandb_logger import WandbLogger

        loggers.append(WandbLogger(config, run, lambda: budget.step))
        loggers[-1].run.log_hash("cohort", store.index.cohort_hash, cases=len(store.cases))
    return loggers
