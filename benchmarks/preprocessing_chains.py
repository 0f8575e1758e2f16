"""The chains that preprocessing.py compares; each runs in a process of its own and prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SPACING_MM, SIZE, THRESHOLD_HU, AIR_HU = (2.5, 2.0, 2.0), (256, 256), -300, -1024
REPEATS = 3  # in one process; the fastest counts, so that first calls and imports do not


def floor(path: Path) -> np.ndarray:
    """Unpack the file and nothing else."""
    from pipeline.io import read_volume

    return read_volume(path).array


def cinevox(path: Path) -> np.ndarray:
    """What 'cinevox preprocess' does with a volume."""
    from pipeline.imaging.film import film_grid, to_stored
    from pipeline.imaging.mask import body_mask
    from pipeline.io import read_volume

    volume = read_volume(path)
    grid = film_grid(volume, body_mask(volume, THRESHOLD_HU), SPACING_MM, SIZE, "chest")
    return to_stored(volume, grid)[0]


def simpleitk(path: Path) -> np.ndarray:
    """The same with SimpleITK's filters."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.Clamp(sitk.ReadImage(str(path)), lowerBound=AIR_HU)
    body = _itk_body(sitk, image)
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(body)
    x, y, _, width, height, _ = shape.GetBoundingBox(1)
    size = [SIZE[1], SIZE[0], round((image.GetSize()[2] - 1) * image.GetSpacing()[2] / SPACING_MM[0]) + 1]
    middle = image.TransformContinuousIndexToPhysicalPoint([x + (width - 1) / 2, y + (height - 1) / 2, 0])
    out = sitk.Image(size, sitk.sitkInt16)
    out.SetSpacing(SPACING_MM[::-1])
    out.SetDirection(image.GetDirection())
    out.SetOrigin(middle)
    corner = out.TransformContinuousIndexToPhysicalPoint([-(SIZE[1] - 1) / 2, -(SIZE[0] - 1) / 2, 0])
    out.SetOrigin(corner)
    return sitk.GetArrayFromImage(sitk.Resample(image, out, sitk.Transform(), sitk.sitkLinear, AIR_HU, sitk.sitkInt16))


def _itk_body(sitk: object, image: object) -> object:
    """Return the largest part above the threshold, opened and closed in the plane; lungs are not filled."""
    above = sitk.BinaryThreshold(image, THRESHOLD_HU, 32767, 1, 0)
    opened = sitk.BinaryMorphologicalOpening(above, [2, 2, 0])
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True) == 1
    return sitk.BinaryMorphologicalClosing(largest, [3, 3, 0])


def torchio(path: Path) -> np.ndarray:
    """TorchIO's Resample and CropOrPad; the body by its threshold alone, the library has no other."""
    import torch
    import torchio as tio

    torch.set_num_threads(1)
    image = tio.ScalarImage(path)
    image = tio.Clamp(out_min=AIR_HU)(image)
    moved = tio.Resample(tuple(SPACING_MM[::-1]))(image)
    data = moved.data
    mask = tio.LabelMap(tensor=(data > THRESHOLD_HU).to(torch.uint8), affine=moved.affine)
    subject = tio.Subject(ct=moved, body=mask)
    size = (SIZE[1], SIZE[0], data.shape[-1])
    return tio.CropOrPad(size, padding_mode=AIR_HU, mask_name="body")(subject)["ct"].data[0].numpy().astype(np.int16)


def monai(path: Path) -> np.ndarray:
    """MONAI's Spacing, CropForeground and ResizeWithPadOrCrop."""
    import torch
    from monai.transforms import CropForeground, LoadImage, ResizeWithPadOrCrop, Spacing

    torch.set_num_threads(1)
    image = LoadImage(image_only=True, ensure_channel_first=True)(path).clamp_(min=AIR_HU)
    moved = Spacing(SPACING_MM[::-1], mode="bilinear", padding_mode="border")(image)
    cut = CropForeground(lambda x: x > THRESHOLD_HU, margin=0)(moved)
    size = (SIZE[1], SIZE[0], moved.shape[-1])
    fitted = ResizeWithPadOrCrop(size, mode="constant", value=AIR_HU)(cut)
    return np.rint(np.asarray(fitted[0])).astype(np.int16)


