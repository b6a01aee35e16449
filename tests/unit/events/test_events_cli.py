"""``tidegate events``: what people and programs see, and the exit codes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tidegate.cli.main import main
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.events import catalogue
from tidegate.events.spool import EventLog
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.testing.processes import started


@pytest.fixture
def signer(tmp_path):
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))
    store = SoftwareKeyStore.create(tmp_path / "keys", DeviceSecretUnlock(secret))
    store.generate("device", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
    store.generate("stranger", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
    for name in ("device", "stranger"):
        (tmp_path / f"{name}.pub").write_bytes(store.public_key(name).encode())
    return store.signer("device")


@pytest.fixture
def folder(tmp_path, signer):
    with EventLog(tmp_path / "log", device_id="dev-1", boot_id="b1", signer=signer) as log:
        log.append(catalogue.agent_started())
        log.append(catalogue.ids_detected(rule="scan.syn", title="SYN scan\x1b[2J", source="192.0.2.7"))
    return tmp_path / "log"


def test_show(folder, capsys):
    assert main(["events", "show", "--folder", str(folder)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "info" in first
    assert "agent.started" in first
    assert "high" in second
    assert "SYN scan?[2J from 192.0.2.7" in second  # an escape sequence does not reach the terminal


@pytest.mark.parametrize(
    ("options", "count"), [(["--class", "2004"], 1), (["--kind", "agent"], 1), (["--kind", "boot"], 0), ([], 2)]
)
def test_show_selects(folder, capsys, options, count):
    assert main(["events", "show", "--json", "--folder", str(folder), *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["events"]) == count
    assert document["verified"] is False


def test_show_goes_on_behind_a_damaged_line(folder, capsys):
    path = folder / "00000001.events"
    path.write_bytes(b"\xff\xfe garbage\n[1]\n" + path.read_bytes())
    assert main(["events", "show", "--folder", str(folder)]) == 0
    assert capsys.readouterr().out.count("cannot be read") == 2


def test_verify(folder, tmp_path, capsys):
    assert main(["events", "verify", str(folder), "--trust", str(tmp_path / "device.pub")]) == 0
    assert "2 events of 1 boots are whole, in order and signed" in capsys.readouterr().out


def test_verify_json(folder, tmp_path, capsys):
    assert main(["events", "verify", str(folder), "--json", "--trust", str(tmp_path / "device.pub")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["device"], document["signed"], document["head"]["sequence"]) == ("dev-1", 2, 2)


def test_verify_names_the_place(folder, tmp_path, capsys):
    path = folder / "00000001.events"
    path.write_bytes(path.read_bytes().replace(b"192.0.2.7", b"192.0.2.8"))
    assert main(["events", "verify", str(folder), "--json", "--trust", str(tmp_path / "device.pub")]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "events.chain.altered"
    assert error["fields"] == {"file": "00000001.events", "line": 2, "boot": "b1", "sequence": 2}


def test_verify_with_another_key(folder, tmp_path, capsys):
    assert main(["events", "verify", str(folder), "--trust", str(tmp_path / "stranger.pub")]) == 3
    assert "events.checkpoint.invalid" in capsys.readouterr().err
    keys = [word for name in ("stranger", "device") for word in ("--trust", str(tmp_path / f"{name}.pub"))]
    assert main(["events", "verify", str(folder), *keys]) == 0


def test_unsigned_tail_is_a_no_only_if_asked(folder, tmp_path, signer, capsys):
    log = EventLog(folder, device_id="dev-1", boot_id="b1", signer=signer)
    log.append(catalogue.agent_started())
    arguments = ["events", "verify", str(folder), "--trust", str(tmp_path / "device.pub")]
    assert main(arguments) == 0
    assert "1 events are newer than the last checkpoint" in capsys.readouterr().out
    assert main([*arguments, "--require-signed"]) == 1
    log.close()
    assert main([*arguments, "--require-signed"]) == 0


@pytest.mark.parametrize(("name", "status"), [("nothing", 4), ("empty", 3)])
def test_verify_where_no_log_is(tmp_path, signer, name, status):
    (tmp_path / "empty").mkdir()
    assert main(["events", "verify", str(tmp_path / name), "--trust", str(tmp_path / "device.pub")]) == status


def test_export_is_what_was_written(folder, capsys):
    assert main(["events", "export", "--folder", str(folder), "--format", "jsonl"]) == 0
    assert capsys.readouterr().out.encode() == (folder / "00000001.events").read_bytes()


def test_follow(folder, signer):
    program = "import sys; from tidegate.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "events", "show", "--follow", "--folder", str(folder)]
    with started(command, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(2)]
        with EventLog(folder, device_id="dev-1", boot_id="b1", signer=signer) as log:
            log.append(catalogue.agent_stopped(reason="test"))
        start = time.monotonic()
        lines.append(process.stdout.readline())
        assert time.monotonic() - start < 5
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(5) == 130
    assert "agent.stopped" in lines[2]
