"""Stage 3 of latent mapping: only the decoder learns, on predicted latents, and the checkpoint needs nothing else."""

import pytest
import torch
from model_making import MODALITIES, checkpoint_of, make_batch, make_film, make_method, same, train, weights_of

from pipeline.config import build
from pipeline.errors import ArtifactError, ConfigError

# Lightning's own, about a class of torch.utils that torch renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")


def decoder(*overrides, seed=0):
    return make_method("latent_decoder", *overrides, seed=seed)


def earlier():
    return torch.load(checkpoint_of("latent_translator"), weights_only=True)["state_dict"]


def test_it_begins_where_stage_2_ended():
    method, before = decoder(), make_method("latent_translator")
    before.load_state_dict(earlier())
    film = make_film(5)[0]
    assert method.latent_std == before.latent_std
    assert torch.equal(method.translate(film, **MODALITIES), before.translate(film, **MODALITIES))


def test_only_the_decoder_learns():
    method = decoder()
    before = weights_of(method)
    train(method, [make_batch(3), make_batch(3, seed=2)])
    changed = {name for name, value in weights_of(method).items() if not torch.equal(value, before[name])}
    assert any(name.startswith("autoencoder.decoder.") for name in changed)
    allowed = ("autoencoder.decoder.", "discriminator.", "ema.", "adaptive.")
    assert all(name.startswith(allowed) for name in changed)


def test_predicted_latents_are_decoded_better_afterwards():
    method = decoder("learning_rate=0.005", "discriminator=null", "perceptual=null", "ema_decay=0")
    method.budget_share, batch = 0.3, make_batch(3)

    def error():
        return (method.translate(batch["source"][0], **MODALITIES) - batch["target"][0]).abs().mean()

    before = error()
    train(method, [batch] * 40)
    assert error() < 0.6 * before


def test_it_learns_from_the_latents_that_translate_decodes():
    method = decoder("transformer.frames=2")
    batch = make_batch(5, batch=2)
    batch |= {"source_modality": ["cbct", "ct"], "target_modality": ["ct", "t1"]}
    found = method.autoencoder.decode(method._predicted(batch)).clamp(-1, 1).unflatten(0, (2, 5))
    for clip, pair in enumerate((("cbct", "ct"), ("ct", "t1"))):
        names = dict(zip(MODALITIES, pair, strict=True))
        assert torch.allclose(method.translate(batch["source"][clip], **names), found[clip], atol=1e-5)


def test_its_checkpoint_needs_no_earlier_stage(tmp_path):
    method = decoder()
    trainer = train(method, [make_batch(2)])
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    film = make_film(3)[0]
    wanted = method.translate(film, **MODALITIES)
    from model_making import composed

    alone = build({**composed("latent_decoder"), "translator_checkpoint": str(tmp_path / "gone")})
    alone.load_state_dict(torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(alone.translate(film, **MODALITIES), wanted)
    train(alone, [make_batch(2)], resume=tmp_path / "a.ckpt", max_epochs=2)


def test_another_stage_2_is_refused(tmp_path):
    method = decoder()
    train(method, [make_batch(2)]).save_checkpoint(tmp_path / "a.ckpt")
    state = earlier()
    state["ema.module.place"] = state["ema.module.place"] + 1e-3
    torch.save({"state_dict": state}, tmp_path / "other.ckpt")
    continued = decoder()
    continued.translator_checkpoint = str(tmp_path / "other.ckpt")
    with pytest.raises(ArtifactError, match="begun with another translator"):
        train(continued, [make_batch(2)], resume=tmp_path / "a.ckpt", max_epochs=2)
    fresh = decoder()
    fresh.translator_checkpoint = str(checkpoint_of("latent_autoencoder"))
    with pytest.raises(ArtifactError, match="do not fit this transformer"):
        fresh.begin()
    fresh.translator_checkpoint = ""
    with pytest.raises(ConfigError, match="translator_checkpoint=RUN"):
        fresh.begin()


def test_latents_alone_teach_it_nothing():
    with pytest.raises(ConfigError, match="learns from pixels"):
        train(decoder(), [{**make_batch(2), "latent": True}])


def test_the_discriminator_sleeps_until_its_share_of_the_budget():
    method = decoder("gan_start=0.5")
    before = weights_of(method.discriminator)
    method.budget_share = 0.4
    train(method, [make_batch(2)])
    assert same(before, weights_of(method.discriminator))
    method.budget_share = 0.6
    train(method, [make_batch(2)])
    assert not same(before, weights_of(method.discriminator))
    assert method.adaptive.value > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gan_start=-0.1", "out of range"),
        ("discriminator.channels=3", r"discriminator\.channels=1"),
        ("transformer.channels=5", r"transformer\.channels=3"),
    ],
)
def test_impossible_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        decoder(override)
