"""The page in a real browser: tables sort, colours follow, nothing overflows, hostile names stay text."""

from itertools import pairwise

import pytest
from board_scores import board_scores
from picture_case import film_gallery, picture

from pipeline.records import Score
from pipeline.reporting.gallery import Gallery
from pipeline.reporting.page import Pictures, render

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
LONG = "a_method_with_a_name_that_never_ends_" * 3
METHODS = ("source", HOSTILE, LONG)
MAIN = ".leaderboard"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A page with everything on it: tables of three methods, charts, a film and stills."""
    folder = tmp_path_factory.mktemp("page")
    gap = Score(case="c9", patient="p9", method=LONG, region="mask", metric="psnr", value=None, unit="dB",
                better="higher", reason=HOSTILE)  # fmt: skip
    scores = board_scores(METHODS, more=[gap], comparable="not comparable with the paper",
                          title=HOSTILE)  # fmt: skip
    case = picture(volumes=dict(zip(METHODS, [picture().target + shift for shift in (50, -10, 5)], strict=True)))
    gallery = Gallery(scores, film_gallery(case, folder, "report.panels=1").settings, folder)
    pictures = Pictures(gallery.overview("mask"), [gallery.case_page(case, HOSTILE, 10**7)])
    html = render(scores, pictures, title="A report", notes=[HOSTILE], settings={"inputs": [HOSTILE]})
    (folder / "report.html").write_text(html, encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture
def page(browser, address):
    browser.requests.clear()
    browser.complaints.clear()
    browser.resize(1440, 900)
    browser.open(address)
    yield browser
    assert browser.complaints == []
    assert {url for url in browser.requests if not url.startswith("data:")} == {address}
    assert browser.evaluate("document.title") == "A report"
    assert browser.evaluate("document.querySelectorAll('img[onerror]').length") == 0


def column(page, place, table=MAIN):
    return page.evaluate(
        f"[...document.querySelector('{table}').tBodies[0].rows].map((r) => r.cells[{place}].innerText)"
    )


def head(place, table=MAIN):
    return f"document.querySelector('{table}').tHead.rows[0].cells[{place}]"


def test_click_sorts_the_best_first_then_the_other_way(page):
    assert page.evaluate(f"{head(2)}.ariaSort") is None
    for place, best in ((2, HOSTILE), (3, HOSTILE), (4, LONG)):  # lower, higher, closer to zero is better
        page.evaluate(f"{head(place)}.querySelector('button').click()")
        assert column(page, 0)[0] == best
        order = page.evaluate(f"{head(place)}.ariaSort")
        page.evaluate(f"{head(place)}.querySelector('button').click()")
        assert column(page, 0)[-1] == best
        assert {order, page.evaluate(f"{head(place)}.ariaSort")} == {"ascending", "descending"}
    assert page.evaluate(f"document.querySelectorAll('{MAIN} th[aria-sort]').length") == 1
    assert page.evaluate("document.querySelector('.sorted-by').textContent") == "Sorted by ME, best last"


def test_keyboard_sorts_too(page):
    page.evaluate(f"{head(0)}.querySelector('button').focus()")
    page.key("Enter")
    assert column(page, 0)[0].startswith("<img") and page.evaluate(f"{head(0)}.ariaSort") == "ascending"
    page.key(" ")
    assert column(page, 0)[0].startswith("source") and page.evaluate(f"{head(0)}.ariaSort") == "descending"


def test_undefined_values_stay_last_and_a_sorted_table_names_every_row(page):
    table = "#per-case table"
    for _ in range(2):
        page.evaluate(f"{head(4, table)}.querySelector('button').click()")
        assert column(page, 4, table)[-1].startswith("–")
    clear = f"getComputedStyle(document.querySelector('{table} tbody tr:not(.first) th')).color"
    assert page.evaluate(clear) != "rgba(0, 0, 0, 0)"


def test_everything_is_said(page):
    words = page.evaluate("document.body.innerText")
    never = "The numbers are not comparable with the paper."
    for text in ("8\t", "±", " to ", never, "median difference", "p (Holm)", HOSTILE, "Medians and quartiles",
                 "is undefined"):  # fmt: skip
        assert text in words, text
    assert page.evaluate("[...document.querySelectorAll('.definitions dt')].map((n) => n.innerText)")[:2] == [
        "name",
        "unit",
    ]


def test_colours_follow_the_button_and_paper_is_light(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    chart = "document.querySelector('.chart img').currentSrc.length"
    light, light_chart = page.evaluate(paper), page.evaluate(chart)
    for _ in range(2):
        page.evaluate("document.getElementById('theme').click()")
    page.settle()
    assert page.evaluate("document.getElementById('theme').innerText") == "Colours: dark"
    dark = page.evaluate(paper)
    page.wait(f"{chart} !== {light_chart}")
    assert light == "rgb(245, 246, 248)" and dark == "rgb(14, 19, 24)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait(f"{chart} === {light_chart}")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.call("Emulation.setEmulatedMedia", media="")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_system_colours_are_followed(page, scheme):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.call("Emulation.setEmulatedMedia", features=[])
    assert paper == {"light": "rgb(245, 246, 248)", "dark": "rgb(14, 19, 24)"}[scheme]


@pytest.mark.parametrize(("width", "touch"), [(390, True), (1440, False)])
def test_nothing_is_wider_than_the_screen(page, address, width, touch):
    page.resize(width, 844, touch)
    page.open(address)
    page.evaluate("for (const node of document.querySelectorAll('details')) node.open = true")
    page.evaluate("document.querySelector('.film').scrollIntoView({behavior: 'instant'})")
    page.wait("document.querySelector('.film').dataset.at")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_windows_change_what_is_shown_in_films_and_stills(page):
    page.evaluate("document.querySelector('.film').scrollIntoView({behavior: 'instant'})")
    page.wait("document.querySelector('.film').dataset.at")
    shot = "document.querySelector('.film-stage canvas').toDataURL()"
    seen = set()
    for place in range(4):
        page.evaluate(f"document.querySelectorAll('[data-is=presets] button')[{place}].click()")
        page.settle()
        seen.add(page.evaluate(shot))
    assert len(seen) == 4
    page.evaluate(
        "document.querySelector('.stills').open = true; document.querySelectorAll('.labels label')[2].click()"
    )
    shown = "[...document.querySelectorAll('.pane')].map((pane) => getComputedStyle(pane).display)"
    assert page.evaluate(shown) == ["none", "none", "block", "none"]


def test_every_control_has_a_name_and_every_heading_its_level(page):
    page.evaluate("document.querySelector('.film').scrollIntoView({behavior: 'instant'})")
    page.wait("document.querySelector('.film').dataset.at")
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "combobox", "link", "radio", "image", "DisclosureTriangle"}
    named = [n for n in nodes if not n.get("ignored") and n.get("role", {}).get("value") in roles]
    assert len(named) > 60
    assert [n for n in named if not n.get("name", {}).get("value", "").strip()] == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((node) => Number(node.tagName[1]))")
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels))
