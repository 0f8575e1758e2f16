"""Files of public ResNet generators: what is in them, and how they come into a network of one channel or of three.

Layout: junyanz/pytorch-CycleGAN-and-pix2pix, ``latest_net_G.pth``: one generator, from 3 channels to 3.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from pipeline.errors import ArtifactError
from pipeline.networks.resnet_generator import ResnetGenerator
from pipeline.networks.weights_file import read_weights

ALLOWED = "a ResNet generator of CycleGAN's public code, without dropout"
# Old instance norms kept statistics that the translation never used; strict loading fails on them today.
_LEGACY = re.compile(r"(.*)\.(running_mean|running_var|num_batches_tracked)")
_SHOWN = 4  # names in a message


def read_generator(path: Path) -> dict[str, torch.Tensor]:
    """Read a public generator's weights in float32, without legacy statistics and without ``module.`` prefixes.

    Raises:
        ArtifactError: The file is missing, damaged, holds code, or is no ResNet generator; the difference is named.
    """
    state = {key.removeprefix("module."): value for key, value in read_weights(path).items()}
    if kind := _other_network(state):
        raise ArtifactError("The file is no ResNet generator", value=f"'{path.name}', {kind}", allowed=ALLOWED)
    state = {key: value.float() for key, value in state.items() if not _legacy(key, state)}
    first = state.get("model.1.weight")
    blocks = len({key.split(".")[1] for key in state if ".conv_block." in key})
    if first is None or first.dim() != 4 or not blocks:
        raise ArtifactError(
            "The file is no ResNet generator", value=f"'{path.name}', {_listed(state)}", allowed=ALLOWED
        )
    head = state.get(f"model.{_last(blocks)}.weight")
    with torch.device("meta"):
        like = ResnetGenerator(first.shape[1], head.shape[0] if head is not None else 1, first.shape[0], blocks)
    _compare(path.name, state, like)
    if broken := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise ArtifactError("Weights of the file are not finite numbers", value=f"'{path.name}', {_listed(broken)}")
    return state


def channels_of(state: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Return the channels in and out of a generator's weights."""
    blocks = len({key.split(".")[1] for key in state if ".conv_block." in key})
    return state["model.1.weight"].shape[1], state[f"model.{_last(blocks)}.weight"].shape[0]


def load_generator(network: ResnetGenerator, state: dict[str, torch.Tensor], name: str) -> None:
    """Put a file's weights into a network of as many channels, or into one of a single channel where they have more.

    Into a single channel: the first convolution's weights are summed over its input channels, which gives exactly what
    an image repeated in all of them gave. The last one's weights and bias are averaged over its output channels: the
    mean before the tanh, where a network that stays at 3 channels takes the mean after it.

    Args:
        network: Of the file's width and number of blocks.
        state: From ``read_generator``.
        name: Of the file, for messages.

    Raises:
        ArtifactError: The network is another one; the difference is named.
    """
    last = _last(network.blocks)
    first, weight, bias = "model.1.weight", f"model.{last}.weight", f"model.{last}.bias"
    state = dict(state)
    if network.channels_in == 1 and first in state:
        state[first] = state[first].sum(1, keepdim=True)
    if network.channels_out == 1 and weight in state and bias in state:
        state[weight], state[bias] = state[weight].mean(0, keepdim=True), state[bias].mean(0, keepdim=True)
    _compare(name, state, network)
    network.load_state_dict(state)


def _last(blocks: int) -> int:
    """Return the place of the last convolution."""
    return 17 + blocks


def _legacy(key: str, state: dict[str, torch.Tensor]) -> bool:
    """Whether an entry is a statistic of an instance norm, which has no weight beside it."""
    found = _LEGACY.fullmatch(key)
    return found is not None and f"{found[1]}.weight" not in state


def _other_network(state: dict[str, torch.Tensor]) -> str:
    """Say which other network of the same code a file holds; empty: none that is known."""
    if any(key.split(".")[:2] == ["model", "model"] for key in state):
        return "a U-Net of pix2pix"
    first = state.get("model.0.weight")
    if first is not None and first.shape[2:] == (4, 4):
        return "a patch discriminator"
    if any(re.fullmatch(r"model\.\d+\.conv_block\.6\.weight", key) for key in state):
        return "a generator with dropout or with another norm"
    return ""


def _compare(name: str, state: dict[str, torch.Tensor], network: ResnetGenerator) -> None:
    """Refuse weights whose names or shapes are not the network's."""
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if difference := _difference(found, expected, network):
        raise ArtifactError(
            "The file's generator is another one than the network", value=f"'{name}': {difference}", allowed=ALLOWED
        )


def _difference(
    found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], network: ResnetGenerator
) -> str:
    blocks = len({key.split(".")[1] for key in found if ".conv_block." in key})
    if blocks != network.blocks:
        return f"{blocks} residual blocks, where the network has {network.blocks}"
    if missing := sorted(expected.keys() - found.keys()):
        return f"it lacks {_listed(missing)}"
    if extra := sorted(found.keys() - expected.keys()):
        return f"it has what the network has not: {_listed(extra)}"
    first, last = "model.1.weight", f"model.{_last(blocks)}.weight"
    if found[first][0] != expected[first][0]:
        return f"{found[first][0]} channels at full resolution (width), where the network has {expected[first][0]}"
    pairs = (found[first][1], expected[first][1]), (found[last][0], expected[last][0])
    if any(one != other for one, other in pairs):
        channels = f"{pairs[0][0]} channels to {pairs[1][0]}"
        return f"{channels}, where the network has {pairs[0][1]} to {pairs[1][1]}"
    other = [f"{key} {found[key]} instead of {shape}" for key, shape in expected.items() if found[key] != shape]
    return f"other shapes: {_listed(other)}" if other else ""


def _listed(names: object) -> str:
    listed = list(names)  # type: ignore[call-overload]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"{len(listed)} entries: " + ", ".join(str(name) for name in listed[:_SHOWN]) + more
