"""How often the bootstrap interval of the mean holds the true mean, by number of patients: prints one table.

    python benchmarks/intervals.py [--draws N]

A cohort is drawn from a distribution whose mean is known, as often as ``--draws`` says; 95 % is what the interval
promises. Lognormal (sigma 0.5) is like an error in HU, exponential is worse than any metric met so far.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np

from pipeline.metrics.statistics import FEWEST_PATIENTS, SEED, bootstrap_interval

PATIENTS = (FEWEST_PATIENTS, 8, 12, 20, 50, 100)
DISTRIBUTIONS = {
    "normal": (lambda rng, n: rng.normal(0, 1, n), 0.0),
    "lognormal": (lambda rng, n: rng.lognormal(0, 0.5, n), math.exp(0.125)),
    "exponential": (lambda rng, n: rng.exponential(1, n), 1.0),
}


def coverage(name: str, patients: int, draws: int) -> float:
    """Return the share of cohorts whose interval holds the mean of the distribution."""
    draw, mean = DISTRIBUTIONS[name]
    rng = np.random.default_rng(SEED)
    held = 0
    for _ in range(draws):
        low, high = bootstrap_interval(draw(rng, patients))
        held += low <= mean <= high
    return held / draws


def main(words: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    draws = parser.parse_args(words).draws
    print("| patients | " + " | ".join(DISTRIBUTIONS) + " |\n" + "|---" * (len(DISTRIBUTIONS) + 1) + "|")
    for patients in PATIENTS:
        shares = (f"{coverage(name, patients, draws):.1%}" for name in DISTRIBUTIONS)
        print(f"| {patients} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
