"""The PKCS#11 provider against SoftHSM: what it makes, what it refuses, what others planted."""

import pkcs11
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tests.unit.keys.pkcs11_shared import P256, P384, code_of, sealing, signing, tool

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.pkcs11_session import load_module
from tidegate.keys.uri import open_store
from tidegate.testing.tokens import MODULE


def test_capabilities_are_the_tokens_own(store):
    capabilities = store.capabilities()
    expected = {P256, P384, SignatureAlgorithm.ED25519, SignatureAlgorithm.RSA_PSS}
    assert capabilities.algorithms == expected
    assert not capabilities.hardware
    assert (capabilities.can_seal, capabilities.can_export, capabilities.can_user_auth) == (True, True, True)
    assert (capabilities.can_count, capabilities.can_quote, capabilities.can_bind_pcrs) == (False, False, False)


@pytest.mark.parametrize("label", ["ecdsa-p256", "ecdsa-p384", "ed25519", "rsa-pss"])
def test_each_algorithm_signs_under_its_public_half(store, label):
    algorithm = next(member for member in SignatureAlgorithm if member.label == label)
    info = store.generate("key", signing(algorithm))
    signer = store.signer("key")
    for message in (b"", b"message", bytes(100_000)):
        info.public_key.verify(signer.sign(message), message)
    assert signer.public_key == info.public_key == store.public_key("key")
    assert store.list_keys() == [info]


def test_the_private_half_is_unreadable(hsm, store):
    store.generate("key", signing())
    store.generate("seal", sealing())

    def look(session):
        key, seal = store.find(session, "key"), store.find(session, "seal")
        for one in (key.handle, seal.handle):
            with pytest.raises(pkcs11.AttributeSensitive):
                one[pkcs11.Attribute.VALUE]
            assert one[pkcs11.Attribute.SENSITIVE]
            assert one[pkcs11.Attribute.ALWAYS_SENSITIVE]
            assert one[pkcs11.Attribute.NEVER_EXTRACTABLE]
            with pytest.raises((pkcs11.AttributeReadOnly, pkcs11.PKCS11Error)):
                one[pkcs11.Attribute.EXTRACTABLE] = True

    store.use(look)
    assert code_of(store.export_key, "key") == "keys.key.not-exportable"


def test_seal_binds_the_context_and_refuses_every_change(store):
    store.generate("seal", sealing())
    sealed = store.seal("seal", b"secret", b"context")
    assert bytes(store.unseal("seal", sealed, b"context").view()) == b"secret"
    assert sealed != store.seal("seal", b"secret", b"context")
    big = bytes(50_000)
    assert bytes(store.unseal("seal", store.seal("seal", memoryview(big), b""), b"").view()) == big
    assert len(store.unseal("seal", store.seal("seal", b"", b"x"), b"x")) == 0
    for index in range(len(sealed)):
        flipped = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        assert code_of(store.unseal, "seal", flipped, b"context") == "keys.sealed.malformed"
        assert code_of(store.unseal, "seal", sealed[:index], b"context") == "keys.sealed.malformed"
    assert code_of(store.unseal, "seal", sealed, b"other") == "keys.sealed.malformed"


