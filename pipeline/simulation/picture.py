"""One picture per scan: CT, CBCT and their difference, axial and coronal, with the field of view's outline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import atomic_path
from pipeline.simulation.scan import Scan

_WINDOW_HU = (-500.0, 500.0)
_DIFFERENCE_HU = 300.0


def draw(path: Path, scan: Scan, body: NDArray[np.bool_], title: str) -> None:
    """Draw the middle axial and coronal plane of a scan.

    Args:
        path: A PNG, written atomically.
        scan: CT, CBCT and field of view on one film-ordered grid.
        body: The patient on the same grid; the coronal plane passes through its middle.
        title: Pseudonymous.
    """
    # The canvas alone draws, without matplotlib's global state and its choice of a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ct, cbct = scan.ct.array.astype(np.float32), scan.cbct.array.astype(np.float32)
    seen = scan.field_of_view.array > 0
    difference = np.where(seen, cbct - ct, np.nan)
    slice_mm, row_mm, column_mm = scan.ct.spacing_mm
    hit = np.flatnonzero(body.any(axis=(0, 2)))
    row = int(hit[0] + hit[-1]) // 2 if hit.size else ct.shape[1] // 2
    planes = [((ct.shape[0] // 2, slice(None), slice(None)), "upper", row_mm / column_mm, "axial")]
    planes.append(((slice(None), row, slice(None)), "lower", slice_mm / column_mm, "coronal"))  # type: ignore[arg-type]
    height = 4.2 * (1 + max(0.25, ct.shape[0] * slice_mm / (ct.shape[1] * row_mm)))
    figure = Figure(figsize=(13.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("CT", ct), ("CBCT", cbct), ("CBCT - CT", difference))
    for number, (index, origin, aspect, plane) in enumerate(planes):
        for column, (name, volume) in enumerate(panels):
            axes = figure.add_subplot(2, 3, number * 3 + column + 1)
            is_difference = volume is difference
            low, high = (-_DIFFERENCE_HU, _DIFFERENCE_HU) if is_difference else _WINDOW_HU
            drawn = axes.imshow(
                volume[index],
                cmap="RdBu_r" if is_difference else "gray",
                vmin=low,
                vmax=high,
                origin=origin,  # type: ignore[arg-type]
                aspect=aspect,
                interpolation="nearest",
            )
            if seen[index].any() and not seen[index].all():
                axes.contour(seen[index], [0.5], colors="tab:orange", linewidths=0.8)
            axes.set_title(f"{name}, {plane}", fontsize=10)
            axes.set_axis_off()
            if number == 0 and column:
                figure.colorbar(drawn, ax=axes, shrink=0.75, label="HU")
    figure.suptitle(f"{title}   (orange: field of view)", fontsize=11)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=80, metadata={"Software": None})
