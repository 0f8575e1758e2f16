"""The pairs' quality for people and for spreadsheets: one offline HTML sheet with all pictures, and a CSV."""

from __future__ import annotations

import base64
import csv
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import __version__
from pipeline.artifacts import atomic_path
from pipeline.cohorts.folder import cell
from pipeline.cohorts.pair_outliers import FEWEST_CASES, ROBUST_Z, shift_words
from pipeline.records import PairQualities, PairQuality

CSV, HTML = "pair_quality.csv", "pair_quality.html"
_HERE = Path(__file__).parent
_COLUMNS = (
    "case", "patient", "source", "target", "mutual_information", "overlap", "shift_mm", "right_mm", "anterior_mm",
    "superior_mm", "local_mm", "edge_agreement", "grid_mm", "flagged", "remarks",
)  # fmt: skip


def write_csv(folder: Path, record: PairQualities) -> None:
    """Write one line per pair; what is undefined is empty, and its reason stands among the remarks."""
    with atomic_path(folder / CSV) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        for pair in record.pairs:
            length = None if pair.length_mm is None else round(pair.length_mm, 2)
            parts = pair.shift_mm or (None, None, None)
            words = [cell(word) for word in (pair.case_id, pair.patient, pair.source, pair.target)]
            remarks = cell(" ".join(pair.flags) or pair.reason)
            measured = (pair.mutual_information, pair.overlap, length, *parts, pair.local_mm, pair.edge_agreement)
            writer.writerow([*words, *measured, pair.grid_mm, int(bool(pair.flags)), remarks])


def write_sheet(folder: Path, record: PairQualities, name: str) -> None:
    """Write the sheet: flagged pairs first, each with its numbers, what they mean and its picture."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = (_HERE / "pair_sheet.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    page = environment.get_template("pair_sheet.html.j2").render(
        css=Markup(css),  # noqa: S704 - our own file
        style_hash=f"sha256-{digest}",
        name=name,
        version=__version__,
        record=record,
        pairs=sorted(record.pairs, key=lambda pair: not pair.flags),
        flagged=sum(bool(pair.flags) for pair in record.pairs),
        limits=record.settings["limits"],
        fewest=FEWEST_CASES,
        robust_z=ROBUST_Z,
        shift_words=shift_words,
        number=_number,
    )
    with atomic_path(folder / HTML) as partial:
        partial.write_text(page, encoding="utf-8")


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def table(pairs: list[PairQuality]) -> list[str]:
    """Return the pairs as lines of text, the worst first."""
    case = 2 + max((len(pair.case_id) for pair in pairs), default=4)
    names = 2 + max((len(f"{pair.source}-{pair.target}") for pair in pairs), default=4)
    lines = [f"{'case':<{case}}{'pair':<{names}}{'shift mm':>9}{'local mm':>9}{'overlap':>9}{'edges':>7}{'NMI':>7}"]
    for pair in sorted(pairs, key=lambda p: (not p.flags, -(p.length_mm or 0))):
        numbers = (
            f"{_number(pair.length_mm, 1):>9}{_number(pair.local_mm, 1):>9}{_number(pair.overlap, 2):>9}"
            f"{_number(pair.edge_agreement, 2):>7}{_number(pair.mutual_information, 2):>7}"
        )
        name = f"{pair.source}-{pair.target}"
        lines.append(f"{pair.case_id:<{case}}{name:<{names}}{numbers}{'  *' if pair.flags else ''}")
    return lines
