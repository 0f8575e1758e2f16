"""Metrics: how far a predicted volume is from its reference.

One function per metric, one family per file; importing the package fills `METRICS`. To add a metric, write one
function under `registry.metric` and put its name into a profile in ``conf/metrics/``.
"""

from pipeline.metrics import (
    continuity,
    correlation,
    frechet,
    information,
    intensity,
    perceptual,
    segmentation,
    sharpness,
    structure,
    tissue,
    universal_quality,
)
from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import METRICS, Metric, check_metrics, compute
from pipeline.metrics.statistics import compare, summarise

__all__ = [
    "METRICS",
    "Metric",
    "Pair",
    "Undefined",
    "check_metrics",
    "compare",
    "compute",
    "continuity",
    "correlation",
    "frechet",
    "information",
    "intensity",
    "perceptual",
    "segmentation",
    "sharpness",
    "structure",
    "summarise",
    "tissue",
    "universal_quality",
]
