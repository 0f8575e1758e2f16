"""A random torso from the shoulders to the pelvis: z = 0 is the diaphragm, x runs to the left, y to the back (mm)."""

from __future__ import annotations

import numpy as np

from pipeline.cohorts.phantom_canvas import Canvas, Field, Shape

HALF_WIDTH, HALF_DEPTH = 158.0, 108.0  # the widest outline that paint_torso may draw, before bending


def paint_torso(c: Canvas, *, couch: bool) -> None:
    """Paint couch, body wall, chest, abdomen and spine; the outline stays within HALF_WIDTH x HALF_DEPTH."""
    rng = c.rng
    fat, muscle = float(rng.uniform(9, 20)), float(rng.uniform(11, 15))
    skin = _outline(c)
    if couch:
        _paint_couch(c)
    c.paint(c.whole(skin), "skin")
    c.paint(c.whole(skin + 3), "fat")
    c.paint(c.whole(skin + fat + 4 * c.noise(45)), "muscle")
    cavity = skin + fat + muscle
    dome = _diaphragm(c)
    # Below the diaphragm organs lie in fat, above it in the mediastinum.
    c.paint(c.whole(np.maximum(cavity + 4, c.z - dome)), "fat")
    c.paint(c.whole(np.maximum(cavity + 2, dome - c.z)), "muscle")
    _paint_lungs(c, cavity, dome)
    _paint_heart_and_vessels(c, cavity, dome)
    _paint_abdomen(c, cavity, dome)
    _paint_ribs(c, skin + fat)
    _paint_spine(c, skin + fat)
    _paint_pelvis(c, skin + fat)


def _outline(c: Canvas) -> Field:
    """Return the distance to the skin: a superellipse that narrows at the waist and above the shoulders."""
    waist = 1 - 0.07 * np.exp(-(((c.z + 130) / 70) ** 2))
    neck = 1 - 0.55 / (1 + np.exp(-(c.z - 285) / 18))
    a = HALF_WIDTH * waist * neck
    b = HALF_DEPTH * (0.93 + 0.05 * np.tanh((c.z - 20) / 80)) * (0.45 + 0.55 * neck)
    # The back is flatter than the front.
    power = np.where(c.y > 0, 2.9, 2.3)
    radius = ((np.abs(c.x) / a) ** power + (np.abs(c.y) / b) ** power + 1e-9) ** (1 / power)
    # The groove over the spine.
    groove = 5 * np.exp(-((c.x / 14) ** 2)) * (c.y > 0)
    return np.asarray((radius - 1) * np.minimum(a, b) * 1.1 + groove, np.float32)


def _diaphragm(c: Canvas) -> Field:
    """Return the height of the diaphragm: two domes, the right one higher, falling to the ribs."""
    right = 32 * np.exp(-(((c.x + 68) / 52) ** 2) - ((c.y + 5) / 62) ** 2)
    left = 22 * np.exp(-(((c.x - 70) / 50) ** 2) - ((c.y + 5) / 62) ** 2)
    edge = ((c.x / 150) ** 2 + (c.y / 100) ** 2) ** 1.5
    return np.asarray(8 + right + left - 75 * edge, np.float32)


def _paint_lungs(c: Canvas, cavity: Field, dome: Field) -> None:
    rng = c.rng
    # A mediastinum that is wider in the middle heights, and the spine behind.
    middle = 24 + 14 * np.exp(-(((c.z - 60) / 60) ** 2)) + 14 * np.exp(-(((c.y - 46) / 28) ** 2))
    apex = (c.z - 175) * 0.8 + 0.004 * ((np.abs(c.x) - 60) ** 2 + (c.y - 10) ** 2)
    lungs = np.maximum.reduce([cavity + 6, middle - np.abs(c.x), dome - c.z, apex])
    lungs = np.asarray(lungs, np.float32)
    c.paint(c.whole(lungs), "lung")
    # Vessels are the curves along which two smooth fields vanish together: thick at the hilum, thin at the rim.
    hilum = np.sqrt((np.abs(c.x) - 45) ** 2 + (c.y - 5) ** 2 + ((c.z - 70) / 1.4) ** 2)
    radius = 4.6 * np.exp(-hilum / 55) + 0.9
    for feature in (20.0, 26.0, 36.0):
        curve = np.hypot(c.noise(feature), c.noise(feature)) * feature * 0.45
        c.paint(c.whole(np.maximum(curve - radius, lungs + 3)), "blood")
    # Oblique fissures show as faint planes.
    fissure = np.abs(c.z - 60 - 0.9 * c.y - 6 * c.noise(90)) - 0.5
    c.paint(c.whole(np.maximum(fissure, lungs + 2)), "muscle", 0.25)
    for _ in range(int(rng.integers(1, 3))):
        side = -1 if rng.random() < 0.55 else 1
        place = (side * rng.uniform(70, 105), rng.uniform(-35, 35), rng.uniform(45, 110))
        size = rng.uniform(6, 13)
        blob = c.ellipsoid(place, (size, size * rng.uniform(0.8, 1.1), size))
        ragged = Shape(blob.box, blob.distance + 1.5 * c.noise(10)[blob.box])
        c.paint(ragged.inside(lungs + 1), "nodule")


