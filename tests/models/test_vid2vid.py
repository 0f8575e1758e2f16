import resource

import pytest
import torch
from model_making import MODALITIES, make_batch, make_film, make_method, same, train, weights_of

from pipeline.errors import ArtifactError, ConfigError
from pipeline.losses.flow import FLOW_TERMS
from pipeline.models.film_walk import walk
from pipeline.models.translator import frozen, grown, linear_decay, warm_cosine
from pipeline.models.vid2vid import Vid2Vid

# Lightning's own, about a class of torch.utils that torch renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")


def losses_of(method: Vid2Vid, frames: int = 8) -> set[str]:
    trainer = train(method, [make_batch(frames)])
    return {key.removeprefix("train/").removesuffix("_loss") for key in trainer.callback_metrics if "_loss" in key}


def test_all_terms_of_the_recipe_are_there():
    image = {"gan", "feature_matching", "perceptual", "discriminator"}
    flow = {"generated_warp", "flow", "flow_warp", "composition"}
    temporal = {f"temporal_{kind}_{s}" for kind in ("gan", "feature_matching", "discriminator") for s in (0, 1)}
    assert losses_of(make_method("vid2vid")) == image | flow | temporal
    # The coarser scale needs seven frames, the finer one three.
    assert losses_of(make_method("vid2vid"), 6) == image | flow | {name for name in temporal if name.endswith("0")}
    assert losses_of(make_method("vid2vid"), 2) == image | flow
    assert losses_of(make_method("vid2vid_slice"), 1) == image


def test_without_reference_flow_only_the_terms_against_it_fall_away():
    method = make_method("vid2vid", "reference_flow=none", "temporal_discriminator.channels=3", "weight_l1=1")
    names = losses_of(method)
    assert {"flow", "generated_warp"}.isdisjoint(names)
    assert {"flow_warp", "composition", "temporal_gan_1", "l1"} <= names


def test_translate_equals_the_walk_frame_by_frame():
    method, film = make_method("vid2vid"), make_film(6)
    method.use_ema = False
    with torch.no_grad():
        past: list[torch.Tensor] = []
        for time in range(6):
            sources = [film[:, max(time - back, 0)] for back in (2, 1, 0)]
            known = [torch.zeros(1, 1, 16, 16)] * (2 - len(past[-2:])) + past[-2:]
            frame = method.generator(torch.cat(sources, 1), torch.cat(known, 1), compose=time > 0)
            past.append(frame.image)
    assert torch.equal(method.translate(film[0], **MODALITIES), torch.cat(past))


def test_the_windows_of_training_do_not_change_what_is_generated():
    method, film = make_method("vid2vid"), make_film(6)
    whole = torch.stack([frame.image for frame in method._generate(film, [], range(6))], 1)
    done: list[torch.Tensor] = []
    for start in range(0, 6, 2):
        done += [frame.image.detach() for frame in method._generate(film, done, range(start, start + 2))]
    assert torch.allclose(torch.stack(done, 1), whole, atol=1e-6)
    method.use_ema = False
    assert torch.allclose(method.translate(film[0], **MODALITIES), whole[0], atol=1e-6)


def test_a_translated_slice_depends_on_no_later_slice():
    method, film = make_method("vid2vid"), make_film(6)[0]
    changed = film.clone()
    changed[4:] = 0.5
    first, second = method.translate(film, **MODALITIES), method.translate(changed, **MODALITIES)
    assert torch.equal(first[:4], second[:4])
    assert not torch.equal(first[4:], second[4:])


def test_a_residual_generator_learns_and_stays_in_range():
    method = make_method("vid2vid", "generator.residual=true")
    train(method, [make_batch(3)])
    assert method.translate(make_film(3)[0], **MODALITIES).abs().max() <= 1


def test_the_slice_twin_treats_every_slice_alone():
    method, film = make_method("vid2vid_slice"), make_film(11)[0]
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    shuffled = method.translate(film[order], **MODALITIES)
    assert torch.allclose(shuffled, method.translate(film, **MODALITIES)[order], atol=1e-6)


