"""Figures of a report: panels of slices with differences, histograms, profiles, continuity, tissues, all cases."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.metrics.intensity import NEAR_HU
from pipeline.records import Scores, unique
from pipeline.reporting.pictures import SOURCE, TARGET, PictureCase, View, centre, views
from pipeline.reporting.style import Theme, dress, label, legend, line_style, new_figure
from pipeline.reporting.tables import Column

# Pictures are read on black, as on a workstation; there zero must be black too, and low and high tell apart
# for readers who cannot tell red from green.
ROOM = Theme("room", "#000000", "#d6dde5", "#5b6673", "#000000", "#93a0ae", ())
DIFFERENCE_STOPS = ((196, 225, 255), (47, 134, 208), (0, 0, 0), (212, 83, 47), (255, 207, 181))
DIFFERENCE_COLOURS = LinearSegmentedColormap.from_list("blue_black_red", np.array(DIFFERENCE_STOPS) / 255)
_WIDTH_IN = 10.5
_BIN_COUNT = 100
_CHART_IN = (4.4, 3.1)
TISSUE_NAMES = {"air": "air", "soft_tissue": "soft tissue", "bone": "bone"}
_TISSUE_METRICS = {kind: [f"{kind}_{tissue}" for tissue in TISSUE_NAMES] for kind in ("mae", "me")}


def panels(
    case: PictureCase, window: tuple[float, float], difference: float, axial: int, *, full: bool = True
) -> Figure:
    """Draw planes (rows) of source, predictions and target (columns), with the difference to the target below each.

    Args:
        case: The volumes.
        window: Level and width of the grey scale in the case's unit.
        difference: End of the symmetric difference scale in the case's unit.
        axial: How many axial slices.
        full: Also the differences, a coronal and a sagittal plane; else only the axial slices.
    """
    arrays = {**case.volumes, TARGET: case.target}
    if case.other_source is not None:
        arrays = {SOURCE: case.other_source, **arrays}
    names = list(arrays)
    planes = [v for v in views(case, axial) if full or v.plane == "axial"]
    column_in = min(3.1, _WIDTH_IN / len(names))
    heights = []
    for view in planes:
        tall, wide = view.size_mm
        heights += [column_in * min(1.35, max(0.22, tall / wide))] * (2 if full else 1)
    bars_in = 0.75
    figure = new_figure(0.35 + column_in * len(names), 0.3 + sum(heights) + bars_in, ROOM, dpi=110)
    figure.set_layout_engine("none")
    width, height = figure.get_size_inches()
    grid = figure.add_gridspec(
        len(heights), len(names), height_ratios=heights, wspace=0.02, hspace=0.03,
        left=0.33 / width, right=1 - 0.02 / width, top=1 - 0.28 / height, bottom=bars_in / height,
    )  # fmt: skip
    level, spread = window
    grey = Normalize(level - spread / 2, level + spread / 2)
    own_grey = grey if case.other_source is None else Normalize(*case.source_scale)
    signed = Normalize(-difference, difference)
    for place, view in enumerate(planes):
        row = place * (2 if full else 1)
        for column, name in enumerate(names):
            axes = figure.add_subplot(grid[row, column])
            own = name == SOURCE and case.other_source is not None
            _image(axes, view, view.cut(arrays[name]), "gray", own_grey if own else grey)
            if place == 0:
                axes.set_title(label(name), color=ROOM.ink, fontsize=10, pad=4, parse_math=False)
            if column == 0:
                axes.set_ylabel(view.title, color=ROOM.ink, fontsize=8.5)
                _sides(axes, view)
            if not full:
                continue
            below = figure.add_subplot(grid[row + 1, column])
            if own:
                below.set_axis_off()
                continue
            if name == TARGET:
                _slice_errors(below, case, view)
                continue
            _image(below, view, view.cut(case.error(name)), DIFFERENCE_COLOURS, signed)
            _outline(below, view, view.cut(case.region))
            if name == next(iter(case.volumes)):
                below.set_ylabel("− target", color=ROOM.ink, fontsize=8.5)
    _bar(figure, (0.06, 0.36), height, "gray", grey, f"grey scale [{case.unit}]")
    if full:
        title = f"difference to the target [{case.unit}]"
        _bar(figure, (0.56, 0.36), height, DIFFERENCE_COLOURS, signed, title)
    return figure


def _image(axes: Axes, view: View, pixels: NDArray, colours: str | Colormap, scale: Normalize) -> None:
    tall, wide = view.size_mm
    axes.set_facecolor(ROOM.paper)
    axes.imshow(pixels, cmap=colours, norm=scale, extent=(0, wide, tall, 0), aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _outline(axes: Axes, view: View, inside: NDArray[np.bool_]) -> None:
    if inside.any() and not inside.all() and min(inside.shape) > 1:
        tall, wide = view.size_mm
        rows, columns = inside.shape
        x = (np.arange(columns) + 0.5) * wide / columns
        y = (np.arange(rows) + 0.5) * tall / rows
        axes.contour(x, y, inside.astype(np.uint8), levels=[0.5], colors=ROOM.faint, linewidths=0.6)


def _sides(axes: Axes, view: View) -> None:
    left, right = ("A", "P") if view.plane == "sagittal" else ("R", "L")
    for x, letter, side in ((0.02, left, "left"), (0.98, right, "right")):
        axes.text(x, 0.97, letter, color="#f2c94c", fontsize=9, ha=side, va="top", transform=axes.transAxes)


def _slice_errors(axes: Axes, case: PictureCase, view: View) -> None:
    """Fill the cell below the target, which has no difference, with the plane's mean errors."""
    axes.set_axis_off()
    inside = view.cut(case.region)
    axes.text(0.06, 0.9, f"MAE in this plane, {case.region_name}", color=ROOM.source, fontsize=8, va="top")
    for place, name in enumerate(case.volumes):
        errors = np.abs(view.cut(case.error(name))[inside])
        errors = errors[np.isfinite(errors)]
        text = f"{errors.mean():.1f} {case.unit}" if errors.size else "–"
        y = 0.9 - (place + 1) * 0.8 / (len(case.volumes) + 1)
        axes.text(0.06, y, f"{text}   {label(name)}", color=ROOM.ink, fontsize=8, va="top", parse_math=False)


