"""Compose ``conf/`` with overrides, validate, freeze; build only objects that are allowed."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pipeline.arguments import PATH_KEYS, TEXT_KEYS
from pipeline.errors import ConfigError, nearest
from pipeline.settings import Config

_TAKEN_AS_THEY_STAND = ("dry_run", "work", "shards_url", *TEXT_KEYS)
_INSTEAD = {"dry_run": "Use --dry-run", "shards_url": "Use input=URL", **{key: f"Use {key}=PATH" for key in PATH_KEYS}}
ALLOWED_PACKAGES = ("pipeline.", "torch.nn.", "torch.optim.", "monai.networks.", "pytorch_lightning.")


def conf_folder() -> Path:
    """Return the folder of YAML files: package data of the wheel, or the repository's ``conf/``."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def compose(overrides: Sequence[str], paths: Mapping[str, Any] | None = None, *, dry_run: bool = False) -> Config:
    """Compose the one configuration from ``conf/`` and Hydra overrides, and validate it.

    Args:
        overrides: ``name=value`` in Hydra's grammar (groups, keys, ``experiment=...``).
        paths: Free text of PATH_KEYS, put in after composition.
        dry_run: Kept in the configuration for the stage.

    Raises:
        ConfigError: An unknown key or group, a wrong type, an impossible combination.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import ConfigCompositionException, HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        if "${" in override:
            raise ConfigError("Interpolations are not taken from the command line", value=override)
        key = override.partition("=")[0].lstrip("+~")
        if re.match(r"hydra\b", key) or key in (*PATH_KEYS, *_TAKEN_AS_THEY_STAND):
            raise ConfigError(
                f"'{key}' is no setting that can be overridden", value=override, remedy=_INSTEAD.get(key, "")
            )

    def plain_data(words: Sequence[str]) -> dict[str, Any]:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            try:
                composed = hydra_compose("cinevox", overrides=list(words))
            except ValueError as error:  # of a group that is set to null or a number
                raise ConfigCompositionException(str(error)) from None
            data = OmegaConf.to_container(composed, resolve=True)
        assert isinstance(data, dict)
        return {str(key): value for key, value in data.items()}

    try:
        data = plain_data(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        # Groups alone (model=...) tell which keys there are.
        groups = [w for w in overrides if "." not in w.partition("=")[0]]
        try:
            keys = _keys(plain_data(groups))
        except (HydraException, OmegaConfBaseException):
            keys = []
        raise ConfigError(_explain(str(error), keys), remedy="'cinevox VERB --dry-run' prints every key") from None
    finally:
        GlobalHydra.instance().clear()
    return validate({**data, **(paths or {}), "dry_run": dry_run})


def _explain(message: str, keys: list[str]) -> str:
    """Shorten Hydra's message and add the nearest valid name."""
    first = message.split("\n")[0]
    if match := re.search(r"Could not override '([^']+)'", message):
        key = match.group(1)
        return f"Unknown setting '{key}'. {nearest(key, keys or known_keys())}".strip()
    if match := re.search(r"Could not find '([^']+)'", message) or re.search(r"load '([^']+)'", message):
        group, _, name = match.group(1).rpartition("/")
        names = [p.stem for p in sorted((conf_folder() / group).glob("*.yaml")) if not p.stem.startswith("_")]
        hint = nearest(name, names)
        return f"No configuration '{match.group(1)}'. {hint} Available: {', '.join(names)}".replace("  ", " ")
    return first


def _keys(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in data.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            keys += _keys(value, f"{prefix}{name}.")
    return keys


def known_keys() -> list[str]:
    """Return every settable key, dotted."""

    def walk(model: Any, prefix: str) -> list[str]:
        keys: list[str] = []
        for name, info in model.model_fields.items():
            keys.append(prefix + name)
            if isinstance(info.annotation, type) and hasattr(info.annotation, "model_fields"):
                keys += walk(info.annotation, f"{prefix}{name}.")
        return keys

    return walk(Config, "")


def validate(data: Mapping[str, Any]) -> Config:
    """Turn plain data into a frozen Config.

    Raises:
        ConfigError: With the key, the value found, what is allowed and the nearest valid name.
    """
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"Unknown setting '{key}'. {nearest(key, known_keys())}".strip()) from None
        value = first.get("input")
        shown = value if isinstance(value, (str, int, float, bool, list, tuple, type(None))) else None
        raise ConfigError(f"Setting '{key}' is not valid", value=shown, allowed=first["msg"]) from None
    _check_together(config)
    return config