@pytest.mark.parametrize("name", ["vid2vid", "vid2vid_learned_flow", "vid2vid_fine"])
def test_generated_frames_never_see_the_target_in_training(name, monkeypatch):
    seen: list[torch.Tensor] = []
    original = Vid2Vid._generate

    def spy(self, source, done, times):
        frames = original(self, source, done, times)
        seen.extend(frame.image.detach().clone() for frame in frames)
        return frames

    monkeypatch.setattr(Vid2Vid, "_generate", spy)
    for flip in (1, -1):
        batch = make_batch(3)
        batch["target"] *= flip
        method = make_method(name, "learning_rate=1e-30")
        train(method, [batch])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(seen[:3], seen[3:], strict=True))


def test_windows_and_backpropagation_grow_with_the_share_of_the_budget():
    assert [grown(2, 3, share) for share in (0, 0.3, 0.34, 0.67, 1)] == [2, 2, 4, 8, 8]
    assert grown(3, 1, 1.0) == 3
    method = make_method("vid2vid", "frames_growth=2", "backpropagate_growth=2")
    windows: list[list[int]] = []
    original = method._generate
    method._generate = lambda source, done, times: (windows.append(list(times)), original(source, done, times))[1]
    for share in (0.4, 0.6):
        method.budget_share = share
        train(method, [make_batch(3)])
    assert windows == [[0], [1], [2], [0, 1], [2]]
    frames = original(make_film(2), [], [0, 1])
    frames[0].image.retain_grad()
    frames[1].image.sum().backward()
    assert frames[0].image.grad is not None


def test_only_the_finest_scale_learns_in_its_share_of_the_budget():
    method = make_method("vid2vid_fine", "fix_coarse_share=0.5", "ema_decay=0")
    generator = method.generator
    fine = torch.nn.ModuleList([generator.enhancers, generator.image_head, generator.flow_head, generator.weight_head])
    coarse = torch.nn.ModuleList([generator.source_encoder, generator.past_encoder, generator.flow_branch])
    before = weights_of(coarse), weights_of(fine)
    train(method, [make_batch(3)])
    assert same(before[0], weights_of(coarse))
    assert not same(before[1], weights_of(fine))
    method.budget_share = 0.5
    train(method, [make_batch(3)])
    assert not same(before[0], weights_of(coarse))


def test_a_finer_scale_starts_from_a_coarser_run_and_resumes_without_it(tmp_path):
    coarse = make_method("vid2vid", seed=3)
    train(coarse, [make_batch(3)]).save_checkpoint(tmp_path / "coarse.ckpt")
    start = f"coarse_checkpoint={tmp_path / 'coarse.ckpt'}"
    method = make_method("vid2vid_fine", start, "learning_rate=1e-30")
    assert method.begin() == {"coarser scales": f"from '{tmp_path / 'coarse.ckpt'}'"}
    train(method, [make_batch(3)]).save_checkpoint(tmp_path / "fine.ckpt")
    for network in (method.generator, method.averaged(method.generator)):
        for part in ("source_encoder", "past_encoder", "image_branch", "flow_branch"):
            taken, given = weights_of(getattr(network, part)), weights_of(getattr(coarse.generator, part))
            assert all(torch.allclose(taken[name], given[name], atol=1e-6) for name in given)
    with pytest.raises(ConfigError, match="not this one without its finest scale"):
        make_method("vid2vid_fine", start, "generator.width=8").begin()
    (tmp_path / "coarse.ckpt").unlink()
    with pytest.raises(ArtifactError, match="does not exist"):
        make_method("vid2vid_fine", start).begin()
    resumed = make_method("vid2vid_fine", start)
    train(resumed, [make_batch(3)], resume=tmp_path / "fine.ckpt", max_epochs=1)
    assert same(weights_of(resumed), weights_of(method))


def test_two_time_scales():
    method = make_method("vid2vid", "two_time_scales=true", "learning_rate=0.001")
    optimizers = train(method, [make_batch(3)]).optimizers
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers[:3]] == [0.0005, 0.002, 0.002]
    assert {optimizer.param_groups[0]["betas"] for optimizer in optimizers} == {(0.0, 0.9)}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_hinge_with_spectral_norm_trains_and_resumes_exactly(precision, tmp_path):
    choices = ["gan=hinge", *(f"{n}.spectral=true" for n in ("generator", "image_discriminator"))]
    choices += ["temporal_discriminator.spectral=true", "perceptual=null"]
    unbroken, broken, resumed = (make_method("vid2vid_learned_flow", *choices, seed=seed) for seed in (0, 0, 9))
    batches = [make_batch(3)]
    train(unbroken, batches, max_epochs=2, precision=precision)
    train(broken, batches, precision=precision).save_checkpoint(tmp_path / "a.ckpt")
    train(resumed, batches, resume=tmp_path / "a.ckpt", max_epochs=2, precision=precision)
    assert unbroken.skipped_steps == 0
    assert not same(weights_of(broken), weights_of(resumed))
    assert same(weights_of(unbroken), weights_of(resumed))
    film = make_film(3)[0]
    assert torch.equal(*(method.translate(film, **MODALITIES) for method in (unbroken, resumed)))


