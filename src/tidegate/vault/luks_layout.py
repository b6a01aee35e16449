"""LUKS2 headers as ``cryptsetup`` prints them, our token in them, and the arguments of its commands.

Pure. Source: the LUKS2 on-disk format specification 1.1.0 (JSON area, tokens), cryptsetup(8).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import msgspec

from tidegate.crypto.aead import Secret
from tidegate.vault.kernel_errors import VolumeKeySize, VolumeMalformed, VolumeNameInvalid, VolumeTokenMissing

KEY_BYTES = 64
HEADER_BYTES = 1 << 20
TOKEN_TYPE = "tidegate"  # noqa: S105  # a name, no secret
MAX_JSON_BYTES = 4 << 20  # the format's largest JSON area
MAX_ENTRIES = 32  # key slots, and as many tokens: the format's own bounds
MAX_LABEL_BYTES = 47  # and a zero
MAX_KEY_NAME_BYTES = 1024  # as an item of the vault

_METADATA_BYTES = 16 << 10  # the smallest that the format allows; two of them
_KEYSLOTS_BYTES = HEADER_BYTES - 2 * _METADATA_BYTES  # three slots of 252 KiB for a key of 512 bits
_SECTOR_BYTES = 512
# A key of 64 random bytes cannot be guessed, so that stretching it would only cost the device time and memory at each
# start; 1000 rounds of PBKDF2 are the least that cryptsetup accepts. A passphrase is never a volume key (`KEY_BYTES`).
_DERIVATION = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--hash", "sha256")
_KEY_FROM_STDIN = ("--key-file", "-", "--keyfile-size", str(KEY_BYTES))
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VAULT_ID = re.compile(r"[0-9a-f]{2,64}")
_SLOT = re.compile(r"[0-9]{1,2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeToken:
    """Which key of which vault opens a key slot; it is a hint, anyone with the device can change it."""

    vault_id: str
    key_name: str
    keyslots: tuple[str, ...] = ("0",)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeHeader:
    """What a LUKS2 header says of itself; nothing in it is authenticated."""

    cipher: str
    sector_bytes: int
    offset_bytes: int
    keyslots: tuple[str, ...]
    tokens: tuple[VolumeToken, ...]
    foreign_tokens: tuple[str, ...]

    def key_name(self, vault_id: str) -> str:
        """Return the key of the vault ``vault_id`` that a token names, or raise ``vault.volume.no-token``."""
        for token in self.tokens:
            if token.vault_id == vault_id:
                return token.key_name
        raise VolumeTokenMissing(f"the header names no key of the vault {vault_id}", vault=vault_id)


class _Segment(msgspec.Struct, frozen=True):
    type: str
    offset: str
    encryption: str
    sector_size: int


class _Document(msgspec.Struct, frozen=True):
    keyslots: dict[str, dict[str, object]]
    tokens: dict[str, dict[str, object]]
    segments: dict[str, _Segment]


def require_key(key: Secret) -> None:
    """Raise ``vault.volume.key-size`` unless ``key`` has 64 bytes."""
    if len(key) != KEY_BYTES:
        raise VolumeKeySize(f"a volume key has {KEY_BYTES} bytes, this one has {len(key)}", size=len(key))


def require_name(name: str) -> None:
    """Raise ``vault.volume.name`` unless ``name`` can name a mapping and no option or path."""
    if _NAME.fullmatch(name) is None:
        raise VolumeNameInvalid(f"{name!r} cannot name a mapping", name=name)


def require_label(label: str) -> None:
    """Raise ``vault.volume.name`` unless ``label`` fits the header's field (47 bytes) and can be printed."""
    if not 1 <= len(label.encode(errors="replace")) <= MAX_LABEL_BYTES or not label.isprintable():
        raise VolumeNameInvalid(f"{label[:64]!r} cannot label a volume")


