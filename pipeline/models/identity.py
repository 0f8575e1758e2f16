"""The source itself as its translation: the floor that every method is held against."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.models.translator import Batch, Translator


class Identity(Translator):
    """Learns nothing and returns the source."""

    pairings = ("paired", "unpaired", "every_pair", "modalities")

    def training_step(self, batch: Batch, step: int) -> None:
        """Learn nothing."""

    def translate(
        self,
        source: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        source_modality: str,
        target_modality: str,
        generator: torch.Generator | None = None,
        samples: int = 1,
    ) -> torch.Tensor:
        """Return a copy of the source; see ``Translator.translate``."""
        self.only_one(samples)
        return source.detach().float().clone()

    def configure_optimizers(self) -> list[Any]:
        """There is nothing to optimise."""
        return []
