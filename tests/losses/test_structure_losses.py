import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.losses.gradient_consistency import gradient_consistency
from pipeline.losses.mind import mind, mind_distance


def body(seed: int = 0) -> torch.Tensor:
    noise = torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 3, 1, 1)


@given(gain=st.floats(0.2, 5), offset=st.floats(-1, 1))
@settings(max_examples=20)
def test_neither_sees_gain_and_offset(gain, offset):
    image = body()
    assert gradient_consistency(gain * image + offset, image).item() == pytest.approx(0, abs=1e-3)
    assert gradient_consistency(gain * image + offset, image, signed=True).item() == pytest.approx(0, abs=1e-3)
    assert mind_distance(gain * image + offset, image).item() == pytest.approx(0, abs=5e-3)


def test_turned_contrast_counts_only_where_signs_do():
    image = body()
    assert gradient_consistency(-image, image).item() == pytest.approx(0, abs=1e-4)
    assert gradient_consistency(-image, image, signed=True).item() == pytest.approx(2, abs=1e-4)
    assert mind_distance(-image, image).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("loss", [gradient_consistency, mind_distance])
def test_moved_anatomy_costs_more_the_further_it_is_and_gradients_lead_back(loss):
    image = body()
    costs = [loss(image.roll(shift, -1), image).item() for shift in (0, 1, 4)]
    assert costs[0] == pytest.approx(0, abs=1e-4)
    assert 0.05 < costs[1] < costs[2]
    moved = image.roll(2, -1).requires_grad_()
    loss(moved, image).backward()
    assert torch.isfinite(moved.grad).all()
    better = loss(moved - 1e-3 * moved.grad / moved.grad.abs().max(), image)
    assert better < loss(moved, image)


def test_gradient_correlation_by_hand():
    """Ramps have one gradient: nothing correlates with it. Of two corners, one edge is common, one is not."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert gradient_consistency(ramp, ramp).item() == pytest.approx(1)
    column = torch.zeros(1, 1, 8, 8)
    column[..., 4:] = 1
    # Along columns the images agree (1), along rows there is nothing (0): 1 - (1 + 0) / 2.
    assert gradient_consistency(column, column).item() == pytest.approx(0.5, abs=1e-5)
    assert gradient_consistency(column, column.mT).item() == pytest.approx(1)


def test_flat_images_have_no_structure_and_harmless_gradients():
    flat = torch.zeros(1, 1, 8, 8, requires_grad=True)
    total = gradient_consistency(flat, body()[:1, :, :8, :8]) + mind_distance(flat, body()[:1, :, :8, :8])
    total.backward()
    assert torch.isfinite(flat.grad).all()
    assert torch.equal(mind(torch.zeros(1, 1, 4, 4)), torch.ones(1, 4, 4, 4))


def test_mind_by_hand():
    """A bright pixel: its neighbours' patches hold it or not, 3 x 3 patches, two pixels apart."""
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1
    found = mind(image)[0, :, 4, 4]
    assert torch.allclose(found, torch.ones(4))  # the same to all sides
    # Two pixels to the left of it: D is 2/9 to the right (pixel and its neighbour's), 1/9 up, down and left: none.
    right, down, left, up = mind(image)[0, :, 4, 2]
    differences = torch.tensor([1 / 9, 0.0, 0.0, 0.0])
    expected = torch.exp(-differences / differences.mean())
    assert torch.allclose(torch.stack([right, down, left, up]), expected, atol=1e-5)


def test_neither_depends_on_how_a_batch_is_split():
    one, other = body(1), body(2)
    for loss in (gradient_consistency, mind_distance):
        halves = torch.stack([loss(one[i : i + 1], other[i : i + 1]) for i in range(2)]).mean()
        assert loss(one, other).item() == pytest.approx(halves.item(), abs=1e-6)