def _paint_heart_and_vessels(c: Canvas, cavity: Field, dome: Field) -> None:
    rng = c.rng
    shift = float(rng.uniform(-5, 5))
    heart = c.ellipsoid((26 + shift, -28, 50), (58, 44, 46), 28).inside(cavity + 8).outside(dome - c.z + 2)
    c.paint(Shape(heart.box, heart.distance - 4), "fat")
    c.paint(heart, "heart")
    c.paint(c.ellipsoid((40 + shift, -24, 44), (24, 17, 27), 28), "blood")
    c.paint(c.ellipsoid((4 + shift, -36, 48), (19, 15, 26), 20), "blood")
    c.paint(c.ellipsoid((12 + shift, -2, 68), (27, 14, 18)), "blood")
    mediastinum = c.ellipsoid((0, 5, 130), (30, 45, 70)).inside(cavity + 8)
    c.paint(mediastinum, "fat")
    c.paint(c.tube((22, 24, -230), (22, 26, 118), 11.5), "blood")
    c.paint(c.tube((22, 26, 118), (-6, -18, 120), 12.5), "blood")
    c.paint(c.tube((-6, -18, 120), (4, -22, 66), 14), "blood")
    c.paint(c.tube((-24, -14, 210), (-24, -16, 62), 9), "blood")
    c.paint(c.tube((-20, 12, -230), (-22, 4, 30), 11), "blood")
    c.paint(c.tube((8, -8, 92), (48, 4, 84), 10, 7), "blood")
    c.paint(c.tube((2, -8, 92), (-48, 4, 82), 10, 7), "blood")
    c.paint(c.tube((4, 16, 10), (4, 20, 260), 7), "muscle")
    # Trachea and the main bronchi, with their walls.
    for radius, tissue in ((10.5, "cartilage"), (8.5, "gas")):
        c.paint(c.tube((0, 10, 104), (0, 2, 300), radius), tissue)
        for side in (-1, 1):
            c.paint(c.tube((0, 10, 104), (side * 44, 10, 72), radius - 2.5, radius - 4), tissue)
    c.paint(c.ellipsoid((-20, -10, 262), (15, 14, 26)), "spleen")
    c.paint(c.ellipsoid((20, -10, 262), (15, 14, 26)), "spleen")


