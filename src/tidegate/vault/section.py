"""The ``[vault]`` section of the policy: what locks and erases the device's vault, and who may use what is in it. Pure.

A part of every policy that a device reads: this file imports nothing of the vault itself.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct, field

from tidegate.vault.section_errors import VaultSectionInvalid

MAX_GRANTS = 64  # a program each
MAX_GRANTED = 256  # items or tables of one grant: compared one by one with every request
MAX_DIRECTORIES = 64  # each is a system call or two in an emergency
EVERYTHING = "*"

GrantName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Directory = Annotated[str, Meta(pattern=r"^/[^\0]{0,4094}\Z")]
# What useradd(8) of Debian accepts, and a number below the kernel's overflow of "no user".
UserName = Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_.-]{0,30}[a-z0-9_$-]?\Z")]
UserId = Annotated[int, Meta(ge=0, le=2**32 - 2)]
Granted = Annotated[str, Meta(min_length=1, max_length=1024)]


class Trigger(StrEnum):
    """What the agent notices that can lock the vault."""

    LOCKDOWN = "lockdown"  # of the firewall, by the sensor's response or an operator
    TAMPER = "tamper"  # a watched file changed, or somebody else changed the firewall's rules


class EraseTrigger(StrEnum):
    """What can erase the vault."""

    LOCKDOWN = "lockdown"
    TAMPER = "tamper"
    END_OF_LIFE = "end-of-life"  # an operator asks for it


class Insistence(StrEnum):
    """What to do where the machine does not keep secrets in RAM as it should."""

    REFUSE = "refuse"
    WARN = "warn"
    IGNORE = "ignore"


class VaultGrant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one user's programs may use. ``items``: names; those that end in ``/`` mean everything below, ``*`` all.

    ``tables``: names of record tables, or ``*``. Without ``write`` they may read and list only.
    """

    user: UserName | UserId
    items: Annotated[tuple[Granted, ...], Meta(max_length=MAX_GRANTED)] = ()
    tables: Annotated[tuple[Granted, ...], Meta(max_length=MAX_GRANTED)] = ()
    write: bool = False


class VaultSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[vault]`` section. Without grants nobody but root's own commands uses the vault."""

    lock: Annotated[tuple[Directory, ...], Meta(max_length=MAX_DIRECTORIES)] = ()
    lock_on: Annotated[tuple[Trigger, ...], Meta(max_length=8)] | None = None  # both
    erase_on: Annotated[tuple[EraseTrigger, ...], Meta(max_length=8)] = ()
    swap: Insistence = Insistence.WARN
    memory: Insistence = Insistence.WARN
    grants: Annotated[dict[GrantName, VaultGrant], Meta(max_length=MAX_GRANTS)] = field(default_factory=dict)

    def locks_on(self, trigger: Trigger) -> bool:
        """Return whether ``trigger`` locks the directories and closes the vault."""
        return self.lock_on is None or trigger in self.lock_on

    def erases_on(self, trigger: EraseTrigger) -> bool:
        """Return whether ``trigger`` erases the vault."""
        return trigger in self.erase_on


def verify_section(section: VaultSection) -> None:
    """Return if the section's values make sense; raise ``vault.policy.invalid`` with the field ``where``.

    msgspec has checked each field's type and range; this checks what a type cannot say.
    """
    for directory in section.lock:
        if "/../" in f"{directory}/" or "//" in directory:
            raise VaultSectionInvalid(f"lock: {directory!r} is no plain path", where="vault.lock", name=directory)
    for name, grant in section.grants.items():
        where = f"vault.grants.{name}"
        if not grant.items and not grant.tables:
            raise VaultSectionInvalid(f"{where}: it grants neither items nor tables", where=where)
        for item in grant.items:
            if item != EVERYTHING and not _is_item_pattern(item):
                raise VaultSectionInvalid(f"{where}: no item is called {item[:80]!r}", where=where, name=item)
        for table in grant.tables:
            if table != EVERYTHING and not (table.isprintable() and len(table.encode()) <= 255):
                raise VaultSectionInvalid(f"{where}: no table is called {table[:80]!r}", where=where, name=table)


def covers_item(granted: str, name: str) -> bool:
    """Return whether an entry of a grant's ``items`` means the item called ``name``."""
    return granted in (EVERYTHING, name) or (granted.endswith("/") and name.startswith(granted))


def covers_table(granted: str, table: str) -> bool:
    """Return whether an entry of a grant's ``tables`` means ``table``."""
    return granted in (EVERYTHING, table)


def overlaps(one: VaultGrant, other: VaultGrant) -> bool:
    """Return whether two grants have an item or a table in common."""
    return any(
        covers_item(mine, theirs) or covers_item(theirs, mine) for mine in one.items for theirs in other.items
    ) or any(covers_table(mine, theirs) or covers_table(theirs, mine) for mine in one.tables for theirs in other.tables)


def _is_item_pattern(text: str) -> bool:
    """Return whether ``text`` is an item's name, or one followed by ``/`` (``format.check_name`` has the rule)."""
    parts = text.removesuffix("/").split("/")
    return text.isprintable() and len(text.encode()) <= 1024 and not {"", ".", ".."} & set(parts)
