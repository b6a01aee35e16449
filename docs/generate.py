"""Writes the parts of the documentation that follow from the code: ``python docs/generate.py [--check]``.

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->``. With ``--check`` nothing is written and
the exit code is 1 if a page is stale. Touches: the pages of this folder.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec import NODEFAULT, UNSET, inspect

from tidegate.base.errors import Fault, Misuse, Rejected
from tidegate.boot.slots import TRANSITIONS, SlotState
from tidegate.cli.error import load_all_codes
from tidegate.cli.main import NOUNS, build_parser
from tidegate.policy.document import Policy

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
MARKED = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)
FAMILIES = {Misuse: "misuse", Rejected: "rejected", Fault: "fault"}


def slot_states() -> Iterator[str]:
    """The diagram of the slot states, from the table that the code runs on."""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {SlotState.EMPTY.value}"
    merged: dict[tuple[str, str], list[str]] = {}
    for (state, event), target in TRANSITIONS.items():
        merged.setdefault((state.value, target.value), []).append(event.value)
    for (start, end), events in merged.items():
        yield f"    {start} --> {end}: {', '.join(events)}"
    yield "```"


def error_codes() -> Iterator[str]:
    """Every code with its family and advice, a table a room."""
    codes = load_all_codes()
    for room in sorted({code.partition(".")[0] for code in codes}):
        yield f"## {room}"
        yield ""
        yield "| code | family | exit | what to do |"
        yield "|---|---|---|---|"
        for code in sorted(name for name in codes if name.partition(".")[0] == room):
            kind = codes[code]
            family = next(word for base, word in FAMILIES.items() if issubclass(kind, base))
            yield f"| `{code}` | {family} | {kind.exit_status} | {escape(kind.advice)} |"
        yield ""


def command_line() -> Iterator[str]:
    """Every noun and verb with its arguments."""
    for noun, purpose in NOUNS.items():
        parser = _subparsers(build_parser(noun))[noun]
        yield f"## tidegate {noun}"
        yield ""
        yield f"{purpose[0].upper()}{purpose[1:]}."
        yield ""
        verbs = _subparsers(parser)
        if not verbs:
            yield from _command(f"tidegate {noun}", parser, None)
        for verb, child in verbs.items():
            below = _subparsers(child)
            if not below:
                yield from _command(f"tidegate {noun} {verb}", child, child.description)
            for name, grandchild in below.items():
                yield from _command(f"tidegate {noun} {verb} {name}", grandchild, grandchild.description)


def _command(name: str, parser: argparse.ArgumentParser, description: str | None) -> Iterator[str]:
    actions = [action for action in parser._actions if action.dest not in ("help", "json")]
    words = [name]
    for action in sorted(actions, key=lambda action: bool(action.option_strings)):
        word = _spelling(action) if action.option_strings else _positional(action)
        words.append(word if action.required or not action.option_strings else f"[{word}]")
    if description:
        yield f"### {name}"
        yield ""
        yield description
        yield ""
    yield f"    {' '.join(words)}"
    yield ""
    for action in actions:
        if action.help:
            shown = ", ".join(action.option_strings) if action.option_strings else _positional(action).strip("[]. ")
            yield f"- `{shown}`: {escape(action.help)}"
    if any(action.help for action in actions):
        yield ""


def _positional(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper().replace("_", "-"))
    return {"?": f"[{name}]", "+": f"{name}...", "*": f"[{name}...]"}.get(str(action.nargs), name)


def _spelling(action: argparse.Action) -> str:
    flag = action.option_strings[-1]
    if action.nargs == 0:
        return flag
    choices = "|".join(map(str, action.choices)) if action.choices is not None else ""
    return f"{flag} {action.metavar or choices or action.dest.upper().replace('_', '-')}"


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:  # argparse has no public way to its sub-commands
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def policy_keys() -> Iterator[str]:
    """Every key of the policy with type, range, default and meaning; a key without a meaning is an error."""
    meanings = tomllib.loads((DOCS / "policy-keys.toml").read_text())
    unused = set(meanings)
    policy: Any = inspect.type_info(Policy)
    for section in policy.fields:
        (struct,) = [one for one in _members(section.type) if isinstance(one, inspect.StructType)]
        yield f"### [{section.name}]"
        yield ""
        yield "| key | type and range | default | meaning |"
        yield "|---|---|---|---|"
        for path, field in _policy_fields(struct, (section.name,)):
            name = ".".join(path)
            unused.discard(name)
            default = "required" if field.required else _default(field)
            yield f"| `{name}` | {_type(field.type)} | {default} | {meanings[name]} |"
        yield ""
    if unused:
        raise SystemExit(f"docs/policy-keys.toml names keys that no policy has: {', '.join(sorted(unused))}")


def _policy_fields(struct: inspect.StructType, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in struct.fields:
        here = (*path, field.encode_name)
        inner: Any = None
        below: tuple[str, ...] = here
        for member in _members(field.type):
            if isinstance(member, inspect.StructType):
                inner = member
            elif isinstance(member, inspect.DictType):
                value = next(iter(_members(member.value_type)))
                inner, below = (value if isinstance(value, inspect.StructType) else None), (*here, "NAME")
            elif isinstance(member, inspect.CollectionType):
                item = next(iter(_members(member.item_type)))
                if isinstance(item, inspect.StructType):
                    inner, below = item, (*path, f"{field.encode_name}[]")
        if inner is None:
            yield here, field
        else:
            yield from _policy_fields(inner, below)


def _members(kind: inspect.Type) -> Iterator[inspect.Type]:
    """Yield what a type can be, without its constraints and without None."""
    if isinstance(kind, inspect.Metadata):
        yield from _members(kind.type)
    elif isinstance(kind, inspect.UnionType):
        for member in kind.types:
            yield from _members(member)
    elif not isinstance(kind, inspect.NoneType):
        yield kind


def _type(kind: inspect.Type) -> str:
    return " or ".join(dict.fromkeys(_one_type(member) for member in _members(kind)))


def _one_type(kind: Any) -> str:
    if isinstance(kind, inspect.IntType):
        return f"{kind.ge:,} to {kind.le:,}" if kind.ge is not None else "integer"
    if isinstance(kind, inspect.BoolType):
        return "true, false"
    if isinstance(kind, inspect.EnumType):
        return ", ".join(f'`"{member.value}"`' for member in kind.cls)
    if isinstance(kind, inspect.DictType):
        return f"table of {_type(kind.value_type)}"
    if isinstance(kind, inspect.CollectionType):
        return f"list of {_type(kind.item_type)}" + (f", at most {kind.max_length:,}" if kind.max_length else "")
    if isinstance(kind, inspect.DateTimeType):
        return "date and time"
    return f"text of at most {kind.max_length}" if getattr(kind, "max_length", None) else "text"


def _default(field: Any) -> str:
    value = field.default if field.default not in (NODEFAULT, UNSET) else field.default_factory()
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"`{list(value)}`".replace("'", '"')
    return f'`"{value}"`' if isinstance(value, str) else f"{value:,}"


def floors() -> Iterator[str]:
    """The floors of the house from the import contract, each room with the promise of its docstring."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    yield "| floor | room | |"
    yield "|---|---|---|"
    for number, layer in enumerate(reversed(contract["layers"])):
        for name in (part.strip() for part in layer.split("|")):
            if name.startswith("("):
                yield f"| {number} | `{name.strip('()')}` | to come |"
                continue
            promise = (importlib.import_module(f"tidegate.{name}").__doc__ or "").partition("\n")[0]
            yield f"| {number} | `{name}` | {escape(promise)} |"
    promise = (importlib.import_module("tidegate.testing").__doc__ or "").partition("\n")[0]
    yield f"| beside | `testing` | {escape(promise)} |"


