"""Pretrained generators: the table, the folder, what begins as what, and files that are refused before a run exists."""

from pathlib import Path

import pytest
import torch
import yaml
from model_making import make_batch, make_method, same, train, weights_of

from pipeline.__main__ import main
from pipeline.config import conf_folder
from pipeline.errors import ArtifactError, ConfigError
from pipeline.models.transfer import PUBLISHED
from pipeline.networks.resnet_generator import ResnetGenerator
from pipeline.networks.unet_generator import UnetGenerator
from pipeline.records import Translation, WeightsFolder

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
MINIATURE = {"width": 4, "blocks": 2}


def generator(seed: int, channels: int = 3) -> ResnetGenerator:
    torch.manual_seed(seed)
    return ResnetGenerator(channels, channels, **MINIATURE)


def save(network: torch.nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def add(path: Path, folder: Path) -> int:
    return main(["weights", "add", f"input={path}", f"output={folder}"])


@pytest.fixture
def folder(tmp_path) -> Path:
    """A weights folder with horse2zebra and its reverse, and monet's without."""
    for seed, name in enumerate(("horse2zebra", "zebra2horse", "style_monet")):
        assert add(save(generator(seed), tmp_path / "got" / f"{name}.pth"), tmp_path / "weights") == 0
    return tmp_path / "weights"


def test_the_table_has_the_18_published_names_and_reverses_of_one_another():
    assert len(PUBLISHED) == 18
    reverses = {name: entry.reverse for name, entry in PUBLISHED.items() if entry.reverse}
    assert len(reverses) == 14
    assert all(reverses[reverse] == name for name, reverse in reverses.items())
    members = yaml.safe_load((conf_folder() / "sweep" / "cyclegan_transfer.yaml").read_text())["members"]
    assert members == {"scratch": ["model.init="], **{name: [f"model.init={name}"] for name in PUBLISHED}}


def test_a_folder_is_listed_verified_and_guards_its_files(folder, tmp_path, capsys):
    assert main(["weights", "list", f"input={folder}"]) == 0
    shown = capsys.readouterr().err
    assert "3 of 18 are in" in shown
    assert "horses to zebras (ImageNet); back: zebra2horse" in shown
    assert main(["weights", "verify", f"input={folder}"]) == 0
    assert "3 files in" in capsys.readouterr().err
    assert WeightsFolder.load(folder).files["horse2zebra"].channels_in == 3
    other = save(generator(9), tmp_path / "other" / "horse2zebra_pretrained" / "latest_net_G.pth")
    assert add(other, folder) == 2
    assert "Another 'horse2zebra'" in capsys.readouterr().err
    assert add(folder / "horse2zebra.pth", folder) == 0  # the same again, in place
    (folder / "horse2zebra.pth").write_bytes(other.read_bytes())
    (folder / "style_monet.pth").unlink()
    assert main(["weights", "verify", f"input={folder}"]) == 2
    assert "2 of 3 files" in (error := capsys.readouterr().err)
    assert "horse2zebra has another SHA-256; style_monet is missing" in error
    method = make_method("cyclegan")
    method.init, method.weights_folder = "horse2zebra", str(folder)
    with pytest.raises(ArtifactError, match="is not the file that was added"):
        method.begin()


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda path: save(UnetGenerator(width=2, depth=2), path), "horse2zebra.pth", "a U-Net of pix2pix"),
        (lambda path: path.write_bytes(b"PK" + bytes(50)), "horse2zebra.pth", "cannot be read"),
        (lambda path: save(generator(0), path), "horse3zebra.pth", "Did you mean 'horse2zebra'"),
        (lambda path: None, "horse2zebra.pth", "does not exist"),
    ],
)
def test_what_is_no_published_generator_is_not_added(make, name, message, tmp_path, capsys):
    make(tmp_path / name)
    assert add(tmp_path / name, tmp_path / "weights") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "weights").exists()


def test_dry_runs_and_wrong_words_write_nothing(tmp_path, capsys):
    file = save(generator(0), tmp_path / "horse2zebra.pth")
    assert main(["weights", "add", f"input={file}", f"output={tmp_path / 'weights'}", "--dry-run"]) == 0
    assert "Would copy" in capsys.readouterr().err
    assert not (tmp_path / "weights").exists()
    assert main(["weights", "ad"]) == 2
    assert "Did you mean 'add'" in capsys.readouterr().err
    assert main(["weights", "add"]) == 2
    assert "needs input=FILE" in capsys.readouterr().err
    assert main(["weights", "verify", f"input={tmp_path}"]) == 2
    assert "No record of pretrained weights" in capsys.readouterr().err


def begun(folder: Path, **settings: str):
    method = make_method("cyclegan", "generator.channels_in=3", "generator.channels_out=3")
    method.weights_folder = str(folder)
    for name, value in settings.items():
        setattr(method, name, value)
    return method, method.begin()


