import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.patchgan import PatchDiscriminator
from pipeline.networks.unet_generator import UnetGenerator


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_discriminator_has_the_published_size_names_and_verdicts():
    network = PatchDiscriminator(3)
    assert count(network) == 2_764_737
    names = [f"model.{place}.{kind}" for place in (0, 2, 5, 8, 11) for kind in ("weight", "bias")]
    assert list(network.state_dict()) == names
    [[logits]] = network(torch.rand(1, 3, 256, 256))
    assert logits.shape == (1, 1, 30, 30)


def test_a_verdict_sees_70_pixels():
    network = PatchDiscriminator(1, width=2)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
    image = torch.zeros(1, 1, 256, 256, requires_grad=True)
    plain = nn.Sequential(*(m for m in network.model if not isinstance(m, nn.InstanceNorm2d)))
    plain(image)[0, 0, 15, 15].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


def test_images_below_the_discriminators_size_are_refused():
    network = PatchDiscriminator(width=2)
    assert network(torch.rand(1, 1, 24, 25))[0][0].shape == (1, 1, 1, 1)
    with pytest.raises(ConfigError, match=r"23 x 24\. Allowed: from 24 x 24 with layers=3"):
        network(torch.rand(1, 1, 23, 24))
    with pytest.raises(ConfigError, match="too small to exist"):
        PatchDiscriminator(layers=0)


def test_the_unet_has_the_published_size_and_names():
    with torch.device("meta"):
        network = UnetGenerator(3, 3, norm="batch")
    assert count(network) == 54_413_955
    names = [name for name, _ in network.named_parameters()]
    deepest = "model.model" + ".1.model" + ".3.model" * 6
    assert names[0] == "model.model.0.weight"
    assert {"model.model.1.model.1.weight", "model.model.1.model.2.bias", f"{deepest}.3.weight"} <= set(names)
    assert names[-2:] == ["model.model.3.weight", "model.model.3.bias"]
    assert "model.model.0.bias" not in names  # a norm shifts
    with torch.device("meta"):
        plain = UnetGenerator(3, 3, norm="instance").state_dict()
    assert "model.model.0.bias" in plain


@pytest.mark.parametrize(("depth", "levels"), [(8, [4, 5, 6]), (6, [4]), (5, []), (2, [])])
def test_dropout_stands_where_the_public_code_has_it(depth, levels):
    with torch.device("meta"):
        network = UnetGenerator(width=2, depth=depth)
    found = [name.count("model") - 2 for name, m in network.named_modules() if isinstance(m, nn.Dropout)]
    assert sorted(found) == levels


@pytest.mark.parametrize("size", [(16, 16), (9, 13), (1, 5)])
@pytest.mark.parametrize("norm", ["instance", "instance_affine", "batch"])
def test_the_unet_keeps_any_size_and_the_range(size, norm):
    network = UnetGenerator(3, 1, width=2, depth=3, norm=norm)
    result = network(torch.rand(2, 3, *size))
    assert result.shape == (2, 1, *size)
    assert result.abs().max() <= 1


def test_every_level_hands_its_input_on():
    network = UnetGenerator(width=2, depth=2)
    features = torch.rand(1, 2, 8, 8)
    level = network.model.model[1]
    assert torch.equal(level(features)[:, :2], features)
    with pytest.raises(ConfigError, match="depth from 2"):
        UnetGenerator(depth=1)
