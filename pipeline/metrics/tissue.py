"""Errors by tissue: MAE and ME where the reference is air, soft tissue or bone."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from pipeline.metrics.pair import Pair, Undefined
from pipeline.metrics.registry import INTENSITY, metric

# In HU of the reference, lower end included. This project's limits: -200 lies between aerated lung and fat, 250 between
# contrast-filled vessels and cortical bone. Papers differ, so compare tissue by tissue only within one profile.
TISSUES = {"air": (-math.inf, -200.0), "soft_tissue": (-200.0, 250.0), "bone": (250.0, math.inf)}


def tissue_error(pair: Pair, *, tissue: str, absolute: bool) -> float:
    """Mean (absolute) error in HU over the region's voxels whose reference belongs to one of `TISSUES`.

    Nothing is clipped. Source: this project; the mean by tissue is common, its limits are not.

    Raises:
        Undefined: The region is empty, or holds none of the tissue.
    """
    low, high = TISSUES[tissue]
    totals, count = [], 0
    for p, r in pair.chunks():
        error = (p - r)[(r >= low) & (r < high)]
        totals.append(float((np.abs(error) if absolute else error).sum()))
        count += error.size
    if not count:
        raise Undefined(f"the reference has no {tissue.replace('_', ' ')} in the region")
    return math.fsum(totals) / count


def _span(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:g} HU"
    return f"at least {low:g} HU" if math.isinf(high) else f"from {low:g} to below {high:g} HU"


for _tissue, _limits in TISSUES.items():
    _where = f"over the region's voxels whose reference is {_span(*_limits)}, not clipped (limits: this project)"
    metric(
        name=f"mae_{_tissue}",
        title=f"MAE {_tissue.replace('_', ' ')}",
        unit=INTENSITY,
        better="lower",
        definition=f"mean absolute difference {_where}",
        hu=True,
    )(partial(tissue_error, tissue=_tissue, absolute=True))
    metric(
        name=f"me_{_tissue}",
        title=f"ME {_tissue.replace('_', ' ')}",
        unit=INTENSITY,
        better="zero",
        definition=f"mean of prediction minus reference {_where}",
        hu=True,
    )(partial(tissue_error, tissue=_tissue, absolute=False))
