"""The kernel's records of encrypted directories, as bytes: policies, key names, states.

Pure: no file is opened here. Source: <linux/fscrypt.h> and Documentation/filesystems/fscrypt.rst, "User API".
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.crypto.aead import Secret
from tidegate.vault.kernel_errors import DirectoryKeySize, DirectoryPolicyUnknown

KEY_BYTES = 64  # what AES-256-XTS takes, and the most that the kernel accepts
IDENTIFIER_BYTES = 16
PADDING_BYTES = 32  # names are padded to multiples of this, so that their length says little
POLICY_BUFFER_BYTES = 8 + 24

_VERSION_2 = 2
_PADDING_MASK = 0x03
_PADDING_32 = 0x03
_KEY_BY_IDENTIFIER = 2
_FILES_BUSY, _OTHER_USERS = 1, 2
_ADDED_BY_SELF = 1
# CPython copies an ioctl argument of up to 1024 bytes to its stack and leaves it there; a longer one is only ours.
_NO_STACK_COPY_BYTES = 1025
# Architectures whose ioctl numbers have three bits of direction and thirteen of size (asm/ioctl.h).
_OTHER_NUMBERS = ("mips", "ppc", "powerpc")


class Contents(enum.IntEnum):
    """Ciphers of file contents that are accepted."""

    AES_256_XTS = 1
    ADIANTUM = 9


class Names(enum.IntEnum):
    """Ciphers of file names that are accepted."""

    AES_256_CTS = 4
    ADIANTUM = 9
    AES_256_HCTR2 = 10


# AES-128 is left out, and so are the flags that make keys shared between files: a thief may have chosen them.
_ACCEPTED = {
    (Contents.AES_256_XTS, Names.AES_256_CTS),
    (Contents.AES_256_XTS, Names.AES_256_HCTR2),
    (Contents.ADIANTUM, Names.ADIANTUM),
}


class KeyState(enum.Enum):
    """Whether the kernel has a directory's key."""

    ABSENT = 1
    PRESENT = 2
    INCOMPLETELY_REMOVED = 3  # the key is wiped; files that are still open stay readable


class Request(enum.Enum):
    """An ioctl: direction (1 the kernel writes to us, 3 both ways), number, size of its argument."""

    SET_POLICY = (1, 19, 12)
    GET_POLICY = (3, 22, 9)
    ADD_KEY = (3, 23, 80)
    REMOVE_KEY = (3, 24, 64)
    REMOVE_KEY_ALL_USERS = (3, 25, 64)
    KEY_STATUS = (3, 26, 128)

    def number(self, machine: str) -> int:
        """Return the request's number on ``machine`` (as ``os.uname`` names it)."""
        to_user, number, size = self.value
        if machine.startswith(_OTHER_NUMBERS):
            return (to_user << 1) << 29 | size << 16 | ord("f") << 8 | number
        # <asm-generic/ioctl.h>: 2 is _IOC_READ, 1 is _IOC_WRITE
        return (2 if to_user == 1 else 3) << 30 | size << 16 | ord("f") << 8 | number


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a directory is encrypted, and under which key."""

    identifier: bytes
    contents: Contents = Contents.AES_256_XTS
    names: Names = Names.AES_256_CTS
    padding_bytes: int = PADDING_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatus:
    """What the kernel says of a key: state, whether this user added it, how many users did."""

    state: KeyState
    added_by_us: bool
    users: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What the kernel said when a key was removed."""

    files_busy: bool
    other_users: bool


def key_identifier(key: Secret) -> bytes:
    """Return the 16 bytes by which the kernel will know ``key``, without giving it the key.

    Raises ``vault.directory.key-size`` unless the key has 64 bytes.
    Source: fscrypt.rst, "Key derivation function": HKDF-SHA512 (RFC 5869) without salt, context HKDF_CONTEXT_KEY_ID.
    """
    require_key(key)
    kdf = HKDF(algorithm=hashes.SHA512(), length=IDENTIFIER_BYTES, salt=None, info=b"fscrypt\x00\x01")
    return kdf.derive(key.view())


def require_key(key: Secret) -> None:
    """Raise ``vault.directory.key-size`` unless ``key`` has 64 bytes."""
    if len(key) != KEY_BYTES:
        raise DirectoryKeySize(f"a directory key has {KEY_BYTES} bytes, this one has {len(key)}", size=len(key))


