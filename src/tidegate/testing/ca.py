"""A maker and an owner with their CAs, for tests that need real certificates and a real ``tidegate ca serve``.

Promises: keys in real software stores, certificates by the real profiles, the server as a process of its own on free
ports. Leaves to others: what the certificates are used for.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.pki.ca_store import DATABASE, CaStore
from tidegate.pki.profiles import PROFILES, Order, Subject, draw_serial, sign_certificate
from tidegate.pki.tokens import issue_token, token_digest

_START_S = 15.0
_LOOPBACK = ipaddress.ip_address("127.0.0.1")
_P256 = KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256)


class Lab:
    """Everything below ``folder``: an owner's root and issuing CA with its store, its EST server's TLS key and
    certificate (``127.0.0.1``, ``localhost``), and a maker's factory CA for IDevIDs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        secret = folder / "secret"
        secret.touch(mode=0o600)
        secret.write_bytes(secrets.token_bytes(32))
        self.keys = SoftwareKeyStore.create(folder / "keys", DeviceSecretUnlock(secret))
        self.key_uri = f"file:{folder}/keys?device-secret={secret}&key="
        self.root = self.certify("root-ca", "root", Subject(common_name="Example Root", organization="Example Owner"))
        self.issuing = self.certify(
            "issuing-ca",
            "issuing",
            Subject(common_name="Example Issuing CA", organization="Example Owner"),
            above=(self.root, "root"),
        )
        self.factory = self.certify(
            "factory-ca", "factory", Subject(common_name="Example Factory", organization="Example Maker")
        )
        names = (x509.DNSName("localhost"), x509.IPAddress(_LOOPBACK))
        self.server = self.certify(
            "server", "server", Subject(common_name="localhost", names=names), above=(self.issuing, "issuing")
        )
        self.write("root.pem", [self.root])
        self.write("chain.pem", [self.issuing, self.root])
        self.write("server.pem", [self.server, self.issuing])
        self.write("factory.pem", [self.factory])
        self.store = folder / "store"
        CaStore(self.store, create=True).close()

    def certify(
        self,
        profile: str,
        key: str,
        subject: Subject,
        *,
        above: tuple[x509.Certificate, str] | None = None,
        now: datetime.datetime | None = None,
        lifetime: datetime.timedelta | None = None,
    ) -> x509.Certificate:
        """Return a certificate for a new key called ``key`` (or the one there is), signed by ``above`` or itself."""
        if key not in {info.name for info in self.keys.list_keys()}:
            self.keys.generate(key, _P256)
        return self.sign(profile, self.keys.public_key(key), subject, above or (None, key), now=now, lifetime=lifetime)

    def sign(
        self,
        profile: str,
        public_key: PublicKey,
        subject: Subject,
        above: tuple[x509.Certificate | None, str],
        *,
        now: datetime.datetime | None = None,
        lifetime: datetime.timedelta | None = None,
    ) -> x509.Certificate:
        """Return a certificate for ``public_key``, signed with the key that ``above`` names."""
        order = Order(
            profile=PROFILES[profile],
            subject=subject,
            public_key=public_key,
            now=now or datetime.datetime.now(tz=datetime.UTC),
            serial=draw_serial(secrets.token_bytes(20)),
            lifetime=lifetime,
        )
        return sign_certificate(order, above[0], self.keys.signer(above[1]))

    def idevid(self, serial_number: str, key: str = "idevid") -> tuple[Signer, x509.Certificate]:
        """Return a device's key and its certificate of birth."""
        certificate = self.certify("idevid", key, Subject(serial_number=serial_number), above=(self.factory, "factory"))
        return self.keys.signer(key), certificate

    def write(self, name: str, certificates: Sequence[x509.Certificate]) -> Path:
        """Write certificates as PEM into the folder."""
        path = self.folder / name
        path.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in certificates))
        return path

    def token(self, device: str, *, lifetime_s: int = 3600) -> Secret:
        """Return a new enrolment token; nobody else may have the store open."""
        with CaStore(self.store) as store:
            return issue_token(
                store, device, now_s=SystemClock().now_s(), entropy=SystemEntropy(), lifetime_s=lifetime_s
            )

    def many_tokens(self, devices: Sequence[str]) -> list[str]:
        """Return a token for each device, all recorded in one transaction: thousands in a second."""
        tokens = [secrets.token_urlsafe(32) for _ in devices]
        now_s = int(SystemClock().now_s())
        rows = [
            (token_digest(Secret(token.encode())), device, "ldevid", now_s, now_s + 86_400)
            for device, token in zip(devices, tokens, strict=True)
        ]
        with contextlib.closing(sqlite3.connect(self.store / DATABASE)) as database, database:
            database.executemany(
                "INSERT INTO tokens (digest, device, profile, issued_s, expires_s) VALUES (?, ?, ?, ?, ?)", rows
            )
        return tokens

    @contextlib.contextmanager
    def serving(self, *options: str) -> Iterator[ServerProcess]:
        """Run ``tidegate ca serve`` and stop it at the end."""
        process = ServerProcess(self, options)
        process.start()
        try:
            yield process
        finally:
            process.stop()


@dataclass
class ServerProcess:
    """``tidegate ca serve`` as a process; the ports of the first start are kept for every other one."""

    lab: Lab
    options: tuple[str, ...]
    port: int = 0
    status_port: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        lab = self.lab
        log = lab.folder / "server.jsonl"
        seen = log.stat().st_size if log.exists() else 0
        command = [
            *(sys.executable, "-m", "tidegate.cli.main", "ca", "serve"),
            *("--store", str(lab.store), "--key", lab.key_uri + "issuing", "--chain", str(lab.folder / "chain.pem")),
            *("--tls-key", lab.key_uri + "server", "--tls-chain", str(lab.folder / "server.pem")),
            *("--idevid-anchors", str(lab.folder / "factory.pem")),
            *("--listen", f"127.0.0.1:{self.port}", "--status-listen", f"127.0.0.1:{self.status_port}"),
            *self.options,
        ]
        with log.open("ab") as out, (lab.folder / "server.err").open("ab") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err)
        deadline = SystemClock().monotonic_s() + _START_S
        while SystemClock().monotonic_s() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError((lab.folder / "server.err").read_text()[-2000:])
            found = {one["kind"]: one for one in self.log(seen)}
            if "status.listening" in found:
                self.port = int(found["est.listening"]["address"].rpartition(":")[2])
                self.status_port = int(found["status.listening"]["address"].rpartition(":")[2])
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
        raise RuntimeError("the server does not start")

    def log(self, offset: int = 0) -> list[dict[str, str]]:
        """Return the lines it wrote."""
        with (self.lab.folder / "server.jsonl").open("rb") as stream:
            stream.seek(offset)
            lines = stream.read().split(b"\n")
        return [json.loads(line) for line in lines[:-1] if line.startswith(b"{") and line.endswith(b"}")]

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self) -> int:
        """End it in peace and return its exit code."""
        if self.process is None or self.process.poll() is not None:
            return -1
        self.process.terminate()
        return self.process.wait(20)
