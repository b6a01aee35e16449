"""The key server's client against a server of ours that lies, stalls, floods and forgets; a row per attack."""

import contextlib
import datetime
import json
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.vault import jose, tang
from tidegate.vault.jose import Curve, KeyUse, PublicJwk
from tidegate.vault.tang import TangUnlocker, fetch_advertisement

SECRET = bytes(range(32))
SHORT_S = 0.5  # for answers that never come
NOBODY = "A" * 43


class Pair:
    """A key of the server."""

    def __init__(self, use, curve=Curve.P521):
        self.private = ec.generate_private_key(curve.group)
        numbers = self.private.public_key().public_numbers()
        self.jwk = PublicJwk(curve=curve, point=(numbers.x, numbers.y), use=use)
        self.thumbprint = self.jwk.thumbprint()

    def sign(self, payload):
        protected = jose.encode_base64url(jose.encode_json({"alg": self.jwk.curve.signature}))
        der = self.private.sign(f"{protected}.{payload}".encode(), ec.ECDSA(self.jwk.curve.digest))
        size = self.jwk.curve.size_bytes
        raw = b"".join(number.to_bytes(size, "big") for number in utils.decode_dss_signature(der))
        return {"protected": protected, "signature": jose.encode_base64url(raw)}

    def multiply(self, jwk):
        """Double and add in Python: a test's server has no secret to lose."""
        scalar, total, power = self.private.private_numbers().private_value, None, jwk.point
        while scalar:
            if scalar & 1:
                total = jose.add_points(jwk.curve, total, power) if total else power
            power = jose.add_points(jwk.curve, power, power)
            scalar >>= 1
        return PublicJwk(curve=jwk.curve, point=total, use=KeyUse.EXCHANGE)


class Tang:
    """Keys and what a good server answers; ``answer`` can be replaced by what a bad one does."""

    def __init__(self, curve=Curve.P521):
        self.curve = curve
        self.signing, self.exchange = [Pair(KeyUse.SIGN, curve)], [Pair(KeyUse.EXCHANGE, curve)]
        self.retired = []
        self.asked = []
        self.answer = self.honest
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.tls = None
        self.blurt = b""  # said before anything was asked
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def rotate(self):
        self.retired += [*self.signing, *self.exchange]
        self.signing, self.exchange = [Pair(KeyUse.SIGN, self.curve)], [Pair(KeyUse.EXCHANGE, self.curve)]

    def advertise(self, *, also=()):
        keys = [*self.signing, *self.exchange]
        payload = jose.encode_base64url(jose.encode_json({"keys": [key.jwk.describe() for key in keys]}))
        signatures = [key.sign(payload) for key in (*self.signing, *also)]
        return jose.encode_json({"payload": payload, "signatures": signatures})

    def recover(self, thumbprint, body):
        for key in (*self.exchange, *self.retired):
            if thumbprint in (key.thumbprint, key.jwk.old_thumbprint()) and key.jwk.use is KeyUse.EXCHANGE:
                return 200, jose.encode_json(key.multiply(jose.parse_jwk(json.loads(body))).describe())
        return 404, b""

    def decide(self, method, path, body):
        """Return status and body as tangd does."""
        if method == "POST":
            return self.recover(path.removeprefix("/rec/"), body)
        wanted = path.removeprefix("/adv").removeprefix("/")
        vouching = [key for key in self.retired if key.thumbprint == wanted and key.jwk.use is KeyUse.SIGN]
        if wanted and not vouching and wanted not in [key.thumbprint for key in self.signing]:
            return 404, b""
        return 200, self.advertise(also=vouching)

    def honest(self, connection, method, path, body):
        status, answer = self.decide(method, path, body)
        connection.sendall(head(status, len(answer)) + answer)

    def serve(self):
        while not self.closing.is_set():
            connection, _ = self.listener.accept()
            with contextlib.suppress(OSError), connection:
                if self.closing.is_set():
                    return
                connection.settimeout(5)
                if self.blurt:
                    connection.sendall(self.blurt)
                    connection.recv(4096)
                    continue
                wrapped = self.tls.wrap_socket(connection, server_side=True) if self.tls else connection
                with wrapped:
                    question = read_question(wrapped)
                    self.asked.append(question)
                    self.answer(wrapped, *question)

    def close(self):
        self.closing.set()
        with socket.create_connection(("127.0.0.1", self.port)):
            pass
        self.thread.join()
        self.listener.close()

    def unlocker(self, **options):
        return TangUnlocker(self.url, thumbprint=self.signing[0].thumbprint, **{"timeout_s": 5.0, **options})


