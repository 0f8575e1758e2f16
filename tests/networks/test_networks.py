import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from pipeline.errors import ArtifactError, ConfigError
from pipeline.networks.efficientnet_lite0 import STAGE_CHANNELS, EfficientNetLite0Features
from pipeline.networks.flow_unet import FlowUNet
from pipeline.networks.initialisation import initialise_normal
from pipeline.networks.padding import pad_to_multiple
from pipeline.networks.patch_discriminator import MultiScalePatchDiscriminator, frame_groups
from pipeline.networks.residual_blocks import make_norm
from pipeline.networks.residual_unet import ResidualUNet
from pipeline.networks.vgg19 import _LAYERS, Vgg19Features
from pipeline.networks.vid2vid_generator import Vid2VidGenerator, compose_frame
from pipeline.networks.warp import warp

TINY = {"width": 4, "downsamplings": 2, "blocks": 2}


def millions(network: nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.mark.parametrize(
    ("width", "downsamplings", "count"), [(64, 3, 91.2), (64, 2, 22.75), (32, 3, 22.8), (128, 3, 364.6)]
)
def test_generator_has_the_published_number_of_parameters(width, downsamplings, count):
    with torch.device("meta"):
        network = Vid2VidGenerator(width=width, downsamplings=downsamplings)
    assert millions(network) == pytest.approx(count, abs=0.06)


@pytest.mark.parametrize(("channels", "count"), [(2, 5.53), (7, 5.54)])
def test_discriminators_have_the_published_number_of_parameters(channels, count):
    with torch.device("meta"):
        network = MultiScalePatchDiscriminator(channels=channels)
    assert millions(network) == pytest.approx(count, abs=0.005)


def test_composition_extremes():
    raw, last, flow = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8), torch.full((1, 2, 8, 8), 0.5)
    assert torch.equal(compose_frame(raw, last, flow, torch.ones(1, 1, 8, 8)), raw)
    assert torch.equal(compose_frame(raw, last, flow, torch.zeros(1, 1, 8, 8)), warp(last, flow))


@pytest.mark.parametrize("finer", [0, 1, 2])
@pytest.mark.parametrize("size", [(16, 16), (9, 13), (3, 5)])
def test_generator_takes_any_size(size, finer):
    network = Vid2VidGenerator(**TINY, finer_scales=finer, local_blocks=1)
    frame = network(torch.rand(2, 3, *size), torch.rand(2, 2, *size))
    assert frame.image.shape == frame.raw.shape == (2, 1, *size)
    assert frame.flow.shape == (2, 2, *size)
    assert frame.weight.shape == (2, 1, *size)
    assert frame.image.abs().max() <= 1


def test_generator_without_composition_puts_out_the_raw_image():
    network = Vid2VidGenerator(**TINY)
    frame = network(torch.rand(1, 3, 8, 8), torch.zeros(1, 2, 8, 8), compose=False)
    assert frame.image is frame.raw
    assert frame.flow is None


def test_a_residual_generator_starts_from_the_current_source_frame():
    network = Vid2VidGenerator(**TINY, residual=True)
    nn.init.zeros_(network.image_head.weight)
    source = torch.rand(1, 3, 8, 8)
    assert torch.equal(network(source, torch.zeros(1, 2, 8, 8)).raw, source[:, -1:])
    with pytest.raises(ConfigError, match="equal numbers"):
        Vid2VidGenerator(**TINY, channels_in=2, residual=True)


def test_generator_composes_with_the_most_recent_frame():
    network = Vid2VidGenerator(**TINY)
    nn.init.constant_(network.weight_head.bias, -100.0)  # w = 0: only the warped frame
    nn.init.zeros_(network.flow_head.weight)
    past = torch.stack([torch.full((8, 8), 0.25), torch.full((8, 8), 0.75)])[None]
    assert torch.allclose(network(torch.rand(1, 3, 8, 8), past).image, torch.full((1, 1, 8, 8), 0.75))


def test_heads_and_composition_are_float32_under_autocast():
    network = Vid2VidGenerator(**TINY)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        frame = network(torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8))
        prediction = ResidualUNet(widths=[4, 8])(torch.rand(1, 1, 8, 8))
    assert {x.dtype for x in (*frame, prediction)} == {torch.float32}
    # bf16 has at most 256 values in [0.5, 1); float32 heads have as many as there are pixels.
    assert frame.raw.unique().numel() > 32


