"""Reads a suricata.yaml, with what it includes, into settings.

Only somebody who has such a file needs PyYAML; a device with a policy does not. Touches: configuration files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tidegate.base.durable import read_file_bounded
from tidegate.ids.errors import SettingsInvalid, YamlMissing
from tidegate.ids.settings import Setting, flatten_config

MAX_CONFIG_BYTES = 1 << 20  # Suricata's own file has 90 KiB, most of it comments
MAX_INCLUDES = 16  # files in all: a few for variables and outputs, and an end where files include each other


def read_suricata_config(path: Path) -> tuple[Setting, ...]:
    """Return the settings of ``path``; ``include:`` and ``!include`` name files beside it.

    Every scalar stays the text that it is: ``yes`` and ``0x10`` mean what the sensor makes of them. Raises
    ``ids.yaml.missing``, ``ids.settings.invalid``, ``base.storage.*``.
    """
    return flatten_config(_Reader(path.parent).read(path))


class _Reader:
    """Reads one file and those it includes, so many in all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = MAX_INCLUDES

    def read(self, path: Path) -> Any:
        yaml = _load_yaml()
        self._left -= 1
        if self._left < 0:
            raise SettingsInvalid(f"more than {MAX_INCLUDES} files are included", limit=MAX_INCLUDES)
        text = read_file_bounded(path, limit_bytes=MAX_CONFIG_BYTES).decode(errors="replace")
        # A BaseLoader makes texts, lists and mappings only. A class a reader: constructors are kept in the class.
        loader: Any = type("Loader", (yaml.BaseLoader,), {})
        loader.add_constructor("!include", self._include)
        try:
            document = yaml.load(text, Loader=loader)
        except (yaml.YAMLError, RecursionError) as error:
            raise SettingsInvalid(f"{path}: {error or 'nested too deeply'}", file=str(path)) from error
        return self._with_includes(document)

    def _include(self, _loader: object, node: Any) -> Any:
        return self.read(self._folder / str(node.value))

    def _with_includes(self, document: Any) -> Any:
        """Put what ``include:`` names into the document; what the file itself says wins."""
        if not isinstance(document, dict) or "include" not in document:
            return document
        names = document.pop("include")
        for name in [names] if isinstance(names, str) else names or []:
            below = self.read(self._folder / str(name))
            if isinstance(below, dict):
                document = {**below, **document}
        return document


def _load_yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise YamlMissing("PyYAML is not installed") from error
    return yaml
