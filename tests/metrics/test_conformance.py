"""Every profile against an independent transcription of the published formulae, on edge cases and real volumes."""

from functools import lru_cache

import numpy as np
import published as pub
import pytest

from pipeline.config import compose, conf_folder
from pipeline.geometry import reorder
from pipeline.imaging.mask import body_mask
from pipeline.io import read_volume
from pipeline.metrics import METRICS, Pair, compute
from pipeline.metrics.profile import normalised

PROFILES = sorted(path.stem for path in (conf_folder() / "metrics").glob("[!_]*.yaml"))
SPACING = (2.0, 1.0, 1.5)
TOLERANCE = 1e-6  # relative


@lru_cache
def profile(name):
    return compose([f"metrics={name}"]).metrics


def ours(name, p, r, mask, settings):
    if settings.normalisation == "percentile":
        p, r = normalised(p, r)
    return compute(name, Pair(p, r, mask, SPACING), settings)


def volumes(shape, seed=0, mr=False):
    """A smooth volume with noise and outliers beyond every range, and a rounded region that touches the border."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = z**2 / 4 + (y / 0.8) ** 2 + (x - 0.3) ** 2 < 1
    r = np.where(body, 60 * np.sin(9 * x * y) + 900 * (np.hypot(x, y) < 0.3), -1000)
    p = r + 25 * np.cos(7 * y + z) + rng.normal(0, 30, shape)
    p[shape[0] // 2, shape[1] // 2, shape[2] // 2 : shape[2] // 2 + 3] = (4000, -2000, 3050)
    if mr:
        p, r = np.maximum(p + 1000, 0), np.maximum(r + 1000, 0)
    return p.astype(np.float32), r.astype(np.int16), body


THIN = (18, 98, 101)  # one axis below 97, the others even and odd
CASES = [(name, THIN) for name in PROFILES] + [("synthrad2025", shape) for shape in ((97, 101, 99), (13, 44, 51))]


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_profile_is_as_published(name, shape):
    settings = profile(name)
    p, r, mask = volumes(shape, mr=settings.unit != "HU")
    assert mask[:, :, -1].any() and mask[0].any()  # touches the border
    known = profile("synthrad2025").names if name == "cinevox" else []
    for metric in (m for m in pub.FORMULAE if m in settings.names and m not in known):
        some = slice(None, None, 6 if metric in ("uqi", "vif") else 1)
        for region in (mask[some], None):
            value, reason = ours(metric, p[some], r[some], region, settings)
            assert not reason, (metric, reason)
            expected = pub.published(metric, p[some], r[some], region, settings)
            assert value == pytest.approx(expected, rel=TOLERANCE), metric


def test_every_published_formula_is_in_a_profile():
    assert set(pub.FORMULAE) <= {name for stem in PROFILES for name in profile(stem).names}
    assert set(METRICS) == {name for stem in PROFILES for name in profile(stem).names} | {"lpips"}


def test_a_small_mask_at_the_border():
    settings = profile("synthrad2025")
    p, r, _ = volumes((20, 100, 99))
    mask = np.zeros(r.shape, bool)
    mask[:12, 40:60, 40:60] = True
    value, reason = ours("ms_ssim", p, r, mask, settings)
    assert not reason and value == pytest.approx(pub.published("ms_ssim", p, r, mask, settings), rel=TOLERANCE)
    mask[2:] = False
    assert "3 voxels away" in ours("ssim", p, r, mask, settings)[1]
    assert "at scale 5 no voxel" in ours("ms_ssim", p, r, mask, settings)[1]


@pytest.mark.parametrize("name", PROFILES)
def test_equal_volumes(name):
    settings = profile(name)
    _, r, mask = volumes((17, 48, 44), mr=settings.unit != "HU")
    perfect = {"ssim": 1, "ms_ssim": 1, "ms_ssim_wang": 1, "uqi": 1, "vif": 1, "ncc": 1, "nmi": 2, "within_50_hu": 100}
    for metric in (n for n in settings.names if METRICS[n].needs == "volumes"):
        value, reason = ours(metric, r, r, mask, settings)
        if metric in ("psnr", "seam_index", "mae_air", "me_air"):  # infinite, 0 / 0, and none in this region
            assert value is None and reason
        else:
            assert value == pytest.approx(perfect.get(metric, 0), abs=1e-9), metric


def test_constant_volumes():
    settings = profile("cinevox")
    flat = np.full((9, 44, 45), 100, np.int16)
    undefined = {"ncc": "constant", "nmi": "one bin", "vif": "no information", "edge_sharpness": "no edges"}
    for metric, words in undefined.items():
        value, reason = ours(metric, flat + 1, flat, None, settings)
        assert value is None and words in reason, metric
    for metric in ("ssim", "ms_ssim", "uqi"):  # by their formulae: the luminance alone
        value, reason = ours(metric, flat + 1, flat, None, settings)
        assert value == pytest.approx(pub.published(metric, flat + 1, flat, None, settings), rel=TOLERANCE), reason


def test_uqi_is_one_on_itself_and_near_zero_on_permuted_pixels():
    settings = profile("haimour2024_style")
    rng = np.random.default_rng(0)
    image = rng.normal(300, 200, (1, 128, 128))
    assert ours("uqi", image, image, None, settings)[0] == pytest.approx(1, abs=1e-12)
    background = np.full((1, 128, 128), -1024.0)
    background[0, 30:90, 30:90] = image[0, 30:90, 30:90]
    assert ours("uqi", background, background, None, settings)[0] == pytest.approx(1, abs=1e-12)  # air is no error
    permuted = rng.permutation(image.ravel()).reshape(image.shape)
    assert abs(ours("uqi", permuted, image, None, settings)[0]) < 0.02


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_falls_with_the_window_in_view(window):
    """What lies outside the region: the lowest value of the range, or the volumes."""
    p, r, mask = volumes((20, 40, 40))
    settings = profile("synthrad2025").model_copy(update={"window": window})
    lowest = ours("ssim", p, r, mask, settings)[0]
    kept = ours("ssim", p, r, mask, settings.model_copy(update={"outside": "keep"}))[0]
    assert lowest > kept


@pytest.mark.real
@pytest.mark.parametrize(("file", "first", "slices"), [("abdomen", 0, 112), ("head_neck", 20, 24)])
def test_ct_profiles_on_real_volumes(real_data, file, first, slices):
    volume = reorder(read_volume(real_data / "ct" / f"{file}.nii.gz", "HU"))
    step = 2 if volume.array.shape[1] > 400 else 1
    r = np.clip(volume.array, -32768, 32767).astype(np.int16)[first : first + slices, ::step, ::step]
    mask = body_mask(volume, -500)[first : first + slices, ::step, ::step]
    p = (0.98 * r + 15 + np.random.default_rng(0).normal(0, 40, r.shape)).astype(np.float32)
    for name in ("synthrad2025", "synthrad2025_metrics_repo", "synthrad2023", "fan2022_style", "haimour2024_style"):
        settings = profile(name)
        for metric in pub.FORMULAE:
            if metric not in settings.names:
                continue
            part = slice(None, None, 12) if settings.dimension == "2d" else slice(None)
            value, reason = ours(metric, p[part], r[part], mask[part], settings)
            expected = pub.published(metric, p[part], r[part], mask[part], settings)
            assert value == pytest.approx(expected, rel=TOLERANCE), (name, metric, reason)


@pytest.mark.real
@pytest.mark.parametrize("name", ["brats", "slice2d_legacy"])
def test_mr_profiles_on_a_real_brain(real_data, name):
    settings = profile(name)
    r = reorder(read_volume(real_data / "mr" / "brain_gli_t2w.nii.gz", "a.u.")).array[40:80]
    p = np.maximum(1.05 * r + np.random.default_rng(0).normal(0, 20, r.shape) * (r > 0), 0).astype(np.float32)
    for metric in ("ssim", "psnr", "mse", "mae"):
        for mask in (None, r > 0) if metric in settings.names else ():
            some = slice(0, 40, 1 if settings.dimension == "3d" else 8)
            value, reason = ours(metric, p[some], r[some], None if mask is None else mask[some], settings)
            expected = pub.published(metric, p[some], r[some], None if mask is None else mask[some], settings)
            assert value == pytest.approx(expected, rel=TOLERANCE), (metric, reason)
