"""Tables of scores: merging several results, pivoting for a reader, CSV, and the terminal."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from pipeline.artifacts import atomic_path, difference
from pipeline.errors import ConfigError
from pipeline.metrics import compare, summarise
from pipeline.records import Comparison, Score, Scores, Summary, unique

SOURCE = "source"
ARROWS = {"lower": "↓", "higher": "↑", "zero": "→0"}
BETTER = {"lower": "lower is better", "higher": "higher is better", "zero": "closer to zero is better"}
_DIGITS = {"HU": 1, "%": 1, "dB": 2, "a.u.": 4, "": 4}


@dataclass(frozen=True)
class Cell:
    """One number for a reader: ``text`` (with the deviation), whether it is the best, and a remark on its cases."""

    text: str
    best: bool = False
    remark: str = ""


@dataclass(frozen=True)
class Column:
    """A metric: name in the record, title, unit and direction."""

    metric: str
    title: str
    unit: str
    better: str

    @property
    def arrow(self) -> str:
        """The direction of improvement as a sign."""
        return ARROWS[self.better]

    @property
    def hint(self) -> str:
        """The direction of improvement in words."""
        return BETTER[self.better]


@dataclass(frozen=True)
class Table:
    """Methods (rows) by metrics (columns) for one region."""

    region: str
    columns: list[Column]
    rows: list[tuple[str, list[Cell]]]


def number(value: float | None, unit: str) -> str:
    """Format a value with the digits that its unit deserves; '–' for none."""
    return "–" if value is None else f"{value:.{_DIGITS.get(unit, 3)}f}"


def merge(parts: Sequence[Scores]) -> Scores:
    """Join scores of several methods made with the same profile; the source's rows are kept once.

    Raises:
        ConfigError: Profiles differ, a method occurs twice, or two results disagree about a case's source or cohort.
    """
    first = parts[0]
    scores: list[Score] = []
    seen: dict[tuple[str, str, str], Score] = {}
    cohorts: dict[str, str] = {}
    owners: dict[str, int] = {}
    for index, part in enumerate(parts):
        if lines := difference(first.profile, part.profile):
            raise ConfigError(
                f"Scores {index + 1} were made with another profile than scores 1, so they cannot share a table",
                value="; ".join(lines[:8]),
                remedy="Run 'cinevox evaluate' for both with the same metrics=NAME",
            )
        for score in part.scores:
            if score.cohort and cohorts.setdefault(score.case, score.cohort) != score.cohort:
                raise ConfigError(
                    f"Case '{score.case}' is in two cohorts, '{cohorts[score.case]}' and '{score.cohort}'",
                    remedy="Report them apart, or give the cases of one cohort other names",
                )
            if score.method != SOURCE:
                if owners.setdefault(score.method, index) != index:
                    raise ConfigError(
                        f"Method '{score.method}' is in two of the inputs",
                        remedy="Score one of them under another label",
                    )
                scores.append(score)
                continue
            key = (score.case, score.region, score.metric)
            known = seen.setdefault(key, score)
            if known is score:
                scores.append(score)
            elif not _equal(known.value, score.value):
                raise ConfigError(
                    f"The inputs disagree about the source of case '{score.case}' ({score.region}, {score.metric})",
                    value=f"{known.value} and {score.value}",
                    remedy="They were scored against different volumes; score them together",
                )
    scores.sort(key=lambda score: score.method != SOURCE)
    return Scores(
        schema=1,
        profile=first.profile,
        scores=scores,
        summary=summarise(scores),
        comparisons=compare(scores),
        # The source's, which every input holds, are kept once.
        sets=list({(s.method, s.region, s.metric): s for part in parts for s in part.sets}.values()),
        translations=unique(t for part in parts for t in part.translations),
        notes=unique(n for part in parts for n in part.notes),
    )


def _equal(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return abs(a - b) <= 1e-6 * max(1.0, abs(a))


def regions(scores: Scores) -> list[str]:
    """Return the regions with 'mask' first, else 'body': the first is the one that a bare 'MAE' means."""
    have = unique(score.region for score in scores.scores)
    preferred = [region for region in ("mask", "body") if region in have]
    return preferred + [region for region in have if region not in preferred]


def columns(scores: Scores) -> list[Column]:
    """Return the metrics in the order in which they were scored."""
    titles = {name: str(entry.get("title", name)) for name, entry in scores.profile.get("metrics", {}).items()}
    first = {score.metric: score for score in reversed(scores.scores)}
    return [
        Column(name, titles.get(name, name), first[name].unit, first[name].better)
        for name in unique(score.metric for score in scores.scores)
    ]


def summary_table(scores: Scores, region: str) -> Table:
    """Return mean ± SD of methods by metrics for one region; the best mean of each metric is marked."""
    rows = {(row.method, row.metric): row for row in scores.summary if row.region == region and not row.cohort}
    scored = {metric for _, metric in rows}
    heads = [head for head in columns(scores) if head.metric in scored]
    methods = unique(method for method, _ in rows)
    most = max((row.n for row in rows.values()), default=0)
    best = {head.metric: _best([rows.get((m, head.metric)) for m in methods]) for head in heads}
    cells = []
    for method in methods:
        line = []
        for head in heads:
            row = rows.get((method, head.metric))
            if row is None:
                line.append(Cell("–", remark="not scored"))
                continue
            text = number(row.mean, row.unit)
            if row.sd is not None:
                text += f" ± {number(row.sd, row.unit)}"
            remark = f"{row.cases} of {row.cases + row.undefined} cases" if row.undefined else ""
            if row.n < most and not remark:
                remark = f"{row.n} patient{'s' if row.n != 1 else ''}"
            line.append(Cell(text, row.mean is not None and row.mean == best[head.metric], remark))
        cells.append((method, line))
    return Table(region, heads, cells)


def case_table(scores: Scores, region: str) -> list[tuple[str, str, str, list[Cell]]]:
    """Return one row per case and method for one region: case, patient, method, cells; the best per case is marked."""
    heads = columns(scores)
    found = {(s.case, s.method, s.metric): s for s in scores.scores if s.region == region}
    patients = {s.case: s.patient for s in scores.scores}
    methods = unique(s.method for s in scores.scores)
    rows = []
    for case in unique(case for case, _, _ in found):
        present = [m for m in methods if any((case, m, head.metric) in found for head in heads)]
        best = {head.metric: _best([found.get((case, m, head.metric)) for m in present]) for head in heads}
        for method in present:
            line = []
            for head in heads:
                score = found.get((case, method, head.metric))
                if score is None:
                    line.append(Cell("–", remark="not scored"))
                else:
                    winner = score.value is not None and score.value == best[head.metric]
                    line.append(Cell(number(score.value, score.unit), winner, score.reason))
            rows.append((case, patients[case], method, line))
    return rows


def _best(rows: Iterable[Score | Summary | None]) -> float | None:
    """Return the best value, or None when there are fewer than two to choose from."""
    present = [row for row in rows if row is not None]
    values = [v for row in present if (v := row.value if isinstance(row, Score) else row.mean) is not None]
    if len(values) < 2:
        return None
    better = present[0].better
    if better == "zero":
        return min(values, key=abs)
    return min(values) if better == "lower" else max(values)


def plain_text(text: str) -> str:
    """Return text on one line and without control characters, which become spaces."""
    return "".join(character if character.isprintable() else " " for character in text)


def safe_cell(text: str) -> str:
    """Return text that a spreadsheet shows instead of running it as a formula, on one line."""
    text = plain_text(text)
    # Spreadsheets skip leading blanks, and some take the full-width signs of Asian keyboards.
    return "'" + text if text.lstrip()[:1] in tuple("=+-@＝＋－＠") else text


def write_scores_csv(path: Path, scores: Iterable[Score]) -> None:
    """Write one row per score, atomically; text that starts like a formula is quoted, numbers are untouched."""
    _write_csv(path, list(Score.model_fields), scores)


def write_summary_csv(path: Path, summary: Iterable[Summary]) -> None:
    """Write one row per method, region, metric and cohort, as `write_scores_csv` does."""
    _write_csv(path, list(Summary.model_fields), summary)


def write_comparisons_csv(path: Path, comparisons: Iterable[Comparison]) -> None:
    """Write one row per pair of methods, region, metric and cohort, as `write_scores_csv` does."""
    _write_csv(path, list(Comparison.model_fields), comparisons)


def _write_csv(path: Path, head: list[str], rows: Iterable[BaseModel]) -> None:
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(head)
        for row in rows:
            cells = (getattr(row, name) for name in head)
            writer.writerow([safe_cell(c) if isinstance(c, str) else "" if c is None else repr(c) for c in cells])


def print_summary(console: Console, scores: Scores) -> None:
    """Show the summary of every region and, in lines, what is of all cases together.

    A table is coloured on a terminal and has aligned columns in a pipe or log.
    """
    for region in regions(scores):
        table = summary_table(scores, region)
        heads = [f"{c.title} {c.arrow}" + (f" [{c.unit}]" if c.unit else "") for c in table.columns]
        n = len({s.patient for s in scores.scores if s.region == region})
        title = f"Region {region}, mean ± SD over {n} patient{'s' if n != 1 else ''}"
        lines = [
            (method, [c.text + (f" ({c.remark})" if c.remark else "") + (" *" if c.best else "") for c in cells])
            for method, cells in table.rows
        ]
        if console.is_terminal:
            rich = RichTable("method", *(escape(head) for head in heads), title=title)
            for (method, texts), (_, cells) in zip(lines, table.rows, strict=True):
                styled = [Text(t, style="bold green" if c.best else "") for t, c in zip(texts, cells, strict=True)]
                rich.add_row(Text(method), *styled)
            console.print(rich)
            continue
        grid = [["method", *heads], *([method, *texts] for method, texts in lines)]
        widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
        console.file.write(title + "\n")
        for row in grid:
            console.file.write("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() + "\n")
        console.file.write("\n")
    titles = scores.profile.get("metrics", {})
    for found in scores.sets:
        title = str(titles.get(found.metric, {}).get("title", found.metric))
        value = number(found.value, found.unit) if found.value is not None else f"– ({found.reason})"
        line = f"{title} {ARROWS[found.better]}, region {found.region}, {found.n} slices: {found.method} {value}"
        console.file.write(plain_text(line) + "\n")
