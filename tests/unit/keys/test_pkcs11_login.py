"""Opening a token: modules, tokens, PINs, and that no PIN is tried again by itself."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pkcs11
import pytest
from tests.unit.keys.pkcs11_shared import code_of, signing, tool

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.keys import pkcs11_session
from tidegate.keys.pkcs11_session import TokenLogin, load_module, translate_token_errors
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.tokens import MODULE


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


def test_a_keys_pin_from_a_file_is_tried_once(hsm):
    """A service that signs in a loop must not lock the token with a wrong file."""
    store = open_store(hsm.uri("one", key_pin_source=str(hsm.write_pin("wrong", "000000"))))
    store.generate("key", signing(user_auth=True))
    store.generate("other", signing())
    signer, tried = store.signer("key"), []
    refusal = TokenLogin.refusal

    def counted(login):
        tried.append(1)
        return refusal(login)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TokenLogin, "refusal", counted)
        for _ in range(4):
            assert code_of(signer.sign, b"") == "keys.pin.refused"
    assert len(tried) == 1
    store.signer("other").sign(b"")
    store.close()


def test_a_missing_library_is_a_coded_error():
    script = (
        "import sys; sys.modules['pkcs11'] = None\n"
        "from tidegate.base.errors import TidegateError\n"
        "from tidegate.keys.uri import open_store, parse_key_uri\n"
        "try: open_store(parse_key_uri('pkcs11:token=one?module-path=/none.so'))\n"
        "except TidegateError as error: print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout == b"keys.provider.absent\n"


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