def head(status, length):
    return f"HTTP/1.1 {status} Words\r\nContent-Length: {length}\r\n\r\n".encode()


def read_question(connection):
    stream = connection.makefile("rb")
    method, path, _ = stream.readline().decode().split()
    length = 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode().partition(": ")
        if name == "Content-Length":
            length = int(value)
    return method, path, stream.read(length)


@pytest.fixture
def server():
    with contextlib.closing(Tang(Curve.P256)) as server:
        yield server


def refusal(call, *arguments):
    with pytest.raises(TidegateError) as caught:
        call(*arguments)
    return caught.value.code


# -- as it should be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", Curve)
def test_slot_opens(curve):
    with contextlib.closing(Tang(curve)) as server:
        unlocker = server.unlocker()
        slot = unlocker.wrap(Secret(SECRET), b"vault 1")
        assert set(slot) == {"jwe"}
        assert bytes(unlocker.unwrap(slot, b"vault 1").view()) == SECRET
        assert [(method, path) for method, path, _ in server.asked] == [
            ("GET", "/adv"),
            ("POST", f"/rec/{server.exchange[0].thumbprint}"),
        ]


def test_kind_and_anchor(server):
    assert server.unlocker().kind == "tang"
    assert server.unlocker().anchor(b"vault 1") is None


def test_the_server_sees_another_point_each_time(server):
    """Neither the slot's key nor anything that repeats: it cannot tell which slot, or whether the same."""
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), b"")
    for _ in range(3):
        unlocker.unwrap(slot, b"")
    points = [jose.parse_jwk(json.loads(body)).point for method, _, body in server.asked if method == "POST"]
    assert len(set(points)) == 3
    assert jose.parse_compact(slot["jwe"]).ephemeral.point not in points


def test_two_slots_of_one_secret_have_nothing_in_common_but_the_server(server):
    unlocker = server.unlocker()
    first, second = (jose.parse_compact(unlocker.wrap(Secret(SECRET), b"")["jwe"]) for _ in range(2))
    assert first.ephemeral != second.ephemeral
    assert first.nonce != second.nonce
    assert first.sealed != second.sealed


def test_advertisement_shows_thumbprints(server):
    server.signing.append(Pair(KeyUse.SIGN))
    assert fetch_advertisement(server.url).thumbprints == tuple(key.thumbprint for key in server.signing)


def test_any_signing_key_can_be_the_trusted_one(server):
    server.signing.append(Pair(KeyUse.SIGN))
    unlocker = TangUnlocker(server.url, thumbprint=server.signing[1].thumbprint)
    assert bytes(unlocker.unwrap(unlocker.wrap(Secret(SECRET), b""), b"").view()) == SECRET


def test_path_of_the_url_comes_first(server):
    server.decide = lambda *question, decide=server.decide: decide(
        question[0], question[1].removeprefix("/keys"), *question[2:]
    )
    unlocker = TangUnlocker(f"{server.url}/keys/", thumbprint=server.signing[0].thumbprint)
    unlocker.unwrap(unlocker.wrap(Secret(SECRET), b""), b"")
    assert [path.split("/")[1] for _, path, _ in server.asked] == ["keys", "keys"]


def test_chunked_answers_are_answers(server):
    def chunked(connection, *question):
        _, body = server.decide(*question)
        pieces = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:100], body[100:]))
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")

    server.answer = chunked
    assert fetch_advertisement(server.url).thumbprints == (server.signing[0].thumbprint,)


def test_slots_with_an_old_thumbprint_open(server):
    """Slots of an older clevis name the server's key by SHA-1."""
    unlocker = server.unlocker()
    jwe = jose.parse_compact(unlocker.wrap(Secret(SECRET), b"")["jwe"])
    header = jose.parse_json(jose.parse_base64url(jwe.header.decode()))
    del header["tidegate"]
    header["kid"] = jwe.recipient.old_thumbprint()
    assert bytes(unlocker.open_foreign(seal_again(header, server.exchange[0], jwe)).view()) == SECRET
    assert server.asked[-1][1] == f"/rec/{header['kid']}"