def _check_together(config: Config) -> None:
    """Refuse combinations that cannot work, before any data is touched."""
    stream = config.stream
    if config.source == config.target and stream.pairing != "modalities":
        raise ConfigError("Source and target are the same modality", value=config.source)
    if stream.pairs and stream.pairing != "every_pair":
        raise ConfigError("stream.pairs goes with stream.pairing=every_pair", value=stream.pairing)
    for pair in stream.pairs:
        if len(set(pair.split(":"))) < 2:
            raise ConfigError("A pair of stream.pairs has one modality twice", value=pair)
    number, _, count = config.part.partition("/")
    if count and int(number) > int(count):
        raise ConfigError("There is no such part", value=config.part, allowed=f"1/{count} to {count}/{count}, or join")
    if 0 < stream.clip_limit < stream.clip_length:
        raise ConfigError("stream.clip_limit is below stream.clip_length", value=stream.clip_limit)


# --- Building objects --------------------------------------------------------------------------------------------


def locate(target: str, allowed: Sequence[str] = ()) -> type:
    """Return the class that ``_target_`` names, if it is one that a configuration may build.

    Only subclasses of Module, Optimizer, LRScheduler and Callback, found under ALLOWED_PACKAGES (and packages that
    the user named on the command line), are ever returned; nothing is called.

    Raises:
        ConfigError: Another package, a function, or another kind of class.
    """
    packages = (*ALLOWED_PACKAGES, *(f"{name}." for name in allowed))
    rule = "networks, optimisers, schedulers and callbacks under " + ", ".join(p.rstrip(".") for p in packages)
    if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", target):
        raise ConfigError("'_target_' is not a dotted class name", value=repr(target)[:80], allowed=rule)
    if not target.startswith(packages):
        raise ConfigError("'_target_' points outside what may be built", value=target, allowed=rule)
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError):
        raise ConfigError("'_target_' names nothing", value=target, allowed=rule) from None
    import pytorch_lightning
    import torch

    kinds = (
        torch.nn.Module,
        torch.optim.Optimizer,
        torch.optim.lr_scheduler.LRScheduler,
        pytorch_lightning.Callback,
    )
    # The class itself must live there too: a re-exported foreign class is not ours to build.
    home = getattr(found, "__module__", "")
    if not (isinstance(found, type) and issubclass(found, kinds) and f"{home}.".startswith(packages)):
        raise ConfigError("'_target_' is not a class that may be built", value=target, allowed=rule)
    return found


def build(node: Any, allowed: Sequence[str] = (), where: str = "model.module") -> Any:
    """Build the object that a plain-data node describes; inner nodes with ``_target_`` are built first.

    Raises:
        ConfigError: A target that is not allowed, an unknown or missing argument, a wrong type.
    """
    if isinstance(node, Mapping):
        if "_target_" not in node:
            return {key: build(value, allowed, f"{where}.{key}") for key, value in node.items()}
        target = locate(node["_target_"], allowed)
        arguments = {key: build(value, allowed, f"{where}.{key}") for key, value in node.items() if key != "_target_"}
        _check_arguments(target, arguments, where)
        try:
            return target(**arguments)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"'{where}' ({target.__name__}) cannot be built", value=error) from error
    if isinstance(node, (list, tuple)):
        return [build(item, allowed, f"{where}[{i}]") for i, item in enumerate(node)]
    return node


def _check_arguments(target: type, arguments: dict[str, Any], where: str) -> None:
    parameters = inspect.signature(target).parameters
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in arguments:
        if name not in names and not takes_any:
            raise ConfigError(
                f"Unknown setting '{where}.{name}' of {target.__name__}. {nearest(name, names)}".strip(),
                allowed=", ".join(names),
            )
    missing = [n for n in names if parameters[n].default is inspect.Parameter.empty and n not in arguments]
    if missing:
        raise ConfigError(f"{where} of {target.__name__} lacks: {', '.join(missing)}")
    if not target.__module__.startswith("pipeline."):
        return
    hints = get_type_hints(target.__init__)  # type: ignore[misc]
    for name, value in arguments.items():
        hint = hints.get(name)
        if hint is None or not _is_plain(value):
            continue
        try:
            arguments[name] = TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise ConfigError(f"Setting '{where}.{name}' is not valid", value=value, allowed=message) from None


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, (bool, int, float, str))


def plain(config: Config) -> dict[str, Any]:
    """Return the configuration as plain data (no paths, no flags)."""
    return config.model_dump(mode="json", exclude={*PATH_KEYS, *TEXT_KEYS, "shards_url", "work", "dry_run", "command"})


def public(config: Config) -> dict[str, Any]:
    """Return what of the configuration goes into runs, checkpoints and trackers: all but ``cohort``, whose lists
    and patterns may name patients, and ``cluster``, ``sweep``, ``three_stage`` and ``dashboard``, which
    change no result.
    """
    private = ("cohort", "cluster", "sweep", "three_stage", "dashboard")
    return {key: value for key, value in plain(config).items() if key not in private}
