"""How predictions agree with the target voxel by voxel: joint histograms and Bland-Altman plots that add up over cases.

Bland and Altman, Lancet 1986: the difference of two measurements against their mean, with the mean difference (bias)
and the limits of agreement, bias ± 1.96 SD. Here a measurement is a voxel; voxels of a case are not independent, so
the limits describe voxels, not patients.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.reporting.pictures import PictureCase
from pipeline.reporting.style import Theme, dress, label, new_figure

_BINS = 128
_WIDTH_IN, _PANEL_IN = 10.8, 2.05
_LIMIT = 1.96


class Agreement:
    """Counts of (target, prediction) and of (mean, difference) per method: ``add`` or ``merge``, then ``draw``."""

    def __init__(self, unit: str, limits: tuple[float, float], difference: float) -> None:
        """Take the unit, the range of values and the end of the symmetric range of differences, in that unit."""
        self.unit = unit
        self.values = np.linspace(*limits, _BINS + 1)
        self.differences = np.linspace(-difference, difference, _BINS + 1)
        self.joint: dict[str, NDArray[np.int64]] = {}
        self.spread: dict[str, NDArray[np.int64]] = {}
        self.moments: dict[str, NDArray[np.float64]] = {}  # voxels, sum and sum of squares of their differences

    def add(self, case: PictureCase) -> None:
        """Count the voxels inside the case's region; what lies beyond the ranges counts in the end bins."""
        for name, volume in case.volumes.items():
            prediction, target = volume[case.region], case.target[case.region]
            known = np.isfinite(prediction) & np.isfinite(target)
            prediction, target = prediction[known], target[known]
            difference = prediction - target
            mean = (prediction + target) / 2
            _add(self.joint, name, _counts(target, self.values, prediction, self.values))
            _add(self.spread, name, _counts(mean, self.values, difference, self.differences))
            exact = difference.astype(np.float64)
            _add(self.moments, name, np.array([exact.size, exact.sum(), np.square(exact).sum()]))

    def merge(self, other: Agreement) -> None:
        """Add what another one counted, with the same ranges."""
        for own, added in zip(self._totals(), other._totals(), strict=True):
            for name, counts in added.items():
                _add(own, name, counts)

    def _totals(self) -> tuple[dict[str, NDArray], ...]:
        return self.joint, self.spread, self.moments

    def limits(self, name: str) -> tuple[float, float] | None:
        """Return bias and half the width of the limits of agreement; None below two voxels."""
        n, total, squares = self.moments[name].tolist()
        if n < 2:
            return None
        return total / n, _LIMIT * math.sqrt(max(0.0, squares - total**2 / n) / (n - 1))

    def draw(self, theme: Theme) -> Figure:
        """Draw a column per method: its joint histogram above its Bland-Altman plot."""
        names = list(self.joint)
        columns = max(3, len(names))
        figure = new_figure(max(_WIDTH_IN, _PANEL_IN * columns), 5.6, theme, dpi=110)
        figure.set_layout_engine("none")
        grid = figure.add_gridspec(2, columns, left=0.075, right=0.985, top=0.94, bottom=0.09, wspace=0.28, hspace=0.38)
        for column, name in enumerate(names):
            first = column == 0
            above, below = figure.add_subplot(grid[0, column]), figure.add_subplot(grid[1, column])
            ylabel = f"prediction [{self.unit}]" if first else ""
            dress(above, theme, f"target [{self.unit}]", ylabel, label(name, 24))
            _image(above, self.joint[name], self.values, self.values)
            above.plot(self.values[[0, -1]], self.values[[0, -1]], color=theme.ink, linewidth=0.7, linestyle="--")
            ylabel = f"prediction − target [{self.unit}]" if first else ""
            dress(below, theme, f"mean of both [{self.unit}]", ylabel)
            _image(below, self.spread[name], self.values, self.differences)
            if found := self.limits(name):
                self._lines(below, theme, *found)
            filled = self.values[self._filled()]
            for axes in (above, below):
                axes.set_xlim(filled[0], filled[-1])
            above.set_ylim(filled[0], filled[-1])
        return figure

    def _filled(self) -> slice:
        """Return the edges between which any method or target has voxels, the same for all panels."""
        counts = sum(self.joint.values(), np.zeros((_BINS, _BINS), np.int64))
        bins = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
        return slice(bins[0], bins[-1] + 2) if bins.size else slice(0, _BINS + 1)

    def _lines(self, axes: Axes, theme: Theme, bias: float, half: float) -> None:
        axes.axhline(bias, color=theme.ink, linewidth=1.1)
        for end in (bias - half, bias + half):
            axes.axhline(end, color=theme.ink, linewidth=0.8, linestyle="--")
        digits = 1 if self.unit == "HU" else 3
        title = f"bias {bias:+.{digits}f}, ±1.96 SD {half:.{digits}f} {self.unit}".replace("-", "−")
        axes.set_title(title, loc="left", color=theme.ink, fontsize=8.5)


def _image(axes: Axes, counts: NDArray[np.int64], x: NDArray, y: NDArray) -> None:
    shown = np.ma.masked_equal(counts.T, 0)
    norm = LogNorm(1, max(2, int(counts.max(initial=0))))
    axes.grid(visible=False)
    axes.imshow(
        shown,
        cmap="viridis",
        norm=norm,
        origin="lower",
        extent=(x[0], x[-1], y[0], y[-1]),
        aspect="auto",
        interpolation="nearest",
    )


def _counts(x: NDArray, x_edges: NDArray, y: NDArray, y_edges: NDArray) -> NDArray[np.int64]:
    """Return how many pairs fall into each bin; bins are of equal width, what lies outside goes to the ends."""
    place = _BINS * _bin(x, x_edges) + _bin(y, y_edges)
    return np.bincount(place, minlength=_BINS**2).reshape(_BINS, _BINS)


def _bin(values: NDArray, edges: NDArray) -> NDArray[np.int64]:
    scaled = (values - edges[0]) * (_BINS / (edges[-1] - edges[0]))
    return np.clip(scaled, 0, _BINS - 1).astype(np.int64)


def _add(totals: dict[str, NDArray], name: str, counts: NDArray) -> None:
    totals[name] = totals[name] + counts if name in totals else counts
