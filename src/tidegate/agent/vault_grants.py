"""Who may use what of the vault: the policy's grants by user, and the decision. Pure; default deny."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tidegate.agent.vault_errors import VaultDenied
from tidegate.vault.section import EVERYTHING, VaultGrant, VaultSection, covers_item, covers_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """A part of the items' names in which somebody may look: all that begin with ``prefix``, or one name."""

    prefix: str
    is_name: bool

    def covers(self, other: Scope) -> bool:
        """Return whether everything in ``other`` is in this one."""
        return self == other or (not self.is_name and other.prefix.startswith(self.prefix))

    def is_before(self, name: str) -> bool:
        """Return whether every name in it comes before ``name`` in order, or is it."""
        return self.prefix <= name if self.is_name else self.prefix < name and not name.startswith(self.prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """Every permission there is, by the number of the user."""

    by_user: Mapping[int, tuple[VaultGrant, ...]]

    def require_any(self, user: int) -> None:
        """Raise ``agent.vault.denied`` for a user who is granted nothing."""
        if user not in self.by_user:
            raise VaultDenied(f"user {user} is granted nothing here", user=user)

    def require_item(self, user: int, name: str, *, write: bool = False) -> None:
        """Raise ``agent.vault.denied`` unless the user may read (or write) the item, whether there is one or not."""
        for grant in self.by_user.get(user, ()):
            if (grant.write or not write) and any(covers_item(one, name) for one in grant.items):
                return
        raise VaultDenied(f"user {user} may not {'write' if write else 'read'} this item", user=user)

    def require_table(self, user: int, table: str, *, write: bool = False) -> None:
        """Raise ``agent.vault.denied`` unless the user may read (or write) records of the table."""
        for grant in self.by_user.get(user, ()):
            if (grant.write or not write) and any(covers_table(one, table) for one in grant.tables):
                return
        raise VaultDenied(f"user {user} may not {'write' if write else 'read'} this table", user=user)

    def scopes(self, user: int, prefix: str) -> list[Scope]:
        """Return where to look for the items that begin with ``prefix`` and that the user may read, in order.

        No name is in two of them, and the names of one come before those of the next.
        """
        found: list[Scope] = []
        for grant in self.by_user.get(user, ()):
            for one in grant.items:
                scope = _intersect(one, prefix)
                if scope is not None and not any(other.covers(scope) for other in found):
                    found = [*(other for other in found if not scope.covers(other)), scope]
        return sorted(found, key=lambda scope: scope.prefix)


def plan_grants(section: VaultSection, user_of: Callable[[str], int | None]) -> tuple[Grants, list[str]]:
    """Return the grants by user, and the names of those whose user ``user_of`` does not know: nobody has these."""
    by_user: dict[int, tuple[VaultGrant, ...]] = {}
    unknown = []
    for name, grant in section.grants.items():
        user = grant.user if isinstance(grant.user, int) else user_of(grant.user)
        if user is None:
            unknown.append(name)
        else:
            by_user[user] = (*by_user.get(user, ()), grant)
    return Grants(by_user=by_user), unknown


def _intersect(granted: str, prefix: str) -> Scope | None:
    if granted == EVERYTHING:
        return Scope(prefix=prefix, is_name=False)
    if granted.startswith(prefix):
        return Scope(prefix=granted, is_name=not granted.endswith("/"))
    return Scope(prefix=prefix, is_name=False) if granted.endswith("/") and prefix.startswith(granted) else None
