"""Key URIs: one string that names a provider, a key in it and how it unlocks; it never holds a secret.

- ``file:/FOLDER?key=NAME&device-secret=/FILE`` or ``…&passphrase-file=/FILE``: software keys;
- ``pkcs11:token=LABEL;object=NAME?module-path=/MODULE.so&pin-source=/FILE``: a token (RFC 7512, without ``pin-value``);
- ``tpm2:/FOLDER?key=NAME&tcti=device:/dev/tpmrm0``: a TPM 2.0, its wrapped keys in a folder;
- ``keyd:/SOCKET?key=NAME``: the key process.

A file may be ``/dev/fd/3``, and ``credential:NAME`` is one of the service's systemd credentials. Where no file is named
a person is asked, if there is one.
"""

from __future__ import annotations

import importlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from tidegate.base.durable import read_file_bounded, require_private, translate_os_errors
from tidegate.base.errors import UnsafePermissions
from tidegate.crypto.aead import Secret
from tidegate.keys.errors import KeyUriMalformed, PinMissing, ProviderUnknown, UnlockRefused
from tidegate.keys.store import AskPin, KeyStore, check_key_name

_MAX_PASSPHRASE_BYTES = 1024
_ENTRY_POINTS = "tidegate.keys"  # where another package's provider announces itself: SCHEME = module


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A provider: the module that has ``open_uri``, and the options that its URIs may carry."""

    module: str
    options: frozenset[str]


SCHEMES = {
    "file": Scheme(
        module="tidegate.keys.software", options=frozenset({"device-secret", "passphrase-file", "key-pin-source"})
    ),
    "pkcs11": Scheme(
        module="tidegate.keys.pkcs11",
        options=frozenset({"token", "serial", "module-path", "pin-source", "key-pin-source"}),
    ),
    "tpm2": Scheme(
        module="tidegate.keys.tpm2", options=frozenset({"tcti", "auth-source", "key-pin-source", "owner-auth-source"})
    ),
    "keyd": Scheme(module="tidegate.keys.remote", options=frozenset()),
}
# what a message may show: names that are ours or known from elsewhere, never a secret that stands where a name should
_EVERY_OPTION = frozenset({"key", "object", "id", "pin", "pin-value", "passphrase"}).union(
    *(scheme.options for scheme in SCHEMES.values())
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUri:
    """A parsed key URI; ``name`` is empty where only a store is meant.

    ``location`` is the folder or socket, the token's label for ``pkcs11:``.
    """

    scheme: str
    location: str
    name: str
    options: dict[str, str]


class Provider(Protocol):
    """What a provider's module has at its top."""

    def open_uri(self, uri: KeyUri, *, create: bool, ask: AskPin | None) -> KeyStore:
        """Return the store, unlocked; with ``create`` made empty first."""
        ...


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
    allowed = _scheme(parts.scheme, shown).options
    token = parts.scheme == "pkcs11"
    named, location = ("object", "") if token else ("key", unquote(parts.path))
    pairs = parts.query.split("&") if parts.query else []
    if token:
        pairs = [*parts.path.split(";"), *pairs]
    options: dict[str, str] = {}
    for pair in pairs:
        option, _, value = pair.partition("=")
        if option not in {named, *allowed} or option in options:
            told = repr(option) if option in _EVERY_OPTION else "that is not shown"
            raise KeyUriMalformed(f"{shown!r} with an unknown or repeated option {told} is no key URI", uri=shown)
        options[option] = unquote(value)
    location = options.get("token", "") if token else location
    if not location or parts.netloc or parts.fragment or not "".join((text, location, *options.values())).isprintable():
        raise KeyUriMalformed(f"{shown!r} is no key URI", uri=shown)
    name = options.pop(named, "")
    if name:
        check_key_name(name)
    return KeyUri(scheme=parts.scheme, location=location, name=name, options=options)


def open_store(uri: KeyUri, *, create: bool = False, ask: AskPin | None = None) -> KeyStore:
    """Return the store that ``uri`` names, unlocked.

    ``ask`` is asked where the URI names no file with the PIN or passphrase. Raises ``keys.unlock.refused``,
    ``keys.pin.*``, ``keys.token.missing``, ``keys.provider.absent``, ``base.permissions.unsafe``.
    """
    provider: Provider = importlib.import_module(_scheme(uri.scheme, uri.scheme).module)
    return provider.open_uri(uri, create=create, ask=ask)


def read_pin(source: str | None, ask: AskPin | None, what: str) -> Secret:
    """Return the PIN or passphrase from ``source`` (a file or ``credential:NAME``), else from ``ask``.

    Raises ``keys.pin.missing``, ``keys.unlock.refused`` for an empty one, ``base.permissions.unsafe``.
    """
    if source is None:
        if ask is None:
            raise PinMissing(f"nothing says where {what} comes from")
        return ask(what)
    kind, _, name = source.partition(":")
    if kind == "credential":
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder or "/" in name or name in {"", ".", ".."}:
            raise PinMissing(f"there is no systemd credential {name!r}")
        return _read_credential(Path(folder) / name)
    return read_passphrase(Path(source.removeprefix("file:")))


def read_passphrase(path: Path) -> Secret:
    """Return the first line of a private file (or of a descriptor under /dev/fd) as a secret, never an empty one."""
    if path.parent != Path("/dev/fd"):
        require_private(path)
    return _first_line(path)


def _read_credential(path: Path) -> Secret:
    """Return a systemd credential; raise ``base.permissions.unsafe`` if others than root and this service can reach it.

    Where it can, systemd keeps the file root's and admits the service by an access list, whose mask ``stat`` shows as
    the group's right to read (mode 440, of the folder 550); else both are the service's own.
    """
    for place, forbidden in ((path.parent, 0o027), (path, 0o037)):
        with translate_os_errors(place):
            status = place.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_uid not in {0, os.geteuid()} or status.st_mode & forbidden:
            raise UnsafePermissions(f"{place} is no credential of this service: others can reach it", path=str(place))
    return _first_line(path)


def _first_line(path: Path) -> Secret:
    line = read_file_bounded(path, limit_bytes=_MAX_PASSPHRASE_BYTES).split(b"\n", 1)[0]
    if not line:
        raise UnlockRefused(f"{path} holds no passphrase", path=str(path))
    return Secret(line)


def _scheme(name: str, shown: str) -> Scheme:
    """Return the provider called ``name``: one of ours, else one that an installed package announces."""
    if name in SCHEMES:
        return SCHEMES[name]
    import importlib.metadata  # two megabytes that nobody pays for who uses our own providers

    for point in importlib.metadata.entry_points(group=_ENTRY_POINTS, name=name):
        module = point.load()
        return Scheme(module=point.value, options=frozenset(module.URI_OPTIONS))
    raise ProviderUnknown(f"no provider for {name or shown!r} keys in this build", uri=shown)
