"""Reading of pretrained weights: files that somebody else wrote, and networks of other runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ArtifactError


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict with ``weights_only=True``: such a file can hold tensors, never code.

    Raises:
        ArtifactError: The file is missing, damaged, or holds something else than named tensors.
    """
    state = _read(path, "a state dict of tensors")
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ArtifactError("The file does not hold a state dict", value=path.name, allowed="names and tensors")
    return state


def read_network(path: Path, name: str) -> dict[str, torch.Tensor]:
    """Read the state dict of one network of a method from a checkpoint of 'cinevox train', never code.

    Raises:
        ArtifactError: The file is missing, damaged, or its method has no such network.
    """
    data = _read(path, "a checkpoint of 'cinevox train'")
    state = data.get("state_dict") if isinstance(data, dict) else None
    part = {key.removeprefix(f"{name}."): value for key, value in (state or {}).items() if key.startswith(f"{name}.")}
    if not part:
        raise ArtifactError(f"The checkpoint holds no {name}", value=path.name, allowed="a run of the same method")
    return part


def _read(path: Path, allowed: str) -> Any:
    if not path.is_file():
        raise ArtifactError("The file with pretrained weights does not exist", value=path.name)
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of a cut file torch raises whatever it stumbles over
            raise ArtifactError(
                "The file with pretrained weights cannot be read", value=path.name, allowed=allowed
            ) from error
