"""The schema of what a training reads: sampling, augmentation, and shards on a server."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.section import Count, Fraction, NotNegative, Positive, Section


def _auto_count(value: Any) -> Any:
    return 0 if value == "auto" else value


AutoCount = Annotated[int, Field(ge=0), BeforeValidator(_auto_count)]  # 0: auto


class AugmentSettings(Section):
    """The same flip and small affine for source, target and mask; intensity for MR; faults for a source in HU."""

    flip: Fraction
    rotate_degrees: NotNegative
    scale: Fraction
    shift_pixels: NotNegative
    intensity: Fraction
    source_offset_hu: NotNegative  # largest; 0: off, also below
    source_gain: Fraction  # largest change of attenuation
    source_shading_hu: NotNegative  # largest peak of a smooth field


class RemoteSettings(Section):
    """Shards on a server (input=URL): how they are shuffled, fetched and kept; keys are not settings."""

    shuffle: Count  # clips of the buffer that they are drawn from
    cache_gib: Positive  # of this machine's disk, for shards
    attempts: Count  # per file, with pauses that double
    timeout_s: Positive  # without a byte
    slowest_mb_s: Positive  # a transfer below this is given up
    endpoint_url: Annotated[str, Field(pattern=r"^(https?://[^\s@?#]+)?$")]  # of an S3 that is not Amazon's
    anonymous: bool  # S3 without credentials


class StreamSettings(Section):
    """What a training reads from shards, and how intensities are normalised."""

    window: dict[str, tuple[float, float]]  # physical values mapped to [-1, 1] and clipped
    # unpaired: targets in an order of their own, from any case that has them; every_pair: of all that a case has, each
    # ordered pair as often as the others; modalities: each modality as its own target
    pairing: Literal["paired", "unpaired", "every_pair", "modalities"]
    pairs: list[Annotated[str, Field(pattern="^[a-z0-9]+:[a-z0-9]+$")]]  # of every_pair, as SOURCE:TARGET; empty: all
    outside_mask: Literal["lowest", "keep"]  # what lies outside the mask
    clip_length: AutoCount  # auto: as planned by 'cinevox preprocess'
    clip_growth: Count  # number of stages over the budget; the clip length doubles at each; 1: constant
    clip_limit: AutoCount
    clip_stride: Count  # distance between the first slices of two clips
    clips_per_epoch: Annotated[int, Field(ge=0)]  # 0: every clip once
    global_batch: Count  # clips per optimiser step, over all ranks
    accumulate: Count  # backward passes per optimiser step: global_batch = ranks x clips of a pass x accumulate
    augment: AugmentSettings
    threads: Count
    prefetch: Count
    remote: RemoteSettings

    @model_validator(mode="after")
    def _windows_ascend(self) -> Self:
        for modality, (low, high) in self.window.items():
            if not low < high:
                raise ValueError(f"the window of '{modality}' is inverted or empty: [{low:g}, {high:g}]")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.global_batch % self.accumulate:
            raise ValueError(f"global_batch {self.global_batch} is no multiple of accumulate {self.accumulate}")
        return self
