"""Debian's tangd, clevis and jose at our client, both ways; through rotation, deletion, replacement and outage."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.testing.tangd import LIBEXEC, Tangd
from tidegate.vault import jose
from tidegate.vault.jose import Curve
from tidegate.vault.tang import TangUnlocker, fetch_advertisement

NEEDED = ("tangd", "tangd-keygen", "tangd-rotate-keys")
_MISSING = [name for name in NEEDED if not (LIBEXEC / name).exists()]
_MISSING += [name for name in ("clevis", "jose", "curl") if shutil.which(name) is None]

pytestmark = pytest.mark.skipif(
    bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (tang, clevis, jose, curl)"
)

SECRET = bytes(range(224, 256)) + b"\0\n\xff"  # what text tools would spoil
CONTEXT = b"tidegate vault 1"


class Server(Tangd):
    """tangd, and what only these tests ask of it."""

    def keys(self, algorithm):
        """Return the thumbprints of the advertised keys; their files are named by them."""
        paths = [path for path in self.folder.glob("*.jwk") if not path.name.startswith(".")]
        return [path.stem for path in paths if json.loads(path.read_text())["alg"] == algorithm]

    def rotate(self):
        run(LIBEXEC / "tangd-rotate-keys", "-d", self.folder)

    def unlocker(self, **options):
        (thumbprint,) = self.keys("ES512")
        return TangUnlocker(self.url, thumbprint=thumbprint, **options)


def run(*words, data=b"", check=True):
    return subprocess.run([str(word) for word in words], input=data, capture_output=True, timeout=15, check=check)


def clevis_encrypt(server, data, thumbprint=None):
    settings = {"url": server.url, "thp": thumbprint or server.keys("ES512")[0]}
    return run("clevis", "encrypt", "tang", json.dumps(settings), data=data).stdout.decode().strip()


def clevis_decrypt(text):
    return run("clevis", "decrypt", data=text.encode()).stdout


@contextlib.contextmanager
def serving(folder):
    with Server(folder) as server:
        yield server


@pytest.fixture
def server(tmp_path):
    with serving(tmp_path / "keys") as server:
        yield server


def code_of(call, *arguments):
    with pytest.raises(TidegateError) as caught:
        call(*arguments)
    return caught.value.code


# -- both ways --------------------------------------------------------------------------------------------------------


def test_thumbprints_are_those_of_the_server(server):
    assert list(fetch_advertisement(server.url).thumbprints) == server.keys("ES512")


def test_we_open_what_we_bind(server):
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), CONTEXT)
    assert bytes(unlocker.unwrap(slot, CONTEXT).view()) == SECRET
    assert code_of(unlocker.unwrap, slot, b"tidegate vault 2") == "vault.tang.refused"


@pytest.mark.parametrize("length", [1, 32, 33, 64, 1000])
def test_clevis_opens_what_we_bind(server, length):
    secret = os.urandom(length)
    slot = server.unlocker().wrap(Secret(secret), CONTEXT)
    assert clevis_decrypt(slot["jwe"]) == secret


@pytest.mark.parametrize("length", [1, 32, 1000])
def test_we_open_what_clevis_binds(server, length):
    secret = os.urandom(length)
    text = clevis_encrypt(server, secret)
    unlocker = server.unlocker()
    assert bytes(unlocker.open_foreign(text).view()) == secret
    assert code_of(unlocker.unwrap, {"jwe": text}, CONTEXT) == "vault.tang.slot"


def test_jose_finds_our_slot_well_formed_and_our_thumbprints_right(server):
    slot = server.unlocker().wrap(Secret(SECRET), CONTEXT)
    header = json.loads(run("jose", "b64", "dec", "-i-", data=slot["jwe"].split(".")[0].encode()).stdout)
    assert header["kid"] == server.keys("ECMR")[0]
    advertised = json.dumps(header["clevis"]["tang"]["adv"]).encode()
    for name, method in (("S256", "thumbprint"), ("S1", "old_thumbprint")):
        said = run("jose", "jwk", "thp", "-i-", "-a", name, data=advertised).stdout.decode().split()
        assert said == [getattr(key, method)() for key in jose.parse_jwk_set(header["clevis"]["tang"]["adv"])]


def test_clevis_refuses_a_changed_context(server):
    """What binds the slot is authenticated for clevis as well, though it does not know what it means."""
    text = server.unlocker().wrap(Secret(SECRET), CONTEXT)["jwe"]
    first, rest = text.split(".", 1)
    header = jose.parse_json(jose.parse_base64url(first))
    header["tidegate"]["context"] = jose.encode_base64url(bytes(32))
    changed = f"{jose.encode_base64url(jose.encode_json(header))}.{rest}"
    assert run("clevis", "decrypt", data=changed.encode(), check=False).returncode != 0


@pytest.mark.parametrize("curve", Curve)
def test_keys_on_other_curves(tmp_path, curve):
    folder = tmp_path / "keys"
    folder.mkdir()
    for name, alg in (("sign", curve.signature), ("exchange", "ECMR")):
        run("jose", "jwk", "gen", "-i", json.dumps({"alg": alg, "crv": curve.label}), "-o", folder / f"{name}.jwk")
    with contextlib.closing(Server(folder)) as server:
        unlocker = TangUnlocker(server.url, thumbprint=fetch_advertisement(server.url).thumbprints[0])
        slot = unlocker.wrap(Secret(SECRET), CONTEXT)
        assert jose.parse_compact(slot["jwe"]).recipient.curve is curve
        assert bytes(unlocker.unwrap(slot, CONTEXT).view()) == SECRET
        assert clevis_decrypt(slot["jwe"]) == SECRET
        text = clevis_encrypt(server, SECRET, fetch_advertisement(server.url).thumbprints[0])
        assert bytes(unlocker.open_foreign(text).view()) == SECRET


def test_slots_that_name_the_key_by_sha1(server, tmp_path):
    """As an older clevis made them: jose writes one here, tangd still finds its key by that name."""
    advertisement = jose.parse_json(run("curl", "-sf", f"{server.url}/adv").stdout)
    keys = jose.parse_json(jose.parse_base64url(advertisement["payload"]))
    (key,) = [one for one in keys["keys"] if one["alg"] == "ECMR"]
    public = {name: key[name] for name in ("kty", "crv", "x", "y")}
    header = {
        "alg": "ECDH-ES",
        "enc": "A256GCM",
        "kid": jose.parse_jwk(key).old_thumbprint(),
        "clevis": {"pin": "tang", "tang": {"adv": keys, "url": server.url}},
    }
    (tmp_path / "plain").write_bytes(SECRET)
    (tmp_path / "key").write_text(json.dumps(public))
    template = json.dumps({"protected": header})
    text = run(
        "jose", "jwe", "enc", "-i", template, "-k", tmp_path / "key", "-I", tmp_path / "plain", "-c"
    ).stdout.decode()
    assert clevis_decrypt(text) == SECRET
    assert bytes(server.unlocker().open_foreign(text.strip()).view()) == SECRET


def test_a_share_of_clevis_sss_opens_with_us(server, tmp_path):
    """sss wraps a share for each server with the same pin; each of these JWEs is ours to read."""
    with serving(tmp_path / "more") as other:
        pins = [{"url": one.url, "thp": one.keys("ES512")[0]} for one in (server, other)]
        settings = json.dumps({"t": 1, "pins": {"tang": pins}})
        text = run("clevis", "encrypt", "sss", settings, data=SECRET).stdout.decode()
        header = json.loads(jose.parse_base64url(text.split(".")[0]))
        shares = header["clevis"]["sss"]["jwe"]
        for share, one in zip(shares, (server, other), strict=True):
            assert len(one.unlocker().open_foreign(share)) > 32


# -- the server's life ------------------------------------------------------------------------------------------------


def test_rotation_then_deletion(server):
    before = server.unlocker()
    old = before.wrap(Secret(SECRET), CONTEXT)
    foreign = clevis_encrypt(server, SECRET)
    (old_key,) = server.keys("ECMR")
    server.rotate()
    (new_key,) = server.keys("ECMR")
    assert new_key != old_key

    # retired keys still open, and vouch for the new ones; nothing new is bound on the old one's word alone
    assert bytes(before.unwrap(old, CONTEXT).view()) == SECRET
    assert clevis_decrypt(old["jwe"]) == SECRET
    assert code_of(before.wrap, Secret(SECRET), CONTEXT) == "vault.tang.untrusted"
    assert list(before.follow_rotation(old)) == server.keys("ES512")
    after = server.unlocker()
    new = after.wrap(Secret(SECRET), CONTEXT)
    assert jose.parse_compact(new["jwe"]).key_id == new_key

    # deleted keys are gone for everybody
    for path in server.folder.glob(".*.jwk"):
        path.unlink()
    assert bytes(after.unwrap(new, CONTEXT).view()) == SECRET
    assert code_of(after.unwrap, old, CONTEXT) == "vault.tang.key-gone"
    assert code_of(after.open_foreign, foreign) == "vault.tang.key-gone"
    assert code_of(before.follow_rotation, old) == "vault.tang.untrusted"
    assert run("clevis", "decrypt", data=old["jwe"].encode(), check=False).returncode != 0


def test_several_rotations_are_followed_from_the_first(server):
    before = server.unlocker()
    old = before.wrap(Secret(SECRET), CONTEXT)
    for _ in range(3):
        server.rotate()
    assert list(before.follow_rotation(old)) == server.keys("ES512")
    assert bytes(before.unwrap(old, CONTEXT).view()) == SECRET


def test_server_replaced_by_another(server, tmp_path):
    slot = server.unlocker().wrap(Secret(SECRET), CONTEXT)
    (thumbprint,) = server.keys("ES512")
    with serving(tmp_path / "stranger") as stranger:
        unlocker = TangUnlocker(stranger.url, thumbprint=thumbprint)
        assert code_of(unlocker.wrap, Secret(SECRET), CONTEXT) == "vault.tang.untrusted"
        assert code_of(unlocker.unwrap, slot, CONTEXT) == "vault.tang.key-gone"
        assert code_of(unlocker.follow_rotation, slot) == "vault.tang.untrusted"


def test_server_moved_to_another_address(server, tmp_path):
    """The keys are the server, not its address: the slot's URL is history."""
    slot = server.unlocker().wrap(Secret(SECRET), CONTEXT)
    server.close()
    assert code_of(server.unlocker().unwrap, slot, CONTEXT) == "vault.tang.unreachable"
    old = int(jose.parse_compact(slot["jwe"]).url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", old)), contextlib.closing(Server(server.folder)) as moved:
        assert moved.url != jose.parse_compact(slot["jwe"]).url
        assert bytes(moved.unlocker().unwrap(slot, CONTEXT).view()) == SECRET


def test_server_down_and_up_again(server):
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), CONTEXT)
    server.close()
    started = time.monotonic()
    assert code_of(unlocker.unwrap, slot, CONTEXT) == "vault.tang.unreachable"
    assert code_of(unlocker.wrap, Secret(SECRET), CONTEXT) == "vault.tang.unreachable"
    assert time.monotonic() - started < 5


