"""Revocation lists in contexts: missing, stale and forged ones close the door; new ones count at the next handshake."""

import gc
import ssl
import threading
import weakref

import pytest

from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.testing.certificates import DAY, Authority, MemorySigner
from tidegate.tls.context import client_context, server_context
from tidegate.tls.hooks import CrlStack
from tidegate.tls.libssl import load_library
from tidegate.tls.revocation import RevocationLists
from tidegate.tls.selfcheck import shake_hands

P256 = SignatureAlgorithm.ECDSA_P256


def code_of(call, *arguments, **options):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **options)
    return caught.value.code


class Door:
    """A server that admits clients by list, and a client with a certificate of its own."""

    def __init__(self, world):
        self.ca = world.ca
        self.lists = RevocationLists([world.ca.der])
        self.server = server_context(*world.identity(), clients=[world.ca.der], lists=self.lists)
        self.signer = MemorySigner(P256)
        self.certificate = world.ca.issue(self.signer.public_key, "device")
        self.client = client_context(self.signer, [self.certificate], anchors=[world.ca.der])

    def knock(self):
        """Return None if admitted, else what the server says of the certificate."""
        try:
            shake_hands(self.server, self.client, "localhost")
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        return None


@pytest.fixture
def door(world):
    return Door(world)


def test_nobody_is_admitted_before_the_first_list(door) -> None:
    assert "unable to get certificate CRL" in door.knock()
    door.lists.update(door.ca.crl())
    assert door.knock() is None


def test_a_new_list_counts_at_the_next_handshake(door) -> None:
    door.lists.update(door.ca.crl())
    assert door.knock() is None
    door.lists.update(door.ca.crl([door.certificate], number=2))
    assert door.knock() == "certificate revoked"
    door.lists.update(door.ca.crl(number=3))
    assert door.knock() is None


def test_a_list_that_has_become_stale_closes_the_door(door) -> None:
    """``update`` takes no stale list, so it is put in force past it, as if time had gone by."""
    door.lists._stack = CrlStack(load_library(), [door.ca.crl(span=(-2 * DAY, -DAY))])
    assert door.knock() == "CRL has expired"
    door.lists._stack = CrlStack(load_library(), [door.ca.crl(span=(DAY, 2 * DAY))])
    assert door.knock() == "CRL is not yet valid"


def test_another_ca_s_list_does_not_open_the_door(door) -> None:
    other = Authority("other")
    door.lists._stack = CrlStack(load_library(), [other.crl()])
    assert door.knock() == "unable to get certificate CRL"
    impostor = Authority("test CA")  # of the same name
    door.lists._stack = CrlStack(load_library(), [impostor.crl()])
    assert door.knock() is not None


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        ("junk", "tls.crl.malformed"),
        ("another CA's", "tls.crl.malformed"),
        ("an impostor's", "pki.crl.issuer"),
        ("altered", "pki.crl.forged"),
        ("stale", "pki.crl.stale"),
        ("from the future", "pki.crl.stale"),
        ("older", "tls.crl.rollback"),
    ],
)
def test_bad_lists_are_refused_and_the_one_in_force_stays(door, attack, code) -> None:
    door.lists.update(door.ca.crl([door.certificate], number=2))
    altered = bytearray(door.ca.crl(number=3))
    altered[-10] ^= 1
    raw = {
        "junk": lambda: b"junk",
        "another CA's": lambda: Authority("other").crl(),
        "an impostor's": lambda: Authority("test CA").crl(number=3),
        "altered": lambda: bytes(altered),
        "stale": lambda: door.ca.crl(number=3, span=(-2 * DAY, -DAY)),
        "from the future": lambda: door.ca.crl(number=3, span=(DAY, 2 * DAY)),
        "older": lambda: door.ca.crl(number=1, span=(-DAY, DAY)),
    }[attack]()
    assert code_of(door.lists.update, raw) == code
    assert door.knock() == "certificate revoked"


