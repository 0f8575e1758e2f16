"""A setting is right, or refused with its name, its value and the way out; and nothing foreign is ever executed."""

import os

import pytest
import torch
from makers import configuration

from pipeline.arguments import parse
from pipeline.config import build, compose, known_keys, locate, plain, validate
from pipeline.errors import ConfigError

REFUSED = {
    "unknown key": ("stream.clip_lenght=3", "Unknown setting 'stream.clip_lenght'. Did you mean 'stream.clip_length'?"),
    "unknown group": ("modl=vid2vid", "Did you mean 'model'?"),
    "unknown key of a model": (
        "model.module.generator.widht=3",
        "'model.module.generator.widht'. Did you mean 'model.module.generator.width'?",
    ),
    "unknown name in a group": ("model=vid2vdi", "No configuration 'model/vid2vdi'. Did you mean 'vid2vid'?"),
    "unknown experiment": ("experiment=dmo", "Did you mean 'demo'?"),
    "added key": ("+stream.clip_lenght=3", "Did you mean 'stream.clip_length'?"),
    "removed section": ("~stream", "Setting 'stream' is not valid"),
    "wrong type": ("stream.clip_length=long", "'stream.clip_length' is not valid. Found: long. Allowed: Input"),
    "zero spacing": ("preprocess.spacing_mm=[0,1,1]", "'preprocess.spacing_mm.0' is not valid. Found: 0"),
    "negative spacing": ("preprocess.spacing_mm=[1,-1,1]", "'preprocess.spacing_mm.1' is not valid. Found: -1"),
    "infinite spacing": ("preprocess.spacing_mm=[inf,1,1]", "should be a finite number"),
    "spacing that is not a number": ("preprocess.spacing_mm=[nan,1,1]", "'preprocess.spacing_mm.0' is not valid"),
    "two spacings": ("preprocess.spacing_mm=[1,1]", "'preprocess.spacing_mm.2' is not valid. Found: [1, 1]."),
    "inverted window": ("stream.window.ct=[2000,-1000]", "the window of 'ct' is inverted or empty: [2000, -1000]"),
    "empty window": ("stream.window.ct=[5,5]", "inverted or empty"),
    "inverted clip": ("metrics.clip=[3071,-1024]", "clip is inverted or empty"),
    "share above 1": ("stream.augment.flip=1.5", "'stream.augment.flip' is not valid. Found: 1.5"),
    "fractions": ("cohort.split.fractions.train=0.9", "must sum to 1"),
    "two folds": ("cohort.split.folds=2", "folds must be 0 or at least 3"),
    "folds and lists": ("cohort.split={folds: 5, test: [p1]}", "the lists of train, validation and test must be empty"),
    "no budget": ("trainer.budget.minutes=0", "trainer.budget needs steps or minutes"),
    "same modality": ("source=ct", "Source and target are the same modality. Found: ct"),
    "accumulation": ("stream.accumulate=2", "global_batch 1 is no multiple of accumulate 2"),
    "interpolation": ("label=${oc.env:HOME}", "Interpolations are not taken from the command line"),
    "escaped interpolation": (r"label='\${oc.env:HOME}'", "Interpolations are not taken"),
    "sweep": ("seed=1,2", "seed=1,2"),
    "sweep function": ("label=choice(a,b)", "requires --multirun"),
    "group set to null": ("stream=null", "must be a string"),
    "no key": ("=3", "must be a string"),
    "no value": ("seed", "Error parsing override 'seed'"),
    "empty word": ("", "'cinevox VERB --dry-run' prints every key"),
    "Hydra's own settings": ("hydra.run.dir=/tmp/x", "'hydra.run.dir' is no setting that can be overridden"),
    "a path by the back door": ("++output=/tmp/x", "'output' is no setting that can be overridden"),
    "a flag by the back door": ("+dry_run=true", "'dry_run' is no setting that can be overridden"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_wrong_setting_is_refused_with_its_name(fault):
    word, expected = REFUSED[fault]
    with pytest.raises(ConfigError) as caught:
        compose([word])
    assert expected in str(caught.value)
    assert os.environ["HOME"] not in str(caught.value)


def test_clips_above_their_limit_are_refused_unless_the_plan_decides():
    with pytest.raises(ConfigError, match="clip_limit is below"):
        compose(["stream.clip_length=6", "stream.clip_limit=2"])
    stream = compose(["stream.clip_length=auto", "stream.clip_limit=2"]).stream
    assert (stream.clip_length, stream.clip_limit) == (0, 2)
    assert compose(["preprocess.spacing_mm=auto", "preprocess.size=auto"]).preprocess.size is None


def test_a_question_ends_with_a_question_mark():
    with pytest.raises(ConfigError) as caught:
        compose(["stream.clip_lenght=3"])
    assert "'?." not in str(caught.value)


def test_overrides_and_experiments_reach_the_configuration():
    config = compose(["experiment=demo", "stream.clip_length=5", "label=a b", "seed=7"])
    assert (config.stream.clip_length, config.label, config.seed) == (5, "a b", 7)
    assert config.cohort.layout == "phantom"


def test_a_configuration_is_frozen_and_plain_data_of_it_is_valid_again():
    config = configuration()
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3
    assert validate(plain(config)) == configuration()
    assert not {"input", "output", "dry_run"} & set(plain(config))


def test_every_known_key_can_be_read():
    assert {"seed", "stream.window", "trainer.budget.minutes", "preprocess.spacing_mm"} <= set(known_keys())


STRANGE = ["with space", "a [1] (2)", "Müller Größe", "a=b", "${oc.env:HOME}", "~x", "a;b,c", "[1,2]", "{a: b}", "'q\""]


def test_paths_are_taken_as_they_stand():
    words, paths, _ = parse([*(f"input={path}" for path in STRANGE), *(w for p in STRANGE for w in ("-i", p))])
    assert words == []
    config = compose(words, {**paths, "output": STRANGE[4], "checkpoint": STRANGE[1]})
    assert [str(path) for path in config.input] == STRANGE * 2
    assert (str(config.output), str(config.checkpoint)) == (STRANGE[4], STRANGE[1])


# --- Building ------------------------------------------------------------------------------------------------------

FOREIGN = [
    "os.system",
    "builtins.open",
    "builtins.eval",
    "pathlib.Path.write_text",
    "pathlib.Path",
    "subprocess.Popen",
    "posix.system",
    "torch.load",
    "torch.hub.load",
    "torch.utils.data.DataLoader",
    "hydra.utils.call",
    "torch.nn.functional.relu",  # a function
    "torch.nn.Parameter",  # a class of another kind
    "torch.nn.modules.module.OrderedDict",  # re-exported
    "torch.nn.modules.linear.math.sqrt",
    "pipeline.artifacts.Path",  # re-exported
    "pipeline.artifacts.os.system",
    "pipeline.config.compose",
    "pipeline.__main__.main",
    "pipeline.stages.train.run",
    "pipeline.records.Cohort",
    "pipeline.models.vid2vid.torch",
    "pytorch_lightning.Trainer",
    "pytorch_lightning.LightningDataModule",
    "pipelines.Model",
    "pipeline",
    "pipeline.",
    "pipeline..models",
    "pipeline.models.identity.Nothing",
    "pipeline.nothing.Nothing",
    "torch.nn.Linear.__init__",
    "torch.nn.modules.__builtins__",
    "",
    7,
    None,
    ["os.system"],
]


@pytest.fixture
def tripwire(tmp_path, monkeypatch):
    """A folder in which nothing may appear."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def nodes(inner):
    return {
        "alone": inner,
        "in a list": [1, [inner]],
        "in a dict": {"a": {"b": inner}},
        "in an argument": {"_target_": "torch.nn.ReLU", "inplace": inner},
        "deep in a model": {"_target_": "torch.nn.Sequential", "args": [{"x": inner}]},
    }


@pytest.mark.parametrize("target", FOREIGN, ids=repr)
def test_nothing_but_our_kinds_of_classes_is_built_and_nothing_is_called(tripwire, target):
    wire = str(tripwire / "executed")
    for arguments in ({}, {"command": f"touch {wire}"}, {"file": wire, "mode": "w"}, {"args": ["touch", wire]}):
        for node in nodes({"_target_": target, **arguments}).values():
            with pytest.raises(ConfigError, match="_target_"):
                build(node)


@pytest.mark.parametrize("target", ["os.system", "builtins.open", "pathlib.Path.write_text", "subprocess.Popen"])
def test_a_foreign_target_from_the_command_line_is_refused_when_it_is_built(tripwire, target):
    config = compose(["model=identity", f"model.module._target_={target}", f"+model.module.command='{tripwire}/x'"])
    with pytest.raises(ConfigError, match="points outside what may be built"):
        build(config.model.module)


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.StepLR",
        "monai.networks.nets.UNet",
        "pytorch_lightning.callbacks.ModelCheckpoint",
        "pipeline.models.identity.Identity",
    ],
)
def test_networks_optimisers_schedulers_and_callbacks_are_found(target):
    assert locate(target).__name__ == target.rpartition(".")[2]


def test_another_package_is_allowed_only_where_the_user_names_it():
    with pytest.raises(ConfigError, match="points outside"):
        locate("torch.fx.GraphModule")
    assert locate("torch.fx.GraphModule", ["torch.fx"]).__name__ == "GraphModule"
    with pytest.raises(ConfigError, match="not a class that may be built"):
        locate("os.system", ["os"])
    with pytest.raises(ConfigError, match="points outside"):
        locate("torch.fxy.GraphModule", ["torch.fx"])


def test_inner_nodes_are_built_and_plain_data_stays():
    built = build({"a": [{"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, 1, "x", None]})
    assert isinstance(built["a"][0], torch.nn.Linear)
    assert built["a"][0].weight.shape == (3, 2)
    assert built["a"][1:] == [1, "x", None]


UNET = {
    "_target_": "pipeline.networks.residual_unet.ResidualUNet",
    "channels_in": 1,
    "channels_out": 1,
    "widths": [4, 8],
    "residual_units": 1,
}


def test_a_network_of_ours_is_built_from_plain_data():
    assert isinstance(build(UNET), torch.nn.Module)


def test_an_unknown_argument_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        build({**UNET, "channels_inn": 2})
    assert "Unknown setting 'model.module.channels_inn' of ResidualUNet. Did you mean 'channels_in'?" in str(
        caught.value
    )


def test_a_missing_argument_is_refused():
    with pytest.raises(ConfigError, match=r"model\.module of Linear lacks: in_features, out_features"):
        build({"_target_": "torch.nn.Linear"})


@pytest.mark.parametrize(("key", "value"), [("channels_in", "two"), ("widths", 7), ("channels_in", None)])
def test_an_argument_of_the_wrong_type_is_refused(key, value):
    with pytest.raises(ConfigError, match=rf"Setting 'model\.module\.{key}' is not valid"):
        build({**UNET, key: value})


def test_what_a_foreign_constructor_refuses_is_the_users_error():
    with pytest.raises(ConfigError, match=r"'model\.module' \(Linear\) cannot be built"):
        build({"_target_": "torch.nn.Linear", "in_features": "many", "out_features": 1})
