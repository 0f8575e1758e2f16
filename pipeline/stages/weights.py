"""A local folder of pretrained generators, with their SHA-256.

    cinevox weights list    [input=FOLDER]               the 18 published names, and which of them are there
    cinevox weights add     input=FILE [output=FOLDER]   check a file, copy it into the folder, note its SHA-256
    cinevox weights verify  [input=FOLDER]               compare every file with its SHA-256

Reads   input=FILE        NAME.pth, or NAME_pretrained/latest_net_G.pth, of one of the published names
Writes  FOLDER/NAME.pth and FOLDER/weights.json; the folder is 'weights' where none is given

Nothing is downloaded: the files are published on the project page of junyanz/pytorch-CycleGAN-and-pix2pix. A file is
opened as tensors only, never as code, and its layout is compared before it is taken. Trainings find the folder by
model.weights=FOLDER and a file by model.init=NAME (conf/model/cyclegan.yaml).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.artifacts import atomic_path, file_sha256
from pipeline.errors import ArtifactError, ConfigError, nearest
from pipeline.models.transfer import PUBLISHED, known_folder
from pipeline.networks.generator_file import channels_of, read_generator
from pipeline.progress import say
from pipeline.records import WeightsFile, WeightsFolder
from pipeline.settings import Config

FOLDER = Path("weights")
PUBLIC_FILE = "latest_net_G"


def run(config: Config) -> None:
    """List, add to or verify a folder of pretrained generators."""
    work = config.work or "list"
    place = config.input[0] if config.input else None
    if work == "add":
        if place is None:
            raise ConfigError("'cinevox weights add' needs input=FILE")
        _add(place, config.output or FOLDER, dry_run=config.dry_run)
    elif work == "verify":
        _verify(place or FOLDER)
    elif work == "list":
        _list(place or FOLDER)
    else:
        words = ("list", "add", "verify")
        raise ConfigError(
            f"'cinevox weights' does not know '{work}'", allowed=", ".join(words), remedy=nearest(work, words)
        )


def _list(folder: Path) -> None:
    """Print every published name: there or not, what it was trained on, and its reverse."""
    files = known_folder(folder).files
    for name, published in PUBLISHED.items():
        there = f"{files[name].bytes / 1e6:6.1f} MB" if name in files else "   -     "
        back = f"; back: {published.reverse}" if published.reverse else ""
        say(f"{name:<24}{there}  {published.trained_on}{back}")
    say(f"{sum(name in files for name in PUBLISHED)} of {len(PUBLISHED)} are in '{folder}'")


def _add(file: Path, folder: Path, *, dry_run: bool) -> None:
    """Check a file and take it into the folder.

    Raises:
        ConfigError: The file's name is not a published one.
        ArtifactError: The file is missing, damaged, holds code or another network, or another file has its name.
    """
    name = file.parent.name.removesuffix("_pretrained") if file.stem == PUBLIC_FILE else file.stem
    if name not in PUBLISHED:
        raise ConfigError(
            "The file is not named after a published generator",
            value=file.name,
            allowed=f"NAME.pth or NAME_pretrained/{PUBLIC_FILE}.pth, NAME one of {', '.join(PUBLISHED)}",
            remedy=nearest(name, PUBLISHED) or "Rename it",
        )
    channels = channels_of(read_generator(file))
    record = known_folder(folder)
    entry = WeightsFile(
        sha256=file_sha256(file), bytes=file.stat().st_size, channels_in=channels[0], channels_out=channels[1]
    )
    old, target = record.files.get(name), folder / f"{name}.pth"
    if old is not None and old.sha256 != entry.sha256:
        raise ArtifactError(
            f"Another '{name}' is in '{folder}' already",
            value=f"SHA-256 {entry.sha256[:12]}...",
            allowed=f"{old.sha256[:12]}...",
            remedy="Add it to another folder, or remove the old file and its entry in weights.json",
        )
    if dry_run:
        say(f"Would copy '{file.name}' to '{target}' ({entry.bytes / 1e6:.1f} MB)")
        return
    if not (target.exists() and file.samefile(target)):
        with atomic_path(target) as partial:
            shutil.copyfile(file, partial)
    WeightsFolder(files={**record.files, name: entry}).save(folder)
    say(f"{name}: {channels[0]} channels to {channels[1]}, SHA-256 {entry.sha256}")


def _verify(folder: Path) -> None:
    """Compare every file with what was noted when it was added.

    Raises:
        ArtifactError: No record, or files that are missing or have changed.
    """
    record = WeightsFolder.load(folder) if folder.is_dir() else WeightsFolder.load(folder / WeightsFolder.FILE)
    wrong: list[str] = []
    for name, entry in record.files.items():
        path = folder / f"{name}.pth"
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif file_sha256(path) != entry.sha256:
            wrong.append(f"{name} has another SHA-256")
    if wrong:
        raise ArtifactError(
            f"{len(wrong)} of {len(record.files)} files in '{folder}' are not as they were added",
            value="; ".join(wrong),
            remedy="Remove them and their entries in weights.json, and add them again",
        )
    say(f"{len(record.files)} files in '{folder}' are as they were added")
