"""pix2pix: who judges what, neighbours, batch norms and dropout."""

import pytest
import torch
from model_making import MODALITIES, composed, make_batch, make_film, make_method, same, train, weights_of
from torch import nn

from pipeline.config import build
from pipeline.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
NEIGHBOURS = ("neighbours=1", "generator.channels_in=3", "discriminator.channels=4")


class Plus(nn.Module):
    """Adds a number to the middle channel."""

    def __init__(self) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        middle = images.shape[1] // 2
        return images[:, middle : middle + 1] + self.added


class Sum(nn.Module):
    """The sum of each image's first pixel over its channels, as its verdict; notes its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.tensor(1.0)), []

    def forward(self, images: torch.Tensor) -> list[list[torch.Tensor]]:
        self.seen.append(images.detach().clone())
        return [[self.weight * images[:, :, 0, 0].sum(1)]]


def test_every_term_is_the_published_one_by_hand():
    method, batch = make_method("pix2pix", *NEIGHBOURS, "ema_decay=0"), make_batch(3)
    method.generator, method.discriminator = Plus(), Sum()
    batch["source"] = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1, 1).expand(-1, -1, -1, 4, 4)
    batch["target"] = torch.full((1, 3, 1, 4, 4), 2.5)
    batch["mask"] = torch.ones(1, 3, 1, 4, 4)
    terms, discriminator = method._terms(batch)
    prediction = 2 + 1  # of the only frame with both neighbours
    fake, real = torch.tensor(7.0 + prediction), torch.tensor(7 + 2.5)
    assert terms["l1_loss"].item() == pytest.approx(100 * 0.5)
    assert terms["gan_loss"].item() == pytest.approx(-torch.sigmoid(fake).log().item(), rel=1e-3)
    expected = 0.5 * (nn.functional.softplus(-real) + nn.functional.softplus(fake))
    assert discriminator.item() == pytest.approx(expected.item())
    assert method.discriminator.seen[0].shape == (1, 4, 4, 4)  # three of the source, and the translation
    torch.stack(list(terms.values())).sum().backward()
    assert method.discriminator.weight.grad is None
    assert method.generator.added.grad is not None
    method.generator.zero_grad()
    discriminator.backward()
    assert method.generator.added.grad is None


def test_neighbours_are_seen_and_only_they():
    method, film = make_method("pix2pix", *NEIGHBOURS), make_film(6)[0]
    changed = film.clone()
    changed[5] = 0
    first, second = (method.translate(volume, **MODALITIES) for volume in (film, changed))
    different = [not torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert different == [False, False, False, False, True, True]
    method.check_stream(3)
    with pytest.raises(ConfigError, match="too short"):
        method.check_stream(2)
    with pytest.raises(ConfigError, match=r"generator\.channels_in=3"):
        make_method("pix2pix", "neighbours=1")
    with pytest.raises(ConfigError, match=r"discriminator\.channels=4"):
        make_method("pix2pix", "neighbours=1", "generator.channels_in=3")


def test_the_resnet_generator_takes_the_unets_place():
    node = dict(composed("pix2pix"))
    resnet = {"_target_": "pipeline.networks.resnet_generator.ResnetGenerator", "width": 2, "blocks": 1, "dropout": 0.5}
    method = build({**node, "generator": resnet})
    before = weights_of(method)
    train(method, [make_batch(2)])
    assert not same(before, weights_of(method))
    assert method.translate(make_film(3)[0], **MODALITIES).shape == (3, 1, 16, 16)


def test_a_damaged_batch_leaves_the_statistics_of_batch_norms():
    norms = ("generator.norm=batch", "discriminator.norm=batch")
    method, bad = make_method("pix2pix", *norms), make_batch(2)
    train(method, [make_batch(2)])
    before = weights_of(method)
    assert any("running_mean" in name for name in before)
    for name in ("source", "target"):
        bad[name] = torch.full_like(bad[name], float("nan"))
        train(method, [bad])
        assert same(before, weights_of(method))
    train(method, [make_batch(2, seed=2)])
    after = weights_of(method)
    assert all(torch.isfinite(value).all() for value in after.values())
    moved = [name for name, value in after.items() if "running_mean" in name and not torch.equal(value, before[name])]
    assert {name.split(".")[0] for name in moved} == {"generator", "discriminator", "ema"}


def test_dropout_is_for_training_alone():
    method, film = make_method("pix2pix", "generator.depth=6", "ema_decay=0"), make_film(3)[0]
    assert any(isinstance(module, nn.Dropout) for module in method.modules())
    assert torch.equal(*(method.translate(film, **MODALITIES) for _ in range(2)))
    assert not torch.equal(*(method.generator(film) for _ in range(2)))


@pytest.mark.parametrize("setting", [{"weight_l1": -1.0}, {"neighbours": -1}, {"weight_l1": 0.0, "weight_gan": 0.0}])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match="out of range"):
        build({**composed("pix2pix"), **setting})
