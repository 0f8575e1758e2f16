"""How figures look: two themes, a palette that colour-blind readers can tell apart, and figures as image bytes."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pipeline.artifacts import atomic_path
from pipeline.reporting.pictures import SOURCE, TARGET


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance; ``lines`` are for the methods in turn."""

    name: str
    paper: str
    ink: str
    faint: str
    band: str
    source: str
    lines: tuple[str, ...]


# Okabe and Ito's palette; on dark paper its blue is too dark, so the order differs.
LIGHT = Theme(
    "light", "#ffffff", "#1b2430", "#c9d1da", "#e8f1e4", "#7a8694",
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8a6d00", "#56B4E9"),
)  # fmt: skip
DARK = Theme(
    "dark", "#171d25", "#dfe6ee", "#3a4552", "#22332a", "#93a0ae",
    ("#56B4E9", "#E69F00", "#2cc79b", "#e39cc4", "#F0E442", "#4f9fe0"),
)  # fmt: skip
THEMES = (LIGHT, DARK)
_DASHES = ("-", "--", "-.", ":")
_LABEL_LENGTH = 30


def line_style(name: str, methods: list[str], theme: Theme) -> dict[str, Any]:
    """Return colour, dash and width of a method's line, the same in every figure of a page."""
    if name == TARGET:
        return {"color": theme.ink, "linestyle": "-", "linewidth": 1.6}
    if name == SOURCE:
        return {"color": theme.source, "linestyle": "-", "linewidth": 1.0}
    place = methods.index(name)
    dash = _DASHES[place % len(_DASHES)]
    return {"color": theme.lines[place % len(theme.lines)], "linestyle": dash, "linewidth": 1.4}


def label(name: str, length: int = _LABEL_LENGTH) -> str:
    """Shorten a name for a figure; a leading underscore would hide it from a legend."""
    short = name if len(name) <= length else name[: length - 1] + "…"
    return " " + short if short.startswith("_") else short


def new_figure(width: float, height: float, theme: Theme, dpi: int = 150) -> Figure:
    """Return an empty figure of ``width`` x ``height`` inches with a canvas of its own (no pyplot state)."""
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, theme: Theme, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    """Give axes the page's look: no box, a light horizontal grid, small type."""
    axes.set_facecolor(theme.paper)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.faint)
    axes.tick_params(colors=theme.ink, labelsize=8, length=3, width=0.6)
    axes.grid(axis="y", color=theme.faint, linewidth=0.5, alpha=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, color=theme.ink, fontsize=8.5)
    axes.set_ylabel(ylabel, color=theme.ink, fontsize=8.5)
    axes.set_title(title, color=theme.ink, fontsize=9.5, loc="left", parse_math=False)


def legend(axes: Axes, theme: Theme, **options: Any) -> None:
    """Add a legend without a frame; names are shown as they are, never read as formulas."""
    if not axes.get_legend_handles_labels()[0]:
        return  # nothing was drawn: an empty region
    box = axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink, **options)
    for text in box.get_texts():
        text.set_parse_math(False)


def rasterise(figure: Figure) -> Image.Image:
    """Draw a figure and return its pixels (RGB)."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    with warnings.catch_warnings():
        # A label in a script that the font lacks is drawn as boxes; the page's text names it properly.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def save_png(image: Image.Image, path: Path) -> None:
    """Write the lossless original, atomically."""
    with atomic_path(path) as partial:
        image.save(partial, format="PNG", compress_level=3)


def photo_bytes(image: Image.Image, quality: int = 72) -> tuple[str, bytes]:
    """Return media type and bytes for a picture of anatomy: WebP, two thirds of a JPEG that looks the same."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, method=4)
    return "image/webp", buffer.getvalue()


def chart_bytes(image: Image.Image) -> tuple[str, bytes]:
    """Return media type and bytes for a drawing: PNG with 96 colours, a third of the size and as sharp."""
    buffer = io.BytesIO()
    image.quantize(96, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return "image/png", buffer.getvalue()
