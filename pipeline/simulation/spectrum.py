"""The X-ray beam: tube spectrum after filtration and what the detector makes of each energy."""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CinevoxError, ConfigError

INSTALL = "Install the extra: pip install 'cinevox[simulate]'"
_BIN_KEV = 2.0
_ANODE_DEGREES = 14.0
# The scintillator of the usual flat panels: caesium iodide, 0.6 mm.
_SCINTILLATOR, _SCINTILLATOR_DENSITY, _SCINTILLATOR_CM = "CsI", 4.51, 0.06


@dataclass(frozen=True)
class Spectrum:
    """Photons per energy bin in the open beam and the detector's answer.

    Attributes:
        energy_kev: Bin centres, ascending.
        photons: Fraction of the photons in each bin; sums to 1.
        efficiency: Probability that the detector absorbs a photon of each bin.
    """

    energy_kev: NDArray[np.float64]
    photons: NDArray[np.float64]
    efficiency: NDArray[np.float64]

    @property
    def mean_kev(self) -> float:
        """Mean photon energy of the open beam."""
        return float((self.energy_kev * self.photons).sum())


def need(module: str) -> ModuleType:
    """Import a module of the extra 'simulate', or raise CinevoxError saying how to install it."""
    try:
        with warnings.catch_warnings():
            # Warnings of third parties at import say nothing about this computation.
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise CinevoxError(
            f"CBCT simulation needs the package '{module}', which cannot be imported",
            value=str(error),
            remedy=INSTALL,
        ) from None


@functools.lru_cache(maxsize=8)
def _cached_spectrum(tube_kv: float, filtration: tuple[tuple[str, float], ...]) -> Spectrum:
    spekpy, xraydb = need("spekpy"), need("xraydb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = spekpy.Spek(kvp=tube_kv, th=_ANODE_DEGREES, dk=_BIN_KEV)
        for element, thickness_mm in filtration:
            try:
                source.filter(element, thickness_mm)
            except Exception as error:
                raise ConfigError(
                    "simulate.filtration_mm names a material that spekpy does not know",
                    value=element,
                    allowed="chemical symbols such as Al, Cu, Ti",
                ) from error
        energy, fluence = source.get_spectrum()
    keep = fluence > fluence.max() * 1e-6
    energy, fluence = energy[keep].astype(np.float64), fluence[keep].astype(np.float64)
    mu = xraydb.material_mu(_SCINTILLATOR, energy * 1000, density=_SCINTILLATOR_DENSITY)
    return Spectrum(energy, fluence / fluence.sum(), 1 - np.exp(-mu * _SCINTILLATOR_CM))


def tube_spectrum(tube_kv: float, filtration_mm: dict[str, float]) -> Spectrum:
    """Return the spectrum of a tungsten tube (spekpy) behind filters, on an energy-integrating CsI detector.

    Args:
        tube_kv: Tube voltage.
        filtration_mm: Thickness in mm per chemical symbol.

    Raises:
        ConfigError: A filter's material is unknown.
        CinevoxError: The extra 'simulate' is not installed.
    """
    return _cached_spectrum(float(tube_kv), tuple(sorted((k, float(v)) for k, v in filtration_mm.items())))
