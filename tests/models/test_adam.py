"""The fused optimiser: torch's plain one in every memory format, also across a checkpoint from another one."""

import itertools

import pytest
import torch

from pipeline.models.adam import Adam

FORMATS = (torch.channels_last, torch.contiguous_format)


def draw(shape, seed, memory_format):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(memory_format=memory_format)


def begin(kind, memory_format):
    """Weights of a convolution, of one that has both formats at once, and a bias; and their optimiser."""
    shapes = ((4, 3, 3, 3), (4, 1, 3, 3))
    weights = [torch.nn.Parameter(draw(shape, 0, memory_format)) for shape in shapes]
    weights.append(torch.nn.Parameter(torch.ones(4)))
    return weights, kind(weights, 0.01, betas=(0.5, 0.999))


def advance(weights, optimizer, steps, memory_format):
    for step in steps:
        for weight in weights:
            weight.grad = draw(weight.shape, step, memory_format if weight.dim() == 4 else torch.contiguous_format)
        optimizer.step()


@pytest.mark.parametrize(("before", "after"), list(itertools.product(FORMATS, FORMATS)))
def test_it_is_torch_s_plain_adam_whatever_lies_where(before, after):
    expected, plain = begin(torch.optim.Adam, torch.contiguous_format)
    advance(expected, plain, range(4), torch.contiguous_format)
    weights, optimizer = begin(Adam, before)
    advance(weights, optimizer, range(2), before)
    continued, resumed = begin(Adam, after)
    with torch.no_grad():
        for new, old in zip(continued, weights, strict=True):
            new.copy_(old)
    resumed.load_state_dict(optimizer.state_dict())
    advance(continued, resumed, range(2, 4), after)
    for found, wanted in zip(continued, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-6)
        assert resumed.state[found]["exp_avg"].stride() == found.stride()


@pytest.mark.parametrize(("own", "other"), [FORMATS, FORMATS[::-1]])
def test_gradients_in_another_format_are_understood(own, other):
    expected, plain = begin(torch.optim.Adam, torch.contiguous_format)
    advance(expected, plain, range(3), torch.contiguous_format)
    weights, optimizer = begin(Adam, own)
    advance(weights, optimizer, range(3), other)
    for found, wanted in zip(weights, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-6)
