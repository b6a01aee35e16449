"""The vault's process on a device's real vault: two users and a stranger, floods, kills, altered storage."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tidegate.agent.vault_errors import VaultRequestMalformed
from tidegate.agent.vault_grants import Grants
from tidegate.agent.vault_requests import MAX_LINE_BYTES, MAX_PAGE, MAX_PIECE_BYTES, ListItems, ListRecords
from tidegate.agent.vault_server import MAX_CONNECTIONS_OF_USER, MAX_TOLD_PER_S, Reports
from tidegate.agent.vault_server import Vaultd as Server
from tidegate.agent.vault_service import VaultService
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost
from tidegate.testing.processes import started
from tidegate.vault.section import VaultGrant
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users needs root"),
]
WARD, AUDIT, STRANGER = 61_001, 61_002, 61_003
SECTION = {
    "grants": {
        "ward": {"user": WARD, "items": ["patients/", "config"], "tables": ["sessions"], "write": True},
        "audit": {"user": AUDIT, "items": ["patients/"]},
    }
}


class Vaultd:
    """The process, and the lines that it tells the agent."""

    def __init__(self, home, run: Path, section: dict) -> None:
        self.path = run / "vault.sock"
        self.lines: list[dict] = []
        words = ["--storage", home.storage.folder, "--data", home.data, "--run", run]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tidegate.agent.vaultd", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.process.stdin.write(json.dumps(section).encode() + b"\n")
        self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def of(self, kind: str) -> list[dict]:
        return [line for line in list(self.lines) if line["event_type"] == kind]

    def until(self, kind: str, count: int = 1) -> Vaultd:
        deadline = time.monotonic() + 10
        while len(self.of(kind)) < count:
            assert time.monotonic() < deadline, self.lines
            if self.process.poll() is not None:
                self._reader.join(2)
                assert len(self.of(kind)) >= count, self.lines
            time.sleep(0.01)
        return self

    def end(self, number: int = signal.SIGTERM) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        status = self.process.wait(10)
        self._reader.join(5)
        self.process.stdin.close()
        self.process.stdout.close()
        return status

    def ask(self, user: int, *requests: dict | bytes) -> list[dict]:
        """Return the answers that ``user`` gets to requests on one connection."""
        return as_user(user, lambda: converse(self.path, *requests))

    def one(self, user: int, **request) -> dict:
        return self.ask(user, request)[0]

    def code(self, user: int, **request) -> str:
        return self.one(user, **request)["error"]["code"]


def converse(path: Path, *requests: dict | bytes) -> list[dict]:
    answers = []
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(10)
        peer.connect(str(path))
        stream = peer.makefile("rb")
        for request in requests:
            raw = request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n"
            with contextlib.suppress(BrokenPipeError):  # it stopped listening: the answer says why
                peer.sendall(raw)
            line = stream.readline()
            if not line:
                break
            answers.append(json.loads(line))
    return answers


def as_user(user: int, work):
    """Return what ``work`` returns in a child process of ``user``."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            with os.fdopen(writer, "w") as stream:
                json.dump(work(), stream)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return json.loads(said)


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def run_folder():
    with tempfile.TemporaryDirectory(prefix="tgv-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.fixture
def start(device, run_folder):
    started: list[Vaultd] = []

    def begin(section: dict = SECTION) -> Vaultd:
        started.append(Vaultd(device.home, run_folder, section))
        return started[-1]

    yield begin
    for one in started:
        one.end(signal.SIGKILL)


@pytest.fixture
def vaultd(start):
    return start().until("ready")


@contextlib.contextmanager
def opened(device):
    keys = device.home.open_keys()
    with Vault.open(device.home.vault, KeyStoreUnlocker(keys, "vault"), wait_s=5) as vault:
        yield vault
    keys.close()


def test_a_program_keeps_its_items(vaultd):
    written, first, rest, stat, page, gone, after = vaultd.ask(
        WARD,
        {"op": "vault-write", "name": "patients/17", "content": encode(b"blood group 0")},
        {"op": "vault-read", "name": "patients/17", "count": 5},
        {"op": "vault-read", "name": "patients/17", "offset": 5},
        {"op": "vault-stat", "name": "patients/17"},
        {"op": "vault-list"},
        {"op": "vault-delete", "name": "patients/17"},
        {"op": "vault-stat", "name": "patients/17"},
    )
    assert (written["size"], written["generation"]) == (13, 1)
    assert [base64.b64decode(one["content"]) for one in (first, rest)] == [b"blood", b" group 0"]
    assert first["size"] == 13
    assert first["version"] == rest["version"] == "1.0"
    assert stat["size"] == 13
    assert ([item["name"] for item in page["items"]], page["next"]) == (["patients/17"], None)
    assert gone == {"deleted": True}
    assert after["error"]["code"] == "vault.item.unknown"


def test_changes_in_place(vaultd):
    name = "config"
    answers = vaultd.ask(
        WARD,
        {"op": "vault-write", "name": name, "append": True, "content": encode(b"one ")},
        {"op": "vault-write", "name": name, "append": True, "content": encode(b"two")},
        {"op": "vault-write", "name": name, "offset": 0, "content": encode(b"ONE")},
        {"op": "vault-write", "name": name, "offset": 7, "content": encode(b"!")},
        {"op": "vault-write", "name": name, "offset": 1 << 40, "content": encode(b"!")},
        {"op": "vault-read", "name": name},
    )
    assert answers[4]["error"]["code"] == "agent.vault.malformed", "no gap: it would fill the storage"
    assert base64.b64decode(answers[5]["content"]) == b"ONE two!"


def test_a_large_item_in_pieces(vaultd):
    data = os.urandom(3 * MAX_PIECE_BYTES + 5)
    pieces = [data[at : at + MAX_PIECE_BYTES] for at in range(0, len(data), MAX_PIECE_BYTES)]
    vaultd.ask(
        WARD,
        *({"op": "vault-write", "name": "config", "content": encode(piece), "append": True} for piece in pieces),
    )
    reads = vaultd.ask(
        WARD, *({"op": "vault-read", "name": "config", "offset": at} for at in range(0, len(data), MAX_PIECE_BYTES))
    )
    assert b"".join(base64.b64decode(read["content"]) for read in reads) == data


def test_others_are_refused_by_one_code_whether_it_exists_or_not(vaultd):
    vaultd.ask(WARD, {"op": "vault-write", "name": "config", "content": encode(b"x")})
    vaultd.ask(WARD, {"op": "vault-write", "name": "patients/1", "content": encode(b"y")})
    there = vaultd.one(AUDIT, op="vault-read", name="config")["error"]
    not_there = vaultd.one(AUDIT, op="vault-read", name="nothing")["error"]
    assert there == not_there
    assert there["code"] == "agent.vault.denied"
    assert base64.b64decode(vaultd.one(AUDIT, op="vault-read", name="patients/1")["content"]) == b"y"
    for request in (
        {"op": "vault-write", "name": "patients/1", "content": ""},
        {"op": "vault-write", "name": "patients/new", "content": "", "append": True},
        {"op": "vault-delete", "name": "patients/1"},
        {"op": "vault-stat", "name": "patients"},
        {"op": "record-get", "table": "sessions", "key": "1"},
        {"op": "record-list", "table": "nothing"},
        {"op": "record-put", "table": "sessions", "key": "1", "value": ""},
    ):
        assert vaultd.code(AUDIT, **request) == "agent.vault.denied", request
    assert [item["name"] for item in vaultd.one(AUDIT, op="vault-list")["items"]] == ["patients/1"]
    assert vaultd.one(AUDIT, op="vault-list", prefix="conf")["items"] == []


@pytest.mark.parametrize("user", [STRANGER, 0])
def test_who_is_granted_nothing_is_refused_at_once(vaultd, user):
    assert vaultd.code(user, op="vault-list") == "agent.vault.denied"
    (line,) = vaultd.until("refused").of("refused")
    assert (line["operation"], line["code"]) == ("connect", "agent.vault.denied")


def test_no_way_out_of_a_granted_folder(vaultd):
    vaultd.ask(WARD, {"op": "vault-write", "name": "config", "content": encode(b"x")})
    assert vaultd.code(AUDIT, op="vault-read", name="patients/../config") == "vault.item.name"


def test_refusals_are_told_some_a_second_and_name_no_item(vaultd):
    vaultd.ask(AUDIT, *({"op": "vault-read", "name": "very-secret-name"} for _ in range(60)))
    vaultd.until("refused")
    assert 1 <= len(vaultd.of("refused")) <= 3 * MAX_TOLD_PER_S
    time.sleep(1.1)
    count = len(vaultd.of("refused"))
    vaultd.ask(AUDIT, {"op": "vault-read", "name": "very-secret-name"})
    vaultd.until("refused", count + 1)
    told = vaultd.of("refused")
    assert any(line["left_out"] for line in told)
    assert sum(1 + line["left_out"] for line in told) == 61, "each is told or counted"
    assert "very-secret-name" not in json.dumps(vaultd.lines)


def test_records_and_transactions(vaultd):
    table = {"table": "sessions"}
    answers = vaultd.ask(
        WARD,
        {"op": "record-put", **table, "key": "a", "value": encode(b"1")},
        {"op": "record-transaction", **table, "changes": [{"key": "a", "delete": True}, {"key": "ü", "value": "Mg=="}]},
        {"op": "record-transaction", **table, "changes": [{"key": "c", "value": ""}, {"key": "x", "delete": True}]},
        {"op": "record-list", **table},
        {"op": "record-get", **table, "key": "ü"},
        {"op": "record-get", **table, "key": "c"},
        {"op": "record-delete", **table, "key": "ü"},
        {"op": "record-list", **table},
        {"op": "record-put", **table, "key": "big", "value": encode(bytes(65_537))},
    )
    assert answers[:2] == [{"put": True}, {"changed": 2}]
    assert answers[2]["error"]["code"] == "agent.vault.record-unknown"
    assert answers[3] == {"records": [{"key": "ü", "size": 1}], "next": None}
    assert answers[4] == {"value": "Mg=="}
    assert answers[5]["error"]["code"] == "agent.vault.record-unknown", "its transaction did not count"
    assert answers[7]["records"] == []
    assert answers[8]["error"]["code"] == "vault.entry.size"


def test_lists_are_paged_in_order(vaultd):
    names = sorted(f"patients/{number}" for number in range(7))
    vaultd.ask(WARD, *({"op": "vault-write", "name": name, "content": ""} for name in [*names, "config"]))
    vaultd.ask(
        WARD,
        *({"op": "record-put", "table": "sessions", "key": str(number), "value": ""} for number in range(MAX_PAGE + 3)),
    )
    seen, after = [], ""
    while after is not None:
        page = vaultd.one(WARD, op="vault-list", limit=3, after=after)
        assert len(page["items"]) <= 3
        seen, after = seen + [item["name"] for item in page["items"]], page["next"]
    assert seen == ["config", *names]
    first = vaultd.one(WARD, op="record-list", table="sessions")
    rest = vaultd.one(WARD, op="record-list", table="sessions", after=first["next"])
    assert (len(first["records"]), len(rest["records"]), rest["next"]) == (MAX_PAGE, 3, None)


def test_a_page_reads_no_more_than_itself(tmp_path, monkeypatch):
    names = sorted([f"a/{number:03}" for number in range(40)] + ["a", "a0", "b/1", "z"])
    unlocker = PassphraseUnlocker(Secret(b"x"), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        for name in names:
            vault.write(name, b"")
            vault.records("t")[name] = b""
            vault.records("s")[name] = b""
        grant = VaultGrant(user=1, items=("*",), tables=("t",))
        some = VaultGrant(user=2, items=("a", "a/", "z", "nothing"))
        service = VaultService(vault, Grants(by_user={1: (grant,), 2: (some,)}))
        seen, scan = [0], vault.table_scan

        def count(prefix, *, after=None):
            for entry in scan(prefix, after=after):
                seen[0] += 1
                yield entry

        monkeypatch.setattr(vault, "table_scan", count)

        def pages(kind, member, user=1, **options):
            found, after = [], options.pop("after", None)
            while True:
                seen[0] = 0
                given = {} if after is None else {"after": after}
                page = json.loads(service.answer(kind(limit=3, **options, **given), user))
                assert seen[0] <= 4, "a page and one more, wherever it begins"
                found += [one["name" if member == "items" else "key"] for one in page[member]]
                after = page["next"]
                if after is None:
                    return found
                after = base64.b64decode(after) if member == "records" else after

        assert pages(ListItems, "items") == names
        assert pages(ListItems, "items", prefix="a/") == [name for name in names if name.startswith("a/")]
        assert pages(ListItems, "items", prefix="b", after="a/039") == ["b/1"]
        assert pages(ListItems, "items", prefix="a/", after="b") == []
        mine = [name for name in names if name in ("a", "z") or name.startswith("a/")]
        assert pages(ListItems, "items", user=2) == mine
        assert pages(ListItems, "items", user=2, after="a/038") == ["a/039", "z"]
        assert pages(ListRecords, "records", table="t") == names
        assert pages(ListRecords, "records", table="t", prefix="a/", after=b"A") == [
            name for name in names if name.startswith("a/")
        ]
        assert pages(ListRecords, "records", table="t", prefix="a/", after=b"b") == []


def test_what_is_too_large_or_no_request_is_answered_by_code(vaultd):
    whole = {"op": "vault-write", "name": "config", "content": encode(bytes(MAX_PIECE_BYTES))}
    assert vaultd.one(WARD, **whole)["size"] == MAX_PIECE_BYTES
    whole["content"] = encode(bytes(MAX_PIECE_BYTES + 3))
    assert vaultd.code(WARD, **whole) == "agent.vault.malformed"
    assert vaultd.ask(WARD, b"x" * (MAX_LINE_BYTES + 1) + b"\n")[0]["error"]["code"] == "agent.request.malformed"
    codes = [answer["error"]["code"] for answer in vaultd.ask(WARD, b"\n", b"{}\n", b"\xff\n", b"[" * 9999 + b"\n")]
    assert codes == ["agent.vault.malformed"] * 4, "and the connection goes on"
    assert vaultd.one(WARD, op="vault-stat", name="config")["size"] == MAX_PIECE_BYTES


def test_one_user_takes_only_so_many_connections(vaultd):
    def flood() -> list:
        held = []
        for _ in range(MAX_CONNECTIONS_OF_USER):
            held.append(socket.socket(socket.AF_UNIX))
            held[-1].connect(str(vaultd.path))
            held[-1].sendall(b'{"op": "half')
        time.sleep(0.3)
        answers = [converse(vaultd.path, {"op": "vault-list"})]
        held.pop().close()
        time.sleep(0.3)
        return [*answers, converse(vaultd.path, {"op": "vault-list"})]

    refused, served = as_user(WARD, flood)
    assert refused[0]["error"]["code"] == "agent.connections"
    assert served[0]["items"] == []


def test_users_at_once(vaultd):
    def work(user: int) -> list:
        requests = [
            {"op": "vault-write", "name": "patients/x", "append": True, "content": encode(b"12345678")}
        ] * 20 + [{"op": "vault-stat", "name": "patients/x"}]
        return vaultd.ask(user, *requests)

    results: list[list] = []
    threads = [threading.Thread(target=lambda: results.append(work(WARD))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [answer for answers in results for answer in answers if "error" in answer]
    assert vaultd.one(AUDIT, op="vault-stat", name="patients/x")["size"] == 4 * 20 * 8


def test_sigterm_closes_the_vault(vaultd, device):
    vaultd.one(WARD, op="vault-write", name="config", content=encode(b"kept"))
    assert vaultd.end() == 0
    assert not vaultd.path.exists()
    with opened(device) as vault:
        assert vault.read("config") == b"kept"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "asked to stop"])
def test_ended_while_it_writes_it_has_kept_what_it_said_it_had(start, device, number):
    vaultd = start().until("ready")
    acknowledged = []

    def write() -> None:
        for count in range(10_000):
            try:
                answer = converse(vaultd.path, {"op": "vault-write", "name": f"a/{count}", "content": encode(b"x")})
            except OSError:
                return
            if not answer:
                return
            acknowledged.append(count)

    vaultd.end()
    vaultd = start({"grants": {"root": {"user": 0, "items": ["*"], "write": True}}}).until("ready")
    thread = threading.Thread(target=write)
    thread.start()
    while len(acknowledged) < 20:
        time.sleep(0.01)
    vaultd.end(number)
    thread.join(10)
    with opened(device) as vault:
        kept = set(vault)
    assert {f"a/{count}" for count in acknowledged} <= kept
    assert len(kept) <= len(acknowledged) + 1
    again = start(SECTION).until("ready")
    assert again.one(WARD, op="vault-list")["items"] == []


def test_it_ends_with_its_parent(device, run_folder):
    words = ["--storage", device.home.storage.folder, "--data", device.home.data, "--run", run_folder]
    code = (
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-m', 'tidegate.agent.vaultd', *{list(map(str, words))!r}],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        f"p.stdin.write({json.dumps(SECTION).encode() + bytes([10])!r}); p.stdin.flush()\n"
        "print(p.pid, flush=True)\n"
        "for line in p.stdout: print(line.decode(), end='', flush=True)\n"
    )
    with started([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert any('"ready"' in line for line in parent.stdout)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/status").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with opened(device):
        pass


def test_it_has_given_up_what_it_does_not_need(vaultd):
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{vaultd.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert int(status["CapPrm"], 16) & ~0b110 == 0
    assert int(status["CapEff"], 16) & ~0b110 == 0
    assert status["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{vaultd.process.pid}/limits").read_text().splitlines()
    assert next(line.split()[4:6] for line in limits if line.startswith("Max core file")) == ["0", "0"]


def test_another_user_cannot_look_into_it(vaultd):
    def look() -> str:
        try:
            return Path(f"/proc/{vaultd.process.pid}/maps").read_text()[:10]
        except OSError as error:
            return type(error).__name__

    assert as_user(WARD, look) == "PermissionError"


def test_an_altered_item_is_refused_and_told(start, device):
    with opened(device) as vault:
        vault.write("patients/1", b"true" * 1000)
        vault.write("patients/2", b"fine")
        (altered,) = [path for path in (device.home.vault / "items").iterdir() if path.stat().st_size > 11_000]
    with altered.open("r+b") as file:
        file.seek(9000)
        byte = file.read(1)[0]
        file.seek(9000)
        file.write(bytes([byte ^ 1]))
    vaultd = start().until("ready")
    assert vaultd.code(AUDIT, op="vault-read", name="patients/1") == "vault.chunk.altered"
    assert base64.b64decode(vaultd.one(AUDIT, op="vault-read", name="patients/2")["content"]) == b"fine"
    assert [line["code"] for line in vaultd.until("refused").of("refused")] == ["vault.chunk.altered"]


def test_an_older_copy_of_the_vault_does_not_open(start, device, tmp_path):
    shutil.copytree(device.home.vault, tmp_path / "older")
    with opened(device) as vault:
        vault.write("patients/1", b"new")
    shutil.rmtree(device.home.vault)
    shutil.copytree(tmp_path / "older", device.home.vault)
    vaultd = start().until("error")
    assert vaultd.process.wait(10) == 3
    (refused,) = vaultd.of("refused")
    assert refused["operation"] == "open"
    assert refused["code"] == vaultd.of("error")[0]["code"] == "vault.manifest.rollback"
    assert not vaultd.of("ready")


@pytest.mark.parametrize("line", [b"", b"no json\n", b'{"grants": 1}\n'])
def test_a_configuration_that_is_none(device, run_folder, line):
    words = ["--storage", device.home.storage.folder, "--data", device.home.data, "--run", run_folder]
    done = subprocess.run(
        [sys.executable, "-m", "tidegate.agent.vaultd", *map(str, words)],
        input=line,
        capture_output=True,
        timeout=15,
        check=False,
    )
    assert done.returncode == 3
    assert b"agent.vault.malformed" in done.stdout


def test_a_user_who_is_not_there_is_told(start):
    section = {"grants": {"gone": {"user": "no-such-user", "items": ["*"]}, **SECTION["grants"]}}
    vaultd = start(section).until("ready")
    assert [line["grant"] for line in vaultd.of("unknown-user")] == ["gone"]
    assert "items" in vaultd.one(AUDIT, op="vault-list")


class Played:
    """The server with a service that does what a test says; no vault, no process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "vault.sock"
        self.raises: Exception | None = None
        self.table = self
        self.is_broken = False
        self._reader, self._writer = os.pipe()

    def answer(self, *_) -> bytes:
        if self.raises is not None:
            raise self.raises
        return b"{}"

    def play(self, *scenes) -> list[list[dict]]:
        async def run() -> list[list[dict]]:
            server = Server(self, Grants(by_user={0: ()}), Reports(self._writer))
            server._service = self
            task = asyncio.create_task(server.run(self.path))
            said = []
            while not self.path.exists():
                await asyncio.sleep(0.01)
            for scene in scenes:
                scene()
                said.append(await asyncio.to_thread(converse, self.path, {"op": "vault-list"}))
            server._stop.set()
            await task
            return said

        return asyncio.run(run())

    def lines(self) -> str:
        os.close(self._writer)
        with os.fdopen(self._reader) as stream:
            return stream.read()


def test_a_defect_is_answered_and_told_without_what_it_held(tmp_path):
    played = Played(tmp_path)

    def fail() -> None:
        played.raises = ValueError("very secret")

    def heal() -> None:
        played.raises = None

    (failed,), (served,) = played.play(fail, heal)
    assert failed["error"]["code"] == "agent.unexpected"
    assert "secret" not in failed["error"]["message"]
    assert served == {}
    lines = played.lines()
    assert "agent.unexpected" in lines
    assert "secret" not in lines


def test_a_mistake_of_a_program_is_no_event(tmp_path):
    played = Played(tmp_path)
    played.raises = VaultRequestMalformed("behind the end")
    ((refused,),) = played.play(lambda: None)
    assert refused["error"]["code"] == "agent.vault.malformed"
    assert "refused" not in played.lines()


def test_it_ends_when_the_storage_failed_under_the_vault(tmp_path):
    played = Played(tmp_path)

    def fail() -> None:
        played.is_broken = True

    async def wait() -> None:
        server = Server(played, Grants(by_user={0: ()}), Reports(played._writer))
        server._service = played
        task = asyncio.create_task(server.run(played.path))
        while not played.path.exists():
            await asyncio.sleep(0.01)
        fail()
        assert await asyncio.to_thread(converse, played.path, {"op": "vault-list"}) == [{}]
        await asyncio.wait_for(task, 5)

    asyncio.run(wait())
    played.lines()
