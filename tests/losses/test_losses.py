import math

import pytest
import torch
from monai.losses.deform import BendingEnergyLoss
from torch import nn

from pipeline.errors import ConfigError
from pipeline.losses import flow
from pipeline.losses.adversarial import check_kind, discriminator_loss, generator_loss
from pipeline.losses.feature_matching import feature_matching
from pipeline.losses.perceptual import PerceptualLoss
from pipeline.losses.reconstruction import masked_l1
from pipeline.losses.registration import RegistrationLoss, bending_energy
from pipeline.networks.vid2vid_generator import Frame


def verdict(*logits: float) -> list[list[torch.Tensor]]:
    return [[torch.zeros(1, 2, 2, 2), torch.full((1, 1, 3, 3), value)] for value in logits]


@pytest.mark.parametrize(
    ("kind", "generator", "discriminator"),
    [("lsgan", 0.25 + 4, 0.5 * (0.25 + 0.25) + 0.5 * (4 + 1)), ("hinge", -0.5 + 1, 0.5 * (0.5 + 1.5) + 0.5 * (2 + 0))],
)
def test_adversarial_values_are_summed_over_scales(kind, generator, discriminator):
    fake, real = verdict(0.5, -1.0), verdict(0.5, -1.0)
    assert generator_loss(fake, kind).item() == pytest.approx(generator)
    assert discriminator_loss(real, fake, kind).item() == pytest.approx(discriminator)


def test_cross_entropy_is_that_of_the_sigmoid_also_far_from_zero():
    real, fake = 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(1.0))
    assert generator_loss(verdict(-1.0), "bce").item() == pytest.approx(-math.log(fake))
    found = discriminator_loss(verdict(0.5), verdict(-1.0), "bce").item()
    assert found == pytest.approx(0.5 * (-math.log(real) - math.log(1 - fake)))
    assert generator_loss(verdict(-200.0), "bce").item() == pytest.approx(200)


def test_perfect_verdicts_cost_nothing():
    assert generator_loss(verdict(1.0, 1.0)) == 0
    assert discriminator_loss(verdict(1.0), verdict(0.0)) == 0
    assert discriminator_loss(verdict(1.0), verdict(-1.0), "hinge") == 0


def test_unknown_kind_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'lsgan'"):
        check_kind("lsgam")


def test_feature_matching_ignores_logits_and_detaches_the_real():
    real = [[torch.zeros(2, 1, 2, 2, requires_grad=True) for _ in range(5)] for _ in range(2)]
    fake = [[torch.full((4, 1, 2, 2), 0.5, requires_grad=True) for _ in range(4)] + [torch.full((4, 1), 9.0)]] * 2
    loss = feature_matching(real, fake)
    assert loss.item() == pytest.approx(4 * 0.5)  # four layers, weight 4 / (3 + 1), mean of two scales
    loss.backward()
    assert real[0][0].grad is None
    assert fake[0][0].grad is not None


def test_masked_l1_averages_inside_the_mask():
    mask = torch.zeros(1, 1, 1, 2, 2)
    prediction = torch.tensor([[[[[1.0, 5.0], [0.0, 0.0]]]]])
    assert masked_l1(prediction, torch.zeros_like(prediction), mask) == 0
    mask[..., 0, 0] = 1
    assert masked_l1(prediction, torch.zeros_like(prediction), mask) == 1
    assert masked_l1(prediction, prediction, torch.ones_like(mask)) == 0


class Double(nn.Module):
    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        assert images.shape[1] == 3
        return [images, 2 * images]


def test_perceptual_loss_weights_layers_and_detaches_the_target():
    loss = PerceptualLoss(Double(), [1.0, 0.5])
    fake = torch.full((2, 1, 4, 4), 0.5, requires_grad=True)
    real = torch.zeros(1, 1, 4, 4, requires_grad=True)
    value = loss(fake, real)
    assert value.item() == pytest.approx(0.5 + 0.5 * 1.0)
    value.backward()
    assert real.grad is None
    assert fake.grad.abs().sum() > 0
    assert loss(real, real) == 0


def test_perceptual_loss_refuses_weights_that_do_not_fit():
    with pytest.raises(ConfigError, match="above zero"):
        PerceptualLoss(Double(), [0.0])
    with pytest.raises(ConfigError, match="do not fit"):
        PerceptualLoss(Double(), [1.0])(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))


