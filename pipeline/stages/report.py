"""Write a report of one or more scores: report.html, tables (CSV and LaTeX) and figures/*.png.

    cinevox report input=SCORES [input=ANOTHER ...] output=REPORT

Reads scores.json and, for the pictures, the volumes that were scored (without them the page has tables only). Several
inputs must have been scored with the same profile. The page is one file that opens offline: it holds its images and,
per case, a film of source, predictions, target and difference to scrub through in three linked planes. It runs no
script but its own and makes no request.

Main options: report.title, report.cases (how many are drawn; 0: none), report.panels (axial slices per case),
report.windows (name: level, width), report.difference (end of the difference scale), report.films, report.megabytes
(what pictures and films may take in the page), --dry-run.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.artifacts import claim_output, content_hash
from pipeline.errors import ConfigError
from pipeline.progress import say
from pipeline.records import Scores
from pipeline.reporting.anonymous import anonymous
from pipeline.reporting.gallery import Gallery
from pipeline.reporting.latex import write_latex
from pipeline.reporting.page import Pictures, render, write_page
from pipeline.reporting.tables import merge, write_comparisons_csv, write_summary_csv
from pipeline.settings import Config
from pipeline.tracking.stage import track_stage
from pipeline.tracking.wandb_run import tracks
from pipeline.tracking.words import names_to_show, shareable


def run(config: Config) -> None:
    """Write the report of the scores in ``config.input`` into ``config.output``.

    Raises:
        ConfigError: No input or output, or inputs that cannot share a table.
    """
    if not config.input:
        raise ConfigError("report needs scores", remedy="Add input=SCORES, the output of 'cinevox evaluate'")
    if config.output is None:
        raise ConfigError("report needs an output folder", remedy="Add output=FOLDER")
    parts = [Scores.load(place) for place in config.input]
    scores = merge(parts)
    if config.dry_run:
        say(f"Would report {', '.join(scores.methods()) or 'no method'} into '{config.output}'; nothing written.")
        return
    settings: dict[str, Any] = {
        "report": config.report.model_dump(mode="json", exclude=set() if config.report.notes else {"notes"}),
        "inputs": [content_hash(part.model_dump(mode="json")) for part in parts],
    }
    claim = claim_output(config.output, "report", settings)
    page = config.output / "report.html"
    if claim.finished:
        say(f"'{page}' is finished already; nothing to do.")
        return
    gallery = Gallery(scores, config.report, config.output / "figures")
    pictures = gallery.draw()
    tables = config.output / "tables"
    write_summary_csv(tables / "summary.csv", scores.summary)
    write_comparisons_csv(tables / "comparisons.csv", scores.comparisons)
    write_latex(tables / "summary.tex", scores)
    shown = {"profile": scores.profile, "report": settings["report"], "inputs": [_name(p) for p in config.input]}
    notes = [*config.report.notes, *scores.notes, *dict.fromkeys(gallery.notes)]
    write_page(page, render(scores, pictures, title=config.report.title, notes=notes, settings=shown))
    _track(config, scores, pictures, page)
    claim.finish(bytes=page.stat().st_size)
    say(f"Wrote '{page}' ({page.stat().st_size / 1e6:.1f} MB).")


def _track(config: Config, scores: Scores, pictures: Pictures, page: Path) -> None:
    """Send W&B the page without cases: their names and pictures stay here."""
    if not tracks(config):
        return
    shown = anonymous(scores, names_to_show(config))
    # The charts have the methods' names in their pixels.
    overview = pictures.overview if shown.methods() == scores.methods() else []
    settings = {"profile": scores.profile}
    html = render(shown, Pictures(overview=overview), title="Cinevox report", notes=[], settings=shareable(settings))
    with TemporaryDirectory() as folder:
        write_page(Path(folder) / "report.html", html)
        track_stage(config, "report", {"megabytes": page.stat().st_size / 1e6}, page=Path(folder) / "report.html")


def _name(place: Path) -> str:
    # The last part only: a report travels, and the folders above may say whose machine it was.
    return place.name if place.is_dir() else place.parent.name
