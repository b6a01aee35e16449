"""Vault: streaming encryption and decryption against ``openssl speed``, random reads against a plain file.

Files are on tmpfs, so that the disk is not what is measured. ``openssl speed`` encrypts one buffer again and again and
touches no file; what it leaves out (files, keys, Python) is our overhead and stands in the ratio.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.machine import row
from tidegate.base.program import run_program
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost
from tidegate.vault.format import CHUNK_LOG2
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

SIZE_MIB = 64
REPEATS = 5  # the best of them: the others measured the neighbours
RANDOM_READS = 5_000
_TMPFS = Path("/dev/shm")  # noqa: S108  # a folder of our own is made in it


def run() -> list[dict[str, object]]:
    """Return the figures; the peers run on the same machine in the same minute."""
    with tempfile.TemporaryDirectory(dir=_TMPFS if _TMPFS.is_dir() else None) as place:
        folder = Path(place)
        unlocker = PassphraseUnlocker(Secret(b"bench"), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
        data = os.urandom(SIZE_MIB << 20)
        with Vault.create(folder / "vault", unlocker) as vault:
            vault.write("item", data)
            writing = _best(lambda: vault.write_from("item", io.BytesIO(data)))
            reading = _best(lambda: vault.verify("item"))
            ranges = _random_reads(vault, len(data))
        plain = _plain_reads(folder / "plain", data)
    openssl = _openssl_mib_s()
    return [
        row(
            "vault write, streaming",
            SIZE_MIB / writing,
            "MiB/s",
            peer="openssl speed aes-256-gcm 16 KiB",
            peer_value=openssl,
            higher=True,
        ),
        row(
            "vault read, streaming",
            SIZE_MIB / reading,
            "MiB/s",
            peer="openssl speed aes-256-gcm 16 KiB",
            peer_value=openssl,
            higher=True,
        ),
        row(
            "vault read of 4 KiB at random",
            ranges,
            "reads/s",
            peer="os.pread of a plain file",
            peer_value=plain,
            higher=True,
        ),
    ]


def _best(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _random_reads(vault: Vault, size: int) -> float:
    offsets = [random.randrange(size - 4096) for _ in range(RANDOM_READS)]
    with vault.open_item("item") as reader:
        return RANDOM_READS / _best(lambda: [reader.read_range(offset, 4096) for offset in offsets])


def _plain_reads(path: Path, data: bytes) -> float:
    path.write_bytes(data)
    offsets = [random.randrange(len(data) - 4096) for _ in range(RANDOM_READS)]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return RANDOM_READS / _best(lambda: [os.pread(descriptor, 4096, offset) for offset in offsets])
    finally:
        os.close(descriptor)


def _openssl_mib_s() -> float:
    chunk = 1 << CHUNK_LOG2
    done = run_program(["openssl", "speed", "-evp", "aes-256-gcm", "-bytes", str(chunk), "-seconds", "1"])
    match = re.search(r"^AES-256-GCM\s+([0-9.]+)k", done.stdout.decode(), re.MULTILINE)
    if match is None:
        raise RuntimeError("openssl speed answered in another form")
    return float(match[1]) * 1000 / (1 << 20)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
