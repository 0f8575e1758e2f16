"""Frechet distance and LPIPS: against their formulae, with the packaged or random weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm

from pipeline.config import compose
from pipeline.errors import ArtifactError
from pipeline.metrics import Pair, Undefined, compute
from pipeline.metrics.frechet import efficientnet_lite0, frechet_distance, network_images
from pipeline.networks.lpips_vgg16 import LpipsVgg16

SPACING = (1.0, 1.0, 1.0)


def by_the_matrix_root(a, b):
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)


@pytest.mark.parametrize(("n", "m", "features"), [(40, 60, 5), (6, 9, 8)])
def test_frechet_is_the_published_distance(n, m, features):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, features)), rng.normal(0.4, 1.6, (m, features))
    assert frechet_distance(a, b) == pytest.approx(by_the_matrix_root(a, b), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    with pytest.raises(Undefined, match="1 and"):
        frechet_distance(a[:1], b)


def test_frechet_of_shifted_sets_is_the_square_of_the_shift():
    a = np.random.default_rng(0).normal(size=(30, 4))
    assert frechet_distance(a + np.array([3, 4, 0, 0]), a) == pytest.approx(25)


def test_networks_see_the_slices_that_meet_the_region():
    reference = np.full((3, 32, 32), -1024, np.int16)
    reference[1, 8:20, 8:20] = 3071
    mask = reference > 0
    predicted, real = network_images(Pair(reference, reference, mask, SPACING), (-1024, 3071), 4095, "lowest")
    assert predicted.shape == (1, 32, 32) and real.min() == -1 and real.max() == pytest.approx(1)
    features = efficientnet_lite0(real, weights="")
    assert features.shape == (1, 1280) and np.isfinite(features).all()


STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def lpips_state():
    """Random weights under the names of lpips.LPIPS(net='vgg')."""
    generator = torch.Generator().manual_seed(0)
    state, before, number = {}, 3, 0
    for stage, (channels, count) in enumerate(STAGES):
        for _ in range(count):
            name = f"net.slice{stage + 1}.{number}"
            state[f"{name}.weight"] = torch.randn(channels, before, 3, 3, generator=generator) / (3 * before**0.5)
            state[f"{name}.bias"] = torch.randn(channels, generator=generator) / 10
            before, number = channels, number + 2
        number += 1  # the pooling
        state[f"lin{stage}.model.1.weight"] = torch.rand(1, channels, 1, 1, generator=generator)
    return state


def plain_lpips(state, a, b):
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = ((v - shift[:, None, None]) / scale[:, None, None] for v in (a, b))
    total, number = 0.0, 0
    for stage, (_, count) in enumerate(STAGES):
        if stage:
            x, y = (F.max_pool2d(v[None], 2)[0] for v in (x, y))
            number += 1
        for _ in range(count):
            weight, bias = (state[f"net.slice{stage + 1}.{number}.{part}"] for part in ("weight", "bias"))
            x, y = (F.relu(F.conv2d(v[None], weight, bias, padding=1))[0] for v in (x, y))
            number += 2
        u, w = (v / (torch.linalg.vector_norm(v, dim=0) + 1e-10) for v in (x, y))
        total += float(torch.einsum("c,chw->hw", state[f"lin{stage}.model.1.weight"].flatten(), (u - w) ** 2).mean())
    return total


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lpips.pth"
    torch.save(lpips_state(), path)
    return path


def test_lpips_is_the_published_distance(lpips_file):
    rng = np.random.default_rng(0)
    r = rng.normal(0, 300, (2, 24, 24)).astype(np.float32)
    p = r + rng.normal(0, 100, r.shape).astype(np.float32)
    settings = compose(["metrics.metrics=[lpips]"]).metrics.model_copy(update={"weights": {"lpips": str(lpips_file)}})
    value, reason = compute("lpips", Pair(p, r, None, SPACING), settings)
    state = torch.load(lpips_file, weights_only=True)
    images = [torch.from_numpy((np.clip(v, -1024, 3071) + 1024) * 2 / 4095 - 1) for v in (p, r)]
    expected = np.mean([plain_lpips(state, *(v[k].expand(3, -1, -1) for v in images)) for k in range(2)])
    assert reason == "" and value == pytest.approx(expected, rel=1e-4)
    assert compute("lpips", Pair(r, r, None, SPACING), settings)[0] == 0
    assert "smaller than 16" in compute("lpips", Pair(p[:, :9], r[:, :9], None, SPACING), settings)[1]


def test_other_weights_are_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.pth")
    with pytest.raises(ArtifactError, match=r"net\.slice1\.0\.weight: missing"):
        LpipsVgg16(str(tmp_path / "vgg.pth"))
