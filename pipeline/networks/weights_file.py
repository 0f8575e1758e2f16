"""Reading of pretrained weights: files that somebody else wrote, and networks of other runs."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
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


def read_inner_weights(path: Path, inside: Sequence[str], beside: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """Read a state dict that lies under one of the names ``inside`` of a file, or is the file; never code.

    Args:
        path: The file.
        inside: Names to look under, in this order.
        beside: Beginnings of names of tensors that belong to something else; they are left out.

    Raises:
        ArtifactError: The file is missing, damaged, holds code, or no named tensors where they are expected.
    """
    data = _read(path, f"a state dict of tensors, alone or under {' or '.join(map(repr, inside))}")
    found = next((data[name] for name in inside if isinstance(data, dict) and name in data), data)
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ArtifactError("The file does not hold a state dict", value=path.name, allowed="names and tensors")
    return {name: value for name, value in found.items() if not name.startswith(tuple(beside))}


def read_network(path: Path, *names: str) -> dict[str, torch.Tensor]:
    """Read the state dict of one network of a method from a checkpoint of 'cinevox train', never code.

    Args:
        path: A run folder (its last checkpoint) or the file.
        names: Where the network may lie in the method; the first that is there is taken.

    Raises:
        ArtifactError: The file is missing, damaged, or its method has no such network.
    """
    state = _state_of(path)
    for name in names:
        part = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        if part:
            return part
    raise ArtifactError(f"The checkpoint holds no {names[-1]}", value=path.name, allowed="a run whose method has it")


def read_buffer(path: Path, name: str) -> torch.Tensor:
    """Read one tensor of a method from a checkpoint of 'cinevox train', never code.

    Raises:
        ArtifactError: The file is missing, damaged, or its method has no such tensor.
    """
    state = _state_of(path)
    if name not in state:
        raise ArtifactError(f"The checkpoint holds no {name}", value=path.name, allowed="a run whose method has it")
    return state[name]


def _state_of(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict of a method's checkpoint, given the file or the run folder."""
    file = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    data = _read(file, "a checkpoint of 'cinevox train'")
    state = data.get("state_dict") if isinstance(data, dict) else None
    return state if isinstance(state, dict) else {}


def _read(path: Path, allowed: str) -> Any:
    if not path.is_file():
        raise ArtifactError("The file with pretrained weights does not exist", value=path.name)
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")  # what follows is refused anyway
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # of a cut file torch raises whatever it stumbles over
            classes = isinstance(error, pickle.UnpicklingError)  # as a file of a whole training often names them
            raise ArtifactError(
                "The file with pretrained weights cannot be read",
                value=path.name,
                allowed=allowed,
                remedy="Where you trust the file, save its state dict alone with torch.save" if classes else "",
            ) from error
