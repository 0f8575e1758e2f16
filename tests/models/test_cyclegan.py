"""CycleGAN: pools, decay, who judges what, both ways, unpaired batches, and stages that wait."""

import pytest
import torch
from model_making import MODALITIES, composed, make_batch, make_film, make_method, same, train, weights_of
from torch import nn

from pipeline.config import build
from pipeline.errors import ConfigError
from pipeline.losses.gradient_consistency import gradient_consistency
from pipeline.losses.mind import mind_distance
from pipeline.models.image_pool import ImagePool
from pipeline.models.unfreezing import freeze_stages
from pipeline.networks.resnet_generator import ResnetGenerator

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
BACK = {"source_modality": "ct", "target_modality": "cbct"}


def images(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(-1, 1, 1, 1)


def first(steps: int) -> torch.Tensor:
    return torch.tensor([steps])


def test_a_pool_fills_then_gives_half_of_the_time_what_it_held():
    """One image a step, as published: the discriminator sees each of the first ones as it is made."""
    pool, seen = ImagePool(3), []
    for step in range(200):
        held = [float(image) for image in pool.images]
        seen.append(float(pool.exchanged(images(step), first(step))))
        pool.take_up(images(step), first(step))
        assert seen[-1] == step or seen[-1] in held
        if seen[-1] != step:  # what is given is replaced by what came
            assert seen[-1] not in [float(image) for image in pool.images]
            assert step in [float(image) for image in pool.images]
    assert seen[:3] == [0, 1, 2]
    assert 75 < sum(value != step for step, value in enumerate(seen)) < 122
    assert len(pool.images) == 3


def test_a_pool_keeps_copies_and_gives_none_away_before_it_is_full():
    pool, made = ImagePool(2), images(1, 2, 3)
    assert torch.equal(pool.exchanged(made, first(0)), made)
    pool.take_up(made, first(0))
    made.zero_()
    assert [float(image) for image in pool.images] == [1, 2]
    assert torch.equal(ImagePool(0).exchanged(made, first(0)), made)
    with pytest.raises(ConfigError, match="from 0"):
        ImagePool(-1)


def test_a_pool_of_a_checkpoint_gives_what_the_first_would():
    pool, other = ImagePool(4), ImagePool(4)
    for step in range(3):
        pool.take_up(images(step, -step), torch.tensor([2 * step, 2 * step + 1]))
    other.restore(pool.state())
    made = images(*range(100, 108))
    samples = torch.arange(8)
    assert torch.equal(pool.exchanged(made, samples), other.exchanged(made, samples))
    assert not torch.equal(pool.exchanged(made, samples), made)
    smaller = ImagePool(1)
    smaller.restore(pool.state())
    assert len(smaller.images) == 1
    pool.take_up(torch.ones(1, 1, 2, 2), first(9))  # pictures of another size
    assert [image.shape for image in pool.images] == [(1, 2, 2)]
    empty = ImagePool(4)
    empty.restore(ImagePool(4).state())
    assert empty.images == []


class Plus(nn.Module):
    """A generator that adds a number, and notes its inputs."""

    def __init__(self, added: float) -> None:
        super().__init__()
        self.added, self.seen = nn.Parameter(torch.tensor(added)), []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(image.detach().clone())
        return image + self.added


class Mean(Plus):
    """A discriminator whose one verdict per image is the mean plus a number."""

    def forward(self, image: torch.Tensor) -> list[list[torch.Tensor]]:
        return [[super().forward(image).mean((1, 2, 3))]]


def by_hand(*overrides: str):
    """A method with generators +1 and -2 and discriminators +0.5 and +0.25."""
    method = make_method("cyclegan", "ema_decay=0", "pool=0", *overrides)
    method.generators = nn.ModuleList([Plus(1.0), Plus(-2.0)])
    method.discriminators = nn.ModuleList([Mean(0.5), Mean(0.25)])
    batch = make_batch(1, 4)
    batch["source"], batch["target"] = torch.full((1, 1, 1, 4, 4), 0.5), torch.full((1, 1, 1, 4, 4), -0.5)
    return method, batch


def test_every_term_is_the_published_one_by_hand():
    method, batch = by_hand("weight_l1=2")
    terms, fakes = method._generator_terms(batch)
    assert [float(fake.mean()) for fake in fakes] == [1.5, -2.5]
    found = {name: round(value.item(), 5) for name, value in terms.items()}
    assert found == {
        "cycle_loss": 10 * 1.0,  # 0.5 + 1 - 2
        "cycle_reverse_loss": 10 * 1.0,
        "identity_loss": 0.5 * 10 * 1.0,  # the generator of targets, given a target
        "identity_reverse_loss": 0.5 * 10 * 2.0,
        "gan_loss": (1.5 + 0.5 - 1) ** 2,
        "gan_reverse_loss": (-2.5 + 0.25 - 1) ** 2,
        "l1_loss": 2 * 2.0,  # 1.5 from -0.5
        "l1_reverse_loss": 2 * 3.0,
    }
    loss = method._discriminator_loss(batch, fakes).item()
    real, fake = [(-0.5 + 0.5 - 1) ** 2, (0.5 + 0.25 - 1) ** 2], [(1.5 + 0.5) ** 2, (-2.5 + 0.25) ** 2]
    assert loss == pytest.approx(0.5 * (real[0] + fake[0]) + 0.5 * (real[1] + fake[1]))
    # Each discriminator judges its own modality: the generator's, the real one, the translation.
    assert [float(image.mean()) for image in method.discriminators[0].seen] == [1.5, -0.5, 1.5]
    assert [float(image.mean()) for image in method.discriminators[1].seen] == [-2.5, 0.5, -2.5]


def test_the_weights_of_the_two_cycles_and_identity_belong_together_as_published():
    method, batch = by_hand("weight_cycle=3", "weight_cycle_reverse=7")
    terms, _ = method._generator_terms(batch)
    assert terms["cycle_loss"].item() == pytest.approx(3)
    assert terms["identity_loss"].item() == pytest.approx(0.5 * 7 * 1)  # targets are the reverse cycle's
    assert terms["identity_reverse_loss"].item() == pytest.approx(0.5 * 3 * 2)
    method.weights["identity"] = 0.0
    terms, _ = method._generator_terms(batch)
    assert not any("identity" in name for name in terms)
    assert len(method.generators[0].seen[-1]) == 1


def test_neither_side_descends_the_others_loss():
    method, batch = by_hand()
    terms, fakes = method._generator_terms(batch)
    torch.stack(list(terms.values())).sum().backward()
    assert [p.added.grad for p in method.discriminators] == [None, None]
    assert all(p.added.grad is not None for p in method.generators)
    for generator in method.generators:
        generator.zero_grad()
    method._discriminator_loss(batch, fakes).backward()
    assert [p.added.grad for p in method.generators] == [None, None]
    # d/db of 0.5 ((real + b - 1)^2 + (fake + b)^2)
    assert [float(p.added.grad) for p in method.discriminators] == pytest.approx([-1 + 2, -0.25 - 2.25])


@pytest.mark.parametrize(("share", "factor"), [(0.0, 1.0), (0.5, 1.0), (0.75, 0.5), (1.0, 0.0)])
def test_both_learning_rates_are_constant_and_then_fall_linearly(share, factor):
    method = make_method("cyclegan")
    method.budget_share = share
    trainer = train(method, [make_batch(1)])
    rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([2e-4 * factor] * 2)
    assert [tuple(group["betas"]) for o in trainer.optimizers for group in o.param_groups] == [(0.5, 0.999)] * 2


def unpaired(seed: int, frames: int = 2, batch: int = 1) -> dict:
    found = make_batch(frames, seed=seed, batch=batch)
    found["target"] = make_film(frames, seed=seed + 50, batch=batch)
    mask = torch.ones_like(found["target"])
    return found | {
        "target_mask": mask,
        "target_case_id": ["other"] * batch,
        "sample_index": torch.arange(batch) + seed,
    }


def test_a_training_resumes_exactly_with_its_pools_filled(tmp_path):
    def run(first, last, resume=None):
        method = make_method("cyclegan", seed=first)
        trainer = train(
            method, [unpaired(seed) for seed in range(first, last)], resume=resume, max_epochs=1 + bool(resume)
        )
        return method, trainer

    whole, _ = run(0, 8)
    broken, trainer = run(0, 4)
    assert [len(pool.images) for pool in broken.pools] == [3, 3]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)["pools"]
    assert [state["images"].shape for state in kept] == [(3, 1, 16, 16)] * 2
    resumed, _ = run(4, 8, tmp_path / "a.ckpt")
    assert same(weights_of(whole), weights_of(resumed))
    assert all(torch.equal(a, b) for a, b in zip(whole.pools[0].images, resumed.pools[0].images, strict=True))
    # Without the pools it would have ended elsewhere.
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    torch.save({**checkpoint, "pools": []}, tmp_path / "b.ckpt")
    forgetful, _ = run(4, 8, tmp_path / "b.ckpt")
    assert not same(weights_of(whole), weights_of(forgetful))