# -- somebody between us and tangd ------------------------------------------------------------------------------------


class Middle:
    """Passes one question on to tangd and the answer back through ``alter``, in pieces with pauses if it is slow."""

    def __init__(self, server, *, alter=lambda raw: raw, pause_s=0.0):
        self.server, self.alter, self.pause_s = server, alter, pause_s
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        connection, _ = self.listener.accept()
        with contextlib.suppress(OSError), connection, socket.create_connection(("127.0.0.1", self.server.port)) as to:
            connection.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                while data := connection.recv(4096):
                    to.sendall(data)
            to.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: to.recv(4096), b""))
            connection.settimeout(10)
            altered = self.alter(answer)
            size = 1 if self.pause_s else max(len(altered), 1)
            for start in range(0, len(altered), size):
                connection.sendall(altered[start : start + size])
                time.sleep(self.pause_s)

    def close(self):
        self.thread.join()
        self.listener.close()


def through(server, slot, **options):
    """Unwrap through a man in the middle and return the code it ends with, or the secret."""
    timeout_s = options.pop("timeout_s", 8.0)
    with contextlib.closing(Middle(server, **options)) as middle:
        unlocker = TangUnlocker(middle.url, thumbprint=server.keys("ES512")[0], timeout_s=timeout_s)
        try:
            return bytes(unlocker.unwrap(slot, CONTEXT).view())
        except TidegateError as error:
            return error.code


