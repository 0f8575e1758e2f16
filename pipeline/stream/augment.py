"""Augmentation keyed by the sample: the same flip and small affine for source, target and mask; faults of the source.

A CBCT's HU are wrong by an offset, a gain and a smooth shading that depend on the body (scatter, beam hardening,
truncation), and a few patients show only a few of these errors. Drawing more of them teaches a method to find the
error of the scan at hand instead of remembering those of its training patients.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.stream.sampler import random_for
from pipeline.stream_settings import AugmentSettings

_AIR_HU = -1000.0  # a gain on attenuation leaves air where it is
_SHADING_NODES = (4, 4)  # rows, columns of the random grid: waves as long as half a body and longer

cv2.setNumThreads(0)  # the reader has threads of its own


class Augmentation:
    """The draw for one sample; applied to every frame of a clip alike, so that a film stays a film."""

    def __init__(
        self,
        settings: AugmentSettings,
        size: tuple[int, int],
        seed: int,
        epoch: int,
        index: int,
        stream: str = "augment",
    ) -> None:
        draw = random_for(seed, stream, epoch, index)
        self.flip = bool(draw.random() < settings.flip)
        angle = draw.uniform(-1, 1) * settings.rotate_degrees
        scale = 1 + draw.uniform(-1, 1) * settings.scale
        shift = draw.uniform(-1, 1, 2) * settings.shift_pixels
        centre = ((size[1] - 1) / 2, (size[0] - 1) / 2)
        self.matrix = cv2.getRotationMatrix2D(centre, angle, scale)
        self.matrix[:, 2] = self.matrix[:, 2] + shift
        self.moves = bool(settings.rotate_degrees or settings.scale or settings.shift_pixels)
        self.gain = 1 + draw.uniform(-1, 1) * settings.intensity
        self.gamma = float(np.exp(draw.uniform(-1, 1) * settings.intensity))
        # Below: drawn last, so that the draws above are those of a run without faults.
        self.source_gain = 1 + draw.uniform(-1, 1) * settings.source_gain
        self.offset_hu = draw.uniform(-1, 1) * settings.source_offset_hu
        strongest = draw.uniform(0, 1) * settings.source_shading_hu
        self.shading_hu = strongest * _shading(draw, size) if strongest else np.zeros(size, np.float32)
        self.faults = bool(settings.source_gain or settings.source_offset_hu or settings.source_shading_hu)

    def move(self, frames: NDArray, *, nearest: bool = False, outside: float = -1.0) -> NDArray:
        """Flip and warp (frames, rows, columns) in place; returns it."""
        for k in range(len(frames)):
            if self.flip:
                frames[k] = cv2.flip(frames[k], 1)
            if self.moves:
                frames[k] = cv2.warpAffine(
                    frames[k],
                    self.matrix,
                    (frames.shape[2], frames.shape[1]),
                    flags=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR,
                    borderMode=cv2.BORDER_CONSTANT,
                    borderValue=outside,
                )
        return frames

    def intensify(self, frames: NDArray) -> NDArray:
        """Change contrast and brightness of normalised MR frames in place (never of CT: HU are physical)."""
        for frame in frames:
            frame += 1
            frame /= 2
            frame *= self.gain
            np.clip(frame, 0, 1, out=frame)
            np.power(frame, self.gamma, out=frame)
            frame *= 2
            frame -= 1
        return frames

    def distort(self, frames: NDArray, mask: NDArray, window: tuple[float, float]) -> NDArray:
        """Put CBCT's faults onto normalised source frames in place, where ``mask`` is not 0; returns it.

        ``HU' = gain * (HU + 1000) - 1000 + offset + shading``: the same field on every frame, as faults change little
        over the few centimetres of a clip. ``window`` is the HU that became -1 and 1; results are clipped to it.
        """
        low, high = window
        per_hu = 2 / (high - low)
        gain = self.source_gain
        field = per_hu * (self.offset_hu + self.shading_hu) + (gain - 1) * (1 + per_hu * (low - _AIR_HU))
        inside = mask != 0
        np.multiply(frames, np.float32(gain), out=frames, where=inside)
        np.add(frames, field.astype(np.float32), out=frames, where=inside)
        return np.clip(frames, -1, 1, out=frames)


def _shading(draw: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float32]:
    """Return a smooth random field of the frame's size whose mean is 0 and whose largest value is 1 or -1."""
    nodes = draw.standard_normal(_SHADING_NODES).astype(np.float32)
    waves: NDArray[np.float32] = np.asarray(cv2.resize(nodes, (size[1], size[0]), interpolation=cv2.INTER_CUBIC))
    field = waves - waves.mean()  # the offset has a setting of its own
    return np.asarray(field / np.abs(field).max(), np.float32)