def test_the_way_back_begins_by_the_stated_policy_and_the_average_with_it(folder, tmp_path):
    horse, zebra, monet = (weights_of(generator(seed)) for seed in range(3))
    plain = make_method("cyclegan", "generator.channels_in=3", "generator.channels_out=3")

    method, said = begun(folder, init="horse2zebra")
    assert same(weights_of(method.generators[0]), horse)
    assert same(weights_of(method.generators[1]), zebra)
    assert same(weights_of(method.ema.module[1]), zebra)
    assert said["forward"].startswith("'horse2zebra.pth' (SHA-256 ")
    assert said["backward"].startswith("'zebra2horse.pth' (SHA-256 ")
    assert said["discriminators"] == "drawn at random"
    assert same(weights_of(method.discriminators), weights_of(plain.discriminators))

    method, said = begun(folder, init="style_monet")  # monet2photo is not in the folder
    assert same(weights_of(method.generators[1]), monet)
    assert said["backward"] == "a copy of the forward generator"
    method, said = begun(folder, init="style_monet", init_reverse="scratch")
    assert same(weights_of(method.generators[1]), weights_of(plain.generators[1]))
    assert said["backward"] == "drawn at random"
    method, _ = begun(folder, init=str(folder / "style_monet.pth"), init_reverse="zebra2horse")
    assert same(weights_of(method.generators[0]), monet)
    assert same(weights_of(method.generators[1]), zebra)
    assert begun(folder)[1] == {}


def test_one_channel_is_converted_and_said(folder):
    method = make_method("cyclegan")
    method.init, method.weights_folder = "horse2zebra", str(folder)
    assert method.begin()["forward"].endswith(", converted from 3 channels to 1")
    first = generator(0).model[1].weight.sum(1, keepdim=True)
    assert torch.equal(method.generators[0].model[1].weight, first)


def test_a_run_is_a_start_for_both_ways(tmp_path):
    method = make_method("cyclegan", seed=5)
    train(method, [make_batch(1)]).save_checkpoint(tmp_path / "a.ckpt")
    other, said = make_method("cyclegan"), {}
    other.init = str(tmp_path / "a.ckpt")
    said = other.begin()
    assert same(weights_of(other.generators), weights_of(method.ema.module))
    assert said["backward"] == "generator 1 of the run 'a.ckpt'"


def test_what_is_not_there_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(ArtifactError, match="junyanz/pytorch-CycleGAN-and-pix2pix describes") as refused:
        begun(tmp_path, init="horse2zebra")
    assert "Nothing is downloaded" in str(refused.value)
    assert "cinevox weights add input=horse2zebra.pth" in str(refused.value)
    with pytest.raises(ConfigError, match="Did you mean 'horse2zebra'"):
        begun(tmp_path, init="horse2zebr")
    with pytest.raises(ConfigError, match="init_reverse names weights"):
        make_method("cyclegan", "init_reverse=zebra2horse")


TRAINING = [
    "experiment=cyclegan_transfer",
    "tracking=none",
    "trainer.precision=fp32",
    "trainer.threads=1",
    "trainer.budget.minutes=0",
    "trainer.budget.steps=2",
    "trainer.validations=1",
    "trainer.validation_segments=1",
    "trainer.validation_slices=2",
    "trainer.panels=false",
    "model.module.generator.width=4",
    "model.module.generator.blocks=2",
    "model.module.discriminator.width=4",
    "model.module.discriminator.layers=2",
]


def test_a_run_prints_and_records_its_start_and_goes_on_without_the_files(folder, tiny_shards, tmp_path, capsys):
    command = ["train", *TRAINING, "model.init=horse2zebra", f"input={tiny_shards}", f"output={tmp_path / 'run'}"]
    assert main([*command, f"model.weights={tmp_path / 'nowhere'}"]) == 2
    assert "is not in the weights folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    command.append(f"model.weights={folder}")
    assert main(command) == 0
    assert "\n  backward: 'zebra2horse.pth' (SHA-256 " in capsys.readouterr().err
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["start"]["forward"].startswith("'horse2zebra.pth'")
    (folder / "weights.json").unlink()
    (tmp_path / "run" / "stage.json").write_text(
        (tmp_path / "run" / "stage.json").read_text().replace('"finished": true', '"finished": false')
    )
    assert main(command) == 0  # what it began as lies in its checkpoint
    capsys.readouterr()
    words = ["translate", f"checkpoint={tmp_path / 'run'}", f"input={tiny_shards}", f"output={tmp_path / 'out'}"]
    assert main(words) == 0  # nor does a translation need the files
    back = ["source_modality=ct", "target_modality=t1n", f"checkpoint={tmp_path / 'run'}", f"input={tiny_shards}"]
    assert main(["translate", *back, f"output={tmp_path / 'back'}"]) == 0
    found = Translation.load(tmp_path / "back")
    assert (found.source_modality, found.target_modality, found.unit) == ("ct", "t1n", "normalised")
    assert Translation.load(tmp_path / "out").target_modality == "ct"
    assert main(["translate", "target_modality=t2w", *back[2:], f"output={tmp_path / 'no'}"]) == 2
    # Nobody goes on from the best one: it begins anew, and needs the files.
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("last.ckpt", "previous.ckpt"):
        (checkpoints / name).unlink(missing_ok=True)
    assert (checkpoints / "best.ckpt").exists()
    (tmp_path / "run" / "stage.json").write_text(
        (tmp_path / "run" / "stage.json").read_text().replace('"finished": true', '"finished": false')
    )
    capsys.readouterr()
    assert main(command) == 2
    assert "is not in the weights folder" in capsys.readouterr().err