def _bar(
    figure: Figure, span: tuple[float, float], height: float, colours: str | Colormap, scale: Normalize, title: str
) -> None:
    axes = figure.add_axes((span[0], 0.36 / height, span[1], 0.11 / height))
    bar = figure.colorbar(ScalarMappable(scale, colours), cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=ROOM.ink, labelsize=7.5, length=2)
    bar.ax.set_title(title, color=ROOM.ink, fontsize=8, pad=3, loc="left")


_ROWS_WITHIN = 6  # of a legend; more of them make the chart higher


def _chart(theme: Theme, legend_rows: int = 0) -> tuple[Figure, Axes]:
    """Return a small chart with fixed margins; finding them for each of dozens would double the drawing time."""
    width, height = _CHART_IN
    height += 0.17 * max(0, legend_rows - _ROWS_WITHIN)
    figure = new_figure(width, height, theme)
    figure.set_layout_engine("none")
    top = 0.3 + 0.17 * legend_rows
    return figure, figure.add_axes((0.74 / width, 0.5 / height, 1 - 0.84 / width, 1 - (0.5 + top) / height))


class Histogram:
    """Counts of differences per method, which add up over cases: ``add`` a case or ``merge``, then ``draw``."""

    def __init__(self, unit: str, limit: float) -> None:
        self.unit, self.limit = unit, limit
        self.edges = np.linspace(-limit, limit, _BIN_COUNT + 1)
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.near: dict[str, int] = {}
        self.voxels: dict[str, int] = {}

    def add(self, case: PictureCase) -> None:
        """Count the differences inside the case's region; what lies beyond the limits counts in the end bins."""
        for name in case.volumes:
            errors = case.errors_inside(name)
            counts = np.histogram(np.clip(errors, -self.limit, self.limit), self.edges)[0]
            self.counts[name] = self.counts.get(name, np.zeros(_BIN_COUNT, np.int64)) + counts
            self.near[name] = self.near.get(name, 0) + int((np.abs(errors) <= NEAR_HU).sum())
            self.voxels[name] = self.voxels.get(name, 0) + errors.size

    def merge(self, other: Histogram) -> None:
        """Add what another one counted, with the same limits."""
        for name, counts in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + counts
            self.near[name] = self.near.get(name, 0) + other.near[name]
            self.voxels[name] = self.voxels.get(name, 0) + other.voxels[name]

    def draw(self, methods: list[str], theme: Theme) -> Figure:
        """Draw all methods over one another on a logarithmic axis, the band of ±50 HU shaded."""
        figure, axes = _chart(theme)
        dress(axes, theme, f"prediction − target [{self.unit}]", "voxels [%]", "Differences")
        for name, counts in self.counts.items():
            if not self.voxels[name]:
                continue
            text = label(name)
            if self.unit == "HU":
                text += f"  {100 * self.near[name] / self.voxels[name]:.1f} % within ±{NEAR_HU:.0f} HU"
            share = 100 * counts / self.voxels[name]
            axes.stairs(
                np.maximum(share, 1e-6), self.edges, baseline=None, label=text, **line_style(name, methods, theme)
            )
        if self.unit == "HU":
            axes.axvspan(-NEAR_HU, NEAR_HU, color=theme.band, zorder=0)
        axes.set_yscale("log")
        axes.set_ylim(1e-3, 300)
        axes.set_xlim(-self.limit, self.limit)
        if self.counts:
            legend(axes, theme, loc="upper left", bbox_to_anchor=(0.0, 1.0), handlelength=1.8)
            axes.set_ylim(1e-3, 100 * 10 ** (0.35 * len(self.counts)))
        return figure


