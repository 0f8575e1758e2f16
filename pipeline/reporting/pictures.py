"""The volumes of one case as a reader sees them: source, predictions and target on one grid, and views through them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.geometry import Grid
from pipeline.imaging.film import bounding_box
from pipeline.metrics.comparison import CaseFiles, on_grid, read_film, read_target

SOURCE, TARGET = "source", "target"
_MARGIN_MM = 8.0


@dataclass(frozen=True)
class PictureCase:
    """A case to draw: ``volumes`` (source first, then methods) and ``target`` in film order, float32, in ``unit``.

    ``region`` is where 'MAE' is taken and ``frame`` what the pictures show (Boolean, film order); ``affine`` maps
    (slice, row, column) to mm in RAS+.
    """

    case: str
    patient: str
    volumes: dict[str, NDArray[np.float32]]
    target: NDArray[np.float32]
    region: NDArray[np.bool_]
    frame: NDArray[np.bool_]
    region_name: str
    affine: NDArray[np.float64]
    unit: str
    other_source: NDArray[np.float32] | None = None  # a source in another unit: shown on a scale of its own
    notes: list[str] = field(default_factory=list)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Slice, row and column spacing."""
        return Grid(self.target.shape, self.affine).spacing_mm

    @property
    def source_scale(self) -> tuple[float, float]:
        """Ends of the grey scale of a source in another unit: 1st and 99th percentile inside the region."""
        assert self.other_source is not None
        return _scale(self.other_source[self.region], (1, 99))

    @property
    def target_range(self) -> tuple[float, float]:
        """Lowest value of the target and its 99.9th percentile inside the region, for units without a known range."""
        return _scale(self.target[self.region], (0, 99.9))

    def error(self, name: str) -> NDArray[np.float32]:
        """Return ``volume - target`` in the case's unit; NaN where the target has no voxels."""
        return self.volumes[name] - self.target

    def slice_errors(self, name: str) -> NDArray[np.float64]:
        """Return the mean absolute difference of each slice inside the region; NaN where there is none."""
        errors = np.abs(self.error(name))
        known = self.region & np.isfinite(errors)
        counts = known.sum(axis=(1, 2))
        sums = np.where(known, errors, 0).sum(axis=(1, 2), dtype=np.float64)
        return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)

    def errors_inside(self, name: str) -> NDArray[np.float32]:
        """Return the differences of the region's voxels as one vector."""
        values = self.error(name)[self.region]
        return values[np.isfinite(values)]


def _scale(values: NDArray[np.float32], percentiles: tuple[float, float]) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, percentiles).tolist() if known.size else (0.0, 1.0)
    return low, high if high > low else low + 1.0


@dataclass(frozen=True)
class View:
    """A plane through a volume: title, axis and index of the cut, and the row and column spacing in mm."""

    title: str
    plane: str
    axis: int
    index: int
    box: tuple[slice, slice, slice]
    spacing_mm: tuple[float, float]

    def cut(self, array: NDArray) -> NDArray:
        """Return the plane's pixels, the head or the front of the patient on top."""
        pixels: NDArray = np.take(array, self.index, axis=self.axis)
        rows, columns = (self.box[a] for a in range(3) if a != self.axis)
        pixels = pixels[rows, columns]
        # Film order runs upwards along the body; a picture's rows run downwards.
        return pixels if self.axis == 0 else pixels[::-1]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the plane in mm."""
        rows, columns = (self.box[a] for a in range(3) if a != self.axis)
        return (rows.stop - rows.start) * self.spacing_mm[0], (columns.stop - columns.start) * self.spacing_mm[1]


def load_picture(
    methods: dict[str, CaseFiles], *, unit: str, body_threshold_hu: float, show_source: bool
) -> PictureCase:
    """Read the volumes of one case onto the grid of its first method.

    Args:
        methods: Files of the case per method.
        unit: Of the target.
        body_threshold_hu: For the body's outline.
        show_source: Whether the source shares the target's unit, so that it has a difference too.

    Raises:
        DataError: A volume is missing or cannot be read.
    """
    first = next(iter(methods.values()))
    predictions: dict[str, NDArray[np.float32]] = {}
    notes = []
    grid = None
    for method, files in methods.items():
        volume = read_film(files.prediction, "prediction", unit)
        grid = volume.grid if grid is None else grid
        volume, difference = on_grid(volume, grid, outside=np.nan)
        if difference:
            notes.append(f"For the pictures of case '{first.case}', '{method}' was resampled ({difference}).")
        predictions[method] = volume.array.astype(np.float32)
    if grid is None:
        raise DataError("There is no prediction to draw")
    target = read_target(first, grid, unit=unit, body_threshold_hu=body_threshold_hu, may_resample=True)
    volumes = {}
    other_source = None
    if first.source is not None:
        source, _ = on_grid(read_film(first.source, "source", unit), grid, outside=np.nan)
        if show_source:
            volumes[SOURCE] = source.array.astype(np.float32)
        else:
            other_source = source.array.astype(np.float32)
    usable = [name for name in ("mask", "body") if name in target.regions and not target.regions[name].reason]
    name = usable[0] if usable else "whole"
    mask = target.regions[name].mask
    region = np.ones(grid.shape, bool) if mask is None else mask
    body = target.regions.get("body")
    frame = region if body is None or body.mask is None or body.reason else body.mask | region
    return PictureCase(
        case=first.case,
        patient=first.patient,
        volumes=volumes | predictions,
        target=target.volume.array.astype(np.float32),
        region=region,
        frame=frame,
        region_name=name,
        affine=grid.affine,
        unit=unit,
        other_source=other_source,
        notes=notes,
    )


def centre(case: PictureCase) -> tuple[int, int, int]:
    """Return the voxel in the middle of the region's bounding box."""
    box = bounding_box(case.region) or tuple(slice(0, n) for n in case.region.shape)
    a, b, c = ((s.start + s.stop - 1) // 2 for s in box)
    return a, b, c


def views(case: PictureCase, axial: int) -> list[View]:
    """Return ``axial`` slices spread evenly over the region, one coronal and one sagittal plane through its middle."""
    box = crop(case)
    slices = np.flatnonzero(case.region.any(axis=(1, 2)))
    slices = slices if slices.size else np.arange(case.region.shape[0])
    last = len(slices) - 1
    chosen = sorted({int(slices[round(last * (i + 1) / (axial + 1))]) for i in range(axial)})
    _, row, column = centre(case)
    slice_mm, row_mm, column_mm = case.spacing_mm
    total = case.region.shape[0]
    planes = [View(f"axial {k + 1}/{total}", "axial", 0, k, box, (row_mm, column_mm)) for k in chosen]
    planes.append(View("coronal", "coronal", 1, row, box, (slice_mm, column_mm)))
    planes.append(View("sagittal", "sagittal", 2, column, box, (slice_mm, row_mm)))
    return planes


def crop(case: PictureCase) -> tuple[slice, slice, slice]:
    """Return the box that pictures show: all slices, in the plane the frame with a margin."""
    box = bounding_box(case.frame)
    shape = case.region.shape
    if box is None:
        return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    cropped = []
    for part, n, mm in zip(box[1:], shape[1:], case.spacing_mm[1:], strict=True):
        margin = round(_MARGIN_MM / mm)
        cropped.append(slice(max(0, part.start - margin), min(n, part.stop + margin)))
    return slice(0, shape[0]), cropped[0], cropped[1]
