"""The latent transformer: sizes, positions, guidance, and one slice as the special case of several."""

import pytest
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.networks.latent_transformer import LatentTransformer

NAMES = ["ct", "cbct", "t1n"]
TINY = {"channels": 4, "width": 16, "depth": 2, "heads": 2, "grid": (4, 6)}


def make(seed=0, **sizes) -> LatentTransformer:
    """A small network with a guidance and a head that start away from zero."""
    torch.manual_seed(seed)
    network = LatentTransformer(NAMES, **{**TINY, **sizes})
    for name, weight in network.named_parameters():
        if "modulation" in name or name == "head.weight":
            nn.init.normal_(weight, 0.0, 0.3)
    return network.eval()


def latents(batch=2, frames=1, rows=4, columns=6):
    return torch.randn(batch, frames, 4, rows, columns, generator=torch.Generator().manual_seed(0))


def pair(network, source="ct", target="t1n", batch=2):
    return network.indices([source] * batch), network.indices([target] * batch)


@pytest.mark.parametrize(("depth", "count"), [(12, 128_953_360), (24, 256_493_584)])
def test_sizes_of_the_configuration(depth, count):
    with torch.device("meta"):
        network = LatentTransformer(["ct", "cbct", "t1n", "t1c", "t2w", "t2f"], depth=depth)
    assert sum(p.numel() for p in network.parameters()) == count


def test_it_starts_as_the_source_or_as_nothing():
    torch.manual_seed(0)
    film = latents()
    network = LatentTransformer(NAMES, **TINY)
    assert torch.equal(network(film, *pair(network)), film)
    plain = LatentTransformer(NAMES, **TINY, residual=False)
    assert not plain(film, *pair(plain)).any()
    plain(film, *pair(plain)).sum().backward()
    assert plain.head.weight.grad.any()  # and learns from there


def test_both_modalities_guide_it():
    network, film = make(), latents()
    pairs = [("ct", "t1n"), ("cbct", "t1n"), ("ct", "cbct"), ("t1n", "ct"), ("ct", "ct")]
    results = [network(film, *pair(network, *names)) for names in pairs]
    for index, one in enumerate(results):
        for other in results[index + 1 :]:
            assert (one - other).abs().max() > 1e-3
    mixed = network(film, network.indices(["ct", "cbct"]), network.indices(["t1n", "t1n"]))
    assert torch.allclose(mixed[0], results[0][0], atol=1e-6)  # each clip by its own pair
    assert torch.allclose(mixed[1], results[1][1], atol=1e-6)


def test_every_token_sees_every_other_one():
    network, film = make(frames=3), latents(1, 3).requires_grad_()
    result = network(film, *pair(network, batch=1))
    for frame in (0, 2):
        (gradient,) = torch.autograd.grad(result[0, frame, :, 0, 0].sum(), film, retain_graph=True)
        assert (gradient.abs().sum(2) > 0).all()  # from the first slice to the last and back


def test_one_slice_is_seen_by_itself():
    network, film = make(), latents(2, 1)
    result = network(film, *pair(network))
    for index in range(2):
        alone = network(film[index : index + 1], *pair(network, batch=1))
        assert torch.allclose(alone[0], result[index], atol=1e-5)
    one = network(film[:1], *pair(network, batch=1))
    context = make(frames=3)
    context.load_state_dict(
        {**network.state_dict(), "time": torch.cat([network.time, network.time + 1, network.time - 1])}
    )
    assert torch.allclose(context(film[:1], *pair(network, batch=1)), one, atol=1e-6)


def test_a_place_and_a_slice_are_told_apart():
    network = make(frames=2)
    same = torch.ones(1, 2, 4, 4, 6)
    result = network(same, *pair(network, batch=1))[0, :, 0]
    assert result.unique().numel() == result.numel()


def test_a_smaller_grid_takes_the_middle_of_the_positions():
    network = make(grid=(6, 9))
    cut = make(grid=(4, 6))
    cut.load_state_dict({**network.state_dict(), "place": network.place[1:5, 1:7]})
    film = latents()
    assert torch.allclose(network(film, *pair(network)), cut(film, *pair(cut)), atol=1e-6)


def test_what_it_has_no_positions_or_names_for_is_refused():
    network = make(frames=2)
    with pytest.raises(ConfigError, match=r"3 slices of 4 x 6.*at most 2.*Raise model\.module\.transformer\.frames"):
        network(latents(frames=3), *pair(network))
    with pytest.raises(ConfigError, match=r"5 x 6 tokens.*transformer\.grid=\[5,6\]"):
        network(latents(rows=5), *pair(network))
    with pytest.raises(ConfigError, match=r"'?t1c'?.*Allowed: ct, cbct, t1n.*Did you mean"):
        network.indices(["ct", "t1c"])


def test_the_result_is_float32_under_autocast():
    network, film = make(), latents()
    with torch.autocast("cpu", torch.bfloat16):
        result = network(film, *pair(network))
    assert result.dtype == torch.float32
    assert torch.allclose(result, network(film, *pair(network)), atol=0.2)


def test_dropout_is_for_training_alone():
    network, film = make(dropout=0.5), latents()
    assert torch.equal(network(film, *pair(network)), network(film, *pair(network)))
    network.train()
    assert not torch.equal(network(film, *pair(network)), network(film, *pair(network)))


@pytest.mark.parametrize("sizes", [{"heads": 3}, {"depth": 0}, {"frames": 0}, {"grid": (0, 4)}, {"dropout": 1.0}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ConfigError, match="out of range"):
        make(**sizes)
    for names in ([], ["ct", "ct"]):
        with pytest.raises(ConfigError, match="one name each"):
            LatentTransformer(names)


def test_a_patch_of_latents_is_a_token():
    network, film = make(patch=2, grid=(2, 3), residual=False, frames=2), latents(2, 2)
    alone = make(channels=16, grid=(2, 3), residual=False, frames=2)
    alone.load_state_dict(network.state_dict())
    # Row by row: channel, then place in the patch.
    patches = film.unflatten(-2, (2, 2)).unflatten(-1, (3, 2)).permute(0, 1, 2, 4, 6, 3, 5).flatten(2, 4)
    found = alone(patches, *pair(alone)).unflatten(2, (4, 2, 2)).permute(0, 1, 2, 5, 3, 6, 4).flatten(3, 4).flatten(-2)
    assert torch.allclose(network(film, *pair(network)), found, atol=1e-6)


def test_latents_that_are_no_multiple_of_a_patch_keep_their_size():
    torch.manual_seed(0)
    film = latents(1, 1, 3, 5)
    fresh = LatentTransformer(NAMES, **{**TINY, "patch": 2, "grid": (2, 3)})
    assert torch.equal(fresh(film, *pair(fresh, batch=1)), film)
    network = make(patch=2, grid=(2, 3))
    assert network(film, *pair(network, batch=1)).shape == film.shape
    with pytest.raises(ConfigError, match=r"3 x 3 tokens.*at most 1 of 2 x 3"):
        network(latents(1, 1, 5, 5), *pair(network, batch=1))
