"""The provider asked directly, as no well-behaved OpenSSL would."""

import _ssl
import ctypes
import itertools
import sys

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.tls.algorithms import public_identity
from tidegate.tls.dispatch import OCTETS, UNSIGNED, UTF8, CTables, Parameter, read_parameters
from tidegate.tls.failures import Failures
from tidegate.tls.keymgmt import HANDLE, KeyManagement, PrivateKey
from tidegate.tls.libssl import load_library
from tidegate.tls.selfcheck import require_platform
from tidegate.tls.signature import Signatures

PRIVATE, PUBLIC, KEYPAIR = 0x01, 0x02, 0x87
P256, RSA = SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.RSA_PSS


def array(*members):
    """An OSSL_PARAM array of (name, type, bytes); returns it and its address."""
    buffers = [ctypes.create_string_buffer(value, max(len(value), 1)) for _, _, value in members]
    rows = [
        Parameter(name, kind, ctypes.addressof(buffer), len(value), 0)
        for (name, kind, value), buffer in zip(members, buffers, strict=True)
    ]
    made = (Parameter * (len(rows) + 1))(*rows, Parameter())
    made.buffers = buffers
    return made


class Bench:
    def __init__(self):
        numbers = itertools.count(1)
        library = load_library()
        self.management = KeyManagement(library, numbers)
        self.signatures = Signatures(library, self.management.keys, numbers)

    def key(self, signer):
        number = self.management._new(1)
        handle = self.management.hand_over(PrivateKey(signer, Failures()))
        members = array((HANDLE, UNSIGNED, handle.to_bytes(8, sys.byteorder)))
        assert self.management._import(number, KEYPAIR, ctypes.addressof(members)) == 1
        return number

    def public(self, *members, selection=PUBLIC):
        number = self.management._new(1)
        made = array(*members)
        return number, self.management._import(number, selection, ctypes.addressof(made))

    def begin(self, key, digest=b"SHA256", *parameters):
        number = self.signatures._new(1, 0)
        made, name = array(*parameters), ctypes.create_string_buffer(digest or b"")
        return number, self.signatures._begin(
            number, ctypes.addressof(name) if digest else 0, key, ctypes.addressof(made) if parameters else 0
        )

    def sign(self, number, message=b"message", room=512):
        out, length = ctypes.create_string_buffer(room), (ctypes.c_size_t * 1)()
        source = ctypes.create_string_buffer(message, len(message))
        status = self.signatures._sign(
            number, ctypes.addressof(out), length, room, ctypes.addressof(source), len(message)
        )
        return out.raw[: length[0]] if status == 1 else None


@pytest.fixture
def bench():
    return Bench()


def test_has_tells_the_truth(world, bench) -> None:
    ours = bench.key(world.signers[P256])
    theirs, taken = bench.public((b"group", UTF8, b"prime256v1"), (b"pub", OCTETS, world.signers[P256].public_key.raw))
    assert taken == 1
    empty = bench.management._new(1)
    assert [bench.management._has(ours, part) for part in (PRIVATE, PUBLIC, KEYPAIR)] == [1, 1, 1]
    assert [bench.management._has(theirs, part) for part in (PRIVATE, PUBLIC, KEYPAIR)] == [0, 1, 0]
    assert [bench.management._has(empty, part) for part in (PRIVATE, PUBLIC)] == [0, 0]
    assert bench.management._match(ours, theirs, PUBLIC) == 1
    assert bench.management._match(ours, empty, PUBLIC) == 0
    assert bench.management._match(empty, empty, PUBLIC) == 0


def test_match_compares_curve_and_point(world, bench) -> None:
    point = world.signers[P256].public_key.raw
    ours = bench.key(world.signers[P256])
    for members in (
        [(b"group", UTF8, b"secp256k1"), (b"pub", OCTETS, point)],
        [(b"group", UTF8, b"prime256v1"), (b"pub", OCTETS, point[:-1] + bytes([point[-1] ^ 1]))],
        [(b"pub", OCTETS, point)],
    ):
        other, taken = bench.public(*members)
        assert taken == 1
        assert bench.management._match(ours, other, PUBLIC) == 0


def test_rsa_numbers_are_compared_as_numbers(world, bench) -> None:
    ours = bench.key(world.signers[RSA])
    modulus = int.from_bytes(world.signers[RSA].public_key.raw, "big")
    for exponent, same in ((65_537, 1), (3, 0)):
        other, taken = bench.public(
            (b"n", UNSIGNED, modulus.to_bytes(400, sys.byteorder)),
            (b"e", UNSIGNED, exponent.to_bytes(8, sys.byteorder)),
        )
        assert taken == 1
        assert bench.management._match(ours, other, PUBLIC) == same


def test_private_keys_from_outside_are_not_taken(world, bench) -> None:
    members = ((b"group", UTF8, b"prime256v1"), (b"pub", OCTETS, world.signers[P256].public_key.raw))
    assert bench.public(*members, (b"priv", UNSIGNED, bytes(32)), selection=KEYPAIR)[1] == 0
    assert bench.public()[1] == 0
    ours = bench.key(world.signers[P256])
    other = array(*members)
    assert bench.management._import(ours, PUBLIC, ctypes.addressof(other)) == 0  # a key of ours does not change


def test_a_handle_is_taken_once(world, bench) -> None:
    handle = bench.management.hand_over(PrivateKey(world.signers[P256], Failures()))
    members = array((HANDLE, UNSIGNED, handle.to_bytes(8, sys.byteorder)))
    first, second = bench.management._new(1), bench.management._new(1)
    assert bench.management._import(first, KEYPAIR, ctypes.addressof(members)) == 1
    with pytest.raises(KeyError):
        bench.management._import(second, KEYPAIR, ctypes.addressof(members))


