"""The PKCS#11 provider against SoftHSM: every error, threads, forks, lost sessions, planted objects."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pkcs11
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tidegate.base.errors import TidegateError
from tidegate.base.program import find_program
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys import pkcs11_session
from tidegate.keys.pkcs11_backup import backup_key
from tidegate.keys.pkcs11_session import TokenLogin, load_module, translate_token_errors
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.tokens import MODULE, SoftHsm

P256, P384 = SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384
EXPORTABLE = KeyPolicy(exportable=True)


def signing(algorithm=P256, **policy):
    return KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm, policy=KeyPolicy(**policy))


def sealing(**policy):
    return KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(**policy))


def code_of(call, *arguments):
    with pytest.raises(TidegateError) as caught:
        call(*arguments)
    return caught.value.code


@pytest.fixture
def hsm(tmp_path):
    with SoftHsm(tmp_path / "softhsm") as helper:
        helper.make_token("one")
        yield helper
        for login in list(load_module(MODULE).logins.values()):
            login._users = 1
            login.leave()


@pytest.fixture
def store(hsm):
    with_store = open_store(hsm.uri("one"))
    yield with_store
    with_store.close()


def tool(hsm, *arguments, label="one", pin=None):
    """Run pkcs11-tool as another process that knows the token."""
    environment = {**hsm.environment, "TOOL_PIN": pin or "", "NEW_PIN": "999999"}
    login = ["--login", "--pin", "env:TOOL_PIN"] if pin else []
    return subprocess.run(
        [find_program("pkcs11-tool"), "--module", str(MODULE), "--token-label", label, *login, *arguments],
        env=environment,
        check=True,
        capture_output=True,
    ).stdout


def public_der(public):
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public.raw)
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


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


# -- opening --


def test_opening_errors_have_their_codes(hsm, tmp_path):
    hsm.make_token("two", pin="111111")
    unsafe = tmp_path / "unsafe.so"
    unsafe.write_bytes(MODULE.read_bytes())
    unsafe.chmod(0o666)
    text = tmp_path / "text.so"
    text.write_text("no library")
    text.chmod(0o600)
    open_pin = hsm.write_pin("open", "258036")
    open_pin.chmod(0o644)
    base = f"pkcs11:token=one?pin-source={hsm.folder}/one.pin&module-path="
    rows = [
        (base + "/none.so", "keys.provider.absent"),
        (base + "relative.so", "keys.provider.absent"),
        (base + str(text), "keys.provider.absent"),
        (base + str(unsafe), "base.permissions.unsafe"),
        (base.removesuffix("&module-path="), "keys.uri.malformed"),
        (f"pkcs11:token=none?module-path={MODULE}&pin-source={hsm.folder}/one.pin", "keys.token.missing"),
        (f"pkcs11:token=one;serial=00?module-path={MODULE}&pin-source={hsm.folder}/one.pin", "keys.token.missing"),
        (f"pkcs11:token=one?module-path={MODULE}", "keys.pin.missing"),
        (f"pkcs11:token=one?module-path={MODULE}&pin-source={open_pin}", "base.permissions.unsafe"),
        (f"pkcs11:token=one?module-path={MODULE}&pin-source={hsm.folder}/two.pin", "keys.pin.refused"),
    ]
    for uri, code in rows:
        assert code_of(open_store, parse_key_uri(uri)) == code, uri


def test_a_missing_token_names_those_that_are_there(hsm):
    with pytest.raises(TidegateError) as caught:
        open_store(parse_key_uri(f"pkcs11:token=other?module-path={MODULE}&pin-source={hsm.folder}/one.pin"))
    assert "'one'" in caught.value.message


def test_two_tokens_with_one_label_need_the_serial(hsm):
    hsm.make_token("one")
    assert code_of(open_store, hsm.uri("one")) == "keys.token.missing"
    serials = [token.serial.decode() for token in load_module(MODULE)._tokens()]
    store = open_store(hsm.uri("one", serial=serials[0]))
    store.generate("key", signing())
    store.close()


def test_the_pin_may_come_from_a_person_or_a_descriptor(hsm):
    asked = []

    def ask(what):
        asked.append(what)
        return Secret(b"258036")

    uri = parse_key_uri(f"pkcs11:token=one?module-path={MODULE}")
    open_store(uri, ask=ask).close()
    assert len(asked) == 1
    read, write = os.pipe()
    os.write(write, b"258036\n")
    os.close(write)
    open_store(hsm.uri("one", pin_source=f"/dev/fd/{read}")).close()
    os.close(read)


def test_a_closed_store_refuses_and_leaves_the_others_open(hsm):
    first, second = open_store(hsm.uri("one")), open_store(hsm.uri("one"))
    first.generate("key", signing())
    signer = first.signer("key")
    first.close()
    first.close()
    assert code_of(first.list_keys) == "keys.store.closed"
    assert code_of(signer.sign, b"") == "keys.store.closed"
    second.signer("key").sign(b"")
    second.close()


def test_a_second_store_has_to_show_the_same_pin(hsm, store):
    wrong = hsm.write_pin("wrong", "000000")
    assert code_of(open_store, hsm.uri("one", pin_source=wrong)) == "keys.pin.refused"
    store.generate("key", signing())


def test_a_login_of_other_code_in_the_process_is_not_taken_over(hsm):
    library = pkcs11.lib(str(MODULE.resolve()))
    token = next(one for one in library.get_tokens() if one.label == "one")
    with token.open(user_pin="258036"):
        assert code_of(open_store, hsm.uri("one")) == "keys.provider.failed"
    open_store(hsm.uri("one")).close()


# -- PINs --


class CountingToken:
    """A real token that counts the logins tried on it."""

    def __init__(self, token, tries):
        self._token = token
        self._tries = tries

    def open(self, **options):
        if options.get("user_pin") is not None:
            self._tries.append(1)
        return self._token.open(**options)

    def __getattr__(self, name):
        return getattr(self._token, name)


@pytest.fixture
def tries(monkeypatch):
    counted = []
    find = pkcs11_session.Pkcs11Module.find_token
    monkeypatch.setattr(
        pkcs11_session.Pkcs11Module, "find_token", lambda self, *named: CountingToken(find(self, *named), counted)
    )
    return counted


def test_a_wrong_pin_is_tried_once(hsm, tries):
    wrong = hsm.write_pin("wrong", "000000")
    with pytest.raises(TidegateError) as caught:
        open_store(hsm.uri("one", pin_source=wrong))
    assert caught.value.code == "keys.pin.refused"
    assert caught.value.fields["left"] == "tries were used up already"
    assert len(tries) == 1
    open_store(hsm.uri("one")).close()


def test_a_pin_changed_meanwhile_costs_one_try_and_no_more(hsm, store, tries):
    store.generate("key", signing())
    signer = store.signer("key")
    tool(hsm, "--change-pin", "--new-pin", "env:NEW_PIN", pin="258036")
    load_module(MODULE).restart()
    for _ in range(5):
        assert code_of(signer.sign, b"") == "keys.pin.refused"
        assert code_of(store.list_keys) == "keys.pin.refused"
    assert len(tries) == 1
    again = open_store(hsm.uri("one", pin_source=hsm.write_pin("new", "999999")))
    again.signer("key").sign(b"")
    store.close()
    again.signer("key").sign(b"")
    again.close()


def _login(flags, opened=None):
    """Return a login to a token that says ``flags`` of itself, and the tries made on it."""
    made = []

    def open_(**options):
        made.append(options)
        if opened:
            raise opened
        return SimpleNamespace()

    token = SimpleNamespace(label="t", serial=b"1", flags=flags, open=open_)
    module = SimpleNamespace(find_token=lambda *_: token, epoch=0, logins={}, restart=lambda: None)
    return TokenLogin(module, token, Secret(b"1234")), made


FLAGS = pkcs11.TokenFlag


@pytest.mark.parametrize(
    ("flags", "by_person", "opened", "code", "count"),
    [
        (FLAGS.USER_PIN_LOCKED, True, None, "keys.pin.locked", 0),
        (FLAGS.USER_PIN_FINAL_TRY, False, None, "keys.pin.refused", 0),
        (FLAGS.USER_PIN_FINAL_TRY, True, pkcs11.PinIncorrect(), "keys.pin.refused", 1),
        (FLAGS.USER_PIN_COUNT_LOW, False, pkcs11.PinIncorrect(), "keys.pin.refused", 1),
        (FLAGS.USER_PIN_COUNT_LOW, False, pkcs11.PinLenRange(), "keys.pin.refused", 1),
        (FLAGS.USER_PIN_COUNT_LOW, False, pkcs11.GeneralError(), "keys.provider.failed", 1),
        (FLAGS.RNG, False, pkcs11.GeneralError(), "keys.provider.failed", 4),  # SoftHSM beside another login
    ],
)
def test_a_tokens_last_try_is_not_ours_to_spend(flags, by_person, opened, code, count):
    login, made = _login(flags, opened)

    def connect():
        with translate_token_errors("token"):
            login.connect(first=True, by_person=by_person)

    assert code_of(connect) == code
    assert len(made) == count


def test_a_login_that_locked_the_token_says_so():
    login, _ = _login(FLAGS.USER_PIN_LOCKED)
    assert login.refusal().code == "keys.pin.locked"


def test_a_keypad_gets_no_pin_from_us():
    login, made = _login(FLAGS.PROTECTED_AUTHENTICATION_PATH)
    login._pin = None
    login.connect(first=True, by_person=True)
    assert made[0]["user_pin"] is pkcs11.types.PROTECTED_AUTH


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (pkcs11.PinIncorrect, "keys.pin.refused"),
        (pkcs11.PinExpired, "keys.pin.refused"),
        (pkcs11.PinLocked, "keys.pin.locked"),
        (pkcs11.DeviceRemoved, "keys.token.missing"),
        (pkcs11.TokenNotPresent, "keys.token.missing"),
        (pkcs11.KeyUnextractable, "keys.key.not-exportable"),
        (pkcs11.MechanismInvalid, "keys.capability.missing"),
        (pkcs11.TokenWriteProtected, "keys.provider.failed"),
        (pkcs11.DeviceMemory, "keys.provider.failed"),
        (pkcs11.UserPinNotInitialized, "keys.provider.failed"),
        (pkcs11.GeneralError, "keys.provider.failed"),
        (pkcs11.PKCS11Error, "keys.provider.failed"),
    ],
)
def test_what_a_module_says_becomes_a_code(said, code):
    def fail():
        with translate_token_errors("token"):
            raise said("quoted")

    assert code_of(fail) == code


def test_a_key_with_its_own_pin_asks_at_each_use(hsm):
    answers = [b"258036", b"000000", b"258036", b"258036"]
    asked = []

    def ask(what):
        asked.append(what)
        return Secret(answers[len(asked) - 1])

    store = open_store(hsm.uri("one"), ask=ask)
    info = store.generate("key", signing(user_auth=True))
    assert info.spec.policy.user_auth
    signer = store.signer("key")
    assert not asked
    info.public_key.verify(signer.sign(b"a"), b"a")
    assert code_of(signer.sign, b"b") == "keys.pin.refused"
    info.public_key.verify(signer.sign(b"c"), b"c")
    info.public_key.verify(signer.sign(b"d"), b"d")
    assert len(asked) == 4
    assert store.list_keys() == [info]
    store.close()
    silent = open_store(hsm.uri("one"))
    assert code_of(silent.signer("key").sign, b"") == "keys.pin.missing"
    silent.close()
    filed = open_store(hsm.uri("one", key_pin_source=str(hsm.folder / "one.pin")))
    info.public_key.verify(filed.signer("key").sign(b"e"), b"e")
    filed.close()


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


# -- threads, forks, processes --


def test_eight_threads_sign_seal_and_list(store):
    store.generate("key", signing())
    store.generate("seal", sealing())
    signer, failures = store.signer("key"), []

    def work(number):
        try:
            for turn in range(200):
                message = b"%d %d" % (number, turn)
                signer.public_key.verify(signer.sign(message), message)
                if turn % 20 == 0:
                    sealed = store.seal("seal", message, b"c")
                    if bytes(store.unseal("seal", sealed, b"c").view()) != message:
                        failures.append(number)
                    store.list_keys()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _in_child(work):
    """Run ``work`` in a forked child and return whether it ended well."""
    return _ended_well(_start_child(work))


def _ended_well(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _start_child(work):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def test_parent_and_child_both_sign_after_a_fork(store):
    store.generate("key", signing())
    signer = store.signer("key")

    def sign():
        for message in (b"a", b"b"):
            signer.public_key.verify(signer.sign(message), message)

    assert _in_child(sign)
    sign()
    assert _in_child(lambda: (sign(), _in_child(sign) or os._exit(1)))
    running = [_start_child(sign) for _ in range(4)]
    sign()
    assert all(_ended_well(pid) for pid in running)
    assert _in_child(lambda: (store.close(), code_of(signer.sign, b"")))
    sign()


def test_a_fork_waits_until_no_thread_is_inside_the_module(store):
    store.generate("key", signing())
    signer = store.signer("key")
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            signer.sign(b"busy")

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            assert _in_child(lambda: signer.public_key.verify(signer.sign(b"m"), b"m"))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


RACE = """
import sys
from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.keys.uri import open_store, parse_key_uri
store = open_store(parse_key_uri(sys.argv[1]))
made = 0
UNDECIDED = "keys.store.malformed", "keys.provider.failed"  # two of one name; SoftHSM: one half gone
for number in range(10):
    try:
        store.generate(f"key{number}", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
        made += 1
    except TidegateError as error:
        if error.code not in ("keys.key.exists", *UNDECIDED):
            raise
    try:
        for info in store.list_keys():
            info.public_key.verify(store.signer(info.name).sign(b"m"), b"m")
    except TidegateError as error:
        if error.code not in ("keys.key.missing", *UNDECIDED):
            raise
print(made)
"""


def _text(uri):
    options = "&".join(f"{name}={value}" for name, value in uri.options.items() if name != "token")
    return f"pkcs11:token={uri.location}?{options}"


def test_processes_race_for_names_and_no_name_means_two_keys(hsm):
    """SoftHSM may show a process another one's new key late: then both made one, and the name is refused from then."""
    command = [sys.executable, "-c", RACE, _text(hsm.uri("one"))]
    running = [
        subprocess.Popen(command, env=hsm.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    done = [process.communicate(timeout=18) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], b"".join(err for _, err in done).decode()
    store = open_store(hsm.uri("one"))
    made = sum(int(out) for out, _ in done)
    names = [info.name for info in store.list_keys()]
    assert len(names) + store.skipped_keys == made
    for name in {f"key{number}" for number in range(10)} - set(names):
        assert code_of(store.signer, name) in ("keys.store.malformed", "keys.key.missing")
    store.close()


def test_a_lost_session_is_opened_again(hsm, store):
    store.generate("key", signing())
    store.generate("seal", sealing())
    signer = store.signer("key")
    sealed = store.seal("seal", b"s", b"c")
    calls = [
        lambda: signer.public_key.verify(signer.sign(b"m"), b"m"),
        lambda: store.unseal("seal", sealed, b"c"),
        store.list_keys,
        lambda: store.random(8),
    ]
    for number, call in enumerate(calls):
        load_module(MODULE).restart()
        call()
        store._login._session.close()  # the session and the login are gone; nobody told the store
        call()
        store._login._session.close()
        store.generate(f"new{number}", signing())
    assert len(store.list_keys()) == 2 + len(calls)


def test_a_pulled_token_is_missing_and_works_again_once_it_is_back(hsm, store):
    store.generate("key", signing())
    signer = store.signer("key")
    (hsm.folder / "tokens").rename(hsm.folder / "pulled")
    (hsm.folder / "tokens").mkdir()
    load_module(MODULE).restart()
    assert code_of(signer.sign, b"") == "keys.token.missing"
    assert code_of(signer.sign, b"") == "keys.token.missing"
    (hsm.folder / "tokens").rmdir()
    (hsm.folder / "pulled").rename(hsm.folder / "tokens")
    signer.public_key.verify(signer.sign(b"m"), b"m")


# -- backup --


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
        kinds = second.use(lambda session: [one.object_class for one in session.get_objects()])
        assert pkcs11.ObjectClass.SECRET_KEY not in kinds
        listed = second.list_keys()
        assert listed in ([], [info])
        assert second.skipped_keys == 0
        for one in listed:
            info.public_key.verify(second.signer(one.name).sign(b"m"), b"m")
            second.destroy(one.name)
    assert store.list_keys() == [info]
