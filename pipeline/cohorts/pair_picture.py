"""A picture of a pair: a checkerboard of both volumes, and the target's edges over the source, in three planes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from pipeline.artifacts import atomic_path

_PLANES = ("axial", "coronal", "sagittal")
_PLANE_PIXELS = 260  # the longest side of a plane
_TILES = 8  # of the checkerboard, along the longer side
_EDGES = (230, 159, 0)  # Okabe and Ito's orange: seen by everybody on grey
_GAP, _LINE = 6, 14
_EDGE_SHARE = 0.12  # of a plane's pixels


def draw(path: Path, source: NDArray[np.float32], target: NDArray[np.float32], names: tuple[str, str]) -> None:
    """Write a PNG, atomically.

    Args:
        path: Where to.
        source: Grey from 0 to 1, in film order on a grid of cubes.
        target: On the same grid.
        names: Both modalities.
    """
    planes = [(_plane(source, axis), _plane(target, axis)) for axis in range(3)]
    rows = [
        (f"{names[0]} and {names[1]} in turn: outlines must run on", [_checkerboard(a, b) for a, b in planes]),
        (f"{names[0]}, over it the edges of {names[1]}", [_outlined(a, b) for a, b in planes]),
    ]
    width = sum(image.width + _GAP for image in rows[0][1]) + _GAP
    height = max(image.height for image in rows[0][1])
    sheet = Image.new("RGB", (width, 2 * (height + 2 * _LINE + _GAP)))
    pen = ImageDraw.Draw(sheet)
    for number, (title, images) in enumerate(rows):
        top, left = number * (height + 2 * _LINE + _GAP), _GAP
        pen.text((left, top), title, fill="white")
        for name, image in zip(_PLANES, images, strict=True):
            pen.text((left, top + _LINE), name, fill="silver")
            sheet.paste(image, (left, top + 2 * _LINE))
            left += image.width + _GAP
    with atomic_path(path) as partial:
        sheet.save(partial, format="PNG", compress_level=6)


def _plane(volume: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the middle plane as a picture, the head or the front of the patient on top."""
    plane: NDArray[np.float32] = np.take(volume, volume.shape[axis] // 2, axis=axis)
    return plane if axis == 0 else plane[::-1]


def _enlarged(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    factor = _PLANE_PIXELS / max(plane.shape)
    size = (max(1, round(plane.shape[1] * factor)), max(1, round(plane.shape[0] * factor)))
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR), np.float32)


def _checkerboard(source: NDArray[np.float32], target: NDArray[np.float32]) -> Image.Image:
    a, b = _enlarged(source), _enlarged(target)
    row, column = np.indices(a.shape) // (_PLANE_PIXELS // _TILES)
    return Image.fromarray((np.where((row + column) % 2, a, b) * 255).astype(np.uint8)).convert("RGB")


def _outlined(source: NDArray[np.float32], target: NDArray[np.float32]) -> Image.Image:
    grey, other = _enlarged(source), _enlarged(target)
    slope = ndimage.gaussian_gradient_magnitude(other, 2.0)
    # Ridges only: an edge is a line, as high as its neighbours across it.
    ridge = slope >= 0.93 * ndimage.maximum_filter(slope, 3)
    edges = (slope > max(float(np.quantile(slope, 1 - _EDGE_SHARE)), 1e-6)) & ridge
    picture = np.repeat((grey[..., None] * 255).astype(np.uint8), 3, axis=2)
    picture[edges] = _EDGES
    return Image.fromarray(picture)