def seal_again(header, key, jwe):
    """Return the secret under the slot's key and another header, as another writer would have written it."""
    protected = jose.encode_base64url(jose.encode_json(header))
    shared = bytearray(key.private.exchange(ec.ECDH(), jwe.ephemeral.public_key()))
    sealed = jose.AESGCM(jose.derive_key(shared).view()).encrypt(jwe.nonce, SECRET, protected.encode())
    parts = (jwe.nonce, sealed[:-16], sealed[-16:])
    return ".".join([protected, "", *map(jose.encode_base64url, parts)])


# -- rotation ---------------------------------------------------------------------------------------------------------


def test_after_rotation_old_slots_open_and_new_ones_use_the_new_key(server):
    unlocker = server.unlocker()
    old = unlocker.wrap(Secret(SECRET), b"")
    server.rotate()
    assert bytes(unlocker.unwrap(old, b"").view()) == SECRET
    assert refusal(unlocker.wrap, Secret(SECRET), b"") == "vault.tang.untrusted"
    assert unlocker.follow_rotation(old) == (server.signing[0].thumbprint,)
    new = server.unlocker().wrap(Secret(SECRET), b"")
    assert jose.parse_compact(new["jwe"]).key_id == server.exchange[0].thumbprint
    server.retired.clear()
    assert bytes(server.unlocker().unwrap(new, b"").view()) == SECRET
    assert refusal(unlocker.unwrap, old, b"") == "vault.tang.key-gone"
    assert refusal(unlocker.follow_rotation, old) == "vault.tang.untrusted"


def test_rotation_is_followed_only_where_the_trusted_key_signs(server):
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), b"")
    server.rotate()

    def leave_out(connection, *question):
        body = server.advertise()
        connection.sendall(head(200, len(body)) + body)

    server.answer = leave_out
    assert refusal(unlocker.follow_rotation, slot) == "vault.tang.signature"


def test_rotation_is_not_followed_from_a_key_that_was_never_trusted(server):
    slot = server.unlocker().wrap(Secret(SECRET), b"")
    stranger = TangUnlocker(server.url, thumbprint=NOBODY)
    assert refusal(stranger.follow_rotation, slot) == "vault.tang.slot"


# -- another server ---------------------------------------------------------------------------------------------------


def test_a_server_in_the_other_s_place(server):
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), b"")
    server.signing, server.exchange = [Pair(KeyUse.SIGN)], [Pair(KeyUse.EXCHANGE)]
    assert refusal(unlocker.wrap, Secret(SECRET), b"") == "vault.tang.untrusted"
    assert refusal(unlocker.unwrap, slot, b"") == "vault.tang.key-gone"


def test_a_key_slipped_into_the_advertisement(server):
    mine = Pair(KeyUse.EXCHANGE)

    def slip(connection, *question):
        document = json.loads(server.advertise())
        keys = jose.parse_json(jose.parse_base64url(document["payload"]))["keys"]
        document["payload"] = jose.encode_base64url(jose.encode_json({"keys": [mine.jwk.describe(), *keys]}))
        body = jose.encode_json(document)
        connection.sendall(head(200, len(body)) + body)

    server.answer = slip
    assert refusal(server.unlocker().wrap, Secret(SECRET), b"") == "vault.tang.signature"


@pytest.mark.parametrize("curve", Curve)
def test_a_man_in_the_middle_alters_the_recovered_point(curve):
    """Another point, twice the right one, the question itself, the server's key, the slot's: no tag holds."""
    with contextlib.closing(Tang(curve)) as server:
        unlocker = server.unlocker()
        slot = unlocker.wrap(Secret(SECRET), b"")

        for alter in (
            lambda _, __: Pair(KeyUse.EXCHANGE, curve).jwk,
            lambda answer, _: double(answer),
            lambda _, question: question,
            lambda _, __: server.exchange[0].jwk,
            lambda _, __: jose.parse_compact(slot["jwe"]).ephemeral,
        ):

            def middle(connection, method, path, body, alter=alter):
                honest = jose.parse_jwk(json.loads(server.decide(method, path, body)[1]))
                answer = jose.encode_json(alter(honest, jose.parse_jwk(json.loads(body))).describe())
                connection.sendall(head(200, len(answer)) + answer)

            server.answer = middle
            assert refusal(unlocker.unwrap, slot, b"") == "vault.tang.refused"
        server.answer = server.honest
        assert bytes(unlocker.unwrap(slot, b"").view()) == SECRET


