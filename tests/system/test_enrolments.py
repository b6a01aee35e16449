"""Thousands of enrolments against ``tidegate ca serve``, which is killed twenty times meanwhile: none lost, none twice.

``TIDEGATE_ENROLMENTS`` sets another number than 10,000.
"""

import base64
import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.pki.ca_store import DATABASE
from tidegate.testing.ca import Lab

ENROLMENTS = int(os.environ.get("TIDEGATE_ENROLMENTS", "10000"))
KILLS = 20
CLIENTS = 4
CLIENT = Path(__file__).with_name("enrolment_client.py")


@pytest.fixture
def lab(tmp_path):
    folder = tmp_path / "lab"
    folder.mkdir(mode=0o700)
    return Lab(folder)


def start_clients(lab, port):
    devices = [f"SN-{number:06d}" for number in range(ENROLMENTS)]
    pairs = list(zip(devices, lab.many_tokens(devices), strict=True))
    for number in range(CLIENTS):
        mine = pairs[number::CLIENTS]
        (lab.folder / f"tokens-{number}").write_text("".join(f"{device} {token}\n" for device, token in mine))
        yield subprocess.Popen(
            [
                *(sys.executable, str(CLIENT), str(port), str(lab.folder / "root.pem")),
                *(str(lab.folder / f"tokens-{number}"), str(lab.folder / f"results-{number}")),
            ],
            stdout=subprocess.PIPE,
        )


def issued_so_far(lab):
    with contextlib.closing(sqlite3.connect(f"file:{lab.store / DATABASE}?mode=ro", uri=True)) as database:
        return database.execute("SELECT count(*) FROM certificates").fetchone()[0]


def kill_again_and_again(lab, server, clients):
    """Kill at twenty places spread over the run, each after so many certificates and at a moment of chance."""
    chance, kills = random.Random(3), 0
    while any(client.poll() is None for client in clients):
        if kills < KILLS and issued_so_far(lab) >= ENROLMENTS * (kills + 0.5) / (KILLS + 1):
            time.sleep(chance.random() * 0.02)
            server.kill()
            server.start()
            kills += 1
        time.sleep(0.02)
    return kills


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_enrolments_survive_a_server_that_is_killed(lab):
    with lab.serving("--address-rate", "1000000") as server:
        start = time.monotonic()
        clients = list(start_clients(lab, server.port))
        kills = kill_again_and_again(lab, server, clients)
        elapsed = time.monotonic() - start
        retries = [int(client.communicate()[0] or -1) for client in clients]
        assert [client.returncode for client in clients] == [0] * CLIENTS
        assert server.stop() == 0
    assert kills == KILLS
    results = {}
    for number in range(CLIENTS):
        for line in (lab.folder / f"results-{number}").read_text().splitlines():
            device, encoded = line.split()
            results[device] = base64.b64decode(encoded)
    assert len(results) == ENROLMENTS  # none was lost
    require_recorded(lab, results)
    require_valid(lab, results)
    print(f"{ENROLMENTS} enrolments in {elapsed:.1f} s, {kills} kills, {sum(retries)} retries")  # noqa: T201


def require_recorded(lab, results):
    """What the devices have is what the CA recorded: one certificate, one token, one serial for each of them."""
    with contextlib.closing(sqlite3.connect(lab.store / DATABASE)) as database:
        rows = database.execute("SELECT serial, device, der, request_id FROM certificates").fetchall()
        used = database.execute("SELECT count(*) FROM tokens WHERE used_s IS NOT NULL").fetchone()[0]
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(rows) == used == ENROLMENTS
    assert len({serial for serial, *_ in rows}) == ENROLMENTS
    assert len({request for *_, request in rows}) == ENROLMENTS
    assert {device: der for _, device, der, _ in rows} == results


def require_valid(lab, results):
    """``openssl verify`` says so of every single one."""
    folder = lab.folder / "issued"
    folder.mkdir()
    paths = []
    for device, der in results.items():
        certificate = x509.load_der_x509_certificate(der)
        assert certificate.subject.rfc4514_string().startswith(f"2.5.4.5={device},")
        paths.append(folder / f"{device}.pem")
        paths[-1].write_bytes(certificate.public_bytes(Encoding.PEM))
    lab.write("issuing.pem", [lab.issuing])
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", str(lab.folder / "root.pem")]
    command += ["-untrusted", str(lab.folder / "issuing.pem")]
    good = 0
    for at in range(0, len(paths), 500):
        batch = [str(path) for path in paths[at : at + 500]]
        done = subprocess.run([*command, *batch], capture_output=True, check=True)
        good += done.stdout.count(b": OK\n")
    assert good == ENROLMENTS