def test_a_client_has_lists_as_well(world) -> None:
    signer = MemorySigner(P256)
    certificate = world.ca.issue(signer.public_key)
    server = server_context(signer, [certificate], clients=None)
    lists = RevocationLists([world.ca.der])
    client = client_context(anchors=[world.ca.der], lists=lists)
    lists.update(world.ca.crl())
    shake_hands(server, client, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):  # still looked at
        shake_hands(server, client, "elsewhere")
    lists.update(world.ca.crl([certificate], number=2))
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        shake_hands(server, client, "localhost")


@pytest.mark.parametrize("whole_chain", [False, True])
def test_an_issuing_ca_that_was_revoked(world, whole_chain) -> None:
    """With ``whole_chain`` the root's list counts for the CA below it, and has to be there."""
    issuing = Authority("issuing CA", parent=world.ca)
    lists = RevocationLists([world.ca.der, issuing.der], whole_chain=whole_chain)
    server = server_context(*world.identity(), clients=[world.ca.der], lists=lists)
    signer = MemorySigner(P256)
    chain = [issuing.issue(signer.public_key, "device"), issuing.der]
    client = client_context(signer, chain, anchors=[world.ca.der])

    def knock():
        try:
            shake_hands(server, client, "localhost")
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
        return None

    lists.update(issuing.crl())
    assert knock() == ("unable to get certificate CRL" if whole_chain else None)
    lists.update(world.ca.crl())
    assert knock() is None
    lists.update(world.ca.crl([issuing.der], number=2))
    assert knock() == ("certificate revoked" if whole_chain else None)


def test_a_ca_with_a_new_key_keeps_its_name(world) -> None:
    """Both keys' lists are followed; each one's door closes by its own list."""
    renewed = Authority("test CA")
    lists = RevocationLists([world.ca.der, renewed.der])
    server = server_context(*world.identity(), clients=[world.ca.der, renewed.der], lists=lists)
    certificates = []
    for ca in (world.ca, renewed):
        signer = MemorySigner(P256)
        certificates.append(ca.issue(signer.public_key, "device"))
        lists.update(ca.crl(number=7))
        shake_hands(server, client_context(signer, certificates[-1:], anchors=[world.ca.der]), "localhost")
    lists.update(renewed.crl(certificates[1:], number=8))
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate revoked"):
        shake_hands(server, client_context(signer, certificates[1:], anchors=[world.ca.der]), "localhost")


def test_misuse(world) -> None:
    lists = RevocationLists([world.ca.der])
    assert code_of(server_context, *world.identity(), clients=None, lists=lists) == "tls.anchors.missing"
    assert code_of(RevocationLists, []) == "tls.chain.malformed"
    assert code_of(RevocationLists, [b"junk"]) == "tls.chain.malformed"
    assert code_of(RevocationLists, [world.ca.der] * 17) == "tls.chain.malformed"
    assert code_of(CrlStack, load_library(), [b"junk"]) == "tls.crl.malformed"


def test_lists_are_replaced_while_threads_shake_hands(door) -> None:
    """400 handshakes in 4 threads, 200 replacements: every answer is one of the two, and old lists are freed."""
    door.lists.update(door.ca.crl())
    good = door.lists._stack
    crls = [door.ca.crl(), door.ca.crl([door.certificate])]
    seen, done = set(), threading.Event()

    def knock():
        for _ in range(100):
            seen.add(door.knock())

    def replace():
        number = 0
        while not done.is_set():
            door.lists._stack = CrlStack(load_library(), [crls[number % 2]])
            number += 1

    threads = [threading.Thread(target=knock) for _ in range(4)]
    replacer = threading.Thread(target=replace)
    for thread in (replacer, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    replacer.join()
    assert seen == {None, "certificate revoked"}
    gone = weakref.ref(good)
    del good
    gc.collect()
    assert gone() is None