def other_point(raw):
    head, body = raw.split(b"\r\n\r\n", 1)
    fresh = json.loads(run("jose", "jwk", "gen", "-i", '{"alg":"ECMR"}').stdout)
    answer = json.dumps({**json.loads(body), "x": fresh["x"], "y": fresh["y"]}, separators=(",", ":")).encode()
    assert len(answer) == len(body)
    return head + b"\r\n\r\n" + answer


@pytest.mark.parametrize(
    ("alter", "outcome"),
    [
        (lambda raw: raw, SECRET),
        (other_point, "vault.tang.refused"),
        (lambda raw: raw.replace(b"P-521", b"P-256"), "vault.tang.answer"),
        (lambda raw: raw[:-20], "vault.tang.answer"),
        (lambda raw: b"", "vault.tang.unreachable"),
        (lambda raw: raw.replace(b"200 OK", b"404 No"), "vault.tang.key-gone"),
        (lambda raw: raw.replace(b"200 OK", b"302 Go"), "vault.tang.answer"),
        (lambda raw: raw.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"), "vault.tang.answer"),
    ],
    ids=["nothing", "point", "curve", "cut", "silence", "gone", "redirect", "flood"],
)
def test_answers_of_tangd_altered_on_the_way(server, alter, outcome):
    slot = server.unlocker().wrap(Secret(SECRET), CONTEXT)
    assert through(server, slot, alter=alter) == outcome


def test_every_part_of_a_point_altered_on_the_way(server):
    """A digit of x or y changed: off the curve in all likelihood, and refused in any case."""
    slot = server.unlocker().wrap(Secret(SECRET), CONTEXT)

    def digit(name):
        def alter(raw):
            place = raw.index(b'"%b":"' % name) + 20
            changed = bytearray(raw)
            changed[place] = ord("A") if changed[place] != ord("A") else ord("B")
            return bytes(changed)

        return alter

    for name in (b"x", b"y"):
        assert through(server, slot, alter=digit(name)) in {"vault.tang.answer", "vault.tang.refused"}


def test_an_answer_that_drips_ends_at_the_time_limit(server):
    slot = server.unlocker().wrap(Secret(SECRET), CONTEXT)
    started = time.monotonic()
    assert through(server, slot, pause_s=0.02, timeout_s=1.0) == "vault.tang.slow"
    assert time.monotonic() - started < 12


def test_an_answer_that_drips_fast_enough_is_an_answer(server):
    slot = server.unlocker().wrap(Secret(SECRET), CONTEXT)
    assert through(server, slot, pause_s=0.001) == SECRET


def test_every_altered_letter_of_a_slot_is_refused(server):
    """What is not refused for its form is asked of tangd, which answers; then the tag does not hold."""
    unlocker = server.unlocker()
    text = unlocker.wrap(Secret(SECRET), CONTEXT)["jwe"]
    codes = set()
    for place in range(0, len(text), 7):
        letter = "A" if text[place] != "A" else "Q"
        changed = text[:place] + letter + text[place + 1 :]
        codes.add(code_of(unlocker.unwrap, {"jwe": changed}, CONTEXT))
    assert codes == {"vault.tang.slot", "vault.tang.refused"}
