"""Where TOML stops being TOML, and what was probably meant. Pure."""

from __future__ import annotations

import re

MAX_HINTED_LINE = 300  # a longer line is not what somebody mistyped
MAX_LIST_LINES = 1000  # of a list that is not closed
_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)\Z")
_STATEMENT = re.compile(r"\s*([\w.\"'-]+)\s*[=:]\s*(.*?)\s*(?:#[^\"']*)?\Z")
_WORD = re.compile(r"[@!]?[A-Za-z0-9][\w./:@*-]*\Z")
_NUMBER = re.compile(r"[0-9]+\Z|[0-9]{4}-[0-9]{2}-[0-9]{2}")  # or a moment: no text was meant
_BOOLEANS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
_CURLY = str.maketrans({"\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2018": "'", "\u2019": "'"})


def explain_syntax(text: str, error: Exception) -> tuple[int, str, str | None]:
    """Return the line of a parser's ``error``, its reason, and a statement of that line that is valid, if one is near.

    The parser gives no place for a number that is too long or for tables that are nested too deep: the longest line.
    """
    lines = text.split("\n")
    message = str(error)
    if place := _PLACE.search(message):
        line = int(place[1])
        reason = f"{message[: place.start()]}, at column {place[2]}"
    elif message.endswith("(at end of document)"):
        line = max((number for number, one in enumerate(lines, start=1) if one.strip()), default=1)
        reason = message
    else:
        line = max(range(len(lines)), key=lambda index: len(lines[index])) + 1
        reason = message
    if message.startswith("Unclosed array"):  # found where something else begins, or at the end
        line, reason = _opening(lines, line), "Unclosed array"
    return line, reason[:300], _hint(lines[line - 1])


def _opening(lines: list[str], line: int) -> int:
    """Return the nearest line at or above ``line`` that opens a list and does not close it."""
    near = range(line, max(0, line - MAX_LIST_LINES), -1)
    return next((number for number in near if lines[number - 1].count("[") > lines[number - 1].count("]")), line)


def _hint(line: str) -> str | None:
    """Return the statement that ``line`` probably is, if that is one."""
    if len(line) > MAX_HINTED_LINE:
        return None
    straight = line.translate(_CURLY).strip()
    candidates = [straight]
    if heading := re.match(r"(\[\[?)\s*([\w.-]+)", straight):
        candidates.append(f"{heading[1]}{heading[2]}{']' * len(heading[1])}")
    elif statement := _STATEMENT.match(straight):
        candidates += (f"{statement[1]} = {value}" for value in _values(statement[2]))
    return next((one for one in candidates if one != line.strip() and _is_toml(one)), None)


def _values(value: str) -> list[str]:
    """Return spellings that ``value`` may have been meant to have."""
    if value.lower() in _BOOLEANS:
        return [_BOOLEANS[value.lower()]]
    if value.startswith("["):
        if value == "[":
            return []  # the list goes on below: nothing of this line is wrong
        items = [item for item in re.split(r"[\s,]+", value.strip("[]")) if item]
        return [f"[{', '.join(items)}]", f"[{', '.join(_quoted(item) for item in items)}]"]
    return [value, _quoted(value), *(f"{value}{end}" for end in "\"'")]


def _quoted(word: str) -> str:
    return f'"{word}"' if _WORD.match(word) and not _NUMBER.match(word) else word


def _is_toml(text: str) -> bool:
    import tomllib

    try:
        tomllib.loads(text)
    except ValueError:
        return False
    return True
