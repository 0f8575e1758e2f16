import math

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.resnet_generator import ResnetGenerator
from pipeline.training.memory import recompute_activations
from pipeline.training.precision import round_weights


def published_shapes(channels_in: int = 3, channels_out: int = 3, width: int = 64, blocks: int = 9) -> dict:
    """Names and shapes as the public code makes them."""
    wide = 4 * width
    shapes = {
        "model.1": (width, channels_in, 7, 7),
        "model.4": (2 * width, width, 3, 3),
        "model.7": (wide, 2 * width, 3, 3),
        f"model.{10 + blocks}": (wide, 2 * width, 3, 3),  # transposed: inputs first
        f"model.{13 + blocks}": (2 * width, width, 3, 3),
        f"model.{17 + blocks}": (channels_out, width, 7, 7),
    }
    shapes |= {f"model.{10 + b}.conv_block.{layer}": (wide, wide, 3, 3) for b in range(blocks) for layer in (1, 5)}
    outputs = {name: shape[0] for name, shape in shapes.items()}
    outputs |= {f"model.{10 + blocks}": 2 * width, f"model.{13 + blocks}": width}
    weights = {f"{name}.weight": shape for name, shape in shapes.items()}
    return weights | {f"{name}.bias": (count,) for name, count in outputs.items()}


def test_all_48_tensors_have_the_published_names_and_shapes():
    with torch.device("meta"):
        state = ResnetGenerator(3, 3).state_dict()
    assert len(state) == 48
    assert {name: tuple(value.shape) for name, value in state.items()} == published_shapes()


@pytest.mark.parametrize(("channels", "count"), [(3, 11_378_179), (1, 11_365_633)])
def test_the_published_number_of_parameters(channels, count):
    with torch.device("meta"):
        network = ResnetGenerator(channels, channels)
    assert sum(p.numel() for p in network.parameters()) == count


def test_a_hand_computed_tiny_case():
    """Every convolution hands channel 0 on unchanged: what is left are norms, ReLUs, strides and the head."""
    network = ResnetGenerator(width=1, blocks=1)
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.zeros_(module.weight)
            middle = module.kernel_size[0] // 2
            module.weight.data[(0, slice(None)) if isinstance(module, nn.ConvTranspose2d) else (slice(None), 0)][
                ..., middle, middle
            ] = 1
    nn.init.zeros_(network.model[10].conv_block[5].weight)  # the block adds nothing
    network.model[18].weight.data *= 0.1
    network.model[18].bias.data[:] = -0.2
    image = torch.ones(1, 1, 8, 8)
    image[..., :4] = -1
    result = network(image)
    # Norm and ReLU make 0 | 1 of -1 | 1; halvings keep every second pixel: 2 x 2 with a column of ones. A doubling sets
    # each between zeros; after the second, 2 of 64 pixels are not 0: normed, sqrt((1 - p) / p) with p = 1 / 32.
    expected = torch.full((8, 8), math.tanh(-0.2))
    expected[[0, 4], 4] = math.tanh(0.1 * math.sqrt(31) - 0.2)
    assert torch.allclose(result[0, 0], expected, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (9, 13), (1, 5)])
def test_any_size_is_kept(size):
    result = ResnetGenerator(width=2, blocks=1)(torch.rand(2, 1, *size))
    assert result.shape == (2, 1, *size)
    assert result.abs().max() <= 1


def test_a_network_of_three_channels_takes_a_grey_image_in_all_of_them_and_gives_their_mean():
    network, image = ResnetGenerator(3, 3, width=2, blocks=1), torch.rand(2, 1, 8, 8)
    result = network(image)
    assert result.shape == (2, 1, 8, 8)
    assert torch.allclose(result, network(image.repeat(1, 3, 1, 1)).mean(1, keepdim=True))
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_stages_are_the_whole_network_in_order():
    network = ResnetGenerator(width=2, blocks=3)
    assert [module for stage in network.stages() for module in stage] == list(network.model)
    assert [len(stage) for stage in network.stages()] == [10, 3, 9]


def test_dropout_and_other_norms_change_the_layers_as_in_the_public_code():
    names = ResnetGenerator(width=2, blocks=1, dropout=0.5).state_dict()
    assert {"model.10.conv_block.1.weight", "model.10.conv_block.6.weight"} <= set(names)
    batch = ResnetGenerator(width=2, blocks=1, norm="batch").state_dict()
    assert "model.2.running_mean" in batch
    assert "model.1.bias" not in batch
    with pytest.raises(ConfigError, match="dropout in"):
        ResnetGenerator(dropout=1.0)


def test_the_head_stays_in_float32_and_blocks_can_be_recomputed():
    network = ResnetGenerator(width=2, blocks=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.rand(1, 1, 8, 8)).dtype == torch.float32
    recompute_activations(network)
    network(torch.rand(1, 1, 8, 8)).sum().backward()
    assert network.model[10].conv_block[1].weight.grad is not None
    round_weights(network)
    assert network.model[-2].weight.dtype == torch.float32
    assert network.model[1].weight.dtype == torch.bfloat16
