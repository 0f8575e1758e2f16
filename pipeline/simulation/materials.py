"""From HU to water and bone: the two materials whose mixture stands for the body."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CinevoxError
from pipeline.simulation.spectrum import INSTALL, need

# Below: water of varying density (lung, fat, soft tissue). Above: cortical bone of varying density.
SOFT_HU, BONE_HU = 100.0, 1500.0
# Effective energy of the diagnostic CT (120 kV) in which the HU were measured.
CT_KEV = 70.0
_BONE = "Bone, Cortical (ICRU)"


def water_mu(energy_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the linear attenuation of water, per mm, at energies in keV (xraydb, Elam tables)."""
    xraydb = need("xraydb")
    return np.asarray(xraydb.material_mu("H2O", np.atleast_1d(energy_kev) * 1000.0, density=1.0)) / 10.0


def bone_mass_attenuation(energy_kev: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mass attenuation of cortical bone in cm2/g at energies in keV.

    The composition is ICRU's as spekpy tabulates it; the elements' attenuation is xraydb's.
    """
    xraydb = need("xraydb")
    energies = np.atleast_1d(energy_kev) * 1000.0
    total = np.zeros(energies.shape)
    for atomic_number, mass_fraction in _bone_composition():
        total += mass_fraction * np.asarray(xraydb.mu_elam(atomic_number, energies))
    return total


def decompose(hu: NDArray) -> NDArray[np.float32]:
    """Split each voxel into water and bone that attenuate together as its HU says at the CT's effective energy.

    The bone fraction rises smoothly (cubic smoothstep) from 0 at ``SOFT_HU`` to 1 at ``BONE_HU``.

    Args:
        hu: Any shape, in HU; below -1000 and NaN count as vacuum.

    Returns:
        The input's shape and 2 channels: relative density of water (1 is water), density of bone in g/cm3.
    """
    hu = np.nan_to_num(np.asarray(hu, np.float32), nan=-1000.0)
    attenuation = np.clip(1 + hu / 1000, 0, None)
    t = np.clip((hu - SOFT_HU) / (BONE_HU - SOFT_HU), 0, 1)
    bone = attenuation * t * t * (3 - 2 * t)
    out = np.empty((*hu.shape, 2), np.float32)
    out[..., 0] = attenuation - bone
    out[..., 1] = bone * _bone_density_per_water()
    return out


@functools.lru_cache(maxsize=1)
def _bone_density_per_water() -> float:
    """Return the density of bone (g/cm3) that attenuates like water at the CT's effective energy."""
    energy = np.array([CT_KEV])
    return float(water_mu(energy)[0] * 10 / bone_mass_attenuation(energy)[0])


@functools.lru_cache(maxsize=1)
def _bone_composition() -> tuple[tuple[int, float], ...]:
    """Return (atomic number, mass fraction) of each element, from spekpy's own table of materials."""
    table = Path(str(need("spekpy").__file__)).parent / "data" / "matl_def" / f"{_BONE}.comp"
    try:
        elements = json.loads(table.read_text(encoding="utf-8"))["composition"]["elements"]
    except (OSError, ValueError, KeyError) as error:
        raise CinevoxError(
            "spekpy's table of materials is not where version 2.5 keeps it", value=repr(error), remedy=INSTALL
        ) from None
    return tuple((int(number), float(fraction)) for number, fraction in elements)
