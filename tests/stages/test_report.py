"""report: one safe, self-contained page of everything that was scored."""

import base64
import hashlib
import json
import re
import subprocess
from html import unescape
from html.parser import HTMLParser

import pytest
from scored_case import make_translation, settings

from pipeline.errors import ConfigError
from pipeline.records import Scores, SetScore, Translation, unique
from pipeline.reporting.gallery import file_name
from pipeline.stages import evaluate, report

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


class Tags(HTMLParser):
    """Collects every start tag with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def policy_of(html):
    return next(a["content"] for t, a in Tags(html).tags if a.get("http-equiv") == "Content-Security-Policy")


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    root = tmp_path_factory.mktemp("scored")
    first = make_translation(root / "a", "first $x^2$")
    second = make_translation(root / "b", HOSTILE, error=10.0)
    evaluate.run(settings(input=[first], output=root / "s1"))
    evaluate.run(settings(input=[second], output=root / "s2"))
    return root


@pytest.fixture(scope="module")
def page(scored):
    # One case is drawn: pictures take the time.
    config = settings("report.cases=1", "report.panels=1", input=[scored / "s1", scored / "s2"], output=scored / "r")
    report.run(config)
    return scored / "r" / "report.html"


def test_page_is_self_contained_and_runs_only_the_film_player(page):
    html = page.read_text()
    tags = Tags(html).tags
    names = {tag for tag, _ in tags}
    assert not names & {"link", "iframe", "object", "embed", "form", "base"}
    scripts = [attributes for tag, attributes in tags if tag == "script"]
    assert [s for s in scripts if s.get("type") not in ("application/json", "text/plain")] == [{}]
    assert not any("src" in s for s in scripts)
    for tag, attributes in tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:image/").startswith("data:image/")
        if "href" in attributes:
            assert attributes["href"].startswith("#")
        if tag == "img":
            assert len(attributes["alt"]) > 20
    assert "http://" not in html and "https://" not in html


def test_policy_allows_only_our_style_and_our_script(page):
    html = page.read_text()
    style, script = (
        base64.b64encode(hashlib.sha256(re.search(pattern, html, re.DOTALL).group(1).encode()).digest()).decode()
        for pattern in (r"<style>(.*?)</style>", r"<script>(.*?)</script>")
    )
    assert policy_of(html) == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_film_header_is_data_and_keeps_to_its_bytes(page):
    header = re.search(r'class="film-header">(.*?)</script>', page.read_text(), re.DOTALL).group(1)
    assert not re.search("[<>&]", header)  # a name cannot end the element
    film = json.loads(header)
    names = [track["name"] for track in film["tracks"]]
    assert names == ["source", "first $x^2$", HOSTILE, "target", "mask"]
    assert film["windows"][0] == ["soft tissue", 40, 400] and film["unit"] == "HU"
    assert (
        "every slice, 4 mm apart; pixels of 6 × 6 mm; values from -1024 to 3071 HU in steps of 1 HU" in page.read_text()
    )


def test_hostile_label_is_text(page):
    html = page.read_text()
    assert HOSTILE not in html
    assert "&lt;img src=x onerror=" in html
    assert all("onerror" not in attributes for _, attributes in Tags(html).tags)


def test_content(page):
    html = page.read_text()
    for text in (
        "2</b> cases",
        "2</b> patients",
        "-1024 to 3071",
        "first $x^2$",
        "untranslated",
        "best",
        "soft tissue",
    ):
        assert text in html
    assert "Pictures show 1 of 2 cases" in html
    assert "<strong>10.0 ± 0.0</strong>" in html
    for name in ("comparisons.csv", "summary.tex"):
        assert (page.parent / "tables" / name).stat().st_size > 100
    summary = (page.parent / "tables/summary.csv").read_text()
    assert summary.count(",mask,mae,") == 3
    figures = {p.name for p in (page.parent / "figures").glob("*.png")}
    assert "all_cases.png" in figures and sum("soft_tissue" in name for name in figures) == 1
    assert page.stat().st_size < 3e6


def test_films_share_what_the_pictures_leave(scored, tmp_path):
    # Pictures take some 0.95 MB here; two films at 1 HU would take 0.05 MB.
    small = ("report.panels=1", "report.windows={bone: [300, 1500]}", "report.megabytes=1.0")
    report.run(settings(*small, input=[scored / "s1"], output=tmp_path / "r"))
    html = (tmp_path / "r/report.html").read_text()
    films = [
        sum(map(len, re.findall(r'class="film-track">(.*?)</script>', part, re.DOTALL)))
        for part in html.split('class="film-header"')[1:]
    ]
    pictures = sum(map(len, re.findall(r'data:image/[^"]*', html)))
    assert len(films) == 2 and all(films)
    assert sum(films) + pictures <= 1.0e6 + 0.13e6  # the charts over all cases come last


def test_page_prints_the_whole_profile(page, scored):
    words = unescape(re.sub(r"<[^>]+>", " ", page.read_text()))
    profile = Scores.load(scored / "s1").profile
    for key in ("title", "note", "comparable", "dimension", "normalisation", "mask", "window"):
        assert profile[key] in words, key
    for entry in profile["metrics"].values():
        assert entry["title"] in words and entry["definition"] in words


def test_sets_of_slices_have_a_table(scored, tmp_path):
    row = SetScore(method=HOSTILE, region="mask", metric="frechet_somehow", value=1.5, n=20, unit="", better="lower")
    scores = Scores.load(scored / "s2").model_copy(update={"sets": [row], "translations": []})
    scores.save(tmp_path)
    report.run(settings(input=[tmp_path], output=tmp_path / "r"))
    words = (tmp_path / "r/report.html").read_text()
    assert "Between two sets of slices" in words and "frechet_somehow" in words and ">1.5<" in words
    assert HOSTILE not in words


def test_volumes_of_another_unit_are_shown_over_the_range_of_the_target(scored, tmp_path):
    scores = Scores.load(scored / "s1")
    profile = {key: value for key, value in scores.profile.items() if key != "clip"} | {"unit": "a.u."}
    scores.model_copy(update={"profile": profile}).save(tmp_path)
    report.run(settings("report.cases=1", "report.panels=1", input=[tmp_path], output=tmp_path / "r"))
    words = (tmp_path / "r/report.html").read_text()
    film = json.loads(re.search(r'class="film-header">(.*?)</script>', words, re.DOTALL).group(1))
    ((name, level, width),) = film["windows"]
    target = next(track for track in film["tracks"] if track["kind"] == "target")
    assert (name, target["low"], target["unit"]) == ("range", level - width / 2, "a.u.")
    assert -1100 < target["low"] < -50 and film["difference_end"] == pytest.approx(width / 10)
    assert "no bars by tissue" not in words


def test_finished_report_is_left_alone(page, scored, capsys):
    stamp = page.stat().st_mtime_ns
    report.run(settings("report.cases=1", "report.panels=1", input=[scored / "s1", scored / "s2"], output=scored / "r"))
    assert page.stat().st_mtime_ns == stamp and "nothing to do" in capsys.readouterr().err


def test_without_volumes_there_are_tables(scored, tmp_path):
    scores = Scores.load(scored / "s1")
    gone = scores.model_copy(update={"translations": [str(tmp_path / "gone")]})
    gone.save(tmp_path)
    report.run(settings(input=[tmp_path / "scores.json"], output=tmp_path / "r"))
    html = (tmp_path / "r/report.html").read_text()
    assert "no longer where they were" in html and "20.0 ± 0.0" in html and "soft tissue 40/400" not in html


def test_pictures_are_held_against_one_target(tmp_path):
    """A case of another pair has the same name, and another truth."""
    for name, target in (("a", "ct"), ("b", "cbct")):
        translated = make_translation(tmp_path / name, f"to {target}")
        record = Translation.load(translated)
        record.model_copy(update={"target_modality": target}).save(translated)
        evaluate.run(settings(input=[translated], output=tmp_path / f"s{name}"))
    places = [tmp_path / "sa", tmp_path / "sb"]
    report.run(settings("report.cases=1", "report.panels=1", input=places, output=tmp_path / "r"))
    html = (tmp_path / "r/report.html").read_text()
    assert "Pictures are held against ct; 'to cbct' makes another modality" in unescape(html)
    film = re.search(r'class="film-header">(.*?)</script>', html, re.S)[1]
    assert "to ct" in film and "to cbct" not in film
    report.run(settings("report.cases=0", input=places, output=tmp_path / "r0"))
    assert "film-header" not in (tmp_path / "r0/report.html").read_text()


def test_nothing_scored_still_gives_a_page(tmp_path):
    Scores(schema=1, profile={"name": "ct"}, scores=[], summary=[], notes=["Left out: all"]).save(tmp_path)
    report.run(settings(input=[tmp_path], output=tmp_path / "r"))
    assert "Left out: all" in (tmp_path / "r/report.html").read_text()


def test_dry_run_and_missing_paths(scored, tmp_path, capsys):
    report.run(settings(dry_run=True, input=[scored / "s1"], output=tmp_path / "r"))
    assert not (tmp_path / "r").exists() and "first $x^2$" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="needs scores"):
        report.run(settings(output=tmp_path / "r"))
    with pytest.raises(ConfigError, match="output folder"):
        report.run(settings(input=[scored / "s1"]))


def test_file_names_are_safe():
    assert file_name("../../x y\0<é>") == "_x_y_"
    assert unique(["a", "b", "a"]) == ["a", "b"]


@pytest.mark.browser
def test_browser_requests_nothing_and_blocks_nothing(page, tmp_path, chromium):
    log = tmp_path / "net.json"
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--log-net-log={log}", "--enable-logging=stderr", "--v=0",
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "<title>Cinevox report</title>" in done.stdout  # the hostile label would have changed it
    assert "Content Security Policy" not in done.stderr  # nothing was blocked, because nothing was tried
    urls = set(re.findall(r'"url":"((?:https?|ftp|ws)[^"]*)"', log.read_text(errors="replace")))
    own = {url for url in urls if "google" not in url and "gvt1" not in url}  # the browser's own errands
    assert own == set()
