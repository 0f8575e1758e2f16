"""The recipes of images: the same base, Python and pins as the project's own, no secret, nobody's root.

Neither Docker nor Apptainer is asked: they are no part of what the tests need.
"""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
DOCKER, APPTAINER = ROOT / "containers" / "Dockerfile", ROOT / "containers" / "cinevox.def"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line and line[0] != "#"
)


def lines(path):
    return [line.strip() for line in path.read_text().splitlines() if line.strip() and line.strip()[0] != "#"]


def bases(path):
    return [m[1] for line in lines(path) if (m := re.match(r"(?:FROM|From:)\s+(\S+)", line))]


def installs(path):
    return [line.partition("pip install ")[2] for line in lines(path) if "pip install " in line]


def copied(path):
    if path == APPTAINER:
        part = path.read_text().partition("%files")[2].partition("%post")[0]
        return {line.split()[0] for line in part.splitlines() if line.strip()}
    return {
        word for line in lines(path) if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    }


def test_the_images_have_one_base_whose_python_the_project_allows():
    assert len({*bases(DOCKER), *bases(APPTAINER)}) == 1
    version = re.fullmatch(r"python:(\d+\.\d+\.\d+)-slim-[a-z]+", bases(DOCKER)[0])  # all three numbers: a pin
    assert version
    assert version[1] in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("path", [DOCKER, APPTAINER], ids=["docker", "apptainer"])
def test_everything_is_installed_by_the_constraints_torch_first(path):
    first, second = installs(path)
    assert all(words.startswith("--constraint constraints.txt ") for words in (first, second))
    assert re.search(r"--index-url (\$\{TORCH_INDEX\}|\{\{ TORCH_INDEX \}\}) torch$", first)
    extras = re.search(r"\.\[([a-z,]+)\]", second)[1].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()
    assert "dev" not in extras
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in path.read_text()


@pytest.mark.parametrize("path", [DOCKER, APPTAINER], ids=["docker", "apptainer"])
def test_what_is_copied_is_there_and_nothing_else(path):
    assert copied(path) == {"constraints.txt", "pyproject.toml", "README.md", "LICENSE", "pipeline", "conf", "slurm"}
    assert all((ROOT / name).exists() for name in copied(path))
    ignored = lines(DOCKER.with_name("Dockerfile.dockerignore"))
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied(DOCKER)
    assert not re.search(r"(?i)(api_?key|secret_?key|token|passw)", "\n".join(lines(path)))


def test_the_docker_image_runs_as_nobodys_root():
    assert [line.split()[1] for line in lines(DOCKER) if line.startswith("USER ")] == ["cinevox"]
    assert "--uid 1000 cinevox" in DOCKER.read_text()


def test_every_pin_is_within_what_the_project_asks_for():
    names = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in PINS.items()}
    wanted = [*PROJECT["dependencies"], *(r for group in PROJECT["optional-dependencies"].values() for r in group)]
    for requirement in map(Requirement, wanted):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(names[name]), requirement


def test_poisoned_and_code_executing_releases_of_lightning_are_excluded():
    """2.6.2 and 2.6.3 stole credentials; before 2.6.6 a checkpoint's hyper-parameters could execute code."""
    asked = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "pytorch-lightning")
    assert not any(asked.specifier.contains(version) for version in ("2.6.2", "2.6.3", "2.6.5"))
    assert asked.specifier.contains(PINS["pytorch-lightning"])
    others = [name for name in PINS if name.lower() in ("lightning", "lightning-fabric")]
    assert others == []  # the other distributions of the same code were poisoned as well
