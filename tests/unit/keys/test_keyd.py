"""The key process as a real process: grants, hostile clients, crashes of its worker, restarts."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.errors import (
    KeydConfigInvalid,
    KeydUnreachable,
    KeyMissing,
    PinMissing,
    PinRefused,
    TokenMissing,
)
from tidegate.keys.keyd import Keyd, listen, serve
from tidegate.keys.keyd_grants import Grant, Grants, Limits, Peer, parse_config
from tidegate.keys.keyd_harden import become, harden
from tidegate.keys.keyd_wire import (
    MAX_MESSAGE_BYTES,
    Operation,
    Request,
    encode_answer,
    encode_error,
    encode_request,
    frame,
    parse_head,
    parse_reply,
    parse_request,
)
from tidegate.keys.keyd_worker import Worker, hold_pins
from tidegate.keys.remote import RemoteKeyStore
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec, Quote
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.keystores import KeyStoreConformance, in_threads
from tidegate.testing.swtpm import SwTpm
from tidegate.testing.tokens import SoftHsm

P256 = KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256)
EVERYTHING = [operation.value for operation in Operation if operation is not Operation.CAPABILITIES]
NOBODY = 65534


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


class Room:
    """A key process with a store behind it."""

    def __init__(self, root, uri=None) -> None:
        self.root = root
        root.chmod(0o755)
        self.socket = root / "keyd.sock"
        self.log = root / "keyd.log"
        self.config = root / "keyd.toml"
        self.process = None
        if uri is None:
            secret = root / "secret"
            secret.write_bytes(bytes(range(32)))
            secret.chmod(0o600)
            SoftwareKeyStore.create(root / "store", DeviceSecretUnlock(secret))
            uri = f"file:{root}/store?device-secret={secret}"
        self.uri = uri
        self.grant(user=os.getuid(), keys=["*"], operations=EVERYTHING)

    def grant(self, *grants, limits=(), mode=0o666, **first):
        lines = ["[keyd]", f'socket = "{self.socket}"', f"store = {json.dumps(self.uri)}", f"mode = 0o{mode:o}"]
        lines += ["[limits]", *(f"{name} = {value}" for name, value in dict(limits).items())]
        for grant in (first, *grants) if first else grants:
            lines += ["[[grant]]", *(f"{name} = {json.dumps(value)}" for name, value in grant.items())]
        self.config.write_text("\n".join(lines) + "\n")
        self.config.chmod(0o644)

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tidegate.keys.keyd", str(self.config)], stderr=log, stdin=subprocess.DEVNULL
            )
        before = len(self.events("keyd.ready"))
        deadline = time.monotonic() + 15
        while len(self.events("keyd.ready")) == before or not self.socket.exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        return self

    def stop(self, number=signal.SIGTERM):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=10)

    def events(self, event):
        if not self.log.exists():
            return []
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [record for record in map(json.loads, lines) if record["event"] == event]

    def store(self):
        return RemoteKeyStore(self.socket)

    def worker(self):
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for path in children for pid in path.read_text().split()]


@pytest.fixture
def reachable():
    """A folder that other users get to, with a name short enough for a socket's address."""
    folder = Path(tempfile.mkdtemp(prefix="tidegate-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def room(reachable):
    room = Room(reachable)
    yield room
    room.stop()


class TestConformance(KeyStoreConformance):
    """The same suite as for every provider, through the socket."""

    @pytest.fixture(autouse=True)
    def _room(self, reachable):
        self.room = Room(reachable).start()
        yield
        self.room.stop()

    def make_store(self):
        return self.room.store()

    def reopen(self, store):
        return self.room.store()


class TestConformanceOverTpm(KeyStoreConformance):
    """A TPM without a resource manager, with the PIN of a key known to the key process."""

    @pytest.fixture(autouse=True)
    def _room(self, reachable):
        with SwTpm(reachable / "tpm") as tpm:
            pin = reachable / "pin"
            pin.write_bytes(b"first pin 1")
            pin.chmod(0o600)
            uri = f"tpm2:{reachable}/store?tcti={tpm.tcti}&key-pin-source={pin}"
            open_store(parse_key_uri(uri), create=True).close()
            self.room = Room(reachable, uri).start()
            yield
            self.room.stop()

    def make_store(self):
        return self.room.store()

    def reopen(self, store):
        return self.room.store()

    def test_a_key_with_its_own_pin(self):
        spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256.algorithm, policy=KeyPolicy(user_auth=True))
        info = self.room.store().generate("own-pin", spec)
        info.public_key.verify(self.room.store().sign("own-pin", b"m"), b"m")


class TestConformanceOverSoftHsm(KeyStoreConformance):
    """A module that crashes when threads use it, behind the process that does not let them."""

    @pytest.fixture(autouse=True)
    def _room(self, reachable):
        with SoftHsm(reachable / "hsm") as hsm:
            pin = hsm.make_token("device")
            uri = f"pkcs11:token=device?module-path={hsm.module}&pin-source={pin}"
            self.room = Room(reachable, uri).start()
            yield
            self.room.stop()

    def make_store(self):
        return self.room.store()

    def reopen(self, store):
        return self.room.store()


def test_a_wrong_pin_is_tried_once(reachable):
    """A worker that is started again and again must not lock the token."""
    with SoftHsm(reachable / "hsm") as hsm:
        hsm.make_token("device")
        pin = hsm.write_pin("wrong", "111111")
        events = []
        uri, pins = hold_pins(hsm.uri("device", pin_source=pin))
        pin.unlink()
        worker = Worker(uri, pins, within_s=20, report=events.append)
        started = []
        for _ in range(3):
            assert code_of(worker.start) in {"keys.pin.refused", "keys.pin.locked"}
            started.append(worker._child)
        assert code_of(worker.call, b"x") in {"keys.pin.refused", "keys.pin.locked"}
        assert started == [None] * 3
        assert worker._refusal is not None
        for descriptor in pins:
            os.close(descriptor)


def test_a_worker_gets_its_pin_only_after_it_hardened_itself(reachable, monkeypatch):
    """What it inherited would stand in /proc/PID/fd for its user's other processes for as long as Python starts."""
    words = reachable / "words"
    words.write_bytes(b"correct horse")
    words.chmod(0o600)
    text = f"file:{reachable}/words-store?passphrase-file={words}"
    open_store(parse_key_uri(text), create=True)
    inherited = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **named) -> None:
            inherited.extend(named["pass_fds"])
            super().__init__(*arguments, **named)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    uri, pins = hold_pins(parse_key_uri(text))
    worker = Worker(uri, pins, within_s=20, report=lambda *_, **__: None)
    worker.start()
    assert inherited
    assert not set(inherited) & set(pins)
    worker.stop()
    for descriptor in pins:
        os.close(descriptor)


