"""Dividing a secret into n shares of which any k give it back and fewer tell nothing (Shamir, 1979). Pure.

Over GF(2^8) with x^8 + x^4 + x^3 + x + 1, as AES. A share is its x-coordinate (1 to 255) and a value for each byte of
the secret. A false share is not noticed here: what the secret opens has to tell.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.crypto.aead import Secret
from tidegate.crypto.errors import SharesMalformed
from tidegate.crypto.memory import ProtectedSecret

MAX_SHARES = 255


def split_secret(secret: Secret, *, need: int, count: int, coefficients: Secret) -> list[ProtectedSecret]:
    """Return ``count`` shares of which ``need`` give the secret back.

    ``coefficients`` are ``(need - 1) x len(secret)`` random bytes, used for nothing else.
    """
    if not 1 <= need <= count <= MAX_SHARES or len(coefficients) != (need - 1) * len(secret):
        raise ValueError("1 <= need <= count <= 255, and random bytes for each coefficient")

    def fill(x: int, target: memoryview) -> None:
        target[0] = x
        for position, constant in enumerate(secret.view()):
            value = 0
            for degree in range(need - 1):  # Horner's rule, from the highest coefficient down
                value = _multiply(value ^ coefficients.view()[degree * len(secret) + position], x)
            target[1 + position] = value ^ constant

    return [
        ProtectedSecret.fill(len(secret) + 1, lambda target, x=x: fill(x, target))  # type: ignore[misc]
        for x in range(1, count + 1)
    ]


def join_shares(shares: Sequence[Secret]) -> ProtectedSecret:
    """Return what the shares (as many as are needed, each another one) give; raise ``crypto.shares.malformed``."""
    points = [share.view()[0] for share in shares if len(share) > 1]
    lengths = {len(share) for share in shares}
    if len(points) != len(shares) or len(set(points)) != len(points) or 0 in points or len(lengths) != 1:
        raise SharesMalformed("the shares do not belong together")
    weights = [_weight(points, x) for x in points]

    def fill(target: memoryview) -> None:
        for position in range(len(target)):
            value = 0
            for share, weight in zip(shares, weights, strict=True):
                value ^= _multiply(share.view()[1 + position], weight)
            target[position] = value

    return ProtectedSecret.fill(lengths.pop() - 1, fill)


def _weight(points: Sequence[int], x: int) -> int:
    """Return the Lagrange coefficient of ``x`` for the value at zero."""
    above = below = 1
    for other in points:
        if other != x:
            above = _multiply(above, other)
            below = _multiply(below, other ^ x)
    return _multiply(above, _inverse(below))


def _multiply(left: int, right: int) -> int:
    """Multiply in the field, with the same steps for every value: what is multiplied is secret."""
    product = 0
    for bit in range(8):
        product ^= -(right >> bit & 1) & left
        left = (left << 1) ^ (-(left >> 7) & 0x11B)
    return product


def _inverse(value: int) -> int:
    """Return the inverse: the 254th power. Only coordinates, which are public, come here."""
    power = 1
    for _ in range(254):
        power = _multiply(power, value)
    return power
