"""Which pairs are remarkable: beyond limits that hold for any cohort, or unlike the other cases of their own.

A flag says what is wrong, by how much, what is allowed, and what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.records import PairQuality
from pipeline.settings import PairLimits

FEWEST_CASES = 5  # for a comparison with the others
ROBUST_Z = 3.5  # Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993
_DIRECTIONS = (("to the right", "to the left"), ("anterior", "posterior"), ("superior", "inferior"))
_SHOWN_MM = 0.5  # a part of a shift that is worth a word


@dataclass(frozen=True)
class _Measure:
    """A measure that is compared between cases: its words, its bad side (+1: large), and what is never remarkable.

    ``least`` is the difference from the median below which no value is an outlier, as a share of the median or, in mm,
    as it stands: where all other cases are alike, the tenth of a voxel would be one.
    """

    name: str
    words: str
    bad: int
    least: float
    unit: str = ""

    def value(self, pair: PairQuality) -> float | None:
        found = getattr(pair, self.name)
        return None if found is None else float(found)


_MEASURES = (
    _Measure("mutual_information", "mutual information", -1, 0.2),
    _Measure("overlap", "overlap of the bodies", -1, 0.03),
    _Measure("edge_agreement", "agreement of edges", -1, 0.1),
    _Measure("length_mm", "shift", 1, 1.0, " mm"),
    _Measure("local_mm", "local shift", 1, 1.0, " mm"),
)


def flag_pairs(pairs: list[PairQuality], limits: PairLimits) -> None:
    """Write into each pair's ``flags`` what is remarkable about it."""
    groups: dict[tuple[str, str], list[PairQuality]] = {}
    for pair in pairs:
        pair.flags = _beyond_limits(pair, limits)
        groups.setdefault((pair.source, pair.target), []).append(pair)
    for group in groups.values():
        for measure in _MEASURES:
            _flag_outliers(group, measure)


def shift_words(pair: PairQuality) -> str:
    """Return a shift as ``8.1 mm (8.0 mm superior)``: where the source lies, seen from the target."""
    assert pair.shift_mm is not None
    parts = [
        f"{abs(part):.1f} mm {towards[part < 0]}"
        for part, towards in zip(pair.shift_mm, _DIRECTIONS, strict=True)
        if abs(part) >= _SHOWN_MM
    ]
    return f"{pair.length_mm:.1f} mm" + (f" ({', '.join(parts)})" if parts else "")


def _beyond_limits(pair: PairQuality, limits: PairLimits) -> list[str]:
    source, target = pair.source, pair.target
    leave_out = f"or leave the case out with cohort.exclude=[{pair.case_id}]"
    if pair.overlap is None:
        return [
            f"{source} and {target} cannot be compared: {pair.reason}. "
            f"Check that they are of one patient and one frame of reference, {leave_out}."
        ]
    flags = []
    if pair.overlap < limits.overlap:
        flags.append(
            f"The bodies in {source} and {target} overlap by {pair.overlap:.2f}, at least {limits.overlap:g} is "
            f"expected: shifted, cut off, stripped of the skull in one of them, or of two patients. Look at the "
            f"picture, {leave_out}."
        )
    if pair.shift_mm is None or pair.local_mm is None or pair.edge_agreement is None or pair.grid_mm is None:
        return flags
    length = pair.length_mm or 0.0
    if pair.edge_agreement < limits.edge_agreement:
        flags.append(
            f"The edges in {source} and {target} agree by {pair.edge_agreement:.2f} at best (chance is 0.33), at least "
            f"{limits.edge_agreement:g} is expected: of two patients, or not registered, and the shift found is a "
            f"guess. Check that the files belong together, {leave_out}."
        )
    # On a coarse grid less than half a voxel is noise.
    allowed = max(limits.shift_mm, pair.grid_mm / 2)
    if length > allowed:
        flags.append(
            f"{source} lies {shift_words(pair)} off {target}, at most {allowed:g} mm is allowed: register "
            f"{source} to {target} and write it again, {leave_out}."
        )
    if pair.local_mm > allowed:
        flags.append(
            f"Parts of {source} lie {pair.local_mm:.1f} mm off {target} in the median, whatever the shift as a whole, "
            f"at most {allowed:g} mm is allowed: rotated, deformed, or of two patients. Look at the picture; register "
            f"with rotation or deformation, {leave_out}."
        )
    return flags


def _flag_outliers(group: list[PairQuality], measure: _Measure) -> None:
    known = [(pair, value) for pair in group if (value := measure.value(pair)) is not None]
    if len(known) < FEWEST_CASES:
        return
    values = np.array([value for _, value in known])
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    least = measure.least if measure.unit else measure.least * middle
    for pair, value in known:
        away = (value - middle) * measure.bad
        if away > max(least, ROBUST_Z * spread):
            z = f", robust z {away / spread:.1f}" if spread else ""
            pair.flags.append(
                f"{pair.source} and {pair.target} differ from the other cases: {measure.words} {value:.3g}"
                f"{measure.unit}, median of {len(known)} cases {middle:.3g}{measure.unit}{z}. Look at the picture: "
                "registration, or another patient?"
            )
