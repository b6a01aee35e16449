"""Which cases and checks apply to us: versions, features, systems. Pure but for ``os``, ``env`` and ``arch``."""

from __future__ import annotations

import ast
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = (9, 0, 0)  # of Suricata: the suite's newest cases apply, those for older versions only do not
# What a build of ours counts as; LIBNET1.1 is the sending of resets. Not ours: scripting (HAVE_LUA), injected faults
# (DEBUG), libmagic (MAGIC), GeoIP databases, capture cards, hardware matchers, external stores.
_FEATURE_NAMES = (
    "HAVE_NSS HAVE_JA3 HAVE_JA4 RUST HAVE_LIBJANSSON HAVE_LIBHTP HAVE_HTP_URI_NORMALIZE_HOOK HTTP2_DECOMPRESSION "
    "LIBNET1.1 PCRE_JIT QA_SIMULATION TLS TLS_C11 AF_PACKET HAVE_PACKET_FANOUT PCAP_SET_BUFF"
)
FEATURES = frozenset(_FEATURE_NAMES.split())

_QUESTION_TO_SOURCES = re.compile(
    r"\s*(grep\b[^|;&`$]*\b(src|rust)/\S+\s*(>\s*/dev/null)?|test -[ef] (src|rust)/\S+)\s*\Z"
)


def reason_to_skip(requires: Mapping[str, Any]) -> str | None:
    """Return why what requires this does not apply to us, or None."""
    for name, wanted in requires.items():
        judge = _JUDGES.get(name)
        if judge is None:
            return f"requires {name}, which is not known"
        reason = judge(wanted)
        if reason:
            return str(reason)
    return None


def reason_in_skip_list(skips: object) -> str | None:
    """Return why a case's own ``skip`` list leaves us out, or None."""
    for skip in skips if isinstance(skips, list) else []:
        if isinstance(skip, Mapping) and (skip.get("feature") in FEATURES or skip.get("uid") == os.getuid()):
            return str(skip.get("msg", "the case leaves us out"))
    return None


def parse_version(text: object) -> tuple[int, ...]:
    """Return ``"7.0.12"`` as numbers, as many as it has."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", str(text).partition("-")[0])[:3])


def _compare(text: object) -> int:
    """Return -1, 0 or 1: our version below, at or above; what is not given counts as 0."""
    wanted = (*parse_version(text), 0, 0, 0)[:3]
    return (wanted < VERSION) - (wanted > VERSION)


def _features(wanted: object) -> str | None:
    names = wanted if isinstance(wanted, list) else [wanted]
    missing = [str(name) for name in names if name not in FEATURES]
    return f"requires feature {', '.join(missing)}" if missing else None


def _scripts(wanted: object) -> str | None:
    """A script asks Suricata's sources whether they are new enough: those of the version that we claim are."""
    scripts = wanted if isinstance(wanted, list) else [wanted]
    strange = [str(script) for script in scripts if not _QUESTION_TO_SOURCES.match(str(script))]
    return f"requires a script: {strange[0][:80]}" if strange else None


def _files(wanted: object) -> str | None:
    names = wanted if isinstance(wanted, list) else [wanted]
    here = [str(name) for name in names if not str(name).startswith(("src/", "rust/"))]  # sources: as for scripts
    missing = [name for name in here if not Path(name).exists()]
    return f"requires file {missing[0]}" if missing else None


def _environment(wanted: object) -> str | None:
    missing = [str(name) for name in wanted if name not in os.environ] if isinstance(wanted, list) else []
    return f"requires environment variable {missing[0]}" if missing else None


def _lambda(wanted: object) -> str | None:
    try:
        tree = ast.parse(str(wanted), mode="eval")
        return None if _evaluate(tree.body) else f"requires {wanted}"
    except (SyntaxError, ValueError):
        return f"requires {wanted}, which is not understood"


def _evaluate(node: ast.expr) -> Any:
    """Evaluate the platform, constants, comparisons and logic; anything else raises ``ValueError``."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Attribute(value=ast.Name(id="sys"), attr="platform"):
            return sys.platform
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_evaluate(value) for value in values)
        case ast.BoolOp(values=values):
            return any(_evaluate(value) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _evaluate(operand)
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            return _evaluate(left) == _evaluate(right)
        case ast.Compare(left=left, ops=[ast.NotEq()], comparators=[right]):
            return _evaluate(left) != _evaluate(right)
        case ast.Call(func=ast.Attribute(value=owner, attr="startswith"), args=[argument]):
            return str(_evaluate(owner)).startswith(str(_evaluate(argument)))
    raise ValueError("not a question about the platform")


_JUDGES: dict[str, Any] = {
    "min-version": lambda wanted: f"requires at least version {wanted}" if _compare(wanted) < 0 else None,
    "gt-version": lambda wanted: f"requires more than version {wanted}" if _compare(wanted) <= 0 else None,
    "lt-version": lambda wanted: f"requires less than version {wanted}" if _compare(wanted) >= 0 else None,
    "version": lambda wanted: (
        None if VERSION[: len(parse_version(wanted))] == parse_version(wanted) else f"only for version {wanted}"
    ),
    "features": _features,
    "env": _environment,
    "files": _files,
    "script": _scripts,
    "os": lambda wanted: None if str(wanted).lower() == sys.platform else f"only for {wanted}",
    "arch": lambda wanted: None if str(wanted) == platform.machine() else f"only for {wanted}",
    "lambda": _lambda,
    "config": lambda wanted: f"requires a build whose configuration has {wanted}",
    "pcap": lambda _wanted: None,  # whether a capture must be there: the runner of cases looks
}
