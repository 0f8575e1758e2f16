"""Scores of several methods on many patients, for the tests of the leaderboard and the page."""

import numpy as np

from pipeline.metrics import compare, summarise
from pipeline.records import Score, Scores

METRICS = {"mae": ("MAE", "HU", "lower"), "psnr": ("PSNR", "dB", "higher"), "me": ("ME", "HU", "zero")}
TISSUES = {
    f"{kind}_{tissue}": (f"{kind.upper()} {tissue}", "HU", "lower" if kind == "mae" else "zero")
    for kind in ("mae", "me")
    for tissue in ("air", "soft_tissue", "bone")
}
LEVELS = {"mae": (60.0, 30.0, 90.0), "psnr": (33.0, 39.0, 29.0), "me": (-8.0, 3.0, -2.0)}


def board_scores(methods=("source", "a", "b"), patients=8, *, tissues=True, cohorts=("",), more=(), **profile):
    """Every method's values lie around its level, so that the ranks are certain; ``more`` scores come last."""
    rng = np.random.default_rng(0)
    metrics = METRICS | (TISSUES if tissues else {})
    rows = [
        Score(
            case=f"c{patient}", patient=f"p{patient}", cohort=cohort, method=method, region=region, metric=metric,
            value=LEVELS.get(metric, (50.0, 20.0, 70.0))[place] + rng.uniform(-0.5, 0.5), unit=unit, better=better,
        )
        for place, method in enumerate(methods)
        for cohort in cohorts
        for region in ("mask", "whole")
        for patient in range(patients)
        for metric, (_, unit, better) in metrics.items()
    ]  # fmt: skip
    rows += more
    described = {
        name: {"title": title, "unit": unit, "better": better, "definition": f"what {title} is"}
        for name, (title, unit, better) in metrics.items()
    }
    made = {"name": "synthetic", "unit": "HU", "clip": [-1024, 3071], "metrics": described, "regions": {}} | profile
    return Scores(schema=1, profile=made, scores=rows, summary=summarise(rows), comparisons=compare(rows))
