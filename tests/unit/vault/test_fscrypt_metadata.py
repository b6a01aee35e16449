"""The tool's files as bytes: written once by ``fscrypt`` 0.3.3, parsed, and broken in every place."""

import contextlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.vault import fscrypt_metadata as metadata
from tidegate.vault.fscrypt_layout import Policy, key_identifier
from tidegate.vault.fscrypt_metadata import WrappedKey

# Made by Debian's fscrypt 0.3.3 for a throw-away image: the raw key, a protector and the policy that it opens.
RAW_KEY = bytes.fromhex("bce2433e0b77f612663e4421140954d47db826622ccf03c77f30fee92b43d1f8")
PROTECTOR = bytes.fromhex(
    "0a106562663963613233353034373062613710031a02726b3a560a10ef7100867710a21c7ec7b23dc6d7590e12202a3ce398"
    "f8190ea88d06a09ff64f07a04e7ecf83e29d2fe2d1aff8e703b8a3e61a20ba2d3edc17508751b521d30dd1331e74e3025a6b"
    "b5707d994d7bf25bbb2f415d"
)
POLICY = bytes.fromhex(
    "0a203730653839633561656263613236633866653731346330633139343561386263120808201001180420021a8a010a1065"
    "62663963613233353034373062613712760a109c922186e7a18f2e1ee0da0e55c538691240d4c86889dca0fcfcd1311db4e1"
    "0cef36779ea95b50b1827fe9a450e7fee1c458e532686272c081d243ab4079d4ac4e756d61c709cd93c2f6a249a81748cfc5"
    "1f1a20aadd5fb5200747d6356c4d847fdad59b6fe56724ab1935ecc1ebb473a11f5ef6"
)
IDENTIFIER = "70e89c5aebca26c8fe714c0c1945a8bc"
DESCRIPTOR = "ebf9ca2350470ba7"


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_what_the_tool_wrote():
    protector = metadata.parse_protector(PROTECTOR)
    record = metadata.parse_policy_record(POLICY)
    assert (protector.descriptor, protector.source, protector.name) == (DESCRIPTOR, 3, "rk")
    assert record.identifier == IDENTIFIER
    ((descriptor, wrapped),) = record.wrapped_keys
    assert descriptor == DESCRIPTOR
    with metadata.unwrap(Secret(RAW_KEY), protector.wrapped) as protector_key:
        key = metadata.unwrap(protector_key, wrapped)
    assert key_identifier(key).hex() == IDENTIFIER
    # The encoders give back the tool's own bytes.
    assert metadata.encode_protector(protector) == PROTECTOR
    assert metadata.encode_policy_record(Policy(identifier=bytes.fromhex(IDENTIFIER)), descriptor, wrapped) == POLICY


def test_plan():
    key, raw_key = Secret(os.urandom(64)), Secret(os.urandom(32))
    policy = Policy(identifier=key_identifier(key))
    files = metadata.plan_files(key, raw_key, name="n", policy=policy, entropy=os.urandom)
    protector = metadata.parse_protector(files.protector)
    assert (files.protector_name, files.policy_name) == (protector.descriptor, policy.identifier.hex())
    ((descriptor, wrapped),) = metadata.parse_policy_record(files.policy).wrapped_keys
    assert descriptor == protector.descriptor
    opened = metadata.unwrap(metadata.unwrap(raw_key, protector.wrapped), wrapped)
    assert bytes(opened.view()) == bytes(key.view())
    for secret in (key, raw_key):
        assert bytes(secret.view())[:16] not in files.protector + files.policy
    with pytest.raises(ValueError, match="not the policy"):
        metadata.plan_files(key, raw_key, name="n", policy=Policy(identifier=bytes(16)), entropy=os.urandom)


@pytest.mark.parametrize(
    ("parse", "raw"), [(metadata.parse_protector, PROTECTOR), (metadata.parse_policy_record, POLICY)]
)
def test_every_cut_is_malformed(parse, raw):
    for size in range(len(raw)):
        assert code_of(parse, raw[:size]) == "vault.fscrypt.malformed"


