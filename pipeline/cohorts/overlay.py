"""A picture of how two volumes of a case lie in space: the outlines of both bodies and both fields."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import atomic_path
from pipeline.geometry import Volume

_COLOURS = ("#0072b2", "#d55e00")
# Name, world axis across, world axis upwards, world axis through the plane.
_VIEWS = (("axial", 0, 1, 2), ("coronal", 0, 2, 1), ("sagittal", 1, 2, 0))


def write_overlay(path: Path, bodies: dict[str, Volume], case_id: str) -> None:
    """Write a PNG with the outline of each body (film-ordered boolean volumes by modality) in mm, RAS+."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    corners = {m: _corners(volume) for m, volume in bodies.items()}
    low = np.max([c.min(axis=1) for c in corners.values()], axis=0)
    high = np.min([c.max(axis=1) for c in corners.values()], axis=0)
    middle = (low + high) / 2
    for number, (name, across, upwards, through) in enumerate(_VIEWS):
        axes = figure.add_subplot(1, 3, number + 1)
        for (modality, volume), colour in zip(bodies.items(), _COLOURS * len(bodies), strict=False):
            box = corners[modality]
            left, right = box[across].min(), box[across].max()
            bottom, top = box[upwards].min(), box[upwards].max()
            axes.plot([left, right, right, left, left], [bottom, bottom, top, top, bottom], ":", color=colour)
            plane, horizontal, vertical = _plane(volume, across, upwards, through, middle[through])
            if plane.any() and min(plane.shape) > 1:
                axes.contour(horizontal, vertical, plane.astype(float), levels=[0.5], colors=colour)
            axes.plot([], [], color=colour, label=modality)
        axes.set_title(f"{name}, {'xyz'[through]} = {middle[through]:.0f} mm")
        axes.set_xlabel(f"{'xyz'[across]} (mm)")
        axes.set_aspect("equal")
        if across == 0:
            # The patient's left on the right, as radiologists look at it.
            axes.invert_xaxis()
    figure.axes[0].legend(loc="upper right")
    figure.suptitle(f"{case_id}: outlines of the bodies (lines) and of the scans (dots)")
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=90, format="png", metadata={"Software": None})


def _corners(volume: Volume) -> NDArray[np.float64]:
    index = np.array(np.meshgrid(*[[0, n - 1] for n in volume.array.shape])).reshape(3, -1)
    return volume.affine[:3, :3] @ index + volume.affine[:3, 3:4]


def _plane(
    volume: Volume, across: int, upwards: int, through: int, position: float
) -> tuple[NDArray, NDArray[np.float64], NDArray[np.float64]]:
    """Return the nearest plane (upwards, across) and its coordinates; oblique grids are drawn as if straight."""
    array_axis = {0: 2, 1: 1, 2: 0}
    ticks = {}
    for world, axis in array_axis.items():
        centre = (np.asarray(volume.array.shape) - 1) / 2
        index = np.repeat(centre[:, None], volume.array.shape[axis], axis=1)
        index[axis] = np.arange(volume.array.shape[axis])
        ticks[world] = (volume.affine[:3, :3] @ index + volume.affine[:3, 3:4])[world]
    nearest = int(np.argmin(np.abs(ticks[through] - position)))
    plane = np.take(volume.array, nearest, axis=array_axis[through])
    if array_axis[upwards] > array_axis[across]:
        plane = plane.T
    return plane, ticks[across], ticks[upwards]