def test_the_key_process_is_hardened_before_it_reads_a_pin(room, monkeypatch):
    order = []

    def read(_):
        order.append("pins")
        raise PinMissing("enough")

    monkeypatch.setattr("tidegate.keys.keyd.harden", lambda: order.append("hardened"))
    monkeypatch.setattr("tidegate.keys.keyd.hold_pins", read)
    assert code_of(serve, room.config, lambda *_, **__: None) == "keys.pin.missing"
    assert order == ["hardened", "pins"]


# ---- grants ----------------------------------------------------------------------------------------------


def as_user(uid, work, gids=()):
    """Return what ``work`` returned in a child that is another user."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            os.setgroups(gids)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            try:
                answer = work()
            except TidegateError as error:
                answer = error.code
            os.write(write_end, str(answer).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return answer


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")

ACTIONS = {
    "public": lambda store, name: store.public_key(name).algorithm.label,
    "sign": lambda store, name: len(store.sign(name, b"m")),
    "seal": lambda store, name: len(store.seal(name, b"m", b"")),
    "unseal": lambda store, name: store.unseal(name, bytes(64), b""),
    "counter-read": lambda store, name: store.counter_read(name),
    "counter-increment": lambda store, name: store.counter_increment(name),
    "quote": lambda store, name: store.quote(name, bytes(16), frozenset({0})),
    "certificates": lambda store, name: store.certificates(name),
    "keep-certificates": lambda store, name: store.keep_certificates(name, [b"c"]),
    "generate": lambda store, name: store.generate(name, P256),
    "export": lambda store, name: store.export_key(name),
    "import": lambda store, name: store.import_key(name, b"", P256),
    "destroy": lambda store, name: store.destroy(name),
    "list": lambda store, name: [info.name for info in store.list_keys()],
    "random": lambda store, name: len(store.random(8)),
}


@pytest.mark.root
@needs_root
def test_every_operation_of_another_user_needs_its_grant(room):
    """Default deny, per key and operation; who is granted nothing is told nothing."""
    room.grant(
        {"user": NOBODY, "keys": ["box", "net-*"], "operations": ["public"]},
        user=os.getuid(),
        keys=["*"],
        operations=EVERYTHING,
    )
    room.start()
    for name in ("net-a", "other"):
        room.store().generate(name, P256)
    room.store().generate("box", KeySpec(purpose=KeyPurpose.SEAL))
    for operation, action in ACTIONS.items():
        for name in ("net-a", "box", "other", "there-is-none"):
            answer = as_user(NOBODY, lambda action=action, name=name: action(room.store(), name))
            if operation == "public" and name in {"net-a", "box"}:
                assert answer == ("ecdsa-p256" if name == "net-a" else "keys.key.purpose")
            else:
                assert answer == "keys.grant.refused", (operation, name)
    assert as_user(NOBODY - 1, room.store) == "keys.grant.refused"
    refused = room.events("keyd.refused")
    assert {"uid", "pid", "code", "request", "time_s", "event"} == set(refused[0])
    assert len([record for record in refused if record["uid"] == NOBODY]) == len(ACTIONS) * 4 - 2
    assert [record["request"] for record in refused if record["uid"] == NOBODY - 1] == [None]


@pytest.mark.root
@needs_root
def test_a_grant_gives_what_it_says_and_the_list_shows_no_more(room):
    room.grant(
        {"user": NOBODY, "keys": ["net-*"], "operations": ["sign", "list", "random"]},
        {"group": 4711, "keys": ["net-*"], "operations": ["certificates"]},
        user=os.getuid(),
        keys=["*"],
        operations=EVERYTHING,
    )
    room.start()
    for name in ("net-a", "net-b", "other"):
        room.store().generate(name, P256)

    def ask(operation, name, gids=()):
        return as_user(NOBODY, lambda: ACTIONS[operation](room.store(), name), gids)

    assert ask("list", "") == "['net-a', 'net-b']"
    assert ask("random", "") == "8"
    assert ask("sign", "net-a") == "64"
    assert ask("public", "net-b") == "ecdsa-p256", "who may sign may know with what"
    assert ask("sign", "other") == "keys.grant.refused"
    assert ask("certificates", "net-a") == "keys.grant.refused"
    assert ask("certificates", "net-a", gids=[4711]) == "()"
    for operation in ("generate", "export", "import", "destroy"):
        assert ask(operation, "net-a") == "keys.grant.refused"


@pytest.mark.root
@needs_root
def test_it_serves_as_another_user(room, reachable):
    """Started by root it becomes the user of its file; the secret was read before."""
    if as_user(NOBODY, lambda: os.access(Path(sys.executable).resolve(), os.X_OK)) != "True":
        pytest.skip("this interpreter stands where no other user gets to")
    words = reachable / "words"
    words.write_bytes(b"correct horse")
    words.chmod(0o600)
    uri = f"file:{reachable}/words-store?passphrase-file={words}"
    open_store(parse_key_uri(uri), create=True).generate("a", P256)
    for path in (reachable / "words-store", *(reachable / "words-store").iterdir()):
        os.chown(path, NOBODY, NOBODY)
    room.uri = uri
    room.grant(user=os.getuid(), keys=["*"], operations=["sign"])
    room.config.write_text(room.config.read_text().replace("[keyd]", '[keyd]\nuser = "nobody"'))
    room.start()
    assert room.store().public_key("a")
    for pid in (room.process.pid, *room.worker()):
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
        assert "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status
        assert "Max core file size        0                    0" in Path(f"/proc/{pid}/limits").read_text()
        assert Path(f"/proc/{pid}/mem").stat().st_uid == 0, "not dumpable: not even its own user may look"


@pytest.mark.root
@needs_root
def test_what_a_process_with_keys_gives_up():
    def give_up():
        become(NOBODY, NOBODY)
        harden()
        looks = Path("/proc/self/status").read_text()
        with pytest.raises(TidegateError):
            become(0, 0)
        return [
            f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in looks,
            "NoNewPrivs:\t1" in looks,
            "CapEff:\t0000000000000000" in looks,
            "Groups:\t \n" in looks,
            resource.getrlimit(resource.RLIMIT_CORE) == (0, 0),
            Path("/proc/self/mem").stat().st_uid == 0,  # not dumpable: not even its own user may look
        ]

    assert as_user(0, give_up) == str([True] * 6)


# ---- the file --------------------------------------------------------------------------------------------

GOOD = """[keyd]
socket = "/run/x"
store = "file:/y"