def test_accumulated_parts_see_and_leave_the_pools_of_the_whole():
    pools = []
    for accumulate in (1, 2):
        method = make_method("cyclegan", "ema_decay=0", "generator.blocks=0", "learning_rate=1e-12")
        method.accumulate = accumulate
        train(method, [unpaired(seed, batch=4) for seed in (0, 4, 8)])
        pools.append(torch.stack(method.pools[0].images))
    assert torch.allclose(*pools, atol=1e-4)


def test_a_damaged_batch_leaves_the_pools():
    method, bad = make_method("cyclegan"), unpaired(7)
    train(method, [unpaired(0), unpaired(1)])
    before = [pool.state() for pool in method.pools]
    bad["source"][:] = float("nan")
    train(method, [bad])
    assert method.skipped_steps == 1
    for pool, state in zip(method.pools, before, strict=True):
        assert pool.steps == state["steps"] == 2
        assert torch.equal(torch.stack(pool.images), state["images"])


def test_both_directions_translate_and_no_other(recwarn):
    method, film = make_method("cyclegan", "ema_decay=0"), make_film(9)[0]
    for way, network in zip((MODALITIES, BACK), method.generators, strict=True):
        assert torch.allclose(method.translate(film, **way), network(film), atol=1e-5)
    assert not same(*(weights_of(network) for network in method.generators))
    with pytest.raises(ConfigError, match=r"t1n to ct\. Allowed: cbct to ct or ct to cbct"):
        method.translate(film, source_modality="t1n", target_modality="ct")


