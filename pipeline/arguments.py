"""Split the words of a command line: settings for Hydra, and paths that are taken as they stand."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.errors import ConfigError

# Hydra's grammar refuses spaces with brackets and would resolve ${...}: paths never pass through it.
REPEATED = ("input", "prediction", "prediction_labels")
PATH_KEYS = (*REPEATED, "output", "checkpoint", "reference", "mask", "reference_labels")
# What fsspec fetches without a shell; 'memory' lives in this process. A secret has no place in an address.
FROM_A_SERVER = ("train", "translate", "submit")  # verbs; 'submit' hands the address on
SCHEMES = ("https", "http", "s3", "memory")
_SCHEME = re.compile(r"(pipe|[A-Za-z][A-Za-z0-9+.-]*(?=://|::)):")
TEXT_KEYS = ("part", "source_modality", "target_modality")  # of one command, no setting of an experiment
SHORT = {"-i": "input", "-o": "output"}
BARE = {"submit": "work", "weights": "work", "status": "input", "cancel": "input"}  # what a verb's word without '=' is
SWITCHES = {"cohort": {"--check": "cohort.check=true"}}  # a verb's own words for its settings


def parse(arguments: list[str], verb: str = "") -> tuple[list[str], dict[str, object], bool]:
    """Split a verb's arguments into Hydra overrides, what is taken as it stands (paths, part) and the dry-run flag."""
    switches = SWITCHES.get(verb, {})
    overrides: list[str] = []
    paths: dict[str, list[Path]] = {}
    texts: dict[str, object] = {}
    urls: list[str] = []
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
            _place(SHORT[word], queue.pop(0), paths, urls, said=word)
        elif name in PATH_KEYS and equals:
            _place(name, value, paths, urls)
        elif name in TEXT_KEYS and equals:
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
    if urls:
        if verb not in FROM_A_SERVER:
            allowed = ", ".join(FROM_A_SERVER)
            raise ConfigError(f"'cinevox {verb}' reads folders only", value="an address", allowed=allowed)
        if len(urls) > 1 or "input" in paths:
            raise ConfigError("Shards on a server are the only input", value=f"{len(urls)} addresses, or folders too")
        texts["shards_url"] = urls[0]
    return overrides, {**texts, **{n: v if n in REPEATED else v[0] for n, v in paths.items()}}, dry_run


def _place(name: str, value: str, paths: dict[str, list[Path]], urls: list[str], said: str = "") -> None:
    """Take a path, or the address of shards on a server."""
    if _SCHEME.match(value):
        if name != "input":
            raise ConfigError(f"'{name}' is an address", allowed="a path; only input may be an address")
        urls.append(_url(value))
    else:
        paths.setdefault(name, []).append(_path(said or name, value))


def _url(value: str) -> str:
    """Return the address of a shard folder, without the slash at its end.

    Raises:
        ConfigError: A command, a chain of addresses, another scheme, a secret in it, or no host.
    """
    scheme, _, rest = value.partition("://")
    if scheme.lower() not in SCHEMES or "::" in rest or not rest.strip("/"):
        raise ConfigError(
            "'input' is no address that shards are read from",
            value=f"scheme '{re.split('[:]', value)[0][:20]}'",
            allowed=", ".join(f"{s}://..." for s in SCHEMES[:3]),
            remedy="Give the folder that holds index.json",
        )
    if re.search(r"[@?#\s]", rest) or not rest.isprintable():
        raise ConfigError(
            "'input' holds more than a host and a path",
            allowed=f"{scheme}://HOST/PATH",
            remedy="Credentials come from the environment or ~/.netrc, never from an address",
        )
    return f"{scheme.lower()}://{rest.rstrip('/')}"


def _path(name: str, value: str) -> Path:
    if not value:  # an unset shell variable: the empty path would be the current folder
        raise ConfigError(f"'{name}' is empty")
    return Path(value)
