"""Shards to a trained run.

Reads   input=SHARDS      a folder of 'cinevox preprocess'
Writes  output=RUN        config.json, checkpoints/, metrics.csv, panels/, W&B files (offline unless told otherwise)

Main options
  model=vid2vid|vid2vid_slice|regression|identity     or experiment=NAME, which sets any group
  trainer.budget.minutes=N  trainer.budget.steps=N    learning rate and clip length follow the share used
  trainer.precision=auto|fp32|bf16-mixed              auto: bf16 where the hardware has it
  trainer.compile=true                                torch.compile: a slow first step, faster ones after it
  stream.clip_length  stream.clip_growth              frames of a clip, and how often it doubles
  fold=K                                              cross-validation: leave fold K for the test, the next to validate
  tracking=offline|none

The same command continues an unfinished run at exactly the next sample; trainer.resume=true insists that there is
one. Changed settings are refused with their difference; trainer.force=true takes them and records it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from pipeline.artifacts import atomic_path, check_free_space, claim_output, write_json
from pipeline.config import build, public
from pipeline.errors import CheckpointError, ConfigError
from pipeline.networks.cpu_layers import lay_out
from pipeline.progress import duration, say, share_bar
from pipeline.settings import Config
from pipeline.stream.datamodule import ClipDataModule, as_planned, clip_length_at
from pipeline.stream.store import SliceStore
from pipeline.tracking.identity import run_id
from pipeline.tracking.table import TableLogger
from pipeline.training.budget import Budget
from pipeline.training.checkpoint import FOLDER, LAST, Checkpoints, describe, load_checkpoint
from pipeline.training.compilation import check_compiler, compile_networks
from pipeline.training.epoch_line import EpochLine
from pipeline.training.heap import keep_freed_memory
from pipeline.training.precision import device_for, has_native_bf16, resolve_precision
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
_FREE_TRAINER = {"resume", "force", "panels", "allow_packages", "keep_every", "checkpoint_steps"}
_FREE_STREAM = {"threads", "prefetch", "accumulate"}


def run(config: Config) -> None:
    """Train a method, or continue training it."""
    shards, output = config.input[0], config.output
    assert output is not None
    with SliceStore(shards) as store:
        config = as_planned(config, store.index)
        data = ClipDataModule(store, config)
        pl.seed_everything(config.seed, verbose=False)
        method = build(config.model.module, config.trainer.allow_packages)
        method.check_pairing(config.stream.pairing)
        if config.trainer.compile:
            check_compiler(device_for(config.trainer.accelerator))
        longest = max(clip_length_at(config.stream, share) for share in (0.0, 1.0))
        method.check_stream(config.stream.clip_length, longest)
        size = sum(p.numel() for p in method.parameters())
        needed = 4 * 5 * size + 50_000_000
        say(f"{config.model.name}: {size / 1e6:.2f} M parameters; {len(data.slices)} training films")
        if config.dry_run:
            say(f"Would train into '{output}', at most {needed / 1e6:.0f} MB on disk")
            return
        check_free_space(output, needed)
        claim = claim_output(output, "train", _deciding(config, store), force=config.trainer.force)
        last = output / FOLDER / LAST
        if claim.finished:
            say(f"'{output}' is finished already; nothing to do")
            return
        if config.trainer.resume and not last.exists():
            raise CheckpointError(
                f"No checkpoint to resume in '{output}'", remedy="Leave out trainer.resume to start from the beginning"
            )
        write_json(output / "config.json", public(config))
        with share_bar("train") as show:
            _fit(config, store, data, method, output, last if last.exists() else None, show)
        claim.finish()
        say(f"Run finished: '{output}'")


def _deciding(config: Config, store: SliceStore) -> dict[str, Any]:
    """Return the settings and the data that decide what is learnt."""
    settings = {key: value for key, value in public(config).items() if key not in _FREE}
    settings["trainer"] = {k: v for k, v in settings["trainer"].items() if k not in _FREE_TRAINER}
    settings["stream"] = {k: v for k, v in settings["stream"].items() if k not in _FREE_STREAM}
    return {**settings, "shards": store.index.config_hash}


def _fit(
    config: Config,
    store: SliceStore,
    data: ClipDataModule,
    method: pl.LightningModule,
    run: Path,
    resume: Path | None,
    show: Callable[[float], None],
) -> None:
    settings = config.trainer
    device = device_for(settings.accelerator)
    precision = resolve_precision(settings.precision, device)
    if precision == "bf16-mixed" and not has_native_bf16(device):
        say("This hardware has no bf16 products: bf16-mixed will be many times slower than fp32")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    say(f"Training on {device.type} in {precision}, {torch.get_num_threads()} threads")
    record = describe(config, store.index)
    if not any(p.requires_grad for p in method.parameters()):
        # Nothing to learn: the checkpoint still says how inputs are to be prepared.
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
    if resume is not None:
        # Also checks the file before Lightning opens it.
        budget.restore(load_checkpoint(resume)["progress"])
        say(f"Continuing at step {budget.step}, {duration(budget.seconds)} of training so far")
        if budget.share >= 1:
            return  # killed after its last step: another one would be beyond the budget
    # Lightning's hints on hardware and other products are noise in a job's log.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    loggers = _loggers(config, run, budget)
    loggers[0].forget_after(budget.step)
    with warnings.catch_warnings():
        # Lightning's advice on worker processes and steps per epoch does not apply to this loader.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\..*")
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if precision == "bf16-mixed" else "32-true",
            logger=loggers,
            callbacks=[budget, EpochLine(budget, validation, config.tracking.log_every), validation, checkpoints],
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
        try:
            trainer.fit(method, datamodule=data, ckpt_path=resume, weights_only=True)
        except SystemExit:
            # Lightning's way out of Ctrl-C.
            if not trainer.interrupted:
                raise
    if trainer.interrupted:
        raise KeyboardInterrupt


def _loggers(config: Config, run: Path, budget: Budget) -> list[Any]:
    loggers: list[Any] = [TableLogger(run, lambda: budget.step)]
    if config.tracking.logger == "wandb":
        from pipeline.tracking.wandb_logger import WandbLogger

        loggers.append(
            WandbLogger(
                run,
                lambda: budget.step,
                run_id=run_id(run),
                project=config.tracking.project,
                name=config.label or config.model.name,
                mode=config.tracking.mode,
                config=public(config),
            )
        )
    elif config.tracking.logger != "none":
        raise ConfigError("Unknown tracking.logger", value=config.tracking.logger)
    return loggers
