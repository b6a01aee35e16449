"""Unlock by k of n others: each gets a share of the slot's seed, fewer than k tell nothing about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidegate.base.errors import TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.memory import ProtectedSecret
from tidegate.crypto.shamir import join_shares, split_secret
from tidegate.vault.errors import RecordMalformed, ThresholdMissed
from tidegate.vault.unlockers import Anchor, Unlocker

MAX_PARTS = 16


class ThresholdUnlocker:
    """Unlock where ``need`` of ``parts`` do. To make a slot all parts have to be there; to open it, any ``need``.

    There is no counter: which of the parts open the vault changes from time to time.
    """

    kind = "threshold"

    def __init__(self, need: int, parts: Sequence[Unlocker]) -> None:
        if not 1 <= need <= MAX_PARTS or not 1 <= len(parts) <= MAX_PARTS:
            raise ValueError(f"from 1 to {MAX_PARTS} parts")
        self._need = need
        self._parts = tuple(parts)

    def wrap(self, secret: Secret, context: bytes) -> dict[str, cbor.Value]:
        if self._need > len(self._parts):
            raise ValueError("more parts are needed than there are")
        count = len(self._parts)
        with ProtectedSecret.random((self._need - 1) * len(secret) or 1) as random:
            coefficients = random if self._need > 1 else Secret(b"")
            shares = split_secret(secret, need=self._need, count=count, coefficients=coefficients)
        try:
            wrapped: list[cbor.Value] = [
                {"kind": part.kind, "sealed": _members(part.wrap(share, _share_context(context, number)))}
                for number, (part, share) in enumerate(zip(self._parts, shares, strict=True), 1)
            ]
        finally:
            for share in shares:
                share.wipe()
        return {"need": self._need, "shares": wrapped}

    def unwrap(self, slot: Mapping[str, cbor.Value], context: bytes) -> Secret:
        match slot:
            case {"need": int() as need, "shares": [*entries], **rest} if (
                not rest and 1 <= need <= len(entries) <= MAX_PARTS
            ):
                pass
            case _:
                raise RecordMalformed("the threshold slot of the vault's record is malformed")
        shares: list[Secret] = []
        refusals: list[str] = []
        try:
            for number, entry in enumerate(entries, 1):
                if len(shares) < need:
                    self._try_share(entry, _share_context(context, number), shares, refusals)
            if len(shares) < need:
                said = f" ({'; '.join(refusals)})" if refusals else ""
                raise ThresholdMissed(f"{len(shares)} of {need} needed parts open{said}", have=len(shares), need=need)
            return join_shares(shares)
        finally:
            for share in shares:
                share.wipe()

    def anchor(self, vault_id: bytes) -> Anchor | None:  # noqa: ARG002  # see above
        return None

    def _try_share(self, entry: cbor.Value, context: bytes, shares: list[Secret], refusals: list[str]) -> None:
        """Open one share with the first of the parts that does."""
        match entry:
            case {"kind": str() as kind, "sealed": dict() as sealed, **rest} if not rest:
                members = {str(name): value for name, value in sealed.items()}
            case _:
                raise RecordMalformed("a share of the vault's record is malformed")
        for part in self._parts:
            if part.kind == kind:
                try:
                    shares.append(part.unwrap(members, context))
                except TidegateError as error:
                    refusals.append(f"{kind}: {error.code}")
                else:
                    return


def _members(sealed: Mapping[str, cbor.Value]) -> cbor.Value:
    return {name: value for name, value in sealed.items()}  # noqa: C416  # a map of another type


def _share_context(context: bytes, number: int) -> bytes:
    return context + b" share " + bytes([number])
