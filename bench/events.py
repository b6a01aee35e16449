"""Events: chained appends without synchronising, against Python's own ``logging`` writing plain JSON lines.

Both write the same information to a file on tmpfs, one system call an event; the peer has no canonical form, no hash
chain, no signatures, no size limit. Verification of a whole log is given beside it, against ``sha256sum`` of the file.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.machine import row
from tidegate.base.program import run_program
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.crypto.trust import TrustPolicy
from tidegate.events import catalogue
from tidegate.events.model import Event
from tidegate.events.segments import verify_folder
from tidegate.events.spool import EventLog, SpoolLimits
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

EVENTS = 20_000
REPEATS = 3  # the best of them: the others measured the neighbours
_NEVER = SpoolLimits(
    total_bytes=1 << 30, segment_bytes=8 << 20, sync_every_events=1 << 30, sync_every_s=1e9, checkpoint_every_events=256
)
_TMPFS = Path("/dev/shm")  # noqa: S108  # a folder of our own is made in it


def run() -> list[dict[str, object]]:
    """Return the figures; the peers run on the same machine in the same minute."""
    with tempfile.TemporaryDirectory(dir=_TMPFS if _TMPFS.is_dir() else None) as place:
        folder = Path(place)
        secret = folder / "secret"
        secret.touch(mode=0o600)
        secret.write_bytes(os.urandom(32))
        store = SoftwareKeyStore.create(folder / "keys", DeviceSecretUnlock(secret))
        store.generate("device", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
        trust = TrustPolicy(keys=(store.public_key("device"),), threshold=1, required_classes=frozenset())
        unsigned = EVENTS / _best(lambda number: _append(folder / f"unsigned{number}", store, sign=False))
        signed = EVENTS / _best(lambda number: _append(folder / f"signed{number}", store, sign=True))
        plain = EVENTS / _best(lambda number: _logging(folder / f"plain{number}"))
        verified = EVENTS / _best(lambda _: verify_folder(folder / "signed0", trust))
        lines = sorted(str(path) for path in (folder / "signed0").glob("*.events"))
        summed = EVENTS / _best(lambda _: run_program(["sha256sum", *lines]))
        start_up = _start_up_ms("from tidegate.events.spool import EventLog")
        bare = _start_up_ms("import logging, json")
    peer = "logging.FileHandler with JSON lines"
    return [
        row("events appended, chained", unsigned, "events/s", peer=peer, peer_value=plain, higher=True),
        row("events appended, chained, signed each 256", signed, "events/s", peer=peer, peer_value=plain, higher=True),
        row(
            "events verified", verified, "events/s", peer="sha256sum of the same files", peer_value=summed, higher=True
        ),
        row(
            "start and import of the event log",
            start_up,
            "ms",
            peer="start, import logging and json",
            peer_value=bare,
            higher=False,
        ),
    ]


def _best(call: Callable[[int], object]) -> float:
    times = []
    for number in range(REPEATS):
        start = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - start)
    return min(times)


def _append(folder: Path, store: SoftwareKeyStore, *, sign: bool) -> None:
    signer = store.signer("device") if sign else None
    with EventLog(folder, device_id="bench", boot_id="1", signer=signer, limits=_NEVER) as log:
        for number in range(EVENTS):
            log.append(_event(number))


def _event(number: int) -> Event:
    return catalogue.firewall_denied(
        source="192.0.2.7", destination="198.51.100.1", protocol="tcp", port=number % 65536, rule="default"
    )


class _JsonFormatter(logging.Formatter):
    """The same information as our event, as most services write it."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": record.created,
                "severity": record.levelname,
                "message": record.getMessage(),
                **record.__dict__["event"],
            }
        )


def _logging(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(_JsonFormatter())
    logger = logging.Logger("bench")
    logger.addHandler(handler)
    for number in range(EVENTS):
        port = number % 65536
        event = {
            "device": "bench",
            "boot": "1",
            "sequence": number,
            "src_endpoint": {"ip": "192.0.2.7"},
            "dst_endpoint": {"ip": "198.51.100.1", "port": port},
            "firewall_rule": {"name": "default"},
        }
        logger.info("tcp from 192.0.2.7 to 198.51.100.1 port %d denied by default", port, extra={"event": event})
    handler.close()


def _start_up_ms(statement: str) -> float:
    command = [sys.executable, "-c", statement]
    return 1000 * _best(lambda _: subprocess.run(command, check=True))


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