def encode_policy(policy: Policy) -> bytearray:
    """Return ``struct fscrypt_policy_v2``."""
    flags = {4: 0, 8: 1, 16: 2, 32: 3}[policy.padding_bytes]
    return bytearray(
        struct.pack("=BBBB4x16s", _VERSION_2, policy.contents, policy.names, flags, _identifier(policy.identifier))
    )


def encode_policy_query() -> bytearray:
    """Return an empty ``struct fscrypt_get_policy_ex_arg`` with room for every version that there is."""
    return bytearray(struct.pack("=Q24x", POLICY_BUFFER_BYTES - 8))


def parse_policy(answer: bytes | bytearray) -> Policy:
    """Return the policy in the kernel's answer, or raise ``vault.directory.policy`` for one that is not accepted.

    Accepted are version 2 with AES-256-XTS or Adiantum and the names' cipher that goes with it, one key per file.
    """
    if len(answer) < POLICY_BUFFER_BYTES:
        raise DirectoryPolicyUnknown(f"the kernel's answer has {len(answer)} bytes")
    (size,) = struct.unpack_from("=Q", answer)
    version, contents, names, flags, identifier = struct.unpack_from("=BBBB4x16s", answer, 8)
    if version != _VERSION_2 or size != POLICY_BUFFER_BYTES - 8:
        raise DirectoryPolicyUnknown(
            f"the encryption policy has version {1 if version == 0 else version}, not 2", version=version
        )
    if (contents, names) not in _ACCEPTED or flags & ~_PADDING_MASK:
        raise DirectoryPolicyUnknown(
            f"the policy has contents mode {contents}, names mode {names}, flags {flags:#x}",
            contents=contents,
            names=names,
            flags=flags,
        )
    padding = 4 << (flags & _PADDING_MASK)
    return Policy(identifier=identifier, contents=Contents(contents), names=Names(names), padding_bytes=padding)


def encode_add_key(key: Secret) -> bytearray:
    """Return ``struct fscrypt_add_key_arg`` with ``key`` in it; the caller wipes it."""
    require_key(key)
    argument = bytearray(max(80 + KEY_BYTES, _NO_STACK_COPY_BYTES))
    struct.pack_into("=II32xII", argument, 0, _KEY_BY_IDENTIFIER, 0, KEY_BYTES, 0)
    argument[80 : 80 + KEY_BYTES] = key.view()
    return argument


def parse_added_identifier(answer: bytearray) -> bytes:
    """Return the identifier that the kernel wrote into the argument of ``Request.ADD_KEY``."""
    return bytes(answer[8 : 8 + IDENTIFIER_BYTES])


def encode_remove_key(identifier: bytes) -> bytearray:
    """Return ``struct fscrypt_remove_key_arg``."""
    return bytearray(struct.pack("=II16s16x24x", _KEY_BY_IDENTIFIER, 0, _identifier(identifier)))


def parse_removal(answer: bytearray) -> Removal:
    """Return the flags that the kernel set on removal."""
    (flags,) = struct.unpack_from("=I", answer, 40)
    return Removal(files_busy=bool(flags & _FILES_BUSY), other_users=bool(flags & _OTHER_USERS))


def encode_key_status(identifier: bytes) -> bytearray:
    """Return ``struct fscrypt_get_key_status_arg``."""
    return bytearray(struct.pack("=II16s16x88x", _KEY_BY_IDENTIFIER, 0, _identifier(identifier)))


def parse_key_status(answer: bytearray) -> KeyStatus:
    """Return the key's state, or raise ``vault.directory.policy`` if it is none that we know."""
    state, flags, users = struct.unpack_from("=III", answer, 64)
    if state not in {known.value for known in KeyState}:
        raise DirectoryPolicyUnknown(f"the kernel reports the unknown key state {state}", state=state)
    return KeyStatus(state=KeyState(state), added_by_us=bool(flags & _ADDED_BY_SELF), users=users)


def _identifier(identifier: bytes) -> bytes:
    if len(identifier) != IDENTIFIER_BYTES:
        raise ValueError(f"a key identifier has {IDENTIFIER_BYTES} bytes")
    return identifier
