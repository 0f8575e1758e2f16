"""Where pretrained CycleGAN generators come from, and which one begins as what.

The 18 names are those of the public project's download script; each file holds one generator and nothing else, so that
the way back and the discriminators have to begin otherwise. Idea: Haimour et al., CVIU 2024 (arXiv 2501.12488).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import file_sha256
from pipeline.errors import ArtifactError, ConfigError, nearest
from pipeline.networks.generator_file import channels_of, load_generator, read_generator
from pipeline.networks.resnet_generator import ResnetGenerator
from pipeline.networks.weights_file import read_network
from pipeline.records import WeightsFolder

PROJECT = "junyanz/pytorch-CycleGAN-and-pix2pix"
POLICIES = ("copy", "scratch")


@dataclass(frozen=True)
class Published:
    """A public generator: what its images were, and which name translates them back."""

    trained_on: str
    reverse: str = ""


PUBLISHED = {
    "apple2orange": Published("photographs of apples to oranges (ImageNet)", "orange2apple"),
    "orange2apple": Published("photographs of oranges to apples (ImageNet)", "apple2orange"),
    "summer2winter_yosemite": Published("Yosemite in summer to winter (Flickr)", "winter2summer_yosemite"),
    "winter2summer_yosemite": Published("Yosemite in winter to summer (Flickr)", "summer2winter_yosemite"),
    "horse2zebra": Published("photographs of horses to zebras (ImageNet)", "zebra2horse"),
    "zebra2horse": Published("photographs of zebras to horses (ImageNet)", "horse2zebra"),
    "monet2photo": Published("paintings by Monet to photographs", "style_monet"),
    "style_monet": Published("photographs to paintings by Monet", "monet2photo"),
    "style_cezanne": Published("photographs to paintings by Cezanne"),
    "style_ukiyoe": Published("photographs to ukiyo-e prints"),
    "style_vangogh": Published("photographs to paintings by van Gogh"),
    "sat2map": Published("aerial photographs to maps", "map2sat"),
    "map2sat": Published("maps to aerial photographs", "sat2map"),
    "cityscapes_photo2label": Published("street scenes to label maps (Cityscapes)", "cityscapes_label2photo"),
    "cityscapes_label2photo": Published("label maps to street scenes (Cityscapes)", "cityscapes_photo2label"),
    "facades_photo2label": Published("facades to label maps (CMP)", "facades_label2photo"),
    "facades_label2photo": Published("label maps to facades (CMP)", "facades_photo2label"),
    "iphone2dslr_flower": Published("telephones' photographs of flowers to a camera's (Flickr)"),
}


def known_folder(folder: Path) -> WeightsFolder:
    """Return the record of a weights folder; an empty one where there is none."""
    return WeightsFolder.load(folder) if (folder / WeightsFolder.FILE).is_file() else WeightsFolder()


def stored(name: str, folder: Path) -> Path:
    """Return the file of a published name, compared with its SHA-256.

    Raises:
        ArtifactError: It was never added (with where it is published, and what to do), or is another one now.
    """
    entry, path = known_folder(folder).files.get(name), folder / f"{name}.pth"
    if entry is None or not path.is_file():
        raise ArtifactError(
            f"The pretrained generator '{name}' is not in the weights folder '{folder}'",
            remedy=f"Nothing is downloaded. Get its latest_net_G.pth as the project page of {PROJECT} describes, name "
            f"it {name}.pth, and run 'cinevox weights add input={name}.pth output={folder}'",
        )
    if file_sha256(path) != entry.sha256:
        raise ArtifactError(
            f"The pretrained generator '{name}' is not the file that was added",
            value="another SHA-256",
            allowed=f"{entry.sha256[:12]}...",
            remedy=f"Run 'cinevox weights verify input={folder}', and add the right file again",
        )
    return path


def start_generators(
    forward: ResnetGenerator, backward: ResnetGenerator, init: str, init_reverse: str, folder: Path
) -> dict[str, str]:
    """Put pretrained weights into the generators of both ways.

    The way back begins with, in this order: the file or name of ``init_reverse``; the other generator of a run; the
    reverse name's file, where there is one in the folder; else a copy of the way forth, or what it was drawn as.

    Args:
        forward: From source to target.
        backward: From target to source.
        init: A published name, a .pth file, or a run of CycleGAN (its folder or a .ckpt file).
        init_reverse: ``copy``, ``scratch``, or as ``init``.
        folder: Of 'cinevox weights', for names.

    Returns:
        What each began as, in words, for the run's record.

    Raises:
        ConfigError: Neither a name nor a file.
        ArtifactError: A file that is missing, damaged, holds code, or another network.
    """
    origins = {"forward": _start(forward, init, folder, 0)}
    reverse = PUBLISHED[init].reverse if init in PUBLISHED else ""
    if init_reverse not in POLICIES:
        origins["backward"] = _start(backward, init_reverse, folder, 0)
    elif _is_run(init):
        origins["backward"] = _start(backward, init, folder, 1)
    elif reverse and reverse in known_folder(folder).files:
        origins["backward"] = _start(backward, reverse, folder, 0)
    elif init_reverse == "copy":
        backward.load_state_dict(forward.state_dict())
        origins["backward"] = "a copy of the forward generator"
    else:
        origins["backward"] = "drawn at random"
    return {**origins, "discriminators": "drawn at random"}


def _start(network: ResnetGenerator, choice: str, folder: Path, place: int) -> str:
    """Put one generator's weights in; ``place`` is the generator's in a run. Returns where they came from."""
    path = stored(choice, folder) if choice in PUBLISHED else Path(choice)
    if not path.exists():
        raise ConfigError(
            "There are no such pretrained weights",
            value=choice,
            allowed=f"a file, a run, or one of {', '.join(PUBLISHED)}",
            remedy=nearest(choice, PUBLISHED),
        )
    if _is_run(choice):
        load_generator(network, read_network(path, f"ema.module.{place}", f"generators.{place}"), path.name)
        return f"generator {place} of the run '{path.name}'"
    state = read_generator(path)
    load_generator(network, state, path.name)
    channels = channels_of(state)
    adapted = f", converted from {channels[0]} channels to {network.channels_in}"
    return f"'{path.name}' (SHA-256 {file_sha256(path)[:12]}){adapted if network.channels_in != channels[0] else ''}"


def _is_run(choice: str) -> bool:
    return choice not in PUBLISHED and (Path(choice).is_dir() or choice.endswith(".ckpt"))