def profile(case: PictureCase, methods: list[str], theme: Theme) -> Figure:
    """Draw intensities along the horizontal line through the region's middle: source, predictions and target."""
    k, row, _ = centre(case)
    figure, axes = _chart(theme, 1 + (len(case.volumes) + 2) // 2)
    mm = case.spacing_mm[2]
    title = f"Profile, slice {k + 1}, row {row + 1}"
    dress(axes, theme, "distance from the patient's right [mm]", case.unit, title)
    inside = np.flatnonzero(case.region[k, row])
    start, stop = (inside[0], inside[-1] + 1) if inside.size else (0, case.target.shape[2])
    margin = round(10 / mm)
    part = slice(max(0, start - margin), stop + margin)
    x = np.arange(case.target.shape[2])[part] * mm
    for name in [SOURCE, TARGET, *methods]:
        array = case.target if name == TARGET else case.volumes.get(name)
        if array is not None:
            axes.plot(x, array[k, row, part], label=label(name), **line_style(name, methods, theme))
    axes.margins(x=0)
    legend(axes, theme, loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.08))
    axes.set_title(axes.get_title("left"), loc="left", color=theme.ink, fontsize=9.5)
    return figure


def continuity(case: PictureCase, methods: list[str], theme: Theme) -> Figure:
    """Draw the mean absolute difference of each slice along the axis: flicker shows as saw teeth."""
    figure, axes = _chart(theme, 1 + (len(case.volumes) + 1) // 2)
    dress(axes, theme, "distance from the lowest slice [mm]", f"MAE of the slice [{case.unit}]", "Along the axis")
    z = np.arange(case.target.shape[0]) * case.spacing_mm[0]
    for name in case.volumes:
        axes.plot(
            z, case.slice_errors(name), marker=".", markersize=3, label=label(name), **line_style(name, methods, theme)
        )
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    legend(axes, theme, loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1.08))
    return figure


def at_a_glance(scores: Scores, region: str, heads: list[Column], theme: Theme) -> Figure:
    """Draw every case as a line from method to method, a small plot for each of the first six metrics."""
    names = unique(score.method for score in scores.scores)
    methods = [name for name in names if name != SOURCE]
    shown = heads[:6]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(10.8, 0.3 + 2.3 * rows, theme, dpi=130)
    values = {(s.metric, (s.cohort, s.case), s.method): s.value for s in scores.scores if s.region == region}
    cases = dict.fromkeys(case for _, case, _ in values)
    for place, head in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        unit = f" [{head.unit}]" if head.unit else ""
        dress(axes, theme, title=f"{head.title}{unit}  {head.arrow}")
        for case in cases:
            y = [np.nan if (v := values.get((head.metric, case, name))) is None else v for name in names]
            axes.plot(range(len(names)), y, color=theme.faint, linewidth=0.8, zorder=1)
            for x, (name, value) in enumerate(zip(names, y, strict=True)):
                colour = line_style(name, methods, theme)["color"]
                axes.plot(x, value, marker="o", markersize=4, color=colour, markeredgewidth=0, zorder=2)
        short = [label(name, max(6, 54 // len(names))) for name in names]
        axes.set_xticks(range(len(names)), labels=short, parse_math=False)
        axes.set_xlim(-0.4, len(names) - 0.6)
    return figure


def tissue_columns(heads: list[Column]) -> dict[str, list[Column]]:
    """Return the metrics of single tissues by what they measure: 'mae' and 'me' of air, soft tissue, bone."""
    found = {kind: [head for head in heads if head.metric in _TISSUE_METRICS[kind]] for kind in _TISSUE_METRICS}
    return {kind: own for kind, own in found.items() if own}


def tissues(scores: Scores, region: str, heads: list[Column], theme: Theme) -> Figure:
    """Draw bars of the mean over patients ± SD by tissue and method; one plot for the MAE, one for the mean error."""
    names = scores.methods()
    methods = [name for name in names if name != SOURCE]
    rows = {(row.method, row.metric): row for row in scores.summary if row.region == region and not row.cohort}
    groups = tissue_columns(heads)
    figure = new_figure(10.8, 3.0, theme, dpi=130)
    width = 0.8 / len(names)
    for place, (kind, own) in enumerate(groups.items()):
        axes = figure.add_subplot(1, len(groups), place + 1)
        dress(axes, theme, title=f"{kind.upper()} by tissue [{own[0].unit}]")
        axes.axhline(0, color=theme.ink, linewidth=0.6)
        for index, name in enumerate(names):
            found = [rows.get((name, head.metric)) for head in own]
            means = [np.nan if row is None or row.mean is None else row.mean for row in found]
            spread = [0.0 if row is None or row.sd is None else row.sd for row in found]
            x = np.arange(len(own)) + (index - (len(names) - 1) / 2) * width
            colour = line_style(name, methods, theme)["color"]
            axes.bar(x, means, 0.9 * width, color=colour, label=label(name))
            axes.errorbar(x, means, spread, fmt="none", ecolor=theme.ink, elinewidth=0.8)
        axes.set_xticks(range(len(own)), labels=[TISSUE_NAMES[head.metric.partition("_")[2]] for head in own])
        if place == 0:
            legend(axes, theme, loc="best")
    return figure