def plan_format(device: str, *, volume_id: str, label: str) -> list[str]:
    """Return the command that makes a LUKS2 volume: AES-256-XTS, header of 1 MiB with three key slots."""
    return [
        *("cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64"),
        *("--key-size", "512", *_DERIVATION, "--uuid", volume_id, f"--label={label}"),
        *("--luks2-metadata-size", str(_METADATA_BYTES), "--luks2-keyslots-size", str(_KEYSLOTS_BYTES)),
        *("--offset", str(HEADER_BYTES // _SECTOR_BYTES), *_KEY_FROM_STDIN, device),
    ]


def plan_check(device: str) -> list[str]:
    """Return the command that tries a key on the key slots and opens nothing."""
    return ["cryptsetup", "open", "--type", "luks2", "--test-passphrase", *_unlocking(), device]


def plan_open(device: str, name: str) -> list[str]:
    """Return the command that opens a volume as ``/dev/mapper/NAME``."""
    return ["cryptsetup", "open", "--type", "luks2", *_unlocking(), device, name]


def encode_token(token: VolumeToken) -> bytes:
    """Return the token as the JSON object that ``cryptsetup token import`` reads."""
    document: dict[str, object] = {
        "type": TOKEN_TYPE,
        "keyslots": list(token.keyslots),
        "vault": token.vault_id,
        "key": token.key_name,
    }
    _token(document)  # what we would refuse to read is not written
    return json.dumps(document).encode()


def parse_header(raw: bytes) -> VolumeHeader:
    """Return the header in ``luksDump --dump-json-metadata``'s answer, or raise ``vault.volume.malformed``."""
    if len(raw) > MAX_JSON_BYTES:
        raise VolumeMalformed(f"the header's JSON has more than {MAX_JSON_BYTES} bytes")
    try:
        document = msgspec.json.decode(raw, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VolumeMalformed(f"the header's JSON is not a LUKS2 header: {error}") from error
    if max(len(document.keyslots), len(document.tokens)) > MAX_ENTRIES:
        raise VolumeMalformed(f"the header has more than {MAX_ENTRIES} key slots or tokens")
    segment = document.segments.get("0")
    if segment is None or len(document.segments) != 1 or segment.type != "crypt":
        raise VolumeMalformed("the volume is not one encrypted segment; a re-encryption may be under way")
    if re.fullmatch(r"[0-9]{1,20}", segment.offset, re.ASCII) is None:
        raise VolumeMalformed("the segment's offset is no number")
    kinds = {number: str(entry.get("type")) for number, entry in document.tokens.items()}
    return VolumeHeader(
        cipher=segment.encryption,
        sector_bytes=segment.sector_size,
        offset_bytes=int(segment.offset),
        keyslots=tuple(document.keyslots),
        tokens=tuple(_token(document.tokens[number]) for number, kind in kinds.items() if kind == TOKEN_TYPE),
        foreign_tokens=tuple(kind for kind in kinds.values() if kind != TOKEN_TYPE),
    )


def _token(entry: dict[str, object]) -> VolumeToken:
    match entry:
        case {"type": _, "keyslots": [*slots], "vault": str() as vault_id, "key": str() as key_name, **rest} if (
            not rest
            and 0 < len(slots) <= MAX_ENTRIES
            and all(isinstance(slot, str) and _SLOT.fullmatch(slot) for slot in slots)
            and _VAULT_ID.fullmatch(vault_id)
            and 0 < len(key_name.encode(errors="replace")) <= MAX_KEY_NAME_BYTES
            and key_name.isprintable()
        ):
            return VolumeToken(vault_id=vault_id, key_name=key_name, keyslots=tuple(str(slot) for slot in slots))
    raise VolumeMalformed("a token of type tidegate is malformed")


def _unlocking() -> list[str]:
    # No token handler of another program is loaded, and no question asked at a terminal.
    return ["--batch-mode", "--disable-external-tokens", "--tries", "1", *_KEY_FROM_STDIN]