[[grant]]
user = "root"
keys = ["a"]
operations = ["sign"]

[[grant]]
group = 7
keys = ["b-*", "*"]
operations = ["list"]
"""


def parse(text):
    users = {"root": 0}
    return parse_config(text.encode(), name="keyd.toml", uid_of=users.__getitem__, gid_of=users.__getitem__)


def test_the_file():
    config, grants = parse(GOOD)
    assert (config.keyd.socket, config.keyd.mode) == ("/run/x", 0o660)
    root, member = Peer(pid=1, uid=0, gids=frozenset({0})), Peer(pid=1, uid=9, gids=frozenset({9, 7}))
    grants.require(root, Request(operation=Operation.SIGN, name="a", arguments=(b"",)))
    grants.require(member, Request(operation=Operation.LIST, name="", arguments=()))
    for peer, operation, name in (
        (root, Operation.SIGN, "b"),
        (root, Operation.SEAL, "a"),
        (member, Operation.SIGN, "a"),
        (Peer(pid=1, uid=9, gids=frozenset()), Operation.LIST, ""),
        (Peer(pid=1, uid=7, gids=frozenset()), Operation.LIST, ""),
        (Peer(pid=1, uid=9, gids=frozenset()), Operation.CAPABILITIES, ""),
    ):
        request = Request(operation=operation, name=name, arguments=())
        assert code_of(grants.require, peer, request) == "keys.grant.refused"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('store = "file:/y"', 'store = "file:/y"\nstoer = 1', 4),
        ('socket = "/run/x"', "socket = 7", 2),
        ('operations = ["sign"]', 'operations = ["sing"]', 8),
        ('keys = ["b-*", "*"]', 'key = ["b-*"]\nkeys = ["*"]', 12),
        ('user = "root"', 'user = "nobody-here"', 5),
        ("group = 7", 'group = 7\nuser = "root"', 10),
        ("group = 7\n", "", 10),
        ('keys = ["a"]', 'keys = ["a*b"]', 5),
        ('keys = ["a"]', 'keys = ["../a"]', 5),
        ("[[grant]]\nuser", "[grants]\nx = 1\n[[grant]]\nuser", 5),
        ("[keyd]", "[limits]\nclients = 0\n[keyd]", 2),
    ],
)
def test_a_file_with_a_mistake(old, new, line):
    with pytest.raises(Rejected) as caught:
        parse(GOOD.replace(old, new, 1))
    assert (caught.value.code, caught.value.fields.get("line")) == ("keys.keyd.config", line)


@pytest.mark.parametrize("text", ["", "\xff", "[keyd", "[[grant]]", GOOD + "#" * 70_000])
def test_a_file_that_is_none(text):
    assert code_of(parse, text) == "keys.keyd.config"


def run_to_the_end(room):
    return subprocess.run(
        [sys.executable, "-m", "tidegate.keys.keyd", str(room.config)], capture_output=True, timeout=20, check=False
    )


def test_a_file_that_others_may_write(room):
    room.config.chmod(0o666)
    done = run_to_the_end(room)
    assert done.returncode == 3
    assert json.loads(done.stderr)["code"] == "base.permissions.unsafe"


def test_it_does_not_start_without_its_store(room):
    (room.root / "secret").write_bytes(bytes(32))
    done = run_to_the_end(room)
    assert (done.returncode, json.loads(done.stderr)["code"]) == (3, "keys.unlock.refused")
    assert not room.socket.exists()


def test_two_at_one_socket(room):
    room.start()
    done = run_to_the_end(room)
    assert (done.returncode, json.loads(done.stderr)["code"]) == (3, "keys.keyd.config")
    assert room.store().random(8), "the first one goes on"
    room.stop(signal.SIGKILL)
    assert room.socket.exists()
    room.start()
    assert room.store().random(8), "a dead socket is replaced"
    assert stat.S_IMODE(room.socket.stat().st_mode) == 0o666


# ---- crashes, restarts, threads, forks -------------------------------------------------------------------


def test_the_worker_is_killed_during_requests(room):
    """SoftHSM crashes like that: requests in flight fail, each with a code; the next ones are served."""
    room.start()
    public = room.store().generate("a", P256).public_key
    stop, failures, signed = threading.Event(), [], []

    def work():
        store = room.store()
        while not stop.is_set():
            try:
                public.verify(store.sign("a", b"m"), b"m")
                signed.append(1)
            except TidegateError as error:
                failures.append(error.code)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.5)
        for pid in room.worker():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    time.sleep(0.8)
    before, deadline = len(signed), time.monotonic() + 10
    while len(signed) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(signed) > before
    assert set(failures) <= {"keys.provider.failed"}
    assert room.store().list_keys()
    assert {record["status"] for record in room.events("keyd.worker.lost")} <= {-signal.SIGKILL}


def test_a_worker_that_hangs(room):
    room.grant(user=os.getuid(), keys=["*"], operations=EVERYTHING, limits={"provider_s": 1})
    room.start()
    store = room.store()
    store.generate("a", P256)
    for pid in room.worker():
        os.kill(pid, signal.SIGSTOP)
    assert code_of(store.sign, "a", b"m") == "keys.provider.failed"
    assert len(store.sign("a", b"m")) == 64


def test_it_ends_although_its_worker_hangs(room):
    room.start()
    store = room.store()
    for pid in room.worker():
        os.kill(pid, signal.SIGSTOP)
    asking = threading.Thread(target=lambda: code_of(store.random, 8))
    asking.start()
    time.sleep(0.3)
    room.stop()
    asking.join(timeout=5)
    assert not asking.is_alive()
    assert room.process.returncode == 0


def test_a_restart_of_the_key_process(room):
    room.start()
    store = room.store()
    signer = (store.generate("a", P256), store.signer("a"))[1]
    for number in (signal.SIGTERM, signal.SIGKILL):
        room.stop(number)
        assert code_of(signer.sign, b"m") == "keys.keyd.unreachable"
        room.start()
        signer.public_key.verify(signer.sign(b"m"), b"m")
    assert store.counter_increment("n") == 1


def test_what_is_not_repeatable_is_not_repeated(tmp_path):
    """A key process that dies over a request may have counted already: the client says so instead of asking twice."""
    seen = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    able = SoftwareKeyStore.capabilities(None)

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while head := connection.recv(4):
                    request = parse_request(connection.recv(parse_head(head)))
                    if request.operation is not Operation.CAPABILITIES:
                        seen.append(request.operation)
                        break
                    connection.sendall(frame(encode_answer(request.operation, able)))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    store = RemoteKeyStore(tmp_path / "s")
    with pytest.raises(KeydUnreachable) as caught:
        store.counter_increment("n")
    assert "may have been carried out" in caught.value.message
    assert seen == [Operation.COUNTER_INCREMENT]
    store = RemoteKeyStore(tmp_path / "s")
    assert code_of(store.counter_read, "n") == "keys.keyd.unreachable"
    assert seen[1:] == [Operation.COUNTER_READ] * 2
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(timeout=5)


def test_the_private_key_is_not_in_the_clients_process(room):
    """What a client holds is a socket: its memory has no byte sequence of the private key."""
    room.start()
    spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256.algorithm, policy=KeyPolicy(exportable=True))
    room.store().generate("a", spec)
    program = (
        "import sys, time\n"
        "from tidegate.keys.uri import open_store, parse_key_uri\n"
        "store = open_store(parse_key_uri(sys.argv[1]))\n"
        "signer = store.signer('a')\n"
        "[signer.sign(b'm') for _ in range(20)]\n"
        "print('signed', 'tidegate.keys.software' in sys.modules, flush=True)\n"
        "sys.stdin.read()\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program, f"keyd:{room.socket}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert client.stdout.readline() == b"signed False\n"
        with room.store().export_key("a") as private:
            secret = bytes(private.view())
        scalar = secret[secret.index(b"\x04\x20") + 2 :][:32]
        assert scalar not in memory_of(client.pid)
        (worker,) = room.worker()
        assert worker != client.pid
    finally:
        client.communicate()


def memory_of(pid):
    found = bytearray()
    process = Path(f"/proc/{pid}")
    with (process / "maps").open() as maps, (process / "mem").open("rb", 0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(one, 16) for one in span.split("-"))
            if rights.startswith("rw") and end - start < 1 << 28:
                with contextlib.suppress(OSError, ValueError):
                    memory.seek(start)
                    found += memory.read(end - start)
    assert len(found) > 1 << 20
    return found


# ---- hostile clients -------------------------------------------------------------------------------------


def raw_client(room):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    client.connect(str(room.socket))
    return client


def receive_all(client):
    pieces = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            pieces += piece
    return pieces


@pytest.mark.parametrize(
    "raw",
    [
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"),
        b"GET / HTTP/1.0\r\n\r\n",
    ],
)
def test_lengths_out_of_bounds_end_the_connection(room, raw):
    room.start()
    with raw_client(room) as client:
        client.sendall(raw)
        answer = receive_all(client)
    with pytest.raises(TidegateError) as caught:
        parse_reply(Operation.LIST, answer[4:])
    assert caught.value.code == "keys.keyd.malformed"
    assert room.store().random(8)


def test_bodies_of_rubbish_are_answered(room):
    room.start()
    with raw_client(room) as client:
        for body in (b"\0", b"\xff" * 9, cbor.encode([2, "list", "", []]), cbor.encode([1, "shell", "", []]), b"\x9b"):
            client.sendall(frame(body))
            length = parse_head(client.recv(4, socket.MSG_WAITALL))
            answer = client.recv(length, socket.MSG_WAITALL)
            assert code_of(parse_reply, Operation.LIST, answer) == "keys.keyd.malformed"
        client.sendall(frame(encode_request(Request(operation=Operation.LIST, name="", arguments=()))))
        assert client.recv(4, socket.MSG_WAITALL)


def test_slow_silent_and_truncated_clients_hold_up_nobody(room):
    room.grant(user=os.getuid(), keys=["*"], operations=EVERYTHING, limits={"idle_s": 1, "message_s": 1, "clients": 9})
    room.start()
    body = frame(encode_request(Request(operation=Operation.LIST, name="", arguments=())))
    started = time.monotonic()
    slow, silent, cut = raw_client(room), raw_client(room), raw_client(room)
    cut.sendall(body[:-1])
    cut.shutdown(socket.SHUT_WR)
    slow.sendall(body[:2])
    assert room.store().random(8)
    for client in (slow, silent, cut):
        receive_all(client)
        client.close()
    assert time.monotonic() - started < 4


def test_too_many_clients(room):
    room.grant(user=os.getuid(), keys=["*"], operations=EVERYTHING, limits={"clients": 3})
    room.start()
    stores = [room.store() for _ in range(3)]
    assert code_of(room.store) == "keys.keyd.busy"
    stores[0].close()
    deadline = time.monotonic() + 5
    while True:
        try:
            assert room.store().random(8)
            break
        except TidegateError as error:
            assert error.code == "keys.keyd.busy"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert stores[1].random(8)


def test_who_floods_waits_behind_himself(tmp_path):
    """A user with many connections and slow requests holds up another one for one request each, not for all of them."""
    served = []

    class Slow:
        def call(self, body):
            time.sleep(0.02)
            served.append(parse_request(body).arguments[0])
            return encode_answer(Operation.RANDOM, b"x")

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    grants = Grants(
        grants=tuple(Grant(uid=uid, gid=None, keys=("*",), operations=frozenset({Operation.RANDOM})) for uid in (1, 2))
    )
    keyd = Keyd(listener, Slow(), grants, Limits(), lambda *_, **__: None)
    flooder, other = (Peer(pid=1, uid=uid, gids=frozenset()) for uid in (1, 2))
    for peer in [flooder] * 32 + [other]:
        assert keyd._admit(peer) is None

    def ask(peer, count):
        body = encode_request(Request(operation=Operation.RANDOM, name="", arguments=(peer.uid,)))
        for _ in range(count):
            keyd._answer(body, peer)

    threads = [threading.Thread(target=ask, args=(flooder, 3)) for _ in range(32)]
    for thread in threads:
        thread.start()
    while len(served) < 3:
        time.sleep(0.005)
    for _ in range(3):
        before = len(served)
        ask(other, 1)
        assert len(served) - before <= 4
    for thread in threads:
        thread.join()
    assert served.count(1) == 96
    keyd.close()
    listener.close()


def test_a_flood_of_refusals_does_not_hide_other_peoples(room):
    room.grant(user=4242, keys=["*"], operations=["sign"])
    room.start()
    for _ in range(2):
        for _ in range(600):
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(room.socket))
                assert stream.recv(1024)
        time.sleep(1.1)
    assert code_of(room.store) == "keys.grant.refused"
    told = room.events("keyd.refused")
    assert len(told) + sum(record.get("left_out", 0) for record in told) == 1201
    assert len(told) < 500, "100 a second"


def test_no_descriptors_left_is_no_end(room):
    """A user who takes all of them holds up others for as long as he stays; the process goes on afterwards."""
    room.grant(user=os.getuid(), keys=["*"], operations=EVERYTHING, limits={"clients": 400, "clients_per_user": 400})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit is ours, too, while the process starts: above what this test run has open.
    few = max(40, *(int(one.name) + 20 for one in Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        room.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with contextlib.ExitStack() as held:
        for _ in range(few + 20):
            stream = held.enter_context(socket.socket(socket.AF_UNIX))
            stream.connect(str(room.socket))
        time.sleep(0.5)
        assert room.process.poll() is None
    assert room.store().random(8)


def test_no_thread_left_is_busy(tmp_path, monkeypatch):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    grant = Grant(uid=os.getuid(), gid=None, keys=("*",), operations=frozenset({Operation.RANDOM}))
    keyd = Keyd(listener, None, Grants(grants=(grant,)), Limits(), lambda *_, **__: None)
    running = threading.Thread(target=keyd.run, daemon=True)
    running.start()

    def fail(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    for _ in range(40):  # more than a user may have at once: none of them is counted for ever
        assert code_of(RemoteKeyStore, tmp_path / "s") == "keys.keyd.busy"
    assert keyd._clients.total() == 0
    monkeypatch.undo()
    keyd.stop()
    running.join(timeout=5)
    assert not running.is_alive()
    keyd.close()
    listener.close()


@pytest.mark.parametrize("gap_s", [0.0, 0.001, 0.002, 0.005, 0.01])
def test_who_asks_twice_to_stop_gets_an_orderly_end(room, gap_s):
    room.start()
    for _ in range(3):
        with contextlib.suppress(ProcessLookupError):
            room.process.send_signal(signal.SIGTERM)
        time.sleep(gap_s)
    assert room.process.wait(timeout=10) == 0, room.log.read_text()
    assert not room.socket.exists()


def test_a_signal_right_before_it_waits_is_not_lost(tmp_path):
    """The kernel has delivered it, the interpreter has not run its handler yet: only the wake-up descriptor knows."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    keyd = Keyd(listener, None, Grants(grants=()), Limits(), lambda *_, **__: None)
    running = threading.Thread(target=keyd.run, daemon=True)
    running.start()
    assert code_of(RemoteKeyStore, tmp_path / "s") == "keys.grant.refused"  # and it waits for the next one
    keyd._stopping = True  # by the handler, as soon as the interpreter gets to it
    os.write(keyd.wakes, bytes([signal.SIGTERM]))  # by the interpreter's own handler, at once
    running.join(timeout=5)
    assert not running.is_alive()
    keyd.close()
    listener.close()


