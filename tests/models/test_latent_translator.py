"""Stage 2 of latent mapping: what it takes from stage 1, what it learns from, and how a film is mapped."""

from itertools import pairwise

import pytest
import torch
from model_making import MODALITIES, checkpoint_of, make_batch, make_film, make_method, same, train, weights_of

from pipeline.errors import ArtifactError, ConfigError
from pipeline.models.latents import encode_slices, encoder_hash, map_latents, windows

# Lightning's own, about a class of torch.utils that torch renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")


def translator(*overrides, seed=0):
    return make_method("latent_translator", *overrides, seed=seed)


def earlier():
    return torch.load(checkpoint_of("latent_autoencoder"), weights_only=True)["state_dict"]


def draw_guidance(method):
    """Let blocks and head work: they start as the identity."""
    torch.manual_seed(0)
    for network in (method.transformer, method.averaged(method.transformer)):
        for name, weight in network.named_parameters():
            if "modulation" in name or name == "head.weight":
                torch.nn.init.normal_(weight, 0.0, 0.3)
    return method


def test_a_new_training_takes_the_averaged_autoencoder_and_its_scale(tmp_path):
    method, wanted = translator(), earlier()
    taken = {name: wanted[f"ema.module.{name}"] for name in method.autoencoder.state_dict()}
    assert same(weights_of(method.autoencoder), taken)
    assert method.latent_std == wanted["latent_std"] > 0
    assert not any(weight.requires_grad for weight in method.autoencoder.parameters())
    train(method, [make_batch(2)])
    assert same(weights_of(method.autoencoder), taken)
    # A run folder, and a training without an average, serve as well.
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    raw = {name: value for name, value in wanted.items() if not name.startswith("ema.")}
    torch.save({"state_dict": raw}, folder / "last.ckpt")
    method.autoencoder_checkpoint = str(tmp_path / "run")
    method.begin()
    assert same(
        weights_of(method.autoencoder),
        {name: wanted[f"autoencoder.{name}"] for name in method.autoencoder.state_dict()},
    )


def test_a_new_training_without_a_trained_autoencoder_is_refused():
    method = translator()
    method.autoencoder_checkpoint = ""
    with pytest.raises(ConfigError, match="autoencoder_checkpoint=RUN"):
        method.begin()


def test_an_autoencoder_of_other_sizes_is_refused():
    with pytest.raises(ArtifactError, match=r"size mismatch.*sizes that the run before had"):
        translator("autoencoder.width=6")
    with pytest.raises(ConfigError, match=r"transformer\.channels=5"):
        translator("autoencoder.latent_channels=5")


def test_a_resumed_training_needs_no_stage_1_and_refuses_another(tmp_path):
    method = translator()
    train(method, [make_batch(2)]).save_checkpoint(tmp_path / "a.ckpt")
    place = str(tmp_path / "gone.ckpt")
    continued = translator(seed=4)
    continued.autoencoder_checkpoint = place
    train(continued, [make_batch(2)], resume=tmp_path / "a.ckpt", max_epochs=2)
    assert same(weights_of(continued.autoencoder), weights_of(method.autoencoder))
    state = earlier()
    state["ema.module.encoder.conv_in.weight"] = state["ema.module.encoder.conv_in.weight"] + 1e-3
    torch.save({"state_dict": state}, place)
    with pytest.raises(ArtifactError, match="begun with another autoencoder"):
        train(continued, [make_batch(2)], resume=tmp_path / "a.ckpt", max_epochs=2)
    torch.save({"state_dict": earlier()}, place)
    continued.on_fit_start()


def test_latents_that_were_encoded_before_are_what_pixels_give():
    states = []
    for encoded in (False, True):
        method, batch = translator("ema_decay=0"), make_batch(4, batch=2)
        if encoded:
            for name in ("source", "target"):
                film = encode_slices(method.autoencoder, batch[name].flatten(0, 1)).unflatten(0, (2, 4))
                batch[name] = film / method.latent_std
            batch["latent"] = True
        train(method, [batch])
        states.append(weights_of(method.transformer))
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-6), name


def test_latents_of_another_encoder_are_refused(tmp_path):
    method = translator()
    own = encoder_hash(method.autoencoder)
    method.learn_from_latents(2.0, own)
    method.begin()
    assert method.latent_std == 2
    method.learn_from_latents(2.0, "feedc0ffee00")
    with pytest.raises(ArtifactError, match=f"made by another encoder.*feedc0ffee.*{own[:12]}"):
        method.begin()
    method.learn_from_latents(2.0, own)
    # A run that goes on without stage 1 knows its encoder by itself.
    train(method, [make_batch(2)]).save_checkpoint(tmp_path / "a.ckpt")
    continued = translator()
    continued.autoencoder_checkpoint = str(tmp_path / "gone")
    continued.learn_from_latents(2.0, "feedc0ffee00")
    with pytest.raises(ArtifactError, match="made by another encoder"):
        train(continued, [make_batch(2)], resume=tmp_path / "a.ckpt", max_epochs=2)


