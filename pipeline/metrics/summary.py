"""From scores of single cases to mean and sample standard deviation."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pipeline.records import Score, Summary


def summarise(scores: Iterable[Score]) -> list[Summary]:
    """Return mean and sample standard deviation (n - 1) per method, region and metric, in order of appearance.

    Undefined scores are counted, never averaged; the deviation of a single case is None.
    """
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.method, score.region, score.metric), []).append(score)
    rows = []
    for (method, region, name), group in groups.items():
        values = [score.value for score in group if score.value is not None]
        n = len(values)
        mean = math.fsum(values) / n if n else None
        sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)) if mean is not None and n > 1 else None
        rows.append(
            Summary(
                method=method,
                region=region,
                metric=name,
                mean=mean,
                sd=sd,
                n=n,
                undefined=len(group) - n,
                unit=group[0].unit,
                better=group[0].better,
            )
        )
    return rows