def test_an_answer_longer_than_a_message_costs_nobody_the_worker(room):
    room.start()
    store = room.store()
    store.generate("v", KeySpec(purpose=KeyPurpose.SEAL))
    worker = room.worker()
    secret = bytes(MAX_MESSAGE_BYTES - 32)
    assert len(encode_request(Request(operation=Operation.SEAL, name="v", arguments=(secret, b"")))) < MAX_MESSAGE_BYTES
    assert code_of(store.seal, "v", secret, b"") == "keys.capability.missing"
    assert room.worker() == worker
    assert room.events("keyd.worker.lost") == []


def test_a_path_too_long_for_a_socket_is_named_as_that(tmp_path):
    path = tmp_path / ("x" * 120)
    assert code_of(listen, path, mode=0o600, uid=os.getuid(), gid=os.getgid()) == "keys.keyd.config"
    with pytest.raises(KeydUnreachable, match="too long"):
        RemoteKeyStore(path)


def test_a_link_in_the_sockets_place_gives_nothing_away(tmp_path, monkeypatch):
    """A key process that is started by root: its user may write the socket's folder."""
    victim, path = tmp_path / "victim", tmp_path / "sock"
    victim.write_text("x")
    victim.chmod(0o600)
    bind = socket.socket.bind

    def replaced(stream, address):
        bind(stream, address)
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(victim)

    monkeypatch.setattr(socket.socket, "bind", replaced)
    assert code_of(listen, path, mode=0o666, uid=os.getuid(), gid=os.getgid()) == "keys.keyd.config"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_the_worker_takes_no_modules_from_the_folder_it_is_started_in(room, tmp_path, monkeypatch):
    (tmp_path / "tidegate").mkdir()
    (tmp_path / "tidegate" / "__init__.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    worker = Worker(*hold_pins(parse_key_uri(room.uri)), within_s=10.0, report=lambda *_, **__: None)
    worker.start()
    worker.stop()


def test_a_refused_pin_is_no_reason_for_systemd_to_start_it_again():
    unit = (Path(__file__).resolve().parents[3] / "deploy" / "tidegate-keyd.service").read_text()
    (line,) = [line for line in unit.splitlines() if line.startswith("RestartPreventExitStatus=")]
    never = {int(word) for word in line.partition("=")[2].split()}
    assert {PinRefused.exit_status, PinMissing.exit_status, KeydConfigInvalid.exit_status} <= never
    assert TokenMissing.exit_status not in never


def test_too_many_requests_wait(room):
    room.grant(user=os.getuid(), keys=["*"], operations=EVERYTHING, limits={"requests_per_second": 20})
    room.start()
    started = time.monotonic()
    stores = [room.store() for _ in range(2)]
    in_threads(lambda number: [stores[number].random(1) for _ in range(20)], 2)
    assert 0.8 < time.monotonic() - started < 8, "42 requests, 20 at once, 20 a second"


def test_no_key_process(tmp_path):
    assert code_of(open_store, parse_key_uri(f"keyd:{tmp_path}/none?key=a")) == "keys.keyd.unreachable"
    uri = parse_key_uri(f"keyd:{tmp_path}/none")
    assert code_of(open_store, uri, create=True) == "keys.capability.missing"


# ---- the wire --------------------------------------------------------------------------------------------

EXAMPLES = [
    Request(operation=Operation.LIST, name="", arguments=()),
    Request(operation=Operation.SIGN, name="a", arguments=(b"m",)),
    Request(operation=Operation.QUOTE, name="a", arguments=(bytes(16), frozenset({0, 7}))),
    Request(operation=Operation.KEEP_CERTIFICATES, name="a", arguments=((b"1", b"2"),)),
    Request(operation=Operation.GENERATE, name="a", arguments=(P256,)),
    Request(operation=Operation.RANDOM, name="", arguments=(7,)),
]


@pytest.mark.parametrize("request_", EXAMPLES, ids=lambda request: request.operation.value)
def test_requests_go_through(request_):
    assert parse_request(encode_request(request_)) == request_
    raw = encode_request(request_)
    for at in range(len(raw)):
        for body in (raw[:at], raw[:at] + bytes([raw[at] ^ 0x21]) + raw[at + 1 :]):
            with contextlib.suppress(Rejected, TidegateError):
                parse_request(body)


def test_answers_go_through():
    quote = Quote(attest=b"a", signature=b"s", pcrs={0: bytes(32)})
    assert parse_reply(Operation.QUOTE, encode_answer(Operation.QUOTE, quote)) == quote
    able = SoftwareKeyStore.capabilities(None)
    assert parse_reply(Operation.CAPABILITIES, encode_answer(Operation.CAPABILITIES, able)) == able
    with pytest.raises(KeyMissing) as caught:
        parse_reply(Operation.SIGN, encode_error(KeyMissing("no key 'a'", key="a")))
    assert caught.value.fields == {"key": "a"}
    unknown = cbor.encode([1, 1, ["keys.of.tomorrow", "message", {}]])
    assert code_of(parse_reply, Operation.SIGN, unknown) == "keys.provider.failed"
    for wrong in (
        [1, 2, None],
        [1, 0],
        [True, 0, b""],
        [1, False, b""],
        [1, 1, ["keys.key.missing", "m", {"self": 1}]],
        [1, 0, "text"],
    ):
        assert code_of(parse_reply, Operation.SIGN, cbor.encode(wrong)) == "keys.keyd.malformed"


@pytest.mark.parametrize(
    "spec",
    [
        ["sign", None, [False, [], False]],
        ["seal", -9, [False, [], False]],
        ["sign", -7, [False, [], False]],
        ["wrap", -9, [False, [], False]],
        ["sign", -9, [0, [], False]],
        ["sign", -9, [False, [24], False]],
        ["sign", -9, [False, [7, 0], False]],
        ["sign", -9, [False, [True], False]],
        ["sign", -9, [False, []]],
    ],
)
def test_specifications_that_are_none(spec):
    assert code_of(parse_request, cbor.encode([1, "generate", "a", [spec]])) == "keys.keyd.malformed"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.binary(max_size=9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
words = st.sampled_from([operation.value for operation in Operation])


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=64)
    | st.builds(lambda *parts: cbor.encode(parts), st.just(1), words, st.text(max_size=3), values)
)
def test_any_bytes_are_a_request_or_refused(body):
    try:
        request = parse_request(body)
    except TidegateError:
        return
    assert parse_request(encode_request(request)) == request or request.operation is Operation.UNSEAL


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(list(Operation)),
    st.builds(lambda *parts: cbor.encode(parts), st.just(1), st.integers(0, 2), values),
)
def test_any_bytes_are_a_reply_or_refused(operation, body):
    with contextlib.suppress(TidegateError):
        parse_reply(operation, body)


def test_the_example_is_a_file():
    example = Path(__file__).resolve().parents[3] / "deploy" / "keyd.toml"
    config, grants = parse_config(
        example.read_bytes(), name="keyd.toml", uid_of=lambda user: 900, gid_of=lambda group: 900
    )
    assert parse_key_uri(config.keyd.store).options["pin-source"] == "credential:pin"
    assert len(grants.grants) == 3
