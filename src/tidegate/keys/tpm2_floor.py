"""Versions of statements and the counter that ends old ones: the policy of a key whose authority has a floor.

Without a floor a statement is valid for ever. With one it has a version, the device a counter, and the TPM refuses each
version that is lower than the count. What a TPM counts begins anywhere and what an authority signs is the same for all
devices; so the version is in the reference that the authority signs, and the key's own policy says for 64 versions
which raw count ends each: PolicyAuthorize for this version, PolicyNV "count at most", and PolicyOR over all of them.

Pure. Source: TPM 2.0 Library Part 3, §23.6 (PolicyOR).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.keys.pcr_policy import authorized_policy
from tidegate.keys.store import PcrAuthority
from tidegate.keys.tpm2_nvpolicy import COUNT_BYTES, nv_name, with_count_at_most

_CC_POLICY_OR = 0x171
_BRANCHES = 8  # of one TPM2_PolicyOR
VERSIONS = _BRANCHES * _BRANCHES  # two of them, one in the other


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The counter of a key's floor as it was at the key's birth.

    ``base`` is the raw count that stands for 0, ``first`` the count: the lowest version that can ever open the key.
    """

    counter: str
    index: int
    base: int
    first: int

    @property
    def versions(self) -> range:
        """Return every version that the key's policy knows."""
        return range(self.first, self.first + VERSIONS)


def counter_label(name: str) -> bytes:
    """Return what a counter's NV indices carry as their policy, so that they are told apart."""
    return hashlib.sha256(b"tidegate counter v1\0" + name.encode()).digest()


def operand(floor: Floor, version: int) -> bytes:
    """Return the highest raw count under which statements of ``version`` are valid."""
    return (floor.base + version).to_bytes(COUNT_BYTES, "big")


def floor_branches(authority: PcrAuthority, pcrs: frozenset[int], floor: Floor) -> list[list[bytes]]:
    """Return the policy digest for each version, eight by eight."""
    name = nv_name(floor.index, counter_label(floor.counter))
    branches = [
        with_count_at_most(authorized_policy(authority, pcrs, version), name, operand(floor, version))
        for version in floor.versions
    ]
    return [branches[start : start + _BRANCHES] for start in range(0, VERSIONS, _BRANCHES)]


def either(branches: Sequence[bytes]) -> bytes:
    """Return the policy digest after TPM2_PolicyOR, which begins anew from zeros."""
    return hashlib.sha256(bytes(32) + _CC_POLICY_OR.to_bytes(4, "big") + b"".join(branches)).digest()


def floored_policy(authority: PcrAuthority, pcrs: frozenset[int], floor: Floor) -> bytes:
    """Return the policy digest of a key with a floor."""
    return either([either(group) for group in floor_branches(authority, pcrs, floor)])
