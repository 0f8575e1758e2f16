"""The published formulae, written down plainly in float64 over whole volumes: what our metrics must agree with.

Nothing here is taken from pipeline.metrics, and nothing is fast. Arrays are (slices, rows, columns).
"""

import math

import numpy as np
from scipy.ndimage import correlate1d, uniform_filter
from scipy.signal import convolve2d, fftconvolve

WANG_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def clipped(p, r, clip):
    p, r = p.astype(np.float64), r.astype(np.float64)
    return (p, r) if clip is None else (np.clip(p, *clip), np.clip(r, *clip))


def seen_by_windows(p, r, mask, clip, outside):
    """Clip, put the lowest value outside the region, begin at 0."""
    p, r = clipped(p, r, clip)
    if outside == "lowest":
        p, r = np.where(mask, p, clip[0]), np.where(mask, r, clip[0])
    return (p, r) if clip is None else (p - clip[0], r - clip[0])


def mae(p, r, mask, **_):
    m = mask.astype(np.float64)
    p, r = np.where(mask, p, 0).astype(np.float64), np.where(mask, r, 0).astype(np.float64)
    return np.abs(r * m - p * m).sum() / m.sum()


def mse(p, r, mask, **_):
    return np.mean((p[mask].astype(np.float64) - r[mask]) ** 2)


def psnr(p, r, mask, *, clip, data_range, **_):
    p, r = clipped(p, r, clip)
    return 10 * np.log10(data_range**2 / np.mean((p[mask] - r[mask]) ** 2))


def ncc(p, r, mask, **_):
    return np.corrcoef(p[mask].astype(np.float64), r[mask].astype(np.float64))[0, 1]


def local(image, window, axes):
    if window == "uniform":
        return uniform_filter(image, [7 if axis in axes else 1 for axis in range(3)])
    taps = np.array([math.exp(-(i**2) / (2 * 1.5**2)) for i in range(-5, 6)])
    for axis in axes:
        image = correlate1d(image, taps / taps.sum(), axis=axis)
    return image


def components(x, y, data_range, window="uniform", axes=(0, 1, 2)):
    """Luminance, contrast and structure, as skimage and the SynthRAD2025 code name them."""
    n = 7 ** len(axes)
    norm = n / (n - 1) if window == "uniform" else 1.0
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    ux, uy = local(x, window, axes), local(y, window, axes)
    vx = norm * (local(x * x, window, axes) - ux * ux)
    vy = norm * (local(y * y, window, axes) - uy * uy)
    vxy = norm * (local(x * y, window, axes) - ux * uy)
    sx, sy = np.sqrt(np.maximum(vx, 0)), np.sqrt(np.maximum(vy, 0))
    luminance = (2 * ux * uy + c1) / (ux**2 + uy**2 + c1)
    contrast = (2 * sx * sy + c2) / (vx + vy + c2)
    return luminance, contrast, (vxy + c2 / 2) / (sx * sy + c2 / 2)


def inside(shape, border, axes=(0, 1, 2)):
    return tuple(slice(border, n - border) if axis in axes else slice(None) for axis, n in enumerate(shape))


def ssim(p, r, mask, *, clip, data_range, outside, window, dimension, **_):
    x, y = seen_by_windows(p, r, mask, clip, outside)
    axes = (1, 2) if dimension == "2d" else (0, 1, 2)
    values = np.prod(components(x, y, data_range, window, axes), axis=0)
    place = inside(x.shape, 3 if window == "uniform" else 5, axes)
    return values[place][mask[place]].mean()