def test_the_scale_of_shards_goes_before_the_autoencoder_s():
    method = translator()
    method.set_latent_scale(2.5)
    method.begin()
    assert method.latent_std == 2.5
    with pytest.raises(ConfigError, match="above 0"):
        method.set_latent_scale(0.0)


def test_the_scale_changes_what_is_learnt_and_not_what_an_untrained_model_gives():
    method, film = translator(), make_film(3)[0]
    before = method.translate(film, **MODALITIES)
    method.set_latent_scale(9.0)
    assert torch.allclose(method.translate(film, **MODALITIES), before, atol=1e-4)


def test_pairs_are_learnt_apart_within_one_batch():
    """One clip of a batch has to become brighter, the other darker: only the names tell which."""
    method = translator("learning_rate=0.01", "ema_decay=0", "transformer.frames=1")
    method.budget_share = 0.2
    shift = torch.tensor([0.8, -0.8]).view(2, 1, 1, 1, 1)
    film = torch.randn(1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1, -1).clone()
    batch = {**make_batch(1, batch=2), "source": film, "target": film + shift, "latent": True}
    batch |= {"source_modality": ["cbct", "ct"], "target_modality": ["ct", "t1"]}
    train(method, [batch] * 60)
    found = [map_latents(method.transformer, film[0], *names) for names in (("cbct", "ct"), ("ct", "t1"))]
    assert (found[0] - film[0]).mean() == pytest.approx(0.8, abs=0.25)
    assert (found[1] - film[0]).mean() == pytest.approx(-0.8, abs=0.25)
    # Nothing of the batch itself is different but the names, which are split among parts too.
    method.accumulate = 2
    assert [part["target_modality"] for part in method.parts(batch)] == [["ct"], ["t1"]]


def test_another_target_is_another_volume():
    method, film = draw_guidance(translator()), make_film(3)[0]
    results = [
        method.translate(film, source_modality=source, target_modality=target)
        for source, target in (("cbct", "ct"), ("ct", "cbct"), ("cbct", "t1"))
    ]
    assert all((one - other).abs().max() > 1e-2 for one, other in pairwise(results))
    with pytest.raises(ConfigError, match="Allowed: cbct, ct, t1"):
        method.translate(film, source_modality="ct", target_modality="pet")


def test_one_slice_at_a_time_is_the_path_of_a_single_slice():
    method, film = draw_guidance(translator("transformer.frames=1")), make_film(5)[0]
    whole = method.translate(film, **MODALITIES)
    for index, image in enumerate(whole):
        assert torch.allclose(method.translate(film[index : index + 1], **MODALITIES)[0], image, atol=1e-5)
    network = method.averaged(method.transformer)
    with torch.no_grad():
        mean = method.autoencoder.encode(film[:1])[0] / method.latent_std
        mapped = network(mean[None], network.indices(["cbct"]), network.indices(["ct"]))[0] * method.latent_std
        by_hand = method.autoencoder.decode(mapped).clamp(-1, 1)
    assert torch.allclose(whole[:1], by_hand, atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "length", "step", "starts"),
    [(5, 1, 1, [0, 1, 2, 3, 4]), (8, 4, 2, [0, 2, 4]), (7, 4, 4, [0, 3]), (3, 4, 2, [0]), (9, 4, 2, [0, 2, 4, 5])],
)
def test_windows_cover_a_film(frames, length, step, starts):
    assert windows(frames, length, step) == starts


def test_overlapping_windows_are_blended():
    method = draw_guidance(translator("transformer.frames=4"))
    network = method.averaged(method.transformer)
    film = torch.randn(6, 3, 8, 8)
    names = [network.indices([name]) for name in ("cbct", "ct")]
    with torch.no_grad():
        first, second = (network(film[None, start : start + 4], *names)[0] for start in (0, 2))
    found = map_latents(network, film, "cbct", "ct")
    assert torch.allclose(found[:2], first[:2], atol=1e-5)
    assert torch.allclose(found[2], (2 * first[2] + 1 * second[0]) / 3, atol=1e-5)
    assert torch.allclose(found[3], (1 * first[3] + 2 * second[1]) / 3, atol=1e-5)
    assert torch.allclose(found[4:], second[2:], atol=1e-5)
    assert map_latents(network, film[:2], "cbct", "ct").shape == (2, 3, 8, 8)  # shorter than a window


def test_clips_that_are_too_short_for_a_window_are_refused():
    method = translator("transformer.frames=4")
    method.check_stream(4)
    with pytest.raises(ConfigError, match=r"stream\.clip_length=3"):
        method.check_stream(3)
    method.check_pairing("every_pair")
    with pytest.raises(ConfigError, match="paired, every_pair"):
        method.check_pairing("unpaired")


@pytest.mark.parametrize(
    ("override", "message"), [("distance=smooth_l2", "Did you mean"), ("weight_decay=-1", "out of range")]
)
def test_impossible_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        translator(override)
