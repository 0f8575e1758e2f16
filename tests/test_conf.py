"""Every YAML under conf/ is composed, and every model is built at its full size."""

import ast
import re
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.config import build, compose, conf_folder

GROUPS = sorted({path.parent.name for path in conf_folder().glob("*/*.yaml")})
OPTIONS = sorted(
    f"{path.parent.name}={path.stem}" for path in conf_folder().glob("*/*.yaml") if not path.stem.startswith("_")
)
MODELS = sorted(path.stem for path in (conf_folder() / "model").glob("*.yaml"))
SMALL = sorted(path.stem for path in (conf_folder() / "experiment").glob("small_*.yaml"))


def test_the_folders_and_files_are_the_ones_we_think_they_are():
    assert {"cohort", "experiment", "metrics", "model", "preprocess", "simulate", "stream", "trainer"} <= set(GROUPS)
    assert len(OPTIONS) >= 15
    deeper = [path for path in conf_folder().rglob("*.yaml") if len(path.relative_to(conf_folder()).parts) > 2]
    assert deeper == []


def test_every_file_is_reached_by_composition():
    top = {path.stem for path in conf_folder().glob("*.yaml")} - {"cinevox"}
    defaults = yaml.safe_load((conf_folder() / "cinevox.yaml").read_text())["defaults"]
    named = {name for entry in defaults for name in (entry if isinstance(entry, dict) else [entry])}
    assert top | set(GROUPS) <= named
    hidden = {path.stem for path in conf_folder().glob("*/_*.yaml")}
    assert hidden <= {"_base"}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_composed_with_the_defaults_of_the_others(option):
    config = compose([option])
    group, _, name = option.partition("=")
    if group == "model":
        assert config.model.name == name
    assert config.seed == 0


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_built_at_full_size(model):
    config = compose([f"model={model}"])
    with torch.device("meta"):
        method = build(config.model.module)
    assert config.model.name == model
    # A method that learns nothing has no parameters; files of weights are read to the CPU.
    assert all(p.device.type == "meta" for p in method.parameters() if p.requires_grad)
    assert (sum(p.numel() for p in method.parameters()) > 0) == (model != "identity")


@pytest.mark.parametrize("experiment", [o for o in OPTIONS if o.startswith("experiment=")])
def test_every_experiment_builds_its_model(experiment):
    with torch.device("meta"):
        assert sum(p.numel() for p in build(compose([experiment]).model.module).parameters()) > 0


@pytest.mark.parametrize("data", ["cbct_ct", "phantom_ct"])
@pytest.mark.parametrize("method", SMALL)
def test_every_small_method_fits_every_data_set_and_changes_none_of_it(data, method):
    config, alone = compose([f"experiment=[{data},{method}]"]), compose([f"experiment={data}"])
    with torch.device("meta"):
        build(config.model.module).check_stream(config.stream.clip_length, config.stream.clip_limit)
    same = ("cohort", "simulate", "preprocess", "trainer")
    assert all(getattr(config, section) == getattr(alone, section) for section in same)
    # What a sample is, and how many make a step, is a method's affair.
    own = ("pairing", "clip_length", "clip_growth", "clip_limit", "global_batch")
    assert config.stream.model_copy(update={name: getattr(alone.stream, name) for name in own}) == alone.stream


def test_the_small_methods_have_labels_of_their_own():
    assert len({compose([f"experiment={method}"]).label for method in SMALL}) == len(SMALL)


def test_the_published_size_of_vid2vid():
    with torch.device("meta"):
        method = build(compose(["model=vid2vid"]).model.module)
    assert round(sum(p.numel() for p in method.generator.parameters()) / 1e6, 1) == 91.2


def _keys(data, prefix=""):
    for name, value in data.items():
        yield prefix + name
        if value == {}:  # names of the user's choice
            yield f"{prefix}{name}.*"
        elif isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def test_every_setting_that_a_message_or_a_page_names_is_one():
    known = {key for model in MODELS for key in _keys(compose([f"model={model}"]).model_dump(mode="json"))}
    sections = [name for name, value in compose([]).model_dump().items() if isinstance(value, dict)]
    # In code only where it is said to a user; on a page anywhere, but for names of files and of Python's objects.
    named = re.compile(rf"(?<![\w./`-])(?:{'|'.join(sections)})(?:\.[a-z_]+)+(?=[\s=,.;:)'`]|$)")
    root = Path(__file__).parents[1]
    texts = {path: path.read_text() for path in [root / "README.md", *root.glob("docs/**/*.md")]}
    for path in root.glob("pipeline/**/*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        texts[path] = "\n".join(n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, str))
    files = ("json", "csv", "html", "css", "yaml", "md")
    words = {(path.name, word) for path, text in texts.items() for word in named.findall(text)}
    unknown = {(name, word) for name, word in words if not {word, f"{word.rpartition('.')[0]}.*"} & known}
    assert not {(name, word) for name, word in unknown if word.rpartition(".")[2] not in files}
    assert ("ranks.py", "stream.accumulate") in words
