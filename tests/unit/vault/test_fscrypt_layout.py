"""The kernel's records, byte for byte, and what is refused of them."""

import struct

import pytest
from cryptography.hazmat.primitives import hashes, hmac

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.vault import fscrypt_layout as layout
from tidegate.vault.fscrypt_layout import Contents, KeyState, Names, Policy, Request

IDENTIFIER = bytes(range(16))
KEY = bytes(range(64))


def answer(version=2, contents=1, names=4, flags=3, size=24):
    """Written from <linux/fscrypt.h>, not with the encoder."""
    return struct.pack("=QBBBB4x16s", size, version, contents, names, flags, IDENTIFIER)


def test_ioctl_numbers():
    # As the macros of <linux/fscrypt.h> expand on x86-64, arm, arm64 and riscv
    assert {request.name: hex(request.number("aarch64")) for request in Request} == {
        "SET_POLICY": "0x800c6613",
        "GET_POLICY": "0xc0096616",
        "ADD_KEY": "0xc0506617",
        "REMOVE_KEY": "0xc0406618",
        "REMOVE_KEY_ALL_USERS": "0xc0406619",
        "KEY_STATUS": "0xc080661a",
    }
    # As they expand with the numbers of MIPS and PowerPC
    assert Request.SET_POLICY.number("mips64") == 0x400C6613
    assert Request.ADD_KEY.number("ppc64le") == 0xC0506617


def test_identifier_is_hkdf_of_the_key():
    """Written out with HMAC, as RFC 5869 has it."""

    def mac(key, data):
        context = hmac.HMAC(key, hashes.SHA512())
        context.update(data)
        return context.finalize()

    expected = mac(mac(bytes(64), KEY), b"fscrypt\0" + b"\x01" + b"\x01")[:16]
    assert layout.key_identifier(Secret(KEY)) == expected


@pytest.mark.parametrize("size", [0, 16, 32, 63, 65])
def test_key_of_another_size(size):
    for take in (layout.key_identifier, layout.encode_add_key):
        with pytest.raises(TidegateError) as caught:
            take(Secret(bytes(size)))
        assert caught.value.code == "vault.directory.key-size"


def test_policy_there_and_back():
    policy = Policy(identifier=IDENTIFIER)
    assert (policy.contents, policy.names, policy.padding_bytes) == (Contents.AES_256_XTS, Names.AES_256_CTS, 32)
    encoded = layout.encode_policy(policy)
    assert encoded == bytes([2, 1, 4, 3, 0, 0, 0, 0]) + IDENTIFIER
    assert layout.parse_policy(struct.pack("=Q", 24) + encoded) == policy
    assert layout.parse_policy(answer(flags=0)).padding_bytes == 4


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(answer(version=0, size=12), id="version 1"),
        pytest.param(answer(version=3), id="version 3"),
        pytest.param(answer(contents=5, names=6), id="AES-128"),
        pytest.param(answer(contents=1, names=9), id="ciphers that do not go together"),
        pytest.param(answer(flags=0x07), id="one key for all files"),
        pytest.param(answer(flags=0x0B), id="keys by inode number"),
        pytest.param(answer(size=40), id="longer"),
        pytest.param(answer()[:-1], id="cut"),
        pytest.param(b"", id="empty"),
    ],
)
def test_policy_not_accepted(raw):
    with pytest.raises(TidegateError) as caught:
        layout.parse_policy(raw)
    assert caught.value.code == "vault.directory.policy"


def test_key_argument():
    argument = layout.encode_add_key(Secret(KEY))
    assert argument[:8] == struct.pack("=II", 2, 0)
    assert argument[40:80] == struct.pack("=II32x", 64, 0)
    assert argument[80:144] == KEY
    assert not any(argument[144:])
    assert len(argument) > 1024, "CPython would copy it to its stack"
    argument[8:24] = IDENTIFIER
    assert layout.parse_added_identifier(argument) == IDENTIFIER


def test_removal():
    argument = layout.encode_remove_key(IDENTIFIER)
    assert bytes(argument) == struct.pack("=II", 2, 0) + IDENTIFIER + bytes(40)
    for flags, busy, others in ((0, False, False), (1, True, False), (2, False, True), (3, True, True)):
        struct.pack_into("=I", argument, 40, flags)
        removal = layout.parse_removal(argument)
        assert (removal.files_busy, removal.other_users) == (busy, others)


def test_key_status():
    argument = layout.encode_key_status(IDENTIFIER)
    assert bytes(argument) == struct.pack("=II", 2, 0) + IDENTIFIER + bytes(104)
    struct.pack_into("=III", argument, 64, 3, 1, 2)
    status = layout.parse_key_status(argument)
    assert (status.state, status.added_by_us, status.users) == (KeyState.INCOMPLETELY_REMOVED, True, 2)
    for state in (0, 4):
        struct.pack_into("=I", argument, 64, state)
        with pytest.raises(TidegateError) as caught:
            layout.parse_key_status(argument)
        assert caught.value.code == "vault.directory.policy"


def test_identifier_of_another_size_is_the_callers_mistake():
    for encode in (layout.encode_remove_key, layout.encode_key_status):
        with pytest.raises(ValueError, match="16 bytes"):
            encode(b"short")