@pytest.mark.parametrize("bp", [1, 2])
def test_gradients_flow_back_through_as_many_frames_as_set(bp):
    method = make_method("vid2vid", f"backpropagate_frames={bp}", "frames_per_step=2")
    source = make_film(2)
    frames = method._generate(source, [], [0, 1])
    frames[0].image.retain_grad()
    frames[1].image.sum().backward()
    assert (frames[0].image.grad is None) == (bp == 1)


def test_a_translation_does_not_need_the_flow_network():
    method, film = make_method("vid2vid_learned_flow"), make_film(3)[0]
    wanted = method.translate(film, **MODALITIES)
    for parameter in method.flow_network.parameters():
        parameter.data.fill_(float("nan"))
    assert torch.equal(wanted, method.translate(film, **MODALITIES))


def gradients_of(method: Vid2Vid, monkeypatch: pytest.MonkeyPatch, only: int) -> set[str]:
    """Return the networks that one optimiser's loss alone gives gradients to."""
    touched: set[str] = set()

    def step(self, updates, network, max_norm=0.0):
        updates[only].total.backward()
        touched.update(
            name.split(".")[0] + ("." + name.split(".")[1] if name.startswith("temporal") else "")
            for name, parameter in self.named_parameters()
            if parameter.grad is not None and parameter.grad.any()
        )
        self.zero_grad()
        return False

    monkeypatch.setattr(Vid2Vid, "guarded_step", step)
    train(method, [make_batch(7)])
    return touched


@pytest.mark.parametrize(
    ("only", "network"),
    [
        (0, "generator"),
        (1, "image_discriminator"),
        (-1, "image_discriminator temporal_discriminators.0 temporal_discriminators.1"),
    ],
)
def test_each_loss_reaches_its_own_network_only(only, network, monkeypatch):
    # The last update is the image discriminator's at first, and the temporal ones' once they are awake.
    assert gradients_of(make_method("vid2vid"), monkeypatch, only) == set(network.split())


def test_the_generator_and_the_flow_network_learn_from_their_own_losses_only(monkeypatch):
    assert gradients_of(make_method("vid2vid_learned_flow"), monkeypatch, 0) == {"generator"}
    # In the first window there is no pair of frames yet, and the last update is the image discriminator's.
    assert gradients_of(make_method("vid2vid_learned_flow"), monkeypatch, -1) == {"flow_network", "image_discriminator"}


def test_the_temporal_discriminators_start_differently():
    one, other = (weights_of(network) for network in make_method("vid2vid").temporal_discriminators)
    assert not same(one, other)


def test_one_damaged_frame_costs_few_steps_of_its_clip():
    method, batch = make_method("vid2vid"), make_batch(12)
    batch["source"][:, 4] = float("nan")
    before = weights_of(method.generator)
    train(method, [batch])
    assert 1 <= method.skipped_steps < 12
    assert method.skipped_in_a_row == 0
    assert not same(before, weights_of(method.generator))
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())


def test_rates_decay_for_generator_and_image_discriminator_only():
    method = make_method("vid2vid", "learning_rate=0.001")
    method.budget_share = 0.75
    trainer = train(method, [make_batch(7)])
    assert [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers] == [0.0005, 0.0005, 0.001, 0.001]


