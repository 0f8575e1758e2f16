"""The film player in a real browser: exact values, every way of input, no complaint and no request."""

import numpy as np
import pytest
from browser_page import SHIFT
from picture_case import SHAPE, film_affine, film_gallery, film_page, picture

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>document.title='owned'</script>\"'<b>"
START = 4  # the middle of the region


@pytest.fixture(scope="module")
def case():
    made = picture(affine=film_affine((3.0, 1.0, 2.0), origin=(50.0, 60.0, -70.0)))
    target = made.target.round()
    target[0, 0, 2] = np.nan  # the first pixel of the film's cut
    region = np.zeros(SHAPE, bool)
    region[:, 5:15, 6:18] = True
    volumes = {"source": target + 50, HOSTILE: target - 10, "second": target + np.arange(24, dtype=np.float32)}
    return picture(region, target=target, volumes=volumes, affine=made.affine)


def write_page(folder, case):
    path = folder / "report.html"
    path.write_text(film_page(film_gallery(case, folder), case), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def address(case, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("film"), case)


@pytest.fixture
def page(browser, address):
    """The page, freshly loaded, its film unpacked and focused."""
    browser.requests.clear()
    browser.complaints.clear()
    browser.resize(1280, 900)
    browser.open(address)
    browser.wait("document.querySelector('.film')?.dataset.at")
    browser.evaluate("document.querySelector('.film-panes').focus()")
    browser.evaluate("document.querySelector('.film').scrollIntoView({behavior: 'instant'})")
    yield browser
    assert browser.complaints == []
    assert set(browser.requests) == {address}
    assert browser.evaluate("document.title") == "A report"  # the hostile name would have changed it


def at(page):
    """Where the planes meet: slice, row and column of the film."""
    return [int(i) for i in page.evaluate("document.querySelector('.film').dataset.at").split(",")]


def index(page):
    return at(page)[0]


def canvas(pane, plane=0):
    return f"document.querySelectorAll('.film-pane')[{pane}].querySelectorAll('canvas')[{plane}]"


def text(page, part):
    return page.evaluate(f"document.querySelector('[data-is={part}]').textContent")


def texts(page, selector):
    return page.evaluate(f"[...document.querySelectorAll('{selector}')].map((node) => node.textContent)")


def pixels(page, pane, plane=0):
    """What a pane's canvas shows: rows x columns x (red, green, blue)."""
    # Read from a copy: a canvas that is read back often makes Chromium complain.
    rows, columns, data = page.evaluate(
        "((canvas) => { const {width, height} = canvas;"
        " const copy = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true});"
        " copy.drawImage(canvas, 0, 0);"
        " return [height, width, [...copy.getImageData(0, 0, width, height).data]]; })"
        f"({canvas(pane, plane)})"
    )
    return np.array(data).reshape(rows, columns, 4)[..., :3]


def spot(page, pane, along=0.5, down=0.5, plane=0):
    """A point on a pane in the window's coordinates."""
    box = page.evaluate(
        f"(({{x, y, width, height}}) => [x, y, width, height])({canvas(pane, plane)}.getBoundingClientRect())"
    )
    return box[0] + along * box[2], box[1] + down * box[3]


def press(page, selector):
    page.evaluate(f"document.querySelector('{selector}').click()")
    page.settle()


def greys(slice_, level, width):
    return np.floor(np.clip((slice_.astype(float) - level) / width + 0.5, 0, 1) * 255 + 0.5)


def test_every_pixel_of_every_pane_is_what_the_volumes_say(page, case):
    page.key("o")  # without the outline
    for key in ("Home", "End"):
        page.key(key)
        k = index(page)
        for pane, name in enumerate(["source", HOSTILE, "second", "target"]):
            volume = case.target if name == "target" else case.volumes[name]
            shown = pixels(page, pane)
            known = np.isfinite(volume[k, :, 2:22])
            assert np.array_equal(shown[known][:, 0], greys(volume[k, :, 2:22], 40, 400)[known])
            assert (shown[..., 0] == shown[..., 1])[known].all()
        difference = pixels(page, 4)
        assert np.ptp(difference[known], axis=0).tolist() == [0, 0, 0]  # -10 HU everywhere
        assert difference[10, 10, 2] > difference[10, 10, 0]  # too low is blue
    assert k == SHAPE[0] - 1


def shown_plane(volume, plane, place):
    """The part of a volume that the film keeps, as a reader sees one plane of it: head or front on top."""
    cut = np.take(volume[:, :, 2:22], place[plane], axis=plane)
    return cut if plane == 0 else cut[::-1]


@pytest.mark.parametrize(("plane", "key"), [(0, "a"), (1, "c"), (2, "s")])
def test_every_plane_scrubs_by_keys_slider_wheel_and_drag(page, case, plane, key):
    page.key("o")
    page.key(key)
    last = (8, 20, 20)[plane] - 1
    page.key("End")
    assert at(page)[plane] == last
    page.wheel(*spot(page, 0, plane=plane), 120)
    page.wait(f"document.querySelector('.film').dataset.at.split(',')[{plane}] == {last - 1}")
    slider = f"document.querySelectorAll('.film-slice')[{plane}]"
    page.evaluate(f"{slider}.value = 2; {slider}.dispatchEvent(new Event('input'))")
    page.settle()
    place = at(page)
    assert place[plane] == 2
    target = shown_plane(case.target, plane, place)
    assert np.array_equal(pixels(page, 3, plane)[..., 0], greys(target, 40, 400))
    x, y = spot(page, 0, plane=plane)
    page.drag((x, y), (x + 60, y))
    assert at(page)[plane] > 2
    assert [i for i in range(3) if at(page)[i] != place[i]] == [plane]  # the other planes stayed
    page.drag((x, y), (x - 300, y))
    assert at(page)[plane] == 0


def test_click_takes_the_other_planes_along(page, case):
    page.key("o")
    page.click(*spot(page, 1, 3.5 / 20, 1.5 / 8, plane=1))  # coronal: column 3, second slice from the top
    assert at(page)[0] == SHAPE[0] - 2 and at(page)[2] == 3
    page.click(*spot(page, 1, 6.5 / 20, 7.5 / 8, plane=2))  # sagittal: row 6, lowest slice
    assert at(page) == [0, 6, 3]
    page.mouse("mouseMoved", 1, 1)
    page.settle()
    assert texts(page, ".film-value")[3].replace("−", "-") == f"{case.target[0, 6, 5]:.0f} HU"
    for plane in range(3):
        target = shown_plane(case.target, plane, at(page))
        known = np.isfinite(target)
        assert np.array_equal(pixels(page, 3, plane)[known][:, 0], greys(target, 40, 400)[known])


def test_planes_keep_millimetres_and_can_be_hidden(page):
    sizes = page.evaluate(
        "[...document.querySelectorAll('.film-pane')[0].querySelectorAll('canvas')]"
        ".map((node) => node.getBoundingClientRect()).map(({width, height}) => [width, height])"
    )
    scale = sizes[0][0] / 40  # columns of 2 mm, rows of 1 mm, slices of 3 mm
    assert np.allclose(sizes, np.array([(40, 20), (40, 24), (20, 24)]) * scale, atol=1)
    press(page, "[data-is=planes] button:nth-child(1)")
    press(page, "[data-is=planes] button:nth-child(2)")
    press(page, "[data-is=planes] button:nth-child(3)")  # the last one stays
    assert page.evaluate("document.querySelectorAll('.film-pane:first-child .film-stage:not([hidden])').length") == 1
    page.key("Home")
    assert text(page, "number") == "sagittal 3 of 24"  # what is shown is what keys move; the film's cut begins there
    page.key("a")
    assert page.evaluate("document.querySelectorAll('.film-pane:first-child .film-stage:not([hidden])').length") == 2


def test_unknown_voxels_have_no_value(page):
    page.key("Home")
    page.mouse("mouseMoved", *spot(page, 3, 0.01, 0.01))
    page.settle()
    assert texts(page, ".film-value") == ["–"] * 5
    corner = pixels(page, 3)[0, 0]
    assert corner.tolist() == [0x17, 0x20, 0x2B] and pixels(page, 4)[0, 0].tolist() == corner.tolist()
    assert not (pixels(page, 3)[1, 1] == corner).all()


def test_keys_change_the_slice_and_say_so(page):
    assert index(page) == START - 1 or index(page) == START
    page.key("Home")
    assert (index(page), text(page, "number")) == (0, f"axial 1 of {SHAPE[0]}")
    page.key("ArrowUp")
    page.key("ArrowRight")
    assert index(page) == 2
    page.key("ArrowDown")
    page.key("ArrowLeft")
    assert index(page) == 0
    page.key("PageUp")
    assert index(page) == SHAPE[0] - 1
    page.key("PageDown")
    assert index(page) == 0
    page.key("End")
    assert text(page, "number") == f"axial {SHAPE[0]} of {SHAPE[0]}"
    label = page.evaluate("document.querySelector('.film-slice').getAttribute('aria-valuetext')")
    assert label == f"axial {SHAPE[0]} of {SHAPE[0]}, I 49.0 mm"  # -70 + 7 x 3
    assert page.evaluate("document.querySelector('[data-is=number]').ariaLive") == "polite"


def test_wheel_turns_slices_only_for_a_film_with_focus(page):
    page.key("Home")
    page.wheel(*spot(page, 0), -120)
    page.wait("document.querySelector('.film').dataset.at.startsWith('1,')")
    page.wheel(*spot(page, 0), 120)
    page.wait("document.querySelector('.film').dataset.at.startsWith('0,')")
    page.key("Escape")
    page.wheel(*spot(page, 0), -120)
    page.settle()
    assert index(page) == 0


def test_mouse_drags_slices_and_the_window(page):
    page.key("Home")
    x, y = spot(page, 0)
    page.drag((x, y), (x, y - 200))
    assert index(page) > 0
    page.drag((x, y), (x, y + 400))
    assert index(page) == 0
    page.drag((x, y), (x + 50, y - 25), "right")
    assert (text(page, "width-value"), text(page, "level-value")) == ("480", "80")
    assert index(page) == 0
    page.drag((x, y), (x - 50, y), modifiers=SHIFT)
    assert text(page, "width-value") == "384"


def test_presets_and_sliders_set_the_window(page, case):
    page.key("o")
    page.key("2")
    assert (text(page, "level-value"), text(page, "width-value")) == ("300", "1500")
    k = index(page)
    assert np.array_equal(pixels(page, 3)[..., 0], greys(case.target[k, :, 2:22], 300, 1500))
    assert page.evaluate("document.querySelectorAll('[data-is=presets] button')[1].ariaPressed") == "true"
    page.evaluate("(input => { input.value = 40; input.dispatchEvent(new Event('input')); })"
                  "(document.querySelector('[data-is=span]'))")  # fmt: skip
    page.settle()
    assert "−40" in text(page, "difference-text") and "+40" in text(page, "difference-text")


def test_readout_names_values_and_place(page, case):
    page.key("Home")
    column, row = 7, 9
    page.mouse("mouseMoved", *spot(page, 1, (column + 0.5) / 20, (row + 0.5) / 20))
    page.settle()
    value = int(case.target[0, row, column + 2])
    expected = [value + 50, value - 10, value + column + 2, value]
    shown = [v.replace("−", "-") for v in texts(page, ".film-value")]
    assert shown == [*(f"{v} HU" for v in expected), "-10 HU"]
    # x = 50 - 2 x 9, y = 60 - 9, z = -70
    assert text(page, "position") == "Pointer at R 32.0 · A 51.0 · I 70.0 mm"


def test_flip_and_lead_change_what_is_compared(page):
    before = at(page)
    page.key("ArrowUp", SHIFT)
    assert at(page) == [before[0], before[1] - 1, before[2]]
    assert texts(page, ".film-value")[-1] == "−10 HU"
    assert text(page, "spoken").endswith("− target −10 HU")
    page.key("f")
    assert texts(page, ".film-value")[-1] == "+50 HU"
    assert texts(page, ".film-title")[1].startswith("source, in place of </script>")
    page.key("t")
    assert texts(page, ".film-value")[1] == texts(page, ".film-value")[3]
    page.key("t")
    page.key("m")
    assert texts(page, ".film-title")[-1] == "second − target"
    assert "second: MAE of this axial slice" in text(page, "errors-text")
    press(page, "[data-is=volumes] button:last-child")
    assert page.evaluate("document.querySelectorAll('.film-pane:not([hidden])').length") == 4


def test_outline_follows_the_region(page, case):
    with_outline = pixels(page, 3)
    page.key("o")
    changed = (with_outline != pixels(page, 3)).any(axis=2)
    edge = case.region[0, :, 2:22].copy()
    edge[6:14, 5:15] = False
    assert np.array_equal(changed, edge)


def test_film_plays_back_and_forth_and_pauses(page):
    page.key("End")
    page.key(" ")
    assert page.evaluate("document.querySelector('[data-is=number]').ariaLive") == "off"
    page.wait(f"parseInt(document.querySelector('.film').dataset.at) < {SHAPE[0] - 2}")
    page.key(" ")
    assert "Play" in text(page, "play")
    stopped = index(page)
    page.evaluate("new Promise((done) => setTimeout(done, 250))")
    assert index(page) == stopped


def test_finger_scrubs_every_plane_on_a_phone(page, address):
    page.resize(390, 844, touch=True)
    page.open(address)
    page.wait("document.querySelector('.film').dataset.at")
    visible = "document.querySelectorAll('.film-pane:first-child .film-stage:not([hidden])').length"
    assert page.evaluate(visible) == 1  # one plane is enough for a small screen; the others are a button away
    press(page, "[data-is=planes] button:nth-child(2)")
    press(page, "[data-is=planes] button:nth-child(3)")
    assert page.evaluate(visible) == 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for plane in range(3):
        page.evaluate(f"{canvas(0, plane)}.scrollIntoView({{behavior: 'instant', block: 'center'}})")
        page.settle()
        before = at(page)[plane]
        x, y = spot(page, 0, plane=plane)
        place = f"document.querySelector('.film').dataset.at.split(',')[{plane}]"
        page.swipe((x - 20, y), (x + 50, y))
        page.wait(f"{place} > {before}")
        page.swipe((x + 20, y), (x - 100, y))
        page.wait(f"{place} < {before}")


def test_print_shows_still_slices_instead(page):
    assert page.evaluate("document.querySelector('.stills').open") is False
    page.evaluate("addEventListener('beforeprint', () => { window.open_ = document.querySelector('.stills').open; })")
    page.call("Page.printToPDF")
    assert page.evaluate("window.open_") is True
    assert page.evaluate("document.querySelector('.stills').open") is False
    page.call("Emulation.setEmulatedMedia", media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('.film')).display") == "none"
    page.call("Emulation.setEmulatedMedia", media="")


def test_film_that_cannot_be_unpacked_says_so_and_opens_the_stills(browser, case, tmp_path):
    html = film_page(film_gallery(case, tmp_path), case)
    start = html.index('class="film-track">') + len('class="film-track">')
    (tmp_path / "broken.html").write_text(html[:start] + "!" + html[start:], encoding="utf-8")
    browser.complaints.clear()
    browser.open((tmp_path / "broken.html").as_uri())
    browser.wait("document.querySelector('[data-is=message]')?.textContent.includes('cannot unpack')")
    assert browser.evaluate("document.querySelector('.stills').open") is True
    assert browser.complaints == []


def test_source_in_another_unit_has_no_difference(browser, case, tmp_path):
    mr = np.linspace(0, 900, case.target.size, dtype=np.float32).reshape(SHAPE)
    other = picture(case.region, target=case.target, volumes={"a": case.volumes["source"]}, other_source=mr)
    browser.complaints.clear()
    browser.resize(1280, 900)
    browser.open(write_page(tmp_path, other))
    browser.wait("document.querySelector('.film').dataset.at")
    browser.evaluate("document.querySelector('.film-panes').focus()")
    browser.key("f")
    browser.key("ArrowUp", SHIFT)
    source, flipped, _, difference = texts(browser, ".film-value")
    assert source == flipped and "HU" not in source and difference == "+50 HU"
    x, y = spot(browser, 0)
    browser.drag((x, y), (x + 60, y), "right")  # its own window: the target's stays
    assert text(browser, "width-value") == "400"
    assert browser.complaints == []
