"""The sheet of 'cinevox cohort --check' in a browser: its policy lets its own pictures and style through, no more."""

import numpy as np
import pytest
from browser_page import BrowserPage

from pipeline.cohorts.pair_outliers import flag_pairs
from pipeline.cohorts.pair_picture import draw
from pipeline.cohorts.pair_sheet import write_sheet
from pipeline.records import PairQualities, PairQuality
from pipeline.settings import PairLimits


@pytest.mark.browser
def test_pictures_and_style_are_shown(tmp_path, chromium):
    limits = PairLimits(shift_mm=3, overlap=0.85, edge_agreement=0.6)
    pair = PairQuality(
        case_id="a", patient="a", source="cbct", target="ct", mutual_information=0.3, overlap=0.9,
        shift_mm=(4.0, 0.0, 0.0), local_mm=0.5, edge_agreement=0.9, grid_mm=2.5, picture="pair_quality/a.png",
    )  # fmt: skip
    flag_pairs([pair], limits)
    volume = np.random.default_rng(0).random((20, 24, 22)).astype(np.float32)
    draw(tmp_path / pair.picture, volume, volume, ("cbct", "ct"))
    settings = {"limits": limits.model_dump()}
    write_sheet(tmp_path, PairQualities(schema=1, cohort_hash="", settings=settings, method="", pairs=[pair]), "x")
    with BrowserPage(chromium, tmp_path / "profile", width=390) as page:
        page.open((tmp_path / "pair_quality.html").as_uri())
        assert page.evaluate("document.images[0].decode().then(() => document.images[0].naturalWidth)") > 300
        assert page.evaluate("getComputedStyle(document.querySelector('.flag')).color") == "rgb(163, 58, 0)"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert "4.0 mm (4.0 mm to the right) off ct" in page.evaluate("document.body.innerText")
        assert not page.complaints
