"""Films for the page: the volumes of one case cut, quantised and compressed so that a browser restores them exactly.

A voxel becomes a code: 0 is unknown, else ``1 + round((value - low) / step)``. Each slice is predicted from its left
and upper neighbours (the median predictor of LOCO-I: Weinberger et al., IEEE Trans. Image Processing 2000), the
residuals are folded to unsigned 16-bit numbers, low bytes before high bytes, deflated and written as base64. On CT
this is a quarter smaller than PNG, and no browser's image decoder or canvas read-back comes between the numbers and
the reader.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.imaging.film import bounding_box
from pipeline.reporting.pictures import SOURCE, TARGET, PictureCase, crop

METHOD, REGION = "method", "region"
_LEVELS = 4096  # of a unit without natural steps; CT's 12 bits
_STEPS = (1, 2, 4)
_PROBES = 6  # slices that an estimate of the size looks at


@dataclass(frozen=True)
class Cut:
    """How a film is thinned: pixels averaged in blocks, every ``stride``-th slice, values rounded to ``step``."""

    block: int
    stride: int
    step: int


@dataclass(frozen=True)
class Track:
    """One volume of a film: ``kind`` is source, method, target or region; ``data`` the packed codes.

    Its values are ``low + (code - 1) * step`` in ``unit``; ``window`` (level, width) where the volume has a grey
    scale of its own, because its unit is not the target's.
    """

    name: str
    kind: str
    low: float
    step: float
    levels: int
    unit: str
    data: str
    window: tuple[float, float] | None = None


@dataclass(frozen=True)
class Film:
    """What a player needs: ``shape`` and ``affine`` (index to mm, RAS+) are those of the thinned film in film order.

    ``first`` is the volume's voxel that the film begins with and ``total`` the volume's shape; ``errors`` holds for
    each volume and slice the mean absolute difference to the target inside the region, measured before thinning.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    first: tuple[int, int, int]
    total: tuple[int, int, int]
    cut: Cut
    unit: str
    limits: tuple[float, float]
    tracks: list[Track]
    errors: dict[str, list[float | None]]

    @property
    def bytes(self) -> int:
        """Size of the packed volumes inside the page."""
        return sum(len(track.data) for track in self.tracks)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Slice, row and column spacing of the thinned film."""
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(a), float(b), float(c)

    def nearest(self, voxel: tuple[int, int, int]) -> list[int]:
        """Return the film's voxel that lies nearest to a voxel of the volume."""
        thinned = (self.cut.stride, self.cut.block, self.cut.block)
        along = zip(voxel, self.first, thinned, self.shape, strict=True)
        return [min(max(0, (index - first) // step), size - 1) for index, first, step, size in along]

    def header(self) -> dict[str, Any]:
        """Return everything but the voxels as plain data."""
        fields = ("name", "kind", "low", "step", "levels", "unit", "window")
        return {
            "shape": self.shape,
            "spacing_mm": self.spacing_mm,
            "affine": self.affine[:3].tolist(),
            "first": self.first,
            "stride": (self.cut.stride, self.cut.block, self.cut.block),
            "total": self.total,
            "unit": self.unit,
            "tracks": [
                {name: getattr(track, name) for name in fields}
                | {"errors": self.errors.get(track.name) if track.kind in (SOURCE, METHOD) else None}
                for track in self.tracks
            ],
        }

    def describe(self) -> str:
        """Say in one sentence what was thinned and rounded, for the reader of the page."""
        slice_mm, row_mm, column_mm = self.spacing_mm
        which = "every slice" if self.cut.stride == 1 else f"one slice in {self.cut.stride}"
        step = next(t.step for t in self.tracks if t.kind == TARGET)
        low, high = self.limits
        text = f"{which}, {slice_mm:.3g} mm apart; pixels of {row_mm:.3g} × {column_mm:.3g} mm"
        if self.cut.block > 1:
            text += f" (means of {self.cut.block} × {self.cut.block})"
        return f"{text}; values from {low:g} to {high:g} {self.unit} in steps of {step:.3g} {self.unit}"


def make_film(case: PictureCase, limits: tuple[float, float], budget: int) -> Film:
    """Cut a case into the finest film that takes at most ``budget`` bytes of the page.

    As many voxels as fit when values are rounded to 4 HU; what is left of the budget goes into a finer step.

    Args:
        case: The volumes.
        limits: Lowest and highest value that is kept, in the case's unit.
        budget: Bytes of text.

    Raises:
        DataError: Not even one voxel fits.
    """
    box = crop(case)
    frame = bounding_box(case.frame)
    if frame is not None:
        box = (frame[0], box[1], box[2])
    size = (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start)
    for block, stride in _thinnings(case.spacing_mm, size):
        kept = np.arange(box[0].start, box[0].stop, stride)
        probes = kept[np.unique(np.linspace(0, len(kept) - 1, min(len(kept), _PROBES)).round().astype(int))]
        fits = []
        for step in reversed(_STEPS):  # coarse ones decide whether finer ones can fit
            probed = _tracks(case, limits, Cut(block, stride, step), probes, box)
            if sum(len(track.data) for track in probed) * len(kept) > budget * len(probes):
                break
            fits.append(Cut(block, stride, step))
        for cut in reversed(fits):
            tracks = _tracks(case, limits, cut, kept, box)
            if sum(len(track.data) for track in tracks) > budget:
                continue
            corner = [box[0].start] + [part.start + (block - 1) / 2 for part in box[1:]]
            affine = case.affine.copy()
            affine[:3, 3] = case.affine[:3, :3] @ corner + case.affine[:3, 3]
            affine[:3, :3] *= (stride, block, block)
            shape = (len(kept), math.ceil(size[1] / block), math.ceil(size[2] / block))
            errors = {name: _numbers(case.slice_errors(name)[kept]) for name in case.volumes}
            first, total = (box[0].start, box[1].start, box[2].start), case.region.shape
            return Film(shape, affine, first, total, cut, case.unit, limits, tracks, errors)
    raise DataError(
        f"No film of case '{case.case}' fits",
        value=f"{budget} bytes",
        remedy="Raise report.megabytes, draw fewer report.cases, or set report.films=false",
    )


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Return values with four digits; JSON has no NaN."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


def _thinnings(spacing_mm: tuple[float, float, float], size: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
    """Return (block, stride), the most voxels first, whose voxels are not longer than twice their width, or wider."""
    slice_mm, pixel_mm = spacing_mm[0], min(spacing_mm[1:])

    def stretch(pair: tuple[int, int]) -> float:
        ratio = slice_mm * pair[1] / (pixel_mm * pair[0])
        return max(ratio, 1 / ratio)

    allowed = max(2.0, stretch((1, 1)))
    pairs = [(b, s) for b in range(1, max(size[1:]) + 1) for s in range(1, size[0] + 1)]
    last = 0.0
    for pair in sorted((p for p in pairs if stretch(p) <= allowed), key=lambda p: (p[0] ** 2 * p[1], stretch(p))):
        thinned = pair[0] ** 2 * pair[1]
        if thinned > 1.15 * last:  # too small a difference is not worth a trial
            last = thinned
            yield pair


def _tracks(
    case: PictureCase, limits: tuple[float, float], cut: Cut, kept: NDArray, box: tuple[slice, slice, slice]
) -> list[Track]:
    def track(name: str, kind: str, array: NDArray, low: float, high: float, unit: str, **more: Any) -> Track:
        # Hounsfield units come in whole numbers; other units are divided as finely as 12 bits do.
        step = cut.step * (1.0 if unit == "HU" else (high - low) / (_LEVELS - 1))
        thinned = _average(array[kept][:, box[1], box[2]], cut.block)
        codes = quantise(thinned, low, high, step)
        return Track(name, kind, low, step, int((high - low) / step + 0.5) + 1, unit, pack(codes), **more)

    tracks = []
    if case.other_source is not None:
        known = case.other_source[np.isfinite(case.other_source)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        high = high if high > low else low + 1.0
        first, last = case.source_scale
        window = ((first + last) / 2, last - first)
        tracks.append(track(SOURCE, SOURCE, case.other_source, low, high, "", window=window))
    for name, array in case.volumes.items():
        tracks.append(track(name, SOURCE if name == SOURCE else METHOD, array, *limits, case.unit))
    tracks.append(track(TARGET, TARGET, case.target, *limits, case.unit))
    inside = _average(case.region[kept][:, box[1], box[2]].astype(np.float32), cut.block) >= 0.5
    tracks.append(Track(case.region_name, REGION, 0.0, 1.0, 1, "", pack(inside.astype(np.uint16))))
    return tracks


def _average(array: NDArray, block: int) -> NDArray[np.float32]:
    """Return means of ``block`` x ``block`` pixels; those without a value do not count, and the edge is filled up."""
    if block == 1:
        return array.astype(np.float32)
    rows, columns = (-n % block for n in array.shape[1:])
    padded = np.pad(array.astype(np.float32), ((0, 0), (0, rows), (0, columns)), constant_values=np.nan)
    slices, tall, wide = padded.shape
    blocks = padded.reshape(slices, tall // block, block, wide // block, block)
    known = np.isfinite(blocks)
    count = known.sum(axis=(2, 4))
    total = np.where(known, blocks, 0).sum(axis=(2, 4))
    return np.divide(total, count, out=np.full(total.shape, np.nan, np.float32), where=count > 0)


def quantise(array: NDArray, low: float, high: float, step: float) -> NDArray[np.uint16]:
    """Return codes: 0 where there is no finite value, else 1 for ``low`` and one more per ``step``, up to ``high``."""
    known = np.isfinite(array)
    clipped = np.clip(np.where(known, array, low), low, high)
    return np.where(known, 1 + np.rint((clipped - low) / step), 0).astype(np.uint16)


def pack(codes: NDArray[np.uint16]) -> str:
    """Return codes (slices, rows, columns; at most 32767) as base64 of deflated residuals."""
    values = codes.astype(np.int32)
    padded = np.pad(values, ((0, 0), (1, 0), (1, 0)))
    left, above, corner = padded[:, 1:, :-1], padded[:, :-1, 1:], padded[:, :-1, :-1]
    smaller, larger = np.minimum(left, above), np.maximum(left, above)
    residual = values - np.clip(left + above - corner, smaller, larger)
    folded = (residual << 1) ^ (residual >> 31)
    planes = np.stack([folded & 255, folded >> 8]).astype(np.uint8)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    return base64.b64encode(deflate.compress(planes.tobytes()) + deflate.flush()).decode()
