"""The manual: its example is a policy, and every error has its line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec

from tidegate.base.errors import TidegateError
from tidegate.firewall import errors
from tidegate.firewall.checks import verify_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.section import FirewallSection

MANUAL = Path(__file__).parents[3] / "docs" / "firewall.md"


def test_the_example_is_a_good_policy_and_shows_the_defaults() -> None:
    block = re.search(r"```toml\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    assert block is not None
    section = msgspec.convert(tomllib.loads(block[1])["firewall"], FirewallSection)
    verify_ruleset(plan_ruleset(section))
    plain = FirewallSection()
    for name in ("mode", "default", "forward", "confirm_timeout_s", "ping_per_s", "log_group", "log_per_s"):
        assert getattr(section, name) == getattr(plain, name), name
    assert section.set_budget == plain.set_budget
    assert section.bans.max == plain.bans.max


def test_every_error_is_in_the_manual() -> None:
    text = "".join(page.read_text() for page in sorted(MANUAL.parent.glob("firewall*.md")))
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, TidegateError) and kind.code:
            room_topic, _, reason = kind.code.rpartition(".")
            assert kind.code in text or (room_topic in text and f"`.{reason}`" in text), kind.code
            assert kind.advice
