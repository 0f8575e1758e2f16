"""From a cohort's fingerprint and the memory at hand to spacing, size and clip length, each with its reason.

The rules, and why they are these, are in docs/explanation/plan.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.imaging.film import pixels_needed
from pipeline.records import CaseFingerprint, Plan
from pipeline.settings import ModelMemory, PreprocessSettings

SIZE_STEP = 16  # what the networks' strides divide
CLIP_MM, CLIP_LIMIT_MM = 15.0, 60.0
SHORTEST_CLIP = 3
_COARSE = 3.0  # an axis this many times as coarse as the finest is the slice axis of thick slices
_COARSE_PERCENTILE = 10
_FEWEST_PIXELS = 64 * 64
_USABLE = {"GPU": 0.75, "RAM": 0.5, "set": 0.75}


class Memory(NamedTuple):
    """Memory for training: GiB, and whose it is ('GPU', 'RAM', or 'set' by hand)."""

    gib: float
    kind: str


def make_plan(
    cases: Sequence[CaseFingerprint],
    settings: PreprocessSettings,
    memory: Memory,
    model: ModelMemory | None,
    clips: int,
) -> Plan:
    """Plan a cohort.

    Args:
        cases: Fingerprints; needed only where the settings leave spacing or size open.
        settings: What is set is taken as it is.
        memory: For training.
        model: What a training step needs per pixel; None where the model does not say.
        clips: In one step.

    Returns:
        The plan, with one reason a line.
    """
    usable = memory.gib * 2**30 * _USABLE[memory.kind]
    shortest = model.step + SHORTEST_CLIP * model.frame if model else 0.0  # a method may need none: identity
    most = max(usable / clips / shortest, _FEWEST_PIXELS) if shortest else math.inf
    spacing, why_spacing = _spacing(cases, settings)
    size, why_size = _size(cases, settings, spacing)
    if settings.spacing_mm is None and settings.size is None and size[0] * size[1] > most:
        why_spacing += (
            f"; rows and columns made coarser, because {memory.gib:g} GiB ({_whose(memory)}) hold a training step "
            f"on {most:,.0f} pixels"
        )
        while size[0] * size[1] > most:
            factor = max(1.01, math.sqrt(size[0] * size[1] / most))
            row, column = (math.ceil(mm * factor * 100 - 1e-6) / 100 for mm in spacing[1:])
            spacing = (spacing[0], row, column)
            size, why_size = _size(cases, settings, spacing)
    pixels = size[0] * size[1]
    length, limit, why_clip = _clips(spacing[0], pixels, usable / clips, memory, model)
    return Plan(
        schema=1,
        spacing_mm=spacing,
        size=size,
        clip_length=length,
        clip_limit=limit,
        memory_gib=memory.gib,
        reasons=[
            f"spacing {spacing[0]:g} x {spacing[1]:g} x {spacing[2]:g} mm: {why_spacing}",
            f"size {size[0]} x {size[1]}: {why_size}",
            f"clips of {length} to {limit} slices: {why_clip}",
        ],
    )


def _spacing(cases: Sequence[CaseFingerprint], settings: PreprocessSettings) -> tuple[tuple[float, float, float], str]:
    if settings.spacing_mm is not None:
        return settings.spacing_mm, "set by hand"
    # Of the values that are there, none between: as many cases as possible keep their voxels.
    values = np.array([case.spacing_mm for case in cases])
    chosen = np.percentile(values, 50, axis=0, method="inverted_cdf")
    axis = int(chosen.argmax())
    why = f"the median of {len(cases)} cases along each axis"
    if chosen[axis] > _COARSE * chosen.min():
        chosen[axis] = np.percentile(values[:, axis], _COARSE_PERCENTILE, method="inverted_cdf")
        why += (
            f"; along the {('slices', 'rows', 'columns')[axis]} the {_COARSE_PERCENTILE}th percentile, "
            f"because they are more than {_COARSE:g} times as coarse"
        )
    # Float32 headers: 1.8750000298 is 1.875 (and films treat both as one).
    slice_mm, row_mm, column_mm = (round(float(mm), 6) for mm in chosen)
    return (slice_mm, row_mm, column_mm), why


def _size(
    cases: Sequence[CaseFingerprint], settings: PreprocessSettings, spacing: tuple[float, float, float]
) -> tuple[tuple[int, int], str]:
    if settings.size is not None:
        return settings.size, "set by hand"
    needed = [max(pixels_needed(case.body_mm[axis], spacing[axis]) for case in cases) for axis in (1, 2)]
    largest = [max(case.body_mm[axis] for case in cases) for axis in (1, 2)]
    rows, columns = (-(-count // SIZE_STEP) * SIZE_STEP for count in needed)
    return (rows, columns), (
        f"the smallest multiples of {SIZE_STEP} that hold every body; the largest is "
        f"{largest[0]:.0f} x {largest[1]:.0f} mm, {needed[0]} x {needed[1]} pixels"
    )


def _clips(
    slice_mm: float, pixels: int, usable: float, memory: Memory, model: ModelMemory | None
) -> tuple[int, int, str]:
    length = max(SHORTEST_CLIP, round(CLIP_MM / slice_mm))
    limit = max(2 * length, round(CLIP_LIMIT_MM / slice_mm))
    why = f"{CLIP_MM:g} to {CLIP_LIMIT_MM:g} mm of anatomy at {slice_mm:g} mm"
    if model is None:
        return length, limit, f"{why}; the model states no memory"
    each = f"{model.step:g} bytes a pixel and {model.frame:g} more a slice, in {memory.gib:g} GiB ({_whose(memory)})"
    room = math.floor((usable / pixels - model.step) / model.frame) if model.frame else limit
    if room >= limit:
        return length, limit, f"{why}, which fits: {each}"
    if room < SHORTEST_CLIP:
        return SHORTEST_CLIP, SHORTEST_CLIP, f"the shortest; it may not fit: {each}"
    return min(length, room), room, f"{why}, cut to what fits: {each}"


def _whose(memory: Memory) -> str:
    share = f"{_USABLE[memory.kind]:.0%} of it used"
    return {"GPU": f"the GPU's, {share}", "RAM": f"RAM, {share}", "set": f"set by hand, {share}"}[memory.kind]
