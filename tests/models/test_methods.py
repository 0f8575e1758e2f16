"""What holds for every method under conf/model."""

import copy

import pytest
import torch
from miniatures import MINIATURE
from model_making import draw_head, make_batch, make_film, make_method, modalities_of, same, train, weights_of

from pipeline.config import conf_folder
from pipeline.errors import ConfigError
from pipeline.models.film_walk import alone
from pipeline.training.memory import recompute_activations

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
    result = method.translate(film, **modalities_of(method))
    assert result.shape == film.shape
    assert result.dtype == torch.float32
    assert result.abs().max() <= 1
    assert not result.requires_grad
    assert torch.equal(film, kept)
    assert same(before, weights_of(method))
    assert method.training
    with pytest.raises(ConfigError, match="deterministic"):
        method.translate(film, **modalities_of(method), samples=3)


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
    averaged = method.translate(film, **modalities_of(method))
    method.use_ema = False
    assert not torch.equal(averaged, method.translate(film, **modalities_of(method)))
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


@pytest.mark.parametrize("name", LEARNING)
def test_a_batch_accumulated_in_parts_is_learnt_from_as_a_whole(name):
    """In plain SGD, which shows the gradients; Adam turns the rounding of vanishing ones into random signs.

    Rounding grows along a recurrent walk, on some processors more than on others: it is held against the largest step.
    """
    states, steps, begun = [], [], {}
    for accumulate in (1, 2):
        method = make_method(name, "ema_decay=0")
        method.accumulate, method.budget_share = accumulate, 0.4
        if name == "regression":
            torch.manual_seed(0)
            draw_head(method)
        networks = [o.param_groups for o in _listed(method.configure_optimizers())]
        method.configure_optimizers = lambda groups=networks: [torch.optim.SGD(g, lr=1e-4) for g in groups]
        batch = make_batch(3, batch=4)
        batch["mask"][0, ..., 5:] = 0  # masks of other sizes
        begun = weights_of(method)
        trainer = train(method, [batch])
        steps.append(trainer.global_step)
        states.append(weights_of(method))
    assert steps[0] == steps[1] > 0
    largest = max(float((value - begun[key]).abs().max()) for key, value in states[0].items())
    for key, value in states[0].items():
        assert float((value - states[1][key]).abs().max()) <= 1e-5 + 5e-3 * largest, (key, largest)


def _listed(optimizers):
    return optimizers if isinstance(optimizers, list) else [optimizers]


def test_every_optimiser_has_a_gradient_scaler_of_its_own_in_fp16():
    """The scaler of the one that overflows backs off; none steps; a checkpoint keeps all of them."""
    method, plain = make_method("vid2vid_slice", "ema_decay=0"), make_method("vid2vid_slice", "ema_decay=0")
    method.on_train_start = lambda: method.scale_gradients("cpu")  # CPUs have no fp16 training to call it for
    train(plain, [make_batch(1)])
    train(method, [make_batch(1)])
    for key, value in weights_of(plain).items():
        assert torch.allclose(value, weights_of(method)[key], atol=1e-6), key  # a power of two changes nothing
    before = weights_of(method)
    generator, discriminator = method._scalers
    last = method.generator.image_head.weight
    hook = last.register_hook(lambda gradient: gradient * float("inf"))
    scales = generator.get_scale(), discriminator.get_scale()
    method.on_train_start = lambda: None
    train(method, [make_batch(1, seed=4)])
    hook.remove()
    assert same(before, weights_of(method))
    assert method.skipped_steps == 1
    assert generator.get_scale() == scales[0] / 2
    assert discriminator.get_scale() == scales[1]
    checkpoint: dict = {}
    method.on_save_checkpoint(checkpoint)
    other = make_method("vid2vid_slice", "ema_decay=0")
    other.on_load_checkpoint(checkpoint)
    other.on_train_start = lambda: other.scale_gradients("cpu")
    train(other, [make_batch(1)])
    assert [s.get_scale() for s in other._scalers] == [generator.get_scale(), discriminator.get_scale()]


@pytest.mark.parametrize("name", ["regression", "vid2vid"])
def test_recomputed_activations_save_memory_and_change_no_number(name):
    states, kept = [], []
    for recompute in (False, True):
        method, film = make_method(name), make_film(4)[0]
        if recompute:
            recompute_activations(method)
        numbers: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, n=numbers: n.append(t.numel()) or t, lambda t: t):
            _ = method.network(film) if name == "regression" else alone(method.generator, film)
        kept.append(sum(numbers))
        train(method, [make_batch(3)])
        states.append(weights_of(method))
    assert same(*states)
    assert kept[1] < 0.8 * kept[0]


def test_what_cannot_be_recomputed_is_refused():
    with pytest.raises(ConfigError, match="no residual block"):
        recompute_activations(torch.nn.Linear(1, 1))


def test_regression_with_neighbours_sees_them_and_only_them():
    method = make_method("regression", "neighbours=1", "network.channels_in=3")
    draw_head(method)
    film = make_film(6)[0]
    changed = copy.deepcopy(film)
    changed[5] = 0
    first, second = (method.translate(volume, **modalities_of(method)) for volume in (film, changed))
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
    at_once = method.translate(film, **modalities_of(method))
    monkeypatch.setattr("pipeline.models.regression.SLICES_AT_ONCE", 2)
    assert torch.allclose(method.translate(film, **modalities_of(method)), at_once, atol=1e-6)


def test_regression_learns_a_simple_mapping():
    method, batch = make_method("regression", "learning_rate=0.02", "ema_decay=0"), make_batch(2)
    method.budget_share = 0.3

    def error() -> torch.Tensor:
        return (method.translate(batch["source"][0], **modalities_of(method)) - batch["target"][0]).abs().mean()

    before = error()
    train(method, [batch] * 40)
    after = error()
    assert after < 0.5 * before
