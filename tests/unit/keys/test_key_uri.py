"""Key URIs: everything that is not exactly one is refused with a code."""

import os
import threading

import pytest

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.keys.software import SoftwareKeyStore
from tidegate.keys.uri import open_store, parse_key_uri, read_passphrase, read_pin


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_parts():
    uri = parse_key_uri("file:/etc/keys?key=maker&device-secret=/run/secret")
    assert (uri.scheme, str(uri.location), uri.name) == ("file", "/etc/keys", "maker")
    assert uri.options == {"device-secret": "/run/secret"}


def test_parts_of_a_token():
    uri = parse_key_uri("pkcs11:token=my%20token;object=ca?module-path=/lib/x.so&pin-source=/run/pin")
    assert (uri.scheme, uri.location, uri.name) == ("pkcs11", "my token", "ca")
    assert uri.options == {"token": "my token", "module-path": "/lib/x.so", "pin-source": "/run/pin"}


def test_a_plus_in_a_path_is_a_plus():
    uri = parse_key_uri("file:/a+b?key=k&passphrase-file=/c+d")
    assert str(uri.location) == "/a+b"
    assert uri.options["passphrase-file"] == "/c+d"


@pytest.mark.parametrize("text", ["", "/etc/keys", "http://h/x", "key", "FILE2:/x"])
def test_providers_that_are_not_there(text):
    assert code_of(parse_key_uri, text) == "keys.provider.unknown"


@pytest.mark.parametrize(
    "text",
    [
        "file:",
        "pkcs11:object=k",
        "pkcs11:token=x;token=y",
        "pkcs11:token=x?pin-value=1234",
        "pkcs11:token=x;object=k;id=%01",
        "tpm2:?key=k",
        "keyd:/run/keyd.sock?passphrase-file=/f",
        "file:?key=a",
        "file://host/folder?key=a",
        "file:/folder?key=a#b",
        "file:/folder?pin=1234",
        "file:/folder?passphrase=hunter2",
        "file:/folder?key=a&key=b",
        "file:/folder?device-secret=/a&device-secret=/b",
        "file:/folder?key=a&passphrase-file=/a%00b",
        "file:/folder%00?key=a",
        "file:/fol\0der?key=a",
        "file://[",
        "file://[::1/x",
    ],
)
def test_malformed(text):
    assert code_of(parse_key_uri, text) == "keys.uri.malformed"


@pytest.mark.parametrize("name", ["..", "../x", "%2e%2e%2fx", "a/b", "A", "a%00"])
def test_names(name):
    assert code_of(parse_key_uri, f"file:/folder?key={name}") in {"keys.name.invalid", "keys.uri.malformed"}


def test_a_passphrase_in_a_uri_is_not_echoed():
    """Messages go to logs; the URI of somebody who wrote the passphrase into it must not follow."""
    with pytest.raises(TidegateError) as caught:
        parse_key_uri("file:/folder?passphrase=hunter2&key=a")
    assert "hunter2" not in repr(caught.value.describe())


def test_one_way_to_unlock():
    uri = parse_key_uri("file:/folder?key=a&device-secret=/a&passphrase-file=/b")
    assert code_of(open_store, uri) == "keys.uri.malformed"


def test_where_no_file_is_named_a_person_is_asked(tmp_path):
    uri = parse_key_uri(f"file:{tmp_path}/store")
    assert code_of(open_store, uri) == "keys.pin.missing"
    asked = []

    def ask(what):
        asked.append(what)
        return Secret(b"correct horse")

    open_store(uri, create=True, ask=ask)
    assert len(asked) == 1
    assert code_of(open_store, uri, ask=lambda what: Secret(b"wrong")) == "keys.unlock.refused"


@pytest.mark.parametrize(
    "text", ["pkcs11:token=x?hunter2", "file:/k?key=a&hunter2=1", "file:/k?device-secret=/a&hunter2"]
)
def test_a_secret_in_an_options_place_is_not_shown(text):
    with pytest.raises(TidegateError) as caught:
        parse_key_uri(text)
    assert "hunter2" not in f"{caught.value} {caught.value.describe()}"


def test_a_credential_that_an_access_list_opens(tmp_path, monkeypatch):
    """systemd since version 254: root's file, the service admitted by a list whose mask shows as mode 440."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "pin").write_bytes(b"1234")
    (folder / "pin").chmod(0o440)
    folder.chmod(0o550)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    with read_pin("credential:pin", None, "the PIN") as pin:
        assert bytes(pin.view()) == b"1234"
    for place, mode in ((folder / "pin", 0o444), (folder / "pin", 0o460), (folder, 0o555), (folder, 0o570)):
        before = place.stat().st_mode
        place.chmod(mode)
        assert code_of(read_pin, "credential:pin", None, "the PIN") == "base.permissions.unsafe"
        place.chmod(before)
    folder.chmod(0o700)
    (folder / "link").symlink_to(folder / "pin")
    assert code_of(read_pin, "credential:link", None, "the PIN") == "base.permissions.unsafe"


def test_credentials_of_the_service(tmp_path, words, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert code_of(read_pin, "credential:words", None, "the PIN") == "keys.pin.missing"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with read_pin("credential:words", None, "the PIN") as pin:
        assert bytes(pin.view()) == b"correct horse"
    for name in ("", ".", "..", "../words", "a/b"):
        assert code_of(read_pin, f"credential:{name}", None, "the PIN") == "keys.pin.missing"


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words"
    path.write_bytes(b"correct horse\nsecond line\n")
    path.chmod(0o600)
    return path


def test_first_line_of_a_private_file(words):
    assert bytes(read_passphrase(words).view()) == b"correct horse"
    words.chmod(0o644)
    assert code_of(read_passphrase, words) == "base.permissions.unsafe"


@pytest.mark.parametrize("content", [b"", b"\n", b"\nsecond line"])
def test_an_empty_passphrase_is_none(words, content):
    """A script whose source of passphrases failed writes an empty file; that must not become an open store."""
    words.write_bytes(content)
    assert code_of(read_passphrase, words) == "keys.unlock.refused"


def test_passphrase_too_long(words):
    words.write_bytes(bytes(1025))
    assert code_of(read_passphrase, words) == "base.input.too-large"


def test_passphrase_through_a_descriptor(tmp_path, words):
    read_end, write_end = os.pipe()
    try:
        threading.Thread(target=lambda: (os.write(write_end, b"correct horse"), os.close(write_end))).start()
        uri = parse_key_uri(f"file:{tmp_path}/store?passphrase-file=/dev/fd/{read_end}")
        open_store(uri, create=True)
    finally:
        os.close(read_end)
    store = open_store(parse_key_uri(f"file:{tmp_path}/store?passphrase-file={words}"))
    assert isinstance(store, SoftwareKeyStore)
    words.write_bytes(b"wrong")
    uri = parse_key_uri(f"file:{tmp_path}/store?passphrase-file={words}")
    assert code_of(open_store, uri) == "keys.unlock.refused"
