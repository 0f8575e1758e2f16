"""The KL autoencoder: the public layout's names, sizes and numbers, its files, and its bounds in fp16."""

import math
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from pipeline.errors import ArtifactError, ConfigError
from pipeline.networks.cpu_layers import is_channels_last, lay_out
from pipeline.networks.kl_autoencoder import KLAutoencoder, divergence, draw
from pipeline.networks.kl_blocks import ExactConv2d
from pipeline.networks.weights_file import read_inner_weights

SMALL = {"latent_channels": 4, "width": 8, "multipliers": [1, 1, 2, 2, 4], "blocks": 2, "groups": 4}
TINY = {"latent_channels": 3, "width": 4, "multipliers": [1, 2], "blocks": 1, "groups": 2}
INSIDE, BESIDE = ("model", "state_dict"), ("loss.", "logvar")


def make(seed: int = 0, **sizes) -> KLAutoencoder:
    """A network whose every tensor matters: norms and biases drawn too, in float64."""
    torch.manual_seed(seed)
    network = KLAutoencoder(**sizes).double()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.dim() == 1:
                weight.copy_(0.2 * torch.randn_like(weight) + (1 if "norm" in name and "weight" in name else 0))
    return network


class Published:
    """The original forward pass, written down once more, as functions over a state dict."""

    def __init__(self, state: dict[str, torch.Tensor], groups: int) -> None:
        self.state, self.groups = state, groups

    def count(self, prefix: str) -> int:
        """How many numbered members a list has."""
        return len({name[len(prefix) :].split(".")[0] for name in self.state if name.startswith(prefix)})

    def conv(self, name: str, x: torch.Tensor, **how) -> torch.Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        grouped = x.reshape(x.shape[0], self.groups, -1)
        mean, variance = grouped.mean(2, keepdim=True), grouped.var(2, keepdim=True, correction=0)
        x = ((grouped - mean) / torch.sqrt(variance + 1e-6)).reshape(x.shape)
        return x * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def swish(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        h = self.conv(f"{name}.conv1", self.swish(self.norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", self.swish(self.norm(f"{name}.norm2", h)), padding=1)
        return (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x) + h

    def attention(self, name: str, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(q.shape[1]), dim=2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bcj,bij->bci", v, weights).reshape(x.shape))

    def level(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for i in range(self.count(f"{name}.block.")):
            x = self.block(f"{name}.block.{i}", x)
            if f"{name}.attn.{i}.q.weight" in self.state:
                x = self.attention(f"{name}.attn.{i}", x)
        return x

    def middle(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self.block(f"{name}.block_2", self.attention(f"{name}.attn_1", self.block(f"{name}.block_1", x)))

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        levels = self.count("encoder.down.")
        x = self.conv("encoder.conv_in", x, padding=1)
        for i in range(levels):
            x = self.level(f"encoder.down.{i}", x)
            if i < levels - 1:
                x = self.conv(f"encoder.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        x = self.swish(self.norm("encoder.norm_out", self.middle("encoder.mid", x)))
        mean, log_variance = self.conv("quant_conv", self.conv("encoder.conv_out", x, padding=1)).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        x = self.middle("decoder.mid", self.conv("decoder.conv_in", self.conv("post_quant_conv", z), padding=1))
        for i in reversed(range(self.count("decoder.up."))):
            x = self.level(f"decoder.up.{i}", x)
            if i:
                doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"decoder.up.{i}.upsample.conv", doubled, padding=1)
        return self.conv("decoder.conv_out", self.swish(self.norm("decoder.norm_out", x)), padding=1)


@pytest.mark.parametrize(
    ("sizes", "total", "tensors"),
    [({}, 66_456_019, 312), ({"decoder_attention": [4]}, 69_610_963, 342)],
    ids=["mar", "compvis"],
)
def test_the_public_kl_16_has_its_published_size(sizes, total, tensors):
    with torch.device("meta"):
        network = KLAutoencoder(channels=3, **sizes)
    assert sum(p.numel() for p in network.parameters()) == total
    names = network.state_dict()
    assert len(names) == tensors
    assert {
        "encoder.conv_in.weight",
        "encoder.down.2.block.0.nin_shortcut.bias",
        "encoder.down.3.downsample.conv.weight",
        "encoder.down.4.attn.1.proj_out.weight",
        "encoder.mid.attn_1.norm.weight",
        "decoder.mid.block_2.conv2.bias",
        "decoder.up.0.block.2.norm2.weight",
        "decoder.up.4.upsample.conv.weight",
        "decoder.norm_out.bias",
        "quant_conv.weight",
        "post_quant_conv.bias",
    } <= names.keys()
    assert "encoder.down.4.downsample.conv.weight" not in names
    assert "decoder.up.0.upsample.conv.weight" not in names
    assert ("decoder.up.4.attn.2.q.weight" in names) == bool(sizes)
    if not sizes:
        parts = [sum(p.numel() for p in part.parameters()) for part in (network.encoder, network.decoder)]
        assert [round(part / 1e6, 2) for part in parts] == [28.27, 38.19]


@pytest.mark.parametrize("attention", [[], [4], [0, 4]])
def test_three_channels_give_the_original_s_numbers(attention):
    network = make(**SMALL, channels=3, decoder_attention=attention, grey=False)
    lay_out(network, torch.device("cpu"))
    published = Published(network.state_dict(), SMALL["groups"])
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    mean, log_variance = network.encode(images)
    assert mean.shape == log_variance.shape == (2, 4, 2, 3)
    for found, wanted in zip((mean, log_variance), published.encode(images), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)
    latents = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(network.decode(latents), published.decode(latents), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(("multipliers", "factor"), [([1, 1, 2, 2, 4], 16), ([1, 2, 4, 4], 8), ([1, 2, 4], 4)])
def test_latents_have_the_size_that_the_name_says(multipliers, factor):
    network = KLAutoencoder(latent_channels=16, width=4, multipliers=multipliers, blocks=1, groups=2)
    assert network.factor == factor
    reconstruction, mean, log_variance = network(
        torch.rand(1, 1, 32, 64), torch.randn(1, 16, 32 // factor, 64 // factor)
    )
    assert mean.shape == log_variance.shape == (1, 16, 32 // factor, 64 // factor)
    assert reconstruction.shape == (1, 1, 32, 64)
    with pytest.raises(ConfigError, match=f"multiples of {factor}"):
        network.encode(torch.rand(1, 1, 32 + factor // 2, 64))
    with pytest.raises(ConfigError, match=r"2 channel\(s\)"):
        network.encode(torch.rand(1, 2, 32, 64))


@pytest.mark.parametrize(
    ("under", "beside"), [("model", {}), ("state_dict", {"loss.logvar": 0, "loss.a.b": 1, "logvar": 2})]
)
def test_a_file_of_either_layout_comes_back_to_the_letter(under, beside, tmp_path):
    network = make(channels=3, **TINY)
    extra = {name: torch.tensor(value) for name, value in beside.items()}
    torch.save({under: {**network.state_dict(), **extra}, "global_step": 7}, tmp_path / "kl.ckpt")
    other = make(seed=1, channels=3, **TINY)
    other.take_public(read_inner_weights(tmp_path / "kl.ckpt", INSIDE, BESIDE))
    assert list(other.state_dict()) == list(network.state_dict())
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in other.state_dict().items())


def test_one_channel_is_a_repeated_grey_image_and_the_mean_of_the_result():
    colour = make(channels=3, **TINY)
    grey = make(seed=1, channels=1, **TINY)
    grey.take_public(colour.state_dict())
    image = torch.randn(2, 1, 8, 12, dtype=torch.float64)
    for found, wanted in zip(grey.encode(image), colour.encode(image.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)
    latents = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(grey.decode(latents), colour.decode(latents), atol=1e-10, rtol=1e-10)
    colour.grey = False
    torch.testing.assert_close(grey.decode(latents), colour.decode(latents).mean(1, keepdim=True))
    assert torch.equal(colour.encode(image)[0], colour.encode(image.expand(-1, 3, -1, -1))[0])


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


def test_other_weights_are_refused_with_the_difference():
    network = make(channels=3, **TINY)
    state, before = network.state_dict(), {k: v.clone() for k, v in network.state_dict().items()}
    compvis = make(channels=3, **TINY, decoder_attention=[1]).state_dict()
    wrong = {
        r"1 missing \(quant_conv.bias\)": without(state, "quant_conv.bias"),
        r"1 not of this layout \(decoder.tail.weight\)": {**state, "decoder.tail.weight": torch.ones(1)},
        r"encoder.conv_in.weight \(4, 5, 3, 3\) instead of \(4, 3, 3, 3\)": {
            **state,
            "encoder.conv_in.weight": torch.ones(4, 5, 3, 3),
        },
        r"decoder.up.1.attn.0.k.bias.*, \.\.\.\).*decoder_attention=\[1\] \(CompVis' version\)": compvis,
        "missing.*44 tensors": {},
    }
    for message, given in wrong.items():
        message = message.replace("44", str(len(state)))
        with pytest.raises(ArtifactError, match=message):
            network.take_public(given)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Trap:
    """Pickled, it would write a file as it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_files_that_are_cut_or_hold_code_are_refused(tmp_path):
    state = make(channels=3, **TINY).state_dict()
    torch.save({"model": state}, tmp_path / "good.ckpt")
    whole = (tmp_path / "good.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": state, "callbacks": Trap(tmp_path / "sprung")}, tmp_path / "code.ckpt")
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    (tmp_path / "page.ckpt").write_text("<html>Not found</html>")
    torch.save({"model": {"a": 1}}, tmp_path / "numbers.ckpt")
    for name in ("cut", "code", "bare", "page"):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_inner_weights(tmp_path / f"{name}.ckpt", INSIDE)
    with pytest.raises(ArtifactError, match="save its state dict alone"):
        read_inner_weights(tmp_path / "code.ckpt", INSIDE)
    with pytest.raises(ArtifactError, match="does not hold a state dict"):
        read_inner_weights(tmp_path / "numbers.ckpt", INSIDE)
    with pytest.raises(ArtifactError, match="does not exist"):
        read_inner_weights(tmp_path / "none.ckpt", INSIDE)
    assert not (tmp_path / "sprung").exists()


def test_half_precision_that_would_overflow_stays_finite():
    network = make(**TINY).float()
    attention = network.encoder.mid.attn_1
    image = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        for part in (attention.q, attention.k):
            part.weight *= 1000
        network.encoder.conv_in.bias += 50_000  # of the sum that the first blocks are added to
        network.encoder.down[0].block[0].conv2.bias += 50_000
        seen = {}
        attention.q.register_forward_hook(lambda _, __, result: seen.update(query=result))
        exact = network(image)
        # What plain fp16 would hold: both are beyond its range.
        assert not torch.isfinite((seen["query"].half().flatten(2).float() ** 2).sum(1).half()).all()
        assert not torch.isfinite(torch.tensor(100_000.0).half())
        with torch.autocast("cpu", torch.float16):
            halved = network(image)
    assert all(result.dtype == torch.float32 for result in halved)
    assert all(torch.isfinite(result).all() for result in halved)
    torch.testing.assert_close(halved[1], exact[1], atol=0.05, rtol=0.05)


def test_latents_and_images_are_float32_under_autocast():
    network = KLAutoencoder(**TINY)
    with torch.autocast("cpu", torch.bfloat16):
        results = network(torch.rand(1, 1, 16, 16))
    assert {result.dtype for result in results} == {torch.float32}
    assert results[0].unique().numel() > 200  # of 256; bf16 has that many values in [0.5, 1) only


def test_features_stay_channels_last():
    network = lay_out(KLAutoencoder(**TINY), torch.device("cpu"))
    formats = []
    for module in network.modules():
        if not list(module.children()) and not isinstance(module, ExactConv2d):
            module.register_forward_hook(lambda _, __, result: formats.append(is_channels_last(result)))
    network(torch.randn(2, 1, 8, 12))
    assert len(formats) > 25
    assert all(formats)


def test_a_sample_and_its_divergence_are_the_normal_distribution_s():
    mean, log_variance = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    wanted = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    assert torch.allclose(divergence(mean, log_variance), wanted, atol=1e-4)
    assert torch.equal(draw(mean, log_variance, torch.zeros_like(mean)), mean)
    network = KLAutoencoder(**TINY)
    image, noise = torch.rand(1, 1, 8, 8), torch.randn(1, 3, 4, 4)
    reconstruction, mean, log_variance = network(image, noise)
    assert torch.equal(reconstruction, network.decode(draw(mean, log_variance, noise)))
    assert torch.equal(network(image)[0], network.decode(mean))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"groups": 3}, "do not divide"),
        ({"width": 0}, "too small"),
        ({"multipliers": []}, "too small"),
        ({"decoder_attention": [2]}, "0 .full resolution. to 1"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        KLAutoencoder(**{**TINY, **sizes})
