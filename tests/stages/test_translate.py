"""Translation: onto exactly the source's grid, from shards or from any volume, by the checkpoint's own record."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.__main__ import main
from pipeline.geometry import Volume, grid_difference, reorder
from pipeline.io import read_volume, write_volume
from pipeline.records import Cohort, ShardIndex, Translation
from pipeline.stages import translate

IDENTITY = ["model=identity", "trainer.budget.steps=1", "tracking=none", "stream.clip_length=1", "stream.clip_growth=1"]


def train_identity(shards: Path, run: Path, *extra: str) -> Path:
    assert main(["train", f"input={shards}", f"output={run}", *IDENTITY, *extra]) == 0
    return run


@pytest.fixture(scope="module")
def run(tiny_shards, tmp_path_factory) -> Path:
    return train_identity(tiny_shards, tmp_path_factory.mktemp("identity") / "run", "source=t1n")


@pytest.fixture(scope="module")
def ct_run(run, tmp_path_factory) -> Path:
    """A run whose record says CT to CT, so that the identity must give back what went in."""
    data = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    record = data["cinevox"]
    record["source"] = record["target"] = "ct"
    path = tmp_path_factory.mktemp("ct") / "ct.ckpt"
    torch.save(data, path)
    return path


def head(shards: Path) -> Volume:
    cohort = Cohort.load(Path(ShardIndex.load(shards).cohort))
    case = cohort.select("test")[0]
    return read_volume(cohort.path(case.volumes["ct"]))


def test_a_split_is_written_on_the_source_grids_with_its_references(run, tiny_shards, tmp_path):
    assert main(["translate", f"checkpoint={run}", f"input={tiny_shards}", f"output={tmp_path / 'out'}"]) == 0
    record = Translation.load(tmp_path / "out")
    cohort = Cohort.load(Path(ShardIndex.load(tiny_shards).cohort))
    assert [c.case_id for c in record.cases] == [c.case_id for c in cohort.select("test")]
    for translated in record.cases:
        source = read_volume(Path(translated.source), "a.u.")
        prediction = read_volume(tmp_path / "out" / translated.prediction)
        assert grid_difference(source.grid, prediction.grid, tolerance_mm=1e-3) == ""
        assert prediction.array.dtype == np.int16
        assert Path(translated.reference).exists()


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "AIL"])
@pytest.mark.parametrize("suffix", ["nii.gz", "mha", "nrrd"])
def test_any_orientation_and_format_comes_back_as_it_was(axes, suffix, ct_run, tiny_shards, tmp_path):
    volume = reorder(head(tiny_shards), axes)
    write_volume(tmp_path / f"somebody.{suffix}", volume)
    command = ["translate", f"checkpoint={ct_run}", f"input={tmp_path / f'somebody.{suffix}'}"]
    assert main([*command, f"output={tmp_path / 'out'}"]) == 0
    back = read_volume(tmp_path / "out" / "somebody.nii.gz")
    assert back.grid.axes == axes
    assert grid_difference(volume.grid, back.grid, tolerance_mm=1e-3) == ""
    body = back.array > -1000
    assert body.sum() > 500
    # The film keeps the volume's own spacing here, so what the window holds returns to the last HU.
    inside = body & (volume.array > -1024) & (volume.array < 2048)
    assert np.abs(back.array[inside].astype(int) - volume.array[inside]).max() <= 1


def test_resampling_there_and_back_does_not_shift(ct_run, tiny_shards, tmp_path):
    data = torch.load(ct_run, weights_only=True)
    data["cinevox"]["preprocessing"] |= {"spacing_mm": [10.0, 6.0, 6.5], "size": [48, 48]}
    torch.save(data, tmp_path / "other.ckpt")
    volume = head(tiny_shards)
    write_volume(tmp_path / "head.nii.gz", volume)
    command = ["translate", f"checkpoint={tmp_path / 'other.ckpt'}", f"input={tmp_path / 'head.nii.gz'}"]
    assert main([*command, f"output={tmp_path / 'out'}"]) == 0
    back = read_volume(tmp_path / "out" / "head.nii.gz").array.astype(float)
    truth = np.maximum(volume.array, -1000).astype(float)

    def alike(moved: np.ndarray) -> float:
        return float(np.corrcoef(moved[2:-2, 2:-2, 2:-2].ravel(), truth[2:-2, 2:-2, 2:-2].ravel())[0, 1])

    shifts = [np.roll(back, s, axis) for axis in range(3) for s in (-1, 1)]
    assert alike(back) > max(alike(shifted) for shifted in shifts)


def test_a_long_film_is_walked_with_its_size_kept(ct_run, tiny_shards, tmp_path):
    film = reorder(head(tiny_shards))
    long = Volume(np.tile(film.array, (43, 1, 1)), film.affine)  # 602 slices
    write_volume(tmp_path / "long.nii.gz", long)
    command = ["translate", f"checkpoint={ct_run}", f"input={tmp_path / 'long.nii.gz'}", f"output={tmp_path / 'out'}"]
    assert main(command) == 0
    assert read_volume(tmp_path / "out" / "long.nii.gz").array.shape == long.array.shape


def test_a_volume_that_is_not_in_hu_is_refused_and_the_others_go_on(ct_run, tiny_shards, tmp_path, capsys):
    volume = head(tiny_shards)
    write_volume(tmp_path / "in" / "good.nii.gz", volume)
    write_volume(tmp_path / "in" / "offset.nii.gz", volume.with_array((volume.array + 1024).astype(np.int16)))
    (tmp_path / "in" / "empty.nii.gz").write_bytes(b"")
    command = ["translate", f"checkpoint={ct_run}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "offset" in message
    assert "empty" in message
    assert {p.name for p in (tmp_path / "out").glob("*.nii.gz")} == {"good.nii.gz"}
    assert len(Translation.load(tmp_path / "out").excluded) == 2


def test_shards_that_were_prepared_differently_are_refused(run, tiny_shards, tmp_path, capsys):
    for file in tiny_shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ShardIndex.load(tiny_shards).model_copy(update={"spacing_mm": (5.0, 5.0, 5.0)}).save(tmp_path)
    assert main(["translate", f"checkpoint={run}", f"input={tmp_path}", f"output={tmp_path / 'out'}"]) == 2
    assert "spacing_mm" in capsys.readouterr().err


def test_a_name_that_may_be_a_patient_s_becomes_a_pseudonym(ct_run, tiny_shards, tmp_path, capsys):
    write_volume(tmp_path / "Müller, Jürgen (1950).nii.gz", head(tiny_shards))
    command = ["translate", f"checkpoint={ct_run}", f"input={tmp_path / 'Müller, Jürgen (1950).nii.gz'}"]
    assert main([*command, f"output={tmp_path / 'out'}"]) == 0
    assert "Müller" not in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == [
        f"{Translation.load(tmp_path / 'out').cases[0].case_id}.nii.gz"
    ]


def test_another_volume_under_the_same_name_is_not_taken_for_the_one_that_was_translated(
    ct_run, tiny_shards, tmp_path, capsys
):
    command = ["translate", f"checkpoint={ct_run}", f"input={tmp_path / 'a.nii.gz'}", f"output={tmp_path / 'out'}"]
    volume = head(tiny_shards)
    write_volume(tmp_path / "a.nii.gz", volume)
    assert main(command) == 0
    write_volume(tmp_path / "a.nii.gz", volume.with_array(volume.array[::-1].copy()))
    assert main(command) == 2
    assert "made with other settings: input.a: " in capsys.readouterr().err


def test_what_is_translated_already_needs_no_space(ct_run, tiny_shards, tmp_path, monkeypatch):
    command = ["translate", f"checkpoint={ct_run}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    for name in ("a", "b"):
        write_volume(tmp_path / "in" / f"{name}.nii.gz", head(tiny_shards))
    asked = []
    monkeypatch.setattr(translate, "check_free_space", lambda folder, size: asked.append(size))
    assert main(command) == 0
    (tmp_path / "out" / "b.nii.gz").unlink()
    stage = tmp_path / "out" / "stage.json"
    stage.write_text(stage.read_text().replace('"finished": true', '"finished": false'))
    assert main(command) == 0
    assert main(command) == 0  # finished: not even asked
    assert asked[1:] == [asked[0] // 2]
