"""What of the settings may leave this machine: numbers, and words that Cinevox itself brings along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pipeline.config import conf_folder
from pipeline.settings import Config

OWN_TEXT = "(own text)"


@cache
def known_words() -> frozenset[str]:
    """Return every key and text of ``conf/``, and every key and choice of its schema."""
    from omegaconf import OmegaConf

    files = sorted(conf_folder().rglob("*.yaml"))
    shipped = [OmegaConf.to_container(OmegaConf.load(file), resolve=False) for file in files]
    return frozenset([*_texts(shipped), *_texts(Config.model_json_schema())])


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from _texts(item)


def shareable(node: Any) -> Any:
    """Return plain data without the user's own text: a path, a pattern or a title may name a patient.

    Text that is not one of ``known_words`` becomes ``(own text)``, an entry with such a key is left out.
    """
    if isinstance(node, Mapping):
        return {key: shareable(value) for key, value in node.items() if str(key) in known_words()}
    if isinstance(node, (list, tuple)):
        return [shareable(item) for item in node]
    if isinstance(node, str):
        return node if node in known_words() else OWN_TEXT
    return node


def names_to_show(config: Config) -> frozenset[str]:
    """Return the names that a method may have in W&B: those that Cinevox knows, and labels that the user set."""
    given = (config.label, config.translate.label, *config.evaluate.labels)
    return known_words() | frozenset(name for name in given if name)
