"""Layers for CPUs: PyTorch's numbers and gradients, in the memory format that came in."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet
from torch import nn

from pipeline.networks.cpu_layers import (
    InstanceNorm2d,
    PReLU,
    channels_last,
    is_channels_last,
    lay_out,
    with_cpu_layers,
)
from pipeline.networks.residual_blocks import ResidualBlock, stem


def planes(images):
    return images


def gradients(network, images):
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    result = network(images)
    towards = torch.arange(result.numel(), dtype=result.dtype).reshape(result.shape).sin()
    found = torch.autograd.grad((result * towards).sum(), [images, *network.parameters()])
    return [result.detach(), *found]


@settings(max_examples=20)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 5),
    height=st.integers(1, 6),
    width=st.integers(2, 7),
    affine=st.booleans(),
    lay=st.sampled_from([planes, channels_last]),
)
def test_instance_norm_is_pytorch_s(batch, channels, height, width, affine, lay):
    published = nn.InstanceNorm2d(channels, affine=affine).double()
    ours = InstanceNorm2d(channels, affine=affine).double()
    for parameter in [*published.parameters(), *ours.parameters()]:
        nn.init.uniform_(parameter, generator=torch.Generator().manual_seed(3))
    images = torch.randn(batch, channels, height, width, dtype=torch.float64)
    assert ours.state_dict().keys() == published.state_dict().keys()
    for found, wanted in zip(gradients(ours, lay(images)), gradients(published, images), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)  # the kernels keep statistics of gradients in float32


def test_large_images_are_normalised_alike_with_and_without_gradients():
    images = channels_last(torch.randn(2, 3, 32, 40))
    norm = InstanceNorm2d(3)
    with torch.no_grad():
        quick = norm(images)
    assert is_channels_last(quick)
    assert torch.allclose(quick, norm(images), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lay", [planes, channels_last])
def test_norm_and_activation_keep_format_and_type(dtype, lay):
    images = lay(torch.randn(2, 4, 6, 5).to(dtype))
    for layer in (InstanceNorm2d(4), InstanceNorm2d(4, affine=True), PReLU()):
        result = layer(images)
        assert is_channels_last(result) == is_channels_last(images)
        assert result.dtype == dtype


@pytest.mark.parametrize("lay", [planes, channels_last])
def test_prelu_is_pytorch_s(lay):
    images = lay(torch.randn(2, 3, 5, 4, dtype=torch.float64))
    images[0, 0, 0, 0] = 0
    for found, wanted in zip(gradients(PReLU().double(), images), gradients(nn.PReLU().double(), images), strict=True):
        assert torch.allclose(found, wanted, atol=1e-12)


def test_one_channel_is_laid_out_unambiguously():
    convolution = nn.Conv2d(1, 4, 3)
    images = torch.randn(2, 1, 8, 8)
    assert not is_channels_last(convolution(images))
    assert is_channels_last(convolution(channels_last(images)))
    assert torch.equal(channels_last(images), images)


def test_monai_s_unet_keeps_its_names_weights_and_numbers():
    sizes = {"channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 2, "norm": "instance"}
    torch.manual_seed(0)
    published = UNet(spatial_dims=2, in_channels=2, out_channels=3, **sizes).double()
    ours = lay_out(with_cpu_layers(copy.deepcopy(published)), torch.device("cpu"))
    assert {type(m) for m in ours.modules()} >= {InstanceNorm2d, PReLU}
    ours.load_state_dict(published.state_dict())
    images = torch.randn(2, 2, 24, 16, dtype=torch.float64)
    for found, wanted in zip(gradients(ours, channels_last(images)), gradients(published, images), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def test_features_stay_channels_last_through_a_residual_network():
    network = nn.Sequential(stem(1, 4, "instance"), ResidualBlock(4, "instance"))
    formats = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, result: formats.append(is_channels_last(result)))
    network(torch.randn(1, 1, 12, 10))
    assert len(formats) > 5
    assert all(formats)
