"""The plan: spacing, size and clip length follow from the cohort and the memory, and say why."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import configuration

from pipeline.imaging.film import pixels_needed
from pipeline.preparation.plan import Memory, make_plan
from pipeline.records import CaseFingerprint
from pipeline.settings import ModelMemory

PLENTY = Memory(80.0, "GPU")


def case(spacing=(2.5, 1.0, 1.0), body=(300.0, 200.0, 300.0), name="a"):
    return CaseFingerprint(
        case_id=name, shape=(120, 512, 512), spacing_mm=spacing, body_mm=body, percentiles=(-900, 20, 900)
    )


def plan(cases, *overrides, memory=PLENTY, model=None, clips=1):
    asked = configuration("preprocess.spacing_mm=auto", "preprocess.size=auto", *overrides).preprocess
    return make_plan(cases, asked, memory, model, clips)


def test_spacing_is_the_median_case_and_no_value_between():
    cases = [case((2.0, 0.9, 0.9)), case((2.5, 0.9765625, 0.97656251)), case((3.0, 1.2, 1.2)), case((3.0, 1.3, 1.3))]
    assert plan(cases).spacing_mm == (2.5, 0.976562, 0.976563)


def test_thick_slices_take_the_tenth_percentile():
    cases = [case((z, 1.0, 1.0)) for z in (3.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0)]
    made = plan(cases)
    assert made.spacing_mm == (3.0, 1.0, 1.0)
    assert "along the slices the 10th percentile" in made.reasons[0]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(40, 600), st.floats(40, 600), st.floats(0.5, 4)), min_size=1, max_size=6))
def test_size_holds_every_body_and_16_pixels_less_would_not(bodies):
    cases = [case((3.0, mm, mm), (200.0, rows, columns)) for rows, columns, mm in bodies]
    made = plan(cases)
    for axis in (0, 1):
        needed = [pixels_needed(c.body_mm[axis + 1], made.spacing_mm[axis + 1]) for c in cases]
        assert made.size[axis] % 16 == 0
        assert max(needed) <= made.size[axis] < max(needed) + 16


@pytest.mark.parametrize("slice_mm", [0.8, 1.0, 2.5, 5.0, 10.0])
def test_clips_cover_as_much_anatomy_at_every_spacing(slice_mm):
    made = plan([case((slice_mm, 1.0, 1.0))])
    assert made.clip_length >= 3 and abs(made.clip_length * made.spacing_mm[0] - 15) <= max(slice_mm, 3 * slice_mm - 15)
    assert made.clip_limit >= 2 * made.clip_length
    assert "the model states no memory" in made.reasons[2]


def test_clips_are_cut_to_what_fits():
    model = ModelMemory(step=1000, frame=1000)
    pixels = 208 * 304
    gib = (1000 + 8 * 1000) * pixels * 1.01 / 2**30 / 0.75
    made = plan([case()], memory=Memory(gib, "GPU"), model=model)
    assert (made.size, made.clip_length, made.clip_limit) == ((208, 304), 6, 8)
    assert "cut to what fits: 1000 bytes a pixel and 1000 more a slice" in made.reasons[2]
    assert plan([case()], memory=PLENTY, model=model).clip_limit == 24
    # Two clips in a step have half the memory each.
    assert plan([case()], memory=Memory(2 * gib, "GPU"), model=model, clips=2).clip_limit == 8


@pytest.mark.parametrize("gib", [0.05, 0.2, 1.0])
def test_pixels_are_made_coarser_until_a_step_fits(gib):
    model = ModelMemory(step=10000, frame=1000)
    made = plan([case()], memory=Memory(gib, "RAM"), model=model)
    most = max(gib * 2**30 * 0.5 / 13000, 64 * 64)
    assert made.size[0] * made.size[1] <= most
    assert made.spacing_mm[0] == 2.5 and made.spacing_mm[1] > 1.0
    assert "made coarser" in made.reasons[0]


def test_what_is_set_is_taken_as_it_is():
    overrides = ("preprocess.spacing_mm=[4,5,5]", "preprocess.size=[24,26]")
    asked = configuration(*overrides).preprocess
    made = make_plan([], asked, Memory(0.01, "set"), ModelMemory(step=10000, frame=100), 1)
    assert (made.spacing_mm, made.size) == ((4.0, 5.0, 5.0), (24, 26))
    assert made.reasons[0].endswith("set by hand") and made.reasons[1].endswith("set by hand")


def test_a_method_that_needs_no_memory_is_planned_as_one_that_states_none():
    none, unknown = (plan([case()], model=model) for model in (ModelMemory(step=0, frame=0), None))
    assert (none.spacing_mm, none.size, none.clip_limit) == (unknown.spacing_mm, unknown.size, unknown.clip_limit)