def scales(p, r, mask, clip):
    """The five scales of SynthRAD2025: edges repeated up to 97 voxels, means of 2 x 2 x 2, every second voxel."""
    x, y = seen_by_windows(p, r, mask, clip, "lowest")
    pads = [((97 - n) // 2, 97 - n - (97 - n) // 2) if n < 97 else (0, 0) for n in x.shape]
    x, y, mask = (np.pad(v, pads, mode="edge") for v in (x, y, mask))
    for _ in WANG_WEIGHTS:
        yield x, y, mask
        x, y = (fftconvolve(v, np.ones((2, 2, 2)) / 8, mode="same")[::2, ::2, ::2] for v in (x, y))
        mask = mask[::2, ::2, ::2]


def ms_ssim(p, r, mask, *, clip, data_range, **_):
    factors = []
    for weight, (x, y, m) in zip(WANG_WEIGHTS, scales(p, r, mask, clip), strict=True):
        values = np.prod([np.clip(part, 0, None) ** weight for part in components(x, y, data_range)], axis=0)
        place = inside(x.shape, 3)
        factors.append(np.clip(values[place][m[place]].mean(), 0, 1))
    return np.prod(factors)


def ms_ssim_wang(p, r, mask, *, clip, data_range, **_):
    product = 1.0
    for level, (weight, (x, y, m)) in enumerate(zip(WANG_WEIGHTS, scales(p, r, mask, clip), strict=True)):
        luminance, contrast, structure = components(x, y, data_range)
        values = contrast * structure * (luminance if level == 4 else 1)
        place = inside(x.shape, 3)
        product *= max(values[place][m[place]].mean(), 0) ** weight
    return product


def over_slices(value):
    """Turn a metric of one slice into the mean over the slices on which the region has a value."""

    def mean(p, r, mask, **options):
        found = [value(p[k], r[k], mask[k], **options) for k in range(len(p)) if mask[k].any()]
        return np.mean([v for v in found if v is not None])

    return mean


@over_slices
def uqi(p, r, mask, *, clip, **_):
    x, y = seen_by_windows(p, r, mask, clip, "lowest" if clip else "keep")
    a, b, m = (np.lib.stride_tricks.sliding_window_view(v, (8, 8)).reshape(-1, 64) for v in (x, y, mask))
    a, b = a[m.all(axis=1)], b[m.all(axis=1)]
    if not len(a):
        return None
    mx, my = a.mean(axis=1), b.mean(axis=1)
    cov = ((a - mx[:, None]) * (b - my[:, None])).mean(axis=1)
    spread, power = a.var(axis=1) + b.var(axis=1), mx**2 + my**2
    found = np.ones(len(a))
    flat = (spread == 0) & (power > 0)
    found[flat] = (2 * mx * my)[flat] / power[flat]
    full = (spread > 0) & (power > 0)
    found[full] = 4 * (cov * mx * my)[full] / (spread * power)[full]
    return found.mean()


@over_slices
def vif(p, r, mask, *, clip, data_range, outside, **_):
    d, x = (v * 255 / data_range for v in seen_by_windows(p, r, mask, clip, outside))
    top = bottom = 0.0
    for scale in range(1, 5):
        n = 2 ** (4 - scale + 1) + 1
        grid = np.arange(n) - n // 2
        kernel = np.exp(-(grid[:, None] ** 2 + grid**2) / (2 * (n / 5) ** 2))
        kernel /= kernel.sum()
        if scale > 1:
            x, d = (convolve2d(v, kernel, mode="valid")[::2, ::2] for v in (x, d))
        mx, md, xx, dd, xd = (convolve2d(v, kernel, mode="valid") for v in (x, d, x * x, d * d, x * d))
        vx, vd, cov = np.maximum(xx - mx * mx, 0), np.maximum(dd - md * md, 0), xd - mx * md
        g = cov / (vx + 1e-10)
        sv = vd - g * cov
        g[vx < 1e-10], sv[vx < 1e-10], vx[vx < 1e-10] = 0, vd[vx < 1e-10], 0
        g[vd < 1e-10], sv[vd < 1e-10] = 0, 0
        sv[g < 0], g[g < 0] = vd[g < 0], 0
        sv[sv <= 1e-10] = 1e-10
        top += np.log10(1 + g**2 * vx / (sv + 2)).sum()
        bottom += np.log10(1 + vx / 2).sum()
    return top / bottom if bottom > 0 else None


def brats(p, r):
    """Both volumes by the reference's percentiles, strictly positive, clipped."""
    low, high = np.percentile(r, [0.5, 99.5])
    low = max(low, 0.0)
    return tuple((np.clip(v, low, high) - low) / (high - low) for v in (p.astype(np.float64), r.astype(np.float64)))


FORMULAE = {f.__name__: f for f in (mae, mse, psnr, ncc, ssim, ms_ssim, ms_ssim_wang)} | {"uqi": uqi, "vif": vif}


def published(name, p, r, mask, profile):
    """Return the value of a metric as the profile's source has it."""
    mask = np.ones(r.shape, bool) if mask is None else mask
    if profile.normalisation == "percentile":
        p, r = brats(p, r)
    options = profile.model_dump()

    def value(p, r, mask):
        if profile.data_range == "reference_maximum":
            options["data_range"] = float(r.max())
        return FORMULAE[name](p, r, mask, **options)

    if profile.dimension == "3d" or name in ("uqi", "vif"):
        return value(p, r, mask)
    return np.mean([value(p[k : k + 1], r[k : k + 1], mask[k : k + 1]) for k in range(len(p)) if mask[k].any()])