def _paint_abdomen(c: Canvas, cavity: Field, dome: Field) -> None:
    rng = c.rng
    under = np.maximum(c.z - dome + 3, cavity + 5)
    # Bowel first: other organs lie over it.
    for _ in range(80):
        place = (rng.uniform(-100, 100), rng.uniform(-65, 20), rng.uniform(-290, -62))
        loop = c.ellipsoid(place, (rng.uniform(11, 24), rng.uniform(10, 17), rng.uniform(10, 24)), rng.uniform(-60, 60))
        c.paint(loop.inside(under + 3), "bowel")
        if rng.random() < 0.4:
            bubble = (place[0], place[1] - 4, place[2])
            c.paint(c.ellipsoid(bubble, (rng.uniform(5, 13), 7, rng.uniform(5, 12))).inside(under + 6), "gas")
    for x, high in ((-108.0, -90.0), (108.0, -70.0)):
        colon = c.tube((x, 15, -240), (x, 5, high), 20).inside(under + 3)
        c.paint(colon, "bowel")
        c.paint(Shape(colon.box, colon.distance + 8 + 5 * c.noise(24)[colon.box]), "gas")
    _paint_liver(c, under)
    c.paint(c.ellipsoid((98, 42, -18), (27, 46, 50), 20).inside(under), "spleen")
    stomach = c.ellipsoid((58, -22, -22), (44, 38, 46), -25).inside(under + 3)
    c.paint(stomach, "muscle")
    c.paint(Shape(stomach.box, stomach.distance + 5), "fluid")
    c.paint(Shape(stomach.box, np.maximum(stomach.distance + 5, c.y[stomach.box] + 34)), "gas")
    c.paint(c.tube((-30, -8, -70), (70, 18, -48), 11, 8).inside(under + 3), "spleen")
    for side, height in ((-1, -92.0), (1, -78.0)):
        middle = (side * (62 + rng.uniform(-4, 4)), 42, height + rng.uniform(-8, 8))
        c.paint(c.ellipsoid(middle, (40, 37, 68), side * 35).inside(cavity + 5), "fat")
        kidney = c.ellipsoid(middle, (28, 23, 54), side * 35).inside(cavity + 6)
        c.paint(kidney, "kidney")
        c.paint(c.ellipsoid((middle[0] - side * 10, 36, middle[2]), (17, 8, 26), side * 35), "fat")
        c.paint(c.ellipsoid((middle[0] - side * 17, 33, middle[2]), (8, 6, 12)), "fluid")
        c.paint(c.tube((side * 27, 42, -60), (side * 50, 26, -260), 11, 26).inside(cavity + 2), "muscle")
    c.paint(c.ellipsoid((0, -30, -318), (42, 36, 38)).inside(cavity + 6), "muscle")
    c.paint(c.ellipsoid((0, -30, -318), (38, 32, 34)).inside(cavity + 10), "fluid")


def _paint_liver(c: Canvas, under: Field) -> None:
    rng = c.rng
    size = float(rng.uniform(0.93, 1.07))
    # The visceral face is a slanted plane; the left lobe thins out towards the left.
    face = np.asarray(-c.z - 95 + 0.55 * (c.x + 60) - 0.1 * c.y + 7 * c.noise(60), np.float32)
    lobe = c.ellipsoid((-58, -4, -18), (92 * size, 84, 92 * size)).inside(under).inside(face)
    lobe = Shape(lobe.box, np.maximum(lobe.distance, 0.8 * (c.x[lobe.box] + 0.55 * c.y[lobe.box]) - 18))
    c.paint(lobe, "liver")
    curve = np.hypot(c.noise(48), c.noise(48)) * 20 - 2.5
    c.paint(Shape(lobe.box, np.maximum(lobe.distance + 9, curve[lobe.box])), "blood")
    c.paint(c.ellipsoid((-42, -52, -66), (15, 20, 22)).inside(under + 3), "fluid")
    if rng.random() < 0.6:
        place = (rng.uniform(-95, -45), rng.uniform(-20, 35), rng.uniform(-40, 5))
        radius = rng.uniform(8, 15)
        spot = c.ellipsoid(place, (radius, radius, radius))
        inner = Shape(spot.box, np.maximum(spot.distance, _within(lobe, c)[spot.box] + 4))
        c.paint(inner, "nodule")
        c.paint(Shape(inner.box, inner.distance + radius * 0.55), "necrosis")


def _within(shape: Shape, c: Canvas) -> Field:
    field = np.full(c.shape, 1e3, np.float32)
    field[shape.box] = shape.distance
    return field


def _paint_ribs(c: Canvas, wall: Field) -> None:
    """Paint a rib cage in the wall: arcs that fall from the spine to the front, one every 27 mm."""
    pitch = 27.0
    # Behind, a rib is higher than in front.
    height = c.z - 0.42 * c.y + 0.06 * np.abs(c.x)
    phase = (np.mod(height + 8, pitch) - pitch / 2).astype(np.float32)
    middle = wall + 7.5
    ring = np.hypot(middle / 4.6, phase / 6.2)
    distance = (ring - 1) * 4.6
    costal = -45 + 0.35 * (c.y + 90)
    limits = np.maximum.reduce([costal - c.z, c.z - 235, 14 - np.abs(c.x)])
    bone = np.asarray(np.maximum(distance, limits), np.float32)
    front = np.asarray(-(c.y + 62), np.float32)
    c.paint(c.whole(np.maximum(bone, front)), "cortical")
    c.paint(c.whole(np.maximum(bone + 2.2, front)), "trabecular")
    c.paint(c.whole(np.maximum(bone, -front)), "cartilage")
    plate = np.maximum.reduce(
        [np.abs(c.x) - 17 - 3 * np.sin(c.z / 14), np.abs(wall + 8) - 5.5, 20 - c.z, c.z - 175, c.y + 40]
    )
    c.paint(c.whole(plate), "cortical", 0.8)
    c.paint(c.whole(plate + 2.5), "trabecular")
    for side in (-1, 1):
        # Shoulder blades and collar bones.
        blade = c.ellipsoid((side * 92, 66, 130), (40, 4.5, 62), side * 22).inside(wall + 2)
        c.paint(blade, "cortical")
        c.paint(c.tube((side * 22, -62, 196), (side * 120, -10, 222), 6).inside(wall + 2), "cortical")


