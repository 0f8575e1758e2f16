"""Split the words of a command line: settings for Hydra, and paths that are taken as they stand."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ConfigError

# Hydra's grammar refuses spaces with brackets and would resolve ${...}: paths never pass through it.
REPEATED = ("input", "prediction", "prediction_labels")
PATH_KEYS = (*REPEATED, "output", "checkpoint", "reference", "mask", "reference_labels")
SHORT = {"-i": "input", "-o": "output"}
BARE = {"submit": "work", "status": "input", "cancel": "input"}  # what a verb's word without '=' is
SWITCHES = {"cohort": {"--check": "cohort.check=true"}}  # a verb's own words for its settings


def parse(arguments: list[str], verb: str = "") -> tuple[list[str], dict[str, object], bool]:
    """Split a verb's arguments into Hydra overrides, what is taken as it stands (paths, part) and the dry-run flag."""
    switches = SWITCHES.get(verb, {})
    overrides: list[str] = []
    paths: dict[str, list[Path]] = {}
    texts: dict[str, object] = {}
    dry_run = False
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if word == "--dry-run":
            dry_run = True
        elif word in switches:
            overrides.append(switches[word])
        elif word in SHORT:
            if not queue:
                raise ConfigError(f"'{word}' needs a path after it")
            paths.setdefault(SHORT[word], []).append(_path(word, queue.pop(0)))
        elif name in PATH_KEYS and equals:
            paths.setdefault(name, []).append(_path(name, value))
        elif name == "part" and equals:
            texts[name] = value
        elif verb in BARE and not equals and not word.startswith("-"):
            if BARE[verb] == "work":
                texts["work"] = word
            else:
                paths.setdefault("input", []).append(_path("input", word))
        elif word.startswith("-"):
            raise ConfigError(
                f"Unknown option '{word}'", allowed=", ".join(["-i, -o", *switches, "--dry-run, --debug, --help"])
            )
        else:
            overrides.append(word)
    for name, values in paths.items():
        if len(values) > 1 and name not in REPEATED:
            raise ConfigError(f"'{name}' is given twice")
    return overrides, {**texts, **{n: v if n in REPEATED else v[0] for n, v in paths.items()}}, dry_run


def _path(name: str, value: str) -> Path:
    if not value:  # an unset shell variable: the empty path would be the current folder
        raise ConfigError(f"'{name}' is empty")
    return Path(value)
