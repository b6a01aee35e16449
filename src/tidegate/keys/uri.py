"""Key URIs: one string that names a provider, a key in it and how it unlocks; it never holds a secret.

``file:/FOLDER?key=NAME&device-secret=/FILE`` or ``file:/FOLDER?key=NAME&passphrase-file=/FILE`` (``/dev/fd/3`` and
systemd credentials are files too).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tidegate.base.durable import read_file_bounded, require_private
from tidegate.crypto.aead import Secret
from tidegate.keys.errors import KeyUriMalformed, ProviderUnknown, UnlockRefused
from tidegate.keys.store import KeyStore, check_key_name

_MAX_PASSPHRASE_BYTES = 1024
_OPTIONS = {"key", "device-secret", "passphrase-file"}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUri:
    """A parsed key URI; ``name`` is empty where only a store is meant."""

    scheme: str
    location: Path
    name: str
    options: dict[str, str]


def parse_key_uri(text: str) -> KeyUri:
    """Return the parts of a key URI; raise ``keys.uri.malformed`` or ``keys.provider.unknown``.

    Percent signs are decoded, ``+`` is itself. Messages show nothing behind the ``?``, where somebody may have written
    a secret although there is no place for one.
    """
    shown = text.partition("?")[0].partition(";")[0]
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise KeyUriMalformed(f"{shown!r} is no key URI", uri=shown) from error
    if parts.scheme != "file":
        raise ProviderUnknown(f"no provider for {parts.scheme or shown!r} keys in this build", uri=shown)
    options = {}
    for pair in parts.query.split("&") if parts.query else []:
        option, _, value = pair.partition("=")
        if option not in _OPTIONS or option in options:
            raise KeyUriMalformed(f"{shown!r} with an unknown or repeated option {option!r} is no key URI", uri=shown)
        options[option] = unquote(value)
    location = unquote(parts.path)
    if not location or parts.netloc or parts.fragment or not "".join((text, location, *options.values())).isprintable():
        raise KeyUriMalformed(f"{shown!r} is no key URI", uri=shown)
    name = options.pop("key", "")
    if name:
        check_key_name(name)
    return KeyUri(scheme=parts.scheme, location=Path(location), name=name, options=options)


def open_store(uri: KeyUri, *, create: bool = False) -> KeyStore:
    """Return the store that ``uri`` names, unlocked; raise ``keys.unlock.refused``, ``base.permissions.unsafe``."""
    from tidegate.keys.software import (
        DeviceSecretUnlock,
        PassphraseUnlock,
        SoftwareKeyStore,
    )

    if len(uri.options) != 1:
        raise KeyUriMalformed("name one way to unlock: device-secret=/FILE or passphrase-file=/FILE")
    if "device-secret" in uri.options:
        unlock: DeviceSecretUnlock | PassphraseUnlock = DeviceSecretUnlock(Path(uri.options["device-secret"]))
    else:
        unlock = PassphraseUnlock(read_passphrase(Path(uri.options["passphrase-file"])))
    return SoftwareKeyStore.create(uri.location, unlock) if create else SoftwareKeyStore(uri.location, unlock)


def read_passphrase(path: Path) -> Secret:
    """Return the first line of a private file (or of a descriptor under /dev/fd) as a secret, never an empty one."""
    if path.parent != Path("/dev/fd"):
        require_private(path)
    line = read_file_bounded(path, limit_bytes=_MAX_PASSPHRASE_BYTES).split(b"\n", 1)[0]
    if not line:
        raise UnlockRefused(f"{path} holds no passphrase", path=str(path))
    return Secret(line)
