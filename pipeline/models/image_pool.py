"""The pool of past translations that a discriminator sees again. Source: Shrivastava et al., CVPR 2017 (arXiv
1612.07828), as in CycleGAN's public code: 50 images; once it is full, half of the verdicts are about a stored one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.errors import ConfigError


class ImagePool:
    """Images of earlier steps, the same on all ranks.

    What is drawn depends on the number of steps and the sample alone, and what a step made comes in at its end, from
    all ranks in the order of the samples. So a run goes on with the same pool on another number of ranks or with
    another accumulation. With one image per step this is the published rule to the letter.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ConfigError("The size of the image pool is out of range", value=size, allowed="from 0 (no pool)")
        self.size, self.steps = size, 0
        self.images: list[torch.Tensor] = []  # (channels, height, width) each

    def exchanged(self, images: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Return what the discriminator sees: images of now, and in the place of some, images of the pool.

        Args:
            images: (samples * frames, channels, height, width), detached.
            samples: Indices in the sequence of samples, which decide.
        """
        if not self.size or not self._fits(images):
            return images
        slots = self._slots(images, samples)
        seen = [image if slot is None else self.images[slot] for image, slot in zip(images, slots, strict=True)]
        return torch.stack([image.to(images.device) for image in seen])

    def take_up(self, images: torch.Tensor, samples: torch.Tensor) -> None:
        """Keep what a step made; arguments as in ``exchanged``, of this rank's whole share of the global batch."""
        if not self.size:
            return
        images, samples = _from_all_ranks(images.detach()), _from_all_ranks(samples.to(images.device))
        if self.images and self.images[0].shape != images.shape[1:]:
            self.images = []  # of pictures of another size
        slots = self._slots(images, samples) if self._fits(images) else [None] * len(images)
        full = len(self.images) == self.size
        for image, slot in zip(images, slots, strict=True):
            # A clone: the memory of a batch and of what was made of it is used again.
            if slot is not None:
                self.images[slot] = image.clone()
            elif not full and len(self.images) < self.size:
                self.images.append(image.clone())
        self.steps += 1

    def state(self) -> dict[str, Any]:
        """Return the pool as tensors and numbers."""
        return {"steps": self.steps, "images": torch.stack(self.images) if self.images else torch.zeros(0)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue with a stored pool; of a larger one the first images are kept."""
        self.steps = int(state["steps"])
        self.images = [image.clone() for image in state["images"][: self.size]]

    def _fits(self, images: torch.Tensor) -> bool:
        return len(self.images) == self.size and self.images[0].shape == images.shape[1:]

    def _slots(self, images: torch.Tensor, samples: torch.Tensor) -> list[int | None]:
        """Return for each image the place in the full pool that it is exchanged with; None: with none."""
        frames = len(images) // len(samples)
        slots: list[int | None] = []
        for sample in samples.tolist():
            for frame in range(frames):
                draw = np.random.default_rng([self.steps, int(sample), frame])
                slots.append(int(draw.integers(self.size)) if draw.random() < 0.5 else None)
        return slots


def _from_all_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the ranks' tensors of one shape one after another: a global batch is dealt to them in this order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
