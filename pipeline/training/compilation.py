"""``torch.compile`` of a method's networks, in place, so that checkpoints keep their names."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pipeline.errors import ConfigError


def check_compiler(device: torch.device) -> None:
    """Refuse ``compile`` where its kernels could not be built, before any data is touched.

    Raises:
        ConfigError: No C++ compiler or no headers of Python; on a GPU also: no Triton.
    """
    remedy = "or set trainer.compile=false (translate.compile=false)"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            "compile=true needs a C++ compiler", value=f"no '{compiler}' on the path", remedy=f"Install g++, {remedy}"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise ConfigError(
            "compile=true needs Python's headers", value="no Python.h", remedy=f"Install python3-dev, {remedy}"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise ConfigError("compile=true needs Triton on a GPU", value="none", remedy=f"Install triton, {remedy}")


def trained_networks(method: nn.Module) -> list[nn.Module]:
    """Return the networks that a training step runs: the method's children, the members of its lists one by one."""
    networks: list[nn.Module] = []
    for child in method.children():
        members = list(child) if isinstance(child, nn.ModuleList) else [child]
        networks += [m for m in members if not isinstance(m, AveragedModel) and _computes(m)]
    return networks


def compile_networks(method: nn.Module) -> None:
    """Compile the networks that a training step runs; nothing happens until the first step.

    Shapes that change (a longer clip, a last batch) are compiled once more with free dimensions, then no more.
    """
    for network in trained_networks(method):
        network.compile()


def compile_for_inference(method: nn.Module) -> None:
    """Compile the networks of a method that will not learn any more: weights become constants of the kernels.

    The whole process is set so, because dynamo reads the setting itself and not the options of one compilation.
    """
    import torch._inductor.config as inductor  # slow to import

    inductor.freezing = True
    averages = [child.module for child in method.children() if isinstance(child, AveragedModel)]
    for network in [*trained_networks(nn.ModuleList(averages)), *trained_networks(method)]:
        network.compile()


def _computes(network: nn.Module) -> bool:
    return any(isinstance(m, (nn.Linear, nn.modules.conv._ConvNd)) for m in network.modules())
