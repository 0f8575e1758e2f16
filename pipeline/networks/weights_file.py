"""Reading of files with pretrained weights that somebody else wrote."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from pipeline.errors import ArtifactError


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict with ``weights_only=True``: such a file can hold tensors, never code.

    Raises:
        ArtifactError: The file is missing, damaged, or holds something else than named tensors.
    """
    if not path.is_file():
        raise ArtifactError("The file with pretrained weights does not exist", value=path.name)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ArtifactError(
            "The file with pretrained weights cannot be read", value=path.name, allowed="a state dict of tensors"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ArtifactError("The file does not hold a state dict", value=path.name, allowed="names and tensors")
    return state
