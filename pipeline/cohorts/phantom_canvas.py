"""What phantoms are painted with: soft-edged shapes in millimetres, tissues with a value per modality, smooth noise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]
Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]

MODALITIES = ("ct", "t1n", "t1c", "t2w")
# Value in ct (HU), t1n, t1c, t2w (arbitrary units), and the texture's standard deviation as a share: of 100 HU for
# ct, of the value for MR. Rounded textbook contrasts of a native CT and of 1.5 T spin echo.
TISSUES: dict[str, tuple[float, float, float, float, float]] = {
    "air": (-1000, 0, 0, 0, 0),
    "skin": (15, 480, 520, 330, 0.03),
    "fat": (-102, 900, 900, 700, 0.06),
    "muscle": (52, 350, 390, 150, 0.08),
    "lung": (-845, 45, 60, 55, 0.35),
    "heart": (44, 320, 520, 190, 0.06),
    "blood": (42, 190, 760, 60, 0.03),
    "liver": (60, 480, 620, 230, 0.08),
    "spleen": (50, 330, 600, 430, 0.05),
    "kidney": (33, 350, 820, 500, 0.06),
    "bowel": (32, 330, 430, 330, 0.14),
    "fluid": (6, 130, 135, 1000, 0.02),
    "gas": (-960, 5, 5, 5, 0.02),
    "cortical": (870, 40, 50, 40, 0.5),
    "trabecular": (230, 540, 580, 340, 0.4),
    "diploe": (420, 420, 470, 300, 0.5),
    "disc": (85, 320, 340, 360, 0.06),
    "cartilage": (110, 260, 280, 260, 0.1),
    "tooth": (1900, 15, 15, 15, 0.5),
    "csf": (6, 150, 152, 1000, 0.02),
    "grey": (38, 470, 490, 440, 0.04),
    "white": (28, 630, 640, 310, 0.03),
    "nuclei": (40, 510, 525, 390, 0.03),
    "falx": (52, 380, 640, 260, 0.03),
    "eye": (8, 150, 160, 950, 0.02),
    "lens": (80, 260, 270, 180, 0.02),
    "nodule": (35, 340, 900, 520, 0.08),
    "necrosis": (14, 230, 250, 850, 0.06),
    "edema": (20, 500, 510, 760, 0.05),
    "couch_shell": (-120, 0, 0, 0, 0.02),
    "couch_core": (-890, 0, 0, 0, 0.01),
}


@dataclass(frozen=True)
class Shape:
    """A signed distance in mm (negative inside) over a box of the canvas."""

    box: Box
    distance: Field

    def inside(self, field: Field) -> Shape:
        """Return the part where ``field`` (over the whole canvas) is negative."""
        return replace(self, distance=np.maximum(self.distance, field[self.box]))

    def outside(self, field: Field) -> Shape:
        """Return the part where ``field`` (over the whole canvas) is positive."""
        return replace(self, distance=np.maximum(self.distance, -field[self.box]))


class Canvas:
    """Arrays of all modalities in film order, painted shape after shape with partial volume at the edges.

    Coordinates ``x`` (to the left), ``y`` (to posterior), ``z`` (to superior) are in mm of a nominal adult: they
    are moved, turned, scaled and bent, so that no two patients agree.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        spacing_mm: Point,
        rng: np.random.Generator,
        *,
        scale: float,
        centre: Point,
        bend_mm: float,
        modalities: Sequence[str] = MODALITIES,
    ) -> None:
        self.shape, self.spacing_mm, self.rng, self.scale = shape, spacing_mm, rng, scale
        self.edge = float(np.mean(spacing_mm)) / scale
        axes = [(np.arange(n) - (n - 1) / 2) * mm / scale for n, mm in zip(shape, spacing_mm, strict=True)]
        self.extent = tuple(
            float(a[-1] - a[0]) if len(a) > 1 else float(mm) for a, mm in zip(axes, spacing_mm, strict=True)
        )
        z, y, x = np.meshgrid(*[a.astype(np.float32) for a in axes], indexing="ij")
        angle = np.radians(rng.normal(0, 2.0))
        self._cos, self._sin, self._centre = float(np.cos(angle)), float(np.sin(angle)), centre
        self._margin = 3.5 * bend_mm + 2 * self.edge
        bend = [bend_mm * self.noise(80) for _ in range(3)]
        self.x = (self._cos * x + self._sin * y + bend[0] + np.float32(centre[0])).astype(np.float32)
        self.y = (-self._sin * x + self._cos * y + bend[1] + np.float32(centre[1])).astype(np.float32)
        self.z = (z + bend[2] + np.float32(centre[2])).astype(np.float32)
        self.images = {
            m: np.full(shape, TISSUES["air"][i], np.float32) for i, m in enumerate(MODALITIES) if m in modalities
        }
        self.texture = 0.8 * self.noise(9) + 0.6 * self.noise(22)

    @property
    def everywhere(self) -> Box:
        """The box of the whole canvas."""
        a, b, c = self.shape
        return slice(0, a), slice(0, b), slice(0, c)

    def noise(self, feature_mm: float) -> Field:
        """Return smooth noise of unit variance whose features are about ``feature_mm`` wide."""
        basis = [
            _spline_basis(n, max(mm / self.scale / feature_mm, 1e-3))
            for n, mm in zip(self.shape, self.spacing_mm, strict=True)
        ]
        out = self.rng.standard_normal([b.shape[1] for b in basis]).astype(np.float32)
        for axis, matrix in enumerate(basis):
            out = np.moveaxis(np.tensordot(matrix, out, axes=(1, axis)), 0, axis)
        # The variance of a cubic spline with white coefficients, averaged over positions.
        return np.asarray(out / 0.479**1.5, np.float32)

    def box(self, centre: Point, reach: Point) -> Box | None:
        """Return the indices that may lie within ``reach`` (x, y, z in mm) of ``centre``; None when there are none."""
        dx, dy = centre[0] - self._centre[0], centre[1] - self._centre[1]
        x, y = self._cos * dx - self._sin * dy, self._sin * dx + self._cos * dy
        z = centre[2] - self._centre[2]
        turn = abs(self._sin)
        needs = (reach[2], reach[1] + turn * reach[0], reach[0] + turn * reach[1])
        found = []
        for place, need, n, mm in zip((z, y, x), needs, self.shape, self.spacing_mm, strict=True):
            step = mm / self.scale
            low = int(np.floor((place - need - self._margin) / step + (n - 1) / 2))
            high = int(np.ceil((place + need + self._margin) / step + (n - 1) / 2)) + 1
            low, high = max(low, 0), min(high, n)
            if low >= high:
                return None
            found.append(slice(low, high))
        return found[0], found[1], found[2]

    def ellipsoid(self, centre: Point, radii: Point, tilt_degrees: float = 0.0) -> Shape:
        """Return an ellipsoid (x, y, z in mm), turned about the z axis by ``tilt_degrees``."""
        reach = (max(radii[0], radii[1]),) * 2 if tilt_degrees else radii[:2]
        box = self.box(centre, (reach[0], reach[1], radii[2]))
        if box is None:
            return _empty()
        dx, dy, dz = self.x[box] - centre[0], self.y[box] - centre[1], self.z[box] - centre[2]
        if tilt_degrees:
            c, s = np.cos(np.radians(tilt_degrees)), np.sin(np.radians(tilt_degrees))
            dx, dy = c * dx + s * dy, c * dy - s * dx
        dx, dy, dz = dx / radii[0], dy / radii[1], dz / radii[2]
        near = np.sqrt(dx * dx + dy * dy + dz * dz) + 1e-6
        slope = np.sqrt((dx / radii[0]) ** 2 + (dy / radii[1]) ** 2 + (dz / radii[2]) ** 2) + 1e-6
        # A first-order distance: right at the surface, which is where the edge is blended.
        return Shape(box, np.asarray(near * (near - 1) / slope, np.float32))

    def tube(self, start: Point, end: Point, radius: float, end_radius: float | None = None) -> Shape:
        """Return a straight tube with round ends, optionally tapering."""
        a, b = np.asarray(start, np.float32), np.asarray(end, np.float32)
        last = radius if end_radius is None else end_radius
        middle, reach = (a + b) / 2, np.abs(b - a) / 2 + max(radius, last)
        box = self.box(tuple(middle.tolist()), tuple(reach.tolist()))
        if box is None:
            return _empty()
        point = np.stack([self.x[box], self.y[box], self.z[box]], -1) - a
        along = np.clip(point @ (b - a) / max(float((b - a) @ (b - a)), 1e-6), 0, 1)
        distance = np.linalg.norm(point - along[..., None] * (b - a), axis=-1) - (radius + (last - radius) * along)
        return Shape(box, np.asarray(distance, np.float32))

    def whole(self, distance: Field) -> Shape:
        """Return a shape from a distance over the whole canvas."""
        return Shape(self.everywhere, np.asarray(distance, np.float32))

    def paint(self, shape: Shape, tissue: str, opacity: float = 1.0) -> None:
        """Cover what lies inside a shape with a tissue; edges are blended over one voxel."""
        part = _part(shape.distance < self.edge / 2)
        if part is None:
            return
        alpha = np.clip(0.5 - shape.distance[part] / self.edge, 0, 1) * np.float32(opacity)
        texture = self.texture[shape.box][part]
        *values, grain = TISSUES[tissue]
        for modality, value in zip(MODALITIES, values, strict=True):
            if modality not in self.images:
                continue
            amplitude = grain * (100 if modality == "ct" else value)
            image = self.images[modality][shape.box][part]
            image += alpha * (np.float32(value) + np.float32(amplitude) * texture - image)

    def window(self, centre: Point, reach: Point) -> tuple[Canvas, Box]:
        """Return the part of the canvas around a point, painting into the same images, and its indices.

        Only ``whole`` shapes fit it: boxes and noise belong to the whole canvas.
        """
        box = self.box(centre, reach) or (slice(0, 0),) * 3
        part = copy.copy(self)
        part.x, part.y, part.z, part.texture = self.x[box], self.y[box], self.z[box], self.texture[box]
        part.images = {m: image[box] for m, image in self.images.items()}
        part.shape = part.x.shape
        return part, box

    def develop(self, modality: str) -> NDArray[np.int16]:
        """Return a modality as a scanner would give it: point spread, coil bias, noise; int16 in film order."""
        image = ndimage.gaussian_filter(self.images[modality], 0.45)
        if modality == "ct":
            grain = ndimage.gaussian_filter(self.rng.standard_normal(self.shape, dtype=np.float32), 0.6)
            return np.clip(np.round(image + 9 / 0.29 * grain * 0.55), -1024, 3071).astype(np.int16)
        image = image * (1 + 0.07 * self.noise(160))
        real, imaginary = (self.rng.standard_normal(self.shape, dtype=np.float32) * 9 for _ in range(2))
        # The magnitude of a complex signal: Rician noise.
        return np.round(np.hypot(image + real, imaginary)).astype(np.int16)


def smooth_union(a: Field, b: Field, width: float) -> Field:
    """Return the union of two distances with the crease between them rounded over ``width`` mm."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0, 1)
    return np.asarray(b + (a - b) * h - width * h * (1 - h), np.float32)


def _part(inside: NDArray[np.bool_]) -> Box | None:
    """Return the smallest box that holds what is true, or None."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(hit):
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return box[0], box[1], box[2]


def _empty() -> Shape:
    return Shape((slice(0, 0),) * 3, np.zeros((0, 0, 0), np.float32))


def _spline_basis(count: int, step: float) -> Field:
    """Return the cubic B-spline weights (count, knots) of samples ``step`` knots apart."""
    position = np.arange(count) * step
    knots = int(np.floor(position[-1])) + 4
    distance = np.abs(position[:, None] + 1 - np.arange(knots)[None, :])
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = (2 - distance) ** 3 / 6
    return np.where(distance < 1, inner, np.where(distance < 2, outer, 0)).astype(np.float32)
