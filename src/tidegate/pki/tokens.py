"""One-time enrolment tokens: 256 bits shown once, a digest in the store, good for one device, once, for a short time.

Pure but for the store it is given. A digest without salt is enough: nobody guesses 256 random bits.
"""

from __future__ import annotations

import base64
import hashlib

from tidegate.base.clock import Entropy
from tidegate.crypto.aead import Secret
from tidegate.pki.ca_store import CaStore, TokenRecord
from tidegate.pki.errors import ProfileRefused
from tidegate.pki.profiles import PROFILES, check_name

TOKEN_BYTES = 32
DEFAULT_LIFETIME_S = 86_400
LONGEST_LIFETIME_S = 30 * 86_400
_MAX_TEXT = 64


def issue_token(
    store: CaStore, device: str, *, now_s: float, entropy: Entropy, lifetime_s: int = DEFAULT_LIFETIME_S
) -> Secret:
    """Return a new token for ``device`` (its serial number) as text to be handed to it; it is never shown again.

    ``lifetime_s`` is 60 seconds to 30 days. Raises ``pki.name.invalid``, ``pki.profile.refused``.
    """
    if not 60 <= lifetime_s <= LONGEST_LIFETIME_S:
        raise ProfileRefused(f"a token lives 60 to {LONGEST_LIFETIME_S} seconds, not {lifetime_s}")
    token = Secret(base64.urlsafe_b64encode(entropy.random_bytes(TOKEN_BYTES)).rstrip(b"="))
    store.add_token(
        TokenRecord(
            digest=token_digest(token),
            device=check_name(device),
            profile=PROFILES["ldevid"].name,
            issued_s=int(now_s),
            expires_s=int(now_s) + lifetime_s,
        )
    )
    return token


def token_digest(token: Secret) -> bytes:
    """Return what the store knows a token by; a text that is no token has a digest that no store knows."""
    return hashlib.sha256(b"tidegate enrolment token\0" + bytes(token.view()[:_MAX_TEXT])).digest()
