"""Layers with PyTorch's names, weights and results, in the forms that a CPU computes fastest.

oneDNN's convolutions run at their floor on channels-last images; planes they reorder before and after. A layer that
falls back to planes undoes this, and PyTorch's instance norm does. Its PReLU has no vectorised backward pass.
On GPUs and under ``torch.compile``, which writes its own kernels, PyTorch's forms are kept.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """Return (batch, channels, height, width) with the channels innermost in memory on a CPU, else as it is."""
    if images.device.type != "cpu":
        return images
    if images.shape[1] == 1:  # both formats at once; only a clone's strides say which one is meant
        return images.clone(memory_format=torch.channels_last)
    return images.contiguous(memory_format=torch.channels_last)


def is_channels_last(images: torch.Tensor) -> bool:
    """Return whether (batch, channels, height, width) lies channels-last in memory and not in planes."""
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


_LARGE = 1024  # pixels from which PyTorch's group norm takes its fast kernel for channels-last images


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance norm that keeps the memory format.

    Group norm with a group per channel is the same sum, and so is batch norm over a single image. The former is
    faster, but not on small channels-last images, nor in its backward pass on any.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise each channel of each image of (batch, channels, height, width) by itself."""
        if input.device.type != "cpu" or self.track_running_stats or input.shape[2:].numel() < 2:
            return super().forward(input)
        if torch.compiler.is_compiling():
            exact = input.to(torch.promote_types(input.dtype, torch.float32))
            spread, mean = torch.var_mean(exact, (2, 3), correction=0, keepdim=True)
            normal = (exact - mean) * torch.rsqrt(spread + self.eps)
            if self.weight is not None:
                normal = normal * self.weight[:, None, None] + self.bias[:, None, None]
            return normal.to(input.dtype)
        large = input.shape[2:].numel() >= _LARGE and not torch.is_grad_enabled()
        if large or not is_channels_last(input):
            return F.group_norm(input, input.shape[1], self.weight, self.bias, self.eps)
        alone = [F.batch_norm(i, None, None, self.weight, self.bias, True, 0.0, self.eps) for i in input.split(1)]
        return alone[0] if len(alone) == 1 else torch.cat(alone)


class _LeakyWithSlope(torch.autograd.Function):
    """PReLU of one slope, from vectorised parts."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(features, slope)
        return F.leaky_relu(features, float(slope))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        features, slope = ctx.saved_tensors
        (grad,) = grads
        back = for_slope = None
        if ctx.needs_input_grad[0]:
            back = torch.ops.aten.leaky_relu_backward(grad, features, float(slope), False)
        if ctx.needs_input_grad[1]:
            for_slope = (grad * features.clamp(max=0)).sum(dtype=slope.dtype).reshape(slope.shape)
        return back, for_slope


class PReLU(nn.PReLU):
    """PReLU whose backward pass on a CPU is vectorised, for one slope."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``input`` where it is positive, else times the slope."""
        if input.device.type != "cpu" or self.num_parameters != 1 or torch.compiler.is_compiling():
            return super().forward(input)
        result: torch.Tensor = _LeakyWithSlope.apply(input, self.weight)
        return result


def lay_out(network: Network, device: torch.device) -> Network:
    """Put the convolutions' weights channels-last for a CPU, so that no step does it again; returns the network."""
    if device.type == "cpu":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def with_cpu_layers(network: Network) -> Network:
    """Replace PyTorch's instance norms and PReLUs inside a network by ours, with their weights; returns it."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            layer: nn.Module
            if type(child) is nn.InstanceNorm2d and not child.track_running_stats:
                layer = InstanceNorm2d(child.num_features, child.eps, affine=child.affine)
            elif type(child) is nn.PReLU:
                layer = PReLU(child.num_parameters)
            else:
                continue
            for key, parameter in child.named_parameters():
                setattr(layer, key, parameter)
            setattr(module, name, layer)
    return network
