"""A random head and neck: z = 0 is at the height of the skull base, x runs to the left, y to the back (mm)."""

from __future__ import annotations

import numpy as np

from pipeline.cohorts.phantom_canvas import Canvas, Field, Shape, smooth_union

HALF_WIDTH, HALF_DEPTH = 79.0, 106.0


def paint_head(c: Canvas, *, couch: bool) -> None:
    """Paint head rest, skin, skull, brain, face, airways, neck."""
    skin, cranium = _outline(c)
    if couch:
        rest = np.abs(np.hypot(c.x / 1.25, c.y - 20) - 112) - 5
        rest = np.maximum.reduce([rest, 55 - c.y, 25 - c.z, np.abs(c.x) - 84])
        c.paint(c.whole(rest), "couch_shell")
        c.paint(c.whole(rest + 2.5), "couch_core")
    c.paint(c.whole(skin), "skin")
    c.paint(c.whole(skin + 3), "fat")
    scalp = float(c.rng.uniform(5, 7.5))
    c.paint(c.whole(np.maximum(skin + 6 + 2 * c.noise(25), c.z - 20)), "muscle")
    _paint_neck(c, skin)
    _paint_face(c, skin)
    floor = _floor(c)
    inner = np.maximum(cranium + scalp + 7, 0.8 * (floor - c.z)).astype(np.float32)
    _paint_skull(c, np.maximum(cranium + scalp, 0.8 * (floor - 7 - c.z)).astype(np.float32), inner)
    _paint_brain(c, inner)
    _paint_airways(c, skin)


def _outline(c: Canvas) -> tuple[Field, Field]:
    """Return the distances to the skin of the whole head and of the cranium alone."""
    size = c.rng.uniform(0.96, 1.03, 3)
    radii = (75 * size[0], 94 * size[1], 88 * size[2])
    cranium = _distance(c, (0, 8, 32), radii)
    face = _distance(c, (0, -30, -42), (58, 66, 62))
    jaw = _distance(c, (0, -38, -82), (48, 50, 34))
    neck = np.maximum((np.hypot(c.x / 56, (c.y - 22) / 58) - 1) * 56, c.z + 20).astype(np.float32)
    nose = _distance(c, (0, -94, -32), (13, 14, 20))
    skin = smooth_union(smooth_union(cranium, face, 22), jaw, 16)
    skin = smooth_union(skin, neck, 26)
    return smooth_union(skin, nose, 9), cranium


def _floor(c: Canvas) -> Field:
    """Return the height of the skull base: three steps down from front to back, with the sella in the middle."""
    steps = 22 / (1 + np.exp(-(c.y + 30) / 5)) + 22 / (1 + np.exp(-(c.y - 14) / 6))
    ridge = 15 * np.exp(-((c.x / 15) ** 2) - ((c.y + 8) / 17) ** 2)
    return np.asarray(4 - steps + ridge, np.float32)


def _distance(c: Canvas, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
    scaled = [(a - m) / r for a, m, r in zip((c.x, c.y, c.z), centre, radii, strict=True)]
    near = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2) + 1e-6
    slope = np.sqrt(sum((s / r) ** 2 for s, r in zip(scaled, radii, strict=True))) + 1e-6
    return np.asarray(near * (near - 1) / slope, np.float32)


def _paint_skull(c: Canvas, outer: Field, inner: Field) -> None:
    """Paint outer table, diploe and inner table; a hole at the base lets the cord out."""
    hole = (np.hypot(c.x / 15, (c.y - 32) / 17) - 1) * 15
    bone = np.maximum(outer, -np.where(c.z < -20, hole, 50)).astype(np.float32)
    c.paint(c.whole(bone), "cortical")
    c.paint(c.whole(np.maximum(np.abs(bone + 3.5) - 1.6, 5 - c.z)), "diploe")
    # The base is thicker than the vault and holds the petrous bones with their air cells.
    for side in (-1, 1):
        petrous = c.tube((side * 58, 22, -12), (side * 18, 0, -10), 13, 8)
        c.paint(petrous, "cortical")
        cells = c.ellipsoid((side * 58, 30, -22), (12, 15, 16))
        c.paint(Shape(cells.box, np.maximum(cells.distance, 3.2 * c.noise(7)[cells.box])), "gas")
        c.paint(c.tube((side * 82, 12, -12), (side * 50, 10, -12), 3), "gas")
    c.paint(c.whole(inner), "csf")


