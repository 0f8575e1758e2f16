"""What the detector measures: polychromatic signal, noise, and the correction for beam hardening in water."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.simulation.materials import bone_mass_attenuation, water_mu
from pipeline.simulation.spectrum import Spectrum

_WATER_STEP_MM, _WATER_LONGEST_MM = 5.0, 900.0
_BONE_STEP, _BONE_LONGEST = 0.5, 60.0  # g/cm2
# Noise makes the open beam brighter than it is; the inversion continues to negative lengths.
_SHORTEST_MM = -100.0
_FEWEST_COUNTS = 0.5


@dataclass(frozen=True)
class Detector:
    """Tables over the length of water (mm) and the areal density of bone (g/cm2) along a ray.

    Attributes:
        log_signal: -ln of the energy-integrated signal relative to the open beam, (water, bone).
        log_gain: ln of the signal that one counted quantum carries, times the quanta in the open beam.
        water_mm, water_log: The same -ln signal for water alone, the inversion's table.
    """

    log_signal: NDArray[np.float32]
    log_gain: NDArray[np.float32]
    water_mm: NDArray[np.float64]
    water_log: NDArray[np.float64]

    def primary(
        self, water_mm: NDArray[np.float32], bone: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the primary signal relative to the open beam, and the gain per quantum, both of the input's shape."""
        index = np.stack([water_mm / _WATER_STEP_MM, bone / _BONE_STEP]).astype(np.float32)
        log_signal = ndimage.map_coordinates(self.log_signal, index, order=1, mode="nearest")
        log_gain = ndimage.map_coordinates(self.log_gain, index, order=1, mode="nearest")
        return np.exp(-log_signal), np.exp(log_gain)

    def water_length(self, signal: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the length of water in mm that would give ``signal`` (the water beam-hardening correction)."""
        smallest = float(np.exp(-self.water_log[-1]))
        logarithm = -np.log(np.clip(signal, smallest, None))
        return np.interp(logarithm, self.water_log, self.water_mm).astype(np.float32)


def make_detector(spectrum: Spectrum) -> Detector:
    """Tabulate signal and noise of an energy-integrating detector behind water and bone.

    The signal is the sum over energies of photons x efficiency x energy x exp(-attenuation); its variance is the
    same sum with the energy squared (compound Poisson statistics, so that the gain is variance over mean).
    """
    water = np.arange(0.0, _WATER_LONGEST_MM + 1, _WATER_STEP_MM)
    bone = np.arange(0.0, _BONE_LONGEST + 0.1, _BONE_STEP)
    mu, mass = water_mu(spectrum.energy_kev), bone_mass_attenuation(spectrum.energy_kev)
    weight = spectrum.photons * spectrum.efficiency * spectrum.energy_kev
    weight, second = weight / weight.sum(), weight * spectrum.energy_kev / weight.sum() ** 2
    # exp(-(a + b)) = exp(-a) exp(-b): one matrix product per table instead of a cube over energies.
    through_water = np.exp(-np.outer(water, mu))
    through_bone = np.exp(-np.outer(bone, mass))
    signal = (through_water * weight) @ through_bone.T
    variance = (through_water * second) @ through_bone.T
    lengths = np.concatenate([np.arange(_SHORTEST_MM, 0.0, 5.0), np.arange(0.0, _WATER_LONGEST_MM + 1, 2.5)])
    behind_water = np.exp(-np.outer(lengths, mu)) @ weight
    return Detector(
        (-np.log(signal)).astype(np.float32),
        np.log(variance / signal).astype(np.float32),
        lengths,
        -np.log(behind_water),
    )


def count(
    signal: NDArray[np.float32],
    gain: NDArray[np.float32],
    photons: float,
    random: np.random.Generator | None,
) -> NDArray[np.float32]:
    """Draw the noise of a finite number of quanta.

    Args:
        signal: Expected signal, primary and scatter, relative to the open beam.
        gain: Signal per quantum, times the quanta in the open beam.
        photons: Photons that hit one pixel in the open beam; 0: no noise.
        random: Source of the noise; None: no noise.
    """
    if random is None or photons == 0:
        return signal
    per_quantum = gain / photons
    counts = random.poisson(signal / per_quantum).astype(np.float32)
    return np.maximum(counts, _FEWEST_COUNTS) * per_quantum
