"""Stage 1 of latent mapping: what is learnt from, what balances the terms, and where weights come from."""

import math

import pytest
import torch
from model_making import MODALITIES, make_batch, make_film, make_method, same, train, weights_of

from pipeline.errors import ArtifactError, ConfigError
from pipeline.losses.adaptive_weight import AdaptiveWeight
from pipeline.models.latents import encode_slices, encoder_hash, per_clip
from pipeline.training.memory import recompute_activations

# Lightning's own, about a class of torch.utils that torch renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
SAME = {"source_modality": "ct", "target_modality": "ct"}


def autoencoder(*overrides, seed=0):
    return make_method("latent_autoencoder", *overrides, seed=seed)


def losses_of(method, batch):
    """Return what a step on the batch logs."""
    trainer = train(method, [batch])
    return {key.removeprefix("train/"): float(value) for key, value in trainer.callback_metrics.items()}


def test_it_learns_to_give_slices_back():
    method = autoencoder("learning_rate=0.01", "discriminator=null", "perceptual=null", "ema_decay=0")
    batch = make_batch(2)
    method.budget_share = 0.3

    def error():
        return (method.translate(batch["target"][0], **SAME) - batch["target"][0]).abs().mean()

    before = error()
    train(method, [batch] * 50)
    assert error() < 0.5 * before


def test_only_the_same_modality_is_given_back():
    method = autoencoder()
    with pytest.raises(ConfigError, match=r"cbct to ct.*latent_translator"):
        method.translate(make_film(2)[0], **MODALITIES)
    method.check_pairing("modalities")
    for pairing in ("paired", "unpaired"):
        with pytest.raises(ConfigError, match=f"{pairing}.*Allowed: modalities"):
            method.check_pairing(pairing)


def test_the_target_alone_is_learnt_from():
    states = []
    for source in (0.0, 0.5):
        method, batch = autoencoder(), make_batch(2)
        batch["source"] = torch.full_like(batch["source"], source)
        train(method, [batch])
        states.append(weights_of(method))
    assert same(*states)


def test_terms_are_those_of_the_definition():
    method, batch = autoencoder("weight_kl=0.01", "weight_perceptual=0", "ema_decay=0"), make_batch(2, 14)
    images = batch["target"].flatten(0, 1)
    noise = method._noise(batch).flatten(0, 1)
    method._draws = 0
    with torch.no_grad():
        found, mean, log_variance = method.autoencoder(images, noise)
        nats = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / len(images)
    losses = losses_of(method, batch)
    assert losses["l1_loss"] == pytest.approx(float((found - images).abs().mean()), rel=1e-4)
    assert losses["kl_loss"] == pytest.approx(0.01 * float(nats) / 14**2, rel=1e-4)
    assert losses["masked_l1"] == pytest.approx(losses["l1_loss"], rel=1e-4)
    assert losses["gan_loss"] == 0  # its weight is that of the step before
    assert losses["discriminator_loss"] > 0
    assert {key for key in losses_of(autoencoder("distance=l2"), batch) if key.endswith("_loss")} == {
        "l2_loss",
        "perceptual_loss",
        "kl_loss",
        "gan_loss",
        "discriminator_loss",
    }


def test_the_discriminator_sleeps_until_its_share_of_the_budget():
    method = autoencoder("gan_start=0.5")
    before = weights_of(method.discriminator)
    method.budget_share = 0.49
    assert "gan_loss" not in losses_of(method, make_batch(2))
    assert same(before, weights_of(method.discriminator))
    assert method.adaptive.value == 0
    method.budget_share = 0.5
    assert "gan_loss" in losses_of(method, make_batch(2))
    assert not same(before, weights_of(method.discriminator))
    assert method.adaptive.value > 0
    bare = autoencoder("discriminator=null", "perceptual=null")
    assert "gan_loss" not in losses_of(bare, make_batch(2))
    assert len(bare.configure_optimizers()) == 1


def test_the_adaptive_weight_is_the_ratio_of_the_gradients():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    adaptive = AdaptiveWeight(0.5)
    for a, b in ((1.0, 0.5), (3.0, 1.5)):  # two parts: gradients are averaged before their norms are taken
        adaptive.measure(a * weight[0], b * weight.sum(), weight)
    assert adaptive.value == 0
    adaptive.settle(True)
    assert float(adaptive.value) == pytest.approx(0.5 * 2 / (math.sqrt(2) + 1e-4), rel=1e-5)
    kept = adaptive.value.clone()
    for losses, stepped in (((weight[0] * float("nan"), weight[1]), True), ((weight[0], weight[1]), False)):
        adaptive.measure(*losses, weight)
        adaptive.settle(stepped)
        assert torch.equal(adaptive.value, kept)
    adaptive.measure(weight[0] * 1e9, weight[1] * 1e-9, weight)
    adaptive.settle(True)
    assert float(adaptive.value) == 0.5 * 1e4  # clipped
    assert weight.grad is None


def test_steps_in_parts_keep_one_adaptive_weight_and_one_spread():
    states = []
    for accumulate in (1, 2):
        method = autoencoder("ema_decay=0")
        method.accumulate, method.budget_share = accumulate, 0.4
        optimizers = [[{"params": list(n.parameters())}] for n in (method.autoencoder, method.discriminator)]
        method.configure_optimizers = lambda groups=optimizers: [torch.optim.SGD(g, lr=1e-4) for g in groups]
        train(method, [make_batch(3, batch=4), make_batch(3, batch=4, seed=2)])
        states.append(weights_of(method))
    assert states[0]["adaptive.value"] > 0
    assert states[0]["latent_std"] > 0
    for key, value in states[0].items():
        assert torch.allclose(value, states[1][key], atol=1e-5, rtol=1e-4), key