def _rows():
    rsa_pss, ed25519 = SignatureAlgorithm.RSA_PSS, SignatureAlgorithm.ED25519
    leaving = signing(exportable=True)
    return [
        ("no such key", lambda s: s.signer("none"), "keys.key.missing"),
        ("bad name", lambda s: s.signer("No"), "keys.name.invalid"),
        ("same name", lambda s: s.generate("key", signing()), "keys.key.exists"),
        ("same name, other kind", lambda s: s.generate("key", sealing()), "keys.key.exists"),
        ("seal with a signing key", lambda s: s.seal("key", b"", b""), "keys.key.purpose"),
        ("unseal with a signing key", lambda s: s.unseal("key", bytes(40), b""), "keys.key.purpose"),
        ("sign with a sealing key", lambda s: s.signer("seal"), "keys.key.purpose"),
        ("public half of a sealing key", lambda s: s.public_key("seal"), "keys.key.purpose"),
        ("post-quantum", lambda s: s.generate("k", signing(SignatureAlgorithm.ML_DSA_65)), "keys.capability.missing"),
        ("pcrs", lambda s: s.generate("k", signing(pcrs=frozenset({7}))), "keys.capability.missing"),
        ("quote", lambda s: s.quote("key", bytes(16), frozenset()), "keys.capability.missing"),
        ("counter", lambda s: s.counter_increment("c"), "keys.capability.missing"),
        ("counter read", lambda s: s.counter_read("c"), "keys.capability.missing"),
        ("too much random", lambda s: s.random(4097), "keys.capability.missing"),
        ("long chain", lambda s: s.keep_certificates("key", [b"x"] * 9), "keys.capability.missing"),
        ("export", lambda s: s.export_key("key"), "keys.key.not-exportable"),
        ("export of a sealing key", lambda s: s.export_key("seal"), "keys.key.purpose"),
        ("import of nonsense", lambda s: s.import_key("k", b"0", leaving), "keys.import.refused"),
        ("import to stay", lambda s: s.import_key("k", _pkcs8(), signing()), "keys.import.refused"),
        ("other curve", lambda s: s.import_key("k", _pkcs8(), signing(P384, exportable=True)), "keys.import.refused"),
        ("import over", lambda s: s.import_key("key", _pkcs8(), leaving), "keys.key.exists"),
        ("weak", lambda s: s.import_key("k", _weak(), signing(rsa_pss, exportable=True)), "keys.import.refused"),
        ("SoftHSM wraps none", lambda s: s.generate("k", signing(ed25519, exportable=True)), "keys.capability.missing"),
        ("seal with a PIN", lambda s: s.generate("k", sealing(user_auth=True)), "keys.capability.missing"),
        ("destroy of none", lambda s: s.destroy("none"), "keys.key.missing"),
    ]  # fmt: skip


def _der(key):
    none = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, none)


def _pkcs8():
    return _der(ec.generate_private_key(ec.SECP256R1()))


def _weak():
    return _der(rsa.generate_private_key(65537, 2048))


def test_each_misuse_has_its_code_and_leaves_nothing(store):
    store.generate("key", signing())
    store.generate("seal", sealing())
    before = store.use(lambda session: len(list(session.get_objects())))
    for what, call, code in _rows():
        assert code_of(call, store) == code, what
    assert store.use(lambda session: len(list(session.get_objects()))) == before


def test_random_comes_from_the_token(store):
    assert len({store.random(32) for _ in range(50)}) == 50
    assert len(store.random(4096)) == 4096


def test_a_destroyed_key_is_gone_with_all_that_was_beside_it(store):
    before = store.use(lambda session: len(list(session.get_objects())))
    store.generate("key", signing())
    store.keep_certificates("key", [b"leaf", b"issuing", b"root"])
    signer = store.signer("key")
    store.destroy("key")
    assert store.use(lambda session: len(list(session.get_objects()))) == before
    assert code_of(signer.sign, b"") == "keys.key.missing"
    store.generate("key", signing())
    assert code_of(signer.sign, b"") == "keys.key.missing"


def test_a_chain_is_kept_in_order_and_replaced_whole(store):
    store.generate("key", signing())
    assert store.certificates("key") == ()
    for chain in (
        [b"leaf"],
        [b"leaf", b"b", b"a"],
        [b"leaf", b"a", b"b"],
        [b"new", *[bytes([index]) * 9000 for index in range(1, 8)]],
        [b"leaf", b"b", b"a"],
        [],
    ):
        store.keep_certificates("key", chain)
        store.keep_certificates("key", chain)
        assert store.certificates("key") == tuple(chain)
        count = store.use(
            lambda session: len(list(session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.CERTIFICATE})))
        )
        assert count == len(chain)


def test_two_keys_keep_their_own_chains(store):
    for name in ("a", "b"):
        store.generate(name, signing())
        store.keep_certificates(name, [name.encode(), b"issuing", b"root"])
    store.destroy("a")
    assert store.certificates("b") == (b"b", b"issuing", b"root")


@pytest.mark.parametrize("algorithm", [P256, P384, SignatureAlgorithm.RSA_PSS])
def test_an_exportable_key_leaves_and_comes_back(store, algorithm):
    info = store.generate("key", signing(algorithm, exportable=True))
    with store.export_key("key") as raw:
        assert raw.view()[0] == 0x30
        store.destroy("key")
        again = store.import_key("key", raw.view(), signing(algorithm, exportable=True))
    assert again == info
    info.public_key.verify(store.signer("key").sign(b"m"), b"m")