def _paint_brain(c: Canvas, inner: Field) -> None:
    rng = c.rng
    folds = c.noise(15)
    # Sulci run inwards along the surfaces where a smooth field vanishes.
    sulci = np.clip(3.6 - 9 * np.abs(folds), 0, 4)
    depth = np.clip((inner + 18) / 14, 0, 1)
    midline = np.abs(c.x + 1.2 * c.noise(60)) - 1.3
    brain = np.maximum(inner + 1.8 + sulci * depth * 1.5, np.where(c.z < 2, 4 - np.abs(c.x), -9)).astype(np.float32)
    c.paint(c.whole(brain), "grey")
    white = np.maximum(inner + 6 + 5 * np.clip(1.2 - 2.6 * np.abs(folds), -0.7, 1), 2 - midline)
    c.paint(c.whole(np.maximum(white, -8 - c.z)), "white")
    corpus = (np.hypot((c.y - 8) / 34, (c.z - 44) / 21) - 1) * 21
    corpus = np.maximum.reduce([np.abs(corpus) - 4, np.abs(c.x) - 16, 38 - c.z]).astype(np.float32)
    gap = np.maximum.reduce([midline, inner + 2, np.minimum(60 - c.z, 0.9 * np.abs(c.y - 8) * -1 + 42)])
    c.paint(c.whole(gap), "csf")
    c.paint(c.whole(np.maximum(gap + 0.7, -40 + np.abs(c.x))), "falx", 0.9)
    c.paint(c.whole(corpus), "white")
    _paint_deep_brain(c, float(rng.uniform(0.85, 1.35)))
    _paint_hind_brain(c, inner)
    _paint_tumour(c, inner)


def _paint_deep_brain(c: Canvas, ventricles: float) -> None:
    for side in (-1, 1):
        c.paint(c.ellipsoid((side * 17, 12, 27), (8.5, 14, 10), side * -20), "nuclei")
        c.paint(c.ellipsoid((side * 27, -2, 27), (7, 19, 12), side * -15), "nuclei")
        c.paint(c.ellipsoid((side * 12, -17, 33), (6, 12, 10), side * -15), "nuclei")
        v = ventricles
        c.paint(c.tube((side * 9, -24, 34), (side * 13, 18, 46), 4.5 * v, 6 * v), "csf")
        c.paint(c.tube((side * 13, 18, 46), (side * 26, 42, 32), 6 * v, 7 * v), "csf")
        c.paint(c.tube((side * 26, 42, 32), (side * 22, 62, 30), 6 * v, 3 * v), "csf")
        c.paint(c.tube((side * 28, 38, 28), (side * 34, 8, 6), 4 * v, 2.5 * v), "csf")
        # Insula and Sylvian fissure.
        c.paint(c.tube((side * 42, -10, 18), (side * 62, -2, 22), 2.4, 3.2), "csf")
        c.paint(c.tube((side * 41, -14, 18), (side * 40, 20, 30), 1.8), "csf")
    c.paint(c.ellipsoid((0, 8, 22), (2.6 * ventricles, 13, 11)), "csf")


def _paint_hind_brain(c: Canvas, inner: Field) -> None:
    cerebellum = c.ellipsoid((0, 56, -14), (47, 31, 25)).inside(inner + 3)
    c.paint(Shape(cerebellum.box, cerebellum.distance - 2.5), "csf")
    c.paint(cerebellum, "grey")
    box = cerebellum.box
    folia = np.sin((c.z[box] + 0.35 * c.y[box]) * 1.1 + 2 * c.noise(20)[box])
    c.paint(Shape(box, np.maximum(cerebellum.distance + 7, 3 * folia).astype(np.float32)), "white")
    c.paint(c.ellipsoid((0, 28, -30), (19, 15, 26)), "csf")
    c.paint(c.tube((0, 24, 6), (0, 26, -26), 14, 13), "white")
    c.paint(c.tube((0, 26, -26), (0, 34, -60), 10, 6), "white")
    c.paint(c.ellipsoid((0, 40, -16), (7, 5, 10)), "csf")
    c.paint(c.ellipsoid((0, 2, 2), (13, 9, 8)), "csf")


def _paint_tumour(c: Canvas, inner: Field) -> None:
    """Paint a ring that takes up contrast around necrosis, within edema."""
    rng = c.rng
    place = (float(rng.choice([-1, 1]) * rng.uniform(26, 42)), float(rng.uniform(-35, 45)), float(rng.uniform(38, 68)))
    radius = float(rng.uniform(8, 15))
    ball = c.ellipsoid(place, (radius * 2.1,) * 3)
    bumps = 2.5 * np.clip(c.noise(24)[ball.box], -1.5, 1.5)
    edge = inner[ball.box] + 4
    c.paint(Shape(ball.box, np.maximum(ball.distance + bumps, edge)), "edema", 0.85)
    ring = np.maximum(ball.distance + radius * 1.1 + 0.6 * bumps, edge)
    c.paint(Shape(ball.box, ring), "nodule")
    c.paint(Shape(ball.box, np.asarray(ring + 0.45 * radius, np.float32)), "necrosis")


