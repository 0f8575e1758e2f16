"""RTK: forward projection and filtered back-projection (Feldkamp, Davis, Kress 1984) of film-ordered arrays.

RTK rotates about its y axis. An ITK image made from an array (rows, slices, columns) has x = columns, y = slices,
z = rows, so film order (slices, rows, columns) is transposed on the way in and back on the way out. That frame is
a mirror of the patient's, which only means that the gantry turns the other way round.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CinevoxError
from pipeline.settings import SimulateSettings
from pipeline.simulation.gantry import detector_shape
from pipeline.simulation.spectrum import INSTALL, need

_TO_RTK = (1, 0, 2)  # its own inverse
# In full fan a body may reach beyond the detector: its projections are continued over this fraction of the width.
_TRUNCATION_PADDING = 0.25


@functools.lru_cache(maxsize=1)
def toolkit() -> tuple[Any, Any]:
    """Return the modules ``itk`` and ``itk.RTK``; loading takes about 20 s, once per process."""
    itk = need("itk")
    try:
        rtk = itk.RTK
    except AttributeError as error:  # itk without RTK, or without one of its split wheels
        raise CinevoxError("ITK is installed without RTK", value=str(error), remedy=INSTALL) from None
    return itk, rtk


def use_threads(count: int) -> None:
    """Let RTK use ``count`` threads."""
    itk, _ = toolkit()
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(count)


def project(
    densities: NDArray[np.float32],
    spacing_mm: tuple[float, float, float],
    isocentre: tuple[float, float, float],
    angles: NDArray[np.float64],
    settings: SimulateSettings,
) -> NDArray[np.float32]:
    """Return line integrals along the rays of a circular scan (Joseph 1982).

    Args:
        densities: (slices, rows, columns, 2), both channels projected at once.
        spacing_mm: Slice, row, column.
        isocentre: Position of the rotation centre in voxels.
        angles: Gantry angles in degrees.
        settings: Detector and distances.

    Returns:
        (views, detector rows, detector columns, 2), in the density's unit times mm.
    """
    itk, rtk = toolkit()
    vector = itk.Image[itk.Vector[itk.F, 2], 3]
    volume = _image(densities.transpose(*_TO_RTK, 3), _origin(isocentre, spacing_mm), _reorder(spacing_mm), vector)
    rows, columns = detector_shape(settings)
    stack = np.zeros((len(angles), rows, columns, 2), np.float32)
    joseph = rtk.JosephForwardProjectionImageFilter[vector, vector].New()
    joseph.SetInput(0, _projections(stack, settings, vector))
    joseph.SetInput(1, volume)
    joseph.SetGeometry(_geometry(angles, settings))
    joseph.Update()
    return np.asarray(itk.array_from_image(joseph.GetOutput()), np.float32)


def reconstruct(
    projections: NDArray[np.float32],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    isocentre: tuple[float, float, float],
    angles: NDArray[np.float64],
    settings: SimulateSettings,
) -> NDArray[np.float32]:
    """Return the film-ordered reconstruction by FDK with a Hann window.

    A half fan is weighted as by Wang 2002 (displaced detector), a short arc as by Parker 1982.

    Args:
        projections: (views, rows, columns) in mm of water; fewer rows than the detector's are its middle ones.
        shape: Slices, rows, columns.
        spacing_mm: Slice, row, column.
        isocentre: Position of the rotation centre in voxels.
        angles: Gantry angles in degrees.
        settings: Detector, distances and window.
    """
    itk, rtk = toolkit()
    scalar = itk.Image[itk.F, 3]
    geometry = _geometry(angles, settings)
    source = _projections(projections, settings, scalar)
    if settings.fan == "half":
        weighted = rtk.DisplacedDetectorImageFilter[scalar].New()
    elif settings.arc_degrees < 360:
        weighted = rtk.ParkerShortScanImageFilter[scalar].New()
    else:
        weighted = None
    if weighted is not None:
        weighted.SetInput(source)
        weighted.SetGeometry(geometry)
        weighted.Update()
        source = weighted.GetOutput()
    empty = np.zeros([shape[axis] for axis in _TO_RTK], np.float32)
    fdk = rtk.FDKConeBeamReconstructionFilter[scalar].New()
    fdk.SetInput(0, _image(empty, _origin(isocentre, spacing_mm), _reorder(spacing_mm), scalar))
    fdk.SetInput(1, source)
    fdk.SetGeometry(geometry)
    fdk.GetRampFilter().SetTruncationCorrection(_TRUNCATION_PADDING if settings.fan == "full" else 0.0)
    fdk.GetRampFilter().SetHannCutFrequency(settings.hann_cut_off)
    fdk.Update()
    return np.ascontiguousarray(itk.array_from_image(fdk.GetOutput()).transpose(_TO_RTK))


def _geometry(angles: NDArray[np.float64], settings: SimulateSettings) -> Any:
    _, rtk = toolkit()
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    for angle in angles:
        geometry.AddProjection(
            settings.source_axis_mm, settings.source_detector_mm, float(angle), settings.detector_offset_mm, 0.0
        )
    return geometry


def _projections(stack: NDArray[np.float32], settings: SimulateSettings, kind: Any) -> Any:
    pitch = settings.detector_pixel_mm
    origin = (-(stack.shape[2] - 1) / 2 * pitch, -(stack.shape[1] - 1) / 2 * pitch, 0.0)
    return _image(stack, origin, (pitch, pitch, 1.0), kind)


def _image(array: NDArray[np.float32], origin: Sequence[float], spacing: Sequence[float], kind: Any) -> Any:
    itk, _ = toolkit()
    image = itk.image_from_array(np.ascontiguousarray(array, np.float32), ttype=kind)
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(o) for o in origin])
    return image


def _reorder(spacing_mm: tuple[float, float, float]) -> tuple[float, float, float]:
    """Film order (slice, row, column) to ITK's (x, y, z) = (column, slice, row)."""
    slice_mm, row_mm, column_mm = spacing_mm
    return column_mm, slice_mm, row_mm


def _origin(isocentre: tuple[float, float, float], spacing_mm: tuple[float, float, float]) -> tuple[float, ...]:
    position = [-c * mm for c, mm in zip(isocentre, spacing_mm, strict=True)]
    return position[2], position[0], position[1]