@pytest.mark.parametrize("digest", [b"SHA256", b"SHA2-256", b"sha256", None])
def test_a_signature_that_verifies(world, bench, digest) -> None:
    signer = world.signers[P256]
    number, begun = bench.begin(bench.key(signer), digest)
    assert begun == 1
    signer.key.public_key().verify(bench.sign(number), b"message", ec.ECDSA(hashes.SHA256()))


@pytest.mark.parametrize("digest", [b"SHA1", b"SHA512", b"SHA384", b"MD5", b"SHA256\xff"])
def test_other_hashes_are_refused(world, bench, digest) -> None:
    assert bench.begin(bench.key(world.signers[P256]), digest)[1] == 0
    assert bench.begin(bench.key(world.signers[SignatureAlgorithm.ED25519]), digest)[1] == 0


def native(number):
    return number.to_bytes(4, sys.byteorder, signed=True)


@pytest.mark.parametrize(
    ("parameters", "begun", "signed"),
    [
        ([], 1, False),
        ([(b"pad-mode", 1, native(6))], 1, True),
        ([(b"pad-mode", UTF8, b"pss"), (b"saltlen", UTF8, b"digest"), (b"mgf1-digest", UTF8, b"SHA256")], 1, True),
        ([(b"pad-mode", 1, native(6)), (b"saltlen", 1, native(-1))], 1, True),
        ([(b"pad-mode", 1, native(6)), (b"saltlen", 1, native(32))], 1, True),
        ([(b"pad-mode", 1, native(1))], 0, False),  # PKCS #1
        ([(b"pad-mode", 1, native(3))], 0, False),  # none at all: raw RSA
        ([(b"pad-mode", UTF8, b"none")], 0, False),
        ([(b"pad-mode", 1, native(6)), (b"saltlen", 1, native(0))], 0, False),
        ([(b"pad-mode", 1, native(6)), (b"saltlen", UTF8, b"max")], 0, False),
        ([(b"pad-mode", 1, native(6)), (b"digest", UTF8, b"SHA1")], 0, False),
        ([(b"pad-mode", 1, native(6)), (b"mgf1-digest", UTF8, b"SHA1")], 0, False),
        ([(b"unheard-of", 1, native(6))], 0, False),
    ],
)
def test_rsa_signs_in_one_padding(world, bench, parameters, begun, signed) -> None:
    number, status = bench.begin(bench.key(world.signers[RSA]), b"SHA256", *parameters)
    assert status == begun
    if status:
        assert (bench.sign(number) is not None) is signed


def test_a_public_key_does_not_sign(world, bench) -> None:
    theirs, _ = bench.public((b"group", UTF8, b"prime256v1"), (b"pub", OCTETS, world.signers[P256].public_key.raw))
    number, begun = bench.begin(theirs)
    assert begun == 0
    assert bench.sign(number) is None


def test_too_little_room_is_no_overflow(world, bench) -> None:
    number, _ = bench.begin(bench.key(world.signers[P256]))
    assert bench.sign(number, room=16) is None


def test_stale_handles_find_nothing(world, bench) -> None:
    key = bench.key(world.signers[P256])
    number, _ = bench.begin(key)
    del bench.signatures.operations[number]
    del bench.management.keys[key]
    with pytest.raises(KeyError):
        bench.sign(number)
    with pytest.raises(KeyError):
        bench.begin(key)


def test_parameters_are_read_within_bounds() -> None:
    endless = (Parameter * 100)(*(Parameter(b"a", 1, None, 0, 0) for _ in range(100)))
    assert len(read_parameters(ctypes.addressof(endless))) == 64
    assert read_parameters(None) == []
    assert public_identity({b"group": b"prime256v1"}) is None


def test_nothing_crosses_c(capfd) -> None:
    tables = CTables()

    def fail(_):
        raise ValueError("secret")

    function = tables.function("int(int)", fail)
    pointer = tables.function("uintptr_t(int)", fail)
    nothing = tables.function("void(int)", {}.__delitem__)
    assert ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(function)(1) == 0
    assert ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(pointer)(1) is None
    ctypes.CFUNCTYPE(None, ctypes.c_int)(nothing)(1)
    assert capfd.readouterr() == ("", "")


def test_openssl_cannot_export_the_key(world) -> None:
    """Asked for the private key in every way that libcrypto has, it says no."""
    platform = require_platform()
    crypto = ctypes.CDLL(_ssl.__file__)
    key = platform.provider.new_key(world.signers[P256], Failures())
    crypto.i2d_PrivateKey.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    crypto.EVP_PKEY_get_bn_param.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    crypto.EVP_PKEY_todata.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    crypto.EVP_PKEY_dup.argtypes, crypto.EVP_PKEY_dup.restype = [ctypes.c_void_p], ctypes.c_void_p
    number, out = ctypes.c_void_p(), ctypes.c_void_p()
    assert crypto.i2d_PrivateKey(key, None) <= 0
    assert crypto.EVP_PKEY_get_bn_param(key, b"priv", ctypes.byref(number)) != 1
    assert crypto.EVP_PKEY_todata(key, KEYPAIR, ctypes.byref(out)) != 1
    assert not crypto.EVP_PKEY_dup(key)
    platform.library.ERR_clear_error()
    platform.library.EVP_PKEY_free(key)