def test_every_flipped_bit_is_noticed_or_means_nothing():
    """Of a protector only the shown name and the source are not authenticated; the source is checked by the reader."""
    raw_key = Secret(RAW_KEY)
    for position in range(8 * len(PROTECTOR)):
        changed = bytearray(PROTECTOR)
        changed[position // 8] ^= 1 << position % 8
        try:
            protector = metadata.parse_protector(bytes(changed))
            metadata.unwrap(raw_key, protector.wrapped).wipe()
        except Rejected as error:
            assert error.code in ("vault.fscrypt.malformed", "vault.fscrypt.refused")
        else:
            assert protector.descriptor != DESCRIPTOR or protector.source != 3 or protector.name != "rk"


def test_unwrap_with_another_key():
    wrapped = metadata.parse_protector(PROTECTOR).wrapped
    assert code_of(metadata.unwrap, Secret(bytes(32)), wrapped) == "vault.fscrypt.refused"
    assert code_of(metadata.unwrap, Secret(bytes(16)), wrapped) == "vault.directory.key-size"


def field(number, value):
    return metadata._bytes_field(number, value)


WRAPPED = field(1, bytes(16)) + field(2, bytes(32)) + field(3, bytes(32))
HEAD = field(1, b"0123456789abcdef")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(PROTECTOR + field(8, b""), id="unknown field"),
        pytest.param(PROTECTOR + field(1, b"0123456789abcdef"), id="field twice"),
        pytest.param(HEAD + b"\x38\x01", id="number for bytes"),
        pytest.param(HEAD + field(2, b"\x03") + field(7, WRAPPED), id="bytes for a number"),
        pytest.param(HEAD + b"\x3d\0\0\0\0" + field(7, WRAPPED), id="fixed32"),
        pytest.param(b"\x80" * 10 + b"\x01", id="endless number"),
        pytest.param(HEAD + b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", id="length beyond the end"),
        pytest.param(field(1, b"../../etc/passwd") + field(7, WRAPPED), id="descriptor that is a path"),
        pytest.param(field(1, b"0123456789ABCDEF") + field(7, WRAPPED), id="descriptor in capitals"),
        pytest.param(HEAD + field(3, b"\xff") + field(7, WRAPPED), id="name that is not UTF-8"),
        pytest.param(HEAD + field(7, field(1, bytes(15)) + WRAPPED[18:]), id="short IV"),
        pytest.param(HEAD + field(7, WRAPPED[:18] + field(2, b"") + WRAPPED[52:]), id="empty key"),
        pytest.param(HEAD + field(7, WRAPPED[:18] + field(2, bytes(65)) + WRAPPED[52:]), id="long key"),
        pytest.param(b"\x10\x03" * 200, id="many fields"),
        pytest.param(bytes(metadata.MAX_FILE_BYTES + 1), id="large"),
    ],
)
def test_malformed_protectors(raw):
    assert code_of(metadata.parse_protector, raw) == "vault.fscrypt.malformed"


def test_policy_with_many_protectors():
    entry = field(3, HEAD + field(2, WRAPPED))
    start = field(1, b"0" * 32)
    assert len(metadata.parse_policy_record(start + entry * 32).wrapped_keys) == 32
    assert code_of(metadata.parse_policy_record, start + entry * 33) == "vault.fscrypt.malformed"
    assert code_of(metadata.parse_policy_record, start + b"\x18\x01") == "vault.fscrypt.malformed"


@given(raw=st.binary(max_size=200))
def test_parsers_raise_only_rejected(raw):
    for parse in (metadata.parse_protector, metadata.parse_policy_record):
        with contextlib.suppress(Rejected):
            parse(raw)


def test_wrap_is_authenticated_over_the_iv_too():
    wrapping, secret = Secret(os.urandom(32)), Secret(os.urandom(64))
    wrapped = metadata.wrap(wrapping, secret, iv=bytes(16))
    other = WrappedKey(iv=bytes(15) + b"\x01", ciphertext=wrapped.ciphertext, mac=wrapped.mac)
    assert code_of(metadata.unwrap, wrapping, other) == "vault.fscrypt.refused"
