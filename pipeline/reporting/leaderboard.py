"""The leaderboard: methods by metrics with spread and interval, for every region and cohort, and their comparisons."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.records import Comparison, Scores, Summary, unique
from pipeline.reporting.tables import Column, columns, number, regions

SIGNIFICANT = 0.05
_NONE = "–"


@dataclass(frozen=True)
class Entry:
    """One mean for a reader: ``value`` sorts, ``interval`` and ``quartiles`` are texts or '', ``best`` marks it."""

    value: float | None
    text: str
    interval: str = ""
    quartiles: str = ""
    remark: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One method: ``n`` says over how many patients, and cases where they are more."""

    method: str
    n: str
    entries: list[Entry]


@dataclass(frozen=True)
class Board:
    """Methods by metrics for one region and one cohort ('': all)."""

    region: str
    cohort: str
    columns: list[Column]
    rows: list[Row]

    @property
    def title(self) -> str:
        """Region and cohort in words."""
        return f"Region {self.region}" + (f", cohort {self.cohort}" if self.cohort else "")


@dataclass(frozen=True)
class Family:
    """The comparisons of one board; ``note`` is what all of them say, and then not said again in the rows."""

    title: str
    note: str
    rows: list[Verdict]

    @property
    def tested(self) -> bool:
        """Whether any of them has a p-value."""
        return any(row.p != _NONE for row in self.rows)


@dataclass(frozen=True)
class Verdict:
    """Two methods compared by one metric, as texts; ``significant`` after correction."""

    metric: str
    pair: str
    n: int
    difference: str
    p: str
    p_holm: str
    note: str
    significant: bool


def boards(scores: Scores) -> list[Board]:
    """Return a board per region, the main one first, and per cohort; metrics that were scored nowhere are left out."""
    heads = columns(scores)
    made = []
    for region in regions(scores):
        for cohort in unique(row.cohort for row in scores.summary if row.region == region):
            rows = [row for row in scores.summary if row.region == region and row.cohort == cohort]
            scored = {row.metric for row in rows}
            made.append(_board(region, cohort, [head for head in heads if head.metric in scored], rows))
    return made


def _board(region: str, cohort: str, heads: list[Column], rows: list[Summary]) -> Board:
    found = {(row.method, row.metric): row for row in rows}
    best = {head.metric: _best([row for row in rows if row.metric == head.metric]) for head in heads}
    lines = []
    for method in unique(row.method for row in rows):
        own = [found.get((method, head.metric)) for head in heads]
        most = max(own, key=lambda row: row.n if row else -1)
        assert most is not None
        entries = [_entry(row, most, best[head.metric]) for row, head in zip(own, heads, strict=True)]
        lines.append(Row(method, _count(most), entries))
    return Board(region, cohort, heads, lines)


def _count(row: Summary) -> str:
    return f"{row.n}" + (f" ({row.cases} cases)" if row.cases > row.n else "")


def _entry(row: Summary | None, most: Summary, best: float | None) -> Entry:
    if row is None:
        return Entry(None, "–", remark="not scored")
    text = number(row.mean, row.unit)
    if row.sd is not None:
        text += f" ± {number(row.sd, row.unit)}"
    remarks = [f"n {_count(row)}"] if row.n != most.n else []
    remarks += [f"{row.undefined} undefined"] if row.undefined else []
    return Entry(
        row.mean,
        _signed(text),
        _signed(f"{number(row.low, row.unit)} to {number(row.high, row.unit)}") if row.low is not None else "",
        _quartiles(row),
        ", ".join(remarks),
        row.mean is not None and row.mean == best,
    )


def _quartiles(row: Summary) -> str:
    if row.median is None:
        return ""
    median, q1, q3 = (number(value, row.unit) for value in (row.median, row.q1, row.q3))
    return _signed(f"{median} ({q1} to {q3})")


def _best(rows: list[Summary]) -> float | None:
    """Return the best mean, or None when there are fewer than two to choose from."""
    means = [row.mean for row in rows if row.mean is not None]
    if len(means) < 2:
        return None
    if rows[0].better == "zero":
        return min(means, key=abs)
    return min(means) if rows[0].better == "lower" else max(means)


def families(scores: Scores) -> list[Family]:
    """Return the comparisons of methods in the order of `boards`, each metric by metric; empty ones are left out."""
    titles = {head.metric: head.title for head in columns(scores)}
    made = []
    for board in boards(scores):
        rows = [row for row in scores.comparisons if (row.region, row.cohort) == (board.region, board.cohort)]
        notes = {row.note for row in rows}
        note = notes.pop() if len(notes) == 1 else ""
        verdicts = [_verdict(row, titles.get(row.metric, row.metric), row.note if not note else "") for row in rows]
        if verdicts:
            made.append(Family(board.title, note, verdicts))
    return made


def _verdict(row: Comparison, title: str, note: str) -> Verdict:
    sign = "+" if row.difference is not None and row.difference > 0 else ""
    return Verdict(
        metric=title,
        pair=f"{row.a} − {row.b}",
        n=row.n,
        difference=_signed(f"{sign}{number(row.difference, row.unit)} {row.unit}".strip()),
        p=_p(row.p),
        p_holm=_p(row.p_holm),
        note=note,
        significant=row.p_holm is not None and row.p_holm < SIGNIFICANT,
    )


def _p(value: float | None) -> str:
    if value is None:
        return _NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _signed(text: str) -> str:
    """Return a number's text with a proper minus."""
    return text.replace("-", "−")
