"""Alerts as one line of text each, in the form of Suricata's ``fast.log``, for eyes and old tools. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime


def encode_fast(event: Mapping[str, object]) -> str | None:
    """Return the line of an alert event, without its end; None for any other event."""
    alert = event.get("alert")
    if event.get("event_type") != "alert" or not isinstance(alert, Mapping):
        return None
    drop = "[Drop] " if alert.get("action") == "blocked" else ""
    rule = f"[{alert.get('gid', 1)}:{alert.get('signature_id', 0)}:{alert.get('rev', 0)}]"
    category = alert.get("category") or "(null)"
    text = (
        f"{_moment(event.get('timestamp'))}  {drop}[**] {rule} {alert.get('signature', '')} [**] "
        f"[Classification: {category}] [Priority: {alert.get('severity', 3)}] "
        f"{{{event.get('proto', '')}}} {_end(event, 'src')} -> {_end(event, 'dest')}"
    )
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _end(event: Mapping[str, object], side: str) -> str:
    port = event.get(f"{side}_port", event.get("icmp_type" if side == "src" else "icmp_code", 0))
    return f"{event.get(f'{side}_ip', '')}:{port}"


def _moment(timestamp: object) -> str:
    """Return ``2026-01-02T03:04:05.000006+0000`` as ``01/02/2026-03:04:05.000006``."""
    try:
        return datetime.fromisoformat(str(timestamp)).strftime("%m/%d/%Y-%H:%M:%S.%f")
    except ValueError:
        return str(timestamp)[:32]
