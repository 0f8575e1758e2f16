"""Augmentation keyed by the sample: the same flip and small affine for source, target and mask."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.settings import AugmentSettings
from pipeline.stream.sampler import random_for

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
