"""How fast SynthRAD2025's image metrics are beside a plain transcription of their formulae with scipy.

    python benchmarks/metrics.py [--shape 100 256 256] [--rounds 5] [--ct FILE]

Both score the same volume in the same process, taking turns; medians. Memory is the peak beyond the volumes, each in a
process of its own. Without --ct the volume is made up: an ellipse of soft tissue with bone.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.signal import fftconvolve

LOW, HIGH = -1024.0, 3071.0
RANGE = HIGH - LOW
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
Volumes = tuple[np.ndarray, np.ndarray, np.ndarray]


def plain(p: np.ndarray, r: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """MAE, PSNR and MS-SSIM as one would write them down with scipy, over whole volumes."""
    m = mask.astype(np.float64)
    p, r = (np.where(mask, volume, LOW).astype(np.float64) for volume in (p, r))
    mae = np.abs(r * m - p * m).sum() / m.sum()
    x, y = np.clip(p, LOW, HIGH), np.clip(r, LOW, HIGH)
    psnr = 10 * np.log10(RANGE**2 / np.mean((x[mask] - y[mask]) ** 2))
    x, y = x - LOW, y - LOW
    pads = [(max(97 - n, 0) // 2, max(97 - n, 0) - max(97 - n, 0) // 2) for n in x.shape]
    x, y, mask = (np.pad(volume, pads, mode="edge") for volume in (x, y, mask))
    factors = []
    for weight in WEIGHTS:
        luminance, contrast, structure = components(x, y)
        values = luminance**weight * contrast**weight * structure**weight
        inside = (slice(3, -3),) * 3
        factors.append(values[inside][mask[inside]].mean())
        x, y = (fftconvolve(volume, np.ones((2, 2, 2)) / 8, mode="same")[::2, ::2, ::2] for volume in (x, y))
        mask = mask[::2, ::2, ::2]
    return float(mae), float(psnr), float(np.prod(np.clip(factors, 0, 1)))


def components(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Luminance, contrast and structure at every voxel."""
    n, c1, c2 = 343, (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    ux, uy = uniform_filter(x, 7), uniform_filter(y, 7)
    vx = n / (n - 1) * (uniform_filter(x * x, 7) - ux * ux)
    vy = n / (n - 1) * (uniform_filter(y * y, 7) - uy * uy)
    vxy = n / (n - 1) * (uniform_filter(x * y, 7) - ux * uy)
    sx, sy = np.sqrt(np.maximum(vx, 0)), np.sqrt(np.maximum(vy, 0))
    luminance = np.maximum((2 * ux * uy + c1) / (ux * ux + uy * uy + c1), 0)
    contrast = np.maximum((2 * sx * sy + c2) / (vx + vy + c2), 0)
    return luminance, contrast, np.maximum((vxy + c2 / 2) / (sx * sy + c2 / 2), 0)


def cinevox(p: np.ndarray, r: np.ndarray, mask: np.ndarray) -> tuple[float, float, float]:
    """The same three numbers from this package."""
    from pipeline.metrics.intensity import mae, psnr
    from pipeline.metrics.pair import Pair
    from pipeline.metrics.structure import ms_ssim

    pair = Pair(p, r, mask, (1.0, 1.0, 1.0))
    if pair.obstacle:
        raise ValueError(pair.obstacle)
    options = {"clip": (LOW, HIGH), "data_range": RANGE}
    return mae(pair), psnr(pair, **options), ms_ssim(pair, **options)


KINDS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, float, float]]] = {
    "plain": plain,
    "cinevox": cinevox,
}


def volumes(shape: tuple[int, int, int], ct: Path | None, region: str) -> Volumes:
    """Return prediction and reference (int16) and the region: the body, or every voxel."""
    rng = np.random.default_rng(0)
    if ct is None:
        z, y, x = np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij")
        body = (y / 0.7) ** 2 + (x / 0.9) ** 2 + z**2 / 9 < 1
        r = np.where(body, 40 + 900 * (np.hypot(x, y - 0.3) < 0.12), -1000) + rng.normal(0, 15, shape)
    else:
        from pipeline.geometry import reorder
        from pipeline.imaging.mask import body_mask
        from pipeline.io import read_volume

        volume = reorder(read_volume(ct, "HU"))
        start = max((volume.array.shape[0] - shape[0]) // 2, 0)
        r, body = (v[start : start + shape[0]] for v in (volume.array, body_mask(volume, -500)))
    p = r + rng.normal(0, 40, r.shape)
    whole = np.ones(r.shape, bool)
    return p.round().astype(np.int16), r.round().astype(np.int16), whole if region == "whole" else body.copy()


def peak_mb(arguments: argparse.Namespace, kind: str, region: str) -> float:
    """Return the peak memory of one call beyond what the process held before, in a process of its own."""
    words = [sys.executable, __file__, "--kind", kind, "--region", region, "--shape", *map(str, arguments.shape)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["peak_mb"]


def one(arguments: argparse.Namespace) -> None:
    """Print what the first call of one kind takes (for the made-up volume: reading one needs more than scoring it)."""
    p, r, mask = volumes(tuple(arguments.shape), None, arguments.region)
    KINDS[arguments.kind](p[:9, :97, :97], r[:9, :97, :97], np.ones((9, 97, 97), bool))  # imports
    # What was needed to make the volume is given back first, so that the peak is the call's.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    KINDS[arguments.kind](p, r, mask)
    print(json.dumps({"peak_mb": (_resident("VmHWM") - before) / 1024}))


def _resident(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return float(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(words: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=[100, 256, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ct", type=Path)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--region", choices=["body", "whole"], default="body")
    arguments = parser.parse_args(words)
    if arguments.kind:
        one(arguments)
        return
    print("| region | voxels in it | plain (s) | Cinevox (s) | first call (s) | ratio | plain (MB) | Cinevox (MB) |")
    print("|---|---|---|---|---|---|---|---|")
    for region in ("body", "whole"):
        p, r, mask = volumes(tuple(arguments.shape), arguments.ct, region)
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        found = {}
        for _ in range(arguments.rounds):
            for kind, score in KINDS.items():
                start = time.perf_counter()
                found[kind] = score(p, r, mask)
                seconds[kind].append(time.perf_counter() - start)
        worst = max(abs(a / b - 1) for a, b in zip(found["cinevox"], found["plain"], strict=True))
        if worst > 1e-9:
            raise AssertionError(f"the values differ by {worst:.1e}")
        a, b = (statistics.median(seconds[kind]) for kind in KINDS)
        memory = [peak_mb(arguments, kind, region) for kind in KINDS]
        print(
            f"| {region} | {100 * mask.mean():.0f} % | {a:.2f} | {b:.3f} | {seconds['cinevox'][0]:.3f} | {a / b:.0f} | "
            f"{memory[0]:.0f} | {memory[1]:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
