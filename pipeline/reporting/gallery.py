"""Draw everything that a page shows: choose the cases, read their volumes one at a time, keep the originals as PNG."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.errors import CinevoxError, DataError
from pipeline.metrics.comparison import CaseFiles
from pipeline.progress import track
from pipeline.records import Scores, Translation, unique
from pipeline.reporting.agreement import Agreement
from pipeline.reporting.figures import (
    DIFFERENCE_STOPS,
    Histogram,
    at_a_glance,
    continuity,
    panels,
    profile,
    tissue_columns,
    tissues,
)
from pipeline.reporting.film import make_film
from pipeline.reporting.page import CasePage, FilmPane, Pane, Picture, Pictures, data_uri
from pipeline.reporting.pictures import PictureCase, centre, load_picture
from pipeline.reporting.style import DARK, LIGHT, Theme, chart_bytes, photo_bytes, rasterise, save_png
from pipeline.reporting.tables import SOURCE, columns, regions
from pipeline.settings import ReportSettings

_HU_MODALITIES = ("ct", "cbct")
_HU_LIMITS = (-1024.0, 3071.0)
_AGREEMENT = (
    "Above, prediction against target, the dashed line where they are equal; below, their difference against their "
    "mean (Bland-Altman) with bias and limits of agreement. Bright is many voxels, on a logarithmic scale; voxels of "
    "a case are not independent, so the limits describe voxels, not patients."
)


class Gallery:
    """Draws the pictures of a report; originals go to ``folder`` (``figures/``), remarks into ``notes``."""

    def __init__(self, scores: Scores, settings: ReportSettings, folder: Path) -> None:
        self.scores, self.settings, self.folder = scores, settings, folder
        self.methods = [name for name in scores.methods() if name != SOURCE]
        self.unit = str(scores.profile.get("unit", "HU"))
        self.threshold = float(scores.profile.get("body_threshold_hu", -500))
        self.limits = _HU_LIMITS  # what films keep
        self.windows, self.difference = dict(settings.windows), settings.difference
        if clip := scores.profile.get("clip"):
            self._set_range(float(clip[0]), float(clip[1]))
        self.bytes_left = int(settings.megabytes * 1e6)  # what pictures and films still to come may take
        self.notes: list[str] = []
        self.files: dict[str, dict[str, CaseFiles]] = {}
        self.show_source = False
        self.counted: list[tuple[Histogram, Agreement]] = []  # of every drawn case

    def _set_range(self, low: float, high: float) -> None:
        self.limits = (low, high)
        if self.unit != "HU":  # windows are stated in HU; other units are shown over their range
            self.windows, self.difference = {"range": ((low + high) / 2, high - low)}, (high - low) / 10

    def draw(self) -> Pictures:
        """Draw what can be drawn; what cannot is named in ``notes`` and the page does without."""
        self._find_volumes()
        pictures = Pictures()
        for region in regions(self.scores)[:1]:
            pictures.overview += self.overview(region)
        chosen = self._choose()
        for place, (case, rank) in enumerate(track(list(chosen.items()), "Drawing", len(chosen))):
            try:
                loaded = load_picture(
                    self.files[case], unit=self.unit, body_threshold_hu=self.threshold, show_source=self.show_source
                )
            except (CinevoxError, OSError, ValueError) as error:
                reason = str(error) if isinstance(error, CinevoxError) else type(error).__name__
                self.notes.append(f"No pictures of case '{case}': {reason}")
                continue
            self.notes += loaded.notes
            if not pictures.cases and self.unit != "HU" and not self.scores.profile.get("clip"):
                self._set_range(*loaded.target_range)
            pictures.cases.append(self.case_page(loaded, rank, self.bytes_left // (len(chosen) - place)))
        if len(self.counted) > 1:
            pictures.overview += self._pooled()
        return pictures

    def overview(self, region: str) -> list[Picture]:
        """Draw what the scores of all cases say, whether or not their volumes are at hand."""
        heads = columns(self.scores)
        alt = f"Scores of every case in region {region}, a small plot for each of the first metrics."
        caption = "Each grey line is one case, followed from method to method, by the first metrics of the profile."
        pictures = [
            self._chart(lambda theme: at_a_glance(self.scores, region, heads, theme), "all_cases", alt, caption)
        ]
        if tissue_columns(heads):
            alt = f"Errors by tissue and method in region {region}; the tables have the numbers."
            caption = "Mean over patients, whiskers ± SD; a voxel's tissue is that of the reference."
            bars = self._chart(lambda theme: tissues(self.scores, region, heads, theme), "tissues", alt, caption)
            pictures.append(bars)
        elif self.unit == "HU":
            self.notes.append("The profile has no metrics of single tissues, so there are no bars by tissue.")
        return pictures

    def _pooled(self) -> list[Picture]:
        """Draw what the voxels of all drawn cases say together."""
        pooled, agreement = self._histogram(), self._agreement()
        for own, other in self.counted:
            pooled.merge(own)
            agreement.merge(other)
        shown = f"over the {len(self.counted)} cases that are shown"
        alt = f"Histogram of the differences to the target {shown}."
        chart = self._chart(lambda theme: pooled.draw(self.methods, theme), "differences", alt, f"Taken {shown}.")
        alt = f"Joint histograms and Bland-Altman plots {shown}."
        return [chart, self._chart(agreement.draw, "agreement", alt, f"{_AGREEMENT} Taken {shown}.")]

    def _find_volumes(self) -> None:
        shown: str | None = None  # the target of all pictures: a case's methods are held against one volume
        for place in self.scores.translations:
            try:
                record = Translation.load(Path(place))
            except CinevoxError:
                self.notes.append("The volumes of a translation are no longer where they were, so it has no pictures.")
                continue
            method = record.label or record.method
            shown = record.target_modality if shown is None else shown
            if record.target_modality != shown:
                self.notes.append(
                    f"Pictures are held against {shown}; '{method}' makes another modality, and has none."
                )
                continue
            folder = Path(place) if Path(place).is_dir() else Path(place).parent
            self.show_source = self.show_source or (self.unit == "HU" and record.source_modality in _HU_MODALITIES)
            for case in record.cases:
                files = CaseFiles.of(case, folder)
                if method in self.methods and files.reference is not None:
                    self.files.setdefault(case.case_id, {})[method] = files

    def _choose(self) -> dict[str, str]:
        """Return the cases to draw with their rank: all, or spread from the best to the worst."""
        cases = [case for case in unique(s.case for s in self.scores.scores) if case in self.files]
        names, heads = regions(self.scores), columns(self.scores)
        if not self.settings.cases:
            return {}
        if len(cases) <= self.settings.cases or not names or not self.methods:
            return dict.fromkeys(cases, "")
        head, method = heads[0], self.methods[0]
        values = {
            s.case: s.value
            for s in self.scores.scores
            if s.metric == head.metric and s.region == names[0] and s.method == method and s.value is not None
        }
        ranked = sorted((c for c in cases if c in values), key=lambda c: values[c], reverse=head.better == "higher")
        count = min(self.settings.cases, len(ranked))
        places = sorted({round(i * (len(ranked) - 1) / max(1, count - 1)) for i in range(count)})
        self.notes.append(
            f"Pictures show {len(places)} of {len(cases)} cases, spread from the best to the worst {head.title} "
            f"of '{method}'."
        )
        return {ranked[p]: f"{head.title} rank {p + 1} of {len(ranked)} for '{method}'" for p in places}

    def _histogram(self) -> Histogram:
        return Histogram(self.unit, 2.5 * self.difference)

    def _agreement(self) -> Agreement:
        return Agreement(self.unit, self.limits, 2.5 * self.difference)

    def film(self, case: PictureCase, budget: int) -> FilmPane | None:
        """Return the case's film in at most ``budget`` bytes; None where films are off or it does not fit."""
        if not self.settings.films:
            return None
        try:
            film = make_film(case, self.limits, budget)
        except DataError as error:
            self.notes.append(str(error))
            return None
        self.bytes_left -= film.bytes
        header = film.header() | {
            "case": case.case,
            "start": film.nearest(centre(case)),
            "windows": [(name, level, width) for name, (level, width) in self.windows.items()],
            "difference_end": self.difference,
            "colours": DIFFERENCE_STOPS,
        }
        caption = f"The film holds {film.describe()}, and takes differences between these."
        return FilmPane(header, [part.data for part in film.tracks], caption)

    def case_page(self, case: PictureCase, rank: str, share: int) -> CasePage:
        """Return stills, charts and film of one case in about ``share`` bytes; ``rank`` says why it was chosen."""
        before = self.bytes_left
        panes = []
        for place, (name, window) in enumerate(self.windows.items()):
            # Differences do not depend on the window, so they are drawn once.
            full = place == 0
            figure = panels(case, window, self.difference, self.settings.panels, full=full)
            shown = ", ".join([*case.volumes, "target"])
            alt = f"Case {case.case}: {shown}; {name} window, level {window[0]:g}, width {window[1]:g} {case.unit}"
            alt += ", with the differences to the target below." if full else "."
            title = f"{name} {window[0]:g}/{window[1]:g}" + (" with differences" if full else "")
            panes.append(Pane(title, self._photo(figure, f"{case.case}_{name}", alt)))
        own, agreement = self._histogram(), self._agreement()
        own.add(case)
        agreement.add(case)
        self.counted.append((own, agreement))
        charts = [
            self._chart(
                lambda theme: own.draw(self.methods, theme),
                f"{case.case}_differences",
                f"Case {case.case}: histogram of the differences to the target, logarithmic.",
            ),
            self._chart(
                lambda theme: profile(case, self.methods, theme),
                f"{case.case}_profile",
                f"Case {case.case}: intensity along a horizontal line through the middle of the body.",
            ),
            self._chart(
                lambda theme: continuity(case, self.methods, theme),
                f"{case.case}_along_axis",
                f"Case {case.case}: mean absolute error of each slice along the axis.",
            ),
            self._chart(
                agreement.draw,
                f"{case.case}_agreement",
                f"Case {case.case}: joint histogram and Bland-Altman plot of every method.",
                _AGREEMENT,
            ),
        ]
        film = self.film(case, share - (before - self.bytes_left))
        return CasePage(case.case, case.patient, rank, panes, charts, film)

    def _photo(self, figure: Figure, name: str, alt: str) -> Picture:
        image = rasterise(figure)
        save_png(image, self.folder / f"{file_name(name)}.png")
        return self._counted(Picture(data_uri(*photo_bytes(image)), "", image.width, image.height, alt))

    def _chart(self, draw: Callable[[Theme], Figure], name: str, alt: str, caption: str = "") -> Picture:
        light = rasterise(draw(LIGHT))
        save_png(light, self.folder / f"{file_name(name)}.png")
        dark = rasterise(draw(DARK))
        uris = data_uri(*chart_bytes(light)), data_uri(*chart_bytes(dark))
        return self._counted(Picture(*uris, light.width, light.height, alt, caption))

    def _counted(self, picture: Picture) -> Picture:
        self.bytes_left -= len(picture.light) + len(picture.dark)
        return picture


def file_name(text: str) -> str:
    """Return text as a safe file name without a suffix."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:120]
