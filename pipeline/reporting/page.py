"""The report as one self-contained page: no request, no script but its own, everything from data escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import __version__
from pipeline.artifacts import atomic_path
from pipeline.metrics.statistics import METHOD
from pipeline.records import Scores, unique
from pipeline.reporting.leaderboard import SIGNIFICANT, boards, families
from pipeline.reporting.tables import SOURCE, case_table, columns, regions

_WIDE = 1000  # pixels
_TEMPLATES = Path(__file__).parent / "templates"
_PAGE = ("page_theme.js", "page_tables.js")
_FILM = ("film.js", "film_plane.js", "film_pane.js", "film_scales.js", "film_player.js", "film_input.js")


@dataclass(frozen=True)
class Picture:
    """An image inside the page: data URI, a second one for dark pages (or ''), size, description, and a caption."""

    light: str
    dark: str
    width: int
    height: int
    alt: str
    caption: str = ""

    @property
    def wide(self) -> bool:
        """Whether it needs the whole width of the page."""
        return self.width > _WIDE


@dataclass(frozen=True)
class Pane:
    """One of several pictures behind a row of buttons."""

    title: str
    picture: Picture


@dataclass(frozen=True)
class FilmPane:
    """A film inside the page: plain data for the player, the packed tracks in their order, and what was thinned."""

    header: dict[str, Any]
    tracks: list[str]
    caption: str


@dataclass(frozen=True)
class CasePage:
    """The pictures of one case; ``rank`` says why it was chosen."""

    case: str
    patient: str
    rank: str
    panes: list[Pane]
    charts: list[Picture]
    film: FilmPane | None = None


@dataclass
class Pictures:
    """Everything drawn for a page."""

    overview: list[Picture] = field(default_factory=list)
    cases: list[CasePage] = field(default_factory=list)


def data_uri(media_type: str, content: bytes) -> str:
    """Return an image as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def render(scores: Scores, pictures: Pictures, *, title: str, notes: list[str], settings: dict[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        scores: Of all methods.
        pictures: May be empty: the page then holds tables only.
        title: Of the page.
        notes: Remarks, in addition to those of the scores.
        settings: Plain data, printed at the end.
    """
    filmed = any(case.film for case in pictures.cases)
    css = _read("report.css", *(["film.css"] if filmed else []))
    script = _read(*_PAGE, *(_FILM if filmed else ()))
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = regions(scores)
    tables = boards(scores)
    titles = scores.profile.get("metrics", {})
    methods = unique(s.method for s in scores.scores)
    return environment.get_template("report.html.j2").render(
        css=Markup(css),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704 - our own files
        # The policy allows this one style sheet and this one script by their hashes: nothing from data styles or runs.
        style_hash=_source_hash(css),
        script_hash=_source_hash(script),
        title=title,
        date=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        version=__version__,
        profile=scores.profile,
        cases=unique(s.case for s in scores.scores),
        patients=unique(s.patient for s in scores.scores),
        methods=[m for m in methods if m != SOURCE],
        columns=columns(scores),
        tables=tables,
        intervals=any(entry.interval for board in tables for row in board.rows for entry in row.entries),
        quartiles=any(entry.quartiles for board in tables for row in board.rows for entry in row.entries),
        sets=[(s, titles.get(s.metric, {}).get("title", s.metric), _digits(s.value)) for s in scores.sets],
        comparisons=families(scores),
        significant=SIGNIFICANT,
        statistics=METHOD,
        filmed=filmed,
        case_tables=[(name, case_table(scores, name)) for name in names],
        undefined=[s for s in scores.scores if s.value is None],
        pictures=pictures,
        notes=notes,
        settings=json.dumps(settings, indent=2, ensure_ascii=False, default=str),
    )


def _digits(value: float | None) -> str:
    """Format a distance between sets, whose size nobody knows beforehand."""
    return "–" if value is None else f"{value:.4g}"


def _read(*names: str) -> str:
    return "\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in names)


def _source_hash(text: str) -> str:
    """Return the hash by which a content security policy allows an element with this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def write_page(path: Path, html: str) -> None:
    """Write the page atomically as UTF-8."""
    with atomic_path(path) as partial:
        partial.write_text(html, encoding="utf-8")
