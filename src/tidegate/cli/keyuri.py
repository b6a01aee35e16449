"""Key URIs on the command line: where a URI names no file with the PIN or passphrase, the person there is asked."""

from __future__ import annotations

import getpass
import hmac
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidegate.crypto.aead import Secret
    from tidegate.crypto.signing import Signer
    from tidegate.keys.store import KeyStore


def open_key(text: str) -> Signer:
    """Return what signs with the key of a URI; a PIN is asked on the terminal if it is needed."""
    store, name = open_keys(text)
    return store.signer(name)


def open_keys(text: str, *, create: bool = False) -> tuple[KeyStore, str]:
    """Return the store of a URI and the key's name in it (empty if it names none); with ``create`` made empty first."""
    from tidegate.keys.uri import open_store, parse_key_uri

    uri = parse_key_uri(text)
    return open_store(uri, create=create, ask=ask_twice if create else ask_on_terminal), uri.name


def ask_on_terminal(what: str) -> Secret:
    """Return what the person at the terminal types, unseen; raise ``keys.pin.missing`` if there is none."""
    from tidegate.crypto.aead import Secret
    from tidegate.keys.errors import PinMissing, UnlockRefused

    if sys.stdin is None or not sys.stdin.isatty():
        raise PinMissing(f"nothing says where {what} comes from, and there is no terminal to ask at")
    typed = getpass.getpass(f"{what[0].upper()}{what[1:]}: ").encode()
    if not typed:
        raise UnlockRefused(f"nothing was typed for {what}")
    return Secret(typed)


def ask_twice(what: str) -> Secret:
    """Return what the person types twice alike: nobody can open what a slip of the finger closed."""
    from tidegate.keys.errors import UnlockRefused

    first = ask_on_terminal(what)
    with ask_on_terminal(f"{what}, once more") as second:
        if not hmac.compare_digest(first.view(), second.view()):
            raise UnlockRefused(f"{what} was not typed alike")
    return first
