"""What holds for every method under conf/model."""

import copy

import pytest
import torch
from miniatures import MINIATURE
from model_making import MODALITIES, make_batch, make_film, make_method, same, train, weights_of

from pipeline.config import conf_folder
from pipeline.errors import ConfigError
from pipeline.models.translator import Translator

# Lightning's own, about a class of torch.utils that torch renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
LEARNING = sorted(set(MINIATURE) - {"identity"})


def test_every_method_has_a_miniature():
    assert sorted(path.stem for path in (conf_folder() / "model").glob("*.yaml")) == sorted(MINIATURE)


@pytest.mark.parametrize("name", LEARNING)
def test_two_steps_learn_with_finite_losses_and_repeat_exactly(name):
    states = []
    for _ in range(2):
        method = make_method(name)
        before = weights_of(method)
        trainer = train(method, [make_batch(8), make_batch(8, seed=2)])
        losses = {key: value for key, value in trainer.callback_metrics.items() if key.endswith("_loss")}
        assert losses
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(key.startswith("train/") for key in trainer.callback_metrics)
        assert method.skipped_steps == 0
        assert not same(before, weights_of(method))
        states.append(weights_of(method))
    assert same(*states)


@pytest.mark.parametrize("name", sorted(MINIATURE))
def test_translate_keeps_shape_type_weights_and_mode(name):
    method = make_method(name)
    film = make_film(5)[0, :, :, :13, :]  # no multiple of anything
    before, kept = weights_of(method), film.clone()
    result = method.translate(film, **MODALITIES)
    assert result.shape == film.shape
    assert result.dtype == torch.float32
    assert result.abs().max() <= 1
    assert not result.requires_grad
    assert torch.equal(film, kept)
    assert same(before, weights_of(method))
    assert method.training
    with pytest.raises(ConfigError, match="deterministic"):
        method.translate(film, **MODALITIES, samples=3)


@pytest.mark.parametrize("name", LEARNING)
def test_a_damaged_batch_is_skipped_counted_and_leaves_the_weights(name):
    method, bad = make_method(name), make_batch(3)
    bad["target"][:] = float("nan")
    before = weights_of(method)
    train(method, [bad, bad])
    assert same(before, weights_of(method))
    assert method.skipped_steps >= 2
    assert method.skipped_in_a_row == 2  # batches
    train(method, [make_batch(3)])
    assert method.skipped_in_a_row == 0
    assert not same(before, weights_of(method))


@pytest.mark.parametrize("name", LEARNING)
def test_skipped_steps_survive_a_checkpoint_read_without_code(name, tmp_path):
    method = make_method(name)
    method.skipped_steps, method.skipped_in_a_row = 5, 2
    trainer = train(method, [make_batch(3)])
    method.skipped_in_a_row = 2
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    other = make_method(name, seed=9)
    other.load_state_dict(checkpoint["state_dict"])
    other.on_load_checkpoint(checkpoint)
    assert (other.skipped_steps, other.skipped_in_a_row) == (5, 2)
    assert same(weights_of(method), weights_of(other))
    assert not any("extractor" in key for key in checkpoint["state_dict"])


@pytest.mark.parametrize("name", LEARNING)
def test_a_resumed_training_ends_where_an_unbroken_one_does(name, tmp_path):
    unbroken, broken, resumed = make_method(name), make_method(name), make_method(name, seed=9)
    batches = [make_batch(3)]
    train(unbroken, batches, max_epochs=2)
    train(broken, batches).save_checkpoint(tmp_path / "a.ckpt")
    train(resumed, batches, resume=tmp_path / "a.ckpt", max_epochs=2)
    assert not same(weights_of(broken), weights_of(resumed))
    assert same(weights_of(unbroken), weights_of(resumed))


@pytest.mark.parametrize("name", LEARNING)
def test_averaged_weights_follow_and_are_used_on_request(name):
    method = make_method(name)
    train(method, [make_batch(3), make_batch(3, seed=3)])
    film = make_film(3)[0]
    averaged = method.translate(film, **MODALITIES)
    method.use_ema = False
    assert not torch.equal(averaged, method.translate(film, **MODALITIES))
    assert not any(parameter.requires_grad for parameter in method.ema.parameters())
    assert make_method(name, "ema_decay=0").ema is None


@pytest.mark.parametrize("name", LEARNING)
def test_the_learning_rate_is_a_function_of_the_share_alone(name):
    rates = []
    for first in (0.1, 0.9):
        method = make_method(name)
        for share in (first, 0.75):
            method.budget_share = share
            trainer = train(method, [make_batch(3)])
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])
    assert rates[0] == rates[1]


def test_two_half_batches_accumulate_to_one_whole():
    whole, halves = make_method("regression"), make_method("regression")
    together = make_batch(2, batch=2)
    parts = [{k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in together.items()} for i in range(2)]
    for method in (whole, halves):
        method.budget_share = 0.5
    halves.accumulate = 2
    train(whole, [together])
    trainer = train(halves, parts)
    assert trainer.global_step == 1
    # Of the head only: Adam turns the vanishing gradients of biases before a norm into random signs.
    for one, other in zip(whole.network.head[1].parameters(), halves.network.head[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def draw_head(method: Translator) -> None:
    """Give a regression's head weights: it starts at zero, and then sees nothing but the source it is added to."""
    for network in (method.network, method.averaged(method.network)):
        torch.nn.init.normal_(network.head[1].weight, 0.0, 0.1)


def test_regression_with_neighbours_sees_them_and_only_them():
    method = make_method("regression", "neighbours=1", "network.channels_in=3")
    draw_head(method)
    film = make_film(6)[0]
    changed = copy.deepcopy(film)
    changed[5] = 0
    first, second = (method.translate(volume, **MODALITIES) for volume in (film, changed))
    different = [not torch.equal(a, b) for a, b in zip(first, second, strict=True)]
    assert different == [False, False, False, False, True, True]
    method.check_stream(3)
    with pytest.raises(ConfigError, match="too short"):
        method.check_stream(2)
    with pytest.raises(ConfigError, match="channels_in=3"):
        make_method("regression", "neighbours=1")


def test_regression_translates_in_chunks_as_at_once(monkeypatch):
    method = make_method("regression", "neighbours=2", "network.channels_in=5")
    draw_head(method)
    film = make_film(7)[0]
    at_once = method.translate(film, **MODALITIES)
    monkeypatch.setattr("pipeline.models.regression.SLICES_AT_ONCE", 2)
    assert torch.allclose(method.translate(film, **MODALITIES), at_once, atol=1e-6)


def test_regression_learns_a_simple_mapping():
    method, batch = make_method("regression", "learning_rate=0.02", "ema_decay=0"), make_batch(2)
    method.budget_share = 0.3

    def error() -> torch.Tensor:
        return (method.translate(batch["source"][0], **MODALITIES) - batch["target"][0]).abs().mean()

    before = error()
    train(method, [batch] * 40)
    after = error()
    assert after < 0.5 * before
