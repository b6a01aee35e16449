"""A key goes to a second token, never in the clear, whole or not at all."""

import signal
import subprocess
import sys
import time

import pkcs11
import pytest
from tests.unit.keys.pkcs11_shared import P256, P384, code_of, sealing, signing

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.pkcs11_backup import backup_key
from tidegate.keys.pkcs11_session import load_module
from tidegate.keys.uri import open_store
from tidegate.testing.tokens import MODULE


def _text(uri):
    options = "&".join(f"{name}={value}" for name, value in uri.options.items() if name != "token")
    return f"pkcs11:token={uri.location}?{options}"


@pytest.fixture
def second(hsm):
    hsm.make_token("two", pin="864209")
    other = open_store(hsm.uri("two"))
    yield other
    other.close()


def _objects(store):
    return store.use(lambda session: len(list(session.get_objects())))


@pytest.mark.parametrize("algorithm", [P256, P384, SignatureAlgorithm.RSA_PSS])
def test_a_backup_signs_on_the_second_token_and_is_as_closed_as_the_first(store, second, algorithm):
    info = store.generate("key", signing(algorithm, exportable=True))
    store.keep_certificates("key", [b"leaf", b"root"])
    before = _objects(store), _objects(second)
    assert backup_key(store, "key", second) == info
    assert (_objects(store), _objects(second)) == (before[0], before[1] + 4)
    info.public_key.verify(second.signer("key").sign(b"m"), b"m")
    assert second.certificates("key") == (b"leaf", b"root")

    def look(session):
        handle = second.find(session, "key").handle
        with pytest.raises(pkcs11.AttributeSensitive):
            handle[pkcs11.Attribute.VALUE if algorithm is not SignatureAlgorithm.RSA_PSS else pkcs11.Attribute.PRIME_1]

    second.use(look)
    assert code_of(backup_key, store, "key", second) == "keys.key.exists"
    assert (_objects(store), _objects(second)) == (before[0], before[1] + 4)


def test_a_sealing_key_is_backed_up_too(store, second):
    store.generate("seal", sealing(exportable=True))
    sealed = store.seal("seal", b"secret", b"c")
    backup_key(store, "seal", second)
    assert bytes(second.unseal("seal", sealed, b"c").view()) == b"secret"


def test_a_key_with_its_own_pin_is_backed_up_with_it(hsm, store, second):
    info = store.generate("key", signing(exportable=True, user_auth=True))
    assert backup_key(store, "key", second) == info
    pin = str(hsm.folder / "two.pin")
    again = open_store(hsm.uri("two", key_pin_source=pin))
    info.public_key.verify(again.signer("key").sign(b"m"), b"m")
    again.close()
    assert code_of(second.signer("key").sign, b"m") == "keys.pin.missing"


def test_what_was_born_to_stay_is_not_backed_up(store, second):
    store.generate("key", signing())
    store.generate("seal", sealing())
    before = _objects(store), _objects(second)
    for name, code in (
        ("key", "keys.key.not-exportable"),
        ("seal", "keys.key.not-exportable"),
        ("no", "keys.key.missing"),
    ):
        assert code_of(backup_key, store, name, second) == code
    assert (_objects(store), _objects(second)) == before


def test_a_restored_key_that_is_another_is_not_kept(store, second, monkeypatch):
    """The wrapped bytes are of a key that the public half does not belong to."""
    from tidegate.keys import pkcs11_transfer

    store.generate("key", signing(exportable=True))
    store.generate("other", signing(exportable=True))
    before = _objects(second)
    wrap_for = pkcs11_transfer.wrap_for
    monkeypatch.setattr(
        pkcs11_transfer,
        "wrap_for",
        lambda session, key, modulus: wrap_for(session, store.find(session, "other"), modulus),
    )
    assert code_of(backup_key, store, "key", second) == "keys.provider.failed"
    assert _objects(second) == before


SECRETS = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY}  # not all objects: one may be half written

KILLED = """
import sys
from tidegate.keys.pkcs11_backup import backup_key
from tidegate.keys.uri import open_store, parse_key_uri
one, two = (open_store(parse_key_uri(uri)) for uri in sys.argv[1:])
print("ready", flush=True)
while True:
    backup_key(one, "key", two)
    two.destroy("key")
"""


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_killed_transfer_leaves_a_whole_key_or_none(hsm, store, second):
    info = store.generate("key", signing(exportable=True))
    command = [sys.executable, "-c", KILLED, _text(hsm.uri("one")), _text(hsm.uri("two"))]
    for delay_ms in range(50, 650, 35):
        process = subprocess.Popen(command, env=hsm.environment, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay_ms / 1000)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        load_module(MODULE).restart()
        assert second.use(lambda session: list(session.get_objects(SECRETS))) == []
        listed = second.list_keys()
        assert listed in ([], [info])
        if second.skipped_keys:  # SoftHSM itself was killed while it wrote the object: of no use to anybody
            assert listed == []
            second.destroy("key")
        for one in listed:
            info.public_key.verify(second.signer(one.name).sign(b"m"), b"m")
            second.destroy(one.name)
    assert store.list_keys() == [info]