def test_schedules():
    assert [linear_decay(share, 0.5) for share in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
    assert warm_cosine(0.01, 0.02) == 0.5
    assert warm_cosine(0.02, 0.02) == 1
    assert warm_cosine(1, 0.02) == pytest.approx(0)
    assert 0 < warm_cosine(0, 0.02) < 0.1


def test_frozen_lets_gradients_through_and_thaws():
    layer = torch.nn.Linear(2, 2)
    inputs = torch.ones(1, 2, requires_grad=True)
    with frozen(layer):
        output = layer(inputs)
    output.sum().backward()
    assert inputs.grad is not None
    assert layer.weight.grad is None
    assert layer.weight.requires_grad


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["temporal_discriminator.channels=3"], "channels=7"),
        (["reference_flow=none"], "channels=3"),
        (["image_discriminator.channels=1"], "channels=2"),
        (["reference_flow=dsi"], "Did you mean 'dis'"),
        (["gan=vanilla"], "lsgan, hinge"),
        (["recurrent=false"], "not recurrent"),
        (["generator.flow=false"], "no flow branch"),
        (["weight_gan=-1"], "negative"),
        (["frames_per_step=0"], "frames_per_step=0"),
        (["backpropagate_growth=0"], "out of range"),
        (["fix_coarse_share=1"], "out of range"),
        (["fix_coarse_share=0.2"], "finer_scales=1"),
        (["coarse_checkpoint=other.ckpt"], "finer_scales=1"),
        (["weight_bending=-1"], "negative"),
        (["reference_flow=learned"], "vid2vid_learned_flow"),
        (["ema_decay=1"], "averaged weights"),
    ],
)
def test_contradictions_are_refused(overrides, what):
    with pytest.raises(ConfigError, match=what):
        make_method("vid2vid", *overrides)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["reference_flow=dis"], "flow_network=null"),
        (["flow_network.channels=2"], "flow_network.channels=1"),
        (["flow_network.widths=[4]"], "too small"),
        (["temporal_discriminator=null", *(f"weight_{n}=0" for n in FLOW_TERMS)], "Nothing asks"),
    ],
)
def test_a_flow_network_without_use_is_refused(overrides, what):
    with pytest.raises(ConfigError, match=what):
        make_method("vid2vid_learned_flow", *overrides)


def test_clips_too_short_are_refused_with_the_way_out():
    method = make_method("vid2vid")
    method.check_stream(6)
    method.check_stream(6, 24)
    with pytest.raises(ConfigError, match="vid2vid_slice"):
        method.check_stream(1)
    with pytest.raises(ConfigError, match="temporal_discriminator=null"):
        method.check_stream(2)
    with pytest.raises(ConfigError, match="temporal_scales=1"):
        method.check_stream(6, 6)
    make_method("vid2vid_slice").check_stream(1)


def test_bf16_trains_and_translates():
    method = make_method("vid2vid", "perceptual=null")
    before = weights_of(method.generator)
    train(method, [make_batch(3)], precision="bf16-mixed")
    assert not same(before, weights_of(method.generator))
    assert method.skipped_steps == 0


def test_a_long_film_needs_no_more_memory_than_a_short_one():
    method = make_method("vid2vid", "generator.width=2", "generator.downsamplings=1")
    film = torch.zeros(600, 1, 32, 32)
    method.translate(film[:20], **MODALITIES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = method.translate(film, **MODALITIES)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert result.shape == film.shape
    # The result takes 2.4 MiB; activations of all frames would take over 100.
    assert grown < 30_000


@pytest.mark.parametrize("start", [0, 3, 7])
def test_the_walk_begins_where_the_mask_is_largest_and_the_way_down_knows_what_lies_above(start):
    """A mask that grows along the walk would bring the dark outside of the past along."""
    method = make_method("vid2vid")
    film = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.zeros_like(film)
    for index in range(8):
        mask[index, :, : 32 - 2 * abs(index - start)] = 1
    found = method.translate(film, mask, **MODALITIES)
    torch.testing.assert_close(found[start:], method.translate(film[start:], **MODALITIES))
    changed = film.clone()
    changed[:start] = -changed[:start]
    below = method.translate(changed, mask, **MODALITIES)
    assert torch.equal(below[start:], found[start:])  # nothing above knows what lies below
    assert not start or not torch.allclose(below[:start], found[:start])
    if start:  # the past of the first slice below is what was made above it
        above = film.clone()
        above[start] = -above[start]
        assert not torch.allclose(method.translate(above, mask, **MODALITIES)[start - 1], found[start - 1])
    if start == 3:
        network = method.averaged(method.generator)
        with torch.no_grad():
            network.eval()
            seeds = [frame.image for frame in walk(network, film[None, start:], method.device)][:2][::-1]
            down = [f.image[0].clamp(-1, 1) for f in walk(network, film[None, :5].flip(1), method.device, seeds)]
        torch.testing.assert_close(torch.stack(down).flip(0), found[:start])
