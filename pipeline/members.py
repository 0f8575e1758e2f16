"""Trainings that are made alike and compared: members of a sweep, folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import compose
from pipeline.errors import ConfigError
from pipeline.settings import Config

REPORT, INCOMPLETE = "report", "report-incomplete"
_OWN_GROUPS = ("cluster", "sweep")  # what decides where and which, not what a member is
_NOT_NAMES = (REPORT, INCOMPLETE, "source", "jobs")


@dataclass(frozen=True)
class Member:
    """One training of several, with what is made of it: ``words`` are settings of all its commands."""

    name: str
    words: tuple[str, ...]
    folder: Path

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.folder / "run"

    @property
    def translated(self) -> Path:
        """Its translations."""
        return self.folder / "translated"

    @property
    def scores(self) -> Path:
        """Its scores."""
        return self.folder / "scores"

    def commands(self, shards: Path) -> dict[str, tuple[Path, list[str]]]:
        """Return, by verb and in order, where a command's output goes and the words that only this member gives it."""
        paths = {
            "train": (self.run, [f"input={shards}"]),
            "translate": (self.translated, [f"checkpoint={self.run}", f"input={shards}"]),
            "evaluate": (self.scores, [f"input={self.translated}"]),
        }
        return {verb: (output, [*words, f"output={output}"]) for verb, (output, words) in paths.items()}


def sweep_members(config: Config, overrides: Sequence[str]) -> list[Member]:
    """Return the members of ``sweep.members``, each composed once, so that no mistake is met after days.

    Args:
        config: Of the sweep.
        overrides: Settings of the command line, which all members share.

    Raises:
        ConfigError: There is none, a member's settings are not valid, or two cannot share a table.
    """
    assert config.output is not None
    if not config.sweep.members:
        raise ConfigError("The sweep has no members", remedy="Give sweep=NAME, or set sweep.members")
    top = config.output.absolute()
    members = []
    labels: dict[str, str] = {}
    for name, own in config.sweep.members.items():
        if name.lower() in _NOT_NAMES:
            raise ConfigError("A member cannot be called so", value=name, allowed=f"not {', '.join(_NOT_NAMES)}")
        member = Member(name, tuple(together(shared(overrides), [f"label={name}", *own])), top / name)
        try:
            composed = compose(member.words)
        except ConfigError as error:
            raise ConfigError(f"Member '{name}' of the sweep: {error}") from None
        label = composed.translate.label or composed.label
        if (other := labels.setdefault(label, name)) != name:
            raise ConfigError(f"Members '{other}' and '{name}' have the same label", value=label)
        if composed.metrics != config.metrics or composed.evaluate != config.evaluate:
            raise ConfigError(
                f"Member '{name}' would be scored differently from the others",
                remedy="Set metrics and evaluate for all of them, on the command line",
            )
        if (composed.trainer.devices, composed.trainer.nodes) != (config.trainer.devices, config.trainer.nodes):
            raise ConfigError(
                f"Member '{name}' would need other machines than the others",
                remedy="Set trainer.devices and trainer.nodes for all of them, on the command line",
            )
        members.append(member)
    if len({name.lower() for name in config.sweep.members}) < len(members):
        raise ConfigError("Names of members differ in capitals only", remedy="Rename one: some disks keep one of them")
    return members


def fold_members(config: Config) -> list[Member]:
    """Return a member per fold of ``cohort.split.folds``."""
    assert config.output is not None
    top = config.output.absolute()
    return [Member(f"fold{k}", (f"fold={k}",), top / f"fold{k}") for k in range(1, config.cohort.split.folds + 1)]


def shared(overrides: Sequence[str]) -> list[str]:
    """Return the settings that every command is given: not those of the groups 'cluster' and 'sweep'."""
    return [word for word in overrides if _key(word).partition(".")[0] not in _OWN_GROUPS]


def together(common: Sequence[str], own: Sequence[str]) -> list[str]:
    """Return the settings of one member: its own stand in place of common ones, its experiments after common ones."""
    last = {_key(word): word for word in own}
    experiments = [name for words in (common, own) for name in _experiments(words)]
    both = [word for word in common if _key(word) not in last] + list(last.values())
    if not experiments:
        return both
    names = ",".join(dict.fromkeys(experiments))
    joined = f"experiment=[{names}]" if "," in names else f"experiment={names}"
    return [joined, *(word for word in both if _key(word) != "experiment")]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _experiments(words: Sequence[str]) -> list[str]:
    values = [word.partition("=")[2] for word in words if _key(word) == "experiment"]
    names = [name.strip() for value in values for name in value.strip("[]").split(",")]
    return [name for name in names if name and name != "null"]
