"""Views through a case: orientation, aspect, chosen slices; figures of awkward cases raise no warning."""

import numpy as np
import pytest
from board_scores import board_scores
from picture_case import SHAPE, picture

from pipeline.reporting.figures import Histogram, continuity, panels, profile, tissue_columns, tissues
from pipeline.reporting.pictures import centre, views
from pipeline.reporting.style import LIGHT, chart_bytes, label, photo_bytes, rasterise
from pipeline.reporting.tables import columns


def test_views_lie_in_the_region_and_keep_millimetres():
    found = views(picture(), 3)
    axial = [v.index for v in found if v.plane == "axial"]
    assert axial == sorted(axial) and all(2 <= k <= 6 for k in axial) and len(axial) == 3
    assert centre(picture()) == (4, 9, 11)
    coronal, sagittal = found[-2:]
    # 8 slices of 3 mm; columns 6..18 and rows 5..15 with a margin of 8 mm that stays inside the volume.
    assert coronal.size_mm == (24, 40)
    assert sagittal.size_mm == (24, 20)


def test_head_is_up_and_left_is_right():
    array = np.zeros(SHAPE)
    array[-1], array[0] = 5, -5  # superior and inferior end
    coronal = views(picture(), 1)[-2]
    assert coronal.cut(array)[0, 0] == 5 and coronal.cut(array)[-1, 0] == -5
    axial = views(picture(), 1)[0]
    columns = np.broadcast_to(np.arange(SHAPE[2]), SHAPE)  # film order: towards the patient's left
    assert np.all(np.diff(axial.cut(columns)[0]) > 0)


def test_more_slices_than_there_are():
    region = np.zeros(SHAPE, bool)
    region[3, 5:9, 5:9] = True
    assert [v.index for v in views(picture(region), 5) if v.plane == "axial"] == [3]
    assert len(views(picture(np.zeros(SHAPE, bool)), 2)) == 4


@pytest.mark.parametrize("full", [True, False])
def test_panels_have_one_column_per_volume(full):
    figure = panels(picture(), (40, 400), 200, 2, full=full)
    image = rasterise(figure)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:3] == ["source", "a", "target"]
    assert len(figure.axes) == (4 * 2 * 3 + 2 if full else 2 * 3 + 1)
    media, content = photo_bytes(image)
    assert media == "image/webp" and content[8:12] == b"WEBP"


def test_source_in_another_unit_has_a_scale_of_its_own_and_no_difference():
    case = picture()
    other = picture(volumes={"a": case.volumes["a"]}, other_source=np.full(SHAPE, 0.5, np.float32))
    figure = panels(other, (40, 400), 200, 1)
    rasterise(figure)
    assert [a.get_title() for a in figure.axes if a.get_title()][:3] == ["source", "a", "target"]


def test_awkward_cases_draw_without_warnings():
    target = np.full(SHAPE, np.nan, np.float32)
    target[:, :10] = 0
    empty = np.zeros(SHAPE, bool)
    odd = {"_under $": np.zeros(SHAPE, np.float32), "模型": np.zeros(SHAPE, np.float32)}
    many = {f"method {k}": np.zeros(SHAPE, np.float32) for k in range(40)}  # a legend higher than a chart
    for case in (picture(target=target), picture(empty), picture(volumes=odd), picture(volumes=many)):
        methods = [name for name in case.volumes if name != "source"]
        histogram = Histogram("HU", 500)
        histogram.add(case)
        for figure in (histogram.draw(methods, LIGHT), profile(case, methods, LIGHT), continuity(case, methods, LIGHT)):
            assert chart_bytes(rasterise(figure))[1][:4] == b"\x89PNG"


def test_histogram_counts_every_voxel_and_adds_up():
    case = picture(volumes={"a": picture().target + 700})
    histogram = Histogram("HU", 500)
    histogram.add(case)
    histogram.add(case)
    assert histogram.counts["a"][-1] == histogram.voxels["a"] == 2 * case.region.sum()
    assert histogram.near["a"] == 0
    pooled = Histogram("HU", 500)
    pooled.merge(histogram)
    pooled.merge(histogram)
    assert pooled.counts["a"][-1] == pooled.voxels["a"] == 4 * case.region.sum()


def test_bars_by_tissue_are_the_means_of_the_summary():
    scores = board_scores()
    figure = tissues(scores, "mask", columns(scores), LIGHT)
    mae, me = figure.axes
    assert [text.get_text() for text in mae.get_xticklabels()] == ["air", "soft tissue", "bone"]
    assert (mae.get_title("left"), me.get_title("left")) == ("MAE by tissue [HU]", "ME by tissue [HU]")
    means = {row.mean for row in scores.summary if row.region == "mask" and row.metric.startswith("mae_")}
    assert {bar.get_height() for bar in mae.patches} == means and len(means) == 9
    assert tissue_columns(columns(board_scores(tissues=False))) == {}


def test_range_of_an_unknown_unit_is_that_of_the_target():
    target = np.linspace(0, 1000, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    low, high = picture(np.ones(SHAPE, bool), target=target).target_range
    assert low == 0 and high == pytest.approx(999, abs=0.1)
    assert picture(np.zeros(SHAPE, bool)).target_range == (0, 1)


def test_labels_are_short_and_visible():
    assert label("x" * 50).endswith("…") and len(label("x" * 50)) == 30
    assert not label("_hidden").startswith("_")