def _paint_spine(c: Canvas, wall: Field) -> None:
    """Paint vertebrae and discs: a body, a canal behind it, arch, transverse and spinous processes."""
    c, box = c.window((0, 70, c.z.mean().item()), (62, 62, 1e4))
    wall = wall[box]
    pitch = 29.0
    back = 41 + 8 * np.sin((c.z + 60) / 105)  # lordosis below, kyphosis above
    y = c.y - back.astype(np.float32)
    phase = (np.mod(c.z, pitch) - pitch / 2).astype(np.float32)
    size = np.clip(1 - c.z / 900, 0.75, 1.25).astype(np.float32)
    column = (np.hypot(c.x / (21 * size), y / (16.5 * size)) - 1) * 16.5
    muscles = np.hypot((np.abs(c.x) - 30) / 27, (y - 32) / 17)
    c.paint(c.whole(np.maximum.reduce([(muscles - 1) * 17, c.z - 250, wall - 2])), "muscle")
    c.paint(c.whole(column + 1), "disc")
    body = np.maximum(column, np.abs(phase) - 11.5).astype(np.float32)
    c.paint(c.whole(body), "cortical", 0.85)
    c.paint(c.whole(body + 2.4), "trabecular")
    canal = (np.hypot(c.x / 10, (y - 25) / 8.5) - 1) * 8.5
    arch = np.maximum((np.hypot(c.x / 17, (y - 25) / 14) - 1) * 14, 10 - y)
    process = np.maximum.reduce([np.abs(c.x) - 3.6, np.abs(y - 44) - 11, np.abs(phase + 4) - 8, wall])
    wings = np.maximum.reduce(
        [np.abs(np.abs(c.x) - 28) - 13, np.abs(y - 20 - 0.2 * np.abs(c.x)) - 4, np.abs(phase) - 6]
    )
    bones = np.minimum.reduce([np.maximum(arch, np.abs(phase) - 11), process, wings]).astype(np.float32)
    c.paint(c.whole(bones), "cortical")
    c.paint(c.whole(bones + 3), "trabecular")
    c.paint(c.whole(canal), "csf")
    c.paint(c.whole((np.hypot(c.x / 6, (y - 25) / 5) - 1) * 5), "white")


def _paint_pelvis(c: Canvas, wall: Field) -> None:
    for side in (-1, 1):
        bowl = c.ellipsoid((side * 62, 10, -235), (62, 66, 80), side * -30).inside(wall + 8)
        shell = np.maximum.reduce([bowl.distance, -bowl.distance - 9, 52 - side * c.x[bowl.box], c.z[bowl.box] + 190])
        wing = Shape(bowl.box, np.asarray(shell, np.float32))
        c.paint(wing, "cortical")
        c.paint(Shape(wing.box, wing.distance + 2.5), "trabecular")
        for radius, tissue in ((31.0, "cortical"), (24.0, "fat"), (23.0, "cortical"), (20.5, "trabecular")):
            c.paint(c.ellipsoid((side * 88, 0, -325), (radius, radius, radius)).inside(wall + 8), tissue)
    sacrum = c.ellipsoid((0, 62, -235), (48, 24, 52)).inside(wall + 5)
    c.paint(sacrum, "cortical", 0.8)
    c.paint(Shape(sacrum.box, sacrum.distance + 3), "trabecular")


def _paint_couch(c: Canvas) -> None:
    """Paint a curved carbon shell with a foam core under the back."""
    top = HALF_DEPTH * 1.02 - 0.00045 * c.x**2 + 4
    plate = np.maximum(np.abs(c.y - top - 10) - 9, np.abs(c.x) - 168)
    c.paint(c.whole(plate), "couch_shell")
    c.paint(c.whole(plate + 3.2), "couch_core")