def test_the_paired_term_is_refused_without_pairs():
    make_method("cyclegan").check_pairing("unpaired")
    with_truth = make_method("cyclegan", "weight_l1=1")
    with_truth.check_pairing("paired")
    with pytest.raises(ConfigError, match=r"stream\.pairing=unpaired, weight_l1=1"):
        with_truth.check_pairing("unpaired")


@pytest.mark.parametrize(("name", "distance"), [("gradient", gradient_consistency), ("mind", mind_distance)])
def test_structure_is_held_to_the_source_both_ways(name, distance):
    method, batch = make_method("cyclegan", f"weight_{name}=3"), unpaired(1)
    terms, (fake_target, fake_source) = method._generator_terms(batch)
    assert terms[f"{name}_loss"] == 3 * distance(fake_target, batch["source"].flatten(0, 1))
    assert terms[f"{name}_reverse_loss"] == 3 * distance(fake_source, batch["target"].flatten(0, 1))
    assert terms[f"{name}_loss"].requires_grad


def learning(network: ResnetGenerator) -> list[int]:
    return [place for place, layer in enumerate(network.model) if any(p.requires_grad for p in layer.parameters())]


def test_stages_wake_from_the_decoder_to_the_encoder_as_the_share_grows():
    network, woken = ResnetGenerator(width=2, blocks=3), {}
    encoder, decoder = [1, 4, 7], [13, 16, 20]
    for share in (0.0, 0.12, 0.13, 0.26, 0.38, 0.5, 1.0, 0.0):
        freeze_stages(network, "gradual", share, 0.5)
        woken[share] = learning(network)
    blocks = {0.0: [], 0.12: [], 0.13: [12], 0.26: [11, 12], 0.38: [10, 11, 12]}
    assert {share: woken[share] for share in blocks} == {share: b + decoder for share, b in blocks.items()}
    assert woken[0.5] == woken[1.0] == [*encoder, 10, 11, 12, *decoder]
    freeze_stages(network, "decoder", 1.0, 0.5)
    assert learning(network) == decoder


@pytest.mark.parametrize("way", ["decoder", "gradual"])
def test_frozen_stages_stay_as_they_were_and_resume_exactly(way, tmp_path):
    def run(epochs, resume=None):
        method = make_method("cyclegan", f"fine_tune={way}", "unfreeze_share=0.5", "ema_decay=0")
        method.on_train_epoch_start = lambda: setattr(method, "budget_share", 0.3 * method.current_epoch)
        return method, train(method, [make_batch(1)], resume=resume, max_epochs=epochs)

    start = weights_of(make_method("cyclegan", "ema_decay=0"))
    broken, trainer = run(1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    moved = {name for name, value in weights_of(broken).items() if not torch.equal(value, start[name])}
    assert {name.split(".")[3] for name in moved if name.startswith("generators.")} == {"12", "15", "19"}
    assert any(name.startswith("discriminators.1.") for name in moved)
    whole, resumed = run(2)[0], run(2, tmp_path / "a.ckpt")[0]
    assert learning(resumed.generators[1]) == ([11, 12, 15, 19] if way == "gradual" else [12, 15, 19])
    assert same(weights_of(whole), weights_of(resumed))
    assert not same(weights_of(whole), weights_of(broken))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"gan": "lsgam"}, "Did you mean 'lsgan'"),
        ({"weight_cycle": -1.0}, "out of range"),
        ({"fine_tune": "decoders"}, "Did you mean 'decoder'"),
        ({"unfreeze_share": 0.0}, "unfreeze_share is out of range"),
        ({"pool": -1}, "image pool"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        build({**composed("cyclegan"), **setting})
