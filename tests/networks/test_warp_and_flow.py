import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.imaging.optical_flow import dis_flow
from pipeline.losses.flow import confidence
from pipeline.networks.warp import warp


def texture(size: int = 64, seed: int = 0) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((size, size)), 2)
    return (field / np.abs(field).max()).astype(np.float32)


def test_warp_samples_at_x_plus_flow():
    image = torch.arange(5.0).expand(1, 2, 4, 5) + 10 * torch.arange(4.0)[:, None]
    flow = torch.zeros(1, 2, 4, 5)
    flow[:, 0] = 1.0
    assert torch.allclose(warp(image, flow)[..., :-1], image[..., 1:], atol=1e-5)
    assert torch.allclose(warp(image, flow)[..., -1], image[..., -1], atol=1e-5)  # border repeats
    flow[:, 0], flow[:, 1] = 0.0, -0.5
    assert torch.allclose(warp(image, flow)[:, :, 1:], image[:, :, 1:] - 5, atol=1e-5)


def test_warp_is_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = warp(torch.ones(1, 1, 4, 4, dtype=torch.bfloat16), torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16))
    assert result.dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_warp_survives_a_damaged_flow_and_shows_it(bad):
    flow = torch.zeros(1, 2, 8, 8)
    flow[0, 0, 3, 3] = bad
    flow.requires_grad_()
    image = torch.rand(1, 1, 8, 8, requires_grad=True)
    result = warp(image, flow)
    result.sum().backward()  # without care a segmentation fault
    assert result.isnan().nonzero().tolist() == [[0, 0, 3, 3]]


@pytest.mark.parametrize(("shift", "axis", "channel"), [(3, 1, 0), (-2, 1, 0), (2, 0, 1)])
def test_dis_flow_recovers_a_translation_and_fits_the_warp(shift, axis, channel):
    previous = texture()
    current = np.roll(previous, shift, axis)
    flow = dis_flow(current[None], previous[None])
    inner = flow[0, :, 12:-12, 12:-12]
    assert np.median(inner[channel]) == pytest.approx(-shift, abs=0.3)
    assert np.median(inner[1 - channel]) == pytest.approx(0, abs=0.3)
    warped = warp(torch.from_numpy(previous)[None, None], torch.from_numpy(flow))[0, 0].numpy()
    error, before = (np.abs(image - current)[12:-12, 12:-12].mean() for image in (warped, previous))
    assert error < 0.2 * before


def test_dis_flow_does_not_depend_on_threads_and_leaves_them():
    films = texture(96, 1)[None], texture(96, 2)[None]
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = dis_flow(*films)
        cv2.setNumThreads(2)
        assert np.array_equal(one, dis_flow(*films))
        assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(threads)


def test_dis_flow_takes_tiny_images():
    assert dis_flow(np.zeros((2, 7, 9), np.float32), np.zeros((2, 7, 9), np.float32)).shape == (2, 2, 7, 9)


def test_confidence_threshold_is_per_channel():
    current, flow = torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 4, 4)
    assert confidence(current, current + 0.08, flow).all()  # 0.0064 < 0.02 / 3
    assert not confidence(current, current + 0.083, flow).any()
    assert not confidence(current.expand(1, 3, 4, 4), current.expand(1, 3, 4, 4) + 0.083, flow).any()
