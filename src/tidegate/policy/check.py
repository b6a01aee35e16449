"""What each room says to its section: whether the values make sense together. Pure."""

from __future__ import annotations

from tidegate.firewall.checks import Finding, check_ruleset, verify_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.ids.section import plan_sensor
from tidegate.policy.document import Policy


def check_sections(policy: Policy) -> list[Finding]:
    """Return every finding, warnings included, without raising for the firewall's."""
    return check_ruleset(plan_ruleset(policy.firewall)) if policy.firewall is not None else []


def verify_sections(policy: Policy) -> None:
    """Return if every room can do what its section says; raise ``firewall.*`` or ``ids.*``."""
    if policy.firewall is not None:
        verify_ruleset(plan_ruleset(policy.firewall))
    if policy.ids is not None:
        plan_sensor(policy.ids)