def escape(text: str) -> str:
    """Make a text safe for a Markdown table and free of reStructuredText."""
    return text.replace("``", "`").replace("|", "\\|").replace("%%", "%")


PARTS: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "slot-states": ("boot-and-update.md", slot_states),
    "error-codes": ("errors.md", error_codes),
    "command-line": ("cli.md", command_line),
    "policy-keys": ("policy.md", policy_keys),
    "floors": ("architecture.md", floors),
}


def render(page: Path) -> str:
    """Return the text of ``page`` with its generated parts made anew."""

    def fill(match: re.Match[str]) -> str:
        lines = list(PARTS[match[2]][1]())
        while lines and not lines[-1]:
            lines.pop()
        return f"{match[1]}\n" + "\n".join(lines) + f"\n\n{match[3]}"

    return MARKED.sub(fill, page.read_text())


def main() -> int:
    """Write, or check, every page with a generated part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    check = parser.parse_args().check
    stale = []
    for name, (file, _) in PARTS.items():
        page = DOCS / file
        if f"<!-- generated: {name} -->" not in page.read_text():
            raise SystemExit(f"{page} has no place for {name}")
        text = render(page)
        if text != page.read_text():
            stale.append(file)
            if not check:
                page.write_text(text)
    for file in stale:
        sys.stdout.write(f"{'stale' if check else 'written'}: docs/{file}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
