"""On which line of a TOML text a key or a value stands. Pure; only for messages, so near is good enough."""

from __future__ import annotations

import re
from bisect import bisect_right

_PART = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""


class KeyLines:
    """Finds the line on which a key of a TOML text stands.

    A table of an array of tables is counted: the second ``[[update.http]]`` is ``("update", "http", "1")``.
    """

    _TABLE = re.compile(r"\s*(\[\[?)([^\[\]]+)\]")
    _KEY = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")

    def __init__(self, text: str) -> None:
        self._text = text.split("\n")
        self._exact: dict[tuple[str, ...], int] = {}
        self._below: dict[tuple[str, ...], int] = {}
        self._tables: dict[tuple[str, ...], int] = {}
        self._marks: list[int] = []  # every line on which a key or a table begins
        table: tuple[str, ...] = ()
        for number, line in enumerate(self._text, start=1):
            if match := self._TABLE.match(line):
                table = self._enter(self._split(match[2]), is_array=match[1] == "[[")
                self._add(table, number)
            elif match := self._KEY.match(line):
                self._add((*table, *self._split(match[1])), number)

    def find(self, path: tuple[str, ...]) -> int:
        """Return the line of ``path``, or of the nearest key above it; 1 if nothing of it is there."""
        for length in range(len(path), 0, -1):
            line = self._exact.get(path[:length]) or self._below.get(path[:length])
            if line is not None:
                return line
        return 1

    def at(self, path: tuple[str, ...]) -> int | None:
        """Return the line of ``path``; ``None`` when it is not written there."""
        return self._exact.get(path)

    def find_value(self, path: tuple[str, ...], value: object) -> int:
        """Return the line of the text or number ``value`` at ``path``: a list may go over many lines."""
        if isinstance(value, str):
            return self._search(path, rf"""(?i)["']{re.escape(value)}["']""")
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return self._search(path, rf"(?<![\w.-]){value}(?![\w.])") if is_number else self.find(path)

    def find_key(self, path: tuple[str, ...]) -> int:
        """Return the line of the key ``path``, that of an inline table in a list of many lines too."""
        return self._exact.get(path) or self._search(path, rf"""(?<![\w-])["']?{re.escape(path[-1])}["']?\s*=""")

    def _search(self, path: tuple[str, ...], pattern: str) -> int:
        """Return the first line from that of ``path`` on, and before the next key's, on which ``pattern`` is."""
        start = self.find(path)
        after = bisect_right(self._marks, start)
        end = self._marks[after] if after < len(self._marks) else len(self._text) + 1
        found = re.compile(pattern)
        return next((number for number in range(start, end) if found.search(self._text[number - 1])), start)

    def _enter(self, parts: tuple[str, ...], *, is_array: bool) -> tuple[str, ...]:
        """Return the table that a header opens, with the numbers of the arrays on its way."""
        table: tuple[str, ...] = ()
        for position, part in enumerate(parts, start=1):
            table = (*table, part)
            if is_array and position == len(parts):
                self._tables[table] = self._tables.get(table, -1) + 1
            if table in self._tables:
                table = (*table, str(self._tables[table]))
        return table

    def _add(self, path: tuple[str, ...], number: int) -> None:
        self._marks.append(number)
        self._exact.setdefault(path, number)
        for length in range(1, len(path)):
            self._below.setdefault(path[:length], number)

    @staticmethod
    def _split(dotted: str) -> tuple[str, ...]:
        return tuple(part.strip("\"'") for part in re.findall(_PART, dotted))