def double(jwk):
    return PublicJwk(curve=jwk.curve, point=jose.add_points(jwk.curve, jwk.point, jwk.point), use=jwk.use)


def test_the_negative_of_the_right_answer_is_the_same_secret(server):
    """Only x counts: whoever negates the point on the way has altered nothing."""
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), b"")

    def middle(connection, *question):
        right = jose.parse_jwk(json.loads(server.decide(*question)[1]))
        x, y = right.point
        negative = PublicJwk(curve=right.curve, point=(x, right.curve.prime - y), use=right.use)
        answer = jose.encode_json(negative.describe())
        connection.sendall(head(200, len(answer)) + answer)

    server.answer = middle
    assert bytes(unlocker.unwrap(slot, b"").view()) == SECRET


def test_an_old_answer_replayed(server):
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), b"")
    kept = []

    def record(connection, *question):
        kept.append(server.decide(*question)[1])
        connection.sendall(head(200, len(kept[0])) + kept[0])

    server.answer = record
    assert bytes(unlocker.unwrap(slot, b"").view()) == SECRET
    assert refusal(unlocker.unwrap, slot, b"") == "vault.tang.refused"


# -- slots ------------------------------------------------------------------------------------------------------------


def test_slot_of_another_vault_is_refused_before_anybody_is_asked(server):
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), b"vault 1")
    asked = len(server.asked)
    assert refusal(unlocker.unwrap, slot, b"vault 2") == "vault.tang.refused"
    assert len(server.asked) == asked


def test_context_written_over_is_refused(server):
    unlocker = server.unlocker()
    one, two = (jose.parse_compact(unlocker.wrap(Secret(SECRET), context)["jwe"]) for context in (b"1", b"2"))
    header = jose.parse_json(jose.parse_base64url(one.header.decode()))
    header["tidegate"]["context"] = jose.encode_base64url(two.context_hash)
    parts = (one.nonce, one.sealed[:-16], one.sealed[-16:])
    text = ".".join(map(jose.encode_base64url, (jose.encode_json(header), b"", *parts)))
    assert refusal(unlocker.unwrap, {"jwe": text}, b"2") == "vault.tang.refused"


def test_slot_of_clevis_is_bound_to_nothing_and_says_so(server):
    unlocker = server.unlocker()
    jwe = jose.parse_compact(unlocker.wrap(Secret(SECRET), b"")["jwe"])
    header = jose.parse_json(jose.parse_base64url(jwe.header.decode()))
    del header["tidegate"]
    text = seal_again(header, server.exchange[0], jwe)
    assert refusal(unlocker.unwrap, {"jwe": text}, b"") == "vault.tang.slot"
    assert bytes(unlocker.open_foreign(text).view()) == SECRET


@pytest.mark.parametrize("slot", [{}, {"jwe": b"a.b.c.d.e"}, {"jwe": ""}, {"jwe": "a..b.c.d"}, {"jwe": "x", "more": 1}])
def test_malformed_slots(server, slot):
    assert refusal(server.unlocker().unwrap, slot, b"") == "vault.tang.slot"
    assert server.asked == []


def test_the_url_in_a_slot_is_never_followed(server):
    """A slot that names another server makes nobody connect there."""
    with contextlib.closing(Tang(Curve.P256)) as other:
        slot = server.unlocker().wrap(Secret(SECRET), b"")
        assert jose.parse_compact(slot["jwe"]).url == server.url
        unlocker = TangUnlocker(other.url, thumbprint=other.signing[0].thumbprint)
        asked = len(server.asked)
        assert refusal(unlocker.unwrap, slot, b"") == "vault.tang.key-gone"
        assert len(server.asked) == asked
        assert len(other.asked) == 1


# -- answers ----------------------------------------------------------------------------------------------------------