def test_a_finer_scale_sees_twice_the_size_with_half_the_width():
    network = Vid2VidGenerator(width=8, downsamplings=1, blocks=2, finer_scales=1, local_blocks=3)
    assert network.flow_scale == 2 * Vid2VidGenerator(**TINY).flow_scale
    assert network.image_head.in_channels == 4
    enhancer = network.enhancers[0]
    assert len(enhancer.image_branch) == len(enhancer.flow_branch) == 3 + 1
    seen = []
    network.source_encoder[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    source = torch.rand(1, 3, 16, 16)
    network(source, torch.rand(1, 2, 16, 16))
    assert torch.allclose(seen[0], nn.AvgPool2d(3, 2, 1, count_include_pad=False)(source))


def test_coarse_features_reach_both_branches_of_the_finer_scale():
    network = Vid2VidGenerator(**TINY, finer_scales=1)
    source, past = torch.rand(1, 3, 16, 16), torch.rand(1, 2, 16, 16)
    frame = network(source, past)
    for field, branch in (("raw", network.image_branch), ("flow", network.flow_branch)):
        gradients = torch.autograd.grad(getattr(frame, field).sum(), branch.parameters(), retain_graph=True)
        assert any(gradient.any() for gradient in gradients)
    assert network(source, past, compose=False).flow is None
    fixed = network(source, past, fix_coarse=True)
    assert all(torch.equal(one, other) for one, other in zip(frame, fixed, strict=True))
    fixed.image.sum().backward()
    learning = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert learning == {"enhancers", "image_head", "flow_head", "weight_head"}


def largest_singular_values(network: nn.Module) -> list[float]:
    with torch.no_grad():
        convolutions = [m for m in network.modules() if is_parametrized(m, "weight")]
        # Of a transposed convolution the second dimension is the output.
        weights = [m.weight.transpose(0, 1) if isinstance(m, nn.ConvTranspose2d) else m.weight for m in convolutions]
        return [torch.linalg.matrix_norm(weight.flatten(1), 2).item() for weight in weights]


def test_spectral_norm_bounds_every_convolution_but_the_generators_heads():
    judge = MultiScalePatchDiscriminator(width=4, spectral=True)
    generator = Vid2VidGenerator(**TINY, finer_scales=1, spectral=True)
    copies = copy.deepcopy(judge)
    initialise_normal(copies)
    for network, count in ((judge, 10), (copies, 10)):
        for _ in range(20):  # a power iteration each
            network(torch.rand(1, 2, 32, 32))
        values = largest_singular_values(network)
        assert len(values) == count
        assert values == pytest.approx([1.0] * count, abs=0.05)
    assert not any(
        torch.equal(*pair) for pair in zip(judge.parameters(), copies.parameters(), strict=True) if pair[0].any()
    )
    for _ in range(20):
        generator(torch.rand(1, 3, 16, 16), torch.rand(1, 2, 16, 16))
    assert max(largest_singular_values(generator)) < 1.1
    heads = (generator.image_head, generator.flow_head, generator.weight_head)
    assert not any(is_parametrized(head) for head in heads)
    convolutions = [m for m in generator.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert sum(is_parametrized(m, "weight") for m in convolutions) == len(convolutions) - 3


def test_spectral_norm_in_bf16_is_as_tight():
    network = MultiScalePatchDiscriminator(width=4, spectral=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(20):
            network(torch.rand(1, 2, 16, 16))
    assert largest_singular_values(network) == pytest.approx([1.0] * 10, abs=0.05)


@pytest.mark.parametrize("size", [(16, 16), (9, 13), (1, 2)])
def test_flow_network_takes_any_size_and_starts_without_flow(size):
    flow = FlowUNet(widths=[4, 4, 4])(torch.rand(2, 1, *size), torch.rand(2, 1, *size))
    assert flow.shape == (2, 2, *size)
    assert flow.abs().max() < 0.01


@pytest.mark.parametrize(
    ("kwargs", "what"),
    [
        ({"past": 0}, "too small"),
        ({"norm": "layer"}, "Unknown norm"),
        ({"finer_scales": 3}, "halved"),
        ({"finer_scales": 1, "local_blocks": 0}, "too small"),
    ],
)
def test_generator_refuses(kwargs, what):
    with pytest.raises(ConfigError, match=what):
        Vid2VidGenerator(**(TINY | kwargs))


def test_instance_norm_keeps_no_running_statistics():
    assert not list(make_norm("instance", 4).buffers())
    assert not list(make_norm("instance", 4).parameters())


def test_discriminator_gives_features_per_scale():
    network = MultiScalePatchDiscriminator(width=4)
    verdict = network(torch.rand(2, 2, 32, 32))
    assert [len(scale) for scale in verdict] == [5, 5]
    assert verdict[0][0].shape == (2, 4, 17, 17)
    assert verdict[0][-1].shape[1] == 1
    assert verdict[1][0].shape[-1] < verdict[0][0].shape[-1]


def test_frame_groups_hold_frames_and_flow_of_their_stride():
    film = [torch.full((1, 1, 2, 2), float(t)) for t in range(7)]
    flow = [torch.full((1, 2, 2, 2), 20.0 * t) for t in range(4)]
    group = frame_groups(film, flow, [6], stride=3, frames=3)
    assert group[0, :, 0, 0].tolist() == [0, 3, 6, 0, 0, 3, 3]
    assert frame_groups(film, None, [2, 3], stride=1, frames=3)[:, :, 0, 0].tolist() == [[0, 1, 2], [1, 2, 3]]


def test_initialisation():
    network = nn.Sequential(nn.Conv2d(8, 64, 5), nn.BatchNorm2d(64))
    initialise_normal(network)
    assert network[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not network[0].bias.any()


def test_padding_repeats_the_edge_and_can_be_cropped():
    image = torch.rand(1, 1, 5, 8)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 1, 8, 8)
    assert torch.equal(padded[..., :5, :8], image)
    assert torch.equal(padded[..., 7, :], image[..., 4, :])
    assert pad_to_multiple(padded, 4) is padded


@pytest.mark.parametrize("size", [(16, 16), (7, 11), (1, 1)])
def test_residual_unet_takes_any_size(size):
    assert ResidualUNet(channels_in=3, widths=[4, 8, 8])(torch.rand(2, 3, *size)).shape == (2, 1, *size)


@pytest.mark.parametrize("first_stride", [1, 2])
@pytest.mark.parametrize("norm", ["instance", "none"])
def test_residual_unet_starts_at_zero_and_learns(first_stride, norm):
    network = ResidualUNet(widths=[4, 8], first_stride=first_stride, norm=norm)
    image = torch.rand(1, 1, 8, 8)
    assert (network(image) == 0).all()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(2):
        optimiser.zero_grad()
        (network(image) - image).abs().mean().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert not any(isinstance(m, torch.nn.InstanceNorm2d) for m in network.modules()) or norm == "instance"


def test_residual_unet_without_norm_does_not_look_at_what_lies_far_away():
    torch.manual_seed(0)
    network = ResidualUNet(widths=[4, 8], first_stride=1, norm="none")
    torch.nn.init.ones_(network.head[-1].weight)
    image = torch.rand(1, 1, 64, 64)
    other = image.clone()
    other[..., 48:, :] += 1
    assert torch.equal(network(image)[..., :16, :], network(other)[..., :16, :])


def test_residual_unet_refuses_an_unknown_norm():
    with pytest.raises(ConfigError, match="Did you mean 'instance'"):
        ResidualUNet(norm="instanze")


def test_efficientnet_stages_are_frozen_and_travel_in_no_checkpoint():
    network = EfficientNetLite0Features()
    stages = network(torch.rand(1, 3, 64, 48))
    assert [stage.shape[1] for stage in stages] == list(STAGE_CHANNELS)
    assert [tuple(stage.shape[-2:]) for stage in stages] == [(32, 24), (16, 12), (8, 6), (4, 3), (2, 2)]
    assert network.pooled(torch.rand(2, 3, 32, 32)).shape == (2, 1280)
    assert not list(network.parameters())
    assert not network.state_dict()


def test_vgg19_reads_both_layouts(tmp_path):
    state, before = {}, 3
    for number, channels in _LAYERS:
        if channels:
            state[f"{number}.weight"] = torch.zeros(channels, before, 3, 3)
            state[f"{number}.bias"] = torch.full((channels,), number / 10)
            before = channels
    torch.save(state, tmp_path / "plain.pth")
    torch.save(
        {f"features.{k}": v for k, v in state.items()} | {"classifier.0.bias": torch.zeros(1)}, tmp_path / "tv.pth"
    )
    for name in ("plain.pth", "tv.pth"):
        maps = Vgg19Features(str(tmp_path / name))(torch.rand(1, 3, 32, 32))
        assert [m.shape[1] for m in maps] == [64, 128, 256, 512, 512]
        assert [m.shape[-1] for m in maps] == [32, 16, 8, 4, 2]
        assert [round(m.max().item(), 1) for m in maps] == [0.0, 0.5, 1.0, 1.9, 2.8]


def test_pretrained_weights_are_never_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ArtifactError, match="cannot be read"):
        Vgg19Features(str(tmp_path / "evil.pth"))
    with pytest.raises(ArtifactError, match="does not exist"):
        Vgg19Features(str(tmp_path / "none.pth"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ArtifactError, match="not VGG19"):
        Vgg19Features(str(tmp_path / "other.pth"))
    with pytest.raises(ArtifactError, match="not EfficientNet"):
        EfficientNetLite0Features(str(tmp_path / "other.pth"))


def brightening(shift: float, *, shortcuts: bool) -> float:
    """Return by how much the image branch follows a film that is brighter everywhere, away from zero padding."""
    torch.manual_seed(0)
    network = Vid2VidGenerator(**TINY, flow=False, shortcuts=shortcuts).eval()
    source, past = 0.1 * torch.randn(1, 3, 64, 64), torch.zeros(1, 2, 64, 64)
    with torch.no_grad():
        dark, bright = (network._coarsest(film, past, False)[0] for film in (source, source + shift))
    return float((bright - dark)[..., 16:48, 16:48].abs().mean() / dark.abs().mean())


def test_along_shortcuts_a_constant_passes_that_instance_norm_takes_away():
    assert brightening(1.0, shortcuts=True) > 3 * brightening(1.0, shortcuts=False)