def _paint_face(c: Canvas, skin: Field) -> None:
    """Paint orbits, cheek bones, jaws and teeth; the arches are parabolas open to the back."""
    for side in (-1, 1):
        c.paint(c.ellipsoid((side * 32, -55, -8), (23, 32, 21)).inside(skin + 4), "cortical")
        c.paint(c.ellipsoid((side * 32, -57, -8), (20, 32, 18)).inside(skin + 2), "fat")
        c.paint(c.tube((side * 28, -58, -8), (side * 10, -14, -4), 2.6), "white")
        for x, y in ((12, 0), (-11, 0)):
            c.paint(c.tube((side * (32 + x), -62 + y, -8), (side * 14, -24, -5), 2.4), "muscle")
        c.paint(c.ellipsoid((side * 32, -70, -8), (12, 12, 12)), "eye")
        c.paint(c.ellipsoid((side * 32, -79, -8), (4.5, 2.5, 4.5)), "lens")
        c.paint(c.tube((side * 46, -56, -32), (side * 63, -12, -20), 6, 4).inside(skin + 4), "cortical")
        # The ramus of the mandible and its joint.
        ramus = c.ellipsoid((side * 48, -12, -52), (5, 15, 36)).inside(skin + 6)
        c.paint(ramus, "cortical")
        c.paint(Shape(ramus.box, ramus.distance + 2.2), "trabecular")
        c.paint(c.ellipsoid((side * 40, -14, -48), (5, 15, 22)), "muscle")
    upper = c.ellipsoid((0, -58, -48), (42, 36, 26)).inside(skin + 5)
    c.paint(upper, "trabecular", 0.7)
    arch = np.abs(np.hypot(c.x / 40, (c.y + 38) / 42) - 1) * 40
    front = c.y + 22
    body = np.maximum.reduce([arch - 4.8, front, np.abs(c.z + 88) - 12, skin + 5]).astype(np.float32)
    c.paint(c.whole(body), "cortical")
    c.paint(c.whole(body + 2.5), "trabecular")
    gaps = 1.6 * np.cos(np.arctan2(c.x, -(c.y + 38)) * 16)
    for height in (-63.0, -73.0):
        row = np.maximum.reduce([arch - 3.6 + gaps, front + 14, np.abs(c.z - height) - 4.2, skin + 6])
        c.paint(c.whole(row), "tooth")
    c.paint(c.ellipsoid((0, -40, -72), (24, 28, 15)), "muscle")


def _paint_airways(c: Canvas, skin: Field) -> None:
    for side in (-1, 1):
        for radii, tissue in (((17, 18, 18), "cortical"), ((15.0, 16.0, 16.0), "gas")):
            c.paint(c.ellipsoid((side * 27, -54, -40), radii, side * 15).inside(skin + 7), tissue)
        c.paint(c.ellipsoid((side * 11, -78, 14), (9, 4.5, 11)).inside(skin + 6), "gas")
        cells = c.ellipsoid((side * 8, -52, -10), (6, 20, 10))
        c.paint(Shape(cells.box, np.maximum(cells.distance, 2.5 * c.noise(9)[cells.box] - 1.5)), "gas")
        c.paint(c.ellipsoid((side * 7, -58, -40), (5, 30, 14)).inside(skin + 3), "gas")
        c.paint(c.tube((side * 8, -72, -34), (side * 8, -40, -36), 2.5), "muscle")
    c.paint(c.ellipsoid((0, -24, -13), (13, 11, 9)), "gas")
    c.paint(c.tube((0, -16, -44), (0, -6, -80), 9, 7), "gas")
    c.paint(c.tube((0, -6, -80), (0, -18, -160), 7, 8), "gas")


def _paint_neck(c: Canvas, skin: Field) -> None:
    for side in (-1, 1):
        c.paint(c.tube((side * 34, 14, -40), (side * 30, 0, -170), 6), "blood")
        c.paint(c.ellipsoid((side * 38, -16, -60), (13, 20, 26)).inside(skin + 5), "spleen")
        c.paint(c.tube((side * 26, 60, -46), (side * 22, 60, -170), 3), "fat")
    c, _ = c.window((0, 40, -100), (30, 40, 80))
    below = np.asarray(c.z + 46, np.float32)
    pitch = 17.0
    phase = np.mod(c.z, pitch) - pitch / 2
    bodies = np.maximum.reduce([(np.hypot(c.x / 13, (c.y - 16) / 10) - 1) * 10, np.abs(phase) - 6.5, below])
    arch = (np.hypot(c.x / 19, (c.y - 36) / 15) - 1) * 15
    arch = np.maximum.reduce([arch, -arch - 5, np.abs(phase) - 5.5, below])
    spine = np.maximum.reduce([np.abs(c.x) - 3.5, np.abs(c.y - 56) - 10, np.abs(phase + 2) - 4, below])
    c.paint(c.whole(np.maximum((np.hypot(c.x / 12, (c.y - 16) / 9) - 1) * 9, below)), "disc")
    bone = np.minimum.reduce([bodies, arch, spine]).astype(np.float32)
    c.paint(c.whole(bone), "cortical")
    c.paint(c.whole(bone + 2.4), "trabecular")
    c.paint(c.whole(np.maximum((np.hypot(c.x / 11, (c.y - 36) / 9) - 1) * 9, below)), "csf")
    c.paint(c.whole(np.maximum((np.hypot(c.x / 6, (c.y - 36) / 5) - 1) * 5, below)), "white")
