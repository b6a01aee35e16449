"""What a check has to say: how bad, a code, about what, in words. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """Whether a finding stops the ruleset."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found; ``subject`` is the label of the rule, ``code`` of an error is that of its exception."""

    severity: Severity
    code: str
    subject: str
    message: str


def error(code: str, subject: str, message: str) -> Finding:
    """Return a finding that stops the ruleset."""
    return Finding(severity=Severity.ERROR, code=code, subject=subject, message=message)


def warning(code: str, subject: str, message: str) -> Finding:
    """Return a finding that is for the operator to read; ``code`` is without ``firewall.check.``."""
    return Finding(severity=Severity.WARNING, code=f"firewall.check.{code}", subject=subject, message=message)
