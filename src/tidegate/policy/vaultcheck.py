"""What to tell the operator about a ``[vault]`` section that is valid but may not be meant so. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from tidegate.firewall.findings import Finding, Severity
from tidegate.vault.section import EraseTrigger, VaultGrant, VaultSection, overlaps


def check_vault(
    section: VaultSection, *, watches: bool, is_user: Callable[[str], bool] | None = None
) -> Iterator[Finding]:
    """Yield warnings. ``watches``: the policy watches files. ``is_user`` tells whether this machine has a user; where
    it is missing that is not asked."""
    for trigger in section.erase_on:
        if trigger is not EraseTrigger.END_OF_LIFE:
            yield _warn("erase", "vault.erase_on", f"{trigger} erases the vault for ever, without asking anybody")
    if section.erases_on(EraseTrigger.TAMPER) and watches:
        message = "any change of a file in [watch], an update of the system too, erases the vault"
        yield _warn("erase-watch", "vault.erase_on", message)
    if section.lock_on == () and section.lock:
        yield _warn("never-locked", "vault.lock", "nothing locks these directories: lock_on is empty")
    for name, grant in section.grants.items():
        if isinstance(grant.user, str) and is_user is not None and not is_user(grant.user):
            message = (
                f"this machine has no user {grant.user!r}; where the device has none either, nobody is granted this"
            )
            yield _warn("unknown-user", f"vault.grants.{name}", message)
    for (first, one), (second, other) in itertools.combinations(section.grants.items(), 2):
        if overlaps(one, other):
            yield _overlap(first, one, second, other)


def _overlap(first: str, one: VaultGrant, second: str, other: VaultGrant) -> Finding:
    same = "the same user" if one.user == other.user else "two users"
    writes = " and one may write them" if one.write != other.write else " and both may write them" if one.write else ""
    return _warn("overlap", f"vault.grants.{second}", f"{first} and {second} give {same} some of the same data{writes}")


def _warn(code: str, subject: str, message: str) -> Finding:
    return Finding(severity=Severity.WARNING, code=f"vault.check.{code}", subject=subject, message=message)