# -- objects that others made --


def test_keys_of_other_tools_are_used_if_they_are_sound_and_skipped_if_not(hsm, store):
    pin = "258036"
    tool(hsm, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "theirs", "--id", "01", pin=pin)
    tool(hsm, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "Not Ours", "--id", "02", pin=pin)
    tool(hsm, "--keypairgen", "--key-type", "RSA:2048", "--label", "weak", "--id", "03", pin=pin)
    tool(hsm, "--keypairgen", "--key-type", "EC:secp256k1", "--label", "coin", "--id", "04", pin=pin)
    for number in ("05", "06"):
        tool(hsm, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "twice", "--id", number, pin=pin)
    tool(hsm, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "bare", "--id", "07", pin=pin)
    tool(hsm, "--delete-object", "--type", "pubkey", "--id", "07", pin=pin)
    store.generate("ours", signing())
    assert [info.name for info in store.list_keys()] == ["ours", "theirs"]
    assert store.skipped_keys == 6
    signer = store.signer("theirs")
    signer.public_key.verify(signer.sign(b"m"), b"m")
    for name in ("weak", "coin", "twice", "bare"):
        assert code_of(store.signer, name) == "keys.store.malformed", name
    assert code_of(store.generate, "twice", signing()) == "keys.key.exists"


def test_a_planted_public_half_is_not_believed(hsm, store, tmp_path):
    """Whoever reaches the token without the PIN may write public objects on it."""
    info = store.generate("key", signing())
    key_id = store.use(lambda session: store.find(session, "key").key_id).hex()
    planted = tmp_path / "planted.der"
    mine = ec.generate_private_key(ec.SECP256R1()).public_key()
    planted.write_bytes(mine.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    plant = ["--write-object", str(planted), "--type", "pubkey", "--label", "key", "--id", key_id]
    tool(hsm, *plant)
    again = open_store(hsm.uri("one"))
    assert again.public_key("key") == info.public_key
    again.use(
        lambda session: [
            one.destroy() for one in session.get_objects({pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY})
        ]
    )
    load_module(MODULE).restart()  # what was proven is forgotten with the session
    assert code_of(again.public_key, "key") == "keys.store.malformed"
    tool(hsm, *plant)
    assert code_of(again.public_key, "key") == "keys.store.malformed"
    again.close()


def test_a_planted_public_half_of_a_key_with_its_own_pin_is_not_believed(hsm, store, tmp_path):
    info = store.generate("key", signing(user_auth=True))
    key_id = store.use(lambda session: store.find(session, "key").key_id).hex()
    planted = tmp_path / "planted.der"
    mine = ec.generate_private_key(ec.SECP256R1()).public_key()
    planted.write_bytes(mine.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    tool(hsm, "--write-object", str(planted), "--type", "pubkey", "--label", "key", "--id", key_id)
    assert store.public_key("key") == info.public_key


def test_a_planted_private_key_is_not_used(hsm, store, tmp_path):
    """A key that is not CKA_PRIVATE needs no PIN to be written."""

    def plant(session):
        key = ec.generate_private_key(ec.SECP256R1())
        session.create_object(
            {
                pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY,
                pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.EC,
                pkcs11.Attribute.TOKEN: True,
                pkcs11.Attribute.PRIVATE: False,
                pkcs11.Attribute.SIGN: True,
                pkcs11.Attribute.LABEL: "planted",
                pkcs11.Attribute.EC_PARAMS: bytes.fromhex("06082a8648ce3d030107"),
                pkcs11.Attribute.VALUE: key.private_numbers().private_value.to_bytes(32, "big"),
            }
        )

    store.use(plant)
    assert code_of(store.signer, "planted") == "keys.key.missing"
    assert store.list_keys() == []


def test_a_label_that_is_no_text_crashes_nothing(hsm, store):
    named = [b"--keypairgen", b"--key-type", b"EC:prime256v1", b"--id", b"01", b"--label", b"caf\xe9"]
    tool(hsm, *named, pin="258036")
    assert store.list_keys() == []
    assert store.skipped_keys == 1