BIG = tang.MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 60_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",  # ends early
        b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (BIG + 1),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 150 + b"\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffff\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nwide\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-12\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",  # ends early
        b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/adv\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 Nothing\r\n\r\n",
        b"HTTP/1.1 401 Who\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 9999 OK\r\n\r\n{}",
        b"HTTP/1.1 abc OK\r\n\r\n{}",
        b"HTTP/9.9 200 OK\r\n\r\n{}",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        bytes(range(256)),
        b"\n\n\n\n",
    ],
    ids=range(25),
)
@pytest.mark.parametrize("what", ["adv", "rec"])
def test_answers_that_are_none(server, raw, what):
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), b"")
    server.answer = lambda connection, *_: connection.sendall(raw)
    code = refusal(fetch_advertisement, server.url) if what == "adv" else refusal(unlocker.unwrap, slot, b"")
    assert code == "vault.tang.answer"
    assert len(server.asked) == 2  # nothing was followed, nothing repeated


@pytest.mark.parametrize(("status", "missing"), [(201, 0), (206, 0), (302, 0), (403, 0), (200, 1)])
def test_right_words_in_the_wrong_answer(server, status, missing):
    """A good advertisement under another status, or shorter than announced."""
    body = server.advertise()
    server.answer = lambda connection, *_: connection.sendall(head(status, len(body) + missing) + body)
    assert refusal(fetch_advertisement, server.url) == "vault.tang.answer"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"kty": "RSA"},
        Pair(KeyUse.EXCHANGE, Curve.P384).jwk.describe(),  # another curve than the slot's
        {**Pair(KeyUse.EXCHANGE, Curve.P256).jwk.describe(), "y": "A" * 43},  # off the curve
        {**Pair(KeyUse.EXCHANGE, Curve.P256).jwk.describe(), "d": "A" * 43},
        {**Pair(KeyUse.EXCHANGE, Curve.P256).jwk.describe(), "x": jose.encode_base64url(bytes(32))},
    ],
    ids=range(6),
)
def test_recovered_keys_that_are_none(server, answer):
    unlocker = server.unlocker()
    slot = unlocker.wrap(Secret(SECRET), b"")
    body = jose.encode_json(answer)
    server.answer = lambda connection, *_: connection.sendall(head(200, len(body)) + body)
    assert refusal(unlocker.unwrap, slot, b"") == "vault.tang.answer"


@pytest.mark.parametrize(
    "raw", [b"", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 500 Oh\r\n\r\nwords"]
)
def test_a_server_out_of_order(server, raw):
    server.answer = lambda connection, *_: connection.sendall(raw)
    assert refusal(fetch_advertisement, server.url) == "vault.tang.unreachable"


def test_no_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    started = time.monotonic()
    assert refusal(fetch_advertisement, f"http://127.0.0.1:{port}") == "vault.tang.unreachable"
    assert time.monotonic() - started < 2


# -- time -------------------------------------------------------------------------------------------------------------


def drip(connection, *_):
    """A byte now and then, for ever: each single wait is short."""
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        for _ in range(100):
            connection.sendall(b"{")
            time.sleep(0.05)


def drip_head(connection, *_):
    with contextlib.suppress(OSError):
        for _ in range(100):
            connection.sendall(b"H")
            time.sleep(0.05)


def say_nothing(connection, *_):
    with contextlib.suppress(OSError):
        connection.recv(1)


@pytest.mark.parametrize("answer", [drip, drip_head, say_nothing])
def test_the_time_limit_holds_for_the_whole_answer(server, answer):
    slot = server.unlocker().wrap(Secret(SECRET), b"")
    server.answer = answer
    started = time.monotonic()
    assert refusal(server.unlocker(timeout_s=SHORT_S).unwrap, slot, b"") == "vault.tang.slow"
    assert SHORT_S <= time.monotonic() - started < SHORT_S + 3


@pytest.fixture
def hole():
    """An address at which connections hang: nobody accepts, and the queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        time.sleep(0.1)
        yield listener.getsockname()


def test_a_server_that_takes_no_connection(hole):
    started = time.monotonic()
    with pytest.raises(TidegateError) as caught:
        fetch_advertisement(f"http://127.0.0.1:{hole[1]}", timeout_s=SHORT_S)
    assert caught.value.code == "vault.tang.unreachable"
    assert SHORT_S <= time.monotonic() - started < SHORT_S + 3


def test_a_name_that_is_not_resolved_in_time(monkeypatch):
    """The C library waits for name servers as long as it likes; we do not."""
    released = threading.Event()

    def hang(*_, **__):
        released.wait(10)
        raise OSError("never mind")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    with pytest.raises(TidegateError) as caught:
        fetch_advertisement("http://tang.invalid", timeout_s=SHORT_S)
    released.set()
    assert caught.value.code == "vault.tang.unreachable"
    assert SHORT_S <= time.monotonic() - started < SHORT_S + 3


@pytest.mark.parametrize(
    "found", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long"), []]
)
def test_a_name_that_is_none(monkeypatch, found):
    def look_up(*_, **__):
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert refusal(fetch_advertisement, "http://tang.invalid") == "vault.tang.unreachable"


def test_the_next_address_is_tried(server, hole, monkeypatch):
    """The first one hangs, the second takes no connection: a share of the time each, the rest is for the third."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()
    places = (hole, dead, ("127.0.0.1", server.port))
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert fetch_advertisement(f"http://tang.test:{server.port}", timeout_s=3.0).thumbprints


def test_no_more_addresses_are_tried_than_eight(server, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in (dead,) * 8 + (("127.0.0.1", server.port),)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert refusal(fetch_advertisement, f"http://tang.test:{server.port}") == "vault.tang.unreachable"


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "tang.test",
        "ftp://tang.test",
        "file:///etc/passwd",
        "http://",
        "http://:80",
        "http://user:word@tang.test",
        "http://@tang.test",
        "http://tang.test/?a=b",
        "http://tang.test/#a",
        "http://tang.test:port",
        "http://tang.test:70000",
        "http://tang.test/a b",
        "http://tang.test/a\r\nX: y",
        "http://tang.test\r\nX: y",
        "http://tang.test/../adv",
        "http://tang.test/a/./b",
        "http://tang.test/?",
        "http://tang.test#",
        "http://tang.test\\@other",
        "http://tang.test/%2e%2e",
        "http://tang.test//x",
        "http://täng.test",
        "http://[::1",
    ],
)
def test_urls_refused(url):
    assert refusal(fetch_advertisement, url) == "vault.tang.setting"


