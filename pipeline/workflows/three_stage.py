"""Latent mapping: the trainings of its three stages one after another, with the latents between them.

    cinevox train experiment=latent_three_stage input=SHARDS output=CHAIN

Reads   input=SHARDS      a folder of 'cinevox preprocess'; repeated: several, read as one
Writes  CHAIN/autoencoder, CHAIN/latents (latents-1, latents-2, ... of several folders), CHAIN/translator and
        CHAIN/decoder, whose checkpoint needs none of the others, and a log of each command

Main options
  three_stage.autoencoder=[...]  three_stage.translator=[...]  three_stage.decoder=[...]   settings of one stage alone
  every other setting is given to all of them

What has finished is left out, and what was begun goes on: the same command continues. --dry-run prints every command.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.arguments import parse
from pipeline.artifacts import is_finished
from pipeline.config import compose
from pipeline.errors import ConfigError, TrainingError
from pipeline.locks import lock
from pipeline.members import shared, together
from pipeline.progress import say
from pipeline.settings import Config
from pipeline.stream_settings import AugmentSettings
from pipeline.training.ranks import this_rank
from pipeline.workflows.command import TO_BE_CONTINUED, ended, start


class Link(NamedTuple):
    """One command of the chain and where its output goes."""

    verb: str
    words: list[str]
    output: Path


def run(config: Config) -> None:
    """Train what is missing of the three stages.

    Raises:
        ConfigError: A stage's settings are not valid, or ranks were started from outside.
        TrainingError: A command failed, with its own words.
    """
    assert config.output is not None
    overrides, _, _ = parse(config.command[1:], "train")
    links = chain(config, overrides)
    if config.dry_run:
        for link in links:
            sys.stdout.write(shlex.join(["cinevox", link.verb, *link.words, f"output={link.output}"]) + "\n")
        return
    if (ranks := this_rank().count) > 1:
        raise ConfigError(
            "Three stages start the ranks of their trainings themselves, and ranks were started from outside",
            value=f"{ranks} ranks",
            allowed="one process, with trainer.devices=N",
            remedy="On several nodes submit the stages one after another; --dry-run prints their commands",
        )
    top = config.output.absolute()
    top.mkdir(parents=True, exist_ok=True)
    held = lock(top / ".chain.lock", f"The chain in '{config.output}'")
    try:
        for number, link in enumerate(links, start=1):
            title = f"[{number}/{len(links)}] {link.verb} {link.output.name}"
            if is_finished(link.output):
                say(f"{title}: finished already")
                continue
            say(f"{title}; its log is '{link.output.name}.log'")
            log = top / f"{link.output.name}.log"
            before = log.stat().st_size if log.exists() else 0
            code = start([link.verb, *link.words, f"output={link.output}"], log)
            if code == TO_BE_CONTINUED:
                say("Stopped; the same command continues")
                raise SystemExit(code)
            if code:
                raise TrainingError(
                    f"{link.verb} {link.output.name} {ended(code, log, before)}", remedy="The same command continues"
                )
    finally:
        held.release()
    say(f"The model of all pairs: '{links[-1].output}'")


def chain(config: Config, overrides: Sequence[str]) -> list[Link]:
    """Return the commands in order, each of whose settings is composed once: no mistake is met after days.

    Args:
        config: Of the command, with ``three_stage``.
        overrides: Settings of the command line.

    Raises:
        ConfigError: A stage's settings are not valid.
    """
    assert config.output is not None and config.three_stage is not None
    top, stages = config.output.absolute(), config.three_stage
    slices = [f"input={place.absolute()}" for place in config.input]
    names = ["latents"] if len(slices) == 1 else [f"latents-{number}" for number in range(1, len(slices) + 1)]
    common = [word for word in shared(overrides) if not word.lstrip("+~").startswith("three_stage")]

    def words(stage: str, own: Sequence[str], *start_from: str) -> list[str]:
        given = together(common, ["three_stage=null", *own, *start_from])
        try:
            compose(given)
        except ConfigError as error:
            raise ConfigError(f"Stage '{stage}': {error}") from None
        return given

    autoencoder, translator, decoder = (top / name for name in ("autoencoder", "translator", "decoder"))
    first = words("autoencoder", stages.autoencoder)
    # Latents cannot be augmented, whatever the experiment of the data says of its slices.
    as_encoded = [f"stream.augment.{name}=0" for name in AugmentSettings.model_fields]
    start = f"model.module.autoencoder_checkpoint={quoted(autoencoder)}"
    second = words("translator", stages.translator, *as_encoded, start)
    third = words("decoder", stages.decoder, f"model.module.translator_checkpoint={quoted(translator)}")
    return [
        Link("train", [*first, *slices], autoencoder),
        *(
            Link("encode", [*first, f"checkpoint={autoencoder}", place], top / name)
            for name, place in zip(names, slices, strict=True)
        ),
        Link("train", [*second, *(f"input={top / name}" for name in names)], translator),
        Link("train", [*third, *slices], decoder),
    ]


def quoted(path: Path) -> str:
    """Return a path as a value of Hydra's grammar, in which a backslash is one unless a quote comes after it."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (found[2] and "\\'"), str(path))
    return f"'{escaped}'"
