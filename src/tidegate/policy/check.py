"""What each room says to its section: whether the values make sense together.

Touches: the machine's list of users, when a policy's text is checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from tidegate.firewall.checks import Finding, check_ruleset, check_written, verify_ruleset
from tidegate.firewall.model import Ruleset, plan_ruleset
from tidegate.firewall.section import FirewallSection
from tidegate.ids.section import plan_sensor
from tidegate.policy.document import Policy, parse_policy
from tidegate.vault.section import verify_section


def read_ruleset(text: str, name: str) -> tuple[Policy, Ruleset]:
    """Return the policy that ``text`` writes and what its firewall section means; every refusal names its line.

    Without a section, the ruleset is that of the empty one, whose check says what is missing. Raises ``policy.*``,
    ``firewall.policy.*`` with the field ``line``; ``name`` is the file's, for messages.
    """
    from tidegate.policy.places import with_lines  # a device never reads a text

    policy = parse_policy(text, name=name)
    with with_lines(text, name=name):
        return policy, plan_ruleset(policy.firewall or FirewallSection())


def check_text(text: str, name: str) -> tuple[Policy, list[tuple[int, Finding]]]:
    """Return the policy that ``text`` writes, and every finding with the line that it is about.

    Every room has planned its section: raises what ``read_ruleset`` raises, ``ids.*`` and ``vault.policy.*``, with the
    field ``line``. Findings that are errors are for the caller to refuse. Users that this machine lacks are warned of.
    """
    from tidegate.policy.places import find_subjects, with_lines

    policy, ruleset = read_ruleset(text, name)
    with with_lines(text, name=name):
        if policy.ids is not None:
            plan_sensor(policy.ids)
        if policy.vault is not None:
            verify_section(policy.vault)
    findings = [] if policy.firewall is None else [*check_ruleset(ruleset), *check_written(policy.firewall)]
    findings += _check_vault(policy, is_user=_is_user)
    lines = find_subjects(text, [finding.subject for finding in findings])
    return policy, list(zip(lines, findings, strict=True))


def check_sections(policy: Policy) -> list[Finding]:
    """Return every finding, warnings included, without raising for the firewall's."""
    findings = _check_vault(policy, is_user=None)
    if policy.firewall is None:
        return findings
    return [*check_ruleset(plan_ruleset(policy.firewall)), *check_written(policy.firewall), *findings]


def verify_sections(policy: Policy) -> None:
    """Return if every room can do what its section says; raise ``firewall.*``, ``ids.*`` or ``vault.policy.*``."""
    if policy.firewall is not None:
        verify_ruleset(plan_ruleset(policy.firewall))
    if policy.ids is not None:
        plan_sensor(policy.ids)
    if policy.vault is not None:
        verify_section(policy.vault)


def _check_vault(policy: Policy, *, is_user: Callable[[str], bool] | None) -> list[Finding]:
    if policy.vault is None:
        return []
    from tidegate.policy.vaultcheck import check_vault  # the device's agent never asks

    return [*check_vault(policy.vault, watches=bool(policy.watch and policy.watch.paths), is_user=is_user)]


def _is_user(name: str) -> bool:
    import pwd

    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False