@pytest.mark.parametrize(
    "thumbprint", ["", "A" * 42, "A" * 44, "A" * 27, "A" * 42 + "=", "A" * 42 + "/", "A" * 43 + "\n"]
)
def test_thumbprints_refused(thumbprint):
    with pytest.raises(TidegateError) as caught:
        TangUnlocker("http://tang.test", thumbprint=thumbprint)
    assert caught.value.code == "vault.tang.setting"


@pytest.mark.parametrize("timeout_s", [0, -1, 301, float("nan"), float("inf")])
def test_time_limits_refused(timeout_s):
    with pytest.raises(TidegateError) as caught:
        TangUnlocker("http://tang.test", thumbprint=NOBODY, timeout_s=timeout_s)
    assert caught.value.code == "vault.tang.setting"


def test_proxies_of_the_environment_are_not_used(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch_advertisement(server.url).thumbprints


# -- https ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for 127.0.0.1, its key beside it in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tang")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    words = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(words + made.public_bytes(Encoding.PEM))
    return path


@pytest.fixture
def secure(server, certificate):
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(certificate)
    return server


def test_https(secure, certificate):
    trust = ssl.create_default_context(cafile=certificate)
    url = f"https://localhost:{secure.port}"
    unlocker = TangUnlocker(url, thumbprint=secure.signing[0].thumbprint, tls=trust)
    assert bytes(unlocker.unwrap(unlocker.wrap(Secret(SECRET), b""), b"").view()) == SECRET


def test_https_of_an_unknown_authority(secure):
    assert refusal(fetch_advertisement, f"https://localhost:{secure.port}") == "vault.tang.certificate"


def test_https_for_another_name(secure, certificate):
    trust = ssl.create_default_context(cafile=certificate)
    with pytest.raises(TidegateError) as caught:
        fetch_advertisement(f"https://127.0.0.1:{secure.port}", tls=trust)
    assert caught.value.code == "vault.tang.certificate"


def test_https_at_a_server_that_speaks_something_else(server):
    server.blurt = b"220 mail.test ESMTP\r\n"
    assert refusal(fetch_advertisement, f"https://localhost:{server.port}") == "vault.tang.unreachable"


def test_https_at_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = time.monotonic()
        with pytest.raises(TidegateError) as caught:
            fetch_advertisement(f"https://127.0.0.1:{listener.getsockname()[1]}", timeout_s=SHORT_S)
        assert caught.value.code == "vault.tang.slow"
        assert SHORT_S <= time.monotonic() - started < SHORT_S + 3