# --- Rounding ----------------------------------------------------------------------------------------------------


def _halves() -> tuple[np.ndarray, np.ndarray]:
    """Return integers (x, y, z) and the exact values half a voxel further along every axis."""
    whole = np.random.default_rng(0).integers(-1000, 2000, (24, 24, 24)).astype(np.int16)
    exact = whole.astype(float)
    for axis in range(3):
        exact = (exact.take(range(23), axis) + exact.take(range(1, 24), axis)) / 2
    return whole, exact


def rounding_cinevox() -> float:
    """Mean distance in HU of what is stored from the exact values."""
    from pipeline.geometry import Grid, Volume
    from pipeline.imaging.film import to_stored

    whole, exact = _halves()
    affine = np.eye(4)
    affine[:3, 3] = 0.5
    found, _ = to_stored(Volume(whole, np.eye(4)), Grid((23, 23, 23), affine))
    return float(np.abs(found - exact).mean())


def rounding_simpleitk() -> float:
    """As SimpleITK resamples an int16 image."""
    import SimpleITK as sitk  # noqa: N813

    whole, exact = _halves()
    image = sitk.GetImageFromArray(whole)
    moved = sitk.Resample(image, [23, 23, 23], sitk.Transform(), sitk.sitkLinear, [0.5] * 3, [1.0] * 3)
    return float(np.abs(sitk.GetArrayFromImage(moved) - exact).mean())


def rounding_torchio() -> float:
    """As TorchIO resamples an int16 image onto a reference."""
    import torch
    import torchio as tio

    whole, exact = _halves()
    affine = np.eye(4)
    affine[:3, 3] = 0.5
    target = tio.ScalarImage(tensor=torch.zeros(1, 23, 23, 23), affine=affine)
    image = tio.ScalarImage(tensor=torch.from_numpy(whole)[None], affine=np.eye(4))
    return float(np.abs(tio.Resample(target)(image).data[0].numpy() - exact).mean())


def rounding_monai() -> float:
    """As MONAI resamples (in floats), rounded by the chain itself."""
    import torch
    from monai.transforms import SpatialResample

    whole, exact = _halves()
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, 3] = 0.5
    from monai.data import MetaTensor

    image = MetaTensor(torch.from_numpy(whole.astype(np.float32))[None], affine=torch.eye(4, dtype=torch.float64))
    moved = SpatialResample(mode="bilinear")(image, dst_affine=affine, spatial_size=(23, 23, 23))
    return float(np.abs(np.rint(np.asarray(moved[0])) - exact).mean())


CHAINS: dict[str, tuple[Callable[[Path], np.ndarray], Callable[[], float] | None]] = {
    "floor": (floor, None),
    "cinevox": (cinevox, rounding_cinevox),
    "simpleitk": (simpleitk, rounding_simpleitk),
    "torchio": (torchio, rounding_torchio),
    "monai": (monai, rounding_monai),
}


def _memory(key: str) -> int:
    """Return the process's memory (VmRSS) or its peak (VmHWM) in bytes; Linux only.

    The peak of getrusage would be that of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def main() -> None:
    """Run one chain on one file."""
    chain, rounding = CHAINS[sys.argv[1]]
    path = Path(sys.argv[2])
    error = rounding() if rounding else float("nan")
    chain(path.with_name(f"small_{path.name}"))  # imports what it needs: the libraries are not the chain's memory
    before, seconds = _memory("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak: that of the imports
    for _ in range(REPEATS):
        start = time.perf_counter()
        film = chain(path)
        seconds.append(time.perf_counter() - start)
        del film
    print(json.dumps({"seconds": min(seconds), "peak_bytes": _memory("VmHWM") - before, "rounding": error}))


if __name__ == "__main__":
    main()
