"""The Lightning datamodule: which clips come next is its state, and the only thing a resume needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytorch_lightning as pl

from pipeline.errors import ConfigError, DataError
from pipeline.progress import say
from pipeline.records import ShardCase, ShardIndex
from pipeline.settings import Config
from pipeline.stream.loader import ClipLoader
from pipeline.stream.remote import RemoteStore
from pipeline.stream.sampler import (
    ClipSequence,
    Pair,
    clip_sequence,
    micro_batch,
    pair_sequence,
    unpaired_targets,
)
from pipeline.stream.shard_order import StreamedSequence, split_among, streamed_sequence
from pipeline.stream.store import SliceStore
from pipeline.stream.streaming import StreamedClipLoader
from pipeline.stream_settings import StreamSettings


@dataclass
class Position:
    """Where the sample sequence stands: ``sample`` is the next one of ``epoch``, over all ranks.

    ``clip_length`` is that of the epoch, 0 before it begins; ``streams`` how many shards of a server are read side by
    side in it, 0 before it begins and for local shards. Nothing else here depends on ranks or accumulation.
    """

    epoch: int = 0
    sample: int = 0
    clip_length: int = 0
    streams: int = 0


def clip_length_at(settings: StreamSettings, share: float) -> int:
    """Return the clip length at a share of the budget: it doubles at equal parts of it, up to the limit (0: none)."""
    stage = min(int(share * settings.clip_growth), settings.clip_growth - 1)
    length = settings.clip_length * 2**stage
    return min(length, settings.clip_limit) if settings.clip_limit else length


def as_planned(config: Config, index: ShardIndex) -> Config:
    """Return the configuration with clip lengths that are 'auto' as the shards' plan proposes them.

    Raises:
        ConfigError: The shards have no plan, or a length that is set does not go with the planned one.
    """
    stream = config.stream
    if stream.clip_length and stream.clip_limit:
        return config
    if index.plan is None:
        raise ConfigError(
            "These shards have no plan that stream.clip_length=auto and stream.clip_limit=auto could take",
            remedy="Set both, or run 'cinevox preprocess' again",
        )
    # The one that is set wins over the planned other.
    length = stream.clip_length or min(index.plan.clip_length, stream.clip_limit or index.plan.clip_length)
    limit = stream.clip_limit or max(index.plan.clip_limit, length)
    planned = stream.model_copy(update={"clip_length": length, "clip_limit": limit})
    return config.model_copy(update={"stream": planned})


def as_encoded(config: Config, index: ShardIndex) -> Config:
    """Return the configuration with the windows and the outside of those slices that latents were made from."""
    if index.latents is None:
        return config
    prepared = {"window": index.latents.window, "outside_mask": index.latents.outside_mask}
    return config.model_copy(update={"stream": config.stream.model_copy(update=prepared)})


def trained_pairs(cases: Sequence[ShardCase], pairing: str, wanted: Sequence[str]) -> dict[Pair, dict[str, int]]:
    """Return the pairs of modalities that cases can teach, each with its cases and their slices.

    Args:
        cases: Of the training.
        pairing: ``modalities``: each modality and itself; ``every_pair``: all that any case has both of.
        wanted: Pairs as 'SOURCE:TARGET' that are to be among them; empty: all.

    Raises:
        ConfigError: A wanted pair that no case has.
        DataError: No pair at all.
    """
    itself = pairing == "modalities"
    found: dict[Pair, dict[str, int]] = {}
    for case in cases:
        for source in case.modalities:
            for target in case.modalities:
                if (source == target) == itself:
                    found.setdefault((source, target), {})[case.case_id] = case.slices
    named = {":".join(pair): pair for pair in sorted(found)}
    for name in wanted:
        if name not in named:
            raise ConfigError("No training case has this pair of modalities", value=name, allowed=", ".join(named))
    if not found:
        raise DataError(
            "No training case has two modalities" if cases else "The shards hold no training case",
            remedy="Change cohort.split and run again from there",
        )
    return {named[name]: found[named[name]] for name in (wanted or named)}


class ClipDataModule(pl.LightningDataModule):
    """Hands out one epoch's loader at a time (``reload_dataloaders_every_n_epochs=1``), from the position on."""

    def __init__(self, store: SliceStore, config: Config) -> None:
        """Check that the shards can serve the configuration.

        Raises:
            ConfigError: A modality that the shards do not hold, or clips longer than every film.
            DataError: No training case, or one without its pair where pairs are wanted.
        """
        super().__init__()
        self.store, self.config, self.position = store, config, Position()
        self.loader: ClipLoader | None = None
        self.budget_share = 0.0
        asked = [f"stream.augment.{name}" for name, much in config.stream.augment.model_dump().items() if much]
        if store.index.latents and asked:
            raise ConfigError(
                "Latents were encoded once and cannot be augmented",
                value=", ".join(asked),
                remedy=f"Set {' '.join(f'{name}=0' for name in asked)}, or train from the slices themselves",
            )
        self.pairs: dict[Pair, dict[str, int]] = {}  # of pairings with many of them: slices per case
        if config.stream.pairing in ("paired", "unpaired"):
            wanted: tuple[str, ...] = (config.source, config.target)
            self._check_modalities(wanted)
            self.slices, self.target_slices = self._films(config.source), self._films(config.target)
            lacking = sorted(self.slices.keys() ^ self.target_slices.keys())
            if config.stream.pairing == "paired" and lacking:
                raise DataError(
                    f"{len(lacking)} of the training cases have only one of '{config.source}' and '{config.target}': "
                    + ", ".join(lacking[:10]),
                    remedy="Leave them out with cohort.exclude, or set stream.pairing=unpaired",
                )
            longest = min(max(self.slices.values()), max(self.target_slices.values()))
        else:
            training = store.index.select("train", config.fold)
            self.pairs = trained_pairs(training, config.stream.pairing, config.stream.pairs)
            self._check_modalities(sorted({modality for pair in self.pairs for modality in pair}))
            self.slices = {case_id: count for cases in self.pairs.values() for case_id, count in cases.items()}
            self.target_slices = self.slices
            longest = min(max(cases.values()) for cases in self.pairs.values())
        if config.stream.clip_length > longest:
            raise ConfigError(
                "stream.clip_length is longer than every training film",
                value=config.stream.clip_length,
                allowed=f"at most {longest}",
            )
        self._longest = longest
        self._told: tuple[str, ...] = ()
        self._split_told = False
        if isinstance(store, RemoteStore) and config.stream.pairing != "paired":
            raise ConfigError(
                "Unpaired targets and many pairs are read at random, and shards on a server are read in order",
                value=f"stream.pairing={config.stream.pairing}",
                allowed="paired",
                remedy="Copy the shards to a disk",
            )
        stages = config.stream.clip_growth
        for length in sorted({self._clip_length(stage / stages) for stage in range(stages)}):
            self._sequence(0, length)  # an epoch that would be empty is found now, not hours later

    def _check_modalities(self, wanted: Sequence[str]) -> None:
        held = self.store.index.modalities
        for modality in wanted:
            if modality not in held:
                raise ConfigError(f"The shards hold no modality '{modality}'", allowed=", ".join(held))
            if held[modality].unit == "HU" and modality not in self.config.stream.window:
                raise ConfigError(f"stream.window has no window for '{modality}', which is in HU")

    def train_dataloader(self) -> ClipLoader:
        """Return the loader for what is left of the current epoch.

        Raises:
            ConfigError: The global batch cannot be divided among the trainer's ranks.
        """
        config, trainer, stream = self.config, self.trainer, self.config.stream
        ranks = trainer.world_size if trainer else 1
        # A step's clips come at once; the method goes through them in stream.accumulate parts.
        batch = stream.accumulate * micro_batch(stream.global_batch, ranks=ranks, accumulate=stream.accumulate)
        sequence = self._current()
        targets = self._targets(sequence)
        short = tuple(sorted({*sequence.short_cases, *(targets.short_cases if targets else ())}))
        if short != self._told:
            self._told = short
            if self._told:
                say(f"{len(self._told)} case(s) shorter than {sequence.clip_length} slices are skipped in this epoch")
        if isinstance(sequence, StreamedSequence) and not self._split_told:
            self._split_told = True
            say(split_among(sequence, ranks))
        kind = StreamedClipLoader if isinstance(sequence, StreamedSequence) else ClipLoader
        self.loader = kind(
            self.store,
            sequence,
            stream,
            source=config.source,
            target=config.target,
            batch=batch,
            rank=trainer.global_rank if trainer else 0,
            ranks=ranks,
            seed=config.seed,
            first_sample=self.position.sample,
            targets=targets,
        )
        return self.loader

    def _current(self) -> ClipSequence:
        if not self.position.clip_length:
            self.position.clip_length = self._clip_length(self.budget_share)
        sequence = self._sequence(self.position.epoch, self.position.clip_length)
        if self.position.sample < len(sequence):
            return sequence
        self.position = Position(self.position.epoch + 1)  # resumed with shorter epochs (trainer.force)
        return self._current()

    def _films(self, modality: str) -> dict[str, int]:
        """Return slices of the training cases that have the modality."""
        training = self.store.index.select("train", self.config.fold)
        films = {case.case_id: case.slices for case in training if modality in case.modalities}
        if not films:
            raise DataError(
                "The shards hold no training case" + (f" with '{modality}'" if training else ""),
                remedy="Change cohort.split and run again from there",
            )
        return films

    def _clip_length(self, share: float) -> int:
        return min(clip_length_at(self.config.stream, share), self._longest)

    def _sequence(self, epoch: int, clip_length: int) -> ClipSequence:
        stream = self.config.stream
        how: dict[str, Any] = {
            "seed": self.config.seed,
            "epoch": epoch,
            "clip_length": clip_length,
            "global_batch": stream.global_batch,
            "stride": stream.clip_stride,
            "limit": stream.clips_per_epoch,
        }
        if isinstance(self.store, RemoteStore):
            shards = [shard.cases for shard in self.store.index.shards]
            buffer = stream.remote.shuffle
            sequence: ClipSequence = streamed_sequence(
                self.slices, shards, streams=self._streams(), buffer=buffer, **how
            )
        else:
            sequence = pair_sequence(self.pairs, **how) if self.pairs else clip_sequence(self.slices, **how)
        if not len(sequence):
            raise ConfigError(
                f"An epoch of clips of {clip_length} slices has fewer of them than stream.global_batch",
                value=f"{sequence.dropped} clips",
                allowed=f"at least {stream.global_batch}",
                remedy="Set a smaller stream.global_batch, or a smaller stream.clip_limit",
            )
        return sequence

    def _ranks(self) -> int:
        trainer = self.config.trainer
        return self.trainer.world_size if self.trainer else trainer.devices * trainer.nodes

    def _streams(self) -> int:
        """Return how many shards are read side by side: one per rank that the epoch began with.

        Raises:
            ConfigError: The epoch began with ranks whose streams these ranks cannot share evenly.
        """
        ranks, streams = self._ranks(), self.position.streams
        if self.position.sample == 0 or not streams:
            self.position.streams = ranks
        elif streams % ranks or self.config.stream.global_batch % streams:
            raise ConfigError(
                "An epoch of shards on a server goes on only with ranks that share its streams evenly",
                value=f"{ranks} rank(s), global batch {self.config.stream.global_batch}; it began with {streams}",
                allowed=", ".join(str(n) for n in range(1, streams + 1) if streams % n == 0),
                remedy="Set trainer.devices and trainer.nodes so; from the next epoch on any number will do",
            )
        return self.position.streams

    def _targets(self, sequence: ClipSequence) -> ClipSequence | None:
        if self.config.stream.pairing != "unpaired":
            return None
        stride = self.config.stream.clip_stride
        return unpaired_targets(self.target_slices, sequence, seed=self.config.seed, stride=stride)

    def advance(self) -> None:
        """Note that all ranks trained on one more global batch."""
        assert self.loader is not None
        self.position.sample += self.loader.samples_per_step
        if self.position.sample >= len(self.loader.sequence):
            self.position = Position(self.position.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain numbers."""
        return asdict(self.position)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a stored position, on any number of ranks and with any accumulation."""
        position, batch = Position(**state_dict), self.config.stream.global_batch
        # The global batch may be another one too (trainer.force).
        self.position = replace(position, sample=position.sample // batch * batch)