def test_flow_losses_are_zero_where_they_should_be():
    image, still = torch.rand(1, 1, 6, 6), torch.zeros(1, 2, 6, 6)
    sure, unsure = torch.ones(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    assert flow.flow_l1(still, still, sure) == 0
    assert flow.flow_l1(still + 2, still, sure) == 2
    assert flow.flow_l1(still + 2, still, unsure) == 0
    assert flow.warp_l1(image, image, still).item() == pytest.approx(0, abs=1e-6)
    assert flow.warp_l1(image + 1, image, still, sure).item() == pytest.approx(1, abs=1e-6)
    assert flow.generated_warp_l1(image, image, still, sure).item() == pytest.approx(0, abs=1e-6)
    assert flow.weight_l1(sure, sure) == 1
    assert flow.weight_l1(sure, unsure) == 0


def test_a_mean_is_over_all_pixels_not_over_confident_ones():
    half = torch.ones(1, 1, 2, 2)
    half[..., 0] = 0
    assert flow.flow_l1(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), half) == 0.5


def test_the_warped_generated_frame_is_a_fixed_target():
    previous = torch.rand(1, 1, 4, 4, requires_grad=True)
    current = torch.rand(1, 1, 4, 4, requires_grad=True)
    flow.generated_warp_l1(current, previous, torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)).backward()
    assert previous.grad is None
    assert current.grad is not None


def test_descending_the_warp_loss_finds_a_shift():
    x = torch.linspace(0, 6, 24)
    previous = torch.sin(x).expand(1, 1, 8, 24)
    current = torch.sin(x + 6 / 23).expand(1, 1, 8, 24)  # current(x) = previous(x + 1 pixel)
    predicted = torch.zeros(1, 2, 8, 24, requires_grad=True)
    optimizer = torch.optim.Adam([predicted], lr=0.05)
    start = flow.warp_l1(current, previous, predicted).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = flow.warp_l1(current, previous, predicted)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * start
    assert predicted[:, 0, :, 2:-2].median().item() == pytest.approx(1, abs=0.2)


def test_without_a_reference_only_the_terms_that_need_none_are_left():
    image, still, half = torch.rand(1, 1, 6, 6), torch.zeros(1, 2, 6, 6), torch.full((1, 1, 6, 6), 0.5)
    frame = Frame(image, image, still, half)
    reference = flow.Reference(still, torch.ones(1, 1, 6, 6))
    terms = flow.composition_terms(frame, image, image, image, reference)
    assert set(terms) == set(flow.FLOW_TERMS)
    assert {name: round(value.item(), 5) for name, value in terms.items()} == {
        "generated_warp": 0,
        "flow": 0,
        "flow_warp": 0,
        "composition": 0.5,
    }
    assert set(flow.composition_terms(frame, image, image, image, None)) == {"flow_warp", "composition"}


def test_bending_energy_is_of_second_derivatives():
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(8.0), indexing="ij")
    assert bending_energy(torch.stack([3 * x - y + 2, x])[None]) == 0
    assert bending_energy(torch.stack([x**2, 0 * x])[None]).item() == pytest.approx(0.5 * 4)  # u_xx = 2
    assert bending_energy(torch.stack([0 * x, x * y])[None]).item() == pytest.approx(0.5 * 2)  # u_xy = 1
    assert bending_energy(torch.ones(1, 2, 2, 2)) == 0


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_bending_energy_is_monais():
    field = torch.randn(2, 2, 7, 9, generator=torch.Generator().manual_seed(0))
    assert bending_energy(field).item() == pytest.approx(BendingEnergyLoss()(field).item())


def test_registration_finds_nothing_to_learn_in_air_and_all_in_likeness():
    loss, still = RegistrationLoss(), torch.zeros(1, 2, 24, 24)
    air = torch.full((1, 1, 24, 24), -1.0)
    assert loss(air + 1e-4 * torch.randn(1, 1, 24, 24), air, still).abs() < 1e-3
    image = torch.randn(1, 1, 24, 24)
    assert loss(image, image, still).item() == pytest.approx(-1, abs=1e-3)
    darker = 0.5 * (image + 1) - 1
    assert loss(darker, image, still).item() == pytest.approx(-1, abs=1e-3)  # likeness, not equality
    assert loss(image, image, torch.randn(1, 2, 24, 24)) > 0  # bent