def test_noise_is_the_sample_s_own_and_another_one_next_time():
    method, batch = autoencoder(), make_batch(2, batch=3)
    first, second = method._noise(batch), method._noise(batch)
    assert not torch.equal(first, second)
    method._draws = 0
    one = {**batch, "target": batch["target"][1:2], "sample_index": batch["sample_index"][1:2]}
    assert torch.equal(method._noise(one), first[1:2])  # on whichever rank, in whichever batch
    assert first.std() == pytest.approx(1, abs=0.1)


def test_the_spread_of_the_latents_is_known():
    method, batch = autoencoder("ema_decay=0"), make_batch(4)
    with torch.no_grad():
        wanted = method.autoencoder.encode(batch["target"].flatten(0, 1))[0].std(correction=0)
    train(method, [batch])
    assert float(method.latent_std) == pytest.approx(float(wanted), rel=1e-3)
    kept = method.latent_std.clone()
    batch["target"][:] = float("nan")
    train(method, [batch])
    assert torch.equal(method.latent_std, kept)


def test_a_training_starts_from_public_weights_once(tmp_path):
    public = autoencoder(seed=5).autoencoder
    torch.save({"model": public.state_dict()}, tmp_path / "kl.ckpt")
    overrides = (f"weights={tmp_path / 'kl.ckpt'}",)
    method = autoencoder(*overrides)
    assert not same(weights_of(method.autoencoder), weights_of(public))
    assert method.begin() == {"autoencoder": f"from '{tmp_path / 'kl.ckpt'}'"}
    assert same(weights_of(method.autoencoder), weights_of(public))
    assert same(weights_of(method.ema.module), weights_of(public))
    trainer = train(method, [make_batch(2)])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "kl.ckpt").unlink()
    continued = autoencoder(*overrides)
    train(continued, [make_batch(2)], resume=tmp_path / "a.ckpt", max_epochs=2)
    with pytest.raises(ArtifactError, match="does not exist"):
        autoencoder(*overrides).begin()


def test_three_channels_inside_take_and_give_grey():
    method = autoencoder("autoencoder.channels=3")
    assert method.autoencoder.encoder.conv_in.in_channels == 3
    film = make_film(2)[0]
    assert method.translate(film, **SAME).shape == film.shape
    train(method, [make_batch(2)])
    with pytest.raises(ConfigError, match=r"discriminator.channels=3"):
        autoencoder("autoencoder.channels=3", "autoencoder.grey=false")


def test_slices_are_encoded_in_chunks_as_at_once(monkeypatch):
    method, film = autoencoder(), make_film(5)[0]
    latents = method.encode_slices(film)
    assert latents.shape == (5, 3, 8, 8)
    assert torch.equal(latents[:4], method.ema.module.encode(film[:4])[0])
    monkeypatch.setattr("pipeline.models.latents.SLICES_AT_ONCE", 2)
    assert torch.allclose(method.encode_slices(film), latents, atol=1e-6)
    odd = encode_slices(method.autoencoder, film[..., :13, :15])
    assert odd.shape == (5, 3, 7, 8)
    assert method.decode_slices(odd, (13, 15)).shape == (5, 1, 13, 15)


@pytest.mark.parametrize("name", ["latent_autoencoder", "latent_translator", "latent_decoder"])
def test_recomputed_activations_save_memory_and_change_no_number(name):
    # Alone: what the perceptual network keeps would hide the rest.
    alone = [] if name == "latent_translator" else ["perceptual=null", "discriminator=null"]
    states, kept = [], []
    for recompute in (False, True):
        method = make_method(name, *alone)
        if recompute:
            recompute_activations(method)
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, n=numbers: n.append(t.numel()) or t, lambda t: t):
            train(method, [make_batch(2)])
        kept.append(sum(numbers))
        states.append(weights_of(method))
    assert same(*states)
    assert kept[1] < 0.8 * kept[0]


def test_an_encoder_s_hash_is_of_its_weights_alone():
    method = autoencoder()
    first = encoder_hash(method.autoencoder)
    with torch.no_grad():
        method.autoencoder.decoder.conv_in.weight += 1
    method.autoencoder.to(memory_format=torch.channels_last)
    assert encoder_hash(method.autoencoder) == first
    with torch.no_grad():
        method.autoencoder.quant_conv.bias[0] += 1e-3
    assert encoder_hash(method.autoencoder) != first


def test_a_modality_is_named_for_all_clips_or_for_each():
    assert per_clip("ct", 2) == ["ct", "ct"]
    assert per_clip(["ct", "t1"], 2) == ["ct", "t1"]
    with pytest.raises(ValueError, match="1 modalities for 2 clips"):
        per_clip(["ct"], 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distance=l3", "Did you mean"),
        ("gan_start=1.5", "out of range"),
        ("weight_kl=-1", "out of range"),
        ("discriminator.channels=2", "discriminator.channels=1"),
    ],
)
def test_impossible_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        autoencoder(override)
