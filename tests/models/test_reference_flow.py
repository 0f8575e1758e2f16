import threading

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipeline.imaging.optical_flow import dis_flow
from pipeline.losses.flow import confidence
from pipeline.losses.registration import RegistrationLoss
from pipeline.models.reference_flow import LearnedReferences, references
from pipeline.networks.flow_unet import FlowUNet
from pipeline.networks.warp import warp


def drifting(frames: int, pixels: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    """Return a clip (1, frames, 1, size, size) of a smooth texture that drifts along the columns."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((size, size)), 2)
    still = torch.from_numpy((field / np.abs(field).max()).astype(np.float32))
    return torch.stack([still.roll(pixels * frame, -1) for frame in range(frames)])[None, :, None]


def test_dis_flow_is_known_as_far_as_asked_for_and_fits_the_warp():
    film = drifting(5, 2)
    with references("dis", film, {1, 2, 9}, None, None) as known:
        assert known.extend(1) is None
        assert [len(flows) for flows in known.known.values()] == [0, 0]
        known.extend(3)
        assert {stride: len(flows) for stride, flows in known.known.items()} == {1: 2, 2: 1}
        known.extend(5)
    flow, confident = known.known[2][2]
    assert flow.shape == (1, 2, 64, 64)
    assert confident.shape == (1, 1, 64, 64)
    assert flow[0, 0, 16:-16, 16:-16].median().item() == pytest.approx(-4, abs=0.3)
    assert confident[..., 16:-16, 16:-16].mean() > 0.95
    direct = dis_flow(film[0, 4:, 0].numpy(), film[0, 2:3, 0].numpy())
    assert torch.equal(flow, torch.from_numpy(direct))
    assert known.flow(9) is None


@pytest.mark.parametrize(("kind", "strides"), [("none", {1}), ("dis", set()), ("learned", set())])
def test_where_there_is_no_reference_nothing_is_known(kind, strides):
    with references(kind, drifting(3, 1, 16), strides, None, None) as known:
        assert known.extend(3) is None
    assert known.flow(1) is None


def test_a_walk_that_breaks_off_leaves_no_thread():
    with pytest.raises(RuntimeError, match="broken"), references("dis", drifting(9, 1), {1}, None, None):
        raise RuntimeError("broken")
    assert not any(thread.name.startswith("flow") for thread in threading.enumerate())


def test_a_learned_flow_recovers_a_shift_in_the_conventions_of_dis():
    torch.manual_seed(0)
    network, loss = FlowUNet(widths=[8, 16, 16]), RegistrationLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(120):
        known = LearnedReferences(drifting(4, 1, 32, seed=step % 12), {1, 2}, network, loss)
        total = known.extend(4)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    film = drifting(4, 1, 32, seed=99)  # never seen
    known = LearnedReferences(film, {1, 2}, network, loss)
    known.extend(2)
    known.extend(4)  # the rest of it: no pair twice
    assert {stride: len(flows) for stride, flows in known.known.items()} == {1: 3, 2: 2}
    for stride in (1, 2):
        flow, confident = known.known[stride][0]
        assert not flow.requires_grad
        inner = flow[0, :, 6:-6, 6:-6]
        classical = torch.from_numpy(dis_flow(film[0, stride : stride + 1, 0].numpy(), film[0, :1, 0].numpy()))
        for channel in (0, 1):
            wanted = classical[0, channel, 6:-6, 6:-6].median().item()
            assert inner[channel].median().item() == pytest.approx(wanted, abs=0.4)
        current, previous = film[:, stride], film[:, 0]
        error, before = ((image - current)[..., 6:-6, 6:-6].abs().mean() for image in (warp(previous, flow), previous))
        assert error < 0.3 * before
        assert torch.equal(confident, confidence(current, previous, flow))
